//! From what a kernel holds to what it should hold, and from what it holds to the numbers that a restarted agent goes on with.

use crate::plan::compile::Desired;
use crate::plan::flows::{self, Bindings, Frontend};
use crate::plan::nftables::book::{Book, Page, split_shared};
use crate::plan::nftables::class::Class;
use crate::plan::nftables::op::Op;
use crate::plan::nftables::pool::evolve;
use crate::plan::nftables::rules::{self, Elements, Packed, Port};
use crate::plan::nftables::set::{Bytes, CLASS_SHIFT, MOST_CLASSES, Set, protocol_number};
use crate::plan::nftables::structure::Structure;
use crate::plan::nftables::{NftablesPlane, Observed, Table};
use crate::plan::service::Protocol;
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::NamespacedName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Every service's rules.
type Services = BTreeMap<NamespacedName, Arc<Packed>>;

/// What makes a table's structure.
pub fn build(family: Family, before: &Structure, after: &Structure, ops: &mut Vec<Op>) {
    for (name, lines) in after.sets.iter().filter(|(name, _)| !before.sets.contains_key(*name)) {
        ops.push(Op::Declare { family, name: name.clone(), lines: lines.clone() });
    }
    for (name, lines) in after.chains.iter().filter(|(name, lines)| before.chains.get(*name) != Some(lines)) {
        ops.push(Op::Chain { family, name: name.clone(), lines: lines.clone() });
    }
    for (class, chain) in after.picks.iter().filter(|(class, chain)| before.picks.get(class) != Some(chain)) {
        if before.picks.contains_key(class) {
            ops.push(Op::Unpick { family, class: *class });
        }
        ops.push(Op::Pick { family, class: *class, chain: chain.clone() });
    }
}

/// What removes a table's structure that isn't wanted.
fn sweep(family: Family, before: &Structure, after: &Structure, ops: &mut Vec<Op>) {
    for class in before.picks.keys().filter(|class| !after.picks.contains_key(class)) {
        ops.push(Op::Unpick { family, class: *class });
    }
    for name in before.chains.keys().filter(|name| !after.chains.contains_key(*name)) {
        ops.push(Op::DropChain { family, name: name.clone() });
    }
    for name in before.sets.keys().filter(|name| !after.sets.contains_key(*name)) {
        ops.push(Op::Undeclare { family, name: name.clone() });
    }
}

/// From an observed kernel to the desired one.
#[must_use]
pub fn diff(observed: &Observed, desired: &Desired<NftablesPlane>) -> Vec<Op> {
    let Desired { services, facts, book, .. } = desired;
    let mut ops = Vec::new();
    for family in Family::ALL {
        let page = book.page(family);
        let table = observed.tables.get(&family);
        if !page.in_use {
            ops.extend(table.map(|_| Op::DropTable { family }));
            continue;
        }
        let structure = page.structure(family, facts);
        let empty = Table::default();
        let fits = table.is_none_or(|table| fits(&table.structure, &structure));
        let before = table.filter(|_| fits).unwrap_or(&empty);
        if !fits {
            ops.push(Op::DropTable { family });
        }
        if table.is_none() || !fits {
            ops.push(Op::Table { family });
        }
        build(family, &before.structure, &structure, &mut ops);
        compare(family, &before.elements, elements(services, family, (page, facts)), &mut ops);
        sweep(family, &before.structure, &structure, &mut ops);
        purge(family, before, services, &mut ops);
        let wanted = wanted_bindings(services, family);
        let stale = flows::stale(&bindings(&before.elements, family), &wanted, (family, facts));
        ops.extend(stale.into_iter().map(Op::Forget));
    }
    ops
}

/// What removes our tables.
#[must_use]
pub fn cleanup(families: Vec<Family>) -> Vec<Op> {
    families.into_iter().map(|family| Op::DropTable { family }).collect()
}

/// Sets of another type, and chains at another hook, can't be changed in place: another version made them.
fn fits(observed: &Structure, wanted: &Structure) -> bool {
    let same_type =
        |(name, lines): (&String, &Vec<String>)| observed.sets.get(name).is_none_or(|observed| observed == lines);
    let hook = |lines: &[String]| lines.first().filter(|line| line.starts_with("type ")).cloned();
    let same_hook = |(name, lines): (&String, &Vec<String>)| {
        observed.chains.get(name).is_none_or(|observed| hook(observed) == hook(lines))
    };
    wanted.sets.iter().all(same_type) && wanted.chains.iter().all(same_hook)
}

/// Elements of all services, in the order of their keys. They are very many: a list takes a third of a map's time.
fn elements(services: &Services, family: Family, (page, facts): (&Page, &NodeFacts)) -> Vec<((Set, Bytes), Bytes)> {
    let mut all = Vec::new();
    for rules in services.values().map(|packed| packed.unpack()) {
        let mut elements = rules.elements(family, (facts, &page.classes));
        let _ = split_shared(&mut elements, rules.family(family), family);
        all.extend(elements);
    }
    all.extend(page.shared().map(|((set, key), data)| ((set, key.clone()), data.clone())));
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all.dedup_by(|(next, _), (first, _)| next == first);
    all
}

/// What makes elements those that they should be; both are in the order of their keys.
fn compare(family: Family, before: &Elements, after: Vec<((Set, Bytes), Bytes)>, ops: &mut Vec<Op>) {
    let mut removed = Vec::new();
    let mut before = before.iter().peekable();
    for ((set, key), data) in after {
        let at = (set, key);
        while let Some((gone, _)) = before.next_if(|(old, _)| **old < at) {
            removed.push(Op::Remove { family, set: gone.0, key: gone.1.clone() });
        }
        let old = before.next_if(|(old, _)| **old == at).map(|(_, data)| data);
        if old != Some(&data) {
            ops.push(Op::Put { family, set: at.0, key: at.1, data, replaces: old.is_some() });
        }
    }
    removed.extend(before.map(|((set, key), _)| Op::Remove { family, set: *set, key: key.clone() }));
    ops.append(&mut removed);
}

/// Clients of endpoints that left their pool while nobody looked.
fn purge(family: Family, before: &Table, services: &Services, ops: &mut Vec<Op>) {
    for port in services.values().flat_map(|packed| std::mem::take(packed.unpack().family_mut(family))) {
        let Some(seconds) = port.plan.affinity_seconds else {
            continue;
        };
        for pool in port.cluster.iter().chain(&port.local) {
            let gone: BTreeSet<SocketAddr> = slots(before, (port.plan.protocol, pool.id), family)
                .into_iter()
                .filter(|endpoint| !pool.slots.contains(endpoint))
                .collect();
            ops.extend(gone.into_iter().map(|endpoint| Op::Purge { family, seconds, pool: pool.id, endpoint }));
        }
    }
}

fn slots(table: &Table, (protocol, pool): (Protocol, u32), family: Family) -> Vec<SocketAddr> {
    let slot = |slot: u32| table.elements.get(&(Set::Endpoints(protocol), Bytes::slot(pool, slot)));
    (0..).map_while(slot).filter_map(|data| data.to_endpoint(family)).collect()
}

/// What should be forgotten in a kernel that nobody watched for a while.
#[must_use]
pub fn strays(desired: &Desired<NftablesPlane>) -> Vec<Op> {
    let of = |family| flows::strays(&wanted_bindings(&desired.services, family), (family, &desired.facts));
    Family::ALL.into_iter().flat_map(of).map(Op::Forget).collect()
}

/// What should be behind each frontend.
fn wanted_bindings(services: &Services, family: Family) -> Bindings {
    let mut bindings = Bindings::new();
    for rules in services.values().map(|packed| packed.unpack()) {
        flows::bind(&mut bindings, rules.family(family).iter().map(|port| &port.plan));
    }
    bindings
}

/// What is behind each frontend, by the elements.
fn bindings(elements: &Elements, family: Family) -> Bindings {
    let mut bindings = Bindings::new();
    for set in [Set::Frontends, Set::Outside, Set::NodePorts, Set::OutsideNodePorts] {
        let of_set = elements.range((set, Bytes::NONE)..).take_while(|((one, _), _)| *one == set);
        for ((_, key), data) in of_set {
            let (Some(frontend), Some(pool)) = (frontend(set, key, family), data.number_at(0)) else {
                continue;
            };
            let behind = bindings.entry(frontend).or_default();
            let slot = |slot: u32| elements.get(&(Set::Endpoints(frontend.protocol), Bytes::slot(pool, slot)));
            behind.living.extend((0..).map_while(slot).filter_map(|data| data.to_endpoint(family)));
            behind.serves |= !behind.living.is_empty();
        }
    }
    bindings
}

fn frontend(set: Set, key: &Bytes, family: Family) -> Option<Frontend> {
    let address = matches!(set, Set::Frontends | Set::Outside).then(|| key.to_address(family, 0));
    let at = match (&address, family) {
        (None, _) => 0,
        (Some(_), Family::V4) => 4,
        (Some(_), Family::V6) => 16,
    };
    let [number, _, _, _, high, low, ..] = *key.as_slice().get(at..)? else {
        return None;
    };
    let protocol =
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|one| protocol_number(*one) == number)?;
    Some(Frontend { protocol, address: address.flatten(), port: u16::from_be_bytes([high, low]) })
}

/// Goes on with the numbers and slots that the kernel has, so that what it already holds needs no change.
pub fn adopt(desired: &mut Desired<NftablesPlane>, observed: &Observed) {
    let mut fresh = Book::default();
    // A number that the kernel knows is not given anew, whoever had it.
    for table in observed.tables.values() {
        let pools = table.elements.keys().filter(|(set, _)| *set == Set::Pools);
        fresh.numbers.go_past(pools.filter_map(|(_, key)| key.number_at(0)).max().unwrap_or_default());
    }
    for (family, table) in &observed.tables {
        adopt_classes(table, *family, &mut fresh);
    }
    for packed in desired.services.values_mut() {
        let mut rules = packed.unpack();
        for family in Family::ALL {
            let table = observed.tables.get(&family);
            for port in rules.family_mut(family) {
                adopt_port(port, (table, family), &mut fresh);
            }
        }
        *packed = Arc::new(Packed::from(&rules));
    }
    // Numbers are given when all that the kernel knows are taken.
    for (name, packed) in &mut desired.services {
        let mut rules = packed.unpack();
        let mut given = false;
        for pool in rules.pools_mut().filter(|pool| pool.id == 0) {
            pool.id = fresh.numbers.give().unwrap_or_default();
            given = true;
        }
        if given {
            *packed = Arc::new(Packed::from(&rules));
        }
        fresh.take_in(name, &rules, &desired.facts);
    }
    desired.book = fresh;
}

fn adopt_port(port: &mut Port, (table, family): (Option<&Table>, Family), fresh: &mut Book) {
    let plan = &port.plan;
    let frontends = |set, ips: &[IpAddr]| -> Vec<(Set, Bytes)> {
        ips.iter().map(|ip| (set, Bytes::frontend(*ip, plan.protocol, plan.port))).collect()
    };
    let node_port = |set| plan.node_port.map(|port| (set, Bytes::node_port(plan.protocol, port)));
    let externals: Vec<IpAddr> = plan.external_ips.iter().chain(&plan.load_balancer_ips).copied().collect();
    let (mut of_cluster, mut of_local) = (frontends(Set::Frontends, &externals), frontends(Set::Outside, &externals));
    of_cluster.extend(node_port(Set::NodePorts));
    of_local.extend(node_port(Set::OutsideNodePorts));
    let internal = if plan.internal_local { &mut of_local } else { &mut of_cluster };
    internal.extend(frontends(Set::Frontends, &plan.cluster_ips));
    let affinity = plan.affinity_seconds;
    for (pool, keys) in [(&mut port.cluster, of_cluster), (&mut port.local, of_local)] {
        let Some(pool) = pool else {
            continue;
        };
        pool.id = 0;
        let Some(table) = table else {
            continue;
        };
        let known = keys.into_iter().find_map(|key| table.elements.get(&key)).and_then(|data| data.number_at(0));
        let same = |id: &u32| class_of(table, *id).is_some_and(|class| class.affinity == affinity);
        let placed = rules::is_maglev(plan);
        if let Some(id) = known.filter(same).filter(|id| fresh.numbers.take(*id)) {
            pool.id = id;
            if !placed {
                pool.slots = evolve(&slots(table, (plan.protocol, id), family), &pool.slots);
            }
        }
    }
}

fn class_of(table: &Table, pool: u32) -> Option<Class> {
    let word = table.elements.get(&(Set::Pools, Bytes::number(pool)))?.number_at(0)?;
    let number = u16::try_from(word >> CLASS_SHIFT).ok()?;
    Class::named(table.structure.picks.get(&number)?)
}

/// Also classes that no pool has now: a packet on its way may still have read their number. If they are very many they are
/// left to be swept.
fn adopt_classes(table: &Table, family: Family, fresh: &mut Book) {
    let picks = &table.structure.picks;
    if picks.len() > usize::from(MOST_CLASSES / 2) {
        return;
    }
    for (number, chain) in picks {
        if let Some(class) = Class::named(chain) {
            fresh.page_mut(family).adopt(class, *number);
        }
    }
}
