//! What objects were, as far as the window of events tells. Pure.

use crate::machine::Snapshot;
use crate::watch::history::Compacted;
use crate::write::rfc3339;
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{ObjectRevision, RevisionsResponse};

/// Revisions in one answer.
const MOST: usize = 1_000;

/// An object as it was at a revision of the cluster; `None`: there was none.
///
/// # Errors
/// [`Compacted`] if the window doesn't reach back so far.
pub fn at(snapshot: &Snapshot, key: &Key, revision: u64) -> Result<Option<ObjectRef>, Compacted> {
    // What the first change after it found is what was there.
    let next = snapshot.history.after(revision)?.find(|change| change.key == *key);
    Ok(next.map_or_else(|| snapshot.state.get(key).cloned(), |change| change.old.clone()))
}

/// Every revision of an object that the window tells of, and the one that it begins with; at most `limit`, the newest.
#[must_use]
pub fn revisions(snapshot: &Snapshot, key: &Key, limit: u32) -> RevisionsResponse {
    let compacted = snapshot.history.compacted();
    let changes: Vec<_> =
        snapshot.history.after(compacted).into_iter().flatten().filter(|one| one.key == *key).collect();
    let first = match changes.first() {
        Some(change) => change.old.clone(),
        None => snapshot.state.get(key).cloned(),
    };
    let before = first.map(|object| ObjectRevision {
        revision: object.metadata().revision,
        time: String::new(),
        object: Some((*object).clone()),
    });
    let told = changes.iter().map(|change| ObjectRevision {
        revision: change.revision,
        time: rfc3339(change.at_ms),
        object: change.new.as_deref().cloned(),
    });
    let mut revisions: Vec<ObjectRevision> = before.into_iter().chain(told).collect();
    let limit = if limit == 0 { MOST } else { MOST.min(limit as usize) };
    revisions.drain(..revisions.len().saturating_sub(limit));
    RevisionsResponse { revisions, compacted, revision: snapshot.state.revision() }
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
        assert_eq!(revisions(snapshot, &b, 1).revisions.len(), 1);
        assert_eq!(revisions(snapshot, &Key::new(Kind::Namespace, "", "c"), 0).revisions, []);
    }
}
