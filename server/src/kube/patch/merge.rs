//! RFC 7396, JSON merge patch: null deletes a field, maps merge, all else replaces what is there.
//!
//! Laws: applying a patch twice is applying it once; what the patch does not name stays, in its order. Work is linear in the
//! object and the patch: deletions are one sweep, whatever their number.

use serde_json::{Map, Value};

/// The document with the patch applied.
pub(super) fn apply(live: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut fields = super::fields_of(live);
    merge(&mut fields, patch);
    Value::Object(fields)
}

fn merge(live: &mut Map<String, Value>, patch: &Map<String, Value>) {
    live.retain(|name, _| !patch.get(name).is_some_and(Value::is_null));
    for (name, value) in patch {
        match (value, live.get_mut(name)) {
            (Value::Null, _) => {}
            (Value::Object(patch), Some(Value::Object(live))) => merge(live, patch),
            // Into nothing rather than a copy: a patch's nulls delete, they are never stored.
            _ => drop(live.insert(name.clone(), apply(&Value::Null, value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{document, small};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn fields_are_set_merged_and_deleted() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": 1, "b": 2}), json!({"a": null}), json!({"b": 2})),
            (json!({"m": {"a": 1, "b": 2}}), json!({"m": {"a": null, "c": 3}}), json!({"m": {"b": 2, "c": 3}})),
            (json!({"m": 1}), json!({"m": {"a": 1, "b": null}}), json!({"m": {"a": 1}})),
            (json!({"m": {"a": 1}}), json!({"m": 1}), json!({"m": 1})),
            (json!({}), json!({"a": {"b": {"c": null}}}), json!({"a": {"b": {}}})),
        ];
        for (live, patch, patched) in cases {
            assert_eq!(apply(&live, &patch), patched, "{patch} on {live}");
        }
    }

    #[test]
    fn lists_are_replaced_and_keep_their_nulls() {
        assert_eq!(apply(&json!({"l": [1, 2, 3]}), &json!({"l": [4]})), json!({"l": [4]}));
        assert_eq!(apply(&json!({"l": []}), &json!({"l": [null, {"a": null}]})), json!({"l": [null, {"a": null}]}));
        assert_eq!(apply(&json!({"l": {"a": 1}}), &json!({"l": [1]})), json!({"l": [1]}));
    }

    #[test]
    fn a_patch_that_is_no_map_takes_the_place_of_the_document() {
        assert_eq!(apply(&json!({"a": 1}), &json!(null)), json!(null));
        assert_eq!(apply(&json!({"a": 1}), &json!([1])), json!([1]));
        assert_eq!(apply(&json!([1]), &json!({"a": 1, "b": null})), json!({"a": 1}));
    }

    #[test]
    fn fields_stay_in_their_order() {
        let patched = apply(&json!({"a": 1, "b": 2, "c": 3, "d": 4}), &json!({"e": 5, "b": null, "a": 0}));
        assert_eq!(patched.to_string(), r#"{"a":0,"c":3,"d":4,"e":5}"#);
    }

    #[test]
    fn all_fields_of_a_large_map_can_be_deleted() {
        let many = |value: &Value| Value::Object((0..50_000).map(|at| (format!("f{at}"), value.clone())).collect());
        assert_eq!(apply(&many(&json!(1)), &many(&Value::Null)), json!({}));
    }

    proptest! {
        #[test]
        fn twice_is_once(live in document(), patch in small()) {
            let once = apply(&live, &patch);
            prop_assert_eq!(apply(&once, &patch), once);
        }

        #[test]
        fn what_the_patch_does_not_name_stays(live in document(), patch in small()) {
            let patched = apply(&live, &patch);
            if let (Some(live), Some(patch)) = (live.as_object(), patch.as_object()) {
                for (name, value) in live.iter().filter(|(name, _)| !patch.contains_key(*name)) {
                    prop_assert_eq!(patched.get(name), Some(value));
                }
            }
        }

        #[test]
        fn no_null_of_a_patch_is_stored_outside_lists(patch in small()) {
            fn has_null(value: &Value) -> bool {
                value.as_object().is_some_and(|fields| fields.values().any(|value| value.is_null() || has_null(value)))
            }
            let patched = apply(&json!({}), &patch);
            prop_assert!(patch.is_null() || !has_null(&patched));
        }
    }
}
