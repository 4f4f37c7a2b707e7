//! Questions to a service over any protocol, and pods that answer them. Hosts without SCTP sockets are asked by packets of
//! our own: an INIT, and an INIT ACK whose cookie is the answer (RFC 9260, 3.3).

use super::net::{Net, PATIENCE};
use fairlead_agent::plan::service::Protocol;
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Where a pod answers each protocol.
pub fn port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 8080,
        Protocol::Udp => 8054,
        Protocol::Sctp => 8009,
    }
}

/// Lets both pods answer UDP and SCTP with "pod peer", as they do TCP.
pub fn serve(net: &Net) {
    for pod in ["pod1", "pod2"] {
        let udp = net.inside(pod, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port(Protocol::Udp))).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{pod} {}", peer.ip().to_canonical()).as_bytes(), peer);
            }
        });
        for domain in [Domain::IPV4, Domain::IPV6] {
            let raw = net.inside(pod, || sctp_socket(domain));
            std::thread::spawn(move || answer_inits(raw, pod));
        }
    }
}

/// Asks so many times and counts the answers: what a pod says, "refused" or "silence".
pub fn ask(
    net: &Net,
    limit: Duration,
    (from, protocol, to): (&str, Protocol, &str),
    times: usize,
) -> BTreeMap<String, usize> {
    let once: fn(SocketAddr, Duration) -> std::io::Result<String> = match protocol {
        Protocol::Tcp => return net.ask_within(limit, (from, to), times),
        Protocol::Udp => ask_udp,
        Protocol::Sctp => ask_sctp,
    };
    let to: SocketAddr = to.parse().unwrap();
    net.inside(from, || {
        let mut answers = BTreeMap::new();
        for _ in 0..times {
            let answer = match once(to, limit) {
                Ok(answer) => answer,
                Err(error) => match error.kind() {
                    // Its own packet is refused to a sender at once, by the filter.
                    ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => "refused".to_owned(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => "silence".to_owned(),
                    _ => error.to_string(),
                },
            };
            *answers.entry(answer).or_default() += 1;
        }
        answers
    })
}

fn ask_udp(to: SocketAddr, limit: Duration) -> std::io::Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit))?;
    sent(socket.send(b"?"))?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn ask_sctp(to: SocketAddr, limit: Duration) -> std::io::Result<String> {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let own = PORT.fetch_add(1, Ordering::Relaxed);
    let mut socket = sctp_socket(if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 });
    // Connected: a refusal by ICMP becomes this socket's error, and packets of others are not ours.
    socket.connect(&SockAddr::from(SocketAddr::new(to.ip(), 0)))?;
    sent(socket.send(&packet((own, to.port()), 0, &init(1, &[]))))?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 256];
        let length = socket.read(&mut buffer)?;
        let sctp = without_ip_header(&buffer[..length], to.ip());
        let is_answer = sctp.len() > 36 && sctp[2..4] == own.to_be_bytes() && sctp[12] == 2;
        if is_answer {
            let end = 32 + usize::from(u16::from_be_bytes([sctp[34], sctp[35]]));
            return Ok(String::from_utf8_lossy(&sctp[36..end]).into_owned());
        }
    }
}

/// A host's own packet that is refused or dropped is not permitted; whether it was refused is heard afterwards.
fn sent(sent: std::io::Result<usize>) -> std::io::Result<()> {
    match sent {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

fn sctp_socket(domain: Domain) -> Socket {
    let socket = Socket::new(domain, Type::RAW, Some(socket2::Protocol::from(132))).expect("a raw socket needs root");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Answers every INIT to the pod's port until the test ends.
fn answer_inits(socket: Socket, pod: &str) {
    let _ = socket.set_read_timeout(None);
    // Only its way to receive is used, which gives the sender and needs no uninitialised memory.
    let socket = UdpSocket::from(socket);
    let mut buffer = [0; 256];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let sctp = without_ip_header(&buffer[..length], peer.ip());
        if sctp.len() < 32 || sctp[2..4] != port(Protocol::Sctp).to_be_bytes() || sctp[12] != 1 {
            continue;
        }
        let ports = (port(Protocol::Sctp), u16::from_be_bytes([sctp[0], sctp[1]]));
        let tag = u32::from_be_bytes([sctp[16], sctp[17], sctp[18], sctp[19]]);
        let text = format!("{pod} {}", peer.ip().to_canonical());
        let _ = socket.send_to(&packet(ports, tag, &init(2, text.as_bytes())), SocketAddr::new(peer.ip(), 0));
    }
}

/// A raw IPv4 socket shows the IP header too.
fn without_ip_header(bytes: &[u8], peer: IpAddr) -> &[u8] {
    match peer {
        IpAddr::V4(_) => bytes.get(usize::from(bytes[0] & 0x0f) * 4..).unwrap_or_default(),
        IpAddr::V6(_) => bytes,
    }
}

/// An INIT (1) or INIT ACK (2) chunk, with a state cookie if there is a text.
pub fn init(kind: u8, cookie: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, 0, 0, 20];
    chunk.extend(0x0f1e_2d3c_u32.to_be_bytes());
    chunk.extend(65_536_u32.to_be_bytes());
    chunk.extend([0, 1, 0, 1]);
    chunk.extend(1_u32.to_be_bytes());
    if !cookie.is_empty() {
        chunk.extend(7_u16.to_be_bytes());
        chunk.extend(u16::try_from(cookie.len() + 4).unwrap().to_be_bytes());
        chunk.extend(cookie);
        let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
        chunk[2..4].copy_from_slice(&length);
        chunk.resize(chunk.len().next_multiple_of(4), 0);
    }
    chunk
}

/// A packet from one port to another, with a verification tag.
pub fn packet((from, to): (u16, u16), tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunk);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// Castagnoli's CRC (RFC 9260, appendix A): conntrack passes over packets with a wrong one.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
