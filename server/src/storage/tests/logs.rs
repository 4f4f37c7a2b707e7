//! The log against a model of it, and its part that is only on disk.

use super::*;
use crate::storage::log::CACHE_BYTES;

#[derive(Clone, Debug)]
enum Op {
    Append(u64),
    Truncate(u64),
    Purge(u64),
    Vote(u64),
    Reopen,
    Crash,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (1..20_u64).prop_map(Op::Append),
        2 => (0..30_u64).prop_map(Op::Truncate),
        1 => (0..30_u64).prop_map(Op::Purge),
        1 => (1..9_u64).prop_map(Op::Vote),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
    ];
    proptest::collection::vec(op, 1..14)
}

/// The model: entries `first..next`, and the last vote.
async fn check(ops: Vec<Op>) {
    let mut node = Node::new();
    let (mut first, mut next, mut voted, mut unapplied) = (0, 0, None, 0);
    for op in ops {
        match op {
            Op::Append(count) => {
                append(&mut node.get().log, (next..next + count).map(entry)).await.unwrap();
                next += count;
            }
            Op::Truncate(back) if next > first => {
                next = (next - 1).saturating_sub(back).max(first);
                let after = next.checked_sub(1).map(id);
                node.get().log.truncate_after(after).await.unwrap();
            }
            Op::Purge(ahead) if next > first => {
                let last = (first + ahead).min(next - 1);
                // Only what is applied is ever purged.
                let blank = |index| Entry { log_id: id(index), payload: EntryPayload::Blank };
                apply(&mut node.get().machine, (unapplied..=last).map(blank)).await.unwrap();
                unapplied = last + 1;
                node.get().log.purge(id(last)).await.unwrap();
                // A purge may be lost in a crash, but then the entries are still there. Bound it by the next sync.
                node.get().log.save_vote(&vote(voted.unwrap_or(1))).await.unwrap();
                voted = Some(voted.unwrap_or(1));
                first = last + 1;
            }
            Op::Vote(term) => {
                node.get().log.save_vote(&vote(term)).await.unwrap();
                voted = Some(term);
            }
            Op::Reopen => {
                node.reopen();
            }
            Op::Crash => node = node.crashed(),
            Op::Truncate(_) | Op::Purge(_) => {}
        }
        let log = &mut node.get().log;
        assert_eq!(logged(log).await, (first..next).collect::<Vec<_>>());
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_log_id.map(|id| id.index), next.checked_sub(1));
        assert_eq!(state.last_purged_log_id.map(|id| id.index), first.checked_sub(1));
        assert_eq!(log.read_vote().await.unwrap(), voted.map(vote));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn it_is_its_model_through_restarts_and_crashes(ops in ops()) {
        tokio::runtime::Runtime::new().unwrap().block_on(check(ops));
    }
}

/// An entry of an eighth of a megabyte.
fn large(index: u64) -> Entry {
    let EntryPayload::Normal(logged) = entry(index).payload else { unreachable!() };
    let mut logged = logged.entry().clone();
    logged.traceparent = "x".repeat(128 * 1024);
    Entry { log_id: id(index), payload: EntryPayload::Normal(Logged::from(logged)) }
}

#[tokio::test]
async fn what_is_dropped_is_closed_at_once() {
    let mut node = Node::with(3).await;
    let storage = node.storage.take().unwrap();
    let held = storage.held();
    drop(storage);
    assert!(!held.is_held(), "a process that exits now would abort in RocksDB");
}

#[tokio::test]
async fn what_memory_does_not_hold_is_read_from_disk() {
    let mut node = Node::new();
    let count = CACHE_BYTES as u64 / (128 * 1024) + 40;
    append(&mut node.get().log, [entry(0)]).await.unwrap();
    for from in (1..count).step_by(16) {
        append(&mut node.get().log, (from..(from + 16).min(count)).map(large)).await.unwrap();
    }
    for _ in 0..2 {
        let log = &mut node.get().log;
        assert_eq!(logged(log).await, (0..count).collect::<Vec<_>>(), "across the edge");
        let old = log.try_get_log_entries(2..4).await.unwrap();
        assert_eq!(old, [large(2), large(3)]);
        // A message of bounded size, whether from disk or from memory.
        assert_eq!(log.limited_get_log_entries(1, count).await.unwrap().len(), 16);
        assert_eq!(log.limited_get_log_entries(count - 50, count).await.unwrap().len(), 16);
        let stream = log.entries_stream(0..count).await;
        let streamed: Vec<Entry> = stream.try_collect().await.unwrap();
        assert_eq!(streamed.len() as u64, count);
        node.reopen();
    }
    let log = &mut node.get().log;
    log.purge(id(9)).await.unwrap();
    log.truncate_after(Some(id(14))).await.unwrap();
    assert_eq!(logged(log).await, (10..15).collect::<Vec<_>>());
    append(log, [large(15)]).await.unwrap();
    assert_eq!(logged(log).await, (10..16).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_broken_disk_is_final() {
    let mut node = Node::with(3).await;
    let database = node.get().database.upgrade().unwrap();
    database.commits_left.store(1, Ordering::SeqCst);
    drop(database);
    append(&mut node.get().log, [entry(3)]).await.unwrap();
    let error = append(&mut node.get().log, [entry(4)]).await.unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    // The disk has room again, but nothing is tried again: what an unknown part of a batch left is not built upon.
    node.get().database.upgrade().unwrap().commits_left.store(9, Ordering::SeqCst);
    assert!(append(&mut node.get().log, [entry(5)]).await.is_err());
    assert!(node.get().log.save_vote(&vote(2)).await.is_err());
    assert!(apply(&mut node.get().machine, [entry(3)]).await.is_err());
    assert_eq!(logged(&mut node.reopen().log).await, [0, 1, 2, 3]);
    assert_eq!(digest(&node.get().machine).2, 2);
}

#[tokio::test]
async fn replication_gets_nothing_where_the_first_entry_is_purged() {
    let mut node = Node::with(30).await;
    let log = &mut node.get().log;
    log.purge(id(9)).await.unwrap();
    // openraft would send what follows as if it were entry 5.
    assert!(log.limited_get_log_entries(5, 20).await.unwrap().is_empty());
    let entries = log.limited_get_log_entries(10, 20).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_machine_applies_nothing_after_a_hole() {
    let mut node = Node::with(3).await;
    let refused = apply(&mut node.get().machine, [entry(4)]).await.unwrap_err();
    assert!(refused.to_string().contains("log entry 4 is to be applied where 3 should be"), "{refused}");
}
