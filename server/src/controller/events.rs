//! Forgets what clients told: an Event goes an hour after it happened last, as kube-apiserver's `--event-ttl` has it.
//!
//! `stale` is pure. Each goes by a Delete that names its revision: one that happened again meanwhile stays.

use crate::machine::State;
use crate::raft::Consensus;
use crate::write::Writer;
use fairlead_proto::internal::v1::{Delete, command};
use fairlead_proto::v1::{Event, Kind};
use tokio_util::sync::CancellationToken;

/// How long an event is kept after it happened last, seconds.
const KEPT_SECONDS: i64 = 3_600;
/// Between two looks.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(30);
/// Events that one look forgets.
const AT_ONCE: usize = 256;

/// The events to forget at an instant (seconds since 1970), at most so many.
#[must_use]
pub fn stale(state: &State, now: i64, most: usize) -> Vec<Delete> {
    let events = state.list(Kind::Event, "").filter(|object| {
        let last = object.as_event().map(last_seen).unwrap_or_default();
        now.saturating_sub(last) > KEPT_SECONDS
    });
    let delete = |object: &fairlead_proto::model::ObjectRef| Delete {
        key: Some(object.key().to_wire()),
        expect_uid: object.metadata().uid.clone(),
        expect_revision: object.metadata().revision,
        grace_period_seconds: None,
    };
    events.take(most).map(delete).collect()
}

/// When an event happened last, as far as its teller says so, and not before it was told.
fn last_seen(event: &Event) -> i64 {
    let seconds = |text: &str| text.parse().map(jiff::Timestamp::as_second).unwrap_or_default();
    let told = event.metadata.as_ref().map(|metadata| seconds(&metadata.creation_timestamp)).unwrap_or_default();
    let series = serde_json::from_str::<serde_json::Value>(&event.extra_json).unwrap_or_default();
    let again = series.pointer("/series/lastObservedTime").and_then(serde_json::Value::as_str).unwrap_or_default();
    let said = seconds(&event.last_timestamp).max(seconds(again));
    said.max(told)
}

/// Forgets them while this member leads.
pub async fn run(consensus: Consensus, writer: Writer, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        if !consensus.is_leader() {
            continue;
        }
        let now = i64::try_from(crate::write::now_ms() / 1000).unwrap_or(i64::MAX);
        for delete in stale(&consensus.local().state, now, AT_ONCE) {
            if let Err(error) = writer.propose(command::Kind::Delete(delete)).await {
                tracing::debug!(%error, "an event is not forgotten yet");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{World, event, put_with};

    #[test]
    fn an_event_goes_an_hour_after_it_happened_last() {
        let mut world = World::newest();
        let mut told = |name: &str, last: &str, extra: &str| {
            let told = Event { last_timestamp: last.into(), extra_json: extra.into(), ..event(name) };
            world.run(put_with(told.into(), None));
        };
        let told_at = 1_700_000_003;
        told("once", "", "");
        told("again", "2023-11-14T23:00:00Z", "");
        told("series", "", r#"{"series":{"lastObservedTime":"2023-11-14T23:00:00.000000Z","count":2}}"#);
        told("unclear", "yesterday", "no JSON");
        let names = |now: i64, most: usize| -> Vec<String> {
            stale(&world.snapshot.state, now, most).into_iter().map(|one| one.key.unwrap().name).collect()
        };
        assert_eq!(names(told_at + KEPT_SECONDS - 5, 9), [""; 0]);
        assert_eq!(names(told_at + KEPT_SECONDS + 60, 9), ["once", "unclear"]);
        // 23:00 is 1_700_002_800.
        assert_eq!(names(1_700_002_800 + KEPT_SECONDS, 9), ["once", "unclear"]);
        assert_eq!(names(1_700_002_801 + KEPT_SECONDS, 9), ["again", "once", "series", "unclear"]);
        assert_eq!(names(i64::MAX, 1), ["again"]);
        let delete = stale(&world.snapshot.state, i64::MAX, 1).remove(0);
        let revision = delete.expect_revision;
        assert_ne!(revision, 0);
        assert_eq!(world.run(command::Kind::Delete(delete)).outcome.rejection, None);
    }
}
