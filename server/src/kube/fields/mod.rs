//! Server-side apply: who owns which field of an object, and how an applied configuration merges into it.
//!
//! Pure over `serde_json::Value`, with a [`Place`](super::place::Place) as schema. The rules are those of Kubernetes'
//! structured-merge-diff and of apimachinery's `managedfields`; one version of each kind is assumed, so nothing is converted.
//! Every walk goes along a value whose depth was checked against [`MAX_DEPTH`] first; items of lists are told apart in ordered
//! maps, so the work is O(n log n) in the size of the object for each of its managers.

mod apply;
mod conflicts;
mod managers;
mod merge;
mod set;
mod shape;

pub use apply::{By, Refused, apply, update};
pub use conflicts::{Conflict, Conflicts};
pub use managers::{Entry, MANAGER_MAX, Managers, Operation, UPDATES_MAX, check_manager, manager_of};
pub use set::{Number, Path, Scalar, Set, Step};
pub use shape::owned;

use serde_json::Value;

/// How deep an object, a configuration or a `fieldsV1` may nest. A JSON parser's own bound is above this (128 in `serde_json`).
pub const MAX_DEPTH: usize = 100;

/// True if nothing in the value lies deeper than [`MAX_DEPTH`].
fn is_shallow(value: &Value) -> bool {
    fn within(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left > 0 && items.iter().all(|item| within(item, left - 1)),
            Value::Object(fields) => left > 0 && fields.values().all(|field| within(field, left - 1)),
            _ => true,
        }
    }
    within(value, MAX_DEPTH)
}

#[cfg(test)]
mod tests;
