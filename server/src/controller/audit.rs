//! Compares the members' states: all of one index must have one digest. Who differs is stopped, before it answers much
//! that is wrong.
//!
//! `judge` is pure. What a majority of the voters has is right; where there is none, an alarm is all.

use crate::controller::lease::Alarms;
use crate::raft::Consensus;
use fairlead_proto::internal::v1::{DigestsRequest, FenceRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two comparisons: a member that differs is found within a second.
const COMPARE_EVERY: Duration = Duration::from_millis(400);
/// Time for a member to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);

/// Digests by index.
pub type Digests = Vec<(u64, String)>;

/// What a comparison says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Members that differ from a majority of the voters, and the first index at which they do.
    pub wrong: BTreeMap<u64, u64>,
    /// An index at which states differ and no majority says which is right.
    pub unclear: Option<u64>,
}

/// Judges the digests of a round. Only what a majority of all voters has is right: of few that happen to answer for one
/// index, the wrong one may be as many.
#[must_use]
pub fn judge(voters: &BTreeSet<u64>, all: &BTreeMap<u64, Digests>) -> Verdict {
    let mut by_index: BTreeMap<u64, BTreeMap<&str, Vec<u64>>> = BTreeMap::new();
    for (member, digests) in all {
        for (index, digest) in digests {
            by_index.entry(*index).or_default().entry(digest).or_default().push(*member);
        }
    }
    let mut verdict = Verdict::default();
    for (index, digests) in by_index.iter().filter(|(_, digests)| digests.len() > 1) {
        let votes = |members: &Vec<u64>| members.iter().filter(|member| voters.contains(member)).count();
        let Some((right, _)) = digests.iter().find(|(_, members)| votes(members) * 2 > voters.len()) else {
            verdict.unclear = verdict.unclear.or(Some(*index));
            continue;
        };
        let others = digests.iter().filter(|(digest, _)| *digest != right).flat_map(|(_, members)| members);
        for member in others {
            verdict.wrong.entry(*member).or_insert(*index);
        }
    }
    verdict
}

/// Compares while this member leads.
pub async fn run(consensus: Consensus, alarms: Arc<Alarms>, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(COMPARE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        if !consensus.is_leader() {
            alarms.set("divergence", None);
            continue;
        }
        let status = consensus.status();
        let own = status.id;
        let all = collect(&consensus, own).await;
        let verdict = judge(&status.voters, &all);
        if let (Some(index), true) = (verdict.unclear, verdict.wrong.is_empty()) {
            let said = format!("members' states differ at index {index}, and no majority says which is right yet");
            alarms.set("divergence", Some(said));
        }
        let agreed = verdict == Verdict::default();
        for (member, index) in verdict.wrong {
            let members = consensus.members();
            let name = members.iter().find(|one| one.id == member).map_or("?", |one| one.name.as_str());
            let said = format!(
                "the state of member {name} differs from the others' since index {index} at the latest: it was stopped"
            );
            alarms.set("divergence", Some(said));
            let reason = "its digest is not theirs";
            if member == own {
                consensus.fence(index, reason);
                return;
            }
            let request = FenceRequest { header: Some(consensus.header(member)), index, reason: reason.into() };
            if let Ok(mut peer) = consensus.peer(member).await {
                let _ = tokio::time::timeout(ANSWER_WITHIN, peer.fence(request)).await;
            }
        }
        // It answers again: with its data given back.
        if agreed && all.len() == consensus.members().len() {
            alarms.set("divergence", None);
        }
    }
}

async fn collect(consensus: &Consensus, own: u64) -> BTreeMap<u64, Digests> {
    let others = consensus.members().into_iter().map(|member| member.id).filter(|id| *id != own);
    let asked = others.map(|id| async move {
        let mut peer = consensus.peer(id).await.ok()?;
        let request = DigestsRequest { header: Some(consensus.header(id)) };
        let answer = tokio::time::timeout(ANSWER_WITHIN, peer.digests(request)).await.ok()?.ok()?;
        let digests = answer.into_inner().digests.into_iter().map(|one| (one.index, one.digest));
        Some((id, digests.collect()))
    });
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().flatten().chain([(own, consensus.digests())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(list: &[(u64, &str)]) -> Digests {
        list.iter().map(|(index, digest)| (*index, (*digest).to_owned())).collect()
    }

    #[test]
    fn only_a_majority_of_all_voters_is_right() {
        let all = |list: &[(u64, &[(u64, &str)])]| -> BTreeMap<u64, Digests> {
            list.iter().map(|(member, list)| (*member, digests(list))).collect()
        };
        let voters = BTreeSet::from([1, 2, 3]);
        let wrong = |list: &[(u64, u64)]| Verdict { wrong: list.iter().copied().collect(), unclear: None };
        let unclear = |index| Verdict { wrong: BTreeMap::new(), unclear: Some(index) };
        let same = all(&[(1, &[(64, "a"), (70, "b")]), (2, &[(64, "a")]), (3, &[(64, "a"), (69, "c")])]);
        assert_eq!(judge(&voters, &same), Verdict::default(), "other indices say nothing");
        let one = all(&[(1, &[(64, "a"), (128, "b")]), (2, &[(64, "a"), (128, "x")]), (3, &[(64, "a"), (128, "b")])]);
        assert_eq!(judge(&voters, &one), wrong(&[(2, 128)]));
        let first = all(&[(1, &[(64, "a"), (128, "b")]), (2, &[(64, "y"), (128, "x")]), (3, &[(64, "a"), (128, "b")])]);
        assert_eq!(judge(&voters, &first), wrong(&[(2, 64)]), "where it began");
        // The third has not come so far: either of the two may be wrong.
        let early = all(&[(1, &[(100, "x")]), (2, &[(100, "a")]), (3, &[(99, "c")])]);
        assert_eq!(judge(&voters, &early), unclear(100));
        let mixed = all(&[(1, &[(128, "x"), (130, "y")]), (2, &[(128, "a"), (130, "b")]), (3, &[(128, "a")])]);
        assert_eq!(judge(&voters, &mixed), Verdict { wrong: BTreeMap::from([(1, 128)]), unclear: Some(130) });
        let learner = all(&[(1, &[(64, "a")]), (4, &[(64, "x")]), (5, &[(64, "x")])]);
        assert_eq!(judge(&BTreeSet::from([1]), &learner), wrong(&[(4, 64), (5, 64)]), "learners have no say");
    }
}
