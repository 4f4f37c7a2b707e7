//! Scenarios: which faults, how long, with how many servers and agents.

use crate::nemesis::Kind;

/// What is broken in a run.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Faults that it plans.
    pub faults: &'static [Kind],
    /// Servers.
    pub servers: u8,
    /// Servers see clocks that can be set.
    pub clocks: bool,
    /// Servers' disks can lose power.
    pub disks: bool,
}

/// All of them.
pub const ALL: [Scenario; 14] = [
    Scenario {
        name: "kill",
        about: "servers are killed, one or all, and come back",
        faults: &[Kind::KillLeader, Kind::KillFollower, Kind::KillMajority, Kind::KillAll],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "pause",
        about: "servers stand still for a while and go on as if nothing had been",
        faults: &[Kind::PauseLeader, Kind::PauseFollower, Kind::PauseMajority],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "partition",
        about: "hosts don't reach each other, in all shapes",
        faults: &[Kind::IsolateLeader, Kind::IsolateFollower, Kind::IsolateAll, Kind::Bridge, Kind::Flapping],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "one-way",
        about: "hosts are heard and don't hear, or hear and aren't heard",
        faults: &[
            Kind::LeaderHearsNothing,
            Kind::LeaderIsNotHeard,
            Kind::FollowerHearsNothing,
            Kind::FollowerIsNotHeard,
            Kind::ClientsCutFromLeader,
        ],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "loss",
        about: "packets are lost, connections reset, processes killed meanwhile",
        faults: &[Kind::LossAtLeader, Kind::LossEverywhere, Kind::Resets, Kind::KillLeader, Kind::PauseFollower],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "clock",
        about: "wall clocks jump and drift while leaders die",
        faults: &[Kind::ClockForward, Kind::ClockBack, Kind::ClockFast, Kind::ClockSlow, Kind::KillLeader],
        servers: 3,
        clocks: true,
        disks: false,
    },
    Scenario {
        name: "disk",
        about: "disks are full, members' files damaged or gone",
        faults: &[
            Kind::DiskFullAtLeader,
            Kind::DiskFullAtFollower,
            Kind::BitFlip,
            Kind::Truncation,
            Kind::Wipe,
            Kind::IsolateFollower,
        ],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "power",
        about: "power is cut and what was not synced is gone or torn; disks are slow, or fail when they sync",
        faults: &[
            Kind::PowerCutAll,
            Kind::PowerCutMajority,
            Kind::PowerCutLeader,
            Kind::TornWrites,
            Kind::SlowSyncs,
            Kind::FailedSync,
            Kind::IsolateFollower,
        ],
        servers: 3,
        clocks: false,
        disks: true,
    },
    Scenario {
        name: "members",
        about: "leaders change by hand, servers restart in turn, backups are made",
        faults: &[
            Kind::TransferLeader,
            Kind::DrainLeader,
            Kind::RollingRestart,
            Kind::Backup,
            Kind::TerminateLeader,
            Kind::TerminateFollower,
        ],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "replace",
        about: "members are removed for good and others join in their place, while leaders change and links break",
        faults: &[Kind::ReplaceMember, Kind::TransferLeader, Kind::KillFollower, Kind::IsolateFollower],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "clients",
        about: "clients flood, babble and don't read, while leaders change",
        faults: &[Kind::ConnectionStorm, Kind::Garbage, Kind::SlowWatchers, Kind::TerminateLeader, Kind::KillFollower],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "agents",
        about: "agents are killed, stopped and cut off; traffic goes on",
        faults: &[
            Kind::KillAgent,
            Kind::PauseAgent,
            Kind::AgentsCutFromServers,
            Kind::RestartAgents,
            Kind::TamperRules,
            Kind::KillLeader,
            Kind::KillAll,
        ],
        servers: 3,
        clocks: false,
        disks: false,
    },
    Scenario {
        name: "five",
        about: "five servers, two of them gone at a time, and the network between the others",
        faults: &[
            Kind::KillLeader,
            Kind::KillMajority,
            Kind::PauseMajority,
            Kind::IsolateLeader,
            Kind::Bridge,
            Kind::LossEverywhere,
        ],
        servers: 5,
        clocks: false,
        disks: false,
    },
    Scenario { name: "all", about: "everything", faults: &Kind::ALL, servers: 3, clocks: true, disks: true },
];

/// A scenario by its name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
