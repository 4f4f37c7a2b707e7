//! Which data plane this host gets, whose chains those are that are there already, and what another mode left behind.

use crate::AgentError;
use crate::config::Mode;
use crate::kernel::linux::{Iptables, Nftables};
use crate::kernel::{Kernel, KernelError};
use crate::plan::iptables::observed::Owner;
use crate::plan::iptables::{self, Op, Table};
use crate::plan::{IptablesPlane, Names, nftables};
use crate::reconcile::Progress;
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The mode that a host, or a network namespace, gets. `auto` is nftables where kernel and `nft` take our rules, else
/// iptables; the log says why.
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
        Mode::Ipvs => Err(AgentError::Unavailable(mode)),
        Mode::Iptables if !root => Err(AgentError::NotRoot("mode iptables")),
        Mode::Nftables if !root => Err(AgentError::NotRoot("mode nftables")),
        Mode::Iptables => Ok(Mode::Iptables),
        Mode::Nftables => {
            blocking(move || Ok(Nftables::new(namespace).check()?)).await?;
            Ok(Mode::Nftables)
        }
        Mode::Auto => match blocking(move || Ok(Nftables::new(namespace).check()?)).await {
            Ok(()) => {
                tracing::info!("mode auto: nftables, which this kernel has");
                Ok(Mode::Nftables)
            }
            Err(error) => {
                tracing::info!(%error, "mode auto: iptables, since nftables can't be used");
                Ok(Mode::Iptables)
            }
        },
    }
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
        let swept = blocking(move || match mode {
            "iptables" => clean_nftables(namespace.as_deref()),
            "nftables" => clean_chains(namespace, &names),
            _ => Ok(()),
        });
        match swept.await {
            Ok(()) | Err(AgentError::Kernel(KernelError::Missing { .. })) => {}
            Err(error) => tracing::error!(%error, "what another mode left can't be removed"),
        }
    }
    cancel.cancelled().await;
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
