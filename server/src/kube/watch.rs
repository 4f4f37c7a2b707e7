//! watch: lines of JSON, one an event, in any form that a list has. Bytes are shared by all watchers of a form.

use crate::api::status;
use crate::kube::Kube;
use crate::kube::accept::Wanted;
use crate::kube::failure::Failure;
use crate::kube::read::{form, seconds, selected, table_of};
use crate::kube::rendered::{self, Form, Rendered};
use crate::kube::request::{Asked, Revision, Target};
use crate::kube::table::{self, Include};
use crate::kube::view::{Seen, Selected, View};
use crate::machine::{Change, Snapshot};
use crate::pki::Identity;
use crate::watch::stream::{self, Lens, STREAM_BUFFER, Watcher};
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::{BufMut as _, Bytes, BytesMut};
use fairlead_proto::model::ObjectRef;
use fairlead_proto::v1::EventType;
use futures::StreamExt as _;
use rand::Rng as _;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A watch without a time of its own ends after one of these many seconds (kube-apiserver's `--min-request-timeout`, up to twice
/// that).
const LIFE_SECONDS: std::ops::Range<u64> = 1_800..3_600;

/// What a watcher of a resource sees.
struct Lines {
    selected: Selected,
    rendered: Arc<Rendered>,
    wanted: Wanted,
    include: Include,
    /// apiVersion and kind of what is watched, for bookmarks.
    named: (String, &'static str),
    bookmarks: bool,
    /// The end of the first state is to be told.
    initial_end: bool,
    of: table::Of,
    /// The columns of the table were sent.
    headed: AtomicBool,
}

impl Kube {
    /// Begins a watch.
    pub(super) async fn watch(
        &self,
        who: &Identity,
        target: &Target,
        (asked, wanted): (&Asked, Wanted),
    ) -> Result<Response<Body>, Failure> {
        let view = View::of(target.resource).ok_or_else(Failure::no_such_verb)?;
        self.may_read(who, view, target)?;
        let selected = selected(view, target, asked)?;
        let from = self.start(asked).await?;
        let lens = Lines {
            selected,
            rendered: self.rendered.clone(),
            wanted,
            include: asked.include,
            named: (target.resource.api_version(), target.resource.kind),
            bookmarks: asked.bookmarks,
            initial_end: asked.initial_events == Some(true) && asked.bookmarks,
            of: table_of(target),
            headed: AtomicBool::new(false),
        };
        let (to, lines) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(Watcher { lens, from, to }.run(self.consensus.subscribe(), self.cancel.clone()));
        let life = asked.timeout_seconds.unwrap_or_else(|| rand::rng().random_range(LIFE_SECONDS));
        let until = Box::pin(tokio::time::sleep(Duration::from_secs(life.min(u64::from(u32::MAX)))));
        let lines = ReceiverStream::new(lines).filter_map(|line| async move {
            match line {
                Ok(line) => Some(Ok::<Bytes, std::convert::Infallible>(line)),
                // It just ends where the server does: the client goes on with another one.
                Err(ended) if ended.code() == tonic::Code::Unavailable => None,
                Err(ended) => Some(Ok(error(&Failure::from(ended)))),
            }
        });
        let mut response = Response::new(Body::from_stream(lines.take_until(until)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }

    /// After which revision a watch begins; `None`: with the state, which is then as new as was asked for.
    async fn start(&self, asked: &Asked) -> Result<Option<u64>, Failure> {
        let with_state = match (asked.initial_events, asked.revision) {
            (Some(wanted), _) => wanted,
            (None, Revision::At(_)) => false,
            (None, Revision::Newest | Revision::Any) => true,
        };
        let snapshot = self.snapshot(asked).await?;
        if with_state {
            return Ok(None);
        }
        let Revision::At(revision) = asked.revision else { return Ok(Some(snapshot.state.revision())) };
        match snapshot.history.after(revision) {
            Ok(_) => Ok(Some(revision)),
            Err(compacted) => Err(status::compacted(revision, compacted.oldest).into()),
        }
    }
}

impl Lines {
    fn form(&self) -> Form {
        form(self.wanted, self.include, seconds())
    }

    fn object(&self, kind: EventType, object: &ObjectRef) -> Vec<Bytes> {
        let parts = self.rendered.all((self.selected.view, self.form()), std::slice::from_ref(object));
        parts.iter().map(|part| self.line(kind, part)).collect()
    }

    fn value(&self, kind: EventType, value: &Value) -> Bytes {
        self.line(kind, &rendered::bytes(self.of, self.form(), value))
    }

    /// An event, of what is rendered already.
    fn line(&self, kind: EventType, part: &[u8]) -> Bytes {
        let kind = match kind {
            EventType::Added => "ADDED",
            EventType::Deleted => "DELETED",
            _ => "MODIFIED",
        };
        let mut line = BytesMut::with_capacity(part.len() + 160);
        line.put_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        if let Wanted::Table { version } = self.wanted {
            // A client keeps the columns of the first one.
            let columns = if self.headed.swap(true, Ordering::Relaxed) { Value::Null } else { table::columns(self.of) };
            let head = format!("{{\"kind\":\"Table\",\"apiVersion\":\"{}\",\"metadata\":{{}}", version.api_version());
            line.put_slice(format!("{head},\"columnDefinitions\":{columns},\"rows\":[").as_bytes());
            line.put_slice(part);
            line.put_slice(b"]}");
        } else {
            line.put_slice(part);
        }
        line.put_slice(b"}\n");
        line.freeze()
    }
}

impl Lens for Lines {
    type Item = Bytes;

    fn initial<'a>(&'a self, snapshot: &'a Snapshot) -> Box<dyn Iterator<Item = Bytes> + Send + 'a> {
        let base = &self.selected.base;
        let objects = stream::selected(base, snapshot);
        if matches!(self.selected.view, View::Own(_)) {
            return Box::new(objects.flat_map(|object| self.object(EventType::Added, &object)));
        }
        let values = objects.flat_map(|object| self.selected.view.render(&object));
        let matching = values.filter(|value| self.selected.matches(value));
        Box::new(matching.map(|value| self.value(EventType::Added, &value)))
    }

    fn change(&self, change: &Change) -> Vec<Bytes> {
        let events = self.selected.changed(change).into_iter();
        let lines = events.map(|(kind, seen)| match seen {
            Seen::Object(object) => self.object(kind, &object),
            Seen::Value(value) => vec![self.value(kind, &value)],
        });
        lines.flatten().collect()
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Option<Bytes> {
        if !self.bookmarks || (initial_end && !self.initial_end) {
            return None;
        }
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let partial = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        let object = match self.wanted {
            Wanted::Table { version } => json!({
                "kind": "Table", "apiVersion": version.api_version(), "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": null, "rows": [{"cells": [], "object": partial}],
            }),
            Wanted::PartialObjectMetadata { .. } | Wanted::PartialObjectMetadataList { .. } => partial,
            _ => json!({"kind": self.named.1, "apiVersion": self.named.0, "metadata": metadata}),
        };
        let line = json!({"type": "BOOKMARK", "object": object});
        Some(Bytes::from(format!("{line}\n")))
    }
}

/// The event that ends a watch which can't go on.
fn error(failure: &Failure) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": failure.status()})))
}
