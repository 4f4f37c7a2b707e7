//! The v2 document as protobuf: a `Document` of gnostic's `openapiv2/OpenAPIv2.proto`, which kubectl up to 1.26 reads. Pure.
//!
//! Each message is a table from a word of the document to its field number and shape, so that encoding is one walk over JSON.
//! Laws: a word that a table lacks is left out; what is `x-…` is kept as YAML, which JSON is; names stay in their order.

use serde_json::{Map, Value};

/// A message: what its words are, and the field of its vendor extensions.
struct Message {
    words: &'static [(&'static str, u32, Shape)],
    extensions: Option<u32>,
}

/// What a field holds.
#[derive(Clone, Copy)]
enum Shape {
    /// `string`
    Text,
    /// `repeated string`
    Texts,
    /// `bool`
    Flag,
    /// `Any`: a value as YAML.
    Yaml,
    /// A message.
    One(&'static Message),
    /// A message whose field 1 is this: an item of a `oneof`, or a list of one.
    In(&'static Shape),
    /// A message whose field of this number is repeated: a pair of a name and a value for each word.
    Entries(u32, &'static Shape),
    /// `repeated ParametersItem`
    Parameters,
}

use Shape::{Entries, Flag, In, One, Parameters, Text, Texts, Yaml};

static DOCUMENT: Message = Message {
    words: &[
        ("swagger", 1, Text),
        ("info", 2, One(&INFO)),
        ("paths", 8, Entries(2, &One(&PATH))),
        ("definitions", 9, Entries(1, &One(&SCHEMA))),
    ],
    extensions: Some(16),
};

static INFO: Message = Message { words: &[("title", 1, Text), ("version", 2, Text)], extensions: Some(7) };

static PATH: Message = Message {
    words: &[
        ("get", 2, One(&OPERATION)),
        ("put", 3, One(&OPERATION)),
        ("post", 4, One(&OPERATION)),
        ("delete", 5, One(&OPERATION)),
        ("patch", 8, One(&OPERATION)),
        ("parameters", 9, Parameters),
    ],
    extensions: Some(10),
};

static OPERATION: Message = Message {
    words: &[
        ("tags", 1, Texts),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Parameters),
        ("responses", 9, Entries(1, &In(&One(&RESPONSE)))),
    ],
    extensions: Some(13),
};

static BODY_PARAMETER: Message = Message {
    words: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, One(&SCHEMA)),
    ],
    extensions: Some(6),
};

static QUERY_PARAMETER: Message = Message {
    words: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("uniqueItems", 20, Flag),
    ],
    extensions: Some(23),
};

static PATH_PARAMETER: Message = Message {
    words: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("uniqueItems", 19, Flag),
    ],
    extensions: Some(22),
};

static RESPONSE: Message =
    Message { words: &[("description", 1, Text), ("schema", 2, In(&One(&SCHEMA)))], extensions: Some(5) };

static SCHEMA: Message = Message {
    words: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("description", 4, Text),
        ("default", 5, Yaml),
        ("required", 19, Texts),
        ("additionalProperties", 21, In(&One(&SCHEMA))),
        ("type", 22, In(&Text)),
        ("items", 23, In(&One(&SCHEMA))),
        ("properties", 25, Entries(1, &One(&SCHEMA))),
    ],
    extensions: Some(31),
};

/// A v2 document as protobuf.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    if let Value::Object(words) = document {
        message(&DOCUMENT, words, &mut out);
    }
    out
}

fn message(of: &Message, words: &Map<String, Value>, out: &mut Vec<u8>) {
    for (word, number, shape) in of.words {
        if let Some(value) = words.get(*word) {
            field(*number, *shape, value, out);
        }
    }
    let Some(number) = of.extensions else { return };
    for (word, value) in words.iter().filter(|(word, _)| word.starts_with("x-")) {
        pair(number, (word, Yaml), value, out);
    }
}

/// Recursion is as deep as a definition of ours: documents are never others'.
fn field(number: u32, shape: Shape, value: &Value, out: &mut Vec<u8>) {
    match (shape, value) {
        (Text, Value::String(text)) => bytes(number, text.as_bytes(), out),
        (Texts, Value::Array(all)) => all.iter().for_each(|one| field(number, Text, one, out)),
        (Flag, Value::Bool(true)) => {
            varint(u64::from(number) << 3, out);
            varint(1, out);
        }
        (Yaml, value) => nested(number, out, |own| bytes(2, format!("{value}\n").as_bytes(), own)),
        (One(of), Value::Object(words)) => nested(number, out, |own| message(of, words, own)),
        (In(shape), value) => nested(number, out, |own| field(1, *shape, value, own)),
        (Entries(entry, shape), Value::Object(words)) => {
            nested(number, out, |own| words.iter().for_each(|(name, value)| pair(entry, (name, *shape), value, own)));
        }
        (Parameters, Value::Array(all)) => all.iter().for_each(|one| parameter(number, one, out)),
        _ => {}
    }
}

/// A message of a name (field 1) and a value (field 2).
fn pair(number: u32, (name, shape): (&str, Shape), value: &Value, out: &mut Vec<u8>) {
    nested(number, out, |own| {
        bytes(1, name.as_bytes(), own);
        field(2, shape, value, own);
    });
}

/// A `ParametersItem`: a `Parameter` (1), which is of a body (1) or not (2), and then of a query (3) or of a path (4).
fn parameter(number: u32, value: &Value, out: &mut Vec<u8>) {
    let not_body = |own: &mut Vec<u8>, number: u32, of: &'static Message| {
        nested(2, own, |own| field(number, One(of), value, own));
    };
    nested(number, out, |own| {
        nested(1, own, |own| match value.get("in").and_then(Value::as_str) {
            Some("body") => field(1, One(&BODY_PARAMETER), value, own),
            Some("path") => not_body(own, 4, &PATH_PARAMETER),
            _ => not_body(own, 3, &QUERY_PARAMETER),
        });
    });
}

fn nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut own = Vec::new();
    write(&mut own);
    bytes(number, &own, out);
}

fn bytes(number: u32, content: &[u8], out: &mut Vec<u8>) {
    varint((u64::from(number) << 3) | 2, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
