//! The validated vocabulary: keys, revisions, problems. What a wire message may still get wrong, a model type can't.

pub mod annotations;
mod object;
pub mod selector;

pub use object::ObjectRef;

use crate::v1::{FieldProblem, Kind, ObjectKey};
use std::fmt;

/// Namespace of a manifest that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Identity of an object; orders by kind, namespace, name, which is the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind of the object.
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
}

impl Key {
    /// Makes a key; `namespace` is dropped for cluster-scoped kinds.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = if kind.is_namespaced() { namespace.into() } else { String::new() };
        Self { kind, namespace, name: name.into() }
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> ObjectKey {
        ObjectKey { kind: self.kind as i32, namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// From the wire form; an unknown kind becomes `Unspecified`.
    #[must_use]
    pub fn from_wire(key: &ObjectKey) -> Self {
        Self::new(key.kind(), key.namespace.clone(), key.name.clone())
    }

    /// "namespace/name", or "name" for cluster-scoped kinds.
    #[must_use]
    pub fn path(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.kind.plural(), self.name)
    }
}

impl Kind {
    /// Every kind there is.
    pub const ALL: [Self; 6] = [Self::Namespace, Self::Node, Self::Pod, Self::Service, Self::Endpoints, Self::Event];

    /// Kubernetes' name of the kind.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Unspecified => "Unknown",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::Event => "Event",
        }
    }

    /// Kubernetes' resource name: plural, lower case.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::Endpoints => "endpoints",
            Self::Event => "events",
        }
    }

    /// False for Namespace and Node.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Node | Self::Unspecified => false,
            Self::Pod | Self::Service | Self::Endpoints | Self::Event => true,
        }
    }
}

/// A problem with one field of what a user gave; all of an object's problems are reported at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// JSON path as Kubernetes writes it, e.g. `spec.ports[0].port`.
    pub field: String,
    /// Kubernetes' cause reason, e.g. `FieldValueInvalid`.
    pub reason: &'static str,
    /// Kubernetes' text, e.g. `Invalid value: 0: must be between 1 and 65535, inclusive`.
    pub message: String,
}

impl Invalid {
    /// `Required value` or `Required value: detail`.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::with(field, "FieldValueRequired", "Required value", detail)
    }

    #[allow(clippy::self_named_constructors, reason = "Kubernetes' name of this very problem")]
    /// `Invalid value: <value>: detail`; strings are quoted as Go's %q does.
    pub fn invalid(field: impl Into<String>, value: impl Into<Shown>, detail: &str) -> Self {
        Self::with(field, "FieldValueInvalid", &format!("Invalid value: {}", value.into().0), detail)
    }

    /// `Unsupported value: "x": supported values: "a", "b"`.
    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let list = supported.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(", ");
        Self::with(
            field,
            "FieldValueNotSupported",
            &format!("Unsupported value: {value:?}"),
            &format!("supported values: {list}"),
        )
    }

    /// `Duplicate value: <value>`.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Shown>) -> Self {
        Self::with(field, "FieldValueDuplicate", &format!("Duplicate value: {}", value.into().0), "")
    }

    /// `Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::with(field, "FieldValueForbidden", "Forbidden", detail)
    }

    /// `Too long: may not be more than <max> bytes`.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::with(field, "FieldValueTooLong", "Too long", &format!("may not be more than {max} bytes"))
    }

    /// `Too many: <count>: must have at most <max> items`.
    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        let head = format!("Too many: {count}");
        Self::with(field, "FieldValueTooMany", &head, &format!("must have at most {max} items"))
    }

    fn with(field: impl Into<String>, reason: &'static str, head: &str, detail: &str) -> Self {
        let message = if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") };
        Self { field: field.into(), reason, message }
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> FieldProblem {
        FieldProblem { field: self.field.clone(), reason: self.reason.to_owned(), message: self.message.clone() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// A value as an error message shows it.
pub struct Shown(pub String);
impl From<&str> for Shown {
    fn from(value: &str) -> Self {
        Self(format!("{value:?}"))
    }
}
impl From<&String> for Shown {
    fn from(value: &String) -> Self {
        Self(format!("{value:?}"))
    }
}
impl From<i32> for Shown {
    fn from(value: i32) -> Self {
        Self(value.to_string())
    }
}
impl From<i64> for Shown {
    fn from(value: i64) -> Self {
        Self(value.to_string())
    }
}
impl From<u64> for Shown {
    fn from(value: u64) -> Self {
        Self(value.to_string())
    }
}
