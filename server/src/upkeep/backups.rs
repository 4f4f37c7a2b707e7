//! Backups by the clock: the whole state as a file, now and then, in a folder of the member that was told so; the oldest
//! beyond a number go.
//!
//! INVARIANT: a file that has its name is whole and synced, and only files of this very member and cluster are removed.

use crate::controller::lease::Alarms;
use crate::raft::Consensus;
use crate::storage::backup;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

const SUFFIX: &str = ".snapshot";
const ASIDE: &str = ".partial";
/// Between two looks whether one is due, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1));
/// Time for a quorum to confirm that the state is the newest.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);

/// When and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Folder, made if it isn't there.
    pub folder: PathBuf,
    /// Between two backups.
    pub every: Duration,
    /// Newest ones kept; at least one is.
    pub keep: usize,
}

/// Whose backups these are.
struct Owner {
    /// What its files' names begin with.
    prefix: String,
}

/// A backup in the folder. Ordered by time, as its name is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    name: String,
    revision: u64,
}

impl Owner {
    fn new(cluster: &str, member: &str) -> Self {
        Self { prefix: format!("fairlead-{cluster}-{member}-") }
    }

    /// The name of a backup: its time, to the second, and its revision.
    fn name(&self, at: jiff::Timestamp, revision: u64) -> String {
        format!("{}{}-r{revision}{SUFFIX}", self.prefix, at.strftime("%Y%m%dT%H%M%SZ"))
    }

    /// The backup of a name, if it is one of ours.
    fn parse(&self, name: &str) -> Option<Kept> {
        let rest = name.strip_prefix(&self.prefix)?.strip_suffix(SUFFIX)?;
        let (time, revision) = rest.split_once("-r")?;
        let is_time = time.len() == 16 && time.bytes().all(|byte| byte.is_ascii_digit() || b"TZ".contains(&byte));
        Some(Kept { name: name.to_owned(), revision: revision.parse().ok().filter(|_| is_time)? })
    }
}

/// What has to go so that `keep` stay. Oldest first.
fn surplus(mut kept: Vec<Kept>, keep: usize) -> Vec<Kept> {
    kept.sort();
    kept.truncate(kept.len().saturating_sub(keep.max(1)));
    kept
}

/// Makes backups until cancelled.
pub async fn run(consensus: Consensus, schedule: Schedule, alarms: Arc<Alarms>, cancel: CancellationToken) {
    let look = (schedule.every / 10).clamp(LOOK.1, LOOK.0);
    loop {
        let done = tokio::select! {
            () = cancel.cancelled() => return,
            done = once(&consensus, &schedule) => done,
        };
        let folder = schedule.folder.display();
        let failed = |error| format!("{}: no backup can be made in {folder}: {error}", consensus.status().name);
        alarms.set("backup", done.err().map(failed));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(look) => {}
        }
    }
}

/// Makes a backup if one is due.
async fn once(consensus: &Consensus, schedule: &Schedule) -> Result<(), String> {
    let cluster = consensus.local().state.settings().cluster_id.clone();
    if cluster.is_empty() {
        return Ok(()); // There is nothing yet.
    }
    let owner = Owner::new(&cluster, &consensus.status().name);
    let folder = schedule.folder.clone();
    let kept = list(&folder, &owner).map_err(|error| error.to_string())?;
    let newest = kept.iter().max().cloned();
    // A file of a time that is still to come says nothing: the clock was wrong.
    if kept.iter().filter_map(|one| age(&folder.join(&one.name))).any(|age| age < schedule.every) {
        return Ok(());
    }
    let confirmed = tokio::time::timeout(CONFIRMED_WITHIN, consensus.read()).await;
    confirmed.map_err(|_| "no quorum confirms what is newest".to_owned())?.map_err(|error| error.to_string())?;
    let (view, position) = consensus.position();
    let revision = view.state.revision();
    let keep = schedule.keep;
    let work = move || -> io::Result<()> {
        if let Some(newest) = newest.filter(|newest| newest.revision == revision) {
            // Nothing has changed: it is as good as a new one.
            return File::open(folder.join(newest.name))?.set_modified(SystemTime::now());
        }
        let name = owner.name(jiff::Timestamp::now(), revision);
        write(&folder, &name, |file| backup::write(file, &view, position))?;
        tracing::info!(revision, file = %folder.join(&name).display(), "backup made");
        for gone in surplus(list(&folder, &owner)?, keep) {
            fs::remove_file(folder.join(gone.name))?;
        }
        Ok(())
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// The backups of a member; what is left of unfinished ones is removed.
fn list(folder: &Path, owner: &Owner) -> io::Result<Vec<Kept>> {
    if !folder.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        // What a crash cut short; this member writes one at a time.
        if name.strip_suffix(ASIDE).is_some_and(|whole| owner.parse(whole).is_some()) {
            fs::remove_file(folder.join(name))?;
        }
        kept.extend(owner.parse(name));
    }
    Ok(kept)
}

/// Time since a file was written; `None` if that can't be told, or is to come.
fn age(file: &Path) -> Option<Duration> {
    fs::metadata(file).and_then(|metadata| metadata.modified()).ok()?.elapsed().ok()
}

/// Writes a file that only its owner may read: aside, synced, and then named. It holds the authorities' keys.
fn write(folder: &Path, name: &str, fill: impl Fn(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
    let aside = folder.join(format!("{name}{ASIDE}"));
    let written = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        let mut writer = BufWriter::with_capacity(256 * 1024, &file);
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.sync_all()?;
        fs::rename(&aside, folder.join(name))?;
        File::open(folder)?.sync_all()
    };
    written().inspect_err(|_| drop(fs::remove_file(&aside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_oldest_go() {
        let owner = Owner::new("c1", "n1");
        let at = |second: i64| jiff::Timestamp::from_second(1_800_000_000 + second).unwrap();
        let names: Vec<String> =
            (0..5).map(|round| owner.name(at(round * 100_000), 7 + u64::from(round % 2 == 0))).collect();
        assert_eq!(names[0], "fairlead-c1-n1-20270115T080000Z-r8.snapshot");
        let kept: Vec<Kept> = names.iter().rev().map(|name| owner.parse(name).unwrap()).collect();
        let gone = |keep: usize| surplus(kept.clone(), keep).into_iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!(gone(3), names[..2]);
        assert_eq!(gone(9), [""; 0]);
        assert_eq!(gone(0), names[..4], "one stays");
        for other in [
            "fairlead-c1-n2-20270115T080000Z-r8.snapshot",
            "fairlead-c2-n1-20270115T080000Z-r8.snapshot",
            "fairlead-c1-n1-b-20270115T080000Z-r8.snapshot",
            "fairlead-c1-n1-20270115T080000Z-r8.snapshot.partial",
            "fairlead-c1-n1-before-r8.snapshot",
            "notes.txt",
        ] {
            assert_eq!(owner.parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_wrong_clock_stops_no_backups_and_a_crash_leaves_none_behind() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner::new("c1", "n1");
        let name = "fairlead-c1-n1-20990115T080000Z-r8.snapshot";
        let others = "fairlead-c1-n2-20270115T080000Z-r8.snapshot.partial";
        for name in [name, others, "fairlead-c1-n1-20270115T080000Z-r8.snapshot.partial"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(list(dir.path(), &owner).unwrap().len(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "another member's stays");
        assert!(age(&dir.path().join(name)).is_some());
        let future = SystemTime::now() + Duration::from_secs(1_000_000);
        File::open(dir.path().join(name)).unwrap().set_modified(future).unwrap();
        assert_eq!(age(&dir.path().join(name)), None);
    }

    #[test]
    fn a_backup_that_could_not_be_written_leaves_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let full = |_: &mut BufWriter<&File>| Err(io::Error::other("no space left"));
        assert!(write(dir.path(), "a", full).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        write(dir.path(), "a", |file| file.write_all(b"x")).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"x");
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
