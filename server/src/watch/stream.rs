//! A watcher's stream: every event after a revision, in order, or `Compacted`.
//!
//! Nothing is queued for a watcher but its socket's few messages: it reads the published window at its own pace, so a
//! slow one costs nobody else anything and is told `Expired` when the window has passed it.

use crate::api::list::Selection;
use crate::api::status;
use crate::machine::{Change, Snapshot};
use fairlead_proto::model::ObjectRef;
use fairlead_proto::v1::{EventType, WatchResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages waiting for one watcher's socket.
pub const STREAM_BUFFER: usize = 64;
/// An idle watcher gets a bookmark this often, so that it can resume without a relist.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);

/// What to watch, from where.
pub struct Watcher {
    /// Objects of interest.
    pub selection: Selection,
    /// Events after this revision; `None` = the current state first.
    pub from: Option<u64>,
    /// Where events go.
    pub to: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Watcher {
    /// Runs until the watcher goes, the window has passed it, or the server stops.
    pub async fn run(self, mut snapshots: watch::Receiver<Arc<Snapshot>>, cancel: CancellationToken) {
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
                        let _ = self.to.send(Err(status::compacted(last, compacted.oldest))).await;
                        return;
                    }
                };
                for change in changes {
                    if let Some(event) = self.event(&change) {
                        told = event.revision;
                        if self.to.send(Ok(event)).await.is_err() {
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
                    if self.to.send(Ok(bookmark(last, false))).await.is_err() {
                        return;
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// The current state as ADDED events, closed by a bookmark. `None`: the watcher is gone.
    async fn initial(&self, snapshot: &Snapshot) -> Option<u64> {
        for object in snapshot.state.list(self.selection.kind, &self.selection.namespace) {
            if self.selection.matches(object) {
                let revision = object.metadata().revision;
                self.to.send(Ok(event(EventType::Added, object, revision))).await.ok()?;
            }
        }
        let revision = snapshot.state.revision();
        self.to.send(Ok(bookmark(revision, true))).await.ok()?;
        Some(revision)
    }

    /// How a change looks through the selection: an object that stops matching is DELETED for this watcher.
    fn event(&self, change: &Change) -> Option<WatchResponse> {
        if change.key.kind != self.selection.kind {
            return None;
        }
        let old = change.old.as_ref().filter(|object| self.selection.matches(object));
        let new = change.new.as_ref().filter(|object| self.selection.matches(object));
        match (old, new) {
            (None, None) => None,
            (None, Some(new)) => Some(event(EventType::Added, new, change.revision)),
            (Some(_), Some(new)) => Some(event(EventType::Modified, new, change.revision)),
            (Some(old), None) => {
                // The last state, at the revision of its going.
                let mut last = (**change.new.as_ref().unwrap_or(old)).clone();
                if let Some(metadata) = last.metadata_mut() {
                    metadata.revision = change.revision;
                }
                Some(event(EventType::Deleted, &Arc::new(last), change.revision))
            }
        }
    }
}

fn event(kind: EventType, object: &ObjectRef, revision: u64) -> WatchResponse {
    WatchResponse { r#type: kind as i32, object: Some((**object).clone()), revision, initial_events_end: false }
}

fn bookmark(revision: u64, initial_events_end: bool) -> WatchResponse {
    WatchResponse { r#type: EventType::Bookmark as i32, object: None, revision, initial_events_end }
}
