//! What an agent says of its kernel beside the loop that changes it: drift by name, never a change under way; where
//! packets go; and what becomes of drift that was repaired.
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
use fairlead_agent::dataplane::Dataplane;
use fairlead_agent::drift::Drifts;
use fairlead_agent::inspect::Inspector;
use fairlead_agent::plan::iptables::{Space, Table};
use fairlead_agent::plan::{Family, IptablesPlane};
use fairlead_agent::reconcile::{Progress, Reconcile};
use fairlead_agent::shared::Shared;
use fairlead_agent::witness::Reader;
use fairlead_proto::v1::{DataplaneAnswer, DataplaneQuery, NodeDelta, TraceQuery};
use fairlead_proto::view::NodeView;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const NEVER: Duration = Duration::from_secs(3600);
const NAT: Space = Space::new(Family::V4, Table::Nat);

/// An agent's loop and its answers, without a stream.
struct Rig {
    shared: Arc<Shared>,
    kernel: Arc<Moody>,
    dataplane: Arc<Dataplane>,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
}

impl Rig {
    async fn start(audit: Duration) -> Self {
        let shared = Arc::new(Shared::new(NodeView::default(), facts("node1").service_cidrs));
        let kernel = Arc::new(Moody::default());
        let (sender, progress) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let (asks, asked) = mpsc::channel(4);
        let drifts: Arc<Drifts> = Arc::default();
        let reconcile = Reconcile::new(shared.clone(), kernel.clone(), facts("node1"), sender);
        tokio::spawn(reconcile.audit_every(audit).watched(asked, drifts.clone()).run(cancel.clone()));
        let reader = Reader::<IptablesPlane> { kernel: kernel.clone(), asks };
        let dataplane = Arc::new(Dataplane {
            mode: "moody",
            inspect: Box::new(Inspector { reader, facts: facts("node1") }),
            drifts,
            facts: facts("node1"),
            shared: shared.clone(),
            progress: progress.clone(),
        });
        let mut rig = Self { shared, kernel, dataplane, progress, cancel };
        let on = |number: u8| endpoint(&format!("10.244.{number}.2"), "node1", &["80/TCP"]);
        rig.give(&full(1, &[(service("web", "10.96.0.10", &["80/TCP"]), vec![on(1), on(2)])]));
        rig.until(1).await;
        rig
    }

    fn give(&self, delta: &NodeDelta) {
        self.shared.fold(std::slice::from_ref(delta)).unwrap();
        self.shared.announce();
    }

    async fn until(&mut self, revision: u64) {
        let served = self.progress.wait_for(|progress| progress.applied >= revision);
        tokio::time::timeout(Duration::from_secs(10), served).await.expect("in time").unwrap();
    }

    async fn ask(&self, query: DataplaneQuery) -> DataplaneAnswer {
        let dataplane = self.dataplane.clone();
        tokio::task::spawn_blocking(move || dataplane.answer(&query)).await.unwrap()
    }

    /// Somebody else removes the way to one of the two endpoints.
    fn harm(&self) {
        self.kernel.model.tamper(|tables| {
            let chains = tables.observed.chains.get_mut(&NAT).unwrap();
            let lines = chains.iter_mut().find(|(chain, _)| chain.starts_with("KUBE-SVC-")).unwrap().1;
            lines.retain(|line| line.rule.as_ref().is_none_or(|rule| rule.probability.is_none()));
        });
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn diff() -> DataplaneQuery {
    DataplaneQuery { query_id: 1, diff: true, ..DataplaneQuery::default() }
}

fn trace(source: &str, destination: &str, (port, protocol): (u32, &str)) -> DataplaneQuery {
    let asked = TraceQuery { source: source.into(), destination: destination.into(), port, protocol: protocol.into() };
    DataplaneQuery { query_id: 2, trace: Some(asked), ..DataplaneQuery::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_named_and_shows_where_packets_go() {
    let rig = Rig::start(NEVER).await;
    let answer = rig.ask(diff()).await;
    let found = answer.diff.unwrap();
    assert_eq!((found.count, found.revision, answer.error.as_str()), (0, 1, ""));
    let observed = DataplaneQuery { query_id: 3, observed: true, ..DataplaneQuery::default() };
    let frontend = rig.ask(observed.clone()).await.frontends.remove(0);
    assert_eq!((frontend.observed, frontend.drifted), (frontend.backends, false));

    rig.harm();
    let found = rig.ask(diff()).await.diff.unwrap();
    assert_eq!(found.count, 1, "{:?}", found.names);
    assert!(found.names[0].contains("KUBE-SVC-"), "{:?}", found.names);
    let frontend = rig.ask(observed).await.frontends.remove(0);
    assert_eq!(frontend.backends, ["10.244.1.2:80", "10.244.2.2:80"]);
    assert_eq!((frontend.observed, frontend.drifted), (vec!["10.244.2.2:80".to_owned()], true));
    let trace = rig.ask(trace("10.244.3.9", "10.96.0.10", (80, ""))).await.trace.unwrap();
    assert_eq!((trace.service.as_str(), trace.revision), ("default/web", 1));
    let ends = |traced: fairlead_proto::v1::Traced| {
        traced.ends.into_iter().map(|end| (end.destination, end.share)).collect::<Vec<_>>()
    };
    let half = |text: &str| (text.to_owned(), 0.5);
    assert!(trace.intent.as_ref().is_some_and(|traced| traced.steps.len() > 4));
    assert_eq!(ends(trace.intent.unwrap()), [half("10.244.1.2:80"), half("10.244.2.2:80")]);
    assert_eq!(ends(trace.kernel.unwrap()), [("10.244.2.2:80".to_owned(), 1.0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_said_in_one_sentence() {
    let rig = Rig::start(NEVER).await;
    for (query, says) in [
        (trace("here", "10.96.0.10", (80, "")), "\"here\" is not an address"),
        (trace("10.0.0.1", "web", (80, "")), "\"web\" is not an address"),
        (trace("10.0.0.1", "fd00::1", (80, "")), "of different families"),
        (trace("10.0.0.1", "10.96.0.10", (70_000, "")), "70000 is not a port"),
        (trace("10.0.0.1", "10.96.0.10", (80, "ICMP")), "\"ICMP\" is not a protocol"),
    ] {
        let answer = rig.ask(query).await;
        assert!(answer.error.contains(says) && answer.error.lines().count() == 1, "{}", answer.error);
        assert!(answer.trace.is_none());
    }
    let nobody = rig.ask(trace("10.0.0.1", "10.1.2.3", (80, "UDP"))).await.trace.unwrap();
    assert_eq!(nobody.service, "");
    assert_eq!(nobody.kernel.unwrap().ends[0].destination, "10.1.2.3:80");
}

/// The rules change while the kernel is being read: that is no drift.
#[tokio::test(flavor = "multi_thread")]
async fn changes_under_way_are_no_difference() {
    let mut rig = Rig::start(NEVER).await;
    rig.kernel.observe_ms.store(300, Ordering::Relaxed);
    let asking = {
        let dataplane = rig.dataplane.clone();
        tokio::task::spawn_blocking(move || dataplane.answer(&diff()))
    };
    for from in 1..=20 {
        let endpoints = changed("web", &[], &[endpoint(&format!("10.244.9.{from}"), "node1", &["80/TCP"])]);
        rig.give(&NodeDelta { from: Some(from), to: from + 1, endpoints, ..NodeDelta::default() });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = asking.await.unwrap();
    assert_eq!(answer.diff.as_ref().map(|diff| diff.count), Some(0), "{answer:?}");
    rig.until(21).await;

    // A batch was refused, and part of it may be in: the reading says nothing, and that is said.
    rig.kernel.refuse.store(1, Ordering::Relaxed);
    rig.kernel.observe_ms.store(2_000, Ordering::Relaxed);
    let before = rig.kernel.readings.load(Ordering::Relaxed);
    let asking = {
        let dataplane = rig.dataplane.clone();
        tokio::task::spawn_blocking(move || dataplane.answer(&diff()))
    };
    while rig.kernel.readings.load(Ordering::Relaxed) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.give(&NodeDelta {
        from: Some(21),
        to: 22,
        remove_services: vec!["default/web".into()],
        ..NodeDelta::default()
    });
    let answer = asking.await.unwrap();
    assert!(answer.diff.is_none() && answer.error.contains("ask again"), "{answer:?}");
    rig.until(22).await;
    rig.kernel.observe_ms.store(0, Ordering::Relaxed);
    assert_eq!(rig.ask(diff()).await.diff.unwrap().count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn repaired_drift_is_reported_by_name() {
    let rig = Rig::start(Duration::from_millis(50)).await;
    rig.harm();
    tokio::time::timeout(Duration::from_secs(10), rig.dataplane.drifts.changed()).await.expect("in time");
    let report = rig.dataplane.drifts.take().unwrap();
    assert_eq!(report.count, 1);
    assert!(report.names[0].contains("KUBE-SVC-"), "{:?}", report.names);
    assert_eq!(rig.ask(diff()).await.diff.unwrap().count, 0, "it is repaired");
}
