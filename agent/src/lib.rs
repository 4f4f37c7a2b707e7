//! The agent of one node: keeps its kernel's rules at the newest view of the cluster, and reports its pods.
//!
//! `sync` folds what servers send into the view, `reconcile` brings the kernel to it, `probe` watches the node's pods.
//! What a rule says is decided in `plan` alone, what a kernel does in `kernel`. INVARIANT: losing the servers, and
//! stopping or restarting the agent, removes no rule.

pub mod book;
mod budget;
pub mod certificate;
pub mod config;
pub mod dataplane;
pub mod drift;
pub mod health;
pub mod inspect;
pub mod kernel;
pub mod metrics;
mod modes;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod shared;
pub mod state;
pub mod sync;
pub mod tasks;
pub mod witness;

pub use config::{Config, Mode, Security};
pub use modes::{clean, resolve as resolve_mode};

use crate::certificate::Certificate;
use crate::dataplane::Dataplane;
use crate::drift::Drifts;
use crate::health::HealthChecks;
use crate::inspect::Inspector;
use crate::kernel::dry_run::DryRun;
use crate::kernel::linux::{Iptables, Ipvs, Nftables, is_switched_on};
use crate::kernel::{Kernel, KernelError};
use crate::plan::{InvalidPrefix, IptablesPlane, IpvsPlane, Names, NftablesPlane, NodeFacts, Plane};
use crate::probe::Probes;
use crate::reconcile::{Progress, Reconcile};
use crate::shared::Shared;
use crate::state::{Loaded, StateError, Store};
use crate::sync::{Greeting, Sync};
use crate::tasks::{Ended, Tasks};
use crate::witness::Reader;
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::Hello;
use fairlead_proto::view::NodeView;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Words to the loop that wait.
const ASKS: usize = 4;

/// Why an agent doesn't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The chain prefix is wrong.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
    /// Not root.
    #[error("{0} needs root: run as root, or with --mode dry-run")]
    NotRoot(&'static str),
    /// Somebody else keeps chains of our names.
    #[error(
        "chains named {prefix}-SERVICES and the like are already kept by {owner} on this node: stop it and remove them \
         (kube-proxy --cleanup), or give this agent's chains another name with --chain-prefix"
    )]
    Foreign {
        /// The prefix.
        prefix: String,
        /// Who, as far as it can be told.
        owner: &'static str,
    },
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its certificate.
    #[error("the certificate of this node can't be used: {0}")]
    Certificate(#[from] std::io::Error),
    /// A task ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Runs an agent until cancelled. Its rules stay when it ends.
///
/// Shutdown: 1. the stream ends, the servers count this node's silence; 2. a change that the kernel is at is finished;
/// 3. probes end; 4. the state directory is unlocked. Nothing is removed.
///
/// # Errors
/// [`AgentError`]: at the start whatever keeps it from starting, later a task that ended unasked.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), AgentError> {
    let names = Names::new(&config.chain_prefix)?;
    check(&config)?;
    if mutant::is_on(Mutant::FlushOnStart) {
        mutant::flush();
    }
    let mode = modes::resolve(config.mode, config.netns.clone()).await?;
    let (store, loaded) = Store::open(&config.state_dir)?;
    let node_ip = node_ip(&config, &loaded.view).await?;
    let namespace = config.netns.clone().filter(|_| mode != Mode::DryRun);
    let facts = NodeFacts {
        node_name: config.node_name.clone(),
        node_ips: vec![node_ip],
        names: names.clone(),
        local_cidrs: config.cluster_cidr.or(config.pod_cidr).into_iter().collect(),
        service_cidrs: sync::service_cidrs(&loaded.cluster),
        masquerade_all: config.masquerade_all,
        tcp_be_liberal: is_switched_on(namespace.as_deref(), "netfilter/nf_conntrack_tcp_be_liberal"),
    };
    let mut start = Start { config, store, loaded, facts, node_ip, namespace: namespace.clone(), cancel };
    match mode {
        Mode::DryRun => start.serve::<IptablesPlane>(Arc::new(DryRun::default())).await,
        Mode::Nftables => start.serve::<NftablesPlane>(Arc::new(Nftables::new(namespace))).await,
        Mode::Ipvs => {
            let kernel = Arc::new(Ipvs::new(namespace));
            let prepared = kernel.clone();
            let own = modes::blocking(move || Ok(prepared.prepare().and_then(|()| prepared.addresses())?)).await?;
            start.facts.node_ips = modes::node_addresses(node_ip, own);
            start.serve::<IpvsPlane>(kernel).await
        }
        _ => {
            let kernel = Arc::new(Iptables::new(names.clone()).in_namespace(namespace));
            let (checked, had_view) = (kernel.clone(), start.loaded.view.revision > 0);
            modes::blocking(move || modes::check_owner(checked.as_ref(), &names, had_view)).await?;
            start.serve::<IptablesPlane>(kernel).await
        }
    }
}

/// An agent that knows all it needs, but for its kernel.
struct Start {
    config: Config,
    store: Store,
    loaded: Loaded,
    facts: NodeFacts,
    node_ip: IpAddr,
    namespace: Option<PathBuf>,
    cancel: CancellationToken,
}

impl Start {
    async fn serve<P: Plane>(self, kernel: Arc<dyn Kernel<P>>) -> Result<(), AgentError> {
        let Self { config, store, loaded, facts, node_ip, namespace, cancel } = self;
        let (mode, names) = (kernel.mode(), facts.names.clone());
        tracing::info!(node = config.node_name, mode, %node_ip, revision = loaded.view.revision, "agent starts");
        let shared = Arc::new(Shared::new(loaded.view, facts.service_cidrs.clone()));
        let (progress, served) = watch::channel(Progress::default());
        let (asks, asked) = mpsc::channel(ASKS);
        let drifts: Arc<Drifts> = Arc::default();
        let reader = Reader { kernel: kernel.clone(), asks };
        let dataplane = Arc::new(Dataplane {
            mode,
            inspect: Box::new(Inspector { reader, facts: facts.clone() }),
            drifts: drifts.clone(),
            facts: facts.clone(),
            shared: shared.clone(),
            progress: served.clone(),
        });
        let certificate = Arc::new(Certificate::open(&config)?);
        let greeting = greeting(&config, mode, node_ip);
        let kept = (store, loaded.cluster);
        let sync = Sync::new((greeting, certificate.clone()), shared.clone(), dataplane, kept);
        let (health_view, node_name) = (shared.clone(), facts.node_name.clone());
        let probes = Probes::new(shared.clone(), sync.book(), node_ip);

        let mut tasks = Tasks::new(cancel.clone());
        let reconcile = Reconcile::new(shared, kernel, facts, progress).watched(asked, drifts);
        tasks.spawn_apart("reconcile", reconcile.run(cancel.clone()));
        tasks.spawn("sync", sync.run(cancel.clone()));
        tasks.spawn("certificate", certificate.run(cancel.clone()));
        tasks.spawn("probe", probes.run(namespace.clone(), cancel.clone()));
        let checks = HealthChecks::new(health_view, node_name, served.clone(), namespace.clone());
        tasks.spawn("health", checks.run(cancel.clone()));
        tasks.spawn("switch", modes::sweep_others(mode, (namespace, names), served, cancel.clone()));
        if let Some(opened) = &config.opened {
            opened.notify_one();
        }
        let ended = tasks.until_end().await;
        tasks.drain(DRAIN).await;
        Ok(ended?)
    }
}

/// Removes every rule, chain and table of ours from this host, and nothing else.
///
/// # Errors
/// [`AgentError`]; [`AgentError::Foreign`] if the chains of that prefix aren't ours.
pub async fn cleanup(chain_prefix: &str) -> Result<(), AgentError> {
    let names = Names::new(chain_prefix)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot("cleanup"));
    }
    modes::blocking(move || modes::clean_all(None, &names)).await
}

fn check(config: &Config) -> Result<(), AgentError> {
    if config.node_name.is_empty() {
        return Err(AgentError::Config("an agent needs a name: --node-name".to_owned()));
    }
    if config.servers.is_empty() {
        return Err(AgentError::Config("an agent needs its servers: --server host:7400,host:7400,…".to_owned()));
    }
    if config.renew_seconds == 0 || config.grace_seconds <= config.renew_seconds {
        return Err(AgentError::Config(
            "--grace-seconds must be more than --renew-seconds, and that more than 0".to_owned(),
        ));
    }
    Ok(())
}

/// The node's address: as told, or by the route to a server, or (a server's name may be resolved by the very services
/// that this agent keeps) as the last view has it.
async fn node_ip(config: &Config, view: &NodeView) -> Result<IpAddr, AgentError> {
    if let Some(ip) = config.node_ip {
        return Ok(ip);
    }
    let known = view.nodes.get(&config.node_name).and_then(|node| node.addresses.first()?.parse().ok());
    match (route_source(&config.servers).await, known) {
        (Err(error), Some(ip)) => {
            tracing::warn!(%error, %ip, "taking the address that this node had before");
            Ok(ip)
        }
        (found, _) => found,
    }
}

/// The address that this host uses towards the first server that has a route.
async fn route_source(servers: &[String]) -> Result<IpAddr, AgentError> {
    let mut last = String::new();
    for server in servers {
        let server = server.split_once("://").map_or(server.as_str(), |(_, rest)| rest);
        let found = async {
            let target = tokio::net::lookup_host(server)
                .await?
                .next()
                .ok_or_else(|| std::io::Error::other("it has no address"))?;
            let local = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(local).await?;
            // Nothing is sent: connecting a UDP socket only chooses the route.
            socket.connect(target).await?;
            socket.local_addr()
        };
        match found.await {
            Ok(address) => return Ok(address.ip()),
            Err(error) => last = format!("{server}: {error}"),
        }
    }
    Err(AgentError::Config(format!(
        "can't tell this node's address from the route to a server ({last}): say --node-ip"
    )))
}

fn greeting(config: &Config, mode: &str, node_ip: IpAddr) -> Greeting {
    let hello = Hello {
        node_name: config.node_name.clone(),
        mode: mode.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_ips: vec![node_ip.to_string()],
        renew_seconds: config.renew_seconds,
        grace_seconds: config.grace_seconds,
        labels: config.labels.clone().into_iter().collect(),
        pod_cidr: config.pod_cidr.map(|cidr| cidr.to_string()).unwrap_or_default(),
        probes_pods: true,
        ..Hello::default()
    };
    Greeting { hello, servers: config.servers.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{NodeDelta, NodeItem};

    #[tokio::test]
    async fn the_nodes_address_is_the_last_views_if_no_server_can_be_resolved() {
        let config =
            Config { node_name: "n".into(), servers: vec!["no.such.host.invalid:1".into()], ..Config::default() };
        let mut view = NodeView::default();
        let said = node_ip(&config, &view).await.unwrap_err().to_string();
        assert!(said.contains("--node-ip"), "{said}");
        let node = NodeItem { name: "n".into(), addresses: vec!["192.0.2.9".into()], ..NodeItem::default() };
        view.fold(&NodeDelta { to: 1, upsert_nodes: vec![node], ..NodeDelta::default() }).unwrap();
        assert_eq!(node_ip(&config, &view).await.unwrap(), IpAddr::from([192, 0, 2, 9]));
    }

    #[tokio::test]
    async fn a_config_that_can_not_work_is_refused_before_anything_is_touched() {
        let good = || Config {
            node_name: "n".into(),
            servers: vec!["127.0.0.1:1".into()],
            mode: Mode::DryRun,
            state_dir: "/nonexistent/x".into(),
            ..Config::default()
        };
        for (config, part) in [
            (Config { node_name: String::new(), ..good() }, "--node-name"),
            (Config { servers: Vec::new(), ..good() }, "--server"),
            (Config { grace_seconds: 1, renew_seconds: 1, ..good() }, "--grace-seconds"),
            (Config { chain_prefix: "x".into(), ..good() }, "chain prefix"),
        ] {
            let said = run(config, CancellationToken::new()).await.unwrap_err().to_string();
            assert!(said.contains(part) && said.lines().count() == 1, "{said}");
        }
    }
}
