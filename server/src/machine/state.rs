//! The cluster as a value: objects, leases, members, dedupe sessions, and what is indexed over them. Persistent maps:
//! a clone costs O(1), a change O(log n).
//!
//! INVARIANT: pools, indexes and digest are functions of the records. This file reads; `state/change.rs` is the only one
//! that changes, and keeps them so. Nothing here decides anything.

mod change;

use change::session_record;
pub(super) use change::{cluster_addresses, node_ports};

use crate::machine::allocate::{Addresses, Pool};
use crate::machine::derive;
use crate::machine::records::FORMAT_VERSION;
use fairlead_proto::digest::SetDigest;
use fairlead_proto::internal::v1::{AccessRecord, LeaseEpoch, Member, Outcome, Session, SessionWrite, StateMeta};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{Kind, Pod};
use prost::Message as _;
use rpds::RedBlackTreeMapSync as Map;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

/// Tag of the meta record in the digest.
const DIGEST_META: u8 = 5;

/// Identity and ranges of a cluster, fixed by its first entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Random name of the cluster; empty = not initialised yet.
    pub cluster_id: String,
    /// Range of ClusterIPs, as CIDR text.
    pub service_cidr: String,
    /// First and last NodePort, inclusive.
    pub node_ports: (u16, u16),
}

/// When a dedupe session was used last, and what it forgot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SessionHeader {
    pub last_used: u64,
    pub forgotten: u64,
}

/// Everything that the servers of a cluster agree on.
#[derive(Clone, Debug)]
pub struct State {
    revision: u64,
    at_ms: u64,
    applied_entries: u64,
    machine_version: u32,
    pub(super) dedupe_floor: u64,
    settings: Arc<Settings>,
    members: Map<u64, Member>,
    retired_members: Map<u64, ()>,
    leases: Map<String, LeaseEpoch>,
    objects: Map<Key, ObjectRef>,
    /// Encoded bytes of all objects.
    bytes: u64,
    access: Map<String, Arc<AccessRecord>>,
    sessions: Map<String, SessionHeader>,
    session_writes: Map<(String, u64), Arc<Outcome>>,
    digest: SetDigest,
    // Indexes.
    session_order: Map<(u64, String), ()>,
    pods_by_node: Map<(String, Key), ()>,
    pods_by_address: Map<(IpAddr, Key), ()>,
    services_by_selector: Map<SelectorPair, ()>,
    addresses: Addresses,
    node_ports: Pool,
}

/// Namespace, the first key and value of a selector, name of the service.
type SelectorPair = (String, String, String, String);

impl Default for State {
    fn default() -> Self {
        Self {
            revision: 0,
            at_ms: 0,
            applied_entries: 0,
            machine_version: 1,
            dedupe_floor: 0,
            settings: Arc::default(),
            members: Map::new_sync(),
            retired_members: Map::new_sync(),
            leases: Map::new_sync(),
            objects: Map::new_sync(),
            bytes: 0,
            access: Map::new_sync(),
            sessions: Map::new_sync(),
            session_writes: Map::new_sync(),
            digest: SetDigest::default(),
            session_order: Map::new_sync(),
            pods_by_node: Map::new_sync(),
            pods_by_address: Map::new_sync(),
            services_by_selector: Map::new_sync(),
            addresses: Addresses::empty(),
            node_ports: Pool::empty(),
        }
    }
}

/// Reading.
impl State {
    /// Revision of the newest change; 0 = none yet.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Time of the newest entry, milliseconds since the epoch; never goes back.
    #[must_use]
    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Entries applied: the clock of dedupe eviction and lease epochs.
    #[must_use]
    pub fn applied_entries(&self) -> u64 {
        self.applied_entries
    }

    /// Version of the rules in force. Above [`super::MACHINE_VERSION`] this program must not go on.
    #[must_use]
    pub fn machine_version(&self) -> u32 {
        self.machine_version
    }

    /// The cluster's identity and ranges.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many objects there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.objects.size()
    }

    /// Encoded bytes of all objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&ObjectRef> {
        self.objects.get(key)
    }

    /// Objects of a kind, ordered by namespace and name; an empty namespace means all.
    pub fn list<'a>(&'a self, kind: Kind, namespace: &str) -> impl Iterator<Item = &'a ObjectRef> + 'a {
        self.list_after(kind, namespace, None)
    }

    /// The same, after a key.
    pub fn list_after<'a>(
        &'a self,
        kind: Kind,
        namespace: &str,
        after: Option<&Key>,
    ) -> impl Iterator<Item = &'a ObjectRef> + 'a {
        let first = Key { kind, namespace: namespace.to_owned(), name: String::new() };
        let start = match after {
            Some(after) if *after >= first => Bound::Excluded(after.clone()),
            _ => Bound::Included(first),
        };
        let namespace = namespace.to_owned();
        self.objects
            .range((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.kind == kind && (namespace.is_empty() || key.namespace == namespace))
            .map(|(_, object)| object)
    }

    /// Pods bound to a node, whether or not that node exists.
    pub fn pods_on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a ObjectRef> + 'a {
        let node = node.to_owned();
        let start = (node.clone(), Key::new(Kind::Unspecified, "", ""));
        self.pods_by_node
            .range(start..)
            .take_while(move |((on, _), ())| *on == node)
            .filter_map(|((_, key), ())| self.objects.get(key))
    }

    /// The servers, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> + '_ {
        self.members.values()
    }

    /// A server.
    #[must_use]
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The member of this id left for good.
    #[must_use]
    pub fn is_retired(&self, member: u64) -> bool {
        self.retired_members.contains_key(&member)
    }

    /// Node leases, by node.
    pub fn leases(&self) -> impl Iterator<Item = LeaseEpoch> + '_ {
        self.leases.values().cloned()
    }

    /// The lease of a node; `None` = its agent was never heard.
    #[must_use]
    pub fn lease(&self, node: &str) -> Option<&LeaseEpoch> {
        self.leases.get(node)
    }

    /// The node has a lease that isn't expired.
    #[must_use]
    pub fn is_live(&self, node: &str) -> bool {
        self.lease(node).is_some_and(|lease| !lease.expired)
    }

    /// What decides who may do what: the records whose keys begin so.
    pub fn access<'a>(&'a self, prefix: &str) -> impl Iterator<Item = (&'a String, &'a Arc<AccessRecord>)> + 'a {
        let prefix = prefix.to_owned();
        self.access.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// One of them.
    #[must_use]
    pub fn access_record(&self, key: &str) -> Option<&Arc<AccessRecord>> {
        self.access.get(key)
    }

    /// A client's dedupe session without its writes, as stored.
    #[must_use]
    pub fn session(&self, client: &str) -> Option<Session> {
        self.sessions.get(client).map(|header| session_record(client, *header))
    }

    /// One remembered outcome, as stored.
    #[must_use]
    pub fn session_write(&self, client: &str, sequence: u64) -> Option<SessionWrite> {
        let outcome = self.remembered(client, sequence)?;
        Some(SessionWrite { sequence, outcome: Some((**outcome).clone()) })
    }

    /// Everything that is no object, lease or session. `compacted` is the window's (`Snapshot::meta`): 0 here.
    #[must_use]
    pub fn meta(&self) -> StateMeta {
        StateMeta {
            format_version: FORMAT_VERSION,
            machine_version: self.machine_version,
            revision: self.revision,
            at_ms: self.at_ms,
            cluster_id: self.settings.cluster_id.clone(),
            service_cidr: self.settings.service_cidr.clone(),
            node_port_first: self.settings.node_ports.0.into(),
            node_port_last: self.settings.node_ports.1.into(),
            compacted: 0,
            members: self.members.values().cloned().collect(),
            applied_entries: self.applied_entries,
            dedupe_floor: self.dedupe_floor,
            retired_members: self.retired_members.keys().copied().collect(),
        }
    }

    /// Digest of all records as 64 hex digits; equal on servers that applied the same entries. O(members).
    #[must_use]
    pub fn digest_hex(&self) -> String {
        let mut digest = self.digest;
        digest.add(DIGEST_META, &self.meta().encode_to_vec());
        digest.to_hex()
    }

    /// Free and taken ClusterIPs.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Free and taken NodePorts.
    #[must_use]
    pub fn node_ports(&self) -> &Pool {
        &self.node_ports
    }
}

/// Indexes, for the machine's own use.
impl State {
    /// Services that select a pod with these labels, by name.
    pub(super) fn services_selecting(&self, pod: &Pod) -> BTreeSet<String> {
        let Some(metadata) = &pod.metadata else {
            return BTreeSet::new();
        };
        let mut found = BTreeSet::new();
        for (label, value) in &metadata.labels {
            let start: SelectorPair = (metadata.namespace.clone(), label.clone(), value.clone(), String::new());
            let same = |pair: &SelectorPair| pair.0 == start.0 && pair.1 == start.1 && pair.2 == start.2;
            for (pair, ()) in self.services_by_selector.range(start.clone()..).take_while(|(pair, ())| same(pair)) {
                let key = Key::new(Kind::Service, &pair.0, &pair.3);
                let service = self.get(&key).and_then(|object| object.as_service());
                if service.is_some_and(|service| derive::selects(service, pod)) {
                    found.insert(pair.3.clone());
                }
            }
        }
        found
    }

    /// Keys of the pods that say they have an address (see [`derive::claimed_address`]).
    pub(super) fn pods_with_address(&self, address: IpAddr) -> impl Iterator<Item = &ObjectRef> + '_ {
        let start = (address, Key::new(Kind::Unspecified, "", ""));
        self.pods_by_address
            .range(start..)
            .take_while(move |((at, _), ())| *at == address)
            .filter_map(|((_, key), ())| self.objects.get(key))
    }

    /// No object is in this namespace.
    pub(super) fn is_empty_namespace(&self, namespace: &str) -> bool {
        let namespaced = Kind::ALL.into_iter().filter(|kind| kind.is_namespaced());
        namespaced.into_iter().all(|kind| self.list(kind, namespace).next().is_none())
    }

    pub(super) fn session_header(&self, client: &str) -> Option<SessionHeader> {
        self.sessions.get(client).copied()
    }

    pub(super) fn remembered(&self, client: &str, sequence: u64) -> Option<&Arc<Outcome>> {
        self.session_writes.get(&(client.to_owned(), sequence))
    }

    pub(super) fn session_count(&self) -> usize {
        self.sessions.size()
    }

    /// The client whose session was used longest ago.
    pub(super) fn oldest_session(&self) -> Option<String> {
        self.session_order.first().map(|((_, client), ())| client.clone())
    }

    /// Remembered writes of a client, by sequence.
    pub(super) fn writes_of<'a>(&'a self, client: &str) -> impl Iterator<Item = (u64, &'a Arc<Outcome>)> + 'a {
        let client = client.to_owned();
        self.session_writes
            .range((client.clone(), 0)..)
            .take_while(move |((of, _), _)| *of == client)
            .map(|((_, sequence), outcome)| (*sequence, outcome))
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (&String, &SessionHeader)> + '_ {
        self.sessions.iter()
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = &ObjectRef> + '_ {
        self.objects.values()
    }
}

#[cfg(test)]
impl State {
    /// Everything indexed, to compare a rebuilt state's.
    pub(super) fn indexes(&self) -> Vec<String> {
        let pods = self.pods_by_node.keys().map(|at| format!("{at:?}"));
        let addresses = self.pods_by_address.keys().map(|at| format!("{at:?}"));
        let selectors = self.services_by_selector.keys().map(|at| format!("{at:?}"));
        let sessions = self.session_order.keys().map(|at| format!("{at:?}"));
        pods.chain(addresses).chain(selectors).chain(sessions).collect()
    }
}
