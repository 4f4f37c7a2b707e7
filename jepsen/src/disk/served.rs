//! The disk as FUSE asks for it (linux/fuse.h). Nothing is cached by the kernel: files are opened with `FOPEN_DIRECT_IO` and
//! names and attributes are valid for no time, so that nothing that was lost is seen again.

use super::state::State;
use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
/// Longest name, if the backing file system doesn't say.
const NAME: u32 = 255;

/// A disk, and who waits for a sync of it.
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Of a disk.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The disk. One whose holder panicked is whole: see the invariant of `state`.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Faults changed, or power was lost: slow syncs look again.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    /// A sync that takes a while: over early when disks are no longer slow, and an error when power is lost meanwhile.
    fn sync_slowly(&self, number: u64, (delay, power_cuts): (Duration, u64)) -> io::Result<()> {
        let goes_on = |state: &mut State| state.power_cuts == power_cuts && !state.faults.sync_delay.is_zero();
        let waited = self.changed.wait_timeout_while(self.state(), delay, goes_on);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.power_cuts == power_cuts { state.sync(number) } else { Err(nix::errno::Errno::EIO.into()) }
    }
}

/// What FUSE is given.
pub struct Served(pub Arc<Shared>);

/// What a request sets of a node.
#[derive(Default)]
struct Wanted {
    mode: Option<u32>,
    owner: (Option<u32>, Option<u32>),
    size: Option<u64>,
    times: (Option<TimeOrNow>, Option<TimeOrNow>),
}

fn time(wanted: Option<TimeOrNow>) -> TimeSpec {
    match wanted {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(at)) => since_epoch(at),
    }
}

fn since_epoch(at: SystemTime) -> TimeSpec {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => TimeSpec::from_duration(since),
        Err(before) => {
            let before = before.duration();
            let part = i64::from(before.subsec_nanos());
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            if part == 0 { TimeSpec::new(seconds, 0) } else { TimeSpec::new(seconds - 1, 1_000_000_000 - part) }
        }
    }
}

fn done(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn entry(reply: ReplyEntry, found: io::Result<FileAttr>) {
    match found {
        Ok(attributes) => reply.entry(&TTL, &attributes, GENERATION),
        Err(error) => reply.error(error.into()),
    }
}

impl Served {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    fn set(&self, number: u64, wanted: Wanted) -> io::Result<FileAttr> {
        let mut state = self.state();
        if let Some(size) = wanted.size {
            state.truncate(number, size)?;
        }
        let node = state.to_set(number)?;
        if let Some(mode) = wanted.mode {
            fchmod(&node.file, Mode::from_bits_truncate(mode))?;
        }
        if wanted.owner != (None, None) {
            fchown(&node.file, wanted.owner.0.map(Uid::from_raw), wanted.owner.1.map(Gid::from_raw))?;
        }
        if wanted.times.0.is_some() || wanted.times.1.is_some() {
            futimens(&node.file, &time(wanted.times.0), &time(wanted.times.1))?;
        }
        state.attributes(number)
    }

    /// Syncs, and says so; a slow disk does it on a thread of its own, and others are served meanwhile.
    fn sync(&self, number: u64, answer: impl FnOnce(io::Result<()>) + Send + 'static) {
        let mut state = self.state();
        state.counts.syncs += 1;
        let (delay, power_cuts) = (state.faults.sync_delay, state.power_cuts);
        if delay.is_zero() {
            let result = state.sync(number);
            drop(state);
            return answer(result);
        }
        drop(state);
        let shared = self.0.clone();
        let slowly = move || answer(shared.sync_slowly(number, (delay, power_cuts)));
        // Without a thread the request is dropped: FUSE is answered with EIO then.
        let _ = std::thread::Builder::new().name("sync".to_owned()).spawn(slowly);
    }
}

impl Filesystem for Served {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.state().lookup(parent.0, name));
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.state().forget(ino.0, nlookup);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.set(ino.0, Wanted { mode, owner: (uid, gid), size, times: (atime, mtime) }) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        entry(reply, self.state().mkdir(parent.0, name, mode));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.state().unlink(parent.0, name));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.state().rmdir(parent.0, name));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let replace = flags.is_empty();
        done(reply, self.state().rename((parent.0, name), (newparent.0, newname), replace));
    }

    fn link(&self, _request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        entry(reply, self.state().link(ino.0, newparent.0, newname));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.state().create(parent.0, name, mode) {
            Ok(attributes) => {
                reply.created(&TTL, &attributes, GENERATION, FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state().read(ino.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let flags = OFlag::from_bits_truncate(flags.0);
        let at = if flags.contains(OFlag::O_APPEND) { None } else { Some(offset) };
        let written = self.state().write(ino.0, at, data);
        match written {
            Ok(written) if flags.contains(OFlag::O_DSYNC) => self.sync(ino.0, move |synced| match synced {
                Ok(()) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
                Err(error) => reply.error(error.into()),
            }),
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error.into()),
        }
    }

    /// Closing a file makes nothing durable: the kernel is told that it need not ask.
    fn flush(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// With or without `datasync`: a length that changed is needed to read the content, so both keep all of it.
    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, move |result| done(reply, result));
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, move |result| done(reply, result));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.state().list(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.state().listed(fh.0, offset) {
            Ok(listed) => {
                for (entry, next) in listed.iter().zip(offset.saturating_add(1)..) {
                    if reply.add(INodeNo(entry.number), next, entry.kind, &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.state().unlist(fh.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let state = self.state();
        let (found, held) = match state.room_left() {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        let room = |blocks: u64| if state.faults.full { 0 } else { blocks.saturating_add(held) };
        let (free, available) = (room(found.blocks_free()), room(found.blocks_available()));
        let (block, fragment) = (found.block_size(), found.fragment_size());
        reply.statfs(
            found.blocks(),
            free,
            available,
            found.files(),
            found.files_free(),
            u32::try_from(block).unwrap_or(4096),
            u32::try_from(found.name_max()).unwrap_or(NAME),
            u32::try_from(fragment).unwrap_or(4096),
        );
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        done(reply, self.state().allocate(ino.0, (offset, length), mode));
    }
}
