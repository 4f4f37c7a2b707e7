//! The gRPC face: `objects` (reading, writing, watching), `cluster` (status, programmed, data planes), `admit` (pure
//! admission) and `status` (the one table of errors).

pub mod admit;
pub mod cluster;
pub mod list;
pub mod objects;
pub mod past;
pub mod status;
