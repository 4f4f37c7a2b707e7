//! The gRPC face: `objects` (reading, writing, watching), `cluster` (status, programmed, data planes), `admit` (pure
//! admission) and `status` (the one table of errors).

pub mod access;
pub mod admit;
pub mod authz;
pub mod cluster;
pub mod guard;
pub mod list;
pub mod maintenance;
pub mod members;
pub mod objects;
pub mod past;
pub mod status;
