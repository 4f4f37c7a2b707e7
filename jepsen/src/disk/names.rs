//! What unsynced changes of folders did (a name made, taken away, moved), and how they are taken back.
//!
//! The rule is that of fsync(2), no more: a name is durable when its *folder* is synced; the sync of a file alone does not
//! keep the name of a new file (most file systems do, none promises it), and a rename says nothing of the renamed file's
//! content (ext4's `auto_da_alloc` would). The sync of a folder makes durable every change of it and, as a journal would,
//! each earlier change on which one of those rests: that the folder was made, that the moved file was made elsewhere. A
//! rename between folders is one change: it is durable in both or in neither.
//!
//! LAW: after [`Names::undo`] to none every folder has the names of its last sync, or newer ones that another folder's
//! sync brought with it. What was taken away is kept in a folder of its own until that is durable.

use super::node::Node;
use nix::fcntl::{RenameFlags, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// A name in a folder.
#[derive(Clone)]
pub struct Place {
    /// The folder.
    pub dir: Arc<Node>,
    /// The name.
    pub name: OsString,
}

impl Place {
    fn key(&self) -> (u64, OsString) {
        (self.dir.number, self.name.clone())
    }

    fn unlink(&self, dir: bool) -> io::Result<()> {
        unlink(&self.dir.file, &self.name, dir)
    }
}

fn unlink(from: &File, name: &OsStr, dir: bool) -> io::Result<()> {
    let how = if dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
    Ok(unlinkat(from, name, how)?)
}

fn rename((from, name): (&File, &OsStr), (to, as_name): (&File, &OsStr)) -> io::Result<()> {
    Ok(renameat2(from, name, to, as_name, RenameFlags::RENAME_NOREPLACE)?)
}

fn is_dir(node: &Node) -> bool {
    node.kind == fuser::FileType::Directory
}

/// What was taken away, under a name of its own.
struct Kept {
    name: OsString,
    node: Arc<Node>,
}

enum Change {
    Made { at: Place, node: Arc<Node> },
    Removed { at: Place, kept: Kept },
    Moved { from: Place, to: Place, node: Arc<Node>, replaced: Option<Kept> },
}

impl Change {
    fn places(&self) -> [Option<&Place>; 2] {
        match self {
            Self::Made { at, .. } | Self::Removed { at, .. } => [Some(at), None],
            Self::Moved { from, to, .. } => [Some(from), Some(to)],
        }
    }

    /// What it makes, takes away or moves.
    fn nodes(&self) -> [Option<u64>; 2] {
        match self {
            Self::Made { node, .. } => [Some(node.number), None],
            Self::Removed { kept, .. } => [Some(kept.node.number), None],
            Self::Moved { node, replaced, .. } => [Some(node.number), replaced.as_ref().map(|kept| kept.node.number)],
        }
    }

    fn kept(&self) -> Option<&Kept> {
        match self {
            Self::Made { .. } => None,
            Self::Removed { kept, .. } => Some(kept),
            Self::Moved { replaced, .. } => replaced.as_ref(),
        }
    }
}

/// What changes that are to be durable touch: an earlier one that touches it too has to be durable before them.
#[derive(Default)]
struct Touched {
    names: HashSet<(u64, OsString)>,
    nodes: HashSet<u64>,
    folders: HashSet<u64>,
}

impl Touched {
    fn rests_on(&self, change: &Change) -> bool {
        let places = change.places();
        let mut places = places.iter().flatten();
        let mut nodes = change.nodes().into_iter().flatten();
        places.any(|place| self.names.contains(&place.key()) || self.nodes.contains(&place.dir.number))
            || nodes.any(|node| self.nodes.contains(&node) || self.folders.contains(&node))
    }

    fn add(&mut self, change: &Change) {
        self.nodes.extend(change.nodes().into_iter().flatten());
        for place in change.places().into_iter().flatten() {
            self.names.insert(place.key());
            self.folders.insert(place.dir.number);
        }
    }
}

/// The changes of all folders that are not durable yet, in their order.
pub struct Names {
    removed: File,
    next: u64,
    changes: Vec<Change>,
    /// How many names of a node are kept: it has so many fewer.
    unlinked: HashMap<u64, u32>,
}

impl Names {
    /// None yet; what is taken away goes to the folder `removed`.
    #[must_use]
    pub fn new(removed: File) -> Self {
        Self { removed, next: 0, changes: Vec::new(), unlinked: HashMap::new() }
    }

    /// How many changes are not durable.
    #[must_use]
    pub fn count(&self) -> usize {
        self.changes.len()
    }

    /// How many names of a node are only kept to be brought back.
    #[must_use]
    pub fn unlinked(&self, node: u64) -> u32 {
        self.unlinked.get(&node).copied().unwrap_or_default()
    }

    /// Bytes that would be free if everything were durable.
    #[must_use]
    pub fn held(&self) -> u64 {
        let kept = self.changes.iter().filter_map(Change::kept).filter_map(|kept| kept.node.stat().ok());
        kept.filter(|stat| stat.st_nlink == 1).map(|stat| u64::try_from(stat.st_blocks).unwrap_or_default() * 512).sum()
    }

    /// A file, folder or further name was made.
    pub fn made(&mut self, at: Place, node: Arc<Node>) {
        self.changes.push(Change::Made { at, node });
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&mut self, at: Place, node: Arc<Node>) -> io::Result<()> {
        let kept = self.keep(&at, node)?;
        self.changes.push(Change::Removed { at, kept });
        Ok(())
    }

    /// Moves a name; what had the new one is taken away.
    ///
    /// # Errors
    /// The system's.
    pub fn rename(&mut self, (from, to): (Place, Place), node: Arc<Node>, target: Option<Arc<Node>>) -> io::Result<()> {
        let replaced = target.map(|target| self.keep(&to, target)).transpose()?;
        if let Err(error) = rename((&from.dir.file, &from.name), (&to.dir.file, &to.name)) {
            if let Some(kept) = replaced {
                self.bring_back(&kept, &to)?;
            }
            return Err(error);
        }
        self.changes.push(Change::Moved { from, to, node, replaced });
        Ok(())
    }

    fn keep(&mut self, at: &Place, node: Arc<Node>) -> io::Result<Kept> {
        let name = OsString::from(self.next.to_string());
        self.next += 1;
        rename((&at.dir.file, &at.name), (&self.removed, &name))?;
        *self.unlinked.entry(node.number).or_default() += 1;
        Ok(Kept { name, node })
    }

    fn bring_back(&mut self, kept: &Kept, to: &Place) -> io::Result<()> {
        rename((&self.removed, &kept.name), (&to.dir.file, &to.name))?;
        self.no_longer(kept);
        Ok(())
    }

    fn no_longer(&mut self, kept: &Kept) {
        if let Some(count) = self.unlinked.get_mut(&kept.node.number) {
            *count -= 1;
            if *count == 0 {
                self.unlinked.remove(&kept.node.number);
            }
        }
    }

    /// A folder is synced.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&mut self, dir: u64) -> io::Result<()> {
        let mut touched = Touched::default();
        let (mut durable, mut left) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            let of_it = change.places().into_iter().flatten().any(|place| place.dir.number == dir);
            if of_it || touched.rests_on(&change) {
                touched.add(&change);
                durable.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        self.changes = left;
        durable.iter().try_for_each(|change| self.settle(change))
    }

    /// Every change is durable.
    ///
    /// # Errors
    /// The system's.
    pub fn sync_all(&mut self) -> io::Result<()> {
        std::mem::take(&mut self.changes).iter().try_for_each(|change| self.settle(change))
    }

    fn settle(&mut self, change: &Change) -> io::Result<()> {
        if let Some(kept) = change.kept() {
            unlink(&self.removed, &kept.name, is_dir(&kept.node))?;
            self.no_longer(kept);
        }
        Ok(())
    }

    /// Takes changes back, the last ones first, until so many are left; those are durable then. How many are lost.
    ///
    /// # Errors
    /// The system's.
    pub fn undo(&mut self, left: usize) -> io::Result<u64> {
        let mut lost = 0;
        while self.changes.len() > left {
            let Some(change) = self.changes.pop() else { break };
            match &change {
                Change::Made { at, node } => at.unlink(is_dir(node))?,
                Change::Removed { at, kept } => self.bring_back(kept, at)?,
                Change::Moved { from, to, replaced, .. } => {
                    rename((&to.dir.file, &to.name), (&from.dir.file, &from.name))?;
                    replaced.iter().try_for_each(|kept| self.bring_back(kept, to))?;
                }
            }
            lost += 1;
        }
        self.sync_all()?;
        Ok(lost)
    }
}
