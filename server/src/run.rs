//! Puts a server together, in the order that a start needs and a shutdown undoes.
//!
//! Shutdown: 1. stop admitting (listeners close) → 2. end streams with a retry hint → 3. hand over leadership and stop
//! Raft → 4. flush storage (with Raft's end). A second signal aborts (in `main`).

use crate::api::{cluster::ClusterService, objects::ObjectsService};
use crate::controller::lease;
use crate::dns;
use crate::http::{self, RenderMetrics};
use crate::nodes::{Nodes, PeerFace};
use crate::raft::{Consensus, ConsensusConfig, StartError, incoming};
use crate::sync::delta::Stamped;
use crate::sync::session::{self, NodeSyncService, Sessions};
use crate::tasks::{Ended, Tasks};
use crate::write::Writer;
use fairlead_proto::v1::{
    cluster_server::ClusterServer, node_sync_server::NodeSyncServer, objects_server::ObjectsServer,
};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Largest gRPC message, bytes, both ways.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Largest request of a client, bytes (as kube-apiserver's limit).
const MAX_REQUEST: usize = 4 * 1024 * 1024;
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(5);

/// What a server is told.
#[derive(Clone)]
pub struct Config {
    /// Member name, unique in the cluster.
    pub name: String,
    /// Where everything is stored.
    pub data_dir: PathBuf,
    /// gRPC for clients and agents.
    pub listen_grpc: SocketAddr,
    /// Raft.
    pub listen_peer: SocketAddr,
    /// HTTPS (`/livez` and `/readyz` for now, without TLS).
    pub listen_https: SocketAddr,
    /// DNS, UDP and TCP.
    pub listen_dns: SocketAddr,
    /// `/metrics`, `/livez`, `/readyz`.
    pub listen_metrics: SocketAddr,
    /// gRPC address told to the other members; `None` = `listen_grpc`, with this member's own peer host if unspecified.
    pub advertise_grpc: Option<String>,
    /// Members: name, host:peerport.
    pub initial_cluster: Vec<(String, String)>,
    /// Range of ClusterIPs.
    pub service_cidr: IpNet,
    /// NodePorts, inclusive.
    pub node_ports: (u16, u16),
    /// Ranges that `spec.externalIPs` may be of; none are allowed by default.
    pub external_ip_cidrs: Vec<IpNet>,
    /// Zone that DNS answers for.
    pub cluster_domain: String,
    /// What DNS does without a quorum.
    pub dns_stale: dns::StalePolicy,
    /// Renders `/metrics`.
    pub render_metrics: RenderMetrics,
}

/// Why a server does not start or ends.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A listener can't be opened.
    #[error(
        "can't listen on {address} for {face}: {error}; is another process using the port? choose another with --listen-{face}"
    )]
    Listen {
        /// Which face.
        face: &'static str,
        /// Its address.
        address: SocketAddr,
        /// The system's error.
        error: std::io::Error,
    },
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// Consensus or storage.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A task ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// Reflection's descriptors.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Runs a server until cancelled. `started` hears when listeners and storage are open.
///
/// # Errors
/// [`ServerError`]; nothing is lost: what was acknowledged is on disk.
pub async fn run(
    config: Config,
    cancel: CancellationToken,
    started: Option<oneshot::Sender<Consensus>>,
) -> Result<(), ServerError> {
    let listeners = Listeners::open(&config).await?;
    let face = Arc::new(PeerFace::default());
    // A member without data waits for others.
    let consensus = tokio::select! {
        started = Consensus::start(consensus_config(&config)?, face.clone()) => started?,
        () = cancel.cancelled() => return Ok(()),
    };
    // Streams and listeners end first; Raft after them.
    let serving = cancel.child_token();
    let mut tasks = Tasks::new(serving.clone());
    let writer = Writer::new(consensus.clone());
    let (stamp_to, stamped) = watch::channel(Arc::new(Stamped::new(consensus.local())));
    tasks.spawn_quiet("stamp", session::stamp(consensus.subscribe(), stamp_to, serving.clone()));
    let mut sessions = Sessions::new(consensus.clone(), writer.clone(), stamped, serving.clone());
    sessions.server.clone_from(&config.name);
    sessions.cluster_domain.clone_from(&config.cluster_domain);
    let sessions = Arc::new(sessions);
    let nodes = Arc::new(Nodes::new(consensus.clone(), sessions.board.clone()));
    face.complete(nodes.clone(), sessions.clone());
    tasks.spawn_quiet("report", nodes.clone().report(serving.clone()));
    let watched = (nodes.cluster.clone(), nodes.alarms.clone());
    tasks.spawn_quiet("lease", lease::run(consensus.clone(), writer.clone(), watched, serving.clone()));
    tasks.spawn("storage", failure(consensus.clone(), serving.clone()));
    let objects = ObjectsService::new(consensus.clone(), writer.clone(), serving.clone());
    let objects = objects.allowing_external_ips(config.external_ip_cidrs.clone());
    let routes = grpc_routes(objects, &consensus, (&nodes, &sessions)).await?;
    tasks.spawn("grpc", serve_grpc(listeners.grpc, routes, serving.clone()));
    tasks.spawn("https", http::serve(listeners.https, http::health(consensus.clone()), serving.clone()));
    let metrics = http::health(consensus.clone()).merge(http::metrics(config.render_metrics.clone()));
    tasks.spawn("metrics", http::serve(listeners.metrics, metrics, serving.clone()));
    tasks.spawn("dns", serve_dns(&config, &consensus, serving.clone()));
    tracing::info!(name = config.name, grpc = %config.listen_grpc, peer = %config.listen_peer, "server is up");
    if let Some(started) = started {
        let _ = started.send(consensus.clone());
    }
    let ended = tasks.until_end().await;
    tracing::info!("shutting down");
    serving.cancel();
    tasks.drain(DRAIN).await;
    consensus.shutdown().await;
    Ok(ended?)
}

struct Listeners {
    grpc: TcpListener,
    https: TcpListener,
    metrics: TcpListener,
}

impl Listeners {
    async fn open(config: &Config) -> Result<Self, ServerError> {
        Ok(Self {
            grpc: listen("grpc", config.listen_grpc).await?,
            https: listen("https", config.listen_https).await?,
            metrics: listen("metrics", config.listen_metrics).await?,
        })
    }
}

async fn listen(face: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|error| ServerError::Listen { face, address, error })
}

fn consensus_config(config: &Config) -> Result<ConsensusConfig, ServerError> {
    let own = config.initial_cluster.iter().find(|(name, _)| *name == config.name);
    let Some((_, own_peer)) = own else {
        let names: Vec<_> = config.initial_cluster.iter().map(|(name, _)| name.as_str()).collect();
        return Err(ServerError::Config(format!(
            "--name {} is not in --initial-cluster, which names {}: add it or correct the name",
            config.name,
            names.join(", ")
        )));
    };
    if config.initial_cluster.len() > 5 {
        return Err(ServerError::Config("--initial-cluster names more than 5 servers: 1, 3 or 5 vote best".into()));
    }
    let grpc_address = config.advertise_grpc.clone().unwrap_or_else(|| {
        if config.listen_grpc.ip().is_unspecified() {
            let host = own_peer.rsplit_once(':').map_or(own_peer.as_str(), |(host, _)| host);
            format!("{host}:{}", config.listen_grpc.port())
        } else {
            config.listen_grpc.to_string()
        }
    });
    Ok(ConsensusConfig {
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
        listen_peer: config.listen_peer,
        grpc_address,
        initial_cluster: config.initial_cluster.clone(),
        service_cidr: config.service_cidr,
        node_ports: config.node_ports,
        ..ConsensusConfig::default()
    })
}

async fn failure(consensus: Consensus, cancel: CancellationToken) -> Result<(), String> {
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        failure = consensus.failed() => Err(failure),
    }
}

async fn grpc_routes(
    objects: ObjectsService,
    consensus: &Consensus,
    nodes: (&Arc<Nodes>, &Arc<Sessions>),
) -> Result<tonic::service::Routes, ServerError> {
    let (nodes, sessions) = nodes;
    let cluster = ClusterService::new(consensus.clone(), nodes.clone(), sessions.clone());
    let sync = NodeSyncService(sessions.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ObjectsServer<ObjectsService>>().await;
    health.set_serving::<NodeSyncServer<NodeSyncService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(fairlead_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    Ok(tonic::service::Routes::new(
        ObjectsServer::new(objects).max_decoding_message_size(MAX_REQUEST).max_encoding_message_size(MAX_MESSAGE),
    )
    .add_service(ClusterServer::new(cluster).max_encoding_message_size(MAX_MESSAGE))
    .add_service(
        NodeSyncServer::new(sync).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
    )
    .add_service(health_service)
    .add_service(reflection))
}

async fn serve_grpc(
    listener: TcpListener,
    routes: tonic::service::Routes,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(listener), cancel.cancelled_owned())
        .await
}

fn serve_dns(
    config: &Config,
    consensus: &Consensus,
    cancel: CancellationToken,
) -> impl std::future::Future<Output = Result<(), dns::DnsError>> + Send + 'static {
    let read = consensus.clone();
    let read: dns::ReadFn = Arc::new(move || {
        let consensus = read.clone();
        Box::pin(async move { consensus.read().await.map_err(|error| dns::ReadFailed(error.to_string())) })
    });
    let local = consensus.clone();
    let local: dns::LocalFn = Arc::new(move || local.local());
    let config = dns::Config {
        listen: config.listen_dns,
        zone: config.cluster_domain.clone(),
        stale: config.dns_stale,
        ..dns::Config::default()
    };
    dns::serve(config, read, local, cancel)
}
