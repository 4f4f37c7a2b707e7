//! Services as iptables rules: kube-proxy's chains, names and texts.
//!
//! A service's rules are its own chains in nat, and entries in chains that all services share. Entries of different
//! services never match the same packet, so their order doesn't matter; that is what makes one change cheap.

use crate::plan::port::Port;
use crate::plan::rule::{MASQUERADE_MARK, Net, Rule, States, Target};
use crate::plan::service::ports;
use crate::plan::{Family, Names, NodeFacts, Space, Table};
use fairlead_proto::view::ServiceView;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A chain that holds entries of many services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shared {
    /// nat: where addresses are turned into endpoints.
    Services,
    /// nat: the same for NodePorts.
    NodePorts,
    /// filter: refuses ClusterIPs that have no endpoints.
    NoEndpoints,
    /// filter: refuses external addresses and NodePorts that have no endpoints.
    NoExternalEndpoints,
    /// filter: drops what source ranges don't admit.
    Firewall,
    /// filter: admits load balancers' health checks.
    HealthChecks,
}

impl Shared {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Services,
        Self::NodePorts,
        Self::NoEndpoints,
        Self::NoExternalEndpoints,
        Self::Firewall,
        Self::HealthChecks,
    ];

    /// Its table.
    #[must_use]
    pub fn table(self) -> Table {
        match self {
            Self::Services | Self::NodePorts => Table::Nat,
            Self::NoEndpoints | Self::NoExternalEndpoints | Self::Firewall | Self::HealthChecks => Table::Filter,
        }
    }

    /// Its chain.
    #[must_use]
    pub fn chain(self, names: &Names) -> String {
        match self {
            Self::Services | Self::NoEndpoints => names.services(),
            Self::NodePorts | Self::HealthChecks => names.node_ports(),
            Self::NoExternalEndpoints => names.external_services(),
            Self::Firewall => names.firewall(),
        }
    }

    /// Rules that stay behind all entries.
    #[must_use]
    pub fn tail(self, names: &Names, family: Family) -> Vec<Rule> {
        if self != Self::Services {
            return Vec::new();
        }
        let loopback = match family {
            Family::V4 => IpNet::new_assert(IpAddr::V4([127, 0, 0, 0].into()), 8),
            Family::V6 => IpNet::new_assert(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 128),
        };
        let text = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
        let destination = Some(Net { negated: true, net: loopback });
        vec![Rule { destination, destination_local: true, ..Rule::commented(text) }.jump(&names.node_ports())]
    }
}

/// A service's rules in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyRules {
    /// Entries in shared chains.
    pub entries: BTreeSet<(Shared, Rule)>,
    /// Chains of its own, in nat.
    pub chains: BTreeMap<String, Vec<Rule>>,
}

impl FamilyRules {
    /// No rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.chains.is_empty()
    }
}

/// A service's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// IPv4.
    pub v4: FamilyRules,
    /// IPv6.
    pub v6: FamilyRules,
}

impl ServiceRules {
    /// Of one family.
    #[must_use]
    pub fn family(&self, family: Family) -> &FamilyRules {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Compiles one service for a node in `zone`.
#[must_use]
pub fn service(view: &ServiceView, facts: &NodeFacts, zone: &str) -> ServiceRules {
    let of = |family| {
        let mut rules = FamilyRules::default();
        for plan in ports(view, facts, (zone, family)) {
            Port { plan: &plan, facts, family }.compile(&mut rules);
        }
        rules
    };
    ServiceRules { v4: of(Family::V4), v6: of(Family::V6) }
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
            BTreeMap::from([(names.forward(), rules)])
        }
    }
}

/// Jumps from built-in chains, in the order in which they are put at the head: the last one comes first.
#[must_use]
pub fn jumps(table: Table, names: &Names) -> Vec<(&'static str, Rule)> {
    let plain = |text: &str, chain: String| Rule::commented(text).jump(&chain);
    let new = |text: &str, chain: String| Rule {
        states: Some(States { new: true, ..States::default() }),
        ..plain(text, chain)
    };
    let portals = "kubernetes service portals";
    let external = "kubernetes externally-visible service portals";
    let firewall = "kubernetes load balancer firewall";
    match table {
        Table::Filter => vec![
            ("INPUT", new(external, names.external_services())),
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
    }
}
