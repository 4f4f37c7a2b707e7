//! Single-survivor recovery: a stopped member's directory becomes that of the only member of the cluster.
//!
//! What only the lost members had is lost; what this one has of uncommitted writes becomes committed. The members know
//! each other by another mark from then on, so that none of the old ones, should it come back, mixes in.

use crate::raft::joined::Joined;
use crate::raft::types::{Entry, member_id};
use crate::storage::backup;
use crate::storage::open::{self, OpenError};
use crate::storage::{codec, keys, load};
use fairlead_proto::internal::v1 as wire;
use fairlead_proto::internal::v1::log_entry::Payload;
use prost::Message as _;
use std::path::Path;

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The survivor.
    pub name: String,
    /// Members that are so no longer.
    pub lost: Vec<String>,
    /// Revision of what it had applied.
    pub revision: u64,
    /// Entries of its log behind that, which count from now on.
    pub unapplied: u64,
}

/// Looks at a stopped member's directory, and recovers it unless `look_only`.
///
/// # Errors
/// It is in use, damaged, or no member's; nothing was changed.
pub fn recover(path: &Path, look_only: bool) -> Result<Recovered, OpenError> {
    let damaged = |why: String| OpenError::Damaged { path: path.to_owned(), why };
    let failed = |error| OpenError::Directory { path: path.to_owned(), error };
    if !path.join("db").is_dir() {
        return Err(damaged("there is no member's database in it".into()));
    }
    let database = open::open_database(path)?;
    let identity = database.get(keys::META, keys::IDENTITY).map_err(damaged)?;
    let identity = String::from_utf8_lossy(&identity.unwrap_or_default()).into_owned();
    let (name, founding) = identity.split_once('\n').ok_or_else(|| damaged("it does not say whose it is".into()))?;
    let joined = Joined::read(path).map_err(failed)?.filter(|joined| joined.id != 0);
    let id = joined.as_ref().map_or_else(|| member_id(name), |joined| joined.id);
    let log = load::log(&database).map_err(damaged)?;
    let state = load::state(&database).map_err(damaged)?;
    let (known, own) = {
        let known: Vec<_> = state.membership.membership().nodes().map(|(id, node)| (*id, node.clone())).collect();
        let own = known.iter().find(|(known, _)| *known == id).map(|(_, node)| node.clone());
        (known, own.ok_or_else(|| damaged(format!("{name} is no member by its own state")))?)
    };
    let last = log.recent.last.or(log.purged).max(state.applied);
    let (index, applied) = (last.map_or(0, |id| id.index), state.applied.map_or(0, |id| id.index));
    let recovered = Recovered {
        name: name.to_owned(),
        lost: known.into_iter().filter(|(other, _)| *other != id).map(|(_, node)| node.name).collect(),
        revision: state.snapshot.state.revision(),
        unapplied: index - applied,
    };
    if look_only {
        return Ok(recovered);
    }
    let term =
        log.vote.as_ref().map_or(0, |vote| codec::vote(vote).term).max(last.map_or(0, |id| codec::log_id(&id).term))
            + 1;
    let entry = alone((term, id, index + 1), (&own.name, &own.peer_address)).map_err(|why| damaged(why.to_string()))?;
    let mark = uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
    let founding = match &joined {
        Some(joined) => {
            let moved = Joined { fingerprint: mark.clone(), ..joined.clone() };
            moved.write(path).map_err(failed)?;
            format!("joined {mark} as {id}")
        }
        None => {
            backup::write_mark(path, &mark).map_err(failed)?;
            let list = founding.split(" restored from ").next().unwrap_or(founding);
            format!("{list} restored from {mark}")
        }
    };
    let mut batch = rocksdb::WriteBatch::default();
    let meta = database.family(keys::META).map_err(damaged)?;
    batch.put_cf(&meta, keys::IDENTITY, format!("{name}\n{founding}"));
    let vote = wire::Vote { term, node_id: id, committed: false };
    batch.put_cf(&meta, keys::VOTE, vote.encode_to_vec());
    let family = database.family(keys::LOG).map_err(damaged)?;
    batch.put_cf(&family, keys::log(index + 1), codec::log_record(index + 1, &entry));
    open::synced(&database, batch).map_err(failed)?;
    Ok(recovered)
}

/// The entry by which a member is the only one.
fn alone((term, id, index): (u64, u64, u64), (name, address): (&str, &str)) -> Result<Entry, codec::CodecError> {
    let node = wire::MemberNode { id, name: name.to_owned(), peer_address: address.to_owned() };
    let membership = wire::Membership { configs: vec![wire::IdSet { ids: vec![id] }], nodes: vec![node] };
    codec::to_entry(wire::LogEntry {
        log_id: Some(wire::LogId { term, node_id: id, index }),
        payload: Some(Payload::Membership(membership)),
    })
}
