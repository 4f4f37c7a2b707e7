//! Our own protobuf encodings of openraft's types, on disk and on the wire: openraft's are not frozen.

use crate::raft::types::{Entry, LogId, Logged, MemberAddress, Membership, SnapshotMeta, StoredMembership, Vote};
use fairlead_proto::internal::v1 as wire;
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId as _;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Why bytes are not what they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not a protobuf message.
    #[error("{what} can't be decoded: {why}")]
    Decode {
        /// What it should be.
        what: &'static str,
        /// What prost says.
        why: String,
    },
    /// A field is missing.
    #[error("{0} is missing a field")]
    Missing(&'static str),
    /// The checksum does not match.
    #[error("{0} fails its checksum")]
    Checksum(&'static str),
}

type LeaderId = openraft::alias::LeaderIdOf<crate::raft::types::TypeConfig>;

/// Bytes of a message.
pub fn decode<T: prost::Message + Default>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    T::decode(bytes).map_err(|error| CodecError::Decode { what, why: error.to_string() })
}

/// To the wire form.
#[must_use]
pub fn log_id(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
}

/// From the wire form.
#[must_use]
pub fn to_log_id(id: &wire::LogId) -> LogId {
    LogId::new(LeaderId::new(id.term, id.node_id), id.index)
}

/// To the wire form.
#[must_use]
pub fn vote(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

/// From the wire form.
#[must_use]
pub fn to_vote(vote: &wire::Vote) -> Vote {
    Vote { leader_id: LeaderId::new(vote.term, vote.node_id), committed: vote.committed }
}

/// To the wire form.
#[must_use]
pub fn membership(membership: &Membership) -> wire::Membership {
    wire::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|set| wire::IdSet { ids: set.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| wire::MemberNode {
                id: *id,
                name: node.name.clone(),
                peer_address: node.peer_address.clone(),
            })
            .collect(),
    }
}

/// From the wire form.
///
/// # Errors
/// A membership that openraft does not take (an empty configuration, a voter without a node).
pub fn to_membership(membership: &wire::Membership) -> Result<Membership, CodecError> {
    if membership.configs.is_empty() && membership.nodes.is_empty() {
        return Ok(Membership::default());
    }
    let configs: Vec<BTreeSet<u64>> = membership.configs.iter().map(|set| set.ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, MemberAddress> = membership
        .nodes
        .iter()
        .map(|node| (node.id, MemberAddress { name: node.name.clone(), peer_address: node.peer_address.clone() }))
        .collect();
    Membership::new(configs, nodes).map_err(|error| CodecError::Decode { what: "membership", why: error.to_string() })
}

/// To the wire form.
#[must_use]
pub fn stored_membership(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id),
        membership: Some(membership(stored.membership())),
    }
}

/// From the wire form.
///
/// # Errors
/// As [`to_membership`].
pub fn to_stored_membership(stored: &wire::StoredMembership) -> Result<StoredMembership, CodecError> {
    let inner = to_membership(&stored.membership.clone().unwrap_or_default())?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(to_log_id), inner))
}

/// To the wire form.
#[must_use]
pub fn entry(entry: &Entry) -> wire::LogEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => wire::log_entry::Payload::Blank(true),
        EntryPayload::Normal(data) => wire::log_entry::Payload::Normal(data.encoded().clone()),
        EntryPayload::Membership(inner) => wire::log_entry::Payload::Membership(membership(inner)),
    };
    wire::LogEntry { log_id: Some(log_id(&entry.log_id)), payload: Some(payload) }
}

/// From the wire form.
///
/// # Errors
/// A payload of a kind that this version doesn't know: the member must stop, not skip it.
pub fn to_entry(entry: wire::LogEntry) -> Result<Entry, CodecError> {
    let id = entry.log_id.as_ref().map(to_log_id).ok_or(CodecError::Missing("log entry"))?;
    let payload = match entry.payload.ok_or(CodecError::Missing("log entry"))? {
        wire::log_entry::Payload::Blank(_) => EntryPayload::Blank,
        wire::log_entry::Payload::Normal(data) => EntryPayload::Normal(
            Logged::decode(&data).map_err(|error| CodecError::Decode { what: "log entry", why: error.to_string() })?,
        ),
        wire::log_entry::Payload::Membership(inner) => EntryPayload::Membership(to_membership(&inner)?),
    };
    Ok(Entry { log_id: id, payload })
}

/// A snapshot's meta to the wire form.
#[must_use]
pub fn snapshot_meta(meta: &SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id),
        last_membership: Some(stored_membership(&meta.last_membership)),
        snapshot_id: String::new(),
    }
}

/// A snapshot's meta from the wire form.
///
/// # Errors
/// As [`to_membership`].
pub fn to_snapshot_meta(meta: &wire::SnapshotMeta) -> Result<SnapshotMeta, CodecError> {
    Ok(SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(to_log_id),
        last_membership: to_stored_membership(&meta.last_membership.clone().unwrap_or_default())?,
    })
}

/// A log record: checksum over index and entry, then the entry.
#[must_use]
pub fn log_record(index: u64, one: &Entry) -> Vec<u8> {
    let entry = entry(one);
    let mut record = Vec::with_capacity(SUM + entry.encoded_len());
    record.resize(SUM, 0);
    // A vector takes any number of bytes: the result can't be an error.
    let _ = entry.encode(&mut record);
    let (sum, bytes) = record.split_at_mut(SUM);
    sum.copy_from_slice(&checksum(index, bytes));
    record
}

/// The entry of a log record.
///
/// # Errors
/// Checksum or encoding.
pub fn to_log_record(index: u64, record: &[u8]) -> Result<Entry, CodecError> {
    let Some((sum, bytes)) = record.split_first_chunk::<SUM>() else {
        return Err(CodecError::Missing("log record"));
    };
    if *sum != checksum(index, bytes) {
        return Err(CodecError::Checksum("log record"));
    }
    let found = to_entry(decode("log record", bytes)?)?;
    if found.log_id.index == index { Ok(found) } else { Err(CodecError::Checksum("log record")) }
}

/// Bytes of a record's checksum.
const SUM: usize = 8;

fn checksum(index: u64, bytes: &[u8]) -> [u8; SUM] {
    let mut hasher = Sha256::new();
    hasher.update(index.to_be_bytes());
    hasher.update(bytes);
    let mut sum = [0; SUM];
    sum.copy_from_slice(&hasher.finalize()[..SUM]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_log_record_decodes_to_itself_and_any_flipped_bit_is_seen(index in 1_u64.., term in any::<u64>(), node in any::<u64>(), at in any::<u64>(), flip in any::<prop::sample::Index>()) {
            let data = wire::Entry { at_ms: at, ..wire::Entry::default() };
            let one = Entry { log_id: LogId::new(LeaderId::new(term, node), index), payload: EntryPayload::Normal(Logged::from(data)) };
            let record = log_record(index, &one);
            prop_assert_eq!(&to_log_record(index, &record).unwrap().log_id, &one.log_id);
            prop_assert!(to_log_record(index ^ 1, &record).is_err());
            let mut bad = record.clone();
            let at = flip.index(bad.len());
            bad[at] ^= 1;
            prop_assert!(to_log_record(index, &bad).is_err());
        }

        #[test]
        fn an_entry_is_stored_and_sent_as_its_proposer_encoded_it(at in any::<u64>(), newer in proptest::collection::vec(any::<u8>(), 0..40)) {
            // Field 99 is of a version to come.
            let mut bytes = wire::Entry { at_ms: at, ..wire::Entry::default() }.encode_to_vec();
            prost::encoding::bytes::encode(99, &newer, &mut bytes);
            let logged = Logged::decode(&bytes).unwrap();
            let id = LogId::new(LeaderId::new(1, 2), 3);
            let record = log_record(3, &Entry { log_id: id, payload: EntryPayload::Normal(logged) });
            let EntryPayload::Normal(read) = to_log_record(3, &record).unwrap().payload else { panic!("not normal") };
            prop_assert_eq!(&read.encoded()[..], &bytes[..]);
            prop_assert_eq!(read.entry().at_ms, at);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = to_log_record(1, &bytes);
        }
    }

    #[test]
    fn votes_and_memberships_round_trip() {
        let one = Vote { leader_id: LeaderId::new(7, 9), committed: true };
        assert_eq!(to_vote(&vote(&one)), one);
        let nodes: BTreeMap<_, _> =
            (1..4).map(|id| (id, MemberAddress { name: format!("n{id}"), peer_address: format!("h:{id}") })).collect();
        let joint = Membership::new(vec![[1, 2].into(), [2, 3].into()], nodes).unwrap();
        let stored = StoredMembership::new(Some(LogId::new(LeaderId::new(1, 2), 3)), joint);
        assert_eq!(to_stored_membership(&stored_membership(&stored)).unwrap(), stored);
    }
}
