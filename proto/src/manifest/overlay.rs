//! What a manifest says beyond our messages, as a JSON overlay: objects by key, arrays by index (null = nothing here).
//!
//! Law: `join(ours, difference(whole, ours)) == whole`, for the parts of `whole` that `ours` doesn't contradict.

use serde_json::{Map, Value};

/// What `whole` has and `ours` has not. `None` = nothing.
pub fn difference(whole: &Value, ours: &Value) -> Option<Value> {
    match (whole, ours) {
        (Value::Object(whole), Value::Object(ours)) => {
            let mut rest = Map::new();
            for (key, value) in whole {
                let missing = match ours.get(key) {
                    None if value.is_null() => None,
                    None => Some(value.clone()),
                    Some(inner) => difference(value, inner),
                };
                if let Some(missing) = missing {
                    rest.insert(key.clone(), missing);
                }
            }
            (!rest.is_empty()).then_some(Value::Object(rest))
        }
        (Value::Array(whole), Value::Array(ours)) if whole.len() == ours.len() => {
            let rest: Vec<Value> =
                whole.iter().zip(ours).map(|(whole, ours)| difference(whole, ours).unwrap_or(Value::Null)).collect();
            rest.iter().any(|one| !one.is_null()).then_some(Value::Array(rest))
        }
        _ => None,
    }
}

/// The same value with the keys of every object in order: equal contents are equal texts.
#[must_use]
pub fn canonical(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> =
                map.into_iter().map(|(key, value)| (key, canonical(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(canonical).collect()),
        other => other,
    }
}

/// `ours` with what the overlay adds; where both say something, ours counts.
pub fn join(ours: &mut Value, overlay: &Value) {
    match (ours, overlay) {
        (Value::Object(ours), Value::Object(overlay)) => {
            for (key, value) in overlay {
                match ours.get_mut(key) {
                    Some(inner) => join(inner, value),
                    None => {
                        ours.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(ours), Value::Array(overlay)) => {
            for (ours, overlay) in ours.iter_mut().zip(overlay) {
                join(ours, overlay);
            }
        }
        _ => {}
    }
}
