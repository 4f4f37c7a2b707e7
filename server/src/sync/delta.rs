//! What a node must know, and how its view gets from one revision to another. Pure.
//!
//! Law: `fold(full(r), deltas r→n) == full(n)`, for any cut, any coalescing, any server. A delta costs O(changes since
//! `have`); its digest costs O(change) through [`Stamped`], which is advanced once a revision for all nodes.

use crate::machine::derive::{is_finished, pod_address};
use crate::machine::{Change, Snapshot, State};
use fairlead_proto::model::Key;
use fairlead_proto::model::annotations;
use fairlead_proto::v1::{
    Condition, Endpoint, EndpointItem, EndpointPort, EndpointRef, Endpoints, Kind, Node, NodeDelta, NodeItem, Object,
    ObjectMeta, Pod, PodStatus, Service, ServiceItem,
};
use fairlead_proto::view::{NamespacedName, NodeView, ViewDigest, endpoint_id};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Items in one message of a delta; larger deltas are cut into parts (`NodeDelta::more`).
pub const PART_ITEMS: usize = 2_000;

/// Services with this label are another proxy's business (Kubernetes' `service.kubernetes.io/service-proxy-name`).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A published snapshot with the digest of everything that all nodes' views share.
#[derive(Clone)]
pub struct Stamped {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    shared: ViewDigest,
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
        Self { snapshot, shared }
    }

    /// Stamps the next snapshot: O(changes between), or from scratch if the window no longer holds them.
    #[must_use]
    pub fn advance(&self, next: Arc<Snapshot>) -> Self {
        let Some(changed) = changed_since(&next, self.snapshot.state.revision()) else { return Self::new(next) };
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
        Self { snapshot: next, shared }
    }

    /// Digest of one node's whole view.
    #[must_use]
    pub fn digest(&self, node: &str) -> Vec<u8> {
        let mut digest = self.shared;
        for object in self.snapshot.state.pods_on_node(node) {
            if let Some(pod) = object.as_pod() {
                digest.add_pod(&pod_item(pod));
            }
        }
        digest.to_bytes()
    }
}

/// The whole view of a node.
#[must_use]
pub fn full(state: &State, node: &str) -> NodeView {
    let mut view = NodeView::default();
    let mut delta = NodeDelta { from: None, to: state.revision(), ..NodeDelta::default() };
    for object in state.list(Kind::Service, "") {
        let Some(item) = object.as_service().and_then(service_item) else { continue };
        let name = NamespacedName::new(&item.namespace, &item.name);
        delta.upsert_services.push(item);
        for endpoint in endpoints_of(state, &name) {
            delta.upsert_endpoints.push(endpoint_item(&name, endpoint));
        }
    }
    delta.upsert_nodes = state.list(Kind::Node, "").filter_map(|object| object.as_node()).map(node_item).collect();
    delta.upsert_pods = state.pods_on_node(node).filter_map(|object| object.as_pod()).map(pod_item).collect();
    // A full delta without a digest always folds.
    let _ = view.fold(&delta);
    view
}

/// Takes a node's view from revision `have` (`None`: nothing) to the snapshot's. `None` as an answer: nothing that
/// concerns this node changed, so a view of `have` is a view of the snapshot's revision too.
#[must_use]
pub fn delta(stamped: &Stamped, node: &str, have: Option<u64>) -> Option<NodeDelta> {
    let state = &stamped.snapshot.state;
    let changed = have.and_then(|revision| changed_since(&stamped.snapshot, revision));
    let (Some(from), Some(changed)) = (have, changed) else {
        return Some(full(state, node).to_delta());
    };
    let shared = shared_delta(state, &changed);
    let mut delta = NodeDelta { from: Some(from), to: state.revision(), ..NodeDelta::default() };
    // An item that is merely replaced needs no removal: upserting it does that.
    let replaced: std::collections::BTreeSet<_> =
        shared.services.iter().map(|item| (&item.namespace, &item.name)).collect();
    delta.remove_services = shared
        .services_gone
        .iter()
        .filter(|item| !replaced.contains(&(&item.namespace, &item.name)))
        .map(|item| format!("{}/{}", item.namespace, item.name))
        .collect();
    let removed: std::collections::BTreeSet<_> = delta.remove_services.iter().cloned().collect();
    delta.remove_endpoints = removed_endpoints(&shared, &removed, state);
    delta.upsert_endpoints =
        shared.endpoints.iter().map(|(name, endpoint)| endpoint_item(name, endpoint.clone())).collect();
    delta.upsert_services = shared.services;
    for (old, new) in shared.nodes {
        match (old, new) {
            (_, Some(new)) => delta.upsert_nodes.push(new),
            (Some(old), None) => delta.remove_nodes.push(old.name),
            (None, None) => {}
        }
    }
    add_pods(&mut delta, state, (node, &changed));
    if is_empty(&delta) {
        return None;
    }
    delta.digest = stamped.digest(node);
    Some(delta)
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
    let items = delta.upsert_services.len() + delta.upsert_endpoints.len() + delta.remove_endpoints.len();
    if items <= PART_ITEMS {
        return vec![delta];
    }
    let base = delta.from.unwrap_or(0);
    let mut rest = delta;
    let digest = std::mem::take(&mut rest.digest);
    let services = std::mem::take(&mut rest.upsert_services);
    let gone = std::mem::take(&mut rest.remove_endpoints);
    let endpoints = std::mem::take(&mut rest.upsert_endpoints);
    let to = rest.to;
    let mut parts = vec![rest];
    let empty = || NodeDelta { from: Some(base), to, ..NodeDelta::default() };
    parts.extend(services.chunks(PART_ITEMS).map(|chunk| NodeDelta { upsert_services: chunk.to_vec(), ..empty() }));
    parts.extend(gone.chunks(PART_ITEMS).map(|chunk| NodeDelta { remove_endpoints: chunk.to_vec(), ..empty() }));
    parts.extend(endpoints.chunks(PART_ITEMS).map(|chunk| NodeDelta { upsert_endpoints: chunk.to_vec(), ..empty() }));
    for part in &mut parts {
        part.more = true;
    }
    if let Some(last) = parts.last_mut() {
        last.more = false;
        last.digest = digest;
    }
    parts
}

/// First old and current state of each key changed after a revision; `None` if the window no longer tells.
fn changed_since(snapshot: &Snapshot, revision: u64) -> Option<BTreeMap<Key, Option<Arc<Object>>>> {
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
struct SharedDelta {
    services_gone: Vec<ServiceItem>,
    services: Vec<ServiceItem>,
    endpoints_gone: Vec<(NamespacedName, Endpoint)>,
    endpoints: Vec<(NamespacedName, Endpoint)>,
    nodes: Vec<(Option<NodeItem>, Option<NodeItem>)>,
}

fn shared_delta(state: &State, changed: &BTreeMap<Key, Option<Arc<Object>>>) -> SharedDelta {
    let mut delta = SharedDelta::default();
    // Services whose own object or endpoints record changed, each once.
    let mut names = std::collections::BTreeSet::new();
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
            Kind::Pod | Kind::Namespace | Kind::Unspecified => {}
        }
    }
    for name in names {
        service_delta(&mut delta, state, (&name, changed));
    }
    delta
}

fn service_delta(delta: &mut SharedDelta, state: &State, of: (&NamespacedName, &BTreeMap<Key, Option<Arc<Object>>>)) {
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

fn removed_endpoints(
    shared: &SharedDelta,
    services_removed: &std::collections::BTreeSet<String>,
    state: &State,
) -> Vec<EndpointRef> {
    let replaced: std::collections::BTreeSet<_> =
        shared.endpoints.iter().map(|(name, endpoint)| (name, endpoint_id(endpoint))).collect();
    shared
        .endpoints_gone
        .iter()
        .filter(|(name, endpoint)| {
            !replaced.contains(&(name, endpoint_id(endpoint))) && !services_removed.contains(&name.to_string())
        })
        .map(|(name, endpoint)| EndpointRef {
            namespace: name.namespace.clone(),
            service: name.name.clone(),
            address: endpoint.address.clone(),
            pod_name: endpoint.pod_name.clone(),
            alive: !endpoint.terminating && !endpoint.lost && goes_on(state, name, endpoint),
        })
        .collect()
}

/// The pod behind a removed endpoint is still there, at its address.
fn goes_on(state: &State, service: &NamespacedName, endpoint: &Endpoint) -> bool {
    let pod = state.get(&Key::new(Kind::Pod, &service.namespace, &endpoint.pod_name));
    pod.and_then(|object| object.as_pod()).is_some_and(|pod| {
        let ending = pod.metadata.as_ref().is_some_and(|metadata| !metadata.deletion_timestamp.is_empty());
        !ending && !is_finished(pod) && pod_address(pod).is_some_and(|address| address.to_string() == endpoint.address)
    })
}

fn add_pods(delta: &mut NodeDelta, state: &State, of: (&str, &BTreeMap<Key, Option<Arc<Object>>>)) {
    let (node, changed) = of;
    for (key, old) in changed.iter().filter(|(key, _)| key.kind == Kind::Pod) {
        let here = |object: &Arc<Object>| object.as_pod().filter(|pod| on_node(pod, node)).map(pod_item);
        let old = old.as_ref().and_then(here);
        let new = state.get(key).and_then(here);
        if old == new {
            continue;
        }
        match new {
            Some(pod) => delta.upsert_pods.push(pod),
            None => delta.remove_pods.push(key.path()),
        }
    }
}

fn is_empty(delta: &NodeDelta) -> bool {
    delta.remove_services.is_empty()
        && delta.upsert_services.is_empty()
        && delta.remove_endpoints.is_empty()
        && delta.upsert_endpoints.is_empty()
        && delta.remove_pods.is_empty()
        && delta.upsert_pods.is_empty()
        && delta.remove_nodes.is_empty()
        && delta.upsert_nodes.is_empty()
}

fn add_service(digest: &mut ViewDigest, state: &State, object: &Object) {
    let Some(item) = object.as_service().and_then(service_item) else { return };
    let name = NamespacedName::new(&item.namespace, &item.name);
    digest.add_service(&item);
    for endpoint in endpoints_of(state, &name) {
        digest.add_endpoint(&name, &endpoint);
    }
}

fn by_id(record: &Endpoints) -> BTreeMap<(String, String), Endpoint> {
    record.endpoints.iter().map(|endpoint| (endpoint_id(endpoint), node_endpoint(endpoint))).collect()
}

fn endpoints_of(state: &State, service: &NamespacedName) -> impl Iterator<Item = Endpoint> {
    let record = state.get(&Key::new(Kind::Endpoints, &service.namespace, &service.name));
    let endpoints = record.and_then(|object| object.as_endpoints()).into_iter().flat_map(|record| &record.endpoints);
    endpoints.map(node_endpoint)
}

/// What a node's rules need of an endpoint: every node keeps, and is sent, every endpoint.
fn node_endpoint(endpoint: &Endpoint) -> Endpoint {
    let port = |port: &EndpointPort| EndpointPort {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol.clone(),
        app_protocol: None,
    };
    Endpoint {
        address: endpoint.address.clone(),
        node_name: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        hostname: String::new(),
        pod_name: endpoint.pod_name.clone(),
        pod_uid: String::new(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        ports: endpoint.ports.iter().map(port).collect(),
        weight: endpoint.weight,
        lost: endpoint.lost,
    }
}

fn endpoint_item(service: &NamespacedName, endpoint: Endpoint) -> EndpointItem {
    EndpointItem { namespace: service.namespace.clone(), service: service.name.clone(), endpoint: Some(endpoint) }
}

fn on_node(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name == node)
}

/// What a node's rules need of a service; `None` if no node programs it (headless, ExternalName, another proxy's).
#[must_use]
pub fn service_item(service: &Service) -> Option<ServiceItem> {
    let metadata = service.metadata.as_ref()?;
    let spec = service.spec.as_ref()?;
    if spec.r#type == "ExternalName" || metadata.labels.contains_key(PROXY_NAME_LABEL) {
        return None;
    }
    let cluster_ips: Vec<String> =
        if spec.cluster_ips.is_empty() { vec![spec.cluster_ip.clone()] } else { spec.cluster_ips.clone() };
    if cluster_ips.iter().any(|ip| ip.is_empty() || ip == "None") {
        return None;
    }
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let affinity = if spec.session_affinity == "ClientIP" {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config.and_then(|config| config.timeout_seconds).map_or(10_800, i32::unsigned_abs)
    } else {
        0
    };
    Some(ServiceItem {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        r#type: spec.r#type.clone(),
        cluster_ips,
        ports: spec.ports.clone(),
        external_ips: spec.external_ips.clone(),
        load_balancer_ips: ingress
            .map(|status| {
                status
                    .ingress
                    .iter()
                    .filter(|one| !one.ip.is_empty() && one.ip_mode.as_deref() != Some("Proxy"))
                    .map(|one| one.ip.clone())
                    .collect()
            })
            .unwrap_or_default(),
        load_balancer_source_ranges: spec.load_balancer_source_ranges.clone(),
        affinity_seconds: affinity,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy == "Local",
        health_check_node_port: spec.health_check_node_port.unsigned_abs(),
        traffic_distribution: spec.traffic_distribution.clone().unwrap_or_default(),
        annotations: metadata
            .annotations
            .iter()
            .filter(|(key, _)| key.starts_with(annotations::DOMAIN))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    })
}

/// What a node's agent needs of a pod of its own: enough to probe it, and the Ready status that the cluster believes.
#[must_use]
pub fn pod_item(pod: &Pod) -> Pod {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready");
    Pod {
        metadata: Some(ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            labels: metadata.labels,
            deletion_timestamp: metadata.deletion_timestamp,
            deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
            ..ObjectMeta::default()
        }),
        spec: pod.spec.clone(),
        status: Some(PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            conditions: ready
                .map(|condition| Condition {
                    r#type: condition.r#type.clone(),
                    status: condition.status.clone(),
                    ..Condition::default()
                })
                .into_iter()
                .collect(),
            ..PodStatus::default()
        }),
        extra_json: String::new(),
    }
}

/// What nodes need of one another.
#[must_use]
pub fn node_item(node: &Node) -> NodeItem {
    let metadata = node.metadata.as_ref();
    NodeItem {
        name: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
        addresses: node
            .status
            .as_ref()
            .map(|status| {
                status.addresses.iter().filter(|one| one.r#type != "Hostname").map(|one| one.address.clone()).collect()
            })
            .unwrap_or_default(),
        zone: metadata.and_then(|metadata| metadata.labels.get(ZONE_LABEL).cloned()).unwrap_or_default(),
        pod_cidr: node.spec.as_ref().map(|spec| spec.pod_cidr.clone()).unwrap_or_default(),
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
        let endpoint = whole.upsert_endpoints[0].clone();
        whole.upsert_endpoints.extend((0..PART_ITEMS * 2).map(|number| {
            let mut more = endpoint.clone();
            if let Some(endpoint) = &mut more.endpoint {
                endpoint.pod_name = format!("more-{number}");
            }
            more
        }));
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
        assert_eq!((delta.upsert_endpoints.len(), delta.remove_endpoints.len()), (1, 1));
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
            delta.remove_endpoints.iter().map(|one| (one.pod_name.as_str(), one.alive)).collect();
        assert_eq!(told, BTreeMap::from([("relabelled", true), ("deleted", false), ("moved", false)]));
    }
}
