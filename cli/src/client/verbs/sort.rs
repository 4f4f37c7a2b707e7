//! `--sort-by`: objects in the order of a field. Numbers by value, texts with their digits read as numbers, missing ones
//! first; equal ones keep their order.

use crate::client::failure::Failure;
use crate::client::jsonpath::Template;
use crate::client::output::Shown;
use serde_json::Value;
use std::cmp::Ordering;

/// Sorts.
///
/// # Errors
/// A wrong path, or one that no object has.
pub fn by(path: &str, objects: &mut Vec<Shown>) -> Result<(), Failure> {
    let template = Template::parse_relaxed(path).map_err(Failure::Local)?;
    let mut keyed = Vec::new();
    for object in objects.drain(..) {
        let found = template.find(&object.value).map_err(Failure::Local)?;
        keyed.push((found.into_iter().next(), object));
    }
    if !keyed.is_empty() && keyed.iter().all(|(key, _)| key.is_none()) {
        return Err(Failure::local(format!("couldn't find any field with path {path:?} in the list of objects")));
    }
    keyed.sort_by(|(a, _), (b, _)| compare(a.as_ref(), b.as_ref()));
    objects.extend(keyed.into_iter().map(|(_, object)| object));
    Ok(())
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().unwrap_or(f64::NAN).partial_cmp(&b.as_f64().unwrap_or(f64::NAN)).unwrap_or(Ordering::Equal)
        }
        (Some(Value::String(a)), Some(Value::String(b))) => natural(a, b),
        (Some(a), Some(b)) => a.to_string().cmp(&b.to_string()),
    }
}

/// "web-2" before "web-10".
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.chars().peekable(), b.chars().peekable());
    loop {
        match (a.peek().copied(), b.peek().copied()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let take = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                    let mut digits = String::new();
                    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                        digits.push(digit);
                    }
                    digits.trim_start_matches('0').to_owned()
                };
                let (x, y) = (take(&mut a), take(&mut b));
                let order = x.len().cmp(&y.len()).then_with(|| x.cmp(&y));
                if order != Ordering::Equal {
                    return order;
                }
            }
            (Some(x), Some(y)) if x == y => {
                a.next();
                b.next();
            }
            (Some(x), Some(y)) => return x.cmp(&y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::SERVICES;
    use serde_json::json;

    #[test]
    fn objects_are_sorted_by_a_field() {
        let object = |name: &str, port: Value| Shown {
            resource: &SERVICES,
            value: json!({"metadata": {"name": name}, "spec": {"port": port}}),
        };
        let names = |path: &str| {
            let mut objects = vec![object("web-10", json!(9)), object("web-2", json!(80)), object("db", Value::Null)];
            objects[2].value["spec"] = json!({});
            by(path, &mut objects).map(|()| {
                objects.iter().map(|one| one.value["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
            })
        };
        assert_eq!(names(".metadata.name").unwrap(), ["db", "web-2", "web-10"]);
        assert_eq!(names("{.spec.port}").unwrap(), ["db", "web-10", "web-2"]);
        assert!(names(".nope").unwrap_err().text().contains("couldn't find any field with path"));
        assert_eq!(natural("a01", "a1"), Ordering::Equal);
        assert_eq!(natural("a99999999999999999999999", "a100000000000000000000000"), Ordering::Less);
    }
}
