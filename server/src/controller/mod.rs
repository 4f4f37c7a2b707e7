//! What only a leader does: turn silence into a fact (`lease`).

pub mod lease;
