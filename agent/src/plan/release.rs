//! Endpoints that left their service while their pods go on: a selector or a label changed. Pure: `now` is an argument.
//!
//! As in Kubernetes they get nothing new and their TCP connections live on (a switch from blue to green cuts nobody), but
//! not for ever: after [`LINGER_MS`] what is left is cut, and its clients connect to where the service is now.
//! Laws: nothing new reaches a released endpoint; one that comes back is an endpoint like others.

use fairlead_proto::v1::Endpoint;
use fairlead_proto::view::{EndpointId, NamespacedName, ServiceView, endpoint_id};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// How long a released endpoint keeps its connections, milliseconds.
pub const LINGER_MS: u64 = 600_000;

/// Released endpoints of services, each with the time until which it keeps its connections.
#[derive(Clone, Debug, Default)]
pub struct Releases {
    services: BTreeMap<NamespacedName, BTreeMap<EndpointId, (u64, Endpoint)>>,
    /// When the first one's time is over: before that, time changes nothing.
    next: Option<u64>,
}

impl Releases {
    /// Notes endpoints that were released. `now_ms` counts from any fixed moment.
    pub fn note(&mut self, released: &[(NamespacedName, Endpoint)], now_ms: u64) {
        for (name, endpoint) in released {
            // Not serving: of datagrams, which have no end of their own, nothing lives on.
            let released = Endpoint { ready: false, serving: false, weight: Some(0), ..endpoint.clone() };
            let until = now_ms + LINGER_MS;
            self.next = Some(self.next.map_or(until, |next| next.min(until)));
            // Once more: its time begins anew.
            self.services.entry(name.clone()).or_default().insert(endpoint_id(endpoint), (until, released));
        }
    }

    /// Forgets a service that is no more.
    pub fn forget(&mut self, name: &NamespacedName) {
        self.services.remove(name);
    }

    /// Forgets services that are no more.
    pub fn keep(&mut self, exists: impl Fn(&NamespacedName) -> bool) {
        self.services.retain(|name, _| exists(name));
    }

    /// Forgets those whose time is over. The services that change by it.
    pub fn expire(&mut self, now_ms: u64) -> BTreeSet<NamespacedName> {
        let mut changed = BTreeSet::new();
        if self.next.is_none_or(|next| next > now_ms) {
            return changed;
        }
        self.services.retain(|name, released| {
            let before = released.len();
            released.retain(|_, (until, _)| *until > now_ms);
            if released.len() < before {
                changed.insert(name.clone());
            }
            !released.is_empty()
        });
        self.next = self.services.values().flat_map(BTreeMap::values).map(|(until, _)| *until).min();
        changed
    }

    /// The service with its released endpoints beside the others.
    #[must_use]
    pub fn shown<'a>(&self, name: &NamespacedName, service: Cow<'a, ServiceView>) -> Cow<'a, ServiceView> {
        let Some(released) = self.services.get(name) else {
            return service;
        };
        let mut service = service.into_owned();
        let taken: BTreeSet<String> = service.endpoints.values().map(|endpoint| endpoint.address).collect();
        for (_, endpoint) in released.values().filter(|(_, endpoint)| !taken.contains(&endpoint.address)) {
            service.endpoints.insert(endpoint);
        }
        Cow::Owned(service)
    }

    /// When the next one's time is over.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::service::ports;
    use crate::plan::{Family, NodeFacts};
    use fairlead_proto::v1::{EndpointPort, ServiceItem, ServicePort};

    fn service(protocol: &str, addresses: &[&str]) -> ServiceView {
        let item = ServiceItem {
            cluster_ips: vec!["10.96.0.10".into()],
            ports: vec![ServicePort { port: 80, protocol: protocol.into(), ..ServicePort::default() }],
            ..ServiceItem::default()
        };
        ServiceView::new(&item, addresses.iter().map(|address| endpoint(protocol, address)).collect())
    }

    fn endpoint(protocol: &str, address: &str) -> Endpoint {
        let ports = vec![EndpointPort { port: 8080, protocol: protocol.into(), ..EndpointPort::default() }];
        Endpoint { address: address.into(), ready: true, serving: true, ports, ..Endpoint::default() }
    }

    /// Who gets new connections, and who keeps what it has.
    fn plan(releases: &Releases, view: &ServiceView) -> (Vec<String>, Vec<String>) {
        let shown = releases.shown(&name(), Cow::Borrowed(view));
        let plan = ports(&shown, &NodeFacts::default(), ("", Family::V4)).remove(0);
        let text = |address: &std::net::SocketAddr| address.ip().to_string();
        (plan.cluster.iter().map(|one| text(&one.address)).collect(), plan.kept.iter().map(text).collect())
    }

    fn name() -> NamespacedName {
        NamespacedName::new("default", "web")
    }

    #[test]
    fn a_released_endpoint_keeps_its_tcp_connections_for_a_while() {
        let (blue, green) = ("10.244.0.1", "10.244.0.2");
        let mut releases = Releases::default();
        releases.note(&[(name(), endpoint("UDP", blue))], 0);
        assert_eq!(plan(&releases, &service("UDP", &[green])), (vec![green.to_owned()], Vec::new()));
        releases.forget(&name());
        releases.note(&[(name(), endpoint("TCP", blue))], 500);
        releases.note(&[(name(), endpoint("TCP", blue))], 1_000);
        assert_eq!(releases.services[&name()].len(), 1, "one endpoint is noted once, however often it comes and goes");
        let tcp = service("TCP", &[green]);
        assert_eq!(plan(&releases, &tcp), (vec![green.to_owned()], vec![blue.to_owned()]));
        assert_eq!(plan(&releases, &service("TCP", &[])), (Vec::new(), vec![blue.to_owned()]), "nothing new");
        assert_eq!(plan(&releases, &service("TCP", &[blue])), (vec![blue.to_owned()], Vec::new()), "it is back");
        assert_eq!(releases.expire(LINGER_MS), [].into());
        assert_eq!(releases.next(), Some(1_000 + LINGER_MS), "its time began anew");
        assert_eq!(releases.expire(1_000 + LINGER_MS), [name()].into());
        assert_eq!(plan(&releases, &tcp), (vec![green.to_owned()], Vec::new()));
        assert_eq!(releases.next(), None);
    }

    #[test]
    fn a_deleted_services_are_forgotten() {
        let mut releases = Releases::default();
        releases.note(&[(name(), endpoint("TCP", "10.244.0.1"))], 0);
        releases.forget(&name());
        assert_eq!(plan(&releases, &service("TCP", &[])), (Vec::new(), Vec::new()), "another of its name has none");
        assert_eq!(releases.expire(LINGER_MS), [].into());
        assert_eq!(releases.next(), None);
    }
}
