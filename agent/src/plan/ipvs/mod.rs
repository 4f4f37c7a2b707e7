//! Services as virtual servers of IPVS, between fixed rules that look into sets: a change costs a few real servers and
//! elements, however many services there are.
//!
//! `rules` compiles a service, `book` knows what services share, `chain` holds the fixed rules, `diff` compares with a
//! kernel. A VIP is local by a route for the whole service range, not by an address on a device: adding an address costs
//! the more the more there are. Laws: those of a [`Plane`]; and a virtual server that no set of ours knows is not ours.

pub mod book;
pub mod chain;
pub mod diff;
pub mod op;
pub mod rules;
pub mod server;
pub mod set;
pub mod trace;

pub use book::Book;
pub use op::Op;
pub use rules::Rules;
pub use server::{Balance, Server, Virtual};
pub use set::{Element, Set};

use crate::plan::compile::{Changes, Desired};
use crate::plan::ipvs::chain::Table;
use crate::plan::plane::{Plane, Style};
use crate::plan::trace::{Packet, Traced};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::ServiceView;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

/// The device that our routes go by.
pub const DEVICE: &str = "fairlead-ipvs";

/// IPVS, with ipsets and a few rules of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpvsPlane;

impl Plane for IpvsPlane {
    type Rules = Rules;
    type Book = Book;
    type Observed = Objects;
    type Op = Op;

    fn service(
        view: &ServiceView,
        place: (&NodeFacts, &str),
        (was, book): (Option<&Rules>, &mut Book),
    ) -> Option<Rules> {
        Some(Rules::compile(view, place, (was, &mut book.marks))).filter(|rules| !rules.frontends.is_empty())
    }

    fn step(changes: &Changes<Self>, facts: &NodeFacts, book: &mut Book) -> (Vec<Op>, bool) {
        book.step(changes, facts)
    }

    fn adopt(desired: &mut Desired<Self>, observed: &Objects) {
        diff::adopt(desired, observed);
    }

    fn diff(observed: &Objects, desired: &Desired<Self>, _: Style) -> Vec<Op> {
        diff::diff(observed, desired)
    }

    fn strays(desired: &Desired<Self>) -> Vec<Op> {
        diff::strays(desired)
    }

    fn replay(observed: &mut Objects, ops: &[Op]) {
        ops.iter().for_each(|op| observed.replay(op));
    }

    fn render(observed: &Objects, _: &NodeFacts) -> String {
        observed.render()
    }

    fn is_repair(op: &Op) -> bool {
        !matches!(op, Op::Forget(_) | Op::Foreign { .. })
    }

    fn trace(observed: &Objects, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
        trace::trace(observed, facts, packets)
    }
}

/// What a kernel holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Our device is there and up.
    pub device: bool,
    /// Sets and rules.
    pub families: BTreeMap<Family, Tables>,
    /// Sets of our name that we don't know.
    pub strays: BTreeSet<String>,
    /// Our virtual servers.
    pub servers: BTreeMap<Virtual, Server>,
    /// Other people's.
    pub foreign: BTreeSet<Virtual>,
    /// Local routes by our device, with the source that they give.
    pub routes: BTreeMap<IpNet, Option<IpAddr>>,
}

/// One family's sets and rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Our sets: elements with their marks.
    pub sets: BTreeMap<Set, BTreeMap<Element, u32>>,
    /// Our chains.
    pub chains: BTreeMap<(Table, String), Vec<String>>,
    /// Rules of built-in chains that lead to ours.
    pub jumps: BTreeMap<(Table, String), Vec<String>>,
}

impl Objects {
    /// True if a virtual server is ours: its frontend is in one of our sets, its address is a ClusterIP, or its mark is
    /// one of ours.
    #[must_use]
    pub fn owns(&self, at: &Virtual) -> bool {
        match at {
            Virtual::Mark(_, mark) => server::number(*mark).is_some(),
            Virtual::Address(protocol, address) => {
                let element = Element::Port(address.ip(), *protocol, address.port());
                let tables = self.families.get(&Family::of(address.ip()));
                let has = |set: Set, element: &Element| {
                    tables.and_then(|tables| tables.sets.get(&set)).is_some_and(|set| set.contains_key(element))
                };
                let frontends = [
                    Set::Served,
                    Set::Refused,
                    Set::Dropped,
                    Set::OutsideDropped,
                    Set::Local,
                    Set::Masquerade,
                    Set::Guarded,
                ];
                has(Set::ClusterIps, &Element::Ip(address.ip())) || frontends.iter().any(|set| has(*set, &element))
            }
        }
    }

    fn put(&mut self, set: Set, element: Element, mark: u32) {
        self.tables(element.family()).sets.entry(set).or_default().insert(element, mark);
    }

    fn tables(&mut self, family: Family) -> &mut Tables {
        self.families.entry(family).or_default()
    }

    /// Does what executing an op does to a kernel. Lenient: it may have been done already.
    pub fn replay(&mut self, op: &Op) {
        match op {
            Op::Device => self.device = true,
            Op::DropDevice => {
                self.device = false;
                self.routes.clear();
            }
            Op::Create { family, set } => {
                self.tables(*family).sets.entry(*set).or_default();
            }
            Op::Put { set, element, mark } => self.put(*set, *element, *mark),
            Op::Remove { set, element } => {
                if let Some(elements) = self.tables(element.family()).sets.get_mut(set) {
                    elements.remove(element);
                }
            }
            Op::Destroy { name } => {
                self.strays.remove(name);
                if let Some((family, set)) = Set::named(name) {
                    self.tables(family).sets.remove(&set);
                }
            }
            Op::Chain { family, table, name, lines } => {
                self.tables(*family).chains.insert((*table, name.clone()), lines.clone());
            }
            Op::DropChain { family, table, name } => {
                self.tables(*family).chains.remove(&(*table, name.clone()));
            }
            Op::Jump { family, table, chain, line } => {
                let lines = self.tables(*family).jumps.entry((*table, chain.clone())).or_default();
                lines.insert(0, line.clone());
            }
            Op::Unjump { family, table, chain, line } => self.unjump(*family, (*table, chain), line),
            Op::Add { at, balance } | Op::Edit { at, balance } => {
                let new = || Server { balance: balance.clone(), reals: BTreeMap::new() };
                self.servers.entry(*at).or_insert_with(new).balance = balance.clone();
            }
            Op::Delete { at } => drop(self.servers.remove(at)),
            Op::Real { at, address, weight, .. } => {
                if let Some(server) = self.servers.get_mut(at) {
                    server.reals.insert(*address, *weight);
                }
            }
            Op::Unreal { at, address } => {
                if let Some(server) = self.servers.get_mut(at) {
                    server.reals.remove(address);
                }
            }
            Op::Route { net, source } => drop(self.routes.insert(*net, *source)),
            Op::Unroute { net, source } => {
                if self.routes.get(net) == Some(source) {
                    self.routes.remove(net);
                }
            }
            Op::Forget(_) | Op::Foreign { .. } => {}
        }
        self.families.retain(|_, tables| *tables != Tables::default());
    }

    fn unjump(&mut self, family: Family, (table, chain): (Table, &str), line: &str) {
        let jumps = &mut self.tables(family).jumps;
        if let Some(lines) = jumps.get_mut(&(table, chain.to_owned())) {
            if let Some(at) = lines.iter().position(|one| one == line) {
                lines.remove(at);
            }
            if lines.is_empty() {
                jumps.remove(&(table, chain.to_owned()));
            }
        }
    }

    /// As text, in the words of `ip`, `ipset`, `iptables` and `ipvsadm`.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        for (net, source) in &self.routes {
            let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
            let _ = writeln!(text, "local {net} dev {DEVICE}{source}");
        }
        for (family, tables) in &self.families {
            for (set, elements) in &tables.sets {
                let kind = if *family == Family::V4 { "inet" } else { "inet6" };
                let _ = writeln!(text, "create {} {} family {kind}", set.name(*family), set.kind());
                for (element, mark) in elements {
                    let mark = if set.has_marks() { format!(" skbmark {mark:#x}") } else { String::new() };
                    let _ = writeln!(text, "add {} {element}{mark}", set.name(*family));
                }
            }
            let _ = writeln!(text, "# {}", if *family == Family::V4 { "IPv4" } else { "IPv6" });
            for table in Table::ALL {
                let _ = writeln!(text, "*{}", table.name());
                for ((_, chain), lines) in tables.jumps.iter().chain(&tables.chains).filter(|((of, _), _)| *of == table)
                {
                    for line in lines {
                        let _ = writeln!(text, "-A {chain} {line}");
                    }
                }
            }
        }
        for (at, server) in &self.servers {
            let Balance { scheduler, flags, persistence } = &server.balance;
            let stays = if *persistence > 0 { format!(" -p {persistence}") } else { String::new() };
            let fallback =
                if flags & !server::PERSISTENT > 0 { format!(" -b {scheduler}-fallback") } else { String::new() };
            let at = at.option();
            let _ = writeln!(text, "-A {at} -s {scheduler}{stays}{fallback}");
            for (address, weight) in &server.reals {
                let _ = writeln!(text, "-a {at} -r {address} -m -w {weight}");
            }
        }
        text
    }
}
