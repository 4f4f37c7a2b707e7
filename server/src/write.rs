//! Stamps commands and proposes them: time comes from here, the proposer, and never from inside apply.

use crate::raft::{Consensus, ProposeError};
use fairlead_proto::internal::v1::{Command, Entry, Outcome, command};
use fairlead_proto::v1::RequestId;
use std::time::{SystemTime, UNIX_EPOCH};

/// Proposes commands.
#[derive(Clone)]
pub struct Writer {
    consensus: Consensus,
}

impl Writer {
    /// A writer on this server's consensus.
    #[must_use]
    pub fn new(consensus: Consensus) -> Self {
        Self { consensus }
    }

    /// Proposes a command that is harmless to execute twice.
    ///
    /// # Errors
    /// [`ProposeError`]: not proposed, or unknown.
    pub async fn propose(&self, command: command::Kind) -> Result<Outcome, ProposeError> {
        self.consensus.propose(stamp(command, None)).await
    }

    /// Proposes a client's command; its request id makes a retry safe.
    ///
    /// # Errors
    /// [`ProposeError`]: not proposed, or unknown.
    pub async fn propose_once(
        &self,
        request_id: Option<RequestId>,
        command: command::Kind,
    ) -> Result<Outcome, ProposeError> {
        self.consensus.propose(stamp(command, request_id)).await
    }
}

/// An entry for a command, with this server's time.
#[must_use]
pub fn stamp(command: command::Kind, request_id: Option<RequestId>) -> Entry {
    Entry { at_ms: now_ms(), request_id, command: Some(Command { kind: Some(command) }), traceparent: String::new() }
}

/// Milliseconds since the epoch by this server's clock.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A time as people read it: RFC 3339, whole seconds.
#[must_use]
pub fn rfc3339(at_ms: u64) -> String {
    let at = i64::try_from(at_ms / 1_000).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}
