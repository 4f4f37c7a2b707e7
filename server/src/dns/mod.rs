//! DNS for the cluster's zone: `zone` says what a name means, `answer` looks it up in a state (`backends`: one service),
//! `message` turns bytes into bytes (all pure); `serve` decides which snapshot a message is answered from, `listen` has
//! the sockets.
//!
//! A message is answered from one snapshot, of a revision no older than every write that was acknowledged before the
//! message arrived; without a quorum, from the local one and marked so, or not at all (`StalePolicy`).

pub mod answer;
mod backends;
mod listen;
pub mod message;
#[cfg(test)]
mod sample;
mod serve;
pub mod zone;

pub use serve::{Config, DnsError, LocalFn, ReadFailed, ReadFn, StalePolicy, serve};
