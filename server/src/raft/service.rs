//! The Peer service: Raft's messages, forwarded writes and reads, and what other rooms ask of a peer.

use crate::pki::Identity;
use crate::pki::listener::Caller;
use crate::raft::forward;
use crate::raft::membership::ManageError;
use crate::raft::peers::{Peers, REMOVED};
use crate::raft::suspicion::Incoming;
use crate::raft::types::TypeConfig;
use crate::raft::{Consensus, Raft};
use crate::storage::{SnapshotStore, codec};
use fairlead_proto::internal::v1::{self as wire, peer_server};
use fairlead_proto::v1::{DataplaneRequest, DataplaneResponse, MemberStatus};
use futures::{Stream, StreamExt as _};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

/// Largest snapshot taken, bytes.
const MAX_SNAPSHOT: u64 = 4 * 1024 * 1024 * 1024;
/// Snapshots received at once: the leader's, and one of a leader that was cut off.
pub(crate) const MAX_INCOMING: usize = 2;
/// A leader that no majority answered for so long may have been replaced.
const FOLLOWED_FOR: Duration = Duration::from_secs(1);

/// What a peer may ask besides Raft.
#[tonic::async_trait]
pub trait PeerApi: Send + Sync + 'static {
    /// A session server reports its nodes.
    async fn report_nodes(&self, request: wire::ReportNodesRequest) -> Result<wire::ReportNodesResponse, Status>;
    /// The leader's board.
    async fn board(&self, request: wire::BoardRequest) -> Result<wire::BoardResponse, Status>;
    /// This member's status.
    async fn member_status(&self) -> Result<MemberStatus, Status>;
    /// What the kernels of this server's nodes hold.
    async fn dataplane(&self, request: DataplaneRequest) -> Result<DataplaneResponse, Status>;
    /// Drift that was repaired on this server's nodes.
    async fn drift(&self) -> Result<wire::DriftResponse, Status>;
}

/// The service.
#[derive(Clone)]
pub(crate) struct PeerService {
    pub(crate) peers: Arc<Peers>,
    pub(crate) api: Arc<dyn PeerApi>,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) incoming: Arc<Semaphore>,
    /// Nothing was ever stored here: this member may tell the others so before it is whole.
    pub(crate) pristine: bool,
    /// While this member has not got lost data back, it helps nobody to lead.
    pub(crate) returning: Arc<AtomicBool>,
    /// Set once the member is whole.
    pub(crate) consensus: Arc<OnceLock<Consensus>>,
}

impl PeerService {
    pub(crate) fn consensus(&self) -> Result<&Consensus, Status> {
        self.consensus.get().ok_or_else(|| Status::unavailable("starting"))
    }

    fn raft(&self) -> Result<&Raft, Status> {
        Ok(&self.consensus()?.inner.raft)
    }

    /// Refuses what is not another member's word to this one; a removed member is told so.
    pub(crate) fn check(&self, who: &Identity, header: Option<&wire::PeerHeader>) -> Result<(), Status> {
        let ours = header.filter(|header| header.cluster_id == self.peers.fingerprint());
        let state = self.consensus.get().map(|consensus| consensus.local());
        if ours.zip(state).is_some_and(|(header, snapshot)| snapshot.state.is_retired(header.from)) {
            return Err(Status::permission_denied(REMOVED));
        }
        self.note_own_lead();
        self.peers.check(who, header)
    }

    /// A leader that a majority follows needs no stranger either.
    fn note_own_lead(&self) {
        use openraft::Instant as _;
        use openraft::async_runtime::WatchReceiver as _;
        let Some(consensus) = self.consensus.get() else { return };
        let metrics = consensus.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let followed = metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < FOLLOWED_FOR);
        if metrics.current_leader == Some(consensus.inner.id) && followed {
            self.peers.note_leader(consensus.inner.id);
        }
    }

    fn may_vote(&self) -> Result<(), Status> {
        if self.returning.load(Ordering::Acquire) {
            return Err(Status::unavailable("this member lost its data and has not got it back yet"));
        }
        Ok(())
    }
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn bad(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn vote_request(request: &wire::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    Ok(VoteRequest {
        vote: request.vote.as_ref().map(codec::to_vote).ok_or_else(|| bad("no vote"))?,
        last_log_id: request.last_log_id.as_ref().map(codec::to_log_id),
        leadership_transfer: request.leadership_transfer,
    })
}

fn vote_response(answer: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(codec::vote(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(codec::log_id),
    }
}

fn append_request(request: wire::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entries: Result<Vec<_>, _> = request.entries.into_iter().map(codec::to_entry).collect();
    let entries = entries.map_err(bad)?;
    let prev_log_id = request.prev_log_id.as_ref().map(codec::to_log_id);
    // openraft takes for granted that entries follow one another, and appends a hole as it comes.
    let first = prev_log_id.map_or(0, |prev| prev.index + 1);
    if let Some((place, entry)) = (first..).zip(&entries).find(|(place, entry)| entry.log_id.index != *place) {
        return Err(bad(format!("entry {} where {place} should be: a hole in the log", entry.log_id.index)));
    }
    Ok(AppendEntriesRequest {
        vote: request.vote.as_ref().map(codec::to_vote).ok_or_else(|| bad("no vote"))?,
        prev_log_id,
        entries,
        leader_commit: request.leader_commit.as_ref().map(codec::to_log_id),
    })
}

fn append_response(result: openraft::raft::StreamAppendResult<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Result as Wire;
    let mut answer = wire::AppendResponse::default();
    answer.result = Some(match result {
        Ok(Some(id)) => Wire::PartialSuccess(codec::log_id(&id)),
        Ok(None) => Wire::Success(true),
        Err(StreamAppendError::HigherVote(vote)) => Wire::HigherVote(codec::vote(&vote)),
        Err(StreamAppendError::Conflict(id)) => {
            answer.conflict_log_id = Some(codec::log_id(&id));
            Wire::Conflict(true)
        }
    });
    answer
}

/// Who sent a message, and the message.
fn opened<T>(request: Request<T>) -> (Identity, T) {
    let caller = request.extensions().get::<Caller>();
    (caller.map_or(Identity::Anonymous, |caller| caller.identity.clone()), request.into_inner())
}

#[tonic::async_trait]
impl peer_server::Peer for PeerService {
    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.may_vote()?;
        let mut request = vote_request(&request)?;
        request.leadership_transfer |= self.consensus()?.has_no_leader_but(request.vote.leader_id.node_id);
        let answer = self.raft()?.vote(request).await.map_err(fatal)?;
        Ok(Response::new(vote_response(&answer)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.may_vote()?;
        let (consensus, request) = (self.consensus()?, vote_request(&request)?);
        let answer = if consensus.has_no_leader_but(request.vote.leader_id.node_id) {
            consensus.would_vote(&request).await
        } else {
            self.raft()?.pre_vote(request).await.map_err(fatal)?
        };
        Ok(Response::new(vote_response(&answer)))
    }

    type AppendStream = Pin<Box<dyn Stream<Item = Result<wire::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.note_own_lead();
        let peers = self.peers.clone();
        // A message that can't be taken ends the stream: Raft sends it again on a new one.
        let (who, messages) = opened(request);
        let incoming = Incoming::new(self.consensus()?.clone());
        let ended = futures::stream::once(futures::future::ready(None));
        let requests = messages.map(Some).chain(ended).scan(incoming, move |incoming, message| {
            let Some(message) = message else {
                incoming.ended = true;
                return futures::future::ready(None);
            };
            let taken = message.and_then(|message| {
                peers.check(&who, message.header.as_ref())?;
                incoming.from = message.header.as_ref().map(|header| header.from);
                incoming.from.into_iter().for_each(|from| peers.note_leader(from));
                append_request(message)
            });
            if let Err(status) = &taken {
                tracing::debug!(%status, "append stream ends");
            }
            futures::future::ready(taken.ok())
        });
        // Either end may be asked once more after it said that there is nothing: openraft's panics then.
        let answers = self.raft()?.stream_append(requests.fuse()).fuse();
        let answers = answers.map(|answer| answer.map(append_response).map_err(fatal));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        let (who, mut chunks) = opened(request);
        let first = chunks.message().await?.ok_or_else(|| bad("no chunk"))?;
        self.check(&who, first.header.as_ref())?;
        let vote = first.vote.as_ref().map(codec::to_vote).ok_or_else(|| bad("no vote"))?;
        let meta = codec::to_snapshot_meta(&first.meta.unwrap_or_default()).map_err(bad)?;
        let raft = self.raft()?;
        let _place = self
            .incoming
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("other snapshots are being received"))?;
        let mut incoming = self.snapshots.receive().await.map_err(fatal)?;
        let (mut length, mut sum) = (0, None);
        while let Some(chunk) = chunks.message().await? {
            length += chunk.data.len() as u64;
            if length > MAX_SNAPSHOT {
                return Err(Status::resource_exhausted("the snapshot is too large"));
            }
            incoming.write(&chunk.data).await.map_err(fatal)?;
            if !chunk.sha256.is_empty() {
                sum = Some(chunk.sha256);
            }
        }
        let received = incoming.finish(&sum.unwrap_or_default()).await;
        let snapshot = received.map_err(|error| Status::data_loss(error.to_string()))?;
        if snapshot.meta != meta {
            return Err(Status::data_loss("the snapshot is not the one it is said to be"));
        }
        let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        Ok(Response::new(wire::SnapshotResponse { vote: Some(codec::vote(&answer.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.may_vote()?;
        if self.consensus()?.is_drained() {
            return Err(Status::failed_precondition("this member was told not to lead"));
        }
        let from = request.from_leader.as_ref().map(codec::to_vote).ok_or_else(|| bad("no vote"))?;
        let request =
            TransferLeaderRequest::new(from, request.to_node_id, request.last_log_id.as_ref().map(codec::to_log_id));
        let answer = self.raft()?.handle_transfer_leader(request).await.map_err(fatal)?;
        answer.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(wire::TransferLeaderResponse {}))
    }

    type ForwardStream = Pin<Box<dyn Stream<Item = Result<wire::ForwardResponse, Status>> + Send>>;

    async fn forward(
        &self,
        request: Request<Streaming<wire::ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        Ok(Response::new(Box::pin(forward::answer(self, opened(request)))))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        let consensus = self.consensus()?;
        if !consensus.is_leader() {
            return Err(Status::failed_precondition("this member does not lead"));
        }
        let index = consensus.confirmed_index().await.map_err(fatal)?;
        Ok(Response::new(wire::ReadIndexResponse { index }))
    }

    async fn report_nodes(
        &self,
        request: Request<wire::ReportNodesRequest>,
    ) -> Result<Response<wire::ReportNodesResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.api.report_nodes(request).await.map(Response::new)
    }

    async fn recall(&self, request: Request<wire::RecallRequest>) -> Result<Response<wire::RecallResponse>, Status> {
        let (who, wire::RecallRequest { header }) = opened(request);
        self.check(&who, header.as_ref())?;
        let from = header.map_or(0, |header| header.from);
        use openraft::async_runtime::WatchReceiver as _;
        if self.pristine && self.consensus.get().is_none() {
            let nothing = wire::RecallResponse { returning: true, ..wire::RecallResponse::default() };
            return Ok(Response::new(nothing));
        }
        let local = self.consensus()?.local();
        let vote = codec::vote(&self.raft()?.metrics().borrow_watched().vote);
        Ok(Response::new(wire::RecallResponse {
            known: local.state.members().any(|member| member.id == from),
            vote: Some(vote),
            returning: self.returning.load(Ordering::Acquire),
            voters: self.consensus()?.status().voters.into_iter().collect(),
        }))
    }

    async fn manage(&self, request: Request<wire::ManageRequest>) -> Result<Response<wire::ManageResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        let change = request.change.ok_or_else(|| bad("no change"))?;
        let made = self.consensus()?.manage_here(change).await;
        made.map(Response::new).map_err(|error| match error {
            ManageError::NoMember(name) => Status::not_found(name),
            ManageError::Moved => Status::aborted(error.to_string()),
            ManageError::Refused(why) => Status::failed_precondition(why),
            ManageError::Unavailable(why) => Status::unavailable(why),
        })
    }

    async fn digests(&self, request: Request<wire::DigestsRequest>) -> Result<Response<wire::DigestsResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        let digests = self.consensus()?.digests().into_iter();
        let digests = digests.map(|(index, digest)| wire::DigestAt { index, digest }).collect();
        Ok(Response::new(wire::DigestsResponse { digests }))
    }

    async fn fence(&self, request: Request<wire::FenceRequest>) -> Result<Response<wire::FenceResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        let from = request.header.map_or(0, |header| header.from);
        let consensus = self.consensus()?;
        // Only whom this member follows may stop it.
        if consensus.status().leader != Some(from) {
            return Err(Status::failed_precondition("the sender does not lead"));
        }
        consensus.fence(request.index, &request.reason);
        Ok(Response::new(wire::FenceResponse {}))
    }

    async fn lost(&self, request: Request<wire::LostRequest>) -> Result<Response<wire::LostResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.may_vote()?;
        Ok(Response::new(self.consensus()?.lost(request).await))
    }

    async fn member_status(&self, _: Request<wire::MemberStatusRequest>) -> Result<Response<MemberStatus>, Status> {
        self.api.member_status().await.map(Response::new)
    }

    async fn board(&self, request: Request<wire::BoardRequest>) -> Result<Response<wire::BoardResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.api.board(request).await.map(Response::new)
    }

    async fn dataplane(&self, request: Request<DataplaneRequest>) -> Result<Response<DataplaneResponse>, Status> {
        self.api.dataplane(request.into_inner()).await.map(Response::new)
    }

    async fn drift(&self, request: Request<wire::DriftRequest>) -> Result<Response<wire::DriftResponse>, Status> {
        let (who, request) = opened(request);
        self.check(&who, request.header.as_ref())?;
        self.api.drift().await.map(Response::new)
    }
}
