//! Places in an object, and what Kubernetes' OpenAPI definitions say of each: fields, items, how lists and maps merge. Pure.
//!
//! Definitions are JSON by name ("io.k8s.api.core.v1.Service"), in OpenAPI's form; a `$ref`, alone or in an `allOf`, is
//! followed by its last segment.

use serde_json::{Map, Value};

/// Definitions by name.
pub type Definitions = Map<String, Value>;

/// How a list merges in server-side apply (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List<'a> {
    /// As a whole.
    Atomic,
    /// Of scalars, each of which is there once.
    Set,
    /// Of objects, told apart by these fields.
    Map(Vec<&'a str>),
}

/// A place in an object.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    definitions: &'a Definitions,
    /// The schema where it is said.
    said: &'a Value,
    /// The definition that it refers to; `said` itself if none.
    meant: &'a Value,
}

impl<'a> Place<'a> {
    /// The whole of an object.
    #[must_use]
    pub fn of(definitions: &'a Definitions, name: &str) -> Option<Self> {
        let meant = definitions.get(name)?;
        Some(Self { definitions, said: meant, meant })
    }

    fn at(self, said: &'a Value) -> Self {
        let refers = |schema: &'a Value| schema.get("$ref").and_then(Value::as_str);
        let all = said.get("allOf").and_then(Value::as_array).and_then(|all| all.first());
        let name = refers(said).or_else(|| all.and_then(refers)).and_then(|path| path.rsplit('/').next());
        let meant = name.and_then(|name| self.definitions.get(name)).unwrap_or(said);
        Self { definitions: self.definitions, said, meant }
    }

    /// A field of an object, or a value of a map; `None`: the schema has none of this name.
    #[must_use]
    pub fn field(self, name: &str) -> Option<Self> {
        let own = self.meant.get("properties").and_then(|fields| fields.get(name));
        let any = || self.meant.get("additionalProperties").filter(|any| any.is_object());
        own.or_else(any).map(|said| self.at(said))
    }

    /// An item of a list.
    #[must_use]
    pub fn item(self) -> Option<Self> {
        self.meant.get("items").map(|said| self.at(said))
    }

    /// A word of the schema such as `type` or `x-kubernetes-list-type`: of the place itself, else of what it refers to.
    #[must_use]
    pub fn says(self, word: &str) -> Option<&'a Value> {
        self.said.get(word).or_else(|| self.meant.get(word))
    }

    /// How the list here merges in server-side apply; atomic where nothing is said.
    #[must_use]
    pub fn list(self) -> List<'a> {
        match self.says("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => List::Set,
            Some("map") => {
                let keys = self.says("x-kubernetes-list-map-keys").and_then(Value::as_array);
                List::Map(keys.into_iter().flatten().filter_map(Value::as_str).collect())
            }
            _ => List::Atomic,
        }
    }

    /// True if the map or object here is owned as a whole (`x-kubernetes-map-type: atomic`).
    #[must_use]
    pub fn is_atomic_map(self) -> bool {
        self.says("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic")
    }

    /// The field that tells items of the list here apart in a strategic merge patch (`x-kubernetes-patch-merge-key`); `None`:
    /// items are scalars, or the list is replaced.
    #[must_use]
    pub fn merge_key(self) -> Option<&'a str> {
        self.says("x-kubernetes-patch-merge-key").and_then(Value::as_str)
    }

    /// True if a strategic merge patch has this strategy here: `merge`, `replace` or `retainKeys`
    /// (`x-kubernetes-patch-strategy`, several joined by commas).
    #[must_use]
    pub fn has_strategy(self, strategy: &str) -> bool {
        let said = self.says("x-kubernetes-patch-strategy").and_then(Value::as_str).unwrap_or_default();
        said.split(',').any(|one| one == strategy)
    }
}
