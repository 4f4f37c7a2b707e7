//! The protobuf form, read back by messages written down apart from the encoder, says what the JSON form says.
//!
//! Field numbers: gnostic's `openapiv2/OpenAPIv2.proto`.

use proptest::collection::btree_map;
use proptest::prelude::*;
use prost::Message;
use serde_json::{Map, Value, json};

use super::super::{gnostic, v2, v2_protobuf};

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Schemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPath>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPath {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, repeated, tag = "1")]
    tags: Vec<String>,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

/// A `oneof` is read as fields of which one is there.
#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "1")]
    body: Option<BodyParameter>,
    #[prost(message, optional, tag = "2")]
    non_body: Option<NonBody>,
}

#[derive(Clone, PartialEq, Message)]
struct BodyParameter {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    r#in: String,
    #[prost(bool, tag = "4")]
    required: bool,
    #[prost(message, optional, tag = "5")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBody {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
    #[prost(message, optional, tag = "4")]
    path: Option<PathParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    r#in: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    r#type: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PathParameter {
    #[prost(bool, tag = "1")]
    required: bool,
    #[prost(string, tag = "2")]
    r#in: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    r#type: String,
    #[prost(bool, tag = "19")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponseValue {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

/// `Definitions` and `Properties`
#[derive(Clone, PartialEq, Message)]
struct Schemas {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(message, optional, tag = "5")]
    default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<SchemaItem>>,
    #[prost(message, optional, tag = "22")]
    r#type: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Schemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// Words, but for those that have nothing: protobuf cannot tell them from absent ones.
fn object<const N: usize>(words: [(&str, Value); N]) -> Map<String, Value> {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        _ => false,
    };
    words.into_iter().filter(|(_, value)| !empty(value)).map(|(word, value)| (word.to_owned(), value)).collect()
}

fn yaml(any: &Any) -> Value {
    serde_json::from_str(&any.yaml).unwrap()
}

fn extended(mut words: Map<String, Value>, extensions: &[NamedAny]) -> Value {
    words.extend(extensions.iter().map(|one| (one.name.clone(), yaml(one.value.as_ref().unwrap()))));
    Value::Object(words)
}

fn schemas(of: &Schemas) -> Value {
    let all = of.additional_properties.iter().map(|one| (one.name.clone(), schema(one.value.as_ref().unwrap())));
    Value::Object(all.collect())
}

fn schema(of: &Schema) -> Value {
    let only = |all: &ItemsItem| {
        assert_eq!(all.schema.len(), 1);
        schema(&all.schema[0])
    };
    let words = object([
        ("$ref", json!(of.reference)),
        ("format", json!(of.format)),
        ("description", json!(of.description)),
        ("required", json!(of.required)),
        ("additionalProperties", json!(of.additional_properties.as_ref().map(|one| item(one)))),
        ("type", json!(of.r#type.as_ref().map(|one| one.value.join(",")))),
        ("items", json!(of.items.as_ref().map(only))),
        ("properties", json!(of.properties.as_ref().map(schemas))),
    ]);
    let default = of.default.as_ref().map(|any| ("default".to_owned(), yaml(any)));
    extended(words.into_iter().chain(default).collect(), &of.vendor_extension)
}

fn item(of: &SchemaItem) -> Value {
    schema(of.schema.as_ref().unwrap())
}

fn parameter(of: &ParametersItem) -> Value {
    let one = of.parameter.clone().unwrap();
    let non_body = one.non_body.unwrap_or_default();
    let all = [one.body.map(body), non_body.query.map(query), non_body.path.map(path)];
    let mut all = all.into_iter().flatten();
    let (first, second) = (all.next(), all.next());
    assert_eq!(second, None, "one of them");
    Value::Object(first.unwrap())
}

fn body(one: BodyParameter) -> Map<String, Value> {
    object([
        ("name", json!(one.name)),
        ("in", json!(one.r#in)),
        ("required", json!(one.required)),
        ("schema", json!(one.schema.as_ref().map(schema))),
    ])
}

fn query(one: QueryParameter) -> Map<String, Value> {
    object([
        ("name", json!(one.name)),
        ("in", json!(one.r#in)),
        ("description", json!(one.description)),
        ("type", json!(one.r#type)),
        ("uniqueItems", json!(one.unique_items)),
    ])
}

fn path(one: PathParameter) -> Map<String, Value> {
    object([
        ("name", json!(one.name)),
        ("in", json!(one.r#in)),
        ("required", json!(one.required)),
        ("description", json!(one.description)),
        ("type", json!(one.r#type)),
        ("uniqueItems", json!(one.unique_items)),
    ])
}

fn operation(of: &Operation) -> Value {
    let response = |one: &NamedResponseValue| {
        let said = one.value.as_ref().unwrap().response.as_ref().unwrap();
        let schema = json!(said.schema.as_ref().map(item));
        let words = object([("description", json!(said.description)), ("schema", schema)]);
        (one.name.clone(), Value::Object(words))
    };
    let responses: Map<_, _> = of.responses.as_ref().unwrap().response_code.iter().map(response).collect();
    let words = [
        ("tags", json!(of.tags)),
        ("description", json!(of.description)),
        ("operationId", json!(of.operation_id)),
        ("consumes", json!(of.consumes)),
        ("produces", json!(of.produces)),
        ("parameters", json!(of.parameters.iter().map(parameter).collect::<Vec<_>>())),
        ("responses", Value::Object(responses)),
    ];
    // `parameters` of an operation are there even if there are none.
    let mut said: Map<_, _> = words.into_iter().map(|(word, value)| (word.to_owned(), value)).collect();
    said.retain(|_, value| !value.is_null());
    extended(said, &of.vendor_extension)
}

fn path_item(of: &PathItem) -> Value {
    let one = |one: &Option<Operation>| json!(one.as_ref().map(operation));
    Value::Object(object([
        ("get", one(&of.get)),
        ("put", one(&of.put)),
        ("post", one(&of.post)),
        ("delete", one(&of.delete)),
        ("patch", one(&of.patch)),
        ("parameters", json!(of.parameters.iter().map(parameter).collect::<Vec<_>>())),
    ]))
}

fn document(of: &Document) -> Value {
    let paths = of.paths.iter().flat_map(|paths| &paths.path);
    let paths = paths.map(|one| (one.name.clone(), path_item(one.value.as_ref().unwrap())));
    let info = of.info.clone().unwrap_or_default();
    json!({
        "swagger": of.swagger,
        "info": { "title": info.title, "version": info.version },
        "paths": paths.collect::<Map<_, _>>(),
        "definitions": of.definitions.as_ref().map_or_else(|| json!({}), schemas),
    })
}

#[test]
fn protobuf_says_all_that_json_says() {
    let read = Document::decode(v2_protobuf()).unwrap();
    let (read, written) = (document(&read), v2());
    for part in ["paths", "definitions"] {
        for (name, said) in written[part].as_object().unwrap() {
            assert_eq!(&read[part][name], said, "{name}");
        }
    }
    assert!(read == written, "{} {}", read["swagger"], read["info"]);
}

#[test]
fn definitions_are_in_the_order_of_their_names() {
    let read = Document::decode(v2_protobuf()).unwrap();
    assert!(read.definitions.unwrap().additional_properties.is_sorted_by(|a, b| a.name < b.name));
}

/// Schemas up to some levels deep, of any text.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = (".{1,300}", "[a-z]{1,8}").prop_map(|(text, kind)| json!({ "description": text, "type": kind }));
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| json!({ "type": "array", "items": one, "x-kubernetes-list-type": "set" })),
            inner.clone().prop_map(|one| json!({ "additionalProperties": one, "default": { "a": [1, null] } })),
            btree_map(".{0,200}", inner, 0..4).prop_map(|all| json!({ "properties": all, "required": ["a", "b"] })),
        ]
    })
}

proptest! {
    #[test]
    fn any_schema_is_read_back_as_it_was(all in btree_map(".{0,20}", any_schema(), 0..4)) {
        let written = json!({ "swagger": "2.0", "info": { "title": "t", "version": "v" }, "paths": {}, "definitions": all });
        let read = Document::decode(gnostic::encode(&written).as_slice()).unwrap();
        prop_assert_eq!(document(&read), written);
    }
}
