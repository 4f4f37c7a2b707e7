//! The OpenAPI v2 (swagger 2.0) document of all kinds. Pure.
//!
//! Law: its definitions say what the v3 ones say, in the words of v2: a reference stands beside a description, and what is an
//! integer or a string is a string of a format of its own.

use serde_json::{Map, Value, json};

use super::definitions;
use super::definitions::{META, group_version_kind, referred};
use super::paths::{self, Body, Operation, PATCHES, Parameter, Path, tag};
use super::v3::{meaning, path_parameters};

const DEFINITIONS: &str = "#/definitions/";

pub(super) fn document() -> Value {
    let paths: Map<_, _> = paths::all().iter().map(|path| (path.template.clone(), path_item(path))).collect();
    let schemas: Map<_, _> = definitions().iter().map(|(name, said)| (name.clone(), schema(said))).collect();
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": "v1.37.0" },
        "paths": paths,
        "definitions": schemas,
    })
}

/// A schema in the words of v2. Recursion is as deep as a definition of ours.
fn schema(said: &Value) -> Value {
    let Some(words) = said.as_object() else { return said.clone() };
    let mut own = Map::new();
    for (word, value) in words {
        let (word, value) = match (word.as_str(), value) {
            ("allOf" | "$ref", _) => match referred(said) {
                Some(name) => ("$ref", json!(format!("{DEFINITIONS}{name}"))),
                None => continue,
            },
            ("oneOf", _) => ("type", json!("string")),
            ("properties", Value::Object(fields)) => {
                let fields: Map<_, _> = fields.iter().map(|(name, said)| (name.clone(), schema(said))).collect();
                ("properties", Value::Object(fields))
            }
            ("items" | "additionalProperties", _) => (word.as_str(), schema(value)),
            _ => (word.as_str(), value.clone()),
        };
        own.insert(word.to_owned(), value);
    }
    Value::Object(own)
}

fn path_item(path: &Path) -> Value {
    let mut item: Map<_, _> = path.operations.iter().map(|one| (one.method.to_owned(), operation(path, one))).collect();
    let parameters = path_parameters(
        &path.template,
        &|name, what| json!({ "name": name, "in": "path", "required": true, "description": what, "type": "string", "uniqueItems": true }),
    );
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), json!(parameters));
    }
    Value::Object(item)
}

fn operation(path: &Path, one: &Operation) -> Value {
    let kind = path.kind;
    let consumes: &[&str] = if one.body == Body::Patch { PATCHES } else { &["*/*"] };
    let produces: &[&str] = if one.action == "list" {
        &["application/json", "application/json;stream=watch"]
    } else {
        &["application/json"]
    };
    let parameters: Vec<_> = body(&one.body).into_iter().chain(one.query.iter().map(query_parameter)).collect();
    let success = |code: &&str| {
        let schema = json!({ "$ref": format!("{DEFINITIONS}{}", one.answer) });
        ((*code).to_owned(), json!({ "description": meaning(code), "schema": schema }))
    };
    let mut responses: Map<_, _> = one.codes.iter().map(success).collect();
    responses.insert("401".to_owned(), json!({ "description": meaning("401") }));
    json!({
        "tags": [tag(kind)],
        "description": one.summary,
        "operationId": one.id,
        "consumes": consumes,
        "produces": produces,
        "parameters": parameters,
        "responses": responses,
        "x-kubernetes-action": one.action,
        "x-kubernetes-group-version-kind": group_version_kind(kind.group, kind.version, kind.kind),
    })
}

fn query_parameter((name, kind, what): &Parameter) -> Value {
    json!({ "name": name, "in": "query", "description": what, "type": kind, "uniqueItems": true })
}

fn body(of: &Body) -> Option<Value> {
    let (name, required) = match of {
        Body::None => return None,
        Body::Object(name) => (name.clone(), true),
        Body::Options => (format!("{META}DeleteOptions"), false),
        Body::Patch => (format!("{META}Patch"), true),
    };
    let schema = json!({ "$ref": format!("{DEFINITIONS}{name}") });
    let mut said = json!({ "name": "body", "in": "body", "schema": schema });
    if let (Some(said), true) = (said.as_object_mut(), required) {
        said.insert("required".to_owned(), json!(true));
    }
    Some(said)
}
