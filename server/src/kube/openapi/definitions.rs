//! The definitions: those of k8s-openapi in Kubernetes' own shape, lists of each kind, and what Kubernetes' extensions say.
//! Pure.
//!
//! A reference is `{"$ref": "#/components/schemas/NAME"}`, in an `allOf` where it stands beside other words.

use serde_json::{Map, Value, json};

use super::merges::{DEFAULTS, ROWS};
use crate::kube::kinds::{Kind, group_versions, kinds};
use crate::kube::place::Definitions;

/// What k8s-openapi says, as the build script wrote it.
pub(super) const TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/definitions.json"));
/// Where definitions are in a v3 document.
pub(super) const SCHEMAS: &str = "#/components/schemas/";
pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// Fields that the crate's types always have, so that its schemas require them, though Kubernetes does not (`+optional`); the
/// same is so of every `metadata`.
const OPTIONAL: &[(&str, &str)] = &[
    ("api.core.v1.ConfigMapEnvSource", "name"),
    ("api.core.v1.ConfigMapKeySelector", "name"),
    ("api.core.v1.ConfigMapProjection", "name"),
    ("api.core.v1.ConfigMapVolumeSource", "name"),
    ("api.core.v1.LocalObjectReference", "name"),
    ("api.core.v1.SecretEnvSource", "name"),
    ("api.core.v1.SecretKeySelector", "name"),
    ("api.core.v1.SecretProjection", "name"),
    ("api.networking.v1.IPAddress", "spec"),
];

/// Every definition, in order of name.
pub(super) fn all() -> Definitions {
    let mut all: Definitions = serde_json::from_str(TEXT).unwrap_or_default();
    all.values_mut().for_each(refer_to_schemas);
    all.values_mut().for_each(|schema| forgo(schema, "metadata"));
    for (definition, field) in OPTIONAL {
        if let Some(schema) = all.get_mut(&format!("io.k8s.{definition}")) {
            forgo(schema, field);
        }
    }
    for (name, first, second) in [(INT_OR_STRING, "integer", "string"), (QUANTITY, "string", "number")] {
        if let Some(schema) = all.get_mut(name).and_then(Value::as_object_mut) {
            schema.remove("x-kubernetes-int-or-string");
            schema.insert("oneOf".to_owned(), json!([{ "type": first }, { "type": second }]));
        }
    }
    if let Some(schema) = all.get_mut(INT_OR_STRING).and_then(Value::as_object_mut) {
        schema.insert("format".to_owned(), json!("int-or-string"));
    }
    for kind in kinds() {
        name_kinds(&mut all, kind.definition, &[(kind.group, kind.version, kind.kind)]);
        if kind.can("list") {
            all.insert(list_definition(kind), list(kind));
        }
    }
    name_kinds(&mut all, &format!("{META}Status"), &[("", "v1", "Status")]);
    let deletes: Vec<_> =
        group_versions().into_iter().map(|(group, version)| (group, version, "DeleteOptions")).collect();
    name_kinds(&mut all, &format!("{META}DeleteOptions"), &deletes);
    add_merges(&mut all);
    all.sort_keys();
    all
}

/// The name of the definition of a kind's list.
pub(super) fn list_definition(kind: &Kind) -> String {
    format!("{}List", kind.definition)
}

/// `x-kubernetes-group-version-kind` as an operation has it; a definition has a list of them.
pub(super) fn group_version_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "kind": kind, "version": version })
}

/// A reference to a definition.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("{SCHEMAS}{name}") })
}

/// The name that a schema refers to, of itself or in an `allOf`.
pub(super) fn referred(schema: &Value) -> Option<&str> {
    let own = schema.get("$ref").or_else(|| schema.get("allOf")?.get(0)?.get("$ref"))?;
    own.as_str()?.rsplit('/').next()
}

/// Every reference of a schema from `#/definitions/`, where the crate has it, to `#/components/schemas/`. Recursion is as deep
/// as the crate's schemas, which are no deeper than a handful of levels.
fn refer_to_schemas(schema: &mut Value) {
    match schema {
        Value::Object(words) => {
            for (word, value) in words.iter_mut() {
                match value {
                    Value::String(path) if word == "$ref" => {
                        *path = path.replacen("#/definitions/", SCHEMAS, 1);
                    }
                    other => refer_to_schemas(other),
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(refer_to_schemas),
        _ => {}
    }
}

/// A field is no longer required.
fn forgo(schema: &mut Value, field: &str) {
    let Some(words) = schema.as_object_mut() else { return };
    if let Some(required) = words.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name != field);
        if required.is_empty() {
            words.remove("required");
        }
    }
}

fn name_kinds(all: &mut Definitions, definition: &str, of: &[(&str, &str, &str)]) {
    if let Some(schema) = all.get_mut(definition).and_then(Value::as_object_mut) {
        let names: Vec<_> = of.iter().map(|(group, version, kind)| group_version_kind(group, version, kind)).collect();
        schema.insert("x-kubernetes-group-version-kind".to_owned(), json!(names));
    }
}

/// The definition of a kind's list, which k8s-openapi has no schema for.
fn list(kind: &Kind) -> Value {
    let name = format!("{}List", kind.kind);
    let metadata = json!({
        "description": "How far the list goes: the version of the state that it was read from, and where it continues.",
        "allOf": [reference(&format!("{META}ListMeta"))],
    });
    json!({
        "description": format!("{name} is a list of {}.", kind.plural),
        "type": "object",
        "properties": {
            "apiVersion": { "description": "The group and version of this form of the list.", "type": "string" },
            "items": {
                "description": format!("The {} of the list.", kind.plural),
                "type": "array",
                "items": reference(kind.definition),
            },
            "kind": { "description": format!("The kind of this object: {name}."), "type": "string" },
            "metadata": metadata,
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": [group_version_kind(kind.group, kind.version, &name)],
    })
}

fn add_merges(all: &mut Definitions) {
    for (definition, field, merge) in ROWS {
        if let Some(schema) = place(all, definition, field) {
            merge.extend(schema);
        }
    }
    for (definition, field, value) in DEFAULTS {
        if let Some(schema) = place(all, definition, field) {
            schema.insert("default".to_owned(), json!(value));
        }
    }
}

fn place<'a>(all: &'a mut Definitions, definition: &str, field: &str) -> Option<&'a mut Map<String, Value>> {
    let schema = all.get_mut(&format!("io.k8s.{definition}"))?;
    let schema = if field.is_empty() { schema } else { schema.get_mut("properties")?.get_mut(field)? };
    schema.as_object_mut()
}
