//! Overlapping networks: two nodes' pod networks that share addresses, or one address that pods of two nodes have
//! (every podman or docker host has its own 10.88.0.2). Found in the entry that makes them, before an endpoint uses
//! them, and reported as a condition on the object that came later; who was there first keeps serving.
//!
//! INVARIANT: of the pods that claim an address, those of exactly one existing node are without [`ADDRESS_CONFLICT`];
//! no two nodes without [`CIDR_CONFLICT`] overlap. Conditions are memory: they say who was first.

use crate::machine::State;
use crate::machine::derive::{self, claimed_address, has_condition, node_of};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{Condition, Kind, Node, Pod};
use ipnet::IpNet;
use std::net::IpAddr;

/// Node condition, True: the node's pod network overlaps another's; its pods are no endpoints (at addresses of the
/// node itself they are).
pub const CIDR_CONFLICT: &str = "PodCIDRConflict";
/// Pod condition, True: a pod of another node has the address already; this one is no endpoint.
pub const ADDRESS_CONFLICT: &str = "PodIPConflict";

/// Sets or removes a pod's conflict condition, as it would be if the pod were written now.
pub(super) fn mark_pod(state: &State, pod: &mut Pod, now: &str) {
    let rival = claimed_address(pod).and_then(|address| rival(state, pod, address));
    set_pod(pod, rival, now);
}

/// Sets or removes a node's conflict condition. One that stands is kept while the networks stay the same.
pub(super) fn mark_node(state: &State, node: &mut Node, now: &str) {
    let name = node_name(node).to_owned();
    let old = state.get(&Key::new(Kind::Node, "", &name)).and_then(|object| object.as_node());
    let was = old.and_then(|old| old.status.as_ref()).map(|status| status.conditions.as_slice()).unwrap_or_default();
    let message = if old.is_some_and(|old| networks(old) == networks(node)) {
        was.iter().find(|one| one.r#type == CIDR_CONFLICT && one.status == "True").map(|one| one.message.clone())
    } else {
        overlap(state, node)
    };
    set_node(node, message, now);
}

/// A node whose conflict condition no longer holds, with it removed or naming another; `None` if all hold.
pub(super) fn solved_node(state: &State, now: &str) -> Option<Node> {
    let conflicted =
        state.list(Kind::Node, "").filter_map(|object| object.as_node()).filter(|node| derive::is_conflicted(node));
    for node in conflicted {
        let mut solved = node.clone();
        set_node(&mut solved, overlap(state, node), now);
        if solved != *node {
            return Some(solved);
        }
    }
    None
}

/// The pods at an address whose condition must change, changed.
pub(super) fn solved_pods(state: &State, address: IpAddr, now: &str) -> Vec<Pod> {
    let pods: Vec<&Pod> = state.pods_with_address(address).filter_map(|object| object.as_pod()).collect();
    let claims = || pods.iter().copied().filter(|pod| exists(state, pod));
    let oldest = claims()
        .filter(|pod| !is_blocked(pod))
        .min_by_key(|pod| age(pod))
        .or_else(|| claims().min_by_key(|pod| age(pod)));
    let holder = oldest.and_then(node_of);
    let first = claims().find(|pod| node_of(pod) == holder);
    let mut changed = Vec::new();
    for pod in &pods {
        let blocked = exists(state, pod) && node_of(pod) != holder;
        let mut solved = (*pod).clone();
        set_pod(&mut solved, first.filter(|_| blocked).map(|first| conflict_message(pod, first, address)), now);
        if solved != **pod {
            changed.push(solved);
        }
    }
    changed
}

/// Puts a condition in place of the one of its type, keeping the time of the last transition if the status is the same.
pub(super) fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|one| one.r#type == new.r#type) {
        Some(old) => {
            if old.status == new.status && !old.last_transition_time.is_empty() {
                new.last_transition_time.clone_from(&old.last_transition_time);
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

fn set_pod(pod: &mut Pod, message: Option<String>, now: &str) {
    let holds =
        pod.status.as_ref().is_some_and(|status| status.conditions.iter().any(|one| one.r#type == ADDRESS_CONFLICT));
    if message.is_none() && !holds {
        return;
    }
    let status = pod.status.get_or_insert_default();
    set_or_remove(&mut status.conditions, (ADDRESS_CONFLICT, "AddressInUse"), (message, now));
}

fn set_node(node: &mut Node, message: Option<String>, now: &str) {
    let holds =
        node.status.as_ref().is_some_and(|status| status.conditions.iter().any(|one| one.r#type == CIDR_CONFLICT));
    if message.is_none() && !holds {
        return;
    }
    let status = node.status.get_or_insert_default();
    set_or_remove(&mut status.conditions, (CIDR_CONFLICT, "OverlappingPodCIDR"), (message, now));
}

fn set_or_remove(conditions: &mut Vec<Condition>, what: (&str, &str), how: (Option<String>, &str)) {
    let ((name, reason), (message, now)) = (what, how);
    let Some(message) = message else {
        conditions.retain(|one| one.r#type != name);
        return;
    };
    set_condition(
        conditions,
        Condition {
            r#type: name.to_owned(),
            status: "True".to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: now.to_owned(),
            ..Condition::default()
        },
    );
}

/// What to say if a pod of another node holds the address already.
fn rival(state: &State, pod: &Pod, address: IpAddr) -> Option<String> {
    if !exists(state, pod) {
        return None;
    }
    let others = state.pods_with_address(address).filter_map(|object: &ObjectRef| object.as_pod());
    let mut rivals =
        others.filter(|other| node_of(other) != node_of(pod) && !is_blocked(other) && exists(state, other));
    rivals.next().map(|other| conflict_message(pod, other, address))
}

fn conflict_message(pod: &Pod, first: &Pod, address: IpAddr) -> String {
    format!(
        "address {address} on node {:?} is also that of pod \"{}\" on node {:?}: give the nodes pod networks that don't overlap, or publish a hostPort",
        node_of(pod).unwrap_or_default(),
        path(first),
        node_of(first).unwrap_or_default(),
    )
}

/// What to say if a node's pod network overlaps that of one without a conflict.
fn overlap(state: &State, node: &Node) -> Option<String> {
    let own = networks(node);
    let name = node_name(node);
    let others = state.list(Kind::Node, "").filter_map(|object| object.as_node());
    let rivals = others.filter(|other| node_name(other) != name && !derive::is_conflicted(other));
    for other in rivals {
        for (one, two) in own.iter().flat_map(|one| networks(other).into_iter().map(move |two| (one, two))) {
            if one.contains(&two) || two.contains(one) {
                let who = node_name(other);
                return Some(format!(
                    "pod CIDR {one} of node {name:?} overlaps {two} of node {who:?}: pods of {name:?} are not served until one of them changes"
                ));
            }
        }
    }
    None
}

fn networks(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let mut networks: Vec<IpNet> = std::iter::once(&spec.pod_cidr)
        .chain(&spec.pod_cidrs)
        .filter_map(|text| text.parse::<IpNet>().ok())
        .map(|net| net.trunc())
        .collect();
    networks.sort();
    networks.dedup();
    networks
}

/// True if nodes' networks differ, so that a conflict may have been solved.
pub(super) fn networks_differ(old: Option<&Node>, new: Option<&Node>) -> bool {
    old.map(networks).unwrap_or_default() != new.map(networks).unwrap_or_default()
}

fn is_blocked(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| has_condition(&status.conditions, ADDRESS_CONFLICT))
}

fn exists(state: &State, pod: &Pod) -> bool {
    node_of(pod).is_some_and(|node| state.get(&Key::new(Kind::Node, "", node)).is_some())
}

fn age(pod: &Pod) -> (String, String) {
    (pod.metadata.as_ref().map(|metadata| metadata.creation_timestamp.clone()).unwrap_or_default(), path(pod))
}

fn path(pod: &Pod) -> String {
    pod.metadata.as_ref().map(|metadata| format!("{}/{}", metadata.namespace, metadata.name)).unwrap_or_default()
}

fn node_name(node: &Node) -> &str {
    node.metadata.as_ref().map_or("", |metadata| &metadata.name)
}
