//! Drift that agents repaired, as events of their nodes: the newest ones, in the memory of the server that was told.
//!
//! Not part of the replicated state: what a kernel held wrongly for a moment is no fact of the cluster, and a flood of it
//! must not become a flood of log entries. A restart of the server forgets them; the agents' logs don't.

use fairlead_proto::model::Key;
use fairlead_proto::v1::{DriftReport, HistoryEvent, Kind};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Events kept.
pub const KEPT: usize = 256;
/// Names in one event.
const NAMES: usize = 20;
/// Longest name, characters.
const NAME: usize = 200;

/// The newest events.
#[derive(Default)]
pub struct Drifts(Mutex<VecDeque<HistoryEvent>>);

impl Drifts {
    /// A node's word that it repaired something, at a revision and a time (RFC 3339).
    pub fn note(&self, node: &str, report: &DriftReport, (revision, time): (u64, String)) {
        let event = HistoryEvent {
            revision,
            time,
            r#type: "Warning".to_owned(),
            reason: "DriftRepaired".to_owned(),
            key: Some(Key::new(Kind::Node, "", node).to_wire()),
            message: message(report),
        };
        let mut events = self.lock();
        if events.len() >= KEPT {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// All, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<HistoryEvent> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<HistoryEvent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message(report: &DriftReport) -> String {
    let names: Vec<String> = report.names.iter().take(NAMES).map(|name| name.chars().take(NAME).collect()).collect();
    let more = report.count.saturating_sub(names.len() as u64);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("somebody else had changed the kernel's rules, repaired: {}{rest}", names.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_bounded() {
        let drifts = Drifts::default();
        let report = DriftReport { names: vec!["x".repeat(1_000), "chain b missing".into()], count: 5 };
        for revision in 0..KEPT as u64 + 2 {
            drifts.note("n1", &report, (revision, String::new()));
        }
        let events = drifts.events();
        assert_eq!((events.len(), events[0].revision), (KEPT, 2));
        let said = &events[0].message;
        assert!(said.ends_with("; chain b missing; and 3 more") && said.len() < 300, "{said}");
    }
}
