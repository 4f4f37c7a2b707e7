//! Starting a member: listener, storage, Raft, and its first words to the cluster.

use crate::machine::Snapshot;
use crate::pki::listener::{Connection, Security, connections};
use crate::raft::fence;
use crate::raft::forward::Forwarder;
use crate::raft::joined::Joined;
use crate::raft::network::Network;
use crate::raft::peers::{Peers, REMOVED, fingerprint};
use crate::raft::propose::MAX_PROPOSALS;
use crate::raft::read::{Rounds, Waiter};
use crate::raft::returning;
use crate::raft::service::{MAX_INCOMING, PeerApi, PeerService};
use crate::raft::suspicion::Suspicion;
use crate::raft::types::{MemberAddress, member_id, raft_config};
use crate::raft::{Consensus, Inner, MAX_MESSAGE};
use crate::storage::{Identity, OpenError, Storage, backup};
use crate::tracer::Tracer;
use crate::write::stamp;
use fairlead_proto::internal::v1::{InitCluster, Member, SetMember, command, peer_server::PeerServer};
use fairlead_proto::tls::Transport;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time that connections have to end when a member stops.
const LINGER: Duration = Duration::from_millis(200);
/// A member that hears no leader asks the others whether it is still one of them.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const INTRODUCE_AGAIN: Duration = Duration::from_millis(50);

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
    /// Its place in a cluster that it joined; `None` = it is of the founding list.
    pub joined: Option<Joined>,
    /// Told when listener and storage are open; electing, and waiting for others, come after it.
    pub opened: Option<Arc<Notify>>,
    /// How it listens for the others.
    pub security: Security,
    /// How it connects to them.
    pub transport: Transport,
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
            joined: None,
            opened: None,
            security: Security::Plain,
            transport: Transport::plain(),
        }
    }
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The peer port.
    #[error(
        "can't listen on {address} for peer: {error}; is another process using the port? choose another with --listen-peer"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        error: std::io::Error,
    },
    /// The data directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The founding list, or a member's place in the cluster that it joined.
    #[error("{0}")]
    Founding(String),
    /// It was found to differ from the others.
    #[error(
        "{1}; keep {0} for whoever looks into it, and let this member get its data back: start it with an empty data directory (and the pki folder of this one); if it joined the cluster, remove it and let it join anew"
    )]
    Fenced(PathBuf, String),
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
        if config.joined.is_none() {
            check_founding(&config)?;
        }
        let address = config.listen_peer;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| StartError::Listen { address, error })?;
        let id = config.id();
        if let Some(why) = fence::noted(&config.data_dir) {
            return Err(StartError::Fenced(config.data_dir.clone(), why));
        }
        let mark = backup::mark(&config.data_dir).map_err(|error| StartError::Founding(error.to_string()))?;
        let (founding, fingerprint, known) = place(&config, mark.as_deref());
        let peers = Peers::new(id, (fingerprint, &config.transport), known);
        let peers = Arc::new(peers.map_err(|error| StartError::Founding(format!("--initial-cluster: {error}")))?);
        if let Some(joined) = &config.joined {
            joined.check_database(&config.data_dir, &config.name).map_err(StartError::Founding)?;
        }
        let mut storage = open(&config, founding).await?;
        if let Some(joined) = &config.joined {
            joined.note_start(&config.data_dir).map_err(|error| StartError::Founding(error.to_string()))?;
        }
        let cancel = CancellationToken::new();
        // Whoever gives up before the end lets go of the port, too.
        let unfinished = cancel.clone().drop_guard();
        let (absent, whole) = (Arc::new(AtomicBool::new(true)), Arc::new(OnceLock::new()));
        let service = PeerService {
            peers: peers.clone(),
            api,
            snapshots: storage.snapshots.clone(),
            incoming: Arc::new(Semaphore::new(MAX_INCOMING)),
            pristine: storage.pristine && !storage.returning && config.joined.is_none(),
            returning: absent.clone(),
            consensus: whole.clone(),
        };
        tokio::spawn(serve(connections(listener, config.security.clone()), service, cancel.clone()));
        if let Some(opened) = &config.opened {
            opened.notify_one();
        }
        // One that joined is new by its id: nobody can remember it.
        if config.joined.is_none() {
            returning::prepare(&mut storage, &peers, &config).await?;
        }
        absent.store(storage.returning, Ordering::Release);
        let ended = storage.end_of_return();
        let (consensus, queue) = Self::assemble(&config, peers, (storage, cancel, absent.clone())).await?;
        unfinished.disarm();
        let _ = whole.set(consensus.clone());
        tokio::spawn(consensus.clone().run_rounds(queue));
        tokio::spawn(consensus.clone().follow_drained());
        tokio::spawn(consensus.clone().stand_in());
        tokio::spawn(consensus.clone().follow_suspicion());
        if absent.load(Ordering::Acquire) {
            tokio::spawn(consensus.clone().come_back(ended));
        } else if config.joined.is_none()
            && let Err(error) = consensus.initialize(&config).await
        {
            consensus.shutdown().await;
            return Err(error);
        }
        tokio::spawn(consensus.clone().stand_again());
        tokio::spawn(consensus.clone().introduce(config));
        Ok(consensus)
    }

    /// Starts Raft on opened storage, and what follows it.
    async fn assemble(
        config: &ConsensusConfig,
        peers: Arc<Peers>,
        (storage, cancel, returning): (Storage, CancellationToken, Arc<AtomicBool>),
    ) -> Result<(Self, mpsc::Receiver<Waiter>), StartError> {
        let id = config.id();
        let (published, snapshots) = storage.machine.subscribe();
        let traced = storage.machine.traced();
        let held = storage.held();
        #[cfg(test)]
        let database = storage.database.clone();
        let raft_config = Arc::new(raft_config(config, storage.returning).map_err(StartError::Raft)?);
        let network = Network(peers.clone());
        let raft = openraft::Raft::new(id, raft_config, network, storage.log, storage.machine);
        let raft = raft.await.map_err(|error| StartError::Raft(error.to_string()))?;
        let (rounds, queue) = Rounds::new();
        let (leader_to, leader) = watch::channel(None);
        let failure = watch::Sender::new(None);
        let followed = (leader_to, failure.clone());
        tokio::spawn(follow((raft.clone(), peers.clone()), followed, cancel.clone()));
        let (seen, told) = ((snapshots.clone(), leader.clone()), failure.clone());
        tokio::spawn(leave_if_removed((id, peers.clone()), (seen, told), cancel.clone()));
        let forwarder = Forwarder::new(peers.clone(), published.clone());
        let inner = Inner {
            name: config.name.clone(),
            data_dir: config.data_dir.clone(),
            id,
            raft,
            peers,
            published,
            snapshots,
            leader,
            rounds,
            slots: Semaphore::new(MAX_PROPOSALS),
            forwarder,
            failure,
            cancel,
            returning,
            drained: Arc::default(),
            suspicion: Suspicion::default(),
            managing: tokio::sync::Mutex::new(()),
            traced,
            held,
            #[cfg(test)]
            database,
        };
        Ok((Self { inner: Arc::new(inner) }, queue))
    }

    /// A pristine member starts from the founding list; the same list on every member makes the same first entry.
    async fn initialize(&self, config: &ConsensusConfig) -> Result<(), StartError> {
        let raft = &self.inner.raft;
        let initialized = raft.is_initialized().await;
        if initialized.map_err(|error| StartError::Raft(error.to_string()))? {
            return Ok(());
        }
        match raft.initialize(self.inner.peers.members()).await {
            Ok(()) => Ok(()),
            // Another member's messages came first: then it is initialized.
            Err(error) if raft.is_initialized().await.unwrap_or(false) => {
                tracing::debug!(%error, name = config.name, "initialized by another member");
                Ok(())
            }
            Err(error) => Err(StartError::Raft(error.to_string())),
        }
    }

    /// Tells the cluster who we are, and makes it a cluster if it is none yet. Tried until it holds.
    async fn introduce(self, config: ConsensusConfig) {
        let address = config.initial_cluster.iter().find(|(name, _)| *name == config.name);
        let own = Member {
            id: self.inner.id,
            name: config.name.clone(),
            peer_address: address.map(|(_, address)| address.clone()).unwrap_or_default(),
            grpc_address: config.grpc_address.clone(),
            nonce: config.joined.as_ref().map(|joined| joined.nonce.clone()).unwrap_or_default(),
            drained: false,
        };
        let mut published = self.inner.published.clone();
        while !self.inner.cancel.is_cancelled() {
            let snapshot = published.borrow_and_update().snapshot.clone();
            let founded = !snapshot.state.settings().cluster_id.is_empty();
            let told = snapshot.state.member(own.id).map(|member| Member { drained: false, ..member.clone() });
            if founded && told.as_ref() == Some(&own) {
                return;
            }
            let command = if founded {
                let member = Some(own.clone());
                Some(command::Kind::SetMember(SetMember { member, join: false }))
            } else if self.is_leader() {
                Some(command::Kind::InitCluster(init_cluster(&config)))
            } else {
                None
            };
            let answer = match command {
                Some(command) => self.propose(stamp(command, None)).await.map(|done| done.rejection),
                None => Ok(None),
            };
            match answer {
                Ok(None) => {}
                Ok(Some(why)) => {
                    let why = format!("the cluster refuses this member: {}", why.message);
                    self.inner.failure.send_replace(Some(why));
                    return;
                }
                Err(error) => tracing::debug!(%error, "introduction not committed; trying again"),
            }
            // Woken by the cluster's first entries; the pause is for a leader whose election shows in none of them.
            if matches!(tokio::time::timeout(INTRODUCE_AGAIN, published.changed()).await, Ok(Err(_))) {
                return; // Raft has stopped.
            }
        }
    }
}

async fn open(config: &ConsensusConfig, founding: String) -> Result<Storage, StartError> {
    let path = config.data_dir.clone();
    let name = config.name.clone();
    let opening = move || Storage::open(&path, &Identity { name, founding });
    let opened = tokio::task::spawn_blocking(opening).await;
    Ok(opened.map_err(|error| StartError::Raft(error.to_string()))??)
}

impl ConsensusConfig {
    /// Id of this member.
    fn id(&self) -> u64 {
        self.joined.as_ref().map_or_else(|| member_id(&self.name), |joined| joined.id)
    }
}

/// What its directory is marked with, by what members know each other, and whom it knows first.
fn place(config: &ConsensusConfig, restored: Option<&str>) -> (String, String, BTreeMap<u64, MemberAddress>) {
    let address = |name: &String, address: &String| MemberAddress { name: name.clone(), peer_address: address.clone() };
    match &config.joined {
        Some(joined) => {
            let known = joined.members.iter().map(|(id, name, peer)| (*id, address(name, peer)));
            (format!("joined {} as {}", joined.fingerprint, joined.id), joined.fingerprint.clone(), known.collect())
        }
        None => {
            let founding = backup::founding(&config.initial_cluster, restored);
            let known = config.initial_cluster.iter().map(|(name, peer)| (member_id(name), address(name, peer)));
            let fingerprint = fingerprint(&founding);
            (founding, fingerprint, known.collect())
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

fn check_founding(config: &ConsensusConfig) -> Result<(), StartError> {
    let list = &config.initial_cluster;
    let names: BTreeSet<&String> = list.iter().map(|(name, _)| name).collect();
    let ids: BTreeSet<u64> = list.iter().map(|(name, _)| member_id(name)).collect();
    let addresses: BTreeSet<&String> = list.iter().map(|(_, address)| address).collect();
    let problem = if !names.contains(&config.name) {
        format!("it does not name this member, {}: add it or correct --name", config.name)
    } else if names.len() < list.len() {
        "a name occurs twice: give every member its own".to_owned()
    } else if addresses.len() < list.len() {
        "an address occurs twice: give every member its own".to_owned()
    } else if ids.len() < list.len() {
        "two names have the same hash: rename one of them".to_owned()
    } else {
        return Ok(());
    };
    Err(StartError::Founding(format!("--initial-cluster: {problem}")))
}

async fn serve(
    connections: ReceiverStream<std::io::Result<Connection>>,
    service: PeerService,
    cancel: CancellationToken,
) {
    let service =
        PeerServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    let serving = tonic::transport::Server::builder()
        .initial_stream_window_size(2 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(Tracer { begins: false })
        .add_service(service)
        .serve_with_incoming_shutdown(connections, cancel.clone().cancelled_owned());
    // Peers' streams don't end by themselves.
    let cut = async {
        cancel.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::error!(%error, "the peer listener ended");
        },
        () = cut => {}
    }
}

/// Follows Raft's metrics: who leads, and whether it still runs.
async fn follow(
    (raft, peers): (super::Raft, Arc<Peers>),
    (leader, failure): (watch::Sender<Option<u64>>, watch::Sender<Option<String>>),
    cancel: CancellationToken,
) {
    use openraft::async_runtime::WatchReceiver as _;
    let mut metrics = raft.metrics();
    let mut followed = None;
    loop {
        let (current, running) = {
            let metrics = metrics.borrow_watched();
            // Metrics change with every entry, members hardly ever.
            let changed = metrics.membership_config.log_id();
            if *changed != followed {
                followed.clone_from(changed);
                let nodes = metrics.membership_config.membership().nodes();
                let known: BTreeMap<u64, MemberAddress> = nodes.map(|(id, node)| (*id, node.clone())).collect();
                // Before Raft knows the members, those of the start count.
                if !known.is_empty()
                    && let Err(error) = peers.set(known)
                {
                    tracing::error!(%error, "a member's address can't be used");
                }
            }
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
        let ended = running.err().map(|fatal| fatal.to_string());
        if ended.is_some() && !cancel.is_cancelled() {
            failure.send_replace(ended);
            return;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() {
                failure.send_replace(Some("Raft stopped".into()));
                return;
            },
        }
    }
}

/// States, and who leads.
type Seen = (watch::Receiver<Arc<Snapshot>>, watch::Receiver<Option<u64>>);

/// Ends a member that was removed: its own log says so, or another member.
async fn leave_if_removed(
    (own, peers): (u64, Arc<Peers>),
    ((mut states, leader), failure): (Seen, watch::Sender<Option<String>>),
    cancel: CancellationToken,
) {
    let mut told = peers.subscribe_removed();
    // Whoever is removed may hear no more of it than that nobody leads: it asks.
    let asking = async {
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            if leader.borrow().is_none() {
                returning::ask(&peers).await;
            }
        }
    };
    let removed = tokio::select! {
        () = asking => false,
        () = cancel.cancelled() => return,
        removed = states.wait_for(|snapshot| snapshot.state.is_retired(own)) => removed.is_ok(),
        removed = told.wait_for(|removed| *removed) => removed.is_ok(),
    };
    if removed {
        failure.send_replace(Some(REMOVED.into()));
    }
}
