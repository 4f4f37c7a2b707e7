//! What a service asks of any data plane: its addresses, and the endpoints that each kind of traffic may reach.
//!
//! The rules are kube-proxy's (`CategorizeEndpoints`, KEP-1669 for terminating endpoints, KEP-3015 and KEP-4444 for
//! traffic distribution). Whatever doesn't make sense in the input (port 0, not an address) is left out, never guessed.

use crate::plan::{Family, NodeFacts};
use fairlead_proto::model::annotations::{self, Scheduler};
use fairlead_proto::v1::{Endpoint, ServiceItem, ServicePort};
use fairlead_proto::view::ServiceView;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// From Kubernetes' spelling; empty means TCP.
    #[must_use]
    pub fn from_kubernetes(text: &str) -> Option<Self> {
        match text {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As rules and hashes spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// An endpoint and its share of new connections, relative to the others of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Where it is.
    pub address: SocketAddr,
    /// Its weight, at least 1; the weights of a list have no common divisor, so equal ones are 1.
    pub weight: u32,
}

/// One port of a service in one address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPlan {
    /// `namespace/name`, or `namespace/name:port` for a named port: what chain names are hashed from.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the addresses below.
    pub port: u16,
    /// ClusterIPs of this family.
    pub cluster_ips: Vec<IpAddr>,
    /// External addresses of this family.
    pub external_ips: Vec<IpAddr>,
    /// Load balancers' addresses of this family.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Sources that the load balancers' addresses admit; empty = all.
    pub source_ranges: Vec<IpNet>,
    /// Port on every node, if any.
    pub node_port: Option<u16>,
    /// Port at which load balancers ask every node for its endpoints, if any.
    pub health_check_node_port: Option<u16>,
    /// Seconds for which a client stays with its endpoint, if it does.
    pub affinity_seconds: Option<u32>,
    /// How an endpoint is chosen, if the service says so.
    pub scheduler: Option<Scheduler>,
    /// ClusterIP traffic stays on this node.
    pub internal_local: bool,
    /// Traffic from outside stays on this node.
    pub external_local: bool,
    /// Endpoints of traffic that may go anywhere.
    pub cluster: Vec<Backend>,
    /// Endpoints on this node.
    pub local: Vec<Backend>,
    /// Endpoints that get nothing new, but whose connections live on: terminating ones until they are gone, and not ready
    /// ones with TCP. Not those of a silent node.
    pub kept: Vec<SocketAddr>,
    /// There is some usable endpoint somewhere, even if policy keeps it out of both lists.
    pub has_endpoints: bool,
}

impl PortPlan {
    /// It has an address that is meant for traffic from outside.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Endpoints that ClusterIP traffic reaches.
    #[must_use]
    pub fn internal(&self) -> &[Backend] {
        if self.internal_local { &self.local } else { &self.cluster }
    }

    /// Endpoints that traffic from outside reaches.
    #[must_use]
    pub fn outside(&self) -> &[Backend] {
        if self.external_local { &self.local } else { &self.cluster }
    }
}

/// A node as endpoints see it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Its zone; empty = unknown.
    pub zone: &'a str,
}

/// Every port of a service in one family; empty if the service has no ClusterIP in it.
#[must_use]
pub fn ports(service: &ServiceView, facts: &NodeFacts, (zone, family): (&str, Family)) -> Vec<PortPlan> {
    let item = &service.item();
    let cluster_ips = addresses(&item.cluster_ips, family);
    if cluster_ips.is_empty() {
        return Vec::new();
    }
    let place = Place { node: &facts.node_name, zone };
    let endpoints: Vec<Endpoint> = service.endpoints.values().collect();
    let mut ports = Vec::new();
    for port in &item.ports {
        let (Some(protocol), Some(number)) = (Protocol::from_kubernetes(&port.protocol), number(port.port)) else {
            continue;
        };
        let mut plan = PortPlan {
            name: port_name(item, port),
            protocol,
            port: number,
            cluster_ips: cluster_ips.clone(),
            external_ips: addresses(&item.external_ips, family),
            load_balancer_ips: addresses(&item.load_balancer_ips, family),
            source_ranges: source_ranges(item, family),
            node_port: node_port(item, port),
            health_check_node_port: u16::try_from(item.health_check_node_port).ok().filter(|port| *port != 0),
            affinity_seconds: (item.affinity_seconds > 0).then_some(item.affinity_seconds),
            scheduler: item.annotations.get(annotations::SCHEDULER).and_then(|name| Scheduler::named(name)),
            internal_local: item.internal_local,
            external_local: item.external_local,
            cluster: Vec::new(),
            local: Vec::new(),
            kept: Vec::new(),
            has_endpoints: false,
        };
        choose(&mut plan, &backends(&endpoints, port, family), (place, &item.traffic_distribution));
        ports.push(plan);
    }
    ports
}

/// `namespace/name`, with `:port` for a named port.
#[must_use]
pub fn port_name(item: &ServiceItem, port: &ServicePort) -> String {
    if port.name.is_empty() {
        format!("{}/{}", item.namespace, item.name)
    } else {
        format!("{}/{}:{}", item.namespace, item.name, port.name)
    }
}

/// Endpoints that serve a port, by address: sorted, each once.
fn backends<'a>(endpoints: &'a [Endpoint], port: &ServicePort, family: Family) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let protocol = Protocol::from_kubernetes(&port.protocol);
    let mut found: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for endpoint in endpoints {
        let Ok(address) = endpoint.address.parse::<IpAddr>() else {
            continue;
        };
        let serves = endpoint
            .ports
            .iter()
            .find(|one| one.name == port.name && Protocol::from_kubernetes(&one.protocol) == protocol);
        let Some(target) = serves.and_then(|one| number(one.port)).filter(|_| Family::of(address) == family) else {
            continue;
        };
        // Two pods at one address and port (host network): the one that may take traffic decides.
        let slot = found.entry(SocketAddr::new(address, target)).or_insert(endpoint);
        if rank(endpoint) > rank(slot) {
            *slot = endpoint;
        }
    }
    found
}

fn rank(endpoint: &Endpoint) -> u8 {
    match weight(endpoint) {
        0 => 0,
        _ if endpoint.ready => 2,
        _ => u8::from(is_fallback(endpoint)),
    }
}

/// Its weight; one of weight 0 gets no new connection.
fn weight(endpoint: &Endpoint) -> u32 {
    endpoint.weight.unwrap_or(1)
}

/// Endpoints with their weights, without the weights' common divisor.
fn weighted<'a>(endpoints: impl Iterator<Item = (&'a SocketAddr, &'a &'a Endpoint)>) -> Vec<Backend> {
    let mut list: Vec<Backend> =
        endpoints.map(|(address, endpoint)| Backend { address: *address, weight: weight(endpoint) }).collect();
    let divisor = list.iter().fold(0, |divisor, backend| gcd(divisor, backend.weight)).max(1);
    list.iter_mut().for_each(|backend| backend.weight /= divisor);
    // Of these there are many, for long.
    list.shrink_to_fit();
    list
}

fn gcd(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// Used only while no endpoint is ready: terminating, but still serving.
fn is_fallback(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

fn choose(plan: &mut PortPlan, backends: &BTreeMap<SocketAddr, &Endpoint>, (place, distribution): (Place<'_>, &str)) {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<Backend> {
        weighted(backends.iter().filter(|(_, endpoint)| weight(endpoint) > 0 && wanted(endpoint)))
    };
    let external = plan.is_external();
    plan.has_endpoints = backends.values().any(|endpoint| rank(endpoint) > 0);
    if !plan.internal_local || external {
        plan.cluster = preferred(backends, (place, distribution)).unwrap_or_else(|| pick(&|endpoint| endpoint.ready));
        if plan.cluster.is_empty() {
            plan.cluster = pick(&is_fallback);
        }
    }
    if plan.internal_local || (plan.external_local && external) {
        let here = |endpoint: &Endpoint| endpoint.node_name == place.node;
        plan.local = pick(&|endpoint| endpoint.ready && here(endpoint));
        if plan.local.is_empty() {
            plan.local = pick(&|endpoint| is_fallback(endpoint) && here(endpoint));
        }
    }
    plan.kept = kept(plan, backends);
}

fn kept(plan: &PortPlan, backends: &BTreeMap<SocketAddr, &Endpoint>) -> Vec<SocketAddr> {
    let chosen: BTreeSet<SocketAddr> = plan.cluster.iter().chain(&plan.local).map(|one| one.address).collect();
    let lives = |endpoint: &Endpoint| !endpoint.lost && (endpoint.serving || plan.protocol == Protocol::Tcp);
    let kept = backends.iter().filter(|(address, endpoint)| lives(endpoint) && !chosen.contains(address));
    kept.map(|(address, _)| *address).collect()
}

/// The ready endpoints that `spec.trafficDistribution` prefers; `None` if it prefers none or none of them is ready.
fn preferred(
    backends: &BTreeMap<SocketAddr, &Endpoint>,
    (place, distribution): (Place<'_>, &str),
) -> Option<Vec<Backend>> {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Option<Vec<Backend>> {
        let list = weighted(backends.iter().filter(|(_, endpoint)| rank(endpoint) == 2 && wanted(endpoint)));
        (!list.is_empty()).then_some(list)
    };
    let zone = |endpoint: &Endpoint| !place.zone.is_empty() && endpoint.zone == place.zone;
    let node = |endpoint: &Endpoint| endpoint.node_name == place.node;
    match distribution {
        "PreferSameNode" => pick(&node).or_else(|| pick(&zone)),
        "PreferClose" | "PreferSameZone" => pick(&zone),
        _ => None,
    }
}

fn addresses(texts: &[String], family: Family) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> =
        texts.iter().filter_map(|text| text.parse().ok()).filter(|address| Family::of(*address) == family).collect();
    addresses.sort();
    addresses.dedup();
    addresses.shrink_to_fit();
    addresses
}

fn source_ranges(item: &ServiceItem, family: Family) -> Vec<IpNet> {
    let ranges = item.load_balancer_source_ranges.iter().filter_map(|text| text.trim().parse::<IpNet>().ok());
    let mut ranges: Vec<IpNet> = ranges.map(|net| net.trunc()).filter(|net| Family::of(net.addr()) == family).collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

fn node_port(item: &ServiceItem, port: &ServicePort) -> Option<u16> {
    number(port.node_port).filter(|_| matches!(item.r#type.as_str(), "NodePort" | "LoadBalancer"))
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
