//! Lists that merge in a strategic merge patch: of scalars (united) and of objects (merged by their merge key), and their order.
//!
//! Order (patch.go, `normalizeElementOrder`): items of the patch, or of `$setElementOrder`, in that order; the others in the live
//! one; where both are live, the live order weaves them; an item that is new goes before the live ones that follow. (Where the
//! patch also deletes items, Kubernetes may weave new ones in elsewhere; both orders hold there too.) For several items of one
//! merge key see `Rows`. Work is linear in both lists, but for sorting.

use super::key::Key;
use super::strategic::{self, Item, adopt_items};
use super::{List, Place, Refused, text};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{discriminant, take};

/// A `$setElementOrder`.
pub(super) struct Order<'p> {
    pub(super) keys: Vec<Key>,
    pub(super) written: &'p [Value],
}

impl Order<'_> {
    /// The patch's own items must be in the order, and in that order.
    pub(super) fn check(&self, own: &[Value], place: Option<Place<'_>>) -> Result<(), Refused> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let mut rest = self.keys.iter();
        for item in own {
            let is_directive = item.as_object().is_some_and(|item| !matches!(Item::of(item), Ok(Item::Plain(_))));
            if is_directive {
                continue;
            }
            let key = key_at(item, merge_key(place))?;
            if !rest.any(|ordered| *ordered == key) {
                let (own, order) = (text::of_list(own), text::of_list(self.written));
                return Err(Refused::unfit(format!(
                    "The order in patch list:\n{own}\n doesn't match $setElementOrder list:\n{order}\n"
                )));
            }
        }
        Ok(())
    }
}

fn merge_key(place: Option<Place<'_>>) -> Option<&str> {
    place.and_then(Place::merge_key)
}

/// What an item is told apart by: its merge key, or itself.
fn key_at(item: &Value, merge_key: Option<&str>) -> Result<Key, Refused> {
    let Some(name) = merge_key else {
        return Key::of(item).ok_or_else(|| mixed(&[], std::slice::from_ref(item)));
    };
    match item {
        Value::Object(item) => key_of(item, name),
        _ => {
            Err(Refused::unfit(format!("expected a map[string]interface {{}}, but received a {}", text::go_type(item))))
        }
    }
}

/// The merge key of an item; Kubernetes' words if it has none.
fn key_of(item: &Map<String, Value>, name: &str) -> Result<Key, Refused> {
    let key = item.get(name).and_then(Key::of);
    key.ok_or_else(|| {
        let map = text::of(&Value::Object(item.clone()));
        Refused::unfit(format!("map: {map} does not contain declared merge key: {name}"))
    })
}

/// The keys of all items.
pub(super) fn keys(items: &[Value], place: Option<Place<'_>>) -> Result<Vec<Key>, Refused> {
    items.iter().map(|item| key_at(item, merge_key(place))).collect()
}

/// The keys of those items that have one.
pub(super) fn known_keys(items: &[Value], place: Option<Place<'_>>) -> Vec<Key> {
    let key = |item: &Value| match merge_key(place) {
        Some(name) => item.get(name).and_then(Key::of),
        None => Key::of(item),
    };
    items.iter().filter_map(key).collect()
}

fn mixed(live: &[Value], patch: &[Value]) -> Refused {
    let all = [text::of_list(live), text::of_list(patch)].join(" ");
    Refused::unfit(format!("list element types are not identical: [{all}]"))
}

/// Merges a list of a patch into a live one; `order` is the patch's order of it, if it has one.
pub(super) fn merge(
    live: &mut Vec<Value>,
    patch: &[Value],
    place: Option<Place<'_>>,
    order: &[Key],
) -> Result<(), Refused> {
    let mut all = live.iter().chain(patch);
    let Some(first) = all.next() else { return Ok(()) };
    if first.is_array() {
        return Err(Refused::rejected("lists of lists are not supported"));
    }
    if first.is_null() || all.any(|item| discriminant(item) != discriminant(first)) {
        return Err(mixed(live, patch));
    }
    match (first.is_object(), merge_key(place)) {
        (false, _) => {
            unite(live, patch);
            Ok(())
        }
        (true, Some(name)) => merge_objects(live, patch, &Keys::of(name, place), order),
        (true, None) => Err(Refused::unfit("cannot merge lists without merge key for array")),
    }
}

/// Both lists' scalars, each once.
fn unite(live: &mut Vec<Value>, patch: &[Value]) {
    let (before, order) = (known_keys(live, None), known_keys(patch, None));
    let mut seen = BTreeSet::new();
    let all = take(live).into_iter().chain(patch.iter().cloned());
    let once = all.filter_map(|item| Key::of(&item).map(|key| (key, item))).filter(|(key, _)| seen.insert(key.clone()));
    *live = weave(once.collect(), &order, &before);
}

/// What tells the items of a list of objects apart.
struct Keys<'a> {
    /// The merge key.
    merge: &'a str,
    /// All keys of the list (`x-kubernetes-list-map-keys`).
    all: Vec<&'a str>,
    /// The place of the list.
    list: Option<Place<'a>>,
    /// The place of an item.
    item: Option<Place<'a>>,
}

impl<'a> Keys<'a> {
    fn of(merge: &'a str, place: Option<Place<'a>>) -> Self {
        let mut all = match place.map(Place::list) {
            Some(List::Map(all)) => all,
            _ => Vec::new(),
        };
        if !all.contains(&merge) {
            all.push(merge);
        }
        Self { merge, all, list: place, item: place.and_then(Place::item) }
    }

    /// All keys of an item, if it states them all.
    fn exact(&self, item: &Map<String, Value>) -> Option<Vec<Key>> {
        self.all.iter().map(|name| item.get(*name).and_then(Key::of)).collect()
    }

    /// True if both state a key, and not the same.
    fn differ(&self, left: &Value, right: &Map<String, Value>) -> bool {
        self.all.iter().any(|name| match (left.get(*name).and_then(Key::of), right.get(*name).and_then(Key::of)) {
            (Some(left), Some(right)) => left != right,
            _ => false,
        })
    }

    fn ambiguous(&self, item: &Map<String, Value>) -> Refused {
        let (map, keys) = (text::of(&Value::Object(item.clone())), self.all.join(", "));
        let merge = self.merge;
        Refused::unfit(format!(
            "map: {map} may mean several items of the same {merge}: state {keys} in the patch, or use server-side apply"
        ))
    }
}

fn merge_objects(live: &mut Vec<Value>, patch: &[Value], keys: &Keys<'_>, order: &[Key]) -> Result<(), Refused> {
    let (mut plain, mut deleted, mut replace) = (Vec::new(), Vec::new(), false);
    for item in patch.iter().filter_map(Value::as_object) {
        match Item::of(item)? {
            Item::Plain(item) => plain.push((key_of(item, keys.merge)?, item)),
            Item::Delete(item) => deleted.push((key_of(item, keys.merge)?, item)),
            Item::Replace => replace = true,
        }
    }
    if replace {
        *live = adopt_items(patch, keys.list)?;
        return Ok(());
    }
    let again: BTreeSet<&Key> = plain.iter().map(|(key, _)| key).collect();
    let stays: BTreeSet<&Key> = order.iter().filter(|key| !again.contains(key)).collect();
    delete(live, &deleted, keys, &stays)?;
    let before = keys_of_all(live, keys.merge)?;
    let mut rows = Rows::of(take(live), &before, keys, order);
    rows.merge(&plain)?;
    let order: Vec<Key> = plain.into_iter().map(|(key, _)| key).collect();
    *live = weave(rows.items, &order, &before);
    Ok(())
}

fn keys_of_all(items: &[Value], merge: &str) -> Result<Vec<Key>, Refused> {
    items.iter().map(|item| key_at(item, Some(merge))).collect()
}

/// Deletes all items of these merge keys; where an item of one `stays`, it cannot be told which of several goes.
fn delete(
    live: &mut Vec<Value>,
    deleted: &[(Key, &Map<String, Value>)],
    keys: &Keys<'_>,
    stays: &BTreeSet<&Key>,
) -> Result<(), Refused> {
    if deleted.is_empty() {
        return Ok(());
    }
    let mut found: BTreeMap<&Key, usize> = deleted.iter().map(|(key, _)| (key, 0)).collect();
    live.retain(|item| match item.get(keys.merge).and_then(Key::of).and_then(|key| found.get_mut(&key)) {
        Some(count) => {
            *count += 1;
            false
        }
        None => true,
    });
    match deleted.iter().find(|(key, _)| found.get(key).is_some_and(|count| *count > 1) && stays.contains(key)) {
        Some((_, item)) => Err(keys.ambiguous(item)),
        None => Ok(()),
    }
}

/// A live list of objects while a patch is merged into it.
///
/// Several items of one merge key, such as ports 53/TCP and 53/UDP of a Service, whose merge key is `port` alone:
/// - A patch item that states all of the list's own keys (`x-kubernetes-list-map-keys`) is merged into the item that has them;
///   Kubernetes takes the first of that port, and makes both UDP.
/// - Two patch items that state different protocols are two items; Kubernetes merges the second into the first.
/// - Otherwise the first of that merge key is taken, as in Kubernetes, and a deletion takes all.
/// - But if the patch has an order that names the merge key (so that a client computed it, which drops the fields that it took
///   for unchanged), and it cannot be told which is meant, it is refused; Kubernetes changes or deletes the wrong one silently.
struct Rows<'a> {
    keys: &'a Keys<'a>,
    items: Vec<(Key, Value)>,
    /// By merge key, the first item.
    first: BTreeMap<Key, usize>,
    /// By all keys, the first item.
    exact: BTreeMap<Vec<Key>, usize>,
    /// By merge key, how many items are live.
    live: BTreeMap<Key, usize>,
    /// By merge key, how many items the patch's order names.
    ordered: BTreeMap<&'a Key, usize>,
    /// Items that the patch has changed or added.
    claimed: BTreeSet<usize>,
}

impl<'a> Rows<'a> {
    fn of(items: Vec<Value>, merge_keys: &[Key], keys: &'a Keys<'a>, order: &'a [Key]) -> Self {
        let room = items.len();
        let mut rows = Self {
            keys,
            items: Vec::with_capacity(room),
            first: BTreeMap::new(),
            exact: BTreeMap::new(),
            live: BTreeMap::new(),
            ordered: BTreeMap::new(),
            claimed: BTreeSet::new(),
        };
        order.iter().for_each(|key| *rows.ordered.entry(key).or_insert(0) += 1);
        for (key, item) in merge_keys.iter().zip(items) {
            *rows.live.entry(key.clone()).or_insert(0) += 1;
            rows.push(key.clone(), item);
        }
        rows
    }

    fn push(&mut self, key: Key, item: Value) {
        let at = self.items.len();
        self.first.entry(key.clone()).or_insert(at);
        if let Some(exact) = item.as_object().and_then(|item| self.keys.exact(item)) {
            self.exact.entry(exact).or_insert(at);
        }
        self.items.push((key, item));
    }

    fn merge(&mut self, patch: &[(Key, &Map<String, Value>)]) -> Result<(), Refused> {
        // Those that say which item they mean come first, so that no other takes it.
        let meant = |(_, item): &(Key, &Map<String, Value>)| self.exact.get(&self.keys.exact(item)?).copied();
        let meant: Vec<Option<usize>> = patch.iter().map(meant).collect();
        self.claimed.extend(meant.iter().flatten());
        for ((key, item), meant) in patch.iter().zip(meant) {
            match meant.map_or_else(|| self.find(key, item), |at| Ok(Some(at)))? {
                Some(at) => self.merge_into(at, item)?,
                None => {
                    self.claimed.insert(self.items.len());
                    let mut new = Map::new();
                    strategic::merge(&mut new, item, self.keys.item)?;
                    self.push(key.clone(), Value::Object(new));
                }
            }
        }
        Ok(())
    }

    /// The item that a patch item is merged into; `None`: it is new.
    fn find(&self, key: &Key, item: &Map<String, Value>) -> Result<Option<usize>, Refused> {
        let Some(first) = self.first.get(key).copied() else { return Ok(None) };
        if let Some(exact) = self.keys.exact(item).and_then(|exact| self.exact.get(&exact)) {
            return Ok(Some(*exact));
        }
        let live = self.live.get(key).copied().unwrap_or_default();
        let ordered = self.ordered.get(key).copied().unwrap_or_default();
        if live > 0 && ordered > 0 && live.max(ordered) > 1 {
            return Err(self.keys.ambiguous(item));
        }
        let is_other = self.items.get(first).is_some_and(|(_, first)| self.keys.differ(first, item));
        Ok(Some(first).filter(|_| !(is_other && self.claimed.contains(&first))))
    }

    fn merge_into(&mut self, at: usize, patch: &Map<String, Value>) -> Result<(), Refused> {
        self.claimed.insert(at);
        if let Some((_, Value::Object(item))) = self.items.get_mut(at) {
            strategic::merge(item, patch, self.keys.item)?;
            if let Some(exact) = self.keys.exact(item) {
                self.exact.entry(exact).or_insert(at);
            }
        }
        Ok(())
    }
}

/// Puts the items of a list in the order of a `$setElementOrder`; those that it does not name keep theirs (`before`).
pub(super) fn arrange(
    items: &mut Vec<Value>,
    place: Option<Place<'_>>,
    order: &[Key],
    before: &[Key],
) -> Result<(), Refused> {
    let keys = keys(items, place)?;
    *items = weave(keys.into_iter().zip(take(items)).collect(), order, before);
    Ok(())
}

/// Items that `order` names in that order, the others as they were before, woven as they were before.
fn weave(items: Vec<(Key, Value)>, order: &[Key], before: &[Key]) -> Vec<Value> {
    let (order, before) = (ranks(order), ranks(before));
    let rank = |key: &Key, ranks: &BTreeMap<&Key, usize>| ranks.get(key).copied();
    let (mut named, mut others): (Vec<_>, Vec<_>) = items.into_iter().partition(|(key, _)| order.contains_key(key));
    named.sort_by_key(|(key, _)| rank(key, &order));
    others.sort_by_key(|(key, _)| rank(key, &before).unwrap_or(usize::MAX));
    let mut woven = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let Some((next, _)) = named.peek() {
        let at = rank(next, &before);
        let is_earlier = |(other, _): &(Key, Value)| matches!((rank(other, &before), at), (Some(a), Some(b)) if a < b);
        match others.next_if(is_earlier) {
            Some((_, item)) => woven.push(item),
            None => woven.extend(named.next().map(|(_, item)| item)),
        }
    }
    woven.extend(others.map(|(_, item)| item));
    woven
}

/// By key, where it is first.
fn ranks(keys: &[Key]) -> BTreeMap<&Key, usize> {
    let mut ranks = BTreeMap::new();
    for (at, key) in keys.iter().enumerate() {
        ranks.entry(key).or_insert(at);
    }
    ranks
}
