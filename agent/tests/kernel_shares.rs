//! Who gets how much, in real kernels with real packets: weights, slow start, Maglev, and the health checks of load
//! balancers. Needs root and Debian's nftables, iptables and iproute2; without them it fails and says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::agent::Agent;
use common::cases;
use common::net::{Net, PATIENCE, sh};
use common::programmed::Programmed;
use common::{endpoint, service};
use fairlead_agent::Mode;
use fairlead_agent::kernel::Kernel;
use fairlead_agent::kernel::linux::{Iptables, Nftables};
use fairlead_agent::plan::{NftablesPlane, Plane};
use fairlead_proto::model::annotations;
use fairlead_proto::v1::{Endpoint, EndpointRef, NodeDelta, ServiceItem};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const CONNECTIONS: u32 = 100_000;
const WEIGHTS: [u32; 4] = [1, 2, 3, 4];

/// One endpoint at a pod's port, with a weight.
fn at(pod: usize, port: u16, weight: u32) -> Endpoint {
    let node = format!("node{pod}");
    let one = endpoint(&format!("10.244.{pod}.2"), &node, &[&format!("dns:{port}/UDP")]);
    Endpoint { weight: Some(weight), pod_name: format!("pod{pod}-{port}"), ..one }
}

/// New connections of many clients, counted where they arrive.
fn shares(net: &Net) -> Vec<u32> {
    let counts: Arc<[AtomicU32; 4]> = Arc::default();
    for (index, (pod, port)) in
        [("pod1", 9_001_u16), ("pod1", 9_002), ("pod2", 9_001), ("pod2", 9_002)].into_iter().enumerate()
    {
        let socket = net.inside(pod, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let counts = counts.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 8];
            while socket.recv_from(&mut buffer).is_ok() {
                counts[index].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let all = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u32>();
    sh(&format!("ip -n {} addr add 192.0.2.3/24 dev eth0", net.name("out")));
    // Each from a source of its own: a source that comes again is the same flow, and no new draw.
    let source = |index: u32| {
        let address = Ipv4Addr::new(192, 0, 2, if index < CONNECTIONS / 2 { 2 } else { 3 });
        (address, u16::try_from(10_000 + index % (CONNECTIONS / 2)).unwrap())
    };
    let sent = net.inside("out", || {
        let mut sent = 0;
        for first in (0..CONNECTIONS).step_by(100) {
            // Few at once, or a queue would drop some.
            let sockets: Vec<UdpSocket> =
                (first..first + 100).map(|index| UdpSocket::bind(source(index)).unwrap()).collect();
            for socket in &sockets {
                sent += u32::from(socket.send_to(b"!", "10.96.0.77:953").is_ok());
            }
            let patience = Instant::now() + PATIENCE;
            while all() < sent && Instant::now() < patience {
                std::thread::yield_now();
            }
        }
        sent
    });
    let deadline = Instant::now() + PATIENCE;
    while all() < sent && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
}

/// Pearson's χ² of what was seen against the weights.
fn chi_square(seen: &[u32], weights: &[u32]) -> f64 {
    let (total, sum) = (f64::from(seen.iter().sum::<u32>()), f64::from(weights.iter().sum::<u32>()));
    let part = |(seen, weight): (&u32, &u32)| {
        let expected = total * f64::from(*weight) / sum;
        (f64::from(*seen) - expected).powi(2) / expected
    };
    seen.iter().zip(weights).map(part).sum()
}

fn weights_hold<P: Plane>(net: &Net, kernel: impl Kernel<P> + 'static) {
    let endpoints =
        vec![at(1, 9_001, WEIGHTS[0]), at(1, 9_002, WEIGHTS[1]), at(2, 9_001, WEIGHTS[2]), at(2, 9_002, WEIGHTS[3])];
    let counted = (service("counted", "10.96.0.77", &["dns:953/UDP"]), endpoints);
    let _plane = Programmed::start(kernel, cases::node(), &[counted]);
    let seen = shares(net);
    let arrived: u32 = seen.iter().sum();
    assert!(arrived > CONNECTIONS - CONNECTIONS / 100, "{arrived} of {CONNECTIONS} arrived");
    let chi = chi_square(&seen, &WEIGHTS);
    // Three degrees of freedom: a right kernel exceeds 30.7 once in a million runs, equal shares are at thousands.
    assert!(chi < 30.7, "χ² = {chi:.1} for {seen:?} of weights {WEIGHTS:?}");
    println!("χ² = {chi:.1} for {seen:?}");
}

#[test]
fn weights_are_shares_nftables() {
    let net = Net::build("A");
    weights_hold(&net, Nftables::new(Some(net.path("node"))));
}

#[test]
fn weights_are_shares_iptables() {
    let net = Net::build("B");
    let names = cases::node().names;
    weights_hold(&net, Iptables::new(names).in_namespace(Some(net.path("node"))));
}

fn hashed(pods: &[usize]) -> (ServiceItem, Vec<Endpoint>) {
    let mut item = service("hashed", "10.96.0.78", &["dns:53/UDP"]);
    item.annotations.insert(annotations::SCHEDULER.into(), "mh".into());
    (item, pods.iter().map(|pod| at(*pod, 8_053, 1)).collect())
}

/// Which pod answers each client.
fn answers(net: &Net) -> BTreeMap<u8, String> {
    net.inside("out", || {
        let mut answers = BTreeMap::new();
        for client in 10..60 {
            for _ in 0..2 {
                // Another port each time: another connection.
                let socket = UdpSocket::bind((Ipv4Addr::new(192, 0, 2, client), 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send_to(b"?", "10.96.0.78:53").unwrap();
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).unwrap();
                let pod = String::from_utf8_lossy(&buffer[..length]).into_owned();
                assert_eq!(*answers.entry(client).or_insert(pod.clone()), pod, "client {client} stays with its pod");
            }
        }
        answers
    })
}

#[test]
fn a_client_finds_its_endpoint_by_maglev_nftables() {
    let net = Net::build("C");
    for client in 10..60 {
        sh(&format!("ip -n {} addr add 192.0.2.{client}/24 dev eth0", net.name("out")));
    }
    let mut plane: Programmed<NftablesPlane> =
        Programmed::start(Nftables::new(Some(net.path("node"))), cases::node(), &[hashed(&[1, 2])]);
    let first = answers(&net);
    let at_one = first.values().filter(|pod| *pod == "pod1").count();
    assert!((5..45).contains(&at_one), "both have clients: {at_one} of 50 at pod1");
    let written = plane.step(&[hashed(&[1])]).len();
    assert!(answers(&net).values().all(|pod| pod == "pod1"));
    plane.step(&[hashed(&[1, 2])]);
    assert_eq!(answers(&net), first, "each is back where it was");
    assert!(written < 4_093, "{written}: what stays isn't written");
    // A restarted agent finds it as it was.
    let before = plane.kernel.observe().unwrap();
    let again: Programmed<NftablesPlane> =
        Programmed::start(Nftables::new(Some(net.path("node"))), cases::node(), &[hashed(&[1, 2])]);
    assert!(again.kernel.observe().unwrap() == before);
    let listed = sh(&format!("ip netns exec {} nft list chain ip fairlead pick-udp-4093-maglev", net.name("node")));
    assert!(listed.contains("jhash ip saddr mod 4093"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_endpoint_starts_slowly_nftables() {
    let net = Net::build("D");
    let (address, mut streams) = common::server::server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&net, (&address, state.path()), Mode::Nftables);
    let mut stream = common::server::stream(&mut streams).await;
    stream.welcome().await;
    let slow = |pods: &[usize]| {
        let mut item = service("slow", "10.96.0.79", &["dns:53/UDP"]);
        item.annotations.insert(annotations::SLOW_START.into(), "5s".into());
        let mut endpoints: Vec<Endpoint> = pods.iter().map(|pod| at(*pod, 8_053, 1)).collect();
        endpoints.iter_mut().for_each(|endpoint| endpoint.weight = None);
        (item, endpoints)
    };
    stream.delta(common::full(3, &[slow(&[1])])).await;
    assert_eq!(stream.applied().await, 3);
    let node = net.name("node");
    let slots = || {
        let listed = sh(&format!("ip netns exec {node} nft list map ip fairlead endpoints-udp"));
        let of = |pod: &str| listed.matches(&format!("{pod} . 8053")).count();
        (of("10.244.1.2"), of("10.244.2.2"))
    };
    assert_eq!(slots(), (1, 0));
    let begun = Instant::now();
    stream.delta(common::full(4, &[slow(&[1, 2])])).await;
    assert_eq!(stream.applied().await, 4);
    let mut seen = vec![slots()];
    assert_eq!(seen, [(10, 1)], "a tenth at first");
    let mut before = (10, 1);
    while seen.last() != Some(&(1, 1)) {
        assert!(begun.elapsed() < Duration::from_secs(15), "{seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = slots();
        // A change takes two transactions: what only one listing saw may lie between them.
        if now == std::mem::replace(&mut before, now) && seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4), "{took:?}: {seen:?}");
    let share = |(one, two): &(usize, usize)| (two * 1_000) / one;
    assert!(seen.windows(2).all(|two| share(&two[0]) < share(&two[1])), "it only grows: {seen:?}");
    assert!(seen.len() >= 6, "in steps: {seen:?}");
    agent.stop().await;
}

/// Body of the answer that has this status and weight; others are asked again for a while.
fn health(net: &Net, to: &str, wanted: (u16, &str)) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = ask_health(net, to);
        match &last {
            Some((status, weight, body)) if (*status, weight.as_str()) == wanted => return body.clone(),
            _ => assert!(Instant::now() < deadline, "{to}: {wanted:?} is expected, {last:?} is answered"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status, weight header and body; `None`: nobody listens.
fn ask_health(net: &Net, to: &str) -> Option<(u16, String, String)> {
    let to: SocketAddr = to.parse().unwrap();
    let text = net.inside("out", || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        Some(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let weight = head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
    Some((status, weight.unwrap_or_default().to_owned(), body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_learn_who_has_endpoints_nftables() {
    let net = Net::build("E");
    let (address, mut streams) = common::server::server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&net, (&address, state.path()), Mode::Nftables);
    let mut stream = common::server::stream(&mut streams).await;
    stream.welcome().await;
    let edge = |pods: &[usize], port: u32| {
        let item = ServiceItem {
            r#type: "LoadBalancer".into(),
            external_local: true,
            health_check_node_port: port,
            ..service("edge", "10.96.0.80", &["dns:53:30053/UDP"])
        };
        (item, pods.iter().map(|pod| at(*pod, 8_053, 1)).collect::<Vec<_>>())
    };
    stream.delta(common::full(3, &[edge(&[1, 2], 32_100)])).await;
    assert_eq!(stream.applied().await, 3);
    let body = health(&net, "192.0.2.1:32100", (200, "1"));
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"edge\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}\n";
    assert_eq!(body, expected);
    health(&net, "[2001:db8::1]:32100", (200, "1"));
    stream.delta(common::full(4, &[edge(&[2], 32_100)])).await;
    assert_eq!(stream.applied().await, 4);
    let body = health(&net, "192.0.2.1:32100", (503, "0"));
    assert!(body.contains("\"localEndpoints\": 0"), "{body}");
    stream.delta(common::full(5, &[edge(&[1], 32_101)])).await;
    assert_eq!(stream.applied().await, 5);
    let closed = || net.ask("out", "192.0.2.1:32100", 1).contains_key("refused");
    let deadline = Instant::now() + PATIENCE;
    while !closed() {
        assert!(Instant::now() < deadline, "a port that nobody asks for any more is closed");
    }
    health(&net, "192.0.2.1:32101", (200, "1"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_endpoint_keeps_its_connections_and_a_dead_one_does_not_nftables() {
    let net = Net::build("F");
    let (address, mut streams) = common::server::server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&net, (&address, state.path()), Mode::Nftables);
    let mut stream = common::server::stream(&mut streams).await;
    stream.welcome().await;
    let echo = |pod: usize| {
        let one = endpoint(&format!("10.244.{pod}.2"), &format!("node{pod}"), &["echo:8081/TCP"]);
        Endpoint { pod_name: format!("pod{pod}"), ..one }
    };
    let both = vec![echo(1), echo(2)];
    stream.delta(common::full(3, &[(service("echo", "10.96.0.81", &["echo:81/TCP"]), both)])).await;
    assert_eq!(stream.applied().await, 3);
    let mut connections: BTreeMap<usize, TcpStream> = BTreeMap::new();
    while connections.len() < 2 {
        let one = net.inside("out", || TcpStream::connect("10.96.0.81:81").unwrap());
        one.set_read_timeout(Some(PATIENCE)).unwrap();
        let node = net.name("node");
        let port = one.local_addr().unwrap().port();
        let flows = sh(&format!("ip netns exec {node} conntrack -L -p tcp --sport {port}"));
        let pod = if flows.contains("src=10.244.1.2") { 1 } else { 2 };
        connections.insert(pod, one);
    }
    let goes_on = |stream: &mut TcpStream| -> bool {
        let mut buffer = [0; 1];
        stream.write_all(b"!").is_ok() && stream.read_exact(&mut buffer).is_ok()
    };
    assert!(connections.values_mut().all(goes_on));
    // The first is taken out by its labels, the second dies.
    let gone =
        |pod: usize, alive| EndpointRef { address: format!("10.244.{pod}.2"), pod_name: format!("pod{pod}"), alive };
    let endpoints = common::changed("echo", &[gone(1, true), gone(2, false)], &[]);
    stream.delta(NodeDelta { from: Some(3), to: 4, endpoints, ..NodeDelta::default() }).await;
    assert_eq!(stream.applied().await, 4);
    let deadline = Instant::now() + PATIENCE;
    while goes_on(connections.get_mut(&2).unwrap()) {
        assert!(Instant::now() < deadline, "a connection to a dead pod is cut");
    }
    assert!(goes_on(connections.get_mut(&1).unwrap()), "one to a pod that goes on isn't");
    assert_eq!(net.ask("out", "10.96.0.81:81", 1).into_keys().collect::<Vec<_>>(), ["refused"], "nothing new");
    agent.stop().await;
}
