//! What the cluster knows of its nodes: this server's sessions report to the leader, whose board everyone may ask.

use crate::api::cluster::{local_dataplane, own_status};
use crate::controller::lease::Alarms;
use crate::raft::{Consensus, PeerApi};
use crate::sync::board::Board;
use crate::sync::session::Sessions;
use fairlead_proto::internal::v1::{
    BoardRequest, BoardResponse, DriftResponse, ReportNodesRequest, ReportNodesResponse,
};
use fairlead_proto::v1::{DataplaneRequest, DataplaneResponse, MemberStatus, NodeProgress};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A report goes to the leader at least this often, so that silence is the node's and not ours.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// And at most this often, so that many acknowledgements share one.
const REPORT_PAUSE: Duration = Duration::from_millis(2);
/// Time that asking the leader may take.
const LEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// The leader's board, wherever the leader is.
pub struct Nodes {
    consensus: Consensus,
    /// Nodes connected to this server.
    local: Arc<Board>,
    /// Every node's word, if this server leads.
    pub cluster: Arc<Board>,
    /// Alarms in force, if this server leads.
    pub alarms: Arc<Alarms>,
    /// What this server says of itself.
    pub own: Arc<Alarms>,
    /// Where this server serves Kubernetes' API with TLS, IP:port; empty = it doesn't.
    pub https_address: String,
}

/// What the leader's board shows.
pub struct Shown {
    /// Every node.
    pub nodes: Vec<NodeProgress>,
    /// Alarms in force.
    pub alarms: Vec<String>,
    /// False: there is no leader to ask; the nodes are as this server knows them.
    pub known: bool,
}

impl Nodes {
    /// Makes it; `local` is the board of this server's sessions.
    #[must_use]
    pub fn new(consensus: Consensus, local: Arc<Board>) -> Self {
        let (cluster, alarms, own) = (Arc::default(), Arc::default(), Arc::default());
        Self { consensus, local, cluster, alarms, own, https_address: String::new() }
    }

    /// How many nodes' streams end here.
    #[must_use]
    pub fn local(&self) -> usize {
        self.local.reports().len()
    }

    /// When something on this server's boards changed.
    pub async fn changed(&self) {
        tokio::select! {
            () = self.cluster.changed() => {}
            () = self.local.changed() => {}
        }
    }

    /// The leader's board; this server's own if the leader can't be asked.
    pub async fn board(&self) -> Shown {
        if self.consensus.is_leader() {
            return Shown { nodes: self.progress(&self.cluster), alarms: self.alarms.list(), known: true };
        }
        let ask = async {
            let leader = self.consensus.status().leader?;
            let mut peer = self.consensus.peer(leader).await.ok()?;
            let request = BoardRequest { header: Some(self.consensus.header(leader)) };
            peer.board(request).await.ok().map(tonic::Response::into_inner)
        };
        match tokio::time::timeout(LEADER_TIMEOUT, ask).await {
            Ok(Some(board)) => Shown { nodes: board.nodes, alarms: board.alarms, known: true },
            _ => Shown {
                nodes: self.progress(&self.local),
                alarms: vec!["no leader to ask: nodes are as this server alone knows them".to_owned()],
                known: false,
            },
        }
    }

    fn progress(&self, board: &Board) -> Vec<NodeProgress> {
        let snapshot = self.consensus.local();
        let nodes: BTreeMap<String, bool> =
            snapshot.state.leases().map(|lease| (lease.node.clone(), !lease.expired)).collect();
        board.progress(&nodes, snapshot.state.revision())
    }

    /// Reports this server's sessions to the leader, until cancelled.
    pub async fn report(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            self.report_once().await;
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tokio::time::timeout(REPORT_EVERY, self.local.changed()) => {}
            }
            tokio::time::sleep(REPORT_PAUSE).await;
        }
    }

    async fn report_once(&self) {
        let nodes = self.local.reports();
        let server = self.consensus.status().name;
        if self.consensus.is_leader() {
            self.cluster.take_report(&server, nodes);
            return;
        }
        let Some(leader) = self.consensus.status().leader else { return };
        if nodes.is_empty() {
            return;
        }
        let send = async {
            let mut peer = self.consensus.peer(leader).await.ok()?;
            let request = ReportNodesRequest { header: Some(self.consensus.header(leader)), server, nodes };
            peer.report_nodes(request).await.ok()
        };
        if tokio::time::timeout(LEADER_TIMEOUT, send).await.ok().flatten().is_none() {
            tracing::debug!(leader, "could not report nodes to the leader");
        }
    }
}

/// What other members may ask of this one. Made before consensus starts, completed once it runs.
#[derive(Default)]
pub struct PeerFace {
    inner: OnceLock<(Arc<Nodes>, Arc<Sessions>)>,
}

impl PeerFace {
    /// Completes it.
    pub fn complete(&self, nodes: Arc<Nodes>, sessions: Arc<Sessions>) {
        let _ = self.inner.set((nodes, sessions));
    }

    fn parts(&self) -> Result<&(Arc<Nodes>, Arc<Sessions>), tonic::Status> {
        self.inner.get().ok_or_else(|| tonic::Status::unavailable("starting"))
    }
}

#[tonic::async_trait]
impl PeerApi for PeerFace {
    async fn report_nodes(&self, request: ReportNodesRequest) -> Result<ReportNodesResponse, tonic::Status> {
        let (nodes, _) = self.parts()?;
        let accepted = nodes.consensus.is_leader();
        if accepted {
            nodes.cluster.take_report(&request.server, request.nodes);
        }
        Ok(ReportNodesResponse { accepted })
    }

    async fn board(&self, _: BoardRequest) -> Result<BoardResponse, tonic::Status> {
        let (nodes, _) = self.parts()?;
        if !nodes.consensus.is_leader() {
            return Err(tonic::Status::failed_precondition("not the leader"));
        }
        Ok(BoardResponse { nodes: nodes.progress(&nodes.cluster), alarms: nodes.alarms.list() })
    }

    async fn member_status(&self) -> Result<MemberStatus, tonic::Status> {
        let (nodes, _) = self.parts()?;
        Ok(own_status(&nodes.consensus, nodes))
    }

    async fn dataplane(&self, request: DataplaneRequest) -> Result<DataplaneResponse, tonic::Status> {
        let (_, sessions) = self.parts()?;
        Ok(DataplaneResponse { nodes: local_dataplane(sessions, &request).await })
    }

    async fn drift(&self) -> Result<DriftResponse, tonic::Status> {
        let (_, sessions) = self.parts()?;
        Ok(DriftResponse { events: sessions.drifts.events() })
    }
}
