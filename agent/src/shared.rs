//! The node's view, shared by the stream that folds into it, the reconciler that programs it and the probes.
//!
//! INVARIANT: whoever looks sees a whole step, never some parts of one; revision 0 means that there is no view to act on.

use fairlead_proto::v1::{NodeDelta, Pod};
use fairlead_proto::view::{FoldError, NamespacedName, NodeView, Touched};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The shared view.
pub struct Shared {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    view: NodeView,
    /// Ranges that ClusterIPs come from.
    service_cidrs: Vec<IpNet>,
    /// What the reconciler hasn't looked at.
    for_rules: Touched,
    /// What the probes haven't looked at.
    for_probes: Touched,
    /// What the health checks haven't looked at.
    for_checks: Touched,
    /// Folded and not announced: it may not be on the disk yet, so no rule is made of it.
    unannounced: bool,
}

/// A change of this node's pods: `None` = it is gone.
pub type PodChanges = BTreeMap<NamespacedName, Option<Pod>>;

impl Shared {
    /// Starts with a view (of the last run), all of which is to be looked at.
    #[must_use]
    pub fn new(view: NodeView, service_cidrs: Vec<IpNet>) -> Self {
        let all = Touched { all: true, ..Touched::default() };
        let inner = Inner {
            view,
            service_cidrs,
            for_rules: all.clone(),
            for_probes: all.clone(),
            for_checks: all,
            unannounced: false,
        };
        Self { inner: Mutex::new(inner), version: watch::Sender::new(0) }
    }

    /// Revision and digest of the view.
    #[must_use]
    pub fn have(&self) -> (u64, Vec<u8>) {
        let inner = self.lock();
        (inner.view.revision, if inner.view.revision == 0 { Vec::new() } else { inner.view.digest() })
    }

    /// Folds all parts of one step. Nobody is woken yet: see [`Shared::announce`].
    ///
    /// # Errors
    /// [`FoldError`]; the view is then gone and must be asked for anew.
    pub fn fold(&self, parts: &[NodeDelta]) -> Result<(), FoldError> {
        let mut inner = self.lock();
        inner.unannounced = true;
        for part in parts {
            match inner.view.fold(part) {
                Ok(touched) => {
                    merge(&mut inner.for_rules, &touched);
                    merge(&mut inner.for_probes, &touched);
                    merge(&mut inner.for_checks, &touched);
                }
                Err(error) => {
                    inner.view = NodeView::default();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ranges that ClusterIPs come from; empty = not known yet.
    #[must_use]
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        self.lock().service_cidrs.clone()
    }

    /// Takes the servers' word for them, and wakes the reconciler if it is another one.
    pub fn set_service_cidrs(&self, cidrs: Vec<IpNet>) {
        let mut inner = self.lock();
        if inner.service_cidrs != cidrs {
            inner.service_cidrs = cidrs;
            inner.for_rules.all = true;
            drop(inner);
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Wakes the reconciler and the probes. The answer numbers the announcements.
    pub fn announce(&self) -> u64 {
        self.lock().unannounced = false;
        self.version.send_modify(|version| *version += 1);
        *self.version.borrow()
    }

    /// Wakes at every announcement.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Looks at the view.
    pub fn look<T>(&self, look: impl FnOnce(&NodeView) -> T) -> T {
        look(&self.lock().view)
    }

    /// Looks at the view and at what was touched since the last look; `None` if there is no announced view.
    pub fn take_for_rules<T>(&self, look: impl FnOnce(&NodeView, Touched) -> T) -> Option<T> {
        let mut inner = self.lock();
        if inner.view.revision == 0 || inner.unannounced {
            return None;
        }
        let touched = std::mem::take(&mut inner.for_rules);
        Some(look(&inner.view, touched))
    }

    /// The same for the health checks, whatever is announced.
    pub fn take_for_checks<T>(&self, look: impl FnOnce(&NodeView, Touched) -> T) -> T {
        let mut inner = self.lock();
        let touched = std::mem::take(&mut inner.for_checks);
        look(&inner.view, touched)
    }

    /// The pods touched since the last call; with `true`, they are all there are. `None` if there is no view.
    pub fn take_for_probes(&self) -> Option<(PodChanges, bool)> {
        let mut inner = self.lock();
        if inner.view.revision == 0 {
            return None;
        }
        let touched = std::mem::take(&mut inner.for_probes);
        let pod = |name: &NamespacedName| (name.clone(), inner.view.pods.get(name).cloned());
        let changes = if touched.all {
            inner.view.pods.keys().map(pod).collect()
        } else {
            touched.pods.iter().map(pod).collect()
        };
        Some((changes, touched.all))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn merge(into: &mut Touched, from: &Touched) {
    into.all |= from.all;
    into.nodes |= from.nodes;
    if into.all {
        // Names add nothing to that.
        into.services.clear();
        into.pods.clear();
    } else {
        into.services.extend(from.services.iter().cloned());
        into.pods.extend(from.pods.iter().cloned());
    }
    into.released.extend(from.released.iter().cloned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_that_may_not_be_on_disk_is_not_programmed() {
        let shared = Shared::new(NodeView::default(), Vec::new());
        shared.fold(&[NodeDelta { to: 1, ..NodeDelta::default() }]).unwrap();
        assert_eq!(shared.take_for_rules(|view, _| view.revision), None);
        shared.announce();
        assert_eq!(shared.take_for_rules(|view, _| view.revision), Some(1));
    }
}
