//! Members that are told not to lead: they vote, and hand leadership away. The state keeps who they are, so that a
//! restart changes nothing; while the machine version is older than that, the member itself does, until it restarts.
//!
//! INVARIANT: a drained member keeps nobody from being led. If it alone holds what was committed last, no other can be
//! elected; so it stands when nobody has led for a while, and hands over as soon as another can.

use crate::raft::Consensus;
use crate::raft::membership::{ManageError, Managed, changed};
use fairlead_proto::internal::v1::{SetDrained, command};
use fairlead_proto::v1::DrainRequest;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The machine version that keeps it.
const KEPT_SINCE: u32 = 2;
/// Time without a leader after which a drained member stands: others have had several elections by then.
const NOBODY_ELSE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Consensus {
    /// This member was told not to lead.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.inner.drained.load(Ordering::Acquire)
    }

    /// Tells this member not to lead, or that it may again.
    pub(super) async fn drain(&self, drain: &DrainRequest) -> Managed {
        if drain.name != self.inner.name {
            return Err(ManageError::Refused(format!("this is {}, not {}", self.inner.name, drain.name)));
        }
        if drain.undo {
            self.keep_drained(false).await?;
            return Ok(changed(format!("{} may lead again", drain.name)));
        }
        self.others_may_lead().await?;
        let kept = self.keep_drained(true).await?;
        if self.is_leader() {
            let handed = match self.heir().await {
                Some(heir) => self.hand_over(heir).await.map(|_| ()),
                None => Err(ManageError::Refused("no other voter answers: nobody else can lead".into())),
            };
            if let Err(error) = handed {
                self.keep_drained(false).await?;
                return Err(error);
            }
        }
        let until = if kept { "until --undo" } else { "until --undo or its restart" };
        Ok(changed(format!("{} votes and does not lead, {until}", drain.name)))
    }

    /// Keeps in the state what this member is told. False: not all members know how to yet.
    async fn keep_drained(&self, drained: bool) -> Result<bool, ManageError> {
        let kept = self.local().state.machine_version() >= KEPT_SINCE;
        if kept {
            self.settle(command::Kind::SetDrained(SetDrained { id: self.inner.id, drained })).await?;
        }
        self.set_drained(drained);
        Ok(kept)
    }

    fn set_drained(&self, drained: bool) {
        self.inner.drained.store(drained, Ordering::Release);
        self.may_elect();
    }

    /// Lets this member stand for election if nothing speaks against it.
    pub(super) fn may_elect(&self) {
        self.inner.raft.runtime_config().elect(self.may_lead());
    }

    /// Nothing speaks against this member's leading.
    pub(super) fn may_lead(&self) -> bool {
        !self.is_drained() && !self.is_returning() && self.failure().is_none()
    }

    /// Follows what the state says of this member.
    pub(super) async fn follow_drained(self) {
        let mut snapshots = self.subscribe();
        let mut known = None;
        loop {
            let told = {
                let state = &snapshots.borrow_and_update().state;
                let own = state.member(self.inner.id).map(|member| member.drained);
                own.filter(|_| state.machine_version() >= KEPT_SINCE)
            };
            match (known, told) {
                // What it was told before the state could keep it stays.
                (None, Some(false)) => {}
                (_, Some(drained)) if known != told => self.set_drained(drained),
                _ => {}
            }
            known = told.or(known);
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Stands while drained if nobody else is elected, and hands over again.
    pub(super) async fn stand_in(self) {
        let mut leaderless = Duration::ZERO;
        loop {
            tokio::select! {
                () = self.inner.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if !self.is_drained() || self.is_returning() || self.failure().is_some() {
                leaderless = Duration::ZERO;
                continue;
            }
            let leader = *self.inner.leader.borrow();
            match leader {
                None => {
                    leaderless += LOOK_EVERY;
                    if leaderless == NOBODY_ELSE {
                        tracing::warn!("nobody else is elected: this member stands, although it is not to lead");
                        self.inner.raft.runtime_config().elect(true);
                    }
                }
                Some(leader) if leader == self.inner.id => {
                    if let Some(heir) = self.heir().await
                        && let Err(error) = self.hand_over(heir).await
                    {
                        tracing::debug!(%error, "nobody else can lead yet");
                    }
                }
                Some(_) if leaderless > Duration::ZERO => {
                    leaderless = Duration::ZERO;
                    self.may_elect();
                }
                Some(_) => {}
            }
        }
    }

    /// Enough voters are left that may lead: one more than none, where there are so many, so that one may die.
    async fn others_may_lead(&self) -> Result<(), ManageError> {
        let voters = self.status().voters;
        let others = voters.iter().filter(|id| **id != self.inner.id);
        let asked = futures::future::join_all(others.map(|id| self.status_of(*id))).await;
        let willing = asked.into_iter().flatten().filter(|status| !status.drained).count();
        if willing >= 2.min(voters.len().saturating_sub(1)).max(1) {
            return Ok(());
        }
        Err(ManageError::Refused(format!("of the other voters only {willing} may lead and answer: put one back first")))
    }
}
