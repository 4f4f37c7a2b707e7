//! Fairlead's API and the pure model that servers, agents and the command line share.
//!
//! Everything here is synchronous and free of IO, clocks and randomness. The gRPC stubs (feature `rpc`) are the only
//! part that knows of tonic; what breaks promises on purpose (feature `mutants`) is no part of any release.

pub mod convert;
pub mod digest;
#[cfg(feature = "rpc")]
pub mod enroll;
pub mod json;
pub mod manifest;
pub mod metric;
pub mod model;
pub mod mutant;
#[cfg(feature = "rpc")]
pub mod tls;
pub mod token;
#[cfg(feature = "rpc")]
pub mod trace;
pub mod view;

/// The public API, `fairlead.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/fairlead.v1.rs"));
}

/// What servers of one cluster say to each other and store (`fairlead.internal.v1`).
pub mod internal {
    /// Version 1 of it.
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/fairlead.internal.v1.rs"));
    }
}

/// The encoded `FileDescriptorSet` of every .proto file, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
