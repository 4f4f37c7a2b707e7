//! RFC 6902, JSON patch, with the pointers of RFC 6901: operations in order, all or none.
//!
//! As the RFC says, but for what Kubernetes' clients rely on (evanphx/json-patch v4): `replace` of a missing field of a map adds
//! it; `test` of a missing field against null holds; an index of -1 is the last item. Stricter than it, as the RFC is: a `copy` from
//! nothing, an `add` or `replace` without a value, and an index such as 01 are refused. Bounds: [`MAX_OPERATIONS`],
//! [`MAX_COPIED`] bytes of copies, [`MAX_STEPS`] of work, [`MAX_DEPTH`] of the result.

use super::key::same;
use super::{MAX_COPIED, MAX_DEPTH, MAX_OPERATIONS, MAX_STEPS, Refused, text};
use serde_json::{Map, Value};

/// The document with the operations applied.
pub(super) fn apply(live: &Value, operations: &[Value]) -> Result<Value, Refused> {
    if operations.len() > MAX_OPERATIONS {
        let got = operations.len();
        let message = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {got}");
        return Err(Refused::too_large(&message));
    }
    let operations = operations.iter().map(Operation::of).collect::<Result<Vec<_>, _>>()?;
    let mut run = Run { root: live.clone(), copied: 0, steps: 0 };
    for (at, operation) in operations.iter().enumerate() {
        run.apply(operation).map_err(|cause| Refused::rejected(format!("operation {at}: {cause}")))?;
    }
    Ok(run.root)
}

/// An operation as written. What is missing is missed only when it is applied, as in Kubernetes.
struct Operation<'a> {
    op: &'a str,
    path: Option<&'a str>,
    from: Option<&'a str>,
    value: Option<&'a Value>,
}

impl<'a> Operation<'a> {
    fn of(value: &'a Value) -> Result<Self, Refused> {
        let Value::Object(fields) = value else {
            return Err(undecodable(value, "value of type handlers.jsonPatchOp"));
        };
        let word = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(word)) => Ok(Some(word.as_str())),
            Some(other) => Err(undecodable(other, &format!("struct field jsonPatchOp.{name} of type string"))),
        };
        let op = word("op")?.unwrap_or("unknown");
        Ok(Self { op, path: word("path")?, from: word("from")?, value: fields.get("value") })
    }

    fn path(&self) -> Result<Vec<String>, String> {
        pointer(self.path.ok_or("the path is missing")?)
    }

    fn from(&self) -> Result<Vec<String>, String> {
        pointer(self.from.ok_or("the from is missing")?)
    }

    fn value(&self) -> Result<Value, String> {
        self.value.cloned().ok_or_else(|| "the value is missing".to_owned())
    }
}

/// In the words of Go's decoder, as Kubernetes answers.
fn undecodable(got: &Value, into: &str) -> Refused {
    Refused::malformed(format!("error decoding patch: json: cannot unmarshal {} into Go {into}", text::kind(got)))
}

/// The steps of a pointer, unescaped (RFC 6901, 4).
fn pointer(path: &str) -> Result<Vec<String>, String> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let steps = path.strip_prefix('/').ok_or_else(|| format!("{path:?} does not start with a slash"))?;
    let step = |step: &str| {
        // Each ~ is the start of ~0 or ~1.
        let escapes = step.matches("~0").count() + step.matches("~1").count();
        if step.matches('~').count() != escapes {
            return Err(format!("{path:?} has a ~ that is neither ~0 nor ~1"));
        }
        Ok(step.replace("~1", "/").replace("~0", "~"))
    };
    steps.split('/').map(step).collect()
}

/// A whole number of RFC 6901 (no sign, no leading zero), or one counted from the end: -1 is the one before `end`.
fn number(step: &str, end: usize) -> Option<usize> {
    let digits = step.strip_prefix('-').unwrap_or(step);
    let zero_first = digits.starts_with('0') && step != "0";
    if zero_first || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse::<usize>().ok()?;
    if digits.len() < step.len() { end.checked_sub(number) } else { Some(number) }
}

/// The index of an item that is there.
fn index(step: &str, items: &[Value]) -> Option<usize> {
    number(step, items.len()).filter(|at| *at < items.len())
}

fn missing(path: &[String]) -> String {
    format!("there is nothing at {:?}", path.iter().fold(String::new(), |path, step| path + "/" + step))
}

fn child<'v>(value: &'v Value, step: &str) -> Option<&'v Value> {
    match value {
        Value::Object(fields) => fields.get(step),
        Value::Array(items) => items.get(index(step, items)?),
        _ => None,
    }
}

fn find<'v>(root: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(root, |value, step| child(value, step))
}

fn find_mut<'v>(root: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    path.iter().try_fold(root, |value, step| match value {
        Value::Object(fields) => fields.get_mut(step),
        Value::Array(items) => index(step, items).and_then(|at| items.get_mut(at)),
        _ => None,
    })
}

/// What a place is made of: a list or a map, where a value is put or taken.
enum Inside<'v> {
    Map(&'v mut Map<String, Value>, &'v str),
    List(&'v mut Vec<Value>, &'v str),
}

fn inside<'v>(root: &'v mut Value, path: &'v [String]) -> Result<Inside<'v>, String> {
    let (last, above) = path.split_last().ok_or("that is the whole document")?;
    match find_mut(root, above) {
        Some(Value::Object(fields)) => Ok(Inside::Map(fields, last)),
        Some(Value::Array(items)) => Ok(Inside::List(items, last)),
        _ => Err(missing(above)),
    }
}

/// Work is paid for before it is done.
fn pay(paid: &mut u64, steps: usize) -> Result<(), String> {
    *paid = paid.saturating_add(steps as u64);
    if *paid > MAX_STEPS { Err(format!("the patch takes more than {MAX_STEPS} steps")) } else { Ok(()) }
}

/// A patch being applied.
struct Run {
    root: Value,
    copied: u64,
    steps: u64,
}

impl Run {
    fn apply(&mut self, operation: &Operation<'_>) -> Result<(), String> {
        match operation.op {
            "add" => self.add(&operation.path()?, operation.value()?),
            "remove" => self.take(&operation.path()?).map(drop),
            "replace" => self.replace(&operation.path()?, operation.value()?),
            "move" => {
                let (from, path) = (operation.from()?, operation.path()?);
                let value = self.take(&from)?;
                self.add(&path, value)
            }
            "copy" => {
                let (from, path) = (operation.from()?, operation.path()?);
                let value = find(&self.root, &from).ok_or_else(|| missing(&from))?;
                self.copied = self.copied.saturating_add(bytes(value));
                if self.copied > MAX_COPIED {
                    return Err(format!("copies may add {MAX_COPIED} bytes, and these add {}", self.copied));
                }
                let value = value.clone();
                self.add(&path, value)
            }
            "test" => self.test(&operation.path()?, operation.value.unwrap_or(&Value::Null)),
            other => Err(format!("there is no op {other:?}")),
        }
    }

    /// Looks at all of a value that is to be put below `above` lists and maps.
    fn weigh(&mut self, value: &Value, above: usize) -> Result<(), String> {
        let size = match value {
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            _ => return Ok(()),
        };
        if above >= MAX_DEPTH {
            return Err(format!("the result nests more than {MAX_DEPTH} deep"));
        }
        pay(&mut self.steps, size)?;
        match value {
            Value::Array(items) => items.iter().try_for_each(|value| self.weigh(value, above + 1)),
            Value::Object(fields) => fields.values().try_for_each(|value| self.weigh(value, above + 1)),
            _ => Ok(()),
        }
    }

    fn add(&mut self, path: &[String], value: Value) -> Result<(), String> {
        self.weigh(&value, path.len())?;
        if path.is_empty() {
            self.root = value;
            return Ok(());
        }
        match inside(&mut self.root, path)? {
            Inside::Map(fields, name) => drop(fields.insert(name.to_owned(), value)),
            Inside::List(items, step) => {
                let at = place_of(step, items)?;
                pay(&mut self.steps, items.len().saturating_sub(at))?;
                items.insert(at, value);
            }
        }
        Ok(())
    }

    fn take(&mut self, path: &[String]) -> Result<Value, String> {
        let taken = match inside(&mut self.root, path)? {
            Inside::Map(fields, name) => {
                pay(&mut self.steps, fields.len())?;
                fields.shift_remove(name)
            }
            Inside::List(items, step) => {
                let at = index(step, items).ok_or_else(|| missing(path))?;
                pay(&mut self.steps, items.len().saturating_sub(at))?;
                Some(items.remove(at))
            }
        };
        taken.ok_or_else(|| missing(path))
    }

    fn replace(&mut self, path: &[String], value: Value) -> Result<(), String> {
        self.weigh(&value, path.len())?;
        let place = match find_mut(&mut self.root, path) {
            Some(place) => place,
            // Kubernetes' library asks for the map, not for the field.
            None => match inside(&mut self.root, path)? {
                Inside::Map(fields, name) => fields.entry(name).or_insert(Value::Null),
                Inside::List(..) => return Err(missing(path)),
            },
        };
        *place = value;
        Ok(())
    }

    fn test(&mut self, path: &[String], value: &Value) -> Result<(), String> {
        let found = match (find(&self.root, path), path.split_last()) {
            (Some(found), _) => found,
            (None, Some((_, above))) if find(&self.root, above).is_some_and(Value::is_object) => &Value::Null,
            _ => return Err(missing(path)),
        };
        if same(found, value) { Ok(()) } else { Err(format!("{} is not {}", text::of(found), text::of(value))) }
    }
}

/// Where an item is put into a list: before the one of this index, or at the end.
fn place_of(step: &str, items: &[Value]) -> Result<usize, String> {
    let at = if step == "-" { Some(items.len()) } else { number(step, items.len() + 1) };
    at.filter(|at| *at <= items.len()).ok_or_else(|| format!("a list of {} has no place {step:?}", items.len()))
}

/// The length of a value in JSON.
fn bytes(value: &Value) -> u64 {
    value.to_string().len() as u64
}

#[cfg(test)]
mod tests;
