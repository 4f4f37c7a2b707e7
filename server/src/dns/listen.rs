//! DNS sockets: UDP, one socket a core sharing the port, and TCP. Knows nothing of names or states.
//!
//! hickory's own server loop is not used: bound to a wildcard address it replies from whatever address the route has,
//! which clients of a host with several addresses drop; it starts a task for every packet and bounds neither these nor
//! TCP connections. INVARIANT: a reply leaves from the address that its question was sent to; what is in flight is at
//! most [`WAITING`] questions a socket and [`CONNECTIONS`] connections.

use crate::dns::message::{Question, Received, Via};
use crate::dns::serve::{Answerer, DnsError};
use hickory_server::net::xfer::Protocol;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Socket, Type};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Sockets that share the UDP port, at most.
const MOST_SOCKETS: usize = 8;
/// Questions answered from one read, at most.
const BATCH: usize = 64;
/// Questions of one socket that wait for their read, at most; those beyond are told to ask another server.
const WAITING: usize = 8192;
/// Largest request: more than a question with every option needs.
const LARGEST_REQUEST: usize = 4096;
/// Kernel buffer of a UDP socket, bytes: room for a burst.
const KERNEL_BUFFER: usize = 1 << 20;
/// TCP connections at a time.
const CONNECTIONS: usize = 256;
/// A TCP connection without a question, or one that doesn't take its reply, is closed after this (RFC 7766 6.2.3).
const IDLE: Duration = Duration::from_secs(5);
/// Pause after a failed accept: out of file descriptors, most likely.
const BREATH: Duration = Duration::from_millis(100);

/// Open sockets.
pub(super) struct Listeners {
    address: SocketAddr,
    tcp: TcpListener,
    udp: Vec<UdpSocket>,
}

impl Listeners {
    /// Opens them all or none.
    pub(super) fn open(listen: SocketAddr) -> Result<Self, DnsError> {
        // TCP first and alone on its port, so that a second server is told instead of sharing the UDP port with us.
        let tcp = tcp_socket(listen).map_err(|error| refused(listen, "TCP", error))?;
        let address = tcp.local_addr().map_err(|error| refused(listen, "TCP", error))?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let udp = (0..cores.min(MOST_SOCKETS)).map(|_| udp_socket(address)).collect::<io::Result<_>>();
        let udp = udp.map_err(|error| refused(address, "UDP", error))?;
        Ok(Self { address, tcp, udp })
    }

    /// The address, with the port chosen for port 0.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until a socket fails; dropping ends everything.
    pub(super) async fn serve(self, answerer: Arc<Answerer>) -> Result<(), DnsError> {
        let mut tasks = JoinSet::new();
        for socket in self.udp {
            tasks.spawn(serve_udp(socket, answerer.clone()));
        }
        tasks.spawn(serve_tcp(self.tcp, answerer));
        match tasks.join_next().await {
            Some(Ok(Err(error))) => Err(DnsError::Socket { address: self.address, error }),
            Some(Err(error)) => Err(DnsError::Socket { address: self.address, error: io::Error::other(error) }),
            Some(Ok(Ok(()))) | None => Ok(()),
        }
    }
}

fn refused(address: SocketAddr, transport: &'static str, error: io::Error) -> DnsError {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another name server has the port (systemd-resolved? another fairlead?): stop it or choose another address with --listen-dns"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address: correct --listen-dns",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root or CAP_NET_BIND_SERVICE: run as root or choose another port with --listen-dns"
        }
        _ => "; correct --listen-dns",
    };
    DnsError::Bind { address, transport, error, hint }
}

fn tcp_socket(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn udp_socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // The kernel grants what its limit allows.
    let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
    let _ = socket.set_send_buffer_size(KERNEL_BUFFER);
    if listen.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    socket.bind(&listen.into())?;
    UdpSocket::from_std(socket.into())
}

async fn serve_udp(socket: UdpSocket, answerer: Arc<Answerer>) -> io::Result<()> {
    let socket = Arc::new(socket);
    let waiting = Arc::new(Semaphore::new(WAITING));
    let mut buffer = vec![0; LARGEST_REQUEST];
    let mut replying = JoinSet::new();
    loop {
        while replying.try_join_next().is_some() {}
        let arrived = socket.async_io(Interest::READABLE, || receive_some(&socket, &mut buffer)).await?;
        let mut batch = Vec::new();
        for (bytes, client, server) in arrived {
            let via = Via { client, protocol: Protocol::Udp, server };
            match answerer.receive(bytes, via) {
                Received::Ignore => {}
                Received::Reply(reply) => send(&socket, &reply, (client, server)).await,
                Received::Question(question) => batch.push((*question, (client, server))),
            }
        }
        if batch.is_empty() {
            continue;
        }
        let (questions, paths): (Vec<Question>, Vec<_>) = batch.into_iter().unzip();
        let count = u32::try_from(questions.len()).unwrap_or(u32::MAX);
        let Ok(permit) = waiting.clone().try_acquire_many_owned(count) else {
            for (reply, path) in answerer.overloaded(&questions).iter().zip(paths) {
                send(&socket, reply, path).await;
            }
            continue;
        };
        let (socket, answerer) = (socket.clone(), answerer.clone());
        replying.spawn(async move {
            for (reply, path) in answerer.replies(&questions).await.iter().zip(paths) {
                send(&socket, reply, path).await;
            }
            drop(permit);
        });
    }
}

type Datagram = (Vec<u8>, SocketAddr, Option<IpAddr>);

/// What waits in the socket, up to a batch. A single bad datagram or an ICMP error is passed over.
fn receive_some(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Vec<Datagram>> {
    let mut arrived = Vec::new();
    // More turns than datagrams: errors of former replies come here too.
    for _ in 0..2 * BATCH {
        match receive_one(socket, buffer) {
            Ok(Some(datagram)) => arrived.push(datagram),
            Ok(None) => {}
            Err(Errno::EAGAIN) if arrived.is_empty() => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Err(Errno::EAGAIN) => break,
            Err(
                Errno::EINTR
                | Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::ENOBUFS
                | Errno::ENOMEM,
            ) => {}
            Err(error) => return Err(error.into()),
        }
        if arrived.len() == BATCH {
            break;
        }
    }
    Ok(arrived)
}

fn receive_one(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<Datagram>, Errno> {
    // Room for either family's packet information.
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let client = message.address.as_ref().and_then(socket_address);
    let server = message.cmsgs().ok().and_then(|mut all| all.find_map(|one| local_address(&one)));
    let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
    let length = message.bytes;
    // Port 0 can't be replied to.
    let client = client.filter(|client| whole && client.port() != 0);
    Ok(client.and_then(|client| Some((buffer.get(..length)?.to_vec(), client, server))))
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

fn local_address(message: &ControlMessageOwned) -> Option<IpAddr> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
        _ => None,
    }
}

/// Sends a reply from the address that was asked. A reply that can't be sent is lost, as UDP may lose any.
async fn send(socket: &UdpSocket, reply: &[u8], (client, server): (SocketAddr, Option<IpAddr>)) {
    let sent = socket.async_io(Interest::WRITABLE, || {
        let to = SockaddrStorage::from(client);
        let slices = [IoSlice::new(reply)];
        let send = |control: &[ControlMessage<'_>]| {
            sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to)).map_err(io::Error::from)
        };
        match server {
            Some(IpAddr::V4(from)) => {
                let address = libc::in_addr { s_addr: u32::from(from).to_be() };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
                send(&[ControlMessage::Ipv4PacketInfo(&info)])
            }
            Some(IpAddr::V6(from)) => {
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
                send(&[ControlMessage::Ipv6PacketInfo(&info)])
            }
            None => send(&[]),
        }
    });
    if let Err(error) = sent.await {
        tracing::debug!(%client, %error, "a DNS reply could not be sent");
    }
}

async fn serve_tcp(listener: TcpListener, answerer: Arc<Answerer>) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let mut conversations = JoinSet::new();
    loop {
        while conversations.try_join_next().is_some() {}
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return Ok(());
        };
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let answerer = answerer.clone();
        conversations.spawn(async move {
            if let Err(error) = converse(stream, client, &answerer).await {
                tracing::debug!(%client, %error, "a DNS connection ended");
            }
            drop(permit);
        });
    }
}

/// Answers one connection's questions in their order, until it is idle or closed.
async fn converse(mut stream: TcpStream, client: SocketAddr, answerer: &Answerer) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let server = stream.local_addr().ok().map(|address| address.ip());
    loop {
        let bytes = match tokio::time::timeout(IDLE, framed(&mut stream)).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        };
        let via = Via { client, protocol: Protocol::Tcp, server };
        let reply = match answerer.receive(bytes, via) {
            Received::Ignore => continue,
            Received::Reply(reply) => Some(reply),
            Received::Question(question) => answerer.replies(&[*question]).await.pop(),
        };
        let Some(reply) = reply else { continue };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let frame = [&length.to_be_bytes()[..], &reply].concat();
        tokio::time::timeout(IDLE, stream.write_all(&frame)).await??;
    }
}

/// One message of a connection; `None` = it was closed between messages, or sends what no question needs.
async fn framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if let Err(error) = stream.read_exact(&mut length).await {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > LARGEST_REQUEST {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
