//! IPVS of a real kernel, with real packets: in a user-mode kernel, since few hosts' own have it where tests run. Needs
//! Debian's user-mode-linux, kmod, ipset, ipvsadm, iptables, iproute2 and conntrack; without them it fails and says so.
//!
//! A guest takes seconds to start and is slow, so each test here tells several stories one after the other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::agent::{Agent, Traffic, within};
use common::net::{Net, PATIENCE, sh};
use common::programmed::{Programmed, Services};
use common::{cases, endpoint, guest, service};
use fairlead_agent::Mode;
use fairlead_agent::kernel::linux::{Ipvs, preflight};
use fairlead_agent::kernel::{Kernel, KernelError};
use fairlead_agent::plan::ipvs::{Balance, Op, Virtual};
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::{IpvsPlane, NodeFacts, Plane as _, Style};
use fairlead_proto::v1::{Endpoint, ServiceItem};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Plane = Programmed<IpvsPlane>;

fn kernel(net: &Net) -> Ipvs {
    Ipvs::new(Some(net.path("node")))
}

fn start(net: &Net, services: &Services) -> Plane {
    start_as(net, cases::node(), services)
}

fn start_as(net: &Net, facts: NodeFacts, services: &Services) -> Plane {
    kernel(net).prepare().unwrap();
    Programmed::start(kernel(net), facts, services)
}

fn node(net: &Net, line: &str) -> String {
    sh(&format!("ip netns exec {} {line}", net.name("node")))
}

/// What this kernel can be said to hold, ours and others', without counters.
fn dump(net: &Net) -> Vec<String> {
    let programs =
        ["ipvsadm -Sn", "iptables-save", "ip6tables-save", "ip route show table local", "ipset list -o save"];
    let all: String = programs.iter().map(|program| node(net, program)).collect();
    let lines = all.lines().filter(|line| !line.starts_with('#') && !line.starts_with("broadcast"));
    let mut lines: Vec<String> = lines
        // Random, and what a use leaves.
        .map(|line| line.split(" initval").next().unwrap().split(" [").next().unwrap().to_owned())
        .filter(|line| !line.starts_with(":") && *line != "COMMIT" && !line.starts_with('*'))
        .collect();
    lines.sort();
    lines
}

fn step(text: &str) {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    println!("{} s: {text}", uptime.split(' ').next().unwrap());
}

#[test]
fn the_contract_ipvs() {
    guest::inside("the_contract_ipvs", 900, || {
        let net = Net::build("n");
        step("the settings");
        the_settings_are_made_and_reported(&net);
        step("the contract");
        let rows = cases::table();
        let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
        let plane = start(&net, &services);
        let (wrong, count) = cases::hold(&net);
        assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
        assert!(count >= 150, "{count}");
        step("the contract traced through what the kernel lists");
        let (wrong, count) = common::traced::hold::<IpvsPlane>(&plane.kernel.observe().unwrap());
        assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
        step("a restart");
        let before = (plane.kernel.observe().unwrap(), dump(&net));
        drop(plane);
        let plane = start(&net, &services);
        assert!(before == (plane.kernel.observe().unwrap(), dump(&net)), "an agent's start is a diff");
        step("drift");
        drift_is_named_and_repaired(&net, &plane);
        assert_eq!(dump(&net), before.1);
    });
}

fn the_settings_are_made_and_reported(net: &Net) {
    let path = net.path("node");
    let bad = |text: &str| {
        let findings = preflight(Some(&path)).unwrap();
        findings.iter().any(|finding| !finding.is_good() && finding.to_string().starts_with(text))
    };
    assert!(bad("net.ipv4.vs.conntrack = 0, not 1"), "{:?}", preflight(Some(&path)));
    kernel(net).prepare().unwrap();
    let findings = preflight(Some(&path)).unwrap();
    assert!(findings.len() >= 6 && findings.iter().all(|finding| finding.is_good()), "{findings:?}");
    assert_eq!(kernel(net).settings().unwrap(), [""; 0]);
    node(net, "sysctl -qw net.ipv4.vs.expire_nodest_conn=0");
    let said = kernel(net).settings().unwrap();
    assert!(said.len() == 1 && said[0].starts_with("net.ipv4.vs.expire_nodest_conn = 0, not 1"), "{said:?}");
    kernel(net).prepare().unwrap();
}

fn drift_is_named_and_repaired(net: &Net, plane: &Plane) {
    for (harm, named) in [
        ("ipvsadm -D -t 10.96.1.1:80", "virtual server tcp 10.96.1.1:80 missing"),
        ("ipvsadm -d -t 10.96.1.1:80 -r 10.244.1.2:8080", "real server 10.244.1.2:8080 of tcp 10.96.1.1:80 missing"),
        ("ipvsadm -e -t 10.96.1.1:80 -r 10.244.1.2:8080 -m -w 9", "weight of real server 10.244.1.2:8080"),
        ("ipvsadm -a -t 10.96.1.1:80 -r 10.244.9.9:1 -m", "real server 10.244.9.9:1 of tcp 10.96.1.1:80 not wanted"),
        ("ipvsadm -E -t 10.96.1.1:80 -s lc", "virtual server tcp 10.96.1.1:80 different"),
        ("ipvsadm -C", "virtual server"),
        ("ipset del FAIRLEAD-SERVED 10.96.1.1,tcp:80", "10.96.1.1,tcp:80 missing or different in set FAIRLEAD-SERVED"),
        (
            "ipset add FAIRLEAD-6-DROPPED fd00:96::1:1,tcp:80",
            "fd00:96::1:1,tcp:80 not wanted in set FAIRLEAD-6-DROPPED",
        ),
        ("ipset flush FAIRLEAD-LOCAL", "different in set FAIRLEAD-LOCAL"),
        ("ipset create FAIRLEAD-OLD hash:ip", "set FAIRLEAD-OLD not wanted"),
        ("iptables -F FAIRLEAD-INPUT", "chain FAIRLEAD-INPUT in filter missing or different"),
        ("iptables -t nat -D PREROUTING -j FAIRLEAD-MARK", "rule missing in PREROUTING in nat: -j FAIRLEAD-MARK"),
        ("iptables -I INPUT -s 192.0.2.77 -j FAIRLEAD-REJECT", "rule not wanted in INPUT in filter"),
        ("ip6tables -t mangle -N FAIRLEAD-OLD", "chain FAIRLEAD-OLD in mangle (IPv6) not wanted"),
        ("ip route del local 10.96.0.0/12 dev fairlead-ipvs table local", "local route 10.96.0.0/12 missing"),
        ("ip route add local 10.97.0.0/16 dev fairlead-ipvs table local", "local route 10.97.0.0/16 not wanted"),
        ("ip link set fairlead-ipvs down", "device fairlead-ipvs missing or down"),
        ("ip link del fairlead-ipvs", "device fairlead-ipvs missing or down"),
    ] {
        node(net, harm);
        let ops = IpvsPlane::diff(&plane.kernel.observe().unwrap(), &plane.desired, Style::Edit);
        let said: Vec<String> = ops.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|text| text.contains(named)), "{harm}: {said:?}");
        plane.kernel.execute(&ops).unwrap();
        plane.holds();
    }
}

#[test]
fn what_is_not_ours_stays_ipvs() {
    guest::inside("what_is_not_ours_stays_ipvs", 900, || {
        let net = Net::build("o");
        for line in [
            "ipvsadm -A -t 192.0.2.1:777 -s rr",
            "ipvsadm -a -t 192.0.2.1:777 -r 10.244.2.2:8080 -m -w 3",
            "ipvsadm -A -u 203.0.113.200:53 -s lc -p 60",
            "ipvsadm -A -f 7 -s wrr",
            "ipset create FOREIGN hash:ip",
            "ipset add FOREIGN 203.0.113.9",
            "iptables -N FOREIGN",
            "iptables -A FOREIGN -m set --match-set FOREIGN src -j DROP",
            "iptables -A INPUT -j FOREIGN",
            "iptables -t nat -A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE",
            "ip route add local 203.0.113.3/32 dev lo table local",
        ] {
            node(&net, line);
        }
        // A table comes to be with its first look.
        node(&net, "iptables -t mangle -S");
        node(&net, "ip6tables -t mangle -S");
        node(&net, "ip6tables -t nat -S");
        let before = dump(&net);
        let rows = cases::table();
        let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
        for _ in 0..2 {
            step("programmed and cleaned up");
            let plane = start(&net, &services);
            let now = dump(&net);
            let gone: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
            assert!(gone.is_empty() && now.len() > before.len(), "{gone:?}");
            assert_eq!(plane.kernel.observe().unwrap().foreign.len(), 3);
            drop(plane);
            kernel(&net).clean().unwrap();
            assert_eq!(dump(&net), before);
            assert!(!kernel(&net).is_here());
        }
        kernel(&net).clean().unwrap();
        step("somebody else's virtual server at an address of ours");
        node(&net, "ipvsadm -A -t 10.96.0.10:80 -s sed");
        let services = [
            web(&[1, 2]),
            (service("other", "10.96.0.20", &["80/TCP"]), vec![endpoint("10.244.1.2", "node1", &["8080/TCP"])]),
        ];
        let plane = kernel(&net);
        let desired = common::compile_ipvs(&services);
        for _ in 0..2 {
            let ops = IpvsPlane::diff(&plane.observe().unwrap(), &desired, Style::Edit);
            let said = plane.execute(&ops).unwrap_err().to_string();
            assert!(said.contains("tcp 10.96.0.10:80 was made by somebody else"), "{said}");
            assert!(node(&net, "ipvsadm -Sn").contains("-A -t 10.96.0.10:80 -s sed\n"));
            assert_eq!(net.ask("pod1", "10.96.0.20:80", 2).len(), 1, "the other service is served all the same");
        }
        node(&net, "ipvsadm -D -t 10.96.0.10:80");
        plane.execute(&IpvsPlane::diff(&plane.observe().unwrap(), &desired, Style::Edit)).unwrap();
        assert_eq!(net.ask("pod1", "10.96.0.10:80", 4).len(), 2);
        step("what the kernel lacks");
        let at = Virtual::Address(Protocol::Tcp, "10.96.0.30:80".parse().unwrap());
        let balance = Balance { scheduler: "nosuch".into(), flags: 0, persistence: 0 };
        let said = plane.execute(&[Op::Add { at, balance }]).unwrap_err().to_string();
        assert!(said.contains("no scheduler nosuch") && said.contains("10.96.0.30:80"), "{said}");
        plane.clean().unwrap();
    });
}

fn web(pods: &[u8]) -> (ServiceItem, Vec<Endpoint>) {
    let endpoints = pods
        .iter()
        .map(|pod| endpoint(&format!("10.244.{pod}.2"), "node1", &["http:8080/TCP", "echo:8081/TCP", "dns:8053/UDP"]));
    (service("web", "10.96.0.10", &["http:80/TCP", "echo:81/TCP", "dns:53/UDP"]), endpoints.collect())
}

#[test]
fn connections_ipvs() {
    guest::inside("connections_ipvs", 900, || {
        let net = Net::build("c");
        step("the source of the node's own traffic");
        the_node_goes_out_as_itself(&net);
        step("weights");
        shares_are_weights(&net);
        step("an endpoint that drains");
        a_draining_endpoint_keeps_what_it_has(&net);
        step("UDP");
        udp_follows(&net);
        step("SCTP");
        sctp_associates(&net);
        kernel(&net).clean().unwrap();
    });
}

/// With nobody masqueraded by where he comes from, the route alone gives the source.
fn the_node_goes_out_as_itself(net: &Net) {
    let facts = NodeFacts { local_cidrs: Vec::new(), ..cases::node() };
    let mut both = web(&[2]);
    both.0.cluster_ips.push("fd00:96::10".into());
    both.1.push(endpoint("fd00:244:2::2", "node1", &["http:8080/TCP"]));
    let _plane = start_as(net, facts, &[both]);
    for (to, seen) in [("10.96.0.10:80", "pod2 192.0.2.1"), ("[fd00:96::10]:80", "pod2 2001:db8::1")] {
        assert_eq!(net.ask("node", to, 3), BTreeMap::from([(seen.to_owned(), 3)]));
    }
}

/// Pearson's χ² with one degree of freedom: 10.83 is exceeded once in a thousand times by chance.
fn shares_are_weights(net: &Net) {
    let weighted = |scheduler: Option<&str>| {
        let (mut item, mut endpoints) = web(&[1, 2]);
        endpoints[1].weight = Some(3);
        if let Some(name) = scheduler {
            item.annotations.insert("fairlead.io/scheduler".into(), name.into());
        }
        (item, endpoints)
    };
    let plane = start(net, &[weighted(None)]);
    assert!(node(net, "ipvsadm -Sn").contains("10.96.0.10:80 -s wrr"));
    let count = 400.0;
    let answers = net.ask_within(PATIENCE, ("pod1", "10.96.0.10:80"), 400);
    let squared: f64 = [("pod1", 0.25), ("pod2", 0.75)]
        .iter()
        .map(|(pod, share)| {
            let seen: usize = answers.iter().filter(|(text, _)| text.starts_with(pod)).map(|(_, count)| count).sum();
            (seen as f64 - share * count).powi(2) / (share * count)
        })
        .sum();
    assert!(squared < 10.83, "χ² {squared}: {answers:?}");
    drop(plane);
    for name in ["lc", "wlc", "sh", "mh", "sed", "nq", "dh", "lblc", "lblcr", "fo", "ovf", "rr"] {
        let plane = start(net, &[weighted(Some(name))]);
        let answers = net.ask("pod1", "10.96.0.10:80", 4);
        assert!(answers.keys().all(|text| text.starts_with("pod")), "{name}: {answers:?}");
        drop(plane);
    }
}

fn a_draining_endpoint_keeps_what_it_has(net: &Net) {
    let draining = |pods: &[u8]| {
        let (item, mut endpoints) = web(pods);
        let one = endpoints.iter_mut().find(|endpoint| endpoint.address == "10.244.1.2").unwrap();
        (one.ready, one.terminating) = (false, true);
        (item, endpoints)
    };
    let mut plane = start(net, &[web(&[1])]);
    let mut kept = net.inside("out", || TcpStream::connect("10.96.0.10:81").unwrap());
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut echo = || {
        let mut said = [0; 5];
        kept.write_all(b"still")?;
        kept.read_exact(&mut said).map(|()| said)
    };
    assert_eq!(&echo().unwrap(), b"still");
    plane.step(&[web(&[1, 2])]);
    plane.step(&[draining(&[1, 2])]);
    assert!(node(net, "ipvsadm -Sn").contains("-a -t 10.96.0.10:81 -r 10.244.1.2:8081 -m -w 0\n"));
    let answers = net.ask("out", "10.96.0.10:80", 20);
    assert!(answers.keys().all(|text| text.starts_with("pod2")), "nothing new: {answers:?}");
    assert_eq!(&echo().unwrap(), b"still", "what it has lives");
    // Its deadline passed: the connection is cut, not left to hang.
    plane.step(&[web(&[2])]);
    let begun = Instant::now();
    echo().unwrap_err();
    assert!(begun.elapsed() < PATIENCE, "cut");
    // The last one drains: nobody new, and the old one stays.
    let mut last = net.inside("out", || TcpStream::connect("10.96.0.10:81").unwrap());
    let (item, mut endpoints) = web(&[2]);
    (endpoints[0].ready, endpoints[0].serving) = (false, false);
    plane.step(&[(item, endpoints)]);
    assert_eq!(net.ask("out", "10.96.0.10:81", 1), BTreeMap::from([("refused".to_owned(), 1)]));
    last.write_all(b"still").unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    last.read_exact(&mut [0; 5]).unwrap();
}

/// One socket, one flow: it must move on when its endpoint goes.
fn udp_follows(net: &Net) {
    let mut plane = start(net, &[web(&[1, 2])]);
    let socket = net.inside("pod1", || UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect("10.96.0.10:53").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send(b"?")?;
        socket.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let first = ask().unwrap();
    assert_eq!(ask().unwrap(), first, "a flow stays");
    let (gone, left) = if first == "pod1" { (1, 2) } else { (2, 1) };
    plane.step(&[web(&[left])]);
    assert_ne!(ask().unwrap(), first, "its endpoint {gone} is gone");
    plane.step(&[web(&[])]);
    ask().unwrap_err();
    plane.step(&[web(&[gone])]);
    // The refusal above may still be pending on the socket.
    assert_eq!(ask().or_else(|_| ask()).unwrap(), first);
    plane.step(&[]);
    ask().unwrap_err();
}

/// Real associations, by the kernel's own SCTP.
fn sctp_associates(net: &Net) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::from(132))).expect("module sctp");
    let address = |text: &str| text.parse::<SocketAddr>().unwrap().into();
    for (pod, ip) in [("pod1", "10.244.1.2:9899"), ("pod2", "10.244.2.2:9899")] {
        let listener = net.inside(pod, socket);
        listener.bind(&address(ip)).unwrap();
        listener.listen(16).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut peer, _)) = listener.accept() {
                let _ = peer.write_all(pod.as_bytes());
                // Read to the client's end, lest the answer be lost with the association.
                let _ = peer.read(&mut [0; 16]);
            }
        });
    }
    let item = service("sig", "10.96.0.40", &["90/SCTP"]);
    let endpoints = [1, 2].map(|pod| endpoint(&format!("10.244.{pod}.2"), "node1", &["9899/SCTP"])).to_vec();
    let mut plane = start(net, &[(item.clone(), endpoints.clone())]);
    let ask = || {
        net.inside("out", || {
            let mut client = socket();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.connect(&address("10.96.0.40:90"))?;
            let mut said = [0; 4];
            client.read_exact(&mut said).map(|()| String::from_utf8_lossy(&said).into_owned())
        })
    };
    let mut answers: Vec<String> = (0..6).map(|_| ask().unwrap()).collect();
    answers.sort();
    assert_eq!(answers, ["pod1", "pod1", "pod1", "pod2", "pod2", "pod2"]);
    plane.step(&[(item, endpoints[1..].to_vec())]);
    assert_eq!((0..3).map(|_| ask().unwrap()).collect::<Vec<_>>(), ["pod2"; 3]);
}

fn with_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work);
}

#[test]
fn an_agent_ipvs() {
    guest::inside("an_agent_ipvs", 900, || {
        with_runtime(async {
            step("drift");
            drift_is_repaired_within_two_seconds().await;
            step("a switch");
            a_switch_loses_no_connection().await;
        });
    });
}

async fn drift_is_repaired_within_two_seconds() {
    let net = Net::build("u");
    let (address, mut streams) = common::server::server().await;
    let state = tempfile::tempdir().unwrap();
    // What this kernel gives where nobody says what to take: it has no nftables.
    let agent = Agent::start(&net, (&address, state.path()), Mode::Auto);
    let _guard = agent.cancel.clone().drop_guard();
    let mut stream = common::server::stream(&mut streams).await;
    assert_eq!(stream.hello.mode, "ipvs");
    stream.welcome().await;
    stream.delta(common::full(3, &[web(&[1, 2])])).await;
    assert_eq!(stream.applied().await, 3);
    let whole = dump(&net);
    for harm in [
        "ipvsadm -D -t 10.96.0.10:80",
        "ipvsadm -d -t 10.96.0.10:80 -r 10.244.1.2:8080",
        "ipvsadm -C",
        "ipset del FAIRLEAD-SERVED 10.96.0.10,tcp:80",
        "ip link del fairlead-ipvs",
    ] {
        node(&net, harm);
        let begun = Instant::now();
        let took = loop {
            let now = dump(&net);
            if now == whole {
                break begun.elapsed();
            }
            let gone: Vec<_> = whole.iter().filter(|line| !now.contains(line)).collect();
            assert!(begun.elapsed() < Duration::from_secs(60), "{harm}: not repaired: {gone:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        println!("repaired after {took:?}: {harm}");
    }
    // Starting iptables is slow here, so that its rules are read less often.
    node(&net, "iptables -t nat -F FAIRLEAD-POSTROUTING");
    within("a rule is repaired", Duration::from_secs(60), || dump(&net) == whole).await;
    agent.stop().await;
    assert_eq!(dump(&net), whole, "the rules stay");
    assert_eq!(net.ask("out", "10.96.0.10:80", 4).len(), 2);
}

async fn a_switch_loses_no_connection() {
    let net = Arc::new(Net::build("v"));
    let state = tempfile::tempdir().unwrap();
    let mut traffic: Option<Traffic> = None;
    let mut kept: Vec<TcpStream> = Vec::new();
    for (round, mode) in [Mode::Iptables, Mode::Ipvs, Mode::Iptables, Mode::Ipvs].into_iter().enumerate() {
        let (address, mut streams) = common::server::server().await;
        let agent = Agent::start(&net, (&address, state.path()), mode);
        // A failed assertion must end the agent too: its threads would keep the test's runtime.
        let _guard = agent.cancel.clone().drop_guard();
        let mut stream = common::server::stream(&mut streams).await;
        assert_eq!(stream.hello.mode, mode.name());
        stream.welcome().await;
        stream.delta(common::full(3 + round as u64, &[web(&[1, 2])])).await;
        stream.applied().await;
        let through = net.clone();
        let traffic = traffic.get_or_insert_with(|| Traffic::start(through, "10.96.0.10:80"));
        traffic.phase(format!("{round}, served by {mode}"));
        let chains = || node(&net, "iptables-save").contains("KUBE-SVC");
        if mode == Mode::Ipvs {
            within("iptables' chains are gone", Duration::from_secs(60), || !chains()).await;
            kept.push(net.inside("out", || TcpStream::connect("10.96.0.10:81").unwrap()));
        } else {
            assert!(chains());
            // What carries the connection from before stays, and nothing else of a virtual server.
            let left = if round == 0 { 0 } else { 1 };
            let begun = Instant::now();
            while node(&net, "ipvsadm -Sn").matches("-A ").count() != left {
                let waited = begun.elapsed();
                assert!(waited < Duration::from_secs(60), "left in round {round}:\n{}", node(&net, "ipvsadm -Ln"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if round == 0 {
                kept.push(net.inside("out", || TcpStream::connect("10.96.0.10:81").unwrap()));
            }
        }
        traffic.phase(format!("{round}, only by {mode}"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        for one in &mut kept {
            let mut said = [0; 5];
            one.set_read_timeout(Some(PATIENCE)).unwrap();
            one.write_all(b"still").unwrap();
            one.read_exact(&mut said).unwrap_or_else(|error| panic!("a connection from before {mode} ended: {error}"));
            assert_eq!(&said, b"still");
        }
        agent.stop().await;
    }
    traffic.unwrap().end(100);
    step("back for good");
    drop(kept);
    let (address, mut streams) = common::server::server().await;
    let agent = Agent::start(&net, (&address, state.path()), Mode::Iptables);
    let _guard = agent.cancel.clone().drop_guard();
    let mut stream = common::server::stream(&mut streams).await;
    stream.welcome().await;
    stream.delta(common::full(9, &[web(&[1, 2])])).await;
    stream.applied().await;
    within("nothing of IPVS is left", Duration::from_secs(60), || {
        !dump(&net).iter().any(|line| line.contains("FAIRLEAD-"))
    })
    .await;
    assert_eq!(node(&net, "ipvsadm -Sn"), "");
    assert!(!kernel(&net).is_here());
    agent.stop().await;
}

/// On a host as it is: it has IPVS, or says in one line that it hasn't.
#[test]
fn a_host_without_ipvs_says_so() {
    match Ipvs::new(None).check() {
        Ok(()) => assert!(std::path::Path::new("/proc/net/ip_vs").exists()),
        Err(error) => {
            assert!(matches!(error, KernelError::Lacks(_) | KernelError::Netlink { .. }), "{error:?}");
            assert!(error.to_string().lines().count() == 1, "{error}");
        }
    }
}
