//! The stream to a server: views down; acknowledgements, heartbeats and pod reports up.
//!
//! Any server will do; a lost one is replaced after a short, jittered wait. INVARIANT: a revision is acknowledged only
//! after it is in the state directory and the kernel serves it; a view that doesn't fold is dropped and asked for anew,
//! while the kernel keeps what it has.

use crate::book::Book;
use crate::certificate::{Certificate, NoCertificate};
use crate::dataplane::Dataplane;
use crate::reconcile::Progress;
use crate::shared::Shared;
use crate::state::{Store, snapshot};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::tls::{SERVER_NAME, Transport};
use fairlead_proto::trace;
use fairlead_proto::v1::node_sync_client::NodeSyncClient;
use fairlead_proto::v1::{
    AgentMessage, Applied, DataplaneAnswer, DataplaneQuery, Failed, Heartbeat, Hello, NodeDelta, PodStatusReport,
    ServerMessage, Welcome, agent_message, server_message,
};
use fairlead_proto::view::FoldError;
use ipnet::IpNet;
use rand::Rng as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tracing::Span;

/// First and longest wait before the next server is tried.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A stream that lasted so long was a good one: the next wait is the shortest again.
const SETTLED: Duration = Duration::from_secs(5);
/// Messages waiting for the socket.
const OUTBOUND: usize = 16;
/// Pods in one report.
const REPORT_PODS: usize = 256;
/// Parts of one step held at most: a step larger than this many messages is no step.
const PARTS: usize = 100_000;
/// Largest message taken from a server.
const MESSAGE_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Least time that a server gets to answer a Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The server can't be reached.
    #[error("can't connect: {}", innermost(.0))]
    Connect(#[from] tonic::transport::Error),
    /// There is no certificate to show.
    #[error(transparent)]
    Certificate(#[from] NoCertificate),
    /// The server ended it.
    #[error("{}", .0.message())]
    Status(#[from] tonic::Status),
    /// The server said why it leaves.
    #[error("server says goodbye: {0}")]
    Goodbye(String),
    /// The server closed it without a word.
    #[error("stream closed")]
    Closed,
    /// The server is there, and doesn't answer.
    #[error("no answer to Hello within {} s", .0.as_secs())]
    Mute(Duration),
    /// The server belongs to another cluster.
    #[error(
        "this node belongs to cluster {ours}, the server to cluster {theirs}: point the agent at its own servers, or remove its state directory"
    )]
    OtherCluster {
        /// Ours, from the state directory.
        ours: String,
        /// The server's.
        theirs: String,
    },
    /// The view is broken.
    #[error("{0}; asking for the whole view")]
    Fold(#[from] FoldError),
    /// A step that never ends.
    #[error("a step of more than {PARTS} parts")]
    Endless,
}

/// What the stream says of the node in its Hello.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// Hello as far as it never changes.
    pub hello: Hello,
    /// Servers, `host:port`.
    pub servers: Vec<String>,
}

/// The task.
pub struct Sync {
    greeting: Greeting,
    certificate: Arc<Certificate>,
    shared: Arc<Shared>,
    book: Arc<Book>,
    dataplane: Arc<Dataplane>,
    progress: watch::Receiver<Progress>,
    store: Arc<Mutex<Store>>,
    cluster: Welcome,
}

impl Sync {
    /// Makes the task.
    #[must_use]
    pub fn new(
        (greeting, certificate): (Greeting, Arc<Certificate>),
        shared: Arc<Shared>,
        dataplane: Arc<Dataplane>,
        (store, cluster): (Store, Welcome),
    ) -> Self {
        let progress = dataplane.progress.clone();
        Self {
            greeting,
            certificate,
            shared,
            book: Arc::default(),
            dataplane,
            progress,
            store: Arc::new(Mutex::new(store)),
            cluster,
        }
    }

    /// The book that pods are reported from.
    #[must_use]
    pub fn book(&self) -> Arc<Book> {
        self.book.clone()
    }

    /// Keeps a stream to some server until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut at = rand::rng().random_range(0..self.greeting.servers.len().max(1));
        let mut wait = BACKOFF.0;
        let mut last = String::new();
        self.certificate.learn(known(&self.greeting.servers, &self.cluster.servers));
        loop {
            let servers = known(&self.greeting.servers, &self.cluster.servers);
            let Some(server) = servers.get(at % servers.len().max(1)).cloned() else { return };
            let begun = Instant::now();
            let end = tokio::select! {
                () = cancel.cancelled() => return,
                end = self.stream(&server) => end,
            };
            metrics::counter!("fairlead_agent_stream_ends_total").increment(1);
            if mutant::is_on(Mutant::FlushOnDisconnect) {
                mutant::flush();
            }
            let said = end.to_string();
            // The same trouble at every attempt is said once; the rules stay all the while.
            if said == last {
                tracing::debug!(server, reason = said, "still no stream to a server");
            } else if matches!(end, StreamEnd::OtherCluster { .. }) || is_refusal(&end) {
                tracing::error!(server, reason = said, "the server refuses this node");
            } else {
                tracing::warn!(server, reason = said, "no stream to a server; the rules stay as they are");
            }
            last = if begun.elapsed() > SETTLED { String::new() } else { said };
            wait = if begun.elapsed() > SETTLED { BACKOFF.0 } else { wait };
            let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(jittered) => {}
            }
            wait = (wait * 2).min(BACKOFF.1);
            at = at.wrapping_add(1);
        }
    }

    /// One stream, to its end.
    async fn stream(&mut self, server: &str) -> StreamEnd {
        match self.try_stream(server).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_stream(&mut self, server: &str) -> Result<std::convert::Infallible, StreamEnd> {
        let transport = self.certificate.transport(server).await?;
        let channel = connect(server, &transport, &self.greeting.hello).await?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let (have, digest) = self.shared.have();
        let hello = Hello { cluster_id: self.cluster.cluster_id.clone(), have, digest, ..self.greeting.hello.clone() };
        let mut line = Line { outbound, owed: None, failed: None, traced: Vec::new() };
        line.send(agent_message::Kind::Hello(hello)).await?;
        let mut client = NodeSyncClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        // It may have to find its leader first; but one that is stuck keeps its connection open and says nothing.
        let limit = patience(&self.greeting.hello).max(HELLO_TIMEOUT);
        let answer = tokio::time::timeout(limit, client.sync(ReceiverStream::new(messages))).await;
        let mut inbound = answer.map_err(|_| StreamEnd::Mute(limit))??.into_inner();
        let mut heartbeat =
            tokio::time::interval(Duration::from_secs(u64::from(self.greeting.hello.renew_seconds.max(1))));
        let mut parts = Vec::new();
        let (answers, mut answered) = mpsc::channel::<DataplaneAnswer>(2);
        self.book.report_all();
        self.progress.mark_changed();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let Some(message) = message? else { return Err(StreamEnd::Closed) };
                    self.take(message, (server, &mut parts), (&mut line, &answers)).await?;
                }
                changed = self.progress.changed() => {
                    if changed.is_err() {
                        return Err(StreamEnd::Closed);
                    }
                    let progress = self.progress.borrow_and_update().clone();
                    line.acknowledge(&progress).await?;
                }
                _ = heartbeat.tick() => {
                    let applied = self.progress.borrow().applied;
                    line.send(agent_message::Kind::Heartbeat(Heartbeat { applied })).await?;
                }
                () = self.book.changed() => {
                    let pods = self.book.take(REPORT_PODS);
                    if !pods.is_empty() {
                        line.send(agent_message::Kind::PodStatus(PodStatusReport { pods })).await?;
                    }
                }
                Some(answer) = answered.recv() => line.send(agent_message::Kind::Dataplane(answer)).await?,
                () = self.dataplane.drifts.changed() => self.report_drift(&mut line).await?,
            }
        }
    }

    async fn report_drift(&self, line: &mut Line) -> Result<(), StreamEnd> {
        let Some(report) = self.dataplane.drifts.take() else {
            return Ok(());
        };
        let sent = line.send(agent_message::Kind::Drift(report.clone())).await;
        if sent.is_err() {
            self.dataplane.drifts.put_back(report);
        }
        sent
    }

    async fn take(
        &mut self,
        message: ServerMessage,
        (server, parts): (&str, &mut Vec<NodeDelta>),
        (line, answers): (&mut Line, &mpsc::Sender<DataplaneAnswer>),
    ) -> Result<(), StreamEnd> {
        match message.kind {
            Some(server_message::Kind::Welcome(welcome)) => self.welcome(server, &welcome).await,
            Some(server_message::Kind::Delta(delta)) => {
                let last = !delta.more;
                parts.push(delta);
                if last {
                    self.fold(std::mem::take(parts), line).await
                } else if parts.len() > PARTS {
                    Err(StreamEnd::Endless)
                } else {
                    Ok(())
                }
            }
            Some(server_message::Kind::DataplaneQuery(query)) => {
                self.answer(query, answers.clone());
                Ok(())
            }
            Some(server_message::Kind::Goodbye(goodbye)) => Err(StreamEnd::Goodbye(goodbye.reason)),
            // A later server may say more than we know.
            None => Ok(()),
        }
    }

    async fn welcome(&mut self, server: &str, welcome: &Welcome) -> Result<(), StreamEnd> {
        let ours = &self.cluster.cluster_id;
        if !ours.is_empty() && *ours != welcome.cluster_id {
            return Err(StreamEnd::OtherCluster { ours: ours.clone(), theirs: welcome.cluster_id.clone() });
        }
        // The same of every server.
        let cluster = Welcome { server: String::new(), ..welcome.clone() };
        if self.cluster != cluster {
            self.cluster = cluster;
            self.shared.set_service_cidrs(service_cidrs(&self.cluster));
            self.save().await;
        }
        self.certificate.learn(known(&self.greeting.servers, &self.cluster.servers));
        tracing::info!(server, name = welcome.server, cluster = welcome.cluster_id, "connected");
        Ok(())
    }

    /// A whole step: into the view, onto the disk, then to whoever waits for it.
    async fn fold(&mut self, mut parts: Vec<NodeDelta>, line: &mut Line) -> Result<(), StreamEnd> {
        line.trace(&mut parts, &self.greeting.hello.node_name);
        let whole = parts.first().is_some_and(|part| part.from.is_none());
        self.shared.fold(&parts)?;
        let appended =
            if whole { Ok(false) } else { self.store.lock().unwrap_or_else(PoisonError::into_inner).append(&parts) };
        if !matches!(appended, Ok(true)) {
            self.save().await;
        }
        line.owed = Some(self.shared.announce());
        line.failed = None;
        let progress = self.progress.borrow().clone();
        line.acknowledge(&progress).await
    }

    /// Writes the whole view. A full disk doesn't keep the kernel from being programmed.
    async fn save(&mut self) {
        let bytes = self.shared.look(|view| snapshot(&self.cluster, view));
        let store = self.store.clone();
        let write = move || store.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes);
        let written = tokio::task::spawn_blocking(write).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::error!(%error, "the view can't be saved; after a restart this agent will start from an older one");
        }
    }

    fn answer(&self, query: DataplaneQuery, answers: mpsc::Sender<DataplaneAnswer>) {
        // More questions than are being answered are left to time out.
        let Ok(permit) = answers.try_reserve_owned() else {
            return;
        };
        let dataplane = self.dataplane.clone();
        tokio::task::spawn_blocking(move || permit.send(dataplane.answer(&query)));
    }
}

/// The way up to the server.
struct Line {
    outbound: mpsc::Sender<AgentMessage>,
    /// Version of the shared view that the server waits to see acknowledged.
    owed: Option<u64>,
    /// What was last said to have failed.
    failed: Option<(u64, String)>,
    /// Spans of what is being programmed.
    traced: Vec<Span>,
}

impl Line {
    /// Begins a span for each traced change in a step, which ends with its acknowledgement. The view doesn't keep them.
    fn trace(&mut self, parts: &mut [NodeDelta], node: &str) {
        let Some(last) = parts.last_mut() else { return };
        let contexts = std::mem::take(&mut last.traceparents);
        if !trace::is_on() {
            return;
        }
        let begin = |context: &String| {
            let span = tracing::info_span!(
                target: trace::TARGET, parent: None, "node.program", otel.kind = "consumer", node,
                revision = last.to, kernel_us = tracing::field::Empty
            );
            trace::child(span, context)
        };
        self.traced = contexts.iter().take(trace::MOST).map(begin).collect();
    }

    async fn send(&mut self, kind: agent_message::Kind) -> Result<(), StreamEnd> {
        self.outbound.send(AgentMessage { kind: Some(kind) }).await.map_err(|_| StreamEnd::Closed)
    }

    /// Says what the kernel serves, or refuses, if the server waits for it or believes otherwise.
    async fn acknowledge(&mut self, progress: &Progress) -> Result<(), StreamEnd> {
        if let Some((revision, error)) = &progress.failed {
            if self.failed != progress.failed {
                self.failed.clone_from(&progress.failed);
                self.owed = Some(self.owed.unwrap_or(progress.version));
                let failed = Failed { revision: *revision, error: error.clone() };
                return self.send(agent_message::Kind::Failed(failed)).await;
            }
            return Ok(());
        }
        if self.owed.is_none_or(|owed| progress.version < owed) {
            return Ok(());
        }
        self.owed = None;
        self.failed = None;
        let took_us = u64::try_from(progress.took.as_micros()).unwrap_or(u64::MAX);
        let acknowledging = |span: &Span| {
            span.record("kernel_us", took_us);
            let revision = progress.applied;
            tracing::info_span!(target: trace::TARGET, parent: span, "node.acknowledge", revision)
        };
        // Both end when the word is on its way.
        let traced = std::mem::take(&mut self.traced);
        let _acknowledging: Vec<Span> = traced.iter().map(acknowledging).collect();
        self.send(agent_message::Kind::Applied(Applied { revision: progress.applied, took_us })).await
    }
}

/// The servers that the agent was told of, and those that a server told it of since: members come and go.
#[must_use]
pub fn known(told: &[String], learned: &[String]) -> Vec<String> {
    let mut servers = told.to_vec();
    let usable =
        |server: &&String| server.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && !port.is_empty());
    for server in learned.iter().filter(usable) {
        if !servers.contains(server) {
            servers.push(server.clone());
        }
    }
    servers
}

/// Ranges that the cluster's ClusterIPs come from.
#[must_use]
pub fn service_cidrs(cluster: &Welcome) -> Vec<IpNet> {
    cluster.service_cidr.split(',').filter_map(|text| text.trim().parse().ok()).collect()
}

/// The innermost reason of an error, which is what a person can act on.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn is_refusal(end: &StreamEnd) -> bool {
    use tonic::Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated};
    matches!(end, StreamEnd::Status(status) if matches!(status.code(), FailedPrecondition | InvalidArgument | PermissionDenied | Unauthenticated))
}

/// A server that vanished without a word is noticed well within the grace.
fn patience(hello: &Hello) -> Duration {
    Duration::from_secs(u64::from(hello.grace_seconds / 2).clamp(2, 20))
}

async fn connect(server: &str, transport: &Transport, hello: &Hello) -> Result<Channel, StreamEnd> {
    let bare = server.split_once("://").map_or(server, |(_, bare)| bare);
    let uri = format!("http://{bare}");
    let patience = patience(hello);
    let endpoint = Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(patience)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(true);
    Ok(transport.connect(endpoint, SERVER_NAME).await?)
}
