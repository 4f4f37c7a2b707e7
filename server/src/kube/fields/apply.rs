//! The two writes that field management knows: an applied configuration, and any other change of an object.
//!
//! Laws: a configuration that is applied twice changes nothing the second time; a conflict is there exactly if a field of
//! another manager would change; a field that its manager no longer applies goes unless somebody else owns it.
//! The order of things is that of apimachinery `managedfields/internal` and structured-merge-diff `merge/update.go`.

use std::fmt;

use serde_json::{Map, Value};

use super::super::place::Place;
use super::conflicts::Conflicts;
use super::managers::{Entry, Managers, Operation};
use super::merge::{compare, is_same, merge, omit_empty, remove};
use super::set::{Set, Step};
use super::shape::{faults, owned, with_named};
use super::{MAX_DEPTH, is_shallow};

/// Where `kubectl apply` keeps the configuration that it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The bound of all annotations of an object together (apimachinery `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// The manager that `kubectl apply --server-side` is by default.
const KUBECTL: &str = "kubectl";
/// Who owns what was there before the first apply to an object that nobody managed.
const BEFORE: &str = "before-first-apply";
/// Fields of metadata that nobody owns, besides `apiVersion`, `kind` and `metadata` itself (apimachinery `stripmeta.go`).
const UNOWNED: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Who writes, how and when.
#[derive(Clone, Copy, Debug)]
pub struct By<'a> {
    /// The manager's name; empty is "unknown".
    pub manager: &'a str,
    /// The subresource that the request is to, or empty. Nobody owns `status` by the object itself, nor `spec` by its status:
    /// such a request does not change them (the reset fields of Kubernetes' strategies).
    pub subresource: &'a str,
    /// The time now (RFC 3339).
    pub now: &'a str,
    /// Take fields over from others.
    pub force: bool,
}

impl By<'_> {
    fn manager(&self) -> &str {
        if self.manager.is_empty() { "unknown" } else { self.manager }
    }

    /// The fields of the whole object that the request cannot change.
    fn reset(&self) -> &'static [&'static str] {
        match self.subresource {
            "" => &["status"],
            "status" => &["spec"],
            _ => &[],
        }
    }

    fn entry(&self, operation: Operation, version: &str, fields: Set) -> Entry {
        Entry {
            manager: self.manager().to_owned(),
            operation,
            api_version: version.to_owned(),
            time: Some(self.now.to_owned()).filter(|now| !now.is_empty()),
            fields,
            subresource: self.subresource.to_owned(),
        }
    }
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Others own what it would change: 409, reason Conflict.
    Conflicts(Conflicts),
    /// The request is wrong in itself: 400, reason BadRequest.
    BadRequest(String),
    /// It is not of the schema, or its lists have an item twice. Kubernetes answers 500 without a reason.
    Untyped(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflicts(conflicts) => conflicts.fmt(f),
            Self::BadRequest(text) | Self::Untyped(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Refused {}

/// Merges an applied configuration into the live object (`None`: there is none yet); the result has its new
/// `metadata.managedFields`, and is equal to the live object if there is nothing to write.
///
/// A live object whose managers cannot be read is taken for one that nobody manages. The manager "kubectl" also takes over
/// what `kubectl apply` without `--server-side` last applied (apimachinery `lastappliedmanager.go`), and keeps that annotation.
///
/// # Errors
/// Conflicts with other managers unless forced; a configuration that is no object of the schema, has managedFields, or is
/// nested deeper than [`MAX_DEPTH`].
pub fn apply(live: Option<&Value>, config: &Value, place: Place<'_>, by: &By<'_>) -> Result<Value, Refused> {
    let version = config.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let config = checked(live, config, place)?;
    let body = live.map_or_else(|| Value::Object(Map::new()), unmanaged);
    let mut managers = live.and_then(|live| Managers::of(live).ok()).unwrap_or_default();
    if managers.is_empty() && live.is_some() {
        let before = By { manager: BEFORE, ..*by };
        let written = compare(&nothing(), &body, place).without_top(by.reset()).written().difference(&unowned());
        if !written.is_empty() {
            managers.0.push(before.entry(Operation::Update, version, written));
        }
    }
    let stays = |(name, _): &(&String, &Value)| !by.reset().contains(&name.as_str());
    let wanted = config.iter().filter(stays).map(|(name, field)| (name.clone(), field.clone())).collect();
    let wanted = Value::Object(wanted);
    let mut was = body.clone();
    omit_empty(&mut was, Some(place));
    let act = Act { body: &body, was: &was, config: &wanted, place, by, version };
    let (mut object, managers) = match act.merged(managers.clone(), by.force) {
        Err(conflicts) if by.manager() == KUBECTL => {
            let Some(ours) = last_applied_fields(&body, version, place) else {
                return Err(Refused::Conflicts(conflicts));
            };
            let left: Vec<_> = conflicts.0.into_iter().filter(|one| !ours.has(&one.path.0)).collect();
            if !left.is_empty() {
                return Err(Refused::Conflicts(Conflicts(left)));
            }
            act.merged(managers, true).map_err(Refused::Conflicts)?
        }
        other => other.map_err(Refused::Conflicts)?,
    };
    if by.manager() == KUBECTL {
        renew_last_applied(&mut object, &config);
    }
    Ok(act.finished(live, object, managers))
}

/// The configuration as far as it may be applied: of the schema, without managers, and without nulls for what the server sets.
fn checked(live: Option<&Value>, config: &Value, place: Place<'_>) -> Result<Map<String, Value>, Refused> {
    if !is_shallow(config) || live.is_some_and(|live| !is_shallow(live)) {
        return Err(Refused::BadRequest(format!("exceeded max depth {MAX_DEPTH}")));
    }
    let Value::Object(fields) = config else {
        return Err(Refused::BadRequest("an applied configuration is an object".to_owned()));
    };
    if fields.get("apiVersion").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(Refused::BadRequest("an applied configuration has an apiVersion".to_owned()));
    }
    let mut fields = fields.clone();
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        if metadata.get("managedFields").and_then(Value::as_array).is_some_and(|entries| !entries.is_empty()) {
            return Err(Refused::BadRequest("metadata.managedFields must be nil".to_owned()));
        }
        metadata.remove("managedFields");
        metadata.retain(|name, field| !(field.is_null() && UNOWNED.contains(&name.as_str())));
    }
    let config = Value::Object(fields);
    let faults = faults(&config, place);
    let faults = match faults.as_slice() {
        [] => match config {
            Value::Object(fields) => return Ok(fields),
            _ => String::new(),
        },
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    Err(Refused::Untyped(format!("failed to create typed patch object ({}): {faults}", name_of(&config))))
}

/// "namespace/name; group/version, Kind=kind", as apimachinery's errors name an object.
fn name_of(object: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = |name: &str| text(object.get("metadata").and_then(|metadata| metadata.get(name)));
    let version = text(object.get("apiVersion"));
    let version = if version.contains('/') { version } else { format!("/{version}") };
    format!("{}/{}; {version}, Kind={}", metadata("namespace"), metadata("name"), text(object.get("kind")))
}

/// An object without its managers.
fn unmanaged(object: &Value) -> Value {
    let Value::Object(fields) = object else { return Value::Object(Map::new()) };
    let mut fields = fields.clone();
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    Value::Object(fields)
}

/// An object that nobody wrote: the structs that the server's types always have.
fn nothing() -> Value {
    let empty = || Value::Object(Map::new());
    Value::Object(["metadata", "spec", "status"].map(|name| (name.to_owned(), empty())).into_iter().collect())
}

/// The fields that nobody owns.
fn unowned() -> Set {
    let mut set = Set::default();
    for name in ["apiVersion", "kind", "metadata"] {
        set.insert(&[Step::field(name)]);
    }
    for name in UNOWNED {
        set.insert(&[Step::field("metadata"), Step::field(name)]);
    }
    set
}

/// An apply: the live object without managers, what is applied to it, and who does.
struct Act<'a> {
    body: &'a Value,
    /// The same as the server's own types have it.
    was: &'a Value,
    config: &'a Value,
    place: Place<'a>,
    by: &'a By<'a>,
    version: &'a str,
}

impl Act<'_> {
    fn id(&self) -> (&str, Operation, &str, &str) {
        (self.by.manager(), Operation::Apply, "", self.by.subresource)
    }

    /// The merged object and who owns what of it then.
    fn merged(&self, mut managers: Managers, force: bool) -> Result<(Value, Managers), Conflicts> {
        let last = managers.take(self.id());
        let own = owned(self.config, self.place);
        let mut object = merge(self.body, self.config, Some(self.place));
        if let Some(last) = &last {
            let others = managers.0.iter().fold(own.clone(), |all, entry| all.union(&entry.fields));
            object = self.pruned(&object, &others, &last.fields.clone().without_top(self.by.reset()));
        }
        let changes = compare(self.body, &object, self.place).without_top(self.by.reset());
        let written = changes.written();
        if !force {
            let mut owners: Vec<&Entry> = managers.0.iter().collect();
            owners.sort_by_key(|entry| entry.id());
            let with = |entry: &Entry| Conflicts::with(entry, &entry.fields.intersection(&written));
            let conflicts: Vec<_> = owners.into_iter().flat_map(with).collect();
            if !conflicts.is_empty() {
                return Err(Conflicts(conflicts));
            }
        }
        managers.lose(&written.union(&changes.removed));
        let mut entry = self.by.entry(Operation::Apply, self.version, own.difference(&unowned()));
        omit_empty(&mut object, Some(self.place));
        if is_same(self.was, &object) {
            // Nothing was written: the time is that of the last write, if the manager owns what it did.
            let same = last.filter(|last| last.fields == entry.fields && last.api_version == entry.api_version);
            entry.time = same.map_or(entry.time, |last| last.time);
        }
        if !entry.fields.is_empty() {
            managers.0.push(entry);
        }
        Ok((object, managers))
    }

    /// The merged object without what its manager applied last and nobody owns now; `others` has what it applies now.
    /// What lay below a removed item or struct goes with it, unless somebody owns that.
    fn pruned(&self, object: &Value, others: &Set, last: &Set) -> Value {
        let named = |set: &Set| with_named(set, Some(self.place));
        let all = |object: &Value| named(&owned(object, self.place));
        let (last, had) = (named(last), all(object));
        let kept = all(&remove(object, &last, Some(self.place))).union(&named(others));
        let kept = all(&remove(object, &had.difference(&kept), Some(self.place)));
        let gone = had.difference(&kept).intersection(&last).difference(&unowned());
        match remove(object, &gone, Some(self.place)) {
            _ if gone.is_empty() => object.clone(),
            Value::Null => Value::Object(Map::new()),
            left => left,
        }
    }

    /// The object with its managers; the live one as it is if nothing changed.
    fn finished(&self, live: Option<&Value>, object: Value, managers: Managers) -> Value {
        let object = if live.is_some() && is_same(self.was, &object) { self.body.clone() } else { object };
        let object = managed(object, managers);
        live.filter(|live| is_same(live, &object)).cloned().unwrap_or(object)
    }
}

/// The object with this list of managers, last in its metadata. One whose metadata is no object is left alone.
fn managed(mut object: Value, managers: Managers) -> Value {
    if let Value::Object(fields) = &mut object
        && !managers.is_empty()
        && let Value::Object(metadata) = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()))
    {
        metadata.insert("managedFields".to_owned(), managers.to_json());
    }
    object
}

/// What `kubectl apply` owns: the fields of the configuration that it applied last, where the live object still has their
/// values. `None`: there is no such configuration, or none of this version and schema.
fn last_applied_fields(body: &Value, version: &str, place: Place<'_>) -> Option<Set> {
    let text = body.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    let config: Value = serde_json::from_str(text).ok()?;
    let same_version = config.get("apiVersion").and_then(Value::as_str) == Some(version);
    if !same_version || !is_shallow(&config) || !faults(&config, place).is_empty() {
        return None;
    }
    let changes = compare(&config, body, place);
    Some(owned(&config, place).difference(&changes.written()).difference(&changes.removed))
}

/// Keeps the annotation of `kubectl apply`, if the object has it, so that one can go back to it (apimachinery
/// `lastappliedupdater.go`). It is dropped if annotations would grow too large.
fn renew_last_applied(object: &mut Value, config: &Map<String, Value>) {
    let annotations = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
    let Some(Value::Object(annotations)) = annotations else { return };
    if annotations.get(LAST_APPLIED).and_then(Value::as_str).unwrap_or_default().is_empty() {
        return;
    }
    let mut config = Value::Object(config.clone());
    if let Some(Value::Object(mine)) = config.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations")) {
        mine.remove(LAST_APPLIED);
    }
    config.sort_all_objects();
    let mut text = config.to_string();
    // Go's JSON escapes what HTML could take for its own; such characters are only in strings.
    for (char, escape) in [('<', "003c"), ('>', "003e"), ('&', "0026"), ('\u{2028}', "2028"), ('\u{2029}', "2029")] {
        text = text.replace(char, &format!("\\u{escape}"));
    }
    annotations.insert(LAST_APPLIED.to_owned(), Value::String(format!("{text}\n")));
    let size = |(name, value): (&String, &Value)| name.len() + value.as_str().map_or(0, str::len);
    if annotations.iter().map(size).sum::<usize>() > ANNOTATIONS_MAX {
        annotations.remove(LAST_APPLIED);
    }
}

/// The object that another request than an apply wrote (`live` `None`: created it), with its new `metadata.managedFields`:
/// what changed is the writer's, what is gone is nobody's.
///
/// `[]` or `[{}]` as managedFields resets them; a list that cannot be read, or none, leaves those of the live object. A live
/// object that nobody manages stays so. One that is nested deeper than [`MAX_DEPTH`] keeps its managers as they are.
#[must_use]
pub fn update(live: Option<&Value>, new: &Value, place: Place<'_>, by: &By<'_>) -> Value {
    if !new.is_object() {
        return new.clone();
    }
    let object = unmanaged(new);
    let before = || live.and_then(|live| Managers::of(live).ok()).unwrap_or_default();
    if !is_shallow(new) || live.is_some_and(|live| !is_shallow(live)) {
        return managed(object, before());
    }
    let mut managers = match Managers::of(new) {
        _ if !by.subresource.is_empty() => before(),
        _ if is_reset(new) => Managers::default(),
        Ok(given) if !given.is_empty() => given,
        _ => before(),
    };
    if managers.is_empty() && live.is_some() {
        return object;
    }
    let body = live.map_or_else(nothing, unmanaged);
    let changes = compare(&body, &object, place).without_top(by.reset());
    let written = changes.written();
    managers.lose(&written.union(&changes.removed));
    let own = written.difference(&unowned());
    let version = new.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    // An entry without a version could not be read again.
    if !own.is_empty() && !version.is_empty() {
        let mut entry = by.entry(Operation::Update, version, own);
        if let Some(last) = managers.take(entry.id()) {
            entry.fields = entry.fields.union(&last.fields);
        }
        managers.0.push(entry);
    }
    managers.cap_updates();
    managed(object, managers)
}

/// True if a client wants the managers gone.
fn is_reset(object: &Value) -> bool {
    let entries = object.get("metadata").and_then(|metadata| metadata.get("managedFields")).and_then(Value::as_array);
    match entries.map(Vec::as_slice) {
        Some([]) => true,
        Some([Value::Object(entry)]) => entry.is_empty(),
        _ => false,
    }
}
