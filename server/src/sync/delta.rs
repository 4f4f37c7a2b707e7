//! What a node must know, and how its view gets from one revision to another. Pure.
//!
//! Law: `fold(full(r), deltas r→n) == full(n)`, for any cut, any coalescing, any server. A delta costs O(changes since
//! `have`); its digest costs O(change) through [`Stamped`], which is advanced once a revision for all nodes.

use crate::machine::derive::{is_finished, pod_address};
use crate::machine::{Change, Snapshot, State};
use crate::sync::item::{node_endpoint, node_item, pod_item, service_item};
use crate::sync::stamped::Stamped;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{
    Endpoint, EndpointRef, Endpoints, Kind, NodeDelta, NodeItem, Object, Pod, ServiceEndpoints, ServiceItem,
};
use fairlead_proto::view::{NamespacedName, NodeView, endpoint_id};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Items in one message of a delta; larger deltas are cut into parts (`NodeDelta::more`).
pub const PART_ITEMS: usize = 2_000;

/// The whole view of a node.
#[must_use]
pub fn full(state: &State, node: &str) -> NodeView {
    let mut view = NodeView::default();
    let mut delta = NodeDelta { from: None, to: state.revision(), ..NodeDelta::default() };
    for object in state.list(Kind::Service, "") {
        let Some(item) = object.as_service().and_then(service_item) else { continue };
        let name = NamespacedName::new(&item.namespace, &item.name);
        delta.upsert_services.push(item);
        delta.endpoints.push(ServiceEndpoints { upsert: endpoints_of(state, &name).collect(), ..of_service(&name) });
    }
    delta.upsert_nodes = state.list(Kind::Node, "").filter_map(|object| object.as_node()).map(node_item).collect();
    delta.upsert_pods = state.pods_on_node(node).filter_map(|object| object.as_pod()).map(pod_item).collect();
    // A full delta without a digest always folds.
    let _ = view.fold(&delta);
    view
}

/// What nodes need to get from one revision to another: the part that all of them share, and each one's own pods. It is
/// made once for all nodes that stand at a revision.
pub(crate) struct Step {
    shared: NodeDelta,
    pods: BTreeMap<String, OwnPods>,
}

/// What becomes of one node's pods.
#[derive(Default)]
struct OwnPods {
    upsert: Vec<Pod>,
    remove: Vec<String>,
}

impl Step {
    /// From `revision` to the state's. `None`: the window no longer tells.
    pub(crate) fn new(snapshot: &Snapshot, revision: u64) -> Option<Self> {
        let changed = changed_since(snapshot, revision)?;
        let shared = shared_delta(&snapshot.state, &changed);
        Some(Self::of(&snapshot.state, revision, (shared, &changed)))
    }

    pub(super) fn of(state: &State, from: u64, of: (SharedDelta, &Changed)) -> Self {
        let (shared, changed) = of;
        let mut delta = NodeDelta { from: Some(from), to: state.revision(), ..NodeDelta::default() };
        // An item that is merely replaced needs no removal: upserting it does that.
        let replaced: BTreeSet<_> = shared.services.iter().map(|item| (&item.namespace, &item.name)).collect();
        delta.remove_services = shared
            .services_gone
            .iter()
            .filter(|item| !replaced.contains(&(&item.namespace, &item.name)))
            .map(|item| format!("{}/{}", item.namespace, item.name))
            .collect();
        let removed: BTreeSet<_> = delta.remove_services.iter().cloned().collect();
        delta.endpoints = endpoints_delta(&shared, &removed, state);
        delta.upsert_services = shared.services;
        for (old, new) in shared.nodes {
            match (old, new) {
                (_, Some(new)) => delta.upsert_nodes.push(new),
                (Some(old), None) => delta.remove_nodes.push(old.name),
                (None, None) => {}
            }
        }
        Self { shared: delta, pods: own_pods(state, changed) }
    }

    /// What one node needs of it; `None` if nothing.
    fn of_node(&self, stamped: &Stamped, node: &str) -> Option<NodeDelta> {
        let own = self.pods.get(node);
        if own.is_none() && is_empty(&self.shared) {
            return None;
        }
        let mut delta = self.shared.clone();
        if let Some(own) = own {
            delta.upsert_pods.clone_from(&own.upsert);
            delta.remove_pods.clone_from(&own.remove);
        }
        delta.digest = stamped.digest(node);
        Some(delta)
    }
}

fn own_pods(state: &State, changed: &Changed) -> BTreeMap<String, OwnPods> {
    let mut pods: BTreeMap<String, OwnPods> = BTreeMap::new();
    for (key, old) in changed.iter().filter(|(key, _)| key.kind == Kind::Pod) {
        let old = old.as_ref().and_then(placed);
        let new = state.get(key).and_then(placed);
        if old == new {
            continue;
        }
        let (was_on, is_on) = (old.map(|(node, _)| node), new.as_ref().map(|(node, _)| node.clone()));
        if let Some(node) = was_on.filter(|node| Some(node) != is_on.as_ref()) {
            pods.entry(node).or_default().remove.push(key.path());
        }
        if let Some((node, pod)) = new {
            pods.entry(node).or_default().upsert.push(pod);
        }
    }
    pods
}

/// The node that a pod is on, and what that node is told of it.
pub(super) fn placed(object: &Arc<Object>) -> Option<(String, Pod)> {
    let pod = object.as_pod()?;
    let node = &pod.spec.as_ref()?.node_name;
    (!node.is_empty()).then(|| (node.clone(), pod_item(pod)))
}

/// Takes a node's view from revision `have` (`None`: nothing) to the snapshot's. `None` as an answer: nothing that
/// concerns this node changed, so a view of `have` is a view of the snapshot's revision too.
#[must_use]
pub fn delta(stamped: &Stamped, node: &str, have: Option<u64>) -> Option<NodeDelta> {
    match have.and_then(|revision| stamped.step_from(revision)) {
        Some(step) => step.of_node(stamped, node),
        None => Some(full(&stamped.snapshot.state, node).to_delta()),
    }
}

/// An empty step: tells the agent that its view also stands at a later revision.
#[must_use]
pub fn step(stamped: &Stamped, node: &str, from: u64) -> NodeDelta {
    let to = stamped.snapshot.state.revision();
    NodeDelta { from: Some(from), to, digest: stamped.digest(node), ..NodeDelta::default() }
}

/// Cuts a delta into messages of at most [`PART_ITEMS`] items. Services come before their endpoints, in every cut.
#[must_use]
pub fn parts(delta: NodeDelta) -> Vec<NodeDelta> {
    let endpoints = delta.endpoints.iter().map(|group| group.remove.len() + group.upsert.len()).sum::<usize>();
    let items = delta.upsert_services.len() + endpoints;
    if items <= PART_ITEMS {
        return vec![delta];
    }
    let base = delta.from.unwrap_or(0);
    let mut rest = delta;
    let digest = std::mem::take(&mut rest.digest);
    let services = std::mem::take(&mut rest.upsert_services);
    let endpoints = std::mem::take(&mut rest.endpoints);
    let to = rest.to;
    let mut parts = vec![rest];
    let empty = || NodeDelta { from: Some(base), to, ..NodeDelta::default() };
    parts.extend(services.chunks(PART_ITEMS).map(|chunk| NodeDelta { upsert_services: chunk.to_vec(), ..empty() }));
    parts.extend(cut(endpoints).into_iter().map(|endpoints| NodeDelta { endpoints, ..empty() }));
    for part in &mut parts {
        part.more = true;
    }
    if let Some(last) = parts.last_mut() {
        last.more = false;
        last.digest = digest;
    }
    parts
}

/// Groups of at most [`PART_ITEMS`] endpoints; a service's may be in several.
fn cut(groups: Vec<ServiceEndpoints>) -> Vec<Vec<ServiceEndpoints>> {
    let mut parts: Vec<Vec<ServiceEndpoints>> = Vec::new();
    let mut room = 0;
    for group in groups {
        let (mut remove, mut upsert) = (group.remove.into_iter().peekable(), group.upsert.into_iter().peekable());
        while remove.peek().is_some() || upsert.peek().is_some() {
            if room == 0 {
                parts.push(Vec::new());
                room = PART_ITEMS;
            }
            let remove: Vec<_> = remove.by_ref().take(room).collect();
            let upsert: Vec<_> = upsert.by_ref().take(room - remove.len()).collect();
            room -= remove.len() + upsert.len();
            let (namespace, service) = (group.namespace.clone(), group.service.clone());
            let piece = ServiceEndpoints { namespace, service, remove, upsert };
            if let Some(part) = parts.last_mut() {
                part.push(piece);
            }
        }
    }
    parts
}

/// The state before of each object that changed.
pub(super) type Changed = BTreeMap<Key, Option<Arc<Object>>>;

/// What changed after a revision; `None` if the window no longer tells.
pub(super) fn changed_since(snapshot: &Snapshot, revision: u64) -> Option<Changed> {
    if revision > snapshot.state.revision() {
        return None;
    }
    let mut changed = BTreeMap::new();
    for change in snapshot.history.after(revision).ok()? {
        let change: Arc<Change> = change;
        changed.entry(change.key.clone()).or_insert_with(|| change.old.clone());
    }
    Some(changed)
}

/// What changed in the part of the view that all nodes share. A changed service is both gone (old) and there (new).
#[derive(Default)]
pub(super) struct SharedDelta {
    pub(super) services_gone: Vec<ServiceItem>,
    pub(super) services: Vec<ServiceItem>,
    pub(super) endpoints_gone: Vec<(NamespacedName, Endpoint)>,
    /// Addresses that several of a service's old endpoints have.
    shared_addresses: BTreeSet<(NamespacedName, String)>,
    pub(super) endpoints: Vec<(NamespacedName, Endpoint)>,
    pub(super) nodes: Vec<(Option<NodeItem>, Option<NodeItem>)>,
}

pub(super) fn shared_delta(state: &State, changed: &Changed) -> SharedDelta {
    let mut delta = SharedDelta::default();
    // Services whose own object or endpoints record changed, each once.
    let mut names = BTreeSet::new();
    for (key, old) in changed {
        match key.kind {
            Kind::Service | Kind::Endpoints => {
                names.insert(NamespacedName::new(&key.namespace, &key.name));
            }
            Kind::Node => {
                let old = old.as_ref().and_then(|object| object.as_node()).map(node_item);
                let new = state.get(key).and_then(|object| object.as_node()).map(node_item);
                if old != new {
                    delta.nodes.push((old, new));
                }
            }
            Kind::Pod | Kind::Namespace | Kind::Event | Kind::Unspecified => {}
        }
    }
    for name in names {
        service_delta(&mut delta, state, (&name, changed));
    }
    delta
}

fn service_delta(delta: &mut SharedDelta, state: &State, of: (&NamespacedName, &Changed)) {
    let (name, changed) = of;
    let before = |kind: Kind| {
        let key = Key::new(kind, &name.namespace, &name.name);
        match changed.get(&key) {
            Some(old) => old.clone(),
            None => state.get(&key).cloned(),
        }
    };
    let service_key = Key::new(Kind::Service, &name.namespace, &name.name);
    let old_item = before(Kind::Service).as_ref().and_then(|object| object.as_service().and_then(service_item));
    let new_item = state.get(&service_key).and_then(|object| object.as_service().and_then(service_item));
    let old_record = before(Kind::Endpoints);
    let old_endpoints: BTreeMap<_, _> = match (&old_item, &old_record) {
        (Some(_), Some(record)) => record.as_endpoints().map(by_id).unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    let new_endpoints: BTreeMap<_, _> = match &new_item {
        Some(_) => endpoints_of(state, name).map(|endpoint| (endpoint_id(&endpoint), endpoint)).collect(),
        None => BTreeMap::new(),
    };
    let neighbours = old_endpoints.keys().zip(old_endpoints.keys().skip(1));
    for ((address, _), _) in neighbours.filter(|(one, next)| one.0 == next.0) {
        delta.shared_addresses.insert((name.clone(), address.clone()));
    }
    for (id, old) in &old_endpoints {
        if new_endpoints.get(id) != Some(old) {
            delta.endpoints_gone.push((name.clone(), old.clone()));
        }
    }
    for (id, new) in &new_endpoints {
        if old_endpoints.get(id) != Some(new) {
            delta.endpoints.push((name.clone(), new.clone()));
        }
    }
    if old_item != new_item {
        delta.services_gone.extend(old_item);
        delta.services.extend(new_item);
    }
}

/// What becomes of endpoints, by service.
fn endpoints_delta(shared: &SharedDelta, services_removed: &BTreeSet<String>, state: &State) -> Vec<ServiceEndpoints> {
    let mut groups: BTreeMap<&NamespacedName, ServiceEndpoints> = BTreeMap::new();
    // An endpoint that is merely replaced needs no removal: upserting it does that.
    let replaced: BTreeSet<_> = shared.endpoints.iter().map(|(name, endpoint)| (name, endpoint_id(endpoint))).collect();
    for (name, endpoint) in &shared.endpoints_gone {
        if replaced.contains(&(name, endpoint_id(endpoint))) || services_removed.contains(&name.to_string()) {
            continue;
        }
        let ambiguous = shared.shared_addresses.contains(&(name.clone(), endpoint.address.clone()));
        groups.entry(name).or_insert_with(|| of_service(name)).remove.push(EndpointRef {
            address: endpoint.address.clone(),
            pod_name: if ambiguous { endpoint.pod_name.clone() } else { String::new() },
            alive: !endpoint.terminating && !endpoint.lost && goes_on(state, name, endpoint),
        });
    }
    for (name, endpoint) in &shared.endpoints {
        groups.entry(name).or_insert_with(|| of_service(name)).upsert.push(endpoint.clone());
    }
    groups.into_values().collect()
}

/// The pod behind a removed endpoint is still there, at its address.
fn goes_on(state: &State, service: &NamespacedName, endpoint: &Endpoint) -> bool {
    let pod = state.get(&Key::new(Kind::Pod, &service.namespace, &endpoint.pod_name));
    pod.and_then(|object| object.as_pod()).is_some_and(|pod| {
        let ending = pod.metadata.as_ref().is_some_and(|metadata| !metadata.deletion_timestamp.is_empty());
        !ending && !is_finished(pod) && pod_address(pod).is_some_and(|address| address.to_string() == endpoint.address)
    })
}

fn is_empty(delta: &NodeDelta) -> bool {
    delta.remove_services.is_empty()
        && delta.upsert_services.is_empty()
        && delta.endpoints.is_empty()
        && delta.remove_pods.is_empty()
        && delta.upsert_pods.is_empty()
        && delta.remove_nodes.is_empty()
        && delta.upsert_nodes.is_empty()
}

fn by_id(record: &Endpoints) -> BTreeMap<(String, String), Endpoint> {
    record.endpoints.iter().map(|endpoint| (endpoint_id(endpoint), node_endpoint(endpoint))).collect()
}

pub(super) fn endpoints_of(state: &State, service: &NamespacedName) -> impl Iterator<Item = Endpoint> {
    let record = state.get(&Key::new(Kind::Endpoints, &service.namespace, &service.name));
    let endpoints = record.and_then(|object| object.as_endpoints()).into_iter().flat_map(|record| &record.endpoints);
    endpoints.map(node_endpoint)
}

fn of_service(service: &NamespacedName) -> ServiceEndpoints {
    ServiceEndpoints {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        ..ServiceEndpoints::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{self as world, World, random};
    use proptest::prelude::*;

    /// Folds a delta, cut into parts, into a view.
    fn fold(view: &mut NodeView, delta: NodeDelta) {
        for part in parts(delta) {
            view.fold(&part).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// The law: whatever happens, and whenever a node is brought up to date, its view is the full one; and so is the
        /// view of one that resumes on another server from any earlier revision.
        #[test]
        fn any_cut_and_any_coalescing_give_the_full_view(history in prop::collection::vec((random::commands(), any::<bool>()), 1..60)) {
            let mut world = World::new();
            let mut stamped = Stamped::new(Arc::new(world.snapshot.clone()));
            let node = "n1";
            let mut view = full(world.state(), node);
            let mut earlier = vec![view.clone()];
            for (command, look) in history {
                world.run(command);
                let snapshot = Arc::new(world.snapshot.clone());
                stamped = stamped.advance(snapshot.clone());
                let whole = full(&snapshot.state, node);
                prop_assert_eq!(stamped.digest(node), whole.digest(), "the digest kept item by item");
                if !look {
                    continue; // This step is coalesced with the next.
                }
                match delta(&stamped, node, Some(view.revision)) {
                    Some(delta) => fold(&mut view, delta),
                    None => { let step = step(&stamped, node, view.revision); fold(&mut view, step) }
                }
                prop_assert_eq!(&view, &whole);
                for mut old in earlier.clone() {
                    if let Some(delta) = delta(&stamped, node, Some(old.revision)) {
                        fold(&mut old, delta);
                        prop_assert_eq!(&old, &whole, "resumed elsewhere");
                    }
                }
                earlier.push(view.clone());
            }
        }
    }

    #[test]
    fn a_large_view_is_cut_into_parts_that_fold_to_it() {
        let mut world = World::new();
        world.create(world::service("web"));
        for pod in 0..40 {
            world.create(world::pod(&format!("p{pod}"), "web", &format!("10.0.0.{pod}")));
        }
        let stamped = Stamped::new(Arc::new(world.snapshot.clone()));
        let mut whole = delta(&stamped, "n1", None).unwrap();
        let group = &mut whole.endpoints[0].upsert;
        let endpoint = group[0].clone();
        group.extend(
            (0..PART_ITEMS * 2).map(|number| Endpoint { pod_name: format!("more-{number}"), ..endpoint.clone() }),
        );
        whole.digest.clear();
        let mut at_once = NodeView::default();
        at_once.fold(&whole).unwrap();
        let cut = parts(whole);
        assert!(cut.len() > 2 && cut.iter().rev().skip(1).all(|part| part.more));
        let mut in_parts = NodeView::default();
        for part in &cut {
            in_parts.fold(part).unwrap();
        }
        assert_eq!(in_parts, at_once);
    }

    #[test]
    fn one_changed_endpoint_costs_one_item() {
        let mut world = World::new();
        for service in 0..50 {
            world.create(world::service(&format!("s{service}")));
            for pod in 0..3 {
                let name = format!("s{service}-{pod}");
                world.create(world::pod(&name, &format!("s{service}"), &format!("10.0.{service}.{pod}")));
            }
        }
        let before = Stamped::new(Arc::new(world.snapshot.clone()));
        let mut changed = world.pod("s7-1");
        changed.status.get_or_insert_default().pod_ip = "10.9.9.9".into();
        world.run(world::status_command(changed));
        let after = before.advance(Arc::new(world.snapshot.clone()));
        let delta = delta(&after, "n1", Some(before.snapshot.state.revision())).unwrap();
        let [group] = delta.endpoints.as_slice() else { panic!("{:?}", delta.endpoints) };
        assert_eq!((group.service.as_str(), group.upsert.len(), group.remove.len()), ("s7", 1, 1));
        assert_eq!(group.remove[0].pod_name, "", "its address is enough");
        assert!(delta.upsert_services.is_empty() && delta.upsert_pods.is_empty());
    }

    #[test]
    fn an_agent_is_told_whether_the_pod_of_a_removed_endpoint_goes_on() {
        let mut world = World::new();
        world.create(world::service("web"));
        for (name, address) in [("relabelled", "10.0.0.1"), ("deleted", "10.0.0.2"), ("moved", "10.0.0.3")] {
            world.create(world::pod(name, "web", address));
        }
        let before = Stamped::new(Arc::new(world.snapshot.clone()));
        let relabelled = world.get(Kind::Pod, "relabelled").unwrap();
        world.update(world::change_metadata(&relabelled, |metadata| {
            metadata.labels.insert("app".into(), "other".into());
        }));
        world.delete(Kind::Pod, "deleted");
        let mut moved = world.pod("moved");
        moved.status.get_or_insert_default().pod_ip = "10.9.9.9".into();
        world.run(world::status_command(moved));
        let after = before.advance(Arc::new(world.snapshot.clone()));
        let delta = delta(&after, "n1", Some(before.snapshot.state.revision())).unwrap();
        let told: BTreeMap<&str, bool> =
            delta.endpoints[0].remove.iter().map(|one| (one.address.as_str(), one.alive)).collect();
        assert_eq!(told, BTreeMap::from([("10.0.0.1", true), ("10.0.0.2", false), ("10.0.0.3", false)]));
    }

    #[test]
    fn of_two_endpoints_at_one_address_the_removed_one_is_named() {
        let mut world = World::new();
        world.create(world::service("web"));
        for name in ["one", "two"] {
            world.create(world::pod(name, "web", "10.0.0.1"));
        }
        let before = Stamped::new(Arc::new(world.snapshot.clone()));
        let mut view = full(world.state(), "n1");
        world.delete(Kind::Pod, "one");
        let after = before.advance(Arc::new(world.snapshot.clone()));
        let delta = delta(&after, "n1", Some(view.revision)).unwrap();
        assert_eq!(delta.endpoints[0].remove[0].pod_name, "one");
        fold(&mut view, delta);
        assert_eq!(view, full(world.state(), "n1"));
    }
}
