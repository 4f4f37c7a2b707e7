//! From a message to its manifest, in Kubernetes' form.

use crate::manifest::{endpoints, overlay};
use crate::v1::{Object, object};
use serde::Serialize;
use serde_json::{Map, Value};

/// The whole manifest: apiVersion, kind, and every field, the ones that Fairlead doesn't read included.
#[must_use]
pub fn render(object: &Object) -> Value {
    let mut manifest = Map::new();
    manifest.insert("apiVersion".into(), "v1".into());
    manifest.insert("kind".into(), object.object_kind().title().into());
    let mut ours = fields(object);
    if let Ok(extra) = serde_json::from_str::<Value>(object.extra_json()) {
        overlay::join(&mut ours, &extra);
    }
    if object.metadata().revision == 0
        && let Some(metadata) = ours.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("resourceVersion");
    }
    if let Value::Object(ours) = ours {
        manifest.extend(ours);
    }
    Value::Object(manifest)
}

/// The fields that our messages carry.
pub fn fields(object: &Object) -> Value {
    match &object.kind {
        None => Value::Object(Map::new()),
        Some(object::Kind::Namespace(it)) => json(it),
        Some(object::Kind::Node(it)) => json(it),
        Some(object::Kind::Pod(it)) => json(it),
        Some(object::Kind::Service(it)) => json(it),
        Some(object::Kind::Endpoints(it)) => endpoints::to_json(it),
        Some(object::Kind::Event(it)) => json(it),
    }
}

pub fn json<T: Serialize>(message: &T) -> Value {
    serde_json::to_value(message).unwrap_or(Value::Null)
}
