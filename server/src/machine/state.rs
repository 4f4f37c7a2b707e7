//! The cluster as a value: objects, leases, members, dedupe sessions, and what is indexed over them. Persistent maps:
//! a clone costs O(1), a change O(log n).
//!
//! INVARIANT: pools, indexes and digest are functions of the records; `replace` is the only way to change an object and
//! keeps them so. Nothing here decides anything.

use crate::machine::allocate::{Addresses, Pool};
use crate::machine::derive;
use crate::machine::records::FORMAT_VERSION;
use fairlead_proto::digest::SetDigest;
use fairlead_proto::internal::v1::{InitCluster, LeaseEpoch, Member, Outcome, Session, SessionWrite, StateMeta};
use fairlead_proto::model::{Invalid, Key, ObjectRef};
use fairlead_proto::v1::{Kind, Object, Pod, Service};
use ipnet::IpNet;
use prost::Message as _;
use rpds::RedBlackTreeMapSync as Map;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

const DIGEST_OBJECT: u8 = 1;
const DIGEST_LEASE: u8 = 2;
const DIGEST_SESSION: u8 = 3;
const DIGEST_SESSION_WRITE: u8 = 4;
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
    leases: Map<String, LeaseEpoch>,
    objects: Map<Key, ObjectRef>,
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
            leases: Map::new_sync(),
            objects: Map::new_sync(),
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

    /// An object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&ObjectRef> {
        self.objects.get(key)
    }

    /// Objects of a kind, ordered by namespace and name; an empty namespace means all.
    pub fn list<'a>(&'a self, kind: Kind, namespace: &str) -> impl Iterator<Item = &'a ObjectRef> + 'a {
        let start = Key { kind, namespace: namespace.to_owned(), name: String::new() };
        let namespace = namespace.to_owned();
        self.objects
            .range(start..)
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
        let Some(metadata) = &pod.metadata else { return BTreeSet::new() };
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

/// Changing. Each keeps the digest and the indexes.
impl State {
    /// Counts an entry and moves the clock to its time, never back.
    pub(super) fn count_entry(&mut self, at_ms: u64) {
        self.applied_entries = self.applied_entries.saturating_add(1);
        self.at_ms = self.at_ms.max(at_ms);
    }

    /// Takes the next revision.
    pub(super) fn next_revision(&mut self) -> u64 {
        self.revision = self.revision.saturating_add(1);
        self.revision
    }

    /// Puts, replaces or (with `None`) removes an object; returns the one before.
    pub(super) fn replace(&mut self, key: &Key, new: Option<ObjectRef>) -> Option<ObjectRef> {
        let old = self.objects.get(key).cloned();
        if let Some(old) = &old {
            self.unindex(key, old);
            self.objects.remove_mut(key);
        }
        if let Some(new) = new {
            self.index(key, &new);
            self.objects.insert_mut(key.clone(), new);
        }
        old
    }

    pub(super) fn put_lease(&mut self, lease: LeaseEpoch) {
        self.remove_lease(&lease.node.clone());
        self.digest.add(DIGEST_LEASE, &lease.encode_to_vec());
        self.leases.insert_mut(lease.node.clone(), lease);
    }

    pub(super) fn remove_lease(&mut self, node: &str) -> bool {
        let Some(old) = self.leases.get(node) else { return false };
        self.digest.remove(DIGEST_LEASE, &old.encode_to_vec());
        self.leases.remove_mut(node)
    }

    /// True if something changed.
    pub(super) fn set_member(&mut self, member: Member) -> bool {
        let changed = self.members.get(&member.id) != Some(&member);
        self.members.insert_mut(member.id, member);
        changed
    }

    /// True if it rose.
    pub(super) fn raise_machine_version(&mut self, version: u32) -> bool {
        let rises = version > self.machine_version;
        self.machine_version = self.machine_version.max(version);
        rises
    }

    /// Sets identity and ranges.
    ///
    /// # Errors
    /// Every problem with them.
    pub(super) fn init(&mut self, init: &InitCluster) -> Result<(), Vec<Invalid>> {
        let mut problems = Vec::new();
        if init.cluster_id.is_empty() {
            problems.push(Invalid::required("cluster_id", ""));
        }
        let net = init.service_cidr.parse::<IpNet>();
        if net.is_err() {
            problems.push(Invalid::invalid("service_cidr", &init.service_cidr, "must be an IP network, like 10.96.0.0/12"));
        }
        let port = |number: u32| u16::try_from(number).ok().filter(|port| *port > 0);
        let ports = port(init.node_port_first).zip(port(init.node_port_last)).filter(|(first, last)| first <= last);
        if ports.is_none() {
            let shown = format!("{}-{}", init.node_port_first, init.node_port_last);
            problems.push(Invalid::invalid("node_ports", &shown, "must be a range within 1-65535, like 30000-32767"));
        }
        let (Ok(net), Some(node_ports), true) = (net, ports, problems.is_empty()) else { return Err(problems) };
        self.addresses = Addresses::of_cidr(net);
        self.node_ports = Pool::of_ports(node_ports.0, node_ports.1);
        let service_cidr = self.addresses.range();
        self.settings = Arc::new(Settings { cluster_id: init.cluster_id.clone(), service_cidr, node_ports });
        Ok(())
    }

    /// Takes over a decoded meta record. Only for an empty state.
    pub(super) fn load_meta(&mut self, meta: &StateMeta) -> Result<(), Vec<Invalid>> {
        self.revision = meta.revision;
        self.at_ms = meta.at_ms;
        self.applied_entries = meta.applied_entries;
        self.machine_version = meta.machine_version.max(1);
        self.dedupe_floor = meta.dedupe_floor;
        self.members = meta.members.iter().map(|member| (member.id, member.clone())).collect();
        if meta.cluster_id.is_empty() {
            return Ok(());
        }
        self.init(&InitCluster {
            cluster_id: meta.cluster_id.clone(),
            service_cidr: meta.service_cidr.clone(),
            node_port_first: meta.node_port_first,
            node_port_last: meta.node_port_last,
            uids: Vec::new(),
        })
    }

    pub(super) fn put_session(&mut self, client: &str, header: SessionHeader) {
        self.remove_session(client);
        self.digest.add(DIGEST_SESSION, &session_record(client, header).encode_to_vec());
        self.session_order.insert_mut((header.last_used, client.to_owned()), ());
        self.sessions.insert_mut(client.to_owned(), header);
    }

    /// Removes a session's header; its writes stay.
    pub(super) fn remove_session(&mut self, client: &str) {
        if let Some(old) = self.session_header(client) {
            self.digest.remove(DIGEST_SESSION, &session_record(client, old).encode_to_vec());
            self.session_order.remove_mut(&(old.last_used, client.to_owned()));
            self.sessions.remove_mut(client);
        }
    }

    pub(super) fn put_session_write(&mut self, id: (String, u64), outcome: Arc<Outcome>) {
        self.remove_session_write(&id);
        self.digest.add(DIGEST_SESSION_WRITE, &write_digest(&id, &outcome));
        self.session_writes.insert_mut(id, outcome);
    }

    pub(super) fn remove_session_write(&mut self, id: &(String, u64)) {
        if let Some(old) = self.session_writes.get(id) {
            self.digest.remove(DIGEST_SESSION_WRITE, &write_digest(id, old));
            self.session_writes.remove_mut(id);
        }
    }

    fn index(&mut self, key: &Key, object: &Object) {
        self.digest.add(DIGEST_OBJECT, &object.encode_to_vec());
        if let Some(pod) = object.as_pod() {
            if let Some(node) = derive::node_of(pod) {
                self.pods_by_node.insert_mut((node.to_owned(), key.clone()), ());
            }
            if let Some(address) = derive::claimed_address(pod) {
                self.pods_by_address.insert_mut((address, key.clone()), ());
            }
        }
        if let Some(service) = object.as_service() {
            if let Some(pair) = selector_pair(key, service) {
                self.services_by_selector.insert_mut(pair, ());
            }
            for address in cluster_addresses(service) {
                self.addresses.take(address);
            }
            for port in node_ports(service) {
                self.node_ports.take(port.into());
            }
        }
    }

    fn unindex(&mut self, key: &Key, object: &Object) {
        self.digest.remove(DIGEST_OBJECT, &object.encode_to_vec());
        if let Some(pod) = object.as_pod() {
            if let Some(node) = derive::node_of(pod) {
                self.pods_by_node.remove_mut(&(node.to_owned(), key.clone()));
            }
            if let Some(address) = derive::claimed_address(pod) {
                self.pods_by_address.remove_mut(&(address, key.clone()));
            }
        }
        if let Some(service) = object.as_service() {
            if let Some(pair) = selector_pair(key, service) {
                self.services_by_selector.remove_mut(&pair);
            }
            for address in cluster_addresses(service) {
                self.addresses.release(address);
            }
            for port in node_ports(service) {
                self.node_ports.release(port.into());
            }
        }
    }
}

/// The addresses that a service holds: none if headless or an ExternalName.
pub(super) fn cluster_addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = service.spec.as_ref().filter(|spec| spec.r#type != "ExternalName") else { return Vec::new() };
    let listed = spec.cluster_ips.iter().chain(spec.cluster_ips.is_empty().then_some(&spec.cluster_ip));
    listed.filter_map(|text| text.parse().ok()).collect()
}

/// The node ports that a service holds, each once: two of its ports may share a number.
pub(super) fn node_ports(service: &Service) -> BTreeSet<u16> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let ports = spec.ports.iter().map(|port| port.node_port).chain([spec.health_check_node_port]);
    ports.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port > 0).collect()
}

/// Any pod that a selector matches has its first pair among its labels.
fn selector_pair(key: &Key, service: &Service) -> Option<SelectorPair> {
    let spec = service.spec.as_ref().filter(|_| derive::is_derived(service))?;
    let (label, value) = spec.selector.first_key_value()?;
    Some((key.namespace.clone(), label.clone(), value.clone(), key.name.clone()))
}

fn session_record(client: &str, header: SessionHeader) -> Session {
    Session { client: client.to_owned(), last_used: header.last_used, writes: Vec::new(), forgotten: header.forgotten }
}

fn write_digest(id: &(String, u64), outcome: &Outcome) -> Vec<u8> {
    let write = SessionWrite { sequence: id.1, outcome: Some(outcome.clone()) };
    Session { client: id.0.clone(), last_used: 0, writes: vec![write], forgotten: 0 }.encode_to_vec()
}
