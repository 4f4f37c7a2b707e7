//! Raft's state machine: the pure `machine::apply` in memory, one write batch for what it did, and then publication.
//!
//! INVARIANT: nothing is published or answered before its batch is written, and the batch follows its entries in the
//! one WAL. A step costs what its entries changed, not what the state holds.

use crate::machine::{Applied, Snapshot};
use crate::raft::types::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::storage::load::{self, LoadedState};
use crate::storage::snapshot::{self, SnapshotFile};
use crate::storage::snapshot_store::{Built, SnapshotBuilder, SnapshotStore};
use crate::storage::writer::{self, Write, Writer};
use crate::storage::{codec, keys};
use crate::traced::Traced;
use fairlead_proto::internal::v1::{Entry as Logged, Outcome, Session};
use fairlead_proto::trace;
use futures::{Stream, StreamExt as _};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftStateMachine};
use prost::Message as _;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::Span;

/// Entries applied and written together.
const BATCH: usize = 512;
/// Entries after which a snapshot is not put off any longer.
const MOST_ENTRIES: u64 = 100_000;
/// Entries between two digests that members compare, and how many of these are kept.
const DIGEST_EVERY: u64 = 64;
const DIGESTS: usize = 32;
/// Bytes written together, give or take an entry.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The newest published state and the log index it reflects.
#[derive(Clone)]
pub struct Published {
    /// State and window.
    pub snapshot: Arc<Snapshot>,
    /// Last applied index.
    pub index: u64,
    /// Digests of the state at earlier indices, the same ones on every member.
    pub digests: Digests,
}

/// Indices and digests, in order.
pub type Digests = Arc<VecDeque<(u64, String)>>;

/// Tests: snapshot directory of a member whose state goes wrong.
#[cfg(test)]
pub static HARMED: std::sync::Mutex<Option<std::path::PathBuf>> = std::sync::Mutex::new(None);

/// The state machine.
pub struct StateMachine {
    writer: Writer,
    snapshots: SnapshotStore,
    current: Snapshot,
    applied: Option<LogId>,
    membership: StoredMembership,
    generation: u64,
    /// Bytes and number of the entries applied since a snapshot was last begun.
    since: (u64, u64),
    digests: Digests,
    published: watch::Sender<Published>,
    traced: Arc<Traced>,
    /// openraft's own tests apply entries that don't follow one another.
    pub(super) takes_holes: bool,
    /// Spans of entries that are applied and not published.
    spans: Vec<Span>,
    /// The same without the index, sent first: whoever waited for an index finds it here too.
    views: watch::Sender<Arc<Snapshot>>,
}

type Answers = Vec<(openraft::storage::ApplyResponder<TypeConfig>, Outcome)>;

impl StateMachine {
    /// A machine with what was loaded.
    #[must_use]
    pub fn new(writer: Writer, snapshots: SnapshotStore, loaded: LoadedState) -> Self {
        let first = Published {
            snapshot: Arc::new(loaded.snapshot.clone()),
            index: loaded.applied.map_or(0, |id| id.index),
            digests: Arc::default(),
        };
        Self {
            writer,
            snapshots,
            current: loaded.snapshot,
            applied: loaded.applied,
            membership: loaded.membership,
            generation: loaded.generation,
            since: (0, 0),
            digests: Arc::default(),
            traced: Arc::default(),
            takes_holes: false,
            spans: Vec::new(),
            views: watch::Sender::new(first.snapshot.clone()),
            published: watch::Sender::new(first),
        }
    }

    /// What is published, with and without its index.
    #[must_use]
    pub fn subscribe(&self) -> (watch::Receiver<Published>, watch::Receiver<Arc<Snapshot>>) {
        (self.published.subscribe(), self.views.subscribe())
    }

    /// Which of the newest changes belong to a trace.
    #[must_use]
    pub fn traced(&self) -> Arc<Traced> {
        self.traced.clone()
    }

    /// Begins the span of an entry that is applied next; it ends with its publication.
    fn begin_span(&self, logged: &Logged) -> Span {
        if logged.traceparent.is_empty() || !trace::is_on() {
            return Span::none();
        }
        let (index, revision) = (self.applied.map_or(0, |id| id.index), tracing::field::Empty);
        let span = tracing::info_span!(target: trace::TARGET, parent: None, "raft.apply", index, revision);
        trace::child(span, &logged.traceparent)
    }

    /// Remembers an applied entry's trace for the deltas to come: also if this member itself exports nothing.
    fn note_span(&mut self, span: Span, logged: &Logged, applied: &Applied) {
        if logged.traceparent.is_empty() {
            return;
        }
        let revision = applied.outcome.revision;
        span.record("revision", revision);
        if !applied.changes.is_empty() {
            let own = trace::context(&span).map(|_| trace::sampled(&span));
            let context = own.unwrap_or_else(|| logged.traceparent.clone());
            if !context.is_empty() {
                self.traced.note(revision, context);
            }
        }
        self.spans.push(span);
    }

    fn publish(&self) {
        let snapshot = Arc::new(self.current.clone());
        self.views.send_replace(snapshot.clone());
        let (index, digests) = (self.applied.map_or(0, |id| id.index), self.digests.clone());
        self.published.send_replace(Published { snapshot, index, digests });
    }

    /// Applies an entry in memory and adds what it did to a batch.
    fn execute(&mut self, entry: Entry, writes: &mut Vec<Write>) -> io::Result<Outcome> {
        let index = entry.log_id.index;
        let outcome = self.execute_one(entry, writes)?;
        #[cfg(test)]
        self.harm();
        if index.is_multiple_of(DIGEST_EVERY) {
            let mut kept: VecDeque<_> =
                self.digests.iter().skip((self.digests.len() + 1).saturating_sub(DIGESTS)).cloned().collect();
            kept.push_back((index, self.current.state.digest_hex()));
            self.digests = Arc::new(kept);
        }
        Ok(outcome)
    }

    /// What must never happen: this member applies what the others don't.
    #[cfg(test)]
    fn harm(&mut self) {
        use fairlead_proto::internal::v1::{Member, SetMember, command};
        if *HARMED.lock().unwrap() == Some(self.snapshots.directory()) {
            let member = Some(Member { id: 1, name: "nobody".into(), ..Member::default() });
            let command = command::Kind::SetMember(SetMember { member, join: false });
            self.current.apply(&crate::write::stamp(command, None));
        }
    }

    fn execute_one(&mut self, entry: Entry, writes: &mut Vec<Write>) -> io::Result<Outcome> {
        let next = self.applied.map_or(0, |id| id.index + 1);
        if entry.log_id.index != next && !self.takes_holes {
            // To go on would make this member differ from the others.
            return Err(io::Error::other(format!(
                "log entry {} is to be applied where {next} should be: the log has a hole",
                entry.log_id.index
            )));
        }
        self.applied = Some(entry.log_id);
        self.since.1 += 1;
        match entry.payload {
            EntryPayload::Blank => Ok(Outcome::default()),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Ok(Outcome::default())
            }
            EntryPayload::Normal(logged) => {
                if !logged.is_known() {
                    // To skip it would make this member differ from those that know the command.
                    return Err(io::Error::other(format!(
                        "log entry {} holds a command that this program does not know: start the newer fairlead on this member",
                        entry.log_id.index
                    )));
                }
                self.since.0 += logged.encoded().len() as u64;
                let compacted = self.current.history.compacted();
                let span = self.begin_span(logged.entry());
                let applied = self.current.apply(logged.entry());
                load::executable(&self.current).map_err(io::Error::other)?;
                self.record(&applied, compacted, writes);
                self.note_span(span, logged.entry(), &applied);
                Ok(applied.outcome)
            }
        }
    }

    /// Adds what an entry changed to a batch; `compacted` is where the window began before it.
    fn record(&self, applied: &Applied, compacted: u64, writes: &mut Vec<Write>) {
        let generation = self.generation;
        let mut put = |key, value| writes.push((keys::STATE, key, value));
        for change in &applied.changes {
            let object = change.new.as_ref().map(|object| object.encode_to_vec());
            put(keys::object(generation, &change.key), object);
            let event = keys::state(generation, keys::tag::EVENT, &change.revision.to_be_bytes());
            put(event, Some(change.encode_stored()));
        }
        // What left the window leaves the store in the same batch.
        for gone in compacted + 1..=self.current.history.compacted() {
            put(keys::state(generation, keys::tag::EVENT, &gone.to_be_bytes()), None);
        }
        let state = &self.current.state;
        for client in &applied.touched.sessions {
            let session = state.session(client).map(|session| session.encode_to_vec());
            put(keys::state(generation, keys::tag::SESSION, client.as_bytes()), session);
        }
        for (client, sequence) in &applied.touched.session_writes {
            let kept = state.session_write(client, *sequence).map(|write| {
                let session = Session { client: client.clone(), writes: vec![write], ..Session::default() };
                session.encode_to_vec()
            });
            put(keys::session_write(generation, client, *sequence), kept);
        }
        for node in &applied.touched.leases {
            let lease = state.lease(node).map(|lease| lease.encode_to_vec());
            put(keys::state(generation, keys::tag::LEASE, node.as_bytes()), lease);
        }
        for key in &applied.touched.access {
            let record = state.access_record(key).map(|record| record.encode_to_vec());
            put(keys::state(generation, keys::tag::ACCESS, key.as_bytes()), record);
        }
    }

    /// What every batch ends with: meta, digest, last applied, membership.
    fn closing(&self) -> Vec<Write> {
        let put = |tag, value: Vec<u8>| (keys::STATE, keys::state(self.generation, tag, &[]), Some(value));
        let membership = codec::stored_membership(&self.membership).encode_to_vec();
        let mut writes = vec![
            put(keys::tag::META, self.current.meta().encode_to_vec()),
            put(keys::tag::DIGEST, self.current.state.digest_hex().into_bytes()),
            put(keys::tag::MEMBERSHIP, membership),
        ];
        if let Some(id) = &self.applied {
            writes.push(put(keys::tag::APPLIED, codec::log_id(id).encode_to_vec()));
        }
        writes
    }

    /// Writes a batch, publishes, and answers, in this order.
    async fn settle(&mut self, mut writes: Vec<Write>, answers: Answers) -> io::Result<()> {
        writes.extend(self.closing());
        self.writer.write(writes, None, false).await?;
        self.publish();
        self.spans.clear();
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        Ok(())
    }

    /// Writes a snapshot's state as a generation beside the one in force, and switches to it by one synced write.
    async fn switch(&mut self, meta: &SnapshotMeta, installed: Snapshot) -> io::Result<()> {
        let (old, new) = (self.generation, self.generation + 1);
        let clear = (new.to_be_bytes().to_vec(), (new + 1).to_be_bytes().to_vec());
        let clear = (keys::STATE, clear.0, clear.1);
        self.writer.write(Vec::new(), Some(clear), false).await?;
        for batch in snapshot::batches(new, &installed, BATCH_BYTES) {
            self.writer.write(batch, None, false).await?;
        }
        self.current = installed;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.generation = new;
        let mut writes = self.closing();
        let pointer = Some(new.to_be_bytes().to_vec());
        writes.push((keys::META, keys::GENERATION.to_vec(), pointer));
        self.writer.write(writes, None, true).await?;
        // A crash before this leaves the old generation to the next start.
        let gone = (keys::STATE, old.to_be_bytes().to_vec(), new.to_be_bytes().to_vec());
        self.writer.write(Vec::new(), Some(gone), false).await
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + openraft::OptionalSend,
    {
        let mut chunks = entries.ready_chunks(BATCH);
        while let Some(chunk) = chunks.next().await {
            let mut writes = Vec::new();
            let mut answers = Answers::new();
            for item in chunk {
                let (entry, responder) = item?;
                let outcome = self.execute(entry, &mut writes)?;
                answers.extend(responder.map(|responder| (responder, outcome)));
                if writer::bytes(&writes) > BATCH_BYTES {
                    self.settle(std::mem::take(&mut writes), std::mem::take(&mut answers)).await?;
                }
            }
            self.settle(writes, answers).await?;
        }
        Ok(())
    }

    /// Not before the log has grown by as much as a snapshot is long: writing snapshots costs no more than writing the
    /// log, however large the state is.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let (bytes, entries) = self.since;
        if !force && bytes < self.snapshots.length() && entries < MOST_ENTRIES {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.since = (0, 0);
        // One consistent view of data and position, taken between two batches.
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        self.snapshots.builder(meta, self.current.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let read = snapshot.clone();
        let decoded = tokio::task::spawn_blocking(move || read.decode()).await;
        let (found, installed) = decoded.map_err(io::Error::other)??;
        if found != *meta {
            return Err(io::Error::other("the snapshot is not the one it is said to be"));
        }
        load::executable(&installed).map_err(io::Error::other)?;
        // The file first: if it goes no further, the next start finds a snapshot ahead of the state and installs it.
        let store = self.snapshots.clone();
        let reflects = meta.last_log_id;
        let adopted = tokio::task::spawn_blocking(move || store.adopt(&snapshot, reflects)).await;
        adopted.map_err(io::Error::other)??;
        self.switch(meta, installed).await?;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Built>, io::Error> {
        let store = self.snapshots.clone();
        let current = tokio::task::spawn_blocking(move || store.current()).await;
        current.map_err(io::Error::other)?
    }
}
