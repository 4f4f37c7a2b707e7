//! Certificates: the cluster's own authorities, what a member holds of them, and how its listeners use it.
//!
//! Two authorities, so that no node's or user's certificate opens the members' port: `peer` for members among
//! themselves, `client` for servers towards everybody else, for nodes and for users. They live in the replicated state,
//! so that every member can sign and a backup is complete; a member's own certificates are files.

pub mod authority;
pub mod files;
pub mod identity;
pub mod keeper;
pub mod listener;

pub use authority::{Purpose, Subject};
pub use identity::Identity;
