//! Laws of the documents: complete, closed, and the same in every form.

mod crate_fields;
mod protobuf;

use std::collections::{BTreeMap, BTreeSet};

use super::definitions::{SCHEMAS, list_definition, referred};
use super::*;
use crate::kube::kinds::kinds;
use crate::kube::place::{List, Place};

fn keys() -> Vec<String> {
    group_versions().into_iter().map(|(group, version)| v3_key(group, version)).collect()
}

fn references(schema: &Value, to: &mut BTreeSet<String>) {
    match schema {
        Value::Object(words) => {
            if let Some(path) = words.get("$ref") {
                to.insert(path.as_str().unwrap().to_owned());
            }
            words.values().for_each(|value| references(value, to));
        }
        Value::Array(all) => all.iter().for_each(|value| references(value, to)),
        _ => {}
    }
}

/// Every `$ref` of a document, and what it may be.
fn referred_and_had(document: &Value, (prefix, had): (&str, &Value)) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut referred = BTreeSet::new();
    references(document, &mut referred);
    (referred, had.as_object().unwrap().keys().map(|name| format!("{prefix}{name}")).collect())
}

#[test]
fn a_document_has_the_definitions_that_it_refers_to_and_no_others() {
    for key in keys() {
        let document = v3(&key).unwrap();
        let (referred, had) = referred_and_had(&document, (SCHEMAS, &document["components"]["schemas"]));
        assert_eq!(referred, had, "{key}");
    }
    let document = v2();
    let (referred, had) = referred_and_had(&document, ("#/definitions/", &document["definitions"]));
    assert_eq!(referred, had);
}

#[test]
fn every_definition_is_in_the_document_of_some_group() {
    let documents: Vec<_> = keys().iter().map(|key| v3(key).unwrap()).collect();
    for name in definitions().keys() {
        assert!(documents.iter().any(|one| one["components"]["schemas"].get(name).is_some()), "{name}");
    }
}

#[test]
fn every_field_has_a_description_and_a_type() {
    for (name, schema) in definitions() {
        assert!(!schema["description"].as_str().unwrap_or_default().is_empty(), "{name}");
        for (field, said) in schema["properties"].as_object().into_iter().flatten() {
            assert!(!said["description"].as_str().unwrap_or_default().is_empty(), "{name}.{field}");
            let (own, meant) = (said.get("type").is_some(), referred(said).is_some());
            assert!(own != meant, "{name}.{field}");
            if said["type"] == "array" {
                assert!(said["items"].is_object(), "{name}.{field}");
            }
        }
        for field in schema["required"].as_array().into_iter().flatten() {
            assert!(schema["properties"].get(field.as_str().unwrap()).is_some(), "{name}.{field}");
        }
    }
}

#[test]
fn every_kind_and_list_has_a_definition_that_says_which_kind_it_is() {
    for kind in kinds() {
        let named = |kind_name: &str| json!([{ "group": kind.group, "kind": kind_name, "version": kind.version }]);
        let own = &definitions()[definition_of(kind)];
        assert_eq!(own["x-kubernetes-group-version-kind"], named(kind.kind));
        let list = definitions().get(&list_definition(kind));
        assert_eq!(list.is_some(), kind.can("list"), "{}", kind.kind);
        if let Some(list) = list {
            assert_eq!(list["x-kubernetes-group-version-kind"], named(&format!("{}List", kind.kind)));
            let items = Place::of(definitions(), &list_definition(kind)).unwrap().field("items").unwrap();
            let spec = items.item().unwrap().field("metadata").unwrap().field("ownerReferences").unwrap();
            assert_eq!(spec.list(), List::Map(vec!["uid"]));
        }
    }
}

#[test]
fn required_is_what_kubernetes_requires() {
    for (definition, expected) in [
        ("core.v1.Service", &[][..]),
        ("core.v1.Pod", &[]),
        ("core.v1.ServiceSpec", &[]),
        ("core.v1.ServicePort", &["port"]),
        ("core.v1.PodSpec", &["containers"]),
        ("core.v1.Container", &["name"]),
        ("core.v1.LocalObjectReference", &[]),
        ("core.v1.ConfigMapEnvSource", &[]),
        ("core.v1.ConfigMapKeySelector", &["key"]),
        ("core.v1.SecretKeySelector", &["key"]),
        ("core.v1.EphemeralContainer", &["name"]),
        ("discovery.v1.EndpointSlice", &["addressType"]),
        ("discovery.v1.Endpoint", &["addresses"]),
        ("networking.v1.IPAddress", &[]),
        ("authorization.v1.SelfSubjectAccessReview", &["spec"]),
    ] {
        let said = definitions()[&format!("io.k8s.api.{definition}")].get("required");
        assert_eq!(said, (!expected.is_empty()).then(|| json!(expected)).as_ref(), "{definition}");
    }
}

#[test]
fn values_of_two_types_are_written_as_kubernetes_writes_them() {
    let v2 = v2();
    let mut said: BTreeMap<&str, (Value, Value)> = BTreeMap::new();
    for name in ["util.intstr.IntOrString", "api.resource.Quantity", "apis.meta.v1.Time", "apis.meta.v1.FieldsV1"] {
        let full = format!("io.k8s.apimachinery.pkg.{name}");
        let bare = |schema: &Value| {
            let mut schema = schema.clone();
            schema.as_object_mut().unwrap().remove("description");
            schema
        };
        said.insert(name, (bare(&definitions()[&full]), bare(&v2["definitions"][&full])));
    }
    let int_or_string = json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] });
    let time = json!({ "type": "string", "format": "date-time" });
    let expected = BTreeMap::from([
        ("util.intstr.IntOrString", (int_or_string, json!({ "type": "string", "format": "int-or-string" }))),
        (
            "api.resource.Quantity",
            (json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }), json!({ "type": "string" })),
        ),
        ("apis.meta.v1.Time", (time.clone(), time)),
        ("apis.meta.v1.FieldsV1", (json!({ "type": "object" }), json!({ "type": "object" }))),
    ]);
    assert_eq!(said, expected);
}

/// What is the same in both forms: fields with their words, but for how they refer.
fn comparable(schema: &Value) -> Value {
    let mut own = Map::new();
    for (word, value) in schema.as_object().unwrap() {
        match word.as_str() {
            "$ref" | "allOf" => {
                own.insert("refers".to_owned(), json!(referred(schema)));
            }
            "oneOf" => {
                own.insert("type".to_owned(), json!("string"));
            }
            "properties" => {
                let fields = value.as_object().unwrap().iter();
                let fields: Map<_, _> = fields.map(|(name, said)| (name.clone(), comparable(said))).collect();
                own.insert(word.clone(), Value::Object(fields));
            }
            "items" | "additionalProperties" => {
                own.insert(word.clone(), comparable(value));
            }
            _ => {
                own.insert(word.clone(), value.clone());
            }
        }
    }
    Value::Object(own)
}

#[test]
fn v2_says_of_each_definition_what_v3_says() {
    let document = v2();
    let said = document["definitions"].as_object().unwrap();
    assert!(said.keys().eq(definitions().keys()));
    for (name, schema) in said {
        assert_eq!(comparable(schema), comparable(&definitions()[name]), "{name}");
    }
    for word in ["allOf", "oneOf", "/components/"] {
        assert!(!v2_text().contains(word), "{word} is not of v2");
    }
}

#[test]
fn the_index_names_each_document_by_its_content() {
    let index = v3_index();
    let entries = index["paths"].as_object().unwrap();
    let names: BTreeSet<_> = entries.keys().cloned().collect();
    assert_eq!(names, keys().into_iter().collect());
    for (key, entry) in entries {
        let text = v3_text(key).unwrap();
        assert_eq!(entry["serverRelativeURL"], format!("/openapi/v3/{key}?hash={}", hash(text.as_bytes())));
        assert_eq!(text, v3(key).unwrap().to_string());
    }
    assert!(names.contains("api/v1") && names.contains("apis/discovery.k8s.io/v1"));
    for absent in ["", "v1", "api/v2", "apis/apps/v1", "/api/v1"] {
        assert_eq!((v3(absent), v3_text(absent)), (None, None), "{absent}");
    }
}

#[test]
fn the_hash_is_of_the_content() {
    // SHA-256 of nothing, from FIPS 180-4's examples.
    assert_eq!(hash(b""), "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855");
    assert_ne!(hash(b"a"), hash(b"b"));
}

/// Every operation of a document: (path, method) to its words.
fn operations(document: &Value) -> BTreeMap<(String, String), Value> {
    let mut all = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, said) in item.as_object().unwrap().iter().filter(|(word, _)| *word != "parameters") {
            all.insert((path.clone(), method.clone()), said.clone());
        }
    }
    all
}

/// (path, method, action) of all that a kind's verbs allow.
fn allowed(kind: &Kind) -> BTreeSet<(String, String, String)> {
    let root = if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version()) };
    let space = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let objects = format!("{root}{space}/{}", kind.plural);
    let mut all = BTreeSet::new();
    let mut add = |path: String, method: &str, action: &str| all.insert((path, method.to_owned(), action.to_owned()));
    for verb in kind.verbs {
        match *verb {
            "list" => {
                add(objects.clone(), "get", "list");
                add(format!("{root}/{}", kind.plural), "get", "list");
            }
            "create" => _ = add(objects.clone(), "post", "post"),
            "deletecollection" => _ = add(objects.clone(), "delete", "deletecollection"),
            "get" | "patch" | "delete" => _ = add(format!("{objects}/{{name}}"), verb, verb),
            "update" => _ = add(format!("{objects}/{{name}}"), "put", "put"),
            _ => assert_eq!(*verb, "watch"),
        }
    }
    for part in kind.subresources {
        for verb in part.verbs {
            let method = if *verb == "update" { "put" } else { verb };
            add(format!("{objects}/{{name}}/{}", part.name), method, method);
        }
    }
    all
}

#[test]
fn operations_are_what_the_verbs_of_each_kind_allow() {
    let mut of_v3 = BTreeMap::new();
    for key in keys() {
        of_v3.extend(operations(&v3(&key).unwrap()));
    }
    for said in [of_v3, operations(&v2())] {
        let mut seen = BTreeSet::new();
        for kind in kinds() {
            for (path, method, action) in allowed(kind) {
                let one = said.get(&(path.clone(), method.clone())).unwrap_or_else(|| panic!("{method} {path}"));
                assert_eq!(one["x-kubernetes-action"], action);
                let named = json!({ "group": kind.group, "kind": kind.kind, "version": kind.version });
                assert_eq!(one["x-kubernetes-group-version-kind"], named);
                seen.insert((path, method));
            }
        }
        assert!(said.keys().eq(&seen));
    }
}

#[test]
fn an_operation_has_an_id_of_its_own() {
    let all = operations(&v2());
    let ids: BTreeSet<_> = all.values().map(|one| one["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), all.len());
    for id in [
        "listCoreV1NamespacedService",
        "listCoreV1ServiceForAllNamespaces",
        "listCoreV1Node",
        "patchCoreV1NamespacedServiceStatus",
        "createAuthorizationV1SelfSubjectAccessReview",
        "deleteCoreV1CollectionNamespacedService",
    ] {
        assert!(ids.contains(id), "{id}");
    }
}

fn query_names(operation: &Value) -> BTreeSet<&str> {
    let all = operation["parameters"].as_array().unwrap().iter();
    all.filter(|one| one["in"] == "query").map(|one| one["name"].as_str().unwrap()).collect()
}

#[test]
fn kubectl_finds_field_validation_dry_run_and_patch_types_on_the_patch_of_each_kind() {
    let (mut of_v3, of_v2) = (BTreeMap::new(), operations(&v2()));
    for key in keys() {
        of_v3.extend(operations(&v3(&key).unwrap()));
    }
    let types = [
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    let mut patches = 0;
    for (place, one) in of_v3.iter().filter(|((_, method), _)| method == "patch") {
        let expected = BTreeSet::from(["dryRun", "fieldManager", "fieldValidation", "force"]);
        assert_eq!(query_names(one), expected);
        assert_eq!(query_names(&of_v2[place]), expected);
        assert!(one["requestBody"]["content"].as_object().unwrap().keys().eq(types));
        assert_eq!(of_v2[place]["consumes"], json!(types));
        patches += 1;
    }
    assert_eq!(patches, 6 + 4, "each kind that can be patched, and each status");
}

#[test]
fn what_varies_in_a_path_is_a_parameter_of_it() {
    for document in keys().iter().map(|key| v3(key).unwrap()).chain([v2()]) {
        for (path, item) in document["paths"].as_object().unwrap() {
            let parameters = item["parameters"].as_array().into_iter().flatten();
            let named: BTreeSet<_> = parameters.map(|one| format!("{{{}}}", one["name"].as_str().unwrap())).collect();
            let varies: BTreeSet<_> = path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
            assert_eq!(named, varies, "{path}");
        }
    }
}
