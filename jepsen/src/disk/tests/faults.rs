//! Each command of a disk does what its table says.

use super::*;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn what_was_not_synced_is_gone_and_what_was_is_there() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"synced");
    file.write_all_at(b", not synced", 6).unwrap();
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"synced, not synced");
    assert_eq!(mounted.stat("unsynced"), 12);
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"synced");
    assert_eq!((mounted.stat("unsynced"), mounted.stat("lost")), (0, 12));
    file.write_all_at(b"!", 6).unwrap();
    file.sync_data().unwrap();
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"synced!");
}

#[test]
fn closing_a_file_makes_nothing_durable() {
    let mounted = Mounted::new();
    drop(mounted.durable("a", b"1"));
    fs::write(mounted.on("a"), b"2").unwrap();
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"1");
}

#[test]
fn the_harness_makes_everything_durable_at_once() {
    let mounted = Mounted::new();
    mounted.durable("a", b"1");
    mounted.durable("b", b"1");
    fs::write(mounted.on("a"), b"2").unwrap();
    fs::remove_file(mounted.on("b")).unwrap();
    mounted.tell("sync");
    mounted.tell("lose");
    assert_eq!(mounted.names(""), ["a"]);
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"2");
}

#[test]
fn a_file_opened_for_synchronous_writes_needs_no_sync() {
    let mounted = Mounted::new();
    mounted.durable("a", b"");
    for (flag, byte) in [(nix::fcntl::OFlag::O_DSYNC, b"d"), (nix::fcntl::OFlag::O_SYNC, b"s")] {
        let mut file = OpenOptions::new().append(true).custom_flags(flag.bits()).open(mounted.on("a")).unwrap();
        file.write_all(byte).unwrap();
    }
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"ds");
    mounted.tell("fail-sync on");
    let mut file =
        OpenOptions::new().append(true).custom_flags(nix::fcntl::OFlag::O_DSYNC.bits()).open(mounted.on("a")).unwrap();
    assert_eq!(errno(file.write_all(b"x")), Some(Errno::EIO));
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"ds");
}

#[test]
fn truncations_and_holes_are_taken_back() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"0123456789");
    file.set_len(3).unwrap();
    file.set_len(20).unwrap();
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"0123456789");
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, hole, 2, 3).unwrap();
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"01\0\0\x0056789");
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"0123456789");
    // As the shell's `>` does.
    fs::write(mounted.on("a"), b"").unwrap();
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"0123456789");
}

#[test]
fn preallocation_leaves_the_length_unless_it_is_to_grow() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"0123");
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 4 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4);
    fallocate(&file, FallocateFlags::empty(), 2, 4).unwrap();
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"0123\0\0");
    fallocate(&file, FallocateFlags::empty(), 0, 2).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6);
    assert_eq!(fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 2), Err(Errno::EOPNOTSUPP));
    mounted.tell("lose");
    assert_eq!(file.metadata().unwrap().len(), 4);
}

#[test]
fn a_slow_sync_takes_its_time_and_holds_up_nobody_else() {
    let mounted = Mounted::new();
    let (slow, other) = (mounted.durable("slow", b""), mounted.durable("other", b""));
    slow.write_all_at(b"1", 0).unwrap();
    mounted.tell("sync-delay 400");
    let begun = Instant::now();
    thread::scope(|scope| {
        let syncing = scope.spawn(|| slow.sync_data().map(|()| begun.elapsed()));
        other.write_all_at(b"2", 0).unwrap();
        assert_eq!(fs::read(mounted.on("other")).unwrap(), b"2");
        assert!(begun.elapsed() < Duration::from_millis(300), "others wait: {:?}", begun.elapsed());
        let took = syncing.join().unwrap().unwrap();
        assert!(took >= Duration::from_millis(400), "{took:?}");
    });
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("slow")).unwrap(), b"1");
}

#[test]
fn a_slow_sync_ends_early_when_disks_are_healed_and_keeps_nothing_when_power_is_lost() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"");
    for (word, synced) in [("heal", true), ("lose", false)] {
        file.write_all_at(b"1", 0).unwrap();
        mounted.tell("sync-delay 30000");
        thread::scope(|scope| {
            let (begun, asked) = (Instant::now(), mounted.stat("syncs"));
            let syncing = scope.spawn(|| file.sync_data());
            while mounted.stat("syncs") == asked {
                thread::sleep(Duration::from_millis(1));
            }
            mounted.tell(word);
            assert_eq!(syncing.join().unwrap().is_ok(), synced, "{word}");
            assert!(begun.elapsed() < Duration::from_secs(20));
        });
        mounted.tell("lose");
        assert_eq!(fs::read(mounted.on("a")).unwrap(), if synced { &b"1"[..] } else { b"" }, "{word}");
        mounted.tell("heal");
        file.set_len(0).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn a_failed_sync_drops_what_it_should_have_kept_and_the_next_one_succeeds() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"1");
    file.write_all_at(b"2", 1).unwrap();
    mounted.tell("fail-sync on");
    assert_eq!(errno(file.sync_data()), Some(Errno::EIO));
    assert_eq!(errno(File::open(mounted.on("")).unwrap().sync_all()), Some(Errno::EIO));
    mounted.tell("fail-sync off");
    file.sync_data().unwrap();
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"1");
    assert_eq!(mounted.stat("lost"), 1);
    // A program that believed it wrote goes on where it was.
    file.write_all_at(b"3", 2).unwrap();
    file.sync_data().unwrap();
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"1\x003");
}

#[test]
fn writes_fail_until_the_disk_is_healed() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"1");
    mounted.tell("fail-write on");
    assert_eq!(errno(file.write_all_at(b"2", 0)), Some(Errno::EIO));
    assert_eq!(errno(file.set_len(0)), Some(Errno::EIO));
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"1");
    mounted.tell("heal");
    file.write_all_at(b"2", 0).unwrap();
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"2");
}

#[test]
fn a_full_disk_has_room_for_nothing_new() {
    let mounted = Mounted::new();
    let file = mounted.durable("a", b"1");
    let free = || nix::sys::statvfs::statvfs(&mounted.on("")).unwrap().blocks_available();
    assert!(free() > 0);
    mounted.tell("full on");
    assert_eq!(free(), 0);
    assert_eq!(errno(file.write_all_at(b"23", 0)), Some(Errno::ENOSPC));
    assert_eq!(errno(File::create(mounted.on("b"))), Some(Errno::ENOSPC));
    assert_eq!(errno(fs::create_dir(mounted.on("c"))), Some(Errno::ENOSPC));
    assert_eq!(errno(fs::hard_link(mounted.on("a"), mounted.on("d"))), Some(Errno::ENOSPC));
    assert_eq!(fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 100), Err(Errno::ENOSPC));
    file.write_all_at(b"2", 0).unwrap();
    fs::rename(mounted.on("a"), mounted.on("e")).unwrap();
    fs::remove_file(mounted.on("e")).unwrap();
    mounted.tell("full off");
    assert!(free() > 0);
    new(&mounted.on("b"));
}

#[test]
fn what_was_removed_leaves_room_at_once() {
    let outer = tempfile::tempdir_in(MEMORY).unwrap();
    let _small = Small::new(outer.path());
    let dir = tempfile::tempdir_in(outer.path()).unwrap();
    let mounted = Mounted { disk: mount(dir.path()), dir };
    let available = || {
        let found = nix::sys::statvfs::statvfs(&mounted.on("")).unwrap();
        found.blocks_available() * found.fragment_size()
    };
    let before = available();
    for _ in 0..3 {
        let mut ballast = File::create(mounted.on("ballast")).unwrap();
        while ballast.write_all(&[1; 1 << 16]).is_ok() {}
        assert_eq!(available(), 0);
        drop(ballast);
        fs::remove_file(mounted.on("ballast")).unwrap();
        assert!(available() >= before - (64 << 10), "{} of {before}", available());
        fs::write(mounted.on("other"), vec![2; 2 << 20]).unwrap();
        fs::remove_file(mounted.on("other")).unwrap();
    }
}

/// 4 MiB in memory.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path) -> Self {
        let (flags, size) = (nix::mount::MsFlags::empty(), Some("size=4m"));
        nix::mount::mount(Some(super::super::NAME), at, Some("tmpfs"), flags, size).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn what_is_no_command_is_an_error_and_changes_nothing() {
    let mounted = Mounted::new();
    let line = "x".repeat(1_000);
    for words in
        ["", "sync a", "lose all", "tear", "tear x", "tear -1", "sync-delay", "full", "full maybe", "Lose", &line]
    {
        let answer = mounted.disk.command(words);
        assert!(answer.is_err(), "{words}: {answer:?}");
    }
    let stats = mounted.disk.command("stats").unwrap();
    assert_eq!(stats, r#"{"writes":0,"written":0,"syncs":0,"unsynced":0,"unsynced_names":0,"lost":0,"lost_names":0}"#);
}
