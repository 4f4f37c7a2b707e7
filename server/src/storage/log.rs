//! Raft's log: appended and synced through the writer, read from a mirror in memory (bounded by snapshot and purge).

use crate::raft::types::{Entry, LogId, TypeConfig, Vote};
use crate::storage::load::LoadedLog;
use crate::storage::open::Database;
use crate::storage::writer::{Done, Job, Writer};
use crate::storage::{codec, keys};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prost::Message as _;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The log.
#[derive(Clone)]
pub struct LogStore {
    writer: Writer,
    mirror: Arc<Mutex<Mirror>>,
    /// Held open for as long as the log is.
    _database: Arc<Database>,
}

#[derive(Default)]
struct Mirror {
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
}

impl LogStore {
    /// A log with what was loaded.
    #[must_use]
    pub fn new(database: Arc<Database>, writer: Writer, loaded: LoadedLog) -> Self {
        let mirror = Mirror { entries: loaded.entries, purged: loaded.purged, vote: loaded.vote };
        Self { writer, mirror: Arc::new(Mutex::new(mirror)), _database: database }
    }

    fn lock(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + openraft::OptionalSend>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error> {
        Ok(self.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let mirror = self.lock();
        let last = mirror.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: mirror.purged, last_log_id: last.or(mirror.purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::vote(vote).encode_to_vec();
        self.writer.write(vec![(keys::META, keys::VOTE.to_vec(), Some(bytes))], None, true).await?;
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + openraft::OptionalSend,
        I::IntoIter: openraft::OptionalSend,
    {
        let mut writes = Vec::new();
        {
            let mut mirror = self.lock();
            for entry in entries {
                let index = entry.log_id.index;
                writes.push((keys::LOG, keys::log(index).to_vec(), Some(codec::log_record(index, &entry))));
                mirror.entries.insert(index, entry);
            }
        }
        self.writer.submit(Job { writes, range: None, sync: true, done: Done::Flushed(callback) })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.lock().entries.split_off(&from);
        let range = (keys::LOG, keys::log(from).to_vec(), keys::log(u64::MAX).to_vec());
        self.writer.write(Vec::new(), Some(range), true).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut mirror = self.lock();
            mirror.purged = mirror.purged.max(Some(log_id));
            mirror.entries = mirror.entries.split_off(&(log_id.index + 1));
        }
        let purged = (keys::META, keys::PURGED.to_vec(), Some(codec::log_id(&log_id).encode_to_vec()));
        let range = (keys::LOG, keys::log(0).to_vec(), keys::log(log_id.index + 1).to_vec());
        // One batch: both or neither.
        self.writer.write(vec![purged], Some(range), false).await
    }
}
