//! Disks come and go, and programs that use them are killed.

use super::*;
use crate::random::Random;
use nix::errno::Errno;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout};
use std::thread;
use std::time::{Duration, Instant};

const RECORD: usize = 100;

/// A record of a log: its number, again and again.
fn record(number: u64) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(RECORD).collect()
}

/// A program of other tests: it appends records and says which are synced. By itself it does nothing.
#[test]
fn appends_until_it_is_killed() {
    let Some(paths) = paths() else { return };
    let (mut file, synced) =
        (OpenOptions::new().append(true).open(&paths[0]).unwrap(), paths[1] == Path::new("synced"));
    let mut number = file.metadata().unwrap().len() / RECORD as u64;
    loop {
        std::io::Write::write_all(&mut file, &record(number)).unwrap();
        if synced {
            file.sync_data().unwrap();
        }
        println!("\nacknowledged {number}");
        number += 1;
    }
}

fn next_acknowledged(from: &mut BufReader<ChildStdout>) -> u64 {
    loop {
        let mut line = String::new();
        assert!(from.read_line(&mut line).unwrap() > 0, "the program ended");
        if let Some(number) = line.trim().strip_prefix("acknowledged ") {
            return number.parse().unwrap();
        }
    }
}

fn kill(mut program: Child) {
    program.kill().unwrap();
    program.wait().unwrap();
}

/// Runs the program for some records, kills it, and has power lost; the last record that it acknowledged.
fn run_and_lose(mounted: &Mounted, (how, word): (&str, &str), records: u64) -> u64 {
    let mut program = own("life::appends_until_it_is_killed", &[&mounted.on("log"), Path::new(how)]);
    let mut program = program.stdout(Stdio::piped()).spawn().unwrap();
    let mut from = BufReader::new(program.stdout.take().unwrap());
    let mut last = next_acknowledged(&mut from);
    for _ in 0..records {
        last = next_acknowledged(&mut from);
    }
    kill(program);
    // What it said before it was killed counts too.
    while let Some(Ok(line)) = (&mut from).lines().next() {
        if let Some(number) = line.trim().strip_prefix("acknowledged ").and_then(|number| number.parse().ok()) {
            last = number;
        }
    }
    mounted.tell(word);
    last
}

/// Opens the log as a database does: whole records from the beginning, what follows is cut off.
fn recover(path: &Path) -> u64 {
    let content = fs::read(path).unwrap();
    let whole = content.chunks(RECORD).zip(0..).take_while(|(found, number)| *found == record(*number)).count() as u64;
    let file = open(path);
    file.set_len(whole * RECORD as u64).unwrap();
    file.sync_all().unwrap();
    whole
}

#[test]
fn a_log_has_every_record_that_was_acknowledged_wherever_its_writer_was_killed() {
    let mounted = Mounted::new();
    mounted.durable("log", b"");
    let mut random = Random::new(7);
    for round in 0..12 {
        let word = if round % 2 == 0 { "lose".to_owned() } else { format!("tear {round}") };
        let last = run_and_lose(&mounted, ("synced", &word), random.below(200));
        let whole = recover(&mounted.on("log"));
        assert!(whole > last, "round {round}: {last} was acknowledged, {whole} are there");
    }
}

#[test]
fn a_log_that_is_not_synced_loses_what_was_acknowledged() {
    let mounted = Mounted::new();
    mounted.durable("log", b"");
    let last = run_and_lose(&mounted, ("not", "lose"), 100);
    assert!(last >= 100);
    assert_eq!(recover(&mounted.on("log")), 0);
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_unmounted_disk_leaves_nothing_but_its_folder() {
    let mounted = Mounted::new();
    let (at, socket) = (mounted.on(""), mounted.dir.path().join("socket"));
    mounted.durable("a", b"1");
    let process = PathBuf::from(format!("/proc/{}", mounted.disk.child.id()));
    let held = File::open(mounted.on("a")).unwrap();
    assert!(is_mounted(&at.canonicalize().unwrap()) && process.exists() && socket.exists());
    let Mounted { disk, dir } = mounted;
    drop(held);
    drop(disk);
    assert!(!is_mounted(&dir.path().join("at")) && !process.exists() && !socket.exists());
    assert_eq!(names(&dir.path().join("at")), [""; 0]);
    assert_eq!(fs::read(dir.path().join("backing/live/a")).unwrap(), b"1");
    let again = Mounted { disk: mount(dir.path()), dir };
    assert_eq!(fs::read(again.on("a")).unwrap(), b"1");
}

#[test]
fn a_disk_is_unmounted_while_files_are_open_and_by_a_test_that_fails() {
    let (send, receive) = std::sync::mpsc::channel();
    let failing = thread::spawn(move || {
        let mounted = Mounted::new();
        let held = mounted.durable("a", b"1");
        send.send((mounted.dir.path().join("at"), mounted.disk.child.id(), held)).unwrap();
        std::panic::resume_unwind(Box::new("a test fails"));
    });
    let (at, process, held) = receive.recv().unwrap();
    assert!(failing.join().is_err());
    assert!(!is_mounted(&at) && !Path::new(&format!("/proc/{process}")).exists());
    assert!(held.metadata().is_err());
}

/// A program of other tests: a harness that is killed. By itself it does nothing.
#[test]
fn mounts_and_waits() {
    if let Some(paths) = paths() {
        let disk = mount(&paths[0]);
        println!("\nacknowledged {}", disk.child.id());
        thread::sleep(Duration::from_secs(60));
    }
}

/// Takes a disk away that should be gone by itself, if a test fails.
struct Gone<'a>(&'a Path);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        super::super::detach(self.0);
    }
}

#[test]
fn a_harness_that_is_killed_takes_its_disk_along() {
    let dir = tempfile::tempdir_in(MEMORY).unwrap();
    let mut harness = own("life::mounts_and_waits", &[dir.path()]).stdout(Stdio::piped()).spawn().unwrap();
    let process = next_acknowledged(&mut BufReader::new(harness.stdout.take().unwrap()));
    let at = dir.path().join("at");
    let _gone = Gone(&at);
    assert!(is_mounted(&at));
    kill(harness);
    wait_until("it is unmounted", || !is_mounted(&at));
    wait_until("its process ends", || !Path::new(&format!("/proc/{process}/exe")).exists());
}

#[test]
fn a_disk_whose_process_is_killed_is_dead_and_can_be_taken_away() {
    let mut mounted = Mounted::new();
    let at = mounted.dir.path().join("at");
    mounted.disk.child.kill().unwrap();
    mounted.disk.child.wait().unwrap();
    assert!(is_mounted(&at));
    assert_eq!(errno(fs::read_dir(&at)), Some(Errno::ENOTCONN));
    let Mounted { disk, dir: _dir } = mounted;
    drop(disk);
    assert!(!is_mounted(&at));
}

#[test]
fn only_disks_of_ours_are_taken_away() {
    let dir = tempfile::tempdir_in(MEMORY).unwrap();
    assert!(!is_mounted(dir.path()) && !is_mounted(Path::new(MEMORY)) && !is_mounted(Path::new("/proc")));
}

#[test]
fn a_disk_that_can_not_be_mounted_says_so() {
    let dir = tempfile::tempdir_in(MEMORY).unwrap();
    let (at, socket) = (dir.path().join("at"), dir.path().join("socket"));
    let mut command = own("serves_a_disk_when_told_to", &[&at, &at.join("below"), &socket]);
    command.stderr(Stdio::null());
    let begun = Instant::now();
    assert!(Disk::mount_by(command, &at, &socket).is_err());
    assert!(begun.elapsed() < Duration::from_secs(5) && !is_mounted(&at));
}
