//! Opening a data directory: whose it is, whether it is whole, and what it holds.

use crate::storage::log::LogStore;
use crate::storage::machine::StateMachine;
use crate::storage::writer::Writer;
use crate::storage::{keys, load};
use rocksdb::{BoundColumnFamily, ColumnFamilyDescriptor, DBRecoveryMode, MultiThreaded, Options};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    #[error("the data directory {0} is in use by another process: is this server running already?")]
    Locked(PathBuf),
    /// Another member's or cluster's.
    #[error("the data directory {path} belongs to member {was}, this is {is}: give the server its own --name and --initial-cluster, or another --data-dir")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        was: String,
        /// Who opens it.
        is: String,
    },
    /// Corrupt before the tail, or written by a newer version.
    #[error("the data in {path} is damaged and is not touched: {why}; restore this member from a snapshot, or remove the directory to let the others bring it back")]
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
}

/// An opened data directory.
pub struct Storage {
    /// Raft's log.
    pub log: LogStore,
    /// Raft's state machine.
    pub machine: StateMachine,
}

impl Storage {
    /// Opens a directory, making it if absent.
    ///
    /// # Errors
    /// [`OpenError`], in one clear sentence; nothing was changed.
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, OpenError> {
        let directory = |error| OpenError::Directory { path: path.to_owned(), error };
        std::fs::create_dir_all(path.join("snapshot")).map_err(directory)?;
        let database = Arc::new(open_database(path)?);
        let damaged = |why: String| OpenError::Damaged { path: path.to_owned(), why };
        check_identity(&database, path, identity)?;
        let log = load::log(&database).map_err(damaged)?;
        let state = load::state(&database).map_err(damaged)?;
        let writer = Writer::start(database.clone()).map_err(directory)?;
        Ok(Self {
            log: LogStore::new(database.clone(), writer.clone(), log),
            machine: StateMachine::new(database, writer, (path.join("snapshot"), state)),
        })
    }
}

fn open_database(path: &Path) -> Result<Database, OpenError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Only a record torn by a crash may be cut; anything damaged before it refuses to start.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_paranoid_checks(true);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(512);
    let families = [keys::META, keys::LOG, keys::STATE].map(|name| ColumnFamilyDescriptor::new(name, family_options()));
    let db = rocksdb::DBWithThreadMode::open_cf_descriptors(&options, path.join("db"), families).map_err(|error| {
        let why = error.to_string();
        if why.contains("lock") || why.contains("LOCK") {
            OpenError::Locked(path.to_owned())
        } else if error.kind() == rocksdb::ErrorKind::IOError {
            OpenError::Directory { path: path.to_owned(), error: io::Error::other(why) }
        } else {
            OpenError::Damaged { path: path.to_owned(), why }
        }
    })?;
    Ok(Database { db })
}

fn family_options() -> Options {
    let mut options = Options::default();
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(32 * 1024 * 1024);
    options
}

fn check_identity(database: &Database, path: &Path, identity: &Identity) -> Result<(), OpenError> {
    let damaged = |why: String| OpenError::Damaged { path: path.to_owned(), why };
    match database.get(keys::META, keys::IDENTITY).map_err(damaged)? {
        Some(bytes) if bytes == identity.render().as_bytes() => Ok(()),
        Some(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let (name, founding) = text.split_once('\n').unwrap_or((&text, ""));
            let of = |name: &str, founding: &str| format!("{name} of the cluster {founding}");
            Err(OpenError::Foreign { path: path.to_owned(), was: of(name, founding), is: of(&identity.name, &identity.founding) })
        }
        None => {
            let family = database.family(keys::META).map_err(damaged)?;
            let mut options = rocksdb::WriteOptions::default();
            options.set_sync(true);
            let written = database.db.put_cf_opt(&family, keys::IDENTITY, identity.render(), &options);
            written.map_err(|error| OpenError::Directory { path: path.to_owned(), error: io::Error::other(error.to_string()) })
        }
    }
}
