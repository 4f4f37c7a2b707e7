//! Deleting objects: at once, or marked and held by finalizers or by the grace period of a pod whose node's agent
//! still has to stop it. A namespace takes everything in it along, in the same entry.

use crate::machine::derive;
use crate::machine::draft::Draft;
use crate::machine::put::check_hand_written;
use crate::machine::{Done, STANDING_NAMESPACES, State, outcome};
use fairlead_proto::internal::v1::{Delete, Rejection};
use fairlead_proto::model::{Invalid, Key, ObjectRef};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::{Kind, NamespaceStatus, Object, WriteEffect, object};

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE_SECONDS: i64 = 30;

/// What holds back the removal of an object that is marked for deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removable {
    /// Nothing.
    Now,
    /// Finalizers, or objects in the namespace.
    Held,
    /// A pod's agent has to stop it first.
    Graceful,
}

/// Executes a Delete.
pub(super) fn delete(draft: &mut Draft<'_>, delete: &Delete) -> Result<Done, Rejection> {
    let key = delete.key.as_ref().map(Key::from_wire).filter(|key| key.kind != Kind::Unspecified);
    let Some(key) = key else {
        return Err(outcome::invalid_command(&[Invalid::required("key", "")]));
    };
    let current = draft.state.get(&key).cloned().ok_or_else(|| outcome::not_found(&key))?;
    check_preconditions(delete, &key, &current)?;
    if mutant::is_on(Mutant::SilentDelete) && draft.state.applied_entries().is_multiple_of(16) {
        return Ok(Done::effect(WriteEffect::Deleted));
    }
    match key.kind {
        Kind::Namespace if STANDING_NAMESPACES.contains(&key.name.as_str()) => {
            Err(outcome::forbidden(&key, "this namespace may not be deleted"))
        }
        Kind::Namespace => Ok(delete_namespace(draft, &current)),
        Kind::Endpoints => {
            check_hand_written(draft, &key)?;
            Ok(begin(draft, &current, delete.grace_period_seconds))
        }
        Kind::Node | Kind::Pod | Kind::Service | Kind::Event | Kind::Unspecified => {
            Ok(begin(draft, &current, delete.grace_period_seconds))
        }
    }
}

fn check_preconditions(delete: &Delete, key: &Key, current: &ObjectRef) -> Result<(), Rejection> {
    let metadata = current.metadata();
    if !delete.expect_uid.is_empty() && delete.expect_uid != metadata.uid {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            delete.expect_uid, metadata.uid
        );
        return Err(outcome::conflict(key, &why));
    }
    if delete.expect_revision != 0 && delete.expect_revision != metadata.revision {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {}, ResourceVersion in object meta: {}",
            delete.expect_revision, metadata.revision
        );
        return Err(outcome::conflict(key, &why));
    }
    Ok(())
}

/// Removes an object, or marks it and says what it waits for.
fn begin(draft: &mut Draft<'_>, current: &ObjectRef, grace: Option<i64>) -> Done {
    let marked = mark(draft, current, grace);
    if removable(draft.state, &marked) == Removable::Now {
        return match draft.remove(&current.key()) {
            Some(last) => Done::object(WriteEffect::Deleted, last),
            None => Done::effect(WriteEffect::Unchanged),
        };
    }
    let object = draft.write(marked).unwrap_or_else(|| current.clone());
    Done::object(WriteEffect::Terminating, object)
}

/// What holds back an object, were it marked for deletion. A pod waits for its agent only if that is alive.
pub(super) fn removable(state: &State, object: &Object) -> Removable {
    let metadata = object.metadata();
    if !metadata.finalizers.is_empty() || (object.as_namespace().is_some() && !state.is_empty_namespace(&metadata.name))
    {
        return Removable::Held;
    }
    let bound = object.as_pod().filter(|pod| !derive::is_finished(pod)).and_then(derive::node_of);
    let graceful = metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
    if graceful && bound.is_some_and(|node| state.is_live(node)) { Removable::Graceful } else { Removable::Now }
}

/// The object marked for deletion. A mark that is there already may be brought forward, never put off.
fn mark(draft: &Draft<'_>, current: &ObjectRef, grace: Option<i64>) -> Object {
    let mut object = (**current).clone();
    let seconds = match current.as_pod() {
        Some(pod) => {
            let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let asked = grace.or(own).unwrap_or(GRACE_SECONDS);
            // Kubernetes takes a negative one for the shortest.
            if asked < 0 { 1 } else { asked }
        }
        None => 0,
    };
    let timestamp = draft.after_seconds(seconds);
    let Some(metadata) = object.metadata_mut() else {
        return object;
    };
    let sooner = metadata.deletion_grace_period_seconds.is_none_or(|old| seconds < old);
    if metadata.deletion_timestamp.is_empty() || sooner {
        metadata.deletion_timestamp = timestamp;
        metadata.deletion_grace_period_seconds = Some(seconds);
    }
    if let Some(object::Kind::Namespace(namespace)) = &mut object.kind {
        namespace.status = Some(NamespaceStatus { phase: "Terminating".to_owned() });
    }
    object
}

/// All objects of the namespace go first, and the namespace with the last of them.
fn delete_namespace(draft: &mut Draft<'_>, current: &ObjectRef) -> Done {
    let name = current.metadata().name.clone();
    let objects: Vec<ObjectRef> = [Kind::Pod, Kind::Service]
        .into_iter()
        .flat_map(|kind| draft.state.list(kind, &name).cloned().collect::<Vec<_>>())
        .collect();
    let remain = objects.iter().any(|object| removable(draft.state, &mark(draft, object, None)) != Removable::Now);
    let held = remain || !current.metadata().finalizers.is_empty() || has_held_endpoints(draft, &name);
    let terminating = held.then(|| {
        let marked = mark(draft, current, None);
        draft.write(marked).unwrap_or_else(|| current.clone())
    });
    for object in objects {
        begin(draft, &object, None);
    }
    // What services leave behind goes with them; the rest was written by hand.
    draft.settle();
    let by_servers = |object: &ObjectRef| object.as_endpoints().is_some_and(|record| record.derived);
    let written: Vec<ObjectRef> = [Kind::Endpoints, Kind::Event]
        .into_iter()
        .flat_map(|kind| draft.state.list(kind, &name).cloned().collect::<Vec<_>>())
        .collect();
    for object in written.iter().filter(|object| !by_servers(object)) {
        begin(draft, object, None);
    }
    match terminating {
        Some(terminating) => Done::object(WriteEffect::Terminating, terminating),
        None => match draft.remove(&current.key()) {
            Some(last) => Done::object(WriteEffect::Deleted, last),
            None => Done::effect(WriteEffect::Unchanged),
        },
    }
}

/// Hand-written endpoints with finalizers whose service doesn't take them along.
fn has_held_endpoints(draft: &Draft<'_>, namespace: &str) -> bool {
    draft.state.list(Kind::Endpoints, namespace).any(|object| {
        let service = Key::new(Kind::Service, namespace, &object.metadata().name);
        !object.metadata().finalizers.is_empty() && draft.state.get(&service).is_none()
    })
}
