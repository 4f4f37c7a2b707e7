//! Starting a member: listener, storage, Raft, and its first words to the cluster.

use crate::raft::network::{Network, Peers};
use crate::raft::propose::MAX_PROPOSALS;
use crate::raft::read::Rounds;
use crate::raft::service::{PeerApi, PeerService};
use crate::raft::types::{MemberAddress, member_id};
use crate::raft::{Consensus, Inner};
use crate::run::MAX_MESSAGE;
use crate::storage::{Identity, OpenError, Published, Storage};
use crate::write::stamp;
use fairlead_proto::internal::v1::{InitCluster, Member, SetMember, command, peer_server::PeerServer};
use ipnet::{IpNet, Ipv4Net};
use openraft::SnapshotPolicy;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

/// What a member is told.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// Its name.
    pub name: String,
    /// Where it stores.
    pub data_dir: PathBuf,
    /// Where it listens for the others.
    pub listen_peer: SocketAddr,
    /// gRPC address that it tells the others.
    pub grpc_address: String,
    /// The founding list: name, host:peerport.
    pub initial_cluster: Vec<(String, String)>,
    /// Range of ClusterIPs of a new cluster.
    pub service_cidr: IpNet,
    /// NodePorts of a new cluster, inclusive.
    pub node_ports: (u16, u16),
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence before an election: between these two.
    pub election_ms: (u64, u64),
    /// Log entries between two snapshots.
    pub snapshot_entries: u64,
    /// Log entries kept behind a snapshot, for members that lag a little.
    pub keep_entries: u64,
}

impl Default for ConsensusConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            data_dir: PathBuf::new(),
            listen_peer: SocketAddr::from(([127, 0, 0, 1], 7401)),
            grpc_address: String::new(),
            initial_cluster: Vec::new(),
            service_cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12)),
            node_ports: (30_000, 32_767),
            heartbeat_ms: 100,
            election_ms: (500, 1_000),
            snapshot_entries: 10_000,
            keep_entries: 5_000,
        }
    }
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The peer port.
    #[error("can't listen on {address} for peer: {error}; is another process using the port? choose another with --listen-peer")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        error: std::io::Error,
    },
    /// The data directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An address of the founding list.
    #[error("--initial-cluster: {0}")]
    Address(#[from] tonic::transport::Error),
    /// openraft.
    #[error("Raft does not start: {0}")]
    Raft(String),
}

impl Consensus {
    /// Starts a member. It answers once storage is open and the others can reach it; electing goes on behind.
    ///
    /// # Errors
    /// [`StartError`], in one clear sentence.
    pub async fn start(config: ConsensusConfig, api: Arc<dyn PeerApi>) -> Result<Self, StartError> {
        let listener = TcpListener::bind(config.listen_peer).await.map_err(|error| StartError::Listen { address: config.listen_peer, error })?;
        let identity = Identity { name: config.name.clone(), founding: founding(&config.initial_cluster) };
        let (path, opened_as) = (config.data_dir.clone(), identity.clone());
        let opened = tokio::task::spawn_blocking(move || Storage::open(&path, &opened_as)).await;
        let storage = opened.map_err(|error| StartError::Raft(error.to_string()))??;
        let published = storage.machine.subscribe();
        let id = member_id(&config.name);
        let peers = Arc::new(Peers::new(id, identity.founding, &config.initial_cluster)?);
        let raft_config = Arc::new(raft_config(&config)?);
        let raft = openraft::Raft::new(id, raft_config, Network(peers.clone()), storage.log, storage.machine).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
        let cancel = CancellationToken::new();
        let (rounds, queue) = Rounds::new();
        let (snapshots_to, snapshots) = watch::channel(published.borrow().snapshot.clone());
        let (leader_to, leader) = watch::channel(None);
        let (failure_to, failure) = watch::channel(None);
        let consensus = Self {
            inner: Arc::new(Inner {
                name: config.name.clone(),
                id,
                raft: raft.clone(),
                peers: peers.clone(),
                published: published.clone(),
                snapshots,
                leader,
                rounds,
                slots: Semaphore::new(MAX_PROPOSALS),
                failure,
                cancel: cancel.clone(),
            }),
        };
        let whole = Arc::new(OnceLock::new());
        let _ = whole.set(consensus.clone());
        let service = PeerService { raft: raft.clone(), peers, api, consensus: whole };
        tokio::spawn(serve(listener, service, cancel.clone()));
        tokio::spawn(relay(published, snapshots_to, cancel.clone()));
        tokio::spawn(follow(raft, leader_to, failure_to, cancel));
        tokio::spawn(consensus.clone().run_rounds(queue));
        consensus.initialize(&config).await?;
        tokio::spawn(consensus.clone().introduce(config));
        Ok(consensus)
    }

    /// A pristine member starts from the founding list; the same list on every member makes the same first entry.
    async fn initialize(&self, config: &ConsensusConfig) -> Result<(), StartError> {
        let raft = &self.inner.raft;
        let initialized = raft.is_initialized().await.map_err(|error| StartError::Raft(error.to_string()))?;
        if initialized {
            return Ok(());
        }
        let members: BTreeMap<u64, MemberAddress> = config
            .initial_cluster
            .iter()
            .map(|(name, address)| (member_id(name), MemberAddress { name: name.clone(), peer_address: address.clone() }))
            .collect();
        match raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another member's messages came first: then it is initialized.
            Err(error) if raft.is_initialized().await.unwrap_or(false) => {
                tracing::debug!(%error, "initialized by another member");
                Ok(())
            }
            Err(error) => Err(StartError::Raft(error.to_string())),
        }
    }

    /// Tells the cluster who we are, and makes it a cluster if it is none yet. Tried until it holds.
    async fn introduce(self, config: ConsensusConfig) {
        let own = Member {
            id: self.inner.id,
            name: config.name.clone(),
            peer_address: config.initial_cluster.iter().find(|(name, _)| *name == config.name).map(|(_, address)| address.clone()).unwrap_or_default(),
            grpc_address: config.grpc_address.clone(),
        };
        while !self.inner.cancel.is_cancelled() {
            let snapshot = self.local();
            let founded = !snapshot.state.settings().cluster_id.is_empty();
            let introduced = snapshot.state.members().any(|member| *member == own);
            if founded && introduced {
                return;
            }
            let command = if founded {
                Some(command::Kind::SetMember(SetMember { member: Some(own.clone()) }))
            } else if self.is_leader() {
                Some(command::Kind::InitCluster(init_cluster(&config)))
            } else {
                None
            };
            if let Some(command) = command
                && let Err(error) = self.propose(stamp(command, None)).await
            {
                tracing::debug!(%error, "introduction not committed; trying again");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn init_cluster(config: &ConsensusConfig) -> InitCluster {
    InitCluster {
        cluster_id: uuid::Uuid::new_v4().to_string(),
        service_cidr: config.service_cidr.to_string(),
        node_port_first: config.node_ports.0.into(),
        node_port_last: config.node_ports.1.into(),
        uids: (0..2).map(|_| uuid::Uuid::new_v4().to_string()).collect(),
    }
}

fn founding(list: &[(String, String)]) -> String {
    let mut members: Vec<String> = list.iter().map(|(name, address)| format!("{name}={address}")).collect();
    members.sort();
    members.join(",")
}

fn raft_config(config: &ConsensusConfig) -> Result<openraft::Config, StartError> {
    let raft = openraft::Config {
        cluster_name: "fairlead".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_ms.0,
        election_timeout_max: config.election_ms.1,
        enable_pre_vote: Some(true),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: config.keep_entries,
        replication_lag_threshold: config.keep_entries,
        purge_batch_size: 256,
        install_snapshot_timeout: 30_000,
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| StartError::Raft(error.to_string()))
}

async fn serve(listener: TcpListener, service: PeerService, cancel: CancellationToken) {
    let service = PeerServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    let served = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(2 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), cancel.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the peer listener ended");
    }
}

/// Passes published states on without their log index.
async fn relay(mut published: watch::Receiver<Published>, to: watch::Sender<Arc<crate::machine::Snapshot>>, cancel: CancellationToken) {
    loop {
        let snapshot = published.borrow_and_update().snapshot.clone();
        to.send_if_modified(|old| {
            let new = !Arc::ptr_eq(old, &snapshot);
            *old = snapshot;
            new
        });
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

/// Follows Raft's metrics: who leads, and whether it still runs.
async fn follow(raft: super::Raft, leader: watch::Sender<Option<u64>>, failure: watch::Sender<Option<String>>, cancel: CancellationToken) {
    use openraft::async_runtime::WatchReceiver as _;
    let mut metrics = raft.metrics();
    loop {
        let (current, running) = {
            let metrics = metrics.borrow_watched();
            (metrics.current_leader, metrics.running_state.clone())
        };
        leader.send_if_modified(|old| {
            let changed = *old != current;
            if changed {
                tracing::info!(leader = ?current, "leadership");
                metrics::counter!("fairlead_raft_leader_changes_total").increment(1);
            }
            *old = current;
            changed
        });
        if let Err(fatal) = running
            && !cancel.is_cancelled()
        {
            failure.send_replace(Some(fatal.to_string()));
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() {
                failure.send_if_modified(|old| { let none = old.is_none(); if none { *old = Some("Raft stopped".into()); } none });
                return;
            },
        }
    }
}
