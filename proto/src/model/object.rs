//! What every kind has in common: its key and its metadata. One exhaustive match each, so that a new kind is a list
//! of compiler errors.

use crate::model::Key;
use crate::v1::{Endpoints, Event, Kind, Namespace, Node, Object, ObjectMeta, Pod, Service, object};
use std::sync::Arc;

/// A shared, immutable object.
pub type ObjectRef = Arc<Object>;

static NO_METADATA: ObjectMeta = ObjectMeta {
    name: String::new(),
    generate_name: String::new(),
    namespace: String::new(),
    uid: String::new(),
    revision: 0,
    generation: 0,
    creation_timestamp: String::new(),
    deletion_timestamp: String::new(),
    deletion_grace_period_seconds: None,
    labels: std::collections::BTreeMap::new(),
    annotations: std::collections::BTreeMap::new(),
    finalizers: Vec::new(),
    owner_references: Vec::new(),
    last_applied: String::new(),
    managed_fields: String::new(),
};

impl Object {
    /// Kind of the object; `Unspecified` for an empty message.
    #[must_use]
    pub fn object_kind(&self) -> Kind {
        match &self.kind {
            None => Kind::Unspecified,
            Some(object::Kind::Namespace(_)) => Kind::Namespace,
            Some(object::Kind::Node(_)) => Kind::Node,
            Some(object::Kind::Pod(_)) => Kind::Pod,
            Some(object::Kind::Service(_)) => Kind::Service,
            Some(object::Kind::Endpoints(_)) => Kind::Endpoints,
            Some(object::Kind::Event(_)) => Kind::Event,
        }
    }

    /// Metadata; an empty one if the message has none.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match &self.kind {
            None => None,
            Some(object::Kind::Namespace(it)) => it.metadata.as_ref(),
            Some(object::Kind::Node(it)) => it.metadata.as_ref(),
            Some(object::Kind::Pod(it)) => it.metadata.as_ref(),
            Some(object::Kind::Service(it)) => it.metadata.as_ref(),
            Some(object::Kind::Endpoints(it)) => it.metadata.as_ref(),
            Some(object::Kind::Event(it)) => it.metadata.as_ref(),
        }
        .unwrap_or(&NO_METADATA)
    }

    /// Metadata to change, made if absent; `None` for an empty message.
    pub fn metadata_mut(&mut self) -> Option<&mut ObjectMeta> {
        let metadata = match self.kind.as_mut()? {
            object::Kind::Namespace(it) => &mut it.metadata,
            object::Kind::Node(it) => &mut it.metadata,
            object::Kind::Pod(it) => &mut it.metadata,
            object::Kind::Service(it) => &mut it.metadata,
            object::Kind::Endpoints(it) => &mut it.metadata,
            object::Kind::Event(it) => &mut it.metadata,
        };
        Some(metadata.get_or_insert_default())
    }

    /// The kept fields that Fairlead doesn't read (a JSON overlay); empty if none.
    #[must_use]
    pub fn extra_json(&self) -> &str {
        match &self.kind {
            None => "",
            Some(object::Kind::Namespace(it)) => &it.extra_json,
            Some(object::Kind::Node(it)) => &it.extra_json,
            Some(object::Kind::Pod(it)) => &it.extra_json,
            Some(object::Kind::Service(it)) => &it.extra_json,
            Some(object::Kind::Endpoints(it)) => &it.extra_json,
            Some(object::Kind::Event(it)) => &it.extra_json,
        }
    }

    /// Identity of the object.
    #[must_use]
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        Key::new(self.object_kind(), metadata.namespace.clone(), metadata.name.clone())
    }

    /// The service, if it is one.
    #[must_use]
    pub fn as_service(&self) -> Option<&Service> {
        if let Some(object::Kind::Service(it)) = &self.kind { Some(it) } else { None }
    }

    /// The pod, if it is one.
    #[must_use]
    pub fn as_pod(&self) -> Option<&Pod> {
        if let Some(object::Kind::Pod(it)) = &self.kind { Some(it) } else { None }
    }

    /// The node, if it is one.
    #[must_use]
    pub fn as_node(&self) -> Option<&Node> {
        if let Some(object::Kind::Node(it)) = &self.kind { Some(it) } else { None }
    }

    /// The endpoints record, if it is one.
    #[must_use]
    pub fn as_endpoints(&self) -> Option<&Endpoints> {
        if let Some(object::Kind::Endpoints(it)) = &self.kind { Some(it) } else { None }
    }

    /// The event, if it is one.
    #[must_use]
    pub fn as_event(&self) -> Option<&Event> {
        if let Some(object::Kind::Event(it)) = &self.kind { Some(it) } else { None }
    }

    /// The namespace object, if it is one.
    #[must_use]
    pub fn as_namespace(&self) -> Option<&Namespace> {
        if let Some(object::Kind::Namespace(it)) = &self.kind { Some(it) } else { None }
    }
}

macro_rules! into_object {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Object {
            fn from(it: $kind) -> Self {
                Self { kind: Some(object::Kind::$kind(it)) }
            }
        }
    )*};
}
into_object!(Namespace, Node, Pod, Service, Endpoints, Event);
