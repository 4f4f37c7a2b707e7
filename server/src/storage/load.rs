//! Reading a data directory into memory at start. Anything that can't be read is a refusal, never an empty store.

use crate::machine::Snapshot;
use crate::raft::types::{Entry, LogId, StoredMembership, Vote};
use crate::storage::open::Database;
use crate::storage::{codec, keys};
use fairlead_proto::internal::v1::{self as wire, StateRecord, state_record::Kind};
use rocksdb::{Direction, IteratorMode};
use std::collections::BTreeMap;

/// The log as stored.
#[derive(Default)]
pub struct LoadedLog {
    /// Entries by index.
    pub entries: BTreeMap<u64, Entry>,
    /// Last purged.
    pub purged: Option<LogId>,
    /// The vote.
    pub vote: Option<Vote>,
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

/// Reads the log.
///
/// # Errors
/// What is damaged.
pub fn log(database: &Database) -> Result<LoadedLog, String> {
    let id = |bytes: Vec<u8>| codec::decode::<wire::LogId>("purged log id", &bytes).map(|id| codec::to_log_id(&id)).map_err(|error| error.to_string());
    let purged = database.get(keys::META, keys::PURGED)?.map(id).transpose()?;
    let vote = database.get(keys::META, keys::VOTE)?;
    let vote = vote.map(|bytes| codec::decode::<wire::Vote>("vote", &bytes)).transpose().map_err(|error| error.to_string())?;
    let mut entries = BTreeMap::new();
    let mut expected = purged.map(|id| id.index + 1);
    for item in database.db.iterator_cf(&database.family(keys::LOG)?, IteratorMode::Start) {
        let (key, value) = item.map_err(|error| error.to_string())?;
        let index = u64::from_be_bytes(key.as_ref().try_into().map_err(|_| "a log key is not 8 bytes".to_owned())?);
        if purged.is_some_and(|purged| index <= purged.index) {
            continue; // Purging was cut short: `purged` is written first.
        }
        if expected.is_some_and(|expected| expected != index) {
            return Err(format!("log entry {} is missing", expected.unwrap_or_default()));
        }
        let entry = codec::to_log_record(index, &value).map_err(|error| format!("log entry {index}: {error}"))?;
        entries.insert(index, entry);
        expected = Some(index + 1);
    }
    Ok(LoadedLog { entries, purged, vote: vote.as_ref().map(codec::to_vote) })
}

/// Reads the state of the generation in force.
///
/// # Errors
/// What is damaged.
pub fn state(database: &Database) -> Result<LoadedState, String> {
    let generation = match database.get(keys::META, keys::GENERATION)? {
        Some(bytes) => u64::from_be_bytes(bytes.try_into().map_err(|_| "the generation is not 8 bytes".to_owned())?),
        None => 0,
    };
    let mut loaded = LoadedState { generation, ..LoadedState::default() };
    let mut records = Vec::new();
    let mut digest = None;
    let prefix = generation.to_be_bytes();
    let mode = IteratorMode::From(&prefix, Direction::Forward);
    for item in database.db.iterator_cf(&database.family(keys::STATE)?, mode) {
        let (key, value) = item.map_err(|error| error.to_string())?;
        if !key.starts_with(&prefix) {
            break;
        }
        let text = |error: codec::CodecError| error.to_string();
        match key.get(8).copied() {
            Some(keys::tag::META) => records.push(Kind::Meta(codec::decode("state meta", &value).map_err(text)?)),
            Some(keys::tag::OBJECT) => records.push(Kind::Object(codec::decode("object", &value).map_err(text)?)),
            Some(keys::tag::EVENT) => records.push(Kind::Event(codec::decode("event", &value).map_err(text)?)),
            Some(keys::tag::SESSION | keys::tag::SESSION_WRITE) => records.push(Kind::Session(codec::decode("session", &value).map_err(text)?)),
            Some(keys::tag::LEASE) => records.push(Kind::Lease(codec::decode("lease", &value).map_err(text)?)),
            Some(keys::tag::APPLIED) => {
                let id: wire::LogId = codec::decode("last applied", &value).map_err(text)?;
                loaded.applied = Some(codec::to_log_id(&id));
            }
            Some(keys::tag::MEMBERSHIP) => {
                let stored: wire::StoredMembership = codec::decode("membership", &value).map_err(text)?;
                loaded.membership = codec::to_stored_membership(&stored).map_err(text)?;
            }
            Some(keys::tag::DIGEST) => digest = Some(String::from_utf8_lossy(&value).into_owned()),
            other => return Err(format!("a state record has the unknown tag {other:?}: was it written by a newer version?")),
        }
    }
    if !records.is_empty() {
        let records = records.into_iter().map(|kind| StateRecord { kind: Some(kind) });
        loaded.snapshot = Snapshot::from_records(records).map_err(|error| error.to_string())?;
        let found = loaded.snapshot.state.digest_hex();
        if digest.as_ref().is_some_and(|digest| *digest != found) {
            return Err("the state does not match its digest".into());
        }
    }
    Ok(loaded)
}
