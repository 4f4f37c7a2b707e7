//! The messages of `messages.txt`, and the JSON forms of those that have one of their own. Read once.

use jiff::Timestamp;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// All messages.
pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::read(include_str!("messages.txt")));

/// What a field is one or several of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    String,
    Bytes,
    Int32,
    Int64,
    Bool,
    /// A message, by its place in the schema.
    Message(usize),
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    One,
    List,
    /// A map by string.
    ByName,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    number: u32,
    /// In JSON; empty: the message's fields are those of the one that holds it.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) of: Type,
    /// A zero differs from an absent field, or may not be absent.
    pub(super) keeps_zero: bool,
}

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    group_version: &'static str,
    pub(super) name: &'static str,
    /// If it isn't an object in JSON.
    pub(super) form: Option<Form>,
    fields: Vec<Field>,
}

impl Message {
    /// The field of a number.
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    /// Kinds have metadata; `DeleteOptions` are one without.
    fn is_kind(&self) -> bool {
        let has_metadata = self.fields.iter().any(|field| field.name == "metadata");
        (has_metadata && !self.group_version.starts_with("meta") && !self.name.ends_with("Template"))
            || self.name == DELETE_OPTIONS
    }
}

const DELETE_OPTIONS: &str = "DeleteOptions";
const META: &str = "meta.k8s.io/v1";

/// The messages, and where each is.
#[derive(Debug)]
pub(super) struct Schema {
    messages: Vec<Message>,
    places: BTreeMap<(&'static str, &'static str), usize>,
}

impl Schema {
    fn read(text: &'static str) -> Self {
        let mut schema = Self { messages: Vec::new(), places: BTreeMap::new() };
        let mut group_version = "";
        let mut words = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(next) = line.strip_prefix('@') {
                group_version = next.trim();
                continue;
            }
            let mut parts = line.split_ascii_whitespace();
            if !line.starts_with(' ')
                && let Some(name) = parts.next()
            {
                let place = schema.messages.len();
                schema.places.insert((group_version, name), place);
                let form = group_version.is_empty().then(|| Form::named(name)).flatten();
                schema.messages.push(Message { group_version, name, form, fields: Vec::new() });
            }
            words.extend(parts.map(|word| (schema.messages.len().saturating_sub(1), word)));
        }
        for (place, word) in words {
            let group_version = schema.messages.get(place).map_or("", |message| message.group_version);
            let field = schema.read_field(group_version, word);
            if let (Some(message), Some(field)) = (schema.messages.get_mut(place), field) {
                message.fields.push(field);
            }
        }
        schema
    }

    /// `None`: the text is wrong, which a test rules out.
    fn read_field(&self, group_version: &str, word: &'static str) -> Option<Field> {
        let (number, rest) = word.split_once(':')?;
        let (name, of) = rest.split_once('=')?;
        let (of, keeps_zero) = of.strip_suffix('!').map_or((of, false), |of| (of, true));
        let (shape, of) = match of.split_at_checked(1)? {
            ("[", of) => (Shape::List, of),
            ("{", of) => (Shape::ByName, of),
            _ => (Shape::One, of),
        };
        let of = match of {
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "int32" => Type::Int32,
            "int64" => Type::Int64,
            "bool" => Type::Bool,
            of => {
                let (group_version, of) = of.rsplit_once('.').unwrap_or((group_version, of));
                Type::Message(*self.places.get(&(group_version, of)).or_else(|| self.places.get(&("", of)))?)
            }
        };
        Some(Field { number: number.parse().ok()?, name, shape, of, keeps_zero })
    }

    /// The message at a place.
    pub(super) fn at(&self, place: usize) -> Result<&Message, String> {
        self.messages.get(place).ok_or_else(|| "no such message".to_owned())
    }

    /// The message of a kind.
    pub(super) fn kind(&self, api_version: &str, kind: &str) -> Option<&Message> {
        // Clients send DeleteOptions in the group version of what they delete.
        let api_version = if kind == DELETE_OPTIONS { META } else { api_version };
        let found = self.messages.get(*self.places.get(&(api_version, kind))?)?;
        found.is_kind().then_some(found)
    }

    /// All kinds, by `apiVersion` and name.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.messages.iter().filter(|message| message.is_kind()).map(|message| (message.group_version, message.name))
    }
}

/// A JSON form of a message that isn't an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `IntOrString`: a number or a string (apimachinery's util/intstr).
    IntOrString,
    /// `RawExtension`, `FieldsV1`: JSON as it is.
    Json,
    /// `MicroTime`: RFC 3339 with six digits after the point (meta/v1 micro_time.go).
    MicroTime,
    /// `Quantity`: a string (api/resource).
    Quantity,
    /// `ExtraValue`: a list of strings.
    Strings,
    /// `Time`: RFC 3339 in whole seconds; an empty one is null (meta/v1 time_proto.go).
    Time,
}

impl Form {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "intstr" => Self::IntOrString,
            "json" => Self::Json,
            "microtime" => Self::MicroTime,
            "quantity" => Self::Quantity,
            "strings" => Self::Strings,
            "time" => Self::Time,
            _ => return None,
        })
    }

    /// From the fields of the message.
    pub(super) fn json(self, fields: &Map<String, Value>) -> Result<Value, String> {
        let number = |name: &str| fields.get(name).and_then(Value::as_i64).unwrap_or_default();
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        match self {
            Self::IntOrString => match number("type") {
                0 => Ok(number("intVal").into()),
                1 => Ok(text("strVal").into()),
                other => Err(format!("no type {other} of a number or string")),
            },
            Self::Json if text("raw").is_empty() => Ok(Value::Null),
            Self::Json => serde_json::from_str(text("raw")).map_err(|why| format!("JSON within it: {why}")),
            Self::Quantity if text("string").is_empty() => Ok("0".into()),
            Self::Quantity => Ok(text("string").into()),
            Self::Strings => Ok(fields.get("items").cloned().unwrap_or_else(|| Value::Array(Vec::new()))),
            Self::Time | Self::MicroTime if fields.is_empty() => Ok(Value::Null),
            Self::Time => instant(number("seconds"), 0).map(|instant| format!("{instant:.0}").into()),
            // Parts of a microsecond are dropped, as they are from JSON.
            Self::MicroTime => {
                instant(number("seconds"), number("nanos")).map(|instant| format!("{instant:.6}").into())
            }
        }
    }
}

/// An instant of the years that RFC 3339 has: 0 to 9999.
fn instant(seconds: i64, nanoseconds: i64) -> Result<Timestamp, String> {
    const FIRST: i64 = -62_167_219_200;
    let out_of_range = || "a time is out of range".to_owned();
    let whole = Timestamp::from_second(seconds).map_err(|_| out_of_range())?;
    let instant = whole.checked_add(jiff::SignedDuration::from_nanos(nanoseconds)).map_err(|_| out_of_range())?;
    if instant.as_second() < FIRST { Err(out_of_range()) } else { Ok(instant) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_messages_is_understood() {
        let text = include_str!("messages.txt");
        let words = |line: &'static str| line.split_ascii_whitespace().filter(|word| word.contains(':'));
        let stated = text.lines().filter(|line| !line.starts_with(['#', '@'])).flat_map(words).count();
        let read: usize = SCHEMA.messages.iter().map(|message| message.fields.len()).sum();
        assert_eq!(read, stated);
        assert!(read > 700, "{read}");
    }

    #[test]
    fn numbers_and_names_of_a_message_are_unique() {
        for message in &SCHEMA.messages {
            let mut numbers: Vec<u32> = message.fields.iter().map(|field| field.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), message.fields.len(), "{}", message.name);
            let mut names: Vec<&str> = message.fields.iter().map(|field| field.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), message.fields.len(), "{}", message.name);
            assert!(!message.fields.is_empty() || message.name.ends_with("Status"), "{}", message.name);
        }
        assert_eq!(SCHEMA.places.len(), SCHEMA.messages.len());
    }

    #[test]
    fn no_message_is_within_itself() {
        fn depth(at: usize, above: &mut Vec<usize>) -> usize {
            let message = &SCHEMA.messages[at];
            assert!(!above.contains(&at), "{} is within itself", message.name);
            above.push(at);
            let within = message.fields.iter().filter_map(|field| match field.of {
                Type::Message(of) => Some(depth(of, above)),
                _ => None,
            });
            let deepest = 1 + within.max().unwrap_or_default();
            above.pop();
            deepest
        }
        let deepest = (0..SCHEMA.messages.len()).map(|at| depth(at, &mut Vec::new())).max();
        assert!(deepest.is_some_and(|deepest| deepest < 16), "{deepest:?}");
    }

    #[test]
    fn only_a_message_that_stands_alone_has_no_name_in_json() {
        for field in SCHEMA.messages.iter().flat_map(|message| &message.fields).filter(|field| field.name.is_empty()) {
            assert_eq!(field.shape, Shape::One);
            assert!(matches!(field.of, Type::Message(index) if SCHEMA.messages[index].form.is_none()));
        }
    }
}
