//! Watchers of every service: one stays with each server, others go from server to server and resume where they were, or
//! begin anew.

use super::Stage;
use crate::client::{PATIENCE, VALUE};
use crate::cluster::{connect, lock};
use crate::hosts::Host;
use crate::random::Random;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{EventType, Kind, Object, WatchRequest, WatchResponse};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// Without a message for so long a watcher goes elsewhere: bookmarks come every ten seconds.
const SILENT: Duration = Duration::from_secs(13);

/// What one stream brought.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// The watcher.
    pub watcher: u8,
    /// The server, from 1.
    pub node: u8,
    /// Asked for events after this revision; `None`: for the state first.
    pub from: Option<u64>,
    /// When it was asked for.
    pub opened: u64,
    /// What came, in its order.
    pub events: Vec<Event>,
    /// It was told that its revision is compacted.
    pub compacted: bool,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Added, modified, deleted or bookmark.
    pub kind: EventType,
    /// Namespace and name; empty for bookmarks.
    pub key: String,
    /// Revision of the change.
    pub revision: u64,
    /// It is of the state that came first, or the bookmark that ends it.
    pub initial: bool,
    /// The value that the object has.
    pub value: String,
    /// Addresses and node ports that the service holds.
    pub held: Vec<String>,
    /// Its uid.
    pub uid: String,
}

/// One watcher.
pub async fn watcher(stage: Arc<Stage>, mut random: Random, number: u8) {
    let servers = stage.cluster.servers.max(1);
    let stays = number < servers;
    // One begins anew every time: the state that it gets first is judged, too.
    let forgets = number == servers;
    let mut host = Host::Server(1 + number % servers);
    let mut after = None;
    while !stage.is_stopped() {
        let mut session = Session { watcher: number, from: after, opened: stage.now(), ..Session::default() };
        if let Host::Server(node) = host {
            session.node = node;
        }
        // Some leave in the middle, and resume.
        let longest = if forgets { 800 } else { 6_500 };
        let leave = (!stays).then(|| Duration::from_millis(300 + random.below(longest)));
        follow(&stage, (host, &mut session), leave).await;
        after = if session.compacted || forgets { None } else { resume_point(&session).or(after) };
        lock(&stage.watched).push(session);
        tokio::time::sleep(Duration::from_millis(30 + random.below(150))).await;
        if !stays {
            host = Host::Server(u8::try_from(1 + random.below(servers.into())).unwrap_or(1));
        }
    }
}

/// The revision after which a session can be resumed; `None` before its state was complete.
fn resume_point(session: &Session) -> Option<u64> {
    let whole = session.from.is_some() || session.events.iter().any(|event| event.initial && event.key.is_empty());
    let last = session.events.iter().rev().find(|event| !event.initial || event.key.is_empty());
    last.filter(|_| whole).map(|event| event.revision)
}

/// Takes what comes until the stream ends, is silent for too long, or the watcher leaves.
async fn follow(stage: &Stage, (host, session): (Host, &mut Session), leave: Option<Duration>) {
    let Some(endpoint) = connect(host) else { return };
    let Ok(Ok(channel)) = tokio::time::timeout(PATIENCE, endpoint.connect()).await else { return };
    let mut client = ObjectsClient::new(channel).max_decoding_message_size(64 << 20);
    let request = WatchRequest {
        kind: Kind::Service as i32,
        from_revision: session.from.unwrap_or(0),
        ..WatchRequest::default()
    };
    let mut stream = match tokio::time::timeout(PATIENCE, client.watch(request)).await {
        Ok(Ok(stream)) => stream.into_inner(),
        Ok(Err(status)) => {
            session.compacted = status.code() == Code::OutOfRange;
            return;
        }
        Err(_) => return,
    };
    let mut initial = session.from.is_none();
    let deadline = tokio::time::Instant::now() + leave.unwrap_or(Duration::from_secs(3600));
    while !stage.is_stopped() {
        let message = tokio::select! {
            message = tokio::time::timeout(SILENT, stream.message()) => message,
            () = tokio::time::sleep_until(deadline) => return,
            () = stopped(stage) => return,
        };
        match message {
            Ok(Ok(Some(message))) => {
                session.events.push(event(&message, initial));
                initial &= !message.initial_events_end;
            }
            Ok(Err(status)) => {
                session.compacted = status.code() == Code::OutOfRange;
                return;
            }
            Ok(Ok(None)) | Err(_) => return,
        }
    }
}

async fn stopped(stage: &Stage) {
    while !stage.is_stopped() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn event(message: &WatchResponse, initial: bool) -> Event {
    let object = message.object.as_ref();
    let metadata = object.map(Object::metadata);
    Event {
        kind: message.r#type(),
        key: metadata.map(|it| format!("{}/{}", it.namespace, it.name)).unwrap_or_default(),
        revision: message.revision,
        initial,
        value: metadata.and_then(|it| it.annotations.get(VALUE).cloned()).unwrap_or_default(),
        held: object.map(held).unwrap_or_default(),
        uid: metadata.map(|it| it.uid.clone()).unwrap_or_default(),
    }
}

fn held(object: &Object) -> Vec<String> {
    let Some(spec) = object.as_service().and_then(|service| service.spec.as_ref()) else { return Vec::new() };
    let addresses = spec.cluster_ips.iter().filter(|address| *address != "None").cloned();
    let ports = spec.ports.iter().filter(|port| port.node_port > 0).map(|port| format!("port {}", port.node_port));
    addresses.chain(ports).collect()
}
