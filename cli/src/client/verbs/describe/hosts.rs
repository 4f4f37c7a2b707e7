//! Pods and nodes in detail.

use super::{joined, label_lines, optional, or_none};
use crate::client::Session;
use crate::client::duration::age;
use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter};
use crate::client::jsonpath::as_text;
use crate::client::kinds::PODS;
use crate::client::output::{Shown, items, number, text};
use crate::client::table::Description;
use crate::client::table::rows::roles;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

/// A time as kubectl describes it: RFC 1123 with a numeric zone, UTC.
fn described_time(rfc3339: &str) -> String {
    match rfc3339.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
        Err(_) => rfc3339.to_owned(),
    }
}

/// A pod.
pub fn pod(value: &Value, into: &mut Description) {
    let (spec, status) = (&value["spec"], &value["status"]);
    into.field("Name", text(value, "/metadata/name"));
    into.field("Namespace", text(value, "/metadata/namespace"));
    into.field(
        "Node",
        match (text(spec, "/nodeName"), text(status, "/hostIP")) {
            ("", _) => "<none>".to_owned(),
            (node, host) => format!("{node}/{host}"),
        },
    );
    if !text(status, "/startTime").is_empty() {
        into.field("Start Time", described_time(text(status, "/startTime")));
    }
    label_lines(value, into);
    match text(value, "/metadata/deletionTimestamp") {
        "" => into.field("Status", text(status, "/phase")),
        at => into.field("Status", format!("Terminating (since {})", described_time(at))),
    }
    optional(into, "Reason", text(status, "/reason"));
    optional(into, "Message", text(status, "/message"));
    into.field("IP", text(status, "/podIP"));
    if items(status, "/podIPs").is_empty() {
        into.field("IPs", "<none>");
    } else {
        into.line("IPs:");
        for address in items(status, "/podIPs") {
            into.line(format!("  IP:\t{}", text(address, "/ip")));
        }
    }
    into.line("Containers:");
    for container in items(spec, "/containers") {
        describe_container(container, into);
    }
    conditions(items(status, "/conditions"), into);
}

fn describe_container(container: &Value, into: &mut Description) {
    into.line(format!("  {}:", text(container, "/name")));
    into.line(format!("    Image:\t{}", text(container, "/image")));
    let ports = items(container, "/ports");
    let list = |field: &str| {
        let show = |port: &Value| {
            let name =
                if text(port, "/name").is_empty() { String::new() } else { format!(" ({})", text(port, "/name")) };
            let protocol = if text(port, "/protocol").is_empty() { "TCP" } else { text(port, "/protocol") };
            format!("{}/{protocol}{name}", number(port, field))
        };
        or_none(&ports.iter().map(show).collect::<Vec<_>>().join(", ")).to_owned()
    };
    let plural = if ports.len() > 1 { "s" } else { "" };
    into.line(format!("    Port{plural}:\t{}", list("/containerPort")));
    into.line(format!("    Host Port{plural}:\t{}", list("/hostPort")));
    if let Some(probe) = container.get("readinessProbe") {
        into.line(format!("    Readiness:\t{}", describe_probe(probe)));
    }
}

fn describe_probe(probe: &Value) -> String {
    let port = |pointer: &str| probe.pointer(pointer).map(as_text).unwrap_or_default();
    let what = if let Some(get) = probe.get("httpGet") {
        let scheme =
            if text(get, "/scheme").is_empty() { "http".to_owned() } else { text(get, "/scheme").to_lowercase() };
        let path = text(get, "/path");
        let slash = if path.starts_with('/') { "" } else { "/" };
        format!("http-get {scheme}://{}:{}{slash}{path}", text(get, "/host"), port("/httpGet/port"))
    } else if let Some(socket) = probe.get("tcpSocket") {
        format!("tcp-socket {}:{}", text(socket, "/host"), port("/tcpSocket/port"))
    } else if let Some(grpc) = probe.get("grpc") {
        format!("grpc <pod>:{} {}", port("/grpc/port"), text(grpc, "/service"))
    } else {
        "unknown".to_owned()
    };
    // What is absent is kubelet's default.
    let or = |pointer: &str, default: i64| if number(probe, pointer) == 0 { default } else { number(probe, pointer) };
    format!(
        "{what} delay={}s timeout={}s period={}s #success={} #failure={}",
        number(probe, "/initialDelaySeconds"),
        or("/timeoutSeconds", 1),
        or("/periodSeconds", 10),
        or("/successThreshold", 1),
        or("/failureThreshold", 3)
    )
}

/// Conditions; reason and message only where one has them, since a pod's hold its probe's last words.
fn conditions(conditions: &[Value], into: &mut Description) {
    if conditions.is_empty() {
        return;
    }
    into.line("Conditions:");
    let told = conditions.iter().any(|one| !text(one, "/reason").is_empty() || !text(one, "/message").is_empty());
    into.line(if told { "  Type\tStatus\tReason\tMessage" } else { "  Type\tStatus" });
    for one in conditions {
        let more = if told { format!("\t{}\t{}", text(one, "/reason"), text(one, "/message")) } else { String::new() };
        into.line(format!("  {} \t{} {more}", text(one, "/type"), text(one, "/status")));
    }
}

/// A node, with what its agent says and the pods bound to it.
///
/// # Errors
/// Its pods can't be listed.
pub async fn node(session: &Session, value: &Value, into: &mut Description) -> Result<(), Failure> {
    let name = text(value, "/metadata/name");
    let filter = Filter { fields: format!("spec.nodeName={name}"), chunk: CHUNK, ..Filter::default() };
    let pods = session.list(&PODS, &filter).await?;
    node_fields(value, into);
    let progress =
        session.servers.status().await.ok().and_then(|status| status.nodes.into_iter().find(|node| node.name == name));
    if let Some(node) = progress {
        into.line("Data Plane:");
        for (label, shown) in [
            ("Mode", node.mode.clone()),
            ("Revision", node.acknowledged.to_string()),
            ("Lag", node.lag.to_string()),
            ("Agent Version", node.version.clone()),
            ("Connected To", node.server.clone()),
            ("Error", node.error.clone()),
        ] {
            if !shown.is_empty() {
                into.line(format!("  {label}:\t{shown}"));
            }
        }
    }
    let running: Vec<&Shown> =
        pods.iter().filter(|pod| !matches!(text(&pod.value, "/status/phase"), "Succeeded" | "Failed")).collect();
    into.field("Non-terminated Pods", format!("({} in total)", running.len()));
    into.line("  Namespace\tName\tIP\tAge");
    into.line("  ---------\t----\t--\t---");
    for pod in running {
        let age = age(text(&pod.value, "/metadata/creationTimestamp"), Timestamp::now());
        let address = or_none(text(&pod.value, "/status/podIP"));
        into.line(format!(
            "  {}\t{}\t{address}\t{age}",
            text(&pod.value, "/metadata/namespace"),
            text(&pod.value, "/metadata/name")
        ));
    }
    Ok(())
}

fn node_fields(value: &Value, into: &mut Description) {
    into.field("Name", text(value, "/metadata/name"));
    into.field("Roles", roles(value));
    label_lines(value, into);
    into.field("CreationTimestamp", described_time(text(value, "/metadata/creationTimestamp")));
    into.field("Unschedulable", (value.pointer("/spec/unschedulable") == Some(&Value::Bool(true))).to_string());
    let facts = items(value, "/status/conditions");
    if !facts.is_empty() {
        into.line("Conditions:");
        into.line("  Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
        into.line("  ----\t------\t-----------------\t------------------\t------\t-------");
        for fact in facts {
            into.line(format!(
                "  {} \t{} \t{} \t{} \t{} \t{} ",
                text(fact, "/type"),
                text(fact, "/status"),
                described_time(text(fact, "/lastHeartbeatTime")),
                described_time(text(fact, "/lastTransitionTime")),
                text(fact, "/reason"),
                text(fact, "/message")
            ));
        }
    }
    into.line("Addresses:");
    for address in items(value, "/status/addresses") {
        into.line(format!("  {}:\t{}", text(address, "/type"), text(address, "/address")));
    }
    optional(into, "PodCIDR", text(value, "/spec/podCIDR"));
    if !items(value, "/spec/podCIDRs").is_empty() {
        into.field("PodCIDRs", joined(items(value, "/spec/podCIDRs")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_reads_as_kubectl_describes_it() {
        let value = json!({
            "metadata": {"name": "p1", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "nginx",
                "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}]},
            "status": {"phase": "Running", "podIP": "10.244.0.1", "podIPs": [{"ip": "10.244.0.1"}], "hostIP": "10.0.0.1", "startTime": "2026-11-24T13:35:58Z",
                "conditions": [{"type": "Ready", "status": "True"}]}});
        let mut into = Description::default();
        pod(&value, &mut into);
        assert_eq!(
            into.render(),
            "Name:         p1
Namespace:    default
Node:         n1/10.0.0.1
Start Time:   Tue, 24 Nov 2026 13:35:58 +0000
Labels:       app=web
Annotations:  <none>
Status:       Running
IP:           10.244.0.1
IPs:
  IP:  10.244.0.1
Containers:
  c:
    Image:       nginx
    Ports:       80/TCP (http), 53/UDP
    Host Ports:  0/TCP (http), 0/UDP
    Readiness:   http-get http://:80/ delay=0s timeout=1s period=1s #success=1 #failure=3
Conditions:
  Type    Status
  Ready   True 
"
        );
    }

    #[test]
    fn a_probes_last_words_are_shown() {
        let mut into = Description::default();
        conditions(
            &[json!({"type": "Ready", "status": "False", "reason": "ProbeFailed", "message": "connection refused"})],
            &mut into,
        );
        assert_eq!(
            into.render(),
            "Conditions:\n  Type    Status  Reason       Message\n  Ready   False   ProbeFailed  connection refused\n"
        );
        assert_eq!(
            describe_probe(&json!({"tcpSocket": {"port": "http"}, "failureThreshold": 9})),
            "tcp-socket :http delay=0s timeout=1s period=10s #success=1 #failure=9"
        );
        assert_eq!(
            describe_probe(&json!({"grpc": {"port": 9, "service": "x"}})),
            "grpc <pod>:9 x delay=0s timeout=1s period=10s #success=1 #failure=3"
        );
    }

    #[test]
    fn a_node_reads_as_kubectl_describes_it() {
        let value = json!({
            "metadata": {"name": "n1", "labels": {"a": "b"}, "creationTimestamp": "2026-11-24T13:35:48Z"},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n1"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "posting",
                    "lastHeartbeatTime": "2026-11-24T13:40:38Z", "lastTransitionTime": "2026-11-24T13:35:58Z"}]}});
        let mut into = Description::default();
        node_fields(&value, &mut into);
        let text = into.render();
        assert!(text.starts_with("Name:               n1\nRoles:              <none>\nLabels:             a=b\nAnnotations:        <none>\nCreationTimestamp:  Tue, 24 Nov 2026 13:35:48 +0000\nUnschedulable:      false\nConditions:\n"), "{text}");
        assert!(
            text.contains(
                "  Type    Status  LastHeartbeatTime                 LastTransitionTime                Reason         Message
  ----    ------  -----------------                 ------------------                ------         -------
  Ready   True    Tue, 24 Nov 2026 13:40:38 +0000   Tue, 24 Nov 2026 13:35:58 +0000   KubeletReady   posting 
Addresses:
  InternalIP:  10.0.0.1
  Hostname:    n1
PodCIDR:       10.244.0.0/24
"
            ),
            "{text}"
        );
    }
}
