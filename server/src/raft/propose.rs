//! Proposing: to Raft if this member leads, else to the leader. An unknown outcome is a type of its own.
//!
//! INVARIANT: an entry is handed on a second time only if it is certain that nobody appended it the first time:
//! it was never sent, or the member it was handed to refused it (openraft's `ForwardToLeader` comes before the append;
//! an entry that was appended and then lost is `LogEntryDiscarded`, of unknown outcome).

use crate::raft::Consensus;
use crate::raft::types::{Logged, TypeConfig};
use fairlead_proto::internal::v1::{Entry, Outcome};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::trace;
use futures::{Stream, StreamExt as _};
use openraft::errors::{ClientWriteError, RaftError};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument as _;

/// Proposals of this member under way at once; more are refused.
pub(crate) const MAX_PROPOSALS: usize = 4_096;
/// Time for all of it: finding a leader, being decided, being applied here.
pub(crate) const DECIDED_WITHIN: Duration = Duration::from_secs(5);
const NO_QUORUM: &str = "no quorum confirmed the write within 5 s";
/// Pause before a member is asked again, unless another leads meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An outcome with the index of its entry.
pub(crate) type Committed = Result<(Outcome, u64), ProposeError>;

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
            return self.decide(entry.into()).await;
        }
        // The log carries the trace to every member that applies the entry.
        let span = tracing::info_span!(target: trace::TARGET, "raft.propose");
        entry.traceparent = trace::sampled(&span);
        self.decide(entry.into()).instrument(span).await
    }

    async fn decide(&self, logged: Logged) -> Result<Outcome, ProposeError> {
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
            let decided = timeout_at(until, self.propose_at(leader, logged.clone())).await;
            match decided {
                Ok(Err(ProposeError::NotProposed(why))) => refusal = why,
                Ok(Err(ProposeError::Unknown(why))) if mutant::is_on(Mutant::RetryAsNew) => refusal = why,
                Ok(decided) => return decided,
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

    async fn propose_at(&self, leader: u64, logged: Logged) -> Result<Outcome, ProposeError> {
        if leader == self.inner.id {
            self.propose_here(logged).await
        } else {
            self.inner.forwarder.propose(leader, logged).await
        }
    }

    /// Proposes here only. What is answered is applied here.
    async fn propose_here(&self, logged: Logged) -> Result<Outcome, ProposeError> {
        if !logged.is_known() {
            return Err(ProposeError::NotProposed("an entry needs a command".into()));
        }
        let span = commit_span(&logged);
        let write = self.inner.raft.client_write(logged).instrument(span);
        match timeout(DECIDED_WITHIN, write).await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(RaftError::APIError(error))) => Err(undecided(&error)),
            Ok(Err(RaftError::Fatal(error))) => Err(ProposeError::Unknown(error.to_string())),
            Err(_) => Err(ProposeError::Unknown(NO_QUORUM.into())),
        }
    }

    /// Proposes entries of known commands here, in their order: what the leader does for the others. There is a result
    /// for each, with its index.
    pub(crate) async fn propose_many_here(&self, entries: Vec<Logged>) -> impl Stream<Item = Committed> + use<> {
        let until = Instant::now() + DECIDED_WITHIN;
        let spans: Vec<_> = entries.iter().map(commit_span).collect();
        let written = self.inner.raft.client_write_many(entries).await;
        let results = written.map_err(|fatal| ProposeError::Unknown(fatal.to_string()));
        futures::stream::unfold((spans.into_iter(), results), move |(mut spans, mut results)| async move {
            let span = spans.next()?;
            let committed = match &mut results {
                Err(why) => Err(why.clone()),
                Ok(results) => match timeout_at(until, results.next()).instrument(span).await {
                    Ok(Some(Ok(Ok(done)))) => Ok((done.response, done.log_id.index)),
                    Ok(Some(Ok(Err(error)))) => Err(undecided(&error)),
                    Ok(Some(Err(fatal))) => Err(ProposeError::Unknown(fatal.to_string())),
                    Ok(None) => Err(ProposeError::Unknown("Raft stopped".into())),
                    Err(_) => Err(ProposeError::Unknown(NO_QUORUM.into())),
                },
            };
            Some((committed, (spans, results)))
        })
    }
}

/// Span of an entry's way through the log, on the leader.
fn commit_span(logged: &Logged) -> tracing::Span {
    let parent = &logged.entry().traceparent;
    if parent.is_empty() || !trace::is_on() {
        return tracing::Span::none();
    }
    trace::child(tracing::info_span!(target: trace::TARGET, parent: None, "raft.commit"), parent)
}

/// Only a refusal to append proves that nothing was proposed.
fn undecided(error: &ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => {
            ProposeError::NotProposed(format!("this member does not lead: {:?}", forward.reason))
        }
        other => ProposeError::Unknown(other.to_string()),
    }
}
