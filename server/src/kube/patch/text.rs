//! Values in the words of Go, as Kubernetes' messages quote them: `map[name:web port:80]`.
//!
//! Law: a quote is never longer than [`LONGEST`] and an ellipsis, whatever the value.

use serde_json::Value;

/// Bytes of a quoted value.
const LONGEST: usize = 1024;

/// A value as Go's `%v` prints it, with fields by name; the end of a long one is left off.
pub(super) fn of(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    closed(out)
}

/// A list as Go's `%v` prints it.
pub(super) fn of_list(items: &[Value]) -> String {
    let mut out = String::new();
    write_list(items, &mut out);
    closed(out)
}

/// What Go's JSON decoder calls a value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type that a decoded value has.
pub(super) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn closed(mut out: String) -> String {
    if out.len() > LONGEST {
        out.truncate(out.floor_char_boundary(LONGEST));
        out.push_str("...");
    }
    out
}

fn write(value: &Value, out: &mut String) {
    if out.len() > LONGEST {
        return;
    }
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(value) => out.push_str(&value.to_string()),
        Value::String(value) => write_text(value, out),
        Value::Array(items) => write_list(items, out),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            out.push_str("map[");
            for (at, (name, value)) in fields.into_iter().enumerate() {
                if out.len() > LONGEST {
                    return;
                }
                out.push_str(if at > 0 { " " } else { "" });
                write_text(name, out);
                out.push(':');
                write(value, out);
            }
            out.push(']');
        }
    }
}

fn write_list(items: &[Value], out: &mut String) {
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        if out.len() > LONGEST {
            return;
        }
        out.push_str(if at > 0 { " " } else { "" });
        write(item, out);
    }
    out.push(']');
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(text.get(..text.floor_char_boundary(LONGEST + 4)).unwrap_or(text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_are_quoted_as_go_prints_them_by_name_of_field() {
        let value = json!({"protocol": "UDP", "port": 53, "more": [null, true, {"a": 1.5}]});
        assert_eq!(of(&value), "map[more:[<nil> true map[a:1.5]] port:53 protocol:UDP]");
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let long = "é".repeat(5000);
        for value in [json!(long), json!({ "name": long }), json!(vec!["ab"; 5000])] {
            let quoted = of(&value);
            assert!(quoted.len() <= LONGEST + 3 && quoted.ends_with("..."), "{}", quoted.len());
        }
    }
}
