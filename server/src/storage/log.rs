//! Raft's log: appended and synced through the writer; its newest part is also held in memory, where replication and
//! apply read it.
//!
//! INVARIANT: no holes. What memory holds is the newest contiguous part of the log and at most [`CACHE_BYTES`] beyond
//! what is not yet written; anything older is read from disk and checked.

use crate::raft::types::{Entry, LogId, TypeConfig, Vote};
use crate::storage::load::LoadedLog;
use crate::storage::open::Database;
use crate::storage::writer::{Done, Job, Writer};
use crate::storage::{codec, keys, load};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prost::Message as _;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Encoded bytes of entries held in memory, where they take several times as much. A follower further behind than that is fed from disk.
pub const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of entries read at once, give or take one: bounds a replication message and a step of apply.
const READ_BYTES: usize = 2 * 1024 * 1024;

/// The log.
#[derive(Clone)]
pub struct LogStore {
    writer: Writer,
    database: Arc<Database>,
    recent: Arc<Mutex<Recent>>,
    /// Last index that is written; set by the writer.
    written: Arc<AtomicU64>,
}

/// The newest part of the log.
#[derive(Default)]
pub struct Recent {
    entries: BTreeMap<u64, (Entry, usize)>,
    bytes: usize,
    /// Index of the log's first entry, held here or not.
    first: u64,
    pub(super) last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    /// Counts truncations: a read from disk that ran beside one is done again.
    truncations: u64,
}

impl Recent {
    /// No entry is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the next entry, of so many bytes.
    pub fn push(&mut self, entry: Entry, bytes: usize) {
        if self.last.is_none() {
            self.first = entry.log_id.index;
        }
        self.last = Some(entry.log_id);
        self.bytes += bytes;
        self.entries.insert(entry.log_id.index, (entry, bytes));
    }

    /// Lets go of the oldest entries beyond the bound, as far as they are written.
    pub fn shrink(&mut self, written: u64) {
        while self.bytes > CACHE_BYTES
            && let Some(oldest) = self.entries.first_entry()
            && *oldest.key() <= written
        {
            self.bytes -= oldest.remove().1;
        }
    }

    fn forget_through(&mut self, index: u64) {
        let kept = self.entries.split_off(&index.saturating_add(1));
        let gone = std::mem::replace(&mut self.entries, kept);
        self.bytes -= gone.values().map(|(_, bytes)| bytes).sum::<usize>();
    }

    fn forget_from(&mut self, index: u64) {
        let gone = self.entries.split_off(&index);
        self.bytes -= gone.values().map(|(_, bytes)| bytes).sum::<usize>();
        self.truncations += 1;
    }

    /// Entries from an index on, up to a bound of bytes.
    fn take(&self, from: u64, to: u64, limit: usize) -> (Vec<Entry>, usize) {
        let mut bytes = 0;
        let mut taken = Vec::new();
        if from >= to {
            return (taken, bytes);
        }
        for (entry, size) in self.entries.range(from..to).map(|(_, held)| held) {
            if bytes >= limit {
                break;
            }
            bytes += size;
            taken.push(entry.clone());
        }
        (taken, bytes)
    }
}

impl LogStore {
    /// A log with what was loaded.
    #[must_use]
    pub fn new(database: Arc<Database>, writer: Writer, loaded: LoadedLog) -> Self {
        let written = loaded.recent.last.map_or(0, |id| id.index);
        let recent = Recent {
            first: loaded.purged.map_or(loaded.recent.first, |id| id.index + 1),
            last: loaded.recent.last.or(loaded.purged),
            purged: loaded.purged,
            vote: loaded.vote,
            ..loaded.recent
        };
        Self { writer, database, recent: Arc::new(Mutex::new(recent)), written: Arc::new(AtomicU64::new(written)) }
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries of a range, in order; the first ones only if they are more than `limit` bytes, but at least one.
    async fn read(&self, from: u64, to: u64, limit: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (truncations, on_disk) = {
                let recent = self.lock();
                let from = from.max(recent.first);
                let end = recent.last.map_or(0, |id| id.index + 1).min(to);
                let held = recent.entries.keys().next().copied().unwrap_or(end);
                if from >= end {
                    return Ok(Vec::new());
                }
                if from >= held {
                    return Ok(recent.take(from, to, limit).0);
                }
                (recent.truncations, from..held.min(end))
            };
            let (database, range) = (self.database.clone(), on_disk.clone());
            let read = tokio::task::spawn_blocking(move || load::entries(&database, range, limit));
            let read = read.await.map_err(io::Error::other)?;
            let recent = self.lock();
            if recent.truncations != truncations || recent.purged.is_some_and(|id| id.index >= on_disk.start) {
                continue; // The log changed beside the read: what was read may be of both.
            }
            let (mut entries, bytes) = read.map_err(io::Error::other)?;
            let next = on_disk.start + entries.len() as u64;
            if next < on_disk.end && bytes < limit {
                return Err(io::Error::other(format!("log entry {next} is missing")));
            }
            if next == on_disk.end && bytes < limit {
                entries.extend(recent.take(next, to, limit - bytes).0);
            }
            return Ok(entries);
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = bounds(&range);
        self.read(from, to, usize::MAX).await
    }

    /// For replication. Nothing, if the first of them is purged: openraft sends what it gets as what follows `start - 1`,
    /// and a follower that took later entries for those would have a hole in its log.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = self.read(start, end, READ_BYTES).await?;
        if entries.first().is_some_and(|first| first.log_id.index != start) {
            tracing::warn!(start, "entries to replicate are purged already");
            return Ok(Vec::new());
        }
        Ok(entries)
    }

    /// In steps of bounded size: a long range isn't held in memory at once.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let steps = futures::stream::try_unfold((self.clone(), from), move |(log, from)| async move {
            let entries = log.read(from, to, READ_BYTES).await?;
            let next = entries.last().map(|entry| entry.log_id.index + 1);
            Ok::<_, io::Error>(next.map(|next| (entries, (log, next))))
        });
        steps.map_ok(|entries| futures::stream::iter(entries).map(Ok)).try_flatten()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let recent = self.lock();
        Ok(LogState { last_purged_log_id: recent.purged, last_log_id: recent.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::vote(vote).encode_to_vec();
        let write = (keys::META, keys::VOTE.to_vec(), Some(bytes));
        self.writer.write(vec![write], None, true).await?;
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut writes = Vec::new();
        let last = {
            let mut recent = self.lock();
            for entry in entries {
                let index = entry.log_id.index;
                let record = codec::log_record(index, &entry);
                recent.push(entry, record.len());
                writes.push((keys::LOG, keys::log(index).to_vec(), Some(record)));
            }
            recent.shrink(self.written.load(Ordering::Acquire));
            recent.last.map_or(0, |id| id.index)
        };
        let done = Done::Flushed(callback, self.written.clone(), last);
        let job = Job { writes, range: None, sync: true, done };
        self.writer.submit(job).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        {
            let mut recent = self.lock();
            if recent.last.is_none_or(|last| last.index < from) {
                return Ok(());
            }
            recent.forget_from(from);
            recent.last = last_log_id.or(recent.purged);
        }
        let range = (keys::LOG, keys::log(from).to_vec(), keys::log(u64::MAX).to_vec());
        self.writer.write(Vec::new(), Some(range), true).await?;
        // Everything submitted before is written now, so nothing raises this behind our back.
        self.written.store(from.saturating_sub(1), Ordering::Release);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut recent = self.lock();
            recent.purged = recent.purged.max(Some(log_id));
            recent.first = recent.first.max(log_id.index + 1);
            if recent.last.is_none_or(|last| last.index <= log_id.index) {
                recent.last = Some(log_id);
            }
            recent.forget_through(log_id.index);
        }
        let bytes = codec::log_id(&log_id).encode_to_vec();
        let purged = (keys::META, keys::PURGED.to_vec(), Some(bytes));
        let from = keys::log(0).to_vec();
        let range = (keys::LOG, from, keys::log(log_id.index + 1).to_vec());
        // One batch: the mark and the deletion, both or neither.
        self.writer.write(vec![purged], Some(range), false).await
    }
}
