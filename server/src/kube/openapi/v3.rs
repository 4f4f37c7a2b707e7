//! The OpenAPI v3 document of one group and version (KEP-2896). Pure.
//!
//! Law: it has the definitions that its operations refer to, and those that these refer to, and no others.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::definitions::{META, group_version_kind, reference, referred};
use super::paths::{self, Body, Operation, PATCHES, Parameter, Path};
use super::{definitions, paths::tag};

pub(super) fn document(group: &str, version: &str) -> Value {
    let own = |path: &Path| path.kind.group == group && path.kind.version == version;
    let own: Vec<_> = paths::all().into_iter().filter(own).collect();
    let paths: Map<_, _> = own.iter().map(|path| (path.template.clone(), path_item(path))).collect();
    let needed = reachable(own.iter().flat_map(|path| &path.operations).flat_map(named));
    let schemas: Map<_, _> =
        needed.into_iter().filter_map(|name| definitions().get(&name).map(|schema| (name, schema.clone()))).collect();
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.37.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// The definitions that an operation refers to.
pub(super) fn named(operation: &Operation) -> Vec<String> {
    let body = match &operation.body {
        Body::None => None,
        Body::Object(name) => Some(name.clone()),
        Body::Options => Some(format!("{META}DeleteOptions")),
        Body::Patch => Some(format!("{META}Patch")),
    };
    body.into_iter().chain([operation.answer.clone()]).collect()
}

/// These definitions and all that they refer to, in order of name.
pub(super) fn reachable(from: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut left: Vec<String> = from.collect();
    while let Some(name) = left.pop() {
        if let Some(schema) = definitions().get(&name).filter(|_| !seen.contains(&name)) {
            add_references(schema, &mut left);
            seen.insert(name);
        }
    }
    seen
}

/// Every name that a schema refers to. Recursion is as deep as a definition of ours.
fn add_references(schema: &Value, to: &mut Vec<String>) {
    to.extend(referred(schema).map(str::to_owned));
    match schema {
        Value::Object(words) => words.values().for_each(|value| add_references(value, to)),
        Value::Array(all) => all.iter().for_each(|value| add_references(value, to)),
        _ => {}
    }
}

fn path_item(path: &Path) -> Value {
    let mut item: Map<_, _> = path.operations.iter().map(|one| (one.method.to_owned(), operation(path, one))).collect();
    let parameters = path_parameters(&path.template, &|name, what| {
        let schema = json!({ "type": "string", "uniqueItems": true });
        json!({ "name": name, "in": "path", "required": true, "description": what, "schema": schema })
    });
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), json!(parameters));
    }
    Value::Object(item)
}

/// Each part of a path that varies, in a document's own form.
pub(super) fn path_parameters(template: &str, form: &dyn Fn(&str, &str) -> Value) -> Vec<Value> {
    let all = [("name", "Name of the object."), ("namespace", "Namespace of the object.")];
    let own = all.into_iter().filter(|(name, _)| template.contains(&format!("{{{name}}}")));
    own.map(|(name, what)| form(name, what)).collect()
}

fn operation(path: &Path, one: &Operation) -> Value {
    let kind = path.kind;
    let mut said = json!({
        "tags": [tag(kind)],
        "description": one.summary,
        "operationId": one.id,
        "parameters": one.query.iter().map(query_parameter).collect::<Vec<_>>(),
    });
    let Some(words) = said.as_object_mut() else { return said };
    if let Some(body) = body(&one.body) {
        words.insert("requestBody".to_owned(), body);
    }
    words.insert("responses".to_owned(), responses(one));
    words.insert("x-kubernetes-action".to_owned(), json!(one.action));
    let named = group_version_kind(kind.group, kind.version, kind.kind);
    words.insert("x-kubernetes-group-version-kind".to_owned(), named);
    said
}

fn query_parameter((name, kind, what): &Parameter) -> Value {
    let schema = json!({ "type": kind, "uniqueItems": true });
    json!({ "name": name, "in": "query", "description": what, "schema": schema })
}

fn body(of: &Body) -> Option<Value> {
    let (name, types): (String, &[&str]) = match of {
        Body::None => return None,
        Body::Object(name) => (name.clone(), &["*/*"]),
        Body::Options => (format!("{META}DeleteOptions"), &["*/*"]),
        Body::Patch => (format!("{META}Patch"), PATCHES),
    };
    let content = content(types, &name);
    let required = *of != Body::Options;
    Some(if required { json!({ "content": content, "required": true }) } else { json!({ "content": content }) })
}

fn responses(one: &Operation) -> Value {
    let types: &[&str] = if one.action == "list" {
        &["application/json", "application/json;stream=watch"]
    } else {
        &["application/json"]
    };
    let success = |code: &&str| {
        let content = content(types, &one.answer);
        ((*code).to_owned(), json!({ "description": meaning(code), "content": content }))
    };
    let mut all: Map<_, _> = one.codes.iter().map(success).collect();
    all.insert("401".to_owned(), json!({ "description": meaning("401") }));
    Value::Object(all)
}

/// What an HTTP code means (RFC 9110).
pub(super) fn meaning(code: &str) -> &'static str {
    match code {
        "201" => "Created",
        "202" => "Accepted",
        "401" => "Unauthorized",
        _ => "OK",
    }
}

fn content(types: &[&str], definition: &str) -> Map<String, Value> {
    types.iter().map(|one| ((*one).to_owned(), json!({ "schema": reference(definition) }))).collect()
}
