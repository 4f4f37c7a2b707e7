//! Answers what this node's kernel holds: the rules, read back from it, and the addresses that they serve.

use crate::kernel::KernelError;
use crate::plan::service::{Backend, ports};
use crate::plan::{Family, NodeFacts};
use crate::reconcile::Progress;
use crate::shared::Shared;
use fairlead_proto::v1::{DataplaneAnswer, DataplaneFrontend, DataplaneQuery};
use fairlead_proto::view::{NodeView, ServiceView};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Bytes of rules in one answer; the rest is left out, and said to be.
const RULES_BYTES: usize = 2 << 20;
/// Frontends in one answer.
const FRONTENDS: usize = 10_000;

/// What an answer needs.
pub struct Dataplane {
    /// Name of the kernel's mode.
    pub mode: &'static str,
    /// Reads the kernel's rules back, as text.
    pub rules: Box<dyn Fn() -> Result<String, KernelError> + Send + Sync>,
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
            frontends: self.shared.look(|view| frontends(view, &self.facts)),
            ..DataplaneAnswer::default()
        };
        if query.rules {
            match (self.rules)() {
                Ok(rules) => answer.rules = cut(rules),
                Err(error) => answer.error = error.to_string(),
            }
        }
        answer
    }
}

/// Every address and port that a node serves, with its endpoints.
#[must_use]
pub fn frontends(view: &NodeView, facts: &NodeFacts) -> Vec<DataplaneFrontend> {
    let zone = crate::plan::compile::zone(view, facts);
    view.services.values().flat_map(|service| of_service(service, facts, &zone)).take(FRONTENDS).collect()
}

fn of_service(service: &ServiceView, facts: &NodeFacts, zone: &str) -> Vec<DataplaneFrontend> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for plan in ports(service, facts, (zone, family)) {
            let frontend = |address: IpAddr, port: u16, endpoints: &[Backend]| DataplaneFrontend {
                service: plan.name.clone(),
                protocol: plan.protocol.name().to_ascii_uppercase(),
                address: address.to_string(),
                port: u32::from(port),
                backends: endpoints.iter().map(|one| one.address.to_string()).collect(),
            };
            all.extend(plan.cluster_ips.iter().map(|ip| frontend(*ip, plan.port, plan.internal())));
            let outside = plan.external_ips.iter().chain(&plan.load_balancer_ips);
            all.extend(outside.map(|ip| frontend(*ip, plan.port, plan.outside())));
            let node_ips = facts.node_ips.iter().filter(|ip| Family::of(**ip) == family);
            all.extend(
                plan.node_port
                    .into_iter()
                    .flat_map(|port| node_ips.clone().map(move |ip| (*ip, port)))
                    .map(|(ip, port)| frontend(ip, port, plan.outside())),
            );
        }
    }
    all
}

fn cut(mut rules: String) -> String {
    if rules.len() > RULES_BYTES {
        let end = rules[..RULES_BYTES].rfind('\n').unwrap_or(0);
        let left = rules[end..].lines().count();
        rules.truncate(end);
        rules.push_str(&format!("\n# {left} more lines; look on the node with iptables-save\n"));
    }
    rules
}
