//! Two objects by one schema: what differs, what they make together, and an object without some of its fields.
//!
//! Laws: comparing a value with itself finds nothing; merging loses no field of the live object; items of a merged list
//! keep the order of the live list, and of the configuration where that has its own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::super::place::Place;
use super::set::{Number, Set, Step};
use super::shape::{Shape, is_always_there, is_void, shape, steps};

/// True if two values mean the same: 80 and 80.0 do, and the order of fields does not matter.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => Number::from_json(a) == Number::from_json(b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| is_same(a, b)))
        }
        _ => a == b,
    }
}

/// What differs between two objects (structured-merge-diff's `Comparison`). No field is in two of the sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// Only in the first.
    pub(super) removed: Set,
    /// In both, with other values.
    pub(super) modified: Set,
    /// Only in the second.
    pub(super) added: Set,
}

#[derive(Clone, Copy)]
enum Mark {
    Removed,
    Modified,
    Added,
}

impl Changes {
    fn mark(&mut self, step: &Step, mark: Option<Mark>) {
        let set = match mark {
            None => return,
            Some(Mark::Removed) => &mut self.removed,
            Some(Mark::Modified) => &mut self.modified,
            Some(Mark::Added) => &mut self.added,
        };
        set.members.insert(step.clone());
    }

    fn graft(&mut self, step: &Step, (mark, child): (Option<Mark>, Self)) {
        self.mark(step, mark);
        self.removed.graft(step.clone(), child.removed);
        self.modified.graft(step.clone(), child.modified);
        self.added.graft(step.clone(), child.added);
    }

    /// What the second has anew or otherwise.
    pub(super) fn written(&self) -> Set {
        self.modified.union(&self.added)
    }

    /// Without these fields of the whole object.
    pub(super) fn without_top(self, names: &[&str]) -> Self {
        Self {
            removed: self.removed.without_top(names),
            modified: self.modified.without_top(names),
            added: self.added.without_top(names),
        }
    }
}

/// What differs between two objects.
pub(super) fn compare(old: &Value, new: &Value, place: Place<'_>) -> Changes {
    differ(Some(old), Some(new), Some(place)).1
}

/// What differs below two values, and what became of the value itself.
fn differ(old: Option<&Value>, new: Option<&Value>, place: Option<Place<'_>>) -> (Option<Mark>, Changes) {
    let shape = shape(place);
    // The server's own types do not have what is null, nor a list of items that has none.
    let kept = |value: &&Value| match shape {
        Shape::Object => !value.is_null(),
        Shape::Items(..) => !is_void(Some(value)),
        Shape::Whole => true,
    };
    let (old, new) = (old.filter(kept), new.filter(kept));
    let is_there = is_always_there(place);
    let itself = match (old, new) {
        (None, Some(_)) if !is_there => Some(Mark::Added),
        (Some(_), None) if !is_there => Some(Mark::Removed),
        _ => None,
    };
    let whole = || {
        let changed = match (old, new) {
            (Some(old), Some(new)) => !is_same(old, new),
            // An object that is always there was or is empty.
            (Some(one), None) | (None, Some(one)) => is_there && !is_void(Some(one)),
            (None, None) => false,
        };
        (if changed { Some(Mark::Modified) } else { itself }, Changes::default())
    };
    if is_void(old) && is_void(new) {
        return whole();
    }
    match shape {
        Shape::Object => match (fields_of(old), fields_of(new)) {
            (Some(olds), Some(news)) => (itself, differ_fields(olds, news, place)),
            _ => whole(),
        },
        Shape::Items(item, keys) => {
            let paired = |value| items_of(value).and_then(|items| Some((steps(items, item, &keys)?, items)));
            match (paired(old), paired(new)) {
                (Some(olds), Some(news)) => (itself, differ_items(olds, news, item)),
                _ => whole(),
            }
        }
        Shape::Whole => whole(),
    }
}

/// The fields of an object; nothing and null have none. `None`: it is something else.
fn fields_of(value: Option<&Value>) -> Option<Option<&Map<String, Value>>> {
    match value {
        None | Some(Value::Null) => Some(None),
        Some(Value::Object(fields)) => Some(Some(fields)),
        Some(_) => None,
    }
}

/// The items of a list; nothing and null have none. `None`: it is something else.
fn items_of(value: Option<&Value>) -> Option<&[Value]> {
    match value {
        None | Some(Value::Null) => Some(&[]),
        Some(Value::Array(items)) => Some(items),
        Some(_) => None,
    }
}

fn differ_fields(
    olds: Option<&Map<String, Value>>,
    news: Option<&Map<String, Value>>,
    place: Option<Place<'_>>,
) -> Changes {
    let mut changes = Changes::default();
    let names: BTreeSet<&String> = olds.into_iter().chain(news).flat_map(Map::keys).collect();
    for name in names {
        let (old, new) = (olds.and_then(|olds| olds.get(name)), news.and_then(|news| news.get(name)));
        changes.graft(&Step::field(name), differ(old, new, place.and_then(|place| place.field(name))));
    }
    changes
}

fn differ_items(olds: (Vec<Step>, &[Value]), news: (Vec<Step>, &[Value]), item: Place<'_>) -> Changes {
    let mut changes = Changes::default();
    let mut pairs: BTreeMap<Step, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (step, value) in olds.0.into_iter().zip(olds.1) {
        pairs.entry(step).or_default().0.push(value);
    }
    for (step, value) in news.0.into_iter().zip(news.1) {
        pairs.entry(step).or_default().1.push(value);
    }
    for (step, (olds, news)) in &pairs {
        if let ([] | [_], [] | [_]) = (olds.as_slice(), news.as_slice()) {
            changes.graft(step, differ(olds.first().copied(), news.first().copied(), Some(item)));
            continue;
        }
        // Items that are there twice are compared as wholes.
        if olds.len() == news.len() && olds.iter().zip(news).all(|(old, new)| is_same(old, new)) {
            continue;
        }
        if let [old] = olds.as_slice() {
            changes.removed.graft(step.clone(), differ(Some(old), None, Some(item)).1.removed);
        }
        let mark = match (olds.is_empty(), news.is_empty()) {
            (true, _) => Mark::Added,
            (_, true) => Mark::Removed,
            _ => Mark::Modified,
        };
        changes.mark(step, Some(mark));
        // One that is left of several is owned below too.
        if let [new] = news.as_slice() {
            changes.added.graft(step.clone(), differ(None, Some(new), Some(item)).1.added);
        }
    }
    changes
}

/// A configuration merged into a live value: it wins where both say something, and removes nothing. A null in it for a
/// whole stays as null, to be dropped once changes were told.
pub(super) fn merge(live: &Value, config: &Value, place: Option<Place<'_>>) -> Value {
    if is_void(Some(config)) && !is_void(Some(live)) && !matches!(shape(place), Shape::Whole) {
        return live.clone();
    }
    match (shape(place), live, config) {
        (Shape::Object, Value::Object(live), Value::Object(config)) => {
            let mut all = live.clone();
            for (name, field) in config {
                let inner = place.and_then(|place| place.field(name));
                let merged = live.get(name).map_or_else(|| field.clone(), |old| merge(old, field, inner));
                all.insert(name.clone(), merged);
            }
            Value::Object(all)
        }
        (Shape::Items(item, keys), Value::Array(live), Value::Array(config)) => {
            match (steps(live, item, &keys), steps(config, item, &keys)) {
                (Some(olds), Some(news)) => Value::Array(merge_items((&olds, live), (&news, config), item)),
                _ => Value::Array(config.clone()),
            }
        }
        (_, _, config) => config.clone(),
    }
}

/// Items that only the live list has stay before the shared item that they stood before; shared ones are in the order of
/// the configuration (structured-merge-diff `typed/merge.go`).
fn merge_items(live: (&[Step], &[Value]), config: (&[Step], &[Value]), item: Place<'_>) -> Vec<Value> {
    let wanted: BTreeSet<&Step> = config.0.iter().collect();
    let mut places: BTreeMap<&Step, Vec<(usize, &Value)>> = BTreeMap::new();
    for (at, (step, value)) in live.0.iter().zip(live.1).enumerate() {
        places.entry(step).or_default().push((at, value));
    }
    let first = |step: &Step| places.get(step).and_then(|all| all.first()).map(|(at, _)| *at);
    // Where the next shared item stands in the live list, seen from each item of the configuration.
    let mut ahead = Vec::with_capacity(config.0.len());
    for step in config.0.iter().rev() {
        ahead.push(first(step).or_else(|| ahead.last().copied().flatten()));
    }
    let mut out = Vec::new();
    let mut left = live.0.iter().zip(live.1).enumerate().peekable();
    for ((step, value), ahead) in config.0.iter().zip(config.1).zip(ahead.into_iter().rev()) {
        let now = left.peek().map_or(live.0.len(), |(at, _)| *at);
        let until = ahead.filter(|ahead| *ahead >= now).unwrap_or(live.0.len());
        while let Some((_, (old, kept))) = left.next_if(|(at, _)| *at < until) {
            if !wanted.contains(old) {
                out.push(kept.clone());
            }
        }
        let mine = first(step);
        left.next_if(|(at, _)| Some(*at) == mine);
        // One that the live list has twice is replaced.
        out.push(match places.get(step).map(Vec::as_slice) {
            Some([(_, old)]) => merge(old, value, Some(item)),
            _ => value.clone(),
        });
    }
    out.extend(left.filter(|(_, (old, _))| !wanted.contains(old)).map(|(_, (_, kept))| kept.clone()));
    out
}

/// The value without these fields. An object or list that has nothing left is null, and so is a whole that loses a part.
pub(super) fn remove(value: &Value, gone: &Set, place: Option<Place<'_>>) -> Value {
    match (shape(place), value) {
        (Shape::Object, Value::Object(fields)) => {
            let mut kept = Map::new();
            for (name, field) in fields {
                let step = Step::field(name);
                if !gone.members.contains(&step) {
                    let inner = place.and_then(|place| place.field(name));
                    kept.insert(name.clone(), remove_below(field, gone.children.get(&step), inner));
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (Shape::Items(item, keys), Value::Array(items)) => {
            let Some(steps) = steps(items, item, &keys) else { return value.clone() };
            let stays = steps.iter().zip(items).filter(|(step, _)| !gone.members.contains(*step));
            let kept: Vec<Value> =
                stays.map(|(step, value)| remove_below(value, gone.children.get(step), Some(item))).collect();
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        (_, Value::Object(_) | Value::Array(_)) => Value::Null,
        _ => value.clone(),
    }
}

fn remove_below(value: &Value, gone: Option<&Set>, place: Option<Place<'_>>) -> Value {
    gone.map_or_else(|| value.clone(), |gone| remove(value, gone, place))
}

/// Drops the fields that are null or a list of items that has none, as the server's own types do; wholes are left alone.
pub(super) fn omit_empty(value: &mut Value, place: Option<Place<'_>>) {
    match (shape(place), value) {
        (Shape::Object, Value::Object(fields)) => {
            let inner = |name: &str| place.and_then(|place| place.field(name));
            let is_bare = |name: &str, field: &Value| {
                field.as_array().is_some_and(Vec::is_empty) && matches!(shape(inner(name)), Shape::Items(..))
            };
            fields.retain(|name, field| !field.is_null() && !is_bare(name, field));
            for (name, field) in fields {
                omit_empty(field, inner(name));
            }
        }
        (Shape::Items(item, _), Value::Array(items)) => {
            items.iter_mut().for_each(|value| omit_empty(value, Some(item)))
        }
        _ => {}
    }
}
