//! The event window (`history`, pure), what it tells in words (`happened`, pure) and watchers' streams (`stream`).

pub mod happened;
pub mod history;
pub mod stream;
