//! What differs between two manifests, path by path. Pure.

use serde_json::{Map, Value};

/// What every write changes, and nobody asks for.
const UNSAID: [&str; 4] = ["metadata.resourceVersion", "metadata.generation", "metadata.managedFields", "metadata.uid"];
/// Longest value shown, characters.
const LONGEST: usize = 80;

/// Sentences such as `spec.ports[0].port: 80 → 81`, in the order of their paths.
pub fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(String::new(), (Some(old), Some(new)), &mut found);
    found
}

fn walk(path: String, pair: (Option<&Value>, Option<&Value>), found: &mut Vec<String>) {
    if pair.0 == pair.1 || UNSAID.contains(&path.as_str()) {
        return;
    }
    match pair {
        (Some(Value::Object(old)), Some(Value::Object(new))) => fields(&path, (old, new), found),
        // A first label is said as any other; an item of a list comes and goes as a whole.
        (Some(Value::Object(old)), None) if !path.ends_with(']') => fields(&path, (old, &Map::new()), found),
        (None, Some(Value::Object(new))) if !path.ends_with(']') => fields(&path, (&Map::new(), new), found),
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                walk(format!("{path}[{index}]"), (old.get(index), new.get(index)), found);
            }
        }
        (old, new) => found.push(format!("{path}: {} → {}", shown(old), shown(new))),
    }
}

fn fields(path: &str, (old, new): (&Map<String, Value>, &Map<String, Value>), found: &mut Vec<String>) {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        // A label's or an annotation's name may have dots.
        let below = match (path.is_empty(), name.contains('.')) {
            (true, _) => name.clone(),
            (false, true) => format!("{path}[{name:?}]"),
            (false, false) => format!("{path}.{name}"),
        };
        walk(below, (old.get(name), new.get(name)), found);
    }
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "none".to_owned();
    };
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_said_by_path() {
        let old = json!({"metadata": {"name": "web", "resourceVersion": "1", "labels": {"a": "1", "x.io/b": "2"}},
            "spec": {"ports": [{"port": 80}, {"port": 90}], "type": "ClusterIP"}});
        let new = json!({"metadata": {"name": "web", "resourceVersion": "2", "labels": {"a": "1", "x.io/b": "3"}},
            "spec": {"ports": [{"port": 81, "name": "http"}], "type": "ClusterIP"}});
        assert_eq!(
            changes(&old, &new),
            [
                "metadata.labels[\"x.io/b\"]: \"2\" → \"3\"",
                "spec.ports[0].name: none → \"http\"",
                "spec.ports[0].port: 80 → 81",
                "spec.ports[1]: {\"port\":90} → none",
            ]
        );
        assert_eq!(changes(&old, &old), [""; 0]);
        let first = json!({"metadata": {"labels": {"tier": "front"}}});
        let said = "metadata.labels.tier: none → \"front\"";
        assert_eq!(changes(&json!({"metadata": {}}), &first), [said]);
        let long = json!({"a": "y".repeat(500)});
        assert!(changes(&json!({}), &long)[0].chars().count() < 100);
    }
}
