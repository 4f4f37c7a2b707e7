//! What goes wrong: kinds of faults, a seeded schedule of them that can be saved and played again, and their installation.
//!
//! INVARIANT: a fault that was installed is healed, and a fault whose installation failed is counted as skipped, never as
//! survived.

pub mod clients;
pub mod disk;
mod members;
pub mod network;
mod power;
pub mod process;
mod rules;

use crate::cluster::Cluster;
use crate::hosts::Host;
use crate::random::Random;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Groups of faults: a scenario plans some of them, and each must have been there often enough for a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Processes are killed, ended, stopped for a while.
    Process,
    /// Hosts don't reach each other.
    Network,
    /// Clocks jump and drift.
    Clock,
    /// Disks are full.
    Disk,
    /// What was not synced is gone; syncs are slow, or fail.
    Power,
    /// A member's files are damaged or gone.
    Corruption,
    /// Leaders and roles are changed by hand.
    Members,
    /// What an operator does: restarts one after the other, backups.
    Operations,
    /// Clients that behave badly.
    Clients,
    /// Agents are killed, stopped, cut off.
    Agents,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are those of the field; `what` says them in words")]
pub enum Kind {
    KillLeader,
    KillFollower,
    KillMajority,
    KillAll,
    TerminateLeader,
    TerminateFollower,
    PauseLeader,
    PauseFollower,
    PauseMajority,
    IsolateLeader,
    IsolateFollower,
    IsolateAll,
    Bridge,
    LeaderHearsNothing,
    LeaderIsNotHeard,
    FollowerHearsNothing,
    FollowerIsNotHeard,
    LossAtLeader,
    LossEverywhere,
    Flapping,
    Resets,
    ClientsCutFromLeader,
    ClockForward,
    ClockBack,
    ClockFast,
    ClockSlow,
    DiskFullAtLeader,
    DiskFullAtFollower,
    BitFlip,
    Truncation,
    Wipe,
    TransferLeader,
    DrainLeader,
    RollingRestart,
    Backup,
    ConnectionStorm,
    Garbage,
    SlowWatchers,
    KillAgent,
    PauseAgent,
    AgentsCutFromServers,
    RestartAgents,
    ReplaceMember,
    TamperRules,
    PowerCutAll,
    PowerCutMajority,
    PowerCutLeader,
    TornWrites,
    SlowSyncs,
    FailedSync,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 50] = [
        Self::KillLeader,
        Self::KillFollower,
        Self::KillMajority,
        Self::KillAll,
        Self::TerminateLeader,
        Self::TerminateFollower,
        Self::PauseLeader,
        Self::PauseFollower,
        Self::PauseMajority,
        Self::IsolateLeader,
        Self::IsolateFollower,
        Self::IsolateAll,
        Self::Bridge,
        Self::LeaderHearsNothing,
        Self::LeaderIsNotHeard,
        Self::FollowerHearsNothing,
        Self::FollowerIsNotHeard,
        Self::LossAtLeader,
        Self::LossEverywhere,
        Self::Flapping,
        Self::Resets,
        Self::ClientsCutFromLeader,
        Self::ClockForward,
        Self::ClockBack,
        Self::ClockFast,
        Self::ClockSlow,
        Self::DiskFullAtLeader,
        Self::DiskFullAtFollower,
        Self::BitFlip,
        Self::Truncation,
        Self::Wipe,
        Self::TransferLeader,
        Self::DrainLeader,
        Self::RollingRestart,
        Self::Backup,
        Self::ConnectionStorm,
        Self::Garbage,
        Self::SlowWatchers,
        Self::KillAgent,
        Self::PauseAgent,
        Self::AgentsCutFromServers,
        Self::RestartAgents,
        Self::ReplaceMember,
        Self::TamperRules,
        Self::PowerCutAll,
        Self::PowerCutMajority,
        Self::PowerCutLeader,
        Self::TornWrites,
        Self::SlowSyncs,
        Self::FailedSync,
    ];

    /// Its group.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::KillLeader
            | Self::KillFollower
            | Self::KillMajority
            | Self::KillAll
            | Self::TerminateLeader
            | Self::TerminateFollower
            | Self::PauseLeader
            | Self::PauseFollower
            | Self::PauseMajority => Class::Process,
            Self::IsolateLeader
            | Self::IsolateFollower
            | Self::IsolateAll
            | Self::Bridge
            | Self::LeaderHearsNothing
            | Self::LeaderIsNotHeard
            | Self::FollowerHearsNothing
            | Self::FollowerIsNotHeard
            | Self::LossAtLeader
            | Self::LossEverywhere
            | Self::Flapping
            | Self::Resets
            | Self::ClientsCutFromLeader => Class::Network,
            Self::ClockForward | Self::ClockBack | Self::ClockFast | Self::ClockSlow => Class::Clock,
            Self::DiskFullAtLeader | Self::DiskFullAtFollower => Class::Disk,
            Self::PowerCutAll
            | Self::PowerCutMajority
            | Self::PowerCutLeader
            | Self::TornWrites
            | Self::SlowSyncs
            | Self::FailedSync => Class::Power,
            Self::BitFlip | Self::Truncation | Self::Wipe => Class::Corruption,
            Self::TransferLeader | Self::DrainLeader | Self::ReplaceMember => Class::Members,
            Self::RollingRestart | Self::Backup => Class::Operations,
            Self::ConnectionStorm | Self::Garbage | Self::SlowWatchers => Class::Clients,
            Self::KillAgent
            | Self::PauseAgent
            | Self::AgentsCutFromServers
            | Self::RestartAgents
            | Self::TamperRules => Class::Agents,
        }
    }

    /// Its name, as the schedule and the report write it.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
    }
}

/// A fault of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Milliseconds after the one before it in its lane was healed.
    pub after_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
    /// What it is.
    pub kind: Kind,
    /// Decides what else it needs: which follower, which byte.
    pub seed: u64,
}

/// Lanes of faults: each has one at a time, so that as many overlap as there are lanes.
pub type Schedule = Vec<Vec<Planned>>;

/// A schedule for some seconds. Faults that stop or damage members are all in the first lane: two of them at once would
/// leave too few for anything to be done.
#[must_use]
pub fn schedule(kinds: &[Kind], seconds: u64, seed: u64) -> Schedule {
    let mut random = Random::new(seed);
    let gentle = |kind: &Kind| {
        let class =
            matches!(kind.class(), Class::Network | Class::Clock | Class::Clients | Class::Agents | Class::Members);
        class && *kind != Kind::ReplaceMember
    };
    let (second, first): (Vec<Kind>, Vec<Kind>) = kinds.iter().copied().partition(gentle);
    let lanes = [first, second].into_iter().filter(|lane| !lane.is_empty());
    lanes.map(|kinds| lane(&kinds, seconds * 1000, random.fork())).collect()
}

fn lane(kinds: &[Kind], total_ms: u64, mut random: Random) -> Vec<Planned> {
    let (mut planned, mut at) = (Vec::new(), 0);
    let mut left: Vec<Kind> = Vec::new();
    while at < total_ms {
        // Every kind once, in any order, before one comes again.
        if left.is_empty() {
            left = kinds.to_vec();
        }
        let place = usize::try_from(random.below(left.len() as u64)).unwrap_or(0);
        let kind = left.swap_remove(place);
        let (after_ms, for_ms) = (200 + random.below(900), 300 + random.below(2_200));
        at += after_ms + for_ms;
        planned.push(Planned { after_ms, for_ms, kind, seed: random.draw() });
    }
    planned
}

/// What became of a planned fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    /// The kind.
    pub kind: Kind,
    /// Seconds of the harness' clock.
    pub begun: f64,
    /// Seconds of the harness' clock.
    pub ended: f64,
    /// Whom it met.
    pub hosts: Vec<String>,
    /// Why it was not installed.
    pub skipped: Option<String>,
}

/// How an installed fault is healed.
pub enum Cure {
    /// It is over by itself.
    Nothing,
    /// Start what was ended.
    Start(Vec<Host>),
    /// Let go on what was stopped.
    Resume(Vec<Host>),
    /// Take rules of the network away.
    Network(network::Cut),
    /// Make room on a disk, and start its server if it stopped.
    Room(Host),
    /// Set the clock right.
    Clock(Host),
    /// Take a damaged member's files away and start it.
    Wipe(Host),
    /// It may lead again.
    Undrain(Host),
    /// Disks work again; start what stopped because of them.
    Disks(Vec<Host>),
}

/// An installed fault.
pub struct Installed {
    /// Whom it met.
    pub hosts: Vec<Host>,
    /// How it ends.
    pub cure: Cure,
}

/// Installs a fault.
///
/// # Errors
/// Why it can't be.
pub async fn install(cluster: &Arc<Cluster>, planned: &Planned) -> anyhow::Result<Installed> {
    let mut random = Random::new(planned.seed);
    match planned.kind.class() {
        _ if planned.kind == Kind::ReplaceMember => members::replace(cluster, &mut random).await,
        Class::Process | Class::Operations | Class::Members | Class::Agents => {
            process::install(cluster, planned.kind, &mut random).await
        }
        Class::Network => network::install(cluster, planned.kind, &mut random).await,
        Class::Clock | Class::Disk | Class::Corruption => disk::install(cluster, planned.kind, &mut random).await,
        Class::Power => power::install(cluster, planned.kind, &mut random).await,
        Class::Clients => clients::install(cluster, (planned.kind, planned.for_ms)).await,
    }
}

/// Ends a fault.
///
/// # Errors
/// What could not be undone.
pub async fn heal(cluster: &Arc<Cluster>, cure: Cure) -> anyhow::Result<()> {
    match cure {
        Cure::Nothing => Ok(()),
        Cure::Start(hosts) => hosts.into_iter().try_for_each(|host| cluster.start(host)),
        Cure::Resume(hosts) => {
            hosts.into_iter().for_each(|host| cluster.resume(host));
            Ok(())
        }
        Cure::Network(cut) => cut.heal(cluster),
        Cure::Room(host) => {
            disk::make_room(cluster, host)?;
            // One whose disk was full stops by itself, if it is to store anything; it may be about to.
            tokio::time::sleep(Duration::from_millis(300)).await;
            cluster.start(host)
        }
        Cure::Clock(host) => disk::set_clock(cluster, host, "+0"),
        Cure::Wipe(host) => disk::wipe(cluster, host),
        Cure::Disks(hosts) => power::heal(cluster, hosts).await,
        Cure::Undrain(host) => process::command(cluster, &["member", "drain", &host.name(), "--undo"]).await,
    }
}

/// The leader, or an error: nobody leads.
pub(crate) async fn leader(cluster: &Cluster) -> anyhow::Result<Host> {
    cluster.leader().await.ok_or_else(|| anyhow::anyhow!("nobody leads"))
}

/// A server that doesn't lead.
pub(crate) async fn follower(cluster: &Cluster, random: &mut Random) -> anyhow::Result<Host> {
    let leader = cluster.leader().await;
    let others: Vec<Host> = cluster.server_hosts().filter(|host| Some(*host) != leader).collect();
    random.pick(&others).copied().ok_or_else(|| anyhow::anyhow!("no follower"))
}
