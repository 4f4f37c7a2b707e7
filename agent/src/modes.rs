//! Which data plane this host gets, whose chains those are that are there already, and what another mode left behind.

use crate::AgentError;
use crate::config::Mode;
use crate::kernel::linux::{Connection, Iptables, Ipvs, Nftables};
use crate::kernel::{Kernel, KernelError};
use crate::plan::iptables::observed::Owner;
use crate::plan::iptables::{self, Op, Table};
use crate::plan::{IptablesPlane, Names, nftables};
use crate::reconcile::Progress;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// From another mode's takeover to the first look at connections that IPVS carries: handshakes have ended by then.
const HANDSHAKES: Duration = Duration::from_secs(3);
/// Between two such looks.
const DRAIN_EVERY: Duration = Duration::from_secs(1);

/// The mode that a host, or a network namespace, gets. `auto` is nftables where kernel and `nft` take our rules, else IPVS
/// where the kernel has it, else iptables; the log says why.
///
/// # Errors
/// [`AgentError`] if the mode can't be had.
pub async fn resolve(mode: Mode, namespace: Option<PathBuf>) -> Result<Mode, AgentError> {
    let root = nix::unistd::geteuid().is_root();
    match mode {
        Mode::DryRun => Ok(Mode::DryRun),
        Mode::Auto if !root => {
            tracing::info!("mode auto: dry-run, since packet filters need root");
            Ok(Mode::DryRun)
        }
        Mode::Ipvs if !root => Err(AgentError::NotRoot("mode ipvs")),
        Mode::Iptables if !root => Err(AgentError::NotRoot("mode iptables")),
        Mode::Nftables if !root => Err(AgentError::NotRoot("mode nftables")),
        Mode::Iptables => Ok(Mode::Iptables),
        Mode::Ipvs => {
            blocking(move || Ok(Ipvs::new(namespace).check()?)).await?;
            Ok(Mode::Ipvs)
        }
        Mode::Nftables => {
            blocking(move || Ok(Nftables::new(namespace).check()?)).await?;
            Ok(Mode::Nftables)
        }
        Mode::Auto => Ok(automatic(namespace).await),
    }
}

async fn automatic(namespace: Option<PathBuf>) -> Mode {
    let inside = namespace.clone();
    let no_nftables = match blocking(move || Ok(Nftables::new(inside).check()?)).await {
        Ok(()) => {
            tracing::info!("mode auto: nftables, which this kernel has");
            return Mode::Nftables;
        }
        Err(error) => error,
    };
    match blocking(move || Ok(Ipvs::new(namespace).check()?)).await {
        Ok(()) => {
            tracing::info!(nftables = %no_nftables, "mode auto: ipvs, since nftables can't be used");
            Mode::Ipvs
        }
        Err(no_ipvs) => {
            tracing::info!(nftables = %no_nftables, ipvs = %no_ipvs, "mode auto: iptables, since no other can be used");
            Mode::Iptables
        }
    }
}

/// The addresses at which a node takes NodePorts in mode ipvs, which has to name each: those that it has now, the one that
/// it goes by first. One that isn't its own (it stands behind a translator) comes last: it can be no packet's source.
pub(crate) fn node_addresses(node_ip: IpAddr, own: Vec<IpAddr>) -> Vec<IpAddr> {
    let is_own = own.contains(&node_ip);
    let others = own.into_iter().filter(|ip| *ip != node_ip);
    if is_own { std::iter::once(node_ip).chain(others).collect() } else { others.chain([node_ip]).collect() }
}

/// Refuses to share chains with a kube-proxy. Chains without our marker are ours only if we have kept a view before.
pub(crate) fn check_owner(kernel: &dyn Kernel<IptablesPlane>, names: &Names, had_view: bool) -> Result<(), AgentError> {
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

/// Removes what is ours of every mode; blocks. A mode whose program isn't installed has left nothing.
pub(crate) fn clean_all(namespace: Option<&Path>, names: &Names) -> Result<(), AgentError> {
    let ipvs = Ipvs::new(namespace.map(Path::to_owned));
    if ipvs.is_here() {
        ipvs.clean()?;
    }
    let tables = installed(clean_nftables(namespace))?;
    let chains = clean(&Iptables::new(names.clone()).in_namespace(namespace.map(Path::to_owned)), names);
    match chains {
        Err(AgentError::Kernel(KernelError::Missing { .. })) if tables => Ok(()),
        done => done,
    }
}

fn installed(done: Result<(), AgentError>) -> Result<bool, AgentError> {
    match done {
        Ok(()) => Ok(true),
        Err(AgentError::Kernel(KernelError::Missing { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes every chain and rule under a prefix from an iptables kernel, and nothing else; blocks.
///
/// # Errors
/// [`AgentError::Foreign`] if those chains aren't ours.
pub fn clean(kernel: &dyn Kernel<IptablesPlane>, names: &Names) -> Result<(), AgentError> {
    let (ops, owner) = sweeping(kernel, names)?;
    foreign(owner, names)?;
    if !ops.is_empty() {
        kernel.execute(&ops)?;
    }
    Ok(())
}

fn sweeping(kernel: &dyn Kernel<IptablesPlane>, names: &Names) -> Result<(Vec<Op>, Owner), AgentError> {
    let observed = kernel.observe()?;
    let owner = observed.owner(names);
    let mut ops = iptables::diff::cleanup(&observed, names);
    if owner == Owner::Nobody {
        // The marker goes with the nat table's other chains: some without it are a kubelet's (KUBE-MARK-MASQ).
        ops.retain(|op| op.space().is_some_and(|space| space.table == Table::Filter));
    }
    Ok((ops, owner))
}

fn clean_nftables(namespace: Option<&Path>) -> Result<(), AgentError> {
    let kernel = Nftables::new(namespace.map(Path::to_owned));
    let ops = nftables::diff::cleanup(kernel.families()?);
    if !ops.is_empty() {
        kernel.execute(&ops)?;
    }
    Ok(())
}

/// Once this mode serves, removes what another mode of ours left; established connections stay where they are.
pub(crate) async fn sweep_others(
    mode: &'static str,
    (namespace, names): (Option<PathBuf>, Names),
    mut progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
) {
    let serves = progress.wait_for(|progress| progress.applied > 0 && progress.failed.is_none());
    let served = tokio::select! {
        served = serves => served.is_ok(),
        () = cancel.cancelled() => false,
    };
    if served {
        let inside = namespace.clone();
        let swept = blocking(move || {
            if mode != "nftables" {
                installed(clean_nftables(inside.as_deref()))?;
            }
            if mode != "iptables" {
                installed(clean_chains(inside, &names))?;
            }
            Ok(())
        });
        let nothing = mode == "dry-run";
        if let Err(error) = if nothing { Ok(()) } else { swept.await } {
            tracing::error!(%error, "what another mode left can't be removed");
        }
        if !nothing && mode != "ipvs" {
            tokio::select! {
                () = drain_ipvs(namespace) => {}
                () = cancel.cancelled() => {}
            }
        }
    }
    cancel.cancelled().await;
}

/// Connections through IPVS go on there until they end: neither rules nor connection tracking could take them over.
async fn drain_ipvs(namespace: Option<PathBuf>) {
    let inside = namespace.clone();
    if !matches!(blocking(move || Ok(Ipvs::new(inside).is_here())).await, Ok(true)) {
        return;
    }
    tracing::info!("removing what mode ipvs left, as its connections end");
    let mut wait = HANDSHAKES;
    // None is added: new ones go by the mode that serves.
    let mut live: Option<BTreeSet<Connection>> = None;
    loop {
        tokio::time::sleep(wait).await;
        let (inside, before) = (namespace.clone(), live.clone());
        let drained = blocking(move || {
            let kernel = Ipvs::new(inside);
            let mut now = kernel.connections()?;
            now.retain(|one| before.as_ref().is_none_or(|before| before.contains(one)));
            Ok((kernel.drain(&now)?, now))
        });
        match drained.await {
            Ok((true, _)) => return,
            Ok((false, now)) => (live, wait) = (Some(now), DRAIN_EVERY),
            Err(error) => {
                tracing::error!(%error, "what mode ipvs left can't be removed");
                wait = DRAIN_EVERY * 30;
            }
        }
    }
}

/// Our chains of either kind of iptables; flows are not forgotten: the new mode knows their endpoints.
fn clean_chains(namespace: Option<PathBuf>, names: &Names) -> Result<(), AgentError> {
    let kernel = Iptables::new(names.clone()).in_namespace(namespace);
    let (mut ops, owner) = sweeping(&kernel, names)?;
    ops.retain(|op| op.space().is_some());
    if owner == Owner::Us && !ops.is_empty() {
        tracing::info!("removing the chains that mode iptables left");
        kernel.execute(&ops)?;
    }
    Ok(())
}

pub(crate) async fn blocking<T: Send + 'static>(
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
    use crate::plan::iptables::Space;
    use crate::plan::iptables::observed::Line;
    use crate::plan::{Family, NodeFacts, Style, compile};
    use fairlead_proto::view::NodeView;

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
            service_cidrs: Vec::new(),
            masquerade_all: false,
            tcp_be_liberal: false,
        };
        let mut ops = iptables::diff::diff(&before.observed, &compile(&NodeView::default(), &facts), Style::Edit);
        ops.retain(|op| op.space().is_some_and(|space| space.table == Table::Filter));
        model.execute(&ops).unwrap();
        assert_ne!(model.tables(), before);
        clean(&model, &names()).unwrap();
        let left = model.tables().observed;
        assert_eq!(left.chains[&nat], before.observed.chains[&nat]);
        assert!(left.chains[&Space::new(Family::V4, Table::Filter)].keys().all(|chain| !names().owns(chain)));
    }
}
