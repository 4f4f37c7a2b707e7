//! nftables of the real kernel, in network namespaces, with real packets. Needs root and Debian's nftables, iproute2 and
//! conntrack; without them it fails and says so, it never skips.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::agent::{Agent, Traffic, within};
use common::cases;
use common::net::{Net, PATIENCE, sh, soon};
use common::programmed::{Programmed, Services};
use common::{endpoint, service};
use fairlead_agent::Mode;
use fairlead_agent::kernel::linux::Nftables;
use fairlead_agent::plan::nftables::Op;
use fairlead_agent::plan::{Family, NftablesPlane};
use fairlead_proto::v1::{Endpoint, ServiceItem};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

type Plane = Programmed<NftablesPlane>;

fn start(net: &Net, services: &Services) -> Plane {
    Programmed::start(Nftables::new(Some(net.path("node"))), cases::node(), services)
}

#[test]
fn the_contract_nftables() {
    let net = Net::build("n");
    let rows = cases::table();
    let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
    let _plane = start(&net, &services);
    let (wrong, count) = cases::hold(&net);
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn everything_lists_with_nft_nftables() {
    let net = Net::build("p");
    let rows = cases::table();
    let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
    let plane = start(&net, &services);
    let node = net.name("node");
    let listed = sh(&format!("ip netns exec {node} nft list ruleset"));
    assert!(listed.contains("dnat"), "{listed}");
    for mark in ["mark set", "[invalid", "unknown"] {
        assert!(!listed.contains(mark), "{mark}: {listed}");
    }
    // And what is listed can be loaded: into another namespace, byte for byte.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &listed).unwrap();
    let other = net.name("pod1");
    sh(&format!("ip netns exec {other} nft -f {}", file.path().display()));
    assert_eq!(sh(&format!("ip netns exec {other} nft list ruleset")), listed);
    drop(plane);
}

#[test]
fn a_restart_changes_nothing_nftables() {
    let net = Net::build("q");
    let rows = cases::table();
    let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
    let plane = start(&net, &services);
    let before = plane.kernel.observe().unwrap();
    drop(plane);
    let plane = start(&net, &services);
    assert!(before == plane.kernel.observe().unwrap(), "an agent's start is a diff");
}

fn web(pods: &[u8]) -> (ServiceItem, Vec<Endpoint>) {
    let endpoints = pods
        .iter()
        .map(|pod| endpoint(&format!("10.244.{pod}.2"), "node1", &["http:8080/TCP", "echo:8081/TCP", "dns:8053/UDP"]));
    (service("web", "10.96.0.10", &["http:80/TCP", "echo:81/TCP", "dns:53/UDP"]), endpoints.collect())
}

/// A packet reads the endpoint count before a commit and the slot after it: it must still find an endpoint.
#[test]
fn no_first_packet_is_lost_while_slots_come_and_go_nftables() {
    const PACKETS: u32 = 1_000_000;
    let net = Net::build("s");
    let mut plane = start(&net, &[web(&[1, 2])]);
    let received: Arc<AtomicU32> = Arc::default();
    for pod in ["pod1", "pod2"] {
        // Beside the pod's answering socket, one that only counts.
        let socket = net.inside(pod, || UdpSocket::bind("0.0.0.0:9053").unwrap());
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20)).unwrap();
        let received = received.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while socket.recv(&mut buffer).is_ok() {
                received.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let counted = |pods: &[u8]| {
        let (mut item, _) = web(&[]);
        item.ports.iter_mut().for_each(|port| port.port += 900);
        item.cluster_ips = vec!["10.96.0.77".into()];
        item.name = "counted".into();
        let endpoints = pods.iter().map(|pod| endpoint(&format!("10.244.{pod}.2"), "node1", &["dns:9053/UDP"]));
        (item, endpoints.collect::<Vec<_>>())
    };
    plane.step(&[web(&[1, 2]), counted(&[1, 2])]);
    let done: Arc<AtomicBool> = Arc::default();
    let sent = {
        let (done, path) = (done.clone(), net.path("out"));
        std::thread::spawn(move || {
            let sent = fairlead_agent::kernel::linux::in_namespace(Some(&path), || first_packets(PACKETS)).unwrap();
            done.store(true, Ordering::Relaxed);
            sent
        })
    };
    let mut steps = 0;
    while !done.load(Ordering::Relaxed) {
        let pods: &[u8] = [&[1, 2][..], &[2], &[1, 2], &[1]][steps % 4];
        plane.change(&[web(&[1, 2]), counted(pods)]);
        steps += 1;
    }
    let sent = sent.join().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while received.load(Ordering::Relaxed) < sent && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(sent, PACKETS);
    assert_eq!(received.load(Ordering::Relaxed), sent, "after {steps} changes");
    assert!(steps > 200, "{steps} changes");
}

/// Each from a source of its own: as many flows as packets.
fn first_packets(count: u32) -> u32 {
    let mut sent = 0;
    let to: SocketAddr = "10.96.0.77:953".parse().unwrap();
    while sent < count {
        // Few at once: what a queue drops would look like a lost packet.
        let sockets: Vec<UdpSocket> = (0..100).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
        for socket in &sockets {
            if socket.send_to(b"!", to).is_ok() {
                sent += 1;
            }
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_repaired_within_two_seconds_nftables() {
    let net = Net::build("u");
    let (address, mut streams) = common::server::server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&net, (&address, state.path()), Mode::Nftables);
    let mut stream = common::server::stream(&mut streams).await;
    assert_eq!(stream.hello.mode, "nftables");
    stream.welcome().await;
    stream.delta(common::full(3, &[web(&[1, 2])])).await;
    assert_eq!(stream.applied().await, 3);
    let node = net.name("node");
    let list = || sh(&format!("ip netns exec {node} nft list table ip fairlead"));
    let whole = list();
    // There may be no table at all.
    let listed = || {
        let arguments = ["netns", "exec", &node, "nft", "list", "table", "ip", "fairlead"];
        let output = std::process::Command::new("ip").args(arguments).output().unwrap();
        sorted(&String::from_utf8_lossy(&output.stdout))
    };
    for harm in [
        "flush chain ip fairlead services",
        "flush map ip fairlead frontends",
        "flush set ip fairlead cluster-ips",
        "delete table ip fairlead",
        "add element ip fairlead dropped { 10.96.0.10 . tcp . 80 }",
        "add rule ip fairlead services drop",
        "add chain ip fairlead stray",
    ] {
        sh(&format!("ip netns exec {node} nft {harm}"));
        assert_ne!(listed(), sorted(&whole), "{harm}");
        within(harm, Duration::from_secs(2), || listed() == sorted(&whole)).await;
    }
    assert_eq!(net.ask("out", "10.96.0.10:80", 20).len(), 2);
    agent.stop().await;
    assert_eq!(sorted(&list()), sorted(&whole), "the rules stay");
}

/// The order of elements in a hash is its own.
fn sorted(listed: &str) -> Vec<String> {
    let mut words: Vec<String> = listed
        .split([',', '\n'])
        .map(|word| word.trim().trim_start_matches("elements = {").trim().trim_end_matches(" }").to_owned())
        .collect();
    words.sort();
    words
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_between_iptables_and_nftables_loses_no_connection() {
    let net = Arc::new(Net::build("v"));
    let state = tempfile::tempdir().unwrap();
    let mut traffic: Option<Traffic> = None;
    let mut kept: Option<TcpStream> = None;
    for (round, mode) in [Mode::Iptables, Mode::Nftables, Mode::Iptables, Mode::Auto].into_iter().enumerate() {
        let (address, mut streams) = common::server::server().await;
        let agent = Agent::start(&net, (&address, state.path()), mode);
        let mut stream = common::server::stream(&mut streams).await;
        stream.welcome().await;
        stream.delta(common::full(3 + round as u64, &[web(&[1, 2])])).await;
        stream.applied().await;
        let through = net.clone();
        let traffic = traffic.get_or_insert_with(|| Traffic::start(through, "10.96.0.10:80"));
        traffic.phase(format!("{round}, served by {mode}"));
        kept.get_or_insert_with(|| net.inside("out", || TcpStream::connect("10.96.0.10:81").unwrap()));
        let (tables, chains) = (
            || sh(&format!("ip netns exec {} nft list tables", net.name("node"))).contains("fairlead"),
            || sh(&format!("ip netns exec {} iptables-save", net.name("node"))).contains("KUBE-SVC"),
        );
        let nftables = matches!(mode, Mode::Nftables | Mode::Auto);
        within("only the new mode's rules are there", Duration::from_secs(3), || {
            (tables(), chains()) == (nftables, !nftables)
        })
        .await;
        traffic.phase(format!("{round}, only by {mode}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        agent.stop().await;
    }
    traffic.unwrap().end(200);
    let mut kept = kept.unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    kept.write_all(b"still").unwrap();
    let mut said = [0; 5];
    kept.read_exact(&mut said).expect("the connection from before the first switch goes on");
    assert_eq!(&said, b"still");
}

/// Another version's table can't be changed in place; it is made again without a moment in which it is empty.
#[test]
fn a_table_of_another_version_is_replaced_without_a_gap_nftables() {
    let net = Arc::new(Net::build("x"));
    let many: Vec<_> = std::iter::once(web(&[1, 2]))
        .chain((0..2_000).map(|index| {
            let (third, fourth) = (index / 250, index % 250);
            let one = endpoint(&format!("10.244.{third}.{fourth}"), "node1", &["http:8080/TCP"]);
            (service(&format!("more{index}"), &format!("10.97.{third}.{fourth}"), &["http:80/TCP"]), vec![one])
        }))
        .collect();
    let mut plane = start(&net, &many);
    let before = plane.kernel.observe().unwrap();
    let node = net.name("node");
    sh(&format!("ip netns exec {node} nft delete chain ip fairlead filter-forward"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "add chain ip fairlead filter-forward { type filter hook forward priority 17; }\n")
        .unwrap();
    sh(&format!("ip netns exec {node} nft -f {}", file.path().display()));
    let traffic = Traffic::start(net.clone(), "10.96.0.10:80");
    std::thread::sleep(Duration::from_millis(100));
    plane.whole();
    std::thread::sleep(Duration::from_millis(100));
    traffic.end(20);
    assert!(before == plane.kernel.observe().unwrap());
}

/// The elements went in, and then a later part was refused: nobody would find these flows stale again.
#[test]
fn flows_are_forgotten_though_a_later_part_is_refused_nftables() {
    let net = Net::build("w");
    let mut plane = start(&net, &[web(&[1])]);
    let socket = net.inside("out", || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send_to(b"?", "10.96.0.10:53").unwrap();
        socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    assert_eq!(ask().unwrap(), "pod1");
    let mut ops = plane.desired.update_all(&common::view(&[web(&[2])])).ops;
    ops.push(Op::DropChain { family: Family::V4, name: "not-there".into() });
    plane.kernel.execute(&ops).unwrap_err();
    soon("its endpoint is gone", || ask().unwrap(), |answer| answer == "pod2");
}
