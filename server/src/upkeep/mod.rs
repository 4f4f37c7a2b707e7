//! What every member does for its own disk: it looks at the room that is left (`space`) and keeps backups (`backups`).

pub mod backups;
pub mod space;
