//! Linearizable reads on any member: ReadIndex rounds, shared by those already waiting and never joined once sent.
//!
//! INVARIANT: a round that answers a reader began after the reader came, and its index was confirmed by a quorum in
//! that time. What is read is at least as new as the index.

use crate::machine::Snapshot;
use crate::raft::Consensus;
use fairlead_proto::internal::v1::ReadIndexRequest;
use openraft::ReadPolicy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

/// Time for a read, an election in between included.
const READ_WITHIN: Duration = Duration::from_secs(3);
/// Time for one attempt of a round.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(1);
/// Pause between two attempts of a round.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Readers that may wait for a round.
const WAITING: usize = 65_536;

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

pub(crate) type Waiter = oneshot::Sender<Result<u64, ReadError>>;

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
    /// [`ReadError`], within 3 s.
    pub async fn read(&self) -> Result<Arc<Snapshot>, ReadError> {
        self.read_at_least(0).await
    }

    /// As [`Consensus::read`], and at least as new as a revision that the caller has seen.
    ///
    /// # Errors
    /// [`ReadError`], within 3 s.
    pub async fn read_at_least(&self, revision: u64) -> Result<Arc<Snapshot>, ReadError> {
        let until = Instant::now() + READ_WITHIN;
        let index = self.read_index(until).await?;
        let mut published = self.inner.published.clone();
        let reached = published.wait_for(|published| published.index >= index);
        match timeout_at(until, reached).await {
            Ok(Ok(published)) if published.snapshot.state.revision() >= revision => {
                return Ok(published.snapshot.clone());
            }
            Ok(Ok(_)) => {}
            _ => {
                let why = format!("this member has not applied index {index}");
                return Err(ReadError::NoLeader(why));
            }
        }
        let reached = published.wait_for(|published| published.snapshot.state.revision() >= revision);
        match timeout_at(until, reached).await {
            Ok(Ok(published)) => Ok(published.snapshot.clone()),
            _ => Err(ReadError::Refused(format!("revision {revision} is not reached yet"))),
        }
    }

    /// An index that a quorum confirmed after this call, if this member leads.
    pub(crate) async fn confirmed_index(&self) -> Result<u64, ReadError> {
        self.read_index(Instant::now() + READ_WITHIN).await
    }

    pub(crate) async fn read_index(&self, until: Instant) -> Result<u64, ReadError> {
        let (waiter, answer) = oneshot::channel();
        let queued = self.inner.rounds.waiters.try_send(waiter);
        queued.map_err(|_| ReadError::Refused("too many reads are waiting".into()))?;
        match timeout_at(until, answer).await {
            Ok(Ok(index)) => index,
            Ok(Err(_)) => Err(ReadError::Refused("this member is stopping".into())),
            Err(_) => Err(ReadError::NoLeader("no leader confirmed the read within 3 s".into())),
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
                // A reader that gave up is no reason not to answer the others.
                let _ = waiter.send(answer.clone());
            }
        }
    }

    async fn round(&self) -> Result<u64, ReadError> {
        let until = Instant::now() + READ_WITHIN;
        let mut why = String::from("no leader is elected");
        while Instant::now() < until {
            let mut leader = self.subscribe_leadership();
            let found = timeout_at(until, leader.wait_for(Option::is_some)).await;
            let Some(leader) = found.ok().and_then(Result::ok).and_then(|leader| *leader) else {
                break;
            };
            let attempt = async {
                if leader == self.inner.id { self.index_here().await } else { self.index_there(leader).await }
            };
            match timeout(ATTEMPT_WITHIN, attempt).await {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(error)) => why = error,
                Err(_) => "the leader did not confirm in time".clone_into(&mut why),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(ReadError::NoLeader(why))
    }

    async fn index_here(&self) -> Result<u64, String> {
        let confirmed = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
        let linearizer = confirmed.map_err(|error| error.to_string())?;
        Ok(linearizer.read_log_id().index())
    }

    async fn index_there(&self, leader: u64) -> Result<u64, String> {
        let peer = self.inner.peers.client(leader);
        let mut peer = peer.ok_or("the leader is not in --initial-cluster")?;
        let request = ReadIndexRequest { header: Some(self.header(leader)) };
        let answer = peer.read_index(request).await;
        let answer = answer.map_err(|status| status.message().to_owned())?;
        Ok(answer.into_inner().index)
    }
}
