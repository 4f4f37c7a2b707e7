//! Raft's messages to other members, over the Peer service.

use crate::raft::types::{LogId, MemberAddress, TypeConfig, Vote, member_id};
use crate::storage::{SnapshotBytes, codec};
use fairlead_proto::internal::v1::{self as wire, PeerHeader, peer_client::PeerClient};
use futures::{Stream, StreamExt as _};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Bytes of one snapshot chunk.
const CHUNK: usize = 1024 * 1024;
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Connections to the other members; made when first used, and made again by tonic when they break.
pub(crate) struct Peers {
    own: u64,
    founding: String,
    members: BTreeMap<u64, MemberAddress>,
    channels: BTreeMap<u64, (Channel, Endpoint)>,
}

impl Peers {
    pub(crate) fn new(own: u64, founding: String, list: &[(String, String)]) -> Result<Self, tonic::transport::Error> {
        let mut members = BTreeMap::new();
        let mut channels = BTreeMap::new();
        for (name, address) in list {
            let id = member_id(name);
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(CONNECT_WITHIN)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(2 * 1024 * 1024)
                .initial_connection_window_size(16 * 1024 * 1024);
            channels.insert(id, (endpoint.connect_lazy(), endpoint));
            members.insert(id, MemberAddress { name: name.clone(), peer_address: address.clone() });
        }
        Ok(Self { own, founding, members, channels })
    }

    pub(crate) fn members(&self) -> BTreeMap<u64, MemberAddress> {
        self.members.clone()
    }

    pub(crate) fn client(&self, id: u64) -> Option<PeerClient<Channel>> {
        let (channel, _) = self.channels.get(&id)?;
        Some(PeerClient::new(channel.clone()).max_decoding_message_size(crate::run::MAX_MESSAGE).max_encoding_message_size(crate::run::MAX_MESSAGE))
    }

    /// True if the member's port takes connections now.
    pub(crate) async fn connected(&self, id: u64) -> Result<(), String> {
        let address = &self.members.get(&id).ok_or("unknown member")?.peer_address;
        match tokio::time::timeout(CONNECT_WITHIN, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no connection in time".into()),
        }
    }

    pub(crate) fn header(&self, to: u64) -> PeerHeader {
        PeerHeader { cluster_id: self.founding.clone(), from: self.own, to, machine_version: crate::machine::MACHINE_VERSION }
    }

    /// What is wrong with a message's header, if anything.
    pub(crate) fn check(&self, header: Option<&PeerHeader>) -> Result<(), tonic::Status> {
        let Some(header) = header else { return Err(tonic::Status::invalid_argument("a peer message needs a header")) };
        if header.cluster_id != self.founding || header.to != self.own {
            let message = format!("this is member {} of the cluster {}, not member {} of {}", self.own, self.founding, header.to, header.cluster_id);
            return Err(tonic::Status::failed_precondition(message));
        }
        if header.machine_version > crate::machine::MACHINE_VERSION {
            tracing::debug!(from = header.from, version = header.machine_version, "a newer peer");
        }
        Ok(())
    }
}

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

fn broken(status: &tonic::Status) -> RpcError {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::FailedPrecondition => RPCError::Unreachable(Unreachable::from_string(status.message())),
        _ => RPCError::Network(NetworkError::from_string(status.message())),
    }
}

fn late() -> RpcError {
    RPCError::Network(NetworkError::from_string("no answer in time"))
}

impl Link {
    fn client(&self) -> Result<PeerClient<Channel>, RpcError> {
        self.peers.client(self.target).ok_or_else(|| RPCError::Unreachable(Unreachable::from_string("not in the founding list")))
    }

    fn vote_request(&self, rpc: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
        wire::VoteRequest {
            vote: Some(codec::vote(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(codec::log_id),
            header: Some(self.peers.header(self.target)),
            leadership_transfer: rpc.leadership_transfer,
        }
    }
}

fn vote_response(answer: &wire::VoteResponse) -> Result<VoteResponse<TypeConfig>, RpcError> {
    let vote = answer.vote.as_ref().map(codec::to_vote).ok_or_else(|| RPCError::Network(NetworkError::from_string("a vote without a vote")))?;
    Ok(VoteResponse { vote, vote_granted: answer.granted, last_log_id: answer.last_log_id.as_ref().map(codec::to_log_id) })
}

pub(crate) fn append_request(rpc: &AppendEntriesRequest<TypeConfig>, header: PeerHeader) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(codec::vote(&rpc.vote)),
        prev_log_id: rpc.prev_log_id.as_ref().map(codec::log_id),
        entries: rpc.entries.iter().map(codec::entry).collect(),
        leader_commit: rpc.leader_commit.as_ref().map(codec::log_id),
        header: Some(header),
    }
}

fn append_result(answer: &wire::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    use wire::append_response::Result as Wire;
    let conflict: Option<LogId> = answer.conflict_log_id.as_ref().map(codec::to_log_id);
    match (&answer.result, conflict) {
        (Some(Wire::PartialSuccess(id)), _) => Ok(Ok(Some(codec::to_log_id(id)))),
        (Some(Wire::Success(_)), _) => Ok(Ok(None)),
        (Some(Wire::HigherVote(vote)), _) => Ok(Err(StreamAppendError::HigherVote(codec::to_vote(vote)))),
        (Some(Wire::Conflict(_)), Some(id)) => Ok(Err(StreamAppendError::Conflict(id))),
        _ => Err(RPCError::Network(NetworkError::from_string("an append answer without a result"))),
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(&mut self, rpc: AppendEntriesRequest<TypeConfig>, option: RPCOption) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let request = append_request(&rpc, self.peers.header(self.target));
        let mut client = self.client()?;
        let call = async {
            let mut answers = client.append(futures::stream::iter([request])).await?.into_inner();
            answers.message().await
        };
        let answer = tokio::time::timeout(option.hard_ttl(), call).await.map_err(|_| late())?.map_err(|status| broken(&status))?;
        let result = append_result(&answer.ok_or_else(late)?)?;
        Ok(result.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> openraft::base::BoxFuture<'s, Result<openraft::base::BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + openraft::OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let header = self.peers.header(self.target);
            let mut client = self.client()?;
            let requests = input.map(move |rpc| append_request(&rpc, header.clone()));
            // The stream lives as long as replication; only opening it has a limit.
            let opened = tokio::time::timeout(option.hard_ttl().max(CONNECT_WITHIN), client.append(requests)).await;
            let answers = opened.map_err(|_| late())?.map_err(|status| broken(&status))?.into_inner();
            let results = answers.map(|answer| answer.map_err(|status| broken(&status)).and_then(|answer| append_result(&answer)));
            let results: openraft::base::BoxStream<'s, _> = Box::pin(results);
            Ok(results)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = self.vote_request(&rpc);
        let mut client = self.client()?;
        let answer = tokio::time::timeout(option.hard_ttl(), client.vote(request)).await.map_err(|_| late())?;
        vote_response(&answer.map_err(|status| broken(&status))?.into_inner())
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = self.vote_request(&rpc);
        let mut client = self.client()?;
        let answer = tokio::time::timeout(option.hard_ttl(), client.pre_vote(request)).await.map_err(|_| late())?;
        vote_response(&answer.map_err(|status| broken(&status))?.into_inner())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let bytes = snapshot.snapshot.0.clone();
        let first = wire::SnapshotChunk {
            vote: Some(codec::vote(&vote)),
            meta: Some(codec::snapshot_meta(&snapshot.meta)),
            header: Some(self.peers.header(self.target)),
            ..wire::SnapshotChunk::default()
        };
        let sum = Sha256::digest(&bytes).to_vec();
        let count = bytes.len().div_ceil(CHUNK);
        let chunks = (0..count).map(move |index| wire::SnapshotChunk {
            data: bytes.slice(index * CHUNK..bytes.len().min((index + 1) * CHUNK)),
            ..wire::SnapshotChunk::default()
        });
        let last = wire::SnapshotChunk { sha256: sum.into(), ..wire::SnapshotChunk::default() };
        let stream = futures::stream::iter([first].into_iter().chain(chunks).chain([last]));
        let mut client = self.client()?;
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = client.install_snapshot(stream) => answer.map_err(|status| broken(&status))?.into_inner(),
        };
        let vote = answer.vote.as_ref().map(codec::to_vote);
        vote.map(SnapshotResponse::new).ok_or_else(|| StreamingError::Network(NetworkError::from_string("a snapshot answer without a vote")))
    }

    async fn transfer_leader(&mut self, req: TransferLeaderRequest<TypeConfig>, option: RPCOption) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let request = wire::TransferLeaderRequest {
            from_leader: Some(codec::vote(req.from_leader())),
            to_node_id: *req.to_node_id(),
            last_log_id: req.last_log_id().map(codec::log_id),
            header: Some(self.peers.header(self.target)),
        };
        let mut client = self.client()?;
        let answer = tokio::time::timeout(option.hard_ttl(), client.transfer_leader(request)).await.map_err(|_| late())?;
        answer.map_err(|status| broken(&status))?;
        Ok(Ok(()))
    }
}
