//! Answers what this node's kernel holds: the rules, read back from it, the addresses that they serve, what differs from
//! what they should be, and where a packet ends.

use crate::drift::Drifts;
use crate::inspect::{Inspect, Ways};
use crate::plan::service::{Backend, PortPlan, Protocol, ports};
use crate::plan::trace::{End, Packet, Traced};
use crate::plan::{Family, NodeFacts};
use crate::reconcile::Progress;
use crate::shared::Shared;
use fairlead_proto::v1::{
    DataplaneAnswer, DataplaneFrontend, DataplaneQuery, TraceAnswer, TraceEnd, TraceQuery, TraceStep,
    Traced as TracedWire,
};
use fairlead_proto::view::{NodeView, ServiceView};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;

/// Bytes of rules in one answer; the rest is left out, and said to be.
const RULES_BYTES: usize = 2 << 20;
/// Frontends in one answer.
const FRONTENDS: usize = 10_000;
/// Steps of a packet's way in one answer.
const STEPS: usize = 500;
/// Shares closer than this are equal.
const SHARE: f64 = 1e-6;

/// What an answer needs.
pub struct Dataplane {
    /// Name of the kernel's mode.
    pub mode: &'static str,
    /// Looks at the kernel.
    pub inspect: Box<dyn Inspect>,
    /// What was repaired.
    pub drifts: Arc<Drifts>,
    /// The node.
    pub facts: NodeFacts,
    /// Its view.
    pub shared: Arc<Shared>,
    /// What the kernel serves.
    pub progress: watch::Receiver<Progress>,
}

impl Dataplane {
    /// Answers a query; reads the kernel, so it blocks.
    #[must_use]
    pub fn answer(&self, query: &DataplaneQuery) -> DataplaneAnswer {
        let progress = self.progress.borrow().clone();
        let mut answer = DataplaneAnswer {
            query_id: query.query_id,
            mode: self.mode.to_owned(),
            revision: progress.applied,
            error: progress.failed.map(|(_, error)| error).unwrap_or_default(),
            ..DataplaneAnswer::default()
        };
        if let Err(error) = self.fill(query, &mut answer) {
            answer.error = error;
        }
        answer
    }

    fn fill(&self, query: &DataplaneQuery, answer: &mut DataplaneAnswer) -> Result<(), String> {
        if query.rules {
            answer.rules = cut(self.inspect.rules().map_err(|error| error.to_string())?);
        }
        if query.diff {
            answer.diff = Some(self.inspect.diff().map_err(|error| error.to_string())?);
        }
        if let Some(asked) = &query.trace {
            answer.trace = Some(self.trace(asked)?);
        }
        if !query.diff && query.trace.is_none() {
            let (mut frontends, packets): (Vec<_>, Vec<_>) =
                self.shared.look(|view| frontends(view, &self.facts)).into_iter().unzip();
            if query.observed {
                let (_, ways) = self.inspect.trace(&packets).map_err(|error| error.to_string())?;
                for ((frontend, packet), ways) in frontends.iter_mut().zip(&packets).zip(ways) {
                    frontend.drifted = differs(&ways, packet.destination);
                    frontend.observed = ways.kernel.outcome(packet.destination).into_keys().collect();
                }
            }
            answer.frontends = frontends;
        }
        Ok(())
    }

    fn trace(&self, asked: &TraceQuery) -> Result<TraceAnswer, String> {
        let packet = packet(asked)?;
        let service = self.shared.look(|view| service_of(view, &self.facts, packet.destination.ip()));
        let (revision, mut ways) =
            self.inspect.trace(std::slice::from_ref(&packet)).map_err(|error| error.to_string())?;
        let Ways { intent, kernel } = ways.pop().ok_or("the packet left no trace")?;
        Ok(TraceAnswer {
            service: service.unwrap_or_default(),
            revision,
            intent: Some(to_wire(intent)),
            kernel: Some(to_wire(kernel)),
        })
    }
}

/// A packet out of its description.
fn packet(asked: &TraceQuery) -> Result<Packet, String> {
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an address"));
    let (source, destination) = (address(&asked.source)?, address(&asked.destination)?);
    if Family::of(source) != Family::of(destination) {
        return Err(format!("{source} and {destination} are of different families"));
    }
    let port = u16::try_from(asked.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| format!("{} is not a port", asked.port))?;
    let protocol = Protocol::from_kubernetes(&asked.protocol);
    let protocol = protocol.ok_or_else(|| format!("{:?} is not a protocol: TCP, UDP or SCTP", asked.protocol))?;
    Ok(Packet { source, destination: SocketAddr::new(destination, port), protocol, remembered: None })
}

fn to_wire(traced: Traced) -> TracedWire {
    let more = u32::try_from(traced.steps.len().saturating_sub(STEPS)).unwrap_or(u32::MAX);
    let step = |step: crate::plan::trace::Step| TraceStep {
        hook: step.hook,
        chain: step.chain,
        rule: step.rule,
        effect: step.effect,
        share: step.share,
    };
    let end = |(end, share): (End, f64)| {
        let (verdict, destination, masqueraded) = match end {
            End::Reaches { destination, masqueraded } => ("reaches", destination.to_string(), masqueraded),
            End::Rejected => ("rejected", String::new(), false),
            End::Dropped => ("dropped", String::new(), false),
            End::Unknown => ("unknown", String::new(), false),
        };
        TraceEnd { verdict: verdict.to_owned(), destination, masqueraded, share }
    };
    TracedWire {
        steps: traced.steps.into_iter().take(STEPS).map(step).collect(),
        ends: traced.ends.into_iter().map(end).collect(),
        more,
    }
}

/// The kernel leads elsewhere than it should, or with other shares.
fn differs(ways: &Ways, destination: SocketAddr) -> bool {
    let (intent, kernel) = (ways.intent.outcome(destination), ways.kernel.outcome(destination));
    intent.len() != kernel.len()
        || intent.iter().any(|(end, share)| kernel.get(end).is_none_or(|other| (share - other).abs() > SHARE))
}

/// The service that has an address.
fn service_of(view: &NodeView, facts: &NodeFacts, address: IpAddr) -> Option<String> {
    let text = address.to_string();
    let zone = crate::plan::compile::zone(view, facts);
    let has = |service: &ServiceView| of_service(service, facts, &zone).any(|(one, _)| one.address == text);
    view.services.iter().find(|(_, service)| has(service)).map(|(name, _)| name.to_string())
}

/// Every address and port that a node serves, with its endpoints, and a packet of those that it is meant for.
#[must_use]
pub fn frontends(view: &NodeView, facts: &NodeFacts) -> Vec<(DataplaneFrontend, Packet)> {
    let zone = crate::plan::compile::zone(view, facts);
    view.services.values().flat_map(|service| of_service(service, facts, &zone)).take(FRONTENDS).collect()
}

fn of_service<'a>(
    service: &'a ServiceView,
    facts: &'a NodeFacts,
    zone: &'a str,
) -> impl Iterator<Item = (DataplaneFrontend, Packet)> + 'a {
    Family::ALL.into_iter().flat_map(move |family| {
        ports(service, facts, (zone, family)).into_iter().flat_map(move |plan| of_plan(&plan, facts, family))
    })
}

fn of_plan(plan: &PortPlan, facts: &NodeFacts, family: Family) -> Vec<(DataplaneFrontend, Packet)> {
    let frontend = |source: IpAddr, address: IpAddr, (port, endpoints): (u16, &[Backend])| {
        let frontend = DataplaneFrontend {
            service: plan.name.clone(),
            protocol: plan.protocol.name().to_ascii_uppercase(),
            address: address.to_string(),
            port: u32::from(port),
            backends: endpoints.iter().map(|one| one.address.to_string()).collect(),
            ..DataplaneFrontend::default()
        };
        let destination = SocketAddr::new(address, port);
        (frontend, Packet { source, destination, protocol: plan.protocol, remembered: None })
    };
    let (inside, outside) = (pod(facts, family), stranger(plan, family));
    let mut all: Vec<_> =
        plan.cluster_ips.iter().map(|ip| frontend(inside, *ip, (plan.port, plan.internal()))).collect();
    let external = plan.external_ips.iter().chain(&plan.load_balancer_ips);
    all.extend(external.map(|ip| frontend(outside, *ip, (plan.port, plan.outside()))));
    let node_ips = facts.node_ips.iter().filter(|ip| Family::of(**ip) == family);
    let node_ports = plan.node_port.into_iter().flat_map(|port| node_ips.clone().map(move |ip| (*ip, port)));
    all.extend(node_ports.map(|(ip, port)| frontend(outside, ip, (port, plan.outside()))));
    all
}

/// An address of a pod.
fn pod(facts: &NodeFacts, family: Family) -> IpAddr {
    facts.local_cidr(family).map_or_else(|| documentation(family), first)
}

/// An address outside of the cluster that source ranges admit.
fn stranger(plan: &PortPlan, family: Family) -> IpAddr {
    plan.source_ranges.first().map_or_else(|| documentation(family), |net| first(*net))
}

/// Nobody has it (RFC 5737, RFC 3849).
fn documentation(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([203, 0, 113, 250]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xfa]),
    }
}

fn first(net: IpNet) -> IpAddr {
    net.hosts().next().unwrap_or_else(|| net.addr())
}

fn cut(mut rules: String) -> String {
    if rules.len() > RULES_BYTES {
        let end = rules[..RULES_BYTES].rfind('\n').unwrap_or(0);
        let left = rules[end..].lines().count();
        rules.truncate(end);
        rules.push_str(&format!("\n# {left} more lines; look on the node with iptables-save or nft list ruleset\n"));
    }
    rules
}
