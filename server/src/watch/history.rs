//! The window of recent events: what a watcher can resume from and a delta is made of. Pure and persistent: a clone
//! costs O(1) and it is the same on every server, as it is a function of the log.
//!
//! INVARIANT: it holds every event after `compacted()`, each revision once; at most [`WINDOW`] events and, but for the
//! newest, [`WINDOW_BYTES`] of encoded objects. Storage keeps the same events, written in the batch that made them.

use crate::machine::Change;
use fairlead_proto::internal::v1::StoredEvent;
use fairlead_proto::model::{Key, ObjectRef};
use prost::Message as _;
use rpds::RedBlackTreeMapSync;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Events kept.
pub const WINDOW: u64 = 16_384;
/// Encoded bytes of objects kept: large endpoints records would else fill the memory long before [`WINDOW`] does.
pub const WINDOW_BYTES: usize = 256 << 20;

/// The recent events of a cluster, in the order of their revisions.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: RedBlackTreeMapSync<u64, Arc<Change>>,
    compacted: u64,
    bytes: usize,
}

/// The asked-for events are gone; the caller must read the state anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events up to revision {oldest} are compacted")]
pub struct Compacted {
    /// The smallest revision that can be resumed after.
    pub oldest: u64,
}

/// Why stored events are no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// An event without an object.
    #[error("stored event {0} has neither an old nor a new object")]
    Empty(u64),
    /// A revision is missing or doubled.
    #[error("stored event {found} follows {after}: the window has a gap")]
    Gap {
        /// Last revision before the gap.
        after: u64,
        /// Revision found.
        found: u64,
    },
}

impl History {
    /// Adds the next event; forgets the oldest ones beyond the bounds. `Some`: events at or below this revision are
    /// gone now (mostly one; several if a large event came).
    pub fn push(&mut self, change: Arc<Change>) -> Option<u64> {
        let before = self.compacted;
        self.bytes = self.bytes.saturating_add(cost(&change));
        self.events.insert_mut(change.revision, change);
        while self.len() > WINDOW || (self.bytes > WINDOW_BYTES && self.events.size() > 1) {
            let Some((revision, bytes)) = self.events.first().map(|(revision, oldest)| (*revision, cost(oldest)))
            else {
                break;
            };
            self.events.remove_mut(&revision);
            self.bytes = self.bytes.saturating_sub(bytes);
            self.compacted = revision;
        }
        (self.compacted > before).then_some(self.compacted)
    }

    /// Events at or below this revision are gone.
    #[must_use]
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Every event after a revision, in order; none if that is the newest or lies in the future.
    ///
    /// # Errors
    /// [`Compacted`] if some of them are gone.
    pub fn after(&self, revision: u64) -> Result<impl Iterator<Item = Arc<Change>> + '_, Compacted> {
        if revision < self.compacted {
            return Err(Compacted { oldest: self.compacted });
        }
        Ok(self.events.range(revision.saturating_add(1)..).map(|(_, change)| change.clone()))
    }

    /// Number of events.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.events.size() as u64
    }

    /// No event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The window as it is stored and sent, oldest first.
    pub fn records(&self) -> impl Iterator<Item = StoredEvent> + '_ {
        self.events.values().map(|change| change.to_stored())
    }

    /// A window out of its records, in any order, and its compaction point; records at or below that are passed over.
    /// An object that two events share (the one's new state, the other's old one), or an event and the state (`live`), is
    /// held once.
    ///
    /// # Errors
    /// [`HistoryError`] if the records are no window: they must follow `compacted` without a gap.
    pub fn from_records(
        compacted: u64,
        records: impl IntoIterator<Item = StoredEvent>,
        live: impl Fn(&Key) -> Option<ObjectRef>,
    ) -> Result<Self, HistoryError> {
        let mut records: Vec<StoredEvent> = records.into_iter().filter(|record| record.revision > compacted).collect();
        records.sort_by_key(|record| record.revision);
        let mut history = Self { compacted, ..Self::default() };
        let mut shared: BTreeMap<(Key, u64), ObjectRef> = BTreeMap::new();
        let mut last = compacted;
        for record in records {
            if record.revision != last.saturating_add(1) {
                return Err(HistoryError::Gap { after: last, found: record.revision });
            }
            last = record.revision;
            let mut change = Change::from_stored(record).ok_or(HistoryError::Empty(last))?;
            for side in [&mut change.old, &mut change.new] {
                if let Some(object) = side.take() {
                    let id = (change.key.clone(), object.metadata().revision);
                    let live = live(&id.0).filter(|live| live.metadata().revision == id.1);
                    *side = Some(shared.entry(id).or_insert(live.unwrap_or(object)).clone());
                }
            }
            history.push(Arc::new(change));
        }
        Ok(history)
    }
}

/// What an event adds to the window: its old state is the new one of an earlier event, or of the state.
fn cost(change: &Change) -> usize {
    change.new.as_ref().or(change.old.as_ref()).map_or(0, |object| object.encoded_len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{Kind, Namespace, Object, ObjectMeta};
    use proptest::prelude::*;

    fn object(revision: u64, bytes: usize) -> ObjectRef {
        let metadata =
            ObjectMeta { name: "x".into(), revision, last_applied: "y".repeat(bytes), ..ObjectMeta::default() };
        Arc::new(Object::from(Namespace { metadata: Some(metadata), ..Namespace::default() }))
    }

    fn change(revision: u64, bytes: usize) -> Arc<Change> {
        let old = (revision > 1).then(|| object(revision - 1, 0));
        Arc::new(Change {
            revision,
            at_ms: revision,
            key: Key::new(Kind::Namespace, "", "x"),
            old,
            new: Some(object(revision, bytes)),
        })
    }

    fn of(count: u64) -> History {
        let mut history = History::default();
        for revision in 1..=count {
            history.push(change(revision, 0));
        }
        history
    }

    #[test]
    fn the_window_holds_the_last_events_and_says_compacted_before_them() {
        let mut history = of(WINDOW);
        assert_eq!((history.compacted(), history.len()), (0, WINDOW));
        assert_eq!(history.push(change(WINDOW + 1, 0)), Some(1));
        for revision in WINDOW + 2..=WINDOW + 10 {
            assert_eq!(history.push(change(revision, 0)), Some(revision - WINDOW));
        }
        assert_eq!(history.after(9).err(), Some(Compacted { oldest: 10 }));
        assert_eq!(history.after(10).unwrap().count() as u64, WINDOW);
        let last: Vec<_> = history.after(WINDOW + 8).unwrap().map(|change| change.revision).collect();
        assert_eq!(last, [WINDOW + 9, WINDOW + 10]);
        assert_eq!(history.after(u64::MAX).unwrap().count(), 0);
    }

    #[test]
    fn large_events_push_many_small_ones_out_but_never_themselves() {
        let mut history = of(10);
        assert_eq!(history.push(change(11, WINDOW_BYTES)), Some(10));
        assert_eq!((history.len(), history.compacted()), (1, 10));
        assert_eq!(history.push(change(12, 0)), Some(11));
        assert_eq!(history.after(11).unwrap().count(), 1);
    }

    #[test]
    fn records_with_a_gap_are_refused_and_leftovers_passed_over() {
        let mut records: Vec<_> = of(10).records().collect();
        assert_eq!(History::from_records(4, records.clone(), |_| None).unwrap().len(), 6);
        records.remove(6);
        assert_eq!(
            History::from_records(0, records.clone(), |_| None).err(),
            Some(HistoryError::Gap { after: 6, found: 8 })
        );
        records.truncate(3);
        records[2].new = None;
        records[2].old = None;
        assert_eq!(History::from_records(0, records, |_| None).err(), Some(HistoryError::Empty(3)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn resuming_after_any_revision_gives_all_later_events_once(count in 0_u64..200, from in 0_u64..210) {
            let history = of(count);
            let seen: Vec<u64> = history.after(from).unwrap().map(|change| change.revision).collect();
            prop_assert_eq!(seen, (from + 1..=count).collect::<Vec<_>>());
        }

        #[test]
        fn records_round_trip(count in 0_u64..100) {
            let history = of(count);
            let again = History::from_records(history.compacted(), history.records(), |_| None).unwrap();
            prop_assert_eq!(again.compacted(), history.compacted());
            prop_assert_eq!(again.bytes, history.bytes);
            prop_assert_eq!(again.after(0).unwrap().collect::<Vec<_>>(), history.after(0).unwrap().collect::<Vec<_>>());
        }
    }
}
