//! From a template's parts and a value to text.
//!
//! What is missing gives no result; what makes no sense (an index out of bounds, a filter on a text) is an error. Every
//! result costs one of a bounded number.

use super::{Op, Part, Slice, Step, as_text};
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;

/// Results that one template may have on its way.
const MOST: usize = 2_000_000;

type Results<'v> = Vec<Cow<'v, Value>>;

/// Appends the parts, filled from a value.
pub fn render(parts: &[Part], value: &Value, text: &mut String) -> Result<(), String> {
    Walk { left: MOST }.parts(parts, value, text)
}

/// The results of a path.
pub fn walk<'v>(steps: &[Step], value: &'v Value) -> Result<Results<'v>, String> {
    Walk { left: MOST }.steps(steps, vec![Cow::Borrowed(value)])
}

struct Walk {
    left: usize,
}

impl Walk {
    fn parts(&mut self, parts: &[Part], value: &Value, text: &mut String) -> Result<(), String> {
        for part in parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Path(steps) => {
                    let results = self.steps(steps, vec![Cow::Borrowed(value)])?;
                    let results: Vec<String> = results.iter().map(|result| as_text(result)).collect();
                    self.spend(text.len() / 64)?;
                    text.push_str(&results.join(" "));
                }
                Part::Range(steps, body) => {
                    for result in self.steps(steps, vec![Cow::Borrowed(value)])? {
                        self.parts(body, &result, text)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self, results: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(results).ok_or("the template has too many results")?;
        Ok(())
    }

    fn steps<'v>(&mut self, steps: &[Step], input: Results<'v>) -> Result<Results<'v>, String> {
        let mut current = input;
        for step in steps {
            current = self.step(step, current)?;
            self.spend(current.len() + 1)?;
        }
        Ok(current)
    }

    fn step<'v>(&mut self, step: &Step, input: Results<'v>) -> Result<Results<'v>, String> {
        match step {
            Step::Field(name) => {
                Ok(input.iter().filter_map(|value| borrowed(value)?.get(name.as_str()).map(Cow::Borrowed)).collect())
            }
            Step::Wildcard => Ok(input.iter().flat_map(children).map(Cow::Borrowed).collect()),
            Step::Recursive => {
                let mut found = Vec::new();
                for value in &input {
                    if let Some(value) = borrowed(value) {
                        self.descend(value, &mut found)?;
                    }
                }
                Ok(found)
            }
            Step::Slice(slice) => {
                let mut found = Vec::new();
                for value in input.iter().filter(|value| !value.is_null()) {
                    let list = borrowed(value)
                        .and_then(Value::as_array)
                        .ok_or_else(|| format!("{} is not array or slice", type_name(value)))?;
                    found.extend(cut(slice, list)?);
                }
                Ok(found)
            }
            Step::Union(paths) => {
                let mut found = Vec::new();
                for path in paths {
                    found.extend(self.steps(path, input.clone())?);
                }
                Ok(found)
            }
            Step::Filter(left, condition) => self.filter((left, condition.as_ref()), input),
            Step::Literal(value @ Value::String(_)) => Ok(vec![Cow::Owned(value.clone())]),
            Step::Literal(value) => Ok(input.iter().map(|_| Cow::Owned(value.clone())).collect()),
        }
    }

    /// A value and everything in it that holds something.
    fn descend<'v>(&mut self, value: &'v Value, found: &mut Results<'v>) -> Result<(), String> {
        let holds = match value {
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => false,
        };
        if holds {
            self.spend(1)?;
            found.push(Cow::Borrowed(value));
            for child in children(&Cow::Borrowed(value)) {
                self.descend(child, found)?;
            }
        }
        Ok(())
    }

    fn filter<'v>(
        &mut self,
        test: (&[Step], Option<&(Op, Vec<Step>)>),
        input: Results<'v>,
    ) -> Result<Results<'v>, String> {
        let mut found = Vec::new();
        for value in &input {
            let Some(list) = borrowed(value).and_then(Value::as_array) else {
                return Err(format!("{} is not array or slice and cannot be filtered", as_text(value)));
            };
            for one in list {
                if self.passes(test, one)? {
                    found.push(Cow::Borrowed(one));
                }
            }
        }
        Ok(found)
    }

    fn passes(&mut self, test: (&[Step], Option<&(Op, Vec<Step>)>), value: &Value) -> Result<bool, String> {
        let lefts = self.steps(test.0, vec![Cow::Borrowed(value)]);
        let Some((operator, right)) = test.1 else { return Ok(lefts.is_ok_and(|found| !found.is_empty())) };
        let lefts = lefts?;
        let rights = self.steps(right, vec![Cow::Borrowed(value)])?;
        match (lefts.as_slice(), rights.as_slice()) {
            ([], _) | (_, []) => Ok(false),
            ([left], [right]) => compare(*operator, left, right),
            _ => Err("can only compare one element at a time".to_owned()),
        }
    }
}

/// The value itself; `None` for a literal, which holds nothing.
fn borrowed<'v>(value: &Cow<'v, Value>) -> Option<&'v Value> {
    match value {
        Cow::Borrowed(value) => Some(value),
        Cow::Owned(_) => None,
    }
}

fn children<'v>(value: &Cow<'v, Value>) -> Vec<&'v Value> {
    match borrowed(value) {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(map)) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "map",
    }
}

fn cut<'v>(slice: &Slice, list: &'v [Value]) -> Result<Results<'v>, String> {
    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let from_end = |index: i64| if index < 0 { index.saturating_add(length) } else { index };
    let from = from_end(slice.from.unwrap_or(0));
    let to = match slice.to {
        _ if slice.single => from.saturating_add(1),
        Some(index) => from_end(index),
        None => length,
    };
    if from == to {
        return Ok(Vec::new());
    }
    if from < 0 || from >= length {
        return Err(format!("array index out of bounds: index {from}, length {length}"));
    }
    if to < 0 || to > length {
        return Err(format!("array index out of bounds: index {}, length {length}", to.saturating_sub(1)));
    }
    if from > to {
        return Err(format!("starting index {from} is greater than ending index {to}"));
    }
    let step = usize::try_from(slice.step.unwrap_or(1)).ok().filter(|&step| step > 0).ok_or("step must be > 0")?;
    let (from, to) = (usize::try_from(from).unwrap_or(0), usize::try_from(to).unwrap_or(0));
    Ok(list.get(from..to).unwrap_or_default().iter().step_by(step).map(Cow::Borrowed).collect())
}

fn compare(operator: Op, left: &Value, right: &Value) -> Result<bool, String> {
    let order = match (left, right) {
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => Some(left.cmp(&right)),
            _ => left.as_f64().unwrap_or(f64::NAN).partial_cmp(&right.as_f64().unwrap_or(f64::NAN)),
        },
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) if matches!(operator, Op::Equal | Op::NotEqual) => {
            Some(left.cmp(right))
        }
        (Value::Bool(_), Value::Bool(_))
        | (Value::Array(_) | Value::Object(_) | Value::Null, _)
        | (_, Value::Array(_) | Value::Object(_) | Value::Null) => {
            return Err("invalid type for comparison".to_owned());
        }
        _ => return Err("incompatible types for comparison".to_owned()),
    };
    Ok(match operator {
        Op::Less => order == Some(Ordering::Less),
        Op::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Op::Equal => order == Some(Ordering::Equal),
        Op::NotEqual => order != Some(Ordering::Equal),
        Op::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        Op::Greater => order == Some(Ordering::Greater),
    })
}
