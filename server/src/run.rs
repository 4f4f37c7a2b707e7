//! Puts a server together, in the order that a start needs and a shutdown undoes.
//!
//! Shutdown: 1. stop admitting (listeners close) → 2. end streams with a retry hint → 3. hand over leadership and stop
//! Raft → 4. flush storage (with Raft's end). A second signal aborts (in `main`).

use crate::api::access::AccessService;
use crate::api::cluster::{ClusterService, own_status};
use crate::api::guard::Guard;
use crate::api::maintenance::MaintenanceService;
use crate::api::members::MembersService;
use crate::api::objects::ObjectsService;
use crate::audit::Audit;
use crate::config::Config;
use crate::controller::{apiservers, audit, events, lease, version};
use crate::dns;
use crate::http::{self, Limits, RenderMetrics};
use crate::kube::Kube;
use crate::machine::MACHINE_VERSION;
use crate::metrics;
use crate::names;
use crate::nodes::{Nodes, PeerFace};
use crate::pki::Purpose;
use crate::pki::keeper::{Keeper, PkiConfig, PkiError};
use crate::pki::listener::{HttpListener, Security, connections};
use crate::raft::joined::Joined;
use crate::raft::{Consensus, ConsensusConfig, StartError};
use crate::sync::session::{self, NodeSyncService, Sessions};
use crate::sync::stamped::Stamped;
use crate::tasks::{Ended, Tasks};
use crate::tracer::Tracer;
use crate::upkeep;
use crate::upkeep::space::Space;
use crate::write::Writer;
use fairlead_proto::enroll::{self, EnrollError};
use fairlead_proto::tls::{self, Transport};
use fairlead_proto::v1::{
    JoinRequest, access_server::AccessServer, bootstrap_server::BootstrapServer, cluster_server::ClusterServer,
    maintenance_server::MaintenanceServer, members_server::MembersServer, node_sync_server::NodeSyncServer,
    objects_server::ObjectsServer,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Largest gRPC message, bytes, both ways.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Largest request of a client, bytes (as kube-apiserver's limit).
const MAX_REQUEST: usize = 4 * 1024 * 1024;
/// Largest request about who may do what, bytes: it comes from anybody.
const MAX_ACCESS: usize = 64 * 1024;
/// Streams of one connection at once.
const MAX_STREAMS: u32 = 1_024;
/// Bytes of a request's headers.
const MAX_HEADERS: u32 = 16 * 1024;
/// Streams of one connection that were reset before they were looked at.
const MAX_RESETS: usize = 20;
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(5);

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
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No certificates for a token.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// Joining.
    #[error("can't join: {0}")]
    Join(String),
    /// The audit log.
    #[error("the audit log can't be opened: {0}")]
    Audit(std::io::Error),
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
    let mut consensus_config = consensus_config(&config)?;
    let grpc_address = consensus_config.grpc_address.clone();
    let secured = Secured::open(&config, &mut consensus_config).await?;
    consensus_config.joined = tokio::select! {
        joined = join(&config, &consensus_config, &secured) => joined?,
        () = cancel.cancelled() => return Ok(()),
    };
    // A member without data waits for others.
    let consensus = tokio::select! {
        started = Consensus::start(consensus_config, face.clone()) => started?,
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
    let mut nodes = Nodes::new(consensus.clone(), sessions.board.clone());
    nodes.https_address = names::https_address(&config, &grpc_address).unwrap_or_default();
    let nodes = Arc::new(nodes);
    face.complete(nodes.clone(), sessions.clone());
    tasks.spawn_quiet("report", nodes.clone().report(serving.clone()));
    lead(&mut tasks, (&consensus, &writer, &nodes), &serving);
    tasks.spawn("storage", failure(consensus.clone(), serving.clone()));
    let objects = ObjectsService::new(consensus.clone(), writer.clone(), serving.clone());
    let objects = objects.allowing_external_ips(config.external_ip_cidrs.clone()).audited(secured.audit.clone());
    let objects = objects.within(spawn_upkeep(&mut tasks, &config, (&consensus, &nodes), &serving));
    let access = AccessService {
        consensus: consensus.clone(),
        writer: writer.clone(),
        keeper: secured.keeper.clone(),
        audit: secured.audit.clone(),
    };
    let members = MembersService { consensus: consensus.clone(), audit: secured.audit.clone() };
    let maintenance = MaintenanceService {
        consensus: consensus.clone(),
        audit: secured.audit.clone(),
        settings: config.shown().to_string().into(),
        render: rendered(&config, &consensus, &nodes),
    };
    let api = kubernetes(&objects, (&consensus, &nodes), &serving);
    let routes = grpc_routes((objects, access, members, maintenance), &consensus, (&nodes, &sessions)).await?;
    let guard = Guard::new(consensus.clone());
    tasks.spawn("grpc", serve_grpc((listeners.grpc, secured.security()), (routes, guard), serving.clone()));
    let https = secured.http(listeners.https, config.listen_https)?;
    tasks.spawn("https", http::serve(https, api, serving.clone()));
    let metrics = http::health(consensus.clone()).merge(http::metrics(rendered(&config, &consensus, &nodes)));
    let listener = secured.http(listeners.metrics, config.listen_metrics)?;
    tasks.spawn("metrics", http::serve(listener, (metrics, Limits::SCRAPED), serving.clone()));
    if let Some(keeper) = &secured.keeper {
        tasks.spawn_quiet("certificates", keeper.clone().run(consensus.clone(), writer.clone(), serving.clone()));
    }
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

/// Starts what works while this member leads.
fn lead(
    tasks: &mut Tasks,
    (consensus, writer, nodes): (&Consensus, &Writer, &Arc<Nodes>),
    serving: &CancellationToken,
) {
    let watched = (nodes.cluster.clone(), nodes.alarms.clone());
    tasks.spawn_quiet("lease", lease::run(consensus.clone(), writer.clone(), watched, serving.clone()));
    tasks.spawn_quiet("audit", audit::run(consensus.clone(), nodes.alarms.clone(), serving.clone()));
    tasks.spawn_quiet("version", version::run(consensus.clone(), serving.clone()));
    tasks.spawn_quiet("events", events::run(consensus.clone(), writer.clone(), serving.clone()));
    let own = (consensus.clone(), nodes.clone());
    let own = move || own_status(&own.0, &own.1);
    tasks.spawn_quiet("apiservers", apiservers::run(consensus.clone(), writer.clone(), own, serving.clone()));
}

/// Kubernetes' API, and how a member is.
fn kubernetes(
    objects: &ObjectsService,
    (consensus, nodes): (&Consensus, &Arc<Nodes>),
    serving: &CancellationToken,
) -> (axum::Router, Limits) {
    let kube = Kube::new(objects.clone(), (consensus.clone(), nodes.clone()), serving.clone());
    (http::health(consensus.clone()).merge(kube.router()), Limits::SERVED)
}

/// Renders the metrics, with gauges as they are then.
fn rendered(config: &Config, consensus: &Consensus, nodes: &Arc<Nodes>) -> RenderMetrics {
    let (render, consensus, nodes) = (config.render_metrics.clone(), consensus.clone(), nodes.clone());
    Arc::new(move || {
        metrics::sample(&consensus, &nodes);
        render()
    })
}

/// Starts what looks after this member's disk; the answer says whether there is room on it.
fn spawn_upkeep(
    tasks: &mut Tasks,
    config: &Config,
    (consensus, nodes): (&Consensus, &Nodes),
    serving: &CancellationToken,
) -> Space {
    let space = Space::default();
    let told = (space.clone(), nodes.own.clone());
    tasks.spawn_quiet("space", upkeep::space::run(consensus.clone(), config.limits, told, serving.clone()));
    if let Some(schedule) = config.backups.clone() {
        let kept = upkeep::backups::run(consensus.clone(), schedule, nodes.own.clone(), serving.clone());
        tasks.spawn_quiet("backups", kept);
    }
    space
}

/// What makes the ports secure, or nothing.
#[derive(Default)]
struct Secured {
    keeper: Option<Arc<Keeper>>,
    audit: Option<Arc<Audit>>,
}

impl Secured {
    async fn open(config: &Config, consensus: &mut ConsensusConfig) -> Result<Self, ServerError> {
        let Some(tls) = &config.tls else {
            return Ok(Self::default());
        };
        let pki = PkiConfig {
            name: config.name.clone(),
            data_dir: config.data_dir.clone(),
            names: names::certificate_names(config, tls, &consensus.grpc_address),
            life: tls.life,
            alone: config.initial_cluster.len() == 1 && config.join.is_none(),
            grpc_address: consensus.grpc_address.clone(),
        };
        let keeper = match (&config.join, &tls.token) {
            (Some(server), Some(token)) if !Keeper::is_there(&config.data_dir)? => {
                let held = enroll::server(server, token, (&config.name, &pki.names)).await?;
                Keeper::joined(pki, held)?
            }
            _ => Keeper::open(pki)?,
        };
        let keeper = Arc::new(keeper);
        consensus.security = keeper.security(Purpose::Peer);
        consensus.transport = keeper.peers.clone();
        let log = tls.audit_log.clone().unwrap_or_else(|| config.data_dir.join("audit.log"));
        let audit = Audit::open(&log).map_err(ServerError::Audit)?;
        Ok(Self { keeper: Some(keeper), audit: Some(Arc::new(audit)) })
    }

    fn security(&self) -> Security {
        self.keeper.as_ref().map_or(Security::Plain, |keeper| keeper.security(Purpose::Client))
    }

    fn http(&self, listener: TcpListener, address: SocketAddr) -> Result<HttpListener, ServerError> {
        HttpListener::new(listener, self.security()).map_err(|error| ServerError::Listen {
            face: "metrics",
            address,
            error,
        })
    }
}

/// A member's place in the cluster that it joined before, or joins now. Asked until it is answered.
async fn join(config: &Config, consensus: &ConsensusConfig, secured: &Secured) -> Result<Option<Joined>, ServerError> {
    let files = ServerError::Join;
    let mut joined = match (Joined::read(&config.data_dir).map_err(|error| files(error.to_string()))?, &config.join) {
        (Some(joined), _) if joined.id != 0 => return Ok(Some(joined)),
        (None, None) => return Ok(None),
        (Some(joined), _) => joined,
        (None, Some(_)) => Joined { nonce: uuid::Uuid::new_v4().to_string(), ..Joined::default() },
    };
    let server =
        config.join.as_ref().ok_or_else(|| files("this member began to join a cluster: say --join again".into()))?;
    joined.write(&config.data_dir).map_err(|error| files(error.to_string()))?;
    let own = consensus.initial_cluster.iter().find(|(name, _)| *name == config.name);
    let request = JoinRequest {
        name: config.name.clone(),
        peer_address: own.map(|(_, address)| address.clone()).unwrap_or_default(),
        grpc_address: consensus.grpc_address.clone(),
        nonce: joined.nonce.clone(),
        machine_version: MACHINE_VERSION,
    };
    let transport = match &secured.keeper {
        Some(keeper) => {
            Transport::tls(tls::client_config(&keeper.credentials(Purpose::Client)).map_err(PkiError::from)?)
        }
        None => Transport::plain(),
    };
    let answer = enroll::join(server, &transport, &request).await?;
    joined.id = answer.id;
    joined.fingerprint = answer.fingerprint;
    joined.members = answer.members.into_iter().map(|member| (member.id, member.name, member.peer_address)).collect();
    joined.write(&config.data_dir).map_err(|error| files(error.to_string()))?;
    tracing::info!(id = joined.id, server, "joined the cluster as a learner");
    Ok(Some(joined))
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
        opened: config.opened.clone(),
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
    (objects, access, members, maintenance): (ObjectsService, AccessService, MembersService, MaintenanceService),
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
    .add_service(BootstrapServer::new(access.clone()).max_decoding_message_size(MAX_ACCESS))
    .add_service(AccessServer::new(access).max_decoding_message_size(MAX_ACCESS))
    .add_service(MaintenanceServer::new(maintenance).max_decoding_message_size(MAX_ACCESS))
    .add_service(MembersServer::new(members).max_decoding_message_size(MAX_ACCESS))
    .add_service(health_service)
    .add_service(reflection))
}

async fn serve_grpc(
    (listener, security): (TcpListener, Security),
    (routes, guard): (tonic::service::Routes, Guard),
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        // A client that opens and resets streams as fast as it can (CVE-2023-44487) is cut off.
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .layer(Tracer { begins: true })
        .layer(guard)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections(listener, security), cancel.cancelled_owned())
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
