//! Makes the kernel hold what the view asks for, and keeps it so.
//!
//! Wakes on a new view; every 30 s, whatever the churn, it reads the kernel back, names what somebody else changed and
//! repairs it. The kernel is called from the loop, which blocks: it runs on a thread of its own. Meanwhile newer deltas
//! fold, so a slow kernel coalesces. Without servers, and when the agent stops, the rules stay.
//! INVARIANT: a revision is reported as applied only after the kernel took it.

use crate::budget::Budget;
use crate::drift::{Drifts, NAMES};
use crate::kernel::{Kernel, KernelError};
use crate::metrics::now;
use crate::plan::compile::Pace;
use crate::plan::ramp::Ramps;
use crate::plan::release::Releases;
use crate::plan::{Desired, NodeFacts, Plane, Step, Style, compile};
use crate::shared::Shared;
use crate::witness::{Ask, Witnesses};
use fairlead_proto::view::{NodeView, Touched};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time between two readings of the kernel, unless it asks for another.
pub const AUDIT_EVERY: Duration = Duration::from_secs(30);
/// Reading a huge kernel may take long: at most one part in so many of the time is spent on it, …
const AUDIT_SHARE: u32 = 10;
/// … unless drift would then be found later than this, …
const FOUND_WITHIN: Duration = Duration::from_secs(28);
/// … and so much at once, if few readings were needed before.
const AUDIT_SAVINGS: Duration = Duration::from_secs(2);
/// From a change by somebody else to the reading that names it: others of the same hand may follow.
const NOTICE_AFTER: Duration = Duration::from_millis(200);
/// First and longest wait before a refused change is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Ops remembered during an audit; an audit overtaken by more is thrown away.
const OVERTAKEN: usize = 100_000;

/// What the kernel serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Announcement (see [`Shared::announce`]) of the view that it serves, or was last tried with.
    pub version: u64,
    /// Highest revision that it serves.
    pub applied: u64,
    /// How long the last change took.
    pub took: Duration,
    /// Revision that it refuses, and why; `None`: it serves everything it was asked for.
    pub failed: Option<(u64, String)>,
}

/// The loop.
pub struct Reconcile<P: Plane> {
    shared: Arc<Shared>,
    kernel: Arc<dyn Kernel<P>>,
    facts: NodeFacts,
    progress: watch::Sender<Progress>,
    audit_every: Duration,
    /// What the kernel should hold; `None` before the first view.
    desired: Option<Desired<P>>,
    /// Revision that `desired` was compiled from.
    revision: u64,
    /// Announcement of that view.
    version: u64,
    /// The kernel is known to hold `desired`.
    known: bool,
    style: Style,
    retry: Duration,
    retry_at: Option<Instant>,
    audit: Option<Audit<P>>,
    audit_at: Instant,
    readings: Budget,
    /// No reading before, since the last ones took so long.
    rest_until: Instant,
    /// Somebody else changed the kernel since the last reading began.
    noticed: bool,
    ramps: Ramps,
    releases: Releases,
    /// What the time of ramps counts from.
    epoch: Instant,
    /// When `desired` was last compiled, milliseconds since then.
    paced_at: u64,
    /// When time changes it; `None`: it doesn't, or it came while there is no view to compile.
    step_at: Option<Instant>,
    /// What the kernel remembers of before our start was looked through.
    watched: bool,
    /// Those who read the kernel beside this loop.
    witnesses: Witnesses<P>,
    drifts: Arc<Drifts>,
}

struct Audit<P: Plane> {
    begun: Instant,
    reading: JoinHandle<Result<P::Observed, KernelError>>,
    /// What was executed since it began.
    since: Vec<P::Op>,
}

/// What is to be done.
enum Round<P: Plane> {
    /// The kernel holds what `desired` was before these ops.
    Step(Vec<P::Op>),
    /// It must be read.
    Whole,
}

impl<P: Plane> Reconcile<P> {
    /// Makes the loop.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        kernel: Arc<dyn Kernel<P>>,
        facts: NodeFacts,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let audit_every = kernel.audit_every();
        Self {
            shared,
            kernel,
            facts,
            progress,
            audit_every,
            desired: None,
            revision: 0,
            version: 0,
            known: false,
            style: Style::Edit,
            retry: RETRY.0,
            retry_at: None,
            audit: None,
            audit_at: Instant::now() + audit_every,
            readings: Budget::new(AUDIT_SHARE, AUDIT_SAVINGS, Instant::now().into()),
            rest_until: Instant::now(),
            noticed: false,
            ramps: Ramps::default(),
            releases: Releases::default(),
            epoch: Instant::now(),
            paced_at: 0,
            step_at: None,
            watched: false,
            witnesses: Witnesses::default(),
            drifts: Arc::default(),
        }
    }

    /// With those who ask what it does, and the book of what it repaired.
    #[must_use]
    pub fn watched(mut self, asks: mpsc::Receiver<Ask<P>>, drifts: Arc<Drifts>) -> Self {
        self.witnesses = Witnesses::new(asks);
        self.drifts = drifts;
        self
    }

    /// With another time between readings.
    #[must_use]
    pub fn audit_every(mut self, every: Duration) -> Self {
        self.audit_every = every;
        self.audit_at = Instant::now() + every;
        self
    }

    /// Runs until cancelled; removes nothing at its end.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut version = self.shared.subscribe();
        let mut noticed = self.watch();
        loop {
            self.version = *version.borrow_and_update();
            if let Some(round) = self.take() {
                self.bring_about(round);
            } else if self.known {
                self.note_version();
            }
            let (retry_at, step_at) = (self.retry_at, self.step_at);
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = version.changed() => if changed.is_err() { return },
                () = sleep_until(retry_at) => self.retry_at = None,
                () = sleep_until(step_at) => self.step_at = None,
                read = read(&mut self.audit) => self.judge(read),
                Some(()) = noticed.recv() => self.notice(),
                ask = self.witnesses.asked() => self.witnesses.answer(ask, self.desired.as_ref(), self.revision),
                () = tokio::time::sleep_until(self.audit_at), if self.audit.is_none() => self.begin_audit(),
            }
        }
    }

    /// Listens to the kernel, if it tells of changes by others.
    fn watch(&self) -> mpsc::Receiver<()> {
        let (to, noticed) = mpsc::channel(1);
        let notice = move |heard| {
            // One that is waiting already says as much.
            if heard && to.try_send(()).is_ok() { true } else { !to.is_closed() }
        };
        if let Err(error) = self.kernel.watch(Box::new(notice)) {
            tracing::error!(%error, "drift is found by reading only");
        }
        noticed
    }

    /// Somebody else changed the kernel: it is read soon.
    fn notice(&mut self) {
        self.noticed = true;
        self.audit_at = self.audit_at.min(Instant::now() + NOTICE_AFTER).max(self.rest_until);
    }

    /// Compiles what was touched; `None`: nothing to do now.
    fn take(&mut self) -> Option<Round<P>> {
        let shared = self.shared.clone();
        self.take_service_cidrs();
        let ops = shared.take_for_rules(|view, touched| self.compile(view, &touched));
        let waiting = self.retry_at.is_some();
        match ops {
            // A new view may be what mends a refused one: it doesn't wait for the retry.
            Some(Some(ops)) if self.known => Some(Round::Step(ops)),
            Some(Some(_)) => Some(Round::Whole),
            Some(None) | None => (!self.known && !waiting && self.desired.is_some()).then_some(Round::Whole),
        }
    }

    /// They are part of the fixed rules: a change of them is one of the whole.
    fn take_service_cidrs(&mut self) {
        let cidrs = self.shared.service_cidrs();
        if self.facts.service_cidrs != cidrs {
            self.facts.service_cidrs.clone_from(&cidrs);
            if let Some(desired) = &mut self.desired {
                desired.facts.service_cidrs = cidrs;
                self.known = false;
            }
        }
    }

    /// The newest view asks for nothing new: it is served too.
    fn note_version(&self) {
        let version = self.version;
        self.progress.send_if_modified(|progress| std::mem::replace(&mut progress.version, version) != version);
    }

    /// Brings `desired` to the view. `None`: nothing was touched.
    fn compile(&mut self, view: &NodeView, touched: &Touched) -> Option<Vec<P::Op>> {
        metrics::gauge!("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds").set(now());
        let count = if touched.all { view.services.len() } else { touched.services.len() };
        metrics::counter!("kubeproxy_sync_proxy_rules_service_changes_total").increment(count as u64);
        let moved = self.revision != view.revision;
        self.revision = view.revision;
        let first = self.desired.is_none();
        let desired = self.desired.get_or_insert_with(|| Desired::empty(self.facts.clone()));
        let elsewhere = touched.nodes && compile::zone(view, &self.facts) != desired.zone;
        let whole = first || touched.all || elsewhere;
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut due = self.ramps.due(self.paced_at, now);
        self.releases.note(&touched.released, now);
        due.append(&mut self.releases.expire(now));
        self.paced_at = now;
        if whole {
            self.ramps.keep(|name| view.services.contains_key(name));
            self.releases.keep(|name| view.services.contains_key(name));
        }
        // Not a filter on all of them: a change costs what it touches.
        let noted = touched.services.iter().chain(whole.then(|| view.services.keys()).into_iter().flatten());
        for name in noted {
            let service = view.services.get(name);
            self.ramps.note(name, service, now);
            if service.is_none() {
                self.releases.forget(name);
            }
        }
        let pace: Pace<'_> = &|name, service| self.releases.shown(name, self.ramps.paced(name, service, now));
        let named = || touched.services.union(&due).cloned().collect();
        let Step { ops, complete } = match (self.known, whole) {
            (true, true) => desired.update_all_paced(view, pace),
            (true, false) => desired.update_paced(view, &named(), pace),
            (false, true) => desired.replace_all(view, pace),
            (false, false) => desired.replace(view, &named(), pace),
        };
        self.known &= complete;
        let next = self.ramps.next(now).into_iter().chain(self.releases.next()).min();
        self.step_at = next.map(|next| self.epoch + Duration::from_millis(next));
        (first || moved || !complete || !ops.is_empty()).then_some(ops)
    }

    fn bring_about(&mut self, round: Round<P>) {
        let begun = Instant::now();
        let done = match round {
            Round::Step(ops) => self.execute(ops),
            Round::Whole => self.whole(),
        };
        self.report(begun, done);
    }

    /// Reads the kernel and changes what differs.
    fn whole(&mut self) -> Result<(), KernelError> {
        let observed = self.kernel.observe()?;
        let Some(desired) = &mut self.desired else {
            return Ok(());
        };
        P::adopt(desired, &observed);
        let mut ops = P::diff(&observed, desired, self.style);
        if !self.watched {
            ops.extend(P::strays(desired));
        }
        self.execute(ops)?;
        self.watched = true;
        Ok(())
    }

    fn execute(&mut self, ops: Vec<P::Op>) -> Result<(), KernelError> {
        if ops.is_empty() {
            return Ok(());
        }
        self.kernel.execute(&ops)?;
        self.witnesses.executed(&ops);
        if let Some(audit) = &mut self.audit {
            audit.since.extend(ops);
        }
        Ok(())
    }

    fn report(&mut self, begun: Instant, done: Result<(), KernelError>) {
        let took = begun.elapsed();
        let revision = self.revision;
        match done {
            Ok(()) => {
                metrics::histogram!("kubeproxy_sync_proxy_rules_duration_seconds").record(took.as_secs_f64());
                metrics::gauge!("kubeproxy_sync_proxy_rules_last_timestamp_seconds").set(now());
                #[allow(clippy::cast_precision_loss, reason = "a metric")]
                metrics::gauge!("fairlead_agent_applied_revision").set(revision as f64);
                self.known = true;
                self.style = Style::Edit;
                self.retry = RETRY.0;
                self.retry_at = None;
                self.progress.send_replace(Progress { version: self.version, applied: revision, took, failed: None });
            }
            Err(error) => {
                metrics::counter!("fairlead_agent_sync_failures_total").increment(1);
                tracing::error!(revision, %error, retry_ms = self.retry.as_millis(), "the kernel refused the rules; those it has stay");
                self.known = false;
                // Part of the batch may be in the kernel: a reading made meanwhile proves nothing.
                self.audit = None;
                self.witnesses.refused();
                // An edit was refused after the kernel had been read: somebody changes it beside us, or it reads wrong.
                self.style = Style::Rewrite;
                self.retry_at = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(RETRY.1);
                let version = self.version;
                self.progress.send_modify(|progress| {
                    progress.version = version;
                    progress.failed = Some((revision, error.to_string()));
                });
            }
        }
    }

    fn begin_audit(&mut self) {
        self.audit_at = Instant::now() + self.audit_every;
        self.noticed = false;
        if !self.known {
            return;
        }
        let kernel = self.kernel.clone();
        let reading = tokio::task::spawn_blocking(move || kernel.audit());
        self.audit = Some(Audit { begun: Instant::now(), reading, since: Vec::new() });
    }

    /// An audit has read the kernel: what differs is drift.
    fn judge(&mut self, read: Result<P::Observed, KernelError>) {
        let Some(audit) = self.audit.take() else {
            return;
        };
        let cost = audit.begun.elapsed();
        self.rest_until = self.readings.spend(cost, rest(cost), Instant::now().into()).into();
        let wait = if self.noticed { NOTICE_AFTER } else { self.audit_every };
        self.audit_at = self.rest_until.max(Instant::now() + wait);
        let mut observed = match read {
            Ok(observed) => observed,
            Err(error) => {
                tracing::error!(%error, "the kernel's rules can't be read back");
                return;
            }
        };
        let Some(desired) = self.desired.as_ref().filter(|_| self.known && audit.since.len() < OVERTAKEN) else {
            return;
        };
        P::replay(&mut observed, &audit.since);
        let ops = P::diff(&observed, desired, Style::Edit);
        if ops.is_empty() {
            return;
        }
        let (names, count) = name_drift::<P>(&ops);
        let begun = Instant::now();
        let done = self.execute(ops);
        if done.is_ok() && count > 0 {
            self.drifts.note(names, count);
        }
        self.report(begun, done);
    }
}

/// How long to rest after a reading of a cost. Drift that one reading just missed is found by the end of the next.
fn rest(cost: Duration) -> Duration {
    (cost * AUDIT_SHARE).min(FOUND_WITHIN.saturating_sub(cost * 2)).max(cost)
}

/// Logs what was wrong; gives the first names, and how many there were.
fn name_drift<P: Plane>(ops: &[P::Op]) -> (Vec<String>, u64) {
    let count = ops.iter().filter(|op| P::is_repair(op)).count() as u64;
    let names: Vec<String> = ops.iter().filter(|op| P::is_repair(op)).take(NAMES).map(ToString::to_string).collect();
    metrics::counter!("fairlead_agent_drift_total").increment(count);
    for name in &names {
        tracing::warn!("drift, repairing: {name}");
    }
    if let Some(more) = count.checked_sub(NAMES as u64).filter(|more| *more > 0) {
        tracing::warn!(more, "more drift of the same kind");
    }
    (names, count)
}

async fn read<P: Plane>(audit: &mut Option<Audit<P>>) -> Result<P::Observed, KernelError> {
    match audit {
        Some(audit) => match (&mut audit.reading).await {
            Ok(read) => read,
            Err(error) => Err(KernelError::Refused(error.to_string())),
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_found_in_time_however_long_a_reading_takes() {
        for (cost, expect) in [(10, 100), (1_000, 10_000), (3_300, 21_400), (20_000, 20_000)] {
            assert_eq!(rest(Duration::from_millis(cost)), Duration::from_millis(expect), "{cost} ms");
        }
    }
}
