//! What crashes leave: a prefix, with all that was acknowledged.

use super::*;

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let mut node = Node::with(40).await;
    node.get().log.save_vote(&vote(3)).await.unwrap();
    let before = digest(&node.get().machine);
    let (applied, membership) = node.get().machine.applied_state().await.unwrap();
    assert_eq!((before.0, before.1.clone()), expected(40));
    let storage = node.reopen();
    assert_eq!(digest(&storage.machine), before);
    assert_eq!(storage.machine.applied_state().await.unwrap(), (applied, membership.clone()));
    assert_eq!(membership.log_id(), &Some(id(0)));
    assert_eq!(storage.log.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(logged(&mut storage.log).await, (0..40).collect::<Vec<_>>());
    // The window and the dedupe sessions came back too: a watcher resumes, a retry is not executed again.
    let (_, mut views) = storage.machine.subscribe();
    let snapshot = views.borrow_and_update().clone();
    assert_eq!(snapshot.history.after(0).unwrap().count() as u64, before.0);
    assert!(snapshot.state.session_write("client-1", 37).is_some());
    apply(&mut storage.machine, [Entry { log_id: id(40), ..entry(39) }]).await.unwrap();
    assert_eq!(digest(&storage.machine).0, before.0, "a retry");
}

#[tokio::test]
async fn a_crash_at_any_moment_leaves_a_prefix_with_all_that_was_acknowledged() {
    let mut node = Node::new();
    for index in 0..24 {
        append(&mut node.get().log, [entry(index)]).await.unwrap();
        let mut found = node.crashed();
        assert_eq!(logged(&mut found.get().log).await.last(), Some(&index), "it was acknowledged");
        apply(&mut node.get().machine, [entry(index)]).await.unwrap();
        let mut found = node.crashed();
        let (revision, digest, applied) = digest(&found.get().machine);
        assert!(applied <= index);
        assert_eq!((revision, digest), expected(applied + 1));
        // Raft applies again what was lost: with the same result.
        apply(&mut found.get().machine, (applied + 1..=index).map(entry)).await.unwrap();
        assert_eq!(super::digest(&found.get().machine), super::digest(&node.get().machine));
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_state_never_runs_ahead_of_the_log() {
    for torn in [1, 7, 40, 200, 900] {
        let mut node = Node::with(20).await;
        let wal = node.files(".log").pop().unwrap();
        let length = std::fs::metadata(&wal).unwrap().len();
        let file = std::fs::File::options().write(true).open(&wal).unwrap();
        file.set_len(length - torn).unwrap();
        drop(file);
        let storage = node.reopen();
        let indexes = logged(&mut storage.log).await;
        assert_eq!(indexes, (0..indexes.len() as u64).collect::<Vec<_>>());
        let (revision, digest, applied) = digest(&storage.machine);
        assert!(applied < indexes.len() as u64, "{applied} of {}", indexes.len());
        assert_eq!((revision, digest), expected(applied + 1));
    }
}

#[tokio::test]
async fn the_window_in_the_store_is_the_window_in_memory() {
    let mut node = Node::with(1).await;
    let count = WINDOW + 600;
    for from in (1..count).step_by(512) {
        let entries = from..(from + 512).min(count);
        append(&mut node.get().log, entries.clone().map(entry)).await.unwrap();
        apply(&mut node.get().machine, entries.map(entry)).await.unwrap();
    }
    let before = node.get().machine.subscribe().1.borrow().clone();
    assert!(before.history.compacted() > 0);
    let after = node.reopen().machine.subscribe().1.borrow().clone();
    assert_eq!(after.history.len(), WINDOW);
    assert_eq!(after.history.compacted(), before.history.compacted());
    assert_eq!(after.state.digest_hex(), before.state.digest_hex());
    let database = node.get().database.upgrade().unwrap();
    let family = database.family(keys::STATE).unwrap();
    let events = database.db.iterator_cf(&family, rocksdb::IteratorMode::Start);
    let events = events.filter(|item| item.as_ref().unwrap().0[8] == keys::tag::EVENT);
    assert_eq!(events.count() as u64, WINDOW, "what left the window left the store");
    assert!(after.state.list(Kind::Namespace, "").count() as u64 > WINDOW);
}
