//! What one service becomes: frontends with their virtual servers, and elements that services may share.

use crate::plan::ipvs::book::Marks;
use crate::plan::ipvs::server::{Server, Virtual, mark};
use crate::plan::ipvs::set::{Element, Set};
use crate::plan::service::{PortPlan, Protocol, ports};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::ServiceView;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// An address, a protocol and a port that clients send to.
pub type Key = (IpAddr, Protocol, u16);

/// What becomes of a new connection to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It reaches an endpoint.
    Served,
    /// It is refused.
    Refused,
    /// It is lost.
    Dropped,
}

/// Who is masqueraded, and whether clients outside of the cluster have a virtual server of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A ClusterIP: by the client's address alone.
    Inside,
    /// Everybody is masqueraded.
    Masqueraded,
    /// Clients outside keep their address and reach this node's endpoints.
    Local {
        /// They have one to go to.
        admits: bool,
        /// Mark and virtual server of those outside; `None`: there is no endpoint, nor was there one lately.
        outside: Option<(u32, Arc<Server>)>,
    },
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// New connections.
    pub verdict: Verdict,
    /// Masquerading, and clients outside.
    pub reach: Reach,
    /// Sources that are let in; empty: all.
    pub sources: Arc<Vec<IpNet>>,
    /// Its virtual server; `None`: it has no endpoints, nor any that keep connections.
    pub server: Option<Arc<Server>>,
}

impl Frontend {
    /// Its elements: set, element and mark.
    #[must_use]
    pub fn elements(&self, (ip, protocol, port): Key) -> BTreeMap<(Set, Element), u32> {
        let element = Element::Port(ip, protocol, port);
        let verdict = match self.verdict {
            Verdict::Served => Set::Served,
            Verdict::Refused => Set::Refused,
            Verdict::Dropped => Set::Dropped,
        };
        let mut elements = BTreeMap::from([((verdict, element), 0)]);
        match &self.reach {
            Reach::Inside => {}
            Reach::Masqueraded => {
                elements.insert((Set::Masquerade, element), 0);
            }
            Reach::Local { admits, outside } => {
                if let Some((mark, _)) = outside {
                    elements.insert((Set::Local, element), *mark);
                }
                if !admits {
                    elements.insert((Set::OutsideDropped, element), 0);
                }
            }
        }
        if !self.sources.is_empty() {
            elements.insert((Set::Guarded, element), 0);
            let from = |net: &IpNet| ((Set::Admitted, Element::PortNet(ip, protocol, port, *net)), 0);
            elements.extend(self.sources.iter().map(from));
        }
        elements
    }

    /// Its virtual servers.
    pub fn servers(&self, key: Key) -> impl Iterator<Item = (Virtual, &Arc<Server>)> {
        let outside = match &self.reach {
            Reach::Local { outside: Some((mark, server)), .. } => {
                Some((Virtual::Mark(Family::of(key.0), *mark), server))
            }
            _ => None,
        };
        self.server.iter().map(move |server| (Virtual::of(key), server)).chain(outside)
    }

    /// Its mark.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        match &self.reach {
            Reach::Local { outside: Some((mark, _)), .. } => Some(*mark),
            _ => None,
        }
    }

    /// With another mark, if it has one.
    #[must_use]
    pub fn with_mark(&self, mark: u32) -> Self {
        let mut frontend = self.clone();
        if let Reach::Local { outside: Some((own, _)), .. } = &mut frontend.reach {
            *own = mark;
        }
        frontend
    }
}

/// A service's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Its frontends.
    pub frontends: BTreeMap<Key, Arc<Frontend>>,
    /// Elements that it may share with other services.
    pub shared: BTreeSet<(Set, Element)>,
}

impl Rules {
    /// Compiles a service for a node in a zone; marks stay what they were.
    #[must_use]
    pub fn compile(
        view: &ServiceView,
        (facts, zone): (&NodeFacts, &str),
        (was, marks): (Option<&Self>, &mut Marks),
    ) -> Self {
        let mut compiler = Compiler { facts, was, marks, rules: Self::default() };
        for family in Family::ALL {
            for plan in ports(view, facts, (zone, family)) {
                compiler.port(&plan, family);
            }
        }
        compiler.rules
    }
}

struct Compiler<'a> {
    facts: &'a NodeFacts,
    was: Option<&'a Rules>,
    marks: &'a mut Marks,
    rules: Rules,
}

/// Virtual servers of a port's external addresses.
struct Servers {
    everyone: Option<Arc<Server>>,
    /// Of those outside, if policy is Local.
    local: Option<Arc<Server>>,
}

impl Compiler<'_> {
    fn port(&mut self, plan: &PortPlan, family: Family) {
        self.cluster_ips(plan);
        let node_ips: Vec<IpAddr> =
            self.facts.node_ips.iter().filter(|ip| Family::of(**ip) == family).copied().collect();
        let (everyone, local) = (Server::of(plan, &plan.cluster), Server::of(plan, &plan.local));
        let servers =
            Servers { everyone: everyone.map(Arc::new), local: local.map(|server| Arc::new(server.by_mark())) };
        // None is let in from everywhere: no guard is needed, and no set takes a network of no length.
        let open = plan.source_ranges.iter().any(|net| net.prefix_len() == 0);
        let ranges = if open || !plan.has_endpoints { Vec::new() } else { plan.source_ranges.clone() };
        let (all, some) = (Arc::new(Vec::new()), Arc::new(ranges));
        for ip in &plan.external_ips {
            self.outside((*ip, plan.protocol, plan.port), (plan, &servers), &all);
        }
        for ip in &plan.load_balancer_ips {
            self.outside((*ip, plan.protocol, plan.port), (plan, &servers), &some);
        }
        for ip in plan.external_ips.iter().chain(&plan.load_balancer_ips).filter(|ip| !node_ips.contains(ip)) {
            self.rules.shared.insert((Set::Addresses, Element::Ip(*ip)));
        }
        for ip in &node_ips {
            if let Some(port) = plan.node_port {
                self.outside((*ip, plan.protocol, port), (plan, &servers), &some);
            }
            if let Some(port) = plan.health_check_node_port {
                self.rules.shared.insert((Set::Health, Element::Port(*ip, Protocol::Tcp, port)));
            }
        }
        for endpoint in plan.cluster.iter().chain(&plan.local).map(|backend| backend.address) {
            let element = Element::PortIp(endpoint.ip(), plan.protocol, endpoint.port(), endpoint.ip());
            self.rules.shared.insert((Set::Hairpin, element));
        }
    }

    fn cluster_ips(&mut self, plan: &PortPlan) {
        let server = Server::of(plan, plan.internal()).map(Arc::new);
        let verdict = verdict(plan.internal().is_empty(), plan.internal_local && plan.has_endpoints);
        for ip in &plan.cluster_ips {
            let frontend = Frontend { verdict, reach: Reach::Inside, sources: Arc::default(), server: server.clone() };
            self.rules.frontends.insert((*ip, plan.protocol, plan.port), Arc::new(frontend));
            self.rules.shared.insert((Set::ClusterIps, Element::Ip(*ip)));
        }
    }

    fn outside(&mut self, key: Key, (plan, servers): (&PortPlan, &Servers), sources: &Arc<Vec<IpNet>>) {
        let reach = if plan.external_local {
            let outside = servers.local.as_ref().and_then(|server| Some((self.mark(key)?, server.clone())));
            Reach::Local { admits: !plan.local.is_empty() && outside.is_some(), outside }
        } else {
            Reach::Masqueraded
        };
        let verdict = verdict(plan.cluster.is_empty(), plan.external_local && plan.has_endpoints);
        let frontend = Frontend { verdict, reach, sources: sources.clone(), server: servers.everyone.clone() };
        self.rules.frontends.insert(key, Arc::new(frontend));
    }

    fn mark(&mut self, key: Key) -> Option<u32> {
        let had = self.was.and_then(|rules| rules.frontends.get(&key)).and_then(|frontend| frontend.mark());
        had.or_else(|| self.marks.give().map(mark))
    }
}

/// No endpoint anywhere is refused loudly; one that policy keeps away is not ours to refuse: another path may serve.
fn verdict(none: bool, elsewhere: bool) -> Verdict {
    match (none, elsewhere) {
        (false, _) => Verdict::Served,
        (true, true) => Verdict::Dropped,
        (true, false) => Verdict::Refused,
    }
}
