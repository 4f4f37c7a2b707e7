//! Histories by hand: failures that other systems had, and each kind of anomaly once.

use std::collections::BTreeMap;

use super::{append, broken_by, check, kinds, set, snapshots, wgl, witness};
use crate::history::{Answer, Call, Operation, Verdict};

fn op(process: u32, (called, returned): (u64, u64), call: Call, answer: Answer) -> Operation {
    let returned = if matches!(answer, Answer::Unknown(_)) { u64::MAX } else { returned };
    Operation { process, node: process as u8 + 1, called, returned, call, answer }
}

fn write(process: u32, time: (u64, u64), value: u64, revision: u64) -> Operation {
    op(process, time, Call::Write("x".to_owned(), value), Answer::Done { revision })
}

fn read(process: u32, time: (u64, u64), value: Option<(u64, u64)>, revision: u64) -> Operation {
    op(process, time, Call::Read("x".to_owned()), Answer::Value { value, revision })
}

fn cas(process: u32, time: (u64, u64), (from, at): (u64, u64), (to, answer): (u64, Answer)) -> Operation {
    op(process, time, Call::Cas { key: "x".to_owned(), from, revision: at, to }, answer)
}

#[test]
fn stale_read_after_a_pause_of_the_leader() {
    // The old leader wakes up, believes in its lease, and answers from its own state.
    let history = [
        write(0, (0, 10), 1, 1),
        write(1, (20, 30), 2, 2),
        read(0, (40, 50), Some((1, 1)), 1),
        read(1, (60, 70), Some((2, 2)), 2),
    ];
    assert_eq!(kinds(&witness::registers(&history)), ["stale-read"]);
    let Verdict::Broken(anomalies) = wgl::registers(&history) else { panic!() };
    assert_eq!(anomalies.len(), 1);
    let what = "x: 0 of 4 operations can be ordered; #2 read 1 doesn't fit: it needs what #0 write 1 began, \
                and was called after #1 write 2 had returned";
    assert_eq!((anomalies[0].what.as_str(), anomalies[0].operations.as_slice()), (what, [2, 1, 0].as_slice()));
}

#[test]
fn update_lost_by_two_cas() {
    let done = |revision| Answer::Done { revision };
    let history = [
        write(0, (0, 10), 1, 1),
        cas(1, (20, 40), (1, 1), (2, done(2))),
        cas(2, (25, 45), (1, 1), (3, done(3))),
        read(0, (50, 60), Some((3, 3)), 3),
    ];
    assert_eq!(kinds(&witness::registers(&history)), ["wrong-cas"]);
    assert_eq!(kinds(&wgl::registers(&history)), ["not-linearizable"]);
    let mut good = history.clone();
    good[1].answer = Answer::Refused("conflict".to_owned());
    good[2].answer = done(2);
    good[3].answer = Answer::Value { value: Some((3, 2)), revision: 2 };
    assert_eq!(broken_by(&good), [""; 0]);
}

#[test]
fn read_that_goes_back_on_another_server() {
    // The write isn't answered yet, so each read alone may or may not show it.
    let history = [write(0, (0, 100), 1, 1), read(1, (10, 20), Some((1, 1)), 1), read(2, (30, 40), None, 0)];
    assert_eq!(kinds(&witness::registers(&history)), ["revision-went-back"]);
    assert_eq!(kinds(&wgl::registers(&history)), ["not-linearizable"]);
    let mut good = history.clone();
    good.swap(1, 2);
    (good[1].called, good[1].returned, good[2].called, good[2].returned) = (10, 20, 30, 40);
    assert_eq!(broken_by(&good), [""; 0]);
}

#[test]
fn unknown_write_explains_a_conflict() {
    let refused = || Answer::Refused("conflict".to_owned());
    let unknown = op(1, (20, 0), Call::Write("x".to_owned(), 2), Answer::Unknown("timeout".to_owned()));
    let conflict = cas(2, (30, 40), (1, 1), (3, refused()));
    let history = [write(0, (0, 10), 1, 1), unknown, conflict.clone()];
    assert_eq!(wgl::registers(&history), Verdict::Valid);
    let history = [write(0, (0, 10), 1, 1), conflict.clone()];
    assert_eq!(kinds(&wgl::registers(&history)), ["not-linearizable"]);
    // It took effect for the conflict, so the first value can't come back.
    let unknown = op(1, (20, 0), Call::Write("x".to_owned(), 2), Answer::Unknown("timeout".to_owned()));
    let history = [write(0, (0, 10), 1, 1), unknown, conflict, read(0, (50, 60), Some((1, 1)), 1)];
    assert_eq!(kinds(&wgl::registers(&history)), ["not-linearizable"]);
}

#[test]
fn nothing_is_no_pass() {
    assert!(matches!(check(&[]).as_slice(), [("history", Verdict::Unknown(_))]));
    for checker in [witness::registers, wgl::registers, append::lists, set::set, snapshots::snapshots] {
        assert!(matches!(checker(&[]), Verdict::Unknown(_)));
    }
    let unknown = op(0, (0, 0), Call::Write("x".to_owned(), 1), Answer::Unknown("timeout".to_owned()));
    assert!(matches!(check(&[unknown]).as_slice(), [("history", Verdict::Unknown(_))]));
    let twice = [write(0, (0, 10), 1, 1), write(0, (20, 30), 1, 2)];
    assert!(check(&twice).iter().all(|(_, verdict)| matches!(verdict, Verdict::Unknown(_))));
}

#[test]
fn search_gives_up() {
    let history = [write(0, (0, 10), 1, 1), read(1, (20, 30), Some((1, 1)), 1)];
    let Verdict::Unknown(why) = wgl::registers_within(&history, 1) else { panic!() };
    assert!(why.starts_with("x: given up after 1 steps"), "{why}");
    assert_eq!(wgl::registers_within(&history, 10), Verdict::Valid);
}

fn lists_of(lists: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
    lists.iter().map(|(key, values)| ((*key).to_owned(), values.to_vec())).collect()
}

#[test]
fn appends_seen_in_two_orders_by_two_readers() {
    // Each list alone is fine. One reader sees a's append and not b's, the other one b's and not a's.
    let append = |process, key: &str, value, revision| {
        op(process, (0, 100), Call::Append(key.to_owned(), value), Answer::Done { revision })
    };
    let both = || Call::ReadLists(vec!["a".to_owned(), "b".to_owned()]);
    let one = Answer::Lists { lists: lists_of(&[("a", &[1])]), revision: 1 };
    let two = Answer::Lists { lists: lists_of(&[("b", &[2])]), revision: 1 };
    let history =
        [append(0, "a", 1, 1), append(1, "b", 2, 2), op(2, (10, 20), both(), one), op(3, (10, 20), both(), two)];
    let Verdict::Broken(anomalies) = append::lists(&history) else { panic!() };
    assert_eq!(anomalies.len(), 1);
    assert_eq!(anomalies[0].kind, "cycle");
    let mut on_cycle = anomalies[0].operations.clone();
    on_cycle.sort_unstable();
    assert_eq!(on_cycle, [0, 1, 2, 3]);
    assert_eq!(append::lists(&history[..3]), Verdict::Valid);
}

#[test]
fn lists_by_kind() {
    let append = |value, time, answer| op(0, time, Call::Append("a".to_owned(), value), answer);
    let done = |revision| Answer::Done { revision };
    let show = |time, values: &[u64]| {
        let answer = Answer::Lists { lists: lists_of(&[("a", values)]), revision: 9 };
        op(1, time, Call::ReadLists(vec!["a".to_owned()]), answer)
    };
    let appends = [
        append(1, (0, 10), done(1)),
        append(2, (20, 30), done(2)),
        append(3, (0, 100), Answer::Refused("no leader".to_owned())),
        append(4, (0, 100), Answer::Unknown("timeout".to_owned())),
    ];
    let verdict = |reads: &[&[u64]]| {
        let mut history = appends.to_vec();
        history.extend(reads.iter().map(|values| show((40, 50), values)));
        append::lists(&history)
    };
    assert_eq!(verdict(&[&[1, 2]]), Verdict::Valid);
    assert_eq!(verdict(&[&[1, 4, 2], &[1, 4, 2]]), Verdict::Valid);
    assert_eq!(verdict(&[&[1, 2, 4], &[1, 2]]), Verdict::Valid);
    assert!(kinds(&verdict(&[&[1]])).contains(&"lost-write"));
    assert!(kinds(&verdict(&[&[1, 2, 3]])).contains(&"refused-write-visible"));
    assert!(kinds(&verdict(&[&[1, 2, 5]])).contains(&"phantom-value"));
    assert!(kinds(&verdict(&[&[1, 2, 2]])).contains(&"duplicate"));
    assert!(kinds(&verdict(&[&[1, 2, 4], &[1, 4, 2]])).contains(&"incompatible-order"));
    assert!(kinds(&verdict(&[&[2, 1]])).contains(&"cycle"));
}

#[test]
fn set_by_kind() {
    let done = |revision| Answer::Done { revision };
    let unknown = || Answer::Unknown("timeout".to_owned());
    let show =
        |time, members: &[u64]| op(1, time, Call::ReadSet, Answer::Set { members: members.to_vec(), revision: 9 });
    let writes = [
        op(0, (0, 10), Call::Add(1), done(1)),
        op(0, (0, 10), Call::Add(2), done(2)),
        op(0, (0, 10), Call::Add(3), Answer::Refused("no leader".to_owned())),
        op(0, (0, 10), Call::Add(4), unknown()),
        op(0, (0, 10), Call::Add(5), done(3)),
        op(0, (20, 30), Call::Remove(2), done(4)),
        op(0, (20, 30), Call::Remove(5), unknown()),
    ];
    let verdict = |reads: &[((u64, u64), &[u64])]| {
        let mut history = writes.to_vec();
        history.extend(reads.iter().map(|(time, members)| show(*time, members)));
        kinds(&set::set(&history))
    };
    let none = [""; 0];
    assert_eq!(verdict(&[((40, 50), &[1]), ((60, 70), &[1, 4])]), none);
    assert_eq!(verdict(&[((11, 25), &[1]), ((12, 26), &[1, 2, 5]), ((60, 70), &[1])]), none);
    assert_eq!(verdict(&[((40, 50), &[])]), ["lost-add"]);
    assert_eq!(verdict(&[((11, 15), &[1, 5])]), ["lost-add"]);
    assert_eq!(verdict(&[((40, 50), &[1, 9])]), ["phantom-value"]);
    assert_eq!(verdict(&[((40, 50), &[1, 3])]), ["refused-write-visible"]);
    assert_eq!(verdict(&[((40, 50), &[1, 2])]), ["resurrected"]);
    // Unknown writes, but reads tell: it was gone and is back, it was there and nobody removed it.
    assert_eq!(verdict(&[((40, 50), &[1]), ((60, 70), &[1, 5])]), ["resurrected"]);
    assert_eq!(verdict(&[((40, 50), &[1, 4]), ((60, 70), &[1])]), ["lost-add"]);
}

#[test]
fn witness_by_kind() {
    let refused = op(2, (0, 5), Call::Write("x".to_owned(), 7), Answer::Refused("no leader".to_owned()));
    let writes = [write(0, (0, 10), 1, 1), write(0, (20, 30), 2, 2), refused];
    let verdict = |more: &[Operation]| {
        let mut history = writes.to_vec();
        history.extend(more.iter().cloned());
        kinds(&witness::registers(&history))
    };
    assert_eq!(verdict(&[read(1, (40, 50), Some((2, 2)), 2)]), [""; 0]);
    assert_eq!(verdict(&[read(1, (40, 50), Some((1, 1)), 2)]), ["lost-write"]);
    assert_eq!(verdict(&[read(1, (40, 50), Some((1, 1)), 2), read(1, (60, 70), Some((2, 2)), 2)]), ["stale-read"]);
    assert_eq!(verdict(&[read(1, (40, 50), Some((1, 1)), 1)]), ["stale-read"]);
    assert_eq!(verdict(&[read(1, (40, 50), Some((8, 2)), 2)]), ["phantom-value"]);
    assert_eq!(verdict(&[read(1, (40, 50), Some((2, 3)), 3)]), ["phantom-value"]);
    assert_eq!(verdict(&[read(1, (40, 50), Some((7, 2)), 2)]), ["refused-write-visible"]);
    assert_eq!(verdict(&[write(1, (40, 50), 3, 2)]), ["revision-reused", "revision-went-back"]);
    assert_eq!(verdict(&[write(1, (40, 50), 3, 0)]), ["revision-went-back"]);
    assert_eq!(verdict(&[cas(1, (40, 50), (1, 1), (3, Answer::Done { revision: 3 }))]), ["wrong-cas"]);
}
