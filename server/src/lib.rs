//! A Fairlead server: consensus, state, and the faces that read and change it.
//!
//! The cluster is a value (`machine`); every change to it is one pure function; everything else proposes a change or
//! renders the value.

pub mod api;
pub mod audit;
pub mod config;
pub mod controller;
pub mod dns;
pub mod http;
pub mod kube;
pub mod machine;
pub mod metrics;
pub mod names;
pub mod nodes;
pub mod pki;
pub mod raft;
pub mod storage;
pub mod sync;
pub mod tasks;
pub mod traced;
pub mod tracer;
pub mod upkeep;
pub mod watch;
pub mod write;

mod run;

pub use config::{Config, TlsConfig};
pub use run::{ServerError, run};
