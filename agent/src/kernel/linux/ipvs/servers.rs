//! Virtual and real servers over generic netlink (linux/ip_vs.h), of our own making: the crate named `ipvs` on crates.io is
//! a placeholder whose constructor panics, and others lack what is needed here.
//!
//! Real servers are read from `/proc`: netlink lists them for one virtual server at a time.

use crate::kernel::linux::wire::{Request, Wire, attribute, nest, number, string, within};
use crate::plan::Family;
use crate::plan::ipvs::server::{FLAGS, NOT_MASQUERADED};
use crate::plan::ipvs::{Balance, Op, Server, Virtual};
use crate::plan::service::Protocol;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_REAL: u8 = 5;
const SET_REAL: u8 = 6;
const DELETE_REAL: u8 = 7;
const SERVICE: u16 = 1;
const REAL: u16 = 2;
/// Bytes of a generic message's own header.
const GENERIC: usize = 4;
const MASQUERADE: u32 = 0;

fn generic(command: u8) -> Vec<u8> {
    vec![command, 1, 0, 0]
}

/// The number that the kernel gave to IPVS; asking loads the module where it can be loaded.
pub(super) fn family(wire: &mut Wire) -> io::Result<u16> {
    let mut body = generic(GET_FAMILY);
    crate::kernel::linux::wire::text(&mut body, 2, "IPVS");
    let answers = wire.ask(&Request { kind: CONTROLLER, flags: 0, body })?;
    let found = answers.iter().map(|(_, body)| within(body.get(GENERIC..).unwrap_or_default(), 1));
    let id = found.filter_map(|id| id.get(..2)?.try_into().ok()).map(u16::from_ne_bytes).next();
    id.ok_or_else(|| io::Error::from_raw_os_error(nix::errno::Errno::ENOENT as i32))
}

/// The request of an op; `None`: the op isn't about servers.
pub(super) fn request(op: &Op, kind: u16) -> Option<Request> {
    let (command, at) = match op {
        Op::Add { at, .. } => (NEW_SERVICE, at),
        Op::Edit { at, .. } => (SET_SERVICE, at),
        Op::Delete { at } => (DELETE_SERVICE, at),
        Op::Real { at, is_new, .. } => (if *is_new { NEW_REAL } else { SET_REAL }, at),
        Op::Unreal { at, .. } => (DELETE_REAL, at),
        _ => return None,
    };
    let mut body = generic(command);
    nest(&mut body, SERVICE, |out| {
        write_virtual(out, at);
        if let Op::Add { balance, .. } | Op::Edit { balance, .. } = op {
            write_balance(out, (at.family(), balance));
        }
    });
    if let Op::Real { address, .. } | Op::Unreal { address, .. } = op {
        nest(&mut body, REAL, |out| {
            attribute(out, 1, &octets(address.ip()));
            attribute(out, 2, &address.port().to_be_bytes());
            attribute(out, 11, &af(Family::of(address.ip())).to_ne_bytes());
            if let Op::Real { weight, .. } = op {
                attribute(out, 3, &MASQUERADE.to_ne_bytes());
                attribute(out, 4, &weight.to_ne_bytes());
                attribute(out, 5, &0_u32.to_ne_bytes());
                attribute(out, 6, &0_u32.to_ne_bytes());
            }
        });
    }
    Some(Request { kind, flags: 0, body })
}

fn write_virtual(out: &mut Vec<u8>, at: &Virtual) {
    attribute(out, 1, &af(at.family()).to_ne_bytes());
    match at {
        Virtual::Address(protocol, address) => {
            attribute(out, 2, &u16::from(protocol_number(*protocol)).to_ne_bytes());
            attribute(out, 3, &octets(address.ip()));
            attribute(out, 4, &address.port().to_be_bytes());
        }
        Virtual::Mark(_, mark) => attribute(out, 5, &mark.to_ne_bytes()),
    }
}

fn write_balance(out: &mut Vec<u8>, (family, balance): (Family, &Balance)) {
    crate::kernel::linux::wire::text(out, 6, &balance.scheduler);
    let flags = [balance.flags.to_ne_bytes(), FLAGS.to_ne_bytes()].concat();
    attribute(out, 7, &flags);
    attribute(out, 8, &balance.persistence.to_ne_bytes());
    let netmask = if family == Family::V4 { u32::MAX } else { 128 };
    attribute(out, 9, &netmask.to_ne_bytes());
}

/// Every virtual server, without its real ones.
pub(super) fn dump(wire: &mut Wire, kind: u16) -> io::Result<BTreeMap<Virtual, Server>> {
    let listed = wire.dump((kind, &generic(GET_SERVICE)))?;
    Ok(listed.iter().filter_map(|(_, body)| read(within(body.get(GENERIC..)?, SERVICE))).collect())
}

fn read(service: &[u8]) -> Option<(Virtual, Server)> {
    let family = match u16::from_ne_bytes(within(service, 1).get(..2)?.try_into().ok()?) {
        2 => Family::V4,
        10 => Family::V6,
        _ => return None,
    };
    let mark = number(within(service, 5));
    let at = if mark == 0 {
        let protocol = protocol_of(u16::from_ne_bytes(within(service, 2).get(..2)?.try_into().ok()?))?;
        let port = u16::from_be_bytes(within(service, 4).get(..2)?.try_into().ok()?);
        Virtual::Address(protocol, SocketAddr::new(address(within(service, 3), family)?, port))
    } else {
        Virtual::Mark(family, mark)
    };
    let flags = number(within(service, 7)) & FLAGS;
    let persistence = if flags & crate::plan::ipvs::server::PERSISTENT > 0 { number(within(service, 8)) } else { 0 };
    let balance = Balance { scheduler: Cow::Owned(string(within(service, 6))), flags, persistence };
    Some((at, Server { balance, reals: BTreeMap::new() }))
}

/// A real server as `/proc/net/ip_vs` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) at: Virtual,
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
}

/// A connection through IPVS: where it comes from, and the frontend that it was made to.
pub type Connection = (SocketAddr, (IpAddr, Protocol, u16));

/// Established connections in the text of `/proc/net/ip_vs_conn`.
pub(super) fn established(text: &str) -> BTreeSet<Connection> {
    text.lines().filter_map(connection).collect()
}

fn connection(line: &str) -> Option<Connection> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [protocol, from, from_port, to, to_port, _, _, "ESTABLISHED", ..] = words[..] else {
        return None;
    };
    let address = |ip: &str, port: &str| {
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        hex_address(&format!("{ip}:{port}"))
    };
    let to = address(to, to_port)?;
    Some((address(from, from_port)?, (to.ip(), Protocol::from_kubernetes(protocol)?, to.port())))
}

/// Real servers in the text of `/proc/net/ip_vs`. One found by mark has its family from its real servers.
pub(super) fn listed(text: &str) -> Vec<Listed> {
    let mut of: Option<(&str, &str)> = None;
    let mut all = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), of) {
            (Some(protocol @ ("TCP" | "UDP" | "SCTP" | "FWM")), _) => of = words.next().map(|place| (protocol, place)),
            (Some("->"), Some(of)) => all.extend(real(of, words)),
            _ => {}
        }
    }
    all
}

fn real<'a>((protocol, place): (&str, &str), mut words: impl Iterator<Item = &'a str>) -> Option<Listed> {
    let address = hex_address(words.next()?)?;
    let at = match protocol {
        "FWM" => Virtual::Mark(Family::of(address.ip()), u32::from_str_radix(place, 16).ok()?),
        name => Virtual::Address(Protocol::from_kubernetes(name)?, hex_address(place)?),
    };
    let masqueraded = words.next()? == "Masq";
    let weight: u32 = words.next()?.parse().ok()?;
    Some(Listed { at, address, weight: if masqueraded { weight } else { NOT_MASQUERADED } })
}

/// `0A600001:0050` or `[fd00:…:0001]:0050`.
fn hex_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
        Some(ip) => IpAddr::V6(ip.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn af(family: Family) -> u16 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// IPVS takes 16 bytes for either family.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
    }
}

fn address(bytes: &[u8], family: Family) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?),
        Family::V6 => IpAddr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?),
    })
}

/// Its number in an IP header.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// By its number in an IP header.
pub(super) fn protocol_of(number: u16) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ipvs::server::PERSISTENT;

    const PROC: &str = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600101:0050 rr  
  -> 0AF40202:1F90      Masq    1      2          14        
  -> 0AF40102:1F90      Route   3      0          14        
UDP  [fd00:0096:0000:0000:0000:0000:0001:0001]:0035 rr persistent 60 00000080
  -> [fd00:0244:0002:0000:0000:0000:0000:0002]:1F75      Masq    0      0          12        
FWM  7F000001 mh 
  -> 0AF40102:1F90      Masq    1      0          14        
";

    #[test]
    fn real_servers_are_read() {
        let read: Vec<_> =
            listed(PROC).iter().map(|one| format!("{} {} {}", one.at, one.address, one.weight)).collect();
        assert_eq!(
            read,
            [
                "tcp 10.96.1.1:80 10.244.2.2:8080 1",
                &format!("tcp 10.96.1.1:80 10.244.1.2:8080 {NOT_MASQUERADED}"),
                "udp [fd00:96::1:1]:53 [fd00:244:2::2]:8053 0",
                "mark 0x7f000001 10.244.1.2:8080 1",
            ]
        );
        for garbage in ["", "TCP", "TCP x\n -> y", "  -> 0AF40202:1F90 Masq 1 2 3", "TCP 0:0 rr\n  -> 0A:1 Masq"] {
            assert_eq!(listed(garbage), [], "{garbage}");
        }
    }

    /// As Linux 6.1 printed it.
    const CONNECTIONS: &str = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0000202 E772 0A60000A 0051 0AF40202 1F91 ESTABLISHED     883
TCP C0000202 E773 0A60000A 0050 0AF40202 1F90 FIN_WAIT         83
UDP C0000202 E774 0A60000A 0035 0AF40202 1F75 UDP             183
TCP 2001:0db8:0000:0000:0000:0000:0000:0002 E775 fd00:0096:0000:0000:0000:0000:0001:0001 0050 fd00:0244:0001:0000:0000:0000:0000:0002 1F90 ESTABLISHED     899
";

    #[test]
    fn established_connections_are_read() {
        let read: Vec<_> =
            established(CONNECTIONS).into_iter().map(|(from, to)| format!("{from} {}", Virtual::of(to))).collect();
        assert_eq!(read, ["192.0.2.2:59250 tcp 10.96.0.10:81", "[2001:db8::2]:59253 tcp [fd00:96::1:1]:80"]);
    }

    #[test]
    fn a_virtual_server_is_read_as_it_is_written() {
        let balance = |persistence| Balance {
            scheduler: "wrr".into(),
            flags: if persistence > 0 { PERSISTENT } else { 0 },
            persistence,
        };
        for (at, balance) in [
            (Virtual::Address(Protocol::Tcp, "10.96.0.10:80".parse().unwrap()), balance(60)),
            (Virtual::Address(Protocol::Sctp, "[fd00:96::1]:80".parse().unwrap()), balance(0)),
            (Virtual::Mark(Family::V6, 0x7f00_0001), balance(0)),
        ] {
            let request = request(&Op::Add { at, balance: balance.clone() }, 20).unwrap();
            let read = read(within(&request.body[GENERIC..], SERVICE)).unwrap();
            assert_eq!(read, (at, Server { balance, reals: BTreeMap::new() }));
        }
    }
}
