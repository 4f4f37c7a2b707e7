//! Services as iptables rules: kube-proxy's chains, names and texts.
//!
//! A service's rules are its own chains in nat, and entries in chains that all services share. Entries of different
//! services never match the same packet, so their order doesn't matter; that is what makes one change cheap.

pub mod bindings;
pub mod diff;
pub mod names;
pub mod observed;
pub mod parse;
mod port;
pub mod restore;
pub mod rule;
mod service;
pub mod trace;

pub use diff::Op;
pub use names::{InvalidPrefix, Names};
pub use observed::Observed;
pub use rule::Rule;
pub use service::{FamilyRules, ServiceRules, Shared};

use crate::plan::compile::{Changes, Desired};
use crate::plan::iptables::rule::{MASQUERADE_MARK, Net, States, Target};
use crate::plan::plane::{Plane, Style};
use crate::plan::service::Protocol;
use crate::plan::trace::{Packet, Traced};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::ServiceView;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;

/// iptables, with kube-proxy's chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IptablesPlane;

/// What services share: whether IPv6 is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    v6_services: usize,
}

impl Book {
    /// True if the family's tables hold anything of ours: IPv6 ones only while some service needs them.
    #[must_use]
    pub fn uses(&self, family: Family) -> bool {
        family == Family::V4 || self.v6_services > 0
    }

    /// Notes changes. True if services are all that changes: the IPv6 tables neither came into use nor went out of it.
    fn note(&mut self, changes: &Changes<IptablesPlane>) -> bool {
        let before = self.uses(Family::V6);
        for change in changes.values() {
            let has_v6 = |rules: &ServiceRules| usize::from(!rules.v6.is_empty());
            self.v6_services += change.new.as_deref().map_or(0, has_v6);
            self.v6_services = self.v6_services.saturating_sub(change.old.as_deref().map_or(0, has_v6));
        }
        before == self.uses(Family::V6)
    }
}

impl Plane for IptablesPlane {
    type Rules = ServiceRules;
    type Book = Book;
    type Observed = Observed;
    type Op = Op;

    fn service(
        view: &ServiceView,
        (facts, zone): (&NodeFacts, &str),
        _: (Option<&ServiceRules>, &mut Book),
    ) -> Option<ServiceRules> {
        Some(service::compile(view, facts, zone)).filter(|rules| !rules.v4.is_empty() || !rules.v6.is_empty())
    }

    fn step(changes: &Changes<Self>, facts: &NodeFacts, book: &mut Book) -> (Vec<Op>, bool) {
        let complete = book.note(changes);
        (diff::step(changes, facts), complete)
    }

    fn adopt(desired: &mut Desired<Self>, _: &Observed) {
        let v6_services = desired.services.values().filter(|rules| !rules.v6.is_empty()).count();
        desired.book = Book { v6_services };
    }

    fn diff(observed: &Observed, desired: &Desired<Self>, style: Style) -> Vec<Op> {
        diff::diff(observed, desired, style)
    }

    fn strays(desired: &Desired<Self>) -> Vec<Op> {
        diff::strays(desired)
    }

    fn replay(observed: &mut Observed, ops: &[Op]) {
        observed.replay(ops);
    }

    fn render(observed: &Observed, facts: &NodeFacts) -> String {
        observed.render(&facts.names)
    }

    fn is_repair(op: &Op) -> bool {
        !matches!(op, Op::Forget(_))
    }

    fn trace(observed: &Observed, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
        trace::trace(observed, facts, packets)
    }
}

/// A table of the packet filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Where destinations and sources are rewritten.
    Nat,
    /// Where packets are refused.
    Filter,
}

impl Table {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A table of one family: what a chain lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// Family.
    pub family: Family,
    /// Table.
    pub table: Table,
}

impl Space {
    /// Every one, in the order in which rules are written.
    pub const ALL: [Self; 4] = [
        Self::new(Family::V4, Table::Filter),
        Self::new(Family::V4, Table::Nat),
        Self::new(Family::V6, Table::Filter),
        Self::new(Family::V6, Table::Nat),
    ];

    /// Makes one.
    #[must_use]
    pub const fn new(family: Family, table: Table) -> Self {
        Self { family, table }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Family::V4 => f.write_str(self.table.name()),
            Family::V6 => write!(f, "{} (IPv6)", self.table.name()),
        }
    }
}

/// Chains that are there whatever the services, in full.
#[must_use]
pub fn fixed(space: Space, facts: &NodeFacts) -> BTreeMap<String, Vec<Rule>> {
    let names = &facts.names;
    let marked = Some((MASQUERADE_MARK, MASQUERADE_MARK, false));
    match space.table {
        Table::Nat => BTreeMap::from([
            (names.marker(), vec![Rule::commented("fairlead keeps the chains of this prefix")]),
            (
                names.mark_masq(),
                vec![Rule::default().to(Target::Mark { value: MASQUERADE_MARK, mask: MASQUERADE_MARK })],
            ),
            (
                names.postrouting(),
                vec![
                    Rule { mark: Some((MASQUERADE_MARK, MASQUERADE_MARK, true)), ..Rule::default() }.to(Target::Return),
                    // Cleared, lest the packet be masqueraded again if it traverses the stack once more.
                    Rule::default().to(Target::Mark { value: MASQUERADE_MARK, mask: 0 }),
                    Rule::commented("kubernetes service traffic requiring SNAT").to(Target::Masquerade),
                ],
            ),
        ]),
        Table::Filter => {
            // A packet that conntrack can't place would pass with its pod's address and make the peer reset.
            let invalid = Rule { states: Some(States { invalid: true, ..States::default() }), ..Rule::default() };
            let mut rules = Vec::from_iter((!facts.tcp_be_liberal).then(|| invalid.to(Target::Drop)));
            rules.push(Rule { mark: marked, ..Rule::commented("kubernetes forwarding rules") }.to(Target::Accept));
            let known = Rule {
                states: Some(States { related: true, established: true, ..States::default() }),
                ..Rule::commented("kubernetes forwarding conntrack rule")
            };
            rules.push(known.to(Target::Accept));
            let tcp = Rule { protocol: Some(Protocol::Tcp), ..Rule::default() };
            let reject = vec![tcp.to(Target::Reset), Rule::default().to(Target::Reject)];
            BTreeMap::from([(names.forward(), rules), (names.reject(), reject)])
        }
    }
}

/// Jumps from built-in chains, in the order in which they are put at the head: the last one comes first.
#[must_use]
pub fn jumps(space: Space, facts: &NodeFacts) -> Vec<(&'static str, Rule)> {
    let names = &facts.names;
    let plain = |text: &str, chain: String| Rule::commented(text).jump(&chain);
    let new = |text: &str, chain: String| Rule {
        states: Some(States { new: true, ..States::default() }),
        ..plain(text, chain)
    };
    let portals = "kubernetes service portals";
    let external = "kubernetes externally-visible service portals";
    let firewall = "kubernetes load balancer firewall";
    let in_range = |net: &IpNet| Rule {
        destination: Some(Net { negated: false, net: *net }),
        ..new("kubernetes cluster IPs", names.cluster_ips())
    };
    let ranges = facts.service_cidrs.iter().filter(|net| Family::of(net.addr()) == space.family);
    let ranges = ranges.flat_map(|net| [("FORWARD", in_range(net)), ("OUTPUT", in_range(net))]);
    let fixed = match space.table {
        Table::Filter => vec![
            ("INPUT", new(external, names.external_services())),
            ("OUTPUT", new(external, names.external_services())),
            ("FORWARD", new(external, names.external_services())),
            ("INPUT", plain("kubernetes health check service ports", names.node_ports())),
            ("FORWARD", new(portals, names.services())),
            ("OUTPUT", new(portals, names.services())),
            ("FORWARD", plain("kubernetes forwarding rules", names.forward())),
            ("INPUT", new(firewall, names.firewall())),
            ("OUTPUT", new(firewall, names.firewall())),
            ("FORWARD", new(firewall, names.firewall())),
        ],
        Table::Nat => vec![
            ("OUTPUT", plain(portals, names.services())),
            ("PREROUTING", plain(portals, names.services())),
            ("POSTROUTING", plain("kubernetes postrouting rules", names.postrouting())),
        ],
    };
    match space.table {
        // Behind those that know the service.
        Table::Filter => ranges.chain(fixed).collect(),
        Table::Nat => fixed,
    }
}
