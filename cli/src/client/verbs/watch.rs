//! `get -w`: the objects there are, then every change as it comes; resumed on another server where a stream is cut.
//!
//! Invariant: no event is shown twice and none is left out; if the servers no longer keep what was missed, it says so.

use super::get::{GetArgs, Table};
use crate::client::failure::Failure;
use crate::client::fetch::{self, Filter};
use crate::client::kinds::Resource;
use crate::client::output::{Format, Shown, print};
use crate::client::targets::Targets;
use crate::client::{Global, Session};
use fairlead_proto::v1::{EventType, Kind, Object, WatchRequest, WatchResponse};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Streaming;

/// An event of a watch.
pub struct Event {
    /// What happened.
    pub kind: EventType,
    /// The object; absent for bookmarks.
    pub object: Option<Object>,
    /// True on the bookmark that ends the initial state.
    pub initial_end: bool,
}

/// A watch that outlives its streams.
pub struct Watch<'a> {
    session: &'a Session,
    request: WatchRequest,
    stream: Option<Streaming<WatchResponse>>,
    initial: bool,
}

impl<'a> Watch<'a> {
    /// A watch of objects, from what there is now. `name` narrows it to one; empty = all.
    pub fn new(session: &'a Session, resource: &Resource, filter: &Filter, name: &str) -> Self {
        let mut request = WatchRequest {
            kind: resource.kind as i32,
            namespace: if resource.is_namespaced() { filter.namespace.clone() } else { String::new() },
            name: name.to_owned(),
            ..WatchRequest::default()
        };
        if resource.is_stored() {
            (request.label_selector, request.field_selector) = (filter.labels.clone(), filter.fields.clone());
        }
        Self { session, request, stream: None, initial: true }
    }

    /// The next event.
    ///
    /// # Errors
    /// The servers can't be reached, refuse, or no longer keep what was missed.
    pub async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                empty => empty.insert(self.session.servers.watch(self.request.clone()).await?),
            };
            match stream.message().await {
                Ok(Some(message)) => {
                    let kind = message.r#type();
                    if !self.initial || message.initial_events_end {
                        // The initial state is not in the order of revisions: a cut within it begins again.
                        self.request.from_revision = message.revision;
                        self.initial = false;
                    }
                    return Ok(Event { kind, object: message.object, initial_end: message.initial_events_end });
                }
                Ok(None) => self.cut(),
                Err(status) => {
                    let failure = Failure::from_status(&status);
                    if failure.is_expired() || status.code() == tonic::Code::InvalidArgument {
                        return Err(failure);
                    }
                    self.cut();
                }
            }
            if self.initial {
                return Err(Failure::Connection("the servers broke off while listing: try again".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn cut(&mut self) {
        self.stream = None;
        self.session.servers.turn();
    }
}

/// Runs `get -w`.
///
/// # Errors
/// Several resource types, or the watch ends.
pub async fn run(with: (&Global, &Session), targets: &Targets, args: &GetArgs, format: &Format) -> Result<(), Failure> {
    let (global, session) = with;
    let single = Failure::local("you may only specify a single resource type");
    let Some(resource) = targets.only().filter(|_| targets.named.len() < 2) else { return Err(single) };
    let name = targets.named.first().map_or("", |(_, name)| name.as_str());
    let following = follow(session, (resource, name), args, format);
    match global.request_timeout.filter(|limit| !limit.is_zero()) {
        // Given explicitly, a request's time is a watch's time; its end is no failure.
        Some(limit) => tokio::time::timeout(limit, following).await.unwrap_or(Ok(())),
        None => following.await,
    }
}

async fn follow(
    session: &Session,
    what: (&'static Resource, &str),
    args: &GetArgs,
    format: &Format,
) -> Result<(), Failure> {
    let (resource, name) = what;
    if resource.kind == Kind::Event {
        return Err(Failure::local("watch events with `fairlead events -w`"));
    }
    let mut filter = args.filter(session);
    if !name.is_empty() {
        session.named(resource, name).await?;
    }
    let watched = if resource.is_stored() { name } else { "" };
    if !resource.is_stored() && !name.is_empty() {
        filter.fields = format!("metadata.name={name}");
    }
    let mut watch = Watch::new(session, resource, &filter, watched);
    let wide = matches!(format, Format::Table { wide: true });
    let mut printer = Printer { session, table: Table::new(resource, args, wide), args, format, begun: false };
    let mut initial = Vec::new();
    let mut listing = true;
    loop {
        let event = watch.next().await?;
        let shown = match &event.object {
            Some(object) => fetch::render(resource, object, &filter)?,
            None => Vec::new(),
        };
        if !listing {
            printer.show(&shown, event.kind).await?;
        } else if event.initial_end {
            listing = false;
            if !args.watch_only {
                printer.show(&initial, EventType::Added).await?;
            }
            initial.clear();
        } else {
            initial.extend(shown);
        }
    }
}

struct Printer<'a> {
    session: &'a Session,
    table: Table<'a>,
    args: &'a GetArgs,
    format: &'a Format,
    begun: bool,
}

impl Printer<'_> {
    async fn show(&mut self, objects: &[Shown], kind: EventType) -> Result<(), Failure> {
        if objects.is_empty() {
            return Ok(());
        }
        let Format::Table { wide } = *self.format else {
            for object in objects {
                let separator = if matches!(self.format, Format::Yaml) && self.begun { "---\n" } else { "" };
                let text = match self.format {
                    Format::Columns(columns) => columns
                        .render(std::slice::from_ref(object), !self.begun && !self.args.no_headers)
                        .map_err(Failure::Local)?,
                    other => other.render(std::slice::from_ref(object), true)?,
                };
                self.begun = true;
                print(&format!("{separator}{text}"))?;
            }
            return Ok(());
        };
        let beside = self.session.beside(objects, wide).await?;
        let mut rows = if self.begun { Vec::new() } else { self.table.header() };
        let titles = rows.len();
        rows.extend(objects.iter().map(|object| self.table.row(object, &beside)));
        if self.args.output_watch_events {
            for (index, row) in rows.iter_mut().enumerate() {
                row.insert(0, if index < titles { "EVENT".to_owned() } else { event_name(kind).to_owned() });
            }
        }
        self.begun = true;
        print(&self.table.aligner.render(&rows))
    }
}

fn event_name(kind: EventType) -> &'static str {
    match kind {
        EventType::Added => "ADDED",
        EventType::Modified => "MODIFIED",
        EventType::Deleted => "DELETED",
        EventType::Bookmark | EventType::Unspecified => "BOOKMARK",
    }
}

/// Waits until what a watch of one object shows passes a test, or the deadline. The test sees `None` while there is no
/// object.
///
/// # Errors
/// What the test or the watch fails with; `Ok(false)` at the deadline.
pub async fn until(
    watch: &mut Watch<'_>,
    deadline: Instant,
    mut test: impl FnMut(Option<&Object>) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    let mut current: Option<Object> = None;
    let mut listing = true;
    loop {
        let event = match tokio::time::timeout_at(deadline, watch.next()).await {
            Ok(event) => event?,
            Err(_) => return Ok(false),
        };
        match event.kind {
            EventType::Added | EventType::Modified => current = event.object,
            EventType::Deleted => current = None,
            EventType::Bookmark | EventType::Unspecified => {}
        }
        listing &= !event.initial_end;
        if !listing && test(current.as_ref())? {
            return Ok(true);
        }
    }
}
