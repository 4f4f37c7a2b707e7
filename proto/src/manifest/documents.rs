//! A file's documents: YAML (no duplicate keys; 0644 is octal) or JSON, Lists opened.

use serde_json::Value;

/// Largest manifest file, bytes (Kubernetes' request limit, times a file of several).
pub const MAX_DOCUMENT: usize = 3 * 1024 * 1024;

/// Why a text is not manifests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML or JSON.
    #[error("{0}")]
    Syntax(String),
    /// Too large.
    #[error("a manifest of {0} bytes is too large: at most {MAX_DOCUMENT}")]
    TooLarge(usize),
    /// A document that is no object.
    #[error("document {0} is not a mapping with apiVersion and kind")]
    NotAnObject(usize),
}

/// Every document of a text, `kind: List` opened, empty ones skipped.
///
/// # Errors
/// [`ManifestError`]; the syntax error has its line.
pub fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    if text.len() > MAX_DOCUMENT {
        return Err(ManifestError::TooLarge(text.len()));
    }
    let start = text.trim_start();
    let documents: Vec<Value> = if start.starts_with('{') || start.starts_with('[') {
        match serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>() {
            Ok(documents) => documents,
            // YAML's flow style looks like JSON.
            Err(json) => yaml(text).map_err(|_| ManifestError::Syntax(json.to_string()))?,
        }
    } else {
        yaml(text)?
    };
    let mut opened = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        open(document, index + 1, &mut opened)?;
    }
    Ok(opened)
}

fn yaml(text: &str) -> Result<Vec<Value>, ManifestError> {
    // `defaultMode: 0644` is octal to Kubernetes, which reads YAML 1.1 here.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options::<Value>(text, options)
        .map_err(|error| ManifestError::Syntax(error.to_string()))
}

fn open(document: Value, number: usize, into: &mut Vec<Value>) -> Result<(), ManifestError> {
    match document {
        Value::Null => Ok(()),
        Value::Object(mut map)
            if map.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"))
                && map.contains_key("items") =>
        {
            let items = match map.remove("items") {
                Some(Value::Array(items)) => items,
                Some(Value::Null) | None => Vec::new(),
                Some(_) => return Err(ManifestError::NotAnObject(number)),
            };
            for item in items {
                open(item, number, into)?;
            }
            Ok(())
        }
        Value::Object(map) => {
            into.push(Value::Object(map));
            Ok(())
        }
        _ => Err(ManifestError::NotAnObject(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn several_documents_lists_and_empty_ones() {
        let text = "---\nkind: A\n---\n---\n# nothing\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n";
        let kinds: Vec<_> =
            documents(text).unwrap().iter().map(|one| one["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert_eq!(documents("{\"kind\": \"A\"}\n{\"kind\": \"B\"}").unwrap().len(), 2);
        assert_eq!(documents("").unwrap().len(), 0);
    }

    #[test]
    fn yaml_scalars_are_what_they_look_like() {
        let value =
            &documents("a: 80\nb: \"80\"\nc: true\nd: text\ne: null\nf: 0644\ng: 0o644\nh: 0\ni: \"08\"\n").unwrap()[0];
        let expected = serde_json::json!({"a": 80, "b": "80", "c": true, "d": "text", "e": null, "f": 420, "g": 420, "h": 0, "i": "08"});
        assert_eq!(value, &expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = documents("a: 1\nb: [1,\n").unwrap_err().to_string();
        assert!(error.contains("line"), "{error}");
        assert!(documents("a: 1\na: 2\n").is_err(), "a duplicate key");
        assert_eq!(documents("- 1\n"), Err(ManifestError::NotAnObject(1)));
        assert!(matches!(documents(&"x".repeat(MAX_DOCUMENT + 1)), Err(ManifestError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = documents(&text);
        }
    }
}
