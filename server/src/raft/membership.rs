//! Changes of who belongs to the cluster and who votes. The leader makes them, one at a time; any member passes them on.
//!
//! INVARIANT: no change is made after which the voters that answer are no majority. An id is given once: one that left
//! is remembered in the state before Raft forgets it.

use crate::machine::{State, members::free_id};
use crate::raft::types::{MemberAddress, TypeConfig, member_id};
use crate::raft::{Consensus, ProposeError, ReadError};
use crate::write::stamp;
use fairlead_proto::internal::v1::{
    ManageRequest, ManageResponse, Member, MemberStatusRequest, RemoveMember, SetMember, command,
    manage_request::Change,
};
use fairlead_proto::v1::{
    JoinRequest, JoinResponse, KnownMember, MemberChanged, MemberStatus, PromoteRequest, RemoveRequest, TransferRequest,
};
use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::Endpoint;

/// Entries that a learner may be behind when it begins to vote.
const CAUGHT_UP: u64 = 1_000;
/// Time for a member to say how it is.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Time for one change.
const CHANGED_WITHIN: Duration = Duration::from_secs(20);
/// Time for another member to lead.
const HANDED_WITHIN: Duration = Duration::from_secs(3);
/// A removed member gets this long to hear of it by its log: rounds, and the pause between two.
const HEARS_WITHIN_ROUNDS: u32 = 20;
const HEARS_ROUND: Duration = Duration::from_millis(100);
/// Leaders asked one after the other.
const ATTEMPTS: u32 = 4;
/// Members at most, learners included.
const MOST: usize = 16;

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// There is no such member.
    #[error("there is no member called {0:?}")]
    NoMember(String),
    /// It is not allowed, or would harm; the sentence says what to do.
    #[error("{0}")]
    Refused(String),
    /// Another member leads now, and nothing was done here.
    #[error("another member leads now")]
    Moved,
    /// No leader, no quorum, or not in time; it may be tried again, and may have been done.
    #[error("{0}")]
    Unavailable(String),
}

impl From<ReadError> for ManageError {
    fn from(error: ReadError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<ProposeError> for ManageError {
    fn from(error: ProposeError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

pub(super) type Managed = Result<ManageResponse, ManageError>;

impl Consensus {
    /// Makes a change, or has it made by the member that can.
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn manage(&self, change: Change) -> Managed {
        if let Change::Drain(drain) = &change {
            let id = self.member_called(&drain.name)?;
            return if id == self.inner.id {
                self.drain(drain).await
            } else {
                self.manage_at(id, change.clone()).await
            };
        }
        let mut leadership = self.subscribe_leadership();
        for _ in 0..ATTEMPTS {
            let leader = timeout(HANDED_WITHIN, leadership.wait_for(Option::is_some)).await;
            let leader = leader.ok().and_then(Result::ok).and_then(|leader| *leader);
            let leader = leader.ok_or_else(|| ManageError::Unavailable("no leader is elected".into()))?;
            let here = leader == self.inner.id;
            let made = if here {
                self.manage_here(change.clone()).await
            } else {
                self.manage_at(leader, change.clone()).await
            };
            if made != Err(ManageError::Moved) {
                return made;
            }
            let moved = leadership.wait_for(|now| now.is_some_and(|now| now != leader));
            let _ = timeout(HANDED_WITHIN, moved).await;
        }
        Err(ManageError::Unavailable("leadership goes from one to another: try again".into()))
    }

    /// Makes a change on this member, which leads (or is the one to be drained).
    ///
    /// # Errors
    /// [`ManageError`].
    pub async fn manage_here(&self, change: Change) -> Managed {
        if let Change::Drain(drain) = &change {
            return self.drain(drain).await;
        }
        if !self.is_leader() {
            return Err(ManageError::Moved);
        }
        // Another change finishes first, or this one is refused at once.
        let Ok(_one) = self.inner.managing.try_lock() else {
            return Err(ManageError::Refused(
                "another change of the members is under way: try again when it is done".into(),
            ));
        };
        let made = async {
            match change {
                Change::Join(join) => self.take_in(&join).await,
                Change::Promote(promote) => self.promote(&promote).await,
                Change::Remove(remove) => self.remove(&remove).await,
                Change::Transfer(transfer) => self.transfer(&transfer).await,
                Change::Drain(drain) => self.drain(&drain).await,
            }
        };
        let late = |_| {
            ManageError::Unavailable("not done within 20 s: look at `fairlead member list` before trying again".into())
        };
        timeout(CHANGED_WITHIN, made).await.map_err(late)?
    }

    async fn manage_at(&self, id: u64, change: Change) -> Managed {
        let mut peer = self.peer(id).await?;
        let request = ManageRequest { header: Some(self.header(id)), change: Some(change) };
        let asked = timeout(CHANGED_WITHIN, peer.manage(request)).await;
        let answer = asked.map_err(|_| ManageError::Unavailable("the member did not answer within 20 s".into()))?;
        answer.map(tonic::Response::into_inner).map_err(|status| match status.code() {
            tonic::Code::NotFound => ManageError::NoMember(status.message().to_owned()),
            tonic::Code::FailedPrecondition => ManageError::Refused(status.message().to_owned()),
            tonic::Code::Aborted => ManageError::Moved,
            _ => ManageError::Unavailable(status.message().to_owned()),
        })
    }

    fn member_called(&self, name: &str) -> Result<u64, ManageError> {
        let found = self.members().into_iter().find(|member| member.name == name);
        // After a recovery the state still knows those that Raft has lost.
        let state = self.local().state.clone();
        let found = found.or_else(|| state.members().find(|member| member.name == name).cloned());
        found.map(|member| member.id).ok_or_else(|| ManageError::NoMember(name.to_owned()))
    }

    async fn take_in(&self, join: &JoinRequest) -> Managed {
        let state = self.read().await?.state.clone();
        let member = joining(&state, join)?;
        let address = MemberAddress { name: member.name.clone(), peer_address: member.peer_address.clone() };
        self.settle(command::Kind::SetMember(SetMember { member: Some(member.clone()), join: true })).await?;
        if !self.known_to_raft().contains_key(&member.id) {
            let added = self.inner.raft.add_learner(member.id, address, false).await;
            added.map_err(|error| refused(&error))?;
        }
        let known = self.known_to_raft();
        let members = known.into_iter().map(|(id, address)| KnownMember {
            id,
            name: address.name,
            peer_address: address.peer_address,
        });
        let fingerprint = self.inner.peers.fingerprint().to_owned();
        tracing::info!(member = member.name, id = member.id, "a learner is taken in");
        let joined = JoinResponse { id: member.id, fingerprint, members: members.collect() };
        Ok(ManageResponse { joined: Some(joined), changed: None })
    }

    async fn promote(&self, promote: &PromoteRequest) -> Managed {
        let id = self.member_called(&promote.name)?;
        if self.status().voters.contains(&id) {
            return Err(ManageError::Refused(format!("{} votes already", promote.name)));
        }
        let (last, matched) = self.progress(id);
        let behind = matched.map(|index| last.saturating_sub(index));
        if behind.is_none_or(|behind| behind > CAUGHT_UP) {
            let how = behind.map_or("nothing of the log has reached it".to_owned(), |behind| {
                format!("it is {behind} entries behind, {CAUGHT_UP} are allowed")
            });
            return Err(ManageError::Refused(format!("{} has not caught up: {how}; try again later", promote.name)));
        }
        if self.status_of(id).await.is_none() {
            return Err(ManageError::Refused(format!("{} does not answer: it would vote for nobody", promote.name)));
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await?;
        Ok(changed(format!("{} votes now", promote.name)))
    }

    async fn remove(&self, remove: &RemoveRequest) -> Managed {
        let id = self.member_called(&remove.name)?;
        let voters = self.status().voters;
        if voters.contains(&id) {
            let rest: BTreeSet<u64> = voters.iter().copied().filter(|voter| *voter != id).collect();
            self.would_go_on(&rest, &remove.name).await?;
            // A leader doesn't remove itself: whoever leads after it does.
            if id == self.inner.id {
                let nobody = || ManageError::Refused("no other voter can lead: nobody would be left".into());
                self.hand_over(self.heir().await.ok_or_else(nobody)?).await?;
                return Err(ManageError::Moved);
            }
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), true).await?;
        }
        // Its own log tells it, as long as it is a learner.
        self.settle(command::Kind::RemoveMember(RemoveMember { id })).await?;
        for _ in 0..HEARS_WITHIN_ROUNDS {
            // It stops when it has heard.
            if self.status_of(id).await.is_none() {
                break;
            }
            tokio::time::sleep(HEARS_ROUND).await;
        }
        if self.known_to_raft().contains_key(&id) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await?;
        }
        Ok(changed(format!("{} is no member any more", remove.name)))
    }

    async fn transfer(&self, transfer: &TransferRequest) -> Managed {
        let heir = if transfer.name.is_empty() {
            self.heir().await.ok_or_else(|| ManageError::Refused("no other voter answers: nobody can lead".into()))?
        } else {
            self.member_called(&transfer.name)?
        };
        if heir == self.inner.id {
            return Ok(changed(format!("{} leads already", self.inner.name)));
        }
        if !self.status().voters.contains(&heir) {
            return Err(ManageError::Refused(format!("{} does not vote: promote it first", transfer.name)));
        }
        let heard = self.status_of(heir).await;
        let heard = heard.ok_or_else(|| ManageError::Refused(format!("{} does not answer", self.name_of(heir))))?;
        if heard.drained {
            let name = heard.name;
            return Err(ManageError::Refused(format!(
                "{name} was told not to lead: `fairlead member drain {name} --undo` lets it"
            )));
        }
        let leader = self.hand_over(heir).await?;
        let name = self.name_of(leader);
        if leader != heir {
            return Err(ManageError::Unavailable(format!("{name} leads now instead: try again")));
        }
        Ok(ManageResponse {
            changed: Some(MemberChanged { message: format!("{name} leads now"), leader: name }),
            joined: None,
        })
    }

    /// Hands leadership over and waits until another member has it; the answer is who.
    pub(super) async fn hand_over(&self, heir: u64) -> Result<u64, ManageError> {
        let mut leadership = self.subscribe_leadership();
        let handing = self.inner.raft.trigger().transfer_leader(heir).await;
        handing.map_err(|error| ManageError::Unavailable(error.to_string()))?;
        let own = self.inner.id;
        let taken = leadership.wait_for(|leader| leader.is_some_and(|leader| leader != own));
        let leader = timeout(HANDED_WITHIN, taken).await.ok().and_then(Result::ok).and_then(|leader| *leader);
        leader.ok_or_else(|| ManageError::Unavailable("no other member took over in time".into()))
    }

    /// What a member says of itself, if it answers now.
    pub(crate) async fn status_of(&self, id: u64) -> Option<MemberStatus> {
        let mut peer = self.peer(id).await.ok()?;
        let answer = timeout(ANSWERS_WITHIN, peer.member_status(MemberStatusRequest {})).await;
        Some(answer.ok()?.ok()?.into_inner())
    }

    /// The rest must be a majority of itself that answers, now: a change that has begun can't be taken back, and waits
    /// for its quorum for ever.
    async fn would_go_on(&self, rest: &BTreeSet<u64>, name: &str) -> Result<(), ManageError> {
        if rest.is_empty() {
            return Err(ManageError::Refused(format!("{name} is the last voter: nobody would be left")));
        }
        let asked = rest.iter().map(|id| async move { *id == self.inner.id || self.status_of(*id).await.is_some() });
        let answering = futures::future::join_all(asked).await.into_iter().filter(|answers| *answers).count();
        if answering * 2 > rest.len() {
            return Ok(());
        }
        Err(ManageError::Refused(format!(
            "without {name} the cluster would have no quorum: of the other {} voters {answering} answer",
            rest.len()
        )))
    }

    async fn change(&self, change: ChangeMembers<u64, MemberAddress>, retain: bool) -> Result<(), ManageError> {
        let done = self.inner.raft.change_membership(change, retain).await;
        done.map(drop).map_err(|error| refused(&error))
    }

    /// Proposes what must be accepted.
    pub(super) async fn settle(&self, command: command::Kind) -> Result<(), ManageError> {
        let outcome = self.propose(stamp(command, None)).await?;
        outcome.rejection.map_or(Ok(()), |rejection| Err(ManageError::Refused(rejection.message)))
    }

    fn known_to_raft(&self) -> BTreeMap<u64, MemberAddress> {
        use openraft::async_runtime::WatchReceiver as _;
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        metrics.membership_config.membership().nodes().map(|(id, node)| (*id, node.clone())).collect()
    }

    /// Last index of the log, and up to where a member has it.
    fn progress(&self, id: u64) -> (u64, Option<u64>) {
        use openraft::async_runtime::WatchReceiver as _;
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.as_ref().and_then(|log| log.get(&id).copied().flatten());
        (metrics.last_log_index.unwrap_or(0), matched.map(|id| id.index))
    }

    fn name_of(&self, id: u64) -> String {
        self.members().into_iter().find(|member| member.id == id).map(|member| member.name).unwrap_or_default()
    }
}

/// Who joins, as the state will know it.
fn joining(state: &State, join: &JoinRequest) -> Result<Member, ManageError> {
    if let Some(known) = state.members().find(|member| member.name == join.name) {
        if !join.nonce.is_empty() && known.nonce == join.nonce {
            return Ok(known.clone());
        }
        return Err(ManageError::Refused(format!(
            "a member is called {0:?} already, and this is not its data: if its disk is lost, remove it first (`fairlead member remove {0}`)",
            join.name
        )));
    }
    let (in_force, supported) = (state.machine_version(), join.machine_version.max(1));
    if supported < in_force {
        return Err(ManageError::Refused(format!(
            "the cluster executes machine version {in_force}, the program of {} up to {supported}: let it run the newer fairlead",
            join.name
        )));
    }
    let port = join.peer_address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let is_address = port.is_some() && Endpoint::from_shared(format!("http://{}", join.peer_address)).is_ok();
    if join.nonce.is_empty() || join.nonce.len() > 64 || !is_address {
        return Err(ManageError::Refused("a member that joins needs a nonce and a peer address, host:port".into()));
    }
    if let Some(other) = state.members().find(|member| member.peer_address == join.peer_address) {
        return Err(ManageError::Refused(format!("{} is the peer address of {}", join.peer_address, other.name)));
    }
    if state.members().count() >= MOST {
        return Err(ManageError::Refused(format!("there are {MOST} members already")));
    }
    let id = free_id(state, member_id(&join.name), |round| member_id(&format!("{} {round}", join.name)));
    Ok(Member {
        id,
        name: join.name.clone(),
        peer_address: join.peer_address.clone(),
        grpc_address: join.grpc_address.clone(),
        nonce: join.nonce.clone(),
        drained: false,
    })
}

fn refused(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ManageError {
    match error {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(why)) => ManageError::Refused(why.to_string()),
        other => ManageError::Unavailable(other.to_string()),
    }
}

pub(super) fn changed(message: String) -> ManageResponse {
    ManageResponse { changed: Some(MemberChanged { message, leader: String::new() }), joined: None }
}
