//! Opening a data directory: whose it is, whether it is whole, and what it holds. Refusing changes nothing in it.

use crate::storage::log::LogStore;
use crate::storage::machine::StateMachine;
use crate::storage::snapshot_store::SnapshotStore;
use crate::storage::writer::Writer;
use crate::storage::{keys, load};
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBRecoveryMode, MultiThreaded, Options,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Version of everything stored; a reader refuses a newer one.
const FORMAT_VERSION: u64 = 1;
/// The log's writes fill a memtable of this size before it becomes a file.
const WRITE_BUFFER: usize = 16 * 1024 * 1024;
/// State and recent log are in memory: the disk is read at start, and for a follower that lags far behind.
const BLOCK_CACHE: usize = 2 * 1024 * 1024;
/// Beyond this the oldest memtables are flushed, so that the WAL can be shortened: bounds disk and start-up time.
const MAX_WAL: u64 = 128 * 1024 * 1024;

/// Whose data a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The member's name.
    pub name: String,
    /// The founding list, sorted: n1=host:port,…
    pub founding: String,
}

impl Identity {
    fn render(&self) -> String {
        format!("{}\n{}", self.name, self.founding)
    }
}

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory.
    #[error("can't use the data directory {path}: {error}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Another process has it open.
    #[error(
        "the data directory {0} is in use by another process: is this server running already? stop that one, or choose another --data-dir"
    )]
    Locked(PathBuf),
    /// Another member's or cluster's.
    #[error(
        "the data directory {path} belongs to {was}, this is {is}: give the server its own --name and --initial-cluster, or another --data-dir"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        was: String,
        /// Who opens it.
        is: String,
    },
    /// Corrupt before the tail, or written by a newer version.
    #[error(
        "the data in {path} can't be read and is not touched: {why}; if it is damaged and the other members have a quorum, move the directory away and start again: this member then gets its data back from them before it votes"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What was found.
        why: String,
    },
}

/// RocksDB with our column families.
pub struct Database {
    /// The database.
    pub db: rocksdb::DBWithThreadMode<MultiThreaded>,
    /// Dropped after `db`, that is when it is closed.
    open: Arc<()>,
    /// Tests: commits that still succeed. What fails after them is a crash or a broken disk.
    #[cfg(test)]
    pub commits_left: std::sync::atomic::AtomicU64,
}

impl Database {
    /// A column family.
    ///
    /// # Errors
    /// It is missing, which opening excludes.
    pub fn family(&self, name: &str) -> Result<Arc<BoundColumnFamily<'_>>, String> {
        self.db.cf_handle(name).ok_or_else(|| format!("column family {name} is missing"))
    }

    /// A value.
    ///
    /// # Errors
    /// RocksDB's.
    pub fn get(&self, family: &str, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        self.db.get_cf(&self.family(family)?, key).map_err(|error| error.to_string())
    }

    fn is_empty(&self, family: &str) -> Result<bool, String> {
        let family = self.family(family)?;
        match self.db.iterator_cf(&family, rocksdb::IteratorMode::Start).next() {
            None => Ok(true),
            Some(Ok(_)) => Ok(false),
            Some(Err(error)) => Err(error.to_string()),
        }
    }
}

/// Tells whether a data directory is still open in this process; holds nothing itself.
#[derive(Clone)]
pub struct Held(Weak<()>);

impl Held {
    /// True until log, state machine and writer have let go and the database is closed.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// An opened data directory.
pub struct Storage {
    /// Raft's log.
    pub log: LogStore,
    /// Raft's state machine.
    pub machine: StateMachine,
    /// Snapshots.
    pub snapshots: SnapshotStore,
    /// True if nothing was ever stored in it.
    pub pristine: bool,
    /// Whether it is the returning member's, see [`Storage::set_returning`].
    pub returning: bool,
    writer: Writer,
    held: Held,
    /// Tests: to break it.
    #[cfg(test)]
    pub database: Weak<Database>,
}

impl Storage {
    /// Opens a directory, making it if absent.
    ///
    /// # Errors
    /// [`OpenError`], in one clear sentence; nothing was changed.
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, OpenError> {
        let directory = |error| OpenError::Directory { path: path.to_owned(), error };
        std::fs::create_dir_all(path).map_err(directory)?;
        let database = Arc::new(open_database(path)?);
        let damaged = |why: String| OpenError::Damaged { path: path.to_owned(), why };
        check_identity(&database, path, identity)?;
        let log = load::log(&database).map_err(damaged)?;
        let state = load::state(&database).map_err(damaged)?;
        let returning = database.get(keys::META, keys::RETURNING).map_err(damaged)?;
        let snapshots = SnapshotStore::open(path.join("snapshot")).map_err(damaged)?;
        let held_through = state.applied.max(snapshots.newest()).map(|id| id.index);
        if log.purged.map(|id| id.index) > held_through {
            return Err(damaged("the log begins after what the state holds".into()));
        }
        sweep(&database, state.generation).map_err(damaged)?;
        let pristine = log.is_empty() && state.applied.is_none() && snapshots.newest().is_none();
        let held = Held(Arc::downgrade(&database.open));
        #[cfg(test)]
        let weak = Arc::downgrade(&database);
        let writer = Writer::start(database.clone()).map_err(directory)?;
        Ok(Self {
            log: LogStore::new(database, writer.clone(), log),
            machine: StateMachine::new(writer.clone(), snapshots.clone(), state),
            snapshots,
            pristine,
            returning: returning.is_some(),
            writer,
            held,
            #[cfg(test)]
            database: weak,
        })
    }

    /// Whether the directory is still held.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held.clone()
    }

    /// Notes durably that this member lost its data; the returned handle notes that it has it again.
    ///
    /// # Errors
    /// The write's.
    pub async fn set_returning(&mut self) -> io::Result<()> {
        self.returning = true;
        let write = (keys::META, keys::RETURNING.to_vec(), Some(vec![1]));
        self.writer.write(vec![write], None, true).await
    }

    /// What ends a return.
    #[must_use]
    pub fn end_of_return(&self) -> EndOfReturn {
        EndOfReturn(self.writer.clone())
    }
}

/// Ends a member's return, see [`Storage::set_returning`].
pub struct EndOfReturn(Writer);

impl EndOfReturn {
    /// Notes durably that this member has its data again.
    ///
    /// # Errors
    /// The write's.
    pub async fn note(&self) -> io::Result<()> {
        let write = (keys::META, keys::RETURNING.to_vec(), None);
        self.0.write(vec![write], None, true).await
    }
}

pub(super) fn open_database(path: &Path) -> Result<Database, OpenError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Only a record torn by a crash may be cut; anything damaged before it, or a WAL file gone, refuses to start.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(MAX_WAL);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(512);
    let family = family_options();
    let families = [keys::META, keys::LOG, keys::STATE].map(|name| ColumnFamilyDescriptor::new(name, family.clone()));
    let opened = rocksdb::DBWithThreadMode::open_cf_descriptors(&options, path.join("db"), families);
    let db = opened.map_err(|error| refused(path, &error))?;
    Ok(Database {
        db,
        open: Arc::default(),
        #[cfg(test)]
        commits_left: u64::MAX.into(),
    })
}

fn refused(path: &Path, error: &rocksdb::Error) -> OpenError {
    let path = path.to_owned();
    let why = error.to_string();
    if why.contains("While lock file") || why.contains("lock hold by current process") {
        OpenError::Locked(path)
    } else if error.kind() == rocksdb::ErrorKind::IOError {
        let error = io::Error::other(why);
        OpenError::Directory { path, error }
    } else {
        OpenError::Damaged { path, why }
    }
}

fn family_options() -> Options {
    let mut options = Options::default();
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER);
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE));
    options.set_block_based_table_factory(&tables);
    options
}

/// Notes whose directory this is if it is new, refuses it if it is another's.
fn check_identity(database: &Database, path: &Path, identity: &Identity) -> Result<(), OpenError> {
    let path = path.to_owned();
    let damaged = |why: String| OpenError::Damaged { path: path.clone(), why };
    let format = load::number(database, keys::FORMAT).map_err(damaged)?;
    if format.is_some_and(|format| format > FORMAT_VERSION) {
        let format = format.unwrap_or_default();
        return Err(damaged(format!(
            "it has format {format}, this program reads up to {FORMAT_VERSION}: start the version that wrote it"
        )));
    }
    match database.get(keys::META, keys::IDENTITY).map_err(damaged)? {
        Some(bytes) if bytes == identity.render().as_bytes() => Ok(()),
        Some(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let (name, founding) = text.split_once('\n').unwrap_or((&text, ""));
            Err(OpenError::Foreign {
                path,
                was: format!("member {name} of the cluster {founding}"),
                is: format!("member {} of {}", identity.name, identity.founding),
            })
        }
        None => {
            let empty = |family| database.is_empty(family).map_err(damaged);
            if !empty(keys::META)? || !empty(keys::LOG)? || !empty(keys::STATE)? {
                return Err(damaged("it does not say whose it is".into()));
            }
            let mut batch = rocksdb::WriteBatch::default();
            let family = database.family(keys::META).map_err(damaged)?;
            batch.put_cf(&family, keys::FORMAT, FORMAT_VERSION.to_be_bytes());
            batch.put_cf(&family, keys::IDENTITY, identity.render());
            synced(database, batch).map_err(|error| OpenError::Directory { path: path.clone(), error })
        }
    }
}

/// Deletes what an install cut short left behind: every generation but the one in force.
fn sweep(database: &Database, generation: u64) -> Result<(), String> {
    let family = database.family(keys::STATE)?;
    let mut stray = false;
    for end in [rocksdb::IteratorMode::Start, rocksdb::IteratorMode::End] {
        if let Some(item) = database.db.iterator_cf(&family, end).next() {
            let (key, _) = item.map_err(|error| error.to_string())?;
            stray |= !key.starts_with(&generation.to_be_bytes());
        }
    }
    if !stray {
        return Ok(());
    }
    let mut batch = rocksdb::WriteBatch::default();
    let from = generation.to_be_bytes();
    let to = (generation + 1).to_be_bytes();
    batch.delete_range_cf(&family, 0_u64.to_be_bytes(), from);
    batch.delete_range_cf(&family, to, u64::MAX.to_be_bytes());
    synced(database, batch).map_err(|error| error.to_string())
}

pub(super) fn synced(database: &Database, batch: rocksdb::WriteBatch) -> io::Result<()> {
    let mut options = rocksdb::WriteOptions::default();
    options.set_sync(true);
    let written = database.db.write_opt(batch, &options);
    written.map_err(|error| io::Error::other(error.to_string()))
}
