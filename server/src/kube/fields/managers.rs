//! The list `metadata.managedFields`: who owns which fields of an object.
//!
//! Two entries are of one manager if they have the same name, operation and subresource, and for updates the same version
//! (apimachinery `managedfields/internal/managedfields.go`). Laws: what is written is read back equal; written entries are in
//! Kubernetes' order; a list that cannot be read is refused as a whole.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::set::Set;

/// How long a manager's name may be, in bytes (apimachinery `FieldManagerMaxLength`).
pub const MANAGER_MAX: usize = 128;

/// How many entries of updates an object keeps (apimachinery `DefaultMaxUpdateManagers`); older ones are made one.
pub const UPDATES_MAX: usize = 10;

/// The manager of updates that were made one.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own its fields; in the order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub manager: String,
    /// How it owns them.
    pub operation: Operation,
    /// The version that the fields are of, as "apps/v1".
    pub api_version: String,
    /// When it last changed them (RFC 3339, seconds).
    pub time: Option<String>,
    /// The fields.
    pub fields: Set,
    /// The subresource that they were written by; empty for the object itself.
    pub subresource: String,
}

impl Entry {
    /// What tells its manager apart.
    pub(super) fn id(&self) -> (&str, Operation, &str, &str) {
        let version = if self.operation == Operation::Update { self.api_version.as_str() } else { "" };
        (&self.manager, self.operation, version, &self.subresource)
    }

    fn seconds(&self) -> i64 {
        let time = self.time.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
        time.map_or(0, Timestamp::as_second)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(entry: &Value) -> Result<Self, String> {
        let Value::Object(entry) = entry else { return Err("a managed fields entry is an object".to_owned()) };
        let text = |name: &str| match entry.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(format!("{name} of a managed fields entry is a string")),
        };
        let operation = match text("operation")?.as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let (api_version, fields_type, manager) = (text("apiVersion")?, text("fieldsType")?, text("manager")?);
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        if fields_type != "FieldsV1" {
            return Err(format!("invalid fieldsType {fields_type:?} in managed fields entry"));
        }
        if manager.len() > MANAGER_MAX {
            return Err(format!("manager of a managed fields entry has more than {MANAGER_MAX} bytes"));
        }
        let time = match text("time")?.as_str() {
            "" => None,
            time => {
                let time: Timestamp = time.parse().map_err(|_| format!("{time:?} is no time of RFC 3339"))?;
                Some(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
            }
        };
        let fields = entry.get("fieldsV1").filter(|fields| !fields.is_null());
        let fields = fields.map_or_else(|| Ok(Set::default()), Set::from_json)?;
        Ok(Self { manager, operation, api_version, time, fields, subresource: text("subresource")? })
    }

    /// Writes the entry, its fields in the order of Kubernetes' type.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut entry = Map::new();
        let mut put = |name: &str, text: &str| {
            if !text.is_empty() {
                entry.insert(name.to_owned(), json!(text));
            }
        };
        put("manager", &self.manager);
        put("operation", self.operation.as_str());
        put("apiVersion", &self.api_version);
        put("time", self.time.as_deref().unwrap_or_default());
        put("fieldsType", "FieldsV1");
        entry.insert("fieldsV1".to_owned(), self.fields.to_json());
        if !self.subresource.is_empty() {
            entry.insert("subresource".to_owned(), json!(self.subresource));
        }
        Value::Object(entry)
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managers(pub Vec<Entry>);

impl Managers {
    /// Reads `metadata.managedFields` of an object; without it there are none. Of two entries of one manager the later holds.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(object: &Value) -> Result<Self, String> {
        let entries = match object.get("metadata").and_then(|metadata| metadata.get("managedFields")) {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err("metadata.managedFields is a list".to_owned()),
        };
        let entries = entries.iter().map(Entry::from_json).collect::<Result<Vec<_>, _>>()?;
        let keyed = |entry: Entry| {
            let (manager, operation, version, subresource) = entry.id();
            ((manager.to_owned(), operation, version.to_owned(), subresource.to_owned()), entry)
        };
        let latest: BTreeMap<_, Entry> = entries.into_iter().map(keyed).collect();
        let mut managers = Self(latest.into_values().collect());
        managers.sort();
        Ok(managers)
    }

    /// True if nobody owns anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Kubernetes' order: applies before updates, the older first, then by name.
    fn sort(&mut self) {
        self.0.sort_by_cached_key(|entry| {
            let names = (entry.manager.clone(), entry.api_version.clone(), entry.subresource.clone());
            (entry.operation, entry.seconds(), names)
        });
    }

    /// Writes the list, in Kubernetes' order.
    #[must_use]
    pub fn to_json(mut self) -> Value {
        self.sort();
        Value::Array(self.0.iter().map(Entry::to_json).collect())
    }

    /// Takes out the entry of a manager.
    pub(super) fn take(&mut self, id: (&str, Operation, &str, &str)) -> Option<Entry> {
        let at = self.0.iter().position(|entry| entry.id() == id)?;
        Some(self.0.remove(at))
    }

    /// Takes fields from everybody; who has none left is gone.
    pub(super) fn lose(&mut self, fields: &Set) {
        for entry in &mut self.0 {
            entry.fields = entry.fields.difference(fields);
        }
        self.0.retain(|entry| !entry.fields.is_empty());
    }

    /// Makes the oldest updates of a version one entry until at most [`UPDATES_MAX`] are left (apimachinery
    /// `capmanagers.go`); more versions than that keep an entry each.
    pub(super) fn cap_updates(&mut self) {
        let (mut updates, applies): (Vec<Entry>, Vec<Entry>) =
            std::mem::take(&mut self.0).into_iter().partition(|entry| entry.operation == Operation::Update);
        self.0 = applies;
        updates.sort_by_cached_key(|entry| (entry.seconds(), entry.manager.clone(), entry.subresource.clone()));
        let mut over = updates.len().saturating_sub(UPDATES_MAX);
        let mut oldest: BTreeMap<String, Entry> = BTreeMap::new();
        for entry in updates {
            match oldest.get_mut(&entry.api_version) {
                None => drop(oldest.insert(entry.api_version.clone(), entry)),
                Some(first) if over > 0 || (entry.manager == ANCIENT && first.manager == ANCIENT) => {
                    first.fields = first.fields.union(&entry.fields);
                    first.time = entry.time;
                    ANCIENT.clone_into(&mut first.manager);
                    first.subresource.clear();
                    over = over.saturating_sub(1);
                }
                Some(_) => self.0.push(entry),
            }
        }
        self.0.extend(oldest.into_values());
    }
}

/// What is wrong with a manager's name that a client gives; the empty name is none (apimachinery `ValidateFieldManager`).
///
/// # Errors
/// The text for the field `fieldManager`.
pub fn check_manager(name: &str) -> Result<(), String> {
    if name.len() > MANAGER_MAX {
        return Err(format!("Too long: may not be more than {MANAGER_MAX} bytes"));
    }
    match name.char_indices().find(|(_, char)| !is_printable(*char)) {
        Some((at, char)) => {
            Err(format!("Invalid value: {name:?}: invalid character U+{:04X} (at position {at})", u32::from(char)))
        }
        None => Ok(()),
    }
}

fn is_printable(char: char) -> bool {
    char == ' ' || !(char.is_control() || char.is_whitespace())
}

/// Who writes: the name that the client gives, else what its `User-Agent` has before the first slash (apiserver
/// `managerOrUserAgent`).
#[must_use]
pub fn manager_of(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let mut name = String::new();
    for char in user_agent.split('/').next().unwrap_or_default().chars().filter(|char| is_printable(*char)) {
        if name.len() + char.len_utf8() > MANAGER_MAX {
            break;
        }
        name.push(char);
    }
    name
}
