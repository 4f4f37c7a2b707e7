//! What keeps an applied configuration from being merged: fields that others own with other values.
//!
//! The texts are those of apimachinery `managedfields/internal/conflict.go`, which clients and people read.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::managers::{Entry, Operation};
use super::set::{Path, Set};

/// A field that another manager owns and the configuration would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who owns it.
    pub manager: String,
    /// How.
    pub operation: Operation,
    /// The version that the owner wrote.
    pub api_version: String,
    /// When the owner last wrote. Kubernetes does not put it in the message.
    pub time: Option<String>,
    /// The subresource that the owner wrote by, or empty.
    pub subresource: String,
    /// The field.
    pub path: Path,
}

impl Conflict {
    fn owner(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// All conflicts of an applied configuration; never none. Displayed as the message of the error 409.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl Conflicts {
    /// The causes of the error: `details.causes` of a `Status`.
    #[must_use]
    pub fn causes(&self) -> Value {
        let cause = |one: &Conflict| {
            let (message, field) = (format!("conflict with {}", one.owner()), one.path.to_string());
            json!({ "reason": "FieldManagerConflict", "message": message, "field": field })
        };
        Value::Array(self.0.iter().map(cause).collect())
    }

    /// One for each of these fields of a manager.
    pub(super) fn with(entry: &Entry, fields: &Set) -> Vec<Conflict> {
        let one = |path| Conflict {
            manager: entry.manager.clone(),
            operation: entry.operation,
            api_version: entry.api_version.clone(),
            time: entry.time.clone(),
            subresource: entry.subresource.clone(),
            path,
        };
        fields.paths().into_iter().map(one).collect()
    }
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0.as_slice() {
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {}", one.owner(), one.path);
        }
        let mut owners: BTreeMap<_, Vec<&Conflict>> = BTreeMap::new();
        for one in &self.0 {
            let version = if one.operation == Operation::Update { one.api_version.as_str() } else { "" };
            owners.entry((&one.manager, one.operation, version, &one.subresource)).or_default().push(one);
        }
        let mut lines = Vec::new();
        for (_, all) in owners {
            lines.extend(all.first().map(|one| format!("conflicts with {}:", one.owner())));
            lines.extend(all.iter().map(|one| format!("- {}", one.path)));
        }
        write!(f, "Apply failed with {} conflicts: {}", self.0.len(), lines.join("\n"))
    }
}

impl std::error::Error for Conflicts {}
