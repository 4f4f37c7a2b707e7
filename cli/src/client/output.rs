//! `-o`: how objects are printed other than as tables.
//!
//! JSON and YAML are Kubernetes objects with sorted keys, as kubectl prints them, so that recipes carry over.

use crate::client::columns::Columns;
use crate::client::failure::Failure;
use crate::client::jsonpath::Template;
use crate::client::kinds::Resource;
use serde::Serialize as _;
use serde_json::{Map, Value, json};
use std::io::Write as _;

/// An object with the type it is shown as.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its resource type.
    pub resource: &'static Resource,
    /// Its manifest.
    pub value: Value,
}

impl Shown {
    /// `service/web`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.resource.prefix(), text(&self.value, "/metadata/name"))
    }
}

/// What `-o` asks for.
#[derive(Debug)]
pub enum Format {
    /// A table; wide or not.
    Table {
        /// With the columns that only `-o wide` shows.
        wide: bool,
    },
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `service/web`.
    Name,
    /// A JSONPath template.
    JsonPath(Template),
    /// Columns of one's own.
    Columns(Columns),
}

const ALLOWED: &str = "custom-columns,custom-columns-file,json,jsonpath,jsonpath-file,name,wide,yaml";

impl Format {
    /// Parses `-o`; absent is a table.
    ///
    /// # Errors
    /// kubectl's sentence for an unknown format or a wrong template.
    pub fn parse(option: Option<&str>) -> Result<Self, Failure> {
        let Some(option) = option else { return Ok(Self::Table { wide: false }) };
        let (name, argument) = option.split_once('=').map_or((option, None), |(name, argument)| (name, Some(argument)));
        let template = || match argument {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(Failure::local("template format specified but no template given")),
        };
        let columns = || match argument {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(Failure::local("custom-columns format specified but no custom columns given")),
        };
        let file = |path: String| {
            std::fs::read_to_string(&path)
                .map_err(|error| Failure::local(format!("error reading --template {path}, {error}")))
        };
        match name {
            "" => Ok(Self::Table { wide: false }),
            "wide" => Ok(Self::Table { wide: true }),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            "name" => Ok(Self::Name),
            "jsonpath" => Template::parse(&template()?).map(Self::JsonPath).map_err(Failure::Local),
            "jsonpath-file" => Template::parse(&file(template()?)?).map(Self::JsonPath).map_err(Failure::Local),
            "custom-columns" => Columns::parse(&columns()?).map(Self::Columns).map_err(Failure::Local),
            "custom-columns-file" => Columns::parse_file(&file(columns()?)?).map(Self::Columns).map_err(Failure::Local),
            _ => Err(Failure::local(format!(
                "unable to match a printer suitable for the output format {option:?}, allowed formats are: {ALLOWED}"
            ))),
        }
    }

    /// Objects in a format that is no table, with its final newline if the format has one. One object stands for
    /// itself, several are a List.
    ///
    /// # Errors
    /// The template fails on them.
    pub fn render(&self, objects: &[Shown], one: bool) -> Result<String, Failure> {
        let whole = || match objects {
            [only] if one => only.value.clone(),
            many => list(many),
        };
        match self {
            Self::Json => json_text(&whole()),
            Self::Yaml => yaml(&whole()),
            Self::Name => Ok(objects.iter().map(|object| object.path() + "\n").collect()),
            Self::JsonPath(template) => template.render(&whole()).map_err(Failure::Local),
            Self::Columns(columns) => columns.render(objects, true).map_err(Failure::Local),
            Self::Table { .. } => Ok(String::new()),
        }
    }
}

/// A List of objects.
fn list(objects: &[Shown]) -> Value {
    let items: Vec<&Value> = objects.iter().map(|object| &object.value).collect();
    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// A copy with every map's keys in order.
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            Value::Object(
                keys.into_iter().filter_map(|key| Some((key.clone(), sorted(map.get(key)?)))).collect::<Map<_, _>>(),
            )
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// JSON as kubectl prints it: four spaces, sorted keys.
///
/// # Errors
/// Never, for a value.
pub fn json_text(value: &Value) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, indent);
    sorted(value).serialize(&mut serializer).map_err(|error| Failure::local(error.to_string()))?;
    bytes.push(b'\n');
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// YAML as kubectl prints it: sorted keys, lists not indented, long lines whole.
///
/// # Errors
/// Never, for a value.
pub fn yaml(value: &Value) -> Result<String, Failure> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true, folded_wrap_chars: usize::MAX };
    let mut text = serde_saphyr::to_string_with_options(&sorted(value), options)
        .map_err(|error| Failure::local(error.to_string()))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// The text at a JSON pointer; empty if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer; empty if there is none.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The number at a JSON pointer; 0 if there is none.
pub fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// A map of texts, as `k=v,k=v`; `<none>` if it is empty.
pub fn labels(map: Option<&Value>) -> String {
    let pairs = pairs(map);
    if pairs.is_empty() {
        "<none>".to_owned()
    } else {
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}

/// A map of texts, sorted.
pub fn pairs(map: Option<&Value>) -> Vec<(&str, &str)> {
    let map = map.and_then(Value::as_object);
    let mut pairs: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())).collect();
    pairs.sort_unstable();
    pairs
}

/// Writes to standard output. A reader that went away (`| head`) ends the process quietly, as it would kubectl.
///
/// # Errors
/// Standard output can't be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Silent),
        Err(error) => Err(Failure::local(format!("can't write to standard output: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::{SERVICES, SLICES};

    fn shown(name: &str) -> Shown {
        Shown {
            resource: &SERVICES,
            value: json!({"kind": "Service", "apiVersion": "v1", "spec": {"ports": [{"port": 80, "name": "80"}], "selector": {}}, "metadata": {"name": name}}),
        }
    }

    #[test]
    fn one_object_is_itself_and_several_are_a_list() {
        let one = Format::Json.render(&[shown("web")], true).unwrap();
        assert_eq!(
            one,
            "{\n    \"apiVersion\": \"v1\",\n    \"kind\": \"Service\",\n    \"metadata\": {\n        \"name\": \"web\"\n    },\n    \"spec\": {\n        \"ports\": [\n            {\n                \"name\": \"80\",\n                \"port\": 80\n            }\n        ],\n        \"selector\": {}\n    }\n}\n"
        );
        let list = Format::Yaml.render(&[shown("web")], false).unwrap();
        assert_eq!(
            list,
            "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: web\n  spec:\n    ports:\n    - name: \"80\"\n      port: 80\n    selector: {}\nkind: List\nmetadata:\n  resourceVersion: \"\"\n"
        );
        let slice = Shown { resource: &SLICES, value: shown("web-x").value };
        assert_eq!(
            Format::Name.render(&[shown("web"), slice], false).unwrap(),
            "service/web\nendpointslice.discovery.k8s.io/web-x\n"
        );
    }

    #[test]
    fn yaml_reads_back_as_what_it_was() {
        for text in [
            "yes",
            "null",
            "1e3",
            "0x1f",
            "*a",
            "a: b",
            "#x",
            " lead",
            "~",
            "-",
            "it's",
            "q\"q",
            "a\nb\n",
            "line\n\n",
            "2020-01-01",
            "",
            "@x",
            "{a",
            "\u{1b}[31m",
            "tab\there",
            "é",
        ] {
            let value = json!({"k": text, "list": [text, [], {}], text: 1});
            let rendered = yaml(&value).unwrap();
            let back: Value = serde_saphyr::from_str(&rendered).unwrap();
            assert_eq!(back, value, "{rendered}");
        }
        let long = "x ".repeat(300);
        assert!(yaml(&json!({"k": long.trim()})).unwrap().lines().count() <= 2);
    }

    #[test]
    fn wrong_formats_are_named() {
        for (option, says) in [
            ("foo", "unable to match a printer suitable for the output format \"foo\""),
            ("jsonpath", "template format specified but no template given"),
            ("jsonpath={.a", "error parsing jsonpath {.a, unclosed action"),
            ("custom-columns=", "custom-columns format specified but no custom columns given"),
            ("custom-columns=A", "unexpected custom-columns spec: A, expected <header>:<json-path-expr>"),
            ("jsonpath-file=/nonexistent", "/nonexistent"),
        ] {
            let text = Format::parse(Some(option)).unwrap_err().text();
            assert!(text.contains(says), "{option}: {text}");
        }
    }
}
