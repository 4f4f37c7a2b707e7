//! The `Cluster` service: members, nodes, what is programmed where, the recent past.

use crate::api::authz::{self, Verb};
use crate::api::guard::caller;
use crate::machine::{MACHINE_VERSION, Snapshot};
use crate::nodes::Nodes;
use crate::raft::Consensus;
use crate::sync::session::Sessions;
use crate::watch::happened;
use fairlead_proto::internal::v1::DriftRequest;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{
    DataplaneQuery, DataplaneRequest, DataplaneResponse, HistoryEvent, HistoryRequest, HistoryResponse, Kind,
    MemberStatus, NodeDataplane, StatusRequest, StatusResponse, WaitProgrammedRequest, WaitProgrammedResponse,
    cluster_server,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Time another member gets to say how it is.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for programming.
const MAX_WAIT: Duration = Duration::from_secs(3_600);
/// Between two looks at another server's board.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Most events in one answer.
const MAX_EVENTS: usize = 1_000;

/// The gRPC service.
#[derive(Clone)]
pub struct ClusterService {
    consensus: Consensus,
    nodes: Arc<Nodes>,
    sessions: Arc<Sessions>,
}

impl ClusterService {
    /// Makes the service.
    #[must_use]
    pub fn new(consensus: Consensus, nodes: Arc<Nodes>, sessions: Arc<Sessions>) -> Self {
        Self { consensus, nodes, sessions }
    }

    async fn members(&self) -> Vec<MemberStatus> {
        let raft = self.consensus.status();
        let (own, voters) = (raft.id, &raft.voters);
        let asked = self.consensus.members().into_iter().map(|member| async move {
            if member.id == own {
                return own_status(&self.consensus, &self.nodes);
            }
            let ask = async {
                let mut peer = self.consensus.peer(member.id).await.map_err(|error| error.to_string())?;
                let answer = peer.member_status(fairlead_proto::internal::v1::MemberStatusRequest {}).await;
                answer.map(Response::into_inner).map_err(|status| status.message().to_owned())
            };
            let answer =
                tokio::time::timeout(MEMBER_TIMEOUT, ask).await.unwrap_or_else(|_| Err("no answer within 1 s".into()));
            answer.unwrap_or_else(|error| MemberStatus {
                id: member.id,
                name: member.name.clone(),
                peer_address: member.peer_address.clone(),
                grpc_address: member.grpc_address.clone(),
                voter: voters.contains(&member.id),
                error,
                ..MemberStatus::default()
            })
        });
        let mut members = futures::future::join_all(asked).await;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    /// Why no server can ask a node.
    fn absence(&self, node: &str) -> String {
        if self.consensus.local().state.get(&Key::new(Kind::Node, "", node)).is_some() {
            format!("node {node:?} is connected to no server: its agent is down or cut off")
        } else {
            format!("there is no node {node:?}")
        }
    }

    /// Drift that was repaired lately, as every member that answers remembers it.
    async fn drift(&self) -> Vec<HistoryEvent> {
        let own = self.consensus.status().id;
        let others = self.consensus.members().into_iter().filter(|member| member.id != own);
        let asked = others.map(|member| async move {
            let ask = async {
                let mut peer = self.consensus.peer(member.id).await.ok()?;
                let request = DriftRequest { header: Some(self.consensus.header(member.id)) };
                peer.drift(request).await.ok().map(|answer| answer.into_inner().events)
            };
            tokio::time::timeout(MEMBER_TIMEOUT, ask).await.ok().flatten()
        });
        let answers = futures::future::join_all(asked).await;
        let mut events = self.sessions.drifts.events();
        events.extend(answers.into_iter().flatten().flatten());
        events
    }
}

/// What this member says of itself.
#[must_use]
pub fn own_status(consensus: &Consensus, nodes: &Nodes) -> MemberStatus {
    let raft = consensus.status();
    let snapshot = consensus.local();
    let own = consensus.members().into_iter().find(|member| member.id == raft.id);
    MemberStatus {
        id: raft.id,
        name: raft.name,
        peer_address: own.as_ref().map(|member| member.peer_address.clone()).unwrap_or_default(),
        grpc_address: own.map(|member| member.grpc_address).unwrap_or_default(),
        leader: raft.leader == Some(raft.id),
        voter: raft.voters.contains(&raft.id),
        term: raft.term,
        applied_index: raft.applied_index,
        revision: snapshot.state.revision(),
        state_digest: snapshot.state.digest_hex(),
        error: String::new(),
        last_log_index: raft.last_log_index,
        drained: consensus.is_drained(),
        machine_version: MACHINE_VERSION,
        free_bytes: consensus.free_bytes().unwrap_or(0),
        alarms: nodes.own.list(),
        https_address: nodes.https_address.clone(),
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for ClusterService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let snapshot = self.consensus.local();
        let members = self.members().await;
        let board = self.nodes.board().await;
        // What several say is said once.
        let alarms = members.iter().flat_map(|member| &member.alarms).chain(&board.alarms).cloned();
        let alarms: BTreeSet<String> = alarms.collect();
        Ok(Response::new(StatusResponse {
            cluster_id: snapshot.state.settings().cluster_id.clone(),
            revision: snapshot.state.revision(),
            members,
            nodes: board.nodes,
            alarms: alarms.into_iter().collect(),
            server: self.consensus.status().name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_domain: self.sessions.cluster_domain.clone(),
            machine_version: snapshot.state.machine_version(),
        }))
    }

    async fn wait_programmed(
        &self,
        request: Request<WaitProgrammedRequest>,
    ) -> Result<Response<WaitProgrammedResponse>, Status> {
        let request = request.into_inner();
        let revision = match request.revision {
            0 => self.consensus.read().await.map_err(|error| crate::api::status::unreadable(&error))?.state.revision(),
            asked => asked,
        };
        let deadline = tokio::time::Instant::now() + Duration::from_millis(request.timeout_ms).min(MAX_WAIT);
        loop {
            let board = self.nodes.board().await;
            let expired = board.nodes.iter().filter(|node| !node.live).cloned();
            let behind: Vec<_> =
                board.nodes.iter().filter(|node| node.live && node.acknowledged < revision).cloned().collect();
            let nodes = u32::try_from(board.nodes.iter().filter(|node| node.live).count()).unwrap_or(u32::MAX);
            let programmed = behind.is_empty() && board.known;
            if programmed || tokio::time::Instant::now() >= deadline {
                let laggards = behind.into_iter().chain(expired).collect();
                return Ok(Response::new(WaitProgrammedResponse { programmed, revision, nodes, laggards }));
            }
            let until = deadline.min(tokio::time::Instant::now() + LOOK_AGAIN);
            let _ = tokio::time::timeout_at(until, self.nodes.changed()).await;
        }
    }

    async fn dataplane(&self, request: Request<DataplaneRequest>) -> Result<Response<DataplaneResponse>, Status> {
        let request = request.into_inner();
        let mut nodes = local_dataplane(&self.sessions, &request).await;
        let seen: BTreeSet<String> = nodes.iter().map(|node| node.node.clone()).collect();
        let own = self.consensus.status().id;
        let others = self.consensus.members().into_iter().filter(|member| member.id != own);
        let asked = others.map(|member| {
            let request = request.clone();
            async move {
                let mut peer = self.consensus.peer(member.id).await.ok()?;
                let ask = peer.dataplane(request);
                tokio::time::timeout(Duration::from_secs(6), ask)
                    .await
                    .ok()?
                    .ok()
                    .map(|answer| answer.into_inner().nodes)
            }
        });
        let answers = futures::future::join_all(asked).await;
        nodes.extend(answers.into_iter().flatten().flatten().filter(|node| !seen.contains(&node.node)));
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        if nodes.is_empty() && !request.node.is_empty() {
            return Err(Status::not_found(self.absence(&request.node)));
        }
        Ok(Response::new(DataplaneResponse { nodes }))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        authz::may(&self.consensus.local().state, &who, (Verb::Read, &request.namespace))?;
        let snapshot = self.consensus.read().await.map_err(|error| crate::api::status::unreadable(&error))?;
        let drift = self.drift().await;
        Ok(Response::new(history(&snapshot, drift, &request)))
    }
}

/// What the kernels of the nodes connected to this server hold.
pub async fn local_dataplane(sessions: &Sessions, request: &DataplaneRequest) -> Vec<NodeDataplane> {
    let wanted = sessions.connected().into_iter().filter(|node| request.node.is_empty() || *node == request.node);
    let asked = wanted.map(|node| async move {
        let query = DataplaneQuery {
            query_id: 0,
            rules: request.rules,
            diff: request.diff,
            observed: request.observed,
            trace: request.trace.clone(),
        };
        let answer = sessions.dataplane(&node, query).await;
        NodeDataplane { node, answer }
    });
    futures::future::join_all(asked).await
}

/// The event window as people read it, with repaired drift in its place: newest last.
fn history(snapshot: &Snapshot, drift: Vec<HistoryEvent>, request: &HistoryRequest) -> HistoryResponse {
    let limit = match request.limit {
        0 => MAX_EVENTS,
        asked => MAX_EVENTS.min(asked as usize),
    };
    let key = request.key.as_ref().map(Key::from_wire);
    let wanted = |of: &Key| {
        // What happens to objects without a namespace is told in "default", as Kubernetes does.
        let here = of.namespace == request.namespace || (of.namespace.is_empty() && request.namespace == "default");
        (request.namespace.is_empty() || here) && key.as_ref().is_none_or(|key| of == key)
    };
    let oldest = snapshot.history.compacted();
    let mut events: Vec<HistoryEvent> =
        drift.into_iter().filter(|event| event.key.as_ref().is_some_and(|key| wanted(&Key::from_wire(key)))).collect();
    if let Ok(changes) = snapshot.history.after(oldest) {
        let told = changes.filter_map(|change| happened::told(&change));
        events.extend(told.filter(|one| one.key.as_ref().is_some_and(|key| wanted(&Key::from_wire(key)))));
    }
    events.sort_by(|one, other| (one.revision, &one.time).cmp(&(other.revision, &other.time)));
    let surplus = events.len().saturating_sub(limit);
    events.drain(..surplus);
    HistoryResponse { events, revision: snapshot.state.revision() }
}
