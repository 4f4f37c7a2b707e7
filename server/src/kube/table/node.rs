//! Rows of nodes, namespaces and leases.

use crate::kube::table::{NONE, condition, created, list, name, text, text_or};
use serde_json::Value;
use std::collections::BTreeSet;

/// Before the role in a label's key.
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
/// A label whose value is the role.
const ROLE: &str = "kubernetes.io/role";
const UNKNOWN: &str = "<unknown>";

pub(super) fn namespace(object: &Value, now: i64) -> Vec<Value> {
    vec![name(object), text(object, &["status", "phase"]).into(), created(object, now)]
}

pub(super) fn lease(object: &Value, now: i64) -> Vec<Value> {
    vec![name(object), text(object, &["spec", "holderIdentity"]).into(), created(object, now)]
}

pub(super) fn node(object: &Value, now: i64) -> Vec<Value> {
    let about = |field: &str, other| text_or(object, &["status", "nodeInfo", field], other).into();
    vec![
        name(object),
        status(object).into(),
        roles(object).into(),
        created(object, now),
        about("kubeletVersion", ""),
        address(object, "InternalIP").into(),
        address(object, "ExternalIP").into(),
        about("osImage", UNKNOWN),
        about("kernelVersion", UNKNOWN),
        about("containerRuntimeVersion", UNKNOWN),
    ]
}

fn status(object: &Value) -> String {
    let ready = match condition(object, "Ready") {
        "" => "Unknown",
        "True" => "Ready",
        // A node that isn't heard from any more, too: its condition is "Unknown".
        _ => "NotReady",
    };
    let closed = object.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true);
    if closed { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn roles(object: &Value) -> String {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let role = |(key, value): (&'_ String, &'_ Value)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) => Some(role.to_owned()),
        None if key == ROLE => value.as_str().map(str::to_owned),
        None => None,
    };
    let roles: BTreeSet<String> =
        labels.into_iter().flatten().filter_map(role).filter(|role| !role.is_empty()).collect();
    if roles.is_empty() { NONE.to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn address<'a>(object: &'a Value, of: &str) -> &'a str {
    let found = list(object, &["status", "addresses"]).iter().find(|address| text(address, &["type"]) == of);
    found.map_or(NONE, |address| text(address, &["address"]))
}
