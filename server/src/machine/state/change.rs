//! Changing a state: records, and with them the digest, the indexes and the pools.
//!
//! INVARIANT: what a change takes out of the digest, an index or a pool is exactly what it put in: both are made of the
//! same record by the same functions.

use super::{SelectorPair, SessionHeader, Settings, State};
use crate::machine::allocate::{Addresses, Pool};
use crate::machine::derive;
use fairlead_proto::internal::v1::{
    AccessRecord, InitCluster, LeaseEpoch, Member, Outcome, Session, SessionWrite, StateMeta,
};
use fairlead_proto::model::{Invalid, Key, ObjectRef};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::{Object, Service};
use ipnet::IpNet;
use prost::Message as _;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

const DIGEST_OBJECT: u8 = 1;
const DIGEST_LEASE: u8 = 2;
const DIGEST_SESSION: u8 = 3;
const DIGEST_SESSION_WRITE: u8 = 4;
const DIGEST_ACCESS: u8 = 6;

/// Changing. Each keeps the digest and the indexes.
impl State {
    /// Counts an entry and moves the clock to its time, never back.
    pub(in crate::machine) fn count_entry(&mut self, at_ms: u64) {
        self.applied_entries = self.applied_entries.saturating_add(1);
        self.at_ms = self.at_ms.max(if mutant::is_on(Mutant::ClockInApply) { mutant::clock_ms() } else { at_ms });
    }

    /// Takes the next revision.
    pub(in crate::machine) fn next_revision(&mut self) -> u64 {
        self.revision = self.revision.saturating_add(1);
        self.revision
    }

    /// Puts, replaces or (with `None`) removes an object; returns the one before.
    pub(in crate::machine) fn replace(&mut self, key: &Key, new: Option<ObjectRef>) -> Option<ObjectRef> {
        let old = self.objects.get(key).cloned();
        let entries = |object: Option<&ObjectRef>| object.map(|object| Entries::of(key, object)).unwrap_or_default();
        let (before, after) = (entries(old.as_ref()), entries(new.as_ref()));
        // Most changes leave them alone.
        if before != after {
            self.unindex(key, before);
            self.index(key, after);
        }
        if let Some(old) = &old {
            self.count_out(old);
        }
        match new {
            Some(new) => {
                self.count_in(&new);
                self.objects.insert_mut(key.clone(), new);
            }
            None if old.is_some() => drop(self.objects.remove_mut(key)),
            None => {}
        }
        old
    }

    pub(in crate::machine) fn put_lease(&mut self, lease: LeaseEpoch) {
        self.remove_lease(&lease.node.clone());
        self.digest.add(DIGEST_LEASE, &lease.encode_to_vec());
        self.leases.insert_mut(lease.node.clone(), lease);
    }

    pub(in crate::machine) fn remove_lease(&mut self, node: &str) -> bool {
        let Some(old) = self.leases.get(node) else {
            return false;
        };
        self.digest.remove(DIGEST_LEASE, &old.encode_to_vec());
        self.leases.remove_mut(node)
    }

    /// Writes an access record, or removes it.
    pub(in crate::machine) fn put_access(&mut self, key: &str, record: Option<AccessRecord>) {
        if let Some(old) = self.access.get(key) {
            self.digest.remove(DIGEST_ACCESS, &old.encode_to_vec());
            self.access.remove_mut(key);
        }
        if let Some(record) = record {
            self.digest.add(DIGEST_ACCESS, &record.encode_to_vec());
            self.access.insert_mut(key.to_owned(), Arc::new(record));
        }
    }

    /// True if something changed.
    pub(in crate::machine) fn set_member(&mut self, member: Member) -> bool {
        let changed = self.members.get(&member.id) != Some(&member);
        self.members.insert_mut(member.id, member);
        changed
    }

    /// A member leaves for good. True if it was one.
    pub(in crate::machine) fn remove_member(&mut self, id: u64) -> bool {
        self.retired_members.insert_mut(id, ());
        self.members.remove_mut(&id)
    }

    /// True if it rose.
    pub(in crate::machine) fn raise_machine_version(&mut self, version: u32) -> bool {
        let rises = version > self.machine_version;
        self.machine_version = self.machine_version.max(version);
        rises
    }

    /// Sets identity and ranges.
    ///
    /// # Errors
    /// Every problem with them.
    pub(in crate::machine) fn init(&mut self, init: &InitCluster) -> Result<(), Vec<Invalid>> {
        let mut problems = Vec::new();
        if init.cluster_id.is_empty() {
            problems.push(Invalid::required("cluster_id", ""));
        }
        let net = init.service_cidr.parse::<IpNet>();
        if net.is_err() {
            problems.push(Invalid::invalid(
                "service_cidr",
                &init.service_cidr,
                "must be an IP network, like 10.96.0.0/12",
            ));
        }
        let port = |number: u32| u16::try_from(number).ok().filter(|port| *port > 0);
        let ports = port(init.node_port_first).zip(port(init.node_port_last)).filter(|(first, last)| first <= last);
        if ports.is_none() {
            let shown = format!("{}-{}", init.node_port_first, init.node_port_last);
            problems.push(Invalid::invalid("node_ports", &shown, "must be a range within 1-65535, like 30000-32767"));
        }
        let (Ok(net), Some(node_ports), true) = (net, ports, problems.is_empty()) else {
            return Err(problems);
        };
        self.addresses = Addresses::of_cidr(net);
        self.node_ports = Pool::of_ports(node_ports.0, node_ports.1);
        let service_cidr = self.addresses.range();
        self.settings = Arc::new(Settings { cluster_id: init.cluster_id.clone(), service_cidr, node_ports });
        Ok(())
    }

    /// Takes over a decoded meta record. Only for an empty state.
    pub(in crate::machine) fn load_meta(&mut self, meta: &StateMeta) -> Result<(), Vec<Invalid>> {
        self.revision = meta.revision;
        self.at_ms = meta.at_ms;
        self.applied_entries = meta.applied_entries;
        self.machine_version = meta.machine_version.max(1);
        self.dedupe_floor = meta.dedupe_floor;
        self.members = meta.members.iter().map(|member| (member.id, member.clone())).collect();
        self.retired_members = meta.retired_members.iter().map(|id| (*id, ())).collect();
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

    pub(in crate::machine) fn put_session(&mut self, client: &str, header: SessionHeader) {
        self.remove_session(client);
        self.digest.add(DIGEST_SESSION, &session_record(client, header).encode_to_vec());
        self.session_order.insert_mut((header.last_used, client.to_owned()), ());
        self.sessions.insert_mut(client.to_owned(), header);
    }

    /// Removes a session's header; its writes stay.
    pub(in crate::machine) fn remove_session(&mut self, client: &str) {
        if let Some(old) = self.session_header(client) {
            self.digest.remove(DIGEST_SESSION, &session_record(client, old).encode_to_vec());
            self.session_order.remove_mut(&(old.last_used, client.to_owned()));
            self.sessions.remove_mut(client);
        }
    }

    pub(in crate::machine) fn put_session_write(&mut self, id: (String, u64), outcome: Arc<Outcome>) {
        self.remove_session_write(&id);
        self.digest.add(DIGEST_SESSION_WRITE, &write_digest(&id, &outcome));
        self.session_writes.insert_mut(id, outcome);
    }

    pub(in crate::machine) fn remove_session_write(&mut self, id: &(String, u64)) {
        if let Some(old) = self.session_writes.get(id) {
            self.digest.remove(DIGEST_SESSION_WRITE, &write_digest(id, old));
            self.session_writes.remove_mut(id);
        }
    }

    /// A mutant's: gives ports back that are in use.
    pub(in crate::machine) fn forget_ports(&mut self, ports: BTreeSet<u16>) {
        for port in ports {
            self.node_ports.release(port.into());
        }
    }

    fn count_in(&mut self, object: &Object) {
        let encoded = object.encode_to_vec();
        self.bytes += encoded.len() as u64;
        self.digest.add(DIGEST_OBJECT, &encoded);
    }

    fn count_out(&mut self, object: &Object) {
        let encoded = object.encode_to_vec();
        self.bytes -= encoded.len() as u64;
        self.digest.remove(DIGEST_OBJECT, &encoded);
    }

    fn index(&mut self, key: &Key, entries: Entries) {
        if let Some(node) = entries.node {
            self.pods_by_node.insert_mut((node, key.clone()), ());
        }
        if let Some(address) = entries.address {
            self.pods_by_address.insert_mut((address, key.clone()), ());
        }
        if let Some(pair) = entries.selector {
            self.services_by_selector.insert_mut(pair, ());
        }
        for address in entries.cluster_addresses.into_iter().filter(|_| !mutant::is_on(Mutant::AddressTwice)) {
            self.addresses.take(address);
        }
        for port in entries.node_ports {
            self.node_ports.take(port.into());
        }
    }

    fn unindex(&mut self, key: &Key, entries: Entries) {
        if let Some(node) = entries.node {
            self.pods_by_node.remove_mut(&(node, key.clone()));
        }
        if let Some(address) = entries.address {
            self.pods_by_address.remove_mut(&(address, key.clone()));
        }
        if let Some(pair) = entries.selector {
            self.services_by_selector.remove_mut(&pair);
        }
        for address in entries.cluster_addresses {
            self.addresses.release(address);
        }
        for port in entries.node_ports {
            self.node_ports.release(port.into());
        }
    }
}

/// What an object has in the indexes and takes from the pools.
#[derive(Default, PartialEq, Eq)]
struct Entries {
    node: Option<String>,
    address: Option<IpAddr>,
    selector: Option<SelectorPair>,
    cluster_addresses: Vec<IpAddr>,
    node_ports: BTreeSet<u16>,
}

impl Entries {
    fn of(key: &Key, object: &Object) -> Self {
        let mut entries = Self::default();
        if let Some(pod) = object.as_pod() {
            entries.node = derive::node_of(pod).map(str::to_owned);
            entries.address = derive::claimed_address(pod);
        }
        if let Some(service) = object.as_service() {
            entries.selector = selector_pair(key, service);
            entries.cluster_addresses = cluster_addresses(service);
            entries.node_ports = node_ports(service);
        }
        entries
    }
}

/// The addresses that a service holds: none if headless or an ExternalName.
pub(in crate::machine) fn cluster_addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = service.spec.as_ref().filter(|spec| spec.r#type != "ExternalName") else {
        return Vec::new();
    };
    let listed = spec.cluster_ips.iter().chain(spec.cluster_ips.is_empty().then_some(&spec.cluster_ip));
    listed.filter_map(|text| text.parse().ok()).collect()
}

/// The node ports that a service holds, each once: two of its ports may share a number.
pub(in crate::machine) fn node_ports(service: &Service) -> BTreeSet<u16> {
    let Some(spec) = &service.spec else {
        return BTreeSet::new();
    };
    let ports = spec.ports.iter().map(|port| port.node_port).chain([spec.health_check_node_port]);
    ports.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port > 0).collect()
}

/// Any pod that a selector matches has its first pair among its labels.
fn selector_pair(key: &Key, service: &Service) -> Option<SelectorPair> {
    let spec = service.spec.as_ref().filter(|_| derive::is_derived(service))?;
    let (label, value) = spec.selector.first_key_value()?;
    Some((key.namespace.clone(), label.clone(), value.clone(), key.name.clone()))
}

pub(super) fn session_record(client: &str, header: SessionHeader) -> Session {
    Session { client: client.to_owned(), last_used: header.last_used, writes: Vec::new(), forgotten: header.forgotten }
}

fn write_digest(id: &(String, u64), outcome: &Outcome) -> Vec<u8> {
    let write = SessionWrite { sequence: id.1, outcome: Some(outcome.clone()) };
    Session { client: id.0.clone(), last_used: 0, writes: vec![write], forgotten: 0 }.encode_to_vec()
}
