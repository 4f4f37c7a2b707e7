//! Linearizable reads on any member: ReadIndex rounds, shared by those already waiting and never joined once sent.
//!
//! INVARIANT: a round that answers a reader began after the reader came, and its index was confirmed by a quorum in
//! that time. What is read is at least as new as the index.

use crate::machine::Snapshot;
use crate::raft::Consensus;
use fairlead_proto::internal::v1::ReadIndexRequest;
use fairlead_proto::mutant::{self, Mutant};
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
        if mutant::is_on(Mutant::StaleRead) {
            return Ok(self.local());
        }
        let mut index = self.read_index(until).await?;
        if mutant::is_on(Mutant::ReadBeforeApply) {
            index = 0;
        }
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

    /// Answers readers until this member stops.
    pub(crate) async fn run_rounds(self, queue: mpsc::Receiver<Waiter>) {
        tokio::select! {
            () = self.inner.cancel.cancelled() => {}
            () = rounds(queue, || self.round()) => {}
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

/// Runs rounds, one at a time: whoever comes while one is under way waits for the next.
async fn rounds<F: Future<Output = Result<u64, ReadError>>>(mut queue: mpsc::Receiver<Waiter>, round: impl Fn() -> F) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, WAITING).await > 0 {
        let answer = round().await;
        if mutant::is_on(Mutant::LateRound) {
            tokio::time::sleep(LOOK_AGAIN).await;
            let _ = timeout(Duration::ZERO, queue.recv_many(&mut waiters, WAITING)).await;
        }
        for waiter in waiters.drain(..) {
            // A reader that gave up is no reason not to answer the others.
            let _ = waiter.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test(start_paused = true)]
    async fn who_asks_after_a_round_was_sent_gets_the_next_one() {
        let (to, queue) = mpsc::channel(16);
        let began = Arc::new(AtomicU64::new(0));
        let count = began.clone();
        // A round's answer is its number: what it can have seen is what was there when it began.
        tokio::spawn(rounds(queue, move || {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(number)
            }
        }));
        let mut readers = Vec::new();
        for pause in [0, 0, 3, 3, 3, 3, 9, 1, 0, 20, 5, 5] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let (waiter, answer) = oneshot::channel();
            let before = began.load(Ordering::SeqCst);
            to.send(waiter).await.unwrap();
            readers.push((before, answer));
        }
        let mut shared = std::collections::BTreeMap::new();
        for (before, answer) in readers {
            let number = answer.await.unwrap().unwrap();
            assert!(number > before, "round {number} had begun before the reader came");
            *shared.entry(number).or_insert(0) += 1;
        }
        assert!(shared.values().any(|count| *count > 1), "those who wait share a round: {shared:?}");
    }
}
