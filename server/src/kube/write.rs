//! create, update, patch, delete: a body becomes an admitted object, and what the gRPC API does is done with it.
//!
//! INVARIANT: a write that was computed from an object names that object's revision, so that no change in between is lost.

use crate::api::admit::{self, Admitted};
use crate::api::list::{self, Page};
use crate::kube::accept::Wanted;
use crate::kube::answer::Answer;
use crate::kube::failure::{self, Failure};
use crate::kube::fields::{self, By};
use crate::kube::patch;
use crate::kube::place::Place;
use crate::kube::read::{one, selected};
use crate::kube::request::{Asked, Target, dry_run};
use crate::kube::view::{self, View};
use crate::kube::{Kube, body, openapi};
use crate::pki::Identity;
use crate::watch::happened;
use crate::write::{now_ms, rfc3339};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{DeleteRequest, Kind, ObjectResponse, WriteEffect, WriteOptions};
use fairlead_proto::{convert, manifest};
use serde_json::{Value, json};

/// Attempts of a change that is computed from an object which others keep changing.
const ATTEMPTS: u32 = 16;
/// The machine version from which the owners of fields are kept.
const OWNERS_FROM: u32 = 3;

/// What a write needs beside its object.
pub(super) struct Writing<'a> {
    /// Who.
    pub who: &'a Identity,
    /// What its path names.
    pub target: &'a Target,
    /// What its query asks.
    pub asked: &'a Asked,
    /// The form of the answer.
    pub wanted: Wanted,
    /// Who owns the fields that it changes.
    pub manager: String,
}

impl Writing<'_> {
    fn options(&self) -> WriteOptions {
        WriteOptions {
            dry_run: self.asked.dry_run,
            field_validation: self.asked.validation as i32,
            default_namespace: self.target.namespace.clone(),
            status: self.target.subresource == "status",
            ..WriteOptions::default()
        }
    }

    /// The kind that may be written; derived and made ones may not.
    fn kind(&self) -> Result<Kind, Failure> {
        match View::of(self.target.resource) {
            Some(View::Own(kind)) => Ok(kind),
            _ => Err(Failure::no_such_verb()),
        }
    }

    fn answer(&self, response: ObjectResponse, code: u16) -> Answer {
        let object = response.object.unwrap_or_default();
        one(&view::render(&object), (self.target, self.wanted), self.asked).with_code(code).warning(response.warnings)
    }
}

impl Kube {
    /// POST.
    pub(super) async fn create(&self, writing: &Writing<'_>, given: Value) -> Result<Answer, Failure> {
        let kind = writing.kind()?;
        let given = whole(given, writing.target)?;
        let mut admitted = self.admitted(writing, given.clone())?;
        if admitted.object.metadata().name.is_empty() && admitted.object.metadata().generate_name.is_empty() {
            let why = "Required value: name or generateName is required";
            return Err(invalid(kind, ("", "metadata.name"), ("FieldValueRequired", why)));
        }
        self.own(writing, (None, &given), &mut admitted);
        let options = writing.options();
        let response = self.objects.create_admitted(writing.who, (&admitted, &options)).await?;
        Ok(writing.answer(response, 201))
    }

    /// PUT.
    pub(super) async fn update(&self, writing: &Writing<'_>, given: Value) -> Result<Answer, Failure> {
        let kind = writing.kind()?;
        let given = whole(given, writing.target)?;
        let admitted = self.admitted(writing, given.clone())?;
        let name = &admitted.object.metadata().name;
        if *name != writing.target.name {
            let why =
                format!("the name of the object ({name}) does not match the name on the URL ({})", writing.target.name);
            return Err(Failure::bad_request(why));
        }
        let conditional = admitted.object.metadata().revision != 0;
        let key = Key::new(kind, &writing.target.namespace, &writing.target.name);
        for attempt in 0..ATTEMPTS {
            let live = match self.live(&key, attempt, writing).await {
                // Kubernetes' strategies of these allow it (AllowCreateOnUpdate).
                Err(missing)
                    if missing.code == 404 && matches!(kind, Kind::Service | Kind::Endpoints) && !conditional =>
                {
                    return self.create(writing, given).await;
                }
                live => live?,
            };
            let given = with_status_of(given.clone(), &live, writing.target);
            let mut admitted = self.admitted(writing, given.clone())?;
            self.own(writing, (Some(&live), &given), &mut admitted);
            if !conditional && let Some(metadata) = admitted.object.metadata_mut() {
                metadata.revision = live.metadata().revision;
            }
            match self.objects.update_admitted(writing.who, (&admitted, &writing.options())).await {
                Ok(response) => return Ok(writing.answer(response, 200)),
                Err(refused) => again(refused, conditional || attempt + 1 == ATTEMPTS)?,
            }
        }
        Err(Failure::new(409, "Conflict", "others keep changing this object"))
    }

    /// PATCH.
    pub(super) async fn patch(&self, writing: &Writing<'_>, media_type: &str, bytes: &[u8]) -> Result<Answer, Failure> {
        let kind = writing.kind()?;
        let key = Key::new(kind, &writing.target.namespace, &writing.target.name);
        let apply = media_type == "application/apply-patch+yaml";
        if apply && writing.asked.manager.is_empty() {
            return Err(Failure::invalid_options("fieldManager", "Required value: is required for apply patch"));
        }
        if writing.asked.force && !apply {
            return Err(Failure::invalid_options("force", "Forbidden: may not be specified for non-apply patch"));
        }
        let change = match patch::Type::of_content_type(media_type) {
            _ if apply => Change::Apply(whole(body::decode(media_type, bytes)?, writing.target)?),
            Some(kind) => Change::Patch(kind, body::json(bytes)?),
            None => return Err(Failure::media_type(ACCEPTED)),
        };
        for attempt in 0..ATTEMPTS {
            let live = match self.live(&key, attempt, writing).await {
                Ok(live) => Some(live),
                Err(missing) if missing.code == 404 && apply => None,
                Err(missing) => return Err(missing),
            };
            let last = attempt + 1 == ATTEMPTS;
            match self.patched(writing, &change, live.as_ref()).await? {
                Ok(answer) => return Ok(answer),
                Err(refused) => again(refused, last || self.names_a_revision(&change))?,
            }
        }
        Err(Failure::new(409, "Conflict", "others keep changing this object"))
    }

    /// One attempt: the object patched, admitted and written. The inner error is of the write itself.
    async fn patched(
        &self,
        writing: &Writing<'_>,
        change: &Change,
        live: Option<&ObjectRef>,
    ) -> Result<Result<Answer, tonic::Status>, Failure> {
        let before = live.map(|live| view::render(live));
        let place = place(writing.target);
        let now = rfc3339(now_ms());
        let after = match change {
            Change::Apply(config) => {
                let by = by(writing, &now);
                let place = place.ok_or_else(Failure::no_such_verb)?;
                fields::apply(before.as_ref(), config, place, &by).map_err(refused_apply)?
            }
            Change::Patch(kind, patch) => {
                let before = before.clone().unwrap_or(Value::Null);
                patch::apply(*kind, &before, patch, place)
                    .map_err(|refused| Failure::new(refused.code, reason(refused.code), refused.message))?
            }
        };
        let mut after = whole(after, writing.target)?;
        if let Some(live) = live {
            after = with_status_of(after, live, writing.target);
        }
        if after.pointer("/metadata/name").and_then(Value::as_str) != Some(writing.target.name.as_str()) {
            let why = "the name of the object does not match the name on the URL".to_owned();
            return Err(Failure::bad_request(why));
        }
        let mut admitted = self.admitted(writing, after.clone())?;
        match change {
            Change::Apply(_) => self.keep_owners(&mut admitted, &after),
            Change::Patch(..) => self.own(writing, (live, &after), &mut admitted),
        }
        let options = writing.options();
        let written = match live {
            None => {
                self.objects.create_admitted(writing.who, (&admitted, &options)).await.map(|response| (response, 201))
            }
            Some(live) => {
                if admitted.object.metadata().revision == 0
                    && let Some(metadata) = admitted.object.metadata_mut()
                {
                    metadata.revision = live.metadata().revision;
                }
                self.objects.update_admitted(writing.who, (&admitted, &options)).await.map(|response| (response, 200))
            }
        };
        Ok(written.map(|(response, code)| writing.answer(response, code)))
    }

    /// DELETE of one object.
    pub(super) async fn delete(&self, writing: &Writing<'_>, options: &Value) -> Result<Answer, Failure> {
        let kind = writing.kind()?;
        let key = Key::new(kind, &writing.target.namespace, &writing.target.name);
        let request = deletion(writing, &key, options)?;
        if happened::named(&self.consensus.local(), &key).is_some() {
            return Err(told_by_servers(&key));
        }
        let response = self.objects.remove(writing.who, request).await?;
        let object = response.object.clone().unwrap_or_default();
        let gone = response.effect() == WriteEffect::Deleted;
        // As kube-apiserver: the last state of what these kinds' users may look at, a word for the others.
        if gone && !matches!(kind, Kind::Pod | Kind::Service) {
            return Ok(Answer::json(&failure::success(&key, &object.metadata().uid)));
        }
        Ok(writing.answer(response, 200))
    }

    /// DELETE of all that are selected.
    pub(super) async fn delete_all(&self, writing: &Writing<'_>, options: &Value) -> Result<Answer, Failure> {
        let kind = writing.kind()?;
        let view = View::Own(kind);
        self.may_read(writing.who, view, writing.target)?;
        let selected = selected(view, writing.target, writing.asked)?;
        let snapshot = self.snapshot(&Asked::default()).await?;
        let listed = list::page(&snapshot, &selected.base, &Page::default());
        let listed = listed.map_err(|_| Failure::new(500, "InternalError", "the newest state can't be listed"))?;
        let mut gone = Vec::new();
        for object in listed.items {
            let mut request = deletion(writing, &object.key(), options)?;
            request.uid.clone_from(&object.metadata().uid);
            match self.objects.remove(writing.who, request).await.map_err(Failure::from) {
                Ok(response) => gone.push(view::render(&response.object.unwrap_or_default())),
                // Somebody else was faster, or servers hold it.
                Err(refused) if matches!(refused.code, 404 | 409) => {}
                Err(refused) => return Err(refused),
            }
        }
        let resource = writing.target.resource;
        Ok(Answer::json(&json!({
            "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": self.consensus.local().state.revision().to_string()}, "items": gone,
        })))
    }

    /// The object as this server knows it, and after a conflict as it is.
    async fn live(&self, key: &Key, attempt: u32, writing: &Writing<'_>) -> Result<ObjectRef, Failure> {
        if attempt == 0
            && let Some(known) = self.consensus.local().state.get(key)
        {
            return Ok(known.clone());
        }
        let snapshot = self.snapshot(&Asked::default()).await?;
        match snapshot.state.get(key) {
            Some(live) => Ok(live.clone()),
            None if happened::named(&snapshot, key).is_some() => Err(told_by_servers(key)),
            None => Err(failure::not_found(writing.target.resource, &writing.target.name)),
        }
    }

    fn admitted(&self, writing: &Writing<'_>, given: Value) -> Result<Admitted, Failure> {
        let mut admitted = admit::decode_value(given, &writing.options()).map_err(crate::api::objects::refused)?;
        let namespace = &admitted.object.metadata().namespace;
        if !writing.target.namespace.is_empty() && *namespace != writing.target.namespace {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Failure::bad_request(why));
        }
        // What it says of owners is judged elsewhere.
        if let Some(map) = admitted.manifest.get_mut("metadata").and_then(Value::as_object_mut) {
            map.remove("managedFields");
        }
        Ok(admitted)
    }

    fn keeps_owners(&self) -> bool {
        self.consensus.local().state.machine_version() >= OWNERS_FROM
    }

    /// Whoever writes owns the fields that it changes.
    fn own(&self, writing: &Writing<'_>, (live, given): (Option<&ObjectRef>, &Value), admitted: &mut Admitted) {
        let Some(place) = place(writing.target).filter(|_| self.keeps_owners()) else { return };
        let mut whole = admitted.object.clone();
        convert::default_object(&mut whole);
        let mut new = view::render(&whole);
        if let (Some(metadata), Some(said)) =
            (new.get_mut("metadata").and_then(Value::as_object_mut), given.pointer("/metadata/managedFields"))
        {
            metadata.insert("managedFields".into(), said.clone());
        }
        let now = rfc3339(now_ms());
        let owned = fields::update(live.map(|live| view::render(live)).as_ref(), &new, place, &by(writing, &now));
        self.keep_owners(admitted, &owned);
    }

    fn keep_owners(&self, admitted: &mut Admitted, owned: &Value) {
        if !self.keeps_owners() {
            return;
        }
        let owners = owned.pointer("/metadata/managedFields").cloned().unwrap_or_else(|| json!([]));
        if let Some(metadata) = admitted.object.metadata_mut() {
            metadata.managed_fields = owners.to_string();
        }
    }

    fn names_a_revision(&self, change: &Change) -> bool {
        let (Change::Apply(given) | Change::Patch(_, given)) = change;
        given.pointer("/metadata/resourceVersion").is_some_and(|revision| !revision.is_null())
    }
}

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, \
    application/strategic-merge-patch+json, application/apply-patch+yaml";

/// How an object is to be changed.
enum Change {
    Apply(Value),
    Patch(patch::Type, Value),
}

fn refused_apply(refused: fields::Refused) -> Failure {
    match refused {
        fields::Refused::Conflicts(conflicts) => {
            let mut failure = Failure::new(409, "Conflict", conflicts.to_string());
            failure.details.insert("causes".into(), conflicts.causes());
            failure
        }
        // Kubernetes says 500 to a configuration that isn't of the schema; it is the client's doing.
        fields::Refused::BadRequest(why) | fields::Refused::Untyped(why) => Failure::bad_request(why),
    }
}

fn by<'a>(writing: &'a Writing<'_>, now: &'a str) -> By<'a> {
    By { manager: &writing.manager, subresource: &writing.target.subresource, now, force: writing.asked.force }
}

fn place(target: &Target) -> Option<Place<'static>> {
    Place::of(openapi::definitions(), openapi::definition_of(target.resource))
}

/// What is rendered from the event window is nobody's to change.
fn told_by_servers(key: &Key) -> Failure {
    let why = "it tells of a change that was made: it goes when the servers forget that change";
    Failure::new(403, "Forbidden", format!("{key} is forbidden: {why}"))
}

/// An error of a write that may be tried again, unless it is final.
fn again(refused: tonic::Status, last: bool) -> Result<(), Failure> {
    let failure = Failure::from(refused);
    let raced = matches!(failure.reason.as_str(), "Conflict" | "AlreadyExists") && !last;
    if raced { Ok(()) } else { Err(failure) }
}

fn reason(code: u16) -> &'static str {
    match code {
        413 => "RequestEntityTooLarge",
        422 => "Invalid",
        _ => "BadRequest",
    }
}

/// A body with apiVersion and kind, which its path implies.
fn whole(mut given: Value, target: &Target) -> Result<Value, Failure> {
    let resource = target.resource;
    let (version, kind) = (resource.api_version(), resource.kind);
    let Some(map) = given.as_object_mut() else {
        return Err(Failure::bad_request(format!("the body is no object: a {kind} is expected")));
    };
    let said = |map: &serde_json::Map<String, Value>, field: &str| {
        map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (given_version, given_kind) = (said(map, "apiVersion"), said(map, "kind"));
    if !given_kind.is_empty() && given_kind != kind {
        let why = format!(
            "{given_kind} in version {given_version:?} cannot be handled as a {kind}: the path is of another kind"
        );
        return Err(Failure::bad_request(why));
    }
    if !given_version.is_empty() && given_version != version {
        let why = format!(
            "the API version in the data ({given_version}) does not match the expected API version ({version})"
        );
        return Err(Failure::bad_request(why));
    }
    map.insert("apiVersion".into(), version.into());
    map.insert("kind".into(), kind.into());
    Ok(given)
}

/// Whoever doesn't write the status leaves it as it is, also what is shown of it beside what is kept.
fn with_status_of(mut given: Value, live: &ObjectRef, target: &Target) -> Value {
    if target.subresource.is_empty()
        && let Some(map) = given.as_object_mut()
    {
        map.remove("status");
        if let Some(status) = manifest::render(live).get("status") {
            map.insert("status".into(), status.clone());
        }
    }
    given
}

fn deletion(writing: &Writing<'_>, key: &Key, options: &Value) -> Result<DeleteRequest, Failure> {
    let text = |field: &str| options.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let grace = options.get("gracePeriodSeconds").and_then(Value::as_i64).or(writing.asked.grace_period_seconds);
    let mut write = writing.options();
    for word in options.get("dryRun").and_then(Value::as_array).into_iter().flatten() {
        write.dry_run |= dry_run(word.as_str().unwrap_or_default())?;
    }
    let policy = text("/propagationPolicy");
    if !["", "Background", "Foreground", "Orphan"].contains(&policy.as_str()) {
        return Err(Failure::invalid_options("propagationPolicy", &format!("Unsupported value: {policy:?}")));
    }
    let revision = match text("/preconditions/resourceVersion").as_str() {
        "" => 0,
        digits => digits.parse().map_err(|_| Failure::bad_request(format!("no revision: {digits:?}")))?,
    };
    Ok(DeleteRequest {
        key: Some(key.to_wire()),
        options: Some(write),
        uid: text("/preconditions/uid"),
        revision,
        grace_period_seconds: grace,
    })
}

fn invalid(kind: Kind, (name, field): (&str, &str), (reason, why): (&str, &str)) -> Failure {
    let mut failure = Failure::new(422, "Invalid", format!("{} {name:?} is invalid: {field}: {why}", kind.title()));
    failure.details.insert("name".into(), name.into());
    failure.details.insert("kind".into(), kind.title().into());
    failure.details.insert("causes".into(), json!([{"reason": reason, "message": why, "field": field}]));
    failure
}
