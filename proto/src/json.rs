//! Serde glue of the generated types: Kubernetes' JSON habits (empty fields are absent, null means absent, a
//! resourceVersion is a string of digits, a port is a number or a name).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::v1::{IntOrString, int_or_string};

/// True for a field's empty value, which Kubernetes leaves out.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Number that may arrive as a string of digits (`resourceVersion`), or any other value as it is.
pub fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Field,
{
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    match value {
        None => Ok(T::default()),
        Some(value) => T::from_json(value).map_err(D::Error::custom),
    }
}

/// A type that a manifest field can have.
pub trait Field: Default {
    /// Decodes a present, non-null value.
    fn from_json(value: serde_json::Value) -> Result<Self, serde_json::Error>;
}

impl<T: Default + for<'de> Deserialize<'de>> Field for T {
    fn from_json(value: serde_json::Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value)
    }
}

/// `resourceVersion` is a string in JSON.
pub fn revision_as_string<S: Serializer>(revision: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(revision)
}

impl Serialize for IntOrString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Some(int_or_string::Value::Int(number)) => serializer.serialize_i32(*number),
            Some(int_or_string::Value::Str(name)) => serializer.serialize_str(name),
            None => serializer.serialize_i32(0),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Int(i32),
            Str(String),
        }
        let value = match Form::deserialize(deserializer)? {
            Form::Int(number) => int_or_string::Value::Int(number),
            Form::Str(name) => int_or_string::Value::Str(name),
        };
        Ok(Self { value: Some(value) })
    }
}
