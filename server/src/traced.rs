//! Which of the newest changes belong to a trace: what apply knows of an entry, kept for the deltas that carry it on.
//!
//! In memory, bounded; not part of the state: whether somebody traces changes nothing. A change is noted before it is
//! published, so whoever sees its revision finds it here.

use fairlead_proto::trace::MOST;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Changes remembered.
const KEPT: usize = 256;

/// The traced ones of the newest changes.
#[derive(Default)]
pub struct Traced {
    newest: AtomicU64,
    changes: Mutex<VecDeque<(u64, String)>>,
}

impl Traced {
    /// Notes the last revision of an entry and its context. Revisions only rise.
    pub fn note(&self, revision: u64, traceparent: String) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() == KEPT {
            changes.pop_front();
        }
        changes.push_back((revision, traceparent));
        self.newest.store(revision, Ordering::Release);
    }

    /// Contexts of changes after one revision and up to another, newest first, at most four.
    #[must_use]
    pub fn between(&self, after: u64, through: u64) -> Vec<String> {
        if self.newest.load(Ordering::Acquire) <= after {
            return Vec::new();
        }
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = changes.iter().rev().take_while(|(revision, _)| *revision > after);
        newest.filter(|(revision, _)| *revision <= through).take(MOST).map(|(_, context)| context.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_carries_the_newest_traced_changes_that_it_covers() {
        let traced = Traced::default();
        assert!(traced.between(0, u64::MAX).is_empty());
        for revision in [3, 5, 9] {
            traced.note(revision, format!("of {revision}"));
        }
        assert_eq!(traced.between(3, 9), ["of 9", "of 5"]);
        assert_eq!(traced.between(0, 4), ["of 3"]);
        assert!(traced.between(9, 20).is_empty() && traced.between(5, 8).is_empty());
        for revision in 10..1_000 {
            traced.note(revision, format!("of {revision}"));
        }
        assert_eq!(traced.between(0, 1_000).len(), MOST);
        assert!(traced.between(0, 500).is_empty(), "what is too old is forgotten");
    }
}
