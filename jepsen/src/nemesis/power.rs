//! Power and disks: a cut takes what was not synced, whole or to the middle of a write; syncs are slow, or fail.

use super::{Cure, Installed, Kind, follower, leader};
use crate::cluster::Cluster;
use crate::hosts::Host;
use crate::random::Random;
use anyhow::{bail, ensure};
use std::sync::Arc;
use std::time::Duration;

/// Time in which one whose disk failed stops by itself: it may be about to, when the disk works again.
const STOPPING: Duration = Duration::from_millis(500);

/// Installs one of these faults.
pub(super) async fn install(cluster: &Arc<Cluster>, kind: Kind, random: &mut Random) -> anyhow::Result<Installed> {
    let servers: Vec<Host> = cluster.server_hosts().collect();
    match kind {
        Kind::PowerCutAll => cut(cluster, servers, "lose"),
        Kind::PowerCutMajority => {
            let mut some = servers;
            let left = some.len() / 2;
            for _ in 0..left {
                some.swap_remove(random.index(some.len()));
            }
            cut(cluster, some, "lose")
        }
        Kind::PowerCutLeader => cut(cluster, vec![leader(cluster).await?], "lose"),
        Kind::TornWrites => cut(cluster, servers, &format!("tear {}", random.below(u64::from(u32::MAX)))),
        Kind::SlowSyncs => tell(cluster, random, "sync-delay 150").await,
        Kind::FailedSync => tell(cluster, random, "fail-sync on").await,
        _ => bail!("no fault of power"),
    }
}

fn cut(cluster: &Cluster, hosts: Vec<Host>, words: &str) -> anyhow::Result<Installed> {
    let cut: Vec<Host> = hosts.into_iter().filter(|host| cluster.kill(*host)).collect();
    ensure!(!cut.is_empty(), "it did not run");
    for host in &cut {
        cluster.disk(*host)?.command(words)?;
    }
    Ok(Installed { hosts: cut.clone(), cure: Cure::Start(cut) })
}

/// One server's disk, the leader's as likely as another's.
async fn tell(cluster: &Arc<Cluster>, random: &mut Random, words: &str) -> anyhow::Result<Installed> {
    let host = if random.chance(50) { leader(cluster).await? } else { follower(cluster, random).await? };
    cluster.disk(host)?.command(words)?;
    Ok(Installed { hosts: vec![host], cure: Cure::Disks(vec![host]) })
}

/// Makes disks work, and starts servers that stopped.
pub(super) async fn heal(cluster: &Cluster, hosts: Vec<Host>) -> anyhow::Result<()> {
    for host in &hosts {
        cluster.disk(*host)?.command("heal")?;
    }
    tokio::time::sleep(STOPPING).await;
    hosts.into_iter().try_for_each(|host| cluster.start(host))
}
