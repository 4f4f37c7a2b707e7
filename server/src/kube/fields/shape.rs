//! What the schema makes of a value: which fields it owns, and whether it may be applied.
//!
//! A place is an object whose fields are owned one by one, a list whose items are, or a whole that has one owner. A value
//! that is not of its place's shape is a whole; so no value at all can make a walk fail.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::place::{List, Place};
use super::set::{Path, Scalar, Set, Step};

/// How a place is owned.
pub(super) enum Shape<'a> {
    /// Field by field.
    Object,
    /// Item by item; told apart by these fields, or by themselves if there are none.
    Items(Place<'a>, Vec<&'a str>),
    /// All at once.
    Whole,
}

/// How a place is owned; one that the schema does not have, all at once.
pub(super) fn shape(place: Option<Place<'_>>) -> Shape<'_> {
    let Some(place) = place else { return Shape::Whole };
    if has_fields(place) {
        return if place.is_atomic_map() { Shape::Whole } else { Shape::Object };
    }
    match (place.list(), place.item()) {
        (List::Set, Some(item)) => Shape::Items(item, Vec::new()),
        (List::Map(keys), Some(item)) if !keys.is_empty() => Shape::Items(item, keys),
        _ => Shape::Whole,
    }
}

fn has_fields(place: Place<'_>) -> bool {
    ["properties", "additionalProperties"].iter().any(|word| place.says(word).is_some_and(Value::is_object))
}

/// True if the schema names this field, so that it is no key of a map.
fn is_named(place: Place<'_>, name: &str) -> bool {
    place.says("properties").is_some_and(|fields| fields.get(name).is_some())
}

/// True of an object that the server's own types always have: a struct, which OpenAPI v3 gives the default `{}`.
pub(super) fn is_always_there(place: Option<Place<'_>>) -> bool {
    let default = place.and_then(|place| place.says("default")).and_then(Value::as_object);
    default.is_some_and(serde_json::Map::is_empty) && matches!(shape(place), Shape::Object)
}

/// True of nothing, null, `{}` and `[]`.
pub(super) fn is_void(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// How an item of a list is told apart. A key that it lacks has the schema's default, as the protocol of a Service's port.
fn step_of(item: &Value, place: Place<'_>, keys: &[&str]) -> Result<Step, String> {
    if keys.is_empty() {
        return Scalar::from_json(item).filter(|scalar| *scalar != Scalar::Null).map(Step::Value).ok_or_else(|| {
            match item {
                Value::Object(_) => "associative list without keys has an element that's a map type",
                Value::Array(_) => "not supported: associative list with lists as elements",
                _ => "associative list without keys has an element that's an explicit null",
            }
            .to_owned()
        });
    }
    let fields = match item {
        Value::Object(fields) => fields,
        Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
        _ => return Err("associative list with keys may not have non-map elements".to_owned()),
    };
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        let default = || place.field(key).and_then(|field| field.says("default")).filter(|default| !default.is_null());
        let Some(value) = fields.get(*key).or_else(default) else {
            let omits = "associative list with keys has an element that omits key field";
            return Err(format!("{omits} {key:?} (and doesn't have default value)"));
        };
        let scalar = Scalar::from_json(value).ok_or_else(|| format!("key field {key:?} is not a scalar"))?;
        found.push(((*key).to_owned(), scalar));
    }
    found.sort();
    Ok(Step::Key(found))
}

/// How the items of a list are told apart; `None`: one of them cannot be, and the list is a whole.
pub(super) fn steps(items: &[Value], place: Place<'_>, keys: &[&str]) -> Option<Vec<Step>> {
    items.iter().map(|item| step_of(item, place, keys).ok()).collect()
}

/// The fields that an applied configuration owns (structured-merge-diff's `ToFieldSet`).
#[must_use]
pub fn owned(value: &Value, place: Place<'_>) -> Set {
    below(value, Some(place)).0
}

/// The fields below a value, and whether it is itself one.
fn below(value: &Value, place: Option<Place<'_>>) -> (Set, bool) {
    let mut set = Set::default();
    match (shape(place), value) {
        (Shape::Object | Shape::Items(..), Value::Null) => (set, false),
        (Shape::Object, Value::Object(fields)) => {
            for (name, field) in fields {
                let step = Step::field(name);
                let (child, itself) = below(field, place.and_then(|place| place.field(name)));
                let is_bare = field.is_null() || field.as_object().is_some_and(serde_json::Map::is_empty);
                if itself || is_bare || !place.is_some_and(|place| is_named(place, name)) {
                    set.members.insert(step.clone());
                }
                set.graft(step, child);
            }
            (set, false)
        }
        (Shape::Items(item, keys), Value::Array(items)) => {
            let Some(steps) = steps(items, item, &keys) else { return (set, true) };
            for (step, value) in steps.into_iter().zip(items) {
                // What is there twice is owned, but not what lies below.
                if set.members.insert(step.clone()) {
                    set.graft(step, below(value, Some(item)).0);
                } else {
                    set.children.remove(&step);
                }
            }
            (set, false)
        }
        _ => (set, true),
    }
}

/// The set with every object around its fields that the schema names: who owns `.spec.a` keeps `.spec` there.
pub(super) fn with_named(set: &Set, place: Option<Place<'_>>) -> Set {
    let mut all = Set { members: set.members.clone(), ..Set::default() };
    for (step, child) in &set.children {
        let inner = match step {
            Step::Field(name) => {
                if place.is_some_and(|place| is_named(place, name)) {
                    all.members.insert(step.clone());
                }
                place.and_then(|place| place.field(name))
            }
            _ => place.and_then(Place::item),
        };
        all.children.insert(step.clone(), with_named(child, inner));
    }
    all
}

/// How many of a configuration's faults are told.
const FAULTS_MAX: usize = 20;

/// What keeps a configuration from being applied, in Kubernetes' words (structured-merge-diff `typed/validate.go`): fields
/// that the schema does not have, values of another shape, items that cannot be told apart or are there twice. At most
/// [`FAULTS_MAX`]. Scalars are not checked against each other: whoever decodes the result does.
pub(super) fn faults(value: &Value, place: Place<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    check(value, place, &mut (Path::default(), &mut faults));
    faults
}

fn fault(told: &mut (Path, &mut Vec<String>), text: &str) {
    if told.1.len() < FAULTS_MAX {
        let path = told.0.to_string();
        told.1.push(if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") });
    }
}

/// The beginning of a value, for an error.
fn brief(value: &Value) -> String {
    value.to_string().chars().take(64).collect()
}

fn check(value: &Value, place: Place<'_>, told: &mut (Path, &mut Vec<String>)) {
    let kind = place.says("type").and_then(Value::as_str).unwrap_or_default();
    if has_fields(place) {
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, field) in fields {
                    told.0.0.push(Step::field(name));
                    match place.field(name) {
                        Some(inner) => check(field, inner, told),
                        None if keeps_unknown(place) => {}
                        None => fault(told, "field not declared in schema"),
                    }
                    told.0.0.pop();
                }
            }
            other => fault(told, &format!("expected map, got {}", brief(other))),
        }
    } else if let Some(item) = place.item() {
        match value {
            Value::Null => {}
            Value::Array(items) => check_items(items, (place, item), told),
            other => fault(told, &format!("expected list, got {}", brief(other))),
        }
    } else if ["string", "integer", "number", "boolean"].contains(&kind) && (value.is_object() || value.is_array()) {
        fault(told, &format!("expected {kind}, got {}", brief(value)));
    }
}

fn keeps_unknown(place: Place<'_>) -> bool {
    let is_true = |word| place.says(word).and_then(Value::as_bool) == Some(true);
    is_true("x-kubernetes-preserve-unknown-fields") || is_true("additionalProperties")
}

fn check_items(items: &[Value], (list, item): (Place<'_>, Place<'_>), told: &mut (Path, &mut Vec<String>)) {
    let keys = match list.list() {
        List::Atomic => None,
        List::Set => Some(Vec::new()),
        List::Map(keys) => Some(keys),
    };
    let mut seen = BTreeSet::new();
    for (index, value) in (0_i64..).zip(items) {
        let step = match keys.as_ref().map(|keys| step_of(value, item, keys)) {
            None => Step::Index(index),
            Some(Ok(step)) => step,
            Some(Err(text)) => {
                fault(told, &format!("element {index}: {text}"));
                return;
            }
        };
        if !seen.insert(step.clone()) {
            fault(told, &format!("duplicate entries for key {step}"));
        }
        told.0.0.push(step);
        check(value, item, told);
        told.0.0.pop();
    }
}
