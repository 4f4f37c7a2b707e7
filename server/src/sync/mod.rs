//! Agents' delta streams: what a node must know (`delta`, pure), each node's stream (`session`), and what the nodes
//! said back (`board`). State, not events: a view is taken from one revision to another, whatever lies between.

pub mod board;
pub mod delta;
pub mod drift;
pub mod session;
