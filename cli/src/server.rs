//! `fairlead server`: flags, variables and file into a server's configuration.

use crate::client::Global;
use crate::telemetry::{LogFormat, Settings};
use crate::{settings, signals, systemd, telemetry};
use anyhow::Context as _;
use clap::Args;
use fairlead_server::dns::StalePolicy;
use fairlead_server::metrics::METRICS;
use fairlead_server::raft::Consensus;
use fairlead_server::upkeep::backups::Schedule;
use fairlead_server::upkeep::space::Limits;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// Life of a certificate, if nobody says.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Between two backups, and how many are kept, if nobody says.
const BACKUP_EVERY: Duration = Duration::from_secs(3_600);
const BACKUP_KEEP: usize = 24;

/// Run a server. With --config FILE the same settings come from a TOML file (names as the flags').
#[derive(Args, Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ServerArgs {
    /// Name of this member, unique in the cluster [default: the host's name]
    #[arg(long, env = "FAIRLEAD_NAME")]
    name: Option<String>,
    /// Where everything is stored [default: /var/lib/fairlead/server]
    #[arg(long, env = "FAIRLEAD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// gRPC for clients and agents [default: 0.0.0.0:7400]
    #[arg(long, env = "FAIRLEAD_LISTEN_GRPC")]
    listen_grpc: Option<SocketAddr>,
    /// Other servers [default: 0.0.0.0:7401]
    #[arg(long, env = "FAIRLEAD_LISTEN_PEER")]
    listen_peer: Option<SocketAddr>,
    /// HTTPS: Kubernetes' API, /livez and /readyz [default: 0.0.0.0:7443]
    #[arg(long, env = "FAIRLEAD_LISTEN_HTTPS")]
    listen_https: Option<SocketAddr>,
    /// DNS, UDP and TCP [default: 0.0.0.0:53]
    #[arg(long, env = "FAIRLEAD_LISTEN_DNS")]
    listen_dns: Option<SocketAddr>,
    /// /metrics, /livez and /readyz [default: 0.0.0.0:7490]
    #[arg(long, env = "FAIRLEAD_LISTEN_METRICS")]
    listen_metrics: Option<SocketAddr>,
    /// gRPC address told to the other members [default: from --listen-grpc]
    #[arg(long, env = "FAIRLEAD_ADVERTISE_GRPC")]
    advertise_grpc: Option<String>,
    /// Where pods reach Kubernetes' API of this server: an endpoint of the service `kubernetes` [default: from --listen-https]
    #[arg(long, env = "FAIRLEAD_ADVERTISE_HTTPS", value_name = "IP:PORT")]
    advertise_https: Option<SocketAddr>,
    /// Address told to the other members, of a server that joins or that others will [default: from --listen-peer]
    #[arg(long, env = "FAIRLEAD_ADVERTISE_PEER", value_name = "HOST:PORT")]
    advertise_peer: Option<String>,
    /// All members: n1=host:peerport,… [default: this member alone]
    #[arg(long, env = "FAIRLEAD_INITIAL_CLUSTER")]
    initial_cluster: Option<String>,
    /// Range of ClusterIPs [default: 10.96.0.0/12]
    #[arg(long, env = "FAIRLEAD_SERVICE_CIDR")]
    service_cidr: Option<IpNet>,
    /// NodePorts, inclusive [default: 30000-32767]
    #[arg(long, env = "FAIRLEAD_NODE_PORT_RANGE")]
    node_port_range: Option<String>,
    /// Ranges that Services' externalIPs may be of: 198.51.100.0/24,… [default: none, so they are refused]
    #[arg(long, env = "FAIRLEAD_EXTERNAL_IP_CIDRS", value_delimiter = ',')]
    external_ip_cidrs: Option<Vec<IpNet>>,
    /// Zone that DNS answers for [default: cluster.local]
    #[arg(long, env = "FAIRLEAD_CLUSTER_DOMAIN")]
    cluster_domain: Option<String>,
    /// What DNS does without a quorum: serve-stale or strict [default: serve-stale]
    #[arg(long, env = "FAIRLEAD_DNS_STALE")]
    dns_stale: Option<String>,
    /// A server of the cluster to join, HOST:PORT of its --listen-grpc
    #[arg(long, env = "FAIRLEAD_JOIN", value_name = "HOST:PORT")]
    join: Option<String>,
    /// Token to join with (`fairlead token create --role server`)
    #[arg(long, env = "FAIRLEAD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the token
    #[arg(long, env = "FAIRLEAD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Names and addresses of this server for its certificate, beside the ones that it listens on
    #[arg(long, env = "FAIRLEAD_TLS_NAMES", value_delimiter = ',')]
    tls_names: Option<Vec<String>>,
    /// Life of the certificates that it signs for members and nodes [default: 720h]
    #[arg(long, env = "FAIRLEAD_CERTIFICATE_LIFE")]
    certificate_life: Option<String>,
    /// Who changed what [default: audit.log in the data directory]
    #[arg(long, env = "FAIRLEAD_AUDIT_LOG")]
    audit_log: Option<PathBuf>,
    /// MiB of objects beyond which only deleting is possible; the same on every server; 0 = any number [default: 1024]
    #[arg(long, env = "FAIRLEAD_QUOTA_MIB")]
    quota_mib: Option<u64>,
    /// MiB that the data directory's disk must have left: where the majority would go with those that have less, only deleting is
    /// possible; 0 = none
    /// [default: 256]
    #[arg(long, env = "FAIRLEAD_MIN_FREE_MIB")]
    min_free_mib: Option<u64>,
    /// Folder of backups by the clock, for `fairlead snapshot restore`; they hold the authorities' keys [default: none]
    #[arg(long, env = "FAIRLEAD_BACKUP_DIR")]
    backup_dir: Option<PathBuf>,
    /// Between two of them [default: 1h]
    #[arg(long, env = "FAIRLEAD_BACKUP_EVERY")]
    backup_every: Option<String>,
    /// How many are kept [default: 24]
    #[arg(long, env = "FAIRLEAD_BACKUP_KEEP")]
    backup_keep: Option<usize>,
    /// As the global --otlp-endpoint and --log-format (in the file only)
    #[arg(skip)]
    otlp_endpoint: Option<String>,
    #[arg(skip)]
    log_format: Option<LogFormat>,
    /// Speak plaintext (in the file only; on the command line it is the global --insecure)
    #[arg(skip)]
    insecure: bool,
}

/// Runs until a signal.
pub async fn main(global: &Global, args: ServerArgs) -> anyhow::Result<()> {
    let file: ServerArgs = match &global.config {
        Some(path) => settings::read(path)?,
        None => ServerArgs::default(),
    };
    let telemetry = telemetry::start(&Settings {
        filter: telemetry::USUAL,
        format: global.log_format.or(file.log_format).unwrap_or_default(),
        otlp_endpoint: global.otlp_endpoint.clone().or_else(|| file.otlp_endpoint.clone()),
        service: "fairlead-server",
        instance: args.name.clone().or_else(|| file.name.clone()).map_or_else(host_name, Ok)?,
    })?;
    let insecure = global.insecure || file.insecure;
    let tls = if insecure { None } else { Some(tls_config(&args, &file)?) };
    let join = args.join.clone().or_else(|| file.join.clone());
    let opened = Arc::new(Notify::new());
    let config = fairlead_server::Config { tls, join, opened: Some(opened.clone()), ..configure(args, file)? };
    let cancel = signals()?;
    let (started, consensus) = oneshot::channel();
    let running = Arc::new(OnceLock::new());
    let found = running.clone();
    tokio::spawn(async move {
        if let Ok(consensus) = consensus.await {
            let _ = found.set(consensus);
        }
    });
    let turns = move || {
        let running: Arc<OnceLock<Consensus>> = running.clone();
        // A member that waits for others is well.
        async move {
            match running.get() {
                Some(consensus) => consensus.is_turning().await,
                None => true,
            }
        }
    };
    tokio::spawn(systemd::tell(opened, turns, cancel.clone()));
    let ended = fairlead_server::run(config, cancel, Some(started)).await.context("server");
    telemetry.end().await;
    ended
}

fn configure(args: ServerArgs, file: ServerArgs) -> anyhow::Result<fairlead_server::Config> {
    let (limits, backups) = (limits(&args, &file), backups(&args, &file)?);
    let name = args.name.or(file.name).map_or_else(host_name, Ok)?;
    let listen_peer = args.listen_peer.or(file.listen_peer).unwrap_or(any(7401));
    let cluster = args.initial_cluster.or(file.initial_cluster);
    let initial_cluster = match cluster {
        Some(text) => settings::initial_cluster(&text)?,
        None => {
            let advertised = args.advertise_peer.or(file.advertise_peer);
            let joins = args.join.is_some() || file.join.is_some();
            let address = match advertised {
                Some(address) => address,
                None if !listen_peer.ip().is_unspecified() => listen_peer.to_string(),
                None if joins => {
                    anyhow::bail!("say where the other members reach this one: --advertise-peer HOST:PORT")
                }
                None => format!("127.0.0.1:{}", listen_peer.port()),
            };
            vec![(name.clone(), address)]
        }
    };
    let stale = args.dns_stale.or(file.dns_stale);
    let dns_stale = match stale.as_deref() {
        None | Some("serve-stale") => StalePolicy::ServeStale,
        Some("strict") => StalePolicy::Strict,
        Some(other) => anyhow::bail!("--dns-stale is {other:?}, not serve-stale or strict"),
    };
    let range = args.node_port_range.or(file.node_port_range);
    Ok(fairlead_server::Config {
        name,
        data_dir: args.data_dir.or(file.data_dir).unwrap_or_else(|| "/var/lib/fairlead/server".into()),
        listen_grpc: args.listen_grpc.or(file.listen_grpc).unwrap_or(any(7400)),
        listen_peer,
        listen_https: args.listen_https.or(file.listen_https).unwrap_or(any(7443)),
        listen_dns: args.listen_dns.or(file.listen_dns).unwrap_or(any(53)),
        listen_metrics: args.listen_metrics.or(file.listen_metrics).unwrap_or(any(7490)),
        advertise_grpc: args.advertise_grpc.or(file.advertise_grpc),
        advertise_https: args.advertise_https.or(file.advertise_https),
        initial_cluster,
        service_cidr: service_cidr(args.service_cidr.or(file.service_cidr))?,
        node_ports: range.as_deref().map_or(Ok((30_000, 32_767)), settings::node_port_range)?,
        external_ip_cidrs: args.external_ip_cidrs.or(file.external_ip_cidrs).unwrap_or_default(),
        cluster_domain: args.cluster_domain.or(file.cluster_domain).unwrap_or_else(|| "cluster.local".into()),
        dns_stale,
        render_metrics: telemetry::metrics(&[METRICS])?,
        limits,
        backups,
        tls: None,
        join: None,
        opened: None,
    })
}

fn limits(args: &ServerArgs, file: &ServerArgs) -> Limits {
    let usual = Limits::default();
    let bytes = |mib: Option<u64>, usual: u64| mib.map_or(usual, |mib| mib.saturating_mul(1024 * 1024));
    Limits {
        quota: bytes(args.quota_mib.or(file.quota_mib), usual.quota),
        min_free: bytes(args.min_free_mib.or(file.min_free_mib), usual.min_free),
    }
}

fn backups(args: &ServerArgs, file: &ServerArgs) -> anyhow::Result<Option<Schedule>> {
    let folder = args.backup_dir.clone().or_else(|| file.backup_dir.clone());
    let every = args.backup_every.as_ref().or(file.backup_every.as_ref());
    let keep = args.backup_keep.or(file.backup_keep);
    let Some(folder) = folder else {
        let lost = every.is_some() || keep.is_some();
        anyhow::ensure!(!lost, "--backup-every and --backup-keep say nothing without --backup-dir");
        return Ok(None);
    };
    let every = every.map_or(Ok(BACKUP_EVERY), |text| settings::duration(text).context("--backup-every"))?;
    let keep = keep.unwrap_or(BACKUP_KEEP);
    anyhow::ensure!(keep > 0, "--backup-keep 0 would keep none");
    Ok(Some(Schedule { folder, every, keep }))
}

fn tls_config(args: &ServerArgs, file: &ServerArgs) -> anyhow::Result<fairlead_server::TlsConfig> {
    let life = match args.certificate_life.as_ref().or(file.certificate_life.as_ref()) {
        Some(text) => settings::duration(text).context("--certificate-life")?,
        None => CERTIFICATE_LIFE,
    };
    let token = settings::token((args.token.as_deref(), args.token_file.as_deref()))?.map_or_else(
        || settings::token((file.token.as_deref(), file.token_file.as_deref())),
        |token| Ok(Some(token)),
    )?;
    Ok(fairlead_server::TlsConfig {
        life,
        names: args.tls_names.clone().or_else(|| file.tls_names.clone()).unwrap_or_default(),
        token,
        audit_log: args.audit_log.clone().or_else(|| file.audit_log.clone()),
    })
}

/// The range of ClusterIPs; host bits are an error rather than a surprise.
pub fn service_cidr(given: Option<IpNet>) -> anyhow::Result<IpNet> {
    let Some(cidr) = given else { return Ok("10.96.0.0/12".parse()?) };
    anyhow::ensure!(
        cidr.addr() == cidr.network(),
        "--service-cidr {cidr} has host bits set: did you mean {}?",
        cidr.trunc()
    );
    let host_bits = cidr.max_prefix_len() - cidr.prefix_len();
    anyhow::ensure!(host_bits <= 20, "--service-cidr {cidr} is too large: at most 20 host bits");
    Ok(cidr)
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

/// The host's name, as members and nodes are called by default.
pub fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("can't read the host's name: give one")?;
    name.into_string()
        .map(|name| name.to_lowercase())
        .map_err(|name| anyhow::anyhow!("the host's name {name:?} is not text: give one"))
}
