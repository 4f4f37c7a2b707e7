//! The last view on disk: a snapshot, written whole and renamed into place, and the deltas since, appended.
//!
//! A step costs O(delta). It is in the file before the kernel serves it, so an agent that is killed and starts again
//! never takes its kernel back in time. What can't be read is reported and left behind: the servers have it all.
//! INVARIANT: the log holds whole steps that follow the snapshot; after a failed write it is closed until a snapshot
//! takes its place.

use fairlead_proto::v1::{NodeDelta, Welcome};
use fairlead_proto::view::NodeView;
use nix::fcntl::{Flock, FlockArg};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"fairlead agent state 3\n";
const SNAPSHOT: &str = "view";
const LOG: &str = "deltas";
const CHECK_BYTES: usize = 8;
/// Items in one record of a snapshot: as much is held twice while it is written or read.
const PART_ITEMS: usize = 2_000;
/// The log is folded into a new snapshot when it is larger than this and than the snapshot.
const LOG_BYTES: u64 = 1 << 20;
/// No file of ours is larger; one that is isn't read.
const FILE_BYTES: u64 = 1 << 30;

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It can't be made or written.
    #[error("state directory {path}: {source}; choose another with --state-dir")]
    Io {
        /// The directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("state directory {0} is in use by another agent: stop that one, or choose another with --state-dir")]
    InUse(String),
}

/// What the last run left.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What the servers said of the cluster; without an id = nothing yet.
    pub cluster: Welcome,
    /// Its view; revision 0 = none.
    pub view: NodeView,
}

/// The open state directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    log: Option<File>,
    log_bytes: u64,
    snapshot_bytes: u64,
    _lock: Flock<File>,
}

impl Store {
    /// Opens, locks and reads a state directory.
    ///
    /// # Errors
    /// [`StateError`]. Damaged content is none: it is logged and the agent starts empty.
    pub fn open(directory: &Path) -> Result<(Self, Loaded), StateError> {
        let shown = directory.display().to_string();
        let failed = |source| StateError::Io { path: shown.clone(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock")).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| StateError::InUse(shown.clone()))?;
        let mut store =
            Self { directory: directory.to_owned(), log: None, log_bytes: 0, snapshot_bytes: 0, _lock: lock };
        let loaded = store.load().unwrap_or_else(|error| {
            tracing::error!(path = shown, %error, "the last view can't be read; starting without one until a server sends it");
            Loaded::default()
        });
        if let Err(error) = store.write(&snapshot(&loaded.cluster, &loaded.view)) {
            // A full disk keeps no node from being programmed.
            tracing::error!(path = shown, %error, "the view can't be saved: make room there, or choose another --state-dir");
        }
        Ok((store, loaded))
    }

    /// Appends one step's parts. `false`: the log has grown so large that a new snapshot is due.
    ///
    /// # Errors
    /// The disk's. Half a step may then be at the log's end, so nothing is appended before the next [`Store::write`].
    pub fn append(&mut self, parts: &[NodeDelta]) -> io::Result<bool> {
        let mut bytes = Vec::new();
        for part in parts {
            push_record(&mut bytes, &part.encode_to_vec());
        }
        let mut log = self.log.take().ok_or_else(|| io::Error::other("the log isn't open"))?;
        log.write_all(&bytes)?;
        self.log = Some(log);
        self.log_bytes += bytes.len() as u64;
        Ok(self.log_bytes <= LOG_BYTES.max(self.snapshot_bytes))
    }

    /// Writes a snapshot (see [`snapshot`]) in place of the old one and of the log.
    ///
    /// # Errors
    /// The disk's; the old snapshot and log are then still there, or the new snapshot with a log it has no use for.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (path, temporary) = (self.directory.join(SNAPSHOT), self.directory.join("view.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.log = None;
        std::fs::rename(&temporary, &path)?;
        File::open(&self.directory)?.sync_all()?;
        self.log = Some(File::create(self.directory.join(LOG))?);
        self.log_bytes = 0;
        self.snapshot_bytes = bytes.len() as u64;
        Ok(())
    }

    fn load(&self) -> io::Result<Loaded> {
        let Some(bytes) = read(&self.directory.join(SNAPSHOT))? else {
            return Ok(Loaded::default());
        };
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{SNAPSHOT}: {what}"));
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("not a view of this version"))?;
        let record = take_record(&mut rest).ok_or_else(|| damaged("cut short or damaged"))?;
        let cluster = Welcome::decode(record).map_err(|error| damaged(&error.to_string()))?;
        let mut view = NodeView::default();
        let mut more = true;
        while more {
            let record = take_record(&mut rest).ok_or_else(|| damaged("cut short or damaged"))?;
            let delta = NodeDelta::decode(record).map_err(|error| damaged(&error.to_string()))?;
            view.fold(&delta).map_err(|error| damaged(&error.to_string()))?;
            more = delta.more;
        }
        let bytes = read(&self.directory.join(LOG)).unwrap_or_else(|error| {
            tracing::error!(%error, "the deltas since the last snapshot can't be read");
            None
        });
        let bytes = bytes.unwrap_or_default();
        Ok(Loaded { cluster, view: replay(view, &steps(&bytes)) })
    }
}

/// The log's whole steps; what a kill cut off ends them.
fn steps(bytes: &[u8]) -> Vec<Vec<NodeDelta>> {
    let mut rest = bytes;
    let (mut steps, mut parts) = (Vec::new(), Vec::new());
    while let Some(part) = take_record(&mut rest).and_then(|record| NodeDelta::decode(record).ok()) {
        let last = !part.more;
        parts.push(part);
        if last {
            steps.push(std::mem::take(&mut parts));
        }
    }
    steps
}

/// Folds steps as far as they fit: a snapshot may have made them needless.
fn replay(snapshot: NodeView, steps: &[Vec<NodeDelta>]) -> NodeView {
    let mut view = snapshot.clone();
    let misfit = steps.iter().position(|parts| parts.iter().any(|part| view.fold(part).is_err()));
    match misfit {
        None => view,
        // The misfit may have left half of itself in the view. Fewer steps fit each time, and those before it did.
        Some(index) => replay(snapshot, &steps[..index]),
    }
}

/// A snapshot's bytes.
#[must_use]
pub fn snapshot(cluster: &Welcome, view: &NodeView) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    push_record(&mut bytes, &cluster.encode_to_vec());
    for part in view.parts(PART_ITEMS) {
        push_record(&mut bytes, &part.encode_to_vec());
    }
    bytes
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES => {
            Err(io::Error::other(format!("{} is too large", path.display())))
        }
        Ok(_) => std::fs::read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn push_record(bytes: &mut Vec<u8>, payload: &[u8]) {
    // A payload is at most a view: far below 4 GiB. A larger one would not load, and be asked for anew.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&check(payload));
    bytes.extend_from_slice(payload);
}

fn take_record<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<4>()?;
    let (sum, behind) = behind.split_first_chunk::<CHECK_BYTES>()?;
    let (payload, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    (*sum == check(payload)).then(|| {
        *rest = behind;
        payload
    })
}

fn check(payload: &[u8]) -> [u8; CHECK_BYTES] {
    let mut sum = [0; CHECK_BYTES];
    sum.copy_from_slice(&Sha256::digest(payload)[..CHECK_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::ServiceItem;

    fn delta(from: Option<u64>, to: u64, name: &str) -> NodeDelta {
        let item = ServiceItem { namespace: "default".into(), name: name.into(), ..ServiceItem::default() };
        NodeDelta { from, to, upsert_services: vec![item], ..NodeDelta::default() }
    }

    fn services(directory: &Path) -> (String, u64, usize) {
        let (_, loaded) = Store::open(directory).unwrap();
        (loaded.cluster.cluster_id, loaded.view.revision, loaded.view.services.len())
    }

    fn c1() -> Welcome {
        Welcome { cluster_id: "c1".into(), ..Welcome::default() }
    }

    fn filled(directory: &Path) {
        let (mut store, loaded) = Store::open(directory).unwrap();
        let mut view = loaded.view;
        view.fold(&delta(None, 1, "a")).unwrap();
        store.write(&snapshot(&c1(), &view)).unwrap();
        assert!(store.append(&[delta(Some(1), 2, "b")]).unwrap());
        let mut first = delta(Some(2), 3, "c");
        first.more = true;
        assert!(store.append(&[first, delta(Some(2), 3, "d")]).unwrap());
    }

    #[test]
    fn snapshot_and_deltas_come_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(services(directory.path()), (String::new(), 0, 0));
        filled(directory.path());
        assert_eq!(services(directory.path()), ("c1".into(), 3, 4));
        assert_eq!(services(directory.path()), ("c1".into(), 3, 4));
    }

    #[test]
    fn a_torn_or_half_step_is_cut_and_a_damaged_snapshot_starts_empty() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        let log = std::fs::read(directory.path().join(LOG)).unwrap();
        for cut in 0..log.len() {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(directory.path().join(SNAPSHOT), copy.path().join(SNAPSHOT)).unwrap();
            std::fs::write(copy.path().join(LOG), &log[..cut]).unwrap();
            let (_, revision, count) = services(copy.path());
            assert!(matches!((revision, count), (1, 1) | (2, 2)), "{revision} {count}");
        }
        let mut bytes = std::fs::read(directory.path().join(SNAPSHOT)).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(directory.path().join(SNAPSHOT), bytes).unwrap();
        assert_eq!(services(directory.path()).1, 0);
    }

    #[test]
    fn a_log_from_before_the_snapshot_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        let log = std::fs::read(directory.path().join(LOG)).unwrap();
        assert_eq!(services(directory.path()).1, 3);
        std::fs::write(directory.path().join(LOG), log).unwrap();
        assert_eq!(services(directory.path()), ("c1".into(), 3, 4));
    }

    #[test]
    fn a_failed_append_leaves_no_gap_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        let (mut store, loaded) = Store::open(directory.path()).unwrap();
        // A disk that takes nothing more: here, a log that is open for reading only.
        store.log = Some(File::open(directory.path().join(LOG)).unwrap());
        assert!(store.append(&[delta(Some(3), 4, "e")]).is_err());
        assert!(store.append(&[delta(Some(4), 5, "f")]).is_err(), "not behind the gap, though there may be room again");
        let mut view = loaded.view;
        view.fold(&delta(Some(3), 4, "e")).unwrap();
        view.fold(&delta(Some(4), 5, "f")).unwrap();
        store.write(&snapshot(&c1(), &view)).unwrap();
        assert!(store.append(&[delta(Some(5), 6, "g")]).unwrap());
        drop(store);
        assert_eq!(services(directory.path()), ("c1".into(), 6, 7));
    }

    #[test]
    fn a_directory_that_takes_no_snapshot_keeps_no_agent_from_starting() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        std::fs::create_dir(directory.path().join("view.tmp")).unwrap();
        let (mut store, loaded) = Store::open(directory.path()).unwrap();
        assert_eq!(loaded.view.revision, 3);
        assert!(store.append(&[delta(Some(3), 4, "e")]).is_err());
        std::fs::remove_dir(directory.path().join("view.tmp")).unwrap();
        store.write(&snapshot(&c1(), &loaded.view)).unwrap();
        assert!(store.append(&[delta(Some(3), 4, "e")]).unwrap());
    }

    #[test]
    fn a_step_that_does_not_fit_ends_the_log_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path());
        let (mut store, _) = Store::open(directory.path()).unwrap();
        assert!(store.append(&[delta(Some(3), 4, "e")]).unwrap());
        let mut wrong = delta(Some(4), 5, "f");
        wrong.digest = vec![1; 32];
        assert!(store.append(&[wrong]).unwrap());
        assert!(store.append(&[delta(Some(5), 6, "g")]).unwrap());
        drop(store);
        assert_eq!(services(directory.path()), ("c1".into(), 4, 5));
    }

    #[test]
    fn two_agents_do_not_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let _held = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(StateError::InUse(_))));
    }
}
