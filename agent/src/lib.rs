//! The agent of one node: keeps its kernel's rules at the newest view of the cluster, and reports its pods.
//!
//! `sync` folds what servers send into the view, `reconcile` brings the kernel to it, `probe` watches the node's pods.
//! What a rule says is decided in `plan` alone, what a kernel does in `kernel`. INVARIANT: losing the servers, and
//! stopping or restarting the agent, removes no rule.

pub mod book;
pub mod config;
pub mod dataplane;
pub mod kernel;
pub mod plan;
pub mod probe;
pub mod reconcile;
pub mod shared;
pub mod state;
pub mod sync;
pub mod tasks;

pub use config::{Config, Mode};

use crate::dataplane::Dataplane;
use crate::kernel::dry_run::DryRun;
use crate::kernel::linux::{Iptables, is_switched_on};
use crate::kernel::{Kernel, KernelError};
use crate::plan::observed::Owner;
use crate::plan::{InvalidPrefix, Names, NodeFacts, Table};
use crate::probe::Probes;
use crate::reconcile::{Progress, Reconcile};
use crate::shared::Shared;
use crate::state::{StateError, Store};
use crate::sync::{Greeting, Sync};
use crate::tasks::{Ended, Tasks};
use fairlead_proto::v1::Hello;
use fairlead_proto::view::NodeView;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long tasks may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Why an agent doesn't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The chain prefix is wrong.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
    /// A data plane that isn't there yet.
    #[error("mode {0} is not available in this version: use iptables, or dry-run to only render the rules")]
    Unavailable(Mode),
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
    let mode = resolve(config.mode)?;
    let (store, loaded) = Store::open(&config.state_dir)?;
    let node_ip = node_ip(&config, &loaded.view).await?;
    let kernel: Arc<dyn Kernel> = match mode {
        Mode::DryRun => Arc::new(DryRun::default()),
        _ => Arc::new(Iptables::new(names.clone()).in_namespace(config.netns.clone())),
    };
    let had_view = loaded.view.revision > 0;
    let (checked, at, of) = (kernel.clone(), names.clone(), had_view);
    blocking(move || check_owner(checked.as_ref(), &at, of)).await?;
    tracing::info!(node = config.node_name, mode = kernel.mode(), %node_ip, revision = loaded.view.revision, "agent starts");

    let namespace = config.netns.clone().filter(|_| mode != Mode::DryRun);
    let facts = NodeFacts {
        node_name: config.node_name.clone(),
        node_ips: vec![node_ip],
        names,
        local_cidrs: config.cluster_cidr.or(config.pod_cidr).into_iter().collect(),
        masquerade_all: config.masquerade_all,
        tcp_be_liberal: is_switched_on(namespace.as_deref(), "netfilter/nf_conntrack_tcp_be_liberal"),
    };
    let shared = Arc::new(Shared::new(loaded.view));
    let (progress, served) = watch::channel(Progress::default());
    let dataplane =
        Arc::new(Dataplane { kernel: kernel.clone(), facts: facts.clone(), shared: shared.clone(), progress: served });
    let sync =
        Sync::new(greeting(&config, kernel.mode(), node_ip), shared.clone(), dataplane, (store, loaded.cluster_id));
    let probes = Probes::new(shared.clone(), sync.book(), node_ip);

    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("reconcile", Reconcile::new(shared, kernel, facts, progress).run(cancel.clone()));
    tasks.spawn("sync", sync.run(cancel.clone()));
    tasks.spawn("probe", probes.run(namespace, cancel.clone()));
    let ended = tasks.until_end().await;
    tasks.drain(DRAIN).await;
    Ok(ended?)
}

/// Removes every chain and rule under a prefix from this host, and nothing else.
///
/// # Errors
/// [`AgentError`]; [`AgentError::Foreign`] if those chains aren't ours.
pub async fn cleanup(chain_prefix: &str) -> Result<(), AgentError> {
    let names = Names::new(chain_prefix)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot("cleanup"));
    }
    blocking(move || clean(&Iptables::new(names.clone()), &names)).await
}

/// The same for a given kernel; blocks.
///
/// # Errors
/// As [`cleanup`].
pub fn clean(kernel: &dyn Kernel, names: &Names) -> Result<(), AgentError> {
    let observed = kernel.observe()?;
    let owner = observed.owner(names);
    foreign(owner, names)?;
    let mut ops = plan::diff::cleanup(&observed, names);
    if owner == Owner::Nobody {
        // The marker goes with the nat table's other chains: some without it are a kubelet's (KUBE-MARK-MASQ).
        ops.retain(|op| op.space().is_some_and(|space| space.table == Table::Filter));
    }
    if !ops.is_empty() {
        kernel.execute(&ops)?;
    }
    Ok(())
}

/// Refuses to share chains with a kube-proxy. Chains without our marker are ours only if we have kept a view before.
fn check_owner(kernel: &dyn Kernel, names: &Names, had_view: bool) -> Result<(), AgentError> {
    match kernel.observe()?.owner(names) {
        Owner::Unmarked if had_view => Ok(()),
        owner => foreign(owner, names),
    }
}

fn foreign(owner: Owner, names: &Names) -> Result<(), AgentError> {
    let owner = match owner {
        Owner::Nobody | Owner::Us => return Ok(()),
        Owner::KubeProxy => "a kube-proxy",
        Owner::Unmarked => "somebody else, probably a kube-proxy,",
    };
    Err(AgentError::Foreign { prefix: names.prefix().to_owned(), owner })
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

fn resolve(mode: Mode) -> Result<Mode, AgentError> {
    let root = nix::unistd::geteuid().is_root();
    match mode {
        Mode::Auto if root => Ok(Mode::Iptables),
        Mode::Auto | Mode::DryRun => Ok(Mode::DryRun),
        Mode::Iptables if root => Ok(Mode::Iptables),
        Mode::Iptables => Err(AgentError::NotRoot("mode iptables")),
        Mode::Ipvs | Mode::Nftables => Err(AgentError::Unavailable(mode)),
    }
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(AgentError::Config(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::model::Model;
    use crate::plan::observed::Line;
    use crate::plan::{Family, Space, compile, diff};
    use fairlead_proto::v1::{NodeDelta, NodeItem};

    fn names() -> Names {
        Names::new("KUBE").unwrap()
    }

    #[test]
    fn chains_without_our_marker_are_refused_in_one_sentence() {
        let model = Model::default();
        assert!(check_owner(&model, &names(), false).is_ok());
        model.tamper(|tables| {
            let nat = tables.observed.chains.entry(Space::new(Family::V4, Table::Nat)).or_default();
            nat.insert("KUBE-SERVICES".into(), vec![Line { rule: None, text: "-j ACCEPT".into() }]);
        });
        let said = check_owner(&model, &names(), false).unwrap_err().to_string();
        assert!(said.contains("--chain-prefix") && said.lines().count() == 1, "{said}");
        assert!(clean(&model, &names()).is_err(), "nor are they cleaned up");
        assert!(check_owner(&model, &names(), true).is_ok(), "a lost marker doesn't stop a node that had a view");
        assert!(check_owner(&model, &Names::new("FLEAD").unwrap(), false).is_ok());
        model.tamper(|tables| tables.observed.canary = true);
        assert!(check_owner(&model, &names(), true).is_err());
    }

    #[test]
    fn cleanup_without_our_marker_leaves_a_kubelets_chains() {
        let model = Model::default();
        let nat = Space::new(Family::V4, Table::Nat);
        let kubelets = |chain: &str, text: &str| (chain.to_owned(), vec![Line { rule: None, text: text.into() }]);
        model.tamper(|tables| {
            tables.observed.chains.entry(nat).or_default().extend([
                kubelets("KUBE-MARK-MASQ", "-j MARK --set-xmark 0x4000/0x4000"),
                kubelets("KUBE-POSTROUTING", "-j MASQUERADE"),
                kubelets("POSTROUTING", "-j KUBE-POSTROUTING"),
            ]);
        });
        let before = model.tables();
        // What a cleanup that was killed between the tables leaves.
        let facts = NodeFacts {
            node_name: "n".into(),
            node_ips: Vec::new(),
            names: names(),
            local_cidrs: Vec::new(),
            masquerade_all: false,
            tcp_be_liberal: false,
        };
        let mut ops = diff::diff(&before.observed, &compile(&NodeView::default(), &facts), diff::Style::Edit);
        ops.retain(|op| op.space().is_some_and(|space| space.table == Table::Filter));
        model.execute(&ops).unwrap();
        assert_ne!(model.tables(), before);
        clean(&model, &names()).unwrap();
        let left = model.tables().observed;
        assert_eq!(left.chains[&nat], before.observed.chains[&nat]);
        assert!(left.chains[&Space::new(Family::V4, Table::Filter)].keys().all(|chain| !names().owns(chain)));
    }

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
            (Config { mode: Mode::Ipvs, ..good() }, "mode ipvs is not available"),
            (Config { mode: Mode::Nftables, ..good() }, "mode nftables is not available"),
        ] {
            let said = run(config, CancellationToken::new()).await.unwrap_err().to_string();
            assert!(said.contains(part) && said.lines().count() == 1, "{said}");
        }
    }
}
