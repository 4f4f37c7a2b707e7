//! Netlink as bytes: attributes, messages, and a socket that sends many requests at once and matches each refusal to its
//! request. Not the meaning of any message: `nftables` and `ipvs` know that.
//!
//! INVARIANT: reading is total: a message or attribute that claims more bytes than there are is the end of the list.

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;

/// Message type of an acknowledgement or a refusal.
pub(super) const ERROR: u16 = 2;
/// Message type of a dump's end.
pub(super) const DONE: u16 = 3;
/// Flag of every request.
pub(super) const REQUEST: u16 = 1;
/// Flag: say when it is done.
pub(super) const ACK: u16 = 4;
/// Flag: an existing object is refused.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// Flag: a missing object is made.
pub(super) const CREATE: u16 = 0x400;
/// Flag: list everything.
pub(super) const DUMP: u16 = 0x300;
/// Flag of an attribute's type: attributes are within.
pub(super) const NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// Bytes and requests sent at once: the answers to all of them must fit into the socket's buffer.
const SEND: (usize, usize) = (48 * 1024, 1024);
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Most that the kernel puts into one answer of a dump, and some.
const DUMP_BYTES: usize = 64 * 1024;

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Message type.
    pub(super) kind: u16,
    /// Flags beside [`REQUEST`].
    pub(super) flags: u16,
    /// What follows the message's header.
    pub(super) body: Vec<u8>,
}

/// A socket.
pub(super) struct Wire {
    socket: Socket,
    sequence: u32,
}

impl Wire {
    /// Opens one of a protocol in this thread's network namespace, where it then stays.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error would otherwise come with all of what was sent.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel filter dumps, instead of sending all there is.
    pub(super) fn filter_dumps(&self) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    /// Sends requests, each on its own, and gives the refused ones with the reason.
    pub(super) fn all(&mut self, requests: &[Request]) -> io::Result<Vec<(usize, io::Error)>> {
        let mut refused = Vec::new();
        let mut done = 0;
        while done < requests.len() {
            let mut size = 0;
            let fits = |request: &&Request| {
                size += request.body.len() + HEADER + 4;
                size < SEND.0
            };
            let count = requests[done..].iter().take(SEND.1).take_while(fits).count().max(1);
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::with_capacity(SEND.0);
            for (at, request) in requests[done..done + count].iter().enumerate() {
                let flags = if at + 1 == count { request.flags | ACK } else { request.flags };
                self.write(&mut bytes, (request.kind, flags), &request.body);
            }
            self.send(&bytes)?;
            self.answers((first, self.sequence), |at, error| refused.push((done + at, error)))?;
            done += count;
        }
        Ok(refused)
    }

    /// Sends one request and gives the answers that come before its acknowledgement.
    pub(super) fn ask(&mut self, request: &Request) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, (request.kind, request.flags | ACK), &request.body);
        self.send(&bytes)?;
        self.collect()
    }

    /// Everything that a listing gives.
    pub(super) fn dump(&mut self, (kind, body): (u16, &[u8])) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, (kind, DUMP), body);
        self.send(&bytes)?;
        self.collect()
    }

    fn collect(&self) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let mut found = Vec::new();
        let mut bytes = Vec::with_capacity(DUMP_BYTES);
        loop {
            bytes.clear();
            self.socket.recv(&mut bytes, 0)?;
            for (kind, _, body) in messages(&bytes) {
                match kind {
                    DONE => return failure(body).map(|()| found),
                    ERROR => return failure(body).map(|()| found),
                    _ => found.push((kind, body.to_vec())),
                }
            }
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, (kind, flags): (u16, u16), body: &[u8]) {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        out.extend_from_slice(&self.sequence.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(body);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.socket, bytes)
    }

    /// Reads until the last request is answered.
    fn answers(&self, (first, last): (u32, u32), mut refused: impl FnMut(usize, io::Error)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (kind, sequence, body) in messages(&bytes) {
                if kind != ERROR {
                    continue;
                }
                if let Err(error) = failure(body) {
                    refused(sequence.wrapping_sub(first) as usize, error);
                }
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }
}

/// Sends all of it, or fails.
pub(super) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    let sent = socket.send(bytes, 0)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("a netlink message was cut")) }
}

/// Appends an attribute.
pub(super) fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends a text, with the zero that ends it.
pub(super) fn text(out: &mut Vec<u8>, kind: u16, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(out, kind, &bytes);
}

/// Appends attributes within one.
pub(super) fn nest(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    body(out);
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// Messages in a datagram: type, sequence number, and what follows the header.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = number(bytes.get(..4)?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = number(bytes.get(8..12)?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// Attributes: type without flags, and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type; empty if there is none.
pub(super) fn within(bytes: &[u8], kind: u16) -> &[u8] {
    attributes(bytes).find(|(one, _)| *one == kind).map(|(_, value)| value).unwrap_or_default()
}

/// A number in this machine's order; 0 if there are too few bytes.
pub(super) fn number(bytes: &[u8]) -> u32 {
    bytes.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A text without the zero that ends it.
pub(super) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// What an answer says: the kernel's refusal, if it is one.
pub(super) fn failure(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut body = Vec::new();
        nest(&mut body, 7, |out| {
            text(out, 1, "a");
            attribute(out, 2, &5_u32.to_ne_bytes());
        });
        text(&mut body, 3, "bc");
        assert_eq!(string(within(within(&body, 7), 1)), "a");
        assert_eq!(number(within(within(&body, 7), 2)), 5);
        assert_eq!(string(within(&body, 3)), "bc");
        assert_eq!(within(&body, 9), &[0; 0]);
    }

    #[test]
    fn garbage_is_no_message() {
        for garbage in [&[][..], &[1], &[255; 64], &[0; 64], &[17, 0, 0, 0, 2, 0]] {
            assert!(messages(garbage).count() <= 1);
            let _ = attributes(garbage).count();
        }
    }
}
