//! Wrong histories to prove the checkers with: one answer of a good history is changed such that it breaks what was
//! promised, whatever the cluster did that the history doesn't tell.
//!
//! Invariant: a mutation is made only where the history itself proves it wrong. Each function says by what.

use std::collections::BTreeMap;

use crate::history::{Answer, Call, Key, Operation, Value};
use crate::random::Random;

/// A way in which a cluster can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// A read shows an older state, revision and all, than a write had left that had returned.
    StaleRead,
    /// A read shows an older state than another read had shown that had returned.
    ReadWentBack,
    /// A read lacks a write that had succeeded, though its revision says that it reflects it.
    LostWrite,
    /// A write took effect a second time.
    DoubleApply,
    /// A read shows two appends in the wrong order.
    SwappedOrder,
    /// A read shows a value that nobody wrote.
    Phantom,
    /// A read of several lists lacks a change of one list and shows a later change of another.
    TornSnapshot,
    /// A read shows a write that was refused.
    ReadOfRefused,
    /// Two changes have the same revision.
    RevisionReused,
    /// A Cas succeeded on a revision that was overwritten before.
    CasOnOldRevision,
    /// A read shows a write that was called only after the read had returned.
    ReadBeforeWrite,
    /// A member was added and is missing, though nobody removed it.
    LostAdd,
    /// A member was removed and is shown.
    Resurrected,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::StaleRead,
        Self::ReadWentBack,
        Self::LostWrite,
        Self::DoubleApply,
        Self::SwappedOrder,
        Self::Phantom,
        Self::TornSnapshot,
        Self::ReadOfRefused,
        Self::RevisionReused,
        Self::CasOnOldRevision,
        Self::ReadBeforeWrite,
        Self::LostAdd,
        Self::Resurrected,
    ];
}

/// The history with one answer changed, at a place that the seed chooses. `None`: there is no place where this mutation
/// would prove anything. It looks at all pairs of operations, so give it short histories.
#[must_use]
pub fn mutate(history: &[Operation], mutation: Mutation, seed: u64) -> Option<Vec<Operation>> {
    let facts = Facts::new(history);
    let mut random = Random::new(seed);
    let (first, second) = (random.index(history.len()), random.index(history.len()));
    let rotated = |by: usize| history.iter().enumerate().cycle().skip(by).take(history.len());
    for (place, op) in rotated(first) {
        if !op.is_done() {
            continue;
        }
        for (_, other) in rotated(second) {
            if let Some(changed) = change(&facts, mutation, op, other) {
                let mut mutated = history.to_vec();
                *mutated.get_mut(place)? = changed;
                return Some(mutated);
            }
        }
    }
    None
}

fn change(facts: &Facts, mutation: Mutation, op: &Operation, other: &Operation) -> Option<Operation> {
    match mutation {
        Mutation::StaleRead => stale_read(facts, op, other),
        Mutation::ReadWentBack => read_went_back(facts, op, other),
        Mutation::LostWrite => lost_write(facts, op, other),
        Mutation::DoubleApply => double_apply(facts, op, other),
        Mutation::SwappedOrder => swapped_order(facts, op, other),
        // The greatest value that was asked for, plus one.
        Mutation::Phantom => show(op, None, facts.last_value + 1, op.revision()?),
        Mutation::TornSnapshot => torn_snapshot(facts, op, other),
        Mutation::ReadOfRefused => {
            if !matches!(other.answer, Answer::Refused(_)) {
                return None;
            }
            show(op, Some(&other.call), written(&other.call)?, op.revision()?)
        }
        Mutation::RevisionReused => revision_reused(op, other),
        Mutation::CasOnOldRevision => cas_on_old_revision(facts, op, other),
        Mutation::ReadBeforeWrite => {
            let revision = acked(other)?;
            if op.returned >= other.called {
                return None;
            }
            show(op, Some(&other.call), written(&other.call)?, revision)
        }
        Mutation::LostAdd => lost_add(facts, op, other),
        Mutation::Resurrected => match (&op.answer, &other.call) {
            (Answer::Set { .. }, Call::Remove(value)) if acked(other).is_some() && other.returned < op.called => {
                show(op, None, *value, op.revision()?)
            }
            _ => None,
        },
    }
}

/// What is known of a history before it is changed.
struct Facts {
    /// By register: revision and value of the writes that are known to have taken effect.
    registers: BTreeMap<Key, BTreeMap<u64, Value>>,
    /// Revisions of the appends that succeeded.
    appends: BTreeMap<Value, u64>,
    /// When a remove was first called that may have taken effect.
    removes: BTreeMap<Value, u64>,
    last_value: Value,
}

impl Facts {
    fn new(history: &[Operation]) -> Self {
        let (mut registers, mut appends, mut removes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for op in history {
            let (key, value, revision) = match (&op.call, &op.answer) {
                (Call::Write(key, to) | Call::Cas { key, to, .. }, Answer::Done { revision }) => (key, *to, *revision),
                (Call::Read(key), Answer::Value { value: Some((value, revision)), .. }) => (key, *value, *revision),
                (Call::Append(_, value), Answer::Done { revision }) => {
                    appends.insert(*value, *revision);
                    continue;
                }
                (Call::Remove(value), Answer::Done { .. } | Answer::Unknown(_)) => {
                    let first = removes.entry(*value).or_insert(u64::MAX);
                    *first = op.called.min(*first);
                    continue;
                }
                _ => continue,
            };
            let writes: &mut BTreeMap<u64, Value> = registers.entry(key.clone()).or_default();
            writes.insert(revision, value);
        }
        let last_value = history.iter().filter_map(|op| written(&op.call)).max().unwrap_or_default();
        Self { registers, appends, removes, last_value }
    }

    /// A register's value before a revision.
    fn before(&self, key: &Key, revision: u64) -> Option<(Value, u64)> {
        let (of, value) = self.registers.get(key)?.range(..revision).next_back()?;
        Some((*value, *of))
    }
}

/// The value that a write leaves.
fn written(call: &Call) -> Option<Value> {
    match call {
        Call::Write(_, value) | Call::Cas { to: value, .. } | Call::Append(_, value) | Call::Add(value) => Some(*value),
        _ => None,
    }
}

/// The revision of a write that succeeded.
fn acked(op: &Operation) -> Option<u64> {
    if op.is_write() { op.revision() } else { None }
}

fn register(call: &Call) -> Option<&Key> {
    match call {
        Call::Write(key, _) | Call::Cas { key, .. } | Call::Read(key) => Some(key),
        _ => None,
    }
}

fn with(op: &Operation, answer: Answer) -> Operation {
    Operation { answer, ..op.clone() }
}

/// The read, but it also shows a value, as of a revision. `by` wrote the value: the read must be of the same object.
fn show(op: &Operation, by: Option<&Call>, value: Value, of: u64) -> Option<Operation> {
    let at_least = op.revision()?.max(of);
    match (&op.call, &op.answer, by) {
        (Call::Read(key), Answer::Value { .. }, by) if by.is_none_or(|by| register(by) == Some(key)) => {
            Some(with(op, Answer::Value { value: Some((value, of)), revision: at_least }))
        }
        (Call::ReadLists(keys), Answer::Lists { lists, .. }, by) => {
            let key = match by {
                None => keys.first()?,
                Some(Call::Append(key, _)) if keys.contains(key) => key,
                Some(_) => return None,
            };
            let mut lists = lists.clone();
            lists.entry(key.clone()).or_default().push(value);
            Some(with(op, Answer::Lists { lists, revision: at_least }))
        }
        (Call::ReadSet, Answer::Set { members, .. }, None | Some(Call::Add(_))) if !members.contains(&value) => {
            let mut members = members.clone();
            members.push(value);
            members.sort_unstable();
            Some(with(op, Answer::Set { members, revision: at_least }))
        }
        _ => None,
    }
}

/// The answer is older than a write that had returned when it was called.
fn stale_read(facts: &Facts, op: &Operation, write: &Operation) -> Option<Operation> {
    let (Call::Read(key), of) = (&op.call, acked(write)?) else { return None };
    if register(&write.call) != Some(key) || write.returned >= op.called {
        return None;
    }
    Some(with(op, Answer::Value { value: facts.before(key, of), revision: of - 1 }))
}

/// The answer is older than the value of a read that had returned when it was called.
fn read_went_back(facts: &Facts, op: &Operation, read: &Operation) -> Option<Operation> {
    let (Call::Read(key), Call::Read(other)) = (&op.call, &read.call) else { return None };
    let Answer::Value { value: Some((_, of)), .. } = read.answer else { return None };
    if key != other || read.returned >= op.called {
        return None;
    }
    Some(with(op, Answer::Value { value: facts.before(key, of), revision: of - 1 }))
}

/// The write had returned when the read was called, and its revision isn't newer than the read's.
fn lost_write(facts: &Facts, op: &Operation, write: &Operation) -> Option<Operation> {
    let (of, lost) = (acked(write)?, written(&write.call)?);
    if write.returned >= op.called {
        return None;
    }
    match (&op.call, &op.answer, &write.call) {
        (Call::Read(key), Answer::Value { value, revision }, by) => {
            let is_shown = register(by) == Some(key) && *value == Some((lost, of));
            is_shown.then(|| with(op, Answer::Value { value: facts.before(key, of), revision: *revision }))
        }
        (Call::ReadLists(_), Answer::Lists { .. }, Call::Append(key, _)) => without(op, key, lost),
        _ => None,
    }
}

fn without(op: &Operation, key: &Key, value: Value) -> Option<Operation> {
    let Answer::Lists { lists, revision } = &op.answer else { return None };
    if !lists.get(key)?.contains(&value) {
        return None;
    }
    let mut lists = lists.clone();
    lists.get_mut(key)?.retain(|other| *other != value);
    Some(with(op, Answer::Lists { lists, revision: *revision }))
}

/// A list shows an append twice; or a register shows a write again, with another revision than it had been answered.
fn double_apply(facts: &Facts, op: &Operation, write: &Operation) -> Option<Operation> {
    let (of, value) = (acked(write)?, written(&write.call)?);
    match (&op.answer, &write.call) {
        (Answer::Lists { lists, revision }, Call::Append(key, _)) if lists.get(key)?.contains(&value) => {
            show(op, Some(&write.call), value, *revision)
        }
        (Answer::Value { value: Some((shown, again)), revision }, by) => {
            let key = register(&op.call)?;
            if register(by) != Some(key) || *shown == value || facts.before(key, *again)?.1 < of {
                return None;
            }
            Some(with(op, Answer::Value { value: Some((value, *again)), revision: *revision }))
        }
        _ => None,
    }
}

/// Both appends succeeded, so their revisions tell the order.
fn swapped_order(facts: &Facts, op: &Operation, append: &Operation) -> Option<Operation> {
    let (Answer::Lists { lists, revision }, Call::Append(key, value), Some(_)) =
        (&op.answer, &append.call, acked(append))
    else {
        return None;
    };
    let at = lists.get(key)?.iter().position(|other| other == value)?;
    let before = at.checked_sub(1)?;
    facts.appends.get(lists.get(key)?.get(before)?)?;
    let mut lists = lists.clone();
    lists.get_mut(key)?.swap(before, at);
    Some(with(op, Answer::Lists { lists, revision: *revision }))
}

/// Another list of the same answer shows an append of a later revision.
fn torn_snapshot(facts: &Facts, op: &Operation, append: &Operation) -> Option<Operation> {
    let (Answer::Lists { lists, .. }, Call::Append(key, value), Some(of)) = (&op.answer, &append.call, acked(append))
    else {
        return None;
    };
    let is_later = |value: &Value| facts.appends.get(value).is_some_and(|later| *later > of);
    let is_torn = lists.iter().any(|(other, list)| other != key && list.iter().any(is_later));
    if !is_torn || lists.get(key)?.last() != Some(value) {
        return None;
    }
    without(op, key, *value)
}

fn revision_reused(op: &Operation, other: &Operation) -> Option<Operation> {
    let (own, revision) = (acked(op)?, acked(other)?);
    (own != revision).then(|| with(op, Answer::Done { revision }))
}

/// What the Cas found was overwritten by a write that is known to have taken effect before the Cas did.
fn cas_on_old_revision(facts: &Facts, op: &Operation, write: &Operation) -> Option<Operation> {
    let Call::Cas { key, revision, to, .. } = &op.call else { return None };
    if register(&write.call) != Some(key) || acked(write)? != *revision {
        return None;
    }
    let (from, revision) = facts.before(key, *revision)?;
    Some(Operation { call: Call::Cas { key: key.clone(), from, revision, to: *to }, ..op.clone() })
}

/// The add had returned when the read was called, and no remove was called until it returned.
fn lost_add(facts: &Facts, op: &Operation, add: &Operation) -> Option<Operation> {
    let (Answer::Set { members, revision }, Call::Add(value), Some(_)) = (&op.answer, &add.call, acked(add)) else {
        return None;
    };
    let is_removed = facts.removes.get(value).is_some_and(|called| *called <= op.returned);
    if is_removed || add.returned >= op.called || !members.contains(value) {
        return None;
    }
    let members = members.iter().copied().filter(|member| member != value).collect();
    Some(with(op, Answer::Set { members, revision: *revision }))
}
