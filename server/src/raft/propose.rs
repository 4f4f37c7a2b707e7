//! Proposing: to Raft if this member leads, else to the leader. An unknown outcome is a type of its own.

use crate::raft::Consensus;
use crate::raft::types::TypeConfig;
use fairlead_proto::internal::v1::{Entry, Outcome, ProposeRequest, ProposeResponse};
use openraft::errors::{ClientWriteError, RaftError};
use std::time::Duration;

/// Proposals of this member under way at once; more are refused.
pub const MAX_PROPOSALS: usize = 4_096;
/// Time until an undecided proposal is called unknown.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// Time that a proposal waits for a leader to be elected.
const LEADER_WITHIN: Duration = Duration::from_secs(4);
/// Longest pause between two looks for a leader.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Most times a proposal is handed to another member.
const MAX_HOPS: u32 = 3;

/// Why there is no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It is certain that nothing was proposed.
    #[error("not proposed: {0}")]
    NotProposed(String),
    /// It may or may not be, or become, executed.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

impl Consensus {
    /// Proposes an entry and waits until it is applied on this member.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, entry: Entry) -> Result<Outcome, ProposeError> {
        let Ok(_slot) = self.inner.slots.try_acquire() else {
            return Err(ProposeError::NotProposed("too many requests: this server has as many writes under way as it takes".into()));
        };
        let mut refusal = String::from("no leader");
        let give_up = tokio::time::Instant::now() + LEADER_WITHIN;
        let mut hops = 0;
        while tokio::time::Instant::now() < give_up && hops < MAX_HOPS {
            let decided = match self.wait_for_leader(give_up).await {
                None => break,
                Some(leader) if leader == self.inner.id => self.propose_here(entry.clone()).await,
                Some(leader) => self.propose_there(leader, entry.clone()).await,
            };
            match decided {
                Ok((outcome, index)) => {
                    self.applied(index).await?;
                    return Ok(outcome);
                }
                // Certain that it was not appended: another member may take it.
                Err(ProposeError::NotProposed(why)) => refusal = why,
                Err(unknown) => return Err(unknown),
            }
            hops += 1;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(ProposeError::NotProposed(refusal))
    }

    /// Proposes here only: what the leader does for the others.
    pub(crate) async fn propose_here(&self, entry: Entry) -> Result<(Outcome, u64), ProposeError> {
        let written = tokio::time::timeout(DECIDED_WITHIN, self.inner.raft.client_write(entry)).await;
        match written {
            Ok(Ok(response)) => Ok((response.data, response.log_id.index)),
            Ok(Err(error)) => Err(undecided(&error)),
            Err(_) => Err(ProposeError::Unknown("no quorum confirmed the write within 5 s".into())),
        }
    }

    async fn propose_there(&self, leader: u64, entry: Entry) -> Result<(Outcome, u64), ProposeError> {
        let Some(mut peer) = self.inner.peers.client(leader) else {
            return Err(ProposeError::NotProposed(format!("the leader {leader} is not known")));
        };
        // Connecting is apart from sending: what could not be connected was certainly not sent.
        if let Err(why) = self.inner.peers.connected(leader).await {
            return Err(ProposeError::NotProposed(format!("the leader can't be reached: {why}")));
        }
        let request = ProposeRequest { entry: Some(entry), header: Some(self.header(leader)) };
        match tokio::time::timeout(DECIDED_WITHIN, peer.propose(request)).await {
            Ok(Ok(response)) => decided(response.into_inner()),
            Ok(Err(status)) => Err(ProposeError::Unknown(format!("the leader did not answer: {}", status.message()))),
            Err(_) => Err(ProposeError::Unknown("the leader did not answer within 5 s".into())),
        }
    }

    async fn wait_for_leader(&self, until: tokio::time::Instant) -> Option<u64> {
        let mut leader = self.subscribe_leadership();
        let found = tokio::time::timeout_at(until, leader.wait_for(Option::is_some)).await;
        found.ok()?.ok().and_then(|leader| *leader)
    }

    /// Waits until an index is applied on this member, so that its caller reads its own write.
    async fn applied(&self, index: u64) -> Result<(), ProposeError> {
        let mut published = self.inner.published.clone();
        let reached = tokio::time::timeout(DECIDED_WITHIN, published.wait_for(|published| published.index >= index)).await;
        // The write is decided and durable even if this member lags: the answer stands.
        if reached.is_err() {
            tracing::warn!(index, "this member lags behind the write it answers for");
        }
        Ok(())
    }
}

/// Only a refusal to append proves that nothing was proposed.
fn undecided(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ProposeError::NotProposed("this member does not lead".into()),
        other => ProposeError::Unknown(other.to_string()),
    }
}

fn decided(response: ProposeResponse) -> Result<(Outcome, u64), ProposeError> {
    match response.outcome {
        Some(outcome) => Ok((outcome, response.index)),
        None if !response.not_proposed.is_empty() => Err(ProposeError::NotProposed(response.not_proposed)),
        None => Err(ProposeError::Unknown(response.unknown)),
    }
}
