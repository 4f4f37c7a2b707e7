//! What holds after every command, whatever it was.

use super::*;
use crate::machine::state::{cluster_addresses, node_ports};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// Checks every law for one applied entry.
pub fn check(before: &State, applied: &Applied, snapshot: &Snapshot) {
    let after = &snapshot.state;
    revisions(before, applied, snapshot);
    if applied.outcome.rejection.is_some() {
        assert!(applied.changes.is_empty(), "a rejection changes nothing");
        let objects = |state: &State| state.objects().cloned().collect::<Vec<_>>();
        assert_eq!(objects(before), objects(after));
    }
    pools(after);
    endpoints(after);
    networks(after);
    namespaces(after);
    for lease in after.leases() {
        assert!(after.get(&Key::new(Kind::Node, "", &lease.node)).is_some(), "a lease belongs to a node");
    }
    if after.applied_entries().is_multiple_of(7) {
        records(snapshot);
    }
}

/// Dense, one a change, and each change says what was and what is.
fn revisions(before: &State, applied: &Applied, snapshot: &Snapshot) {
    let after = &snapshot.state;
    let mut now: BTreeMap<Key, Option<ObjectRef>> = BTreeMap::new();
    for (change, revision) in applied.changes.iter().zip(before.revision() + 1..) {
        assert_eq!(change.revision, revision);
        assert_eq!(change.at_ms, after.at_ms());
        assert_eq!(change.encode_stored(), change.to_stored().encode_to_vec());
        let old = now.get(&change.key).cloned().unwrap_or_else(|| before.get(&change.key).cloned());
        assert_eq!(change.old, old);
        assert_ne!(
            change.old.as_deref().map(unversioned),
            change.new.as_deref().map(unversioned),
            "a change changes something"
        );
        if let Some(new) = &change.new {
            assert_eq!(new.metadata().revision, revision);
        }
        now.insert(change.key.clone(), change.new.clone());
    }
    assert_eq!(after.revision(), before.revision() + applied.changes.len() as u64);
    // A duplicate's answer is of its first execution.
    assert!(
        applied.outcome.revision == after.revision()
            || (applied.changes.is_empty() && applied.outcome.revision < after.revision())
    );
    for (key, object) in &now {
        assert_eq!(after.get(key), object.as_ref());
    }
    for object in before.objects().filter(|object| !now.contains_key(&object.key())) {
        assert_eq!(after.get(&object.key()), Some(object), "what no change names is as it was");
    }
    assert_eq!(
        snapshot.history.after(before.revision()).unwrap().map(|change| (*change).clone()).collect::<Vec<_>>(),
        applied.changes
    );
}

fn unversioned(object: &Object) -> Object {
    change_metadata(&Arc::new(object.clone()), |metadata| metadata.revision = 0)
}

/// Addresses and ports in use have one owner, belong to the cluster, and no others are taken.
fn pools(state: &State) {
    let mut addresses = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for service in state.list(Kind::Service, "").filter_map(|object| object.as_service()) {
        for address in cluster_addresses(service) {
            assert!(addresses.insert(address), "{address} has two owners");
            assert_eq!(state.addresses().check(address), Err(allocate::Refused::Taken));
        }
        for port in node_ports(service) {
            assert!(ports.insert(port), "node port {port} has two owners");
            assert!(state.node_ports().contains(port.into()) && !state.node_ports().is_free(port.into()));
        }
        let spec = service.spec.as_ref().unwrap();
        let holds = spec.r#type != "ExternalName" && spec.cluster_ip != "None";
        assert_eq!(cluster_addresses(service).len(), usize::from(holds), "{spec:?}");
        assert_eq!(spec.cluster_ip, spec.cluster_ips.first().cloned().unwrap_or_default());
    }
    assert_eq!(state.addresses().taken(), addresses.len() as u128, "an address leaked");
    assert_eq!(state.node_ports().taken(), ports.len() as u128, "a node port leaked");
}

/// Endpoints of services with a selector are derived; no other record says that it is.
fn endpoints(state: &State) {
    for service in state.list(Kind::Service, "").filter_map(|object| object.as_service()) {
        let metadata = service.metadata.as_ref().unwrap();
        let record = state.get(&Key::new(Kind::Endpoints, &metadata.namespace, &metadata.name));
        let record = record.and_then(|object| object.as_endpoints());
        if derive::is_derived(service) {
            let pods = state.list(Kind::Pod, &metadata.namespace).filter_map(|object| object.as_pod());
            let nodes = |name: &str| state.get(&Key::new(Kind::Node, "", name)).and_then(|object| object.as_node());
            let derived = derive::derive(service, pods, nodes);
            let record = record.expect("a record");
            assert_eq!(record.endpoints, derived.endpoints);
            assert_eq!(record.metadata.as_ref().unwrap().labels, derived.metadata.unwrap().labels);
            assert!(record.derived && !record.metadata.as_ref().unwrap().uid.is_empty());
        }
    }
    for record in
        state.list(Kind::Endpoints, "").filter_map(|object| object.as_endpoints()).filter(|record| record.derived)
    {
        let metadata = record.metadata.as_ref().unwrap();
        let service = state.get(&Key::new(Kind::Service, &metadata.namespace, &metadata.name));
        assert!(service.and_then(|object| object.as_service()).is_some_and(derive::is_derived));
    }
}

/// Of overlapping networks exactly those that came later are marked.
fn networks(state: &State) {
    let nodes: Vec<&Node> = state.list(Kind::Node, "").filter_map(|object| object.as_node()).collect();
    let net = |node: &Node| node.spec.as_ref().and_then(|spec| spec.pod_cidr.parse::<ipnet::IpNet>().ok());
    let overlap = |one: &Node, other: &Node| {
        net(one).zip(net(other)).is_some_and(|(one, other)| one.contains(&other) || other.contains(&one))
    };
    for node in &nodes {
        let rival = nodes
            .iter()
            .any(|other| other.metadata != node.metadata && !derive::is_conflicted(other) && overlap(node, other));
        assert_eq!(derive::is_conflicted(node), rival, "{node:?}");
    }
    let mut claims: BTreeMap<std::net::IpAddr, BTreeMap<&str, BTreeSet<bool>>> = BTreeMap::new();
    for pod in state.list(Kind::Pod, "").filter_map(|object| object.as_pod()) {
        let blocked =
            pod.status.as_ref().is_some_and(|status| derive::has_condition(&status.conditions, ADDRESS_CONFLICT));
        let node = derive::node_of(pod).filter(|node| state.get(&Key::new(Kind::Node, "", *node)).is_some());
        match derive::claimed_address(pod).zip(node) {
            Some((address, node)) => {
                claims.entry(address).or_default().entry(node).or_default().insert(blocked);
            }
            None => assert!(!blocked, "who claims nothing is not in conflict"),
        }
    }
    for (address, by_node) in claims {
        assert!(by_node.values().all(|blocked| blocked.len() == 1), "{address}: pods of one node share their fate");
        let serving = by_node.values().filter(|blocked| blocked.contains(&false)).count();
        assert_eq!(serving, 1, "{address} belongs to one node");
    }
}

/// Every object has its namespace, and one that ends is only held by something.
fn namespaces(state: &State) {
    for object in state.objects().filter(|object| !object.metadata().namespace.is_empty()) {
        assert!(state.get(&Key::new(Kind::Namespace, "", &object.metadata().namespace)).is_some());
    }
    for object in state.list(Kind::Namespace, "") {
        let metadata = object.metadata();
        let ending = !metadata.deletion_timestamp.is_empty();
        let phase = object.as_namespace().and_then(|it| it.status.as_ref()).map(|status| status.phase.as_str());
        assert_eq!(phase, Some(if ending { "Terminating" } else { "Active" }));
        assert!(
            !ending || !metadata.finalizers.is_empty() || !state.is_empty_namespace(&metadata.name),
            "{metadata:?}"
        );
    }
}

/// Encoded and decoded it is the same, indexes and pools included.
pub fn records(snapshot: &Snapshot) {
    let again = Snapshot::from_records(snapshot.records()).expect("records of a state are a state");
    assert_eq!(again.records().collect::<Vec<_>>(), snapshot.records().collect::<Vec<_>>());
    assert_eq!(again.state.digest_hex(), snapshot.state.digest_hex());
    assert_eq!(again.state.addresses(), snapshot.state.addresses());
    assert_eq!(again.state.node_ports(), snapshot.state.node_ports());
    assert_eq!(again.meta(), snapshot.meta());
    assert_eq!(again.state.indexes(), snapshot.state.indexes());
}

/// The same entries give the same state on another server.
pub fn replay(world: &World) {
    let mut other = Snapshot::default();
    for entry in &world.entries {
        other.apply(entry);
    }
    assert_eq!(other.state.digest_hex(), world.snapshot.state.digest_hex());
    assert_eq!(other.records().collect::<Vec<_>>(), world.snapshot.records().collect::<Vec<_>>());
}
