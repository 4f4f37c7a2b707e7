//! Slow start: an endpoint that becomes ready comes up to its full share in steps. Pure: `now` is an argument.
//!
//! Laws: a service without the annotation is never touched; an endpoint that was ready when its service was first seen has
//! its full share (a restarted agent ramps nothing); a ramp ends; equal ramps weigh the same as no ramp.

use fairlead_proto::model::annotations;
use fairlead_proto::v1::Endpoint;
use fairlead_proto::view::{EndpointId, NamespacedName, ServiceView, endpoint_id};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Steps of a ramp: at each an endpoint's share grows by a tenth.
pub const STEPS: u32 = 10;

/// Services with a slow start, and since when each of their endpoints is ready.
#[derive(Clone, Debug, Default)]
pub struct Ramps {
    services: BTreeMap<NamespacedName, Ramp>,
    /// Those of which some endpoint is on its way: the only ones that time changes.
    rising: BTreeSet<NamespacedName>,
}

#[derive(Clone, Debug, Default)]
struct Ramp {
    /// Length of one step, milliseconds.
    step_ms: u64,
    /// When it became ready; `None`: before we looked.
    since: BTreeMap<EndpointId, Option<u64>>,
}

impl Ramps {
    /// Notes a service's endpoints; `None`: there is no such service. `now_ms` counts from any fixed moment.
    pub fn note(&mut self, name: &NamespacedName, service: Option<&ServiceView>, now_ms: u64) {
        let Some((service, seconds)) = service.and_then(|service| Some((service, seconds(service)?))) else {
            self.forget(name);
            return;
        };
        let known = self.services.remove(name);
        let since = |id: &EndpointId| match &known {
            None => None,
            Some(ramp) => ramp.since.get(id).copied().unwrap_or(Some(now_ms)),
        };
        let ready = service.endpoints.values().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint_id(&endpoint));
        let since = ready.map(|id| (id.clone(), since(&id))).collect();
        let ramp = Ramp { step_ms: u64::from(seconds) * 1_000 / u64::from(STEPS), since };
        if ramp.is_rising(now_ms) {
            self.rising.insert(name.clone());
        } else {
            self.rising.remove(name);
        }
        self.services.insert(name.clone(), ramp);
    }

    fn forget(&mut self, name: &NamespacedName) {
        self.services.remove(name);
        self.rising.remove(name);
    }

    /// Forgets services that are no more.
    pub fn keep(&mut self, exists: impl Fn(&NamespacedName) -> bool) {
        self.services.retain(|name, _| exists(name));
        self.rising.retain(|name| exists(name));
    }

    /// The service with the weights that its endpoints have at a time.
    #[must_use]
    pub fn paced<'a>(&self, name: &NamespacedName, service: &'a ServiceView, now_ms: u64) -> Cow<'a, ServiceView> {
        let Some(ramp) = self.services.get(name).filter(|ramp| ramp.is_rising(now_ms)) else {
            return Cow::Borrowed(service);
        };
        let pace = |endpoint: Endpoint| {
            let step = ramp.since.get(&endpoint_id(&endpoint)).map_or(STEPS, |since| ramp.step(*since, now_ms));
            Endpoint { weight: Some(endpoint.weight.unwrap_or(1) * step), ..endpoint }
        };
        let mut paced = service.clone();
        paced.endpoints = service.endpoints.values().map(pace).collect();
        Cow::Owned(paced)
    }

    /// Services of which some endpoint reached another step between two times. O(services on their way).
    #[must_use]
    pub fn due(&mut self, before_ms: u64, now_ms: u64) -> BTreeSet<NamespacedName> {
        let Self { services, rising } = self;
        let moved = |ramp: &Ramp| ramp.steps(before_ms).ne(ramp.steps(now_ms));
        let due = rising.iter().filter(|name| services.get(*name).is_some_and(moved)).cloned().collect();
        rising.retain(|name| services.get(name).is_some_and(|ramp| ramp.is_rising(now_ms)));
        due
    }

    /// When the next step is due; `None`: everything has its full share.
    #[must_use]
    pub fn next(&self, now_ms: u64) -> Option<u64> {
        let next = |ramp: &Ramp| {
            let rising = ramp.since.values().flatten().filter(|since| ramp.step(Some(**since), now_ms) < STEPS);
            rising.map(|since| since + u64::from(ramp.step(Some(*since), now_ms)) * ramp.step_ms).min()
        };
        self.rising.iter().filter_map(|name| next(self.services.get(name)?)).min()
    }
}

impl Ramp {
    fn is_rising(&self, now_ms: u64) -> bool {
        self.steps(now_ms).any(|step| step < STEPS)
    }

    fn steps(&self, now_ms: u64) -> impl Iterator<Item = u32> {
        self.since.values().map(move |since| self.step(*since, now_ms))
    }

    /// From 1 at once to all of them.
    fn step(&self, since: Option<u64>, now_ms: u64) -> u32 {
        let Some(since) = since.filter(|_| self.step_ms > 0) else {
            return STEPS;
        };
        let passed = now_ms.saturating_sub(since) / self.step_ms;
        u32::try_from(passed).unwrap_or(STEPS).saturating_add(1).min(STEPS)
    }
}

/// The slow start that a service asks for.
fn seconds(service: &ServiceView) -> Option<u32> {
    let item = service.item();
    let text = item.annotations.get(annotations::SLOW_START)?;
    annotations::parse_slow_start(text).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::ServiceItem;

    fn service(endpoints: &[(&str, bool)]) -> ServiceView {
        let annotations = [(annotations::SLOW_START.into(), "10s".into())].into();
        let item = ServiceItem { annotations, ..ServiceItem::default() };
        let endpoint = |(address, ready): &(&str, bool)| Endpoint {
            address: (*address).into(),
            ready: *ready,
            ..Endpoint::default()
        };
        ServiceView::new(&item, endpoints.iter().map(endpoint).collect())
    }

    fn weights(ramps: &Ramps, view: &ServiceView, now_ms: u64) -> Vec<Option<u32>> {
        ramps.paced(&name(), view, now_ms).endpoints.values().map(|endpoint| endpoint.weight).collect()
    }

    fn name() -> NamespacedName {
        NamespacedName::new("default", "web")
    }

    #[test]
    fn a_new_endpoint_comes_up_in_steps_and_the_ramp_ends() {
        let mut ramps = Ramps::default();
        ramps.note(&name(), Some(&service(&[("a", true), ("b", false)])), 5_000);
        let both = service(&[("a", true), ("b", true)]);
        assert_eq!(weights(&ramps, &both, 5_000), [None, None], "what was there has its share");
        ramps.note(&name(), Some(&both), 10_000);
        assert_eq!(weights(&ramps, &both, 10_000), [Some(10), Some(1)]);
        assert_eq!(ramps.next(10_000), Some(11_000));
        assert_eq!(weights(&ramps, &both, 14_500), [Some(10), Some(5)]);
        assert_eq!(ramps.due(14_500, 14_900), [].into());
        assert_eq!(ramps.due(14_500, 15_000), [name()].into());
        // Another change of the service doesn't begin it anew.
        ramps.note(&name(), Some(&both), 15_000);
        assert_eq!(weights(&ramps, &both, 18_999), [Some(10), Some(9)]);
        assert_eq!(weights(&ramps, &both, 19_000), [None, None]);
        assert_eq!(ramps.next(19_000), None);
        assert_eq!(ramps.due(15_000, 19_000), [name()].into(), "the last step is one too");
        assert_eq!((ramps.due(15_000, 19_000), ramps.rising.len()), ([].into(), 0), "time changes it no more");
        // One that falls and rises begins again.
        ramps.note(&name(), Some(&service(&[("a", true), ("b", false)])), 20_000);
        ramps.note(&name(), Some(&both), 21_000);
        assert_eq!(weights(&ramps, &both, 21_000), [Some(10), Some(1)]);
    }

    #[test]
    fn without_the_annotation_nothing_is_touched() {
        let mut ramps = Ramps::default();
        ramps.note(&name(), Some(&service(&[("a", true)])), 0);
        let more = ServiceView::new(&ServiceItem::default(), service(&[("a", true), ("b", true)]).endpoints);
        ramps.note(&name(), Some(&more), 1);
        assert!(matches!(ramps.paced(&name(), &more, 1), Cow::Borrowed(_)));
        assert_eq!(ramps.next(1), None);
        ramps.note(&name(), None, 2);
        assert_eq!(ramps.due(0, 9_999), [].into());
    }
}
