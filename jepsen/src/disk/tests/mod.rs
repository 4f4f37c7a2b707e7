//! Disks that are really mounted, in memory: these need root and /dev/fuse. A disk, and a program that is killed, is this
//! test binary with one of its tests and some paths.

mod faults;
mod laws;
mod life;
mod model;
mod names;

use super::{Disk, is_mounted, serve};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// In memory.
const MEMORY: &str = "/dev/shm";
const PATHS: &str = "FAIRLEAD_JEPSEN_TEST";

/// A disk and its folder; the disk goes first.
pub(crate) struct Mounted {
    pub(crate) disk: Disk,
    pub(crate) dir: TempDir,
}

/// This program, as one of its tests, with some paths.
fn own(test: &str, paths: &[&Path]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("disk::tests::{test}"), "--nocapture", "--test-threads=1"]);
    command.env(PATHS, serde_json::to_string(paths).unwrap());
    command
}

/// The paths, if this is such a program.
fn paths() -> Option<Vec<PathBuf>> {
    Some(serde_json::from_str(&std::env::var(PATHS).ok()?).unwrap())
}

/// A program of other tests: a disk's process. By itself it does nothing.
#[test]
fn serves_a_disk_when_told_to() {
    if let Some(paths) = paths() {
        serve(&paths[0], &paths[1], &paths[2]).unwrap();
    }
}

fn mount(dir: &Path) -> Disk {
    assert!(nix::unistd::geteuid().is_root(), "a mount needs root: sudo make test");
    let (at, backing, socket) = (dir.join("at"), dir.join("backing"), dir.join("socket"));
    Disk::mount_by(own("serves_a_disk_when_told_to", &[&at, &backing, &socket]), &at, &socket).unwrap()
}

impl Mounted {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in(MEMORY).unwrap();
        Self { disk: mount(dir.path()), dir }
    }

    /// Something on it.
    pub(crate) fn on(&self, name: &str) -> PathBuf {
        self.dir.path().join("at").join(name)
    }

    fn tell(&self, words: &str) {
        assert_eq!(self.disk.command(words).unwrap(), "ok");
    }

    fn stat(&self, name: &str) -> u64 {
        let stats: serde_json::Value = serde_json::from_str(&self.disk.command("stats").unwrap()).unwrap();
        stats[name].as_u64().unwrap()
    }

    fn sync_dir(&self, name: &str) {
        File::open(self.on(name)).unwrap().sync_all().unwrap();
    }

    /// Names in a folder, in order.
    fn names(&self, name: &str) -> Vec<String> {
        names(&self.on(name))
    }

    /// A file with a content, both durable.
    fn durable(&self, name: &str, content: &[u8]) -> File {
        let file = new(&self.on(name));
        file.write_all_at(content, 0).unwrap();
        file.sync_all().unwrap();
        File::open(self.on(name).parent().unwrap()).unwrap().sync_all().unwrap();
        file
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn new(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn errno<T>(result: std::io::Result<T>) -> Option<nix::errno::Errno> {
    result.err().map(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap()))
}
