//! A Raft snapshot: one file of magic (with the format's version), meta, every record of the state (window, sessions
//! and leases included), SHA-256. Written and read in a stream: it is never in memory as bytes.

use crate::machine::Snapshot;
use crate::machine::access::access_key;
use crate::raft::types::SnapshotMeta;
use crate::storage::writer::{self, Write};
use crate::storage::{codec, keys};
use fairlead_proto::internal::v1::{self as wire, Session, StateRecord, state_record::Kind};
use prost::Message;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8] = b"FAIRLEAD-SNAPSHOT-1\n";
const SUM: u64 = 32;
/// Largest record: one object of either size in an event, with room.
const MAX_RECORD: u64 = 64 * 1024 * 1024;
const BUFFER: usize = 256 * 1024;

/// A whole snapshot file, kept open: that another one takes its place on disk does not change what is read from it. A
/// file that never became the current one is removed with its last handle.
#[derive(Clone, Debug)]
pub struct SnapshotFile(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    file: File,
    length: u64,
    /// Where it lies while it is not the current one.
    aside: PathBuf,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Gone already if it became the current one.
        let _ = std::fs::remove_file(&self.aside);
    }
}

impl SnapshotFile {
    /// A file; `aside` is its name as long as it is not the current one (else a name that doesn't exist).
    ///
    /// # Errors
    /// The file system's.
    pub fn new(file: File, aside: PathBuf) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self(Arc::new(Handle { file, length, aside })))
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// The same file with its present length, as it has grown.
    ///
    /// # Errors
    /// The file system's; `InvalidInput` if there is another handle.
    pub fn measured(self) -> io::Result<Self> {
        let mut handle = Arc::try_unwrap(self.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        handle.length = handle.file.metadata()?.len();
        Ok(Self(Arc::new(handle)))
    }

    /// Where it lies while it is not the current one.
    #[must_use]
    pub fn aside(&self) -> &Path {
        &self.0.aside
    }

    /// A piece of it, shorter only at its end.
    ///
    /// # Errors
    /// The file system's.
    pub fn piece(&self, offset: u64, at_most: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.0.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut piece = vec![0; left.min(at_most)];
        self.0.file.read_exact_at(&mut piece, offset)?;
        Ok(piece)
    }

    /// Its bytes from the beginning.
    pub fn reader(&self) -> impl Read + use<> {
        self.position()
    }

    fn position(&self) -> Position {
        Position { file: self.clone(), offset: 0 }
    }

    /// Its meta, after its checksum was found right.
    ///
    /// # Errors
    /// Damage, or a newer version's snapshot.
    pub fn check(&self) -> io::Result<SnapshotMeta> {
        let mut reader = Reader::open(self)?;
        let meta = reader.meta()?;
        io::copy(&mut reader, &mut io::sink())?;
        reader.finish()?;
        Ok(meta)
    }

    /// What it holds.
    ///
    /// # Errors
    /// Damage, or a newer version's snapshot.
    pub fn decode(&self) -> io::Result<(SnapshotMeta, Snapshot)> {
        let mut reader = Reader::open(self)?;
        let meta = reader.meta()?;
        let mut records = Vec::new();
        while reader.left > 0 {
            records.push(reader.record::<StateRecord>()?);
        }
        reader.finish()?;
        let snapshot = Snapshot::from_records(records).map_err(damaged)?;
        Ok((meta, snapshot))
    }
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot can't be read: {why}"))
}

/// Writes a snapshot of one consistent view and syncs it.
///
/// # Errors
/// The file system's.
pub fn write(file: File, meta: &SnapshotMeta, view: &Snapshot) -> io::Result<File> {
    let to = encode(BufWriter::with_capacity(BUFFER, file), meta, view)?;
    let file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file)
}

/// Writes a snapshot of one consistent view.
///
/// # Errors
/// The writer's.
pub fn encode<W: io::Write>(mut to: W, meta: &SnapshotMeta, view: &Snapshot) -> io::Result<W> {
    let mut hasher = Sha256::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        to.write_all(bytes)
    };
    put(MAGIC)?;
    put(&codec::snapshot_meta(meta).encode_length_delimited_to_vec())?;
    let mut buffer = Vec::new();
    for record in view.records() {
        buffer.clear();
        record.encode_length_delimited(&mut buffer).map_err(io::Error::other)?;
        put(&buffer)?;
    }
    let sum = hasher.finalize();
    to.write_all(&sum)?;
    to.flush()?;
    Ok(to)
}

/// Reads a file from a position of its own: several may read one file.
struct Position {
    file: SnapshotFile,
    offset: u64,
}

impl Read for Position {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.0.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Reads a file up to its checksum.
struct Reader {
    from: BufReader<Position>,
    hasher: Sha256,
    /// Bytes before the checksum that are not read yet.
    left: u64,
}

impl Reader {
    fn open(snapshot: &SnapshotFile) -> io::Result<Self> {
        let length = snapshot.length();
        let Some(body) = length.checked_sub(SUM).filter(|body| *body >= MAGIC.len() as u64) else {
            return Err(damaged("it is too short"));
        };
        let mut reader =
            Self { from: BufReader::with_capacity(BUFFER, snapshot.position()), hasher: Sha256::new(), left: body };
        let mut magic = [0; MAGIC.len()];
        reader.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(damaged("it is none, or one of a newer version"));
        }
        Ok(reader)
    }

    fn meta(&mut self) -> io::Result<SnapshotMeta> {
        let meta: wire::SnapshotMeta = self.record()?;
        codec::to_snapshot_meta(&meta).map_err(damaged)
    }

    /// The next length-delimited message.
    fn record<T: Message + Default>(&mut self) -> io::Result<T> {
        let mut length = 0_u64;
        for shift in (0..35).step_by(7) {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            length |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                break;
            }
        }
        if length > self.left.min(MAX_RECORD) {
            return Err(damaged("a record is longer than the file"));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(damaged)?];
        self.read_exact(&mut bytes)?;
        T::decode(bytes.as_slice()).map_err(damaged)
    }

    fn finish(mut self) -> io::Result<()> {
        let mut sum = [0; SUM as usize];
        self.from.read_exact(&mut sum)?;
        if self.left == 0 && self.hasher.finalize()[..] == sum {
            return Ok(());
        }
        Err(damaged("it fails its checksum"))
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.from.read(&mut buffer[..most])?;
        self.hasher.update(&buffer[..count]);
        self.left -= count as u64;
        Ok(count)
    }
}

/// The state's records as writes of a generation, in batches of about `bytes`.
pub fn batches(generation: u64, view: &Snapshot, bytes: usize) -> impl Iterator<Item = Vec<Write>> + '_ {
    let mut writes = view.records().filter_map(|record| record.kind).flat_map(move |kind| writes(generation, kind));
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let mut size = 0;
        while size < bytes
            && let Some(next) = writes.next()
        {
            size += writer::bytes(std::slice::from_ref(&next));
            batch.push(next);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

fn writes(generation: u64, kind: Kind) -> Vec<Write> {
    let put = |key: Vec<u8>, value: Vec<u8>| (keys::STATE, key, Some(value));
    let key = |tag, rest: &[u8]| keys::state(generation, tag, rest);
    match kind {
        Kind::Meta(meta) => vec![put(key(keys::tag::META, &[]), meta.encode_to_vec())],
        Kind::Object(object) => {
            let key = keys::object(generation, &object.key());
            vec![put(key, object.encode_to_vec())]
        }
        Kind::Event(event) => {
            let key = key(keys::tag::EVENT, &event.revision.to_be_bytes());
            vec![put(key, event.encode_to_vec())]
        }
        Kind::Lease(lease) => {
            let key = key(keys::tag::LEASE, lease.node.as_bytes());
            vec![put(key, lease.encode_to_vec())]
        }
        Kind::Access(record) => match access_key(&record) {
            Some(name) => vec![put(key(keys::tag::ACCESS, name.as_bytes()), record.encode_to_vec())],
            None => Vec::new(),
        },
        Kind::Session(mut session) => {
            let kept = std::mem::take(&mut session.writes);
            let header = put(key(keys::tag::SESSION, session.client.as_bytes()), session.encode_to_vec());
            let one = |write: wire::SessionWrite| {
                let key = keys::session_write(generation, &session.client, write.sequence);
                let client = session.client.clone();
                let one = Session { client, writes: vec![write], ..Session::default() };
                put(key, one.encode_to_vec())
            };
            std::iter::once(header).chain(kept.into_iter().map(one)).collect()
        }
    }
}
