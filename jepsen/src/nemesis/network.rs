//! The network: hosts that don't hear each other, one way or both, packets lost, connections reset. Each fault is a table of
//! its own in the hosts' packet filters, so that overlapping ones end independently.

use super::{Installed, Kind, follower, leader};
use crate::cluster::Cluster;
use crate::hosts::Host;
use crate::nemesis::Cure;
use crate::random::Random;
use anyhow::{Context as _, bail, ensure};
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

static TABLES: AtomicU32 = AtomicU32::new(0);
const FLAP: Duration = Duration::from_millis(200);

/// Rules that were installed.
pub struct Cut {
    table: String,
    hosts: Vec<Host>,
    /// Ends the flapping.
    over: Arc<AtomicBool>,
}

/// What a host no longer takes.
struct Deaf {
    host: Host,
    /// A statement of nft for packets that come in.
    rules: Vec<String>,
}

impl Cut {
    /// Takes the rules away.
    ///
    /// # Errors
    /// A table that can't be removed.
    pub fn heal(self, cluster: &Cluster) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Release);
        self.hosts.iter().try_for_each(|host| remove(cluster, *host, &self.table))
    }
}

fn nft(cluster: &Cluster, host: Host, script: &str) -> anyhow::Result<()> {
    let mut command = cluster.hosts.on(host, "nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft on {}: {}", host.name(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn add(cluster: &Cluster, deaf: &Deaf, table: &str) -> anyhow::Result<()> {
    let rules = deaf.rules.join("\n");
    let chain = format!("chain in {{\ntype filter hook input priority -300; policy accept;\n{rules}\n}}");
    nft(cluster, deaf.host, &format!("table ip {table} {{\n{chain}\n}}\n"))
}

fn remove(cluster: &Cluster, host: Host, table: &str) -> anyhow::Result<()> {
    nft(cluster, host, &format!("table ip {table}\ndelete table ip {table}\n"))
}

fn cut(cluster: &Cluster, deaf: &[Deaf]) -> anyhow::Result<Installed> {
    let table = format!("jepsen{}", TABLES.fetch_add(1, Ordering::Relaxed));
    let cut = Cut { table, hosts: deaf.iter().map(|deaf| deaf.host).collect(), over: Arc::default() };
    let done = deaf.iter().try_for_each(|deaf| add(cluster, deaf, &cut.table));
    if let Err(error) = done {
        let _ = cut.heal(cluster);
        return Err(error);
    }
    Ok(Installed { hosts: cut.hosts.clone(), cure: Cure::Network(cut) })
}

fn from(hosts: &[Host], verdict: &str) -> Vec<String> {
    hosts.iter().map(|host| format!("ip saddr {} {verdict}", host.address())).collect()
}

/// Two groups of servers that don't hear each other.
fn apart(one: &[Host], other: &[Host]) -> Vec<Deaf> {
    let deaf = |host: &Host, to: &[Host]| Deaf { host: *host, rules: from(to, "drop") };
    one.iter().map(|host| deaf(host, other)).chain(other.iter().map(|host| deaf(host, one))).collect()
}

/// Installs one of these faults.
pub(super) async fn install(cluster: &Arc<Cluster>, kind: Kind, random: &mut Random) -> anyhow::Result<Installed> {
    let servers: Vec<Host> = cluster.server_hosts().collect();
    let others = |of: Host| servers.iter().copied().filter(|host| *host != of).collect::<Vec<_>>();
    let hears_nothing = |host: Host| vec![Deaf { host, rules: from(&others(host), "drop") }];
    let is_not_heard = |of: Host| {
        let rules = from(&[of], "drop");
        others(of).into_iter().map(|host| Deaf { host, rules: rules.clone() }).collect::<Vec<_>>()
    };
    let deaf = match kind {
        Kind::IsolateLeader => {
            let leader = leader(cluster).await?;
            apart(&[leader], &others(leader))
        }
        Kind::IsolateFollower => {
            let follower = follower(cluster, random).await?;
            apart(&[follower], &others(follower))
        }
        Kind::IsolateAll => servers.iter().flat_map(|host| hears_nothing(*host)).collect(),
        // Two don't hear each other; whoever is left hears both.
        Kind::Bridge => {
            let leader = leader(cluster).await?;
            apart(&[leader], &[follower(cluster, random).await?])
        }
        Kind::LeaderHearsNothing => hears_nothing(leader(cluster).await?),
        Kind::FollowerHearsNothing => hears_nothing(follower(cluster, random).await?),
        Kind::LeaderIsNotHeard => is_not_heard(leader(cluster).await?),
        Kind::FollowerIsNotHeard => is_not_heard(follower(cluster, random).await?),
        Kind::LossAtLeader => vec![lossy(leader(cluster).await?, 10 + random.below(20))],
        Kind::LossEverywhere => servers.iter().map(|host| lossy(*host, 5 + random.below(10))).collect(),
        Kind::Resets => {
            let leader = leader(cluster).await?;
            let rules = from(&others(leader), "tcp dport 7401 reject with tcp reset");
            vec![Deaf { host: leader, rules }]
        }
        Kind::ClientsCutFromLeader => {
            vec![Deaf { host: leader(cluster).await?, rules: from(&[Host::Client], "drop") }]
        }
        Kind::Flapping => return flapping(cluster, leader(cluster).await?, &servers),
        _ => bail!("no fault of the network"),
    };
    cut(cluster, &deaf)
}

fn lossy(host: Host, percent: u64) -> Deaf {
    Deaf { host, rules: vec![format!("ip saddr 10.77.0.0/24 numgen random mod 100 < {percent} drop")] }
}

/// The link of a host comes and goes.
fn flapping(cluster: &Arc<Cluster>, host: Host, servers: &[Host]) -> anyhow::Result<Installed> {
    let others: Vec<Host> = servers.iter().copied().filter(|other| *other != host).collect();
    let deaf = Deaf { host, rules: from(&others, "drop") };
    let installed = cut(cluster, std::slice::from_ref(&deaf))?;
    let Cure::Network(cut) = &installed.cure else { bail!("no rules") };
    let (cluster, table, over) = (cluster.clone(), cut.table.clone(), cut.over.clone());
    std::thread::spawn(move || {
        while !over.load(Ordering::Acquire) {
            std::thread::sleep(FLAP);
            let _ = remove(&cluster, deaf.host, &table);
            std::thread::sleep(FLAP);
            if !over.load(Ordering::Acquire) {
                let _ = add(&cluster, &deaf, &table);
            }
        }
        let _ = remove(&cluster, deaf.host, &table);
    });
    Ok(installed)
}

/// No agent hears a server.
pub(super) fn agents_from_servers(cluster: &Cluster) -> anyhow::Result<Installed> {
    let servers: Vec<Host> = cluster.server_hosts().collect();
    ensure!(cluster.agents > 0, "no agents");
    let deaf: Vec<Deaf> =
        (1..=cluster.agents).map(|agent| Deaf { host: Host::Agent(agent), rules: from(&servers, "drop") }).collect();
    cut(cluster, &deaf)
}
