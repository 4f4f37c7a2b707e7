//! The event window (`history`, pure) and watchers' streams (`stream`).

pub mod history;
pub mod stream;
