//! Where snapshot files lie: one is the current one, others are being written or received beside it.
//!
//! INVARIANT: the current one only ever gets newer, is whole and synced before it gets its name, and is either the old
//! or the new one after a crash at any point. A damaged current one is an error, never "none".

use crate::machine::Snapshot;
use crate::raft::types::{LogId, SnapshotMeta, TypeConfig};
use crate::storage::snapshot::{self, SnapshotFile};
use openraft::storage::RaftSnapshotBuilder;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt as _;

const CURRENT: &str = "current";
const ASIDE: &str = ".partial";

/// A snapshot as openraft takes it.
pub type Built = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// The directory.
#[derive(Clone)]
pub struct SnapshotStore(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    /// What the current one reflects; held while the name changes hands.
    newest: Mutex<Option<LogId>>,
    /// Bytes of the current one.
    length: AtomicU64,
    count: AtomicU64,
}

impl SnapshotStore {
    /// Opens the directory, making it if absent, and checks the current snapshot. What was being written is removed.
    ///
    /// # Errors
    /// What is damaged, or the file system's.
    pub fn open(directory: PathBuf) -> Result<Self, String> {
        let store = Self(Arc::new(Inner {
            directory,
            newest: Mutex::new(None),
            length: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }));
        let meta = store.sweep().and_then(|()| store.current());
        let meta = meta.map_err(|error| format!("{}: {error}", store.0.directory.join(CURRENT).display()))?;
        if let Some(built) = &meta {
            let length = built.snapshot.length();
            store.0.length.store(length, Ordering::Relaxed);
        }
        let newest = meta.and_then(|built| built.meta.last_log_id);
        *store.0.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        Ok(store)
    }

    fn sweep(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.0.directory)?;
        for entry in std::fs::read_dir(&self.0.directory)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(ASIDE) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Where it is.
    #[cfg(test)]
    pub fn directory(&self) -> PathBuf {
        self.0.directory.clone()
    }

    /// Log id that the current snapshot reflects.
    #[must_use]
    pub fn newest(&self) -> Option<LogId> {
        *self.0.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the current snapshot; 0 if there is none.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0.length.load(Ordering::Relaxed)
    }

    /// The current snapshot, checked.
    ///
    /// # Errors
    /// The file system's, or damage.
    pub fn current(&self) -> io::Result<Option<Built>> {
        let file = match File::open(self.0.directory.join(CURRENT)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let snapshot = SnapshotFile::new(file, self.aside())?;
        let meta = snapshot.check()?;
        Ok(Some(Built { meta, snapshot }))
    }

    /// Makes a whole, synced file the current one, unless that is as new already.
    ///
    /// # Errors
    /// The file system's.
    pub fn adopt(&self, snapshot: &SnapshotFile, reflects: Option<LogId>) -> io::Result<()> {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.is_some() && reflects <= *newest {
            return Ok(());
        }
        if snapshot.aside().parent() != Some(self.0.directory.as_path()) {
            drop(newest);
            return self.adopt(&self.copied(snapshot)?, reflects);
        }
        std::fs::rename(snapshot.aside(), self.0.directory.join(CURRENT))?;
        File::open(&self.0.directory)?.sync_all()?;
        *newest = reflects;
        self.0.length.store(snapshot.length(), Ordering::Relaxed);
        Ok(())
    }

    /// A copy in this directory of a file that lies in another one.
    fn copied(&self, snapshot: &SnapshotFile) -> io::Result<SnapshotFile> {
        let aside = self.aside();
        let mut file = readable(&aside)?;
        io::copy(&mut snapshot.reader(), &mut file)?;
        file.sync_all()?;
        SnapshotFile::new(file, aside)
    }

    /// A file name that nobody else uses.
    fn aside(&self) -> PathBuf {
        let count = self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.directory.join(format!("{count}{ASIDE}"))
    }

    /// A builder of a snapshot of this very view.
    #[must_use]
    pub fn builder(&self, meta: SnapshotMeta, view: Snapshot) -> SnapshotBuilder {
        let store = self.clone();
        SnapshotBuilder { store, meta, view }
    }

    /// Begins to receive a snapshot.
    ///
    /// # Errors
    /// The file system's.
    pub async fn receive(&self) -> io::Result<Incoming> {
        let aside = self.aside();
        let file = readable(&aside)?;
        // From here on the file goes with its handle.
        let handle = SnapshotFile::new(file.try_clone()?, aside)?;
        Ok(Incoming { handle, file: tokio::fs::File::from_std(file), hasher: Sha256::new() })
    }
}

fn readable(path: &PathBuf) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).open(path)
}

/// A snapshot that is being received.
pub struct Incoming {
    handle: SnapshotFile,
    file: tokio::fs::File,
    hasher: Sha256,
}

impl Incoming {
    /// Adds a piece.
    ///
    /// # Errors
    /// The file system's.
    pub async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hasher.update(piece);
        self.file.write_all(piece).await
    }

    /// The whole snapshot, synced, if it is as it was sent.
    ///
    /// # Errors
    /// The file system's, or damage.
    pub async fn finish(mut self, sum: &[u8]) -> io::Result<Built> {
        if self.hasher.finalize()[..] != *sum {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it arrived damaged"));
        }
        self.file.flush().await?;
        self.file.sync_all().await?;
        let handle = self.handle;
        let checked = tokio::task::spawn_blocking(move || {
            let snapshot = handle.measured()?;
            let meta = snapshot.check()?;
            Ok::<_, io::Error>(Built { meta, snapshot })
        });
        checked.await.map_err(io::Error::other)?
    }
}

/// Builds a snapshot from one consistent view, beside apply.
pub struct SnapshotBuilder {
    store: SnapshotStore,
    meta: SnapshotMeta,
    view: Snapshot,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Built, io::Error> {
        let (store, meta, view) = (self.store.clone(), self.meta.clone(), self.view.clone());
        let built = tokio::task::spawn_blocking(move || {
            let aside = store.aside();
            let file = snapshot::write(readable(&aside)?, &meta, &view)?;
            let snapshot = SnapshotFile::new(file, aside)?;
            store.adopt(&snapshot, meta.last_log_id)?;
            Ok::<_, io::Error>(Built { meta, snapshot })
        });
        built.await.map_err(io::Error::other)?
    }
}
