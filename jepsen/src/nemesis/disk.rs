//! Disks and clocks of servers: no room, damaged files, files gone, a clock that jumps or runs at another speed.

use super::{Cure, Installed, Kind, follower, leader};
use crate::cluster::Cluster;
use crate::hosts::Host;
use crate::random::Random;
use anyhow::{Context as _, bail, ensure};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BALLAST: &str = "ballast";
/// Debian's libfaketime.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Time that a damaged member has to notice.
const NOTICE: Duration = Duration::from_secs(2);

/// Installs one of these faults.
pub(super) async fn install(cluster: &Arc<Cluster>, kind: Kind, random: &mut Random) -> anyhow::Result<Installed> {
    match kind {
        Kind::DiskFullAtLeader => fill(cluster, leader(cluster).await?),
        Kind::DiskFullAtFollower => fill(cluster, follower(cluster, random).await?),
        Kind::ClockForward => clock(cluster, random, "+3600"),
        Kind::ClockBack => clock(cluster, random, "-3600"),
        Kind::ClockFast => clock(cluster, random, "+0 x3"),
        Kind::ClockSlow => clock(cluster, random, "+0 x0.3"),
        Kind::BitFlip | Kind::Truncation | Kind::Wipe => damage(cluster, kind, random).await,
        _ => bail!("no fault of disks or clocks"),
    }
}

fn fill(cluster: &Cluster, host: Host) -> anyhow::Result<Installed> {
    let path = cluster.data(host).join(BALLAST);
    let mut file = File::create(&path)?;
    let piece = vec![0_u8; 1 << 20];
    while file.write_all(&piece).is_ok() {}
    Ok(Installed { hosts: vec![host], cure: Cure::Room(host) })
}

/// Removes what fills a disk.
///
/// # Errors
/// The system's.
pub fn make_room(cluster: &Cluster, host: Host) -> anyhow::Result<()> {
    Ok(fs::remove_file(cluster.data(host).join(BALLAST))?)
}

/// Variables with which a server sees a clock that can be set.
///
/// # Errors
/// libfaketime is not installed.
pub fn clock_environment(cluster: &Cluster, host: Host) -> anyhow::Result<Vec<(String, String)>> {
    ensure!(Path::new(FAKETIME).exists(), "libfaketime is not installed (Debian's package faketime)");
    set_clock(cluster, host, "+0")?;
    let file = clock_file(cluster, host).to_string_lossy().into_owned();
    let variables = [("LD_PRELOAD", FAKETIME), ("FAKETIME_TIMESTAMP_FILE", &file), ("FAKETIME_CACHE_DURATION", "1")];
    let plain = [("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("FAKETIME_DONT_RESET", "1")];
    Ok(variables.into_iter().chain(plain).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn clock_file(cluster: &Cluster, host: Host) -> PathBuf {
    cluster.dir.join(host.name()).join("clock")
}

fn clock(cluster: &Cluster, random: &mut Random, to: &str) -> anyhow::Result<Installed> {
    let servers: Vec<Host> = cluster.server_hosts().collect();
    let host = *random.pick(&servers).context("no server")?;
    ensure!(clock_file(cluster, host).exists(), "its clock can't be set");
    set_clock(cluster, host, to)?;
    Ok(Installed { hosts: vec![host], cure: Cure::Clock(host) })
}

/// Sets a server's clock, as libfaketime writes it.
///
/// # Errors
/// The system's.
pub fn set_clock(cluster: &Cluster, host: Host, to: &str) -> anyhow::Result<()> {
    Ok(fs::write(clock_file(cluster, host), format!("{to}\n"))?)
}

/// Stops a follower, harms its files, and starts it again: it must not serve what it can't trust.
async fn damage(cluster: &Arc<Cluster>, kind: Kind, random: &mut Random) -> anyhow::Result<Installed> {
    let host = follower(cluster, random).await?;
    all_whole(cluster).await?;
    ensure!(!cluster.has_joined(host), "one that joined is not let in without its data");
    ensure!(cluster.kill(host), "it did not run");
    let done = match kind {
        Kind::Wipe => {
            wipe(cluster, host)?;
            return Ok(Installed { hosts: vec![host], cure: Cure::Nothing });
        }
        Kind::BitFlip => flip(&largest(&cluster.data(host))?, random),
        _ => truncate(&largest(&cluster.data(host))?, random),
    };
    settle(cluster, host)?;
    cluster.start(host)?;
    done?;
    tokio::time::sleep(NOTICE).await;
    Ok(Installed { hosts: vec![host], cure: Cure::Wipe(host) })
}

/// Nobody else is without its data: more than a minority that lost theirs is beyond what can be promised.
pub(super) async fn all_whole(cluster: &Cluster) -> anyhow::Result<()> {
    let leader = leader(cluster).await?;
    let status = cluster.status(leader, NOTICE).await.context("the leader does not answer")?;
    let lacking = status.members.iter().find(|member| !member.error.is_empty() || member.revision == 0);
    ensure!(lacking.is_none(), "{} is not whole", lacking.map(|member| member.name.as_str()).unwrap_or_default());
    ensure!(status.members.len() == usize::from(cluster.servers), "a member is missing");
    ensure!(status.members.iter().all(|member| member.voter), "a member does not vote yet");
    Ok(())
}

/// The largest file of a member's database.
fn largest(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut found: Option<(u64, PathBuf)> = None;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let (entry, path) = entry.map(|entry| (entry.metadata(), entry.path()))?;
            let metadata = entry?;
            if metadata.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|ending| ending == "log" || ending == "sst") {
                found = found.max(Some((metadata.len(), path)));
            }
        }
    }
    found.map(|(_, path)| path).context("it has no files yet")
}

fn flip(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    ensure!(length > 0, "an empty file");
    let place = SeekFrom::Start(random.below(length));
    let mut byte = [0];
    file.seek(place)?;
    file.read_exact(&mut byte)?;
    file.seek(place)?;
    file.write_all(&byte.map(|byte| byte ^ (1 << random.below(8))))?;
    Ok(())
}

fn truncate(path: &Path, random: &mut Random) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(length / 2 + random.below(length / 2))?;
    Ok(())
}

/// Takes a member's files away and starts it: it gets everything back before it votes.
///
/// # Errors
/// The system's.
pub fn wipe(cluster: &Cluster, host: Host) -> anyhow::Result<()> {
    clear(cluster, host)?;
    cluster.start(host)
}

/// Ends a member and takes its files away.
///
/// # Errors
/// The system's.
pub fn clear(cluster: &Cluster, host: Host) -> anyhow::Result<()> {
    cluster.kill(host);
    let place = cluster.data(host);
    for entry in fs::read_dir(&place)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    settle(cluster, host)
}

/// What the harness itself did to a disk is not to come undone when power is cut.
fn settle(cluster: &Cluster, host: Host) -> anyhow::Result<()> {
    if let Ok(disk) = cluster.disk(host) {
        disk.command("sync")?;
    }
    Ok(())
}
