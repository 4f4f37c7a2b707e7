//! What one service becomes: entries in chains that all services share, and chains of its own.

use crate::plan::iptables::port::Port;
use crate::plan::iptables::rule::{Net, Rule, Target};
use crate::plan::iptables::{Names, Table};
use crate::plan::service::{PortPlan, ports};
use crate::plan::{Family, NodeFacts};
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
    /// filter: refuses what no service has in the service ranges.
    ClusterIps,
}

impl Shared {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::Services,
        Self::NodePorts,
        Self::NoEndpoints,
        Self::NoExternalEndpoints,
        Self::Firewall,
        Self::HealthChecks,
        Self::ClusterIps,
    ];

    /// Its table.
    #[must_use]
    pub fn table(self) -> Table {
        match self {
            Self::Services | Self::NodePorts => Table::Nat,
            Self::NoEndpoints | Self::NoExternalEndpoints | Self::Firewall | Self::HealthChecks | Self::ClusterIps => {
                Table::Filter
            }
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
            Self::ClusterIps => names.cluster_ips(),
        }
    }

    /// Rules that stay behind all entries.
    #[must_use]
    pub fn tail(self, names: &Names, family: Family) -> Vec<Rule> {
        if self == Self::ClusterIps {
            return vec![Rule::commented("no service has this address").to(Target::Drop)];
        }
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
    /// What the rules were made of: they don't show endpoints that are only kept.
    pub ports: Vec<PortPlan>,
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
pub fn compile(view: &ServiceView, facts: &NodeFacts, zone: &str) -> ServiceRules {
    let of = |family| {
        let mut rules = FamilyRules::default();
        for plan in ports(view, facts, (zone, family)) {
            Port { plan: &plan, facts, family }.compile(&mut rules);
            rules.ports.push(plan);
        }
        rules
    };
    ServiceRules { v4: of(Family::V4), v6: of(Family::V6) }
}
