//! What objects were, as far as the window of events tells. Pure.

use crate::machine::Snapshot;
use crate::watch::happened;
use crate::watch::history::Compacted;
use crate::write::rfc3339;
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{ObjectRevision, RevisionsResponse};
use prost::Message as _;

/// Revisions in one answer.
const MOST: usize = 1_000;
/// Bytes of objects in one answer; a message has 64 MiB.
const MOST_BYTES: usize = 32 << 20;

/// An object as it was at a revision of the cluster; `None`: there was none.
///
/// # Errors
/// [`Compacted`] if the window doesn't reach back so far.
pub fn at(snapshot: &Snapshot, key: &Key, revision: u64) -> Result<Option<ObjectRef>, Compacted> {
    // What the first change after it found is what was there.
    let next = snapshot.history.after(revision)?.find(|change| change.key == *key);
    Ok(next.map_or_else(|| now(snapshot, key), |change| change.old.clone()))
}

/// An object as it is; most events are none of the state's.
#[must_use]
pub fn now(snapshot: &Snapshot, key: &Key) -> Option<ObjectRef> {
    snapshot.state.get(key).cloned().or_else(|| happened::named(snapshot, key))
}

/// Every revision of an object that the window tells of, and the one that it begins with; at most `limit` and
/// [`MOST_BYTES`], the newest.
#[must_use]
pub fn revisions(snapshot: &Snapshot, key: &Key, limit: u32) -> RevisionsResponse {
    let compacted = snapshot.history.compacted();
    let changes: Vec<_> =
        snapshot.history.after(compacted).into_iter().flatten().filter(|one| one.key == *key).collect();
    let first = match changes.first() {
        Some(change) => change.old.as_ref(),
        None => snapshot.state.get(key),
    };
    let before = first.map(|object| (object.metadata().revision, String::new(), Some(object)));
    let told = changes.iter().map(|change| (change.revision, rfc3339(change.at_ms), change.new.as_ref()));
    let all: Vec<_> = before.into_iter().chain(told).collect();
    let limit = if limit == 0 { MOST } else { MOST.min(limit as usize) };
    let mut bytes = 0;
    let fits = |(_, _, object): &&(u64, String, Option<&ObjectRef>)| {
        bytes += object.map_or(0, |object| object.encoded_len());
        bytes <= MOST_BYTES
    };
    let newest = all.iter().rev().take(limit).take_while(fits).count();
    let older = all.len() - newest;
    let revisions = all.into_iter().skip(older).map(|(revision, time, object)| ObjectRevision {
        revision,
        time,
        object: object.map(|object| (**object).clone()),
    });
    RevisionsResponse {
        revisions: revisions.collect(),
        compacted,
        revision: snapshot.state.revision(),
        more: older > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;
    use fairlead_proto::v1::{Kind, Namespace, ObjectMeta};

    fn namespace(name: &str) -> Namespace {
        let metadata = ObjectMeta { name: name.into(), uid: format!("uid-{name}"), ..ObjectMeta::default() };
        Namespace { metadata: Some(metadata), ..Namespace::default() }
    }

    #[test]
    fn an_object_is_what_it_was_between_its_changes() {
        let mut world = World::new();
        world.create(namespace("a"));
        world.create(namespace("b"));
        let made = world.snapshot.state.revision();
        let (a, b) = (Key::new(Kind::Namespace, "", "a"), Key::new(Kind::Namespace, "", "b"));
        world.delete(Kind::Namespace, "b");
        let snapshot = &world.snapshot;
        let now = snapshot.state.revision();
        let is_there = |key: &Key, revision| at(snapshot, key, revision).unwrap().is_some();
        assert!(is_there(&b, made) && !is_there(&b, now) && !is_there(&b, made - 1));
        assert!((made..=now).all(|revision| is_there(&a, revision)));
        let own = revisions(snapshot, &b, 0).revisions;
        assert!(own.last().unwrap().object.is_none() && !own[0].time.is_empty(), "{own:?}");
        for pair in own.windows(2) {
            assert!(pair[0].revision < pair[1].revision);
            let kept = at(snapshot, &b, pair[1].revision - 1).unwrap();
            assert_eq!(kept.as_deref(), pair[0].object.as_ref());
        }
        let one = revisions(snapshot, &b, 1);
        assert_eq!((one.revisions.last(), one.revisions.len(), one.more), (own.last(), 1, true));
        assert!(!revisions(snapshot, &b, own.len() as u32).more && !revisions(snapshot, &b, 0).more);
        assert_eq!(revisions(snapshot, &Key::new(Kind::Namespace, "", "c"), 0).revisions, []);
    }
}
