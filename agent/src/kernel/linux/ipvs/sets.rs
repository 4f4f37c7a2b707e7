//! ipsets over nfnetlink (linux/netfilter/ipset/ip_set.h): made, filled, listed, removed.

use crate::kernel::linux::ipvs::servers::{protocol_number, protocol_of};
use crate::kernel::linux::wire::{CREATE, EXCLUSIVE, Request, Wire, attribute, attributes, nest, string, text, within};
use crate::plan::Family;
use crate::plan::ipvs::set::PREFIX;
use crate::plan::ipvs::{Element, Op, Set};
use ipnet::IpNet;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 6 << 8;
const MAKE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const REMOVE: u16 = SUBSYSTEM | 10;
/// Bytes of nfnetlink's own header.
const GENERIC: usize = 4;
/// Of the kernel's interface: since Linux 2.6.39, and what newer ones still take.
const PROTOCOL: u8 = 6;
/// Elements that a set may have; it grows as they come.
const MOST_ELEMENTS: u32 = 4_000_000;
/// Attributes of the kernel whose numbers are in network order say so.
const NETWORK_ORDER: u16 = 0x4000;
const WITH_MARKS: u32 = 1 << 6;
const LIST_NAMES: u32 = 1 << 1;

fn head(name: Option<&str>) -> Vec<u8> {
    // Family: the sets say it themselves.
    let mut body = vec![2, 0, 0, 0];
    attribute(&mut body, 1, &[PROTOCOL]);
    if let Some(name) = name {
        text(&mut body, 2, name);
    }
    body
}

/// The request of an op; `None`: the op isn't about sets.
pub(super) fn request(op: &Op) -> Option<Request> {
    Some(match op {
        Op::Create { family, set } => create(*family, *set),
        Op::Put { set, element, mark } => change((ADD, *set), element, *mark),
        Op::Remove { set, element } => change((REMOVE, *set), element, 0),
        Op::Destroy { name } => Request { kind: DESTROY, flags: 0, body: head(Some(name)) },
        _ => return None,
    })
}

fn create(family: Family, set: Set) -> Request {
    let mut body = head(Some(&set.name(family)));
    text(&mut body, 3, set.kind());
    attribute(&mut body, 4, &[revision(set)]);
    attribute(&mut body, 5, &[if family == Family::V4 { 2 } else { 10 }]);
    nest(&mut body, 7, |out| {
        attribute(out, 19 | NETWORK_ORDER, &MOST_ELEMENTS.to_be_bytes());
        if set.has_marks() {
            attribute(out, 8 | NETWORK_ORDER, &WITH_MARKS.to_be_bytes());
        }
    });
    Request { kind: MAKE, flags: CREATE | EXCLUSIVE, body }
}

/// The first of each type that knows marks, which every kernel since 3.18 has.
fn revision(set: Set) -> u8 {
    match set.kind() {
        "hash:ip" => 4,
        "hash:ip,port,net" => 7,
        _ => 5,
    }
}

/// Without `EXCLUSIVE`: adding what is there and removing what isn't is no error, and a mark is written anew.
fn change((kind, set): (u16, Set), element: &Element, mark: u32) -> Request {
    let mut body = head(Some(&set.name(element.family())));
    nest(&mut body, 7, |out| {
        write_address(out, 1, element.ip());
        if let Some((_, protocol, port)) = element.frontend() {
            attribute(out, 4 | NETWORK_ORDER, &port.to_be_bytes());
            attribute(out, 7, &[protocol_number(protocol)]);
        }
        match element {
            Element::PortIp(.., other) => write_address(out, 20, *other),
            Element::PortNet(.., net) => {
                write_address(out, 20, net.addr());
                attribute(out, 21, &[net.prefix_len()]);
            }
            Element::Ip(_) | Element::Port(..) => {}
        }
        if mark != 0 {
            let value = u64::from(mark) << 32 | u64::from(u32::MAX);
            attribute(out, 27 | NETWORK_ORDER, &value.to_be_bytes());
        }
    });
    Request { kind, flags: 0, body }
}

fn write_address(out: &mut Vec<u8>, kind: u16, ip: IpAddr) {
    nest(out, kind, |out| match ip {
        IpAddr::V4(ip) => attribute(out, 1 | NETWORK_ORDER, &ip.octets()),
        IpAddr::V6(ip) => attribute(out, 2 | NETWORK_ORDER, &ip.octets()),
    });
}

/// Names of all sets that begin as ours do.
pub(super) fn names(wire: &mut Wire) -> io::Result<Vec<String>> {
    let mut body = head(None);
    attribute(&mut body, 6 | NETWORK_ORDER, &LIST_NAMES.to_be_bytes());
    let listed = wire.dump((LIST, &body))?;
    let names = listed.iter().map(|(_, body)| string(within(body.get(GENERIC..).unwrap_or_default(), 2)));
    Ok(names.filter(|name| name.starts_with(PREFIX)).collect())
}

/// Elements of a set with their marks. `None`: it isn't there.
pub(super) fn dump(wire: &mut Wire, name: &str) -> io::Result<Option<BTreeMap<Element, u32>>> {
    match wire.dump((LIST, &head(Some(name)))) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
        listed => Ok(Some(listed?.iter().flat_map(|(_, body)| elements(body)).collect())),
    }
}

fn elements(body: &[u8]) -> Vec<(Element, u32)> {
    let all = within(body.get(GENERIC..).unwrap_or_default(), 8);
    attributes(all).filter_map(|(_, one)| read(one)).collect()
}

fn read(bytes: &[u8]) -> Option<(Element, u32)> {
    let ip = read_address(within(bytes, 1))?;
    let port = within(bytes, 4).get(..2).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    let protocol = within(bytes, 7).first().and_then(|number| protocol_of(u16::from(*number)));
    let element = match (port.zip(protocol), read_address(within(bytes, 20))) {
        (None, _) => Element::Ip(ip),
        (Some((port, protocol)), None) => Element::Port(ip, protocol, port),
        (Some((port, protocol)), Some(other)) => match within(bytes, 21).first() {
            Some(length) => Element::PortNet(ip, protocol, port, IpNet::new(other, *length).ok()?),
            // A network of full length is listed without one.
            None => Element::PortIp(ip, protocol, port, other),
        },
    };
    let mark = within(bytes, 27).get(..4).and_then(|mark| mark.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some((element, mark))
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    let (_, octets) = attributes(bytes).next()?;
    Some(match octets.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
        _ => return None,
    })
}

/// An element as its set means it: a network of full length comes like an address.
pub(super) fn as_of(set: Set, element: Element) -> Element {
    match element {
        Element::PortIp(ip, protocol, port, other) if set == Set::Admitted => {
            Element::PortNet(ip, protocol, port, IpNet::from(other))
        }
        other => other,
    }
}

/// Some refusals of ipsets have numbers of their own, which no system call has.
pub(super) fn explain(error: io::Error) -> io::Error {
    let said = match error.raw_os_error() {
        Some(4097) => "the kernel and this agent speak different versions of ipset's protocol",
        Some(4098) => "the kernel doesn't have this type of set (module ip_set_hash_…)",
        Some(4100) => "it is in use: some rule of somebody else's looks into it",
        Some(4101 | 4102) => "there is a set of that name of another type",
        Some(4352) => "the set is full",
        _ => return error,
    };
    io::Error::other(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::service::Protocol;

    #[test]
    fn an_element_is_read_as_it_is_written() {
        let (four, six): (IpAddr, IpAddr) = ("10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap());
        for (set, element, mark) in [
            (Set::ClusterIps, Element::Ip(four), 0),
            (Set::ClusterIps, Element::Ip(six), 0),
            (Set::Local, Element::Port(four, Protocol::Tcp, 80), 0x7f00_0001),
            (Set::Served, Element::Port(six, Protocol::Sctp, 80), 0),
            (Set::Hairpin, Element::PortIp(six, Protocol::Udp, 53, six), 0),
            (Set::Admitted, Element::PortNet(four, Protocol::Tcp, 80, "192.0.2.0/24".parse().unwrap()), 0),
            (Set::Admitted, Element::PortNet(six, Protocol::Tcp, 80, "2001:db8::/64".parse().unwrap()), 0),
        ] {
            let request = change((ADD, set), &element, mark);
            let (found, with) = read(within(&request.body[GENERIC..], 7)).unwrap();
            assert_eq!((as_of(set, found), with), (element, mark));
        }
        let host: IpNet = "192.0.2.3/32".parse().unwrap();
        let listed = Element::PortIp(four, Protocol::Tcp, 80, host.addr());
        assert_eq!(as_of(Set::Admitted, listed), Element::PortNet(four, Protocol::Tcp, 80, host));
    }
}
