//! Our device and the local routes by it, over rtnetlink (linux/rtnetlink.h).

use crate::kernel::linux::wire::{CREATE, Request, Wire, attribute, nest, number, text, within};
use crate::plan::Family;
use crate::plan::ipvs::{DEVICE, Op};
use ipnet::IpNet;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
/// Flag: an object is replaced.
const REPLACE: u16 = 0x100;
/// Flag: an object comes behind others of the kind.
const APPEND: u16 = 0x800;
const LOCAL_TABLE: u8 = 255;
const LOCAL: u8 = 2;
const BY_KERNEL: u8 = 2;
const BY_US: u8 = 4;
const HOST: u8 = 254;
const UNIVERSE: u8 = 0;
const ANY_SCOPE: u8 = 255;
const UP: u32 = 1;
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;

/// Index of our device, and whether it is up. `None`: it isn't there.
pub(super) fn device(wire: &mut Wire) -> io::Result<Option<(u32, bool)>> {
    let mut body = vec![0; LINK_HEADER];
    text(&mut body, 3, DEVICE);
    match wire.ask(&Request { kind: GET_LINK, flags: 0, body }) {
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        answers => Ok(answers?.first().map(|(_, body)| {
            let at = |from: usize| number(body.get(from..).unwrap_or_default());
            (at(4), at(8) & UP != 0)
        })),
    }
}

/// The request of an op, by the device's index; `None`: the op isn't about routes.
pub(super) fn request(op: &Op, device: u32) -> Option<Request> {
    Some(match op {
        Op::Device => make_device(),
        Op::DropDevice => {
            let mut body = vec![0; LINK_HEADER];
            text(&mut body, 3, DEVICE);
            Request { kind: DELETE_LINK, flags: 0, body }
        }
        Op::Route { net, source } => {
            // Never in the place of another's: an address of the host has such a route too. With IPv6 ours has a metric
            // that the kernel's own don't have.
            let flags = if net.addr().is_ipv4() { CREATE | APPEND } else { CREATE | REPLACE };
            Request { kind: NEW_ROUTE, flags, body: route(net, *source, device) }
        }
        Op::Unroute { net, source } => {
            // Whoever made it, in whatever scope: it goes by our device.
            let mut body = route(net, *source, device);
            (body[5], body[6]) = (0, ANY_SCOPE);
            Request { kind: DELETE_ROUTE, flags: 0, body }
        }
        _ => return None,
    })
}

fn make_device() -> Request {
    let mut body = vec![0; 8];
    body.extend_from_slice(&UP.to_ne_bytes());
    body.extend_from_slice(&UP.to_ne_bytes());
    text(&mut body, 3, DEVICE);
    nest(&mut body, 18, |out| text(out, 1, "dummy"));
    Request { kind: NEW_LINK, flags: CREATE, body }
}

fn route(net: &IpNet, source: Option<IpAddr>, device: u32) -> Vec<u8> {
    let v4 = net.addr().is_ipv4();
    let scope = if v4 { HOST } else { UNIVERSE };
    let mut body = vec![af(net.addr()), net.prefix_len(), 0, 0, LOCAL_TABLE, BY_US, scope, LOCAL, 0, 0, 0, 0];
    attribute(&mut body, 1, &octets(net.addr()));
    attribute(&mut body, 4, &device.to_ne_bytes());
    if let Some(source) = source {
        attribute(&mut body, 7, &octets(source));
    }
    attribute(&mut body, 15, &u32::from(LOCAL_TABLE).to_ne_bytes());
    body
}

/// Local routes by our device, with the source that they give; without those that the kernel makes for itself.
pub(super) fn dump(wire: &mut Wire, device: u32) -> io::Result<BTreeMap<IpNet, Option<IpAddr>>> {
    let mut routes = BTreeMap::new();
    for family in Family::ALL {
        let of = if family == Family::V4 { 2 } else { 10 };
        let mut body = vec![of, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attribute(&mut body, 4, &device.to_ne_bytes());
        attribute(&mut body, 15, &u32::from(LOCAL_TABLE).to_ne_bytes());
        match wire.dump((GET_ROUTE, &body)) {
            // No IPv6 here, or no such table yet.
            Err(error)
                if [Errno::EOPNOTSUPP as i32, Errno::ENOENT as i32].contains(&error.raw_os_error().unwrap_or(0)) => {}
            listed => routes.extend(listed?.iter().filter_map(|(_, body)| read(body, device))),
        }
    }
    Ok(routes)
}

fn read(body: &[u8], device: u32) -> Option<(IpNet, Option<IpAddr>)> {
    let header = body.get(..ROUTE_HEADER)?;
    let attributes = body.get(ROUTE_HEADER..)?;
    let ours = header[7] == LOCAL && header[5] != BY_KERNEL && number(within(attributes, 4)) == device;
    let net = IpNet::new(address(within(attributes, 1))?, header[1]).ok().filter(|_| ours)?;
    Some((net, address(within(attributes, 7))))
}

fn af(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    Some(match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_as_it_is_written() {
        for (net, source) in [("10.96.0.0/12", Some("192.0.2.1")), ("fd00:96::/108", None), ("203.0.113.1/32", None)] {
            let (net, source): (IpNet, _) = (net.parse().unwrap(), source.map(|ip| ip.parse().unwrap()));
            assert_eq!(read(&route(&net, source, 7), 7), Some((net, source)));
            assert_eq!(read(&route(&net, source, 7), 8), None);
        }
    }
}
