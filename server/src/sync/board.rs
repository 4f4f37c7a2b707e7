//! Who serves what: the newest word of every node, on the server that holds its stream and, reported, on the leader.
//!
//! Kept in memory only. Silence is judged by this process's monotonic clock from the moment a word arrived; a node's own
//! clock counts nowhere. A new leader starts with an empty board and gives every node a fresh grace.

use fairlead_proto::internal::v1::NodeReport;
use fairlead_proto::v1::NodeProgress;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The newest word of one node.
#[derive(Clone, Debug)]
pub struct Word {
    /// Highest revision that its kernel serves.
    pub acknowledged: u64,
    /// Kernel mode.
    pub mode: String,
    /// Why the last revision could not be programmed; empty = no error.
    pub error: String,
    /// Agent's version.
    pub version: String,
    /// Silence after which it counts as dead.
    pub grace: Duration,
    /// When it was last heard.
    pub heard: Instant,
    /// Server that holds its stream.
    pub server: String,
}

/// A table of nodes' newest words.
#[derive(Default)]
pub struct Board {
    words: Mutex<BTreeMap<String, Word>>,
    changed: Notify,
}

impl Board {
    /// Takes a node's word and wakes whoever waits.
    pub fn hear(&self, node: &str, word: Word) {
        self.lock().insert(node.to_owned(), word);
        self.changed.notify_waiters();
    }

    /// Changes a known node's word; `heard` is set to now.
    pub fn update(&self, node: &str, change: impl FnOnce(&mut Word)) {
        let mut words = self.lock();
        if let Some(word) = words.get_mut(node) {
            word.heard = Instant::now();
            change(word);
        }
        drop(words);
        self.changed.notify_waiters();
    }

    /// A node serves a later revision without having been told: nothing of it concerned the node. Not a sign of life.
    pub fn advance(&self, node: &str, revision: u64) {
        let mut words = self.lock();
        let Some(word) = words.get_mut(node).filter(|word| word.acknowledged < revision && word.error.is_empty())
        else {
            return;
        };
        word.acknowledged = revision;
        drop(words);
        self.changed.notify_waiters();
    }

    /// Forgets a node whose stream is gone, if it is still the stream of `server`.
    pub fn forget(&self, node: &str, server: &str) {
        let mut words = self.lock();
        if words.get(node).is_some_and(|word| word.server == server) {
            words.remove(node);
        }
    }

    /// Forgets every node.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Every word.
    #[must_use]
    pub fn words(&self) -> BTreeMap<String, Word> {
        self.lock().clone()
    }

    /// When the next word arrives.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The table as the leader wants it reported.
    #[must_use]
    pub fn reports(&self) -> Vec<NodeReport> {
        let now = Instant::now();
        self.lock()
            .iter()
            .map(|(node, word)| NodeReport {
                node: node.clone(),
                acknowledged: word.acknowledged,
                mode: word.mode.clone(),
                error: word.error.clone(),
                version: word.version.clone(),
                grace_seconds: u32::try_from(word.grace.as_secs()).unwrap_or(u32::MAX),
                silent_ms: millis(now.saturating_duration_since(word.heard)),
            })
            .collect()
    }

    /// Takes another server's report. An older word of a node that moved to a third server doesn't replace a newer one.
    pub fn take_report(&self, server: &str, reports: Vec<NodeReport>) {
        let now = Instant::now();
        let mut words = self.lock();
        for report in reports {
            let heard = now.checked_sub(Duration::from_millis(report.silent_ms)).unwrap_or(now);
            let newer = words.get(&report.node).is_none_or(|word| word.server == server || word.heard <= heard);
            if newer {
                words.insert(
                    report.node,
                    Word {
                        acknowledged: report.acknowledged,
                        mode: report.mode,
                        error: report.error,
                        version: report.version,
                        grace: Duration::from_secs(u64::from(report.grace_seconds)),
                        heard,
                        server: server.to_owned(),
                    },
                );
            }
        }
        drop(words);
        self.changed.notify_waiters();
    }

    /// The table as users see it. `nodes` are the cluster's nodes and whether their lease is live.
    #[must_use]
    pub fn progress(&self, nodes: &BTreeMap<String, bool>, revision: u64) -> Vec<NodeProgress> {
        let now = Instant::now();
        let words = self.lock();
        nodes
            .iter()
            .map(|(name, live)| match words.get(name) {
                Some(word) => NodeProgress {
                    name: name.clone(),
                    live: *live,
                    acknowledged: word.acknowledged,
                    lag: revision.saturating_sub(word.acknowledged),
                    mode: word.mode.clone(),
                    error: word.error.clone(),
                    server: word.server.clone(),
                    silent_ms: millis(now.saturating_duration_since(word.heard)),
                    version: word.version.clone(),
                },
                None => NodeProgress {
                    name: name.clone(),
                    live: *live,
                    lag: revision,
                    error: "not connected".to_owned(),
                    ..NodeProgress::default()
                },
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Word>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, acknowledged: u64, silent_ms: u64) -> NodeReport {
        NodeReport { node: node.into(), acknowledged, silent_ms, grace_seconds: 5, ..NodeReport::default() }
    }

    #[test]
    fn an_older_word_from_another_server_does_not_replace_a_newer_one() {
        let board = Board::default();
        board.take_report("n1", vec![report("node1", 7, 0)]);
        board.take_report("n2", vec![report("node1", 3, 4_000)]);
        assert_eq!(board.words()["node1"].acknowledged, 7);
        board.take_report("n1", vec![report("node1", 8, 100)]);
        assert_eq!(board.words()["node1"].acknowledged, 8, "the same server's word always counts");
    }

    #[test]
    fn a_node_never_heard_is_not_connected_and_lags_wholly() {
        let nodes = BTreeMap::from([("node1".to_owned(), true)]);
        let progress = Board::default().progress(&nodes, 9);
        assert_eq!((progress[0].lag, progress[0].error.as_str()), (9, "not connected"));
    }
}
