//! Kubernetes' two forms of one record: v1 Endpoints (subsets) and discovery.k8s.io/v1 EndpointSlices.

use crate::manifest::render::json;
use crate::model::Invalid;
use crate::v1::{Endpoint, EndpointPort, Endpoints, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Endpoints in one slice (Kubernetes' default).
const SLICE: usize = 100;

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_ready_addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
}

impl Subset {
    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.not_ready_addresses.is_empty()
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Address {
    ip: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    node_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_ref: Option<Target>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Target {
    kind: String,
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    port: i32,
    #[serde(skip_serializing_if = "String::is_empty")]
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Manifest {
    metadata: ObjectMeta,
    subsets: Vec<Subset>,
}

/// A hand-written record from a v1 Endpoints manifest.
pub fn from_json(value: &Value) -> Result<Endpoints, Vec<Invalid>> {
    let manifest: Manifest = serde_json::from_value(value.clone()).map_err(|error| {
        vec![Invalid {
            field: "subsets".into(),
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {error}"),
        }]
    })?;
    let empty = manifest.subsets.iter().enumerate().filter(|(_, subset)| subset.is_empty());
    let problems: Vec<Invalid> = empty
        .map(|(index, _)| {
            Invalid::required(format!("subsets[{index}]"), "must specify `addresses` or `notReadyAddresses`")
        })
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut endpoints = Vec::new();
    for subset in manifest.subsets {
        let ports: Vec<EndpointPort> = subset.ports.iter().map(from_port).collect();
        for (ready, addresses) in [(true, subset.addresses), (false, subset.not_ready_addresses)] {
            endpoints.extend(addresses.into_iter().map(|address| from_address(address, ready, &ports)));
        }
    }
    // One address in two subsets is one endpoint with the ports of both, if it is as ready in both.
    let mut merged: BTreeMap<(String, String, bool), Endpoint> = BTreeMap::new();
    for endpoint in endpoints {
        let key = (endpoint.address.clone(), endpoint.pod_name.clone(), endpoint.ready);
        match merged.get_mut(&key) {
            Some(old) => {
                let new = endpoint.ports.into_iter().filter(|port| !old.ports.contains(port));
                old.ports.extend(new.collect::<Vec<_>>());
            }
            None => {
                merged.insert(key, endpoint);
            }
        }
    }
    let mut endpoints: Vec<Endpoint> = merged.into_values().collect();
    endpoints.sort_by(|a, b| (&a.address, &a.pod_name).cmp(&(&b.address, &b.pod_name)));
    Ok(Endpoints { metadata: Some(manifest.metadata), endpoints, derived: false, extra_json: String::new() })
}

fn from_port(port: &Port) -> EndpointPort {
    let protocol = if port.protocol.is_empty() { "TCP".to_owned() } else { port.protocol.clone() };
    EndpointPort { name: port.name.clone(), port: port.port, protocol, app_protocol: port.app_protocol.clone() }
}

fn from_address(address: Address, ready: bool, ports: &[EndpointPort]) -> Endpoint {
    let target = address.target_ref.filter(|target| target.kind == "Pod").unwrap_or_default();
    Endpoint {
        address: address.ip,
        node_name: address.node_name,
        hostname: address.hostname,
        pod_name: target.name,
        pod_uid: target.uid,
        ready,
        serving: ready,
        ports: ports.to_vec(),
        ..Endpoint::default()
    }
}

fn to_port(port: &EndpointPort) -> Port {
    Port {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol.clone(),
        app_protocol: port.app_protocol.clone(),
    }
}

/// The v1 form: subsets by port set, sorted, as Kubernetes' RepackSubsets makes them. What terminates and isn't wanted
/// all the same is left out.
pub fn to_json(record: &Endpoints) -> Value {
    let metadata = record.metadata.clone().unwrap_or_default();
    let mut subsets: BTreeMap<Vec<Port>, Subset> = BTreeMap::new();
    for endpoint in record.endpoints.iter().filter(|endpoint| endpoint.ready || !endpoint.terminating) {
        let mut ports: Vec<Port> = endpoint.ports.iter().map(to_port).collect();
        ports.sort();
        let subset = subsets.entry(ports.clone()).or_insert_with(|| Subset { ports, ..Subset::default() });
        let target = Target {
            kind: "Pod".into(),
            name: endpoint.pod_name.clone(),
            namespace: metadata.namespace.clone(),
            uid: endpoint.pod_uid.clone(),
        };
        let address = Address {
            ip: endpoint.address.clone(),
            hostname: endpoint.hostname.clone(),
            node_name: endpoint.node_name.clone(),
            target_ref: (!endpoint.pod_name.is_empty()).then_some(target),
        };
        if endpoint.ready { subset.addresses.push(address) } else { subset.not_ready_addresses.push(address) }
    }
    let subsets: Vec<Value> = subsets.values().map(json).collect();
    let mut value = json!({"metadata": json(&metadata)});
    if !subsets.is_empty() {
        value["subsets"] = Value::Array(subsets);
    }
    value
}

/// The record as EndpointSlices: one a port set and address family, at most 100 endpoints each, with stable names; an
/// empty record has one placeholder.
#[must_use]
pub fn render_slices(record: &Endpoints) -> Vec<Value> {
    let mut groups: BTreeMap<(&str, Vec<Port>), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in &record.endpoints {
        let family = if endpoint.address.contains(':') { "IPv6" } else { "IPv4" };
        let ports = endpoint.ports.iter().map(to_port).collect();
        groups.entry((family, ports)).or_default().push(endpoint);
    }
    if groups.is_empty() {
        groups.insert(("IPv4", Vec::new()), Vec::new());
    }
    let mut slices = Vec::new();
    for ((family, ports), endpoints) in &groups {
        let chunks: Vec<&[&Endpoint]> =
            if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(SLICE).collect() };
        for (number, chunk) in chunks.into_iter().enumerate() {
            slices.push(slice(record, (family, ports), (number, chunk)));
        }
    }
    slices
}

fn slice(record: &Endpoints, group: (&str, &[Port]), part: (usize, &[&Endpoint])) -> Value {
    let ((family, ports), (number, endpoints)) = (group, part);
    let metadata = record.metadata.clone().unwrap_or_default();
    let seed = format!("{}/{}/{family}/{ports:?}/{number}", metadata.namespace, metadata.name);
    let mut labels = metadata.labels.clone();
    labels.insert("kubernetes.io/service-name".into(), metadata.name.clone());
    let manager =
        if record.derived { "endpointslice-controller.k8s.io" } else { "endpointslicemirroring-controller.k8s.io" };
    labels.insert("endpointslice.kubernetes.io/managed-by".into(), manager.into());
    let rendered: Vec<Value> = endpoints.iter().map(|endpoint| slice_endpoint(endpoint, &metadata.namespace)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-{}", metadata.name, suffix(&seed)),
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.revision.to_string(),
            "creationTimestamp": metadata.creation_timestamp,
            "labels": labels,
        },
        "addressType": family,
        "endpoints": rendered,
        "ports": ports.iter().map(slice_port).collect::<Vec<_>>(),
    })
}

/// A slice's port says its name even if that is empty.
fn slice_port(port: &Port) -> Value {
    let mut value = json!({"name": port.name, "port": port.port, "protocol": port.protocol});
    if let Some(protocol) = &port.app_protocol {
        value["appProtocol"] = protocol.clone().into();
    }
    value
}

fn slice_endpoint(endpoint: &Endpoint, namespace: &str) -> Value {
    let mut value = json!({
        "addresses": [endpoint.address],
        "conditions": {"ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating},
    });
    for (field, text) in [("nodeName", &endpoint.node_name), ("zone", &endpoint.zone), ("hostname", &endpoint.hostname)]
    {
        if !text.is_empty() {
            value[field] = text.clone().into();
        }
    }
    if !endpoint.pod_name.is_empty() {
        value["targetRef"] =
            json!({"kind": "Pod", "namespace": namespace, "name": endpoint.pod_name, "uid": endpoint.pod_uid});
    }
    value
}

/// Five characters of Kubernetes' generated-name alphabet, from a hash.
fn suffix(seed: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    Sha256::digest(seed.as_bytes())
        .iter()
        .take(5)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}
