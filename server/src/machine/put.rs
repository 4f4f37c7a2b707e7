//! Creating and updating objects: preconditions, what servers set, what may not change. Allocation is `service`'s.
//!
//! The proposer admitted the object against the state that it saw; here it is judged once more, against the state that
//! is. A Put that changes nothing takes no revision.

use crate::machine::delete::{self, Removable};
use crate::machine::derive;
use crate::machine::draft::Draft;
use crate::machine::{Done, outcome, service};
use fairlead_proto::convert;
use fairlead_proto::internal::v1::{Put, Rejection, put::Precondition};
use fairlead_proto::model::{Invalid, Key, ObjectRef};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::{Kind, NamespaceStatus, Object, ObjectMeta, WriteEffect, object};

/// Events of clients that are kept at once.
pub const MAX_EVENTS: usize = 8_192;

/// Executes a Put.
pub(super) fn put(draft: &mut Draft<'_>, put: &Put) -> Result<Done, Rejection> {
    let object = put.object.as_ref().filter(|object| object.kind.is_some());
    let Some(object) = object else {
        return Err(outcome::invalid_command(&[Invalid::required("object", "")]));
    };
    let key = object.key();
    if key.name.is_empty() {
        return Err(outcome::invalid(&key, &[Invalid::required("metadata.name", "name or generateName is required")]));
    }
    if key.kind == Kind::Endpoints {
        check_hand_written(draft, &key)?;
    }
    let current = draft.state.get(&key).cloned();
    match current {
        None => {
            if matches!(put.precondition, Some(Precondition::ExpectRevision(_) | Precondition::Exists(true))) {
                return Err(outcome::not_found(&key));
            }
            create(draft, &key, object.clone())
        }
        Some(current) => {
            check_preconditions(put, &key, (object, &current))?;
            if put.status_only {
                update_status(draft, object, &current)
            } else {
                update(draft, object.clone(), &current)
            }
        }
    }
}

fn check_preconditions(put: &Put, key: &Key, (object, current): (&Object, &ObjectRef)) -> Result<(), Rejection> {
    match put.precondition {
        Some(Precondition::Create(true)) => return Err(outcome::already_exists(key)),
        Some(Precondition::ExpectRevision(revision))
            if revision != current.metadata().revision && !mutant::is_on(Mutant::BlindCas) =>
        {
            return Err(outcome::modified(key));
        }
        _ => {}
    }
    let (given, has) = (&object.metadata().uid, &current.metadata().uid);
    // Without a precondition the uid is one for a create that turned out to be an update.
    if put.precondition.is_some() && !given.is_empty() && given != has {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {has}");
        return Err(outcome::conflict(key, &why));
    }
    Ok(())
}

fn create(draft: &mut Draft<'_>, key: &Key, mut object: Object) -> Result<Done, Rejection> {
    check_namespace(draft, key)?;
    let metadata = ObjectMeta {
        namespace: key.namespace.clone(),
        creation_timestamp: draft.now(),
        generation: i64::from(has_spec(key.kind)),
        revision: 0,
        deletion_timestamp: String::new(),
        deletion_grace_period_seconds: None,
        ..object.metadata().clone()
    };
    match &mut object.kind {
        Some(object::Kind::Service(it)) => {
            service::complete(draft.state, it, None).map_err(|refused| refused.about(key))?
        }
        Some(object::Kind::Endpoints(it)) => it.derived = false,
        Some(object::Kind::Namespace(it)) => it.status = Some(NamespaceStatus { phase: "Active".to_owned() }),
        Some(object::Kind::Event(_)) => check_room_for_events(draft, key)?,
        Some(object::Kind::Pod(_) | object::Kind::Node(_)) | None => {}
    }
    if let Some(place) = object.metadata_mut() {
        *place = metadata;
    }
    Ok(written(draft.write(object), WriteEffect::Created))
}

fn update(draft: &mut Draft<'_>, mut object: Object, current: &ObjectRef) -> Result<Done, Rejection> {
    let key = current.key();
    let mut problems = new_finalizers(&object, current);
    keep_server_set(&mut object, current);
    match (&mut object.kind, &current.kind) {
        (Some(object::Kind::Namespace(new)), Some(object::Kind::Namespace(old))) => new.status.clone_from(&old.status),
        (Some(object::Kind::Node(new)), Some(object::Kind::Node(old))) => new.status.clone_from(&old.status),
        (Some(object::Kind::Pod(new)), Some(object::Kind::Pod(old))) => new.status.clone_from(&old.status),
        (Some(object::Kind::Service(new)), Some(object::Kind::Service(old))) => {
            new.status.clone_from(&old.status);
            service::carry_over(new, old);
        }
        (Some(object::Kind::Endpoints(new)), Some(object::Kind::Endpoints(_))) => new.derived = false,
        _ => {}
    }
    problems.extend(convert::validate_update(&object, current));
    if !problems.is_empty() {
        return Err(outcome::invalid(&key, &problems));
    }
    if let (Some(object::Kind::Service(new)), Some(old)) = (&mut object.kind, current.as_service()) {
        service::complete(draft.state, new, Some(old)).map_err(|refused| refused.about(&key))?;
    }
    if spec_changed(&object, current)
        && let Some(metadata) = object.metadata_mut()
    {
        metadata.generation = metadata.generation.saturating_add(1);
    }
    Ok(finish(draft, object, &key))
}

fn update_status(draft: &mut Draft<'_>, object: &Object, current: &ObjectRef) -> Result<Done, Rejection> {
    let key = current.key();
    let mut new = (**current).clone();
    match (&mut new.kind, &object.kind) {
        (Some(object::Kind::Node(new)), Some(object::Kind::Node(given))) => new.status.clone_from(&given.status),
        (Some(object::Kind::Pod(new)), Some(object::Kind::Pod(given))) => new.status.clone_from(&given.status),
        (Some(object::Kind::Service(new)), Some(object::Kind::Service(given))) => new.status.clone_from(&given.status),
        // A namespace's phase says whether it is being deleted: only servers know.
        (Some(object::Kind::Namespace(_)), Some(object::Kind::Namespace(_))) => {}
        _ => {
            return Err(outcome::invalid(&key, &[Invalid::forbidden("status", "objects of this kind have no status")]));
        }
    }
    Ok(finish(draft, new, &key))
}

/// Writes an update, or removes an object whose last finalizer it took away.
fn finish(draft: &mut Draft<'_>, object: Object, key: &Key) -> Done {
    let marked = !object.metadata().deletion_timestamp.is_empty();
    if marked && delete::removable(draft.state, &object) == Removable::Now {
        return match draft.remove(key) {
            Some(last) => Done::object(WriteEffect::Deleted, last),
            None => Done::effect(WriteEffect::Unchanged),
        };
    }
    match draft.write(object) {
        Some(written) => Done::object(WriteEffect::Configured, written),
        None => match draft.state.get(key) {
            Some(current) => Done::object(WriteEffect::Unchanged, current.clone()),
            None => Done::effect(WriteEffect::Unchanged),
        },
    }
}

fn written(object: Option<ObjectRef>, effect: WriteEffect) -> Done {
    object.map_or_else(|| Done::effect(WriteEffect::Unchanged), |object| Done::object(effect, object))
}

/// A new object's namespace must exist and not be on its way out.
fn check_namespace(draft: &Draft<'_>, key: &Key) -> Result<(), Rejection> {
    if !key.kind.is_namespaced() {
        return Ok(());
    }
    if key.namespace.is_empty() {
        return Err(outcome::invalid(key, &[Invalid::required("metadata.namespace", "")]));
    }
    let namespace = Key::new(Kind::Namespace, "", &key.namespace);
    let found = draft.state.get(&namespace).ok_or_else(|| outcome::not_found(&namespace))?;
    if found.metadata().deletion_timestamp.is_empty() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {} because it is being terminated", key.namespace);
    Err(outcome::forbidden(key, &why))
}

/// Whoever tells of everything may not fill the memory.
fn check_room_for_events(draft: &Draft<'_>, key: &Key) -> Result<(), Rejection> {
    if draft.state.list(Kind::Event, "").count() < MAX_EVENTS {
        return Ok(());
    }
    let why = format!("{MAX_EVENTS} events are kept already");
    let hint = Invalid::forbidden("metadata.name", "events go an hour after they happened last").to_wire();
    Err(outcome::exhausted(key, &why, hint))
}

/// A record that servers derive can't be written by anybody else.
pub(super) fn check_hand_written(draft: &Draft<'_>, key: &Key) -> Result<(), Rejection> {
    let service = draft.state.get(&Key::new(Kind::Service, &key.namespace, &key.name));
    if service.and_then(|object| object.as_service()).is_some_and(derive::is_derived) {
        let why = format!(
            "they are derived from the selector of service {:?}: change its pods or its selector instead",
            key.name
        );
        return Err(outcome::forbidden(key, &why));
    }
    Ok(())
}

/// What servers set stays as it is, whatever the writer sent.
fn keep_server_set(object: &mut Object, current: &Object) {
    let old = current.metadata().clone();
    let Some(new) = object.metadata_mut() else {
        return;
    };
    new.namespace = old.namespace;
    new.uid = old.uid;
    new.revision = old.revision;
    new.generation = old.generation;
    new.creation_timestamp = old.creation_timestamp;
    new.deletion_timestamp = old.deletion_timestamp;
    new.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    if new.generate_name.is_empty() {
        new.generate_name = old.generate_name;
    }
}

/// Nobody can hold back an object that is being deleted any more.
fn new_finalizers(object: &Object, current: &Object) -> Vec<Invalid> {
    let old = current.metadata();
    if old.deletion_timestamp.is_empty() {
        return Vec::new();
    }
    let added: Vec<&String> = object.metadata().finalizers.iter().filter(|one| !old.finalizers.contains(one)).collect();
    if added.is_empty() {
        return Vec::new();
    }
    let detail =
        format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}");
    vec![Invalid::forbidden("metadata.finalizers", &detail)]
}

fn has_spec(kind: Kind) -> bool {
    match kind {
        Kind::Node | Kind::Pod | Kind::Service => true,
        Kind::Namespace | Kind::Endpoints | Kind::Event | Kind::Unspecified => false,
    }
}

fn spec_changed(new: &Object, old: &Object) -> bool {
    let kept_differ = new.extra_json() != old.extra_json();
    match (&new.kind, &old.kind) {
        (Some(object::Kind::Node(new)), Some(object::Kind::Node(old))) => kept_differ || new.spec != old.spec,
        (Some(object::Kind::Pod(new)), Some(object::Kind::Pod(old))) => kept_differ || new.spec != old.spec,
        (Some(object::Kind::Service(new)), Some(object::Kind::Service(old))) => kept_differ || new.spec != old.spec,
        _ => false,
    }
}
