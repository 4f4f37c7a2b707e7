//! The contract without a kernel: every packet of the table traced through what a plane would have a kernel hold. It says
//! that tracer and compiler agree with the table; what the kernel does is for the kernel's own tests to say.

use super::cases::{Asker, End, Row, node, table, target};
use super::{ask, view};
use fairlead_agent::plan::trace::{self, Ends, Packet};
use fairlead_agent::plan::{Desired, Family, Plane, Style, compile};
use fairlead_proto::v1::{Endpoint, ServiceItem};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// What a kernel would hold that was empty before.
pub fn held<P: Plane>(desired: &Desired<P>) -> P::Observed {
    let mut observed = P::Observed::default();
    let ops = P::diff(&observed, desired, Style::Edit);
    P::replay(&mut observed, &ops);
    observed
}

/// The table's services.
pub fn services() -> Vec<(ServiceItem, Vec<Endpoint>)> {
    table().into_iter().map(|row| (row.item, row.endpoints)).collect()
}

/// The same for what a plane would have a kernel hold.
pub fn hold_intent<P: Plane>() -> (Vec<String>, usize) {
    hold::<P>(&held(&compile::<P>(&view(&services()), &node())))
}

/// Traces every packet of the table; gives what went wrong, and how many cases there were.
pub fn hold<P: Plane>(observed: &P::Observed) -> (Vec<String>, usize) {
    let rows = table();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (number, row) in (1..).zip(&rows) {
        for (from, to, end) in &row.packets {
            for family in Family::ALL {
                count += 1;
                let packet = Packet {
                    source: source(*from, family),
                    destination: target(number, *to, family).parse().unwrap(),
                    protocol: row.protocol,
                    remembered: None,
                };
                let follow = |packet: &Packet| P::trace(observed, &node(), std::slice::from_ref(packet)).remove(0);
                let traced = follow(&packet);
                let mut right = same(&traced.ends, &expected(row, (*from, *end), family));
                if let End::Stays(pods) = end {
                    for pod in *pods {
                        let remembered = Packet { remembered: Some(address(row, *pod, family)), ..packet.clone() };
                        right &= reached(&follow(&remembered).ends) == [(address(row, *pod, family), 100)];
                    }
                }
                if !right || traced.steps.is_empty() {
                    wrong.push(format!("{} (s{number}): {packet:?}: expected {end:?}, got {traced:#?}", row.name));
                }
            }
        }
    }
    (wrong, count)
}

/// Address of an asker.
pub fn source(from: Asker, family: Family) -> IpAddr {
    let [v4, v6] = match from {
        Asker::Pod1 => ["10.244.1.2", "fd00:244:1::2"],
        Asker::Pod2 => ["10.244.2.2", "fd00:244:2::2"],
        Asker::Node => ["192.0.2.1", "2001:db8::1"],
        Asker::Out => ["192.0.2.2", "2001:db8::2"],
    };
    if family == Family::V4 { v4 } else { v6 }.parse().unwrap()
}

fn address(row: &Row, pod: u8, family: Family) -> SocketAddr {
    let address = if family == Family::V4 { format!("10.244.{pod}.2") } else { format!("fd00:244:{pod}::2") };
    SocketAddr::new(address.parse().unwrap(), ask::port(row.protocol))
}

/// Weight of a pod's endpoints.
fn weight(row: &Row, pod: u8) -> f64 {
    let node = format!("node{pod}");
    row.endpoints.iter().find(|one| one.node_name == node).and_then(|one| one.weight).unwrap_or(1).into()
}

/// The ends that a case's words mean.
fn expected(row: &Row, (from, end): (Asker, End), family: Family) -> Option<Ends> {
    let among = |pods: &[u8], masked: bool| {
        // A pod that reaches itself must not see its own address.
        let itself = |pod: u8| matches!((from, pod), (Asker::Pod1, 1) | (Asker::Pod2, 2));
        let reaches = |pod: u8| trace::End::Reaches {
            destination: address(row, pod, family),
            masqueraded: masked || itself(pod),
        };
        let all: f64 = pods.iter().map(|pod| weight(row, *pod)).sum();
        pods.iter().map(|pod| (reaches(*pod), weight(row, *pod) / all)).collect::<Ends>()
    };
    match end {
        End::Sees(pods) => Some(among(pods, false)),
        End::Masked(pods) => Some(among(pods, true)),
        End::Stays(_) => None,
        End::Refused => Some(Ends::from([(trace::End::Rejected, 1.0)])),
        End::Silence => Some(Ends::from([(trace::End::Dropped, 1.0)])),
    }
}

/// `None`: any pod, each as likely, seen as whoever.
fn same(ends: &Ends, expected: &Option<Ends>) -> bool {
    match expected {
        Some(expected) => {
            ends.len() == expected.len()
                && ends
                    .iter()
                    .zip(expected)
                    .all(|((one, share), (other, due))| one == other && (share - due).abs() < 1e-6)
        }
        None => reached(ends).iter().map(|(_, share)| *share).collect::<Vec<_>>() == [50, 50],
    }
}

/// Endpoints reached, with percents.
fn reached(ends: &Ends) -> Vec<(SocketAddr, u32)> {
    let mut shares = BTreeMap::<SocketAddr, f64>::new();
    for (end, share) in ends {
        if let trace::End::Reaches { destination, .. } = end {
            *shares.entry(*destination).or_default() += share;
        }
    }
    shares.into_iter().map(|(endpoint, share)| (endpoint, (share * 100.0).round() as u32)).collect()
}
