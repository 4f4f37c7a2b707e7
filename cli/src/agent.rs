//! `fairlead agent`: flags, variables and file into an agent's configuration; `fairlead agent cleanup`.

use crate::client::Global;
use crate::server::host_name;
use crate::telemetry::{LogFormat, Settings};
use crate::{settings, signals, systemd, telemetry};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use fairlead_agent::{Config, Mode, Security as AgentSecurity};
use fairlead_server::http::Limits;
use fairlead_server::pki::listener::{HttpListener, Security};
use ipnet::IpNet;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;

/// Run this node's agent. Servers are given by the global --server; with --config FILE settings come from a TOML file.
#[derive(Args, Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct AgentArgs {
    #[command(subcommand)]
    #[serde(skip)]
    command: Option<AgentCommand>,
    /// Name of this node [default: the host's name]
    #[arg(long, env = "FAIRLEAD_NODE_NAME")]
    node_name: Option<String>,
    /// Data plane: auto (nftables where it can be, else ipvs, else iptables), iptables, ipvs, nftables or dry-run [default: auto]
    #[arg(long, env = "FAIRLEAD_MODE")]
    mode: Option<String>,
    /// Where the last view is kept [default: /var/lib/fairlead/agent]
    #[arg(long, env = "FAIRLEAD_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Address of this node [default: the source address towards the first server]
    #[arg(long, env = "FAIRLEAD_NODE_IP")]
    node_ip: Option<IpAddr>,
    /// Addresses of all pods; traffic to a ClusterIP from elsewhere is masqueraded
    #[arg(long, env = "FAIRLEAD_CLUSTER_CIDR")]
    cluster_cidr: Option<IpNet>,
    /// Addresses of this node's pods
    #[arg(long, env = "FAIRLEAD_POD_CIDR")]
    pod_cidr: Option<IpNet>,
    /// Masquerade all traffic to ClusterIPs
    #[arg(long, env = "FAIRLEAD_MASQUERADE_ALL")]
    masquerade_all: bool,
    /// Seconds between lease renewals [default: 10]
    #[arg(long, env = "FAIRLEAD_RENEW_SECONDS")]
    renew_seconds: Option<u32>,
    /// Seconds of silence after which this node counts as dead [default: 50]
    #[arg(long, env = "FAIRLEAD_GRACE_SECONDS")]
    grace_seconds: Option<u32>,
    /// Prefix of all chains; another one lives beside a kube-proxy [default: KUBE]
    #[arg(long, global = true, env = "FAIRLEAD_CHAIN_PREFIX")]
    chain_prefix: Option<String>,
    /// Labels of this node: key=value,…
    #[arg(long, env = "FAIRLEAD_NODE_LABELS")]
    node_labels: Option<String>,
    /// /metrics and /livez of the agent; none by default
    #[arg(long, env = "FAIRLEAD_AGENT_LISTEN_METRICS")]
    listen_metrics: Option<SocketAddr>,
    /// Token to join with, if this node has no certificate yet (`fairlead token create`)
    #[arg(long, env = "FAIRLEAD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the token
    #[arg(long, env = "FAIRLEAD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Servers (in the file only; on the command line it is the global --server)
    #[arg(skip)]
    server: Vec<String>,
    /// As the global --otlp-endpoint and --log-format (in the file only)
    #[arg(skip)]
    otlp_endpoint: Option<String>,
    #[arg(skip)]
    log_format: Option<LogFormat>,
    /// Speak plaintext (in the file only)
    #[arg(skip)]
    insecure: bool,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Remove every rule and chain of ours from this host, and nothing else
    Cleanup,
}

/// Runs until a signal; stopping removes no rule.
pub async fn main(global: &Global, args: AgentArgs) -> anyhow::Result<()> {
    let file: AgentArgs = match &global.config {
        Some(path) => settings::read(path)?,
        None => AgentArgs::default(),
    };
    let telemetry = telemetry::start(&Settings {
        filter: telemetry::USUAL,
        format: global.log_format.or(file.log_format).unwrap_or_default(),
        otlp_endpoint: global.otlp_endpoint.clone().or_else(|| file.otlp_endpoint.clone()),
        service: "fairlead-agent",
        instance: args.node_name.clone().or_else(|| file.node_name.clone()).map_or_else(host_name, Ok)?,
    })?;
    if matches!(args.command, Some(AgentCommand::Cleanup)) {
        let prefix = args.chain_prefix.or(file.chain_prefix).unwrap_or_else(|| "KUBE".into());
        return fairlead_agent::cleanup(&prefix).await.context("cleanup");
    }
    let insecure = global.insecure || file.insecure;
    let listen_metrics = args.listen_metrics.or(file.listen_metrics);
    let token = settings::token((args.token.as_deref(), args.token_file.as_deref()))?.map_or_else(
        || settings::token((file.token.as_deref(), file.token_file.as_deref())),
        |token| Ok(Some(token)),
    )?;
    let security = if insecure { AgentSecurity::Plain } else { AgentSecurity::Tls(token) };
    let opened = Arc::new(Notify::new());
    let config = Config { security, opened: Some(opened.clone()), ..configure(global, args, file)? };
    let cancel = signals()?;
    // Its runtime answers as long as this does; what a loop on a thread of its own does is not seen here.
    tokio::spawn(systemd::tell(opened, || std::future::ready(true), cancel.clone()));
    let render = telemetry::metrics(&[fairlead_agent::metrics::METRICS])?;
    metrics::gauge!("fairlead_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    if let Some(address) = listen_metrics {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| {
            format!("can't listen on {address} for metrics: is the port in use? choose another with --listen-metrics")
        })?;
        let router = axum::Router::new()
            .route("/metrics", axum::routing::get(move || async move { render() }))
            .route("/livez", axum::routing::get(|| async { "ok\n" }));
        let listener = HttpListener::new(listener, Security::Plain)?;
        tokio::spawn(fairlead_server::http::serve(listener, (router, Limits::SCRAPED), cancel.clone()));
    }
    let ended = fairlead_agent::run(config, cancel).await.context("agent");
    telemetry.end().await;
    ended
}

fn configure(global: &Global, args: AgentArgs, file: AgentArgs) -> anyhow::Result<Config> {
    let servers = if global.server.is_empty() { file.server } else { global.server.clone() };
    anyhow::ensure!(!servers.is_empty(), "an agent needs its servers: --server host:7400,host:7400,…");
    let defaults = Config::default();
    let mode = args.mode.or(file.mode).unwrap_or_else(|| "auto".into());
    let renew_seconds = args.renew_seconds.or(file.renew_seconds).unwrap_or(defaults.renew_seconds);
    let grace_seconds = args.grace_seconds.or(file.grace_seconds).unwrap_or(defaults.grace_seconds);
    anyhow::ensure!(
        renew_seconds > 0 && grace_seconds > renew_seconds,
        "--grace-seconds must be more than --renew-seconds, and that more than 0"
    );
    Ok(Config {
        node_name: args.node_name.or(file.node_name).map_or_else(host_name, Ok)?,
        servers,
        mode: mode.parse::<Mode>().map_err(|error| anyhow::anyhow!("{error}"))?,
        state_dir: args.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/fairlead/agent".into()),
        node_ip: args.node_ip.or(file.node_ip),
        renew_seconds,
        grace_seconds,
        chain_prefix: args.chain_prefix.or(file.chain_prefix).unwrap_or(defaults.chain_prefix),
        cluster_cidr: args.cluster_cidr.or(file.cluster_cidr),
        pod_cidr: args.pod_cidr.or(file.pod_cidr),
        masquerade_all: args.masquerade_all || file.masquerade_all,
        labels: labels(args.node_labels.or(file.node_labels).as_deref().unwrap_or_default())?,
        ..defaults
    })
}

fn labels(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) =
                pair.split_once('=').with_context(|| format!("--node-labels: {pair:?} is not key=value"))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}
