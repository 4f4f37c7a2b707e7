//! Rule sets: snapshots of what is rendered, and packets traced through the model: "10.96.0.10:80 from node-2 reaches
//! exactly these".
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::{endpoint, facts, iptables as compile, service, view};
use fairlead_agent::kernel::model::Tables;
use fairlead_agent::plan::iptables::diff::diff;
use fairlead_agent::plan::iptables::{restore, trace};
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::trace::{End, Ends, Packet};
use fairlead_agent::plan::{Family, NodeFacts, Style};
use fairlead_proto::v1::{Endpoint, ServiceItem};

const NODE: &str = "10.0.0.11";
const POD: &str = "10.244.1.2";
const STRANGER: &str = "192.0.2.7";

fn programmed(services: &[(ServiceItem, Vec<Endpoint>)], facts: &NodeFacts) -> Tables {
    let desired = compile(&view(services), facts);
    let mut tables = Tables::default();
    tables.execute(&diff(&tables.observed, &desired, Style::Edit)).unwrap();
    assert_eq!(diff(&tables.observed, &desired, Style::Edit), [], "a second diff is empty");
    tables
}

fn send(tables: &Tables, source: &str, destination: &str, protocol: Protocol) -> Ends {
    let packet = Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        remembered: None,
    };
    trace::trace(&tables.observed, &facts("node1"), &[packet]).remove(0).ends
}

/// Ends as "10.244.2.2:8080" or "10.244.2.2:8080 masqueraded" with their share in percent.
fn reached(tables: &Tables, source: &str, destination: &str) -> Vec<(String, u32)> {
    shown(&send(tables, source, destination, Protocol::Tcp))
}

fn shown(ends: &Ends) -> Vec<(String, u32)> {
    ends.iter()
        .map(|(end, likely)| {
            let text = match end {
                End::Reaches { destination, masqueraded: false } => destination.to_string(),
                End::Reaches { destination, masqueraded: true } => format!("{destination} masqueraded"),
                End::Rejected => "rejected".into(),
                End::Dropped => "dropped".into(),
                End::Unknown => "unknown".into(),
            };
            (text, (likely * 100.0).round() as u32)
        })
        .collect()
}

fn only(text: &str) -> Vec<(String, u32)> {
    vec![(text.to_owned(), 100)]
}

fn shares(list: &[(&str, u32)]) -> Vec<(String, u32)> {
    list.iter().map(|(text, share)| ((*text).to_owned(), *share)).collect()
}

fn nginx() -> (ServiceItem, Vec<Endpoint>) {
    let on = |address: &str, node: &str| endpoint(address, node, &["80/TCP"]);
    let item = service("nginx-service", "10.96.0.10", &["80/TCP"]);
    (item, vec![on("10.244.1.2", "node1"), on("10.244.2.2", "node2"), on("10.244.3.2", "node3")])
}

#[test]
fn the_tutorials_service_renders_as_kube_proxys() {
    let desired = compile(&view(&[nginx()]), &facts("node1"));
    let ops = diff(&Tables::default().observed, &desired, Style::Edit);
    insta::assert_snapshot!(restore::render(&ops, Family::V4));
    assert_eq!(restore::render(&ops, Family::V6), "");
}

#[test]
fn every_kind_of_service_renders_as_kube_proxys() {
    let ports = ["http:80:30080/TCP", "dns:53:30053/UDP", "sig:9:30009/SCTP"];
    let backends =
        |node: &str, address: &str| endpoint(address, node, &["http:8080/TCP", "dns:8053/UDP", "sig:8009/SCTP"]);
    let node_port =
        ServiceItem { r#type: "NodePort".into(), affinity_seconds: 10_800, ..service("all", "10.96.0.20", &ports) };
    let local = ServiceItem {
        r#type: "LoadBalancer".into(),
        external_local: true,
        internal_local: true,
        health_check_node_port: 32_000,
        load_balancer_ips: vec!["198.51.100.1".into()],
        load_balancer_source_ranges: vec!["192.0.2.0/24".into(), "10.0.0.0/8".into()],
        external_ips: vec!["198.51.100.9".into()],
        ..service("edge", "10.96.0.21", &["http:80:30081/TCP"])
    };
    let six = service("six", "fd00:96::1", &["80/TCP"]);
    let services = [
        (node_port, vec![backends("node1", "10.244.1.2"), backends("node2", "10.244.2.2")]),
        (local, vec![endpoint("10.244.2.2", "node2", &["http:8080/TCP"])]),
        (service("empty", "10.96.0.22", &["80/TCP"]), vec![]),
        (six, vec![endpoint("fd00:244:1::2", "node1", &["8080/TCP"])]),
    ];
    let desired = compile(&view(&services), &facts("node1"));
    let ops = diff(&Tables::default().observed, &desired, Style::Edit);
    insta::assert_snapshot!("all_v4", restore::render(&ops, Family::V4));
    insta::assert_snapshot!("all_v6", restore::render(&ops, Family::V6));
}

#[test]
fn a_cluster_ip_is_balanced_evenly_and_only_over_its_endpoints() {
    let tables = programmed(&[nginx()], &facts("node2"));
    let even = shares(&[("10.244.1.2:80", 33), ("10.244.2.2:80", 33), ("10.244.3.2:80", 33)]);
    assert_eq!(reached(&tables, "10.244.2.9", "10.96.0.10:80"), even, "from a pod that is none of them");
    let masqueraded = shares(&[
        ("10.244.1.2:80 masqueraded", 33),
        ("10.244.2.2:80 masqueraded", 33),
        ("10.244.3.2:80 masqueraded", 33),
    ]);
    assert_eq!(reached(&tables, STRANGER, "10.96.0.10:80"), masqueraded, "from outside the cluster");
    assert_eq!(reached(&tables, NODE, "10.96.0.10:80"), masqueraded, "from the node, which is no pod");
    let hairpin = shares(&[("10.244.1.2:80 masqueraded", 33), ("10.244.2.2:80", 33), ("10.244.3.2:80", 33)]);
    assert_eq!(
        reached(&tables, POD, "10.96.0.10:80"),
        hairpin,
        "a pod that reaches itself doesn't see its own address"
    );
    assert_eq!(reached(&tables, POD, "10.96.0.10:81"), only("rejected"), "it has no other port");
    assert_eq!(shown(&send(&tables, POD, "10.96.0.10:80", Protocol::Udp)), only("rejected"), "nor another protocol");
}

#[test]
fn without_a_known_pod_network_only_hairpins_are_masqueraded() {
    let facts = NodeFacts { local_cidrs: vec![], ..facts("node1") };
    let tables = programmed(&[nginx()], &facts);
    assert!(reached(&tables, STRANGER, "10.96.0.10:80").iter().all(|(text, _)| !text.contains("masqueraded")));
    let all = programmed(&[nginx()], &NodeFacts { masquerade_all: true, ..facts });
    assert!(reached(&all, "10.244.2.9", "10.96.0.10:80").iter().all(|(text, _)| text.contains("masqueraded")));
}

#[test]
fn invalid_packets_are_dropped_unless_the_kernel_is_liberal() {
    let forward = |tcp_be_liberal| {
        let desired = compile(&view(&[]), &NodeFacts { tcp_be_liberal, ..facts("node1") });
        let text = restore::render(&diff(&Tables::default().observed, &desired, Style::Edit), Family::V4);
        text.lines().filter(|line| line.starts_with("-A KUBE-FORWARD")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(forward(false)[0], "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
    assert_eq!(forward(true), forward(false)[1..]);
}

#[test]
fn ports_and_protocols_are_kept_apart() {
    let item = service("dns", "10.96.0.53", &["dns:53/UDP", "dns-tcp:53/TCP", "sig:9/SCTP"]);
    let tables = programmed(
        &[(item, vec![endpoint("10.244.2.2", "node2", &["dns:8053/UDP", "dns-tcp:8054/TCP"])])],
        &facts("node1"),
    );
    assert_eq!(shown(&send(&tables, POD, "10.96.0.53:53", Protocol::Udp)), only("10.244.2.2:8053"));
    assert_eq!(shown(&send(&tables, POD, "10.96.0.53:53", Protocol::Tcp)), only("10.244.2.2:8054"));
    assert_eq!(
        shown(&send(&tables, POD, "10.96.0.53:9", Protocol::Sctp)),
        only("rejected"),
        "no endpoint serves this port"
    );
}

#[test]
fn no_endpoints_is_refused_and_unready_ones_do_not_count() {
    let (item, mut endpoints) = nginx();
    for endpoint in &mut endpoints {
        endpoint.ready = false;
        endpoint.serving = false;
    }
    let tables = programmed(&[(item, endpoints)], &facts("node1"));
    for source in [POD, NODE, STRANGER] {
        assert_eq!(reached(&tables, source, "10.96.0.10:80"), only("rejected"), "{source}");
    }
}

#[test]
fn terminating_endpoints_serve_while_no_other_does() {
    let (item, mut endpoints) = nginx();
    for endpoint in &mut endpoints[..2] {
        endpoint.ready = false;
        endpoint.terminating = true;
    }
    endpoints[1].serving = false;
    let tables = programmed(&[(item.clone(), endpoints.clone())], &facts("node1"));
    assert_eq!(reached(&tables, "10.244.1.9", "10.96.0.10:80"), only("10.244.3.2:80"));
    endpoints[2].ready = false;
    endpoints[2].serving = false;
    let tables = programmed(&[(item, endpoints)], &facts("node1"));
    assert_eq!(reached(&tables, "10.244.1.9", "10.96.0.10:80"), only("10.244.1.2:80"));
}

#[test]
fn internal_policy_local_stays_on_the_node_or_drops() {
    let (item, endpoints) = nginx();
    let item = ServiceItem { internal_local: true, ..item };
    let tables = programmed(&[(item.clone(), endpoints.clone())], &facts("node2"));
    assert_eq!(reached(&tables, POD, "10.96.0.10:80"), only("10.244.2.2:80"));
    let elsewhere = programmed(&[(item, endpoints)], &facts("node9"));
    assert_eq!(reached(&elsewhere, POD, "10.96.0.10:80"), only("dropped"));
}

#[test]
fn node_ports_reach_every_endpoint_and_hide_the_client() {
    let item = ServiceItem { r#type: "NodePort".into(), ..service("np", "10.96.0.30", &["http:80:30080/TCP"]) };
    let endpoints =
        vec![endpoint("10.244.1.2", "node1", &["http:8080/TCP"]), endpoint("10.244.2.2", "node2", &["http:8080/TCP"])];
    let tables = programmed(&[(item, endpoints)], &facts("node1"));
    let both = shares(&[("10.244.1.2:8080 masqueraded", 50), ("10.244.2.2:8080 masqueraded", 50)]);
    assert_eq!(reached(&tables, STRANGER, "10.0.0.11:30080"), both);
    assert_eq!(reached(&tables, NODE, "10.0.0.11:30080"), both);
    assert_eq!(
        reached(&tables, STRANGER, "10.0.0.12:30080"),
        only("10.0.0.12:30080"),
        "another node's address is not ours"
    );
    assert_eq!(reached(&tables, NODE, "127.0.0.1:30080"), only("127.0.0.1:30080"), "nor is loopback");
    let closed = ServiceItem { r#type: "NodePort".into(), ..service("np", "10.96.0.30", &["http:80:30080/TCP"]) };
    let tables = programmed(&[(closed, vec![])], &facts("node1"));
    assert_eq!(reached(&tables, STRANGER, "10.0.0.11:30080"), only("rejected"));
}

#[test]
fn external_policy_local_keeps_the_client_and_the_node() {
    let item = ServiceItem {
        r#type: "NodePort".into(),
        external_local: true,
        ..service("np", "10.96.0.30", &["http:80:30080/TCP"])
    };
    let endpoints =
        vec![endpoint("10.244.1.2", "node1", &["http:8080/TCP"]), endpoint("10.244.2.2", "node2", &["http:8080/TCP"])];
    let tables = programmed(&[(item.clone(), endpoints.clone())], &facts("node1"));
    assert_eq!(reached(&tables, STRANGER, "10.0.0.11:30080"), only("10.244.1.2:8080"));
    let inside = shares(&[("10.244.1.2:8080", 50), ("10.244.2.2:8080", 50)]);
    assert_eq!(reached(&tables, "10.244.1.9", "10.0.0.11:30080"), inside, "pods are not bound by it");
    let elsewhere = programmed(&[(item, endpoints)], &facts("node9"));
    assert_eq!(reached(&elsewhere, STRANGER, "10.0.0.11:30080"), only("dropped"));
    assert_eq!(reached(&elsewhere, NODE, "10.0.0.11:30080").len(), 2, "nor is the node itself");
}

#[test]
fn source_ranges_guard_the_load_balancers_address() {
    let item = ServiceItem {
        r#type: "LoadBalancer".into(),
        load_balancer_ips: vec!["198.51.100.1".into()],
        load_balancer_source_ranges: vec!["192.0.2.0/25".into()],
        ..service("lb", "10.96.0.40", &["http:80:30090/TCP"])
    };
    let tables = programmed(&[(item, vec![endpoint("10.244.2.2", "node2", &["http:8080/TCP"])])], &facts("node1"));
    assert_eq!(reached(&tables, STRANGER, "198.51.100.1:80"), only("10.244.2.2:8080 masqueraded"));
    assert_eq!(reached(&tables, "192.0.2.200", "198.51.100.1:80"), only("dropped"));
    assert_eq!(reached(&tables, "192.0.2.200", "10.0.0.11:30090"), only("dropped"), "NodePorts are guarded too");
}

#[test]
fn a_remembered_client_comes_back_to_its_endpoint() {
    let (item, endpoints) = nginx();
    let tables = programmed(&[(ServiceItem { affinity_seconds: 60, ..item }, endpoints)], &facts("node1"));
    let packet = Packet {
        source: STRANGER.parse().unwrap(),
        destination: "10.96.0.10:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        remembered: Some("10.244.3.2:80".parse().unwrap()),
    };
    let ends = trace::trace(&tables.observed, &facts("node1"), &[packet]).remove(0).ends;
    assert_eq!(shown(&ends), only("10.244.3.2:80 masqueraded"));
}

#[test]
fn traffic_distribution_prefers_near_endpoints_while_any_is_ready() {
    let (item, mut endpoints) = nginx();
    endpoints[1].zone = "a".into();
    endpoints[2].zone = "b".into();
    let with = |distribution: &str, endpoints: &[Endpoint]| {
        let item = ServiceItem { traffic_distribution: distribution.into(), ..item.clone() };
        let tables = programmed(&[(item, endpoints.to_vec())], &facts("node1"));
        reached(&tables, "10.244.1.9", "10.96.0.10:80").into_iter().map(|(text, _)| text).collect::<Vec<_>>()
    };
    // node1 is in zone a.
    assert_eq!(with("PreferSameZone", &endpoints), ["10.244.2.2:80"]);
    assert_eq!(with("PreferClose", &endpoints), ["10.244.2.2:80"]);
    assert_eq!(with("PreferSameNode", &endpoints), ["10.244.1.2:80"]);
    assert_eq!(with("PreferSameNode", &endpoints[1..]), ["10.244.2.2:80"]);
    assert_eq!(with("PreferSameZone", &endpoints[2..]), ["10.244.3.2:80"]);
    assert_eq!(with("", &endpoints).len(), 3);
}

#[test]
fn families_do_not_mix() {
    let both = ServiceItem {
        cluster_ips: vec!["10.96.0.50".into(), "fd00:96::50".into()],
        ..service("dual", "x", &["80/TCP"])
    };
    let tables = programmed(
        &[(both, vec![endpoint("10.244.2.2", "node2", &["80/TCP"]), endpoint("fd00:244:2::2", "node2", &["80/TCP"])])],
        &facts("node1"),
    );
    assert_eq!(reached(&tables, POD, "10.96.0.50:80"), only("10.244.2.2:80"));
    assert_eq!(reached(&tables, "fd00:244:1::9", "[fd00:96::50]:80"), only("[fd00:244:2::2]:80"));
    for (space, chains) in &tables.observed.chains {
        for line in chains.values().flatten() {
            assert_eq!(
                line.text.contains("fd00:"),
                space.family == Family::V6 && line.text.contains("fd00:"),
                "{}",
                line.text
            );
        }
    }
}
