//! Durable state: one RocksDB with one WAL for log and state, and one file for the newest Raft snapshot.
//!
//! INVARIANT: what survives a crash is a prefix. All writes go through one thread in order (`writer`), so an entry is in
//! the WAL before its effect is. The only user of rocksdb.

pub mod backup;
pub mod codec;
pub mod keys;
mod load;
mod log;
mod machine;
mod open;
pub mod recover;
mod snapshot;
mod snapshot_store;
mod writer;

#[cfg(test)]
mod tests;

pub use log::LogStore;
#[cfg(test)]
pub use machine::HARMED;
pub use machine::{Published, StateMachine};
#[cfg(test)]
pub use open::Database;
pub use open::{EndOfReturn, Held, Identity, OpenError, Storage};
pub use snapshot::SnapshotFile;
pub use snapshot_store::{Incoming, SnapshotStore};
