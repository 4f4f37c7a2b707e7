//! openraft's type parameters, filled with ours.

use fairlead_proto::internal::v1::{Entry as LoggedEntry, Outcome};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::Arc;

openraft::declare_raft_types!(
    /// Fairlead's Raft types.
    pub TypeConfig:
        D = Logged,
        R = Outcome,
        NodeId = u64,
        Node = MemberAddress,
);

/// What a log entry carries for the state machine. Shared: the log, replication to each follower and apply read the
/// same one.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged(pub Arc<LoggedEntry>);

impl From<LoggedEntry> for Logged {
    fn from(entry: LoggedEntry) -> Self {
        Self(Arc::new(entry))
    }
}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What Raft's membership says of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberAddress {
    /// Its name.
    pub name: String,
    /// host:port of its peer face.
    pub peer_address: String,
}

/// Id of a log entry.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// A membership.
pub type Membership = openraft::Membership<u64, MemberAddress>;
/// A membership with its log id.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// A snapshot's meta.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// Id of a member: the first 53 bits of its name's SHA-256. The same on every member and at every start; never 0.
#[must_use]
pub fn member_id(name: &str) -> u64 {
    let hash = Sha256::digest(name.as_bytes()).iter().take(8).fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    (hash >> 11).max(1)
}
