//! One port of a service as kube-proxy's chains and entries: whom each kind of traffic reaches, who is masqueraded, what
//! is refused. Which endpoints there are to choose from is decided in `service`.

use crate::plan::iptables::rule::{Net, Recent, Rule, Target, share};
use crate::plan::iptables::{FamilyRules, Shared};
use crate::plan::service::{Backend, PortPlan, Protocol};
use crate::plan::{Family, NodeFacts};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// One port of a service on its way to rules.
pub(super) struct Port<'a> {
    pub(super) plan: &'a PortPlan,
    pub(super) facts: &'a NodeFacts,
    pub(super) family: Family,
}

impl Port<'_> {
    /// Adds its rules.
    pub(super) fn compile(&self, rules: &mut FamilyRules) {
        self.cluster_ip(rules);
        self.external_ips(rules);
        self.load_balancer_ips(rules);
        self.node_port(rules);
        self.health_check(rules);
        if !self.plan.has_endpoints {
            return;
        }
        if self.plan.is_external() {
            rules.chains.insert(self.external_chain(), self.external());
        }
        for (chain, endpoints) in [(self.cluster_chain(), &self.plan.cluster), (self.local_chain(), &self.plan.local)] {
            if !endpoints.is_empty() {
                let masquerade = if chain == self.internal_chain() { self.masquerade() } else { Vec::new() };
                rules.chains.insert(chain, masquerade.into_iter().chain(self.balance(endpoints)).collect());
            }
        }
        for endpoint in self.plan.cluster.iter().chain(&self.plan.local) {
            rules.chains.insert(self.endpoint_chain(endpoint.address), self.endpoint(endpoint.address));
        }
    }

    fn cluster_ip(&self, rules: &mut FamilyRules) {
        for ip in &self.plan.cluster_ips {
            let service = self.plan.name.split(':').next().unwrap_or_default();
            let other =
                Rule { destination: Some(host(*ip)), ..Rule::commented(&format!("{service} has no such port")) };
            rules.entries.insert((Shared::ClusterIps, other.jump(&self.facts.names.reject())));
            if self.plan.internal().is_empty() {
                let refused = self.refused(self.plan.internal_local);
                rules.entries.insert((Shared::NoEndpoints, Rule { destination: Some(host(*ip)), ..refused }));
            } else {
                let rule = Rule { destination: Some(host(*ip)), ..self.to_port("cluster IP") };
                rules.entries.insert((Shared::Services, rule.jump(&self.internal_chain())));
            }
        }
    }

    fn external_ips(&self, rules: &mut FamilyRules) {
        for ip in &self.plan.external_ips {
            self.outside_address(rules, (*ip, "external IP"), &self.external_chain());
        }
    }

    fn load_balancer_ips(&self, rules: &mut FamilyRules) {
        let guarded = self.is_guarded();
        let chain = if guarded { self.firewall_chain() } else { self.external_chain() };
        for ip in &self.plan.load_balancer_ips {
            self.outside_address(rules, (*ip, "loadbalancer IP"), &chain);
            if guarded {
                let text = format!("traffic not accepted by {chain}");
                let rule = Rule { destination: Some(host(*ip)), ..self.to_port(&text) };
                rules.entries.insert((Shared::Firewall, rule.to(Target::Drop)));
            }
        }
        if guarded {
            rules.chains.insert(chain, self.admit());
        }
    }

    /// Only some sources may come in from outside.
    fn is_guarded(&self) -> bool {
        let from_outside = self.plan.node_port.is_some() || !self.plan.load_balancer_ips.is_empty();
        self.plan.has_endpoints && !self.plan.source_ranges.is_empty() && from_outside
    }

    fn outside_address(&self, rules: &mut FamilyRules, (ip, text): (IpAddr, &str), chain: &str) {
        let destination = Some(host(ip));
        if self.plan.has_endpoints {
            let rule = Rule { destination, ..self.to_port(text) };
            rules.entries.insert((Shared::Services, rule.jump(chain)));
        }
        if self.plan.outside().is_empty() {
            let refused = self.refused(self.plan.external_local);
            rules.entries.insert((Shared::NoExternalEndpoints, Rule { destination, ..refused }));
        }
    }

    fn node_port(&self, rules: &mut FamilyRules) {
        let Some(port) = self.plan.node_port else {
            return;
        };
        let destination_port = Some(port);
        if self.plan.has_endpoints {
            let chain = if self.is_guarded() { self.firewall_chain() } else { self.external_chain() };
            let rule = Rule { destination_port, ..self.to_port("") };
            rules.entries.insert((Shared::NodePorts, rule.jump(&chain)));
        }
        if self.is_guarded() {
            let text = format!("traffic not accepted by {}", self.firewall_chain());
            let rule = Rule { destination_port, destination_local: true, ..self.to_port(&text) };
            rules.entries.insert((Shared::Firewall, rule.to(Target::Drop)));
        }
        if self.plan.outside().is_empty() {
            let refused = self.refused(self.plan.external_local);
            let rule = Rule { destination_port, destination_local: true, ..refused };
            rules.entries.insert((Shared::NoExternalEndpoints, rule));
        }
    }

    fn health_check(&self, rules: &mut FamilyRules) {
        if self.plan.health_check_node_port.is_some() {
            let text = format!("{} health check node port", self.plan.name);
            let rule = Rule {
                protocol: Some(Protocol::Tcp),
                destination_port: self.plan.health_check_node_port,
                ..Rule::commented(&text)
            };
            rules.entries.insert((Shared::HealthChecks, rule.to(Target::Accept)));
        }
    }

    /// No endpoint anywhere is refused loudly; one that policy keeps away is not ours to refuse: another path may serve.
    fn refused(&self, local: bool) -> Rule {
        if local && self.plan.has_endpoints {
            self.to_port("has no local endpoints").to(Target::Drop)
        } else {
            let target = if self.plan.protocol == Protocol::Tcp { Target::Reset } else { Target::Reject };
            self.to_port("has no endpoints").to(target)
        }
    }

    /// Traffic from outside to a ClusterIP may bounce off this node, so its answer must come back through it.
    fn masquerade(&self) -> Vec<Rule> {
        let outside = self.facts.local_cidr(self.family).map(|net| Net { negated: true, net });
        if !self.facts.masquerade_all && outside.is_none() {
            return Vec::new();
        }
        let source = outside.filter(|_| !self.facts.masquerade_all);
        let rule = |ip: &IpAddr| Rule { source, destination: Some(host(*ip)), ..self.to_port("cluster IP") };
        self.plan.cluster_ips.iter().map(|ip| rule(ip).jump(&self.facts.names.mark_masq())).collect()
    }

    fn balance(&self, endpoints: &[Backend]) -> Vec<Rule> {
        let rule = |endpoint: SocketAddr| {
            Rule::commented(&format!("{} -> {endpoint}", self.plan.name)).jump(&self.endpoint_chain(endpoint))
        };
        let mut rules = Vec::with_capacity(endpoints.len() * 2);
        if let Some(seconds) = self.plan.affinity_seconds {
            rules.extend(endpoints.iter().map(|endpoint| {
                let recent = Some(Recent::Check(self.endpoint_chain(endpoint.address), seconds));
                Rule { recent, ..rule(endpoint.address) }
            }));
        }
        let mut left: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        for endpoint in endpoints {
            let weight = u64::from(endpoint.weight);
            let probability = (left > weight).then(|| share(weight, left));
            left = left.saturating_sub(weight);
            rules.push(Rule { probability, ..rule(endpoint.address) });
        }
        rules
    }

    fn endpoint(&self, endpoint: SocketAddr) -> Vec<Rule> {
        // A pod that reaches itself through the service must not see its own address as the source.
        let hairpin = Rule { source: Some(host(endpoint.ip())), ..Rule::commented(&self.plan.name) };
        let recent = self.plan.affinity_seconds.map(|_| Recent::Set(self.endpoint_chain(endpoint)));
        let rewrite = Rule { protocol: Some(self.plan.protocol), recent, ..Rule::commented(&self.plan.name) };
        vec![hairpin.jump(&self.facts.names.mark_masq()), rewrite.to(Target::Dnat(endpoint))]
    }

    fn external(&self) -> Vec<Rule> {
        let name = &self.plan.name;
        let mark = self.facts.names.mark_masq();
        let mut rules = Vec::new();
        if self.plan.external_local {
            // Pods and the node itself are inside: for them it is as if they went out and came back by a load balancer.
            if let Some(net) = self.facts.local_cidr(self.family).filter(|_| !self.plan.cluster.is_empty()) {
                let text = format!("pod traffic for {name} external destinations");
                rules.push(
                    Rule { source: Some(Net { negated: false, net }), ..Rule::commented(&text) }
                        .jump(&self.cluster_chain()),
                );
            }
            let local = |text: &str| Rule {
                source_local: true,
                ..Rule::commented(&format!("{text} LOCAL traffic for {name} external destinations"))
            };
            rules.push(local("masquerade").jump(&mark));
            if !self.plan.cluster.is_empty() {
                rules.push(local("route").jump(&self.cluster_chain()));
            }
        } else {
            rules.push(Rule::commented(&format!("masquerade traffic for {name} external destinations")).jump(&mark));
        }
        if !self.plan.outside().is_empty() {
            let chain = if self.plan.external_local { self.local_chain() } else { self.cluster_chain() };
            rules.push(Rule::default().jump(&chain));
        }
        rules
    }

    /// What isn't admitted here keeps its destination and meets the firewall entry.
    fn admit(&self) -> Vec<Rule> {
        let text = format!("{} loadbalancer IP", self.plan.name);
        let from = |net: IpNet| {
            Rule { source: Some(Net { negated: false, net }), ..Rule::commented(&text) }.jump(&self.external_chain())
        };
        let mut rules: Vec<Rule> = self.plan.source_ranges.iter().copied().map(from).collect();
        let node = |net: &IpNet| self.facts.node_ips.iter().any(|ip| net.contains(ip));
        if self.plan.source_ranges.iter().any(node) {
            rules.extend(self.plan.load_balancer_ips.iter().map(|ip| from(host(*ip).net)));
        }
        let rest = format!("other traffic to {} will be dropped by {}", self.plan.name, self.facts.names.firewall());
        rules.push(Rule::commented(&rest));
        rules
    }

    /// Matches the service's port; `text` follows the name in the comment.
    fn to_port(&self, text: &str) -> Rule {
        let text = format!("{} {text}", self.plan.name);
        Rule {
            protocol: Some(self.plan.protocol),
            destination_port: Some(self.plan.port),
            ..Rule::commented(text.trim_end())
        }
    }

    fn internal_chain(&self) -> String {
        if self.plan.internal_local { self.local_chain() } else { self.cluster_chain() }
    }
    fn cluster_chain(&self) -> String {
        self.facts.names.cluster(&self.plan.name, self.plan.protocol.name())
    }
    fn local_chain(&self) -> String {
        self.facts.names.local(&self.plan.name, self.plan.protocol.name())
    }
    fn external_chain(&self) -> String {
        self.facts.names.external(&self.plan.name, self.plan.protocol.name())
    }
    fn firewall_chain(&self) -> String {
        self.facts.names.source_ranges(&self.plan.name, self.plan.protocol.name())
    }
    fn endpoint_chain(&self, endpoint: SocketAddr) -> String {
        self.facts.names.endpoint(&self.plan.name, self.plan.protocol.name(), endpoint)
    }
}

fn host(address: IpAddr) -> Net {
    Net { negated: false, net: IpNet::from(address) }
}
