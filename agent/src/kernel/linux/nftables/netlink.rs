//! nfnetlink for nftables elements: transactions of writes and removals, and dumps. Own encoding, since the crates that have
//! one are copyleft, wrap a C library, or are young; it is a handful of attributes (linux/netfilter/nf_tables.h).
//!
//! INVARIANT: one call to [`Nfnl::commit`] is one transaction: all of it or nothing.

use crate::kernel::linux::wire::{
    ACK, CREATE, DONE, DUMP, ERROR, REQUEST, attribute, attributes, failure, nest, send, text, within,
};
use crate::plan::Family;
use crate::plan::nftables::structure::TABLE;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::io;

/// Bytes of elements in one message: its attributes' lengths have 16 bits.
const MESSAGE_BYTES: usize = 32 * 1024;
/// Bytes that a transaction may have: what a socket's buffer is asked to hold.
pub const TRANSACTION_BYTES: usize = 4 * 1024 * 1024;

/// Most that the kernel puts into one answer of a dump, and some.
const DUMP_BYTES: usize = 64 * 1024;

const SUBSYSTEM: u16 = 10;
/// Multicast group of nftables' changes (NFNLGRP_NFTABLES).
const NFTABLES_GROUP: u32 = 7;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// An element write or removal.
#[derive(Clone, Copy, Debug)]
pub struct Edit<'a> {
    /// Name of the set.
    pub set: &'a str,
    /// Its key.
    pub key: &'a [u8],
    /// Its data; empty: none.
    pub data: &'a [u8],
    /// It is to be removed.
    pub remove: bool,
}

/// A dumped element: key, data, and the chain of a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    /// Its key.
    pub key: Vec<u8>,
    /// Its data.
    pub data: Vec<u8>,
    /// Chain that its verdict goes to; empty: no verdict.
    pub chain: String,
}

/// A socket to nfnetlink.
pub struct Nfnl {
    socket: Socket,
    sequence: u32,
}

impl Nfnl {
    /// Opens one in this thread's network namespace, where it then stays.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error would otherwise come with all of what was sent.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::SndBufForce, &(TRANSACTION_BYTES * 2))?;
        setsockopt(&socket, sockopt::RcvBufForce, &TRANSACTION_BYTES)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The socket's port: what others see as the cause of its changes.
    ///
    /// # Errors
    /// The system's.
    pub fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Makes some edits of a family's table, all or none.
    ///
    /// # Errors
    /// The kernel's, of the first edit that it refused.
    pub fn commit(&mut self, family: Family, edits: &[Edit<'_>]) -> io::Result<()> {
        if edits.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::with_capacity(edits.len() * 64 + 256);
        self.message(&mut batch, ((BATCH_BEGIN, REQUEST), (0, SUBSYSTEM)), |_| {});
        let mut rest = edits;
        while let Some(first) = rest.first() {
            let mut size = 0;
            let fits = |edit: &&Edit<'_>| {
                size += edit.key.len() + edit.data.len() + 32;
                edit.set == first.set && edit.remove == first.remove && size < MESSAGE_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (group, behind) = rest.split_at(count);
            rest = behind;
            let last = if rest.is_empty() { ACK } else { 0 };
            let kind =
                if first.remove { (DELETE_ELEMENT, REQUEST | last) } else { (NEW_ELEMENT, REQUEST | CREATE | last) };
            self.message(&mut batch, (kind, (family_number(family), 0)), |out| elements(out, group));
        }
        self.message(&mut batch, ((BATCH_END, REQUEST), (0, SUBSYSTEM)), |_| {});
        let acknowledged = self.sequence - 1;
        self.send(&batch)?;
        self.answer(acknowledged)
    }

    /// Every element of a set.
    ///
    /// # Errors
    /// The kernel's; `NotFound`: no such table or set.
    pub fn dump(&mut self, family: Family, set: &str) -> io::Result<Vec<Dumped>> {
        let mut request = Vec::new();
        self.message(&mut request, ((GET_ELEMENT, REQUEST | DUMP), (family_number(family), 0)), |out| {
            text(out, 1, TABLE);
            text(out, 2, set);
        });
        self.send(&request)?;
        let mut dumped = Vec::new();
        // The kernel fills as much as it has once been offered, and looks for its place in the set anew each time.
        let mut bytes = Vec::with_capacity(DUMP_BYTES);
        loop {
            bytes.clear();
            self.socket.recv(&mut bytes, 0)?;
            for (kind, body) in messages(&bytes) {
                match kind {
                    DONE => return Ok(dumped),
                    ERROR => failure(body)?,
                    NEW_ELEMENT => collect(body, &mut dumped),
                    _ => {}
                }
            }
        }
    }

    fn message(
        &mut self,
        out: &mut Vec<u8>,
        ((kind, flags), (family, resource)): ((u16, u16), (u8, u16)),
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        self.sequence = self.sequence.wrapping_add(1);
        message(out, ((kind, flags, self.sequence), (family, resource)), body);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.socket, bytes)
    }

    /// Reads until the acknowledged message's answer; an earlier message's failure comes first.
    fn answer(&self, acknowledged: u32) -> io::Result<()> {
        let mut first = Ok(());
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (kind, body) in messages(&bytes) {
                if kind != ERROR {
                    continue;
                }
                let result = failure(body);
                let of = body.get(4 + 8..4 + 12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                if first.is_ok() {
                    first = result;
                }
                // A batch that is refused as a whole answers for its first message only.
                if of.is_none_or(|of| of >= acknowledged) || first.is_err() {
                    self.drain();
                    return first;
                }
            }
        }
    }

    fn drain(&self) {
        let _ = self.socket.set_non_blocking(true);
        while self.socket.recv_from_full().is_ok() {}
        let _ = self.socket.set_non_blocking(false);
    }
}

/// Hears of every change of a network namespace's nftables.
pub struct Watch(Socket);

impl Watch {
    /// Listens in this thread's network namespace.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.add_membership(NFTABLES_GROUP)?;
        setsockopt(&socket, sockopt::RcvBufForce, &TRANSACTION_BYTES)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self(socket))
    }

    /// Waits for at most a second. True: a table of ours was changed by a socket that isn't ours, or so much happened that
    /// some of it was lost.
    ///
    /// # Errors
    /// The system's.
    pub fn heard(&self, is_ours: impl Fn(u32) -> bool) -> io::Result<bool> {
        match self.0.recv_from_full() {
            Ok((bytes, _)) => Ok(messages_from(&bytes).any(|(kind, port, body)| {
                let table = within(body.get(GENERIC..).unwrap_or_default(), 1);
                kind >> 8 == SUBSYSTEM && !is_ours(port) && table.strip_suffix(&[0]) == Some(TABLE.as_bytes())
            })),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A family's number.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Writes a message of nfnetlink: type, flags and sequence number; family and resource; what `body` writes.
pub fn message(
    out: &mut Vec<u8>,
    ((kind, flags, sequence), (family, resource)): ((u16, u16, u32), (u8, u16)),
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn elements(out: &mut Vec<u8>, group: &[Edit<'_>]) {
    text(out, 1, TABLE);
    text(out, 2, group.first().map_or("", |edit| edit.set));
    nest(out, 3, |out| {
        for edit in group {
            nest(out, 1, |out| {
                nest(out, 1, |out| attribute(out, 1, edit.key));
                if !edit.data.is_empty() && !edit.remove {
                    nest(out, 2, |out| attribute(out, 1, edit.data));
                }
            });
        }
    });
}

/// Messages in a datagram: type and what follows the header.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    messages_from(bytes).map(|(kind, _, body)| (kind, body))
}

/// Messages in a datagram: type, port of the socket that caused it, and what follows the header.
fn messages_from(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let port = u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, port, body))
    })
}

fn collect(body: &[u8], dumped: &mut Vec<Dumped>) {
    let elements = within(body.get(GENERIC..).unwrap_or_default(), 3);
    for (_, element) in attributes(elements) {
        let data = within(element, 2);
        let verdict = within(data, 2);
        let chain = within(verdict, 2);
        dumped.push(Dumped {
            key: within(within(element, 1), 1).to_vec(),
            data: within(data, 1).to_vec(),
            chain: String::from_utf8_lossy(chain).trim_end_matches('\0').to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let edits = [
            Edit {
                set: "frontends",
                key: &[10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0],
                data: &[7, 0, 0, 0],
                remove: false,
            },
            Edit {
                set: "frontends",
                key: &[10, 96, 0, 2, 6, 0, 0, 0, 0, 80, 0, 0],
                data: &[8, 0, 0, 0],
                remove: false,
            },
        ];
        let mut body = vec![0; GENERIC];
        elements(&mut body, &edits);
        let mut read = Vec::new();
        collect(&body, &mut read);
        let found: Vec<_> = read.iter().map(|one| (one.key.as_slice(), one.data.as_slice())).collect();
        assert_eq!(found, [(edits[0].key, edits[0].data), (edits[1].key, edits[1].data)]);
    }

    #[test]
    fn garbage_is_no_message() {
        for garbage in [&[][..], &[1], &[255; 64], &[0; 64], &[17, 0, 0, 0, 2, 0]] {
            assert!(messages(garbage).count() <= 1);
            let _ = attributes(garbage).count();
            collect(garbage, &mut Vec::new());
        }
    }
}
