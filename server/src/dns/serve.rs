//! Which snapshot a question is answered from, and for how long a server without a quorum may go on.
//!
//! INVARIANT: a read is asked for after the questions that it serves have arrived, so that its snapshot holds every
//! write acknowledged before them. Without one within [`READ_WAIT`] the policy decides; a missing state is never taken
//! for an empty one.

use crate::dns::listen::Listeners;
use crate::dns::message::{Lack, Question, Received, Via, View, receive, reply};
use crate::dns::zone::{BadZone, Zone};
use crate::machine::Snapshot;
use fairlead_proto::mutant::{self, Mutant};
use futures::future::BoxFuture;
use hickory_proto::op::ResponseCode;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long questions wait for a linearizable read.
pub const READ_WAIT: Duration = Duration::from_millis(500);
/// How often the age of the local snapshot is measured when nobody asks.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// A linearizable read: a snapshot that holds every write acknowledged before the call.
pub type ReadFn = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<Snapshot>, ReadFailed>> + Send + Sync>;
/// The newest snapshot that this server has.
pub type LocalFn = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// Why there is no linearizable read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadFailed(pub String);

/// What happens to questions when there is no quorum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StalePolicy {
    /// Answers from the local snapshot, not to be cached and marked stale, until it may be older than `max_stale`.
    #[default]
    ServeStale,
    /// SERVFAIL.
    Strict,
}

/// What the DNS server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// The zone, e.g. `cluster.local`.
    pub zone: String,
    /// Time to live of answers, seconds.
    pub ttl_seconds: u32,
    /// Without a quorum.
    pub stale: StalePolicy,
    /// The oldest that a stale answer may be.
    pub max_stale: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 53)),
            zone: "cluster.local".to_owned(),
            ttl_seconds: 5,
            stale: StalePolicy::default(),
            max_stale: Duration::from_secs(3600),
        }
    }
}

/// Why the DNS server doesn't start or ends.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The zone is no domain name.
    #[error(transparent)]
    Zone(#[from] BadZone),
    /// The address can't be opened.
    #[error("can't listen on {address} for DNS ({transport}): {error}{hint}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// UDP or TCP.
        transport: &'static str,
        /// The system's error.
        error: std::io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A socket failed beyond repair.
    #[error("DNS on {address}: {error}")]
    Socket {
        /// The address served.
        address: SocketAddr,
        /// The system's error.
        error: std::io::Error,
    },
}

/// Serves DNS until cancelled.
///
/// # Errors
/// [`DnsError`]: a bad zone, an address in use, a socket that failed.
pub async fn serve(config: Config, read: ReadFn, local: LocalFn, cancel: CancellationToken) -> Result<(), DnsError> {
    let listeners = Listeners::open(config.listen)?;
    let answerer = Arc::new(Answerer::new(&config, read, local)?);
    let measured = answerer.clone().measure();
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = measured => Ok(()),
        ended = listeners.serve(answerer) => ended,
    }
}

/// Answers messages, whatever socket they come from.
pub(super) struct Answerer {
    zone: Zone,
    stale: StalePolicy,
    max_stale: Duration,
    read: ReadFn,
    local: LocalFn,
    /// When the local snapshot was last known to be the newest: before the last read that succeeded was asked for.
    fresh_at: Mutex<Instant>,
}

/// A snapshot and whether it is known to be new enough.
enum Seen {
    Fresh(Arc<Snapshot>),
    Stale(Arc<Snapshot>),
    Nothing(Lack),
}

impl Seen {
    fn view(&self) -> View<'_> {
        match self {
            Self::Fresh(snapshot) => View::Fresh(&snapshot.state),
            Self::Stale(snapshot) => View::Stale(&snapshot.state),
            Self::Nothing(lack) => View::Nothing(*lack),
        }
    }
}

impl Answerer {
    pub(super) fn new(config: &Config, read: ReadFn, local: LocalFn) -> Result<Self, BadZone> {
        Ok(Self {
            zone: Zone::new(&config.zone, config.ttl_seconds)?,
            stale: config.stale,
            max_stale: config.max_stale,
            read,
            local,
            // A restarted server can't know how old its disk is; it counts from its start.
            fresh_at: Mutex::new(Instant::now()),
        })
    }

    /// Reads a message that has arrived.
    pub(super) fn receive(&self, bytes: Vec<u8>, via: Via) -> Received {
        receive(&self.zone, bytes, via)
    }

    /// Answers questions that have all arrived, from one snapshot.
    pub(super) async fn replies(&self, questions: &[Question]) -> Vec<Vec<u8>> {
        let begun = Instant::now();
        let seen = self.see().await;
        let replies = self.write(questions, &seen);
        metrics::histogram!("fairlead_dns_reply_seconds").record(begun.elapsed().as_secs_f64());
        replies
    }

    /// Tells the clients to ask another server.
    pub(super) fn overloaded(&self, questions: &[Question]) -> Vec<Vec<u8>> {
        metrics::counter!("fairlead_dns_overload_total").increment(questions.len() as u64);
        self.write(questions, &Seen::Nothing(Lack::Overload))
    }

    fn write(&self, questions: &[Question], seen: &Seen) -> Vec<Vec<u8>> {
        let view = seen.view();
        let one = |question| {
            let (bytes, code) = reply(&self.zone, question, view);
            metrics::counter!("fairlead_dns_replies_total", "code" => code_name(code)).increment(1);
            bytes
        };
        questions.iter().map(one).collect()
    }

    async fn see(&self) -> Seen {
        let asked_at = Instant::now();
        if mutant::is_on(Mutant::DnsFromMemory) {
            return Seen::Fresh((self.local)());
        }
        if let Ok(Ok(snapshot)) = tokio::time::timeout(READ_WAIT, (self.read)()).await {
            self.measured(asked_at);
            return Seen::Fresh(snapshot);
        }
        if self.stale == StalePolicy::Strict || self.age() > self.max_stale {
            metrics::counter!("fairlead_dns_unavailable_total").increment(1);
            return Seen::Nothing(Lack::NoQuorum);
        }
        metrics::counter!("fairlead_dns_stale_reads_total").increment(1);
        if mutant::is_on(Mutant::DnsUnmarked) {
            return Seen::Fresh((self.local)());
        }
        Seen::Stale((self.local)())
    }

    /// How long ago the local snapshot was known to be the newest.
    fn age(&self) -> Duration {
        let fresh_at = *self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner);
        fresh_at.elapsed()
    }

    fn measured(&self, fresh: Instant) {
        let mut fresh_at = self.fresh_at.lock().unwrap_or_else(PoisonError::into_inner);
        *fresh_at = fresh.max(*fresh_at);
    }

    /// Measures the local snapshot's age without questions, so that an idle server doesn't take itself for stale.
    async fn measure(self: Arc<Self>) {
        let every = MEASURE_EVERY.min(self.max_stale / 4).max(Duration::from_millis(100));
        loop {
            let asked_at = Instant::now();
            if let Ok(Ok(_)) = tokio::time::timeout(READ_WAIT, (self.read)()).await {
                self.measured(asked_at);
            }
            metrics::gauge!("fairlead_dns_snapshot_age_seconds").set(self.age().as_secs_f64());
            tokio::time::sleep(every).await;
        }
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::sample;
    use crate::machine::State;
    use hickory_proto::op::{Edns, Message, Query as Asked};
    use hickory_proto::rr::{Name, RecordType};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UdpSocket};

    /// A cluster whose quorum can be taken away, and a DNS server on it.
    struct Served {
        address: SocketAddr,
        quorum: Arc<AtomicBool>,
        reads: Arc<AtomicU32>,
        cancel: CancellationToken,
        task: tokio::task::JoinHandle<Result<(), DnsError>>,
    }

    impl Served {
        async fn start(config: Config, state: State) -> Self {
            let quorum = Arc::new(AtomicBool::new(true));
            let reads = Arc::new(AtomicU32::new(0));
            let snapshot = sample::snapshot(state);
            let (local, asked, counted) = (snapshot.clone(), quorum.clone(), reads.clone());
            let read: ReadFn = Arc::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                let (snapshot, there) = (snapshot.clone(), asked.load(Ordering::Relaxed));
                Box::pin(async move {
                    if !there {
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                    }
                    Ok(snapshot)
                })
            });
            let local: LocalFn = Arc::new(move || local.clone());
            let listeners = Listeners::open(config.listen).unwrap();
            let address = listeners.address();
            drop(listeners);
            let cancel = CancellationToken::new();
            let config = Config { listen: address, ..config };
            let task = tokio::spawn(serve(config, read, local, cancel.clone()));
            let served = Self { address, quorum, reads, cancel, task };
            while TcpStream::connect(served.address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            served
        }

        async fn udp(&self, name: &str) -> Message {
            self.udp_at(self.address, name).await
        }

        async fn udp_at(&self, server: SocketAddr, name: &str) -> Message {
            let any: SocketAddr = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }.parse().unwrap();
            let socket = UdpSocket::bind(any).await.unwrap();
            // A connected socket takes replies from the address it asked and from no other.
            socket.connect(server).await.unwrap();
            socket.send(&request(name).to_vec().unwrap()).await.unwrap();
            let mut buffer = [0; 2048];
            let length =
                tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
            Message::from_vec(&buffer[..length]).unwrap()
        }

        async fn end(self) {
            self.cancel.cancel();
            self.task.await.unwrap().unwrap();
        }
    }

    fn loopback() -> Config {
        Config { listen: "127.0.0.1:0".parse().unwrap(), ..Config::default() }
    }

    fn request(name: &str) -> Message {
        let mut message = Message::query();
        message.add_query(Asked::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.set_edns(Edns::new());
        message
    }

    async fn tcp_exchange(stream: &mut TcpStream, message: &Message) -> Message {
        let bytes = message.to_vec().unwrap();
        let frame = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
        // In two pieces: a frame may arrive in any.
        stream.write_all(&frame[..5]).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(&frame[5..]).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    }

    const WEB: &str = "web.shop.svc.cluster.local.";

    #[tokio::test]
    async fn udp_and_tcp_answer_the_same() {
        let served = Served::start(loopback(), sample::state()).await;
        let udp = served.udp(WEB).await;
        assert_eq!(udp.answers.len(), 1);
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        for _ in 0..3 {
            let tcp = tcp_exchange(&mut stream, &request(WEB)).await;
            assert_eq!(tcp.answers, udp.answers);
        }
        let none = served.udp("none.shop.svc.cluster.local.").await;
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
        let foreign = served.udp("example.com.").await;
        assert_eq!(foreign.metadata.response_code, ResponseCode::Refused);
        served.end().await;
    }

    #[tokio::test]
    async fn a_wildcard_listener_replies_from_the_address_asked() {
        for (listen, asked) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
            let listen = listen.parse().unwrap();
            let served = Served::start(Config { listen, ..Config::default() }, sample::state()).await;
            let server = SocketAddr::new(asked.parse().unwrap(), served.address.port());
            assert_eq!(served.udp_at(server, WEB).await.answers.len(), 1);
            let own = served.udp_at(server, "ns.dns.cluster.local.").await;
            let v4 = asked.parse::<std::net::Ipv4Addr>().is_ok();
            assert_eq!(own.answers.len(), usize::from(v4));
            served.end().await;
        }
    }

    #[tokio::test]
    async fn without_a_quorum_answers_are_stale_and_marked() {
        let served = Served::start(loopback(), sample::state()).await;
        assert_eq!(served.udp(WEB).await.answers[0].ttl, 5);
        served.quorum.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        let reply = served.udp(WEB).await;
        assert!(begun.elapsed() >= READ_WAIT && begun.elapsed() < 8 * READ_WAIT, "{:?}", begun.elapsed());
        assert_eq!((reply.metadata.response_code, reply.answers[0].ttl), (ResponseCode::NoError, 0));
        assert!(!reply.edns.unwrap().options().options.is_empty());
        served.quorum.store(true, Ordering::Relaxed);
        assert_eq!(served.udp(WEB).await.answers[0].ttl, 5);
        served.end().await;
    }

    #[tokio::test]
    async fn strict_or_too_old_is_a_failure() {
        let strict = Config { stale: StalePolicy::Strict, ..loopback() };
        let old = Config { max_stale: Duration::from_millis(200), ..loopback() };
        for config in [strict, old] {
            let served = Served::start(config, sample::state()).await;
            served.quorum.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(250)).await;
            let reply = served.udp(WEB).await;
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
            served.end().await;
        }
    }

    #[tokio::test]
    async fn no_cluster_is_no_denial() {
        let served = Served::start(loopback(), State::default()).await;
        assert_eq!(served.udp(WEB).await.metadata.response_code, ResponseCode::ServFail);
        served.end().await;
    }

    #[tokio::test]
    async fn a_burst_is_answered_from_few_reads() {
        let served = Served::start(loopback(), sample::state()).await;
        let before = served.reads.load(Ordering::Relaxed);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(served.address).await.unwrap();
        let bytes = request(WEB).to_vec().unwrap();
        for _ in 0..200 {
            socket.send(&bytes).await.unwrap();
        }
        let mut buffer = [0; 2048];
        for _ in 0..200 {
            let one = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
            assert!(one.unwrap().unwrap() > 12);
        }
        let reads = served.reads.load(Ordering::Relaxed) - before;
        assert!(reads < 200, "{reads} reads");
        served.end().await;
    }

    #[tokio::test]
    async fn garbage_does_not_end_it() {
        let served = Served::start(loopback(), sample::state()).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for length in [0, 1, 11, 12, 13, 40, 500, 5000] {
            socket.send_to(&vec![0x5a; length], served.address).await.unwrap();
            socket.send_to(&vec![0; length], served.address).await.unwrap();
        }
        // A frame larger than any question, and a connection cut within one.
        for bytes in [&[0xff, 0xff, 1, 2, 3][..], &[0, 40, 1]] {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
        }
        assert_eq!(served.udp(WEB).await.answers.len(), 1);
        served.end().await;
    }

    #[tokio::test]
    async fn an_address_in_use_is_one_sentence() {
        let served = Served::start(loopback(), sample::state()).await;
        let message = Listeners::open(served.address).err().unwrap().to_string();
        assert!(message.starts_with(&format!("can't listen on {} for DNS (TCP): ", served.address)), "{message}");
        assert!(message.contains("--listen-dns"), "{message}");
        served.end().await;
        // An address of its own: another test may have this port of 127.0.0.1 by TCP.
        let taken = std::net::UdpSocket::bind("127.53.0.1:0").unwrap();
        let message = Listeners::open(taken.local_addr().unwrap()).err().unwrap().to_string();
        assert!(message.contains("for DNS (UDP): "), "{message}");
        let elsewhere = Listeners::open("192.0.2.1:0".parse().unwrap()).err().unwrap().to_string();
        assert!(elsewhere.contains("no interface of this host"), "{elsewhere}");
    }

    #[tokio::test]
    async fn a_bad_zone_is_refused() {
        let (read, local): (ReadFn, LocalFn) =
            (Arc::new(|| Box::pin(std::future::pending())), Arc::new(|| sample::snapshot(State::default())));
        let config = Config { zone: "no zone".into(), ..loopback() };
        let ended = serve(config, read, local, CancellationToken::new()).await;
        assert!(matches!(ended, Err(DnsError::Zone(_))));
    }
}
