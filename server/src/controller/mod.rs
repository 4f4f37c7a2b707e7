//! What only a leader does: turn silence into a fact (`lease`), compare the members' states (`audit`).

pub mod audit;
pub mod lease;
