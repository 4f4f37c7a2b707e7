//! What happened to objects, as the event window tells it: for people, and as Kubernetes' Events. Pure.
//!
//! Laws: a change is told in the same words on every server, for it is a function of the change alone; each has at most one Event,
//! whose `resourceVersion` is the change's revision and whose name ends with it. What clients tell (objects of kind Event)
//! is told as they said it, and makes no Event of its own.

use crate::machine::{Change, Snapshot};
use crate::write::rfc3339;
use fairlead_proto::model::{DEFAULT_NAMESPACE, Key, ObjectRef};
use fairlead_proto::v1::{Condition, Event, HistoryEvent, Kind, Object, ObjectMeta, ObjectReference};
use std::sync::Arc;

/// Who tells: `source.component` and `reportingComponent`.
const TELLER: &str = "fairlead-server";

/// A change in words.
#[must_use]
pub fn told(change: &Change) -> Option<HistoryEvent> {
    if change.key.kind == Kind::Event {
        return told_by_client(change);
    }
    let title = change.key.kind.title();
    let (kind, reason, message) = match (&change.old, &change.new) {
        (None, Some(_)) => ("Normal", "Created", format!("{title} created")),
        (Some(_), None) => ("Normal", "Deleted", format!("{title} deleted")),
        (Some(old), Some(new)) => match change.key.kind {
            Kind::Endpoints => {
                let (before, after) = (ready_endpoints(old), ready_endpoints(new));
                let kind = if after == 0 && before > 0 { "Warning" } else { "Normal" };
                (kind, "EndpointsChanged", format!("{before} ready endpoints became {after}"))
            }
            Kind::Pod | Kind::Node => readiness(old, new),
            _ => ("Normal", "Updated", format!("{title} updated")),
        },
        (None, None) => return None,
    };
    Some(HistoryEvent {
        revision: change.revision,
        time: rfc3339(change.at_ms),
        r#type: kind.to_owned(),
        reason: reason.to_owned(),
        key: Some(change.key.to_wire()),
        message,
    })
}

/// What a client told, when it did.
fn told_by_client(change: &Change) -> Option<HistoryEvent> {
    let event = change.new.as_ref()?.as_event()?;
    let about = event.involved_object.clone().unwrap_or_default();
    let kind = Kind::ALL.into_iter().find(|kind| kind.title() == about.kind)?;
    Some(HistoryEvent {
        revision: change.revision,
        time: rfc3339(change.at_ms),
        r#type: event.r#type.clone(),
        reason: event.reason.clone(),
        key: Some(Key::new(kind, about.namespace, about.name).to_wire()),
        message: event.message.clone(),
    })
}

fn ready_endpoints(object: &Object) -> usize {
    object.as_endpoints().map_or(0, |record| record.endpoints.iter().filter(|endpoint| endpoint.ready).count())
}

fn readiness(old: &Object, new: &Object) -> (&'static str, &'static str, String) {
    let (before, after) = (ready(old), ready(new));
    let title = new.object_kind().title();
    if before.status == after.status {
        return ("Normal", "Updated", format!("{title} updated"));
    }
    let detail =
        if after.message.is_empty() { after.reason.clone() } else { format!("{}: {}", after.reason, after.message) };
    if after.status == "True" {
        ("Normal", "Ready", format!("{title} is ready"))
    } else {
        ("Warning", "NotReady", format!("{title} is not ready: {detail}"))
    }
}

fn ready(object: &Object) -> Condition {
    let conditions = match (object.as_pod(), object.as_node()) {
        (Some(pod), _) => pod.status.as_ref().map(|status| &status.conditions),
        (_, Some(node)) => node.status.as_ref().map(|status| &status.conditions),
        _ => None,
    };
    conditions.and_then(|all| all.iter().find(|one| one.r#type == "Ready").cloned()).unwrap_or_default()
}

/// A change as an Event; `None` for changes of Events themselves.
#[must_use]
pub fn event(change: &Change) -> Option<ObjectRef> {
    if change.key.kind == Kind::Event {
        return None;
    }
    let told = told(change)?;
    let object = change.new.as_ref().or(change.old.as_ref())?;
    let about = ObjectReference {
        kind: change.key.kind.title().to_owned(),
        namespace: change.key.namespace.clone(),
        name: change.key.name.clone(),
        uid: object.metadata().uid.clone(),
        api_version: "v1".to_owned(),
        resource_version: change.revision.to_string(),
        field_path: String::new(),
    };
    let key = key(change);
    let metadata = ObjectMeta {
        name: key.name,
        namespace: key.namespace,
        uid: format!("{}-{:016x}", object.metadata().uid, change.revision),
        revision: change.revision,
        creation_timestamp: told.time.clone(),
        ..ObjectMeta::default()
    };
    let event = Event {
        metadata: Some(metadata),
        involved_object: Some(about),
        reason: told.reason,
        message: told.message,
        r#type: told.r#type,
        count: 1,
        first_timestamp: told.time.clone(),
        last_timestamp: told.time,
        extra_json: format!(r#"{{"reportingComponent":"{TELLER}","source":{{"component":"{TELLER}"}}}}"#),
    };
    Some(Arc::new(event.into()))
}

/// The key of a change's Event: what happens to objects without a namespace is told in the default one, as in Kubernetes.
fn key(change: &Change) -> Key {
    let namespace = Some(change.key.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let name = format!("{}.{:016x}", change.key.name, change.revision);
    Key::new(Kind::Event, namespace.unwrap_or(DEFAULT_NAMESPACE), name)
}

/// The Events of the window, oldest first, up to a revision.
pub fn events(snapshot: &Snapshot, until: u64) -> impl Iterator<Item = ObjectRef> + '_ {
    let changes = snapshot.history.after(snapshot.history.compacted()).into_iter().flatten();
    changes.take_while(move |change| change.revision <= until).filter_map(|change| event(&change))
}

/// The Event of this key, if it is one of the window's.
#[must_use]
pub fn named(snapshot: &Snapshot, of: &Key) -> Option<ObjectRef> {
    let revision = u64::from_str_radix(of.name.rsplit_once('.')?.1, 16).ok()?;
    let change = snapshot.history.after(revision.checked_sub(1)?).ok()?.next()?;
    (of.kind == Kind::Event && change.revision == revision && key(&change) == *of).then(|| event(&change))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::list::{Page, Selection, page};
    use crate::machine::tests::{World, delete_command, event as event_of, pod, put_with, service};
    use crate::watch::stream::seen;
    use fairlead_proto::v1::EventType;

    fn list(snapshot: &Snapshot, namespace: &str, fields: &str) -> Vec<ObjectRef> {
        let selection = Selection::parse(Kind::Event, namespace, ("", fields)).unwrap();
        page(snapshot, &selection, &Page::default()).unwrap().items
    }

    fn reasons(events: &[ObjectRef]) -> Vec<String> {
        events.iter().map(|event| event.as_event().unwrap().reason.clone()).collect()
    }

    #[test]
    fn a_change_is_an_event_that_lists_watches_and_gets_agree_on() {
        let mut world = World::newest();
        let from = world.snapshot.state.revision();
        world.run(put_with(service("web").into(), None));
        world.run(delete_command(Kind::Service, "web"));
        let of_web = "involvedObject.kind=Service,involvedObject.name=web";
        let listed = list(&world.snapshot, "default", of_web);
        assert_eq!(reasons(&listed), ["Created", "Deleted"]);
        let selection = Selection::parse(Kind::Event, "default", ("", of_web)).unwrap();
        let changes: Vec<_> = world.snapshot.history.after(from).unwrap().collect();
        let watched: Vec<_> = changes.iter().filter_map(|change| seen(&selection, change)).collect();
        assert!(watched.iter().all(|(kind, _)| *kind == EventType::Added));
        assert_eq!(watched.into_iter().map(|(_, event)| event).collect::<Vec<_>>(), listed);
        for event in &listed {
            assert_eq!(named(&world.snapshot, &event.key()).as_ref(), Some(event));
        }
        assert_eq!(list(&world.snapshot, "kube-system", of_web), []);
        let other = Key { name: listed[0].key().name.replace("web", "xeb"), ..listed[0].key() };
        assert_eq!(named(&world.snapshot, &other), None);
    }

    #[test]
    fn what_clients_tell_stands_beside_it_and_is_no_news_of_its_own() {
        let mut world = World::newest();
        world.run(put_with(service("web").into(), None));
        world.run(put_with(event_of("web.1").into(), None));
        let listed = list(&world.snapshot, "default", "involvedObject.name=web,reason!=EndpointsChanged");
        assert_eq!(reasons(&listed), ["Created", "Created", "Probed"], "of the service, of its endpoints, of a client");
        let last = world.snapshot.history.after(world.snapshot.state.revision() - 1).unwrap().next().unwrap();
        let words = told(&last).unwrap();
        assert_eq!((words.reason.as_str(), words.key.unwrap().name.as_str()), ("Probed", "web"));
    }

    #[test]
    fn pages_of_events_hold_each_once() {
        let mut world = World::newest();
        for number in 0..7 {
            world.run(put_with(pod(&format!("p{number}"), "x", "").into(), None));
            world.run(put_with(event_of(&format!("e{number}")).into(), None));
        }
        let all = list(&world.snapshot, "", "");
        let selection = Selection::parse(Kind::Event, "", ("", "")).unwrap();
        let (mut paged, mut token) = (Vec::new(), String::new());
        loop {
            let part = page(&world.snapshot, &selection, &Page { limit: 3, token, at: None }).unwrap();
            paged.extend(part.items);
            token = part.token;
            if token.is_empty() {
                break;
            }
            // What happens meanwhile is not of this list.
            world.run(put_with(pod(&format!("late{}", paged.len()), "x", "").into(), None));
        }
        assert_eq!(paged, all);
        assert!(all.is_sorted_by(|one, other| one.key() < other.key()));
    }
}
