//! A file or folder of the backing folder, held by an open descriptor: it stays the same one when it is renamed, replaced or
//! unlinked.

use fuser::{FileAttr, FileType, INodeNo};
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The number of the topmost folder (FUSE's `FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;

/// Something with an inode.
pub struct Node {
    /// Its number: the backing file system's, or [`ROOT`]. It is not used again while this is held.
    pub number: u64,
    /// Files are open for reading and writing, folders for reading, anything else only as a path.
    pub file: File,
    /// What it is.
    pub kind: FileType,
}

impl Node {
    /// The topmost folder.
    ///
    /// # Errors
    /// The system's.
    pub fn root(path: &Path) -> io::Result<Self> {
        let file = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { number: ROOT, file: file.into(), kind: FileType::Directory })
    }

    /// What a folder has by this name.
    ///
    /// # Errors
    /// The system's.
    pub fn open(dir: &Self, name: &OsStr) -> io::Result<Self> {
        let stat = fstatat(&dir.file, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = kind(&stat);
        let how = match kind {
            FileType::RegularFile => OFlag::O_RDWR,
            FileType::Directory => OFlag::O_RDONLY | OFlag::O_DIRECTORY,
            _ => OFlag::O_PATH,
        };
        let file = openat(&dir.file, name, how | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { number: stat.st_ino, file: file.into(), kind })
    }

    /// A new file.
    ///
    /// # Errors
    /// The system's.
    pub fn create(dir: &Self, name: &OsStr, mode: u32) -> io::Result<Self> {
        let how = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file: File = openat(&dir.file, name, how, Mode::from_bits_truncate(mode))?.into();
        let number = fstat(&file)?.st_ino;
        Ok(Self { number, file, kind: FileType::RegularFile })
    }

    /// What the backing file system says of it.
    ///
    /// # Errors
    /// The system's.
    pub fn stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.file)?)
    }

    /// Bytes that it holds.
    ///
    /// # Errors
    /// The system's.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// A path that leads to it, whatever its name is by now.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// As FUSE wants to know it; `unlinked` names of it are only kept to be brought back.
    ///
    /// # Errors
    /// The system's.
    pub fn attributes(&self, unlinked: u32) -> io::Result<FileAttr> {
        let stat = self.stat()?;
        Ok(FileAttr {
            ino: INodeNo(self.number),
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            crtime: UNIX_EPOCH,
            kind: self.kind,
            perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX).saturating_sub(unlinked),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: u32::try_from(stat.st_rdev).unwrap_or_default(),
            blksize: 4096,
            flags: 0,
        })
    }
}

fn kind(stat: &FileStat) -> FileType {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => FileType::Directory,
        SFlag::S_IFLNK => FileType::Symlink,
        SFlag::S_IFIFO => FileType::NamedPipe,
        SFlag::S_IFSOCK => FileType::Socket,
        SFlag::S_IFCHR => FileType::CharDevice,
        SFlag::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let part = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default());
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + part,
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + part,
    }
}
