//! Packets traced through what real kernels hold, beside the packets themselves: the whole contract, and an agent that is
//! asked while somebody else breaks its rules. Needs root, and what the other kernel tests need.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::cases::node;
use common::net::{Net, PATIENCE, sh};
use common::programmed::Programmed;
use common::server::Stream;
use common::{endpoint, service, traced};
use fairlead_agent::kernel::Kernel;
use fairlead_agent::kernel::linux::{Flavor, Iptables, Nftables};
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::trace::{End, Packet};
use fairlead_agent::plan::{Names, NftablesPlane, Plane};
use fairlead_agent::{Config, Mode};
use fairlead_proto::v1::{
    DataplaneAnswer, DataplaneQuery, Endpoint, ServiceItem, TraceQuery, Traced, agent_message::Kind, server_message,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// One kernel object writes, another reads: nothing is known but what the kernel lists.
fn the_contract<P: Plane>(writer: impl Kernel<P> + 'static, reader: &dyn Kernel<P>) {
    let _plane = Programmed::start(writer, node(), &traced::services());
    let (wrong, count) = traced::hold::<P>(&reader.observe().unwrap());
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn the_contract_traced_through_the_kernels_nftables() {
    let net = Net::build("ta");
    let kernel = || Nftables::new(Some(net.path("node")));
    the_contract(kernel(), &kernel());
}

#[test]
fn the_contract_traced_through_the_kernels_iptables() {
    for (tag, flavor) in [("tb", Flavor::Nft), ("tc", Flavor::Legacy)] {
        let net = Net::build(tag);
        let kernel = || Iptables::new(Names::new("KUBE").unwrap()).in_namespace(Some(net.path("node"))).flavor(flavor);
        the_contract(kernel(), &kernel());
    }
}

/// A Maglev table is drawn from by a hash of the source: where it leads is certain, and the packets must go there.
#[test]
fn a_hash_is_the_kernels_own() {
    const SERVICE: &str = "10.96.0.20:80";
    let net = Net::build("tg");
    let (mut item, endpoints) = web(&[1, 2]);
    item.cluster_ips = vec!["10.96.0.20".into()];
    item.annotations.insert("fairlead.io/scheduler".into(), "mh".into());
    let kernel = || Nftables::new(Some(net.path("node")));
    let _plane = Programmed::start(kernel(), node(), &[(item, endpoints)]);
    let observed = kernel().observe().unwrap();
    let mut pods = BTreeSet::new();
    for last in 10..26 {
        let out = net.name("out");
        sh(&format!("ip -n {out} addr add 192.0.2.{last}/24 dev eth0"));
        sh(&format!("ip -n {out} route replace default via 192.0.2.1 src 192.0.2.{last}"));
        let source = format!("192.0.2.{last}").parse().unwrap();
        let packet =
            Packet { source, destination: SERVICE.parse().unwrap(), protocol: Protocol::Tcp, remembered: None };
        let traced = NftablesPlane::trace(&observed, &node(), &[packet]).remove(0);
        let [(End::Reaches { destination, .. }, share)] = Vec::from_iter(&traced.ends)[..] else {
            panic!("{traced:#?}");
        };
        assert!((share - 1.0).abs() < 1e-9, "{traced:#?}");
        let pod = if destination.ip().to_string() == "10.244.1.2" { "pod1" } else { "pod2" };
        let seen = net.ask_within(PATIENCE, ("out", SERVICE), 2);
        assert!(seen.len() == 1 && seen.keys().all(|answer| answer.starts_with(pod)), "{source}: {pod}, {seen:?}");
        pods.insert(pod);
    }
    assert_eq!(pods.len(), 2, "both are met");
}

/// An agent in a namespace, and the test at the server's end of its stream.
struct Rig {
    net: Net,
    stream: Stream,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), fairlead_agent::AgentError>>,
    _state: tempfile::TempDir,
}

impl Rig {
    async fn start(tag: &str, mode: Mode) -> Self {
        let net = Net::build(tag);
        let (address, mut streams) = common::server::server().await;
        let state = tempfile::tempdir().unwrap();
        let config = Config {
            node_name: "node1".into(),
            servers: vec![address],
            mode,
            state_dir: state.path().to_owned(),
            node_ip: Some("192.0.2.1".parse().unwrap()),
            cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
            netns: Some(net.path("node")),
            ..Config::default()
        };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(fairlead_agent::run(config, cancel.clone()));
        let mut stream = common::server::stream(&mut streams).await;
        stream.welcome().await;
        stream.delta(common::full(3, &[web(&[1, 2]), one(), closed()])).await;
        assert_eq!(stream.applied().await, 3);
        Self { net, stream, cancel, task, _state: state }
    }

    async fn ask(&mut self, query: DataplaneQuery) -> DataplaneAnswer {
        self.stream.send(server_message::Kind::DataplaneQuery(query)).await;
        loop {
            if let Kind::Dataplane(answer) = self.stream.next().await {
                return answer;
            }
        }
    }

    /// Ends of a packet from outside: from our intent, and from what the kernel holds.
    async fn trace(&mut self, address: &str) -> [Vec<String>; 2] {
        let trace =
            TraceQuery { source: "192.0.2.2".into(), destination: address.into(), port: 80, protocol: "TCP".into() };
        let answer = self.ask(DataplaneQuery { trace: Some(trace), ..DataplaneQuery::default() }).await;
        let trace = answer.trace.unwrap_or_else(|| panic!("{}", answer.error));
        [trace.intent.unwrap(), trace.kernel.unwrap()].map(|traced| {
            assert!(!traced.steps.is_empty());
            ends(&traced)
        })
    }

    async fn differences(&mut self) -> u64 {
        let answer = self.ask(DataplaneQuery { diff: true, ..DataplaneQuery::default() }).await;
        answer.diff.unwrap_or_else(|| panic!("{}", answer.error)).count
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn ends(traced: &Traced) -> Vec<String> {
    let end = |end: &fairlead_proto::v1::TraceEnd| {
        let masked = if end.masqueraded { " masqueraded" } else { "" };
        format!("{} {}{masked} {:.0}", end.verdict, end.destination, end.share * 100.0)
    };
    traced.ends.iter().map(end).collect()
}

fn web(pods: &[u8]) -> (ServiceItem, Vec<Endpoint>) {
    let on = |pod: &u8| endpoint(&format!("10.244.{pod}.2"), "node1", &["http:8080/TCP"]);
    (service("web", "10.96.0.10", &["http:80/TCP"]), pods.iter().map(on).collect())
}

fn one() -> (ServiceItem, Vec<Endpoint>) {
    let (item, endpoints) = web(&[2]);
    (ServiceItem { name: "one".into(), cluster_ips: vec!["10.96.0.11".into()], ..item }, endpoints)
}

fn closed() -> (ServiceItem, Vec<Endpoint>) {
    (service("closed", "10.96.0.12", &["http:80/TCP"]), vec![])
}

/// The trace says what a real packet then does; a break shows in the trace, in the difference and in a report.
async fn says_what_packets_do_and_what_is_broken(tag: &str, mode: Mode, harm: &str) {
    let mut rig = Rig::start(tag, mode).await;
    for (address, ends, answers) in [
        (
            "10.96.0.10",
            &["reaches 10.244.1.2:8080 masqueraded 50", "reaches 10.244.2.2:8080 masqueraded 50"][..],
            &["pod1 10.244.1.1", "pod2 10.244.2.1"][..],
        ),
        ("10.96.0.11", &["reaches 10.244.2.2:8080 masqueraded 100"], &["pod2 10.244.2.1"]),
        ("10.96.0.12", &["rejected  100"], &["refused"]),
    ] {
        let [intent, kernel] = rig.trace(address).await;
        assert_eq!((&intent[..], &kernel), (&kernel[..], &intent), "{address}");
        assert_eq!(kernel, ends, "{address}");
        let seen = rig.net.ask_within(PATIENCE, ("out", &format!("{address}:80")), 20);
        assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), answers, "{address}");
    }
    assert_eq!(rig.differences().await, 0);

    // The agent repairs it soon: harm is done until an answer shows it.
    let begun = Instant::now();
    let node = rig.net.name("node");
    loop {
        sh(&format!("ip netns exec {node} {harm}"));
        let [intent, kernel] = rig.trace("10.96.0.11").await;
        assert_eq!(intent, ["reaches 10.244.2.2:8080 masqueraded 100"], "intent is not what the kernel holds");
        sh(&format!("ip netns exec {node} {harm}"));
        let differences = rig.differences().await;
        if kernel != intent && differences > 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{kernel:?}, {differences} differences");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_says_what_packets_do_nftables() {
    says_what_packets_do_and_what_is_broken("td", Mode::Nftables, "nft flush map ip fairlead frontends").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_says_what_packets_do_iptables() {
    says_what_packets_do_and_what_is_broken("te", Mode::Iptables, "iptables -t nat -F KUBE-SERVICES").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repaired_drift_is_reported_with_its_name() {
    let mut rig = Rig::start("tf", Mode::Nftables).await;
    let node = rig.net.name("node");
    sh(&format!("ip netns exec {node} nft flush map ip fairlead frontends"));
    let report = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Kind::Drift(report) = rig.stream.next().await {
                break report;
            }
        }
    });
    let report = report.await.expect("in time");
    assert_eq!(report.count, 2, "{report:?}");
    assert!(report.names.iter().any(|name| name.contains("frontends: 10.96.0.11 . tcp . 80")), "{report:?}");
    let [intent, kernel] = rig.trace("10.96.0.11").await;
    assert_eq!(intent, kernel, "it is repaired");
    rig.stop().await;
}
