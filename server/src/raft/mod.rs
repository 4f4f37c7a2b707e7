//! Consensus: starting a member, proposing to whoever leads, linearizable reads on any member.
//!
//! `types` and `network` speak openraft; `service` is the peer face; `propose` and `read` are what the rest of the server
//! uses. With storage/ the only user of openraft.

mod drained;
pub mod fence;
mod forward;
pub mod joined;
pub mod membership;
mod network;
mod peers;
mod propose;
mod read;
mod returning;
mod service;
mod start;
mod suspicion;
pub mod types;

pub use propose::ProposeError;
pub use read::ReadError;
pub use service::PeerApi;
pub use start::{ConsensusConfig, StartError};

use crate::machine::Snapshot;
use crate::storage::{Held, Published, StateMachine};
use crate::traced::Traced;
use crate::upkeep::space;
use fairlead_proto::internal::v1::{Member, PeerHeader, peer_client::PeerClient};
use forward::Forwarder;
use peers::Peers;
use read::Rounds;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use suspicion::Suspicion;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use types::TypeConfig;

/// openraft with our parameters.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Largest message between members, bytes, both ways.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Time for a leader to hand over before it stops.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Time for storage to be closed after Raft has stopped.
const CLOSE: Duration = Duration::from_secs(5);

/// This member's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    data_dir: std::path::PathBuf,
    id: u64,
    raft: Raft,
    peers: Arc<Peers>,
    published: watch::Receiver<Published>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    leader: watch::Receiver<Option<u64>>,
    rounds: Rounds,
    /// Proposals under way.
    slots: Semaphore,
    forwarder: Forwarder,
    failure: watch::Sender<Option<String>>,
    cancel: CancellationToken,
    /// It lost its data and doesn't vote yet.
    returning: Arc<AtomicBool>,
    /// It was told not to lead.
    drained: Arc<AtomicBool>,
    suspicion: Suspicion,
    /// One change of the members at a time.
    managing: tokio::sync::Mutex<()>,
    /// Traced changes of late.
    traced: Arc<Traced>,
    held: Held,
    #[cfg(test)]
    database: std::sync::Weak<crate::storage::Database>,
}

/// Raft as this member sees it.
#[derive(Clone, Debug)]
pub struct RaftStatus {
    /// This member.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// Current term.
    pub term: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// Last index in the log.
    pub last_log_index: u64,
    /// Voters.
    pub voters: BTreeSet<u64>,
}

impl Consensus {
    /// The newest published state of this member.
    #[must_use]
    pub fn local(&self) -> Arc<Snapshot> {
        self.inner.published.borrow().snapshot.clone()
    }

    /// The newest published state with the term and the index of the log that it reflects.
    #[must_use]
    pub fn position(&self) -> (Arc<Snapshot>, (u64, u64)) {
        let term = self.status().term;
        let published = self.inner.published.borrow();
        (published.snapshot.clone(), (term, published.index))
    }

    /// Digests of the state at the newest index and at earlier ones that every member takes.
    #[must_use]
    pub fn digests(&self) -> Vec<(u64, String)> {
        let published = self.inner.published.borrow().clone();
        let mut digests: Vec<_> = published.digests.iter().cloned().collect();
        if digests.last().is_none_or(|(index, _)| *index < published.index) {
            digests.push((published.index, published.snapshot.state.digest_hex()));
        }
        digests
    }

    /// Stops this member for good: its state is not what the others' is. It does not start again from this directory.
    pub fn fence(&self, index: u64, reason: &str) {
        let why = format!("the state of this member at index {index} differs from the others': {reason}");
        if let Err(error) = fence::note(&self.inner.data_dir, &why) {
            tracing::error!(%error, "the fence can't be noted");
        }
        self.inner.failure.send_replace(Some(why));
        self.inner.raft.runtime_config().elect(false);
    }

    /// Every published state; the newest wins.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.inner.snapshots.clone()
    }

    /// Which of the newest changes belong to a trace.
    #[must_use]
    pub fn traced(&self) -> &Traced {
        &self.inner.traced
    }

    /// True if this member leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.inner.raft.is_leader()
    }

    /// Who leads.
    #[must_use]
    pub fn subscribe_leadership(&self) -> watch::Receiver<Option<u64>> {
        self.inner.leader.clone()
    }

    /// Raft as this member sees it.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        use openraft::async_runtime::WatchReceiver as _;
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        RaftStatus {
            id: self.inner.id,
            name: self.inner.name.clone(),
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied_index: self.inner.published.borrow().index,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            voters: metrics.membership_config.membership().voter_ids().collect(),
        }
    }

    /// This member lost its data and does not vote before it has it back.
    #[must_use]
    pub fn is_returning(&self) -> bool {
        self.inner.returning.load(Ordering::Acquire)
    }

    /// Every member: as it told its addresses, or as the founding list has it.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let told = self.local();
        let known = self.inner.peers.members();
        known
            .into_iter()
            .map(|(id, address)| {
                told.state.members().find(|member| member.id == id).cloned().unwrap_or(Member {
                    id,
                    name: address.name,
                    peer_address: address.peer_address,
                    ..Member::default()
                })
            })
            .collect()
    }

    /// A client of another member's peer face.
    ///
    /// # Errors
    /// No such member.
    pub async fn peer(&self, id: u64) -> Result<PeerClient<Channel>, ReadError> {
        self.inner.peers.client(id).ok_or_else(|| ReadError::NoLeader(format!("member {id} is not in the cluster")))
    }

    /// What every message to a peer starts with.
    #[must_use]
    pub fn header(&self, to: u64) -> PeerHeader {
        self.inner.peers.header(to)
    }

    /// What Raft says of itself, for people.
    #[must_use]
    pub fn describe_raft(&self) -> String {
        use openraft::async_runtime::WatchReceiver as _;
        self.inner.raft.metrics().borrow_watched().to_string()
    }

    /// Writes of this member's clients that are not decided yet.
    #[must_use]
    pub fn proposals(&self) -> usize {
        propose::MAX_PROPOSALS.saturating_sub(self.inner.slots.available_permits())
    }

    /// Bytes left on this member's disk, as far as that can be told.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        space::free(&self.inner.data_dir).ok()
    }

    /// Why storage or Raft stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.borrow().clone()
    }

    /// Waits until storage or Raft stops unasked.
    pub async fn failed(&self) -> String {
        let mut failure = self.inner.failure.subscribe();
        let found = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match found {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Hands leadership over, if this member has it, and stops: storage is closed when this returns.
    pub async fn shutdown(&self) {
        if let Some(heir) = self.heir().await
            && self.inner.raft.trigger().transfer_leader(heir).await.is_ok()
        {
            let mut leader = self.inner.leader.clone();
            let own = Some(self.inner.id);
            let handed = leader.wait_for(|leader| leader.is_some() && *leader != own);
            if tokio::time::timeout(HAND_OVER, handed).await.is_err() {
                tracing::warn!("leadership was not taken over in time; the others elect");
            }
        }
        self.inner.cancel.cancel();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        let closed = async {
            while self.inner.held.is_held() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(CLOSE, closed).await.is_err() {
            tracing::warn!("storage is still in use");
        }
    }

    /// Who should lead after this member: of the other voters that answer, the one that has most of the log. `None` if
    /// this member doesn't lead or there is nobody.
    async fn heir(&self) -> Option<u64> {
        use openraft::async_runtime::WatchReceiver as _;
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        if !metrics.state.is_leader() {
            return None;
        }
        let log = metrics.replication?;
        let voters = metrics.membership_config.membership().voter_ids();
        let others = voters.filter(|id| *id != self.inner.id && self.answers(*id, HAND_OVER));
        let mut others: Vec<u64> = others.collect();
        others.sort_by_key(|id| std::cmp::Reverse(log.get(id).copied().flatten()));
        // One that was told not to lead would refuse, and an election take its time.
        let asked = others.iter().map(|id| async move { (*id, self.status_of(*id).await) });
        let asked = futures::future::join_all(asked).await;
        let willing = asked.iter().find(|(_, status)| status.as_ref().is_some_and(|status| !status.drained));
        willing.map(|(id, _)| *id)
    }

    /// Whether a member has answered this one, which leads, within some time.
    fn answers(&self, id: u64, within: Duration) -> bool {
        use openraft::{Instant as _, async_runtime::WatchReceiver as _};
        if id == self.inner.id {
            return true;
        }
        let heard = self.inner.raft.metrics().borrow_watched().heartbeat.clone().unwrap_or_default();
        heard.get(&id).copied().flatten().is_some_and(|heard| heard.elapsed() < within)
    }

    /// Raft's own loop answers.
    pub async fn is_turning(&self) -> bool {
        self.inner.raft.with_raft_state(|_| ()).await.is_ok()
    }
}

#[cfg(test)]
mod tests;
