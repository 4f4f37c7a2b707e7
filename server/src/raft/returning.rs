//! The return of a member that lost its data: a known member whose directory is empty.
//!
//! An empty directory alone doesn't tell it from a new member: it is new only if, with itself, a majority says that it
//! does not know it. Whoever could have been asked to found the cluster in vain is asked again, for as long as it takes.
//!
//! It has forgotten what it voted for and what it acknowledged, and either may have been decisive. So, before it takes
//! part, it hears from so many others that every quorum it may have completed is among them, and keeps to their highest
//! vote: no older leader can count on it. It is then fed like any follower, but neither votes nor stands for election
//! before it holds everything that was committed when it came back. Until then the cluster lives without its vote.

use crate::raft::peers::Peers;
use crate::raft::start::StartError;
use crate::raft::types::Vote;
use crate::raft::{Consensus, ConsensusConfig};
use crate::storage::{EndOfReturn, Storage, codec};
use fairlead_proto::internal::v1::{RecallRequest, RecallResponse};
use futures::StreamExt as _;
use openraft::storage::RaftLogStorage as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time for another member to say what it remembers.
const RECALL_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two rounds of asking.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Rounds between two words to the operator.
const SAY_AGAIN: u32 = 25;

/// Finds out whether this member, which has no data, had some; if so, prepares its return: notes it durably and keeps to
/// the others' highest vote. Waits for as long as too few others can be asked.
///
/// # Errors
/// Storage's.
pub(super) async fn prepare(
    storage: &mut Storage,
    peers: &Arc<Peers>,
    config: &ConsensusConfig,
) -> Result<(), StartError> {
    if !storage.pristine {
        return Ok(());
    }
    if !storage.returning && is_new(peers, config.initial_cluster.len()).await {
        return Ok(());
    }
    let founders: BTreeSet<u64> = peers.members().keys().copied().collect();
    if ask(peers).await.iter().any(|(_, answer)| is_other(answer, &founders)) {
        return Err(StartError::Founding(format!(
            "this member lost its data, and others vote than those of --initial-cluster: who could say what it voted for is not known here; remove it (`fairlead member remove {}`) and let it --join anew",
            config.name
        )));
    }
    let failed = |error: std::io::Error| StartError::Raft(error.to_string());
    storage.set_returning().await.map_err(failed)?;
    // An election that this member took part in before its loss is over after this time.
    tokio::time::sleep(Duration::from_millis(config.election_ms.1 * 2)).await;
    let vote = highest_vote(peers, config.initial_cluster.len()).await;
    if let Some(vote) = vote {
        storage.log.save_vote(&vote).await.map_err(failed)?;
    }
    Ok(())
}

/// The voters are not the founders any more.
fn is_other(answer: &RecallResponse, founders: &BTreeSet<u64>) -> bool {
    !answer.voters.is_empty() && answer.voters.iter().copied().collect::<BTreeSet<u64>>() != *founders
}

/// Whether this member, which has no data, never had any. Waits until a majority, itself included, has said so or
/// somebody knows it: members that are away may remember what it acknowledged.
async fn is_new(peers: &Arc<Peers>, members: usize) -> bool {
    let quorum = members / 2 + 1;
    for round in 0_u32.. {
        let answers = ask(peers).await;
        if answers.iter().any(|(_, answer)| answer.known) {
            return false;
        }
        if answers.len() + 1 >= quorum {
            break;
        }
        if round % SAY_AGAIN == SAY_AGAIN - 1 {
            tracing::warn!(
                "the data directory is empty: this member waits for {} of the other members, to learn whether it is new or has lost its data; {} answer: are they running, with the same --initial-cluster?",
                quorum - 1,
                answers.len()
            );
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    true
}

/// The highest vote of so many others that no quorum with this member is without one of them.
async fn highest_vote(peers: &Arc<Peers>, members: usize) -> Option<Vote> {
    let quorum = members / 2 + 1;
    let enough = members - quorum + 1;
    let mut votes = BTreeMap::new();
    for round in 0_u32.. {
        for (id, answer) in ask(peers).await {
            if !answer.returning {
                votes.insert(id, answer.vote.as_ref().map(codec::to_vote));
            }
        }
        if votes.len() >= enough {
            break;
        }
        if round % SAY_AGAIN == 0 {
            tracing::warn!(
                "this member is known to the cluster but its data directory is empty; it waits for {enough} of the other members, to get its data back from them: {} are reached",
                votes.len()
            );
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    let votes = votes.into_values().flatten();
    votes.reduce(|one, other| if other > one { other } else { one })
}

/// What the others remember, of those that answer.
pub(super) async fn ask(peers: &Arc<Peers>) -> Vec<(u64, RecallResponse)> {
    let one = |id: u64| {
        let peers = peers.clone();
        async move {
            let header = Some(peers.header(id));
            let mut peer = peers.client(id)?;
            let answer = peer.recall(RecallRequest { header });
            let answer = tokio::time::timeout(RECALL_WITHIN, answer).await.ok()?;
            let answer = answer.inspect_err(|status| peers.heed(status));
            Some((id, answer.ok()?.into_inner()))
        }
    };
    let answers = futures::stream::iter(peers.others()).map(one).buffer_unordered(8);
    answers.filter_map(std::future::ready).collect().await
}

impl Consensus {
    /// Waits until this member holds all that was committed when it came back; then it votes again.
    pub(super) async fn come_back(self, ended: EndOfReturn) {
        tracing::warn!("this member lost its data; it gets it back from the others before it votes");
        let cancel = self.inner.cancel.clone();
        loop {
            let read = tokio::select! {
                () = cancel.cancelled() => return,
                read = self.read() => read,
            };
            match read {
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "waiting for the others to give the data back")
                }
            }
        }
        // A failure to note it is storage's and stops the member; until then it just doesn't vote.
        if let Err(error) = ended.note().await {
            tracing::error!(%error, "the end of the return can't be noted");
            return;
        }
        self.inner.returning.store(false, Ordering::Release);
        self.may_elect();
        tracing::info!("this member has its data back and votes again");
    }
}
