//! Raft's state machine: the pure `machine::apply` in memory, one write batch for what it did, and then publication.

use crate::machine::{Applied, Snapshot};
use crate::raft::types::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::storage::load::LoadedState;
use crate::storage::open::Database;
use crate::storage::snapshot::{self, SnapshotBytes, SnapshotBuilder};
use crate::storage::writer::{Write, Writer};
use crate::storage::{codec, keys};
use fairlead_proto::internal::v1::{Outcome, Session};
use futures::{Stream, StreamExt as _};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftStateMachine};
use prost::Message as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Entries applied and written together.
const BATCH: usize = 512;

/// The newest published state and the log index it reflects.
#[derive(Clone)]
pub struct Published {
    /// State and window.
    pub snapshot: Arc<Snapshot>,
    /// Last applied index.
    pub index: u64,
}

/// The state machine.
pub struct StateMachine {
    writer: Writer,
    directory: PathBuf,
    current: Snapshot,
    applied: Option<LogId>,
    membership: StoredMembership,
    generation: u64,
    published: watch::Sender<Published>,
    _database: Arc<Database>,
}

impl StateMachine {
    /// A machine with what was loaded; `directory` is for snapshot files.
    #[must_use]
    pub fn new(database: Arc<Database>, writer: Writer, loaded: (PathBuf, LoadedState)) -> Self {
        let (directory, state) = loaded;
        let first = Published { snapshot: Arc::new(state.snapshot.clone()), index: state.applied.map_or(0, |id| id.index) };
        Self {
            writer,
            directory,
            current: state.snapshot,
            applied: state.applied,
            membership: state.membership,
            generation: state.generation,
            published: watch::Sender::new(first),
            _database: database,
        }
    }

    /// What is published.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    fn publish(&self) {
        self.published.send_replace(Published {
            snapshot: Arc::new(self.current.clone()),
            index: self.applied.map_or(0, |id| id.index),
        });
    }

    /// Adds what an entry changed to a batch; `compacted` is where the window began before it.
    fn record(&self, applied: &Applied, compacted: u64, writes: &mut Vec<Write>) {
        let generation = self.generation;
        for change in &applied.changes {
            let value = change.new.as_ref().map(|object| object.encode_to_vec());
            writes.push((keys::STATE, keys::object(generation, &change.key), value));
            let event = keys::state(generation, keys::tag::EVENT, &change.revision.to_be_bytes());
            writes.push((keys::STATE, event, Some(change.to_stored().encode_to_vec())));
        }
        // What left the window leaves the store in the same batch.
        for gone in compacted + 1..=self.current.history.compacted() {
            writes.push((keys::STATE, keys::state(generation, keys::tag::EVENT, &gone.to_be_bytes()), None));
        }
        let state = &self.current.state;
        for client in &applied.touched.sessions {
            let session = state.session(client).map(|session| session.encode_to_vec());
            writes.push((keys::STATE, keys::state(generation, keys::tag::SESSION, client.as_bytes()), session));
        }
        for (client, sequence) in &applied.touched.session_writes {
            let kept = state.session_write(client, *sequence);
            let kept = kept.map(|write| Session { client: client.clone(), writes: vec![write], ..Session::default() }.encode_to_vec());
            writes.push((keys::STATE, keys::session_write(generation, client, *sequence), kept));
        }
        for node in &applied.touched.leases {
            let lease = state.lease(node).map(|lease| lease.encode_to_vec());
            writes.push((keys::STATE, keys::state(generation, keys::tag::LEASE, node.as_bytes()), lease));
        }
    }

    /// What every batch ends with: meta, digest, last applied, membership.
    fn closing(&self) -> Vec<Write> {
        let put = |tag, value: Vec<u8>| (keys::STATE, keys::state(self.generation, tag, &[]), Some(value));
        let mut writes = vec![
            put(keys::tag::META, self.current.meta().encode_to_vec()),
            put(keys::tag::DIGEST, self.current.state.digest_hex().into_bytes()),
            put(keys::tag::MEMBERSHIP, codec::stored_membership(&self.membership).encode_to_vec()),
        ];
        if let Some(id) = &self.applied {
            writes.push(put(keys::tag::APPLIED, codec::log_id(id).encode_to_vec()));
        }
        writes
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotBytes;
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
            let mut answers = Vec::new();
            for item in chunk {
                let (entry, responder) = item?;
                self.applied = Some(entry.log_id);
                let outcome = match entry.payload {
                    EntryPayload::Blank => Outcome::default(),
                    EntryPayload::Membership(membership) => {
                        self.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Outcome::default()
                    }
                    EntryPayload::Normal(data) => {
                        let compacted = self.current.history.compacted();
                        let applied = self.current.apply(&data);
                        self.record(&applied, compacted, &mut writes);
                        applied.outcome
                    }
                };
                answers.extend(responder.map(|responder| (responder, outcome)));
            }
            writes.extend(self.closing());
            self.writer.write(writes, None, false).await?;
            self.publish();
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        // One consistent view of data and position, taken between two batches.
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        SnapshotBuilder::new(self.directory.clone(), meta, Arc::new(self.current.clone()))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: SnapshotBytes) -> Result<(), io::Error> {
        let (_, installed) = snapshot::decode(&bytes.0).map_err(io::Error::other)?;
        let old = self.generation;
        let new = old + 1;
        // Staged: the new generation is written beside the old one and counts only from the synced switch on.
        let clear = (keys::STATE, new.to_be_bytes().to_vec(), (new + 1).to_be_bytes().to_vec());
        self.writer.write(Vec::new(), Some(clear), false).await?;
        for batch in snapshot::writes(new, &installed).chunks(BATCH) {
            self.writer.write(batch.to_vec(), None, false).await?;
        }
        self.current = installed;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.generation = new;
        let mut writes = self.closing();
        writes.push((keys::META, keys::GENERATION.to_vec(), Some(new.to_be_bytes().to_vec())));
        self.writer.write(writes, None, true).await?;
        snapshot::store(&self.directory, &bytes.0)?;
        let gone = (keys::STATE, old.to_be_bytes().to_vec(), new.to_be_bytes().to_vec());
        self.writer.write(Vec::new(), Some(gone), false).await?;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>>, io::Error> {
        snapshot::load(&self.directory)
    }
}
