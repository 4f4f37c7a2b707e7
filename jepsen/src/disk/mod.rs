//! A server's disk that can lose power: a file system of our own (FUSE) over a folder, which forgets what was not synced.
//!
//! `node` holds a file or folder, `content` and `names` know how unsynced changes are taken back, `state` is the disk,
//! `served` answers the kernel, `commands` obeys the harness. The file system is served by a process of its own, this
//! program with [`SUBCOMMAND`]: the harness never waits for itself, and a harness that is killed takes it along (it ends
//! when its standard input does, and unmounts first). Of a disk process that is killed the mount is left, dead: it is
//! named [`NAME`], as the harness' other disks are, and `umount -l` takes it away.
//!
//! INVARIANT: what was synced, and answered so, survives [`Disk::command`] `lose` and `tear`; of what was not, `lose` keeps
//! nothing. What the rules promise, and what they don't cover, is said in `content` and `names`; in short:
//! modes, owners and times are durable at once; writes reach the disk in their order; the server does not map files.

mod commands;
mod content;
mod names;
mod node;
mod served;
mod state;
#[cfg(test)]
mod tests;

use anyhow::{Context as _, bail, ensure};
use fuser::{Config, MountOption, Session};
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use served::{Served, Shared};
use state::State;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What the mount is called in /proc/self/mounts.
pub const NAME: &str = "fairlead-jepsen";
/// The hidden subcommand that serves a disk; then come [`serve`]'s three paths.
pub const SUBCOMMAND: &str = "disk";
/// In the backing folder: what the disk holds.
const LIVE: &str = "live";
/// In the backing folder: what was taken away and may come back.
const REMOVED: &str = "removed";
/// Time for a disk to be there.
const START: Duration = Duration::from_secs(10);
/// Time for an answer: a file that is taken back may be long.
const ANSWER: Duration = Duration::from_secs(30);
/// Time for a disk that is unmounted to end by itself.
const END: Duration = Duration::from_secs(5);

/// A mounted disk; it is taken away when this is dropped.
pub struct Disk {
    at: PathBuf,
    socket: PathBuf,
    child: Child,
}

impl Disk {
    /// Mounts a disk. What it holds is in `live` of the folder `backing`, which is made if it isn't there and is not to be
    /// below `at`. The path of `socket` has to be shorter than 108 bytes (unix(7)). Needs root and /dev/fuse.
    ///
    /// # Errors
    /// It can't be mounted.
    pub fn mount(at: &Path, backing: &Path, socket: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SUBCOMMAND).args([at, backing, socket]);
        Self::mount_by(command, at, socket)
    }

    /// By a command that comes to [`serve`].
    pub(crate) fn mount_by(mut command: Command, at: &Path, socket: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(at).with_context(|| at.display().to_string())?;
        let at = at.canonicalize()?;
        // A group of its own: what a terminal sends to the harness must not reach it.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let _ = fs::remove_file(socket);
        let child = command.spawn().context("a disk's process can't be started")?;
        let mut disk = Self { at, socket: socket.to_owned(), child };
        let deadline = Instant::now() + START;
        while disk.command("stats").is_err() {
            if let Some(status) = disk.child.try_wait()? {
                bail!("no disk on {}: {status}", disk.at.display());
            }
            ensure!(Instant::now() < deadline, "no disk on {} in time", disk.at.display());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(disk)
    }

    /// Tells the disk to do something: see the table of commands. The server must not run when power is lost.
    ///
    /// # Errors
    /// Why it doesn't.
    pub fn command(&self, words: &str) -> anyhow::Result<String> {
        let mut connection = UnixStream::connect(&self.socket).with_context(|| self.socket.display().to_string())?;
        connection.set_read_timeout(Some(ANSWER))?;
        connection.write_all(format!("{words}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(connection).read_line(&mut answer)?;
        let answer = answer.trim_end();
        ensure!(!answer.is_empty(), "{words}: no answer");
        match answer.strip_prefix("error: ") {
            Some(why) => bail!("{words}: {why}"),
            None => Ok(answer.to_owned()),
        }
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.at);
        // Its standard input is held until it has ended: it must not unmount what is below.
        if self.wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // It may have mounted only now.
        detach(&self.at);
        let _ = fs::remove_file(&self.socket);
    }
}

/// Takes a disk of ours away from a place, if there is one.
fn detach(at: &Path) {
    if is_mounted(at) {
        let _ = umount2(at, MntFlags::MNT_DETACH);
    }
}

/// The last thing that is mounted on a place is a disk of ours.
fn is_mounted(at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut there = mounts.lines().filter(|line| line.split(' ').nth(1).is_some_and(|place| Path::new(place) == at));
    there.next_back().is_some_and(|line| line.starts_with(NAME) && line.split(' ').nth(2) == Some("fuse"))
}

/// Serves a disk, until it is unmounted or the standard input ends.
///
/// # Errors
/// It can't be mounted, or the socket can't be made.
pub fn serve(at: &Path, backing: &Path, socket: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(backing).with_context(|| backing.display().to_string())?;
    let (at, backing) = (at.canonicalize()?, backing.canonicalize()?);
    ensure!(!backing.starts_with(&at) && !at.starts_with(&backing), "a disk can't be over itself");
    ensure!(!at.to_string_lossy().contains([' ', '\t', '\n', '\\']), "a mount's path must not need to be escaped");
    let (live, removed) = (backing.join(LIVE), backing.join(REMOVED));
    if removed.exists() {
        fs::remove_dir_all(&removed)?;
    }
    [&live, &removed].into_iter().try_for_each(fs::create_dir_all)?;
    umask(Mode::empty());
    // Each file and folder that the kernel remembers is held open.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;

    let shared = Arc::new(Shared::new(State::new(&live, &removed)?));
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(NAME.to_owned()), MountOption::NoAtime];
    let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
    let session = Session::new(Served(shared.clone()), &at, &config).context("it can't be mounted")?;
    thread::Builder::new().spawn(move || commands::listen(&listener, &shared))?;
    thread::Builder::new().spawn(move || end_with_input(&at))?;
    session.run().context("it is no longer served")
}

/// Whoever started this process is gone when its standard input ends.
fn end_with_input(at: &Path) {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    detach(at);
    std::process::exit(0);
}
