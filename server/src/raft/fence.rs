//! The note that keeps a member whose state differs from the others' from starting again with it.

use fairlead_proto::tls::write_private;
use std::io;
use std::path::Path;

const FILE: &str = "fenced";

/// Notes why.
///
/// # Errors
/// It can't be written.
pub(super) fn note(data_dir: &Path, why: &str) -> io::Result<()> {
    write_private(&data_dir.join(FILE), why)
}

/// Why this directory is of no use any more; `None` = it is fine.
pub(super) fn noted(data_dir: &Path) -> Option<String> {
    std::fs::read_to_string(data_dir.join(FILE)).ok()
}
