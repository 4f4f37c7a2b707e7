//! Raft's messages to other members, over the Peer service. What a message means is openraft's; how it is encoded is
//! storage/codec's.

use crate::raft::peers::Peers;
use crate::raft::types::{LogId, MemberAddress, TypeConfig, Vote};
use crate::storage::{SnapshotFile, codec};
use fairlead_proto::internal::v1::{self as wire, PeerHeader, peer_client::PeerClient};
use futures::{Stream, StreamExt as _};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use sha2::{Digest as _, Sha256};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::transport::Channel;

/// Pause before a member that could not be reached is dialled again.
const DIAL_AGAIN: std::time::Duration = std::time::Duration::from_millis(50);
/// Bytes of one snapshot chunk.
const CHUNK: usize = 1024 * 1024;
/// Time without an answer to what was sent after which a replication stream is given up and opened anew.
const STALLED: Duration = Duration::from_secs(2);

/// Makes connections for openraft.
#[derive(Clone)]
pub(crate) struct Network(pub(crate) Arc<Peers>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &MemberAddress) -> Link {
        Link { target, peers: self.0.clone() }
    }
}

/// The way to one member.
pub(crate) struct Link {
    target: u64,
    peers: Arc<Peers>,
}

type RpcError = RPCError<TypeConfig>;
type AppendResult = Result<StreamAppendResult<TypeConfig>, RpcError>;

fn broken(status: &tonic::Status) -> RpcError {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::FailedPrecondition => {
            RPCError::Unreachable(Unreachable::from_string(status.message()))
        }
        _ => RPCError::Network(NetworkError::from_string(status.message())),
    }
}

fn faulty(why: &str) -> RpcError {
    RPCError::Network(NetworkError::from_string(why))
}

impl Link {
    fn client(&self) -> Result<PeerClient<Channel>, RpcError> {
        let unknown = || RPCError::Unreachable(Unreachable::from_string("no member of the cluster"));
        self.peers.client(self.target).ok_or_else(unknown)
    }

    fn header(&self) -> PeerHeader {
        self.peers.header(self.target)
    }

    /// Makes a call within openraft's time for it.
    async fn call<T>(
        &self,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, RpcError> {
        let Ok(answer) = tokio::time::timeout(option.soft_ttl(), call).await else {
            self.peers.unheard(self.target);
            return Err(faulty("no answer in time"));
        };
        self.peers.heard(self.target);
        answer.map(tonic::Response::into_inner).map_err(|status| {
            self.peers.heed(&status);
            broken(&status)
        })
    }

    fn vote_request(&self, rpc: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
        wire::VoteRequest {
            vote: Some(codec::vote(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(codec::log_id),
            header: Some(self.header()),
            leadership_transfer: rpc.leadership_transfer,
        }
    }
}

fn vote_response(answer: &wire::VoteResponse) -> Result<VoteResponse<TypeConfig>, RpcError> {
    let vote = answer.vote.as_ref().map(codec::to_vote);
    Ok(VoteResponse {
        vote: vote.ok_or_else(|| faulty("an answer without a vote"))?,
        vote_granted: answer.granted,
        last_log_id: answer.last_log_id.as_ref().map(codec::to_log_id),
    })
}

fn append_request(rpc: &AppendEntriesRequest<TypeConfig>, header: PeerHeader) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(codec::vote(&rpc.vote)),
        prev_log_id: rpc.prev_log_id.as_ref().map(codec::log_id),
        entries: rpc.entries.iter().map(codec::entry).collect(),
        leader_commit: rpc.leader_commit.as_ref().map(codec::log_id),
        header: Some(header),
    }
}

fn append_result(answer: &wire::AppendResponse) -> AppendResult {
    use wire::append_response::Result as Wire;
    let conflict: Option<LogId> = answer.conflict_log_id.as_ref().map(codec::to_log_id);
    match (&answer.result, conflict) {
        (Some(Wire::PartialSuccess(id)), _) => Ok(Ok(Some(codec::to_log_id(id)))),
        (Some(Wire::Success(_)), _) => Ok(Ok(None)),
        (Some(Wire::HigherVote(vote)), _) => Ok(Err(StreamAppendError::HigherVote(codec::to_vote(vote)))),
        (Some(Wire::Conflict(_)), Some(id)) => Ok(Err(StreamAppendError::Conflict(id))),
        _ => Err(faulty("an append answer without a result")),
    }
}

/// Answers to a stream of requests; ends with an error if there are requests and no answers.
struct Answers {
    stream: tonic::Streaming<wire::AppendResponse>,
    sent: Arc<AtomicU64>,
    received: u64,
    peers: Arc<Peers>,
    target: u64,
}

impl Answers {
    async fn next(mut self) -> Option<(AppendResult, Option<Self>)> {
        loop {
            let before = self.sent.load(Ordering::Relaxed);
            match tokio::time::timeout(STALLED, self.stream.message()).await {
                Ok(Ok(Some(answer))) => {
                    self.received += 1;
                    self.peers.heard(self.target);
                    return Some((append_result(&answer), Some(self)));
                }
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => return Some((Err(broken(&status)), None)),
                Err(_) if before > self.received => {
                    self.peers.unheard(self.target);
                    return Some((Err(faulty("replication is not answered")), None));
                }
                Err(_) => {} // Nothing was asked: idle.
            }
        }
    }
}

/// A snapshot on its way: what comes first, its pieces, its checksum.
struct Sending {
    first: Option<wire::SnapshotChunk>,
    snapshot: SnapshotFile,
    offset: u64,
    hasher: Option<Sha256>,
}

impl Sending {
    /// The next chunk. One that can't be read ends the stream without a checksum, and the receiver refuses it.
    async fn next(mut self) -> Option<(wire::SnapshotChunk, Self)> {
        if let Some(first) = self.first.take() {
            return Some((first, self));
        }
        if self.offset == self.snapshot.length() {
            let sum = self.hasher.take()?.finalize().to_vec();
            let last = wire::SnapshotChunk { sha256: sum.into(), ..wire::SnapshotChunk::default() };
            return Some((last, self));
        }
        let (snapshot, offset) = (self.snapshot.clone(), self.offset);
        let read = tokio::task::spawn_blocking(move || snapshot.piece(offset, CHUNK));
        let piece = match read.await.map_err(std::io::Error::other).flatten() {
            Ok(piece) => piece,
            Err(error) => {
                tracing::error!(%error, "a snapshot can't be read for sending");
                return None;
            }
        };
        self.offset += piece.len() as u64;
        self.hasher.as_mut()?.update(&piece);
        let chunk = wire::SnapshotChunk { data: piece.into(), ..wire::SnapshotChunk::default() };
        Some((chunk, self))
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let one = futures::stream::iter([rpc]);
        let mut answers = self.stream_append(one, option).await?;
        let answer = answers.next().await.ok_or_else(|| faulty("no answer"))?;
        Ok(answer?.into())
    }

    /// Pipelined: requests are sent without waiting for answers, which come in their order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let header = self.header();
            let mut client = self.client()?;
            let sent = Arc::new(AtomicU64::new(0));
            let count = sent.clone();
            let requests = input.map(move |rpc| {
                count.fetch_add(1, Ordering::Relaxed);
                append_request(&rpc, header.clone())
            });
            let stream = match self.call(&option, client.append(requests)).await {
                Ok(stream) => stream,
                Err(error) => {
                    // openraft backs off within the stream's requests only: without a pause here, a member that is
                    // down would be dialled thousands of times a second.
                    tokio::time::sleep(DIAL_AGAIN).await;
                    return Err(error);
                }
            };
            let answers = Answers { stream, sent, received: 0, peers: self.peers.clone(), target: self.target };
            let results = futures::stream::unfold(Some(answers), |answers| async { answers?.next().await });
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let mut client = self.client()?;
        let call = client.vote(self.vote_request(&rpc));
        vote_response(&self.call(&option, call).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let mut client = self.client()?;
        let call = client.pre_vote(self.vote_request(&rpc));
        vote_response(&self.call(&option, call).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let first = wire::SnapshotChunk {
            vote: Some(codec::vote(&vote)),
            meta: Some(codec::snapshot_meta(&snapshot.meta)),
            header: Some(self.header()),
            ..wire::SnapshotChunk::default()
        };
        let sending =
            Sending { first: Some(first), snapshot: snapshot.snapshot, offset: 0, hasher: Some(Sha256::new()) };
        let mut client = self.client()?;
        let chunks = futures::stream::unfold(sending, Sending::next);
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = self.call(&option, client.install_snapshot(chunks)) => answer?,
        };
        let vote = answer.vote.as_ref().map(codec::to_vote);
        let vote = vote.ok_or_else(|| NetworkError::from_string("an answer without a vote"));
        Ok(SnapshotResponse::new(vote.map_err(StreamingError::Network)?))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let request = wire::TransferLeaderRequest {
            from_leader: Some(codec::vote(req.from_leader())),
            to_node_id: *req.to_node_id(),
            last_log_id: req.last_log_id().map(codec::log_id),
            header: Some(self.header()),
        };
        let mut client = self.client()?;
        self.call(&option, client.transfer_leader(request)).await?;
        Ok(Ok(()))
    }
}
