//! What allocation promises: at every revision no address and no node port is held by two services, and what is held is of
//! the ranges. Judged from the events that watchers saw.

use super::{anomaly, verdict};
use crate::history::{Anomaly, Verdict};
use crate::workload::watchers::{Event, Session};
use fairlead_proto::v1::EventType;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The range of ClusterIPs that servers are started with: small, so that addresses are used again and run out.
pub const SERVICE_CIDR: &str = "10.96.0.0/25";
/// The range of node ports.
pub const NODE_PORTS: (u16, u16) = (30_000, 30_039);

/// Judges the changes that each watcher saw, over all its sessions.
#[must_use]
pub fn addresses(sessions: &[Session]) -> Verdict {
    let (mut found, mut held_once) = (Vec::new(), false);
    let mut ordered: Vec<&Session> = sessions.iter().collect();
    ordered.sort_by_key(|session| (session.watcher, session.opened));
    let mut seen = Holders::default();
    for session in ordered {
        // A resumed session goes on where the one before it ended.
        if session.from.is_none() {
            seen = Holders::default();
        }
        for event in session.events.iter().filter(|event| event.kind != EventType::Bookmark) {
            held_once |= !event.held.is_empty();
            for said in seen.take(event) {
                found.push(said);
            }
        }
    }
    if held_once { verdict(found) } else { Verdict::Unknown("nobody saw an address".to_owned()) }
}

/// Who holds what, and what each service holds.
#[derive(Default)]
struct Holders {
    holders: BTreeMap<String, String>,
    services: BTreeMap<String, Vec<String>>,
}

impl Holders {
    fn take(&mut self, event: &Event) -> Vec<Anomaly> {
        let mut found = Vec::new();
        for gone in self.services.remove(&event.key).unwrap_or_default() {
            if self.holders.get(&gone) == Some(&event.key) {
                self.holders.remove(&gone);
            }
        }
        if event.kind == EventType::Deleted {
            return found;
        }
        for what in &event.held {
            if !in_range(what) {
                let said = format!("{} holds {what} at revision {}", event.key, event.revision);
                found.push(anomaly("address-out-of-range", said));
            }
            if let Some(other) = self.holders.insert(what.clone(), event.key.clone()) {
                let said = format!("{what} is held by {other} and {} at revision {}", event.key, event.revision);
                found.push(anomaly("address-held-twice", said));
            }
        }
        self.services.insert(event.key.clone(), event.held.clone());
        found
    }
}

fn in_range(held: &str) -> bool {
    if let Some(port) = held.strip_prefix("port ") {
        return port.parse::<u16>().is_ok_and(|port| (NODE_PORTS.0..=NODE_PORTS.1).contains(&port));
    }
    held.parse::<Ipv4Addr>().is_ok_and(|address| {
        let [a, b, c, d] = address.octets();
        (a, b, c) == (10, 96, 0) && (1..127).contains(&d)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventType, key: &str, held: &str) -> Event {
        Event {
            kind,
            key: key.into(),
            revision: 1,
            initial: false,
            value: String::new(),
            held: vec![held.into()],
            uid: String::new(),
        }
    }

    fn judge(events: Vec<Event>) -> Verdict {
        addresses(&[Session { events, ..Session::default() }])
    }

    #[test]
    fn an_address_may_be_held_again_but_not_twice() {
        let (a, b) = (event(EventType::Added, "a", "10.96.0.7"), event(EventType::Added, "b", "10.96.0.7"));
        let gone = event(EventType::Deleted, "a", "10.96.0.7");
        assert_eq!(judge(vec![a.clone(), gone, b.clone()]), Verdict::Valid);
        assert!(matches!(judge(vec![a, b]), Verdict::Broken(_)));
        assert!(matches!(judge(vec![event(EventType::Added, "a", "10.97.0.7")]), Verdict::Broken(_)));
        assert!(matches!(judge(vec![event(EventType::Added, "a", "port 29999")]), Verdict::Broken(_)));
        assert!(matches!(judge(Vec::new()), Verdict::Unknown(_)));
    }
}
