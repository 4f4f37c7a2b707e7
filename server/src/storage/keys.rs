//! Every stored key.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `meta` | `format` | u64 BE: version of everything stored; a newer one is refused |
//! | `meta` | `identity` | name, founding list |
//! | `meta` | `returning` | present: this member lost its data and doesn't vote before it has it again |
//! | `meta` | `vote` | Vote, synced before it is answered |
//! | `meta` | `purged` | LogId; written before the entries go |
//! | `meta` | `generation` | u64 BE: which generation of `state` counts (the staged switch of a snapshot install) |
//! | `log` | index, u64 BE | checksum, LogEntry |
//! | `state` | generation, `m` | StateMeta |
//! | `state` | generation, `a` | LogId of the last applied entry |
//! | `state` | generation, `c` | StoredMembership |
//! | `state` | generation, `d` | digest of the state, hex |
//! | `state` | generation, `o`, kind, namespace, 0, name | Object |
//! | `state` | generation, `e`, revision BE | StoredEvent |
//! | `state` | generation, `s`, client | Session, without its writes |
//! | `state` | generation, `w`, client, 0, sequence BE | Session of one write |
//! | `state` | generation, `l`, node | LeaseEpoch |
//! | `state` | generation, `x`, key | AccessRecord |

use fairlead_proto::model::Key;

/// Column family of what is not log and not state.
pub const META: &str = "meta";
/// Column family of log entries.
pub const LOG: &str = "log";
/// Column family of the state.
pub const STATE: &str = "state";

/// Version of what is stored.
pub const FORMAT: &[u8] = b"format";
/// Set while a member that lost its data has not got it back.
pub const RETURNING: &[u8] = b"returning";
/// Whose data this is.
pub const IDENTITY: &[u8] = b"identity";
/// The vote.
pub const VOTE: &[u8] = b"vote";
/// Last purged log id.
pub const PURGED: &[u8] = b"purged";
/// Generation in force.
pub const GENERATION: &[u8] = b"generation";

/// Tags of the state's records.
pub mod tag {
    /// StateMeta.
    pub const META: u8 = b'm';
    /// Last applied.
    pub const APPLIED: u8 = b'a';
    /// Membership.
    pub const MEMBERSHIP: u8 = b'c';
    /// Digest.
    pub const DIGEST: u8 = b'd';
    /// Object.
    pub const OBJECT: u8 = b'o';
    /// Event.
    pub const EVENT: u8 = b'e';
    /// Dedupe session.
    pub const SESSION: u8 = b's';
    /// One remembered outcome of a session.
    pub const SESSION_WRITE: u8 = b'w';
    /// Lease.
    pub const LEASE: u8 = b'l';
    /// Who may do what.
    pub const ACCESS: u8 = b'x';
}

/// Key of a log entry.
#[must_use]
pub fn log(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// Key of a state record.
#[must_use]
pub fn state(generation: u64, tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.extend_from_slice(&generation.to_be_bytes());
    key.push(tag);
    key.extend_from_slice(rest);
    key
}

/// Key of an object.
#[must_use]
pub fn object(generation: u64, key: &Key) -> Vec<u8> {
    let mut rest = vec![u8::try_from(key.kind as i32).unwrap_or(0)];
    rest.extend_from_slice(key.namespace.as_bytes());
    rest.push(0);
    rest.extend_from_slice(key.name.as_bytes());
    state(generation, tag::OBJECT, &rest)
}

/// Key of one remembered outcome.
#[must_use]
pub fn session_write(generation: u64, client: &str, sequence: u64) -> Vec<u8> {
    let mut rest = client.as_bytes().to_vec();
    rest.push(0);
    rest.extend_from_slice(&sequence.to_be_bytes());
    state(generation, tag::SESSION_WRITE, &rest)
}
