//! Patches of Kubernetes objects: RFC 6902 (JSON patch), RFC 7396 (merge patch) and Kubernetes' strategic merge patch. Pure.
//!
//! Laws: the live object is never changed, only a copy, so that a refused patch has no effect. Objects stay objects. A document or
//! patch more than [`MAX_DEPTH`] deep is refused, and so is a JSON patch that would make one, so that nothing here recurses
//! deeper than that.

mod json;
mod key;
mod list;
mod merge;
mod strategic;
#[cfg(test)]
mod tests;
mod text;

use super::place::{List, Place};
use serde_json::{Map, Value};
use std::fmt;

/// How deep lists and maps may nest in the live object, the patch and the result. Below what `serde_json` reads (128); the
/// deepest of Kubernetes' own kinds needs fewer than 30.
pub const MAX_DEPTH: usize = 100;

/// How many operations a JSON patch may have (Kubernetes: `maxJSONPatchOperations` of endpoints/handlers/patch.go).
pub const MAX_OPERATIONS: usize = 10_000;

/// How many bytes of JSON the `copy` operations of one JSON patch may add (Kubernetes: `JSONPatchMaxCopyBytes`, 3 MiB).
pub const MAX_COPIED: u64 = 3 << 20;

/// How many list items, fields and values the operations of one JSON patch may visit or shift.
pub const MAX_STEPS: u64 = 16 << 20;

/// What Kubernetes says of every 422 of this kind (`NewGenericServerResponse` of api/errors); it keeps the cause to itself.
const REJECTED: &str = "the server rejected our request due to an error in our request";

/// What a patch is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// RFC 6902: a list of operations.
    Json,
    /// RFC 7396: the changed fields; lists are replaced.
    Merge,
    /// Kubernetes' own: the changed fields; lists merge as the schema says.
    Strategic,
}

impl Type {
    /// By the `Content-Type` of a PATCH; parameters are ignored, names are compared without case (RFC 9110, 8.3.1).
    #[must_use]
    pub fn of_content_type(value: &str) -> Option<Self> {
        let name = value.split(';').next().unwrap_or_default().trim();
        let known = [
            ("application/json-patch+json", Self::Json),
            ("application/merge-patch+json", Self::Merge),
            ("application/strategic-merge-patch+json", Self::Strategic),
        ];
        known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, kind)| kind)
    }
}

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status: 400 (the patch is malformed), 413 (too many operations) or 422 (it does not fit the object).
    pub code: u16,
    /// The message of the `Status`.
    pub message: String,
    /// What exactly is wrong, if the message does not say so: Kubernetes answers such a 422 with one text for all.
    pub cause: Option<String>,
}

impl Refused {
    fn malformed(message: impl Into<String>) -> Self {
        Self { code: 400, message: message.into(), cause: None }
    }

    fn too_large(message: &str) -> Self {
        Self { code: 413, message: format!("Request entity is too large: {message}"), cause: None }
    }

    fn unfit(message: impl Into<String>) -> Self {
        Self { code: 422, message: message.into(), cause: None }
    }

    fn rejected(cause: impl Into<String>) -> Self {
        Self { code: 422, message: REJECTED.to_owned(), cause: Some(cause.into()) }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{}: {cause}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Refused {}

/// The live object with the patch applied; `place` (the schema of the object) is read for strategic merge patches only, and
/// without one their lists are replaced.
///
/// # Errors
/// [`Refused`], when the patch is malformed, does not fit the object, or exceeds a bound of this module.
pub fn apply(kind: Type, live: &Value, patch: &Value, place: Option<Place<'_>>) -> Result<Value, Refused> {
    if deeper_than(patch, MAX_DEPTH) {
        return Err(Refused::malformed(format!("the patch nests more than {MAX_DEPTH} deep")));
    }
    if deeper_than(live, MAX_DEPTH) {
        return Err(Refused::rejected(format!("the object nests more than {MAX_DEPTH} deep")));
    }
    let patched = match (kind, patch) {
        (Type::Json, Value::Array(operations)) => json::apply(live, operations)?,
        (Type::Merge, Value::Object(_)) => merge::apply(live, patch),
        (Type::Strategic, Value::Object(fields)) => strategic::apply(live, fields, place)?,
        _ => return Err(wrong_root(kind, patch)),
    };
    match patched {
        Value::Object(_) => Ok(patched),
        other => Err(Refused::rejected(format!("the patch makes the object a {}", text::kind(&other)))),
    }
}

/// In the words of Go's decoder, as Kubernetes answers.
fn wrong_root(kind: Type, patch: &Value) -> Refused {
    let got = text::kind(patch);
    Refused::malformed(match kind {
        Type::Json => {
            format!("error decoding patch: json: cannot unmarshal {got} into Go value of type []handlers.jsonPatchOp")
        }
        Type::Merge => {
            format!(
                "error decoding patch: json: cannot unmarshal {got} into Go value of type map[string]interface {{}}"
            )
        }
        Type::Strategic => format!("json: cannot unmarshal {got} into Go value of type map[string]interface {{}}"),
    })
}

/// True if lists and maps nest deeper than that; looks no deeper itself.
fn deeper_than(value: &Value, depth: usize) -> bool {
    let deeper = |inner: &Value| depth.checked_sub(1).is_none_or(|rest| deeper_than(inner, rest));
    match value {
        Value::Array(items) => depth == 0 || items.iter().any(deeper),
        Value::Object(fields) => depth == 0 || fields.values().any(deeper),
        _ => false,
    }
}

/// Fields of an object, or none.
fn fields_of(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
