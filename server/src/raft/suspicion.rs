//! A leader that died is replaced without waiting for the time of an election: its stream of entries breaks, its port
//! refuses, a majority finds the same, and one of them asks for votes at once. A leader that only falls silent (a lost
//! host, a cut network) refuses nothing, and is replaced when the time is over, as ever. A leader that restarted leads no
//! more, and asks for votes at once itself.
//!
//! INVARIANT: nobody is asked for a vote before a majority would give it, so one member's broken link disturbs no leader; and
//! a voter passes over its leader's lease only for the very vote it agreed to replace, or if that leader itself asks. No
//! read relies on a lease.

use crate::raft::types::{LogId, TypeConfig};
use crate::raft::{Consensus, Inner};
use crate::storage::codec;
use fairlead_proto::internal::v1::{LostRequest, LostResponse, Vote};
use openraft::raft::{VoteRequest, VoteResponse};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Attempts to reach a leader before it counts as alive: a process that is being killed closes its sockets one by one.
const ATTEMPTS: u32 = 10;
/// Pause between them.
const PAUSE: Duration = Duration::from_millis(20);
/// Time for one of them. Silence says nothing.
const ATTEMPT: Duration = Duration::from_millis(200);
/// Time that each member leaves those before it, so that two don't split the votes.
const TURN: Duration = Duration::from_millis(150);
/// Time for the others to look for themselves.
const ANSWER: Duration = Duration::from_millis(1_000);
/// A leader that restarted asks for votes this often, in case the others are starting, too.
const ASKS: u32 = 10;
/// Between two times.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Time for which a voter's word holds.
const HOLDS: Duration = Duration::from_secs(2);

/// What this member suspects.
pub(super) struct Suspicion {
    /// Whose stream of entries broke last.
    broken: watch::Sender<Option<u64>>,
    /// The leader's vote that this member agreed to replace, and when.
    agreed: Mutex<Option<(Vote, Instant)>>,
}

impl Default for Suspicion {
    fn default() -> Self {
        Self { broken: watch::Sender::new(None), agreed: Mutex::default() }
    }
}

impl Suspicion {
    fn agree(&self, vote: Vote) {
        *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some((vote, Instant::now()));
    }

    fn agreed_on(&self, vote: &Vote) -> bool {
        let agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner);
        agreed.as_ref().is_some_and(|(agreed, at)| agreed == vote && at.elapsed() < HOLDS)
    }
}

/// Held by a stream of entries that comes in: one that is dropped before it ended has broken.
pub(super) struct Incoming {
    consensus: Consensus,
    /// Whose entries they are, once that is known.
    pub(super) from: Option<u64>,
    /// It ended as it should.
    pub(super) ended: bool,
}

impl Incoming {
    pub(super) fn new(consensus: Consensus) -> Self {
        Self { consensus, from: None, ended: false }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.ended && self.from.is_some() {
            self.consensus.inner.suspicion.broken.send_replace(self.from);
        }
    }
}

impl Consensus {
    /// Looks after leaders whose streams break.
    pub(super) async fn follow_suspicion(self) {
        let mut broken = self.inner.suspicion.broken.subscribe();
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                changed = broken.changed() => if changed.is_err() { return },
            }
            let leader = *broken.borrow_and_update();
            let Some(leader) = leader else { continue };
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = self.replace(leader) => {}
            }
        }
    }

    /// Asks for votes after a restart, if this member led before it: it leads no more, and nobody need wait to believe that.
    pub(super) async fn stand_again(self) {
        use openraft::async_runtime::WatchReceiver as _;
        for _ in 0..ASKS {
            let metrics = self.inner.raft.metrics().borrow_watched().clone();
            let led = metrics.vote.leader_id.node_id == self.inner.id && metrics.vote.leader_id.term > 0;
            if !led || metrics.current_leader.is_some() || !self.may_lead() || self.inner.cancel.is_cancelled() {
                return;
            }
            // Asks whether it would be elected before it raises the term: the others may have another leader.
            if let Err(error) = self.inner.raft.trigger().elect(true).await {
                tracing::debug!(%error, "no election");
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Stands for election if a leader is gone, in this member's turn, and a majority finds so.
    async fn replace(&self, leader: u64) {
        let Some(vote) = self.follows(leader) else { return };
        let voters = self.status().voters;
        if !voters.contains(&self.inner.id) || !self.may_lead() || !self.is_gone(leader).await {
            return;
        }
        let before = voters.iter().filter(|id| **id != leader && **id < self.inner.id).count();
        tokio::time::sleep(TURN * u32::try_from(before).unwrap_or(u32::MAX)).await;
        if self.follows(leader).as_ref() != Some(&vote) {
            return; // Another was faster.
        }
        let name = self.inner.peers.members().remove(&leader).map_or_else(|| leader.to_string(), |member| member.name);
        if !self.majority_finds(&vote, (leader, &voters)).await {
            tracing::info!(leader = name, "it seems to have died, but no majority that this member can lead says so");
            return;
        }
        tracing::warn!(leader = name, "it died: this member asks for votes");
        metrics::counter!("fairlead_raft_suspicions_total").increment(1);
        if let Err(error) = self.inner.raft.trigger().elect(false).await {
            tracing::debug!(%error, "no election");
        }
    }

    /// Whether a majority of the voters, this member included, finds a leader gone, and none of those has more of the
    /// log than this member: it would not be elected.
    async fn majority_finds(&self, vote: &Vote, (leader, voters): (u64, &BTreeSet<u64>)) -> bool {
        let others = voters.iter().filter(|id| **id != self.inner.id && **id != leader);
        let asked = others.map(|id| async {
            let request = LostRequest { header: Some(self.header(*id)), vote: Some(*vote) };
            let mut client = self.inner.peers.client(*id)?;
            let answer = tokio::time::timeout(ANSWER, client.lost(request)).await.ok()?.ok()?.into_inner();
            answer.agreed.then(|| answer.last_log_id.as_ref().map(codec::to_log_id))
        });
        let agreed: Vec<Option<LogId>> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        let own = self.last_log_id().await;
        agreed.len() + 1 > voters.len() / 2 && agreed.iter().all(|log| *log <= own)
    }

    /// Another voter asks whether this one finds its leader gone, too.
    pub(super) async fn lost(&self, request: LostRequest) -> LostResponse {
        let vote = request.vote.unwrap_or_default();
        let found = self.follows(vote.node_id) == Some(vote) && self.is_gone(vote.node_id).await;
        let agreed = found && self.follows(vote.node_id) == Some(vote);
        if agreed {
            self.inner.suspicion.agree(vote);
        }
        LostResponse { agreed, last_log_id: self.last_log_id().await.as_ref().map(codec::log_id) }
    }

    /// Whether the leader whose vote this member holds is known to lead no more: this member agreed that it is gone, or it
    /// asks for votes itself. Then the lease that was granted to it is void.
    pub(super) fn has_no_leader_but(&self, candidate: u64) -> bool {
        use openraft::async_runtime::WatchReceiver as _;
        let vote = codec::vote(&self.inner.raft.metrics().borrow_watched().vote);
        vote.node_id == candidate || self.inner.suspicion.agreed_on(&vote)
    }

    /// Whether this member would vote for a candidate, with no regard to its leader's lease: as openraft decides it, but for
    /// that.
    pub(super) async fn would_vote(&self, request: &VoteRequest<TypeConfig>) -> VoteResponse<TypeConfig> {
        use openraft::async_runtime::WatchReceiver as _;
        let vote = self.inner.raft.metrics().borrow_watched().vote;
        let last = self.last_log_id().await;
        let granted = request.vote > vote && request.last_log_id >= last;
        VoteResponse::new(vote, last, granted)
    }

    /// The vote by which a member leads this one; `None` if it doesn't, or is this member.
    fn follows(&self, leader: u64) -> Option<Vote> {
        use openraft::async_runtime::WatchReceiver as _;
        let Inner { id, raft, .. } = &*self.inner;
        let metrics = raft.metrics().borrow_watched().clone();
        let follows = leader != *id && metrics.current_leader == Some(leader) && metrics.vote.committed;
        follows.then(|| codec::vote(&metrics.vote))
    }

    async fn last_log_id(&self) -> Option<LogId> {
        self.inner.raft.with_raft_state(|state| state.log_ids.last().copied()).await.ok()?
    }

    /// A member's port refuses: nobody listens there any more.
    async fn is_gone(&self, id: u64) -> bool {
        let Some(address) = self.inner.peers.members().remove(&id).map(|member| member.peer_address) else {
            return false;
        };
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            match tokio::time::timeout(ATTEMPT, TcpStream::connect(&address)).await {
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }
}
