//! Directories that must not be opened, each with one sentence that says why.

use super::*;

#[tokio::test]
async fn another_members_or_clusters_directory_is_refused_and_left_alone() {
    let mut node = Node::with(3).await;
    node.close();
    let mut other = identity();
    other.name = "n2".into();
    let mut foreign = identity();
    foreign.founding.push_str(",n3=h:3");
    for who in [other, foreign] {
        let error = Storage::open(node.dir.path(), &who).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }));
        let text = error.to_string();
        assert!(text.contains("belongs to member n1") && text.contains("--data-dir"), "{text}");
    }
    assert_eq!(logged(&mut node.reopen().log).await, [0, 1, 2]);
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let node = Node::new();
    let error = Storage::open(node.dir.path(), &identity()).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    assert!(error.to_string().contains("is this server running already?"));
}

#[tokio::test]
async fn a_directory_that_can_not_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lock-file-of-someone");
    std::fs::write(&file, b"a file").unwrap();
    let error = Storage::open(&file, &identity()).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
}

#[tokio::test]
async fn damage_in_the_middle_of_the_wal_is_refused() {
    let mut node = Node::with(40).await;
    let wal = node.files(".log").pop().unwrap();
    let length = std::fs::metadata(&wal).unwrap().len() as usize;
    for at in [length / 5, length / 3, length / 2] {
        flip(&wal, at);
        let error = node.refusal();
        assert!(matches!(error, OpenError::Damaged { .. }), "{at}: {error}");
        flip(&wal, at);
    }
    assert_eq!(logged(&mut node.reopen().log).await.len(), 40);
}

#[tokio::test]
async fn a_missing_wal_is_refused() {
    let mut node = Node::with(40).await;
    // A second WAL: closing a memtable closes the first, which another family still needs.
    let database = node.get().database.upgrade().unwrap();
    database.db.flush_cf(&database.family(keys::STATE).unwrap()).unwrap();
    drop(database);
    append(&mut node.get().log, [entry(40)]).await.unwrap();
    let wals = node.files(".log");
    assert!(wals.len() > 1, "{wals:?}");
    std::fs::remove_file(&wals[0]).unwrap();
    let error = node.refusal();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn damage_in_a_table_is_refused() {
    let mut node = Node::with(40).await;
    let database = node.get().database.upgrade().unwrap();
    for family in [keys::LOG, keys::STATE, keys::META] {
        database.db.flush_cf(&database.family(family).unwrap()).unwrap();
    }
    drop(database);
    for table in node.files(".sst") {
        let middle = std::fs::metadata(&table).unwrap().len() as usize / 4;
        flip(&table, middle);
        let error = node.refusal();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        flip(&table, middle);
    }
    node.reopen();
}

/// Writes behind storage's back.
fn put(node: &mut Node, family: &str, key: &[u8], value: Option<&[u8]>) {
    let database = node.get().database.upgrade().unwrap();
    let family = database.family(family).unwrap();
    match value {
        Some(value) => database.db.put_cf(&family, key, value).unwrap(),
        None => database.db.delete_cf(&family, key).unwrap(),
    }
}

#[tokio::test]
async fn holes_and_records_that_are_not_what_they_were_are_refused() {
    let record = codec::log_record(5, &entry(5));
    let object = keys::state(0, keys::tag::OBJECT, b"x");
    type Damage<'a> = (&'a str, &'a [u8], Option<&'a [u8]>, &'a str);
    let damages: [Damage<'_>; 8] = [
        (keys::LOG, &keys::log(5), None, "log entry 5 is missing"),
        (keys::LOG, &keys::log(6), Some(&record), "fails its checksum"),
        (keys::LOG, &keys::log(0), None, "log entry 0 is missing"),
        (keys::LOG, b"short", Some(b""), "not 8 bytes"),
        (keys::STATE, &object, Some(b"\xff\xff"), "can't be decoded"),
        (keys::STATE, &keys::state(0, b'z', &[]), Some(b""), "newer version"),
        (keys::STATE, &keys::state(0, keys::tag::DIGEST, &[]), None, "does not match its digest"),
        (keys::META, keys::FORMAT, Some(&2_u64.to_be_bytes()), "start the version that wrote it"),
    ];
    for (family, key, value, why) in damages {
        let mut node = Node::with(9).await;
        put(&mut node, family, key, value);
        let error = node.refusal();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_changed_object_does_not_match_the_digest() {
    let mut node = Node::with(9).await;
    let name = fairlead_proto::model::Key::new(Kind::Namespace, "", "n4");
    put(&mut node, keys::STATE, &keys::object(0, &name), None);
    assert!(node.refusal().to_string().contains("does not match its digest"));
}

#[tokio::test]
async fn a_log_that_begins_after_the_state_is_refused() {
    let mut node = Node::with(9).await;
    node.get().log.purge(id(6)).await.unwrap();
    let state = node.get().database.upgrade().unwrap();
    let family = state.family(keys::STATE).unwrap();
    state.db.delete_range_cf(&family, 0_u64.to_be_bytes(), 1_u64.to_be_bytes()).unwrap();
    drop(family);
    drop(state);
    assert!(node.refusal().to_string().contains("begins after what the state holds"));
}

#[tokio::test]
async fn a_command_or_a_version_that_this_program_does_not_know_stops_it() {
    let unknown = |kind| {
        let command = wire::Command { kind };
        let logged = wire::Entry { command: Some(command), ..wire::Entry::default() };
        Entry { log_id: id(9), payload: EntryPayload::Normal(Logged::from(logged)) }
    };
    let mut node = Node::with(9).await;
    let error = apply(&mut node.get().machine, [unknown(None)]).await.unwrap_err();
    assert!(error.to_string().contains("start the newer fairlead"), "{error}");
    let mut node = Node::with(9).await;
    let version = crate::machine::MACHINE_VERSION + 1;
    let raise = wire::command::Kind::SetMachineVersion(wire::SetMachineVersion { version });
    let error = apply(&mut node.get().machine, [unknown(Some(raise))]).await.unwrap_err();
    assert!(error.to_string().contains("start the newer fairlead"), "{error}");
    // Nothing of it was written or published.
    assert_eq!(digest(&node.get().machine).2, 8);
    assert_eq!(digest(&node.reopen().machine).2, 8);
}
