//! What services share: frontends that several ask for, elements that several need, marks.
//!
//! Laws: a frontend is as the first service by name has it; an element is there while some service needs it.

use crate::plan::compile::Changes;
use crate::plan::flows::{self, Bindings};
use crate::plan::ipvs::IpvsPlane;
use crate::plan::ipvs::op::{Op, server_ops};
use crate::plan::ipvs::rules::{Frontend, Key, Rules};
use crate::plan::ipvs::server::{MOST_MARKS, Virtual, number};
use crate::plan::ipvs::set::{Element, Set};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::NamespacedName;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Numbers of marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    next: u32,
    taken: BTreeSet<u32>,
}

impl Marks {
    /// A free one, none that was in use lately.
    pub fn give(&mut self) -> Option<u32> {
        if self.taken.len() >= MOST_MARKS as usize {
            return None;
        }
        loop {
            let number = self.next % MOST_MARKS;
            self.next = number + 1;
            if self.taken.insert(number) {
                return Some(number);
            }
        }
    }

    /// Takes one, if it is free.
    pub fn take(&mut self, number: u32) -> bool {
        self.next = self.next.max(number + 1);
        self.taken.insert(number)
    }
}

/// What asks for a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Askers {
    One(Arc<NamespacedName>, Arc<Frontend>),
    Several(BTreeMap<Arc<NamespacedName>, Arc<Frontend>>),
}

/// What services share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Marks.
    pub marks: Marks,
    frontends: BTreeMap<Key, Askers>,
    shared: BTreeMap<(Set, Element), usize>,
    /// Frontends of IPv6.
    v6: usize,
}

impl Book {
    /// True if the family holds anything of ours: IPv6 only while some service needs it.
    #[must_use]
    pub fn uses(&self, family: Family) -> bool {
        family == Family::V4 || self.v6 > 0
    }

    /// Every frontend, as it should be.
    pub fn frontends(&self) -> impl Iterator<Item = (Key, &Arc<Frontend>)> {
        self.frontends.iter().filter_map(|(key, askers)| Some((*key, askers.first()?)))
    }

    /// Every element that services may share.
    pub fn shared(&self) -> impl Iterator<Item = (Set, Element)> {
        self.shared.keys().copied()
    }

    /// Some service needs the element.
    #[must_use]
    pub fn needs(&self, element: &(Set, Element)) -> bool {
        self.shared.contains_key(element)
    }

    /// Notes changes: what they ask of a kernel, in order, and whether services are all that changes.
    pub fn step(&mut self, changes: &Changes<IpvsPlane>, facts: &NodeFacts) -> (Vec<Op>, bool) {
        let v6 = self.uses(Family::V6);
        let mut touched = Touched::default();
        for (name, change) in changes {
            self.change((name, change.old.as_deref(), change.new.as_deref()), &mut touched);
        }
        let mut ops = Vec::new();
        let (mut before, mut after) = (Bindings::new(), Bindings::new());
        for (key, was) in &touched.frontends {
            let is = self.frontends.get(key).and_then(Askers::first);
            frontend_ops(*key, (was.as_deref(), is.map(Arc::as_ref)), &mut ops);
            bind(*key, was.as_deref(), &mut before);
            bind(*key, is.map(Arc::as_ref), &mut after);
        }
        for (element, had) in touched.shared {
            let has = self.shared.contains_key(&element);
            if had != has {
                shared_ops(element, (facts, has), &mut ops);
            }
        }
        for family in Family::ALL {
            let stale = flows::stale(&of_family(&before, family), &of_family(&after, family), (family, facts));
            ops.extend(stale.into_iter().map(Op::Forget));
        }
        ops.sort_by_key(Op::rank);
        (ops, v6 == self.uses(Family::V6))
    }

    /// Notes a change of one service, and what was before of all that it touches.
    pub fn change(
        &mut self,
        (name, old, new): (&NamespacedName, Option<&Rules>, Option<&Rules>),
        touched: &mut Touched,
    ) {
        let none = Rules::default();
        let (old, new) = (old.unwrap_or(&none), new.unwrap_or(&none));
        let name = Arc::new(name.clone());
        for key in old.frontends.keys().chain(new.frontends.keys().filter(|key| !old.frontends.contains_key(*key))) {
            let (had, has) = (old.frontends.get(key), new.frontends.get(key));
            if had != has {
                let was = || self.frontends.get(key).and_then(Askers::first).cloned();
                touched.frontends.entry(*key).or_insert_with(was);
                self.put(*key, &name, has.cloned());
            }
        }
        for element in new.shared.difference(&old.shared) {
            touched.shared.entry(*element).or_insert_with(|| self.shared.contains_key(element));
            *self.shared.entry(*element).or_default() += 1;
        }
        for element in old.shared.difference(&new.shared) {
            touched.shared.entry(*element).or_insert_with(|| self.shared.contains_key(element));
            if let Some(count) = self.shared.get_mut(element) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.shared.remove(element);
                }
            }
        }
    }

    fn put(&mut self, key: Key, name: &Arc<NamespacedName>, frontend: Option<Arc<Frontend>>) {
        let is_new = frontend.is_some() && !self.frontends.contains_key(&key);
        let v6 = usize::from(Family::of(key.0) == Family::V6);
        let mut askers = match self.frontends.remove(&key) {
            None => BTreeMap::new(),
            Some(Askers::One(name, frontend)) => BTreeMap::from([(name, frontend)]),
            Some(Askers::Several(all)) => all,
        };
        let had = askers.remove(name);
        let given_up = had
            .as_ref()
            .and_then(|had| had.mark())
            .filter(|mark| frontend.as_ref().and_then(|frontend| frontend.mark()) != Some(*mark));
        if let Some(number) = given_up.and_then(number) {
            self.marks.taken.remove(&number);
        }
        if let Some(frontend) = frontend {
            askers.insert(name.clone(), frontend);
        }
        if is_new {
            self.v6 += v6;
        } else if askers.is_empty() && had.is_some() {
            self.v6 = self.v6.saturating_sub(v6);
        }
        if askers.len() > 1 {
            self.frontends.insert(key, Askers::Several(askers));
        } else if let Some((name, frontend)) = askers.pop_first() {
            self.frontends.insert(key, Askers::One(name, frontend));
        }
    }
}

/// What was before some changes, of all that they touch: several may touch the same, and their sum is what counts.
#[derive(Debug, Default)]
pub struct Touched {
    frontends: BTreeMap<Key, Option<Arc<Frontend>>>,
    shared: BTreeMap<(Set, Element), bool>,
}

impl Askers {
    fn first(&self) -> Option<&Arc<Frontend>> {
        match self {
            Self::One(_, frontend) => Some(frontend),
            Self::Several(all) => all.values().next(),
        }
    }
}

/// The route that makes an address local, unless a range does.
#[must_use]
pub fn route((set, element): (Set, Element), facts: &NodeFacts) -> Option<IpNet> {
    let local = matches!(set, Set::ClusterIps | Set::Addresses);
    let ip = Some(element.ip()).filter(|ip| local && !facts.service_cidrs.iter().any(|net| net.contains(ip)))?;
    Some(IpNet::from(ip))
}

/// The source that a node's own traffic to its VIPs has: an address of the node, for the kernel would take the VIP.
#[must_use]
pub fn source(family: Family, facts: &NodeFacts) -> Option<IpAddr> {
    facts.node_ips.iter().find(|ip| Family::of(**ip) == family).copied()
}

fn shared_ops((set, element): (Set, Element), (facts, needed): (&NodeFacts, bool), ops: &mut Vec<Op>) {
    let route = route((set, element), facts);
    let source = source(element.family(), facts);
    if needed {
        ops.push(Op::Put { set, element, mark: 0 });
        ops.extend(route.map(|net| Op::Route { net, source }));
    } else {
        ops.extend(route.map(|net| Op::Unroute { net, source }));
        ops.push(Op::Remove { set, element });
    }
}

/// From one state of a frontend to another.
fn frontend_ops(key: Key, (was, is): (Option<&Frontend>, Option<&Frontend>), ops: &mut Vec<Op>) {
    let elements = |frontend: Option<&Frontend>| frontend.map(|one| one.elements(key)).unwrap_or_default();
    let (old, new) = (elements(was), elements(is));
    for ((set, element), mark) in &new {
        if old.get(&(*set, *element)) != Some(mark) {
            ops.push(Op::Put { set: *set, element: *element, mark: *mark });
        }
    }
    let gone = old.keys().filter(|one| !new.contains_key(*one));
    ops.extend(gone.map(|(set, element)| Op::Remove { set: *set, element: *element }));
    let servers = |frontend: Option<&Frontend>| -> BTreeMap<Virtual, Arc<crate::plan::ipvs::Server>> {
        frontend.into_iter().flat_map(|one| one.servers(key)).map(|(at, server)| (at, server.clone())).collect()
    };
    let (old, new) = (servers(was), servers(is));
    for at in old.keys().chain(new.keys().filter(|at| !old.contains_key(*at))) {
        server_ops(*at, (old.get(at).map(Arc::as_ref), new.get(at).map(Arc::as_ref)), ops);
    }
}

/// What is behind every frontend of a family.
#[must_use]
pub fn bindings(book: &Book, family: Family) -> Bindings {
    let mut bindings = Bindings::new();
    for (key, frontend) in book.frontends().filter(|(key, _)| Family::of(key.0) == family) {
        bind(key, Some(frontend), &mut bindings);
    }
    bindings
}

fn bind(key: Key, frontend: Option<&Frontend>, bindings: &mut Bindings) {
    if let Some(frontend) = frontend {
        let behind = bindings.entry(flow_frontend(key)).or_default();
        for (_, server) in frontend.servers(key) {
            behind.serves |= server.reals.values().any(|weight| *weight > 0);
            behind.living.extend(server.reals.keys());
        }
    }
}

/// A frontend as flows know it.
#[must_use]
pub fn flow_frontend((ip, protocol, port): Key) -> flows::Frontend {
    flows::Frontend { protocol, address: Some(ip), port }
}

fn of_family(bindings: &Bindings, family: Family) -> Bindings {
    let of = |frontend: &flows::Frontend| frontend.address.is_some_and(|ip| Family::of(ip) == family);
    bindings.iter().filter(|(frontend, _)| of(frontend)).map(|(frontend, behind)| (*frontend, behind.clone())).collect()
}
