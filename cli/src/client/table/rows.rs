//! The columns of each resource type and an object's cells: Kubernetes' own by default, ours only in `-o wide`.
//!
//! Pure: what a cell needs beside its object is in [`Beside`].

use crate::client::duration::age;
use crate::client::kinds::Resource;
use crate::client::output::{items, labels, number, pairs, text};
use fairlead_proto::v1::{Kind, NodeProgress};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Endpoints that a cell shows before "+ N more...".
const SHOWN: usize = 3;
/// A load balancer's addresses in a narrow table.
const NARROW: usize = 16;

/// What rows need beside the objects.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Endpoints by (namespace, service).
    pub endpoints: BTreeMap<(String, String), Count>,
    /// What nodes acknowledged; `None` = not known.
    pub nodes: Option<Vec<NodeProgress>>,
}

/// A service's endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Ready ones.
    pub ready: usize,
    /// All.
    pub total: usize,
    /// Revision of their last change.
    pub revision: u64,
}

/// Column titles and whether only `-o wide` shows them.
pub fn columns(resource: &Resource) -> &'static [(&'static str, bool)] {
    match (resource.kind, resource.is_stored()) {
        (Kind::Service, _) => &[
            ("NAME", false),
            ("TYPE", false),
            ("CLUSTER-IP", false),
            ("EXTERNAL-IP", false),
            ("PORT(S)", false),
            ("AGE", false),
            ("SELECTOR", true),
            ("ENDPOINTS", true),
            ("PROGRAMMED", true),
        ],
        (Kind::Pod, _) => &[
            ("NAME", false),
            ("READY", false),
            ("STATUS", false),
            ("RESTARTS", false),
            ("AGE", false),
            ("IP", true),
            ("NODE", true),
            ("NOMINATED NODE", true),
            ("READINESS GATES", true),
        ],
        (Kind::Node, _) => &[
            ("NAME", false),
            ("STATUS", false),
            ("ROLES", false),
            ("AGE", false),
            ("VERSION", false),
            ("INTERNAL-IP", true),
            ("EXTERNAL-IP", true),
            ("OS-IMAGE", true),
            ("KERNEL-VERSION", true),
            ("CONTAINER-RUNTIME", true),
            ("REVISION", true),
            ("LAG", true),
            ("MODE", true),
        ],
        (Kind::Namespace, _) => &[("NAME", false), ("STATUS", false), ("AGE", false)],
        (Kind::Endpoints, true) => &[("NAME", false), ("ENDPOINTS", false), ("AGE", false)],
        (Kind::Endpoints, false) => {
            &[("NAME", false), ("ADDRESSTYPE", false), ("PORTS", false), ("ENDPOINTS", false), ("AGE", false)]
        }
        (Kind::Event | Kind::Unspecified, _) => {
            &[("LAST SEEN", false), ("TYPE", false), ("REASON", false), ("OBJECT", false), ("MESSAGE", false)]
        }
    }
}

/// The cells of an object, the wide ones included.
pub fn cells(resource: &Resource, value: &Value, beside: &Beside, now: Timestamp) -> Vec<String> {
    let name = text(value, "/metadata/name").to_owned();
    let age = age(text(value, "/metadata/creationTimestamp"), now);
    match (resource.kind, resource.is_stored()) {
        (Kind::Service, _) => service(value, beside, age),
        (Kind::Pod, _) => pod(value, age),
        (Kind::Node, _) => node(value, beside, age),
        (Kind::Namespace, _) => vec![name, text(value, "/status/phase").to_owned(), age],
        (Kind::Endpoints, true) => vec![name, endpoints(value), age],
        (Kind::Endpoints, false) => slice(value, age),
        (Kind::Event | Kind::Unspecified, _) => event(value, now),
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
}

fn service(value: &Value, beside: &Beside, age: String) -> Vec<String> {
    let spec = &value["spec"];
    let address =
        items(spec, "/clusterIPs").first().and_then(Value::as_str).unwrap_or_else(|| text(spec, "/clusterIP"));
    let ports: Vec<String> = items(spec, "/ports")
        .iter()
        .map(|port| match number(port, "/nodePort") {
            0 => format!("{}/{}", number(port, "/port"), text(port, "/protocol")),
            node_port => format!("{}:{node_port}/{}", number(port, "/port"), text(port, "/protocol")),
        })
        .collect();
    let key = (text(value, "/metadata/namespace").to_owned(), text(value, "/metadata/name").to_owned());
    let count = beside.endpoints.get(&key).copied().unwrap_or_default();
    let revision = text(value, "/metadata/resourceVersion").parse().unwrap_or(0).max(count.revision);
    vec![
        key.1,
        text(spec, "/type").to_owned(),
        or_none(address),
        external(value),
        or_none(&ports.join(",")),
        age,
        labels(spec.get("selector")),
        format!("{}/{}", count.ready, count.total),
        beside.nodes.as_deref().map_or_else(|| "<unknown>".to_owned(), |nodes| programmed(nodes, revision)),
    ]
}

/// Live nodes that serve a revision, of all live nodes.
pub fn programmed(nodes: &[NodeProgress], revision: u64) -> String {
    let live = nodes.iter().filter(|node| node.live);
    let (done, all) =
        live.fold((0, 0), |(done, all), node| (done + usize::from(node.acknowledged >= revision), all + 1));
    format!("{done}/{all}")
}

/// Kubernetes' EXTERNAL-IP cell.
fn external(value: &Value) -> String {
    let spec = &value["spec"];
    let given: Vec<&str> = items(spec, "/externalIPs").iter().filter_map(Value::as_str).collect();
    match text(spec, "/type") {
        "ClusterIP" | "NodePort" => or_none(&given.join(",")),
        "ExternalName" => text(spec, "/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress: BTreeSet<&str> = items(value, "/status/loadBalancer/ingress")
                .iter()
                .map(|one| if text(one, "/ip").is_empty() { text(one, "/hostname") } else { text(one, "/ip") })
                .collect();
            let mut list = ingress.into_iter().collect::<Vec<_>>().join(",");
            if list.chars().count() > NARROW && given.is_empty() {
                list = list.chars().take(NARROW - 3).collect::<String>() + "...";
            }
            let all: Vec<&str> = [list.as_str()].into_iter().filter(|list| !list.is_empty()).chain(given).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => "<unknown>".to_owned(),
    }
}

fn pod(value: &Value, age: String) -> Vec<String> {
    let (spec, status) = (&value["spec"], &value["status"]);
    let containers = items(spec, "/containers").len();
    let reported = items(status, "/containerStatuses");
    let ready = condition(value, "Ready").is_some_and(|condition| text(condition, "/status") == "True");
    // No agent of ours reports containers one by one: the pod's condition speaks for all.
    let ready_containers = match reported {
        [] if ready => containers,
        [] => 0,
        all => all.iter().filter(|one| one.pointer("/ready") == Some(&Value::Bool(true))).count(),
    };
    let restarts: i64 = reported.iter().map(|one| number(one, "/restartCount")).sum();
    let (phase, reason) = (text(status, "/phase"), text(status, "/reason"));
    let terminal = matches!(phase, "Succeeded" | "Failed");
    let shown = if value.pointer("/metadata/deletionTimestamp").is_some() && !terminal {
        if reason == "NodeLost" { "Unknown" } else { "Terminating" }
    } else if !reason.is_empty() {
        reason
    } else {
        phase
    };
    let gates = items(spec, "/readinessGates");
    let passed = gates.iter().filter(|gate| {
        condition(value, text(gate, "/conditionType")).is_some_and(|condition| text(condition, "/status") == "True")
    });
    let address = items(status, "/podIPs").first().map_or_else(|| text(status, "/podIP"), |one| text(one, "/ip"));
    vec![
        text(value, "/metadata/name").to_owned(),
        format!("{ready_containers}/{containers}"),
        shown.to_owned(),
        restarts.to_string(),
        age,
        or_none(address),
        or_none(text(spec, "/nodeName")),
        or_none(text(status, "/nominatedNodeName")),
        if gates.is_empty() { "<none>".to_owned() } else { format!("{}/{}", passed.count(), gates.len()) },
    ]
}

/// A condition of an object, by type.
pub fn condition<'a>(value: &'a Value, kind: &str) -> Option<&'a Value> {
    items(value, "/status/conditions").iter().find(|condition| text(condition, "/type") == kind)
}

/// The roles that a node's labels say, sorted.
pub fn roles(value: &Value) -> String {
    let labels = pairs(value.pointer("/metadata/labels"));
    let roles: BTreeSet<&str> = labels
        .iter()
        .filter_map(|(key, role)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ => (*key == "kubernetes.io/role" && !role.is_empty()).then_some(*role),
        })
        .collect();
    or_none(&roles.into_iter().collect::<Vec<_>>().join(","))
}

fn node(value: &Value, beside: &Beside, age: String) -> Vec<String> {
    let name = text(value, "/metadata/name");
    let mut status = match condition(value, "Ready").map(|condition| text(condition, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if value.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = items(value, "/status/addresses").iter().find(|address| text(address, "/type") == kind);
        or_none(found.map_or("", |address| text(address, "/address")))
    };
    let fact = |field: &str| match text(value, &format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".to_owned(),
        known => known.to_owned(),
    };
    let progress = beside.nodes.iter().flatten().find(|node| node.name == name);
    let version = match (text(value, "/status/nodeInfo/kubeletVersion"), progress) {
        ("", Some(node)) if !node.version.is_empty() => format!("v{}", node.version.trim_start_matches('v')),
        (known, _) => known.to_owned(),
    };
    let of = |show: fn(&NodeProgress) -> String| progress.map_or_else(|| "<unknown>".to_owned(), show);
    vec![
        name.to_owned(),
        status,
        roles(value),
        age,
        version,
        address("InternalIP"),
        address("ExternalIP"),
        fact("osImage"),
        fact("kernelVersion"),
        fact("containerRuntimeVersion"),
        of(|node| node.acknowledged.to_string()),
        of(|node| node.lag.to_string()),
        of(|node| or_none(&node.mode)),
    ]
}

/// host:port, with brackets around IPv6.
fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn endpoints(value: &Value) -> String {
    let subsets = items(value, "/subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut list = Vec::new();
    for subset in subsets {
        let addresses = items(subset, "/addresses").iter().map(|address| text(address, "/ip"));
        match items(subset, "/ports") {
            [] => list.extend(addresses.map(str::to_owned)),
            ports => {
                for port in ports {
                    list.extend(addresses.clone().map(|address| host_port(address, number(port, "/port"))));
                }
            }
        }
    }
    shortened(&list)
}

/// The first three, and how many more.
fn shortened(list: &[String]) -> String {
    let shown = list[..list.len().min(SHOWN)].join(",");
    if list.len() > SHOWN { format!("{shown} + {} more...", list.len() - SHOWN) } else { shown }
}

fn slice(value: &Value, age: String) -> Vec<String> {
    let unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
    let ports: Vec<String> = items(value, "/ports")
        .iter()
        .map(|port| match port.pointer("/port").and_then(Value::as_i64) {
            Some(number) => number.to_string(),
            None if !text(port, "/name").is_empty() => text(port, "/name").to_owned(),
            None => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = items(value, "/endpoints")
        .iter()
        .flat_map(|one| items(one, "/addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    vec![
        text(value, "/metadata/name").to_owned(),
        text(value, "/addressType").to_owned(),
        unset(shortened(&ports)),
        unset(shortened(&addresses)),
        age,
    ]
}

/// The endpoints of a service's port, from its slices, as `describe service` shows them: ready ones only.
pub fn service_endpoints(slices: &[Value], port_name: &str) -> String {
    let mut list = Vec::new();
    for slice in slices {
        for port in items(slice, "/ports").iter().filter(|port| text(port, "/name") == port_name) {
            for endpoint in items(slice, "/endpoints")
                .iter()
                .filter(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)))
            {
                let address = items(endpoint, "/addresses").first().and_then(Value::as_str).unwrap_or_default();
                list.push(host_port(address, number(port, "/port")));
            }
        }
    }
    shortened(&list)
}

fn event(value: &Value, now: Timestamp) -> Vec<String> {
    let object =
        format!("{}/{}", text(value, "/involvedObject/kind").to_lowercase(), text(value, "/involvedObject/name"));
    vec![
        age(text(value, "/lastTimestamp"), now),
        text(value, "/type").to_owned(),
        text(value, "/reason").to_owned(),
        object,
        text(value, "/message").to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::{ENDPOINTS, EVENTS, NAMESPACES, NODES, PODS, SERVICES, SLICES};
    use serde_json::json;

    fn row(resource: &Resource, value: &Value, beside: &Beside) -> Vec<String> {
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let cells = cells(resource, value, beside, now);
        assert_eq!(cells.len(), columns(resource).len());
        cells
    }

    fn meta(name: &str) -> Value {
        json!({"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "7"})
    }

    fn node_progress(name: &str, live: bool, acknowledged: u64) -> NodeProgress {
        NodeProgress {
            name: name.into(),
            live,
            acknowledged,
            lag: 3,
            mode: "iptables".into(),
            version: "0.1.0".into(),
            ..NodeProgress::default()
        }
    }

    #[test]
    fn a_service() {
        let value = json!({"metadata": meta("web"), "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "selector": {"tier": "x", "app": "web"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        let count = Count { ready: 1, total: 2, revision: 9 };
        let beside = Beside {
            endpoints: [(("default".to_owned(), "web".to_owned()), count)].into(),
            nodes: Some(vec![node_progress("a", true, 9), node_progress("b", true, 8), node_progress("c", false, 9)]),
        };
        assert_eq!(
            row(&SERVICES, &value, &beside),
            ["web", "NodePort", "10.96.0.10", "<none>", "80:30080/TCP,53/UDP", "5m", "app=web,tier=x", "1/2", "1/2"]
        );
        let bare = json!({"metadata": meta("n"), "spec": {"type": "ExternalName", "externalName": "a.example"}});
        assert_eq!(
            row(&SERVICES, &bare, &Beside::default()),
            ["n", "ExternalName", "<none>", "a.example", "<none>", "5m", "<none>", "0/0", "<unknown>"]
        );
    }

    #[test]
    fn external_addresses_of_every_type() {
        let of = |spec: Value, ingress: Value| {
            external(&json!({"spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}))
        };
        assert_eq!(
            of(json!({"type": "ClusterIP", "externalIPs": ["1.2.3.4", "5.6.7.8"]}), json!([])),
            "1.2.3.4,5.6.7.8"
        );
        assert_eq!(of(json!({"type": "LoadBalancer"}), json!([])), "<pending>");
        assert_eq!(
            of(json!({"type": "LoadBalancer"}), json!([{"ip": "192.0.2.2"}, {"hostname": "b.example.net"}])),
            "192.0.2.2,b.e..."
        );
        assert_eq!(
            of(json!({"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]}), json!([{"ip": "192.0.2.2"}])),
            "192.0.2.2,9.9.9.9"
        );
        assert_eq!(of(json!({"type": "Odd"}), json!([])), "<unknown>");
    }

    #[test]
    fn a_pod_in_every_state() {
        let mut value = json!({"metadata": meta("p"), "spec": {"nodeName": "n1", "containers": [{}, {}], "readinessGates": [{"conditionType": "x"}]},
            "status": {"phase": "Running", "podIP": "10.244.0.1", "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(
            row(&PODS, &value, &Beside::default()),
            ["p", "2/2", "Running", "0", "5m", "10.244.0.1", "n1", "<none>", "0/1"]
        );
        value["status"]["conditions"][0]["status"] = "False".into();
        assert_eq!(row(&PODS, &value, &Beside::default())[1], "0/2");
        value["status"]["containerStatuses"] =
            json!([{"ready": true, "restartCount": 2}, {"ready": false, "restartCount": 1}]);
        assert_eq!(row(&PODS, &value, &Beside::default())[1..4], ["1/2", "Running", "3"]);
        value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(row(&PODS, &value, &Beside::default())[2], "Terminating");
        value["status"]["phase"] = "Succeeded".into();
        assert_eq!(row(&PODS, &value, &Beside::default())[2], "Succeeded");
        let pending = json!({"metadata": {"name": "q"}, "status": {"phase": "Pending"}});
        assert_eq!(
            row(&PODS, &pending, &Beside::default()),
            ["q", "0/0", "Pending", "0", "<unknown>", "<none>", "<none>", "<none>", "<none>"]
        );
    }

    #[test]
    fn a_node_with_and_without_facts() {
        let value = json!({"metadata": {"name": "a", "labels": {"node-role.kubernetes.io/edge": "", "kubernetes.io/role": "db"}}, "spec": {"unschedulable": true},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]}});
        let beside = Beside { nodes: Some(vec![node_progress("a", true, 9)]), ..Beside::default() };
        assert_eq!(
            row(&NODES, &value, &beside),
            [
                "a",
                "Ready,SchedulingDisabled",
                "db,edge",
                "<unknown>",
                "v0.1.0",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>",
                "9",
                "3",
                "iptables"
            ]
        );
        let silent = json!({"metadata": {"name": "b"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "nodeInfo": {"kubeletVersion": "v1.37.0"}}});
        let cells = row(&NODES, &silent, &beside);
        assert_eq!((cells[1].as_str(), cells[4].as_str(), cells[10].as_str()), ("NotReady", "v1.37.0", "<unknown>"));
        assert_eq!(row(&NODES, &json!({"metadata": {"name": "c"}}), &beside)[1..3], ["Unknown", "<none>"]);
    }

    #[test]
    fn endpoints_show_three() {
        let of = |subsets: Value| {
            row(&ENDPOINTS, &json!({"metadata": meta("web"), "subsets": subsets}), &Beside::default())[1].clone()
        };
        assert_eq!(of(json!([])), "<none>");
        assert_eq!(of(json!([{"notReadyAddresses": [{"ip": "1.1.1.1"}], "ports": [{"port": 80}]}])), "");
        assert_eq!(of(json!([{"addresses": [{"ip": "1.1.1.1"}, {"ip": "::1"}]}])), "1.1.1.1,::1");
        let two_ports = json!([{"addresses": [{"ip": "1.1.1.1"}, {"ip": "::1"}], "ports": [{"port": 80}, {"port": 81}]}, {"addresses": [{"ip": "1.1.1.3"}], "ports": [{"port": 80}]}]);
        assert_eq!(of(two_ports), "1.1.1.1:80,[::1]:80,1.1.1.1:81 + 2 more...");
    }

    #[test]
    fn slices_namespaces_and_events() {
        let empty = json!({"metadata": meta("web-x"), "addressType": "IPv4", "endpoints": [], "ports": []});
        assert_eq!(row(&SLICES, &empty, &Beside::default()), ["web-x", "IPv4", "<unset>", "<unset>", "5m"]);
        let endpoint =
            |n: u8, ready: bool| json!({"addresses": [format!("1.1.1.{n}")], "conditions": {"ready": ready}});
        let full = json!({"metadata": meta("web-x"), "addressType": "IPv4", "ports": [{"name": "http", "port": 80}, {"name": "any"}, {}],
            "endpoints": [endpoint(1, true), endpoint(2, false), endpoint(3, true), endpoint(4, true), endpoint(5, true)]});
        assert_eq!(row(&SLICES, &full, &Beside::default())[2..4], ["80,any,*", "1.1.1.1,1.1.1.2,1.1.1.3 + 2 more..."]);
        assert_eq!(service_endpoints(&[full], "http"), "1.1.1.1:80,1.1.1.3:80,1.1.1.4:80 + 1 more...");
        assert_eq!(
            row(&NAMESPACES, &json!({"metadata": meta("x"), "status": {"phase": "Active"}}), &Beside::default()),
            ["x", "Active", "5m"]
        );
        let event = json!({"lastTimestamp": "2026-01-01T00:04:50Z", "type": "Normal", "reason": "Created", "message": "m", "involvedObject": {"kind": "Pod", "name": "p"}});
        assert_eq!(row(&EVENTS, &event, &Beside::default()), ["10s", "Normal", "Created", "pod/p", "m"]);
    }
}
