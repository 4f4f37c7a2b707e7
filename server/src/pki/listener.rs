//! A listener's connections: plain, or through TLS with the certificates of the moment, each with who is at its end.
//!
//! Handshakes go on beside each other and are bounded in number and time, so that nobody who connects and says nothing
//! holds up anybody else.

use crate::pki::Identity;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Time for one TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once.
const MAX_HANDSHAKES: usize = 256;
/// Connections of one listener at once; more are hung up on.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections made that nobody has taken yet.
const READY: usize = 64;
/// Pause after an accept that failed: most often there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// How a listener speaks.
#[derive(Clone, Default)]
pub enum Security {
    /// Plaintext: everybody may do everything.
    #[default]
    Plain,
    /// TLS, with the configuration of the moment.
    Tls(Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>),
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Plain) { "Plain" } else { "Tls" })
    }
}

/// Who is at the other end.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// By its certificate.
    pub identity: Identity,
    /// Its address.
    pub remote: Option<SocketAddr>,
}

/// One connection.
pub struct Connection {
    stream: Stream,
    caller: Caller,
    _open: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A listener's connections, as they become ready.
#[must_use]
pub fn connections(listener: TcpListener, security: Security) -> ReceiverStream<io::Result<Connection>> {
    let (ready, taken) = mpsc::channel(READY);
    tokio::spawn(accept(listener, security, ready));
    ReceiverStream::new(taken)
}

async fn accept(listener: TcpListener, security: Security, ready: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let open = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(open) = open.clone().try_acquire_owned() else {
            tracing::warn!(%remote, "too many connections: hung up");
            metrics::counter!("fairlead_api_refused_connections_total").increment(1);
            continue;
        };
        let _ = tcp.set_nodelay(true);
        let Security::Tls(config) = &security else {
            let caller = Caller { identity: Identity::Unsecured, remote: Some(remote) };
            if ready.send(Ok(Connection { stream: Stream::Plain(tcp), caller, _open: open })).await.is_err() {
                return;
            }
            continue;
        };
        let (acceptor, ready) = (TlsAcceptor::from(config()), ready.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let identity = shown.map_or(Identity::Anonymous, Identity::of_certificate);
                    let caller = Caller { identity, remote: Some(remote) };
                    let _ =
                        ready.send(Ok(Connection { stream: Stream::Tls(Box::new(stream)), caller, _open: open })).await;
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%remote, "no TLS handshake within 5 s"),
            }
            drop(place);
        });
    }
}

impl Connection {
    /// The TCP connection below.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Connections for an HTTP server.
pub struct HttpListener {
    connections: ReceiverStream<io::Result<Connection>>,
    address: SocketAddr,
}

impl HttpListener {
    /// On a listener.
    ///
    /// # Errors
    /// It has no address.
    pub fn new(listener: TcpListener, security: Security) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { connections: connections(listener, security), address })
    }
}

impl axum::serve::Listener for HttpListener {
    type Io = Connection;
    type Addr = Caller;

    async fn accept(&mut self) -> (Connection, Caller) {
        use tokio_stream::StreamExt as _;
        loop {
            match self.connections.next().await {
                Some(Ok(connection)) => {
                    let caller = connection.caller.clone();
                    return (connection, caller);
                }
                Some(Err(error)) => tracing::debug!(%error, "no connection"),
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Caller> {
        Ok(Caller { identity: Identity::Unsecured, remote: Some(self.address) })
    }
}
