//! Backups: a Raft snapshot's file, kept by whoever asked for it; and a new cluster made of one.
//!
//! INVARIANT: a directory is restored whole or not at all; the new cluster's members know each other by the backup and the
//! founding list, so that no member of the old cluster, and none that was not restored, mixes in. Its revision is far
//! beyond the old one's and everything before is compacted: watchers and nodes are sent anew and never back in time.

use crate::machine::Snapshot;
use crate::machine::records::DecodeError;
use crate::pki::Purpose;
use crate::pki::files::Folder;
use crate::pki::keeper::authorities;
use crate::raft::types::{SnapshotMeta, Vote, member_id};
use crate::storage::snapshot::{self, SnapshotFile};
use crate::storage::{Identity, OpenError, Storage, codec};
use fairlead_proto::internal::v1 as wire;
use fairlead_proto::internal::v1::state_record::Kind;
use fairlead_proto::tls::write_private;
use fairlead_proto::token::hex;
use fairlead_proto::v1::Kind as ObjectKind;
use openraft::storage::RaftLogStorage as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// File that says what a directory was restored from; its text is part of the founding list.
const RESTORED: &str = "restored";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error("{path}: {error}")]
    Backup {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// The directory.
    #[error("can't restore into {path}: {error}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The new database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The records.
    #[error("the restored state is not consistent: {0}")]
    Decode(#[from] DecodeError),
    /// The founding list.
    #[error("{0}")]
    Founding(String),
}

/// What a backup holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// Whose state it is.
    pub cluster_id: String,
    /// Its revision.
    pub revision: u64,
    /// Version of the machine's rules.
    pub machine_version: u32,
    /// Objects by kind, in Kubernetes' plural.
    pub objects: BTreeMap<String, usize>,
    /// Digest of the state.
    pub digest: String,
}

/// Writes a backup of a state; `position` is the term and index of the log that it reflects.
///
/// # Errors
/// The writer's.
pub fn write(to: impl Write, view: &Snapshot, position: (u64, u64)) -> io::Result<()> {
    snapshot::encode(to, &meta(position, &[])?, view).map(drop)
}

/// Reads a backup whole and checks it.
///
/// # Errors
/// It can't be read, is damaged, or of a newer version.
pub fn inspect(path: &Path) -> io::Result<Contents> {
    let (_, view, sha256) = read(path)?;
    let count = |kind: ObjectKind| (kind.plural().to_owned(), view.state.list(kind, "").count());
    Ok(Contents {
        bytes: std::fs::metadata(path)?.len(),
        sha256,
        cluster_id: view.state.settings().cluster_id.clone(),
        revision: view.state.revision(),
        machine_version: view.state.machine_version(),
        objects: ObjectKind::ALL.into_iter().map(count).collect(),
        digest: view.state.digest_hex(),
    })
}

fn read(path: &Path) -> io::Result<(SnapshotMeta, Snapshot, String)> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    // It lies nowhere aside: nothing is removed with the handle.
    let file = SnapshotFile::new(File::open(path)?, PathBuf::new())?;
    let (meta, view) = file.decode()?;
    Ok((meta, view, hex(&hasher.finalize())))
}

/// Makes a member's data directory of a backup.
///
/// # Errors
/// [`RestoreError`]; then there is no directory.
pub async fn restore(
    backup: &Path,
    data_dir: &Path,
    (name, founders): (&str, &[(String, String)]),
    bump: u64,
) -> Result<u64, RestoreError> {
    let directory = |error| RestoreError::Directory { path: data_dir.to_owned(), error };
    if !founders.iter().any(|(founder, _)| founder == name) {
        return Err(RestoreError::Founding(format!("--initial-cluster does not name this member, {name}")));
    }
    if std::fs::read_dir(data_dir).is_ok_and(|mut entries| entries.next().is_some()) {
        let why = "it is not empty: a backup is restored into a directory of its own";
        return Err(directory(io::Error::new(io::ErrorKind::AlreadyExists, why)));
    }
    let (found, view, sha256) =
        read(backup).map_err(|error| RestoreError::Backup { path: backup.to_owned(), error })?;
    let restored = moved_on(&view, bump)?;
    let mut staged = data_dir.as_os_str().to_owned();
    staged.push(".restoring");
    let staged = PathBuf::from(staged);
    let _ = std::fs::remove_dir_all(&staged);
    let made = fill(&staged, (&restored, &found), (name, founders), &sha256[..16]).await;
    let kept = match made {
        Ok(()) => std::fs::rename(&staged, data_dir).map_err(directory),
        Err(error) => Err(error),
    };
    if kept.is_err() {
        let _ = std::fs::remove_dir_all(&staged);
    }
    kept.map(|()| restored.state.revision())
}

async fn fill(
    staged: &Path,
    (view, found): (&Snapshot, &SnapshotMeta),
    (name, founders): (&str, &[(String, String)]),
    mark: &str,
) -> Result<(), RestoreError> {
    let directory = |error| RestoreError::Directory { path: staged.to_owned(), error };
    let folder = Folder::of(staged).map_err(directory)?;
    for purpose in Purpose::ALL {
        if let Some(newest) = authorities(&view.state, purpose).last() {
            folder.put_authority(newest).map_err(directory)?;
        }
    }
    write_mark(staged, mark).map_err(directory)?;
    let position = found.last_log_id.as_ref().map(codec::log_id).unwrap_or_default();
    let position = (position.term.max(1), position.index.max(1));
    let meta = meta(position, founders).map_err(directory)?;
    let snapshots = staged.join("snapshot");
    std::fs::create_dir_all(&snapshots).map_err(directory)?;
    let file = File::create(snapshots.join("current")).map_err(directory)?;
    snapshot::write(file, &meta, view).map_err(directory)?;
    let identity = Identity { name: name.to_owned(), founding: founding(founders, Some(mark)) };
    let mut storage = Storage::open(staged, &identity)?;
    // No term of the new cluster is one of the old.
    let vote: Vote = codec::to_vote(&wire::Vote { term: position.0, node_id: 0, committed: false });
    storage.log.save_vote(&vote).await.map_err(directory)?;
    let held = storage.held();
    drop(storage);
    while held.is_held() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The founding list as it is marked in directories: sorted, and with the backup that its cluster was made of.
#[must_use]
pub fn founding(list: &[(String, String)], mark: Option<&str>) -> String {
    let mut members: Vec<String> = list.iter().map(|(name, address)| format!("{name}={address}")).collect();
    members.sort();
    let list = members.join(",");
    mark.map_or(list.clone(), |mark| format!("{list} restored from {mark}"))
}

/// Marks a directory: what members know each other by is another from then on.
///
/// # Errors
/// It can't be written.
pub fn write_mark(data_dir: &Path, mark: &str) -> io::Result<()> {
    write_private(&data_dir.join(RESTORED), mark)
}

/// What a directory was restored from.
///
/// # Errors
/// It can't be read.
pub fn mark(data_dir: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(data_dir.join(RESTORED)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The state of a new cluster: beyond every revision of the old one, with nothing of its members, its window or what it
/// remembered of requests.
fn moved_on(view: &Snapshot, bump: u64) -> Result<Snapshot, DecodeError> {
    let records = view.records().filter_map(|mut record| {
        match &mut record.kind {
            Some(Kind::Meta(meta)) => {
                meta.revision = meta.revision.saturating_add(bump);
                meta.compacted = meta.revision;
                meta.dedupe_floor = meta.revision;
                meta.members.clear();
                meta.retired_members.clear();
            }
            Some(Kind::Event(_) | Kind::Session(_)) => return None,
            _ => {}
        }
        Some(record)
    });
    Snapshot::from_records(records)
}

fn meta((term, index): (u64, u64), founders: &[(String, String)]) -> io::Result<SnapshotMeta> {
    let id = wire::LogId { term, node_id: 0, index };
    let nodes = founders.iter().map(|(name, address)| wire::MemberNode {
        id: member_id(name),
        name: name.clone(),
        peer_address: address.clone(),
    });
    let ids = founders.iter().map(|(name, _)| member_id(name)).collect();
    let configs = if founders.is_empty() { Vec::new() } else { vec![wire::IdSet { ids }] };
    let membership = wire::Membership { configs, nodes: nodes.collect() };
    let wire = wire::SnapshotMeta {
        last_log_id: Some(id),
        last_membership: Some(wire::StoredMembership { log_id: Some(id), membership: Some(membership) }),
        ..wire::SnapshotMeta::default()
    };
    codec::to_snapshot_meta(&wire).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;
    use fairlead_proto::v1::{Namespace, ObjectMeta};

    fn world() -> World {
        let mut world = World::new();
        let metadata = ObjectMeta { name: "a".into(), uid: "uid".into(), ..ObjectMeta::default() };
        world.create(Namespace { metadata: Some(metadata), ..Namespace::default() });
        world
    }

    #[test]
    fn a_backup_is_what_it_was_and_no_byte_of_it_may_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let view = world().snapshot;
        let mut bytes = Vec::new();
        write(&mut bytes, &view, (3, 9)).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let contents = inspect(&path).unwrap();
        assert_eq!((contents.revision, contents.digest), (view.state.revision(), view.state.digest_hex()));
        assert_eq!(contents.objects["namespaces"], 3);
        for at in 0..bytes.len() {
            let mut harmed = bytes.clone();
            harmed[at] ^= 1;
            std::fs::write(&path, &harmed).unwrap();
            assert!(inspect(&path).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(inspect(&path).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn a_restored_state_is_beyond_the_old_one_and_remembers_no_member() {
        let old = world().snapshot;
        let new = moved_on(&old, 1_000).unwrap();
        assert_eq!(new.state.revision(), old.state.revision() + 1_000);
        assert!(new.history.after(old.state.revision()).is_err() && new.history.after(new.state.revision()).is_ok());
        assert_eq!((new.state.members().count(), new.state.list(ObjectKind::Namespace, "").count()), (0, 3));
        assert_eq!(new.state.settings(), old.state.settings());
    }

    #[tokio::test]
    async fn a_directory_is_restored_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (backup, data) = (dir.path().join("backup"), dir.path().join("data"));
        let founders = [("n1".to_owned(), "127.0.0.1:1".to_owned())];
        let mut bytes = Vec::new();
        write(&mut bytes, &world().snapshot, (3, 9)).unwrap();
        std::fs::write(&backup, &bytes[..bytes.len() - 1]).unwrap();
        assert!(restore(&backup, &data, ("n1", &founders), 10).await.is_err() && !data.exists());
        std::fs::write(&backup, &bytes).unwrap();
        assert!(restore(&backup, &data, ("n2", &founders), 10).await.is_err() && !data.exists());
        restore(&backup, &data, ("n1", &founders), 10).await.unwrap();
        let again = restore(&backup, &data, ("n1", &founders), 10).await.unwrap_err().to_string();
        assert!(again.contains("not empty"), "{again}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing staged is left");
    }
}
