//! A small schema like Kubernetes' own, documents and patches of it, cases of strategic merge patches, and laws of all patches.

use super::*;
use proptest::prelude::*;
use serde_json::json;

use super::super::place::Definitions;

/// Like ServiceSpec, PodSpec, ObjectMeta and their parts, as far as lists go.
pub(super) fn definitions() -> Definitions {
    let merging = |item: &str, key: &str, more: Value| {
        let mut list = json!({"type": "array", "items": {"$ref": format!("#/definitions/{item}")},
            "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": key,
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]});
        list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        list
    };
    let scalar = json!({"type": "string"});
    let definitions = json!({
        "Object": {"properties": {
            "metadata": {"allOf": [{"$ref": "#/definitions/Meta"}]},
            "spec": {"$ref": "#/definitions/Spec"},
            "status": {"$ref": "#/definitions/Status"}
        }},
        "Meta": {"properties": {
            "labels": {"type": "object", "additionalProperties": scalar},
            "finalizers": {"type": "array", "items": scalar, "x-kubernetes-patch-strategy": "merge", "x-kubernetes-list-type": "set"},
            "ownerReferences": merging("Owner", "uid", json!({}))
        }},
        "Owner": {"properties": {"uid": scalar, "name": scalar}},
        "Spec": {"properties": {
            "ports": merging("Port", "port", json!({"x-kubernetes-list-map-keys": ["port", "protocol"]})),
            "containers": merging("Container", "name", json!({})),
            "volumes": merging("Volume", "name", json!({"x-kubernetes-patch-strategy": "merge,retainKeys"})),
            "strategy": {"allOf": [{"$ref": "#/definitions/Strategy"}], "x-kubernetes-patch-strategy": "retainKeys"},
            "whole": {"type": "object", "x-kubernetes-patch-strategy": "replace"},
            "keyless": {"type": "array", "items": {"type": "object"}, "x-kubernetes-patch-strategy": "merge"},
            "externalIPs": {"type": "array", "items": scalar, "x-kubernetes-list-type": "atomic"}
        }},
        "Port": {"properties": {"port": {"type": "integer"}, "protocol": scalar, "targetPort": {}, "name": scalar}},
        "Container": {"properties": {"name": scalar, "image": scalar, "args": {"type": "array", "items": scalar},
            "env": merging("Env", "name", json!({}))}},
        "Env": {"properties": {"name": scalar, "value": scalar}},
        "Volume": {"properties": {"name": scalar, "emptyDir": {"type": "object"}, "hostPath": {"type": "object"}}},
        "Strategy": {"properties": {"type": scalar, "rollingUpdate": {"type": "object"}}},
        "Status": {"properties": {
            "conditions": merging("Condition", "type", json!({})),
            "loadBalancer": {"type": "object", "properties": {
                "ingress": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "atomic"}}}
        }},
        "Condition": {"properties": {"type": scalar, "status": scalar}}
    });
    definitions.as_object().unwrap().clone()
}

fn patched(live: &Value, patch: &Value) -> Result<Value, Refused> {
    let definitions = definitions();
    apply(Type::Strategic, live, patch, Place::of(&definitions, "Object"))
}

/// Patches what is at `spec`.
fn spec(live: Value, patch: Value) -> Value {
    patched(&json!({"spec": live}), &json!({"spec": patch})).unwrap()["spec"].clone()
}

fn spec_refused(live: Value, patch: Value) -> Refused {
    patched(&json!({"spec": live}), &json!({"spec": patch})).unwrap_err()
}

fn meta(live: Value, patch: Value) -> Value {
    patched(&json!({"metadata": live}), &json!({"metadata": patch})).unwrap()["metadata"].clone()
}

#[test]
fn content_types_are_known_without_their_parameters() {
    for (value, kind) in [
        ("application/json-patch+json", Some(Type::Json)),
        ("application/merge-patch+json; charset=utf-8", Some(Type::Merge)),
        ("Application/Strategic-Merge-Patch+JSON ;charset=UTF-8", Some(Type::Strategic)),
        ("application/apply-patch+yaml", None),
        ("application/json", None),
        ("", None),
    ] {
        assert_eq!(Type::of_content_type(value), kind, "{value}");
    }
}

#[test]
fn a_patch_of_the_wrong_form_is_a_bad_request() {
    for (kind, patch, message) in [
        (
            Type::Json,
            json!({}),
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (
            Type::Merge,
            json!([]),
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (Type::Strategic, json!("x"), "json: cannot unmarshal string into Go value of type map[string]interface {}"),
    ] {
        let refused = apply(kind, &json!({}), &patch, None).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (400, message));
    }
}

#[test]
fn an_object_stays_an_object() {
    let refused =
        apply(Type::Json, &json!({}), &json!([{"op": "replace", "path": "", "value": []}]), None).unwrap_err();
    assert_eq!(refused.code, 422);
}

fn nested(depth: usize, key: Option<&str>) -> Value {
    (0..depth).fold(json!(1), |inner, _| match key {
        Some(key) => json!({ key: inner }),
        None => Value::Array(vec![inner]),
    })
}

#[test]
fn depth_bombs_are_refused_in_patch_and_object() {
    for kind in [Type::Merge, Type::Strategic] {
        assert!(apply(kind, &json!({}), &nested(MAX_DEPTH, Some("a")), None).is_ok());
        assert_eq!(apply(kind, &json!({}), &nested(MAX_DEPTH + 1, Some("a")), None).unwrap_err().code, 400);
        assert_eq!(apply(kind, &json!({}), &json!({"a": nested(300, None)}), None).unwrap_err().code, 400);
        assert_eq!(apply(kind, &nested(300, Some("a")), &json!({}), None).unwrap_err().code, 422);
    }
    let add = json!([{"op": "add", "path": "/a", "value": nested(300, None)}]);
    assert_eq!(apply(Type::Json, &json!({}), &add, None).unwrap_err().code, 400);
}

#[test]
fn fields_are_set_merged_and_deleted() {
    let live = json!({"metadata": {"name": "web", "labels": {"a": "1", "b": "2"}}, "spec": {"type": "ClusterIP"}});
    let patch = json!({"metadata": {"labels": {"a": null, "c": "3", "d": null}}, "spec": {"type": "NodePort", "new": {"x": null, "y": 1}}});
    let result = json!({"metadata": {"name": "web", "labels": {"b": "2", "c": "3"}}, "spec": {"type": "NodePort", "new": {"y": 1}}});
    assert_eq!(patched(&live, &patch), Ok(result));
}

#[test]
fn lists_without_the_merge_strategy_are_replaced() {
    assert_eq!(spec(json!({"externalIPs": ["a", "b"]}), json!({"externalIPs": ["c"]})), json!({"externalIPs": ["c"]}));
    assert_eq!(spec(json!({"unknown": [{"name": "a"}]}), json!({"unknown": []})), json!({"unknown": []}));
    let status = |ingress: Value| json!({"status": {"loadBalancer": {"ingress": ingress}}});
    let result = patched(&status(json!([{"ip": "1"}, {"ip": "2"}])), &status(json!([{"ip": "3"}])));
    assert_eq!(result, Ok(status(json!([{"ip": "3"}]))));
}

#[test]
fn without_a_schema_maps_merge_and_lists_are_replaced() {
    let live = json!({"spec": {"ports": [{"port": 1}], "a": 1}});
    let result = apply(Type::Strategic, &live, &json!({"spec": {"ports": [{"port": 2}], "b": 2}}), None);
    assert_eq!(result, Ok(json!({"spec": {"ports": [{"port": 2}], "a": 1, "b": 2}})));
}

#[test]
fn items_are_merged_by_their_key_and_new_ones_added() {
    let live = json!({"containers": [{"name": "web", "image": "1", "args": ["a"]}]});
    let patch = json!({"containers": [{"name": "log", "image": "2"}, {"name": "web", "image": "3"}]});
    let result = json!({"containers": [{"name": "log", "image": "2"}, {"name": "web", "image": "3", "args": ["a"]}]});
    assert_eq!(spec(live, patch), result);
    let live =
        json!({"containers": [{"name": "web", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]});
    let patch = json!({"containers": [{"name": "web", "env": [{"name": "B", "value": "3"}, {"$patch": "delete", "name": "A"}]}]});
    assert_eq!(spec(live, patch), json!({"containers": [{"name": "web", "env": [{"name": "B", "value": "3"}]}]}));
    let owners = json!({"ownerReferences": [{"uid": "1", "name": "a"}]});
    assert_eq!(
        meta(owners, json!({"ownerReferences": [{"uid": "1", "name": "b"}]})),
        json!({"ownerReferences": [{"uid": "1", "name": "b"}]})
    );
    let conditions = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    assert_eq!(patched(&conditions("False"), &conditions("True")), Ok(conditions("True")));
}

#[test]
fn merge_keys_are_compared_by_value() {
    let result = spec(json!({"ports": [{"port": 80, "name": "a"}]}), json!({"ports": [{"port": 80.0, "name": "b"}]}));
    assert_eq!(result["ports"].as_array().map(Vec::len), Some(1));
    assert_eq!(result["ports"][0]["name"], "b");
}

#[test]
fn order_without_a_directive_is_the_patchs_woven_into_the_live_one() {
    let named = |names: &str| names.chars().map(|name| json!({"name": name.to_string()})).collect::<Value>();
    for (live, patch, result) in [
        ("abc", "b", "abc"),
        ("abc", "ca", "bca"),
        ("abc", "n", "nabc"),
        ("xay", "an", "xany"),
        ("xa", "na", "nxa"),
        ("", "ba", "ba"),
    ] {
        assert_eq!(
            spec(json!({"containers": named(live)}), json!({"containers": named(patch)})),
            json!({"containers": named(result)}),
            "{live} {patch}"
        );
    }
}

#[test]
fn scalars_are_united_each_once() {
    let finalizers = |items: Value| json!({ "finalizers": items });
    for (live, patch, result) in [
        (json!(["a", "b"]), json!(["c", "b"]), json!(["c", "a", "b"])),
        (json!(["a", "b"]), json!(["b", "c"]), json!(["a", "b", "c"])),
        (json!(["a", "b", "a"]), json!([]), json!(["a", "b"])),
        (json!([]), json!(["a"]), json!(["a"])),
    ] {
        assert_eq!(meta(finalizers(live.clone()), finalizers(patch.clone())), finalizers(result), "{live} {patch}");
    }
    assert_eq!(meta(json!({}), finalizers(json!(["a"]))), finalizers(json!(["a"])));
}

#[test]
fn scalars_are_deleted_by_their_directive() {
    let delete = |items: Value| json!({ "$deleteFromPrimitiveList/finalizers": items });
    let live = || json!({"finalizers": ["a", "b", "c", "b"]});
    assert_eq!(meta(live(), delete(json!(["b", "x"]))), json!({"finalizers": ["a", "c"]}));
    assert_eq!(meta(json!({"name": "x"}), delete(json!(["b"]))), json!({"name": "x"}));
    let both = json!({"finalizers": ["d"], "$deleteFromPrimitiveList/finalizers": ["a", "b"]});
    assert_eq!(meta(live(), both), json!({"finalizers": ["d", "c"]}));
    let atomic = json!({"$deleteFromPrimitiveList/externalIPs": [1]});
    assert_eq!(spec(json!({"externalIPs": [1, 1.0, 2]}), atomic), json!({"externalIPs": [2]}));
    for bad in [json!("b"), json!(null), json!([{"a": 1}])] {
        let refused = patched(&json!({"metadata": live()}), &json!({"metadata": delete(bad)})).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (400, "invalid patch format of primitive list"));
    }
}

#[test]
fn the_order_directive_orders_and_others_keep_their_places() {
    let finalizers = |items: &str| items.chars().map(|item| json!(item.to_string())).collect::<Value>();
    for (live, order, result) in [
        ("abc", "bca", "bca"),
        ("abc", "ca", "bca"),
        ("axb", "ba", "xba"),
        ("abxy", "ba", "baxy"),
        ("abc", "xbya", "bac"),
        ("ab", "", "ab"),
    ] {
        assert_eq!(
            meta(json!({"finalizers": finalizers(live)}), json!({"$setElementOrder/finalizers": finalizers(order)})),
            json!({"finalizers": finalizers(result)}),
            "{live} {order}"
        );
    }
    let live = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}, {"name": "server"}]});
    let patch = json!({
        "$setElementOrder/containers": [{"name": "new"}, {"name": "b"}, {"name": "a"}],
        "containers": [{"name": "new"}, {"name": "a", "image": "2"}]
    });
    let result =
        json!({"containers": [{"name": "new"}, {"name": "b"}, {"name": "a", "image": "2"}, {"name": "server"}]});
    assert_eq!(spec(live, patch.clone()), result);
    assert_eq!(spec(json!({}), patch), json!({"containers": [{"name": "new"}, {"name": "a", "image": "2"}]}));
}

#[test]
fn an_order_goes_with_deletions_and_with_lists_that_are_not_there() {
    let patch = json!({
        "$setElementOrder/ports": [{"port": 443}, {"port": 80}],
        "ports": [{"port": 443, "name": "s"}, {"port": 81, "$patch": "delete"}]
    });
    let live = json!({"ports": [{"port": 80}, {"port": 81}, {"port": 443}]});
    assert_eq!(spec(live, patch), json!({"ports": [{"port": 443, "name": "s"}, {"port": 80}]}));
    assert_eq!(spec(json!({"a": 1}), json!({"$setElementOrder/ports": [{"port": 443}]})), json!({"a": 1}));
    let replaced = json!({"$setElementOrder/externalIPs": ["b", "a"], "externalIPs": ["b", "a"]});
    assert_eq!(spec(json!({"externalIPs": ["c", "a"]}), replaced), json!({"externalIPs": ["b", "a"]}));
}

#[test]
fn a_list_out_of_its_order_is_refused() {
    let refused = spec_refused(
        json!({"ports": [{"port": 1}]}),
        json!({"$setElementOrder/ports": [{"port": 1}, {"port": 2}], "ports": [{"port": 2}, {"port": 1}]}),
    );
    assert_eq!(refused.code, 422);
    assert_eq!(
        refused.message,
        "The order in patch list:\n[map[port:2] map[port:1]]\n doesn't match $setElementOrder list:\n[map[port:1] map[port:2]]\n"
    );
    for (patch, code) in [
        (json!({"$setElementOrder/ports": [{"port": 1}], "ports": [{"port": 3}]}), 422),
        (json!({"$setElementOrder/ports": [{"name": "a"}]}), 422),
        (json!({"$setElementOrder/ports": [1]}), 422),
        (json!({"$setElementOrder/ports": {"port": 1}}), 400),
        (json!({"$setElementOrder/ports": [{"port": 1}], "ports": 3}), 422),
        (json!({"$setElementOrderports": []}), 400),
        (json!({"$setElementOrder": []}), 400),
        (json!({"$deleteFromPrimitiveList": []}), 400),
    ] {
        assert_eq!(spec_refused(json!({"ports": [{"port": 1}]}), patch.clone()).code, code, "{patch}");
    }
}

#[test]
fn a_map_is_replaced_or_emptied_by_its_directive() {
    let live = || json!({"strategy": {"type": "Rolling", "rollingUpdate": {"a": 1}}});
    let replace = json!({"strategy": {"$patch": "replace", "type": "Recreate", "x": null}});
    assert_eq!(spec(live(), replace.clone()), json!({"strategy": {"type": "Recreate"}}));
    assert_eq!(spec(json!({}), replace), json!({"strategy": {"type": "Recreate"}}));
    let delete = json!({"strategy": {"rollingUpdate": {"$patch": "delete"}}});
    assert_eq!(spec(live(), delete.clone()), json!({"strategy": {"type": "Rolling", "rollingUpdate": {}}}));
    assert_eq!(spec(json!({}), delete), json!({"strategy": {}}));
    assert_eq!(patched(&json!({"a": 1, "b": 2}), &json!({"$patch": "replace", "c": 3})), Ok(json!({"c": 3})));
    assert_eq!(spec(json!({"whole": {"a": 1}}), json!({"whole": {"b": 2}})), json!({"whole": {"b": 2}}));
}

#[test]
fn a_list_is_replaced_or_thinned_by_its_items_directives() {
    let live = || json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]});
    let replace = json!({"containers": [{"name": "c"}, {"$patch": "replace"}, {"name": "a", "$patch": "delete"}]});
    assert_eq!(spec(live(), replace.clone()), json!({"containers": [{"name": "c"}]}));
    assert_eq!(spec(json!({}), replace), json!({"containers": [{"name": "c"}]}));
    let delete = json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "x", "$patch": "delete"}]});
    assert_eq!(spec(live(), delete), json!({"containers": [{"name": "b"}]}));
    let again = json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "a", "args": ["x"]}]});
    assert_eq!(spec(live(), again), json!({"containers": [{"name": "a", "args": ["x"]}, {"name": "b"}]}));
    assert_eq!(spec(live(), json!({"containers": [{"$patch": "replace"}]})), json!({"containers": []}));
}

#[test]
fn directives_that_are_none_are_refused_in_kubernetes_words() {
    let containers = |item: Value| (json!({"containers": [{"name": "a"}]}), json!({"containers": [item]}));
    for ((live, patch), message) in [
        (containers(json!({"name": "a", "$patch": "merge"})), "merging lists cannot yet be specified in the patch"),
        (containers(json!({"name": "a", "$patch": "x"})), "unknown patch type: x in map: map[$patch:x name:a]"),
        (containers(json!({"$patch": "delete"})), "map: map[$patch:delete] does not contain declared merge key: name"),
        (
            (json!({"strategy": {}}), json!({"strategy": {"$patch": "merge", "type": "a"}})),
            "unknown patch type: merge in map: map[$patch:merge type:a]",
        ),
    ] {
        let refused = spec_refused(live, patch);
        assert_eq!((refused.code, refused.message.as_str()), (422, message));
    }
}

#[test]
fn an_item_without_its_merge_key_is_refused() {
    for (live, patch) in [
        (json!([{"name": "a"}]), json!([{"image": "x", "args": ["b", 1]}])),
        (json!([{"image": "x", "args": ["b", 1]}]), json!([{"name": "a"}])),
        (json!([{"name": "a"}]), json!([{"image": "x", "args": ["b", 1]}, {"$patch": "replace"}])),
    ] {
        let refused = spec_refused(json!({"containers": live}), json!({"containers": patch}));
        let message = "map: map[args:[b 1] image:x] does not contain declared merge key: name";
        assert_eq!((refused.code, refused.message.as_str()), (422, message));
    }
}

#[test]
fn lists_of_different_things_are_refused() {
    let refused = spec_refused(json!({"containers": [{"name": "a"}]}), json!({"containers": ["a"]}));
    assert_eq!(refused.message, "list element types are not identical: [[map[name:a]] [a]]");
    let refused = spec_refused(json!({"containers": [["a"]]}), json!({"containers": [["b"]]}));
    assert_eq!(refused.cause.as_deref(), Some("lists of lists are not supported"));
    spec_refused(json!({"containers": [null]}), json!({"containers": [null]}));
    let refused = spec_refused(json!({"keyless": [{"a": 1}]}), json!({"keyless": [{"a": 1}]}));
    assert_eq!(refused.message, "cannot merge lists without merge key for array");
}

#[test]
fn retain_keys_clears_the_other_fields() {
    let volume = json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]});
    let patch = json!({"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/"}}]});
    let result = json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "emptyDir": {}}]});
    assert_eq!(spec(volume, patch.clone()), result);
    assert_eq!(spec(json!({}), patch), json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}));
    let live = || json!({"strategy": {"type": "Rolling", "rollingUpdate": {"a": 1}, "x": 1}});
    let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}});
    assert_eq!(spec(live(), patch), json!({"strategy": {"type": "Recreate"}}));
    for bad in [
        json!({"$retainKeys": ["type"], "type": "a", "x": 1}),
        json!({"$retainKeys": "type"}),
        json!({"$retainKeys": [1]}),
    ] {
        let refused = spec_refused(live(), json!({ "strategy": bad }));
        assert_eq!((refused.code, refused.message.as_str()), (400, "invalid patch format of retainKeys"));
    }
}

fn dns() -> Value {
    json!([{"port": 53, "protocol": "TCP", "name": "t"}, {"port": 53, "protocol": "UDP", "name": "u"}, {"port": 80, "name": "h"}])
}

fn ports(live: Value, patch: Value) -> Value {
    spec(json!({"ports": live}), json!({"ports": patch}))["ports"].clone()
}

#[test]
fn an_item_that_states_all_keys_is_merged_into_the_one_that_has_them() {
    let both =
        json!([{"port": 53, "protocol": "TCP", "targetPort": 1}, {"port": 53, "protocol": "UDP", "targetPort": 2}]);
    let mut result = dns();
    result[0]["targetPort"] = json!(1);
    result[1]["targetPort"] = json!(2);
    assert_eq!(ports(dns(), both), result);
    let udp = json!([{"port": 53, "protocol": "UDP", "targetPort": 2}]);
    let mut result = dns();
    result[1]["targetPort"] = json!(2);
    assert_eq!(ports(dns(), udp), result);
}

#[test]
fn two_protocols_of_one_port_in_a_patch_are_two_items() {
    let both = json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
    assert_eq!(
        ports(json!([{"port": 80}]), both.clone()),
        json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80}])
    );
    for live in ["TCP", "UDP"] {
        let result = ports(json!([{"port": 53, "protocol": live, "name": "old"}]), both.clone());
        let result: Vec<_> = result
            .as_array()
            .unwrap()
            .iter()
            .map(|port| (port["protocol"].clone(), port.get("name").cloned()))
            .collect();
        let name = |protocol: &str| (protocol == live).then(|| json!("old"));
        assert_eq!(result.len(), 2);
        assert!(["TCP", "UDP"].iter().all(|one| result.contains(&(json!(one), name(one)))), "{result:?}");
    }
    let ordered = json!({
        "$setElementOrder/ports": [{"port": 80}, {"port": 53}, {"port": 53}],
        "ports": both
    });
    assert_eq!(spec(json!({"ports": [{"port": 80}]}), ordered)["ports"].as_array().map(Vec::len), Some(3));
}

#[test]
fn an_item_that_states_less_changes_the_first_and_a_deletion_takes_all() {
    let result = ports(dns(), json!([{"port": 53, "targetPort": 9}]));
    assert_eq!((&result[0]["targetPort"], &result[1]), (&json!(9), &dns()[1]));
    assert_eq!(ports(dns(), json!([{"port": 53, "$patch": "delete"}])), json!([{"port": 80, "name": "h"}]));
    // One item of the port: its protocol changes.
    let result = ports(json!([{"port": 53, "protocol": "TCP", "name": "t"}]), json!([{"port": 53, "protocol": "UDP"}]));
    assert_eq!(result, json!([{"port": 53, "protocol": "UDP", "name": "t"}]));
}

#[test]
fn a_computed_patch_that_may_mean_either_of_two_items_is_refused() {
    let order = |ports: Value, own: Value| json!({"$setElementOrder/ports": ports, "ports": own});
    let (two, one) = (json!([{"port": 53}, {"port": 53}, {"port": 80}]), json!([{"port": 53}, {"port": 80}]));
    // What kubectl 1.20 sends to change the UDP port, to drop it, and to add it.
    let live = || json!({ "ports": dns() });
    let single = json!({"ports": [{"port": 53, "protocol": "TCP", "targetPort": 8053}, {"port": 80}]});
    for (live, patch) in [
        (live(), order(two.clone(), json!([{"port": 53, "targetPort": 9}]))),
        (live(), order(one.clone(), json!([{"port": 53, "$patch": "delete"}]))),
        (single, order(two.clone(), json!([{"port": 53, "protocol": "UDP", "name": "u"}]))),
    ] {
        let refused = spec_refused(live, patch);
        assert_eq!(refused.code, 422);
        assert!(refused.message.contains("may mean several items of the same port"), "{}", refused.message);
    }
    // What does not touch them is fine.
    let result = spec(live(), order(two.clone(), json!([{"port": 80, "name": "x"}])));
    assert_eq!((&result["ports"][0], &result["ports"][2]["name"]), (&dns()[0], &json!("x")));
    assert_eq!(spec(live(), json!({"$setElementOrder/ports": two})), live());
    let all = order(one, json!([{"port": 80, "$patch": "delete"}]));
    assert_eq!(spec(live(), all)["ports"].as_array().map(Vec::len), Some(2));
}

#[test]
fn directives_are_never_stored() {
    let patch = json!({"new": {"a": {"$patch": "delete"}, "$retainKeys": ["a", "b"], "b": [{"$patch": "replace"}, {"$setElementOrder/c": [], "d": null}],
        "$deleteFromPrimitiveList/x": ["y"]}});
    assert_eq!(spec(json!({}), patch), json!({"new": {"b": [{}]}}));
}

#[test]
fn directives_mean_the_same_where_nothing_is_to_merge_with() {
    let patch = json!({"a": {"list": ["x", "y", "z"], "$deleteFromPrimitiveList/list": ["x"], "$setElementOrder/list": ["x", "y", "z"]}});
    assert_eq!(spec(json!({}), patch), json!({"a": {"list": ["y", "z"]}}));
    assert_eq!(spec_refused(json!({}), json!({"a": {"$patch": "x"}})).code, 422);
    assert_eq!(spec_refused(json!({}), json!({"a": {"$retainKeys": "x"}})).code, 400);
}

#[test]
fn long_lists_of_many_keys_and_of_one_merge() {
    let many =
        |name: &str| -> Value { (0..20_000).map(|at| json!({"name": format!("{at}"), "image": name})).collect() };
    assert_eq!(spec(json!({"containers": many("a")}), json!({"containers": many("b")}))["containers"], many("b"));
    let same: Value = (0..20_000).map(|at| json!({"port": 1, "protocol": format!("{at}")})).collect();
    assert_eq!(ports(same.clone(), same.clone()), same);
    let delete = |key: &Value| json!({"port": key, "$patch": "delete"});
    let deletions: Value = (0..20_000).map(|at| delete(&json!(at))).collect();
    let twice: Value = (0..20_000).map(|at| json!({"port": at / 2})).collect();
    assert_eq!(ports(twice, deletions), json!([]));
}

/// Any JSON, with the names and values that mean something here.
pub(super) fn small() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "labels",
        "finalizers",
        "ownerReferences",
        "uid",
        "ports",
        "port",
        "protocol",
        "containers",
        "name",
        "env",
        "volumes",
        "strategy",
        "type",
        "whole",
        "keyless",
        "conditions",
        "a/b",
        "m~n",
        "",
        "$patch",
        "$retainKeys",
        "$setElementOrder/ports",
        "$setElementOrder/finalizers",
        "$setElementOrder/containers",
        "$setElementOrder",
        "$deleteFromPrimitiveList/finalizers",
        "$deleteFromPrimitiveList",
    ]);
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..4).prop_map(Value::from),
        Just(json!(1.0)),
        Just(json!(u64::MAX)),
        prop::sample::select(vec!["a", "b", "TCP", "UDP", "replace", "delete", "merge", "name"]).prop_map(Value::from),
    ];
    scalar.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((names.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

/// Items of distinct keys.
fn items(key: &'static str, more: &'static str) -> impl Strategy<Value = Vec<Value>> {
    prop::collection::btree_map(0..5_u8, prop::option::of(0..3_u8), 0..5).prop_flat_map(move |items| {
        let items = items.into_iter().map(|(at, value)| match value {
            Some(value) => json!({ key: format!("k{at}"), more: value }),
            None => json!({ key: format!("k{at}") }),
        });
        Just(items.collect::<Vec<_>>()).prop_shuffle()
    })
}

/// An object that the schema allows.
pub(super) fn document() -> impl Strategy<Value = Value> {
    let port = (1..4_u8, prop::option::of(prop::sample::select(vec!["TCP", "UDP"])), 0..3_u8);
    let ports = prop::collection::vec(
        port.prop_map(|(port, protocol, target)| match protocol {
            Some(protocol) => json!({"port": port, "protocol": protocol, "targetPort": target}),
            None => json!({"port": port, "targetPort": target}),
        }),
        0..5,
    );
    let finalizers = prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 0..4);
    (ports, items("name", "image"), items("type", "status"), finalizers, 0..3_u8).prop_map(
        |(ports, containers, conditions, finalizers, label)| {
            json!({"metadata": {"labels": {"a": label, "b": "x"}, "finalizers": finalizers},
                "spec": {"ports": ports, "containers": containers, "strategy": {"type": label}},
                "status": {"conditions": conditions}})
        },
    )
}

/// A patch that fits the schema, without order directives.
fn fitting() -> impl Strategy<Value = Value> {
    let port = (prop::option::of(prop::sample::select(vec!["TCP", "UDP"])), prop::option::of(0..3_u8), any::<bool>());
    let ports = prop::collection::btree_map(1..5_u8, port, 0..4).prop_map(|ports| {
        ports
            .into_iter()
            .map(|(port, (protocol, target, delete))| match (delete, protocol) {
                (true, _) => json!({"port": port, "$patch": "delete"}),
                (_, Some(protocol)) => json!({"port": port, "protocol": protocol, "targetPort": target}),
                (_, None) => json!({"port": port, "targetPort": target}),
            })
            .collect::<Vec<_>>()
    });
    let letters = || prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..3).prop_shuffle();
    let strategy = prop::sample::select(vec![
        json!({"type": "x"}),
        json!({"$patch": "replace", "y": {"z": null}}),
        json!({"$patch": "delete"}),
        json!(null),
        json!({"$retainKeys": ["y"], "y": 1}),
        json!({"$retainKeys": ["type"]}),
    ]);
    let containers = (items("name", "image"), any::<bool>()).prop_map(|(mut items, replace)| {
        items.extend(replace.then(|| json!({"$patch": "replace"})));
        items
    });
    (ports, containers, items("type", "status"), (letters(), letters()), strategy).prop_map(
        |(ports, containers, conditions, (united, deleted), strategy)| {
            json!({"metadata": {"labels": {"a": null, "c": "y"}, "finalizers": united,
                    "$deleteFromPrimitiveList/finalizers": deleted},
                "spec": {"ports": ports, "containers": containers, "strategy": strategy},
                "status": {"conditions": conditions}})
        },
    )
}

/// Some of the fields of a patch.
fn part() -> impl Strategy<Value = Value> {
    (fitting(), any::<[bool; 3]>()).prop_map(|(mut patch, keep)| {
        for (name, keep) in ["metadata", "spec", "status"].into_iter().zip(keep) {
            if !keep {
                patch.as_object_mut().unwrap().remove(name);
            }
        }
        patch
    })
}

fn stores_a_directive(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(stores_a_directive),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.starts_with('$') || stores_a_directive(value)),
        _ => false,
    }
}

/// Operations that may fit.
fn operations() -> impl Strategy<Value = Value> {
    let path = prop::collection::vec(
        prop::sample::select(vec!["spec", "ports", "0", "1", "-", "-1", "labels", "metadata", "x", "~0", "~2", "01"]),
        0..4,
    )
    .prop_map(|steps| steps.into_iter().map(|step| format!("/{step}")).collect::<String>());
    let op = prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test", "frob"]);
    let operation =
        (op, path.clone(), path, prop::option::of(small())).prop_map(|(op, path, from, value)| match value {
            Some(value) => json!({"op": op, "path": path, "from": from, "value": value}),
            None => json!({"op": op, "path": path, "from": from}),
        });
    prop::collection::vec(prop_oneof![9 => operation, 1 => small()], 0..8).prop_map(Value::Array)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_fitting_patch_applies_and_twice_is_once(live in document(), patch in part()) {
        let once = patched(&live, &patch);
        prop_assert!(once.is_ok(), "{:?}", once);
        let once = once.unwrap();
        prop_assert_eq!(patched(&once, &patch), Ok(once.clone()));
        prop_assert!(!stores_a_directive(&once));
    }

    #[test]
    fn a_patch_to_nothing_stores_what_it_sets_and_applies_again(patch in part()) {
        let once = patched(&json!({}), &patch).unwrap();
        prop_assert_eq!(patched(&once, &patch), Ok(once.clone()));
    }

    #[test]
    fn items_that_a_patch_does_not_name_stay_in_their_order(live in document(), patch in fitting()) {
        let named: Vec<_> = patch["spec"]["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect();
        let others = |ports: &Value| -> Vec<Value> {
            ports.as_array().unwrap().iter().filter(|port| !named.contains(&port["port"])).cloned().collect()
        };
        let mut sorted = live["spec"]["ports"].as_array().unwrap().clone();
        // Items of one merge key come together.
        let first = |port: &Value| live["spec"]["ports"].as_array().unwrap().iter().position(|other| other["port"] == port["port"]);
        sorted.sort_by_key(first);
        prop_assert_eq!(others(&patched(&live, &patch).unwrap()["spec"]["ports"]), others(&Value::Array(sorted)));
    }

    #[test]
    fn an_order_of_all_items_is_the_order_of_the_result(live in document(), seed in any::<prop::sample::Index>()) {
        let mut order: Vec<Value> = live["spec"]["containers"].as_array().unwrap().iter().map(|item| json!({"name": item["name"]})).collect();
        let by = seed.index(order.len().max(1));
        order.rotate_left(by);
        let result = patched(&live, &json!({"spec": {"$setElementOrder/containers": order}})).unwrap();
        let names: Vec<Value> = result["spec"]["containers"].as_array().unwrap().iter().map(|item| json!({"name": item["name"]})).collect();
        prop_assert_eq!(names, order);
    }

    #[test]
    fn where_no_list_merges_a_strategic_patch_is_a_merge_patch(live in document(), label in small()) {
        let patch = json!({"metadata": {"labels": {"a": 1, "b": null}}, "other": label});
        if !stores_a_directive(&patch) && !patch.to_string().contains('[') {
            prop_assert_eq!(patched(&live, &patch), apply(Type::Merge, &live, &patch, None));
        }
    }

    #[test]
    fn no_patch_panics_or_leaves_the_bounds(
        live in prop_oneof![small(), document()],
        patch in prop_oneof![small(), fitting(), operations()],
        name in prop::sample::select(vec!["Object", "Meta", "Spec", "Status", "Port", "Container", "None"]),
    ) {
        let definitions = definitions();
        for kind in [Type::Json, Type::Merge, Type::Strategic] {
            match apply(kind, &live, &patch, Place::of(&definitions, name)) {
                Ok(result) => prop_assert!(result.is_object() && !deeper_than(&result, MAX_DEPTH)),
                Err(refused) => prop_assert!([400, 413, 422].contains(&refused.code) && !refused.message.is_empty()),
            }
        }
    }
}
