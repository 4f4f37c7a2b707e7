//! What a file's unsynced writes did, and how they are taken back.
//!
//! The backing file always holds what the server reads; beside it are kept, for each change since the last sync, the bytes
//! that it replaced. LAW: after [`Unsynced::lose`] the file is byte for byte what it was at the last sync; after
//! [`Unsynced::tear`] it is that plus a prefix of the changes, the last one perhaps cut within its bytes.

use super::node::Node;
use crate::random::Random;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// Bytes kept of one file, at most, to take changes back. One that goes beyond it counts as written out, as a kernel that
/// lacks memory does at any time.
const MAX_KEPT: u64 = 256 << 20;
/// Changes kept of one file, at most.
const MAX_STEPS: usize = 1 << 20;

/// One change: a write, a truncation, a hole.
pub struct Step {
    /// Where its bytes begin.
    at: u64,
    /// How many it wrote; none of a truncation.
    written: u64,
    /// Length of the file before it.
    size: u64,
    /// What was at `at` before it, as far as the file went.
    old: Vec<u8>,
}

impl Step {
    /// Before `length` bytes at `at` are changed. `None`: more would have to be kept than is allowed.
    ///
    /// # Errors
    /// The system's.
    pub fn before(file: &File, at: u64, length: u64) -> io::Result<Option<Self>> {
        let size = file.metadata()?.len();
        let length = length.min(size.saturating_sub(at));
        if length > MAX_KEPT {
            return Ok(None);
        }
        let mut old = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut old, at)?;
        Ok(Some(Self { at, written: 0, size, old }))
    }

    /// It wrote so many bytes, beginning where it begins.
    #[must_use]
    pub fn wrote(self, written: u64) -> Self {
        Self { written, ..self }
    }

    fn undo(&self, file: &File) -> io::Result<()> {
        file.set_len(self.size)?;
        file.write_all_at(&self.old, self.at)
    }

    /// Leaves only the first bytes of what it wrote. It must be the last change of the file.
    fn cut(&self, file: &File, first: u64) -> io::Result<()> {
        let mut kept = vec![0; usize::try_from(first).unwrap_or_default()];
        file.read_exact_at(&mut kept, self.at)?;
        self.undo(file)?;
        file.write_all_at(&kept, self.at)
    }
}

/// The changes of a file since its last sync.
pub struct Unsynced {
    node: Arc<Node>,
    steps: Vec<Step>,
    kept: u64,
    /// Bytes that they wrote.
    pub bytes: u64,
}

impl Unsynced {
    /// None yet.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, steps: Vec::new(), kept: 0, bytes: 0 }
    }

    /// Adds a change. False: it is too much to be kept, and everything so far counts as written out.
    #[must_use]
    pub fn push(&mut self, step: Step) -> bool {
        self.kept += step.old.len() as u64;
        self.bytes += step.written;
        self.steps.push(step);
        self.kept <= MAX_KEPT && self.steps.len() <= MAX_STEPS
    }

    /// The file has no name any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.node.stat().is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Takes every change back. How many bytes are lost.
    ///
    /// # Errors
    /// The system's: the backing file can't be written.
    pub fn lose(self) -> io::Result<u64> {
        self.steps.iter().rev().try_for_each(|step| step.undo(&self.node.file))?;
        Ok(self.bytes)
    }

    /// Takes some changes back, the last ones, and cuts the one before them. How many bytes are lost.
    ///
    /// # Errors
    /// The system's: the backing file can't be written.
    pub fn tear(mut self, random: &mut Random) -> io::Result<u64> {
        let whole = random.index(self.steps.len() + 1);
        let mut lost = 0;
        while self.steps.len() > whole {
            let Some(step) = self.steps.pop() else { break };
            let first = if self.steps.len() == whole { random.below(step.written) } else { 0 };
            step.cut(&self.node.file, first)?;
            lost += step.written - first;
        }
        Ok(lost)
    }
}
