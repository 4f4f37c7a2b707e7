//! ctnetlink: the kernel's table of flows, read entry by entry and deleted from. Not what is stale, only how it is told apart.
//!
//! INVARIANT: memory is bounded by one datagram of a dump, however many entries there are; an entry is deleted by its tuple
//! and its id together, so that one which took its place is never meant.

use crate::kernel::linux::nftables::netlink::{family_number, message, messages};
use crate::kernel::linux::wire::{
    ACK, DONE, DUMP, ERROR, NESTED, REQUEST, attribute, attributes, failure, nest, send, within,
};
use crate::plan::Family;
use crate::plan::flows::{Answered, Flow, Flows};
use crate::plan::service::Protocol;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// What the kernel is offered for a piece of a dump.
const PIECE_BYTES: usize = 64 * 1024;
/// Deletions that are sent at once: their answers must fit a socket's buffer if every entry ended by itself meanwhile.
const DELETIONS: usize = 256;

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const STATISTICS: u16 = SUBSYSTEM | 5;
/// CTA_STATS_GLOBAL_ENTRIES.
const ENTRIES: u16 = 1;
/// nfgenmsg.
const GENERIC: usize = 4;

// linux/netfilter/nfnetlink_conntrack.h
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

// Which parts of a tuple a dump's filter compares (kernel 5.8, net/netfilter/nf_internals.h).
const BY_SOURCE: u32 = 1;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_SOURCE_PORT: u32 = 1 << 4;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// What it says.
    pub(super) flow: Flow,
    tuple: &'a [u8],
    id: &'a [u8],
}

/// What the selections of a look have in common: the kernel compares that much, and shows less. A kernel that doesn't know
/// filters shows all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    protocol: Option<Protocol>,
    destination: (Option<IpAddr>, Option<u16>),
    answered_from: (Option<IpAddr>, Option<u16>),
}

impl Filter {
    /// Of some selections, one at least.
    pub(super) fn common<'a>(flows: impl Iterator<Item = &'a Flows>) -> Self {
        let of = |flows: &Flows| {
            let port = if let Answered::By(endpoint) = flows.answered { Some(endpoint.port()) } else { None };
            Self {
                protocol: Some(flows.frontend.protocol),
                destination: (flows.frontend.address, Some(flows.frontend.port)),
                answered_from: (flows.answering(), port),
            }
        };
        flows.map(of).reduce(Self::both).unwrap_or_default()
    }

    fn both(self, other: Self) -> Self {
        fn same<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.filter(|one| other.as_ref() == Some(one))
        }
        let protocol = same(self.protocol, other.protocol);
        let ends = |one: (Option<IpAddr>, Option<u16>), other: (Option<IpAddr>, Option<u16>)| {
            // The kernel compares ports with a protocol only.
            (same(one.0, other.0), same(one.1, other.1).filter(|_| protocol.is_some()))
        };
        Self {
            protocol,
            destination: ends(self.destination, other.destination),
            answered_from: ends(self.answered_from, other.answered_from),
        }
    }

    fn write(self, family: Family, out: &mut Vec<u8>) {
        let original = self.tuple(out, (TUPLE_ORIGINAL, self.destination), (family, false));
        let reply = self.tuple(out, (TUPLE_REPLY, self.answered_from), (family, true));
        if original == 0 && reply == 0 {
            return;
        }
        nest(out, FILTER, |out| {
            for (kind, compared) in [(1, original), (2, reply)] {
                if compared != 0 {
                    attribute(out, kind, &compared.to_ne_bytes());
                }
            }
        });
    }

    /// Writes one end of a tuple; which parts of it are to be compared.
    fn tuple(
        self,
        out: &mut Vec<u8>,
        (kind, (address, port)): (u16, (Option<IpAddr>, Option<u16>)),
        (family, source): (Family, bool),
    ) -> u32 {
        let mut compared = 0;
        nest(out, kind, |out| {
            // Linux compares IPv6 addresses the wrong way round: it shows all that differ (seen with 6.18).
            if let Some(address) = address.filter(|_| family == Family::V4) {
                compared |= if source { BY_SOURCE } else { BY_DESTINATION };
                nest(out, TUPLE_IP, |out| ip(out, (family, source), address));
            }
            if let Some(protocol) = self.protocol {
                compared |= BY_PROTOCOL;
                nest(out, TUPLE_PROTOCOL, |out| {
                    attribute(out, PROTOCOL_NUMBER, &[number(protocol)]);
                    if let Some(port) = port {
                        compared |= if source { BY_SOURCE_PORT } else { BY_DESTINATION_PORT };
                        attribute(out, if source { SOURCE_PORT } else { DESTINATION_PORT }, &port.to_be_bytes());
                    }
                });
            }
        });
        compared
    }
}

/// The table. Two sockets: one's dump goes on while the other deletes.
pub(super) struct Table {
    dumping: Socket,
    deleting: Socket,
    sequence: u32,
}

impl Table {
    /// Opens it in this thread's network namespace, where it then stays.
    pub(super) fn open() -> io::Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&NetlinkAddress::new(0, 0))?;
            // An error would otherwise come with all of what was sent.
            socket.set_cap_ack(true)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Self { dumping: open()?, deleting: open()?, sequence: 0 })
    }

    /// How many entries this namespace has.
    pub(super) fn count(&mut self) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        message(&mut request, ((STATISTICS, REQUEST, self.sequence), (0, 0)), |_| {});
        send(&self.deleting, &request)?;
        let (bytes, _) = self.deleting.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            if kind == ERROR {
                failure(body)?;
            }
            if let Ok(count) = within(body.get(GENERIC..).unwrap_or_default(), ENTRIES).try_into() {
                return Ok(u32::from_be_bytes(count));
            }
        }
        Err(io::Error::other("the kernel doesn't say how many flows there are"))
    }

    /// Shows the entries piece by piece, and deletes those that `choose` leaves in a piece. How many it deleted.
    pub(super) fn delete_where(
        &mut self,
        family: Family,
        filter: Filter,
        mut choose: impl FnMut(Vec<Entry<'_>>, &mut dyn FnMut(&[Entry<'_>]) -> io::Result<usize>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.sequence = self.sequence.wrapping_add(1);
        let dump = self.sequence;
        let mut request = Vec::new();
        message(&mut request, ((GET, REQUEST | DUMP, dump), (family_number(family), 0)), |out| {
            filter.write(family, out)
        });
        send(&self.dumping, &request)?;
        let mut count = 0;
        // The kernel fills as much as it has once been offered.
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            piece.clear();
            self.dumping.recv(&mut piece, 0)?;
            let mut entries = Vec::new();
            let mut done = false;
            for (kind, body) in messages(&piece) {
                match kind {
                    DONE => done = true,
                    ERROR => failure(body)?,
                    NEW => entries.extend(read(body, family)),
                    _ => {}
                }
            }
            if !entries.is_empty() {
                let (socket, sequence) = (&self.deleting, &mut self.sequence);
                count += choose(entries, &mut |stale| delete((socket, sequence), family, stale))?;
            }
            if done {
                return Ok(count);
            }
        }
    }
}

/// Deletes entries; one that ended by itself meanwhile is none of them.
fn delete((socket, sequence): (&Socket, &mut u32), family: Family, stale: &[Entry<'_>]) -> io::Result<usize> {
    let mut count = 0;
    for group in stale.chunks(DELETIONS) {
        let mut batch = Vec::with_capacity(group.len() * 96);
        for (at, entry) in group.iter().enumerate() {
            *sequence = sequence.wrapping_add(1);
            let flags = if at + 1 == group.len() { REQUEST | ACK } else { REQUEST };
            message(&mut batch, ((DELETE, flags, *sequence), (family_number(family), 0)), |out| {
                attribute(out, TUPLE_ORIGINAL | NESTED, entry.tuple);
                attribute(out, ID, entry.id);
            });
        }
        send(socket, &batch)?;
        count += group.len() - answers(socket, *sequence)?;
    }
    Ok(count)
}

/// Reads until the last message's answer: how many entries weren't there any more.
fn answers(socket: &Socket, last: u32) -> io::Result<usize> {
    let mut missing = 0;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            if kind != ERROR {
                continue;
            }
            match failure(body) {
                Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => missing += 1,
                result => result?,
            }
            let of = body.get(12..16).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            if of == Some(last) {
                return Ok(missing);
            }
        }
    }
}

/// An entry of the protocols that services have, in no zone: our rules work in none.
fn read(body: &[u8], family: Family) -> Option<Entry<'_>> {
    let (mut original, mut reply, mut id) = (None, None, None);
    for (kind, value) in attributes(body.get(GENERIC..)?) {
        match kind {
            TUPLE_ORIGINAL => original = Some(value),
            TUPLE_REPLY => reply = Some(value),
            ID => id = Some(value),
            ZONE => return None,
            _ => {}
        }
    }
    let (tuple, id) = (original?, id?);
    let protocol = protocol(within(within(tuple, TUPLE_PROTOCOL), PROTOCOL_NUMBER))?;
    let flow =
        Flow { protocol, destination: end(tuple, (family, false))?, answered_from: end(reply?, (family, true))? };
    Some(Entry { flow, tuple, id })
}

/// A tuple's source or destination.
fn end(tuple: &[u8], (family, source): (Family, bool)) -> Option<SocketAddr> {
    let address = within(within(tuple, TUPLE_IP), address_kind(family, source));
    let port = within(within(tuple, TUPLE_PROTOCOL), if source { SOURCE_PORT } else { DESTINATION_PORT });
    let address = match family {
        Family::V4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        Family::V6 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(port.try_into().ok()?)))
}

fn ip(out: &mut Vec<u8>, (family, source): (Family, bool), address: IpAddr) {
    match address {
        IpAddr::V4(address) => attribute(out, address_kind(family, source), &address.octets()),
        IpAddr::V6(address) => attribute(out, address_kind(family, source), &address.octets()),
    }
}

fn address_kind(family: Family, source: bool) -> u16 {
    match (family, source) {
        (Family::V4, true) => 1,
        (Family::V4, false) => 2,
        (Family::V6, true) => 3,
        (Family::V6, false) => 4,
    }
}

/// IANA's number.
fn number(protocol: Protocol) -> u8 {
    crate::plan::nftables::set::protocol_number(protocol)
}

fn protocol(value: &[u8]) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|one| value == [number(*one)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::flows::Frontend;

    fn flows(address: Option<&str>, endpoint: &str, protocol: Protocol) -> Flows {
        let frontend = Frontend { protocol, address: address.map(|ip| ip.parse().unwrap()), port: 53 };
        Flows { family: Family::V4, frontend, answered: Answered::By(endpoint.parse().unwrap()) }
    }

    #[test]
    fn a_filter_is_what_all_have_in_common() {
        let one = flows(Some("10.96.0.10"), "10.244.0.1:53", Protocol::Udp);
        let whole = Filter::common([&one].into_iter());
        let vip = Some("10.96.0.10".parse().unwrap());
        let pod = Some("10.244.0.1".parse().unwrap());
        let udp = Some(Protocol::Udp);
        assert_eq!(whole, Filter { protocol: udp, destination: (vip, Some(53)), answered_from: (pod, Some(53)) });
        let elsewhere = flows(None, "10.244.0.1:53", Protocol::Udp);
        let common = Filter::common([&one, &elsewhere].into_iter());
        assert_eq!(common, Filter { destination: (None, Some(53)), ..whole });
        let other = flows(Some("10.96.0.10"), "10.244.0.1:53", Protocol::Tcp);
        let common = Filter::common([&one, &other].into_iter());
        assert_eq!(common, Filter { protocol: None, destination: (vip, None), answered_from: (pod, None) });
        assert_eq!(Filter::common([&one, &elsewhere, &other].into_iter()).answered_from, (pod, None));
        let third = flows(None, "10.244.0.2:53", Protocol::Tcp);
        assert_eq!(Filter::common([&one, &third].into_iter()), Filter::default());
    }

    #[test]
    fn garbage_is_no_entry() {
        for garbage in [&[][..], &[1], &[0; 64], &[255; 64], &[0, 0, 0, 0, 8, 0, 1, 128, 4, 0, 1, 128]] {
            assert_eq!(read(garbage, Family::V4), None);
            assert_eq!(read(garbage, Family::V6), None);
        }
    }
}
