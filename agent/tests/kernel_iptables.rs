//! The real kernel: rules written by the real programs into network namespaces, and real packets through them.
//!
//! A node with two pods behind it and a client outside, made anew for each test under names of its own. Needs root and
//! Debian's iptables, iproute2 and conntrack; without them it fails and says so, it never skips.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::net::{Net, PATIENCE, sh, soon};
use common::programmed::{Programmed, Services};
use common::{endpoint, iptables as compile, service, view};
use fairlead_agent::kernel::Kernel;
use fairlead_agent::kernel::linux::{Flavor, Iptables};
use fairlead_agent::plan::iptables::diff::diff;
use fairlead_agent::plan::iptables::{Op, Rule, Space, Table};
use fairlead_agent::plan::{Family, IptablesPlane, Names, NodeFacts, Plane as _, Style};
use fairlead_proto::v1::{
    Container, Endpoint, IntOrString, ObjectMeta, Pod, PodSpec, PodStatus, Probe, ServiceItem, TcpSocketAction,
    int_or_string,
};
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

fn iptables(net: &Net, flavor: Flavor) -> Iptables {
    Iptables::new(Names::new("KUBE").unwrap()).in_namespace(Some(net.path("node"))).flavor(flavor)
}

/// Both tables of both families as text, without counters and dates.
fn dump(net: &Net, flavor: &str) -> String {
    let mut text = String::new();
    for program in ["iptables", "ip6tables"] {
        for table in ["nat", "filter"] {
            let saved = sh(&format!("ip netns exec {} {program}-{flavor}-save -t {table}", net.name("node")));
            let lines =
                saved.lines().filter(|line| line.starts_with("-A") || (line.starts_with(':') && line.contains(" - ")));
            text.extend(lines.map(|line| format!("{program} {table} {}\n", line.split(" [").next().unwrap())));
        }
    }
    text
}

fn facts() -> NodeFacts {
    NodeFacts { node_ips: vec!["192.0.2.1".parse().unwrap()], ..common::facts("node1") }
}

/// A kernel and what it was told to hold.
type Plane = Programmed<IptablesPlane>;

fn start(kernel: Iptables, services: &Services) -> Plane {
    Programmed::start(kernel, facts(), services)
}

const PODS: [&str; 2] = ["10.244.1.2", "10.244.2.2"];

fn web(pods: &[&str]) -> (ServiceItem, Vec<Endpoint>) {
    let item = ServiceItem { r#type: "NodePort".into(), ..service("web", "10.96.0.10", &["http:80:30080/TCP"]) };
    (item, pods.iter().map(|pod| endpoint(pod, "node1", &["http:8080/TCP"])).collect())
}

fn dns(pods: &[&str]) -> (ServiceItem, Vec<Endpoint>) {
    (
        service("dns", "10.96.0.53", &["53/UDP", "sig:54/SCTP"]),
        pods.iter().map(|pod| endpoint(pod, "node1", &["8053/UDP", "sig:8054/SCTP"])).collect(),
    )
}

fn six(pods: &[&str]) -> (ServiceItem, Vec<Endpoint>) {
    (service("six", "fd00:96::10", &["80/TCP"]), pods.iter().map(|pod| endpoint(pod, "node1", &["8080/TCP"])).collect())
}

fn closed() -> (ServiceItem, Vec<Endpoint>) {
    (service("closed", "10.96.0.99", &["80/TCP"]), vec![])
}

fn who(answers: &BTreeMap<String, usize>) -> Vec<&str> {
    answers.keys().map(String::as_str).collect()
}

fn packets_go_where_the_services_say(net: &Net, flavor: Flavor) {
    let mut plane = start(iptables(net, flavor), &[web(&PODS), dns(&PODS), closed(), six(&["fd00:244:2::2"])]);

    let answers = net.ask("pod1", "10.96.0.10:80", 40);
    // A pod that reaches itself sees the node; the other pod sees the pod.
    assert_eq!(who(&answers), ["pod1 10.244.1.1", "pod2 10.244.1.2"], "{answers:?}");
    assert!(answers.values().all(|count| (5..=35).contains(count)), "balanced: {answers:?}");
    assert_eq!(
        who(&net.ask("out", "10.96.0.10:80", 20)),
        ["pod1 10.244.1.1", "pod2 10.244.2.1"],
        "from outside: masqueraded"
    );
    assert_eq!(net.ask("node", "10.96.0.10:80", 20).len(), 2, "from the node itself");
    assert_eq!(who(&net.ask("out", "192.0.2.1:30080", 20)), ["pod1 10.244.1.1", "pod2 10.244.2.1"], "by the NodePort");
    assert_eq!(who(&net.ask("pod1", "[fd00:96::10]:80", 5)), ["pod2 fd00:244:1::2"], "IPv6");

    for from in ["pod1", "node", "out"] {
        let begun = Instant::now();
        assert_eq!(who(&net.ask(from, "10.96.0.99:80", 1)), ["refused"], "no endpoints, from {from}");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    // An endpoint goes: at once nobody is sent there, and no connection fails.
    plane.step(&[web(&PODS[1..]), dns(&PODS), closed(), six(&["fd00:244:2::2"])]);
    assert_eq!(who(&net.ask("out", "10.96.0.10:80", 20)), ["pod2 10.244.2.1"]);
    plane.step(&[web(&[]), dns(&PODS), closed(), six(&["fd00:244:2::2"])]);
    assert_eq!(who(&net.ask("pod1", "10.96.0.10:80", 2)), ["refused"]);
    assert_eq!(who(&net.ask("out", "192.0.2.1:30080", 2)), ["refused"]);

    // Affinity keeps a client where it was.
    let (sticky, endpoints) = web(&PODS);
    plane.step(&[
        (ServiceItem { affinity_seconds: 60, ..sticky }, endpoints),
        dns(&PODS),
        closed(),
        six(&["fd00:244:2::2"]),
    ]);
    assert_eq!(net.ask("out", "10.96.0.10:80", 15).len(), 1, "one client, one endpoint");
    plane.step(&[web(&PODS), dns(&PODS), six(&["fd00:244:2::2"])]);
    assert_eq!(net.ask("out", "10.96.0.10:80", 40).len(), 2);

    udp_follows(net, &mut plane);
}

/// One socket, one flow: it must move on when its endpoint goes.
fn udp_follows(net: &Net, plane: &mut Plane) {
    let socket = net.inside("pod1", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.96.0.53:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    });
    let ask = || {
        let mut buffer = [0; 64];
        socket.send(b"?")?;
        socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let first = ask().unwrap();
    for _ in 0..5 {
        assert_eq!(ask().unwrap(), first, "a flow stays");
    }
    let (gone, left) = if first == "pod1" { (PODS[0], PODS[1]) } else { (PODS[1], PODS[0]) };
    plane.step(&[web(&PODS), dns(&[left]), six(&["fd00:244:2::2"])]);
    soon(&format!("its endpoint {gone} is gone"), || ask().unwrap(), |answer| *answer != first);
    plane.step(&[web(&PODS), dns(&[]), six(&["fd00:244:2::2"])]);
    soon("nobody serves", &ask, Result::is_err).unwrap_err();
    plane.step(&[web(&PODS), dns(&[gone]), six(&["fd00:244:2::2"])]);
    // The refusal above may still be pending on the socket.
    let again = ask().or_else(|_| ask()).unwrap();
    assert_eq!(again, first);
}

fn drift_is_repaired_and_a_restart_is_a_diff(net: &Net, (flavor, name): (Flavor, &str)) {
    let services = [web(&PODS), dns(&PODS), six(&["fd00:244:2::2"])];
    let plane = start(iptables(net, flavor), &services);
    let before = dump(net, name);
    let node = net.name("node");
    for harm in [
        "-t nat -F KUBE-SERVICES",
        "-t nat -D PREROUTING 1",
        "-t nat -I KUBE-SERVICES -d 10.96.0.10 -j ACCEPT",
        "-F FORWARD",
        "-t nat -N KUBE-SEP-AAAAAAAAAAAAAAAA",
        "-t nat -F KUBE-MARK-MASQ",
    ] {
        sh(&format!("ip netns exec {node} iptables-{name} {harm}"));
        let observed = plane.kernel.observe().unwrap();
        let ops = diff(&observed, &plane.desired, Style::Edit);
        assert!(!ops.is_empty(), "{harm} is seen");
        plane.kernel.execute(&ops).unwrap();
        plane.holds();
    }
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&dump(net, name)), sorted(&before));
    // A wrong edit is refused as a whole, and nothing of it stays.
    let wrong = Op::Delete {
        space: Space::new(Family::V4, Table::Nat),
        chain: "KUBE-SERVICES".into(),
        line: Rule::commented("not there").into(),
    };
    let said = plane.kernel.execute(&[wrong]).unwrap_err().to_string();
    assert!(said.contains("-D KUBE-SERVICES"), "{said}");
    // A restart with the same view, and then with a changed one, rewrites nothing that is right.
    let again = start(iptables(net, flavor), &services);
    let ops = diff(
        &again.kernel.observe().unwrap(),
        &compile(&view(&[web(&PODS[1..]), dns(&PODS), six(&["fd00:244:2::2"])]), &facts()),
        Style::Edit,
    );
    let (written, forgotten): (Vec<&Op>, Vec<&Op>) = ops.iter().partition(|op| IptablesPlane::is_repair(op));
    assert_eq!((written.len(), forgotten.len()), (2, 2), "{ops:#?}");
}

fn cleanup_removes_ours_alone(net: &Net, (flavor, name): (Flavor, &str)) {
    let node = net.name("node");
    for foreign in [
        "iptables -t nat -N FOREIGN",
        "iptables -t nat -A FOREIGN -s 203.0.113.0/24 -p tcp -m multiport --dports 1,2 -j RETURN",
        "iptables -t nat -A PREROUTING -j FOREIGN",
        "iptables -t nat -N KUBE-ROUTER",
        "iptables -N KUBE-FIREWALL",
        "iptables -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
        "iptables -A INPUT -j KUBE-FIREWALL",
        "iptables -A FORWARD -s 203.0.113.7 -j DROP",
        "ip6tables -A FORWARD -s 2001:db8:1::/48 -j DROP",
    ] {
        let (program, rest) = foreign.split_once(' ').unwrap();
        sh(&format!("ip netns exec {node} {program}-{name} {rest}"));
    }
    let before = dump(net, name);
    let kernel = iptables(net, flavor);
    let names = Names::new("KUBE").unwrap();
    for _ in 0..2 {
        start(iptables(net, flavor), &[web(&PODS), dns(&PODS), closed(), six(&["fd00:244:2::2"])]);
        assert_ne!(dump(net, name), before);
        fairlead_agent::clean(&kernel, &names).unwrap();
        assert_eq!(dump(net, name), before);
    }
    fairlead_agent::clean(&kernel, &names).unwrap();
    // IPv6 comes and goes with the services that need it.
    start(iptables(net, flavor), &[web(&PODS), six(&["fd00:244:2::2"])]);
    start(iptables(net, flavor), &[web(&PODS)]);
    assert!(!dump(net, name).contains("ip6tables nat"));
    fairlead_agent::clean(&kernel, &names).unwrap();
    assert_eq!(dump(net, name), before);
}

/// The rules went in, and then a later table was refused: nobody would find these flows stale again.
#[test]
fn flows_are_forgotten_though_another_table_is_refused() {
    let net = Net::build("i");
    let mut plane = start(iptables(&net, Flavor::Nft), &[dns(&PODS[..1])]);
    let socket = net.inside("out", || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send_to(b"?", "10.96.0.53:53").unwrap();
        socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    assert_eq!(ask().unwrap(), "pod1");
    let mut ops = plane.desired.update_all(&view(&[dns(&PODS[1..])])).ops;
    ops.insert(
        0,
        Op::Delete {
            space: Space::new(Family::V6, Table::Filter),
            chain: "INPUT".into(),
            line: Rule::commented("not there").into(),
        },
    );
    plane.kernel.execute(&ops).unwrap_err();
    soon("its endpoint is gone", || ask().unwrap(), |answer| answer == "pod2");
}

fn the_contract(net: &Net, flavor: Flavor) {
    let rows = common::cases::table();
    let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
    let _plane: Plane = Programmed::start(iptables(net, flavor), common::cases::node(), &services);
    let (wrong, count) = common::cases::hold(net);
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn the_contract_iptables_nft() {
    the_contract(&Net::build("k"), Flavor::Nft);
}

#[test]
fn the_contract_iptables_legacy() {
    the_contract(&Net::build("l"), Flavor::Legacy);
}

#[test]
fn packets_nft() {
    packets_go_where_the_services_say(&Net::build("a"), Flavor::Nft);
}

#[test]
fn packets_legacy() {
    packets_go_where_the_services_say(&Net::build("b"), Flavor::Legacy);
}

#[test]
fn drift_nft() {
    drift_is_repaired_and_a_restart_is_a_diff(&Net::build("c"), (Flavor::Nft, "nft"));
}

#[test]
fn drift_legacy() {
    drift_is_repaired_and_a_restart_is_a_diff(&Net::build("d"), (Flavor::Legacy, "legacy"));
}

#[test]
fn cleanup_nft() {
    cleanup_removes_ours_alone(&Net::build("e"), (Flavor::Nft, "nft"));
}

#[test]
fn cleanup_legacy() {
    cleanup_removes_ours_alone(&Net::build("f"), (Flavor::Legacy, "legacy"));
}

#[test]
fn a_kube_proxy_is_not_disturbed() {
    let net = Net::build("g");
    let node = net.name("node");
    for rule in
        ["-t nat -N KUBE-PROXY-CANARY", "-t nat -N KUBE-SERVICES", "-t nat -A KUBE-SERVICES -d 10.96.0.1/32 -j ACCEPT"]
    {
        sh(&format!("ip netns exec {node} iptables-nft {rule}"));
    }
    let before = dump(&net, "nft");
    let said =
        fairlead_agent::clean(&iptables(&net, Flavor::Nft), &Names::new("KUBE").unwrap()).unwrap_err().to_string();
    assert!(said.contains("kube-proxy") && said.contains("--chain-prefix"), "{said}");
    assert_eq!(dump(&net, "nft"), before);
    // Beside it, under another prefix.
    let names = Names::new("FLEAD").unwrap();
    let kernel = Iptables::new(names.clone()).in_namespace(Some(net.path("node"))).flavor(Flavor::Nft);
    let desired = compile(&view(&[web(&PODS)]), &NodeFacts { names: names.clone(), ..facts() });
    kernel.execute(&diff(&kernel.observe().unwrap(), &desired, Style::Edit)).unwrap();
    assert_eq!(net.ask("out", "10.96.0.10:80", 20).len(), 2);
    fairlead_agent::clean(&kernel, &names).unwrap();
    assert_eq!(dump(&net, "nft"), before);
}

#[tokio::test]
async fn an_agent_programs_and_probes_inside_a_namespace() {
    let net = Net::build("h");
    let (address, mut streams) = common::server::server().await;
    let state = tempfile::tempdir().unwrap();
    let config = fairlead_agent::Config {
        node_name: "node1".into(),
        servers: vec![address],
        mode: fairlead_agent::Mode::Iptables,
        state_dir: state.path().to_owned(),
        node_ip: Some("192.0.2.1".parse().unwrap()),
        netns: Some(net.path("node")),
        ..fairlead_agent::Config::default()
    };
    let cancel = tokio_util::sync::CancellationToken::new();
    // A failed assertion must end the agent too: its probes' thread would keep the test's runtime.
    let _guard = cancel.clone().drop_guard();
    let agent = tokio::spawn(fairlead_agent::run(config, cancel.clone()));
    let mut stream = common::server::stream(&mut streams).await;
    assert_eq!(stream.hello.mode, "iptables");
    stream.welcome().await;
    let mut delta = common::full(3, &[web(&PODS)]);
    // Only from inside the namespace is there a way to the pod.
    let check = probed_pod(8080);
    delta.upsert_pods = vec![check];
    stream.delta(delta).await;
    assert_eq!(stream.applied().await, 3);
    assert_eq!(net.ask("out", "10.96.0.10:80", 30).len(), 2);
    stream.report("pod1", |pod| pod.ready).await;
    cancel.cancel();
    agent.await.unwrap().unwrap();
    assert_eq!(net.ask("out", "10.96.0.10:80", 30).len(), 2, "the rules stay");
}

fn probed_pod(port: i32) -> Pod {
    let target = IntOrString { value: Some(int_or_string::Value::Int(port)) };
    let probe = Probe {
        tcp_socket: Some(TcpSocketAction { port: Some(target), ..TcpSocketAction::default() }),
        ..Probe::default()
    };
    Pod {
        metadata: Some(ObjectMeta {
            name: "pod1".into(),
            namespace: "default".into(),
            uid: "u".into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            node_name: "node1".into(),
            containers: vec![Container { readiness_probe: Some(probe), ..Container::default() }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus { pod_ip: PODS[0].into(), ..PodStatus::default() }),
        ..Pod::default()
    }
}
