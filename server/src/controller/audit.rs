//! Compares the members' states: all of one index must have one digest. Who differs is stopped, before it answers much
//! that is wrong.
//!
//! `judge` is pure. The majority is right; where there is none, the leader, whose entries everybody applies.

use crate::controller::lease::Alarms;
use crate::raft::Consensus;
use fairlead_proto::internal::v1::{DigestsRequest, FenceRequest};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two comparisons: a member that differs is found within a second.
const COMPARE_EVERY: Duration = Duration::from_millis(400);
/// Time for a member to answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);

/// Digests by index.
pub type Digests = Vec<(u64, String)>;

/// Members that differ, and the first index at which they do. `own` is the leader's id.
#[must_use]
pub fn judge(own: u64, all: &BTreeMap<u64, Digests>) -> BTreeMap<u64, u64> {
    let mut by_index: BTreeMap<u64, BTreeMap<&str, Vec<u64>>> = BTreeMap::new();
    for (member, digests) in all {
        for (index, digest) in digests {
            by_index.entry(*index).or_default().entry(digest).or_default().push(*member);
        }
    }
    let mut wrong = BTreeMap::new();
    for (index, digests) in by_index.iter().filter(|(_, digests)| digests.len() > 1) {
        let asked: usize = digests.values().map(Vec::len).sum();
        let majority = digests.iter().find(|(_, members)| members.len() * 2 > asked);
        let leaders = digests.iter().find(|(_, members)| members.contains(&own));
        let Some((right, _)) = majority.or(leaders) else { continue };
        let others = digests.iter().filter(|(digest, _)| *digest != right).flat_map(|(_, members)| members);
        for member in others {
            wrong.entry(*member).or_insert(*index);
        }
    }
    wrong
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
        let own = consensus.status().id;
        let all = collect(&consensus, own).await;
        for (member, index) in judge(own, &all) {
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
        if all.len() == consensus.members().len() && judge(own, &all).is_empty() {
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
    fn the_majority_is_right_and_without_one_the_leader() {
        let all = |list: &[(u64, &[(u64, &str)])]| -> BTreeMap<u64, Digests> {
            list.iter().map(|(member, list)| (*member, digests(list))).collect()
        };
        let same = all(&[(1, &[(64, "a"), (70, "b")]), (2, &[(64, "a")]), (3, &[(64, "a"), (69, "c")])]);
        assert_eq!(judge(1, &same), BTreeMap::new(), "other indices say nothing");
        let one = all(&[(1, &[(64, "a"), (128, "b")]), (2, &[(64, "a"), (128, "x")]), (3, &[(64, "a"), (128, "b")])]);
        assert_eq!(judge(1, &one), BTreeMap::from([(2, 128)]));
        assert_eq!(judge(2, &one), BTreeMap::from([(2, 128)]), "also if it leads");
        let two = all(&[(1, &[(64, "a")]), (2, &[(64, "x")])]);
        assert_eq!((judge(1, &two), judge(2, &two)), (BTreeMap::from([(2, 64)]), BTreeMap::from([(1, 64)])));
        let first = all(&[(1, &[(64, "a"), (128, "b")]), (2, &[(64, "y"), (128, "x")]), (3, &[(64, "a"), (128, "b")])]);
        assert_eq!(judge(3, &first), BTreeMap::from([(2, 64)]), "where it began");
    }
}
