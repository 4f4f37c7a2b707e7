//! The revisions of answers as a witness: they say in which order everything happened, so that order is simply
//! verified, in O(n log n). Registers are replayed in it; that it respects real time is checked for all operations of
//! any kind.
//!
//! Invariant: if this says [`Verdict::Valid`], ordering by revision is a linearization of the registers, except that it
//! doesn't judge refused operations (the search in `wgl` does).

use std::collections::BTreeMap;

use super::{Findings, nothing, writers};
use crate::history::{Answer, Call, Key, Operation, Value, Verdict};

/// Verifies the order that the answers' revisions claim: no revision twice, each Cas found the newest write, each read
/// saw the newest write up to its own revision, and nothing has an older revision than what had returned when it was
/// called.
#[must_use]
pub fn registers(history: &[Operation]) -> Verdict {
    if !history.iter().any(Operation::is_done) {
        return nothing("operation");
    }
    let written = |call: &Call| match call {
        Call::Write(_, value) | Call::Cas { to: value, .. } => Some(*value),
        _ => None,
    };
    let writers = match writers(history, written) {
        Ok(writers) => writers,
        Err(verdict) => return verdict,
    };
    let revisions = history.iter().map(|op| if op.is_write() { op.revision() } else { None }).collect();
    let seen = vec![false; history.len()];
    let mut witness = Witness { history, writers, revisions, seen, findings: Findings::default() };
    let sound = witness.learn();
    witness.find_reuse();
    witness.replay(&sound);
    witness.sweep();
    witness.findings.verdict()
}

/// Up to which revision something returned, and what.
type Newest = Option<(u64, usize)>;

struct Witness<'a> {
    history: &'a [Operation],
    writers: BTreeMap<Value, usize>,
    /// By place: the revision of a write, if it is known to have taken effect. Those of unknown outcome are learned
    /// from what found their value.
    revisions: Vec<Option<u64>>,
    /// By place: somebody found this write's value.
    seen: Vec<bool>,
    findings: Findings,
}

/// What an operation found: a value and the revision that wrote it.
fn found(op: &Operation) -> Option<(&Key, Value, u64)> {
    match (&op.call, &op.answer) {
        (Call::Read(key), Answer::Value { value: Some((value, revision)), .. }) => Some((key, *value, *revision)),
        (Call::Cas { key, from, revision, .. }, Answer::Done { .. }) => Some((key, *from, *revision)),
        _ => None,
    }
}

impl<'a> Witness<'a> {
    /// Looks up the writer of each value that was found; learns which writes of unknown outcome took effect, and when.
    /// Tells which operations may be replayed: the others are reported already.
    fn learn(&mut self) -> Vec<bool> {
        let mut sound = vec![true; self.history.len()];
        for ((place, op), sound) in self.history.iter().enumerate().zip(&mut sound) {
            if let Some((key, value, revision)) = found(op)
                && let Err((kind, writer, what)) = self.learn_one(op, key, (value, revision))
            {
                *sound = false;
                let operations: Vec<usize> = std::iter::once(place).chain(writer).collect();
                self.findings.add(kind, &operations, format!("operation {place} found {value} in {key}, {what}"));
            }
        }
        sound
    }

    fn learn_one(
        &mut self,
        op: &Operation,
        key: &Key,
        (value, revision): (Value, u64),
    ) -> Result<(), (&'static str, Option<usize>, String)> {
        let Some(writer) = self.writers.get(&value).copied() else {
            return Err(("phantom-value", None, "which nobody wrote".to_owned()));
        };
        let Some(write) = self.history.get(writer) else { return Ok(()) };
        let at = match &write.call {
            Call::Write(at, _) | Call::Cas { key: at, .. } => at,
            _ => return Ok(()),
        };
        if at != key {
            return Err(("phantom-value", Some(writer), format!("which operation {writer} wrote to {at}")));
        }
        if matches!(write.answer, Answer::Refused(_)) {
            return Err(("refused-write-visible", Some(writer), format!("whose write {writer} was refused")));
        }
        if op.revision().is_some_and(|own| own < revision) {
            let what = format!("of revision {revision}, which its own revision doesn't reflect yet");
            return Err(("phantom-value", Some(writer), what));
        }
        let Some(known) = self.revisions.get_mut(writer) else { return Ok(()) };
        if let Some(known) = known.filter(|known| *known != revision) {
            let what = format!("of revision {revision}, but operation {writer} wrote it at revision {known}");
            return Err(("phantom-value", Some(writer), what));
        }
        *known = Some(revision);
        if let Some(seen) = self.seen.get_mut(writer) {
            *seen = true;
        }
        Ok(())
    }

    fn find_reuse(&mut self) {
        let each = self.revisions.iter().enumerate();
        let mut all: Vec<(u64, usize)> = each.filter_map(|(place, revision)| Some(((*revision)?, place))).collect();
        all.sort_unstable();
        for ((left, one), (right, two)) in all.iter().zip(all.iter().skip(1)) {
            if left == right {
                let what = format!("operations {one} and {two} both have revision {left}");
                self.findings.add("revision-reused", &[*one, *two], what);
            }
        }
    }

    /// Compares what each operation found with the newest write before it.
    fn replay(&mut self, sound: &[bool]) {
        let mut writes: BTreeMap<&Key, Vec<(u64, usize, Value)>> = BTreeMap::new();
        for (place, (op, revision)) in self.history.iter().zip(&self.revisions).enumerate() {
            if let (Call::Write(key, value) | Call::Cas { key, to: value, .. }, Some(revision)) = (&op.call, revision) {
                writes.entry(key).or_default().push((*revision, place, *value));
            }
        }
        for list in writes.values_mut() {
            list.sort_unstable();
        }
        for ((place, op), sound) in self.history.iter().enumerate().zip(sound) {
            let (Some(own), true) = (op.revision(), *sound) else { continue };
            let (key, before) = match &op.call {
                Call::Read(key) => (key, own.saturating_add(1)),
                Call::Cas { key, .. } => (key, own),
                _ => continue,
            };
            let list = writes.get(key).map(Vec::as_slice).unwrap_or_default();
            let newest = list.partition_point(|(revision, ..)| *revision < before).checked_sub(1);
            let newest = newest.and_then(|at| list.get(at));
            if newest.map(|(revision, _, value)| (*value, *revision)) != found(op).map(|(_, value, of)| (value, of)) {
                self.report_replay(place, op, newest.map(|(revision, write, _)| (*revision, *write)));
            }
        }
    }

    fn report_replay(&mut self, place: usize, op: &Operation, newest: Newest) {
        let has = found(op).map_or_else(|| "nothing".to_owned(), |(_, value, of)| format!("{value} of revision {of}"));
        let missed =
            newest.map_or_else(String::new, |(of, write)| format!(" and not operation {write} of revision {of}"));
        let own = op.revision().unwrap_or_default();
        let what = format!("operation {place} of revision {own} found {has}{missed}");
        let is_seen = newest.and_then(|(_, write)| self.seen.get(write)).copied().unwrap_or(true);
        let kind = match op.call {
            Call::Cas { .. } => "wrong-cas",
            _ if is_seen => "stale-read",
            _ => "lost-write",
        };
        let operations: Vec<usize> = std::iter::once(place).chain(newest.map(|(_, write)| write)).collect();
        self.findings.add(kind, &operations, what);
    }

    /// Real time: an answer is at least as new as all that had returned when it was asked for, and a write is newer.
    fn sweep(&mut self) {
        let revision = |place: usize, op: &Operation| {
            if op.is_write() { self.revisions.get(place).copied().flatten() } else { op.revision() }
        };
        let each = self.history.iter().enumerate().filter_map(|(place, op)| Some((place, op, revision(place, op)?)));
        let mut by_call: Vec<(usize, &'a Operation, u64)> = each.collect();
        let mut by_return = by_call.clone();
        by_call.sort_by_key(|(_, op, _)| op.called);
        // One whose outcome is unknown has no return, though its revision was learned.
        by_return.retain(|(_, op, _)| op.is_done());
        by_return.sort_by_key(|(_, op, _)| op.returned);
        let mut returned = by_return.into_iter().peekable();
        let (mut newest, mut newest_write): (Newest, Newest) = (None, None);
        for (place, op, own) in by_call {
            while let Some((other, before, revision)) = returned.next_if(|(_, other, _)| other.returned < op.called) {
                newest = newest.max(Some((revision, other)));
                if before.is_write() {
                    newest_write = newest_write.max(Some((revision, other)));
                }
            }
            let is_old = |than: &(u64, usize)| own < than.0 || (own == than.0 && op.is_write());
            let (kind, older) = match (newest_write.filter(is_old), newest.filter(is_old)) {
                (Some(write), _) if !op.is_write() => ("stale-read", write),
                (_, Some(any)) => ("revision-went-back", any),
                _ => continue,
            };
            let (than, other) = older;
            let what = format!("operation {place} has revision {own}, but {other} had returned with {than} before");
            self.findings.add(kind, &[place, other], what);
        }
    }
}
