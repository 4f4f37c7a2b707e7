//! Raft snapshots: what was written is what is read, anything else is refused, and an install is old or new.

use super::*;

/// A node with so many entries, and a snapshot of it.
async fn built(count: u64) -> (Node, Built) {
    let mut node = Node::with(count).await;
    let mut builder = node.get().machine.get_snapshot_builder().await;
    let built = builder.build_snapshot().await.unwrap();
    (node, built)
}

/// A snapshot as another node receives it.
async fn received(built: &Built, node: &mut Node) -> Built {
    let mut incoming = node.get().snapshots.receive().await.unwrap();
    let (mut offset, mut hasher) = (0, <sha2::Sha256 as sha2::Digest>::new());
    while offset < built.snapshot.length() {
        let piece = built.snapshot.piece(offset, 1_000).unwrap();
        offset += piece.len() as u64;
        sha2::Digest::update(&mut hasher, &piece);
        incoming.write(&piece).await.unwrap();
    }
    incoming.finish(&sha2::Digest::finalize(hasher)).await.unwrap()
}

#[tokio::test]
async fn a_snapshot_is_of_one_moment_and_holds_everything() {
    let mut node = Node::with(10).await;
    let mut builder = node.get().machine.get_snapshot_builder().await;
    // Applied between the capture and the build: not in it.
    apply(&mut node.get().machine, (10..20).map(entry)).await.unwrap();
    let built = builder.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, Some(id(9)));
    let (meta, snapshot) = built.snapshot.decode().unwrap();
    assert_eq!(meta, built.meta);
    assert_eq!((snapshot.state.revision(), snapshot.state.digest_hex()), expected(10));
    assert_eq!(snapshot.history.len(), snapshot.state.revision());
    assert!(snapshot.state.session_write("client-0", 9).is_some());
}

#[tokio::test]
async fn an_installed_snapshot_is_the_state_also_after_a_restart() {
    let (mut from, built) = built(30).await;
    let mut to = Node::with(5).await;
    for _ in 0..2 {
        let received = received(&built, &mut to).await;
        to.get().machine.install_snapshot(&received.meta, received.snapshot).await.unwrap();
        assert_eq!(digest(&to.get().machine), digest(&from.get().machine));
        assert_eq!(digest(&to.reopen().machine), digest(&from.get().machine));
        let current = to.get().machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta, built.meta);
    }
    // Applying goes on from there, in the new generation.
    to.get().log.purge(id(29)).await.unwrap();
    append(&mut to.get().log, [entry(30)]).await.unwrap();
    apply(&mut to.get().machine, [entry(30)]).await.unwrap();
    let (revision, digest, _) = digest(&to.reopen().machine);
    assert_eq!((revision, digest), expected(31));
}

#[tokio::test]
async fn an_install_cut_short_at_any_write_is_old_or_new() {
    let (mut from, built) = built(30).await;
    let (old, new) = (expected(5), digest(&from.get().machine));
    let mut seen = std::collections::BTreeSet::new();
    for commits in 0..8 {
        let mut to = Node::with(5).await;
        let received = received(&built, &mut to).await;
        to.get().database.upgrade().unwrap().commits_left.store(commits, Ordering::SeqCst);
        let installed = to.get().machine.install_snapshot(&received.meta, received.snapshot).await;
        let found = digest(&to.reopen().machine);
        let is_new = found == new;
        assert!(is_new || (found.0, found.1.clone()) == old, "{commits}: {found:?}");
        assert!(is_new || installed.is_err(), "it was said to be installed");
        seen.insert(is_new);
        // The file was there first: the next start, which finds it ahead of the state, can install it.
        let current = to.get().machine.get_current_snapshot().await.unwrap().unwrap();
        to.get().machine.install_snapshot(&current.meta, current.snapshot).await.unwrap();
        assert_eq!(digest(&to.get().machine), new);
        // Whatever was left behind by then is swept.
        to.reopen();
        let database = to.get().database.upgrade().unwrap();
        let family = database.family(keys::STATE).unwrap();
        let generation = load::number(&database, keys::GENERATION).unwrap().unwrap();
        for item in database.db.iterator_cf(&family, rocksdb::IteratorMode::Start) {
            assert!(item.unwrap().0.starts_with(&generation.to_be_bytes()));
        }
    }
    assert_eq!(seen.len(), 2, "both sides of the switch were met");
}

#[tokio::test]
async fn a_slow_build_does_not_replace_a_newer_snapshot() {
    let (_from, built) = built(30).await;
    let mut to = Node::with(5).await;
    let mut builder = to.get().machine.get_snapshot_builder().await;
    let received = received(&built, &mut to).await;
    to.get().machine.install_snapshot(&received.meta, received.snapshot).await.unwrap();
    builder.build_snapshot().await.unwrap();
    let current = to.get().machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, built.meta);
    assert_eq!(current.snapshot.decode().unwrap().1.state.digest_hex(), expected(30).1);
    drop((builder, current));
    let files = std::fs::read_dir(to.close().join("snapshot")).unwrap().count();
    assert_eq!(files, 1, "nothing is left aside");
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_wherever_the_damage_is() {
    let (mut node, built) = built(12).await;
    let length = usize::try_from(built.snapshot.length()).unwrap();
    drop(built);
    let path = node.close().join("snapshot/current");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..length).step_by(37).chain([length - 1]) {
        flip(&path, at);
        let file = std::fs::File::open(&path).unwrap();
        let damaged = SnapshotFile::new(file, path.with_extension("none")).unwrap();
        assert!(damaged.check().is_err() && damaged.decode().is_err(), "byte {at}");
        flip(&path, at);
    }
    for length in [0, 10, 60, length / 2, length - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = node.refusal();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("the snapshot can't be read"), "{error}");
    }
    std::fs::write(&path, &whole).unwrap();
    node.reopen();
}

#[tokio::test]
async fn what_arrives_damaged_is_dropped() {
    let (_from, built) = built(5).await;
    let mut node = Node::new();
    let mut incoming = node.get().snapshots.receive().await.unwrap();
    incoming.write(&built.snapshot.piece(0, 100).unwrap()).await.unwrap();
    assert!(incoming.finish(&[0; 32]).await.is_err());
    // Cut off in the middle.
    let mut incoming = node.get().snapshots.receive().await.unwrap();
    incoming.write(b"half").await.unwrap();
    drop(incoming);
    let meta = SnapshotMeta { last_log_id: Some(id(3)), ..SnapshotMeta::default() };
    let other = received(&built, &mut node).await;
    assert!(node.get().machine.install_snapshot(&meta, other.snapshot).await.is_err(), "another one than announced");
    assert_eq!(std::fs::read_dir(node.close().join("snapshot")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_snapshot_waits_until_the_log_has_grown_by_as_much() {
    let (mut node, built) = built(60).await;
    drop(built);
    assert!(node.get().machine.try_create_snapshot_builder(false).await.is_none());
    let mut index = 60;
    while node.get().machine.try_create_snapshot_builder(false).await.is_none() {
        apply(&mut node.get().machine, [entry(index)]).await.unwrap();
        index += 1;
        assert!(index < 2_000, "it comes");
    }
    assert!(index > 90, "it was put off: {index}");
    // Forced, it comes at once.
    assert!(node.get().machine.try_create_snapshot_builder(true).await.is_some());
}
