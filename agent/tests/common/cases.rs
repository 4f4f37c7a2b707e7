//! The contract of the data planes as a table: objects, a packet, and where it ends. Every plane is held to every case, with
//! IPv4 and with IPv6.
//!
//! The node of the tests is `node1` in zone `a` with `pod1`; `pod2` is said to be on `node2` in zone `b`, though the same
//! kernel reaches it. The rules are kube-proxy's, and what users of it wait for.

use super::net::{Net, PATIENCE, SILENCE};
use super::{ask, endpoint, facts, service};
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::{Family, NodeFacts};
use fairlead_proto::v1::{Endpoint, ServiceItem};
use std::collections::BTreeSet;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The pod of this node.
    Pod1,
    /// The other pod.
    Pod2,
    /// The node itself.
    Node,
    /// A host outside of the cluster.
    Out,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The service's ClusterIP at its port.
    ClusterIp,
    /// Another port of it.
    ClusterIpAt(u16),
    /// The node's address at the service's NodePort.
    NodePort,
    /// The load balancer's address.
    LoadBalancer,
    /// The external address.
    External,
}

/// Where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At these pods, each in turn, who see the client.
    Sees(&'static [u8]),
    /// At these pods, who see the node in the client's place.
    Masked(&'static [u8]),
    /// At one and the same of these pods each time.
    Stays(&'static [u8]),
    /// It is refused at once.
    Refused,
    /// Nothing answers.
    Silence,
}

/// A service and what becomes of packets to it.
pub struct Row {
    /// What it shows.
    pub name: &'static str,
    /// The service.
    pub item: ServiceItem,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The protocol of its port and of the packets.
    pub protocol: Protocol,
    /// The packets.
    pub packets: Vec<(Asker, To, End)>,
}

/// Facts of the node.
pub fn node() -> NodeFacts {
    NodeFacts { node_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()], ..facts("node1") }
}

/// Pod number one or two, with an endpoint in each family.
fn pod(number: u8, ports: &[&str]) -> Vec<Endpoint> {
    let (host, zone) = if number == 1 { ("node1", "a") } else { ("node2", "b") };
    [format!("10.244.{number}.2"), format!("fd00:244:{number}::2")]
        .iter()
        .map(|address| Endpoint { zone: zone.into(), ..endpoint(address, host, ports) })
        .collect()
}

fn pods(numbers: &[u8]) -> Vec<Endpoint> {
    numbers.iter().flat_map(|number| pod(*number, &["http:8080/TCP"])).collect()
}

fn changed(mut endpoints: Vec<Endpoint>, change: impl Fn(&mut Endpoint)) -> Vec<Endpoint> {
    endpoints.iter_mut().for_each(change);
    endpoints
}

struct Table(Vec<Row>);

impl Table {
    fn row(
        &mut self,
        name: &'static str,
        change: impl FnOnce(&mut ServiceItem),
        (endpoints, packets): (Vec<Endpoint>, &[(Asker, To, End)]),
    ) {
        let number = self.0.len() + 1;
        let mut item = service(
            &format!("s{number}"),
            &format!("10.96.1.{number}"),
            &[&format!("http:80:{}/TCP", 30_000 + number)],
        );
        item.cluster_ips.push(format!("fd00:96::1:{number}"));
        change(&mut item);
        if item.r#type == "LoadBalancer" {
            item.load_balancer_ips = vec![format!("203.0.113.{number}"), format!("2001:db8:1::{number}")];
        }
        if !item.external_ips.is_empty() {
            item.external_ips = vec![format!("198.51.100.{number}"), format!("2001:db8:2::{number}")];
        }
        self.0.push(Row { name, item, endpoints, protocol: Protocol::Tcp, packets: packets.to_vec() });
    }

    /// The row before, by another protocol.
    fn again(&mut self, name: &'static str, protocol: Protocol) {
        let row = self.0.last().unwrap();
        let (mut item, mut endpoints) = (row.item.clone(), row.endpoints.clone());
        let number = self.0.len() + 1;
        item.name = format!("s{number}");
        item.cluster_ips = vec![format!("10.96.1.{number}"), format!("fd00:96::1:{number}")];
        if !item.load_balancer_ips.is_empty() {
            item.load_balancer_ips = vec![format!("203.0.113.{number}"), format!("2001:db8:1::{number}")];
        }
        let spelt = protocol.name().to_ascii_uppercase();
        for port in &mut item.ports {
            port.protocol.clone_from(&spelt);
            port.node_port = 30_000 + i32::try_from(number).unwrap();
        }
        for port in endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.ports) {
            port.protocol.clone_from(&spelt);
            port.port = ask::port(protocol).into();
        }
        let packets = row.packets.clone();
        self.0.push(Row { name, item, endpoints, protocol, packets });
    }
}

/// The table.
pub fn table() -> Vec<Row> {
    use Asker::{Node, Out, Pod1, Pod2};
    use End::{Masked, Refused, Sees, Silence, Stays};
    use To::{ClusterIp, ClusterIpAt, External, LoadBalancer, NodePort};
    let both: &[u8] = &[1, 2];
    let mut table = Table(Vec::new());
    let kind = |kind: &'static str| move |item: &mut ServiceItem| item.r#type = kind.into();
    let local = |kind: &'static str| {
        move |item: &mut ServiceItem| {
            item.r#type = kind.into();
            item.external_local = true;
        }
    };

    table.row(
        "a ClusterIP",
        |_| {},
        (
            pods(both),
            &[
                (Pod1, ClusterIp, Sees(both)),
                (Pod2, ClusterIp, Sees(both)),
                (Node, ClusterIp, Masked(both)),
                (Out, ClusterIp, Masked(both)),
                (Pod1, ClusterIpAt(81), Refused),
                (Node, ClusterIpAt(81), Refused),
            ],
        ),
    );
    table.again("a ClusterIP by UDP", Protocol::Udp);
    table.again("a ClusterIP by SCTP", Protocol::Sctp);
    table.row(
        "one endpoint, itself",
        |_| {},
        (pods(&[1]), &[(Pod1, ClusterIp, Sees(&[1])), (Pod2, ClusterIp, Sees(&[1]))]),
    );
    table.row(
        "no endpoint",
        |_| {},
        (vec![], &[(Pod1, ClusterIp, Refused), (Node, ClusterIp, Refused), (Out, ClusterIp, Refused)]),
    );
    table.again("no endpoint by UDP", Protocol::Udp);
    table.again("no endpoint by SCTP", Protocol::Sctp);
    table.row(
        "an endpoint that is not ready",
        |_| {},
        (changed(pods(both), |one| (one.ready, one.serving) = (false, false)), &[(Pod1, ClusterIp, Refused)]),
    );
    table.row(
        "a ready endpoint beside one that is not",
        |_| {},
        (
            changed(pods(both), |one| one.ready = one.node_name == "node1"),
            &[(Pod2, ClusterIp, Sees(&[1])), (Out, ClusterIp, Masked(&[1]))],
        ),
    );
    table.row(
        "terminating endpoints serve while no other does",
        |_| {},
        (changed(pods(both), |one| (one.ready, one.terminating) = (false, true)), &[(Pod1, ClusterIp, Sees(both))]),
    );
    table.row(
        "a terminating endpoint gets nothing new",
        |_| {},
        (
            changed(pods(both), |one| {
                (one.ready, one.terminating) = (one.node_name == "node2", one.node_name == "node1")
            }),
            &[(Pod1, ClusterIp, Sees(&[2])), (Node, ClusterIp, Masked(&[2]))],
        ),
    );
    table.row(
        "a client stays with its endpoint",
        |item| item.affinity_seconds = 60,
        (pods(both), &[(Pod1, ClusterIp, Stays(both)), (Node, ClusterIp, Stays(both)), (Out, ClusterIp, Stays(both))]),
    );
    table.again("a client stays with its endpoint by UDP", Protocol::Udp);
    table.again("a client stays with its endpoint by SCTP", Protocol::Sctp);
    table.row(
        "internal policy Local",
        |item| item.internal_local = true,
        (
            pods(both),
            &[
                (Pod1, ClusterIp, Sees(&[1])),
                (Pod2, ClusterIp, Sees(&[1])),
                (Node, ClusterIp, Masked(&[1])),
                (Out, ClusterIp, Masked(&[1])),
            ],
        ),
    );
    table.row(
        "internal policy Local without a local endpoint",
        |item| item.internal_local = true,
        (pods(&[2]), &[(Pod1, ClusterIp, Silence), (Node, ClusterIp, Silence)]),
    );
    table.row(
        "internal policy Local without any endpoint",
        |item| item.internal_local = true,
        (vec![], &[(Pod1, ClusterIp, Refused)]),
    );
    for distribution in ["PreferSameNode", "PreferSameZone", "PreferClose"] {
        table.row(
            distribution,
            |item| item.traffic_distribution = distribution.into(),
            (pods(both), &[(Pod2, ClusterIp, Sees(&[1])), (Out, ClusterIp, Masked(&[1]))]),
        );
    }
    table.row(
        "what is preferred is not there",
        |item| item.traffic_distribution = "PreferSameZone".into(),
        (pods(&[2]), &[(Pod1, ClusterIp, Sees(&[2]))]),
    );
    table.row(
        "a NodePort",
        kind("NodePort"),
        (
            pods(both),
            &[
                (Pod1, ClusterIp, Sees(both)),
                (Pod1, NodePort, Masked(both)),
                (Node, NodePort, Masked(both)),
                (Out, NodePort, Masked(both)),
            ],
        ),
    );
    table.row(
        "a NodePort without endpoints",
        kind("NodePort"),
        (vec![], &[(Pod1, NodePort, Refused), (Node, NodePort, Refused), (Out, NodePort, Refused)]),
    );
    table.row(
        "a NodePort, external policy Local",
        local("NodePort"),
        (
            pods(both),
            &[
                (Pod2, ClusterIp, Sees(both)),
                (Pod2, NodePort, Sees(both)),
                (Node, NodePort, Masked(both)),
                (Out, NodePort, Sees(&[1])),
            ],
        ),
    );
    table.again("a NodePort by UDP, external policy Local", Protocol::Udp);
    table.again("a NodePort by SCTP, external policy Local", Protocol::Sctp);
    table.row(
        "a NodePort, external policy Local, no local endpoint",
        local("NodePort"),
        (
            pods(&[2]),
            &[
                (Pod1, NodePort, Sees(&[2])),
                (Node, NodePort, Masked(&[2])),
                (Out, NodePort, Silence),
                (Out, ClusterIp, Masked(&[2])),
            ],
        ),
    );
    table.row(
        "external policy Local, the local one terminates",
        local("NodePort"),
        (
            changed(pods(both), |one| {
                (one.ready, one.terminating) = (one.node_name == "node2", one.node_name == "node1")
            }),
            &[(Out, NodePort, Sees(&[1])), (Pod1, NodePort, Sees(&[2]))],
        ),
    );
    table.row(
        "a NodePort with affinity",
        |item| {
            item.r#type = "NodePort".into();
            item.affinity_seconds = 60;
        },
        (pods(both), &[(Out, NodePort, Stays(both))]),
    );
    table.row(
        "a load balancer",
        kind("LoadBalancer"),
        (
            pods(both),
            &[
                (Pod1, LoadBalancer, Masked(both)),
                (Node, LoadBalancer, Masked(both)),
                (Out, LoadBalancer, Masked(both)),
                (Out, NodePort, Masked(both)),
            ],
        ),
    );
    table.again("a load balancer by UDP", Protocol::Udp);
    table.again("a load balancer by SCTP", Protocol::Sctp);
    table.row(
        "a load balancer without endpoints",
        kind("LoadBalancer"),
        (vec![], &[(Out, LoadBalancer, Refused), (Node, LoadBalancer, Refused)]),
    );
    table.row(
        "a load balancer, external policy Local",
        local("LoadBalancer"),
        (
            pods(both),
            &[
                (Pod2, LoadBalancer, Sees(both)),
                (Node, LoadBalancer, Masked(both)),
                (Out, LoadBalancer, Sees(&[1])),
                (Out, NodePort, Sees(&[1])),
            ],
        ),
    );
    table.row(
        "a load balancer, external policy Local, no local endpoint",
        local("LoadBalancer"),
        (pods(&[2]), &[(Out, LoadBalancer, Silence), (Pod1, LoadBalancer, Sees(&[2]))]),
    );
    table.row(
        "source ranges that admit",
        |item| {
            item.r#type = "LoadBalancer".into();
            item.load_balancer_source_ranges =
                ["192.0.2.0/24", "10.9.0.0/16", "2001:db8::/64"].map(String::from).to_vec();
        },
        (
            pods(both),
            &[
                (Out, LoadBalancer, Masked(both)),
                (Out, NodePort, Masked(both)),
                (Node, LoadBalancer, Masked(both)),
                (Pod1, LoadBalancer, Silence),
                (Pod1, ClusterIp, Sees(both)),
            ],
        ),
    );
    table.row(
        "source ranges that do not",
        |item| {
            item.r#type = "LoadBalancer".into();
            item.load_balancer_source_ranges = ["10.9.0.0/16", "192.0.2.3/32", "fd99::/48"].map(String::from).to_vec();
        },
        (pods(both), &[(Out, LoadBalancer, Silence), (Out, NodePort, Silence), (Out, ClusterIp, Masked(both))]),
    );
    table.row(
        "an external address",
        |item| item.external_ips = vec![String::new()],
        (
            pods(both),
            &[
                (Pod1, External, Masked(both)),
                (Node, External, Masked(both)),
                (Out, External, Masked(both)),
                (Out, ClusterIp, Masked(both)),
            ],
        ),
    );
    table.row(
        "an external address without endpoints",
        |item| item.external_ips = vec![String::new()],
        (vec![], &[(Out, External, Refused)]),
    );
    table.row(
        "an external address, external policy Local",
        |item| {
            item.external_ips = vec![String::new()];
            item.external_local = true;
        },
        (pods(both), &[(Out, External, Sees(&[1])), (Pod2, External, Sees(both))]),
    );
    table.row(
        "an endpoint of weight 0 gets nothing new",
        |_| {},
        (
            changed(pods(both), |one| one.weight = (one.node_name == "node1").then_some(0)),
            &[(Pod1, ClusterIp, Sees(&[2])), (Node, ClusterIp, Masked(&[2]))],
        ),
    );
    table.row(
        "endpoints of other weights",
        |_| {},
        (
            changed(pods(both), |one| one.weight = (one.node_name == "node1").then_some(2)),
            &[(Pod1, ClusterIp, Sees(both)), (Out, ClusterIp, Masked(both))],
        ),
    );
    table.0
}

/// The address and port that a packet goes to.
pub fn target(number: usize, to: To, family: Family) -> String {
    let v4 = family == Family::V4;
    let (address, port) = match to {
        To::ClusterIp => (if v4 { format!("10.96.1.{number}") } else { format!("fd00:96::1:{number}") }, 80),
        To::ClusterIpAt(port) => (if v4 { format!("10.96.1.{number}") } else { format!("fd00:96::1:{number}") }, port),
        To::NodePort => {
            let port = 30_000 + u16::try_from(number).unwrap();
            ((if v4 { "192.0.2.1" } else { "2001:db8::1" }).to_owned(), port)
        }
        To::LoadBalancer => (if v4 { format!("203.0.113.{number}") } else { format!("2001:db8:1::{number}") }, 80),
        To::External => (if v4 { format!("198.51.100.{number}") } else { format!("2001:db8:2::{number}") }, 80),
    };
    if v4 { format!("{address}:{port}") } else { format!("[{address}]:{port}") }
}

/// What a pod answers to a client that it sees as itself, or as the node.
fn answer(from: Asker, pod: u8, family: Family, masked: bool) -> String {
    let v4 = family == Family::V4;
    let itself = matches!((from, pod), (Asker::Pod1, 1) | (Asker::Pod2, 2));
    let seen = match from {
        _ if masked || itself => {
            if v4 {
                format!("10.244.{pod}.1")
            } else {
                format!("fd00:244:{pod}::1")
            }
        }
        Asker::Pod1 => (if v4 { "10.244.1.2" } else { "fd00:244:1::2" }).to_owned(),
        Asker::Pod2 => (if v4 { "10.244.2.2" } else { "fd00:244:2::2" }).to_owned(),
        Asker::Out | Asker::Node => (if v4 { "192.0.2.2" } else { "2001:db8::2" }).to_owned(),
    };
    format!("pod{pod} {seen}")
}

/// Sends every packet of the table through a real kernel; gives what went wrong, and how many cases there were.
pub fn hold(net: &Net) -> (Vec<String>, usize) {
    let (mut wrong, mut count) = (Vec::new(), 0);
    ask::serve(net);
    for (number, row) in (1..).zip(table()) {
        for (from, to, end) in &row.packets {
            for family in Family::ALL {
                count += 1;
                let to = target(number, *to, family);
                if let Some(problem) = one(net, (*from, row.protocol, &to), (*end, family)) {
                    wrong.push(format!("{} (s{number}): {from:?} → {to}: {problem}", row.name));
                }
            }
        }
    }
    (wrong, count)
}

fn one(net: &Net, (from, protocol, to): (Asker, Protocol, &str), (end, family): (End, Family)) -> Option<String> {
    let name = match from {
        Asker::Pod1 => "pod1",
        Asker::Pod2 => "pod2",
        Asker::Node => "node",
        Asker::Out => "out",
    };
    let times = match end {
        End::Silence | End::Refused => 1,
        End::Sees([_]) | End::Masked([_]) => 6,
        _ => 30,
    };
    let limit = match end {
        End::Silence | End::Refused => SILENCE,
        // Where an answer is due, a SYN that met a TIME_WAIT may come again.
        _ => PATIENCE,
    };
    let answers = ask::ask(net, limit, (name, protocol, to), times);
    let seen: BTreeSet<&str> = answers.keys().map(String::as_str).collect();
    let all =
        |pods: &[u8], masked| pods.iter().map(|pod| answer(from, *pod, family, masked)).collect::<BTreeSet<String>>();
    let same = |expected: &BTreeSet<String>| expected.iter().map(String::as_str).collect::<BTreeSet<_>>() == seen;
    let right = match end {
        End::Sees(pods) => same(&all(pods, false)),
        End::Masked(pods) => same(&all(pods, true)),
        End::Stays(pods) => {
            let one = seen.len() == 1;
            one && pods.iter().any(|pod| seen.iter().all(|text| text.starts_with(&format!("pod{pod} "))))
        }
        End::Refused => seen == BTreeSet::from(["refused"]),
        End::Silence => seen == BTreeSet::from(["silence"]),
    };
    (!right).then(|| format!("expected {end:?}, got {answers:?}"))
}
