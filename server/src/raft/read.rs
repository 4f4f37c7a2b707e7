//! Linearizable reads on any member: ReadIndex rounds, shared by those already waiting and never joined once sent.

use crate::machine::Snapshot;
use crate::raft::Consensus;
use fairlead_proto::internal::v1::ReadIndexRequest;
use openraft::ReadPolicy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Time for a round, election included.
const ROUND_WITHIN: Duration = Duration::from_secs(3);
/// Time for one attempt of a round.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(1);
/// Readers that may wait for a round.
pub const WAITING: usize = 65_536;

/// Why a read could not be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nobody leads, or the leader reaches no quorum.
    #[error("no quorum: {0}")]
    NoLeader(String),
    /// This member is stopping or overloaded.
    #[error("not served: {0}")]
    Refused(String),
}

type Waiter = oneshot::Sender<Result<u64, ReadError>>;

/// Where readers queue for the next round.
#[derive(Clone)]
pub(crate) struct Rounds {
    waiters: mpsc::Sender<Waiter>,
}

impl Rounds {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Waiter>) {
        let (waiters, queue) = mpsc::channel(WAITING);
        (Self { waiters }, queue)
    }
}

impl Consensus {
    /// A state that reflects every write acknowledged before this call.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self) -> Result<Arc<Snapshot>, ReadError> {
        let index = self.read_index().await?;
        self.published_at(index).await
    }

    /// As [`Consensus::read`], and at least as new as a revision that the caller has seen.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_at_least(&self, revision: u64) -> Result<Arc<Snapshot>, ReadError> {
        let snapshot = self.read().await?;
        if snapshot.state.revision() >= revision {
            return Ok(snapshot);
        }
        let mut published = self.inner.published.clone();
        let reached = tokio::time::timeout(ROUND_WITHIN, published.wait_for(|published| published.snapshot.state.revision() >= revision)).await;
        match reached {
            Ok(Ok(published)) => Ok(published.snapshot.clone()),
            _ => Err(ReadError::Refused(format!("revision {revision} is not reached yet"))),
        }
    }

    /// An index that a quorum confirmed after this call.
    pub(crate) async fn read_index(&self) -> Result<u64, ReadError> {
        let (waiter, answer) = oneshot::channel();
        let refused = |_| ReadError::Refused("too many reads are waiting".into());
        self.inner.rounds.waiters.try_send(waiter).map_err(|error| refused(error.to_string()))?;
        answer.await.map_err(|_| ReadError::Refused("this member is stopping".into()))?
    }

    async fn published_at(&self, index: u64) -> Result<Arc<Snapshot>, ReadError> {
        let mut published = self.inner.published.clone();
        let reached = tokio::time::timeout(ROUND_WITHIN, published.wait_for(|published| published.index >= index)).await;
        match reached {
            Ok(Ok(published)) => Ok(published.snapshot.clone()),
            _ => Err(ReadError::NoLeader(format!("this member has not applied index {index}"))),
        }
    }

    /// Runs rounds, one at a time: whoever comes while one is under way waits for the next.
    pub(crate) async fn run_rounds(self, mut queue: mpsc::Receiver<Waiter>) {
        let cancel = self.inner.cancel.clone();
        let mut waiters = Vec::new();
        loop {
            let some = tokio::select! {
                () = cancel.cancelled() => return,
                some = queue.recv_many(&mut waiters, WAITING) => some,
            };
            if some == 0 {
                return;
            }
            let answer = tokio::select! {
                () = cancel.cancelled() => return,
                answer = self.round() => answer,
            };
            for waiter in waiters.drain(..) {
                let _ = waiter.send(answer.clone());
            }
        }
    }

    async fn round(&self) -> Result<u64, ReadError> {
        let until = tokio::time::Instant::now() + ROUND_WITHIN;
        let mut why = String::from("nobody leads");
        while tokio::time::Instant::now() < until {
            let mut leader = self.subscribe_leadership();
            let found = tokio::time::timeout_at(until, leader.wait_for(Option::is_some)).await;
            let Some(leader) = found.ok().and_then(Result::ok).and_then(|leader| *leader) else { break };
            let attempt = async { if leader == self.inner.id { self.index_here().await } else { self.index_there(leader).await } };
            match tokio::time::timeout(ATTEMPT_WITHIN, attempt).await {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(error)) => why = error,
                Err(_) => "the leader did not confirm in time".clone_into(&mut why),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(ReadError::NoLeader(why))
    }

    async fn index_here(&self) -> Result<u64, String> {
        let linearizer = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|error| error.to_string())?;
        let state = linearizer.await_ready(&self.inner.raft).await.map_err(|error| error.to_string())?;
        Ok(state.read_log_id().index())
    }

    async fn index_there(&self, leader: u64) -> Result<u64, String> {
        let mut peer = self.inner.peers.client(leader).ok_or("the leader is not known")?;
        let request = ReadIndexRequest { header: Some(self.header(leader)) };
        let answer = peer.read_index(request).await.map_err(|status| status.message().to_owned())?;
        Ok(answer.into_inner().index)
    }
}
