//! Bodies of requests in Kubernetes' protobuf form, as the JSON that the same client would have sent. Pure.
//!
//! A body is `k8s\0` and a `runtime.Unknown`: the kind, and the object's bytes (apimachinery's runtime/serializer/protobuf).
//! Messages are those of `protobuf/messages.txt`. Laws: fields of unknown number are skipped; zeros of fields that JSON would
//! omit are omitted; any other input, cut short or hostile, is an error. Bounds: `BODY` bytes and `VALUES` values. No message of
//! ours may be within itself, so that nesting needs no bound: what is skipped is not descended into.

mod schema;
mod wire;

use data_encoding::BASE64;
use schema::{Field, Message, SCHEMA, Shape, Type};
use serde_json::{Map, Value};
use wire::{Read, Wire};

/// What a body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Most bytes of a body: kube-apiserver's limit.
const BODY: usize = 3 * 1024 * 1024;
/// Most values of a body. The shortest take two bytes but far more as JSON.
const VALUES: usize = 500_000;

/// The kinds that can be decoded, as pairs of `apiVersion` and `kind`. `DeleteOptions` are there in any group version.
pub fn kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    SCHEMA.kinds()
}

/// Decodes a body: an object with `apiVersion` and `kind`, in Kubernetes' JSON form.
///
/// # Errors
/// It has no such form, is of a kind that isn't known here, or is out of bounds.
pub fn decode(body: &[u8]) -> Result<Value, String> {
    if body.len() > BODY {
        return Err(format!("more than {BODY} bytes"));
    }
    let rest = body.strip_prefix(MAGIC).ok_or("it does not begin with the bytes of Kubernetes protobuf")?;
    let Envelope { api_version, kind, raw } = Envelope::read(rest)?;
    if kind.is_empty() {
        return Err("Object 'Kind' is missing".to_owned());
    }
    if api_version.is_empty() {
        return Err("Object 'apiVersion' is missing".to_owned());
    }
    let message = SCHEMA
        .kind(api_version, kind)
        .ok_or_else(|| format!("no kind {kind:?} is registered for version {api_version:?}"))?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Decoder { values: VALUES }.message(message, raw, &mut object)?;
    Ok(Value::Object(object))
}

/// The fields of `runtime.Unknown`.
#[derive(Default)]
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut envelope = Self::default();
        let mut wire = Wire::new(bytes);
        while let Some((number, read)) = wire.next()? {
            match (number, read) {
                (1, Read::Bytes(bytes)) => envelope.read_type(bytes)?,
                (2, Read::Bytes(bytes)) => envelope.raw = bytes,
                (3, Read::Bytes(b"")) | (4, Read::Bytes(b"" | b"application/vnd.kubernetes.protobuf")) => {}
                (3, Read::Bytes(_)) => return Err("its content has an encoding".to_owned()),
                (4, Read::Bytes(_)) => return Err("its content is not protobuf".to_owned()),
                (1..=4, _) => return Err(format!("field {number} of its envelope has the wrong wire type")),
                _ => {}
            }
        }
        Ok(envelope)
    }

    fn read_type(&mut self, bytes: &'a [u8]) -> Result<(), String> {
        let mut wire = Wire::new(bytes);
        while let Some((number, read)) = wire.next()? {
            match (number, read) {
                (1, Read::Bytes(bytes)) => self.api_version = text(bytes)?,
                (2, Read::Bytes(bytes)) => self.kind = text(bytes)?,
                (1 | 2, _) => return Err("its type has the wrong wire type".to_owned()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8".to_owned())
}

/// What the fields of a message become.
type Object = Map<String, Value>;

struct Decoder {
    /// How many more values it may make.
    values: usize,
}

impl Decoder {
    /// Reads a message's fields into an object. One that is there already is added to, as protobuf merges messages.
    fn message(&mut self, message: &Message, bytes: &[u8], into: &mut Object) -> Result<(), String> {
        let mut wire = Wire::new(bytes);
        while let Some((number, read)) = wire.next()? {
            let Some(field) = message.field(number) else { continue };
            self.field(field, read, into).map_err(|why| {
                // Only the innermost place is named.
                if why.starts_with(PLACED) { why } else { format!("{PLACED}{}.{}: {why}", message.name, field.name) }
            })?;
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, read: Read<'_>, into: &mut Object) -> Result<(), String> {
        match (field.shape, field.of) {
            (Shape::One, Type::Message(index)) if SCHEMA.at(index)?.form.is_none() => {
                let message = SCHEMA.at(index)?;
                let Read::Bytes(bytes) = read else { return Err(WRONG.to_owned()) };
                if field.name.is_empty() {
                    return self.message(message, bytes, into);
                }
                self.count()?;
                let held = into.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(held) = held else { return Err(WRONG.to_owned()) };
                self.message(message, bytes, held)
            }
            (Shape::One, of) => {
                let value = self.value(of, read)?;
                if value.is_null() || (!field.keeps_zero && is_zero(&value)) {
                    into.remove(field.name);
                } else {
                    into.insert(field.name.to_owned(), value);
                }
                Ok(())
            }
            (Shape::List, of) => {
                let held = into.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(held) = held else { return Err(WRONG.to_owned()) };
                match (of, read) {
                    // Numbers may come packed into one field.
                    (Type::Int32 | Type::Int64 | Type::Bool, Read::Bytes(bytes)) => {
                        let mut wire = Wire::new(bytes);
                        while !wire.is_empty() {
                            let number = wire.varint()?;
                            held.push(self.value(of, Read::Number(number))?);
                        }
                    }
                    (of, read) => held.push(self.value(of, read)?),
                }
                Ok(())
            }
            (Shape::ByName, of) => {
                let Read::Bytes(bytes) = read else { return Err(WRONG.to_owned()) };
                let (key, value) = self.entry(of, bytes)?;
                let held = into.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(held) = held else { return Err(WRONG.to_owned()) };
                held.insert(key, value);
                Ok(())
            }
        }
    }

    /// An entry of a map: a message of a key and a value.
    fn entry(&mut self, of: Type, bytes: &[u8]) -> Result<(String, Value), String> {
        let (mut key, mut value) = ("", Read::Bytes(&[]));
        let mut wire = Wire::new(bytes);
        while let Some((number, read)) = wire.next()? {
            match (number, read) {
                (1, Read::Bytes(bytes)) => key = text(bytes)?,
                (1, _) => return Err(WRONG.to_owned()),
                (2, read) => value = read,
                _ => {}
            }
        }
        Ok((key.to_owned(), self.value(of, value)?))
    }

    /// A value; null is one that JSON has not.
    fn value(&mut self, of: Type, read: Read<'_>) -> Result<Value, String> {
        self.count()?;
        match (of, read) {
            (Type::String, Read::Bytes(bytes)) => Ok(text(bytes)?.into()),
            (Type::Bytes, Read::Bytes(bytes)) => Ok(BASE64.encode(bytes).into()),
            // Too large a number loses its upper bits, as protobuf has it.
            (Type::Int32, Read::Number(number)) => Ok((number as i32).into()),
            (Type::Int64, Read::Number(number)) => Ok((number as i64).into()),
            (Type::Bool, Read::Number(number)) => Ok((number != 0).into()),
            (Type::Message(index), Read::Bytes(bytes)) => {
                let message = SCHEMA.at(index)?;
                let mut object = Map::new();
                self.message(message, bytes, &mut object)?;
                match message.form {
                    Some(form) => form.json(&object),
                    None => Ok(Value::Object(object)),
                }
            }
            _ => Err(WRONG.to_owned()),
        }
    }

    fn count(&mut self) -> Result<(), String> {
        self.values = self.values.checked_sub(1).ok_or_else(|| format!("more than {VALUES} values"))?;
        Ok(())
    }
}

const WRONG: &str = "wrong wire type";
/// Begins an error that says where it is.
const PLACED: &str = "in ";

/// What Go's `omitempty` omits.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests;
