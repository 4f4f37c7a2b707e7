//! The set, member by member: each is added once and removed at most once, so it is absent, then present, then absent.
//! It doesn't look at revisions, and not at several members at once (`snapshots` does).
//!
//! Invariant: a member is called lost or resurrected only if no moment of its add and its remove explains all reads of
//! it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, is_set, nothing, writers};
use crate::history::{Answer, Call, Operation, Value, Verdict};

/// Do all reads of the set agree with what was added and removed, and with real time?
#[must_use]
pub fn set(history: &[Operation]) -> Verdict {
    if !history.iter().any(|op| op.is_done() && is_set(&op.call)) {
        return nothing("operation on the set");
    }
    let added = |call: &Call| if let Call::Add(value) = call { Some(*value) } else { None };
    let adds = match writers(history, added) {
        Ok(adds) => adds,
        Err(verdict) => return verdict,
    };
    let mut state = Sweep { history, adds, ..Sweep::default() };
    state.gather();
    state.run();
    state.findings.verdict()
}

/// Something that holds for reads that are called after a moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    /// It was added.
    Added,
    /// A remove of it was called.
    Removing,
}

/// A sweep over the reads by their call, with what each must show.
#[derive(Default)]
struct Sweep<'a> {
    history: &'a [Operation],
    adds: BTreeMap<Value, usize>,
    /// When the first remove was called that may have taken effect.
    removes: BTreeMap<Value, u64>,
    facts: BTreeSet<(u64, Fact, Value)>,
    /// Was added, and no remove was called: must be shown.
    present: BTreeMap<Value, usize>,
    /// Was added, and a remove was called: may be shown, until it wasn't.
    leaving: BTreeMap<Value, usize>,
    /// A remove was called before it was known to be added.
    removing: BTreeSet<Value>,
    /// From when on it is known to be gone, and by what.
    gone: BTreeMap<Value, (u64, usize)>,
    /// Who is the first known to have seen it.
    seen: BTreeMap<Value, (u64, usize)>,
    findings: Findings,
}

impl Sweep<'_> {
    fn gather(&mut self) {
        for (place, op) in self.history.iter().enumerate() {
            let is_done = match op.answer {
                Answer::Refused(_) => continue,
                Answer::Unknown(_) => false,
                _ => true,
            };
            match op.call {
                Call::Add(value) if is_done => {
                    self.facts.insert((op.returned, Fact::Added, value));
                    self.seen.insert(value, (op.returned, place));
                }
                Call::Remove(value) => {
                    let first = self.removes.entry(value).or_insert(op.called);
                    *first = (*first).min(op.called);
                    self.facts.insert((op.called, Fact::Removing, value));
                    if is_done {
                        let known = self.gone.entry(value).or_insert((op.returned, place));
                        *known = (*known).min((op.returned, place));
                    }
                }
                _ => {}
            }
        }
    }

    fn run(&mut self) {
        let each = self.history.iter().enumerate();
        let mut reads: Vec<(usize, &Operation, BTreeSet<Value>)> = each
            .filter_map(|(place, op)| match &op.answer {
                Answer::Set { members, .. } => Some((place, op, members.iter().copied().collect())),
                _ => None,
            })
            .collect();
        reads.sort_by_key(|(_, op, _)| op.called);
        for (place, op, members) in reads {
            while let Some((_, fact, value)) = self.facts.first().copied().filter(|(time, ..)| *time < op.called) {
                self.facts.pop_first();
                self.learn(fact, value);
            }
            if let Answer::Set { members: listed, .. } = &op.answer
                && listed.len() > members.len()
            {
                self.findings.add("duplicate", &[place], format!("operation {place} shows a member twice"));
            }
            self.check_absent(place, op, &members);
            self.check_present(place, op, &members);
        }
    }

    fn learn(&mut self, fact: Fact, value: Value) {
        let by = self.seen.get(&value).map_or(0, |(_, by)| *by);
        match fact {
            Fact::Added if self.removing.contains(&value) => self.leaving.insert(value, by),
            Fact::Added => self.present.insert(value, by),
            Fact::Removing => {
                self.removing.insert(value);
                self.present.remove(&value).and_then(|by| self.leaving.insert(value, by))
            }
        };
    }

    /// What isn't shown, though it must be; and what is known to be gone for this reason.
    fn check_absent(&mut self, place: usize, op: &Operation, members: &BTreeSet<Value>) {
        for (value, by) in self.present.iter().filter(|(value, _)| !members.contains(value)) {
            // A remove that is called before the read returns may stand before it.
            if self.removes.get(value).is_some_and(|called| *called <= op.returned) {
                let gone = self.gone.entry(*value).or_insert((op.returned, place));
                *gone = (*gone).min((op.returned, place));
                continue;
            }
            let what = format!("operation {place} doesn't show {value}, which operation {by} added or saw before");
            self.findings.add("lost-add", &[place, *by], what);
        }
        for value in self.leaving.keys().filter(|value| !members.contains(value)) {
            let gone = self.gone.entry(*value).or_insert((op.returned, place));
            *gone = (*gone).min((op.returned, place));
        }
        let gone = &self.gone;
        self.leaving.retain(|value, _| gone.get(value).is_none_or(|(since, _)| *since >= op.called));
    }

    /// What is shown, though it was never added, not yet, or is gone.
    fn check_present(&mut self, place: usize, op: &Operation, members: &BTreeSet<Value>) {
        for value in members {
            let Some((add, adding)) = self.adds.get(value).and_then(|add| Some((*add, self.history.get(*add)?))) else {
                let what = format!("operation {place} shows {value}, which nobody added");
                self.findings.add("phantom-value", &[place], what);
                continue;
            };
            if matches!(adding.answer, Answer::Refused(_)) {
                let what = format!("operation {place} shows {value}, whose add {add} was refused");
                self.findings.add("refused-write-visible", &[place, add], what);
                continue;
            }
            if adding.called > op.returned {
                let what = format!("operation {place} shows {value}, whose add {add} was called later");
                self.findings.add("phantom-value", &[place, add], what);
            }
            if let Some((since, by)) = self.gone.get(value).filter(|(since, _)| *since < op.called) {
                let what = format!("operation {place} shows {value}, which was gone at {since} by operation {by}");
                self.findings.add("resurrected", &[place, *by], what);
            }
            let first = self.seen.get(value).copied();
            if first.is_none_or(|(time, _)| op.returned < time) {
                self.seen.insert(*value, (op.returned, place));
                self.facts.insert((op.returned, Fact::Added, *value));
            }
        }
    }
}
