//! One entry's changes in the making: every write takes its revision here, and what follows from it (conflicts of
//! networks, endpoints, an emptied namespace) is settled before the entry ends.
//!
//! INVARIANT: a write and its effects are one entry. Effects come after their causes, endpoints in key order, and an
//! object that doesn't differ isn't written.

use crate::machine::conflicts;
use crate::machine::derive;
use crate::machine::{Change, State, TouchedRecords};
use fairlead_proto::internal::v1::{AccessRecord, LeaseEpoch};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{Endpoint, Endpoints, Kind, Node, Object, ObjectMeta, Pod, Service, object};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The last second that RFC 3339 can write: 9999-12-30T22:00:00Z, jiff's bound.
const LAST_SECOND: i64 = 253_402_207_200;

/// A state being changed by one entry.
pub(super) struct Draft<'a> {
    pub state: &'a mut State,
    changes: Vec<Change>,
    leases: BTreeSet<String>,
    access: BTreeSet<String>,
    stale: Stale,
}

/// What must be settled before the entry ends.
#[derive(Default)]
struct Stale {
    /// Services by namespace and name, and what of their endpoints may differ.
    services: BTreeMap<(String, String), Scope>,
    addresses: BTreeSet<IpAddr>,
    networks: bool,
    namespaces: BTreeSet<String>,
}

/// How much of a service's endpoints may differ.
enum Scope {
    Whole,
    /// Only those of these pods.
    Pods(BTreeSet<String>),
}

impl<'a> Draft<'a> {
    /// Begins an entry.
    pub(super) fn new(state: &'a mut State) -> Self {
        Self { state, changes: Vec::new(), leases: BTreeSet::new(), access: BTreeSet::new(), stale: Stale::default() }
    }

    /// The changes, and the records written beside the objects.
    pub(super) fn finish(self) -> (Vec<Change>, TouchedRecords) {
        (self.changes, TouchedRecords { leases: self.leases, access: self.access, ..TouchedRecords::default() })
    }

    /// Time of the entry as Kubernetes writes it.
    pub(super) fn now(&self) -> String {
        self.after_seconds(0)
    }

    /// Time of the entry plus some seconds.
    pub(super) fn after_seconds(&self, seconds: i64) -> String {
        let now = i64::try_from(self.state.at_ms() / 1000).unwrap_or(LAST_SECOND);
        let second = now.saturating_add(seconds.max(0)).min(LAST_SECOND);
        jiff::Timestamp::from_second(second).unwrap_or_default().to_string()
    }

    /// Creates or replaces an object; `None` if it doesn't differ from what is there. The revision is set here.
    pub(super) fn write(&mut self, mut object: Object) -> Option<ObjectRef> {
        let now = self.now();
        match &mut object.kind {
            Some(object::Kind::Pod(pod)) => conflicts::mark_pod(self.state, pod, &now),
            Some(object::Kind::Node(node)) => conflicts::mark_node(self.state, node, &now),
            Some(
                object::Kind::Namespace(_)
                | object::Kind::Service(_)
                | object::Kind::Endpoints(_)
                | object::Kind::Event(_),
            ) => {}
            None => return None,
        }
        self.store(object)
    }

    /// Writes an object as it is, conflict conditions included.
    fn store(&mut self, mut object: Object) -> Option<ObjectRef> {
        let key = object.key();
        let old = self.state.get(&key).cloned();
        object.metadata_mut()?.revision = old.as_ref().map_or(0, |old| old.metadata().revision);
        if old.as_deref() == Some(&object) {
            return None;
        }
        let revision = self.state.next_revision();
        object.metadata_mut()?.revision = revision;
        let new = Arc::new(object);
        self.state.replace(&key, Some(new.clone()));
        self.record(Change { revision, at_ms: self.state.at_ms(), key, old, new: Some(new.clone()) });
        Some(new)
    }

    /// Removes an object; returns its last state, at the revision of the removal.
    pub(super) fn remove(&mut self, key: &Key) -> Option<ObjectRef> {
        let old = self.state.get(key).cloned()?;
        let revision = self.state.next_revision();
        self.state.replace(key, None);
        if key.kind == Kind::Node && self.state.remove_lease(&key.name) {
            self.leases.insert(key.name.clone());
        }
        self.record(Change {
            revision,
            at_ms: self.state.at_ms(),
            key: key.clone(),
            old: Some(old.clone()),
            new: None,
        });
        let mut last = (*old).clone();
        last.metadata_mut()?.revision = revision;
        Some(Arc::new(last))
    }

    /// Writes a lease.
    pub(super) fn put_lease(&mut self, lease: LeaseEpoch) {
        self.leases.insert(lease.node.clone());
        self.state.put_lease(lease);
    }

    /// Writes an access record, or removes it.
    pub(super) fn put_access(&mut self, key: &str, record: Option<AccessRecord>) {
        self.access.insert(key.to_owned());
        self.state.put_access(key, record);
    }

    /// Brings everything that follows from the writes up to date. May be called more than once.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        if std::mem::take(&mut self.stale.networks) {
            while let Some(node) = conflicts::solved_node(self.state, &now) {
                self.store(node.into());
            }
        }
        for address in std::mem::take(&mut self.stale.addresses) {
            for pod in conflicts::solved_pods(self.state, address, &now) {
                self.store(pod.into());
            }
        }
        for ((namespace, name), scope) in std::mem::take(&mut self.stale.services) {
            self.settle_service(&namespace, &name, &scope);
        }
        for namespace in std::mem::take(&mut self.stale.namespaces) {
            let key = Key::new(Kind::Namespace, "", &namespace);
            let ending = self.state.get(&key).is_some_and(|object| {
                !object.metadata().deletion_timestamp.is_empty() && object.metadata().finalizers.is_empty()
            });
            if ending && self.state.is_empty_namespace(&namespace) {
                self.remove(&key);
            }
        }
    }

    fn record(&mut self, change: Change) {
        let old = change.old.as_deref();
        let new = change.new.as_deref();
        match change.key.kind {
            Kind::Pod => self.mark_pod(old.and_then(Object::as_pod), new.and_then(Object::as_pod)),
            Kind::Service => {
                let name = (change.key.namespace.clone(), change.key.name.clone());
                self.stale.services.insert(name, Scope::Whole);
            }
            Kind::Node => {
                self.mark_node(&change.key.name, (old.and_then(Object::as_node), new.and_then(Object::as_node)))
            }
            Kind::Namespace | Kind::Endpoints | Kind::Event | Kind::Unspecified => {}
        }
        if new.is_none() && change.key.kind.is_namespaced() {
            self.stale.namespaces.insert(change.key.namespace.clone());
        }
        self.changes.push(change);
    }

    fn mark_pod(&mut self, old: Option<&Pod>, new: Option<&Pod>) {
        for pod in [old, new].into_iter().flatten() {
            self.mark_services_of(pod);
        }
        let claim = |pod: Option<&Pod>| {
            pod.and_then(|pod| Some((derive::claimed_address(pod)?, derive::node_of(pod)?.to_owned())))
        };
        if claim(old) != claim(new) {
            self.stale.addresses.extend(claim(old).map(|(address, _)| address));
        }
    }

    fn mark_services_of(&mut self, pod: &Pod) {
        let Some(metadata) = &pod.metadata else {
            return;
        };
        for service in self.state.services_selecting(pod) {
            let scope = self.stale.services.entry((metadata.namespace.clone(), service));
            if let Scope::Pods(pods) = scope.or_insert_with(|| Scope::Pods(BTreeSet::new())) {
                pods.insert(metadata.name.clone());
            }
        }
    }

    /// What endpoints read of a node: that it exists, its zone and addresses, and whether its network is in conflict.
    fn mark_node(&mut self, name: &str, (old, new): (Option<&Node>, Option<&Node>)) {
        self.stale.networks |= conflicts::networks_differ(old, new);
        if derive::same_for_endpoints(old, new) {
            return;
        }
        let pods: Vec<ObjectRef> = self.state.pods_on_node(name).cloned().collect();
        for pod in pods.iter().filter_map(|object| object.as_pod()) {
            self.mark_services_of(pod);
            if old.is_some() != new.is_some() {
                self.stale.addresses.extend(derive::claimed_address(pod));
            }
        }
    }

    fn settle_service(&mut self, namespace: &str, name: &str, scope: &Scope) {
        let key = Key::new(Kind::Endpoints, namespace, name);
        let service = self.state.get(&Key::new(Kind::Service, namespace, name)).cloned();
        let Some(service) = service.as_ref().and_then(|object| object.as_service()) else {
            self.remove(&key);
            return;
        };
        let old = self.state.get(&key).cloned();
        let old = old.as_ref().and_then(|object| object.as_endpoints());
        if !derive::is_derived(service) {
            // The record of a service that lost its selector stays, and belongs to the user from now on.
            if let Some(left) = old.filter(|old| old.derived) {
                self.write(Endpoints { derived: false, ..left.clone() }.into());
            }
            return;
        }
        let new = match (scope, old) {
            (Scope::Pods(pods), Some(old)) if old.derived => self.derive_pods(service, old, pods),
            _ => self.derive_whole(service),
        };
        let record = self.with_metadata(new, service, old);
        self.write(record.into());
    }

    fn derive_whole(&self, service: &Service) -> Endpoints {
        let namespace = service.metadata.as_ref().map(|metadata| metadata.namespace.clone()).unwrap_or_default();
        let pods = self.state.list(Kind::Pod, &namespace).filter_map(|object| object.as_pod());
        derive::derive(service, pods, |name| node(self.state, name))
    }

    /// The record with only some pods' endpoints made anew: as each depends on its pod alone, it equals a whole one.
    fn derive_pods(&self, service: &Service, old: &Endpoints, pods: &BTreeSet<String>) -> Endpoints {
        let namespace = service.metadata.as_ref().map(|metadata| metadata.namespace.as_str()).unwrap_or_default();
        let anew = |name: &String| -> Option<Endpoint> {
            let object = self.state.get(&Key::new(Kind::Pod, namespace, name))?;
            let pod = object.as_pod()?;
            derive::endpoint(service, pod, derive::node_of(pod).and_then(|name| node(self.state, name)))
        };
        let kept = old.endpoints.iter().filter(|endpoint| !pods.contains(&endpoint.pod_name)).cloned();
        let mut endpoints: Vec<Endpoint> = kept.chain(pods.iter().filter_map(anew)).collect();
        derive::sort(&mut endpoints);
        Endpoints { metadata: Some(derive::metadata(service)), endpoints, derived: true, extra_json: String::new() }
    }

    /// A derived record with the metadata that servers set: kept, or made for a new one.
    fn with_metadata(&self, mut record: Endpoints, service: &Service, old: Option<&Endpoints>) -> Endpoints {
        let old = old.and_then(|old| old.metadata.as_ref());
        let derived = record.metadata.get_or_insert_default();
        let owner = service.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
        *derived = ObjectMeta {
            uid: old.map_or_else(|| derived_uid(owner), |old| old.uid.clone()),
            creation_timestamp: old.map_or_else(|| self.now(), |old| old.creation_timestamp.clone()),
            ..std::mem::take(derived)
        };
        record
    }
}

fn node<'a>(state: &'a State, name: &str) -> Option<&'a Node> {
    state.get(&Key::new(Kind::Node, "", name)).and_then(|object| object.as_node())
}

/// A uid for a derived record: nobody proposed it, so it is a function of its service's.
fn derived_uid(owner: &str) -> String {
    let hash = Sha256::new().chain_update("endpoints of ").chain_update(owner).finalize();
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    // A version 8 (free form) UUID of RFC 9562.
    format!("{}-{}-8{}-a{}-{}", &hex[0..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}
