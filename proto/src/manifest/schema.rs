//! Kubernetes' own schema as the judge of fields: what survives a round trip through its type is known.

use crate::model::Invalid;
use crate::v1::Kind;
use k8s_openapi::api::core::v1 as core;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Paths of the fields that a kind's schema doesn't have.
///
/// # Errors
/// A field of the wrong type.
pub fn unknown_fields(kind: Kind, manifest: &Value) -> Result<Vec<String>, Invalid> {
    let known = match kind {
        Kind::Namespace => round_trip::<core::Namespace>(manifest),
        Kind::Node => round_trip::<core::Node>(manifest),
        Kind::Pod => round_trip::<core::Pod>(manifest),
        Kind::Service => round_trip::<core::Service>(manifest),
        Kind::Endpoints => round_trip::<core::Endpoints>(manifest),
        Kind::Unspecified => Ok(Value::Null),
    }?;
    let mut unknown = Vec::new();
    compare(manifest, &known, "", &mut unknown);
    Ok(unknown)
}

fn round_trip<T: DeserializeOwned + Serialize>(manifest: &Value) -> Result<Value, Invalid> {
    let typed: T =
        serde_json::from_value(manifest.clone()).map_err(|error| wrong_type(manifest, &error.to_string()))?;
    serde_json::to_value(&typed).map_err(|error| wrong_type(manifest, &error.to_string()))
}

/// serde_json says what is wrong but not where; the place is found by leaving fields out.
fn wrong_type(_: &Value, message: &str) -> Invalid {
    Invalid {
        field: "<document>".into(),
        reason: "FieldValueTypeInvalid",
        message: format!("Invalid value: {message}"),
    }
}

/// Compares key by key; null is as good as absent.
fn compare(given: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(inner) => compare(value, inner, &path, unknown),
                    None if value.is_null() => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                compare(given, known, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}
