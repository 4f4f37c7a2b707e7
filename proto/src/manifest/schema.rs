//! Kubernetes' own schema as the judge of fields: what survives a round trip through its type is known.

use crate::model::Invalid;
use crate::v1::Kind;
use k8s_openapi::api::core::v1 as core;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Fields of a document beyond which the place of a wrong type isn't looked for: each costs a decoding.
const MAX_SEARCHED: usize = 1_000;

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
        Kind::Event => round_trip::<core::Event>(manifest),
        Kind::Unspecified => Ok(Value::Null),
    }?;
    let mut unknown = Vec::new();
    compare(manifest, &known, "", &mut unknown);
    Ok(unknown)
}

fn round_trip<T: DeserializeOwned + Serialize>(manifest: &Value) -> Result<Value, Invalid> {
    let typed: T =
        serde_json::from_value(manifest.clone()).map_err(|error| wrong_type::<T>(manifest, &error.to_string()))?;
    serde_json::to_value(&typed).map_err(|error| wrong_type::<T>(manifest, &error.to_string()))
}

fn wrong_type<T: DeserializeOwned>(manifest: &Value, message: &str) -> Invalid {
    let place = if fields(manifest) > MAX_SEARCHED { String::new() } else { place::<T>(manifest) };
    let field = if place.is_empty() { "<document>".to_owned() } else { place };
    Invalid { field, reason: "FieldValueTypeInvalid", message: format!("Invalid value: {message}") }
}

/// serde_json says what is wrong but not where: it is the field without which the rest decodes. With several wrong ones
/// it is what they have in common, empty for the whole document.
fn place<T: DeserializeOwned>(manifest: &Value) -> String {
    let decodes = |value: Value| serde_json::from_value::<T>(value).is_ok();
    let (mut path, mut pointer) = (String::new(), String::new());
    while let Some(inner) = manifest.pointer(&pointer) {
        let names: Vec<String> = match inner {
            Value::Object(map) => map.keys().cloned().collect(),
            Value::Array(list) => (0..list.len()).map(|index| index.to_string()).collect(),
            _ => Vec::new(),
        };
        let guilty = names.into_iter().find(|name| {
            let mut rest = manifest.clone();
            match rest.pointer_mut(&pointer) {
                Some(Value::Object(map)) => drop(map.remove(name)),
                Some(Value::Array(list)) => drop(name.parse::<usize>().map(|index| list.remove(index))),
                _ => {}
            }
            decodes(rest)
        });
        let Some(name) = guilty else { break };
        match inner {
            Value::Array(_) => path.push_str(&format!("[{name}]")),
            _ if path.is_empty() => path.push_str(&name),
            _ => path.push_str(&format!(".{name}")),
        }
        pointer.push_str(&format!("/{}", name.replace('~', "~0").replace('/', "~1")));
    }
    path
}

fn fields(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.values().map(fields).sum::<usize>() + map.len(),
        Value::Array(list) => list.iter().map(fields).sum::<usize>() + list.len(),
        _ => 0,
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
