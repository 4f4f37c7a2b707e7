//! One node's stream: its view down, its acknowledgements, heartbeats and pod reports up.
//!
//! At most one unacknowledged delta is under way, so a slow node coalesces and never queues. What the node acknowledged
//! counts up to the newest revision at which nothing that concerns it had changed.

use crate::api::guard::caller;
use crate::machine::Snapshot;
use crate::pki::Identity;
use crate::raft::Consensus;
use crate::sync::board::{Board, Word};
use crate::sync::delta;
use crate::sync::drift::Drifts;
use crate::sync::stamped::Stamped;
use crate::write::{Writer, now_ms, rfc3339};
use fairlead_proto::internal::v1::{NodeUp, ReportPods, ReportedPod, command};
use fairlead_proto::trace;
use fairlead_proto::v1::{
    AgentMessage, DataplaneAnswer, DataplaneQuery, Goodbye, Hello, PodReadiness, PodStatusReport, ServerMessage,
    Welcome, agent_message, node_sync_server, server_message,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;

/// Messages waiting for one node's socket.
const STREAM_BUFFER: usize = 16;
/// Pod reports waiting to be committed.
const REPORT_BUFFER: usize = 64;
/// An idle node is told of later revisions after this time and at most half of it more, so that its view stays resumable.
const STEP_EVERY: Duration = Duration::from_secs(10);
/// How long a server waits to reach the revision an agent has already seen.
const CATCH_UP: Duration = Duration::from_secs(3);
/// How long a node may take to answer what its kernel holds.
const DATAPLANE_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything sessions share.
pub struct Sessions {
    /// Consensus and state.
    pub consensus: Consensus,
    /// Proposes commands.
    pub writer: Writer,
    /// Words of the nodes whose streams this server holds.
    pub board: Arc<Board>,
    /// What they repaired.
    pub drifts: Drifts,
    /// This server's name.
    pub server: String,
    /// Cluster domain, for agents' information.
    pub cluster_domain: String,
    /// Newest stamped snapshot.
    pub stamped: watch::Receiver<Arc<Stamped>>,
    /// Ends every session.
    pub cancel: CancellationToken,
    links: Mutex<BTreeMap<String, Link>>,
}

/// A question to a node, and where its answer goes.
type Query = (DataplaneQuery, oneshot::Sender<DataplaneAnswer>);

/// The way to a connected node.
#[derive(Clone)]
struct Link {
    epoch: u64,
    queries: mpsc::Sender<Query>,
    replaced: CancellationToken,
}

/// Keeps the stamped snapshot current: one digest a revision for all nodes.
pub async fn stamp(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    to: watch::Sender<Arc<Stamped>>,
    cancel: CancellationToken,
) {
    loop {
        let next = snapshots.borrow_and_update().clone();
        let stamped = to.borrow().clone();
        if next.state.revision() != stamped.snapshot.state.revision() || next.state.revision() == 0 {
            to.send_replace(Arc::new(stamped.advance(next)));
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}

impl Sessions {
    /// Makes the shared part.
    #[must_use]
    pub fn new(
        consensus: Consensus,
        writer: Writer,
        stamped: watch::Receiver<Arc<Stamped>>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            consensus,
            writer,
            board: Arc::default(),
            drifts: Drifts::default(),
            server: String::new(),
            cluster_domain: String::new(),
            stamped,
            cancel,
            links: Mutex::default(),
        }
    }

    /// Names of the nodes whose streams this server holds.
    #[must_use]
    pub fn connected(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Asks a connected node what its kernel holds. `None`: not connected here, or no answer in time.
    pub async fn dataplane(&self, node: &str, query: DataplaneQuery) -> Option<DataplaneAnswer> {
        let queries = self.lock().get(node)?.queries.clone();
        let (reply, answer) = oneshot::channel();
        queries.send((query, reply)).await.ok()?;
        tokio::time::timeout(DATAPLANE_TIMEOUT, answer).await.ok()?.ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a node's stream; an older stream of the same node ends.
    fn enter(&self, node: &str) -> (u64, CancellationToken, mpsc::Receiver<Query>) {
        let (queries, received) = mpsc::channel(4);
        let replaced = CancellationToken::new();
        let mut links = self.lock();
        let epoch = links.get(node).map_or(1, |link| {
            link.replaced.cancel();
            link.epoch + 1
        });
        links.insert(node.to_owned(), Link { epoch, queries, replaced: replaced.clone() });
        (epoch, replaced, received)
    }

    fn leave(&self, node: &str, epoch: u64) {
        let mut links = self.lock();
        if links.get(node).is_some_and(|link| link.epoch == epoch) {
            links.remove(node);
            drop(links);
            self.board.forget(node, &self.server);
        }
    }
}

/// The gRPC service.
#[derive(Clone)]
pub struct NodeSyncService(pub Arc<Sessions>);

#[tonic::async_trait]
impl node_sync_server::NodeSync for NodeSyncService {
    type SyncStream = ReceiverStream<Result<ServerMessage, Status>>;

    async fn sync(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let who = caller(&request);
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(Duration::from_secs(10), inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))??;
        let Some(AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a stream must be Hello"));
        };
        if let Identity::Node(name) = &who
            && *name != hello.node_name
        {
            return Err(Status::permission_denied(format!(
                "{who} says that it is node {:?}: a node may speak for itself only",
                hello.node_name
            )));
        }
        let (outbound, stream) = mpsc::channel(STREAM_BUFFER);
        let sessions = self.0.clone();
        let session = Session::open(sessions, hello, outbound).await?;
        tokio::spawn(session.run(inbound));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Proposes a node's pod reports in their order, beside its stream: a cluster without a leader must not keep heartbeats
/// from being heard.
async fn report_pods(writer: Writer, node: String, mut reports: mpsc::Receiver<PodStatusReport>) {
    while let Some(report) = reports.recv().await {
        let pods = report.pods.into_iter().map(reported).collect();
        let command = command::Kind::ReportPods(ReportPods { node: node.clone(), pods });
        // Retried until it is decided: a lost report would leave a dead pod among the endpoints.
        for attempt in 0_u32.. {
            match writer.propose(command.clone()).await {
                Ok(outcome) => {
                    if let Some(rejection) = outcome.rejection {
                        tracing::warn!(node, rejection = rejection.message, "pod report rejected");
                    }
                    break;
                }
                Err(error) if reports.is_closed() => {
                    tracing::warn!(node, %error, "pod report given up with its stream");
                    return;
                }
                Err(error) => {
                    tracing::warn!(node, %error, attempt, "pod report not committed; trying again");
                    tokio::time::sleep(Duration::from_millis(100 << attempt.min(4))).await;
                }
            }
        }
    }
}

fn reported(pod: PodReadiness) -> ReportedPod {
    ReportedPod {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        ready: pod.ready,
        reason: pod.reason,
        message: pod.message,
        pod_ip: pod.pod_ip,
        terminated: pod.terminated,
    }
}

/// One node's stream.
struct Session {
    shared: Arc<Sessions>,
    node: String,
    hello: Hello,
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
    /// Revision of the last delta sent; `None` before the first.
    sent: Option<u64>,
    /// Highest revision acknowledged.
    acknowledged: u64,
    waiting_ack: bool,
    last_sent: Instant,
    pending_queries: BTreeMap<u64, oneshot::Sender<DataplaneAnswer>>,
    next_query: u64,
    reports: mpsc::Sender<PodStatusReport>,
    /// Spans of the delta that is under way.
    traced: Vec<Span>,
}

impl Session {
    async fn open(
        shared: Arc<Sessions>,
        hello: Hello,
        outbound: mpsc::Sender<Result<ServerMessage, Status>>,
    ) -> Result<Self, Status> {
        let node = hello.node_name.clone();
        if !fairlead_proto::convert::is_dns1123_subdomain(&node) {
            return Err(Status::invalid_argument(format!("node name {node:?} is not a DNS-1123 subdomain")));
        }
        let snapshot = shared.consensus.read().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let cluster = &snapshot.state.settings().cluster_id;
        if !hello.cluster_id.is_empty() && hello.cluster_id != *cluster {
            return Err(Status::failed_precondition(format!(
                "agent {node} belongs to cluster {}, this is cluster {cluster}: point it at its own servers, or remove its state directory",
                hello.cluster_id
            )));
        }
        // An agent may have seen more than this server has applied: never take it back in time.
        if hello.have > snapshot.state.revision() {
            let _ = tokio::time::timeout(CATCH_UP, shared.consensus.read_at_least(hello.have)).await;
        }
        let up = NodeUp {
            node: node.clone(),
            addresses: hello.node_ips.clone(),
            labels: hello.labels.clone(),
            pod_cidr: hello.pod_cidr.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            grace_seconds: hello.grace_seconds,
        };
        let outcome = shared
            .writer
            .propose(command::Kind::NodeUp(up))
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        if let Some(rejection) = outcome.rejection {
            return Err(Status::failed_precondition(rejection.message));
        }
        let (reports, received) = mpsc::channel(REPORT_BUFFER);
        tokio::spawn(report_pods(shared.writer.clone(), node.clone(), received));
        Ok(Self {
            reports,
            shared,
            node,
            sent: None,
            acknowledged: 0,
            waiting_ack: false,
            last_sent: Instant::now(),
            outbound,
            hello,
            pending_queries: BTreeMap::new(),
            next_query: 1,
            traced: Vec::new(),
        })
    }

    async fn run(mut self, mut inbound: Streaming<AgentMessage>) {
        let shared = self.shared.clone();
        let (epoch, replaced, mut queries) = shared.enter(&self.node);
        shared.board.hear(&self.node, self.first_word());
        let goodbye = tokio::select! {
            reason = self.serve(&mut inbound, &mut queries) => reason,
            () = replaced.cancelled() => Some("another stream of this node took over".to_owned()),
            () = shared.cancel.cancelled() => Some("server is shutting down".to_owned()),
        };
        if let Some(reason) = goodbye {
            tracing::info!(node = self.node, reason, "ending the node's stream");
            let bye = ServerMessage { kind: Some(server_message::Kind::Goodbye(Goodbye { reason })) };
            let _ = self.outbound.try_send(Ok(bye));
        }
        shared.leave(&self.node, epoch);
    }

    /// Serves until the stream ends; `Some` = why we end it.
    async fn serve(
        &mut self,
        inbound: &mut Streaming<AgentMessage>,
        queries: &mut mpsc::Receiver<Query>,
    ) -> Option<String> {
        let mut stamped = self.shared.stamped.clone();
        let mut tick = tokio::time::interval(STEP_EVERY / 2);
        self.welcome().await?;
        loop {
            let newest = stamped.borrow_and_update().clone();
            if self.lease_expired(&newest) {
                return Some("the node's lease expired: say hello again".to_owned());
            }
            if !self.waiting_ack && self.bring_to(&newest).await.is_none() {
                return None;
            }
            tokio::select! {
                changed = stamped.changed() => if changed.is_err() { return None },
                message = inbound.message() => match message {
                    Ok(Some(AgentMessage { kind: Some(kind) })) => self.take(kind).await,
                    Ok(Some(AgentMessage { kind: None })) => {}
                    Ok(None) | Err(_) => return None,
                },
                Some((query, reply)) = queries.recv() => self.ask_dataplane(query, reply).await?,
                _ = tick.tick() => {}
            }
        }
    }

    async fn welcome(&mut self) -> Option<()> {
        let snapshot = self.shared.consensus.local();
        let settings = snapshot.state.settings();
        let (first, last) = settings.node_ports;
        let welcome = Welcome {
            cluster_id: settings.cluster_id.clone(),
            server: self.shared.server.clone(),
            service_cidr: settings.service_cidr.to_string(),
            cluster_domain: self.shared.cluster_domain.clone(),
            node_port_range: format!("{first}-{last}"),
            servers: snapshot.state.members().map(|member| member.grpc_address.clone()).collect(),
        };
        self.send(server_message::Kind::Welcome(welcome)).await
    }

    fn lease_expired(&self, stamped: &Stamped) -> bool {
        stamped.snapshot.state.lease(&self.node).is_some_and(|lease| lease.expired)
    }

    /// Sends what takes the node to the newest revision, if anything concerns it. `None`: the stream is gone.
    async fn bring_to(&mut self, stamped: &Stamped) -> Option<()> {
        let now = stamped.snapshot.state.revision();
        let have = self.sent.or((self.hello.have > 0 && self.hello.have <= now).then_some(self.hello.have));
        if have == Some(now) && self.sent.is_some() {
            self.note_progress(now);
            return Some(());
        }
        let step = match delta::delta(stamped, &self.node, have) {
            Some(delta) => delta,
            // First contact with an up-to-date view: one step proves by its digest that the view is right.
            None if self.sent.is_none() || self.last_sent.elapsed() > STEP_EVERY => {
                delta::step(stamped, &self.node, have.unwrap_or(0))
            }
            None => {
                self.note_progress(now);
                return Some(());
            }
        };
        let mut parts = delta::parts(step);
        if let (Some(have), Some(last)) = (have, parts.last_mut()) {
            last.traceparents = self.trace(have, now);
        }
        for part in parts {
            self.send(server_message::Kind::Delta(part)).await?;
        }
        metrics::counter!("fairlead_sync_deltas_total").increment(1);
        self.sent = Some(now);
        self.waiting_ack = true;
        self.last_sent = Instant::now();
        Some(())
    }

    /// Begins a span for each traced change in a delta, which ends with its acknowledgement; what the delta carries.
    fn trace(&mut self, have: u64, now: u64) -> Vec<String> {
        let mut contexts = self.shared.consensus.traced().between(have, now);
        self.traced.clear();
        if trace::is_on() {
            for context in &mut contexts {
                let node = self.node.as_str();
                let span = tracing::info_span!(
                    target: trace::TARGET, parent: None, "sync.delta", otel.kind = "producer", node, revision = now
                );
                let span = trace::child(span, context);
                *context = trace::sampled(&span);
                self.traced.push(span);
            }
        }
        contexts
    }

    /// Everything sent is acknowledged and nothing since concerns this node: it serves `revision` too.
    fn note_progress(&mut self, revision: u64) {
        if self.sent == Some(self.acknowledged) {
            self.shared.board.advance(&self.node, revision);
        }
    }

    async fn take(&mut self, message: agent_message::Kind) {
        match message {
            agent_message::Kind::Applied(applied) => {
                self.acknowledged = self.acknowledged.max(applied.revision);
                self.waiting_ack = self.sent.is_some_and(|sent| applied.revision < sent);
                if !self.waiting_ack {
                    self.traced.clear();
                }
                metrics::histogram!("fairlead_sync_kernel_seconds").record(seconds(applied.took_us));
                let acknowledged = self.acknowledged;
                self.shared.board.update(&self.node, |word| {
                    word.acknowledged = word.acknowledged.max(acknowledged);
                    word.error.clear();
                });
            }
            agent_message::Kind::Failed(failed) => {
                // The agent keeps its view and tries again; newer deltas may well be what mends it.
                self.waiting_ack = false;
                self.shared.board.update(&self.node, |word| word.error = failed.error);
            }
            agent_message::Kind::Heartbeat(_) => self.shared.board.update(&self.node, |_| {}),
            agent_message::Kind::PodStatus(report) => {
                let _ = self.reports.send(report).await;
            }
            agent_message::Kind::Dataplane(answer) => {
                if let Some(reply) = self.pending_queries.remove(&answer.query_id) {
                    let _ = reply.send(answer);
                }
            }
            agent_message::Kind::Drift(report) => {
                let at = (self.shared.consensus.local().state.revision(), rfc3339(now_ms()));
                self.shared.drifts.note(&self.node, &report, at);
            }
            agent_message::Kind::Hello(_) => {
                tracing::warn!(node = self.node, "a second Hello on one stream is ignored")
            }
        }
    }

    async fn ask_dataplane(&mut self, query: DataplaneQuery, reply: oneshot::Sender<DataplaneAnswer>) -> Option<()> {
        let query_id = self.next_query;
        self.next_query += 1;
        self.pending_queries.retain(|_, reply| !reply.is_closed());
        self.pending_queries.insert(query_id, reply);
        self.send(server_message::Kind::DataplaneQuery(DataplaneQuery { query_id, ..query })).await
    }

    async fn send(&mut self, kind: server_message::Kind) -> Option<()> {
        self.outbound.send(Ok(ServerMessage { kind: Some(kind) })).await.ok()
    }

    fn first_word(&self) -> Word {
        Word {
            acknowledged: 0,
            mode: self.hello.mode.clone(),
            error: String::new(),
            version: self.hello.version.clone(),
            grace: Duration::from_secs(u64::from(self.hello.grace_seconds.max(1))),
            heard: Instant::now(),
            server: self.shared.server.clone(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a metric")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
