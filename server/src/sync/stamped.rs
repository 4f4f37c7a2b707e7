//! A snapshot with everything that nodes' sessions would else each make for themselves: digests of their views, and the
//! steps to it from the revisions that they stand at. Pure: what is kept here only saves making it again.
//!
//! INVARIANT: `digest(node)` is that of the node's full view.

use crate::machine::{Snapshot, State};
use crate::sync::delta::{Changed, Step, changed_since, endpoints_of, placed, shared_delta};
use crate::sync::item::{node_item, service_item};
use fairlead_proto::v1::{Kind, Object};
use fairlead_proto::view::{NamespacedName, ViewDigest};
use rpds::RedBlackTreeMapSync;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Revisions from which steps are kept. Nodes that keep up stand at the last few.
const STEPS: usize = 64;

/// A published snapshot with the digest of everything that all nodes' views share, and of each node's pods.
pub struct Stamped {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    shared: ViewDigest,
    pods: RedBlackTreeMapSync<String, ViewDigest>,
    steps: Mutex<BTreeMap<u64, Arc<Step>>>,
}

impl Stamped {
    /// Stamps a snapshot from scratch: O(state).
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        let mut shared = ViewDigest::default();
        for object in snapshot.state.list(Kind::Service, "") {
            add_service(&mut shared, &snapshot.state, object);
        }
        for object in snapshot.state.list(Kind::Node, "") {
            if let Some(node) = object.as_node() {
                shared.add_node(&node_item(node));
            }
        }
        let mut pods: BTreeMap<String, ViewDigest> = BTreeMap::new();
        for (node, pod) in snapshot.state.list(Kind::Pod, "").filter_map(placed) {
            pods.entry(node).or_default().add_pod(&pod);
        }
        Self { snapshot, shared, pods: pods.into_iter().collect(), steps: Mutex::default() }
    }

    /// Stamps the next snapshot: O(changes between), or from scratch if the window no longer holds them.
    #[must_use]
    pub fn advance(&self, next: Arc<Snapshot>) -> Self {
        let from = self.snapshot.state.revision();
        let Some(changed) = changed_since(&next, from) else { return Self::new(next) };
        let mut shared = self.shared;
        let delta = shared_delta(&next.state, &changed);
        for gone in &delta.services_gone {
            shared.remove_service(gone);
        }
        for item in &delta.services {
            shared.add_service(item);
        }
        for (service, endpoint) in &delta.endpoints_gone {
            shared.remove_endpoint(service, endpoint);
        }
        for (service, endpoint) in &delta.endpoints {
            shared.add_endpoint(service, endpoint);
        }
        for (old, new) in &delta.nodes {
            if let Some(old) = old {
                shared.remove_node(old);
            }
            if let Some(new) = new {
                shared.add_node(new);
            }
        }
        let pods = advance_pods(self.pods.clone(), &next.state, &changed);
        let step = Step::of(&next.state, from, (delta, &changed));
        let steps = Mutex::new(BTreeMap::from([(from, Arc::new(step))]));
        Self { snapshot: next, shared, pods, steps }
    }

    /// Digest of one node's whole view.
    #[must_use]
    pub fn digest(&self, node: &str) -> Vec<u8> {
        let mut digest = self.shared;
        if let Some(pods) = self.pods.get(node) {
            digest.add_all(*pods);
        }
        digest.to_bytes()
    }

    /// What takes nodes here from a revision; `None`: the window no longer tells.
    pub(crate) fn step_from(&self, revision: u64) -> Option<Arc<Step>> {
        let kept = || self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(step) = kept().get(&revision) {
            return Some(step.clone());
        }
        let step = Arc::new(Step::new(&self.snapshot, revision)?);
        let mut kept = kept();
        if kept.len() < STEPS {
            kept.insert(revision, step.clone());
        }
        Some(step)
    }
}

fn advance_pods(
    mut pods: RedBlackTreeMapSync<String, ViewDigest>,
    state: &State,
    changed: &Changed,
) -> RedBlackTreeMapSync<String, ViewDigest> {
    for (key, old) in changed.iter().filter(|(key, _)| key.kind == Kind::Pod) {
        let (old, new) = (old.as_ref().and_then(placed), state.get(key).and_then(placed));
        if old == new {
            continue;
        }
        if let Some((node, pod)) = old {
            let mut digest = pods.get(&node).copied().unwrap_or_default();
            digest.remove_pod(&pod);
            if digest == ViewDigest::default() {
                pods.remove_mut(&node);
            } else {
                pods.insert_mut(node, digest);
            }
        }
        if let Some((node, pod)) = new {
            let mut digest = pods.get(&node).copied().unwrap_or_default();
            digest.add_pod(&pod);
            pods.insert_mut(node, digest);
        }
    }
    pods
}

fn add_service(digest: &mut ViewDigest, state: &State, object: &Object) {
    let Some(item) = object.as_service().and_then(service_item) else { return };
    let name = NamespacedName::new(&item.namespace, &item.name);
    digest.add_service(&item);
    for endpoint in endpoints_of(state, &name) {
        digest.add_endpoint(&name, &endpoint);
    }
}
