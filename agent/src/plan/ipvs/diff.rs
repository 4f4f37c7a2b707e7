//! From what a kernel holds to what it should hold, and from what it holds to the marks that a restarted agent goes on with.

use crate::plan::compile::Desired;
use crate::plan::flows::{self, Bindings};
use crate::plan::ipvs::book::{Book, Touched, bindings, flow_frontend, route, source};
use crate::plan::ipvs::chain::{self, JUMPS, Table};
use crate::plan::ipvs::op::{Op, server_ops};
use crate::plan::ipvs::rules::{Key, Rules};
use crate::plan::ipvs::server::{Server, Virtual, mark, number};
use crate::plan::ipvs::set::{Element, Set};
use crate::plan::ipvs::{IpvsPlane, Objects, Tables};
use crate::plan::{Family, NodeFacts};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// All that a kernel should hold, but for what somebody else has there.
#[must_use]
pub fn wanted(desired: &Desired<IpvsPlane>, foreign: &BTreeSet<Virtual>) -> Objects {
    let Desired { facts, book, .. } = desired;
    let mut objects = Objects { device: true, ..Objects::default() };
    for family in Family::ALL.into_iter().filter(|family| book.uses(*family)) {
        objects.families.insert(family, fixed(family, facts));
        let ranges = facts.service_cidrs.iter().filter(|net| Family::of(net.addr()) == family);
        objects.routes.extend(ranges.map(|net| (*net, source(family, facts))));
    }
    let taken = taken(foreign, book);
    for (set, element) in book.shared().filter(|one| !taken.contains(one)) {
        objects.routes.extend(route((set, element), facts).map(|net| (net, source(element.family(), facts))));
        objects.put(set, element, 0);
    }
    for (key, frontend) in book.frontends() {
        if taken.contains(&(Set::ClusterIps, Element::Ip(key.0))) || foreign.contains(&Virtual::of(key)) {
            continue;
        }
        for ((set, element), mark) in frontend.elements(key) {
            objects.put(set, element, mark);
        }
        objects.servers.extend(frontend.servers(key).map(|(at, server)| (at, (**server).clone())));
    }
    objects
}

/// ClusterIPs at which somebody else has a virtual server: with the address in our set it would count as ours.
fn taken(foreign: &BTreeSet<Virtual>, book: &Book) -> BTreeSet<(Set, Element)> {
    let address = |at: &Virtual| if let Virtual::Address(_, address) = at { Some(address.ip()) } else { None };
    let taken = foreign.iter().filter_map(address).map(|ip| (Set::ClusterIps, Element::Ip(ip)));
    taken.filter(|one| book.needs(one)).collect()
}

fn fixed(family: Family, facts: &NodeFacts) -> Tables {
    let lines = |rules: Vec<chain::Rule>| rules.iter().map(|rule| rule.text(family)).collect();
    let mut jumps: BTreeMap<(Table, String), Vec<String>> = BTreeMap::new();
    for (table, from, to) in JUMPS {
        jumps.entry((table, from.to_owned())).or_default().push(chain::jump(to));
    }
    Tables {
        sets: Set::ALL.into_iter().map(|set| (set, BTreeMap::new())).collect(),
        chains: chain::chains(family, facts).into_iter().map(|(name, rules)| (name, lines(rules))).collect(),
        jumps,
    }
}

/// From an observed kernel to the desired one.
#[must_use]
pub fn diff(observed: &Objects, desired: &Desired<IpvsPlane>) -> Vec<Op> {
    let wanted = wanted(desired, &observed.foreign);
    let mut ops = compare(observed, &wanted);
    let claimed = desired.book.frontends().map(|(key, _)| Virtual::of(key));
    ops.extend(claimed.filter(|at| observed.foreign.contains(at)).map(|at| Op::Foreign { at }));
    for family in Family::ALL {
        let (old, new) = (observed_bindings(observed, family), bindings(&desired.book, family));
        ops.extend(flows::stale(&old, &new, (family, &desired.facts)).into_iter().map(Op::Forget));
    }
    ops.sort_by_key(Op::rank);
    ops
}

/// What removes all of ours.
#[must_use]
pub fn cleanup(observed: &Objects) -> Vec<Op> {
    let mut ops = compare(observed, &Objects::default());
    ops.extend(forget(observed));
    ops.sort_by_key(Op::rank);
    ops
}

/// What removes the virtual servers but those of some frontends.
#[must_use]
pub fn idle(observed: &Objects, busy: impl Iterator<Item = Key>) -> Vec<Op> {
    let mut kept = BTreeSet::new();
    for key in busy {
        let element = Element::Port(key.0, key.1, key.2);
        let local = observed.families.get(&element.family()).and_then(|tables| tables.sets.get(&Set::Local));
        let mark = local.and_then(|set| set.get(&element)).map(|mark| Virtual::Mark(element.family(), *mark));
        kept.extend([Some(Virtual::of(key)), mark].into_iter().flatten());
    }
    let mut gone =
        Objects { servers: observed.servers.clone(), families: observed.families.clone(), ..Objects::default() };
    gone.servers.retain(|at, _| !kept.contains(at));
    gone.servers.keys().map(|at| Op::Delete { at: *at }).chain(forget(&gone)).collect()
}

/// What nobody translates any more: UDP and SCTP would go on by memory alone.
fn forget(objects: &Objects) -> Vec<Op> {
    let nothing = Bindings::new();
    let stale = |family| flows::stale(&observed_bindings(objects, family), &nothing, (family, &NodeFacts::default()));
    Family::ALL.into_iter().flat_map(stale).map(Op::Forget).collect()
}

/// Flows of frontends to endpoints that they don't have: of a kernel that nobody watched.
#[must_use]
pub fn strays(desired: &Desired<IpvsPlane>) -> Vec<Op> {
    let of = |family| flows::strays(&bindings(&desired.book, family), (family, &desired.facts));
    Family::ALL.into_iter().flat_map(of).map(Op::Forget).collect()
}

fn compare(observed: &Objects, wanted: &Objects) -> Vec<Op> {
    let mut ops = Vec::new();
    match (observed.device, wanted.device) {
        (false, true) => ops.push(Op::Device),
        (true, false) => ops.push(Op::DropDevice),
        _ => {}
    }
    let empty = Tables::default();
    for family in Family::ALL {
        let old = observed.families.get(&family).unwrap_or(&empty);
        let new = wanted.families.get(&family).unwrap_or(&empty);
        sets(family, (old, new), &mut ops);
        chains(family, (old, new), &mut ops);
    }
    ops.extend(observed.strays.iter().map(|name| Op::Destroy { name: name.clone() }));
    for at in observed.servers.keys().chain(wanted.servers.keys().filter(|at| !observed.servers.contains_key(*at))) {
        server_ops(*at, (observed.servers.get(at), wanted.servers.get(at)), &mut ops);
    }
    // Without the device there is no route by it, whatever was seen before.
    let known = |net: &IpNet| observed.routes.get(net).filter(|_| observed.device);
    let missing = wanted.routes.iter().filter(|(net, source)| known(net) != Some(*source));
    ops.extend(missing.map(|(net, source)| Op::Route { net: *net, source: *source }));
    // A new source of IPv6 replaces the old one; with IPv4 both routes are there for a moment.
    let stays = |(net, source): &(&IpNet, &Option<IpAddr>)| {
        wanted.routes.get(*net).is_some_and(|new| new == *source || net.addr().is_ipv6())
    };
    let extra = observed.routes.iter().filter(|one| !stays(one) && observed.device);
    ops.extend(extra.map(|(net, source)| Op::Unroute { net: *net, source: *source }));
    ops
}

fn sets(family: Family, (old, new): (&Tables, &Tables), ops: &mut Vec<Op>) {
    let none = BTreeMap::new();
    for (set, elements) in &new.sets {
        let had = old.sets.get(set);
        if had.is_none() {
            ops.push(Op::Create { family, set: *set });
        }
        let had = had.unwrap_or(&none);
        let missing = elements.iter().filter(|(element, mark)| had.get(*element) != Some(*mark));
        ops.extend(missing.map(|(element, mark)| Op::Put { set: *set, element: *element, mark: *mark }));
        let extra = had.keys().filter(|element| !elements.contains_key(*element));
        ops.extend(extra.map(|element| Op::Remove { set: *set, element: *element }));
    }
    let gone = old.sets.keys().filter(|set| !new.sets.contains_key(*set));
    ops.extend(gone.map(|set| Op::Destroy { name: set.name(family) }));
}

fn chains(family: Family, (old, new): (&Tables, &Tables), ops: &mut Vec<Op>) {
    for ((table, name), lines) in &new.chains {
        if old.chains.get(&(*table, name.clone())) != Some(lines) {
            ops.push(Op::Chain { family, table: *table, name: name.clone(), lines: lines.clone() });
        }
    }
    for (table, name) in old.chains.keys().filter(|chain| !new.chains.contains_key(*chain)) {
        ops.push(Op::DropChain { family, table: *table, name: name.clone() });
    }
    for (chain, lines) in &new.jumps {
        let had = old.jumps.get(chain).map_or(&[][..], Vec::as_slice);
        for line in lines.iter().filter(|line| !had.contains(line)) {
            ops.push(Op::Jump { family, table: chain.0, chain: chain.1.clone(), line: line.clone() });
        }
    }
    for (chain, lines) in &old.jumps {
        let mut keep = new.jumps.get(chain).cloned().unwrap_or_default();
        for line in lines {
            // What isn't wanted, or is there twice.
            match keep.iter().position(|one| one == line) {
                Some(at) => drop(keep.swap_remove(at)),
                None => ops.push(Op::Unjump { family, table: chain.0, chain: chain.1.clone(), line: line.clone() }),
            }
        }
    }
}

/// What is behind each frontend by the virtual servers.
fn observed_bindings(objects: &Objects, family: Family) -> Bindings {
    let mut bindings = Bindings::new();
    let mut add = |key: Key, server: &Server| {
        let behind = bindings.entry(flow_frontend(key)).or_default();
        behind.serves |= server.reals.values().any(|weight| *weight > 0);
        behind.living.extend(server.reals.keys());
    };
    for (at, server) in &objects.servers {
        if let Virtual::Address(protocol, address) = at
            && Family::of(address.ip()) == family
        {
            add((address.ip(), *protocol, address.port()), server);
        }
    }
    let local = objects.families.get(&family).and_then(|tables| tables.sets.get(&Set::Local));
    for (element, mark) in local.into_iter().flatten() {
        let server = objects.servers.get(&Virtual::Mark(family, *mark));
        if let Some((key, server)) = element.frontend().zip(server) {
            add(key, server);
        }
    }
    bindings
}

/// Goes on with the marks that the kernel has.
pub fn adopt(desired: &mut Desired<IpvsPlane>, observed: &Objects) {
    let mut book = Book::default();
    let seen = |element: &Element| {
        let sets = &observed.families.get(&element.family())?.sets;
        sets.get(&Set::Local)?.get(element).copied()
    };
    let mut services: BTreeMap<_, Rules> = BTreeMap::new();
    let mut later = Vec::new();
    for (name, rules) in &desired.services {
        let mut rules = (**rules).clone();
        for (key, frontend) in &mut rules.frontends {
            let Some(own) = frontend.mark() else {
                continue;
            };
            let element = Element::Port(key.0, key.1, key.2);
            match seen(&element).filter(|mark| number(*mark).is_some_and(|number| book.marks.take(number))) {
                Some(mark) if mark == own => {}
                Some(mark) => *frontend = Arc::new(frontend.with_mark(mark)),
                None => later.push((name.clone(), *key)),
            }
        }
        services.insert(name.clone(), rules);
    }
    for (name, key) in later {
        let frontend = services.get_mut(&name).and_then(|rules| rules.frontends.get_mut(&key));
        if let (Some(frontend), Some(number)) = (frontend, book.marks.give()) {
            *frontend = Arc::new(frontend.with_mark(mark(number)));
        }
    }
    for (name, rules) in &services {
        book.change((name, None, Some(rules)), &mut Touched::default());
    }
    desired.services = services.into_iter().map(|(name, rules)| (name, Arc::new(rules))).collect();
    desired.book = book;
}
