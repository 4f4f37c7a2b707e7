//! Processes: killed, ended, stopped; servers restarted one after the other; leaders and roles changed by hand; agents.

use super::{Cure, Installed, Kind, follower, leader, network};
use crate::cluster::{Cluster, GRPC};
use crate::hosts::Host;
use crate::random::Random;
use anyhow::{bail, ensure};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// Time for a command of an operator.
const COMMAND: Duration = Duration::from_secs(15);
/// Between two restarts of a rolling one.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Installs one of these faults.
pub(super) async fn install(cluster: &Arc<Cluster>, kind: Kind, random: &mut Random) -> anyhow::Result<Installed> {
    let servers: Vec<Host> = cluster.server_hosts().collect();
    let majority = servers.len() / 2 + 1;
    match kind {
        Kind::KillLeader => kill(cluster, vec![leader(cluster).await?]),
        Kind::KillFollower => kill(cluster, vec![follower(cluster, random).await?]),
        Kind::KillMajority => kill(cluster, some(&servers, majority, random)),
        Kind::KillAll => kill(cluster, servers),
        Kind::TerminateLeader => terminate(cluster, leader(cluster).await?).await,
        Kind::TerminateFollower => terminate(cluster, follower(cluster, random).await?).await,
        Kind::PauseLeader => pause(cluster, vec![leader(cluster).await?]),
        Kind::PauseFollower => pause(cluster, vec![follower(cluster, random).await?]),
        Kind::PauseMajority => pause(cluster, some(&servers, majority, random)),
        Kind::RollingRestart => rolling_restart(cluster).await,
        Kind::Backup => {
            let to = cluster.dir.join(format!("backup-{}", random.draw()));
            command(cluster, &["snapshot", "save", &to.to_string_lossy()]).await?;
            Ok(Installed { hosts: Vec::new(), cure: Cure::Nothing })
        }
        Kind::TransferLeader => {
            let from = leader(cluster).await?;
            command(cluster, &["operator", "transfer-leader"]).await?;
            Ok(Installed { hosts: vec![from], cure: Cure::Nothing })
        }
        Kind::DrainLeader => {
            let host = leader(cluster).await?;
            command(cluster, &["member", "drain", &host.name()]).await?;
            Ok(Installed { hosts: vec![host], cure: Cure::Undrain(host) })
        }
        Kind::KillAgent => kill(cluster, vec![agent(cluster, random)?]),
        Kind::PauseAgent => pause(cluster, vec![agent(cluster, random)?]),
        Kind::RestartAgents => {
            let agents: Vec<Host> = (1..=cluster.agents).map(Host::Agent).collect();
            ensure!(!agents.is_empty(), "no agents");
            kill(cluster, agents)
        }
        Kind::AgentsCutFromServers => network::agents_from_servers(cluster),
        Kind::TamperRules => super::rules::tamper(cluster, (agent(cluster, random)?, random)),
        _ => bail!("no fault of processes"),
    }
}

fn agent(cluster: &Cluster, random: &mut Random) -> anyhow::Result<Host> {
    ensure!(cluster.agents > 0, "no agents");
    Ok(Host::Agent(u8::try_from(1 + random.below(cluster.agents.into()))?))
}

fn some(of: &[Host], count: usize, random: &mut Random) -> Vec<Host> {
    let mut left = of.to_vec();
    while left.len() > count {
        let place = usize::try_from(random.below(left.len() as u64)).unwrap_or(0);
        left.swap_remove(place);
    }
    left
}

fn kill(cluster: &Cluster, hosts: Vec<Host>) -> anyhow::Result<Installed> {
    let killed: Vec<Host> = hosts.into_iter().filter(|host| cluster.kill(*host)).collect();
    ensure!(!killed.is_empty(), "it did not run");
    Ok(Installed { hosts: killed.clone(), cure: Cure::Start(killed) })
}

async fn terminate(cluster: &Arc<Cluster>, host: Host) -> anyhow::Result<Installed> {
    ensure!(cluster.runs(host), "it did not run");
    let ending = cluster.clone();
    let ended = tokio::task::spawn_blocking(move || ending.terminate(host)).await?;
    if !ended {
        say(&format!("{} did not end within ten seconds of SIGTERM", host.name()));
    }
    Ok(Installed { hosts: vec![host], cure: Cure::Start(vec![host]) })
}

fn pause(cluster: &Cluster, hosts: Vec<Host>) -> anyhow::Result<Installed> {
    let paused: Vec<Host> = hosts.into_iter().filter(|host| cluster.pause(*host)).collect();
    ensure!(!paused.is_empty(), "it did not run");
    Ok(Installed { hosts: paused.clone(), cure: Cure::Resume(paused) })
}

async fn rolling_restart(cluster: &Arc<Cluster>) -> anyhow::Result<Installed> {
    let hosts: Vec<Host> = cluster.server_hosts().collect();
    for host in &hosts {
        terminate(cluster, *host).await?;
        cluster.start(*host)?;
        tokio::time::sleep(SETTLE).await;
    }
    Ok(Installed { hosts, cure: Cure::Nothing })
}

/// Says something on the terminal.
pub(crate) fn say(line: &str) {
    eprintln!("  {line}");
}

/// Runs the command line of an operator against all servers.
///
/// # Errors
/// What it said.
pub async fn command(cluster: &Arc<Cluster>, words: &[&str]) -> anyhow::Result<()> {
    let servers: Vec<String> = cluster.server_hosts().map(|host| format!("{}:{GRPC}", host.address())).collect();
    let mut command = tokio::process::Command::from(cluster.command_line());
    command.args(["--insecure", "--server", &servers.join(",")]).args(words);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND, command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fairlead {}: {}", words.join(" "), said.trim());
    Ok(())
}
