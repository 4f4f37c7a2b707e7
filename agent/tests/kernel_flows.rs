//! What the kernel remembers of connections when services change: real packets through real rules, in nftables and in both
//! kinds of iptables. Needs root and Debian's packages; without them it fails and says so, it never skips.
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
use common::{ask, cases};
use common::{endpoint, service};
use fairlead_agent::kernel::linux::{Flavor, Iptables, Nftables};
use fairlead_agent::plan::{IptablesPlane, Names, NftablesPlane, Plane};
use fairlead_proto::v1::{Endpoint, ServiceItem};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const ECHO: &str = "10.96.0.10:81";
const DNS: &str = "10.96.0.10:53";
const ECHO_V6: &str = "[fd00:96::10]:81";
const DNS_V6: &str = "[fd00:96::10]:53";
const NODE_PORT: u16 = 30_081;

/// Makes a plane as an agent's start does.
type Start<'a, P> = dyn Fn(&Services) -> Programmed<P> + 'a;

/// The same story in every plane.
fn everywhere(tag: &str, story: &Story) {
    let net = Net::build(&format!("{tag}n"));
    (story.nftables)(&net, &|services| {
        Programmed::start(Nftables::new(Some(net.path("node"))), cases::node(), services)
    });
    drop(net);
    for (letter, flavor) in [("i", Flavor::Nft), ("l", Flavor::Legacy)] {
        let net = Net::build(&format!("{tag}{letter}"));
        (story.iptables)(&net, &|services| {
            let kernel = Iptables::new(Names::new("KUBE").unwrap()).in_namespace(Some(net.path("node"))).flavor(flavor);
            Programmed::start(kernel, cases::node(), services)
        });
    }
}

struct Story {
    nftables: fn(&Net, &Start<'_, NftablesPlane>),
    iptables: fn(&Net, &Start<'_, IptablesPlane>),
}

macro_rules! stories {
    ($($name:ident $tag:literal $story:ident)*) => {
        $(#[test]
        fn $name() {
            everywhere($tag, &Story { nftables: $story::<NftablesPlane>, iptables: $story::<IptablesPlane> });
        })*
    };
}

stories! {
    a_client_of_a_dead_pod_learns_it_at_once "fa" dead
    a_draining_pod_keeps_its_flows "fb" draining
    udp_of_a_deleted_service_and_of_another_node_port_is_forgotten "fc" deleted
    a_restart_wipes_nothing_that_lives "fd" restart
    sctp_associations_are_forgotten_and_kept "fe" sctp
    many_flows_hold_up_no_acknowledgement "ff" many
}

/// How a pod is, if it is an endpoint.
#[derive(Clone, Copy)]
enum Pod {
    Ready(u8),
    Draining(u8),
}

fn web(pods: &[Pod], node_port: u16) -> (ServiceItem, Vec<Endpoint>) {
    let mut item = service(
        "web",
        "10.96.0.10",
        &["echo:81/TCP", "dns:53/UDP", "sig:54/SCTP", &format!("by:9053:{node_port}/UDP")],
    );
    item.r#type = "NodePort".into();
    item.ports.iter_mut().for_each(|port| {
        if port.name == "echo" {
            port.node_port = i32::from(node_port)
        }
    });
    let ports = ["echo:8081/TCP", "dns:8053/UDP", "sig:8054/SCTP", "by:8053/UDP"];
    let endpoints = pods.iter().flat_map(|pod| {
        let (Pod::Ready(number) | Pod::Draining(number)) = *pod;
        let terminating = matches!(pod, Pod::Draining(_));
        [format!("10.244.{number}.2"), format!("fd00:244:{number}::2")].map(|address| Endpoint {
            ready: !terminating,
            terminating,
            ..endpoint(&address, "node1", &ports)
        })
    });
    (item, endpoints.collect())
}

fn at(pods: &[Pod]) -> (ServiceItem, Vec<Endpoint>) {
    web(pods, NODE_PORT)
}

/// The same with both families.
fn dual(pods: &[Pod]) -> (ServiceItem, Vec<Endpoint>) {
    let (item, endpoints) = at(pods);
    (ServiceItem { cluster_ips: vec!["10.96.0.10".into(), "fd00:96::10".into()], ..item }, endpoints)
}

fn connect(net: &Net, to: &str) -> TcpStream {
    let mut stream = net.inside("out", || TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    echo(&mut stream).unwrap();
    stream
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"there?")?;
    stream.read_exact(&mut [0; 6])
}

/// What a client sees that goes on asking.
fn told(stream: &mut TcpStream) -> (ErrorKind, Duration) {
    let begun = Instant::now();
    loop {
        match echo(stream) {
            Ok(()) => assert!(begun.elapsed() < PATIENCE, "it still answers"),
            Err(error) => return (error.kind(), begun.elapsed()),
        }
    }
}

fn asker(net: &Net) -> impl Fn(&str) -> io::Result<String> {
    let sockets = net.inside("out", || ["0.0.0.0:0", "[::]:0"].map(|any| UdpSocket::bind(any).unwrap()));
    sockets.iter().for_each(|socket| socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap());
    move |to| {
        let to: SocketAddr = to.parse().unwrap();
        let socket = &sockets[usize::from(to.is_ipv6())];
        let mut buffer = [0; 64];
        socket.send_to(b"?", to)?;
        socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

/// Remembered flows of a protocol to a port.
fn remembered(net: &Net, protocol: &str, port: u16) -> usize {
    let listed = sh(&format!("ip netns exec {} conntrack -L -p {protocol} --orig-port-dst {port}", net.name("node")));
    listed.lines().filter(|line| line.contains("dport=")).count()
}

/// How many resets a namespace has sent.
fn resets(net: &Net, name: &str) -> u64 {
    let counters = sh(&format!("ip netns exec {} cat /proc/net/snmp", net.name(name)));
    let tcp: Vec<Vec<&str>> =
        counters.lines().filter(|line| line.starts_with("Tcp:")).map(|line| line.split(' ').collect()).collect();
    let at = tcp[0].iter().position(|word| *word == "OutRsts").unwrap();
    tcp[1][at].parse().unwrap()
}

/// Waits until no translated TCP flow leads to a pod: a client that sends earlier repeats itself ever more rarely.
fn cut(net: &Net, pod: u8) {
    let led = || -> usize {
        let of = |(family, pod): (&str, String)| {
            let listed = sh(&format!("ip netns exec {} conntrack -L -f {family} -p tcp", net.name("node")));
            let to_pod =
                |line: &&str| line.contains(&format!(" src={pod} ")) && !line.contains(&format!(" dst={pod} "));
            listed.lines().filter(to_pod).count()
        };
        let v4 = ("ipv4", format!("10.244.{pod}.2"));
        of(v4) + of(("ipv6", format!("fd00:244:{pod}::2")))
    };
    soon("flows to a dead pod", led, |count| *count == 0);
}

fn dead<P: Plane>(net: &Net, start: &Start<'_, P>) {
    let mut plane = start(&[dual(&[Pod::Ready(1)])]);
    let node_port = format!("192.0.2.1:{NODE_PORT}");
    // So that no neighbour is looked for later on: a solicitation that is lost is repeated after a second only.
    drop(["10.244.2.2:8081", "[fd00:244:2::2]:8081"].map(|to| connect(net, to)));
    let lost = [ECHO, ECHO_V6, &node_port].map(|to| (to, connect(net, to)));
    // The pod is gone without a word: no FIN, no RST.
    sh(&format!("ip -n {} link set eth0 down", net.name("pod1")));
    plane.step(&[dual(&[Pod::Ready(2)])]);
    cut(net, 1);
    for (to, mut stream) in lost {
        let (kind, took) = told(&mut stream);
        assert_eq!(kind, ErrorKind::ConnectionReset, "{to} after {took:?}");
        assert!(took < Duration::from_secs(1), "{to}: {took:?}");
    }
    // By whom: the kernel picked the connections up in their middle and sent them to the other pod, which doesn't know them.
    assert!(resets(net, "pod2") >= 3, "{}", resets(net, "pod2"));
    // And with no other endpoint that could answer.
    let last = [ECHO, ECHO_V6].map(|to| (to, connect(net, to)));
    sh(&format!("ip -n {} link set eth0 down", net.name("pod2")));
    plane.step(&[dual(&[])]);
    cut(net, 2);
    for (to, mut stream) in last {
        let (kind, took) = told(&mut stream);
        assert_eq!(kind, ErrorKind::ConnectionReset, "{to} after {took:?}");
        assert!(took < Duration::from_secs(1), "{to}: {took:?}");
    }
}

fn draining<P: Plane>(net: &Net, start: &Start<'_, P>) {
    let mut plane = start(&[dual(&[Pod::Ready(1)])]);
    let ask = asker(net);
    let mut kept = [ECHO, ECHO_V6].map(|to| connect(net, to));
    for dns in [DNS, DNS_V6] {
        assert_eq!(ask(dns).unwrap(), "pod1");
    }
    plane.step(&[dual(&[Pod::Ready(2), Pod::Draining(1)])]);
    let begun = Instant::now();
    // Longer than both looks that a forgotten flow would have got.
    while begun.elapsed() < Duration::from_secs(2) {
        kept.iter_mut().for_each(|stream| echo(stream).unwrap());
        for dns in [DNS, DNS_V6] {
            assert_eq!(ask(dns).unwrap(), "pod1");
        }
    }
    assert_eq!(asker(net)(DNS).unwrap(), "pod2", "nothing new");
    plane.step(&[dual(&[Pod::Ready(2)])]);
    for dns in [DNS, DNS_V6] {
        soon("the drained pod is gone", || ask(dns).unwrap_or_default(), |answer| answer == "pod2");
    }
    for mut stream in kept {
        assert_eq!(told(&mut stream).0, ErrorKind::ConnectionReset);
    }
}

fn deleted<P: Plane>(net: &Net, start: &Start<'_, P>) {
    let mut plane = start(&[at(&[Pod::Ready(1)])]);
    let (ask, by_node_port) = (asker(net), format!("192.0.2.1:{NODE_PORT}"));
    assert_eq!(ask(DNS).unwrap(), "pod1");
    assert_eq!(ask(&by_node_port).unwrap(), "pod1");
    let mut stream = connect(net, ECHO);
    // Another nodePort.
    plane.step(&[web(&[Pod::Ready(1)], NODE_PORT + 1)]);
    soon("the old nodePort", || remembered(net, "udp", NODE_PORT), |count| *count == 0);
    ask(&by_node_port).unwrap_err();
    assert_eq!(remembered(net, "udp", 53), 1, "the other flow is left alone");
    assert_eq!(
        soon("the new nodePort", || ask(&format!("192.0.2.1:{}", NODE_PORT + 1)), Result::is_ok).unwrap(),
        "pod1"
    );
    // No endpoint.
    plane.step(&[web(&[], NODE_PORT + 1)]);
    soon("no endpoint", || remembered(net, "udp", 53) + remembered(net, "udp", NODE_PORT + 1), |count| *count == 0);
    // The service is deleted: what TCP has lives as long as the pod, as in Kubernetes.
    plane.step(&[at(&[Pod::Ready(1)])]);
    stream = {
        drop(stream);
        connect(net, ECHO)
    };
    soon("served again", || ask(DNS), Result::is_ok).unwrap();
    plane.step(&[]);
    soon("the service is deleted", || remembered(net, "udp", 53), |count| *count == 0);
    ask(DNS).unwrap_err();
    echo(&mut stream).unwrap();
}

fn restart<P: Plane>(net: &Net, start: &Start<'_, P>) {
    let mut plane = start(&[at(&[Pod::Ready(1), Pod::Draining(2)])]);
    let mut served = connect(net, ECHO);
    let to_served = asker(net);
    assert_eq!(to_served(DNS).unwrap(), "pod1");
    // Flows to the other pod from before it began to end.
    plane.step(&[at(&[Pod::Ready(2), Pod::Draining(1)])]);
    let (mut drained, to_drained) = (connect(net, ECHO), asker(net));
    assert_eq!(to_drained(DNS).unwrap(), "pod2");
    plane.step(&[at(&[Pod::Ready(1), Pod::Draining(2)])]);
    let ids = || {
        let listed = sh(&format!("ip netns exec {} conntrack -L -o id", net.name("node")));
        let ours = listed.lines().filter(|line| line.contains("dst=10.96.0.10"));
        let mut ids: Vec<String> = ours.filter_map(|line| line.split("id=").nth(1).map(str::to_owned)).collect();
        ids.sort();
        ids
    };
    let before = ids();
    assert_eq!(before.len(), 4, "{before:?}");
    // Its end waits for what is to be forgotten.
    drop(plane);
    let plane = start(&[at(&[Pod::Ready(1), Pod::Draining(2)])]);
    drop(plane);
    assert_eq!(ids(), before, "the very same entries");
    for stream in [&mut served, &mut drained] {
        echo(stream).unwrap();
    }
    assert_eq!((to_served(DNS).unwrap().as_str(), to_drained(DNS).unwrap().as_str()), ("pod1", "pod2"));
    // The drained pod ends while no agent looks: its flows are found all the same, though no rule speaks of it.
    let plane = start(&[at(&[Pod::Ready(1)])]);
    soon("a pod that ended unseen", || to_drained(DNS).unwrap_or_default(), |answer| answer == "pod1");
    assert_eq!(told(&mut drained).0, ErrorKind::ConnectionReset);
    echo(&mut served).unwrap();
    drop(plane);
}

fn raw(net: &Net, name: &str) -> Socket {
    let socket = net.inside(name, || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(132))).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

fn sctp<P: Plane>(net: &Net, start: &Start<'_, P>) {
    let mut plane = start(&[at(&[Pod::Ready(1)])]);
    let client = raw(net, "out");
    let pods = [raw(net, "pod1"), raw(net, "pod2")];
    let send = || {
        let to: SocketAddr = "10.96.0.10:0".parse().unwrap();
        client.send_to(&ask::packet((40_000, 54), 0, &ask::init(1, &[])), &to.into()).unwrap();
        let heard = |socket: &Socket| {
            let mut buffer = [0; 128];
            let length = (&mut &*socket).read(&mut buffer).ok()?;
            // Behind the IP header.
            (length > 24 && buffer[22..24] == 8054_u16.to_be_bytes()).then_some(())
        };
        (1..).zip(&pods).filter_map(|(number, socket)| heard(socket).map(|()| number)).collect::<Vec<u8>>()
    };
    assert_eq!(send(), [1]);
    assert_eq!(remembered(net, "sctp", 54), 1);
    plane.step(&[at(&[Pod::Ready(2), Pod::Draining(1)])]);
    assert_eq!(send(), [1], "draining");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(send(), [1], "draining, after both looks");
    plane.step(&[at(&[Pod::Ready(2)])]);
    soon("gone", send, |pods| pods == &[2]);
    assert_eq!(remembered(net, "sctp", 54), 1);
    plane.step(&[at(&[])]);
    soon("no endpoint", || remembered(net, "sctp", 54), |count| *count == 0);
    plane.step(&[at(&[Pod::Ready(1)])]);
    soon("served again", send, |pods| pods == &[1]);
    plane.step(&[]);
    soon("deleted", || remembered(net, "sctp", 54), |count| *count == 0);
}

/// So many flows that a look at all of them takes much longer than rules do.
fn many<P: Plane>(net: &Net, start: &Start<'_, P>) {
    const FLOWS: u16 = 60_000;
    let mut plane = start(&[at(&[Pod::Ready(1)])]);
    let alone = quickest(&mut plane);
    // So that nothing is left to be looked for.
    drop(plane);
    let mut plane = start(&[at(&[Pod::Ready(1)])]);
    let crowd = net.inside("out", || UdpSocket::bind("0.0.0.0:0").unwrap());
    for port in 1..=FLOWS {
        // Nothing listens there; the refusals come back to this socket.
        let _ = crowd.send_to(b"!", ("10.244.2.2", port));
        let _ = crowd.send_to(b"!", ("10.244.2.2", port));
    }
    let count = || -> usize { sh(&format!("ip netns exec {} conntrack -C", net.name("node"))).trim().parse().unwrap() };
    let there = count();
    assert!(there > usize::from(FLOWS / 2), "{there} flows");
    let (ask, mut stream) = (asker(net), connect(net, ECHO));
    assert_eq!(ask(DNS).unwrap(), "pod1");
    let begun = Instant::now();
    plane.change(&[at(&[Pod::Ready(2)])]);
    soon("it is forgotten among them", || ask(DNS).unwrap_or_default(), |answer| answer == "pod2");
    let forgotten = begun.elapsed();
    assert_eq!(told(&mut stream).0, ErrorKind::ConnectionReset);
    assert!(count() > there - 100, "nothing else is");
    plane.change(&[at(&[Pod::Ready(1)])]);
    let among = quickest(&mut plane);
    eprintln!("{there} flows: forgotten after {forgotten:?}; a change took {among:?}, without them {alone:?}");
    assert!(among < alone + Duration::from_millis(60), "{among:?}, without the flows {alone:?}");
}

/// The shortest of a few changes that take more endpoints away than are looked for one by one.
fn quickest<P: Plane>(plane: &mut Programmed<P>) -> Duration {
    let many: Vec<Pod> = (1..=12).map(Pod::Ready).collect();
    let change = |_| {
        plane.change(&[at(&many)]);
        let begun = Instant::now();
        plane.change(&[at(&many[..1])]);
        begun.elapsed()
    };
    (0..4).map(change).min().unwrap()
}
