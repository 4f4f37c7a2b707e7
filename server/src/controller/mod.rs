//! What only a leader does: turn silence into a fact (`lease`), compare the members' states (`audit`), raise the machine version
//! (`version`).

pub mod audit;
pub mod lease;
pub mod version;
