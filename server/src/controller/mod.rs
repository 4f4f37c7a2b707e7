//! What only a leader does: turn silence into a fact (`lease`), compare the members' states (`audit`), raise the machine version
//! (`version`), forget old events (`events`),
//! keep the service `kubernetes` (`apiservers`).

pub mod apiservers;
pub mod audit;
pub mod events;
pub mod lease;
pub mod version;
