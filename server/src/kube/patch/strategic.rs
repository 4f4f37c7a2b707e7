//! Kubernetes' strategic merge patch: a merge patch whose lists merge as the schema says, and whose directives say the rest.
//!
//! Rules: sig-api-machinery/strategic-merge-patch.md of kubernetes/community, and what apimachinery's
//! util/strategicpatch/patch.go makes of them. `$patch: replace` takes a map as it is, `$patch: delete` empties it; `$retainKeys`
//! clears all fields but these; `$setElementOrder/<list>` orders a list; `$deleteFromPrimitiveList/<list>` takes scalars out.
//! Laws: no directive and no null of a patch is ever stored; without order directives, twice is once. Where the schema does not
//! know a field, its maps merge and its lists are replaced.

use super::key::Key;
use super::list::{self, Order};
use super::{Place, Refused, text};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder";
const DELETE: &str = "$deleteFromPrimitiveList";

const BAD_RETAIN: &str = "invalid patch format of retainKeys";
const BAD_ORDER: &str = "invalid patch format of setElementOrder list";
const BAD_DELETE: &str = "invalid patch format of primitive list";

/// What a field of a patch is for.
enum Field<'p> {
    Patch,
    Retain,
    Order(&'p str),
    Delete(&'p str),
    Plain,
}

impl<'p> Field<'p> {
    fn of(name: &'p str) -> Result<Self, Refused> {
        let list = |rest: &'p str, bad: &str| rest.strip_prefix('/').ok_or_else(|| Refused::malformed(bad));
        match name {
            PATCH => Ok(Self::Patch),
            RETAIN => Ok(Self::Retain),
            _ => match (name.strip_prefix(ORDER), name.strip_prefix(DELETE)) {
                (Some(rest), _) => list(rest, BAD_ORDER).map(Self::Order),
                (_, Some(rest)) => list(rest, BAD_DELETE).map(Self::Delete),
                _ => Ok(Self::Plain),
            },
        }
    }
}

/// The object with the patch applied.
///
/// Unlike Kubernetes: what it answers with 500 is 422 here; directives in what is new are carried out, where it drops or even
/// stores them; what the patch both adds to and deletes from a list of scalars is deleted, where it leaves that to chance.
pub(super) fn apply(live: &Value, patch: &Map<String, Value>, place: Option<Place<'_>>) -> Result<Value, Refused> {
    let mut fields = super::fields_of(live);
    merge(&mut fields, patch, place)?;
    Ok(Value::Object(fields))
}

/// Merges a patch into a map.
pub(super) fn merge(
    live: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    place: Option<Place<'_>>,
) -> Result<(), Refused> {
    match patch.get(PATCH).map(|directive| (directive, directive.as_str())) {
        None => merge_fields(live, patch, place),
        Some((_, Some("replace"))) => {
            live.clear();
            merge_fields(live, patch, place)
        }
        Some((_, Some("delete"))) => {
            live.clear();
            Ok(())
        }
        Some((other, _)) => Err(unknown_directive(other, patch)),
    }
}

/// Merges a patch into a map, whatever its `$patch` says.
fn merge_fields(
    live: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    place: Option<Place<'_>>,
) -> Result<(), Refused> {
    if let Some(names) = patch.get(RETAIN) {
        retain(live, patch, names)?;
    }
    let mut gone = BTreeSet::new();
    let ordered = merge_ordered(live, patch, place)?;
    for (name, value) in patch {
        let plain = matches!(Field::of(name)?, Field::Plain) && !ordered.contains(name.as_str());
        if plain && !merge_field(live, (name, value), place)? {
            gone.insert(name.as_str());
        }
    }
    // One sweep, whatever the number of deletions.
    if !gone.is_empty() {
        live.retain(|name, _| !gone.contains(name.as_str()));
    }
    for (name, value) in patch {
        if let Field::Delete(name) = Field::of(name)? {
            take_scalars(live, name, value)?;
        }
    }
    Ok(())
}

/// The lists that have an order in the patch, merged and ordered; the names of those that need no more.
fn merge_ordered<'p>(
    live: &mut Map<String, Value>,
    patch: &'p Map<String, Value>,
    place: Option<Place<'_>>,
) -> Result<BTreeSet<&'p str>, Refused> {
    let mut merged = BTreeSet::new();
    for (field, order) in patch {
        let Field::Order(name) = Field::of(field)? else { continue };
        let Value::Array(order) = order else { return Err(Refused::malformed(BAD_ORDER)) };
        let place = place.and_then(|place| place.field(name));
        let order = Order { keys: list::keys(order, place)?, written: order };
        let own = patch.get(name).map(list_of).transpose()?;
        if let Some(own) = own {
            order.check(own, place)?;
        }
        let is_live = live.get(name).is_some_and(|live| !live.is_null());
        match (is_live, own) {
            (false, None) => continue,
            (false, Some(own)) => drop(live.insert(name.to_owned(), Value::Array(adopt_items(own, place)?))),
            (true, _) => {}
        }
        let Some(items) = live.get_mut(name) else { continue };
        let Value::Array(items) = items else { return Err(no_list(items)) };
        let before = list::known_keys(items, place);
        match own {
            Some(own) if is_live && merges(place) => list::merge(items, own, place, &order.keys)?,
            Some(own) if is_live => *items = adopt_items(own, place)?,
            _ => {}
        }
        list::arrange(items, place, &order.keys, &before)?;
        merged.insert(name);
    }
    Ok(merged)
}

/// True if the list here merges.
fn merges(place: Option<Place<'_>>) -> bool {
    place.is_some_and(|place| place.has_strategy("merge"))
}

fn list_of(value: &Value) -> Result<&[Value], Refused> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| no_list(value))
}

fn no_list(value: &Value) -> Refused {
    Refused::unfit(format!("expected a []interface {{}}, but received a {}", text::go_type(value)))
}

/// Kubernetes' words for a `$patch` that is none.
pub(super) fn unknown_directive(directive: &Value, patch: &Map<String, Value>) -> Refused {
    let map = text::of(&Value::Object(patch.clone()));
    Refused::unfit(format!("unknown patch type: {} in map: {map}", text::of(directive)))
}

/// Merges one field; false: it is to be removed.
fn merge_field(
    live: &mut Map<String, Value>,
    (name, value): (&String, &Value),
    place: Option<Place<'_>>,
) -> Result<bool, Refused> {
    let place = place.and_then(|place| place.field(name));
    let replaced = place.is_some_and(|place| place.has_strategy("replace"));
    match (live.get_mut(name), value) {
        (_, Value::Null) => return Ok(false),
        (Some(Value::Object(live)), Value::Object(patch)) if !replaced => {
            return merge(live, patch, place).map(|()| true);
        }
        (Some(Value::Array(live)), Value::Array(patch)) if merges(place) => {
            return list::merge(live, patch, place, &[]).map(|()| true);
        }
        _ => {}
    }
    Ok(match adopt(value, place)? {
        Some(value) => {
            live.insert(name.clone(), value);
            true
        }
        None => false,
    })
}

/// Clears what `$retainKeys` does not name; what the patch sets must be named.
fn retain(live: &mut Map<String, Value>, patch: &Map<String, Value>, names: &Value) -> Result<(), Refused> {
    let names = names.as_array().and_then(|names| names.iter().map(Value::as_str).collect::<Option<BTreeSet<_>>>());
    let names = names.ok_or_else(|| Refused::malformed(BAD_RETAIN))?;
    for (name, value) in patch {
        let sets = matches!(Field::of(name)?, Field::Plain) && !value.is_null();
        if sets && !names.contains(name.as_str()) {
            return Err(Refused::malformed(BAD_RETAIN));
        }
    }
    live.retain(|name, _| names.contains(name.as_str()));
    Ok(())
}

/// Takes scalars out of a list, whatever its strategy; no such list, nothing to do.
fn take_scalars(live: &mut Map<String, Value>, name: &str, scalars: &Value) -> Result<(), Refused> {
    let scalars = scalars.as_array().and_then(|all| all.iter().map(Key::of).collect::<Option<BTreeSet<_>>>());
    let scalars = scalars.ok_or_else(|| Refused::malformed(BAD_DELETE))?;
    if let Some(Value::Array(items)) = live.get_mut(name) {
        items.retain(|item| Key::of(item).is_none_or(|key| !scalars.contains(&key)));
    }
    Ok(())
}

/// A value of a patch as it is stored where nothing is to merge with: a map is merged into an empty one. `None`: nothing is
/// stored.
pub(super) fn adopt(value: &Value, place: Option<Place<'_>>) -> Result<Option<Value>, Refused> {
    match value {
        Value::Null => Ok(None),
        Value::Object(fields) if fields.get(PATCH).is_some_and(|directive| directive == "delete") => Ok(None),
        Value::Object(fields) => {
            let mut adopted = Map::new();
            merge(&mut adopted, fields, place)?;
            Ok(Some(Value::Object(adopted)))
        }
        Value::Array(items) => Ok(Some(Value::Array(adopt_items(items, place)?))),
        scalar => Ok(Some(scalar.clone())),
    }
}

/// Items of the list here without those that are directives; a null item stays.
pub(super) fn adopt_items(items: &[Value], list: Option<Place<'_>>) -> Result<Vec<Value>, Refused> {
    let place = list.and_then(Place::item);
    let own = items.iter().filter(|item| item.get(PATCH).is_none());
    own.map(|item| Ok(adopt(item, place)?.unwrap_or(Value::Null))).collect()
}

/// What an item of a list in a patch is for.
pub(super) enum Item<'p> {
    Plain(&'p Map<String, Value>),
    /// The live items of its merge key go.
    Delete(&'p Map<String, Value>),
    /// The other items of the patch take the place of the live ones.
    Replace,
}

impl<'p> Item<'p> {
    /// # Errors
    /// If it has another `$patch`: `merge` is for schemas only.
    pub(super) fn of(item: &'p Map<String, Value>) -> Result<Self, Refused> {
        match item.get(PATCH).map(|directive| (directive, directive.as_str())) {
            None => Ok(Self::Plain(item)),
            Some((_, Some("delete"))) => Ok(Self::Delete(item)),
            Some((_, Some("replace"))) => Ok(Self::Replace),
            Some((_, Some("merge"))) => Err(Refused::unfit("merging lists cannot yet be specified in the patch")),
            Some((other, _)) => Err(unknown_directive(other, item)),
        }
    }
}
