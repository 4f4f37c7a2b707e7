//! Proposing: to Raft if this member leads, else to the leader. An unknown outcome is a type of its own.
//!
//! INVARIANT: an entry is handed on a second time only if it is certain that nobody appended it the first time:
//! it was never sent, or the member it was handed to refused it (openraft's `ForwardToLeader` comes before the append;
//! an entry that was appended and then lost is `LogEntryDiscarded`, of unknown outcome).

use crate::raft::Consensus;
use crate::raft::peers::never_sent;
use crate::raft::types::{Logged, TypeConfig};
use fairlead_proto::internal::v1::{Entry, Outcome, ProposeRequest, ProposeResponse};
use fairlead_proto::trace;
use openraft::errors::{ClientWriteError, RaftError};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument as _;

/// Proposals of this member under way at once; more are refused.
pub(crate) const MAX_PROPOSALS: usize = 4_096;
/// Time for all of it: finding a leader, being decided, being applied here.
const DECIDED_WITHIN: Duration = Duration::from_secs(5);
/// Pause before a member is asked again, unless another leads meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
    /// Proposes an entry and waits until it is applied on this member, so that its caller reads its own write.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, mut entry: Entry) -> Result<Outcome, ProposeError> {
        if !trace::is_within() {
            return self.decide(entry).await;
        }
        // The log carries the trace to every member that applies the entry.
        let span = tracing::info_span!(target: trace::TARGET, "raft.propose");
        entry.traceparent = trace::sampled(&span);
        self.decide(entry).instrument(span).await
    }

    async fn decide(&self, entry: Entry) -> Result<Outcome, ProposeError> {
        let Ok(_slot) = self.inner.slots.try_acquire() else {
            let why = "too many requests: this server has as many writes under way as it takes";
            return Err(ProposeError::NotProposed(why.into()));
        };
        let until = Instant::now() + DECIDED_WITHIN;
        let mut refusal = String::from("no leader is elected");
        let mut leadership = self.subscribe_leadership();
        loop {
            let leader = timeout_at(until, leadership.wait_for(Option::is_some)).await;
            let Some(leader) = leader.ok().and_then(Result::ok).and_then(|leader| *leader) else {
                return Err(ProposeError::NotProposed(refusal));
            };
            let decided = timeout_at(until, self.propose_at(leader, entry.clone())).await;
            match decided {
                Ok(Ok((outcome, index))) => {
                    self.applied(index, until).await;
                    return Ok(outcome);
                }
                Ok(Err(ProposeError::NotProposed(why))) => refusal = why,
                Ok(Err(unknown)) => return Err(unknown),
                Err(_) => {
                    let why = "the write was not confirmed within 5 s";
                    return Err(ProposeError::Unknown(why.into()));
                }
            }
            let _ = timeout(LOOK_AGAIN, leadership.changed()).await;
            if Instant::now() >= until || self.inner.cancel.is_cancelled() {
                return Err(ProposeError::NotProposed(refusal));
            }
        }
    }

    async fn propose_at(&self, leader: u64, entry: Entry) -> Result<(Outcome, u64), ProposeError> {
        if leader == self.inner.id { self.propose_here(entry).await } else { self.propose_there(leader, entry).await }
    }

    /// Proposes here only: what the leader does for the others.
    pub(crate) async fn propose_here(&self, entry: Entry) -> Result<(Outcome, u64), ProposeError> {
        let command = entry.command.as_ref();
        if command.and_then(|command| command.kind.as_ref()).is_none() {
            let why = "the command is not known to the leader: is it of an older version?";
            return Err(ProposeError::NotProposed(why.into()));
        }
        let span = match trace::is_within() {
            true => tracing::info_span!(target: trace::TARGET, "raft.commit"),
            false => tracing::Span::none(),
        };
        let write = self.inner.raft.client_write(Logged::from(entry)).instrument(span);
        match timeout(DECIDED_WITHIN, write).await {
            Ok(Ok(response)) => Ok((response.data, response.log_id.index)),
            Ok(Err(error)) => Err(undecided(&error)),
            Err(_) => {
                let why = "no quorum confirmed the write within 5 s";
                Err(ProposeError::Unknown(why.into()))
            }
        }
    }

    async fn propose_there(&self, leader: u64, entry: Entry) -> Result<(Outcome, u64), ProposeError> {
        let Some(mut peer) = self.inner.peers.client(leader) else {
            let why = format!("the leader {leader} is not known here yet");
            return Err(ProposeError::NotProposed(why));
        };
        let request = ProposeRequest { entry: Some(entry), header: Some(self.header(leader)) };
        let mut request = tonic::Request::new(request);
        trace::carry(request.metadata_mut());
        match peer.propose(request).await {
            Ok(response) => decided(response.into_inner()),
            Err(status) if never_sent(&status) => {
                let why = format!("the leader can't be reached: {}", status.message());
                Err(ProposeError::NotProposed(why))
            }
            Err(status) => {
                let why = format!("the leader did not answer: {}", status.message());
                Err(ProposeError::Unknown(why))
            }
        }
    }

    /// Waits until an index is applied on this member. The write is decided and durable even if this member lags
    /// beyond the time for it: then its caller has to read with the outcome's revision.
    async fn applied(&self, index: u64, until: Instant) {
        let mut published = self.inner.published.clone();
        let reached = published.wait_for(|published| published.index >= index);
        if timeout_at(until, reached).await.is_err() {
            tracing::warn!(index, "this member lags behind the write it answers for");
        }
    }
}

/// Only a refusal to append proves that nothing was proposed.
fn undecided(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotProposed(format!("this member does not lead: {:?}", forward.reason))
        }
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
