//! Reading a data directory into memory at start. Anything that can't be read is a refusal, never an empty store.

use crate::machine::{MACHINE_VERSION, Snapshot};
use crate::raft::types::{Entry, LogId, StoredMembership, Vote};
use crate::storage::log::Recent;
use crate::storage::open::Database;
use crate::storage::{codec, keys};
use fairlead_proto::internal::v1::{self as wire, StateRecord, state_record::Kind};
use rocksdb::{Direction, IteratorMode, ReadOptions};
use std::ops::Range;

/// The log as stored.
#[derive(Default)]
pub struct LoadedLog {
    /// Its newest part.
    pub recent: Recent,
    /// Last purged.
    pub purged: Option<LogId>,
    /// The vote.
    pub vote: Option<Vote>,
}

impl LoadedLog {
    /// Nothing was ever appended or voted for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vote.is_none() && self.purged.is_none() && self.recent.is_empty()
    }
}

/// The state as stored.
#[derive(Default)]
pub struct LoadedState {
    /// State and window.
    pub snapshot: Snapshot,
    /// Last applied entry.
    pub applied: Option<LogId>,
    /// Membership in force.
    pub membership: StoredMembership,
    /// Generation in force.
    pub generation: u64,
}

/// Reads a u64 of the `meta` family.
///
/// # Errors
/// RocksDB's, or another length.
pub fn number(database: &Database, key: &[u8]) -> Result<Option<u64>, String> {
    let found = database.get(keys::META, key)?;
    let number = found.map(|bytes| bytes.try_into().map(u64::from_be_bytes));
    number.transpose().map_err(|_| format!("{} is not 8 bytes", String::from_utf8_lossy(key)))
}

/// Reads and checks the whole log; the newest part stays in memory.
///
/// # Errors
/// What is damaged: a hole, a record that fails its checksum.
pub fn log(database: &Database) -> Result<LoadedLog, String> {
    let purged = database.get(keys::META, keys::PURGED)?;
    let purged = purged
        .map(|bytes| codec::decode::<wire::LogId>("purged log id", &bytes))
        .transpose()
        .map_err(|error| error.to_string())?
        .as_ref()
        .map(codec::to_log_id);
    let vote = database.get(keys::META, keys::VOTE)?;
    let vote = vote
        .map(|bytes| codec::decode::<wire::Vote>("vote", &bytes))
        .transpose()
        .map_err(|error| error.to_string())?
        .as_ref()
        .map(codec::to_vote);
    let mut recent = Recent::default();
    let mut expected = purged.map_or(0, |id| id.index + 1);
    let family = database.family(keys::LOG)?;
    for item in database.db.iterator_cf(&family, IteratorMode::Start) {
        let (key, value) = item.map_err(|error| error.to_string())?;
        let index = log_index(&key)?;
        if purged.is_some_and(|purged| index <= purged.index) {
            return Err(format!("log entry {index} is below the purged one"));
        }
        if expected != index {
            return Err(format!("log entry {expected} is missing"));
        }
        let entry = codec::to_log_record(index, &value).map_err(|error| format!("log entry {index}: {error}"))?;
        recent.push(entry, value.len());
        recent.shrink(index);
        expected = index + 1;
    }
    Ok(LoadedLog { recent, purged, vote })
}

fn log_index(key: &[u8]) -> Result<u64, String> {
    let key = key.try_into().map_err(|_| "a log key is not 8 bytes")?;
    Ok(u64::from_be_bytes(key))
}

/// Entries of a range, each checked, and their bytes; stops at a hole and at `limit` bytes, but not before the first.
///
/// # Errors
/// RocksDB's, or a record that fails its checksum.
pub fn entries(database: &Database, range: Range<u64>, limit: usize) -> Result<(Vec<Entry>, usize), String> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(keys::log(range.end).to_vec());
    let from = keys::log(range.start);
    let mode = IteratorMode::From(&from, Direction::Forward);
    let family = database.family(keys::LOG)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for item in database.db.iterator_cf_opt(&family, options, mode) {
        let (key, value) = item.map_err(|error| error.to_string())?;
        let index = log_index(&key)?;
        if bytes >= limit || index != range.start + found.len() as u64 {
            break;
        }
        let entry = codec::to_log_record(index, &value).map_err(|error| format!("log entry {index}: {error}"))?;
        bytes += value.len();
        found.push(entry);
    }
    Ok((found, bytes))
}

/// Reads the state of the generation in force and checks its digest.
///
/// # Errors
/// What is damaged, or written by a newer version.
pub fn state(database: &Database) -> Result<LoadedState, String> {
    let generation = number(database, keys::GENERATION)?.unwrap_or(0);
    let mut loaded = LoadedState { generation, ..LoadedState::default() };
    let (mut digest, mut failed) = (None, None);
    let prefix = generation.to_be_bytes();
    let mode = IteratorMode::From(&prefix, Direction::Forward);
    let family = database.family(keys::STATE)?;
    let mut items = database.db.iterator_cf(&family, mode);
    // One record at a time: all of them beside the state would be twice the memory.
    let mut read_next = || -> Result<Option<StateRecord>, String> {
        for item in items.by_ref() {
            let (key, value) = item.map_err(|error| error.to_string())?;
            if !key.starts_with(&prefix) {
                break;
            }
            match key.get(8).copied().ok_or("a state key is too short")? {
                keys::tag::APPLIED => {
                    let id: wire::LogId = read("last applied", &value)?;
                    loaded.applied = Some(codec::to_log_id(&id));
                }
                keys::tag::MEMBERSHIP => {
                    let stored: wire::StoredMembership = read("membership", &value)?;
                    loaded.membership = codec::to_stored_membership(&stored).map_err(|error| error.to_string())?;
                }
                keys::tag::DIGEST => digest = Some(String::from_utf8_lossy(&value).into_owned()),
                tag => return Ok(Some(StateRecord { kind: Some(record(tag, &value)?) })),
            }
        }
        Ok(None)
    };
    let records = std::iter::from_fn(|| {
        read_next().unwrap_or_else(|why| {
            failed = Some(why);
            None
        })
    });
    let mut records = records.peekable();
    let empty = records.peek().is_none();
    let snapshot = Snapshot::from_records(records);
    if let Some(why) = failed {
        return Err(why);
    }
    if empty && loaded.applied.is_none() {
        return Ok(loaded);
    }
    loaded.snapshot = snapshot.map_err(|error| error.to_string())?;
    let found = loaded.snapshot.state.digest_hex();
    if digest.as_ref() != Some(&found) {
        return Err("the state does not match its digest".into());
    }
    executable(&loaded.snapshot)?;
    Ok(loaded)
}

fn record(tag: u8, value: &[u8]) -> Result<Kind, String> {
    Ok(match tag {
        keys::tag::META => Kind::Meta(read("state meta", value)?),
        keys::tag::OBJECT => Kind::Object(read("object", value)?),
        keys::tag::EVENT => Kind::Event(read("event", value)?),
        keys::tag::SESSION | keys::tag::SESSION_WRITE => Kind::Session(read("session", value)?),
        keys::tag::LEASE => Kind::Lease(read("lease", value)?),
        keys::tag::ACCESS => Kind::Access(read("access record", value)?),
        other => {
            return Err(format!("a state record has the unknown tag {other}: was it written by a newer version?"));
        }
    })
}

fn read<T: prost::Message + Default>(what: &'static str, bytes: &[u8]) -> Result<T, String> {
    codec::decode(what, bytes).map_err(|error| error.to_string())
}

/// A state whose machine version is beyond ours must not be continued: we would execute its entries differently.
///
/// # Errors
/// It is beyond ours.
pub fn executable(snapshot: &Snapshot) -> Result<(), String> {
    let version = snapshot.state.machine_version();
    if version <= MACHINE_VERSION {
        return Ok(());
    }
    Err(format!(
        "the cluster has machine version {version}, this program executes up to {MACHINE_VERSION}: start the newer fairlead on this member"
    ))
}
