//! Node leases: heartbeats stay in the leader's memory; only transitions go through the log.
//!
//! `judge` is pure. A new leader gives every node a fresh grace. If most nodes fall silent at once, it is more likely us:
//! nothing expires, and an alarm says so.

use crate::raft::Consensus;
use crate::sync::board::{Board, Word};
use crate::write::Writer;
use fairlead_proto::internal::v1::{ExpireNode, LeaseEpoch, command};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two judgements.
const JUDGE_EVERY: Duration = Duration::from_millis(250);
/// More than this share of the live nodes silent at once is not believed.
const MASS_FAILURE: f64 = 0.55;
/// Clusters smaller than this have no majority worth the name.
const MASS_FAILURE_MIN_NODES: usize = 3;

/// Alarms in force.
#[derive(Default)]
pub struct Alarms(Mutex<BTreeMap<&'static str, String>>);

impl Alarms {
    /// Raises or replaces an alarm, or clears it with `None`.
    pub fn set(&self, name: &'static str, sentence: Option<String>) {
        let mut alarms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sentence {
            Some(sentence) => {
                if alarms.insert(name, sentence.clone()).is_none() {
                    tracing::error!(alarm = name, sentence, "alarm raised");
                }
            }
            None => {
                if alarms.remove(name).is_some() {
                    tracing::info!(alarm = name, "alarm cleared");
                }
            }
        }
    }

    /// All sentences.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// What to do about silence.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Leases to expire.
    pub expire: Vec<LeaseEpoch>,
    /// Nodes that are silent, if there are too many of them to be believed.
    pub frozen: Vec<String>,
}

/// Judges every unexpired lease. `leader_for`: how long this server has led; a node that it has never heard is silent
/// for that long.
#[must_use]
pub fn judge(leases: &[LeaseEpoch], words: &BTreeMap<String, Word>, now: Instant, leader_for: Duration) -> Judgement {
    let live: Vec<_> = leases.iter().filter(|lease| !lease.expired).collect();
    let silent: Vec<_> = live
        .iter()
        .filter(|lease| {
            let grace = Duration::from_secs(u64::from(lease.grace_seconds.max(1)));
            let heard = words.get(&lease.node).map(|word| now.saturating_duration_since(word.heard));
            heard.map_or(leader_for, |silence| silence.min(leader_for)) > grace
        })
        .map(|lease| (*lease).clone())
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "a share of at most thousands")]
    let share = silent.len() as f64 / live.len().max(1) as f64;
    if live.len() >= MASS_FAILURE_MIN_NODES && share > MASS_FAILURE {
        return Judgement { expire: Vec::new(), frozen: silent.into_iter().map(|lease| lease.node).collect() };
    }
    Judgement { expire: silent, frozen: Vec::new() }
}

/// Expires silent nodes while this server leads.
pub async fn run(consensus: Consensus, writer: Writer, nodes: (Arc<Board>, Arc<Alarms>), cancel: CancellationToken) {
    let (board, alarms) = nodes;
    let mut led_since: Option<Instant> = None;
    let mut tick = tokio::time::interval(JUDGE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        if !consensus.is_leader() {
            if led_since.take().is_some() {
                board.clear();
                alarms.set("mass-failure", None);
            }
            continue;
        }
        let now = Instant::now();
        let since = *led_since.get_or_insert(now);
        let leases: Vec<LeaseEpoch> = consensus.local().state.leases().collect();
        let judgement = judge(&leases, &board.words(), now, now.saturating_duration_since(since));
        let alarm = (!judgement.frozen.is_empty()).then(|| {
            format!(
                "{} of {} nodes fell silent at once: endpoint removal is frozen until most are heard again ({})",
                judgement.frozen.len(),
                leases.iter().filter(|lease| !lease.expired).count(),
                judgement.frozen.join(", ")
            )
        });
        alarms.set("mass-failure", alarm);
        for lease in judgement.expire {
            tracing::warn!(
                node = lease.node,
                grace_s = lease.grace_seconds,
                "node fell silent: its pods leave the endpoints"
            );
            let command =
                command::Kind::ExpireNode(ExpireNode { node: lease.node.clone(), observed_lease: lease.epoch });
            if let Err(error) = writer.propose(command).await {
                tracing::warn!(node = lease.node, %error, "expiry not committed; judged again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(node: &str) -> LeaseEpoch {
        LeaseEpoch { node: node.into(), epoch: 1, expired: false, grace_seconds: 5 }
    }

    fn heard(ago: u64, now: Instant) -> Word {
        Word {
            acknowledged: 0,
            mode: String::new(),
            error: String::new(),
            version: String::new(),
            grace: Duration::from_secs(5),
            heard: now - Duration::from_secs(ago),
            server: "n1".into(),
        }
    }

    #[test]
    fn one_silent_node_expires_and_most_silent_nodes_freeze() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let leases = [lease("a"), lease("b"), lease("c")];
        let long = Duration::from_secs(100);
        let words = |ages: [u64; 3]| {
            ["a", "b", "c"]
                .into_iter()
                .zip(ages)
                .map(|(node, age)| (node.to_owned(), heard(age, now)))
                .collect::<BTreeMap<_, _>>()
        };
        let one = judge(&leases, &words([1, 6, 1]), now, long);
        assert_eq!(one.expire.iter().map(|lease| lease.node.as_str()).collect::<Vec<_>>(), ["b"]);
        let most = judge(&leases, &words([1, 6, 6]), now, long);
        assert_eq!((most.expire.len(), most.frozen), (0, vec!["b".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn a_new_leader_gives_every_node_a_fresh_grace() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let words = BTreeMap::from([("a".to_owned(), heard(60, now))]);
        assert_eq!(judge(&[lease("a")], &words, now, Duration::from_secs(4)), Judgement::default());
        assert_eq!(judge(&[lease("a")], &BTreeMap::new(), now, Duration::from_secs(4)), Judgement::default());
        assert_eq!(judge(&[lease("a")], &BTreeMap::new(), now, Duration::from_secs(6)).expire.len(), 1, "never heard");
    }
}
