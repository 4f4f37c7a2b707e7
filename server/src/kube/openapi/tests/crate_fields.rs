//! The fields that k8s-openapi's types read are those that the definitions name: a new version of the crate shows here.
//!
//! A deserializer that has something of every type is given to each kind; it writes down the fields of each struct it is asked
//! for. Struct names are short, so two definitions of one short name (EndpointPort) may each be either.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectRulesReview};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Event, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, Status};
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::super::definitions;

type Seen = RefCell<BTreeMap<String, BTreeSet<BTreeSet<String>>>>;

#[derive(Clone, Copy)]
struct Every<'a>(&'a Seen);

struct Fields<'a> {
    every: Every<'a>,
    left: Vec<&'a str>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let name = self.left.pop();
        name.map(|name| seed.deserialize(IntoDeserializer::<Error>::into_deserializer(name) as StrDeserializer<'_, _>))
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.every)
    }
}

struct Once<'a>(Option<Every<'a>>);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|every| seed.deserialize(every)).transpose()
    }
}

impl<'de> Deserializer<'de> for Every<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let set = fields.iter().map(|&field| field.to_owned()).collect();
        self.0.borrow_mut().entry(name.to_owned()).or_default().insert(set);
        // A kind says of itself what it is, and reads no other.
        let left = fields.iter().copied().filter(|field| !["apiVersion", "kind"].contains(field)).collect();
        visitor.visit_map(Fields { every: self, left })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Once(Some(self)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { every: self, left: vec!["key"] })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(true)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i32(1)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(1)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("2026-01-01T00:00:00Z")
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier ignored_any
    }
}

fn read<T: DeserializeOwned>(seen: &Seen) {
    T::deserialize(Every(seen)).unwrap();
}

#[test]
fn definitions_name_the_fields_that_the_crate_reads() {
    let seen = Seen::default();
    let all: [fn(&Seen); 16] = [
        read::<Endpoints>,
        read::<Event>,
        read::<Namespace>,
        read::<Node>,
        read::<Pod>,
        read::<Service>,
        read::<EndpointSlice>,
        read::<Lease>,
        read::<IPAddress>,
        read::<ServiceCIDR>,
        read::<SelfSubjectReview>,
        read::<SelfSubjectAccessReview>,
        read::<SelfSubjectRulesReview>,
        read::<DeleteOptions>,
        read::<ListMeta>,
        read::<Status>,
    ];
    all.iter().for_each(|one| one(&seen));
    let mut named = BTreeMap::<String, BTreeSet<BTreeSet<String>>>::new();
    for (name, schema) in definitions().iter().filter(|(name, _)| !name.ends_with("List")) {
        if let Some(fields) = schema.get("properties").and_then(|fields| fields.as_object()) {
            let short = name.rsplit('.').next().unwrap().to_owned();
            named.entry(short).or_default().insert(fields.keys().cloned().collect());
        }
    }
    assert_eq!(seen.into_inner(), named);
}
