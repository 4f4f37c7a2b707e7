//! What agents say of their nodes and pods, and what their silence means.
//!
//! A lease's epoch is the position of the entry that (re)opened it, so that no two openings share one, not even after
//! the node was deleted between. A report of a node without a live lease is refused: it may have been overtaken by
//! the fact that the node is silent, and would bring back endpoints that nobody would take out again.

use crate::machine::conflicts::set_condition;
use crate::machine::delete::{Removable, removable};
use crate::machine::derive;
use crate::machine::draft::Draft;
use crate::machine::{Done, outcome};
use fairlead_proto::internal::v1::{ExpireNode, LeaseEpoch, NodeUp, Rejection, ReportPods, ReportedPod};
use fairlead_proto::model::{Invalid, Key, ObjectRef};
use fairlead_proto::v1::{Condition, Kind, Node, NodeAddress, ObjectMeta, Pod, PodIp, WriteEffect};
use ipnet::IpNet;
use std::net::IpAddr;

/// Kubernetes' node-monitor-grace-period.
const GRACE_SECONDS: u32 = 50;
/// Bytes of a probe's output that are kept.
const MESSAGE_BYTES: usize = 4096;
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// A node said hello, or was heard again: its object is made or refreshed, its lease opened.
pub(super) fn node_up(draft: &mut Draft<'_>, up: &NodeUp) -> Result<Done, Rejection> {
    check(up)?;
    let key = Key::new(Kind::Node, "", &up.node);
    let current = draft.state.get(&key).cloned();
    let now = draft.now();
    let mut node = match current.as_ref().and_then(|object| object.as_node()) {
        Some(node) => node.clone(),
        None => new_node(up, &now),
    };
    refresh(&mut node, up, &now);
    let lease_changed = open_lease(draft, up);
    let written = draft.write(node.into());
    let effect = match (&current, &written) {
        (None, _) => WriteEffect::Created,
        (Some(_), Some(_)) => WriteEffect::Configured,
        (Some(_), None) if lease_changed => WriteEffect::Configured,
        (Some(_), None) => WriteEffect::Unchanged,
    };
    let object = written.or(current);
    Ok(object.map_or_else(|| Done::effect(effect), |object| Done::object(effect, object)))
}

/// Silence as a fact. Dropped unless it is the lease that was seen to fall silent.
pub(super) fn expire_node(draft: &mut Draft<'_>, expire: &ExpireNode) -> Done {
    let lease = draft.state.lease(&expire.node).filter(|lease| !lease.expired && lease.epoch == expire.observed_lease);
    let Some(lease) = lease.cloned() else {
        return Done::effect(WriteEffect::Unchanged);
    };
    draft.put_lease(LeaseEpoch { expired: true, ..lease });
    let now = draft.now();
    let key = Key::new(Kind::Node, "", &expire.node);
    if let Some(mut node) = draft.state.get(&key).and_then(|object| object.as_node()).cloned() {
        let status = node.status.get_or_insert_default();
        let unknown = ("Ready", "Unknown", "NodeStatusUnknown", "the node's agent stopped renewing its lease");
        set_condition(&mut status.conditions, condition(unknown, &now));
        draft.write(node.into());
    }
    let pods: Vec<ObjectRef> = draft.state.pods_on_node(&expire.node).cloned().collect();
    for pod in pods.iter().filter_map(|object| object.as_pod()).filter(|pod| !derive::is_finished(pod)) {
        let mut pod = pod.clone();
        let status = pod.status.get_or_insert_default();
        if status.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "False") {
            continue;
        }
        let message = format!("node {:?} is silent: its pods are not known to be ready", expire.node);
        set_condition(&mut status.conditions, condition(("Ready", "False", "NodeLost", &message), &now));
        draft.write(pod.into());
    }
    Done::effect(WriteEffect::Configured)
}

/// What a node's agent saw of its pods. Reports about other nodes' pods and former incarnations are passed over.
pub(super) fn report_pods(draft: &mut Draft<'_>, report: &ReportPods) -> Result<Done, Rejection> {
    let node = Key::new(Kind::Node, "", &report.node);
    if !draft.state.is_live(&report.node) {
        return Err(outcome::conflict(&node, "it has no live lease; its agent must say hello before it reports pods"));
    }
    let host_ip =
        draft.state.get(&node).and_then(|object| object.as_node()).and_then(internal_address).unwrap_or_default();
    let mut changed = false;
    for reported in &report.pods {
        let key = Key::new(Kind::Pod, &reported.namespace, &reported.name);
        let current = draft.state.get(&key).cloned();
        let pod = current.as_ref().and_then(|object| object.as_pod());
        let Some(pod) = pod.filter(|pod| is_ours(pod, report, reported)) else {
            continue;
        };
        changed |= report_pod(draft, pod, (reported, &host_ip));
    }
    Ok(Done::configured(changed))
}

fn is_ours(pod: &Pod, report: &ReportPods, reported: &ReportedPod) -> bool {
    derive::node_of(pod) == Some(&report.node)
        && pod.metadata.as_ref().is_some_and(|metadata| metadata.uid == reported.uid)
}

fn report_pod(draft: &mut Draft<'_>, pod: &Pod, (reported, host_ip): (&ReportedPod, &str)) -> bool {
    let mut pod = pod.clone();
    let now = draft.now();
    if reported.terminated && pod.metadata.as_ref().is_some_and(|metadata| !metadata.deletion_timestamp.is_empty()) {
        return terminated(draft, pod, &now);
    }
    if derive::is_finished(&pod) {
        return false;
    }
    let status = pod.status.get_or_insert_default();
    status.phase = "Running".to_owned();
    host_ip.clone_into(&mut status.host_ip);
    if status.start_time.is_empty() {
        status.start_time.clone_from(&now);
    }
    if reported.pod_ip.parse::<IpAddr>().is_ok() && status.pod_ip != reported.pod_ip {
        status.pod_ip.clone_from(&reported.pod_ip);
        status.pod_ips = vec![PodIp { ip: reported.pod_ip.clone() }];
    }
    let ready = if reported.ready && !reported.terminated { "True" } else { "False" };
    let message = shortened(&reported.message);
    for name in ["ContainersReady", "Ready"] {
        set_condition(&mut status.conditions, condition((name, ready, &reported.reason, message), &now));
    }
    draft.write(pod.into()).is_some()
}

/// The agent stopped a pod that was marked for deletion: it goes, or waits for finalizers alone.
fn terminated(draft: &mut Draft<'_>, mut pod: Pod, now: &str) -> bool {
    if let Some(metadata) = &mut pod.metadata {
        metadata.deletion_grace_period_seconds = Some(0);
    }
    let status = pod.status.get_or_insert_default();
    set_condition(&mut status.conditions, condition(("Ready", "False", "PodTerminated", ""), now));
    let object = pod.into();
    if removable(draft.state, &object) == Removable::Now {
        draft.remove(&object.key()).is_some()
    } else {
        draft.write(object).is_some()
    }
}

fn check(up: &NodeUp) -> Result<(), Rejection> {
    let mut problems = Vec::new();
    if up.node.is_empty() {
        problems.push(Invalid::required("node", ""));
    }
    for (index, address) in up.addresses.iter().enumerate().filter(|(_, address)| address.parse::<IpAddr>().is_err()) {
        problems.push(Invalid::invalid(format!("addresses[{index}]"), address, "must be a valid IP address"));
    }
    if !up.pod_cidr.is_empty() && up.pod_cidr.parse::<IpNet>().is_err() {
        problems.push(Invalid::invalid("pod_cidr", &up.pod_cidr, "must be a valid CIDR, like 10.244.1.0/24"));
    }
    if problems.is_empty() { Ok(()) } else { Err(outcome::invalid_command(&problems)) }
}

fn new_node(up: &NodeUp, now: &str) -> Node {
    let metadata = ObjectMeta {
        name: up.node.clone(),
        uid: up.uid.clone(),
        generation: 1,
        creation_timestamp: now.to_owned(),
        ..ObjectMeta::default()
    };
    Node { metadata: Some(metadata), ..Node::default() }
}

fn refresh(node: &mut Node, up: &NodeUp, now: &str) {
    let metadata = node.metadata.get_or_insert_default();
    metadata.labels.insert(HOSTNAME_LABEL.to_owned(), up.node.clone());
    metadata.labels.extend(up.labels.iter().map(|(label, value)| (label.clone(), value.clone())));
    if !up.pod_cidr.is_empty() {
        let spec = node.spec.get_or_insert_default();
        if spec.pod_cidr != up.pod_cidr {
            metadata.generation = metadata.generation.saturating_add(1);
            spec.pod_cidr.clone_from(&up.pod_cidr);
            spec.pod_cidrs = vec![up.pod_cidr.clone()];
        }
    }
    let status = node.status.get_or_insert_default();
    let address = |r#type: &str, address: &String| NodeAddress { r#type: r#type.to_owned(), address: address.clone() };
    let addresses = up.addresses.iter().map(|one| address("InternalIP", one));
    status.addresses = addresses.chain([address("Hostname", &up.node)]).collect();
    set_condition(
        &mut status.conditions,
        condition(("Ready", "True", "AgentReady", "the node's agent renews its lease"), now),
    );
}

/// True if the lease was opened or its terms changed. One that is open keeps its epoch.
fn open_lease(draft: &mut Draft<'_>, up: &NodeUp) -> bool {
    let grace_seconds = if up.grace_seconds == 0 { GRACE_SECONDS } else { up.grace_seconds };
    let old = draft.state.lease(&up.node).cloned();
    let epoch = old.as_ref().filter(|lease| !lease.expired).map_or(draft.state.applied_entries(), |lease| lease.epoch);
    let lease = LeaseEpoch { node: up.node.clone(), epoch, expired: false, grace_seconds };
    let changed = old.as_ref() != Some(&lease);
    if changed {
        draft.put_lease(lease);
    }
    changed
}

fn internal_address(node: &Node) -> Option<String> {
    let addresses = node.status.iter().flat_map(|status| &status.addresses);
    addresses.into_iter().find(|one| one.r#type == "InternalIP").map(|one| one.address.clone())
}

fn condition((name, status, reason, message): (&str, &str, &str, &str), now: &str) -> Condition {
    Condition {
        r#type: name.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now.to_owned(),
        ..Condition::default()
    }
}

fn shortened(message: &str) -> &str {
    let end = (0..=MESSAGE_BYTES.min(message.len())).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    &message[..end]
}
