//! Agents' delta streams: what a node must know (`item`, `delta`, pure), each node's stream (`session`), and what the nodes
//! said back (`board`). State, not events: a view is taken from one revision to another, whatever lies between.

pub mod board;
pub mod delta;
pub mod drift;
pub mod item;
pub mod session;
pub mod stamped;
