//! Why a service doesn't work: from the service, the pods of its namespace, its endpoints and the nodes' progress to
//! findings, in the order in which a packet needs them. Pure: asks nobody.
//!
//! INVARIANT: there is exactly one next command, that of the first thing that is wrong.

use crate::client::findings::{Finding, Level};
use fairlead_proto::v1::{Endpoint, Endpoints, NodeProgress, Pod, Service, ServicePort, int_or_string};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Pods named in one finding.
const NAMED: usize = 5;
/// Longest probe output in one line, characters.
const OUTPUT: usize = 200;

/// What is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Namespace of the service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service, if there is one.
    pub service: Option<Service>,
    /// "namespace/name" of all services, if there is no such one.
    pub others: Vec<String>,
    /// Pods of the namespace.
    pub pods: Vec<Pod>,
    /// Its endpoints.
    pub endpoints: Option<Endpoints>,
    /// Progress of all nodes.
    pub nodes: Vec<NodeProgress>,
    /// Differences in nodes' kernels, of those that answered.
    pub drift: BTreeMap<String, u64>,
    /// Domain of DNS names; empty = unknown.
    pub domain: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// In the order in which a packet needs them.
    pub findings: Vec<Finding>,
    /// The one next command.
    pub next: String,
}

/// Finds out.
#[must_use]
pub fn why(facts: &Facts) -> Why {
    let Some(service) = &facts.service else {
        return missing(facts);
    };
    let look = Look::new(facts, service);
    let mut findings = Vec::new();
    if look.spec.r#type == "ExternalName" {
        findings.push(Finding::note(format!(
            "it is an alias of {}: a DNS name only, without address, endpoints or rules",
            look.spec.external_name
        )));
    } else {
        look.pods(&mut findings);
        look.ports(&mut findings);
        look.families(&mut findings);
        look.policies(&mut findings);
        look.nodes(&mut findings);
    }
    findings.push(look.dns());
    let wrong = findings.iter().find(|finding| finding.level == Level::Wrong);
    let next = wrong.map_or_else(|| look.trace(), |finding| finding.hint.clone());
    Why { findings, next }
}

fn missing(facts: &Facts) -> Why {
    let Facts { namespace, name, .. } = facts;
    let elsewhere = facts.others.iter().find_map(|path| path.strip_suffix(&format!("/{name}")));
    let next = match elsewhere {
        Some(other) => format!("fairlead why {name} -n {other}"),
        None => format!("fairlead get services -n {namespace}"),
    };
    let mut near: Vec<_> = facts.others.iter().filter(|path| is_near(path, namespace, name)).cloned().collect();
    near.truncate(NAMED);
    let details = if near.is_empty() { Vec::new() } else { vec![format!("there is {}", near.join(", "))] };
    let text = format!("there is no service {name} in namespace {namespace}");
    Why { findings: vec![Finding::wrong(text, next.clone()).with(details)], next }
}

/// The same name elsewhere, or one here that has the other in it or begins alike and differs in a letter or two.
fn is_near(path: &str, namespace: &str, name: &str) -> bool {
    let Some((other_namespace, other)) = path.split_once('/') else {
        return false;
    };
    let alike = other.chars().next() == name.chars().next() && edits(other, name) <= 2;
    other == name || (other_namespace == namespace && (other.contains(name) || name.contains(other) || alike))
}

/// Letters to add, drop or change (Levenshtein).
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, against) in other.chars().enumerate() {
            let changed = diagonal + usize::from(letter != against);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

struct Look<'a> {
    facts: &'a Facts,
    spec: fairlead_proto::v1::ServiceSpec,
    revision: u64,
    matched: Vec<&'a Pod>,
    endpoints: &'a [Endpoint],
}

impl<'a> Look<'a> {
    fn new(facts: &'a Facts, service: &'a Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let matches = |pod: &&Pod| {
            let labels = labels(pod);
            !spec.selector.is_empty() && spec.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let revision = |metadata: Option<&fairlead_proto::v1::ObjectMeta>| metadata.map_or(0, |one| one.revision);
        let endpoints = facts.endpoints.as_ref();
        Self {
            facts,
            matched: facts.pods.iter().filter(matches).collect(),
            endpoints: endpoints.map_or(&[], |record| record.endpoints.as_slice()),
            revision: revision(service.metadata.as_ref())
                .max(revision(endpoints.and_then(|record| record.metadata.as_ref()))),
            spec,
        }
    }

    fn ready(&self) -> impl Iterator<Item = &'a Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.ready)
    }

    fn describe(&self, kind: &str, name: &str) -> String {
        format!("fairlead describe {kind} {name} -n {}", self.facts.namespace)
    }

    fn pods(&self, findings: &mut Vec<Finding>) {
        let namespace = &self.facts.namespace;
        if self.spec.selector.is_empty() {
            findings.push(if self.endpoints.is_empty() {
                let text = "it has no selector, and nobody wrote endpoints for it";
                Finding::wrong(text, self.describe("service", &self.facts.name))
            } else {
                Finding::fine(format!("it has no selector; {} endpoints were written for it", self.endpoints.len()))
            });
            return;
        }
        let selector = pairs(&self.spec.selector);
        if self.matched.is_empty() {
            let text = format!(
                "its selector {selector} matches none of {} pods in namespace {namespace}",
                self.facts.pods.len()
            );
            let next = if self.facts.pods.is_empty() {
                format!("fairlead get pods -A -l {selector}")
            } else {
                format!("fairlead get pods -n {namespace} --show-labels")
            };
            findings.push(Finding::wrong(text, next).with(self.closest()));
            return;
        }
        let away = self.away();
        let mut details: Vec<_> = away.iter().map(|(pod, why, _)| format!("pod {pod}: {why}")).collect();
        let more = details.len().saturating_sub(NAMED);
        details.truncate(NAMED);
        details.extend((more > 0).then(|| format!("and {more} more")));
        let ready = self.ready().count();
        let total = self.matched.len();
        if ready == 0 {
            let next = away.into_iter().next().map(|(_, _, next)| next);
            let next = next.unwrap_or_else(|| self.describe("service", &self.facts.name));
            let text = format!("its selector {selector} matches {total} pods, and none of them is ready");
            findings.push(Finding::wrong(text, next).with(details));
        } else if self.ready().all(|endpoint| endpoint.weight == Some(0)) {
            let next = format!("fairlead annotate pods -n {namespace} -l {selector} fairlead.io/weight-");
            findings.push(Finding::wrong("all its ready endpoints have weight 0: none gets a new connection", next));
        } else if details.is_empty() {
            findings.push(Finding::fine(format!("{ready} of {total} selected pods are ready")));
        } else {
            findings.push(Finding::note(format!("{ready} of {total} selected pods are ready")).with(details));
        }
    }

    /// Selected pods that get no traffic: which, why, and what to look at.
    fn away(&self) -> Vec<(&'a str, String, String)> {
        let of_pod = |pod: &&'a Pod| {
            let name = name(pod);
            Some((name, unready(pod)?, self.describe("pod", name)))
        };
        let mut away: Vec<_> = self.matched.iter().filter_map(of_pod).collect();
        let of_node = |endpoint: &&Endpoint| {
            (endpoint.lost || endpoint.terminating) && !away.iter().any(|(pod, ..)| *pod == endpoint.pod_name)
        };
        let of_nodes: Vec<_> = self.endpoints.iter().filter(of_node).collect();
        away.extend(of_nodes.into_iter().map(|endpoint| {
            let why = if endpoint.lost { "its node is silent" } else { "its node is drained" };
            let next = format!("fairlead describe node {}", endpoint.node_name);
            (endpoint.pod_name.as_str(), why.to_owned(), next)
        }));
        away
    }

    /// Pods whose labels come closest to the selector, and what keeps them out.
    fn closest(&self) -> Vec<String> {
        let selector = &self.spec.selector;
        let mut ranked: Vec<_> = self
            .facts
            .pods
            .iter()
            .map(|pod| {
                let labels = labels(pod);
                let same = selector.iter().filter(|(key, value)| labels.get(*key) == Some(value)).count();
                let close = |(key, value): &(&String, &String)| {
                    labels
                        .get(*key)
                        .is_some_and(|other| other != *value && edits(other, value) <= value.len().div_ceil(3))
                };
                (same * 2 + selector.iter().filter(close).count(), pod)
            })
            .filter(|(_, pod)| selector.keys().any(|key| labels(pod).contains_key(key)))
            .collect();
        // Those of which nothing fits are shown only if there are no others.
        if ranked.iter().any(|(score, _)| *score > 0) {
            ranked.retain(|(score, _)| *score > 0);
        }
        ranked.sort_by_key(|(score, pod)| (std::cmp::Reverse(*score), name(pod)));
        let differing = |pod: &Pod| {
            let labels = labels(pod);
            let wrong = selector.iter().filter(|(key, value)| labels.get(*key) != Some(value));
            let parts: Vec<String> = wrong
                .map(|(key, value)| match labels.get(key) {
                    Some(other) => format!("{key}={other} instead of {key}={value}"),
                    None => format!("no label {key}"),
                })
                .collect();
            format!("closest: pod {} has {}", name(pod), parts.join(", "))
        };
        ranked.iter().take(3).map(|(_, pod)| differing(pod)).collect()
    }

    /// Named target ports that pods don't have.
    fn ports(&self, findings: &mut Vec<Finding>) {
        for port in &self.spec.ports {
            let Some(wanted) = target_name(port) else {
                continue;
            };
            let lacking: Vec<_> = self.matched.iter().filter(|pod| !has_port(pod, wanted, &port.protocol)).collect();
            let Some(first) = lacking.first() else {
                continue;
            };
            let names: BTreeSet<String> = lacking.iter().flat_map(|pod| port_names(pod)).collect();
            let have = if names.is_empty() {
                "no named port".to_owned()
            } else {
                names.into_iter().collect::<Vec<_>>().join(", ")
            };
            let protocol = protocol(&port.protocol);
            let text = format!(
                "port {} goes to the port named {wanted:?} ({protocol}), which {} of {} selected pods don't have; they have {have}",
                port.port,
                lacking.len(),
                self.matched.len()
            );
            findings.push(if lacking.len() == self.matched.len() {
                Finding::wrong(text, self.describe("pod", name(first)))
            } else {
                Finding::note(text)
            });
        }
    }

    /// Families with an address and without an endpoint.
    fn families(&self, findings: &mut Vec<Finding>) {
        let is_v6 = |text: &String| text.parse::<IpAddr>().ok().map(|address| address.is_ipv6());
        if self.ready().next().is_none() {
            return;
        }
        for vip in &self.spec.cluster_ips {
            let Some(v6) = is_v6(vip) else {
                continue;
            };
            if !self.ready().any(|endpoint| is_v6(&endpoint.address) == Some(v6)) {
                let family = if v6 { "IPv6" } else { "IPv4" };
                findings.push(Finding::wrong(
                    format!("none of its ready endpoints has an {family} address, so {vip} refuses"),
                    format!("fairlead get endpoints {} -n {} -o yaml", self.facts.name, self.facts.namespace),
                ));
            }
        }
    }

    /// Nodes that a policy leaves without an endpoint.
    fn policies(&self, findings: &mut Vec<Finding>) {
        let here: BTreeSet<&str> = self.ready().map(|endpoint| endpoint.node_name.as_str()).collect();
        let without: Vec<&str> =
            self.facts.nodes.iter().map(|node| node.name.as_str()).filter(|node| !here.contains(node)).collect();
        if without.is_empty() || here.is_empty() {
            return;
        }
        let nodes = without.join(", ");
        if self.spec.internal_traffic_policy.as_deref() == Some("Local") {
            findings.push(Finding::note(format!(
                "internalTrafficPolicy is Local: its ClusterIP is silent on nodes without an endpoint ({nodes})"
            )));
        }
        let external = self.spec.external_traffic_policy == "Local";
        if external && matches!(self.spec.r#type.as_str(), "NodePort" | "LoadBalancer") {
            findings.push(Finding::note(format!(
                "externalTrafficPolicy is Local: from outside it is silent on nodes without an endpoint ({nodes})"
            )));
        }
    }

    fn nodes(&self, findings: &mut Vec<Finding>) {
        const NEXT: &str = "fairlead check";
        if self.facts.nodes.is_empty() {
            findings.push(Finding::wrong("no node has an agent, so no kernel serves it", NEXT));
            return;
        }
        let mut trouble = Vec::new();
        for node in &self.facts.nodes {
            let drift = self.facts.drift.get(&node.name).copied().unwrap_or_default();
            if !node.live {
                trouble.push(format!(
                    "node {} is silent: it may run with the rules of revision {}",
                    node.name, node.acknowledged
                ));
            } else if !node.error.is_empty() {
                trouble.push(format!("node {}: {}", node.name, node.error));
            } else if node.acknowledged < self.revision {
                trouble.push(format!(
                    "node {} serves revision {}; the service last changed at {}",
                    node.name, node.acknowledged, self.revision
                ));
            } else if drift > 0 {
                trouble
                    .push(format!("node {}: somebody else changed the kernel's rules, {drift} differences", node.name));
            }
        }
        let count = self.facts.nodes.len();
        findings.push(if trouble.is_empty() {
            Finding::fine(format!("{count} nodes serve revision {} and hold what they should", self.revision))
        } else {
            Finding::wrong(format!("{} of {count} nodes don't serve it as they should", trouble.len()), NEXT)
                .with(trouble)
        });
    }

    fn dns(&self) -> Finding {
        let domain = if self.facts.domain.is_empty() { "cluster.local" } else { &self.facts.domain };
        let name = format!("{}.{}.svc.{domain}", self.facts.name, self.facts.namespace);
        if self.spec.r#type == "ExternalName" {
            return Finding::fine(format!("DNS: {name} is {}", self.spec.external_name));
        }
        let addresses: Vec<String> = if self.spec.cluster_ip == "None" {
            self.ready().map(|endpoint| endpoint.address.clone()).collect()
        } else {
            self.spec.cluster_ips.clone()
        };
        if addresses.is_empty() {
            return Finding::note(format!("DNS: {name} has no address while no endpoint is ready"));
        }
        Finding::fine(format!("DNS: {name} is {}", addresses.join(", ")))
    }

    /// If all is well, the next thing to look at is a packet.
    fn trace(&self) -> String {
        let node = self.facts.nodes.iter().find(|node| node.live).map(|node| node.name.as_str());
        match (self.spec.ports.first(), node) {
            (Some(port), Some(node)) if self.spec.cluster_ip != "None" && self.spec.r#type != "ExternalName" => {
                format!(
                    "fairlead trace {node} {}/{}:{}/{} --node {node}",
                    self.facts.namespace,
                    self.facts.name,
                    port.port,
                    protocol(&port.protocol).to_ascii_lowercase()
                )
            }
            _ => self.describe("service", &self.facts.name),
        }
    }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

fn labels(pod: &Pod) -> BTreeMap<String, String> {
    pod.metadata.as_ref().map(|metadata| metadata.labels.clone()).unwrap_or_default()
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Why a pod is not ready; `None`: it is.
fn unready(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    if pod.metadata.as_ref().is_some_and(|metadata| !metadata.deletion_timestamp.is_empty()) {
        return Some("it is being deleted".to_owned());
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_empty()) {
        return Some("it is on no node".to_owned());
    }
    if status.pod_ip.is_empty() && status.pod_ips.is_empty() {
        return Some("it has no address yet".to_owned());
    }
    let Some(ready) = status.conditions.iter().find(|one| one.r#type == "Ready") else {
        return Some("nobody has reported on it yet".to_owned());
    };
    if ready.status == "True" {
        return None;
    }
    let output: String = ready.message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(OUTPUT).collect();
    let reason = if ready.reason.is_empty() { "not ready" } else { &ready.reason };
    Some(if output.is_empty() { reason.to_owned() } else { format!("{reason}: {output}") })
}

fn protocol(text: &str) -> &str {
    if text.is_empty() { "TCP" } else { text }
}

fn target_name(port: &ServicePort) -> Option<&str> {
    match &port.target_port.as_ref()?.value {
        Some(int_or_string::Value::Str(name)) => Some(name.as_str()).filter(|name| name.parse::<u16>().is_err()),
        _ => None,
    }
}

/// Ports of a pod's containers, and of its sidecars.
fn container_ports(pod: &Pod) -> impl Iterator<Item = &fairlead_proto::v1::ContainerPort> {
    pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().filter(|one| one.restart_policy == "Always");
        spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports)
    })
}

fn has_port(pod: &Pod, wanted: &str, of: &str) -> bool {
    container_ports(pod).any(|port| port.name == wanted && protocol(&port.protocol) == protocol(of))
}

fn port_names(pod: &Pod) -> Vec<String> {
    let named = container_ports(pod).filter(|port| !port.name.is_empty());
    named.map(|port| format!("{} ({})", port.name, protocol(&port.protocol))).collect()
}

#[cfg(test)]
mod tests;
