//! What tells scalars apart, and when two values are the same.
//!
//! Law: numbers are told apart by value, so that 80 and 80.0 are one number, without rounding (RFC 6902, 4.6).

use serde_json::{Number, Value};

/// A scalar, by value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Bool(bool),
    Whole(i128),
    /// Bits of a number that is not whole, or beyond `Whole`.
    Float(u64),
    Text(String),
}

impl Key {
    /// `None`: null, a list or a map.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(value) => Some(Self::of_number(value)),
            Value::String(value) => Some(Self::Text(value.clone())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn of_number(number: &Number) -> Self {
        if let Some(whole) = number.as_i128() {
            return Self::Whole(whole);
        }
        let float = number.as_f64().unwrap_or_default();
        // Every whole number below 2^126 that a float can hold, the conversion holds exactly.
        if float.fract() == 0.0 && float.abs() < 2_f64.powi(126) {
            Self::Whole(float as i128)
        } else {
            Self::Float(float.to_bits())
        }
    }
}

/// True if two values are equal: numbers by value, maps without regard to the order of fields.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => Key::of_number(left) == Key::of_number(right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, left)| right.get(name).is_some_and(|right| same(left, right)))
        }
        _ => left == right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_equal_by_value_and_without_rounding() {
        assert!(same(&json!(80), &json!(80.0)));
        assert!(same(&json!(0), &json!(-0.0)));
        assert!(same(&json!(1e300), &json!(1e300)));
        assert!(!same(&json!(9_007_199_254_740_993_u64), &json!(9_007_199_254_740_992.0)));
        assert!(!same(&json!(u64::MAX), &json!(-1)));
        assert!(!same(&json!(1), &json!("1")));
    }

    #[test]
    fn maps_are_equal_in_any_order_of_fields_but_lists_are_not() {
        assert!(same(&json!({"a": 1, "b": [1.0]}), &json!({"b": [1], "a": 1})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 1, "b": null})));
        assert!(!same(&json!([1, 2]), &json!([2, 1])));
    }
}
