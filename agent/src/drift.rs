//! Drift that was repaired and no server was told of yet. Bounded: the first names, and how many there were.

use fairlead_proto::v1::DriftReport;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Names kept between two reports.
pub const NAMES: usize = 20;

/// The report that is due.
#[derive(Default)]
pub struct Drifts {
    due: Mutex<DriftReport>,
    changed: Notify,
}

impl Drifts {
    /// So much was repaired; these are the first names.
    pub fn note(&self, names: Vec<String>, count: u64) {
        let mut due = self.lock();
        due.count += count;
        due.names.extend(names);
        due.names.truncate(NAMES);
        drop(due);
        self.changed.notify_one();
    }

    /// Takes the report, if one is due.
    #[must_use]
    pub fn take(&self) -> Option<DriftReport> {
        Some(std::mem::take(&mut *self.lock())).filter(|report| report.count > 0)
    }

    /// A report that didn't leave is due again.
    pub fn put_back(&self, report: DriftReport) {
        let mut due = self.lock();
        let later = std::mem::replace(&mut *due, report);
        due.count += later.count;
        due.names.extend(later.names);
        due.names.truncate(NAMES);
        drop(due);
        self.changed.notify_one();
    }

    /// When a report may be due.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, DriftReport> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_are_a_few_and_a_count() {
        let drifts = Drifts::default();
        assert_eq!(drifts.take(), None);
        drifts.note((0..NAMES + 3).map(|n| format!("rule {n}")).collect(), 25);
        let report = drifts.take().unwrap();
        assert_eq!((report.names.len(), report.count), (NAMES, 25));
        assert_eq!(drifts.take(), None);
        drifts.note(vec!["later".to_owned()], 1);
        drifts.put_back(DriftReport { names: vec!["first".into()], count: 1 });
        assert_eq!(drifts.take(), Some(DriftReport { names: vec!["first".into(), "later".into()], count: 2 }));
    }
}
