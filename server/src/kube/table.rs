//! Tables for people: `meta.k8s.io/v1 Table`, as the server prints objects for `kubectl get`. Pure.
//!
//! Columns and cells are Kubernetes' (pkg/printers/internalversion/printers.go); descriptions of columns are in our own words.
//! Laws: a row has a cell for each column, whatever the object lacks; a table depends on nothing but its arguments.

mod age;
mod columns;
mod event;
mod network;
mod node;
mod pod;

use crate::kube::accept::Version;
use serde_json::{Map, Value, json};

pub use age::{age, human_duration};
pub use columns::columns;

/// What a table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// Namespaces.
    Namespace,
    /// Nodes.
    Node,
    /// Pods.
    Pod,
    /// Services.
    Service,
    /// Endpoints, the older form.
    Endpoints,
    /// Events.
    Event,
    /// Slices of endpoints.
    EndpointSlice,
    /// Leases.
    Lease,
    /// Ranges of service addresses.
    ServiceCidr,
    /// Addresses of services.
    IpAddress,
}

/// What each row shows of its object beside the cells (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata, as `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// From the parameter `includeObject`.
    ///
    /// # Errors
    /// It is none of them: a bad request, with this message (endpoints/handlers/response.go).
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "None" => Ok(Self::None),
            "Metadata" | "" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            _ => Err(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {text:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            )),
        }
    }
}

/// How a table is made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// The list's `resourceVersion`, `continue` and `remainingItemCount`; of one object, its `resourceVersion`.
    pub metadata: Value,
    /// What rows show of their objects.
    pub include: Include,
    /// Leaves the columns out, as all events of a watch do but the first.
    pub without_columns: bool,
    /// The version that was asked for.
    pub version: Version,
    /// Seconds since 1970; ages are of this instant.
    pub now: i64,
}

/// The table of some objects.
#[must_use]
pub fn table<'a>(of: Of, objects: impl Iterator<Item = &'a Value>, shape: Shape) -> Value {
    let how = (shape.include, shape.version, shape.now);
    let rows = objects.map(|object| full_row(of, object, how)).collect();
    json!({
        "kind": "Table",
        "apiVersion": shape.version.api_version(),
        "metadata": if shape.metadata.is_null() { json!({}) } else { shape.metadata },
        "columnDefinitions": if shape.without_columns { Value::Null } else { columns(of) },
        "rows": Value::Array(rows),
    })
}

/// An object's row: its cells, and what is shown of it beside them, at a time in seconds since 1970.
#[must_use]
pub fn full_row(of: Of, object: &Value, (include, version, now): (Include, Version, i64)) -> Value {
    let mut full = Map::new();
    full.insert("cells".to_owned(), row(of, object, now).into());
    if of == Of::Pod
        && let Some(conditions) = pod::conditions(object)
    {
        full.insert("conditions".to_owned(), conditions);
    }
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(object, version),
        Include::Object => object.clone(),
    };
    full.insert("object".to_owned(), shown);
    Value::Object(full)
}

/// The cells of an object's row, one for each column.
#[must_use]
pub fn row(of: Of, object: &Value, now: i64) -> Vec<Value> {
    match of {
        Of::Namespace => node::namespace(object, now),
        Of::Node => node::node(object, now),
        Of::Pod => pod::pod(object, now),
        Of::Service => network::service(object, now),
        Of::Endpoints => network::endpoints(object, now),
        Of::Event => event::event(object, now),
        Of::EndpointSlice => network::endpoint_slice(object, now),
        Of::Lease => node::lease(object, now),
        Of::ServiceCidr => network::service_cidr(object, now),
        Of::IpAddress => network::ip_address(object, now),
    }
}

/// An object's metadata alone, as `PartialObjectMetadata`.
#[must_use]
pub fn partial(object: &Value, version: Version) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata})
}

const NONE: &str = "<none>";

/// A value below an object; null if it isn't there.
fn at<'a>(object: &'a Value, path: &[&str]) -> &'a Value {
    const NULL: &Value = &Value::Null;
    path.iter().fold(object, |value, key| value.get(key).unwrap_or(NULL))
}

/// A string below an object; empty if it isn't there.
fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).as_str().unwrap_or_default()
}

/// A string below an object, or else another.
fn text_or<'a>(object: &'a Value, path: &[&str], other: &'a str) -> &'a str {
    Some(text(object, path)).filter(|text| !text.is_empty()).unwrap_or(other)
}

fn number(object: &Value, path: &[&str]) -> i64 {
    at(object, path).as_i64().unwrap_or_default()
}

/// The items of a list below an object; none if it isn't there.
fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).as_array().map_or(&[], Vec::as_slice)
}

/// The strings of a list below an object.
fn texts<'a>(object: &'a Value, path: &[&str]) -> Vec<&'a str> {
    list(object, path).iter().filter_map(Value::as_str).collect()
}

fn name(object: &Value) -> Value {
    text(object, &["metadata", "name"]).into()
}

/// How old an object is.
fn created(object: &Value, now: i64) -> Value {
    age(text(object, &["metadata", "creationTimestamp"]), now).into()
}

/// A condition's status by its type; empty if there is none.
fn condition<'a>(object: &'a Value, of: &str) -> &'a str {
    let found = list(object, &["status", "conditions"]).iter().find(|condition| text(condition, &["type"]) == of);
    found.map_or("", |condition| text(condition, &["status"]))
}

#[cfg(test)]
mod tests;
