//! What watches promise: events in the order of their revisions, each once, none left out between where a stream began and
//! what it last told, the same on every server; a bookmark only after all that it covers; a state to begin with that is no
//! older than any write acknowledged before the watch was asked for.

use super::{anomaly, verdict};
use crate::history::{Anomaly, Answer, Call, Operation, Verdict};
use crate::workload::watchers::{Event, Session};
use crate::workload::{lists, registers, set};
use fairlead_proto::v1::EventType;
use std::collections::BTreeMap;

/// Judges all watchers' sessions, with the writes that clients know of.
#[must_use]
pub fn watches(sessions: &[Session], history: &[Operation]) -> Verdict {
    let mut found = Vec::new();
    for session in sessions {
        order(session, &mut found);
    }
    let log = agreed(sessions, &mut found);
    for session in sessions {
        gaps(session, &log, &mut found);
    }
    written(history, &log, (sessions, &mut found));
    starts(sessions, history, &mut found);
    if log.is_empty() { Verdict::Unknown("no watcher saw an event".to_owned()) } else { verdict(found) }
}

fn place(session: &Session) -> String {
    format!("watcher {} at n{} from {:?}", session.watcher, session.node, session.from)
}

/// Events after the initial state.
fn later(session: &Session) -> impl Iterator<Item = &Event> {
    session.events.iter().filter(|event| !event.initial)
}

/// The revision that a session's later events follow; `None`: the initial state never became complete.
fn base(session: &Session) -> Option<u64> {
    let end = session.events.iter().find(|event| event.initial && event.kind == EventType::Bookmark);
    session.from.or(end.map(|event| event.revision))
}

fn order(session: &Session, found: &mut Vec<Anomaly>) {
    let Some(mut last) = base(session) else { return };
    for event in session.events.iter().filter(|event| event.initial && event.revision > last) {
        let what = format!("{}: the state up to {last} holds {} of {}", place(session), event.key, event.revision);
        found.push(anomaly("initial-state-from-later", what));
    }
    for event in later(session) {
        let bookmark = event.kind == EventType::Bookmark;
        if event.revision < last || (event.revision == last && !bookmark) {
            let what = format!("{}: revision {} of {:?} after {last}", place(session), event.revision, event.key);
            found.push(anomaly("watch-order", what));
        }
        last = last.max(event.revision);
    }
}

type Log = BTreeMap<u64, Event>;

/// One log of what all saw; two that differ about a revision.
fn agreed(sessions: &[Session], found: &mut Vec<Anomaly>) -> Log {
    let mut log = Log::new();
    for session in sessions {
        for event in later(session).filter(|event| event.kind != EventType::Bookmark) {
            match log.get(&event.revision) {
                Some(known) if known != event => {
                    let what =
                        format!("{}: revision {} is {event:?}, elsewhere {known:?}", place(session), event.revision);
                    found.push(anomaly("watchers-disagree", what));
                }
                Some(_) => {}
                None => drop(log.insert(event.revision, event.clone())),
            }
        }
    }
    log
}

/// What a session left out of what others saw.
fn gaps(session: &Session, log: &Log, found: &mut Vec<Anomaly>) {
    let Some(base) = base(session) else { return };
    let Some(end) = later(session).map(|event| event.revision).max() else { return };
    let mut own =
        later(session).filter(|event| event.kind != EventType::Bookmark).map(|event| event.revision).peekable();
    for revision in log.range(base.saturating_add(1)..=end).map(|(revision, _)| *revision) {
        while own.next_if(|own| *own < revision).is_some() {}
        if own.peek() != Some(&revision) {
            let what = format!("{}: told up to {end}, and never of revision {revision}", place(session));
            return found.push(anomaly("watch-gap", what));
        }
    }
}

/// Acknowledged writes that a watcher passed over, or saw otherwise.
fn written(history: &[Operation], log: &Log, (sessions, found): (&[Session], &mut Vec<Anomaly>)) {
    let spans: Vec<(u64, u64)> = sessions
        .iter()
        .filter_map(|session| Some((base(session)?, later(session).map(|event| event.revision).max()?)))
        .collect();
    for (place, operation) in history.iter().enumerate() {
        let Answer::Done { revision } = operation.answer else { continue };
        let (key, value) = match &operation.call {
            Call::Write(key, value) | Call::Cas { key, to: value, .. } => {
                (format!("{}/{key}", registers::SPACE), value)
            }
            Call::Append(key, value) => (format!("{}/{key}", lists::SPACE), value),
            Call::Add(value) | Call::Remove(value) => (format!("{}/m{value}", set::SPACE), value),
            Call::Read(_) | Call::ReadLists(_) | Call::ReadSet => continue,
        };
        match log.get(&revision) {
            Some(event) if event.key == key && holds(&event.value, *value) => {}
            Some(event) => {
                let what = format!("{key} = {value} was acknowledged at {revision}, which watchers saw as {event:?}");
                found.push(Anomaly { kind: "watch-differs-from-write", what, operations: vec![place] });
            }
            None if spans.iter().any(|(base, end)| *base < revision && revision <= *end) => {
                let what = format!("{key} = {value} was acknowledged at {revision}, which a watcher passed over");
                found.push(Anomaly { kind: "watch-gap", what, operations: vec![place] });
            }
            None => {}
        }
    }
}

/// A value, or a list that ends with it.
fn holds(text: &str, value: u64) -> bool {
    text.rsplit(',').next().is_some_and(|last| last.parse() == Ok(value))
}

/// A state that is older than what was acknowledged before it was asked for.
fn starts(sessions: &[Session], history: &[Operation], found: &mut Vec<Anomaly>) {
    let mut acknowledged: Vec<(u64, u64)> =
        history.iter().filter_map(|operation| Some((operation.returned, operation.revision()?))).collect();
    acknowledged.sort_unstable();
    let mut newest = 0;
    for (_, revision) in &mut acknowledged {
        newest = newest.max(*revision);
        *revision = newest;
    }
    for session in sessions.iter().filter(|session| session.from.is_none()) {
        let before = acknowledged.partition_point(|(returned, _)| *returned < session.opened);
        let known = before.checked_sub(1).and_then(|last| acknowledged.get(last)).map_or(0, |(_, revision)| *revision);
        if let Some(base) = base(session)
            && base < known
        {
            let what = format!("{}: begins at {base}, and {known} had been acknowledged", place(session));
            found.push(anomaly("watch-starts-in-the-past", what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64) -> Event {
        Event {
            kind: EventType::Modified,
            key: format!("{}/r1", registers::SPACE),
            revision,
            initial: false,
            value: revision.to_string(),
            held: Vec::new(),
            uid: String::new(),
        }
    }

    fn bookmark(revision: u64, initial: bool) -> Event {
        Event { kind: EventType::Bookmark, key: String::new(), value: String::new(), initial, ..event(revision) }
    }

    fn session(from: Option<u64>, events: Vec<Event>) -> Session {
        Session { watcher: 1, node: 1, from, opened: 100, events, compacted: false }
    }

    fn write(revision: u64, returned: u64) -> Operation {
        Operation {
            process: 1,
            node: 1,
            called: 0,
            returned,
            call: Call::Write("r1".into(), revision),
            answer: Answer::Done { revision },
        }
    }

    fn kinds(verdict: Verdict) -> Vec<&'static str> {
        match verdict {
            Verdict::Broken(anomalies) => anomalies.iter().map(|anomaly| anomaly.kind).collect(),
            Verdict::Valid => Vec::new(),
            Verdict::Unknown(why) => panic!("{why}"),
        }
    }

    #[test]
    fn a_whole_stream_and_one_that_resumes_pass() {
        let one = session(None, vec![event(3), bookmark(4, true), event(5), event(7), bookmark(8, false)]);
        let one = Session {
            events: one.events.into_iter().enumerate().map(|(i, e)| Event { initial: i < 2, ..e }).collect(),
            ..one
        };
        let other = session(Some(5), vec![event(7), event(9)]);
        assert_eq!(kinds(watches(&[one, other], &[write(5, 200), write(7, 300)])), Vec::<&str>::new());
    }

    #[test]
    fn every_broken_promise_is_found() {
        let whole = || session(Some(4), vec![event(5), event(6), event(7)]);
        let cases: [(&str, Vec<Session>, Vec<Operation>); 8] = [
            ("watch-order", vec![session(Some(4), vec![event(6), event(5)])], vec![]),
            ("watch-order", vec![session(Some(4), vec![event(5), event(5)])], vec![]),
            ("watch-order", vec![session(Some(4), vec![bookmark(6, false), event(5)])], vec![]),
            ("watch-gap", vec![whole(), session(Some(4), vec![event(5), event(7)])], vec![]),
            ("watch-gap", vec![whole(), session(Some(4), vec![event(5), bookmark(7, false)])], vec![]),
            ("watch-gap", vec![session(Some(4), vec![event(5), event(7)])], vec![write(6, 10)]),
            (
                "watchers-disagree",
                vec![whole(), session(Some(5), vec![Event { value: "x".into(), ..event(6) }])],
                vec![],
            ),
            ("watch-starts-in-the-past", vec![whole(), session(None, vec![bookmark(6, true)])], vec![write(7, 50)]),
        ];
        for (kind, sessions, history) in cases {
            let found = kinds(watches(&sessions, &history));
            assert!(found.contains(&kind), "{kind}: {found:?}");
        }
    }
}
