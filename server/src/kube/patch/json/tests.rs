//! Cases of RFC 6902 and RFC 6901 and of what Kubernetes adds to them; laws of patches and of their bounds.

use super::super::tests::{document, small};
use super::super::{Type, apply as apply_any};
use super::*;
use proptest::prelude::*;
use serde_json::json;

fn patched(live: &Value, operations: &Value) -> Result<Value, Refused> {
    apply(live, operations.as_array().unwrap())
}

/// The cause of a refusal with Kubernetes' 422.
fn cause(live: &Value, operations: &Value) -> String {
    let refused = patched(live, operations).unwrap_err();
    assert_eq!(refused.code, 422);
    assert_eq!(refused.message, "the server rejected our request due to an error in our request");
    refused.cause.unwrap()
}

fn service() -> Value {
    json!({"metadata": {"labels": {"a/b": "1", "m~n": "2"}}, "spec": {"ports": [{"port": 80}, {"port": 443}]}})
}

#[test]
fn each_operation_does_what_the_rfc_says() {
    let cases = [
        (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
        (json!({"a": 1}), json!([{"op": "add", "path": "/a", "value": null}]), json!({"a": null})),
        (json!({"l": [1, 3]}), json!([{"op": "add", "path": "/l/1", "value": 2}]), json!({"l": [1, 2, 3]})),
        (json!({"l": [1]}), json!([{"op": "add", "path": "/l/1", "value": 2}]), json!({"l": [1, 2]})),
        (json!({"l": [1]}), json!([{"op": "add", "path": "/l/-", "value": [2]}]), json!({"l": [1, [2]]})),
        (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/a"}]), json!({"b": 2})),
        (json!({"l": [1, 2, 3]}), json!([{"op": "remove", "path": "/l/1"}]), json!({"l": [1, 3]})),
        (json!({"l": [1, 2]}), json!([{"op": "replace", "path": "/l/0", "value": 9}]), json!({"l": [9, 2]})),
        (json!({"a": {"b": 1}}), json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": 1})),
        (json!({"l": [1, 2, 3]}), json!([{"op": "move", "from": "/l/0", "path": "/l/2"}]), json!({"l": [2, 3, 1]})),
        (
            json!({"a": {"b": 1}}),
            json!([{"op": "copy", "from": "/a", "path": "/a/c"}]),
            json!({"a": {"b": 1, "c": {"b": 1}}}),
        ),
        (json!({"a": 1}), json!([{"op": "replace", "path": "", "value": {"b": 2}}]), json!({"b": 2})),
        (json!({"a": 1}), json!([{"op": "add", "path": "", "value": [1]}]), json!([1])),
        (json!({"": {"": 1}}), json!([{"op": "replace", "path": "//", "value": 2}]), json!({"": {"": 2}})),
        (json!([[1], [2]]), json!([{"op": "remove", "path": "/1/0"}]), json!([[1], []])),
        (json!({"a": 1}), json!([]), json!({"a": 1})),
    ];
    for (live, operations, result) in cases {
        assert_eq!(patched(&live, &operations).as_ref(), Ok(&result), "{operations} on {live}");
    }
}

#[test]
fn operations_see_what_earlier_ones_did_and_a_refusal_undoes_all() {
    let operations = json!([
        {"op": "test", "path": "/spec/ports/0/port", "value": 80},
        {"op": "remove", "path": "/spec/ports/0"},
        {"op": "test", "path": "/spec/ports/0/port", "value": 443},
        {"op": "add", "path": "/metadata/annotations", "value": {}},
        {"op": "add", "path": "/metadata/annotations/x", "value": "y"}
    ]);
    let live = service();
    let result = patched(&live, &operations).unwrap();
    assert_eq!(result["spec"]["ports"], json!([{"port": 443}]));
    assert_eq!(result["metadata"]["annotations"], json!({"x": "y"}));
    let failing = json!([{"op": "remove", "path": "/spec"}, {"op": "test", "path": "/spec", "value": 1}]);
    assert!(patched(&live, &failing).is_err());
    assert_eq!(live, service());
}

#[test]
fn pointers_are_unescaped_once() {
    let read = |path: &str, value: &str| patched(&service(), &json!([{"op": "test", "path": path, "value": value}]));
    assert!(read("/metadata/labels/a~1b", "1").is_ok());
    assert!(read("/metadata/labels/m~0n", "2").is_ok());
    let live = json!({"~1": 1, "/": 2});
    assert!(patched(&live, &json!([{"op": "test", "path": "/~01", "value": 1}])).is_ok());
    for path in ["/metadata/labels/m~n", "/metadata/labels/m~", "/metadata/~2", "metadata", "metadata/labels"] {
        assert!(read(path, "2").is_err(), "{path}");
    }
}

#[test]
fn what_is_no_index_of_a_list_is_refused() {
    for step in
        ["01", "00", "+1", "1.0", " 1", "1e0", "a", "", "2", "-0", "-01", "-3", "--1", "18446744073709551616", "-"]
    {
        let path = format!("/spec/ports/{step}");
        for op in [json!({"op": "remove", "path": path}), json!({"op": "replace", "path": path, "value": 1})] {
            cause(&service(), &json!([op]));
        }
    }
    for step in ["01", "3", "-4", "", "a"] {
        cause(&service(), &json!([{"op": "add", "path": format!("/spec/ports/{step}"), "value": 1}]));
    }
}

#[test]
fn an_index_below_zero_counts_from_the_end() {
    let live = json!({"l": [1, 2, 3]});
    let run = |operation: Value| patched(&live, &json!([operation])).unwrap()["l"].clone();
    assert_eq!(run(json!({"op": "remove", "path": "/l/-1"})), json!([1, 2]));
    assert_eq!(run(json!({"op": "replace", "path": "/l/-3", "value": 9})), json!([9, 2, 3]));
    assert_eq!(run(json!({"op": "add", "path": "/l/-1", "value": 4})), json!([1, 2, 3, 4]));
}

#[test]
fn what_is_missing_is_refused() {
    let cases = [
        json!({"op": "remove", "path": "/spec/type"}),
        json!({"op": "remove", "path": "/status/a"}),
        json!({"op": "remove", "path": ""}),
        json!({"op": "add", "path": "/status/a", "value": 1}),
        json!({"op": "add", "path": "/spec/ports/0/port/x", "value": 1}),
        json!({"op": "replace", "path": "/status/a", "value": 1}),
        json!({"op": "move", "from": "/spec/type", "path": "/a"}),
        json!({"op": "move", "from": "/spec", "path": "/spec/a"}),
        json!({"op": "move", "from": "", "path": "/a"}),
        json!({"op": "copy", "from": "/spec/type", "path": "/a"}),
        json!({"op": "test", "path": "/status/a", "value": null}),
        json!({"op": "test", "path": "/spec/ports/2", "value": null}),
        json!({"op": "add", "path": "/a"}),
        json!({"op": "replace", "path": "/spec"}),
        json!({"op": "add", "value": 1}),
        json!({"op": "copy", "path": "/a"}),
    ];
    for operation in cases {
        cause(&service(), &json!([operation]));
    }
}

#[test]
fn replace_of_a_missing_field_adds_it_as_in_kubernetes() {
    let operations = json!([{"op": "replace", "path": "/metadata/labels/new", "value": "x"}]);
    assert_eq!(patched(&service(), &operations).unwrap()["metadata"]["labels"]["new"], "x");
}

#[test]
fn a_test_compares_by_value() {
    let live = json!({"n": 80, "f": 1.5, "m": {"a": 1, "b": [true]}, "z": null});
    for (path, value, holds) in [
        ("/n", json!(80.0), true),
        ("/n", json!("80"), false),
        ("/f", json!(1.5), true),
        ("/m", json!({"b": [true], "a": 1.0}), true),
        ("/m", json!({"a": 1}), false),
        ("/z", json!(null), true),
        ("/none", json!(null), true),
        ("/none", json!(0), false),
        ("", live.clone(), true),
    ] {
        let result = patched(&live, &json!([{"op": "test", "path": path, "value": value}]));
        assert_eq!(result.is_ok(), holds, "{path} {value}");
    }
    assert_eq!(cause(&live, &json!([{"op": "test", "path": "/n", "value": 81}])), "operation 0: 80 is not 81");
}

#[test]
fn operations_that_are_none_are_refused() {
    assert_eq!(cause(&json!({}), &json!([{"op": "frob", "path": "/a"}])), "operation 0: there is no op \"frob\"");
    cause(&json!({}), &json!([{"path": "/a"}]));
    for (operations, message) in [
        (json!([1]), "error decoding patch: json: cannot unmarshal number into Go value of type handlers.jsonPatchOp"),
        (
            json!([{"op": "add", "path": 1}]),
            "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.path of type string",
        ),
    ] {
        let refused = patched(&json!({}), &operations).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (400, message));
    }
}

#[test]
fn more_than_ten_thousand_operations_are_too_large() {
    let many = |count: usize| Value::Array(vec![json!({"op": "test", "path": "/a", "value": null}); count]);
    assert!(patched(&json!({}), &many(10_000)).is_ok());
    let refused = patched(&json!({}), &many(10_001)).unwrap_err();
    let message = "Request entity is too large: The allowed maximum operations in a JSON patch is 10000, got 10001";
    assert_eq!((refused.code, refused.message.as_str()), (413, message));
}

#[test]
fn copies_cannot_blow_up_a_document() {
    // Each doubles what is there: without a bound, 2^40 bytes.
    let doubling = Value::Array(vec![json!({"op": "copy", "from": "/l", "path": "/l/-"}); 40]);
    assert!(cause(&json!({"l": ["x"]}), &doubling).contains("copies may add"));
    let live = json!({"big": "x".repeat(1 << 20)});
    let copies = |count: usize| Value::Array(vec![json!({"op": "copy", "from": "/big", "path": "/other"}); count]);
    assert!(patched(&live, &copies(2)).is_ok());
    assert!(cause(&live, &copies(3)).contains("copies may add"));
}

#[test]
fn operations_cannot_nest_a_document_deeper_than_the_bound() {
    let nest = |count: usize| {
        (0..count).map(|at| json!({"op": "add", "path": "/a".repeat(at + 1), "value": {}})).collect::<Value>()
    };
    assert!(patched(&json!({}), &nest(MAX_DEPTH - 1)).is_ok());
    assert!(cause(&json!({}), &nest(MAX_DEPTH)).contains("deep"));
    // Each copy doubles the depth.
    let copies: Value =
        (0..8).map(|at| json!({"op": "copy", "from": "/a", "path": format!("/a{}", "/a".repeat(1 << at))})).collect();
    assert!(cause(&json!({"a": {}}), &copies).contains("deep"));
    let wrap = json!([{"op": "copy", "from": "", "path": "/b"}, {"op": "move", "from": "/a", "path": "/b/a/c"}]);
    let half = patched(&json!({}), &nest(60)).unwrap();
    assert!(
        cause(&half, &json!([wrap[0], {"op": "copy", "from": "/a", "path": format!("/b{}", "/a".repeat(60))}]))
            .contains("deep")
    );
}

#[test]
fn shifting_long_lists_over_and_over_is_refused() {
    let live = json!({"l": vec![0; 100_000]});
    let at_the_front = json!({"op": "add", "path": "/l/0", "value": 1});
    assert!(cause(&live, &Value::Array(vec![at_the_front; 1000])).contains("steps"));
    let around = json!({"op": "move", "from": "/l/0", "path": "/l/-"});
    assert!(cause(&live, &Value::Array(vec![around; 1000])).contains("steps"));
    let at_the_end = json!({"op": "add", "path": "/l/-", "value": 1});
    assert!(patched(&live, &Value::Array(vec![at_the_end; 1000])).is_ok());
}

/// Operations that make one document into another.
fn difference(from: &Value, to: &Value, path: &str, operations: &mut Vec<Value>) {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            let at = |name: &str| format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
            for name in from.keys().filter(|name| !to.contains_key(*name)) {
                operations.push(json!({"op": "remove", "path": at(name)}));
            }
            for (name, value) in to {
                match from.get(name) {
                    Some(from) => difference(from, value, &at(name), operations),
                    None => operations.push(json!({"op": "add", "path": at(name), "value": value})),
                }
            }
        }
        (Value::Array(from), Value::Array(to)) => {
            for at in (to.len()..from.len()).rev() {
                operations.push(json!({"op": "remove", "path": format!("{path}/{at}")}));
            }
            for (at, value) in to.iter().enumerate() {
                match from.get(at) {
                    Some(from) => difference(from, value, &format!("{path}/{at}"), operations),
                    None => operations.push(json!({"op": "add", "path": format!("{path}/-"), "value": value})),
                }
            }
        }
        _ if from == to => operations.push(json!({"op": "test", "path": path, "value": to})),
        _ => operations.push(json!({"op": "replace", "path": path, "value": to})),
    }
}

proptest! {
    #[test]
    fn a_difference_makes_one_document_into_the_other(from in small(), to in small()) {
        let mut operations = Vec::new();
        difference(&from, &to, "", &mut operations);
        prop_assert_eq!(apply(&from, &operations), Ok(to));
    }

    #[test]
    fn a_move_there_and_back_changes_nothing(live in document(), deep in any::<bool>()) {
        let (from, path) = if deep { ("/spec/ports", "/spec/elsewhere") } else { ("/spec", "/elsewhere") };
        let there = json!({"op": "move", "from": from, "path": path});
        let back = json!({"op": "move", "from": path, "path": from});
        if let Ok(result) = apply(&live, &[there, back]) {
            prop_assert_eq!(result, live);
        }
    }

    #[test]
    fn a_copy_is_equal_to_what_was_copied(live in document()) {
        let operations = json!([{"op": "copy", "from": "/spec", "path": "/copied"}]);
        if let Ok(result) = apply_any(Type::Json, &live, &operations, None) {
            prop_assert_eq!(&result["copied"], &live["spec"]);
        }
    }
}
