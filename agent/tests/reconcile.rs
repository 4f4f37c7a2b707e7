//! The loop between view and kernel: coalescing, refusals, drift, and readings overtaken by changes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::moody::Moody;
use common::{changed, endpoint, facts, full, service};
use fairlead_agent::plan::iptables::diff::diff;
use fairlead_agent::plan::iptables::{Op, Space, Table};
use fairlead_agent::plan::{Family, Style};
use fairlead_agent::reconcile::{Progress, Reconcile};
use fairlead_agent::shared::Shared;
use fairlead_proto::v1::NodeDelta;
use fairlead_proto::view::NodeView;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Rig {
    shared: Arc<Shared>,
    kernel: Arc<Moody>,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
}

impl Rig {
    fn start(kernel: Moody, audit: Duration) -> Self {
        let shared = Arc::new(Shared::new(NodeView::default(), facts("node1").service_cidrs));
        let kernel = Arc::new(kernel);
        let (sender, progress) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let reconcile = Reconcile::new(shared.clone(), kernel.clone(), facts("node1"), sender).audit_every(audit);
        tokio::spawn(reconcile.run(cancel.clone()));
        Self { shared, kernel, progress, cancel }
    }

    fn give(&self, delta: &NodeDelta) {
        self.shared.fold(std::slice::from_ref(delta)).unwrap();
        self.shared.announce();
    }

    async fn until(&mut self, wanted: impl FnMut(&Progress) -> bool) -> Progress {
        tokio::time::timeout(Duration::from_secs(10), self.progress.wait_for(wanted))
            .await
            .expect("in time")
            .unwrap()
            .clone()
    }

    /// What the kernel would still have to do.
    fn left(&self) -> Vec<Op> {
        let desired = self.shared.look(|view| common::iptables(view, &common::facts("node1")));
        diff(&self.kernel.model.tables().observed, &desired, Style::Edit)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn first() -> NodeDelta {
    full(1, &[(service("web", "10.96.0.10", &["80/TCP"]), vec![])])
}

fn add(from: u64) -> NodeDelta {
    let endpoints = changed("web", &[], &[endpoint(&format!("10.244.1.{from}"), "node1", &["80/TCP"])]);
    NodeDelta { from: Some(from), to: from + 1, endpoints, ..NodeDelta::default() }
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_kernel_coalesces_and_is_acknowledged_only_when_done() {
    let kernel = Moody::default();
    kernel.execute_ms.store(50, Ordering::Relaxed);
    let mut rig = Rig::start(kernel, NEVER);
    rig.give(&first());
    for from in 1..=20 {
        rig.give(&add(from));
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(rig.progress.borrow().applied <= from + 1);
    }
    rig.until(|progress| progress.applied == 21).await;
    assert_eq!(rig.left(), []);
    let batches = rig.kernel.batches.lock().unwrap().len();
    assert!((2..=6).contains(&batches), "{batches}");
}

#[tokio::test]
async fn a_step_writes_only_what_changed() {
    let mut rig = Rig::start(Moody::default(), NEVER);
    let many: Vec<_> = (0..200)
        .map(|n| {
            (
                service(&format!("s{n}"), &format!("10.96.1.{n}"), &["80/TCP"]),
                vec![endpoint("10.244.9.9", "node2", &["80/TCP"])],
            )
        })
        .collect();
    let mut services = many;
    services.push((service("web", "10.96.0.10", &["80/TCP"]), vec![]));
    rig.give(&full(1, &services));
    rig.until(|progress| progress.applied == 1).await;
    rig.give(&add(1));
    rig.until(|progress| progress.applied == 2).await;
    let last = rig.kernel.batches.lock().unwrap().last().unwrap().clone();
    // The service's chain, its endpoint's, the entry, and the refusal that goes.
    assert_eq!(last.len(), 4, "{last:#?}");
    rig.give(&add(2));
    rig.until(|progress| progress.applied == 3).await;
    let last = rig.kernel.batches.lock().unwrap().last().unwrap().clone();
    assert_eq!(last.len(), 2, "{last:#?}");
    assert_eq!(rig.left(), []);
}

#[tokio::test]
async fn a_refusal_is_reported_and_tried_again() {
    let kernel = Moody::default();
    kernel.refuse.store(1, Ordering::Relaxed);
    let mut rig = Rig::start(kernel, NEVER);
    rig.give(&first());
    let failed = rig.until(|progress| progress.failed.is_some()).await;
    assert_eq!((failed.applied, failed.failed), (0, Some((1, "not now".into()))));
    let done = rig.until(|progress| progress.applied == 1).await;
    assert_eq!(done.failed, None);
    // A newer view doesn't wait for the retry.
    rig.kernel.refuse.store(1, Ordering::Relaxed);
    rig.give(&add(1));
    rig.until(|progress| progress.failed.is_some()).await;
    let begun = std::time::Instant::now();
    rig.give(&add(2));
    rig.until(|progress| progress.applied == 3).await;
    assert!(begun.elapsed() < Duration::from_millis(400));
    assert_eq!(rig.left(), []);
}

#[tokio::test]
async fn drift_is_repaired_whatever_the_churn() {
    let mut rig = Rig::start(Moody::default(), Duration::from_millis(100));
    rig.give(&first());
    rig.until(|progress| progress.applied == 1).await;
    let filter = Space::new(Family::V4, Table::Filter);
    rig.kernel
        .model
        .tamper(|tables| tables.observed.chains.get_mut(&filter).unwrap().get_mut("KUBE-SERVICES").unwrap().clear());
    assert!(!rig.left().is_empty());
    for from in 1..40 {
        rig.give(&add(from));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.until(|progress| progress.applied == 40).await;
    rig.kernel
        .model
        .tamper(|tables| tables.observed.chains.get_mut(&filter).unwrap().get_mut("FORWARD").unwrap().clear());
    for _ in 0..100 {
        if rig.left().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:#?}", rig.left());
}

#[tokio::test]
async fn a_reading_overtaken_by_changes_undoes_none_of_them() {
    let kernel = Moody::default();
    kernel.observe_ms.store(150, Ordering::Relaxed);
    let mut rig = Rig::start(kernel, Duration::from_millis(50));
    rig.give(&first());
    rig.until(|progress| progress.applied == 1).await;
    for from in 1..=50 {
        rig.give(&add(from));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.until(|progress| progress.applied == 51).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.left(), []);
    // Every batch came from a step; no audit found anything to repair.
    let batches = rig.kernel.batches.lock().unwrap();
    assert_eq!(batches.len(), 51, "{:#?}", batches.last());
}

#[tokio::test]
async fn a_lost_view_and_a_stop_leave_the_kernel_as_it_is() {
    let mut rig = Rig::start(Moody::default(), Duration::from_millis(50));
    rig.give(&first());
    rig.give(&add(1));
    rig.until(|progress| progress.applied == 2).await;
    let before = rig.kernel.model.tables();
    let gap = NodeDelta { from: Some(99), to: 100, ..NodeDelta::default() };
    rig.shared.fold(&[gap]).unwrap_err();
    assert_eq!(rig.shared.have(), (0, vec![]));
    rig.shared.announce();
    tokio::time::sleep(Duration::from_millis(200)).await;
    rig.cancel.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.kernel.model.tables(), before);
}

/// A step of a slow start that comes while there is no view waits for one, and burns no processor meanwhile.
#[tokio::test]
async fn a_step_without_a_view_waits() {
    let mut rig = Rig::start(Moody::default(), NEVER);
    let mut slow = full(1, &[(service("web", "10.96.0.10", &["80/TCP"]), vec![])]);
    slow.upsert_services[0].annotations.insert("fairlead.io/slow-start".into(), "5s".into());
    rig.give(&slow);
    rig.until(|progress| progress.applied == 1).await;
    rig.give(&add(1));
    rig.until(|progress| progress.applied == 2).await;
    rig.shared.fold(&[NodeDelta { from: Some(2), to: 3, digest: vec![1], ..NodeDelta::default() }]).unwrap_err();
    let used = || {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
        usage.user_time().tv_sec() * 1_000 + usage.user_time().tv_usec() / 1_000
    };
    let before = used();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(used() - before < 500, "{} ms of 2000", used() - before);
    let view = full(4, &[(service("web", "10.96.0.10", &["80/TCP"]), vec![])]);
    rig.give(&view);
    rig.until(|progress| progress.applied == 4).await;
    assert_eq!(rig.left(), []);
}
