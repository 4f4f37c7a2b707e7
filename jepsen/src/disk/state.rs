//! The disk: its files and folders as the server sees them, what of that is not durable, and what is wrong with it.
//!
//! INVARIANT: a change and what is needed to take it back are made under one lock: at any moment the disk can lose power.

use super::content::{Step, Unsynced};
use super::names::{Names, Place};
use super::node::{Node, ROOT};
use crate::random::Random;
use fuser::{FileAttr, FileType};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::sys::statvfs::{Statvfs, fstatvfs};
use nix::unistd::linkat;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What is wrong with the disk.
#[derive(Default)]
pub struct Faults {
    /// How long each sync takes.
    pub sync_delay: Duration,
    /// A sync answers EIO.
    pub fail_sync: bool,
    /// A write answers EIO.
    pub fail_write: bool,
    /// There is no room.
    pub full: bool,
}

/// What happened so far.
#[derive(Default)]
pub struct Counts {
    /// Writes.
    pub writes: u64,
    /// Bytes of them.
    pub written: u64,
    /// Syncs of files and folders that were asked for.
    pub syncs: u64,
    /// Bytes that were written, not synced, and lost.
    pub lost: u64,
    /// Changes of folders that were lost.
    pub lost_names: u64,
}

/// An entry of a folder.
pub struct Listed {
    /// Number of its node.
    pub number: u64,
    /// What it is.
    pub kind: FileType,
    /// Its name.
    pub name: OsString,
}

/// A node that the kernel knows, and how often it was told of it.
struct Known {
    node: Arc<Node>,
    told: u64,
}

/// Everything of a disk.
pub struct State {
    known: HashMap<u64, Known>,
    unsynced: BTreeMap<u64, Unsynced>,
    names: Names,
    listings: HashMap<u64, Vec<Listed>>,
    next_listing: u64,
    /// What is wrong.
    pub faults: Faults,
    /// What happened.
    pub counts: Counts,
    /// How often power was lost: a sync that was under way then keeps nothing.
    pub power_cuts: u64,
}

fn fail<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

impl State {
    /// A disk over two folders: what it holds, and what was taken away and may have to come back.
    ///
    /// # Errors
    /// The system's.
    pub fn new(live: &Path, removed: &Path) -> io::Result<Self> {
        let root = Known { node: Arc::new(Node::root(live)?), told: 1 };
        Ok(Self {
            known: HashMap::from([(ROOT, root)]),
            unsynced: BTreeMap::new(),
            names: Names::new(Node::root(removed)?.file),
            listings: HashMap::new(),
            next_listing: 1,
            faults: Faults::default(),
            counts: Counts::default(),
            power_cuts: 0,
        })
    }

    fn node(&self, number: u64) -> io::Result<Arc<Node>> {
        self.known.get(&number).map_or_else(|| fail(Errno::ESTALE), |known| Ok(known.node.clone()))
    }

    fn place(&self, dir: u64, name: &OsStr) -> io::Result<Place> {
        Ok(Place { dir: self.node(dir)?, name: name.to_owned() })
    }

    /// The kernel is about to be told of a node.
    fn tell(&mut self, node: Arc<Node>) -> io::Result<FileAttr> {
        let attributes = self.attributes_of(&node)?;
        self.known.entry(node.number).or_insert(Known { node, told: 0 }).told += 1;
        Ok(attributes)
    }

    fn attributes_of(&self, node: &Node) -> io::Result<FileAttr> {
        node.attributes(self.names.unlinked(node.number))
    }

    /// What a folder has by a name: the node that is known already, or a new one.
    fn find(&self, place: &Place) -> io::Result<Arc<Node>> {
        let stat = fstatat(&place.dir.file, place.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        match self.known.get(&stat.st_ino) {
            Some(known) => Ok(known.node.clone()),
            None => Ok(Arc::new(Node::open(&place.dir, &place.name)?)),
        }
    }

    /// What a folder has by a name.
    ///
    /// # Errors
    /// The system's; likewise below.
    pub fn lookup(&mut self, dir: u64, name: &OsStr) -> io::Result<FileAttr> {
        let node = self.find(&self.place(dir, name)?)?;
        self.tell(node)
    }

    /// The kernel forgot what it was told so many times.
    pub fn forget(&mut self, number: u64, times: u64) {
        let Some(known) = self.known.get_mut(&number).filter(|_| number != ROOT) else { return };
        known.told = known.told.saturating_sub(times);
        if known.told == 0 {
            self.known.remove(&number);
            if self.unsynced.get(&number).is_some_and(Unsynced::is_gone) {
                self.unsynced.remove(&number);
            }
        }
    }

    /// Attributes of a node.
    pub fn attributes(&self, number: u64) -> io::Result<FileAttr> {
        self.attributes_of(&*self.node(number)?)
    }

    /// A node whose mode, owner or times are to be set: these are durable at once.
    pub fn to_set(&self, number: u64) -> io::Result<Arc<Node>> {
        self.node(number)
    }

    fn room_for_a_name(&self) -> io::Result<()> {
        if self.faults.full { fail(Errno::ENOSPC) } else { Ok(()) }
    }

    /// A new file.
    pub fn create(&mut self, dir: u64, name: &OsStr, mode: u32) -> io::Result<FileAttr> {
        self.room_for_a_name()?;
        let at = self.place(dir, name)?;
        let node = Arc::new(Node::create(&at.dir, name, mode)?);
        self.names.made(at, node.clone());
        self.tell(node)
    }

    /// A new folder.
    pub fn mkdir(&mut self, dir: u64, name: &OsStr, mode: u32) -> io::Result<FileAttr> {
        self.room_for_a_name()?;
        let at = self.place(dir, name)?;
        mkdirat(&at.dir.file, name, Mode::from_bits_truncate(mode))?;
        let node = Arc::new(Node::open(&at.dir, name)?);
        self.names.made(at, node.clone());
        self.tell(node)
    }

    /// A further name of a file.
    pub fn link(&mut self, number: u64, dir: u64, name: &OsStr) -> io::Result<FileAttr> {
        self.room_for_a_name()?;
        let (node, at) = (self.node(number)?, self.place(dir, name)?);
        linkat(AT_FDCWD, &node.path(), &at.dir.file, name, AtFlags::AT_SYMLINK_FOLLOW)?;
        self.names.made(at, node.clone());
        self.tell(node)
    }

    /// Takes a file's name away.
    pub fn unlink(&mut self, dir: u64, name: &OsStr) -> io::Result<()> {
        let at = self.place(dir, name)?;
        let node = self.find(&at)?;
        if node.kind == FileType::Directory {
            return fail(Errno::EISDIR);
        }
        self.names.remove(at, node)
    }

    /// Takes an empty folder away.
    pub fn rmdir(&mut self, dir: u64, name: &OsStr) -> io::Result<()> {
        let at = self.place(dir, name)?;
        let node = self.find(&at)?;
        empty(&node)?;
        self.names.remove(at, node)
    }

    /// Moves a name.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> io::Result<()> {
        let (from, to) = (self.place(from.0, from.1)?, self.place(to.0, to.1)?);
        let node = self.find(&from)?;
        let target = match self.find(&to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found?),
        };
        // Two names of one file: the kernel doesn't ask, and both stay (rename(2)).
        match target.as_ref().map(|target| (node.kind, target.kind)) {
            Some(_) if !replace => return fail(Errno::EEXIST),
            Some((FileType::Directory, FileType::Directory)) => target.iter().try_for_each(|target| empty(target))?,
            Some((FileType::Directory, _)) => return fail(Errno::ENOTDIR),
            Some((_, FileType::Directory)) => return fail(Errno::EISDIR),
            Some(_) | None => {}
        }
        self.names.rename((from, to), node, target)
    }

    /// Reads a file, as far as it goes.
    pub fn read(&self, number: u64, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let (node, mut bytes) = (self.node(number)?, vec![0; length]);
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match node.file.read_at(rest, at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Writes to a file, at a place or at its end. How many bytes found room.
    pub fn write(&mut self, number: u64, at: Option<u64>, bytes: &[u8]) -> io::Result<usize> {
        self.counts.writes += 1;
        let node = self.node(number)?;
        let (length, size) = (bytes.len() as u64, node.size()?);
        let at = at.unwrap_or(size);
        self.room(at.saturating_add(length) > size)?;
        let step = Step::before(&node.file, at, length)?;
        let written = self.fit(&node, at, bytes)?;
        self.counts.written += written as u64;
        self.note(&node, step.map(|step| step.wrote(written as u64)));
        Ok(written)
    }

    fn room(&self, grows: bool) -> io::Result<()> {
        match (self.faults.fail_write, self.faults.full && grows) {
            (true, _) => fail(Errno::EIO),
            (_, true) => fail(Errno::ENOSPC),
            (false, false) => Ok(()),
        }
    }

    /// As many bytes as there is room for. What was taken away makes room first, as ext4 commits its journal for it.
    fn fit(&mut self, node: &Node, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let (mut written, mut tried) = (0, false);
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match node.file.write_at(rest, at + written as u64) {
                Ok(more) if more > 0 => written += more,
                Err(error) if error.raw_os_error() == Some(Errno::ENOSPC as i32) && !tried => {
                    tried = true;
                    self.names.sync_all()?;
                    self.forget_gone();
                }
                Err(error) if written == 0 => return Err(error),
                Ok(_) | Err(_) => break,
            }
        }
        Ok(written)
    }

    /// Keeps what takes a change of a file back.
    fn note(&mut self, node: &Arc<Node>, step: Option<Step>) {
        let unsynced = self.unsynced.entry(node.number).or_insert_with(|| Unsynced::new(node.clone()));
        if !step.is_some_and(|step| unsynced.push(step)) {
            self.unsynced.remove(&node.number);
        }
    }

    /// Sets the length of a file.
    pub fn truncate(&mut self, number: u64, to: u64) -> io::Result<()> {
        let node = self.node(number)?;
        let size = node.size()?;
        self.room(to > size)?;
        let step = Step::before(&node.file, to.min(size), size.saturating_sub(to))?;
        node.file.set_len(to)?;
        self.note(&node, step);
        Ok(())
    }

    /// fallocate(2): room for a file is not really reserved; a hole is made; other modes are not supported.
    pub fn allocate(&mut self, number: u64, (at, length): (u64, u64), mode: i32) -> io::Result<()> {
        let (node, how) = (self.node(number)?, FallocateFlags::from_bits_truncate(mode));
        let (size, end) = (node.size()?, at.saturating_add(length));
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if how == FallocateFlags::FALLOC_FL_KEEP_SIZE {
            return self.room(end > size);
        } else if how == hole {
            self.room(false)?;
            let step = Step::before(&node.file, at, length)?;
            let (Ok(at), Ok(length)) = (i64::try_from(at), i64::try_from(length)) else { return fail(Errno::EFBIG) };
            fallocate(&node.file, hole, at, length)?;
            self.note(&node, step);
            return Ok(());
        } else if !how.is_empty() || mode != 0 {
            return fail(Errno::EOPNOTSUPP);
        }
        if end > size { self.truncate(number, end) } else { self.room(false) }
    }

    /// A file's content, or a folder's names, are durable from here on, or the sync fails. What a file's failed sync did not
    /// write is gone: the kernel marks its pages clean, and the next sync finds nothing to write (LWN 752063).
    pub fn sync(&mut self, number: u64) -> io::Result<()> {
        let dir = self.node(number)?.kind == FileType::Directory;
        match (self.faults.fail_sync, dir) {
            (true, true) => fail(Errno::EIO),
            (true, false) => {
                if let Some(unsynced) = self.unsynced.remove(&number) {
                    self.counts.lost += unsynced.lose()?;
                }
                fail(Errno::EIO)
            }
            (false, true) => {
                let result = self.names.sync(number);
                self.forget_gone();
                result
            }
            (false, false) => {
                self.unsynced.remove(&number);
                Ok(())
            }
        }
    }

    /// Everything is durable as it is.
    pub fn sync_all(&mut self) -> io::Result<()> {
        self.unsynced.clear();
        self.names.sync_all()
    }

    /// Nothing has to be taken back of files that have no name left, not even one that may come back.
    fn forget_gone(&mut self) {
        self.unsynced.retain(|_, unsynced| !unsynced.is_gone());
    }

    /// Power is lost. Without chance nothing unsynced is kept, with it a part: of each file's changes and of the folders'
    /// changes, in their order, the first ones.
    pub fn lose(&mut self, mut chance: Option<Random>) -> io::Result<()> {
        self.power_cuts += 1;
        for unsynced in std::mem::take(&mut self.unsynced).into_values() {
            self.counts.lost += match &mut chance {
                Some(random) => unsynced.tear(random)?,
                None => unsynced.lose()?,
            };
        }
        let left = chance.map_or(0, |mut random| random.index(self.names.count() + 1));
        self.counts.lost_names += self.names.undo(left)?;
        Ok(())
    }

    /// Bytes that are not synced, and changes of folders that are not.
    #[must_use]
    pub fn unsynced(&self) -> (u64, usize) {
        (self.unsynced.values().map(|unsynced| unsynced.bytes).sum(), self.names.count())
    }

    /// Room on the disk, and how many of its blocks hold only what was taken away.
    pub fn room_left(&self) -> io::Result<(Statvfs, u64)> {
        let found = fstatvfs(&self.node(ROOT)?.file)?;
        let held = self.names.held() / found.fragment_size().max(1);
        Ok((found, held))
    }

    /// Lists a folder, to be read in pieces.
    pub fn list(&mut self, number: u64) -> io::Result<u64> {
        let node = self.node(number)?;
        let mut listed = vec![
            Listed { number, kind: FileType::Directory, name: ".".into() },
            Listed { number: ROOT, kind: FileType::Directory, name: "..".into() },
        ];
        for entry in std::fs::read_dir(node.path())? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            listed.push(Listed { number: entry.ino(), kind, name: entry.file_name() });
        }
        let handle = self.next_listing;
        self.next_listing += 1;
        self.listings.insert(handle, listed);
        Ok(handle)
    }

    /// What is listed from a place on.
    pub fn listed(&self, handle: u64, from: u64) -> io::Result<&[Listed]> {
        let Some(listed) = self.listings.get(&handle) else { return fail(Errno::EBADF) };
        Ok(usize::try_from(from).ok().and_then(|from| listed.get(from..)).unwrap_or_default())
    }

    /// A list is no longer read.
    pub fn unlist(&mut self, handle: u64) {
        self.listings.remove(&handle);
    }
}

fn empty(dir: &Node) -> io::Result<()> {
    if dir.kind != FileType::Directory {
        return fail(Errno::ENOTDIR);
    }
    if std::fs::read_dir(dir.path())?.next().is_some() { fail(Errno::ENOTEMPTY) } else { Ok(()) }
}
