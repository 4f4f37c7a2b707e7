//! When names are durable.

use super::*;

#[test]
fn a_new_file_is_there_when_its_folder_was_synced() {
    let mounted = Mounted::new();
    let (one, two) = (new(&mounted.on("one")), new(&mounted.on("two")));
    one.write_all_at(b"1", 0).unwrap();
    one.sync_all().unwrap();
    mounted.tell("lose");
    assert_eq!(mounted.names(""), [""; 0], "its own sync doesn't keep its name");
    drop((one, two));
    let (one, two) = (new(&mounted.on("one")), new(&mounted.on("two")));
    one.write_all_at(b"1", 0).unwrap();
    one.sync_all().unwrap();
    two.write_all_at(b"2", 0).unwrap();
    mounted.sync_dir("");
    mounted.tell("lose");
    assert_eq!(mounted.names(""), ["one", "two"]);
    assert_eq!(fs::read(mounted.on("one")).unwrap(), b"1");
    assert_eq!(fs::read(mounted.on("two")).unwrap(), b"", "its folder's sync doesn't keep its content");
}

#[test]
fn a_rename_is_undone_with_what_it_replaced_until_the_folder_is_synced() {
    let mounted = Mounted::new();
    mounted.durable("current", b"old");
    let file = mounted.durable("new", b"new");
    for synced in [false, true] {
        fs::rename(mounted.on("new"), mounted.on("current")).unwrap();
        assert_eq!(mounted.names(""), ["current"]);
        assert_eq!(fs::read(mounted.on("current")).unwrap(), b"new");
        file.sync_all().unwrap();
        if synced {
            mounted.sync_dir("");
        }
        mounted.tell("lose");
        let current = fs::read(mounted.on("current")).unwrap();
        if synced {
            assert_eq!((mounted.names(""), &current[..]), (vec!["current".to_owned()], &b"new"[..]));
        } else {
            assert_eq!(mounted.names(""), ["current", "new"]);
            assert_eq!(current, b"old");
            assert_eq!(fs::read(mounted.on("new")).unwrap(), b"new");
        }
    }
}

#[test]
fn a_durable_rename_says_nothing_of_the_content() {
    let mounted = Mounted::new();
    mounted.durable("current", b"old");
    fs::write(mounted.on("new"), b"new").unwrap();
    fs::rename(mounted.on("new"), mounted.on("current")).unwrap();
    mounted.sync_dir("");
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("current")).unwrap(), b"");
}

#[test]
fn what_was_removed_comes_back_until_the_folder_is_synced() {
    let mounted = Mounted::new();
    let file = mounted.durable("file", b"content");
    fs::create_dir(mounted.on("folder")).unwrap();
    mounted.sync_dir("");
    for synced in [false, true] {
        fs::remove_file(mounted.on("file")).unwrap();
        fs::remove_dir(mounted.on("folder")).unwrap();
        assert_eq!(mounted.names(""), [""; 0]);
        // Who has it open still has it.
        file.write_all_at(b"C", 0).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&file.metadata().unwrap()), 0);
        if synced {
            mounted.sync_dir("");
        }
        mounted.tell("lose");
        assert_eq!(mounted.names("").len(), if synced { 0 } else { 2 });
        if !synced {
            assert_eq!(fs::read(mounted.on("file")).unwrap(), b"content");
            assert!(mounted.on("folder").is_dir());
        }
    }
    assert_eq!(names(&mounted.dir.path().join("backing/removed")), [""; 0]);
    assert_eq!(mounted.stat("unsynced"), 0);
}

#[test]
fn a_move_between_folders_is_durable_in_both_or_in_neither() {
    for synced in [None, Some("a"), Some("b")] {
        let mounted = Mounted::new();
        ["a", "b"].iter().for_each(|dir| fs::create_dir(mounted.on(dir)).unwrap());
        mounted.sync_dir("");
        mounted.durable("a/file", b"1");
        fs::rename(mounted.on("a/file"), mounted.on("b/moved")).unwrap();
        synced.iter().for_each(|dir| mounted.sync_dir(dir));
        mounted.tell("lose");
        let found = (mounted.names("a").len(), mounted.names("b").len());
        assert_eq!(found, if synced.is_some() { (0, 1) } else { (1, 0) }, "{synced:?}");
    }
}

#[test]
fn the_sync_of_a_folder_brings_what_it_rests_on() {
    let mounted = Mounted::new();
    ["a", "b"].iter().for_each(|dir| fs::create_dir(mounted.on(dir)).unwrap());
    new(&mounted.on("a/moved"));
    new(&mounted.on("a/other"));
    fs::rename(mounted.on("a/moved"), mounted.on("b/moved")).unwrap();
    fs::create_dir(mounted.on("unrelated")).unwrap();
    mounted.sync_dir("b");
    mounted.tell("lose");
    assert_eq!(mounted.names(""), ["a", "b"], "the folders of a durable move were made before it");
    assert_eq!(mounted.names("b"), ["moved"]);
    assert_eq!(mounted.names("a"), [""; 0], "nothing rests on the other file");
    assert_eq!(mounted.stat("lost_names"), 2);
}

#[test]
fn a_file_that_got_another_name_before_it_lost_its_first_is_not_lost() {
    let mounted = Mounted::new();
    ["a", "b"].iter().for_each(|dir| fs::create_dir(mounted.on(dir)).unwrap());
    mounted.sync_dir("");
    mounted.durable("a/file", b"1");
    fs::hard_link(mounted.on("a/file"), mounted.on("b/file")).unwrap();
    fs::remove_file(mounted.on("a/file")).unwrap();
    mounted.sync_dir("a");
    mounted.tell("lose");
    assert_eq!(mounted.names("a"), [""; 0]);
    assert_eq!(fs::read(mounted.on("b/file")).unwrap(), b"1");
}

#[test]
fn a_durable_move_to_a_name_brings_the_removal_of_what_had_it() {
    let mounted = Mounted::new();
    ["a", "b"].iter().for_each(|dir| fs::create_dir(mounted.on(dir)).unwrap());
    mounted.sync_dir("");
    mounted.durable("a/file", b"old");
    mounted.durable("b/file", b"new");
    fs::remove_file(mounted.on("a/file")).unwrap();
    fs::rename(mounted.on("b/file"), mounted.on("a/file")).unwrap();
    mounted.sync_dir("b");
    mounted.tell("lose");
    assert_eq!(fs::read(mounted.on("a/file")).unwrap(), b"new");
    assert_eq!(mounted.names("b"), [""; 0]);
}

#[test]
fn names_used_again_are_taken_back_to_the_first() {
    let mounted = Mounted::new();
    mounted.durable("a", b"first");
    for content in ["second", "third"] {
        fs::remove_file(mounted.on("a")).unwrap();
        let file = new(&mounted.on("a"));
        file.write_all_at(content.as_bytes(), 0).unwrap();
        file.sync_all().unwrap();
    }
    fs::remove_file(mounted.on("a")).unwrap();
    fs::create_dir(mounted.on("a")).unwrap();
    new(&mounted.on("a/b"));
    fs::rename(mounted.on("a"), mounted.on("c")).unwrap();
    mounted.tell("lose");
    assert_eq!(mounted.names(""), ["a"]);
    assert_eq!(fs::read(mounted.on("a")).unwrap(), b"first");
}

#[test]
fn a_torn_disk_keeps_a_prefix_of_the_changes_of_folders() {
    let wanted = ["a", "b", "c", "d", "e", "f"];
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..24 {
        let mounted = Mounted::new();
        wanted.iter().for_each(|name| drop(new(&mounted.on(name))));
        mounted.tell(&format!("tear {seed}"));
        let found = mounted.names("");
        assert_eq!(found, wanted[..found.len()]);
        lengths.insert(found.len());
    }
    assert!(lengths.len() > 3, "{lengths:?}");
}
