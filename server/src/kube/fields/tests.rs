//! Field management: Kubernetes' documented cases as tables, the laws as properties. The schema is a Service's in small.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::place::{Definitions, Place};
use super::*;

const T1: &str = "2026-01-01T00:00:01Z";
const T2: &str = "2026-01-01T00:00:02Z";
const LAST: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn definitions() -> Definitions {
    let strings = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let texts = |names: &[&str]| -> Value {
        Value::Object(names.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect())
    };
    let list = |keys: Value, item: Value| json!({"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys});
    let with = |mut fields: Value, more: Value| {
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"type": "object", "properties": fields})
    };
    let port = with(
        texts(&["name", "appProtocol"]),
        json!({"port": {"type": "integer"}, "nodePort": {"type": "integer"},
            "protocol": {"type": "string", "default": "TCP"}, "targetPort": {"type": "string", "format": "int-or-string"}}),
    );
    let metadata = with(
        texts(&["name", "namespace", "creationTimestamp", "uid", "resourceVersion", "generateName"]),
        json!({"labels": strings, "annotations": strings, "generation": {"type": "integer"},
            "finalizers": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "managedFields": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "atomic"},
            "ownerReferences": list(json!(["uid"]), with(texts(&["uid", "name", "kind", "apiVersion"]), json!({})))}),
    );
    let spec = with(
        texts(&["type", "clusterIP", "sessionAffinity"]),
        json!({"ports": list(json!(["port", "protocol"]), json!({"$ref": "#/definitions/Port"})),
            "selector": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": "atomic"},
            "externalIPs": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"},
            "sessionAffinityConfig": with(json!({}), json!({"clientIP": with(json!({}),
                json!({"timeoutSeconds": {"type": "integer"}}))}))}),
    );
    let ingress =
        json!({"type": "array", "items": with(texts(&["ip"]), json!({})), "x-kubernetes-list-type": "atomic"});
    let status = with(
        json!({}),
        json!({"conditions": list(json!(["type"]), with(texts(&["type", "status", "reason"]), json!({}))),
            "loadBalancer": {"allOf": [{"$ref": "#/definitions/Balancer"}], "default": {}}}),
    );
    let service = with(
        texts(&["apiVersion", "kind"]),
        json!({"metadata": {"$ref": "#/definitions/Meta"}, "spec": spec, "status": status, "data": strings}),
    );
    let all = json!({"Service": service, "Port": port, "Meta": metadata, "Balancer": with(json!({}), json!({"ingress": ingress}))});
    all.as_object().unwrap().clone()
}

fn service(more: Value) -> Value {
    let mut all = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}});
    for (name, field) in more.as_object().unwrap() {
        match all.get_mut(name) {
            Some(Value::Object(old)) => old.extend(field.as_object().unwrap().clone()),
            _ => drop(all.as_object_mut().unwrap().insert(name.clone(), field.clone())),
        }
    }
    all
}

fn place() -> Place<'static> {
    static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(definitions);
    Place::of(&DEFINITIONS, "Service").unwrap()
}

fn by(manager: &str) -> By<'_> {
    By { manager, subresource: "", now: T1, force: false }
}

fn applied(live: Option<&Value>, config: &Value, by: &By<'_>) -> Result<Value, Refused> {
    apply(live, config, place(), by)
}

fn ok(live: Option<&Value>, config: Value, by: &By<'_>) -> Value {
    applied(live, &config, by).unwrap()
}

fn updated(live: Option<&Value>, new: Value, by: &By<'_>) -> Value {
    update(live, &new, place(), by)
}

/// "manager operation subresource" and `fieldsV1` of each entry.
fn managers(object: &Value) -> Vec<(String, Value)> {
    let all = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let one = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let name = format!("{} {} {}", text("manager"), text("operation"), text("subresource"));
        (name.trim_end().to_owned(), entry["fieldsV1"].clone())
    };
    all.iter().map(one).collect()
}

fn fields(object: &Value, manager: &str) -> Value {
    managers(object).into_iter().find(|(name, _)| name == manager).map_or(Value::Null, |(_, fields)| fields)
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

fn message(refused: Result<Value, Refused>) -> String {
    refused.unwrap_err().to_string()
}

// FieldsV1

#[test]
fn fields_v1_is_written_as_kubernetes_writes_it() {
    let flat = r#"{"f:aaa":{},"f:aab":{},"k:{\"name\":\"first\"}":{},"k:{\"port\":443,\"protocol\":\"tcp\"}":{},"v:1":{},"v:\"aa\"":{},"v:true":{},"i:1":{},"i:2":{}}"#;
    let deep = r#"{"f:aaa":{"k:{\"name\":\"second\"}":{"v:3":{"f:aab":{}}},"v:3":{}},"f:labels":{".":{},"f:app":{}}}"#;
    for text in [flat, deep] {
        let set = Set::from_json(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(set.to_json().to_string(), text);
    }
}

#[test]
fn keys_of_another_order_are_the_same_step() {
    let set = Set::from_json(&json!({"k:{\"protocol\":\"TCP\", \"port\":80.0}": {}})).unwrap();
    assert_eq!(set.to_json(), json!({"k:{\"port\":80,\"protocol\":\"TCP\"}": {}}));
}

#[test]
fn steps_of_a_later_version_are_left_out_and_broken_ones_refused() {
    let set = Set::from_json(&json!({"f:aaa": {}, "r:aab": {}})).unwrap();
    assert_eq!(set.to_json(), json!({"f:aaa": {}}));
    for bad in ["", "f", "ab", "ff:a", "ü:", "k:", "k:3", "k:{\"a\":[]}", "v:{}", "v:", "i:x", "i:99999999999999999999"]
    {
        assert!(Set::from_json(&json!({bad: {}})).is_err(), "{bad}");
    }
    for bad in [json!(3), json!([]), json!(null), json!({"f:a": 3}), json!({"f:a": null})] {
        assert!(Set::from_json(&bad).is_err(), "{bad}");
    }
}

#[test]
fn fields_v1_that_nests_too_deeply_is_refused() {
    let nest = |depth: usize| (0..depth).fold(json!({}), |inner, _| json!({"f:a": inner}));
    assert!(Set::from_json(&nest(MAX_DEPTH - 1)).is_ok());
    assert!(Set::from_json(&nest(MAX_DEPTH)).is_err());
}

#[test]
fn paths_are_written_as_in_errors() {
    let set = json!({"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {"f:targetPort": {}}}},
        "f:finalizers": {"v:\"x\"": {}}, "f:list": {"i:2": {}}, "f:n": {"v:2": {}}});
    let paths: Vec<String> = Set::from_json(&set).unwrap().paths().iter().map(ToString::to_string).collect();
    let want = [r#".finalizers[="x"]"#, ".list[2]", ".n[=2]", r#".spec.ports[port=80,protocol="TCP"].targetPort"#];
    assert_eq!(paths, want);
}

#[test]
fn leaves_have_nothing_below() {
    let set = Set::from_json(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}})).unwrap();
    assert_eq!(set.leaves().to_json(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
}

// What a configuration owns

#[test]
fn a_configuration_owns_its_leaves_items_and_keys() {
    let config = service(json!({
        "metadata": {"labels": {"app": "web"}, "annotations": {}, "finalizers": ["a/b"],
            "ownerReferences": [{"uid": "1", "name": "n"}]},
        "spec": {"selector": {"app": "web"}, "externalIPs": ["1.2.3.4"], "type": "ClusterIP",
            "sessionAffinityConfig": {"clientIP": {}},
            "ports": [{"port": 80, "targetPort": "http"}, {"port": 80, "protocol": "UDP"}]},
    }));
    let object = ok(None, config, &by("me"));
    let want = json!({
        "f:metadata": {
            "f:annotations": {},
            "f:finalizers": {"v:\"a/b\"": {}},
            "f:labels": {"f:app": {}},
            "f:ownerReferences": {"k:{\"uid\":\"1\"}": {".": {}, "f:name": {}, "f:uid": {}}},
        },
        "f:spec": {
            "f:externalIPs": {},
            "f:ports": {
                "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:targetPort": {}},
                "k:{\"port\":80,\"protocol\":\"UDP\"}": {".": {}, "f:port": {}, "f:protocol": {}},
            },
            "f:selector": {},
            "f:sessionAffinityConfig": {"f:clientIP": {}},
            "f:type": {},
        },
    });
    assert_eq!(managers(&object), [("me Apply".to_owned(), want)]);
}

#[test]
fn the_entry_has_the_form_of_kubernetes() {
    let object = ok(None, service(json!({"data": {"key": "x"}})), &by("kubectl"));
    let want = r#"[{"manager":"kubectl","operation":"Apply","apiVersion":"v1","time":"2026-01-01T00:00:01Z","fieldsType":"FieldsV1","fieldsV1":{"f:data":{"f:key":{}}}}]"#;
    assert_eq!(object["metadata"]["managedFields"].to_string(), want);
    let status = By { subresource: "status", ..by("lb") };
    let object = ok(None, service(json!({"status": {"conditions": [{"type": "Ready"}]}})), &status);
    assert_eq!(object["metadata"]["managedFields"][0]["subresource"], "status");
}

#[test]
fn status_is_nobodys_by_the_object_and_spec_by_its_status() {
    let config = service(json!({"spec": {"type": "X"}, "status": {"conditions": [{"type": "Ready"}]}}));
    let object = ok(None, config.clone(), &by("me"));
    assert_eq!(object.get("status"), None);
    assert_eq!(fields(&object, "me Apply"), json!({"f:spec": {"f:type": {}}}));
    let object = ok(Some(&object), config.clone(), &By { subresource: "status", ..by("lb") });
    assert_eq!(object["status"], config["status"]);
    let want = json!({"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:type": {}}}}});
    assert_eq!(fields(&object, "lb Apply status"), want);
}

// Conflicts: the cases of the documentation

fn owned_by_update() -> Value {
    let base = ok(None, service(json!({"metadata": {"labels": {"l": "test"}}, "data": {"key": "a"}})), &by("kubectl"));
    let mut new = base.clone();
    new["data"]["key"] = json!("new");
    updated(Some(&base), new, &By { now: T2, ..by("kube-controller-manager") })
}

#[test]
fn an_update_takes_the_fields_that_it_changes() {
    let object = owned_by_update();
    let want = [
        ("kubectl Apply".to_owned(), json!({"f:metadata": {"f:labels": {"f:l": {}}}})),
        ("kube-controller-manager Update".to_owned(), json!({"f:data": {"f:key": {}}})),
    ];
    assert_eq!(managers(&object), want);
    assert_eq!(object["metadata"]["managedFields"][0]["time"], T1);
    assert_eq!(object["metadata"]["managedFields"][1]["time"], T2);
}

#[test]
fn applying_another_value_conflicts_and_tells_with_whom() {
    let object = owned_by_update();
    let config = service(json!({"data": {"key": "b"}}));
    let refused = applied(Some(&object), &config, &by("me")).unwrap_err();
    let text = r#"Apply failed with 1 conflict: conflict with "kube-controller-manager" using v1: .data.key"#;
    assert_eq!(refused.to_string(), text);
    let Refused::Conflicts(conflicts) = refused else { panic!("{refused}") };
    let cause = json!([{"reason": "FieldManagerConflict", "field": ".data.key",
        "message": "conflict with \"kube-controller-manager\" using v1"}]);
    assert_eq!(conflicts.causes(), cause);
    assert_eq!(conflicts.0[0].time.as_deref(), Some(T2));
}

#[test]
fn several_conflicts_are_told_by_manager() {
    let spec = json!({"spec": {"type": "A", "clusterIP": "x", "ports": [{"port": 80, "targetPort": "a"}]}});
    let object = ok(None, service(spec), &by("one"));
    let lb = By { subresource: "status", ..by("lb") };
    let mut new = object.clone();
    new["metadata"]["labels"] = json!({"x": "1"});
    let object = updated(Some(&object), new, &lb);
    let config = service(json!({"metadata": {"labels": {"x": "2"}},
        "spec": {"type": "B", "ports": [{"port": 80, "targetPort": "b"}]}}));
    let want = "Apply failed with 3 conflicts: conflicts with \"lb\" with subresource \"status\" using v1:\n\
        - .metadata.labels.x\nconflicts with \"one\":\n- .spec.type\n- .spec.ports[port=80,protocol=\"TCP\"].targetPort";
    assert_eq!(message(applied(Some(&object), &config, &by("two"))), want);
}

#[test]
fn forcing_overwrites_and_becomes_the_only_manager() {
    let object = owned_by_update();
    let object = ok(Some(&object), service(json!({"data": {"key": "b"}})), &By { force: true, ..by("me") });
    assert_eq!(object["data"]["key"], "b");
    assert_eq!(fields(&object, "kube-controller-manager Update"), Value::Null);
    assert_eq!(fields(&object, "me Apply"), json!({"f:data": {"f:key": {}}}));
}

#[test]
fn giving_up_a_field_leaves_its_value_to_the_other_manager() {
    let one = ok(None, service(json!({"data": {"key": "a", "own": "1"}})), &by("one"));
    let two = ok(Some(&one), service(json!({"data": {"key": "a"}})), &by("two"));
    let object = ok(Some(&two), service(json!({})), &by("one"));
    assert_eq!(object["data"], json!({"key": "a"}));
    assert_eq!(managers(&object), [("two Apply".to_owned(), json!({"f:data": {"f:key": {}}}))]);
}

#[test]
fn a_field_that_an_updater_also_owns_stays() {
    let object = updated(None, service(json!({"data": {"key": "a"}})), &by("creator"));
    let object = ok(Some(&object), service(json!({"data": {"key": "a"}})), &by("me"));
    let object = ok(Some(&object), service(json!({})), &by("me"));
    assert_eq!(object["data"], json!({"key": "a"}));
}

#[test]
fn applying_the_same_value_shares_it_and_then_either_conflicts() {
    let one = ok(None, service(json!({"data": {"key": "a"}})), &by("one"));
    let two = ok(Some(&one), service(json!({"data": {"key": "a"}})), &By { now: T2, ..by("two") });
    assert_eq!(without_managers(&one), without_managers(&two));
    assert_eq!(managers(&two).len(), 2);
    assert_eq!(two["metadata"]["managedFields"][1]["time"], T2);
    for (who, other) in [("one", "two"), ("two", "one")] {
        let text = message(applied(Some(&two), &service(json!({"data": {"key": "b"}})), &by(who)));
        assert_eq!(text, format!("Apply failed with 1 conflict: conflict with \"{other}\": .data.key"));
    }
}

#[test]
fn handing_over_a_field_leaves_no_trace_of_the_first_manager_once_it_changes() {
    let object = ok(None, service(json!({"spec": {"type": "A"}, "data": {"k": "v"}})), &by("user"));
    let object = ok(Some(&object), service(json!({"spec": {"type": "A"}})), &by("handover"));
    let object = ok(Some(&object), service(json!({"data": {"k": "v"}})), &by("user"));
    assert_eq!(object["spec"]["type"], "A");
    let mut new = object.clone();
    new["spec"]["type"] = json!("B");
    let object = updated(Some(&object), new, &by("hpa"));
    let names: Vec<String> = managers(&object).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["user Apply", "hpa Update"]);
}

#[test]
fn a_bare_configuration_changes_nothing() {
    let object = owned_by_update();
    assert_eq!(ok(Some(&object), service(json!({})), &by("nobody")), object);
}

// Merging

#[test]
fn values_merge_by_their_list_and_map_types() {
    let cases = [
        ("granular map", "/metadata/labels", json!({"a": "1"}), json!({"b": "2"}), json!({"a": "1", "b": "2"})),
        ("set", "/metadata/finalizers", json!(["a", "b"]), json!(["c", "b"]), json!(["a", "c", "b"])),
        (
            "set keeps live order around the shared",
            "/metadata/finalizers",
            json!(["a", "b", "c"]),
            json!(["c", "a"]),
            json!(["b", "c", "a"]),
        ),
        (
            "list by keys",
            "/spec/ports",
            json!([{"port": 80, "protocol": "TCP", "name": "x"}]),
            json!([{"port": 80, "targetPort": "y"}, {"port": 81}]),
            json!([{"port": 80, "protocol": "TCP", "name": "x", "targetPort": "y"}, {"port": 81}]),
        ),
        (
            "one port with two protocols",
            "/spec/ports",
            json!([{"port": 53, "protocol": "UDP"}]),
            json!([{"port": 53}]),
            json!([{"port": 53, "protocol": "UDP"}, {"port": 53}]),
        ),
        (
            "struct",
            "/spec/sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": 1}}),
            json!({"clientIP": {}}),
            json!({"clientIP": {"timeoutSeconds": 1}}),
        ),
    ];
    for (what, at, live, config, want) in cases {
        let put = |value: Value| {
            let (top, field) = at[1..].split_once('/').unwrap();
            service(json!({top: {field: value}}))
        };
        let live = updated(None, put(live), &by("creator"));
        let object = ok(Some(&live), put(config), &by("me"));
        assert_eq!(object.pointer(at), Some(&want), "{what}");
    }
}

#[test]
fn atomic_values_are_replaced_and_conflict_as_a_whole() {
    for (field, old, new) in
        [("selector", json!({"a": "1"}), json!({"b": "2"})), ("externalIPs", json!(["1.1.1.1"]), json!(["2.2.2.2"]))]
    {
        let live = ok(None, service(json!({"spec": {field: old}})), &by("one"));
        let config = service(json!({"spec": {field: new.clone()}}));
        let text = message(applied(Some(&live), &config, &by("two")));
        assert_eq!(text, format!("Apply failed with 1 conflict: conflict with \"one\": .spec.{field}"));
        let object = ok(Some(&live), config, &by("one"));
        assert_eq!(object["spec"][field], new);
    }
}

#[test]
fn an_item_that_is_no_longer_applied_goes_with_what_was_defaulted_below_it() {
    let config = |ports: Value| service(json!({"spec": {"ports": ports}}));
    let mut live = ok(None, config(json!([{"port": 80}, {"port": 81}])), &by("me"));
    live["spec"]["ports"][1]["nodePort"] = json!(30000);
    let object = ok(Some(&live), config(json!([{"port": 80}])), &by("me"));
    assert_eq!(object["spec"]["ports"], json!([{"port": 80}]));
}

#[test]
fn an_item_that_another_manager_applies_loses_only_what_was_the_firsts() {
    let config = |port: Value| service(json!({"spec": {"ports": [port]}}));
    let live = ok(None, config(json!({"port": 80, "name": "a"})), &by("one"));
    let live = ok(Some(&live), config(json!({"port": 80, "targetPort": "x"})), &by("two"));
    let object = ok(Some(&live), service(json!({})), &by("one"));
    assert_eq!(object["spec"]["ports"], json!([{"port": 80, "targetPort": "x"}]));
}

#[test]
fn a_null_owns_the_field_and_takes_its_value() {
    let live = ok(None, service(json!({"spec": {"type": "A", "clusterIP": "x"}})), &by("me"));
    let config = service(json!({"metadata": {"creationTimestamp": null}, "spec": {"type": null, "clusterIP": "x"}}));
    let object = ok(Some(&live), config.clone(), &by("me"));
    assert_eq!(object["spec"], json!({"clusterIP": "x"}));
    assert_eq!(fields(&object, "me Apply"), json!({"f:spec": {"f:clusterIP": {}, "f:type": {}}}));
    assert_eq!(ok(Some(&object), config, &By { now: T2, ..by("me") }), object);
}

#[test]
fn what_the_server_sets_is_kept_and_never_owned() {
    let mut live = ok(None, service(json!({"metadata": {"labels": {"a": "1"}}})), &by("me"));
    let set = [
        ("uid", json!("u")),
        ("creationTimestamp", json!(T1)),
        ("resourceVersion", json!("7")),
        ("generation", json!(1)),
    ];
    for (name, value) in &set {
        live["metadata"][*name] = value.clone();
    }
    let object = ok(Some(&live), service(json!({"metadata": {"creationTimestamp": null}})), &by("me"));
    for (name, value) in &set {
        assert_eq!(object["metadata"][*name], *value);
    }
    assert_eq!(object["metadata"].get("labels"), None);
    assert_eq!(managers(&object), []);
}

#[test]
fn a_struct_goes_with_its_last_owner_and_stays_for_another() {
    let config = |spec: Value| service(json!({"spec": spec}));
    let affinity = json!({"type": "A", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}});
    let live = ok(None, config(affinity), &by("me"));
    let object = ok(Some(&live), config(json!({"type": "A"})), &by("me"));
    assert_eq!(object["spec"], json!({"type": "A"}));
    let mut new = live.clone();
    new["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = json!(2);
    let taken = updated(Some(&live), new, &by("controller"));
    let object = ok(Some(&taken), config(json!({"type": "A"})), &by("me"));
    assert_eq!(object["spec"], taken["spec"]);
    assert_eq!(managers(&object).len(), 2);
}

#[test]
fn items_that_the_live_object_has_twice_are_owned_once_and_replaced_by_force() {
    let ports = |ports: Value| service(json!({"spec": {"ports": ports}}));
    let (a, a2, b) =
        (json!({"port": 1, "name": "x"}), json!({"port": 1, "name": "y"}), json!({"port": 2, "name": "z"}));
    let live = updated(None, ports(json!([a, b])), &by("one"));
    let live = updated(Some(&live), ports(json!([a, a2, b])), &By { now: T2, ..by("two") });
    let key = |n: u8| format!("k:{{\"port\":{n},\"protocol\":\"TCP\"}}");
    let of_b = json!({"f:spec": {"f:ports": {".": {}, key(2): {".": {}, "f:name": {}, "f:port": {}}}}});
    assert_eq!(fields(&live, "one Update"), of_b);
    assert_eq!(fields(&live, "two Update"), json!({"f:spec": {"f:ports": {key(1): {}}}}));
    let text = message(applied(Some(&live), &ports(json!([a2])), &by("me")));
    let path = r#".spec.ports[port=1,protocol="TCP"]"#;
    assert_eq!(text, format!("Apply failed with 1 conflict: conflict with \"two\" using v1: {path}"));
    let object = ok(Some(&live), ports(json!([a2])), &By { force: true, ..by("me") });
    assert_eq!(object["spec"]["ports"], json!([a2, b]));
    let object = ok(Some(&live), service(json!({"data": {"k": "v"}})), &by("me"));
    assert_eq!(object["spec"]["ports"], json!([a, a2, b]));
}

// Refusals

#[test]
fn faults_of_a_configuration_are_told_in_kubernetes_words() {
    let prefix = "failed to create typed patch object (default/web; /v1, Kind=Service): ";
    let keys = r#"associative list with keys"#;
    let cases = [
        (
            json!({"spec": {"ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]}}),
            r#".spec.ports: duplicate entries for key [port=80,protocol="TCP"]"#.to_owned(),
        ),
        (
            json!({"metadata": {"finalizers": ["a", "a"]}}),
            r#".metadata.finalizers: duplicate entries for key [="a"]"#.to_owned(),
        ),
        (
            json!({"spec": {"ports": [{"name": "x"}]}}),
            format!(
                ".spec.ports: element 0: {keys} has an element that omits key field \"port\" (and doesn't have default value)"
            ),
        ),
        (json!({"spec": {"ports": [null]}}), format!(".spec.ports: element 0: {keys} may not have a null element")),
        (json!({"spec": {"ports": ["x"]}}), format!(".spec.ports: element 0: {keys} may not have non-map elements")),
        (json!({"spec": {"nope": 1}}), ".spec.nope: field not declared in schema".to_owned()),
        (
            json!({"spec": {"ports": [{"port": 80, "nope": 1}]}}),
            r#".spec.ports[port=80,protocol="TCP"].nope: field not declared in schema"#.to_owned(),
        ),
        (json!({"spec": 3}), ".spec: expected map, got 3".to_owned()),
        (json!({"spec": {"externalIPs": "x"}}), ".spec.externalIPs: expected list, got \"x\"".to_owned()),
        (json!({"spec": {"type": []}}), ".spec.type: expected string, got []".to_owned()),
        (
            json!({"nope": 1, "spec": {"nope": 1}}),
            "errors:\n  .nope: field not declared in schema\n  .spec.nope: field not declared in schema".to_owned(),
        ),
    ];
    for (more, want) in cases {
        assert_eq!(applied(None, &service(more), &by("me")), Err(Refused::Untyped(format!("{prefix}{want}"))));
    }
}

#[test]
fn a_configuration_with_managers_or_too_deep_is_a_bad_request() {
    let config = service(json!({"metadata": {"managedFields": [{}]}}));
    assert_eq!(
        applied(None, &config, &by("me")),
        Err(Refused::BadRequest("metadata.managedFields must be nil".to_owned()))
    );
    let deep = (0..=MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
    let refused = applied(None, &service(json!({"data": {"a": deep.clone()}})), &by("me"));
    assert!(matches!(refused, Err(Refused::BadRequest(_))), "{refused:?}");
    let refused = applied(Some(&deep), &service(json!({})), &by("me"));
    assert!(matches!(refused, Err(Refused::BadRequest(_))), "{refused:?}");
    for config in [json!(3), json!({"kind": "Service"}), json!({"apiVersion": ""})] {
        assert!(matches!(applied(None, &config, &by("me")), Err(Refused::BadRequest(_))), "{config}");
    }
}

#[test]
fn the_names_of_managers_are_bounded_and_printable() {
    assert_eq!(check_manager(&"a".repeat(128)), Ok(()));
    assert_eq!(check_manager(&"a".repeat(129)), Err("Too long: may not be more than 128 bytes".to_owned()));
    assert!(check_manager("a\nb").unwrap_err().ends_with("invalid character U+000A (at position 1)"));
    assert_eq!(manager_of("mine", "kubectl/v1"), "mine");
    assert_eq!(manager_of("", "kubectl/v1.37 (linux/amd64)"), "kubectl");
    assert_eq!(manager_of("", &format!("a\n{}", "ü".repeat(200))).len(), 127);
}

// Updates

#[test]
fn who_creates_an_object_owns_it_as_kubectl_create_does() {
    let new = service(json!({"metadata": {"labels": {"app": "web"}, "uid": "u", "resourceVersion": "1"},
        "spec": {"ports": [{"port": 80, "protocol": "TCP"}], "selector": {"app": "web"}, "type": "ClusterIP"},
        "status": {"loadBalancer": {}}}));
    let object = updated(None, new.clone(), &by("kubectl-create"));
    let want = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:protocol": {}}},
            "f:selector": {},
            "f:type": {},
        },
    });
    assert_eq!(managers(&object), [("kubectl-create Update".to_owned(), want)]);
    assert_eq!(without_managers(&object), new);
}

#[test]
fn a_status_update_is_an_entry_of_its_own_and_structs_are_always_there() {
    let object = updated(None, service(json!({"spec": {"type": "A"}})), &by("me"));
    let mut new = object.clone();
    new["status"] = json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}});
    let object = updated(Some(&object), new, &By { subresource: "status", now: T2, ..by("me") });
    assert_eq!(fields(&object, "me Update"), json!({"f:spec": {"f:type": {}}}));
    assert_eq!(
        fields(&object, "me Update status"),
        json!({"f:status": {".": {}, "f:loadBalancer": {"f:ingress": {}}}})
    );
}

#[test]
fn removed_fields_leave_all_sets_and_an_unchanged_write_changes_no_time() {
    let object = ok(None, service(json!({"data": {"a": "1", "b": "2"}})), &by("one"));
    let object = ok(Some(&object), service(json!({"data": {"b": "2"}})), &by("two"));
    assert_eq!(updated(Some(&object), object.clone(), &By { now: T2, ..by("put") }), object);
    let mut new = object.clone();
    new["data"].as_object_mut().unwrap().remove("b");
    let object = updated(Some(&object), new, &By { now: T2, ..by("put") });
    assert_eq!(managers(&object), [("one Apply".to_owned(), json!({"f:data": {"f:a": {}}}))]);
    assert_eq!(object["metadata"]["managedFields"][0]["time"], T1);
}

#[test]
fn managers_are_reset_by_an_empty_list_or_entry() {
    let object = owned_by_update();
    for reset in [json!([]), json!([{}])] {
        let mut new = object.clone();
        new["metadata"]["managedFields"] = reset.clone();
        let bare = updated(Some(&object), new, &by("me"));
        assert_eq!(bare["metadata"].get("managedFields"), None, "{reset}");
        let by_status = By { subresource: "status", ..by("me") };
        let mut new = object.clone();
        new["metadata"]["managedFields"] = reset;
        assert_eq!(managers(&updated(Some(&object), new, &by_status)), managers(&object));
    }
}

#[test]
fn managers_that_a_client_leaves_out_or_breaks_are_kept_and_others_taken() {
    let object = owned_by_update();
    for given in [json!(null), json!(3), json!([{"manager": "x"}]), json!([{}, {}])] {
        let mut new = object.clone();
        new["metadata"]["managedFields"] = given;
        assert_eq!(updated(Some(&object), new, &by("me")), object);
    }
    let mut new = object.clone();
    new["metadata"]["managedFields"].as_array_mut().unwrap().remove(0);
    assert_eq!(updated(Some(&object), new.clone(), &by("me")), new);
}

#[test]
fn entries_that_are_broken_are_refused() {
    let good = json!({"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T01:00:01.5+01:00", "fieldsV1": {"f:a": {}}});
    assert_eq!(Entry::from_json(&good).unwrap().time.as_deref(), Some("2026-01-01T00:00:01Z"));
    let bad = [
        ("operation", json!("Delete")),
        ("apiVersion", json!("")),
        ("fieldsType", json!("FieldsV2")),
        ("time", json!("yesterday")),
        ("manager", json!("x".repeat(129))),
        ("fieldsV1", json!({"f": {}})),
        ("subresource", json!(1)),
    ];
    for (name, value) in bad {
        let mut entry = good.clone();
        entry[name] = value;
        assert!(Entry::from_json(&entry).is_err(), "{entry}");
    }
}

#[test]
fn entries_are_in_kubernetes_order() {
    let entry = |operation: &str, time: &str, manager: &str, version: &str| {
        let mut one = json!({"manager": manager, "operation": operation, "apiVersion": version, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:a": {}}});
        if !time.is_empty() {
            one["time"] = json!(time);
        }
        one
    };
    let ordered = json!([
        entry("Apply", T1, "z", "v1"),
        entry("Apply", T2, "a", "v1"),
        entry("Update", "", "z", "v1"),
        entry("Update", T1, "a", "v2"),
        entry("Update", T1, "b", "v1"),
        entry("Update", T1, "b", "v2"),
        entry("Update", T2, "a", "v1")
    ]);
    let mut shuffled = ordered.clone();
    shuffled.as_array_mut().unwrap().reverse();
    let object = json!({"metadata": {"managedFields": shuffled}});
    assert_eq!(Managers::of(&object).unwrap().to_json(), ordered);
}

#[test]
fn at_most_ten_updates_are_kept_and_the_oldest_become_one() {
    let mut object = updated(None, service(json!({"data": {"k0": "v"}})), &by("m0"));
    let mut seen = 1;
    for n in 1..15 {
        let mut new = object.clone();
        new["data"][format!("k{n}")] = json!("v");
        let now = format!("2026-01-01T00:01:{n:02}Z");
        object = updated(Some(&object), new, &By { now: &now, ..by(&format!("m{n}")) });
        seen = seen.max(managers(&object).len());
    }
    assert_eq!(seen, UPDATES_MAX);
    let ancient = fields(&object, "ancient-changes Update");
    let keys: Vec<&String> = ancient["f:data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, [".", "f:k0", "f:k1", "f:k2", "f:k3", "f:k4", "f:k5"]);
    assert_eq!(object["metadata"]["managedFields"][0]["time"], "2026-01-01T00:01:05Z");
    assert_eq!(fields(&object, "m6 Update"), json!({"f:data": {"f:k6": {}}}));
}

// First apply, and from client-side apply

#[test]
fn the_first_apply_to_an_unmanaged_object_finds_everything_owned() {
    let live = service(json!({"metadata": {"uid": "u"}, "data": {"a": "1"}, "status": {"conditions": []}}));
    let text = message(applied(Some(&live), &service(json!({"data": {"a": "2"}})), &by("me")));
    assert_eq!(text, "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a");
    let object = ok(Some(&live), service(json!({"data": {"b": "2"}})), &by("me"));
    let want = [
        ("me Apply".to_owned(), json!({"f:data": {"f:b": {}}})),
        ("before-first-apply Update".to_owned(), json!({"f:data": {".": {}, "f:a": {}}})),
    ];
    assert_eq!(managers(&object), want);
    assert_eq!(updated(Some(&live), live.clone(), &by("put")), live);
}

#[test]
fn managers_that_cannot_be_read_count_as_none() {
    let mut live = service(json!({"data": {"a": "1"}}));
    live["metadata"]["managedFields"] = json!([{"operation": 3}]);
    let object = ok(Some(&live), service(json!({"data": {"b": "2"}})), &by("me"));
    assert_eq!(managers(&object).len(), 2);
}

/// An object as `kubectl apply` without `--server-side` makes it.
fn client_side(data: Value) -> Value {
    let config = service(json!({"data": data, "metadata": {"annotations": {}}}));
    let mut new = config.clone();
    new["metadata"]["annotations"][LAST] = json!(format!("{config}\n"));
    updated(None, new, &by("kubectl-client-side-apply"))
}

#[test]
fn kubectl_takes_over_what_client_side_apply_owned() {
    let live = client_side(json!({"a": "1"}));
    let config = service(json!({"data": {"a": "<2>"}}));
    let object = ok(Some(&live), config.clone(), &by("kubectl"));
    assert_eq!(object["data"]["a"], "<2>");
    assert_eq!(fields(&object, "kubectl Apply"), json!({"f:data": {"f:a": {}}}));
    let want = r#"{"apiVersion":"v1","data":{"a":"\u003c2\u003e"},"kind":"Service","metadata":{"name":"web","namespace":"default"}}"#;
    assert_eq!(object["metadata"]["annotations"][LAST], format!("{want}\n"));
    assert_eq!(ok(Some(&object), config.clone(), &By { now: T2, ..by("kubectl") }), object);
    let text = message(applied(Some(&live), &config, &by("other")));
    assert!(text.contains("conflict with \"kubectl-client-side-apply\" using v1: .data.a"), "{text}");
}

#[test]
fn kubectl_still_conflicts_over_what_changed_since_client_side_apply() {
    let live = client_side(json!({"a": "1", "b": "1"}));
    let mut new = live.clone();
    new["data"]["b"] = json!("scaled");
    let live = updated(Some(&live), new, &by("scaler"));
    let text = message(applied(Some(&live), &service(json!({"data": {"a": "2", "b": "2"}})), &by("kubectl")));
    assert_eq!(text, "Apply failed with 1 conflict: conflict with \"scaler\" using v1: .data.b");
}

// Laws

fn json_value() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "ports",
        "port",
        "protocol",
        "labels",
        "name",
        "type",
        "managedFields",
        "finalizers",
        "selector",
        "annotations",
        "f:a",
        "k:{\"a\":1}",
        "k:",
        ".",
        "v:1",
        "conditions",
        "data",
        "apiVersion",
        "operation",
        "manager",
        "fieldsType",
        "fieldsV1",
        "loadBalancer",
        "clientIP",
        "sessionAffinityConfig",
    ]);
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|is| json!(is)),
        (-2_i64..3).prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        prop::sample::select(vec!["", "a", "v1", "TCP", "Apply", "Update", "FieldsV1"]).prop_map(|text| json!(text)),
    ];
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((name.clone(), inner), 0..5)
                .prop_map(|all| Value::Object(all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())),
        ]
    })
}

/// Arbitrary JSON with the outline of an object, so that walks get below its root.
fn anything() -> impl Strategy<Value = Value> {
    let v = json_value;
    let outline = (v(), v(), v(), v(), v()).prop_map(|(meta, labels, spec, ports, managed)| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": meta, "labels": labels, "managedFields": managed},
            "spec": {"ports": ports, "selector": spec}, "data": {"x": "y"}})
    });
    prop_oneof![json_value(), outline]
}

/// A valid configuration: labels, data, finalizers, ports, and whole values.
fn config() -> impl Strategy<Value = Value> {
    let words = || prop::sample::select(vec!["a", "b", "c"]);
    let map = move |least: usize| prop::collection::btree_map(words(), prop::sample::select(vec!["1", "2"]), least..4);
    let ports = prop::collection::btree_map((1..3, prop::sample::select(vec!["", "TCP", "UDP"])), words(), 0..4);
    let finalizers = prop::collection::btree_set(words(), 0..4);
    (map(0), map(0), ports, finalizers, prop::option::of(map(1)), prop::option::of(words())).prop_map(
        |(labels, data, ports, finalizers, selector, kind)| {
            let mut spec = json!({});
            let mut seen = std::collections::BTreeSet::new();
            let ports: Vec<Value> = ports
                .into_iter()
                .filter(|((port, protocol), _)| {
                    seen.insert((*port, if protocol.is_empty() { "TCP" } else { *protocol }))
                })
                .map(|((port, protocol), target)| match protocol {
                    "" => json!({"port": port, "targetPort": target}),
                    _ => json!({"port": port, "protocol": protocol, "targetPort": target}),
                })
                .collect();
            if !ports.is_empty() {
                spec["ports"] = json!(ports);
            }
            if let Some(selector) = selector {
                spec["selector"] = json!(selector);
            }
            if let Some(kind) = kind {
                spec["type"] = json!(kind);
            }
            // An empty map merges into what is there; tables have its cases.
            let mut all = service(json!({"metadata": {"finalizers": finalizers}}));
            let maps = [("/metadata", "labels", json!(labels)), ("", "data", json!(data)), ("", "spec", spec)];
            for (at, name, map) in maps.into_iter().filter(|(_, _, map)| *map != json!({})) {
                all.pointer_mut(at).unwrap()[name] = map;
            }
            all
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let scalar = || {
        prop_oneof![
            Just(Scalar::Null),
            any::<bool>().prop_map(Scalar::Bool),
            any::<i64>().prop_map(|n| Scalar::Number(Number::from_json(&n.into()))),
            any::<i32>().prop_map(|n| json!(f64::from(n) / 4.0)).prop_map(|n| Scalar::from_json(&n).unwrap()),
            ".{0,3}".prop_map(Scalar::String),
        ]
    };
    prop_oneof![
        ".{0,3}".prop_map(Step::Field),
        prop::collection::btree_map("[a-c]{1,2}", scalar(), 0..3)
            .prop_map(|keys| Step::Key(keys.into_iter().collect())),
        scalar().prop_map(Step::Value),
        any::<i64>().prop_map(Step::Index),
    ]
}

fn set() -> impl Strategy<Value = Set> {
    let few = prop_oneof![prop::sample::select(vec![Step::field("a"), Step::field("b"), Step::Index(0)]), step()];
    prop::collection::vec(prop::collection::vec(few, 1..4), 0..12).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

/// The values at the leaves that a configuration owns.
fn leaf_of(object: &Value, path: &Path) -> Option<Value> {
    path.0.iter().try_fold(object.clone(), |value, step| match step {
        Step::Field(name) => value.get(name).cloned(),
        Step::Value(scalar) => value.as_array()?.iter().find(|item| **item == scalar.to_json()).cloned(),
        Step::Key(keys) => value
            .as_array()?
            .iter()
            .find(|item| {
                keys.iter()
                    .all(|(name, scalar)| item.get(name).cloned().unwrap_or_else(|| json!("TCP")) == scalar.to_json())
            })
            .cloned(),
        Step::Index(_) => None,
    })
}

fn owns(config: &Value) -> Set {
    owned(config, place())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn fields_v1_is_read_back_as_it_was_written(set in set()) {
        let text = set.to_json().to_string();
        let read: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(Set::from_json(&read).unwrap(), set);
    }

    #[test]
    fn sets_obey_their_algebra(a in set(), b in set()) {
        let (union, both) = (a.union(&b), a.intersection(&b));
        prop_assert_eq!(&union, &b.union(&a));
        prop_assert_eq!(a.difference(&b).union(&both), a.clone());
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        for path in union.paths() {
            prop_assert_eq!(both.has(&path.0), a.has(&path.0) && b.has(&path.0));
        }
        prop_assert!(a.leaves().difference(&a).is_empty());
    }

    #[test]
    fn applying_twice_changes_nothing(live in config(), config in config(), force in any::<bool>(), made in any::<bool>()) {
        let live = made.then(|| updated(None, live, &by("other")));
        if let Ok(once) = applied(live.as_ref(), &config, &By { force, ..by("me") }) {
            prop_assert_eq!(applied(Some(&once), &config, &By { now: T2, force: false, ..by("me") }).unwrap(), once);
        }
    }

    #[test]
    fn what_was_applied_is_there(live in config(), config in config()) {
        let live = updated(None, live, &by("other"));
        let object = ok(Some(&live), config.clone(), &By { force: true, ..by("me") });
        for path in owns(&config).leaves().paths() {
            prop_assert_eq!(leaf_of(&object, &path), leaf_of(&config, &path), "{}", path);
        }
    }

    #[test]
    fn conflicts_are_exactly_the_owned_leaves_whose_values_differ(first in config(), second in config()) {
        let object = ok(None, first.clone(), &by("one"));
        let shared = owns(&first).intersection(&owns(&second)).leaves();
        let differs = |path: &&Path| leaf_of(&first, path) != leaf_of(&second, path);
        let mut want: Vec<String> = shared.paths().iter().filter(differs).map(ToString::to_string).collect();
        want.sort();
        let got = match applied(Some(&object), &second, &by("two")) {
            Ok(_) => Vec::new(),
            Err(Refused::Conflicts(all)) => {
                let mut all: Vec<String> = all.0.iter().map(|one| one.path.to_string()).collect();
                all.sort();
                all
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        prop_assert_eq!(got, want);
    }

    #[test]
    fn a_field_no_longer_applied_goes_unless_another_owns_it(mine in config(), next in config(), theirs in config()) {
        let force = |manager| By { force: true, ..by(manager) };
        let live = ok(None, mine.clone(), &by("me"));
        let live = ok(Some(&live), theirs.clone(), &force("them"));
        let object = ok(Some(&live), next.clone(), &force("me"));
        let (mine, next, theirs) = (owns(&mine), owns(&next), owns(&theirs));
        for path in mine.difference(&next).leaves().paths() {
            prop_assert_eq!(leaf_of(&object, &path).is_some(), theirs.has(&path.0), "{}", path);
        }
    }

    #[test]
    fn what_two_apply_apart_is_there_and_each_owns_its_own(labels in config(), data in config()) {
        let a = service(json!({"metadata": {"labels": labels["metadata"]["labels"]}}));
        let b = service(json!({"data": data["data"], "spec": data["spec"]}));
        let one = ok(None, a.clone(), &by("a"));
        let object = ok(Some(&one), b.clone(), &by("b"));
        prop_assert_eq!(&object["metadata"]["labels"], &a["metadata"]["labels"]);
        prop_assert_eq!(&object["data"], &b["data"]);
        prop_assert_eq!(&object["spec"], &b["spec"]);
        prop_assert_eq!(fields(&object, "a Apply"), fields(&one, "a Apply"));
        prop_assert_eq!(fields(&object, "b Apply"), fields(&ok(None, b, &by("b")), "b Apply"));
    }

    #[test]
    fn an_update_owns_what_it_changes_and_the_object_is_as_written(live in config(), new in config()) {
        let mut live = live;
        live["data"]["own"] = json!("so that the object has a manager");
        let live = ok(None, live, &by("a"));
        let object = updated(Some(&live), new.clone(), &by("u"));
        prop_assert_eq!(without_managers(&object), new.clone());
        let all = managers(&object).iter().fold(Set::default(), |all, (_, one)| all.union(&Set::from_json(one).unwrap()));
        for path in owns(&new).leaves().paths().iter().filter(|path| path.0.len() > 1) {
            let is_system = [".metadata.name", ".metadata.namespace"].contains(&path.to_string().as_str());
            prop_assert!(is_system || all.has(&path.0), "{} in {}", path, object);
        }
    }

    #[test]
    fn nothing_panics_on_arbitrary_json(live in anything(), other in anything(), force in any::<bool>(), kubectl in any::<bool>()) {
        let by = By { force, ..by(if kubectl { "kubectl" } else { "me" }) };
        if let Ok(object) = applied(Some(&live), &other, &by) {
            prop_assert!(Managers::of(&object).is_ok());
            let again = applied(Some(&object), &other, &By { now: T2, force: false, ..by });
            prop_assert_eq!(again.unwrap(), object);
        }
        let _ = applied(None, &other, &by);
        let _ = updated(None, other.clone(), &by);
        let _ = updated(Some(&live), other, &by);
    }

    #[test]
    fn managers_are_read_back_as_they_were_written(sets in prop::collection::vec((set(), any::<bool>(), 0..3_u8), 0..6)) {
        let entries = sets.into_iter().enumerate().map(|(n, (fields, is_apply, second))| Entry {
            manager: format!("m{n}"),
            operation: if is_apply { Operation::Apply } else { Operation::Update },
            api_version: "v1".to_owned(),
            time: (second > 0).then(|| format!("2026-01-01T00:00:0{second}Z")),
            fields,
            subresource: if second == 2 { "status".to_owned() } else { String::new() },
        });
        let written = Managers(entries.collect()).to_json();
        let read = Managers::of(&json!({"metadata": {"managedFields": written.clone()}})).unwrap();
        prop_assert_eq!(read.to_json(), written);
    }
}
