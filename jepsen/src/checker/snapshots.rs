//! Reads of lists and of the set against their revision: "the answer reflects every change up to this revision and none
//! after it", of all lists that it names at once. Registers and real time are the business of `witness`.
//!
//! Invariant: only writes that succeeded are judged by their revision; those of unknown outcome may show or not.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, nothing};
use crate::history::{Answer, Call, Key, Operation, Value, Verdict};

/// Does each read of lists and of the set show exactly the changes up to its revision, lists in the order of revisions?
#[must_use]
pub fn snapshots(history: &[Operation]) -> Verdict {
    let is_read = |op: &Operation| matches!(op.call, Call::ReadLists(_) | Call::ReadSet);
    if !history.iter().any(|op| op.is_done() && is_read(op)) {
        return nothing("read of lists or of the set");
    }
    let mut findings = Findings::default();
    check_lists(history, &mut findings);
    check_set(history, &mut findings);
    findings.verdict()
}

/// Revision and place of a write that succeeded.
type Change = (u64, usize);

fn check_lists(history: &[Operation], findings: &mut Findings) {
    let mut changes: BTreeMap<&Key, Vec<Change>> = BTreeMap::new();
    let mut appends: BTreeMap<Value, Change> = BTreeMap::new();
    for (place, op) in history.iter().enumerate() {
        if let (Call::Append(key, value), Answer::Done { revision }) = (&op.call, &op.answer) {
            changes.entry(key).or_default().push((*revision, place));
            appends.insert(*value, (*revision, place));
        }
    }
    for list in changes.values_mut() {
        list.sort_unstable();
    }
    for (place, op) in history.iter().enumerate() {
        let (Call::ReadLists(keys), Answer::Lists { lists, revision }) = (&op.call, &op.answer) else { continue };
        for key in keys.iter().collect::<BTreeSet<_>>() {
            let values = lists.get(key).map(Vec::as_slice).unwrap_or_default();
            let shown: Vec<Change> = values.iter().filter_map(|value| appends.get(value).copied()).collect();
            let all = changes.get(key).map(Vec::as_slice).unwrap_or_default();
            let due = all.partition_point(|(of, _)| of <= revision);
            check_list((place, *revision, key), &shown, all.get(..due).unwrap_or_default(), findings);
        }
    }
}

/// Compares the appends that a read shows of a list with those up to its revision.
fn check_list((place, own, key): (usize, u64, &Key), shown: &[Change], due: &[Change], findings: &mut Findings) {
    if shown == due {
        return;
    }
    let facts = format!("{key}: operation {place} of revision {own}");
    for ((of, append), (next, later)) in shown.iter().zip(shown.iter().skip(1)).filter(|(one, two)| one > two) {
        let what = format!("{facts} shows append {append} of revision {of} before {later} of revision {next}");
        findings.add("incompatible-order", &[place, *append, *later], what);
    }
    let sorted: BTreeSet<&Change> = shown.iter().collect();
    for (of, append) in due.iter().filter(|change| !sorted.contains(change)) {
        findings.add("torn-snapshot", &[place, *append], format!("{facts} lacks append {append} of revision {of}"));
    }
    for (of, append) in sorted.into_iter().filter(|(of, _)| *of > own) {
        findings.add("phantom-value", &[place, *append], format!("{facts} shows append {append} of revision {of}"));
    }
}

fn check_set(history: &[Operation], findings: &mut Findings) {
    let mut removes: BTreeMap<Value, Option<Change>> = BTreeMap::new();
    for (place, op) in history.iter().enumerate() {
        match (&op.call, &op.answer) {
            (Call::Remove(value), Answer::Done { revision }) => {
                removes.insert(*value, Some((*revision, place)));
            }
            (Call::Remove(value), Answer::Unknown(_)) => {
                removes.entry(*value).or_insert(None);
            }
            _ => {}
        }
    }
    let mut adds: BTreeMap<Value, Change> = BTreeMap::new();
    let mut events: Vec<(u64, Value, bool)> = Vec::new();
    for (place, op) in history.iter().enumerate() {
        let (Call::Add(value), Answer::Done { revision }) = (&op.call, &op.answer) else { continue };
        adds.insert(*value, (*revision, place));
        match removes.get(value) {
            None => events.push((*revision, *value, true)),
            Some(Some((removed, _))) => events.extend([(*revision, *value, true), (*removed, *value, false)]),
            // Nobody knows until when it is there.
            Some(None) => {}
        }
    }
    events.sort_unstable();
    let mut reads: Vec<(u64, usize, BTreeSet<Value>)> = Vec::new();
    for (place, op) in history.iter().enumerate() {
        if let Answer::Set { members, revision } = &op.answer {
            reads.push((*revision, place, members.iter().copied().collect()));
        }
    }
    reads.sort_unstable();
    let mut events = events.into_iter().peekable();
    let mut due: BTreeSet<Value> = BTreeSet::new();
    for (own, place, members) in reads {
        while let Some((_, value, is_add)) = events.next_if(|(of, ..)| *of <= own) {
            if is_add {
                due.insert(value);
            } else {
                due.remove(&value);
            }
        }
        for value in due.difference(&members) {
            let (of, add) = adds.get(value).copied().unwrap_or_default();
            let what = format!("operation {place} of revision {own} lacks {value}, added by {add} at revision {of}");
            findings.add("lost-add", &[place, add], what);
        }
        for value in &members {
            if let Some((of, add)) = adds.get(value).filter(|(of, _)| *of > own) {
                let what =
                    format!("operation {place} of revision {own} shows {value}, added by {add} at revision {of}");
                findings.add("phantom-value", &[place, *add], what);
            }
            if let Some((of, remove)) = removes.get(value).copied().flatten().filter(|(of, _)| *of <= own) {
                let what = format!("operation {place} of revision {own} shows {value}, removed by {remove} at {of}");
                findings.add("resurrected", &[place, remove], what);
            }
        }
    }
}
