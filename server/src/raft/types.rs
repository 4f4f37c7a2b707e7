//! openraft's type parameters, filled with ours, and its settings.

use crate::raft::ConsensusConfig;
use fairlead_proto::internal::v1::{Entry as LoggedEntry, Outcome};
use fairlead_proto::mutant::{self, Mutant};
use openraft::SnapshotPolicy;
use prost::Message as _;
use prost::bytes::Bytes;
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

/// What a log entry carries for the state machine, with the encoding that its proposer gave it. Shared: the log,
/// replication to each follower and apply read the same one, and none of them encodes it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    entry: Arc<LoggedEntry>,
    encoded: Bytes,
}

impl Logged {
    /// From its encoding. A copy is kept: a slice would hold the whole message that it came in.
    ///
    /// # Errors
    /// It is no entry.
    pub fn decode(encoded: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(Self { entry: Arc::new(LoggedEntry::decode(encoded)?), encoded: Bytes::copy_from_slice(encoded) })
    }

    /// The entry.
    #[must_use]
    pub fn entry(&self) -> &LoggedEntry {
        &self.entry
    }

    /// The entry as its proposer encoded it.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// False: the command is of a newer version than this program.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.entry.command.as_ref().is_some_and(|command| command.kind.is_some())
    }
}

impl From<LoggedEntry> for Logged {
    fn from(entry: LoggedEntry) -> Self {
        let encoded = entry.encode_to_vec().into();
        Self { entry: Arc::new(entry), encoded }
    }
}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry of {} bytes", self.encoded.len())
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

/// openraft's settings for a member; one that lost its data doesn't elect.
pub(super) fn raft_config(config: &ConsensusConfig, returning: bool) -> Result<openraft::Config, String> {
    let raft = openraft::Config {
        cluster_name: "fairlead".into(),
        heartbeat_interval: config.heartbeat_ms,
        election_timeout_min: config.election_ms.0,
        election_timeout_max: config.election_ms.1,
        enable_elect: !returning,
        enable_pre_vote: Some(true),
        // A leader sends entries before it has stored them itself. One that restarts without them would give their ids, of
        // the same term, to other entries: it leads again only by votes, in a new term (see `suspicion`).
        enable_leader_restore: Some(mutant::is_on(Mutant::LeaderRestore)),
        // A leader that hears no quorum falls silent now and then, so that those who hear it but can't answer elect.
        quorum_loss_probe_interval: Some(config.election_ms.1 * 2),
        // A member that lost its data is fed from the beginning. Safe only because such a member doesn't vote (see
        // `returning`) and any other loss refuses to start.
        allow_log_reversion: Some(true),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: config.keep_entries,
        purge_batch_size: 256,
        install_snapshot_timeout: 300_000,
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| error.to_string())
}
