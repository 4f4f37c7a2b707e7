//! A watcher's stream: every event after a revision, in order, or `Compacted`.
//!
//! Nothing is queued for a watcher but its socket's few messages: it reads the published window at its own pace, so a
//! slow one costs nobody else anything and is told `Expired` when the window has passed it.

use crate::api::list::Selection;
use crate::api::status;
use crate::machine::{Change, Snapshot};
use crate::watch::happened;
use fairlead_proto::model::ObjectRef;
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::{EventType, Kind, WatchResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages waiting for one watcher's socket.
pub const STREAM_BUFFER: usize = 64;
/// An idle watcher gets a bookmark this often, so that it can resume without a relist.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);

/// How a watcher sees the state and its changes.
pub trait Lens: Send + Sync {
    /// What it is told.
    type Item: Send;

    /// The state, as items that say it is there.
    fn initial<'a>(&'a self, snapshot: &'a Snapshot) -> Box<dyn Iterator<Item = Self::Item> + Send + 'a>;

    /// A change: nothing, if it isn't seen.
    fn change(&self, change: &Change) -> Vec<Self::Item>;

    /// Everything up to a revision was told; with `initial_end`, the state that a watch begins with. `None`: it doesn't
    /// want to know.
    fn bookmark(&self, revision: u64, initial_end: bool) -> Option<Self::Item>;
}

/// Who watches, from where.
pub struct Watcher<L: Lens> {
    /// What it sees.
    pub lens: L,
    /// Changes after this revision; `None` = the current state first.
    pub from: Option<u64>,
    /// Where items go.
    pub to: mpsc::Sender<Result<L::Item, Status>>,
}

/// Counts an open watch.
struct Open(metrics::Gauge);

impl Open {
    fn new() -> Self {
        let open = Self(metrics::gauge!("fairlead_watch_watchers"));
        open.0.increment(1.0);
        open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl<L: Lens> Watcher<L> {
    /// Runs until the watcher goes, the window has passed it, or the server stops.
    pub async fn run(self, mut snapshots: watch::Receiver<Arc<Snapshot>>, cancel: CancellationToken) {
        let _open = Open::new();
        tokio::select! {
            () = cancel.cancelled() => {
                let _ = self.to.try_send(Err(Status::unavailable("server is shutting down: resume elsewhere")));
            }
            () = self.to.closed() => {}
            () = self.deliver(&mut snapshots) => {}
        }
    }

    async fn deliver(&self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) {
        let first = snapshots.borrow_and_update().clone();
        let mut last = match self.from {
            Some(revision) if mutant::is_on(Mutant::WatchResumesLate) => revision + 1,
            Some(revision) if mutant::is_on(Mutant::WatchRepeats) => revision.saturating_sub(1),
            Some(revision) => revision,
            None => match self.initial(&first).await {
                Some(revision) => revision,
                None => return,
            },
        };
        let mut told = last;
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            if snapshot.state.revision() > last {
                let changes = match snapshot.history.after(last) {
                    Ok(changes) => changes,
                    Err(compacted) => {
                        metrics::counter!("fairlead_watch_expired_total").increment(1);
                        let _ = self.to.send(Err(status::compacted(last, compacted.oldest))).await;
                        return;
                    }
                };
                if mutant::is_on(Mutant::EarlyBookmark) {
                    self.mark(snapshot.state.revision(), false).await;
                }
                for change in changes {
                    for item in self.lens.change(&change) {
                        told = change.revision;
                        metrics::counter!("fairlead_watch_events_total").increment(1);
                        if self.to.send(Ok(item)).await.is_err() {
                            return;
                        }
                    }
                }
                last = snapshot.state.revision();
            }
            let wait = tokio::time::timeout(BOOKMARK_EVERY, snapshots.changed()).await;
            match wait {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) if told < last => {
                    told = last;
                    self.mark(last, false).await;
                }
                Err(_) => {}
            }
        }
    }

    /// The current state, closed by a bookmark. `None`: the watcher is gone.
    async fn initial(&self, snapshot: &Snapshot) -> Option<u64> {
        for item in self.lens.initial(snapshot) {
            self.to.send(Ok(item)).await.ok()?;
        }
        let revision = snapshot.state.revision();
        self.mark(revision, true).await;
        Some(revision)
    }

    /// Sends a bookmark. A watcher that is gone is noticed elsewhere.
    async fn mark(&self, revision: u64, initial_end: bool) {
        if let Some(bookmark) = self.lens.bookmark(revision, initial_end) {
            let _ = self.to.send(Ok(bookmark)).await;
        }
    }
}

/// How a change looks through a selection: what happened, and the object. One that stops matching is DELETED, in its last
/// state, at the revision of its going.
#[must_use]
pub fn seen(selection: &Selection, change: &Change) -> Option<(EventType, ObjectRef)> {
    if change.key.kind != selection.kind {
        // Every change is an event of its own.
        let event = (selection.kind == Kind::Event).then(|| happened::event(change))?;
        return event.filter(|event| selection.matches(event)).map(|event| (EventType::Added, event));
    }
    if mutant::is_on(Mutant::WatchForgetsDeletes) && change.new.is_none() {
        return None;
    }
    let old = change.old.as_ref().filter(|object| selection.matches(object));
    let new = change.new.as_ref().filter(|object| selection.matches(object));
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some((EventType::Added, new.clone())),
        (Some(_), Some(new)) => Some((EventType::Modified, new.clone())),
        (Some(old), None) => {
            let mut last = (**change.new.as_ref().unwrap_or(old)).clone();
            if let Some(metadata) = last.metadata_mut() {
                metadata.revision = change.revision;
            }
            Some((EventType::Deleted, Arc::new(last)))
        }
    }
}

/// What a selection shows of a state. Most events are none of its objects.
pub fn selected<'a>(selection: &'a Selection, snapshot: &'a Snapshot) -> impl Iterator<Item = ObjectRef> + Send + 'a {
    let happened = (selection.kind == Kind::Event).then(|| happened::events(snapshot, snapshot.state.revision()));
    let objects = snapshot.state.list(selection.kind, &selection.namespace).cloned();
    objects.chain(happened.into_iter().flatten()).filter(|object| selection.matches(object))
}

/// A client of the gRPC API sees messages.
impl Lens for Selection {
    type Item = WatchResponse;

    fn initial<'a>(&'a self, snapshot: &'a Snapshot) -> Box<dyn Iterator<Item = WatchResponse> + Send + 'a> {
        Box::new(selected(self, snapshot).map(|object| event(EventType::Added, &object, object.metadata().revision)))
    }

    fn change(&self, change: &Change) -> Vec<WatchResponse> {
        seen(self, change).map(|(kind, object)| event(kind, &object, change.revision)).into_iter().collect()
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Option<WatchResponse> {
        let kind = EventType::Bookmark as i32;
        Some(WatchResponse { r#type: kind, object: None, revision, initial_events_end })
    }
}

fn event(kind: EventType, object: &ObjectRef, revision: u64) -> WatchResponse {
    WatchResponse { r#type: kind as i32, object: Some((**object).clone()), revision, initial_events_end: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{World, delete_command, namespace, put_with, service_with};
    use crate::watch::history::{History, WINDOW};
    use fairlead_proto::internal::v1::{Command, Entry, command};
    use std::collections::BTreeMap;

    /// A state that changes, and those who watch it.
    struct Stage {
        snapshot: Snapshot,
        changes: Vec<Change>,
        published: watch::Sender<Arc<Snapshot>>,
        at_ms: u64,
    }

    type Events = mpsc::Receiver<Result<WatchResponse, Status>>;

    impl Stage {
        fn new() -> Self {
            let snapshot = World::new().snapshot;
            let published = watch::Sender::new(Arc::new(snapshot.clone()));
            Self { snapshot, changes: Vec::new(), published, at_ms: 1_800_000_000_000 }
        }

        fn run(&mut self, kind: command::Kind) {
            self.at_ms += 1;
            let entry = Entry { at_ms: self.at_ms, command: Some(Command { kind: Some(kind) }), ..Entry::default() };
            let applied = self.snapshot.apply(&entry);
            assert_eq!(applied.outcome.rejection, None);
            self.changes.extend(applied.changes);
        }

        fn publish(&self) {
            self.published.send_replace(Arc::new(self.snapshot.clone()));
        }

        fn put(&mut self, name: &str, port: i32) {
            let ported = service_with(name, |spec| spec.ports[0].port = port);
            self.run(put_with(ported.into(), None));
        }

        fn watch(&self, from: Option<u64>) -> Events {
            let (to, events) = mpsc::channel(STREAM_BUFFER);
            let selection = Selection::parse(Kind::Service, "", ("", "")).unwrap();
            tokio::spawn(
                Watcher { lens: selection, from, to }.run(self.published.subscribe(), CancellationToken::new()),
            );
            events
        }
    }

    /// What a watcher knows: the services' ports, and the revisions of its events.
    #[derive(Default)]
    struct Follower {
        ports: BTreeMap<String, i32>,
        revisions: Vec<u64>,
    }

    impl Follower {
        fn take(&mut self, event: WatchResponse) {
            let kind = event.r#type();
            let Some(object) = event.object else { return };
            let service = object.as_service().unwrap();
            let name = object.metadata().name.clone();
            match kind {
                EventType::Deleted => drop(self.ports.remove(&name)),
                _ => drop(self.ports.insert(name, service.spec.as_ref().unwrap().ports[0].port)),
            }
            self.revisions.push(event.revision);
        }
    }

    /// Reads until nothing more comes.
    async fn follow(events: &mut Events, follower: &mut Follower) {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(200), events.recv()).await {
            follower.take(event.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn any_start_gives_every_later_event_once_while_writes_go_on() {
        let mut stage = Stage::new();
        let mut watching = Vec::new();
        for round in 0..300 {
            let name = format!("s{}", round % 7);
            if round % 11 == 10 && stage.snapshot.state.list(Kind::Service, "").any(|one| one.metadata().name == name) {
                stage.run(delete_command(Kind::Service, &name));
            } else {
                stage.put(&name, 1 + round);
            }
            if round % 3 == 0 {
                stage.publish();
            }
            if round % 10 == 0 {
                // The current state, the newest revision, and one of before.
                let published = stage.published.borrow().state.revision();
                for from in [None, Some(published), Some(published.saturating_sub(u64::try_from(round).unwrap() / 2))] {
                    watching.push((from, stage.watch(from), Follower::default()));
                }
            }
            if round % 5 == 0 {
                tokio::task::yield_now().await;
            }
        }
        stage.publish();
        let newest: BTreeMap<String, i32> = stage
            .snapshot
            .state
            .list(Kind::Service, "")
            .map(|one| (one.metadata().name.clone(), one.as_service().unwrap().spec.as_ref().unwrap().ports[0].port))
            .collect();
        let of_services = |change: &&Change| change.key.kind == Kind::Service;
        assert_eq!(watching.len(), 90);
        for (from, mut events, mut follower) in watching {
            follow(&mut events, &mut follower).await;
            match from {
                None => assert_eq!(follower.ports, newest, "from the state on"),
                Some(from) => {
                    let later = stage.changes.iter().filter(of_services).map(|change| change.revision);
                    let later: Vec<u64> = later.filter(|revision| *revision > from).collect();
                    assert_eq!(follower.revisions, later, "after {from}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_holds_up_nobody_and_is_told_to_list_anew() {
        let mut stage = Stage::new();
        let mut slow = stage.watch(None);
        let mut quick: Vec<_> = (0..20).map(|_| (stage.watch(None), Follower::default())).collect();
        for round in 0..i32::try_from(WINDOW).unwrap() + 500 {
            stage.put("s", 1 + round % 60_000);
            if round % 50 == 0 {
                stage.publish();
                for (events, follower) in &mut quick {
                    follow(events, follower).await;
                }
            }
        }
        stage.publish();
        for (events, follower) in &mut quick {
            follow(events, follower).await;
            assert_eq!(follower.revisions.last(), stage.changes.iter().map(|change| change.revision).max().as_ref());
        }
        let mut got = 0;
        let end = loop {
            match slow.recv().await {
                Some(Ok(_)) => got += 1,
                Some(Err(status)) => break status,
                None => panic!("it was not told"),
            }
        };
        assert_eq!(end.code(), tonic::Code::OutOfRange, "{end}");
        assert!(got <= STREAM_BUFFER + 100, "{got} events were kept for it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_came_without_the_events_between_ends_the_watch() {
        let mut stage = Stage::new();
        stage.put("s", 1);
        stage.publish();
        let mut events = stage.watch(Some(stage.snapshot.state.revision()));
        tokio::task::yield_now().await;
        stage.put("s", 2);
        stage.put("s", 3);
        // As an installed snapshot, of a member that had compacted.
        let history = History::from_records(stage.snapshot.state.revision(), Vec::new(), |_| None).unwrap();
        stage.snapshot.history = history;
        stage.publish();
        assert_eq!(events.recv().await.unwrap().unwrap_err().code(), tonic::Code::OutOfRange);
        assert!(events.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn bookmarks_come_after_what_they_cover_and_the_last_write_wakes() {
        let mut stage = Stage::new();
        stage.put("s", 1);
        stage.publish();
        let mut events = stage.watch(Some(stage.snapshot.state.revision()));
        tokio::task::yield_now().await;
        // No other write follows this one: it must arrive by itself.
        stage.put("s", 2);
        stage.publish();
        let began = tokio::time::Instant::now();
        let event = events.recv().await.unwrap().unwrap();
        assert_eq!((event.r#type(), began.elapsed()), (EventType::Modified, Duration::ZERO));
        // What is none of its business moves its bookmark only.
        stage.put("s", 3);
        stage.run(put_with(namespace("other").into(), None));
        stage.publish();
        let newest = stage.snapshot.state.revision();
        let mut last = event.revision;
        let mark = loop {
            let event = events.recv().await.unwrap().unwrap();
            if event.r#type() == EventType::Bookmark {
                break event;
            }
            assert!(event.revision > last);
            last = event.revision;
        };
        assert!(mark.revision == newest && newest > last, "{mark:?}");
    }
}
