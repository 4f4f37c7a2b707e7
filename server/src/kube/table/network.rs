//! Rows of services, their endpoints and their addresses.

use crate::kube::table::{NONE, at, created, list, name, number, text, texts};
use serde_json::Value;
use std::collections::BTreeSet;

/// How many endpoints and ports are named; of the rest, the number is.
const SHOWN: usize = 3;

pub(super) fn service(object: &Value, now: i64) -> Vec<Value> {
    let addresses = texts(object, &["spec", "clusterIPs"]);
    vec![
        name(object),
        text(object, &["spec", "type"]).into(),
        addresses.first().copied().unwrap_or(NONE).into(),
        external(object).into(),
        ports(object).into(),
        created(object, now),
        selector(object).into(),
    ]
}

/// Where a service is reached from outside; it goes by the type.
fn external(object: &Value) -> String {
    let own = || texts(object, &["spec", "externalIPs"]).into_iter();
    let (addresses, none): (Vec<&str>, _) = match text(object, &["spec", "type"]) {
        "ClusterIP" | "NodePort" => (own().collect(), NONE),
        "LoadBalancer" => (balancer(object).into_iter().chain(own()).collect(), "<pending>"),
        "ExternalName" => return text(object, &["spec", "externalName"]).to_owned(),
        _ => return "<unknown>".to_owned(),
    };
    if addresses.is_empty() { none.to_owned() } else { addresses.join(",") }
}

/// Addresses that a load balancer gave, or else host names; sorted, each once.
fn balancer(object: &Value) -> BTreeSet<&str> {
    let ingress = list(object, &["status", "loadBalancer", "ingress"]).iter();
    let named = |one| [text(one, &["ip"]), text(one, &["hostname"])].into_iter().find(|name| !name.is_empty());
    ingress.filter_map(named).collect()
}

fn ports(object: &Value) -> String {
    let ports = list(object, &["spec", "ports"]).iter().map(|port| {
        let (own, node) = (number(port, &["port"]), number(port, &["nodePort"]));
        let protocol = text(port, &["protocol"]);
        if node > 0 { format!("{own}:{node}/{protocol}") } else { format!("{own}/{protocol}") }
    });
    let ports = ports.collect::<Vec<_>>().join(",");
    if ports.is_empty() { NONE.to_owned() } else { ports }
}

fn selector(object: &Value) -> String {
    let labels = at(object, &["spec", "selector"]).as_object().into_iter().flatten();
    let mut pairs: Vec<_> = labels.map(|(key, value)| (key, value.as_str().unwrap_or_default())).collect();
    pairs.sort_unstable();
    let pairs = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    if pairs.is_empty() { NONE.to_owned() } else { pairs }
}

pub(super) fn endpoints(object: &Value, now: i64) -> Vec<Value> {
    vec![name(object), ready(object).into(), created(object, now)]
}

/// Addresses that are ready, each with each port of its subset; of a subset without ports, as headless services may have, alone.
fn ready(object: &Value) -> String {
    let subsets = list(object, &["subsets"]);
    if subsets.is_empty() {
        return NONE.to_owned();
    }
    let mut some = Few::default();
    for subset in subsets {
        let addresses = list(subset, &["addresses"]);
        let ports = list(subset, &["ports"]);
        if ports.is_empty() {
            some.add(addresses, |address| text(address, &["ip"]).to_owned());
        }
        for port in ports {
            let port = number(port, &["port"]);
            some.add(addresses, |address| match text(address, &["ip"]) {
                ip if ip.contains(':') => format!("[{ip}]:{port}"),
                ip => format!("{ip}:{port}"),
            });
        }
    }
    some.text()
}

pub(super) fn endpoint_slice(object: &Value, now: i64) -> Vec<Value> {
    let mut ports = Few::default();
    ports.add(list(object, &["ports"]), |port| match at(port, &["port"]).as_i64() {
        Some(port) => port.to_string(),
        None => at(port, &["name"]).as_str().unwrap_or("*").to_owned(),
    });
    let mut endpoints = Few::default();
    for endpoint in list(object, &["endpoints"]) {
        endpoints.add(list(endpoint, &["addresses"]), |address| address.as_str().unwrap_or_default().to_owned());
    }
    let or_unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
    vec![
        name(object),
        text(object, &["addressType"]).into(),
        or_unset(ports.text()).into(),
        or_unset(endpoints.text()).into(),
        created(object, now),
    ]
}

/// The first few of many.
#[derive(Default)]
struct Few {
    shown: Vec<String>,
    all: usize,
}

impl Few {
    fn add(&mut self, items: &[Value], shown: impl Fn(&Value) -> String) {
        let room = SHOWN.saturating_sub(self.shown.len());
        self.shown.extend(items.iter().take(room).map(shown));
        self.all += items.len();
    }

    fn text(&self) -> String {
        let shown = self.shown.join(",");
        match self.all.saturating_sub(SHOWN) {
            0 => shown,
            more => format!("{shown} + {more} more..."),
        }
    }
}

pub(super) fn service_cidr(object: &Value, now: i64) -> Vec<Value> {
    vec![name(object), texts(object, &["spec", "cidrs"]).join(",").into(), created(object, now)]
}

pub(super) fn ip_address(object: &Value, now: i64) -> Vec<Value> {
    let parent = at(object, &["spec", "parentRef"]);
    let reference = if parent.is_null() {
        NONE.to_owned()
    } else {
        let part = |field: &str, before: &str| match text(parent, &[field]) {
            "" => String::new(),
            part => format!("{before}{part}"),
        };
        let resource = format!("{}{}", part("resource", ""), part("group", ".")).to_lowercase();
        format!("{resource}{}/{}", part("namespace", "/"), text(parent, &["name"]))
    };
    vec![name(object), reference.into(), created(object, now)]
}
