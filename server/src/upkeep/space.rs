//! Room for more: bytes of the state against its quota, and what the members' disks have left. Where there is none,
//! writes that need some are refused before a full disk stops a member; deleting goes on, and what it frees is used
//! again by itself.
//!
//! `judge` is pure. The quota is on what the members agree on, so they refuse at the same state; a disk counts only as far
//! as the cluster would lose its majority with it.

use crate::controller::lease::Alarms;
use crate::raft::Consensus;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is full has room again below this share of its limit, in percent: no flapping.
const AGAIN_PERCENT: u64 = 95;

/// When there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all objects; 0 = any number.
    pub quota: u64,
    /// Bytes that a member's disk must have left; 0 = none.
    pub min_free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { quota: 1024 * 1024 * 1024, min_free: 256 * 1024 * 1024 }
    }
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes of all objects.
    pub state: u64,
    /// Voters, and the bytes that their disks have left; `None` = not known.
    pub voters: BTreeMap<String, Option<u64>>,
    /// This member, and the bytes that its disk has left.
    pub own: (String, Option<u64>),
}

/// What follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why writes that need room are refused, if they are.
    pub refuse: Option<String>,
    /// What is wrong with this member's disk, if anything.
    pub alarm: Option<String>,
}

/// Judges. `was`: the verdict before.
#[must_use]
pub fn judge(limits: Limits, seen: &Seen, was: &Verdict) -> Verdict {
    let lower = |limit: u64, was: bool| if was { limit / 100 * AGAIN_PERCENT } else { limit };
    let higher = |limit: u64, was: bool| if was { limit.saturating_add(limit / 20) } else { limit };
    let refused = was.refuse.is_some();
    let is_short = |free: Option<u64>, was: bool| free.is_some_and(|free| free < higher(limits.min_free, was));
    let short: Vec<&str> =
        seen.voters.iter().filter(|(_, free)| is_short(**free, refused)).map(|(name, _)| name.as_str()).collect();
    let refuse = if limits.quota > 0 && seen.state >= lower(limits.quota, refused) {
        Some(format!(
            "the objects take {} of the {} that --quota-mib allows: delete some, or raise it on every server",
            mib(seen.state),
            mib(limits.quota)
        ))
    } else if !seen.voters.is_empty() && (seen.voters.len() - short.len()) * 2 <= seen.voters.len() {
        Some(format!(
            "{} have less than {} left on their disks (--min-free-mib), and the cluster would lose its majority with them: free some room there",
            short.join(", "),
            mib(limits.min_free)
        ))
    } else {
        None
    };
    let (name, free) = &seen.own;
    let alarm = free.filter(|_| is_short(*free, was.alarm.is_some())).map(|free| {
        format!(
            "{name} has {} left on its disk, less than {} (--min-free-mib): it stops when none is left",
            mib(free),
            mib(limits.min_free)
        )
    });
    Verdict { refuse, alarm }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

/// Bytes left for this process on the disk of a path.
///
/// # Errors
/// The system's.
pub fn free(path: &Path) -> std::io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Whether there is room. Cheap to clone.
#[derive(Clone, Default)]
pub struct Space(Arc<Mutex<Option<Arc<str>>>>);

impl Space {
    /// Why a write that needs room is refused now.
    #[must_use]
    pub fn refuses(&self) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, why: Option<&str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why.map(Arc::from);
    }
}

/// Looks, on every member: any of them takes writes.
pub async fn run(
    consensus: Consensus,
    limits: Limits,
    (space, alarms): (Space, Arc<Alarms>),
    cancel: CancellationToken,
) {
    let mut was = Verdict::default();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        let seen = look(&consensus, limits).await;
        let verdict = judge(limits, &seen, &was);
        if verdict.refuse.is_some() != was.refuse.is_some() {
            tracing::warn!(
                why = verdict.refuse,
                "writes that need room are {}",
                if verdict.refuse.is_some() { "refused" } else { "taken again" }
            );
        }
        space.set(verdict.refuse.as_deref());
        alarms.set("space", verdict.refuse.clone().map(|why| format!("only deleting is possible: {why}")));
        alarms.set("disk", verdict.alarm.clone());
        was = verdict;
    }
}

async fn look(consensus: &Consensus, limits: Limits) -> Seen {
    let status = consensus.status();
    let own = (status.name.clone(), consensus.free_bytes());
    let mut voters = BTreeMap::new();
    if status.voters.contains(&status.id) {
        voters.insert(own.0.clone(), own.1);
    }
    let others = consensus.members().into_iter().filter(|one| one.id != status.id && status.voters.contains(&one.id));
    let asked = others.map(|member| async move {
        let asked = if limits.min_free > 0 { consensus.status_of(member.id).await } else { None };
        (member.name, asked.map(|status| status.free_bytes).filter(|bytes| *bytes > 0))
    });
    voters.extend(futures::future::join_all(asked).await);
    Seen { state: consensus.local().state.bytes(), voters, own }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const LIMITS: Limits = Limits { quota: 100 * MIB, min_free: 200 * MIB };

    fn seen(state: u64, free: [Option<u64>; 3]) -> Seen {
        let names = ["n1", "n2", "n3"].map(str::to_owned);
        let voters = names.iter().cloned().zip(free.map(|free| free.map(|mib| mib * MIB))).collect();
        Seen { state: state * MIB, voters, own: ("n1".into(), free[0].map(|mib| mib * MIB)) }
    }

    #[test]
    fn a_full_store_refuses_until_it_has_room_again() {
        let none = Verdict::default();
        let room = [Some(900); 3];
        assert_eq!(judge(LIMITS, &seen(99, room), &none), none);
        let full = judge(LIMITS, &seen(100, room), &none);
        assert!(full.refuse.as_ref().unwrap().contains("100 MiB of the 100 MiB"), "{full:?}");
        assert!(judge(LIMITS, &seen(96, room), &full).refuse.is_some(), "not at once");
        assert_eq!(judge(LIMITS, &seen(94, room), &full).refuse, None);
        assert_eq!(judge(Limits { quota: 0, ..LIMITS }, &seen(1_000, room), &none), none);
    }

    #[test]
    fn short_disks_count_when_a_majority_would_go_with_them() {
        let none = Verdict::default();
        let own = judge(LIMITS, &seen(1, [Some(199), Some(900), None]), &none);
        assert_eq!(own.refuse, None, "the others go on without it");
        assert!(own.alarm.as_ref().unwrap().starts_with("n1 has 199 MiB left"), "{own:?}");
        assert_eq!(judge(LIMITS, &seen(1, [Some(900), Some(1), None]), &none), none, "who can't be asked is not short");
        let most = judge(LIMITS, &seen(1, [Some(900), Some(1), Some(2)]), &none);
        assert!(most.refuse.as_ref().unwrap().starts_with("n2, n3 have less than 200 MiB"), "{most:?}");
        assert_eq!(most.alarm, None);
        let still = judge(LIMITS, &seen(1, [Some(900), Some(205), Some(205)]), &most);
        assert!(still.refuse.is_some(), "not at once");
        assert_eq!(judge(LIMITS, &seen(1, [Some(900), Some(205), Some(211)]), &most).refuse, None);
        // Of four voters, two are no majority.
        let mut four = seen(1, [Some(900), Some(1), Some(900)]);
        four.voters.insert("n4".into(), Some(900 * MIB));
        assert_eq!(judge(LIMITS, &four, &none).refuse, None);
        four.voters.insert("n4".into(), Some(1));
        assert!(judge(LIMITS, &four, &none).refuse.is_some());
        assert_eq!(judge(LIMITS, &Seen::default(), &none), none, "no voter is known yet");
    }

    #[test]
    fn a_disk_has_room() {
        assert!(free(Path::new("/")).unwrap() > 0);
        assert!(free(Path::new("/nowhere/at/all")).is_err());
    }
}
