//! What was rendered, as bytes, for whoever asks for the same: a revision is of one object only, so that view, form and
//! revision name the bytes. Lists of an unchanged cluster, and all watchers of one form, share them.

use crate::kube::accept::Version;
use crate::kube::table::{self, Include, Of};
use crate::kube::view::View;
use bytes::Bytes;
use fairlead_proto::model::ObjectRef;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of one generation; two are kept.
const GENERATION: usize = 24 << 20;
/// What an entry costs beside its bytes, about.
const ENTRY: usize = 160;

/// A form of something rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The whole, as JSON.
    Whole,
    /// Its metadata.
    Partial(Version),
    /// A row of a table, as of some second: it tells an age.
    Row(Include, Version, i64),
}

/// The cache.
#[derive(Default)]
pub struct Rendered(Mutex<Generations>);

type Key = (View, Form, u64);
/// Of one object: the bytes of each thing that a view makes of it.
type Parts = Arc<[Bytes]>;

#[derive(Default)]
struct Generations {
    young: HashMap<Key, Parts>,
    old: HashMap<Key, Parts>,
    bytes: usize,
}

impl Generations {
    fn get(&mut self, key: &Key) -> Option<Parts> {
        if let Some(found) = self.young.get(key) {
            return Some(found.clone());
        }
        let found = self.old.remove(key)?;
        self.insert(*key, found.clone());
        Some(found)
    }

    fn insert(&mut self, key: Key, parts: Parts) {
        self.bytes += parts.iter().map(Bytes::len).sum::<usize>() + ENTRY;
        self.young.insert(key, parts);
        if self.bytes > GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }
}

impl Rendered {
    /// What a view makes of objects, in a form, one after the other. Objects without a revision are rendered anew.
    #[must_use]
    pub fn all(&self, (view, form): (View, Form), objects: &[ObjectRef]) -> Vec<Bytes> {
        let mut found: Vec<Option<Parts>> = {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            objects.iter().map(|object| held.get(&(view, form, object.metadata().revision))).collect()
        };
        let mut made = Vec::new();
        for (place, object) in found.iter_mut().zip(objects) {
            if place.is_none() {
                let parts: Parts = view.render(object).iter().map(|value| bytes(view.table(), form, value)).collect();
                made.push(((view, form, object.metadata().revision), parts.clone()));
                *place = Some(parts);
            }
        }
        if !made.is_empty() {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, parts) in made.into_iter().filter(|(key, _)| key.2 != 0) {
                held.insert(key, parts);
            }
        }
        found.into_iter().flatten().flat_map(|parts| parts.iter().cloned().collect::<Vec<_>>()).collect()
    }
}

/// Something rendered, in a form.
#[must_use]
pub fn bytes(of: Of, form: Form, value: &Value) -> Bytes {
    let text = match form {
        Form::Whole => value.to_string(),
        Form::Partial(version) => table::partial(value, version).to_string(),
        Form::Row(include, version, now) => table::full_row(of, value, (include, version, now)).to_string(),
    };
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{Kind, ObjectMeta, Service};

    fn service(revision: u64) -> ObjectRef {
        let metadata = ObjectMeta { name: format!("s{revision}"), revision, ..ObjectMeta::default() };
        Arc::new(Service { metadata: Some(metadata), ..Service::default() }.into())
    }

    #[test]
    fn the_same_is_rendered_once_and_each_form_is_its_own() {
        let (cache, view) = (Rendered::default(), View::Own(Kind::Service));
        let objects = [service(1), service(2)];
        let first = cache.all((view, Form::Whole), &objects);
        let again = cache.all((view, Form::Whole), &objects);
        assert_eq!(first.len(), 2);
        for (one, other) in first.iter().zip(&again) {
            assert_eq!(one.as_ptr(), other.as_ptr(), "shared");
        }
        let rows = cache.all((view, Form::Row(Include::Metadata, Version::V1, 100)), &objects);
        assert!(rows[0].starts_with(b"{\"cells\":[\"s1\""), "{:?}", rows[0]);
        assert!(
            cache.all((view, Form::Partial(Version::V1)), &objects)[0]
                .starts_with(b"{\"kind\":\"PartialObjectMetadata\"")
        );
    }

    #[test]
    fn what_it_holds_is_bounded_and_what_is_used_stays() {
        let (cache, view) = (Rendered::default(), View::Own(Kind::Service));
        let kept = cache.all((view, Form::Whole), &[service(1)]);
        for round in 0..20_u64 {
            let many: Vec<ObjectRef> = (0..20_000).map(|number| service(2 + round * 20_000 + number)).collect();
            let _ = cache.all((view, Form::Whole), &many);
            assert_eq!(cache.all((view, Form::Whole), &[service(1)])[0].as_ptr(), kept[0].as_ptr(), "{round}");
        }
        let held = cache.0.lock().unwrap();
        let bytes =
            |map: &HashMap<Key, Parts>| map.values().flat_map(|parts| parts.iter()).map(Bytes::len).sum::<usize>();
        assert!(bytes(&held.young) + bytes(&held.old) <= 2 * GENERATION);
    }
}
