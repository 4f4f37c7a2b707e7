//! From a manifest to a message, with Kubernetes' schema as the judge of its fields.

use crate::manifest::{endpoints, kind_by_name, overlay, render, schema};
use crate::model::Invalid;
use crate::v1::{Kind, Object, object};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A manifest as a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object, as given: not defaulted.
    pub object: Object,
    /// Paths of fields that Kubernetes' schema doesn't have; they are not in the object.
    pub unknown: Vec<String>,
}

/// Decodes one document.
///
/// # Errors
/// What is wrong with it, with its path.
pub fn decode(value: &Value) -> Result<Decoded, Vec<Invalid>> {
    let kind = kind_of(value)?;
    check_revision(value)?;
    let mut value = value.clone();
    drop_nulls(&mut value);
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("selfLink");
        if let Some(Value::String(revision)) = metadata.get("resourceVersion") {
            let number: u64 = revision.parse().unwrap_or(0);
            metadata.insert("resourceVersion".into(), number.into());
        }
    }
    // Kubernetes' type wants the revision as a string.
    let mut judged = value.clone();
    if let Some(metadata) = judged.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    let unknown = schema::unknown_fields(kind, &judged).map_err(|problem| vec![problem])?;
    for path in &unknown {
        remove(&mut value, path);
    }
    let object: Object = match kind {
        Kind::Namespace => object::Kind::Namespace(typed(&value)?),
        Kind::Node => object::Kind::Node(typed(&value)?),
        Kind::Pod => object::Kind::Pod(typed(&value)?),
        Kind::Service => object::Kind::Service(typed(&value)?),
        Kind::Endpoints => object::Kind::Endpoints(endpoints::from_json(&value)?),
        Kind::Event => object::Kind::Event(typed(&value)?),
        Kind::Unspecified => return Err(vec![Invalid::required("kind", "")]),
    }
    .into();
    Ok(Decoded { object: with_overlay(object, &value), unknown })
}

impl From<object::Kind> for Object {
    fn from(kind: object::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

fn kind_of(value: &Value) -> Result<Kind, Vec<Invalid>> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    let mut problems = Vec::new();
    if name.is_empty() {
        problems.push(Invalid::required("kind", "for example: Service"));
    }
    if version.is_empty() {
        problems.push(Invalid::required("apiVersion", "for example: v1"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if name == "EndpointSlice" {
        let detail = "write a v1 Endpoints object: EndpointSlices are rendered from it";
        return Err(vec![Invalid::invalid("kind", name, detail)]);
    }
    let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.title()).collect();
    match kind_by_name(name).filter(|_| version == "v1") {
        Some(kind) => Ok(kind),
        None => Err(vec![Invalid::not_supported("kind", &format!("{version}/{name}"), &known)]),
    }
}

fn check_revision(value: &Value) -> Result<(), Vec<Invalid>> {
    match value.pointer("/metadata/resourceVersion") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(text)) if text.is_empty() || text.parse::<u64>().is_ok() => Ok(()),
        Some(other) => {
            let shown = crate::model::Shown(other.to_string());
            Err(vec![Invalid::invalid(
                "metadata.resourceVersion",
                shown,
                "must be a revision of this cluster, as a string of digits",
            )])
        }
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Vec<Invalid>> {
    serde_json::from_value(value.clone()).map_err(|error| {
        vec![Invalid {
            field: "<document>".into(),
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {error}"),
        }]
    })
}

/// Keeps what the message can't say.
fn with_overlay(mut object: Object, value: &Value) -> Object {
    let mut whole = value.clone();
    if let Some(map) = whole.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
        if object.object_kind() == Kind::Endpoints {
            map.remove("subsets");
        }
    }
    let ours = render::fields(&object);
    let extra =
        overlay::difference(&whole, &ours).map(|extra| overlay::canonical(extra).to_string()).unwrap_or_default();
    match &mut object.kind {
        Some(object::Kind::Namespace(it)) => it.extra_json = extra,
        Some(object::Kind::Node(it)) => it.extra_json = extra,
        Some(object::Kind::Pod(it)) => it.extra_json = extra,
        Some(object::Kind::Service(it)) => it.extra_json = extra,
        Some(object::Kind::Endpoints(it)) => it.extra_json = extra,
        Some(object::Kind::Event(it)) => it.extra_json = extra,
        None => {}
    }
    object
}

/// A null field is an absent one, whatever its type.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, inner| {
            drop_nulls(inner);
            !inner.is_null()
        });
    } else if let Value::Array(list) = value {
        list.iter_mut().for_each(drop_nulls);
    }
}

/// Removes the field at a path such as `spec.ports[0].portz`; paths come from `schema`.
fn remove(value: &mut Value, path: &str) {
    let mut place = value;
    let steps: Vec<Step> = steps(place, path);
    let Some((last, before)) = steps.split_last() else { return };
    for step in before {
        let next = match step {
            Step::Key(key) => place.get_mut(key),
            Step::Index(index) => place.get_mut(*index),
        };
        match next {
            Some(next) => place = next,
            None => return,
        }
    }
    if let (Step::Key(key), Some(map)) = (last, place.as_object_mut()) {
        map.remove(key);
    }
}

enum Step {
    Key(String),
    Index(usize),
}

/// Splits a path by walking the document: a key may itself hold dots.
fn steps(root: &Value, path: &str) -> Vec<Step> {
    let (mut steps, mut place, mut rest) = (Vec::new(), root, path);
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(inner) = rest.strip_prefix('[')
            && let Some((index, after)) = inner.split_once(']')
            && let Ok(index) = index.parse::<usize>()
        {
            steps.push(Step::Index(index));
            let Some(next) = place.get(index) else { break };
            (place, rest) = (next, after);
            continue;
        }
        let Some(map) = place.as_object() else { break };
        let fits = |key: &&String| {
            rest.strip_prefix(key.as_str()).is_some_and(|after| after.is_empty() || after.starts_with(['.', '[']))
        };
        let Some(key) = map.keys().filter(fits).max_by_key(|key| key.len()) else { break };
        steps.push(Step::Key(key.clone()));
        rest = &rest[key.len()..];
        place = &map[key];
    }
    steps
}
