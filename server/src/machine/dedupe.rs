//! Request ids: a write that is retried is executed once. Each client has a session of its recent outcomes, in the
//! state, bounded, and evicted by log position, never by a clock.
//!
//! Law: an entry with a request id that was executed before is not executed again; it gets its first outcome, or
//! `UNKNOWN_OUTCOME` if that was forgotten. A rejected entry was not executed: deciding it again is its first
//! execution. The law needs a session's first request to be told apart from one of a forgotten session: by
//! `RequestId.since`, or, without it, only by a sequence above 1.

use crate::machine::{State, TouchedRecords, outcome};
use fairlead_proto::internal::v1::Outcome;
use fairlead_proto::model::{Invalid, Key};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::RequestId;
use std::sync::Arc;

/// Outcomes kept for a client: more requests than that can't be in flight at once.
pub const WRITES_PER_CLIENT: usize = 64;
/// Sessions kept.
pub const CLIENTS: usize = 4096;
/// Longest client name, bytes.
pub const CLIENT_BYTES: usize = 64;
/// The answer to a request that is not to be executed: a duplicate, a forgotten or a malformed one. `None`: execute it.
pub(super) fn recall(state: &State, id: Option<&RequestId>) -> Option<Outcome> {
    let id = id.filter(|id| !id.client.is_empty() && !mutant::is_on(Mutant::NoDedupe))?;
    let reject = |rejection| Some(outcome::rejected(state.revision(), rejection));
    if id.client.len() > CLIENT_BYTES {
        return reject(outcome::invalid_command(&[Invalid::too_long("request_id.client", CLIENT_BYTES)]));
    }
    if id.sequence == 0 {
        return reject(outcome::invalid_command(&[Invalid::invalid(
            "request_id.sequence",
            0_u64,
            "must be at least 1",
        )]));
    }
    if let Some(kept) = state.remembered(&id.client, id.sequence) {
        return Some(with_object(state, (**kept).clone()));
    }
    match state.session_header(&id.client) {
        Some(session) if id.sequence <= session.forgotten => reject(outcome::unknown_outcome()),
        Some(_) => None,
        None if maybe_forgotten(state, id) => reject(outcome::unknown_outcome()),
        None => None,
    }
}

/// Keeps the outcome of a request that was executed; forgets the oldest beyond the bounds.
pub(super) fn remember(state: &mut State, (id, outcome): (Option<&RequestId>, &Outcome), touched: &mut TouchedRecords) {
    let Some(id) = id.filter(|id| !id.client.is_empty() && outcome.rejection.is_none()) else {
        return;
    };
    let client = &id.client;
    state.put_session_write((client.clone(), id.sequence), Arc::new(Outcome { object: None, ..outcome.clone() }));
    touched.session_writes.insert((client.clone(), id.sequence));
    let mut header = state.session_header(client).unwrap_or_default();
    header.last_used = state.applied_entries();
    while let Some(oldest) = oldest_beyond_bound(state, client) {
        state.remove_session_write(&(client.clone(), oldest));
        touched.session_writes.insert((client.clone(), oldest));
        header.forgotten = header.forgotten.max(oldest);
    }
    state.put_session(client, header);
    touched.sessions.insert(client.clone());
    while state.session_count() > CLIENTS {
        let Some(oldest) = state.oldest_session() else {
            break;
        };
        forget_session(state, &oldest, touched);
    }
}

/// The machine version from which whoever has seen the newest revision is a new client.
const NEWEST_IS_NEW: u32 = 3;

/// A client without a session may have had one. Not if it began at the newest revision: all that it can have executed
/// since changed nothing, and would change nothing again.
fn maybe_forgotten(state: &State, id: &RequestId) -> bool {
    match id.since {
        0 => id.sequence > 1 && state.dedupe_floor > 0,
        since if since >= state.revision() && state.machine_version() >= NEWEST_IS_NEW => false,
        since => since <= state.dedupe_floor,
    }
}

fn oldest_beyond_bound(state: &State, client: &str) -> Option<u64> {
    let mut writes = state.writes_of(client);
    let oldest = writes.next().map(|(sequence, _)| sequence);
    oldest.filter(|_| writes.count() >= WRITES_PER_CLIENT)
}

/// The floor is the revision of the newest outcome that a forgotten session held: whoever saw a later revision before
/// its first write has had no such session.
fn forget_session(state: &mut State, client: &str, touched: &mut TouchedRecords) {
    let writes: Vec<(u64, u64)> =
        state.writes_of(client).map(|(sequence, outcome)| (sequence, outcome.revision)).collect();
    for (sequence, revision) in writes {
        state.dedupe_floor = state.dedupe_floor.max(revision);
        state.remove_session_write(&(client.to_owned(), sequence));
        touched.session_writes.insert((client.to_owned(), sequence));
    }
    state.remove_session(client);
    touched.sessions.insert(client.to_owned());
}

/// A kept outcome with its object as it is now.
fn with_object(state: &State, kept: Outcome) -> Outcome {
    let object = kept.key.as_ref().map(Key::from_wire).and_then(|key| state.get(&key)).map(|object| (**object).clone());
    Outcome { object, ..kept }
}
