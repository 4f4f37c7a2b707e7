//! A Raft snapshot: magic, meta, every record of the state (window, sessions and leases included), SHA-256. One file.

use crate::machine::Snapshot;
use crate::raft::types::{SnapshotMeta, TypeConfig};
use crate::storage::writer::Write;
use crate::storage::{codec, keys};
use bytes::Bytes;
use fairlead_proto::internal::v1::{self as wire, Session, StateRecord, state_record::Kind};
use openraft::storage::RaftSnapshotBuilder;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8] = b"FAIRLEAD-SNAPSHOT-1\n";
const SUM: usize = 32;
const FILE: &str = "current";

/// A snapshot's bytes.
#[derive(Clone, Debug, Default)]
pub struct SnapshotBytes(pub Bytes);

/// Builds a snapshot from one consistent view, beside apply.
pub struct SnapshotBuilder {
    directory: PathBuf,
    meta: SnapshotMeta,
    view: Arc<Snapshot>,
}

impl SnapshotBuilder {
    /// A builder of this very view.
    #[must_use]
    pub fn new(directory: PathBuf, meta: SnapshotMeta, view: Arc<Snapshot>) -> Self {
        Self { directory, meta, view }
    }
}

type Built = openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>;

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<Built, io::Error> {
        let (directory, meta, view) = (self.directory.clone(), self.meta.clone(), self.view.clone());
        let built = tokio::task::spawn_blocking(move || {
            let bytes = encode(&meta, &view);
            store(&directory, &bytes)?;
            Ok::<_, io::Error>(Built { meta, snapshot: SnapshotBytes(bytes) })
        });
        built.await.map_err(io::Error::other)?
    }
}

/// A snapshot's bytes.
#[must_use]
pub fn encode(meta: &SnapshotMeta, view: &Snapshot) -> Bytes {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(codec::snapshot_meta(meta).encode_length_delimited_to_vec());
    for record in view.records() {
        bytes.extend(record.encode_length_delimited_to_vec());
    }
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    bytes.into()
}

/// What a snapshot's bytes hold.
///
/// # Errors
/// Damage, or a newer version's snapshot.
pub fn decode(bytes: &Bytes) -> Result<(SnapshotMeta, Snapshot), String> {
    let body = bytes.len().checked_sub(SUM).filter(|length| *length >= MAGIC.len()).ok_or("the snapshot is too short")?;
    if !bytes.starts_with(MAGIC) {
        return Err("this is not a snapshot, or one of a newer version".into());
    }
    if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
        return Err("the snapshot fails its checksum".into());
    }
    let mut rest = bytes.slice(MAGIC.len()..body);
    let text = |error: prost::DecodeError| error.to_string();
    let meta = wire::SnapshotMeta::decode_length_delimited(&mut rest).map_err(text)?;
    let meta = codec::to_snapshot_meta(&meta).map_err(|error| error.to_string())?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        records.push(StateRecord::decode_length_delimited(&mut rest).map_err(text)?);
    }
    // A snapshot of nothing applied has a meta record all the same.
    Ok((meta, Snapshot::from_records(records).map_err(|error| error.to_string())?))
}

/// The state's records as writes of a generation.
#[must_use]
pub fn writes(generation: u64, view: &Snapshot) -> Vec<Write> {
    let mut writes = Vec::new();
    for kind in view.records().filter_map(|record| record.kind) {
        let (key, value) = match kind {
            Kind::Meta(meta) => (keys::state(generation, keys::tag::META, &[]), meta.encode_to_vec()),
            Kind::Object(object) => (keys::object(generation, &object.key()), object.encode_to_vec()),
            Kind::Event(event) => (keys::state(generation, keys::tag::EVENT, &event.revision.to_be_bytes()), event.encode_to_vec()),
            Kind::Lease(lease) => (keys::state(generation, keys::tag::LEASE, lease.node.as_bytes()), lease.encode_to_vec()),
            Kind::Session(mut session) => {
                for write in std::mem::take(&mut session.writes) {
                    let key = keys::session_write(generation, &session.client, write.sequence);
                    let one = Session { client: session.client.clone(), writes: vec![write], ..Session::default() };
                    writes.push((keys::STATE, key, Some(one.encode_to_vec())));
                }
                (keys::state(generation, keys::tag::SESSION, session.client.as_bytes()), session.encode_to_vec())
            }
        };
        writes.push((keys::STATE, key, Some(value)));
    }
    writes
}

/// Stores a snapshot file: written aside, synced, renamed, the directory synced.
///
/// # Errors
/// The file system's.
pub fn store(directory: &Path, bytes: &Bytes) -> io::Result<()> {
    let aside = directory.join(format!("{FILE}.partial"));
    let mut file = std::fs::File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, directory.join(FILE))?;
    std::fs::File::open(directory)?.sync_all()
}

/// Loads the snapshot file. A damaged one is an error, never "none".
///
/// # Errors
/// The file system's, or damage.
pub fn load(directory: &Path) -> io::Result<Option<Built>> {
    let bytes = match std::fs::read(directory.join(FILE)) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (meta, _) = decode(&bytes).map_err(|why| io::Error::other(format!("{}: {why}", directory.join(FILE).display())))?;
    Ok(Some(Built { meta, snapshot: SnapshotBytes(bytes) }))
}
