//! Resources as renderings of the state: some are objects of it, some are made from them (slices of endpoints, addresses of
//! services). Pure.
//!
//! Laws: what a view renders depends on the object alone, so that its revision names the rendering; a watch folded over
//! `changed` is what a list at that revision shows.

use crate::api::list::{Selection, bounded};
use crate::kube::kinds;
use crate::kube::table::Of;
use crate::machine::Change;
use crate::watch::stream::seen;
use fairlead_proto::manifest;
use fairlead_proto::model::ObjectRef;
use fairlead_proto::model::selector::LabelSelector;
use fairlead_proto::v1::{Container, EventType, Kind, Object, Pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A resource that is rendered from objects of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// The objects themselves.
    Own(Kind),
    /// EndpointSlices of an endpoints record.
    Slices,
    /// IPAddresses of a service.
    Addresses,
}

/// The manager that made an IPAddress, as Kubernetes' label says it (pkg/registry/core/service/ipallocator).
const ALLOCATOR: &str = "ipallocator.k8s.io";

impl View {
    /// The view that a resource shows; `None`: it isn't made from objects.
    #[must_use]
    pub fn of(resource: &kinds::Kind) -> Option<Self> {
        match (resource.group, resource.plural) {
            ("", "namespaces") => Some(Self::Own(Kind::Namespace)),
            ("", "nodes") => Some(Self::Own(Kind::Node)),
            ("", "pods") => Some(Self::Own(Kind::Pod)),
            ("", "services") => Some(Self::Own(Kind::Service)),
            ("", "endpoints") => Some(Self::Own(Kind::Endpoints)),
            ("", "events") => Some(Self::Own(Kind::Event)),
            ("discovery.k8s.io", "endpointslices") => Some(Self::Slices),
            ("networking.k8s.io", "ipaddresses") => Some(Self::Addresses),
            _ => None,
        }
    }

    /// The kind of object that it is made from.
    #[must_use]
    pub fn base(self) -> Kind {
        match self {
            Self::Own(kind) => kind,
            Self::Slices => Kind::Endpoints,
            Self::Addresses => Kind::Service,
        }
    }

    /// Which table shows it.
    #[must_use]
    pub fn table(self) -> Of {
        match self {
            Self::Own(Kind::Namespace | Kind::Unspecified) => Of::Namespace,
            Self::Own(Kind::Node) => Of::Node,
            Self::Own(Kind::Pod) => Of::Pod,
            Self::Own(Kind::Service) => Of::Service,
            Self::Own(Kind::Endpoints) => Of::Endpoints,
            Self::Own(Kind::Event) => Of::Event,
            Self::Slices => Of::EndpointSlice,
            Self::Addresses => Of::IpAddress,
        }
    }

    /// What it makes of an object.
    #[must_use]
    pub fn render(self, object: &Object) -> Vec<Value> {
        match self {
            Self::Own(_) => vec![render(object)],
            Self::Slices => object.as_endpoints().map(manifest::render_slices).unwrap_or_default(),
            Self::Addresses => addresses(object),
        }
    }
}

/// An object as Kubernetes' API shows it: with the owners of its fields, and with the status that it always has.
#[must_use]
pub fn render(object: &Object) -> Value {
    let mut value = manifest::render(object);
    let owners = &object.metadata().managed_fields;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        && let Ok(Value::Array(owners)) = serde_json::from_str(owners)
        && !owners.is_empty()
    {
        metadata.insert("managedFields".into(), owners.into());
    }
    if let Some(pod) = object.as_pod()
        && let Some(status) = value.get_mut("status").and_then(Value::as_object_mut)
        && !status.contains_key("containerStatuses")
    {
        status.insert("containerStatuses".into(), containers(pod));
    }
    if object.as_service().is_some()
        && let Some(service) = value.as_object_mut()
    {
        let status = service.entry("status").or_insert_with(|| json!({}));
        if let Some(status) = status.as_object_mut() {
            status.entry("loadBalancer").or_insert_with(|| json!({}));
        }
    }
    value
}

/// A pod's containers as a kubelet would tell of them: here a pod is ready or not, as a whole.
fn containers(pod: &Pod) -> Value {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.r#type == "Ready" && condition.status == "True");
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let one = |container: &Container| {
        json!({
            "name": container.name, "image": container.image, "imageID": "", "restartCount": 0,
            "ready": ready, "started": ready, "state": if ready { json!({"running": {}}) } else { json!({}) },
        })
    };
    containers.iter().map(one).collect()
}

/// The ClusterIPs of a service as IPAddresses (KEP-1880): named by the address, each with its parent.
fn addresses(object: &Object) -> Vec<Value> {
    let Some(spec) = object.as_service().and_then(|service| service.spec.as_ref()) else { return Vec::new() };
    let metadata = object.metadata();
    let held = spec.cluster_ips.iter().filter(|address| !address.is_empty() && *address != "None");
    let one = |address: &String| {
        let family = if address.contains(':') { "IPv6" } else { "IPv4" };
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {
                // Colons are no part of a name.
                "name": address,
                "uid": format!("{}-{}", metadata.uid, family.to_ascii_lowercase()),
                "resourceVersion": metadata.revision.to_string(),
                "creationTimestamp": metadata.creation_timestamp,
                "labels": {"ipaddress.kubernetes.io/ip-family": family, "ipaddress.kubernetes.io/managed-by": ALLOCATOR},
            },
            "spec": {"parentRef": {
                "group": "", "resource": "services", "namespace": metadata.namespace, "name": metadata.name,
            }},
        })
    };
    held.map(one).collect()
}

/// What a list or a watch of a view selects.
#[derive(Clone)]
pub struct Selected {
    /// The view.
    pub view: View,
    /// Of the objects that it is made from: by itself, for a view of its own objects.
    pub base: Selection,
    /// Of what is rendered, for the other views.
    labels: LabelSelector,
    /// Fields of what is rendered, with whether they must have the value.
    fields: Vec<(Vec<String>, bool, String)>,
}

impl Selected {
    /// Parses selectors.
    ///
    /// # Errors
    /// The selector's problem, as Kubernetes words it.
    pub fn parse(view: View, namespace: &str, selectors: (&str, &str)) -> Result<Self, crate::api::list::Unlisted> {
        if let View::Own(kind) = view {
            let base = Selection::parse(kind, namespace, selectors)?;
            return Ok(Self { view, base, labels: LabelSelector::default(), fields: Vec::new() });
        }
        bounded(selectors)?;
        let namespace = if view == View::Slices { namespace } else { "" };
        let mut base = Selection::parse(view.base(), namespace, ("", ""))?;
        // Slices of one service are asked for most: they are of the record that is called as it.
        if let (View::Slices, Some(service)) = (view, selectors.0.strip_prefix("kubernetes.io/service-name=")) {
            let service = service.split(',').next().unwrap_or_default();
            service.strip_prefix('=').unwrap_or(service).clone_into(&mut base.name);
        }
        // The grammar is judged where it is for every kind.
        let labels = Selection::parse(Kind::Namespace, "", (selectors.0, ""))?.labels;
        let fields = fields(selectors.1).map_err(crate::api::list::Unlisted::BadRequest)?;
        Ok(Self { view, base, labels, fields })
    }

    /// Of one name only.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        if name.is_empty() {
            return self;
        }
        match self.view {
            View::Own(_) => name.clone_into(&mut self.base.name),
            View::Slices | View::Addresses => {
                self.fields.push((vec!["metadata".into(), "name".into()], true, name.to_owned()));
            }
        }
        self
    }

    /// True if something rendered is selected. Objects of a view of its own are selected before they are rendered.
    #[must_use]
    pub fn matches(&self, rendered: &Value) -> bool {
        if matches!(self.view, View::Own(_)) {
            return true;
        }
        let labels: BTreeMap<String, String> = rendered
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        self.labels.matches(&labels)
            && self.fields.iter().all(|(path, is, value)| {
                let found = path.iter().try_fold(rendered, |place, step| place.get(step)).and_then(Value::as_str);
                (found.unwrap_or_default() == value) == *is
            })
    }

    /// What a change is to whoever watches the view: what happened, and the object that was rendered as this one of several.
    #[must_use]
    pub fn changed(&self, change: &Change) -> Vec<(EventType, Seen)> {
        if matches!(self.view, View::Own(_)) {
            return seen(&self.base, change).map(|(kind, object)| (kind, Seen::Object(object))).into_iter().collect();
        }
        if change.key.kind != self.base.kind {
            return Vec::new();
        }
        let old = self.rendered(change.old.as_ref());
        let mut new = self.rendered(change.new.as_ref());
        let mut events = Vec::new();
        for (name, mut was) in old {
            match new.remove(&name) {
                Some(is) if same(&was, &is) => {}
                Some(is) => events.push((EventType::Modified, is)),
                None => {
                    set_revision(&mut was, change.revision);
                    events.push((EventType::Deleted, was));
                }
            }
        }
        events.extend(new.into_values().map(|is| (EventType::Added, is)));
        // All have one revision. Whoever is cut off between two of them resumes after the last one that it has: only the
        // last may say that the change is over.
        let last = events.len().saturating_sub(1);
        for (_, value) in events.iter_mut().take(last) {
            set_revision(value, change.revision.saturating_sub(1));
        }
        events.into_iter().map(|(kind, value)| (kind, Seen::Value(value))).collect()
    }

    fn rendered(&self, object: Option<&ObjectRef>) -> BTreeMap<String, Value> {
        let object = object.filter(|object| self.base.matches(object));
        let values = object.map(|object| self.view.render(object)).unwrap_or_default();
        values.into_iter().filter(|value| self.matches(value)).map(|value| (key_of(&value), value)).collect()
    }
}

/// What an event is about.
pub enum Seen {
    /// An object that is rendered as it is: others may have rendered it already.
    Object(ObjectRef),
    /// Something that was rendered for this event.
    Value(Value),
}

/// The same but for its revision.
fn same(one: &Value, other: &Value) -> bool {
    let bare = |value: &Value| {
        let mut value = value.clone();
        set_revision(&mut value, 0);
        value
    };
    bare(one) == bare(other)
}

fn set_revision(value: &mut Value, revision: u64) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// Namespace and name of something rendered.
#[must_use]
pub fn key_of(value: &Value) -> String {
    let text = |field: &str| value.pointer(field).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("/metadata/namespace"), text("/metadata/name"))
}

/// Field selectors of rendered views: `metadata.name` and `metadata.namespace`.
fn fields(text: &str) -> Result<Vec<(Vec<String>, bool, String)>, String> {
    let mut fields = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (path, is, value) = match (part.split_once("!="), part.split_once("=")) {
            (Some((path, value)), _) => (path, false, value),
            (None, Some((path, value))) => (path, true, value.strip_prefix('=').unwrap_or(value)),
            (None, None) => return Err(format!("invalid selector: '{text}'; can't understand '{part}'")),
        };
        if !["metadata.name", "metadata.namespace"].contains(&path) {
            return Err(format!("field label not supported: {path}"));
        }
        fields.push((path.split('.').map(str::to_owned).collect(), is, value.to_owned()));
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::model::Key;
    use fairlead_proto::v1::{Endpoint, EndpointPort, Endpoints, ObjectMeta, Service, ServiceSpec};
    use std::sync::Arc;

    fn record(revision: u64, addresses: &[&str]) -> ObjectRef {
        let metadata = ObjectMeta { name: "web".into(), namespace: "a".into(), revision, ..ObjectMeta::default() };
        let port = EndpointPort { name: "http".into(), port: 80, protocol: "TCP".into(), app_protocol: None };
        let one = |address: &&str| Endpoint {
            address: (*address).to_owned(),
            ready: true,
            serving: true,
            ports: vec![port.clone()],
            ..Endpoint::default()
        };
        let endpoints = addresses.iter().map(one).collect();
        Arc::new(Endpoints { metadata: Some(metadata), endpoints, derived: true, ..Endpoints::default() }.into())
    }

    fn change(old: Option<ObjectRef>, new: Option<ObjectRef>, revision: u64) -> Change {
        Change { revision, key: Key::new(Kind::Endpoints, "a", "web"), old, new, at_ms: 0 }
    }

    fn told(selected: &Selected, change: &Change) -> Vec<(EventType, String, String)> {
        let events = selected.changed(change).into_iter();
        let text =
            |value: &Value, field: &str| value.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        events
            .map(|(kind, seen)| match seen {
                Seen::Value(value) => (kind, text(&value, "/addressType"), text(&value, "/metadata/resourceVersion")),
                Seen::Object(_) => panic!("rendered"),
            })
            .collect()
    }

    #[test]
    fn slices_of_one_change_end_with_its_revision_and_unchanged_ones_are_not_told() {
        let all = Selected::parse(View::Slices, "", ("", "")).unwrap();
        let both = record(5, &["10.0.0.1", "fd00::1"]);
        let events = told(&all, &change(None, Some(both.clone()), 5));
        assert_eq!(
            events,
            [(EventType::Added, "IPv4".into(), "4".into()), (EventType::Added, "IPv6".into(), "5".into())]
        );
        let grown = record(6, &["10.0.0.1", "10.0.0.2", "fd00::1"]);
        let events = told(&all, &change(Some(both.clone()), Some(grown), 6));
        assert_eq!(events, [(EventType::Modified, "IPv4".into(), "6".into())]);
        let events = told(&all, &change(Some(both), None, 9));
        assert_eq!(
            events,
            [(EventType::Deleted, "IPv4".into(), "8".into()), (EventType::Deleted, "IPv6".into(), "9".into())]
        );
    }

    #[test]
    fn slices_are_selected_by_their_own_labels() {
        let of = |labels: &str| Selected::parse(View::Slices, "a", (labels, "")).unwrap();
        let made = change(None, Some(record(5, &["10.0.0.1"])), 5);
        assert_eq!(told(&of("kubernetes.io/service-name=web"), &made).len(), 1);
        assert_eq!(told(&of("kubernetes.io/service-name=other"), &made).len(), 0);
        assert!(Selected::parse(View::Slices, "a", ("a in", "")).is_err());
        assert!(Selected::parse(View::Slices, "a", ("", "spec.x=1")).is_err());
    }

    #[test]
    fn a_service_has_an_address_object_for_each_of_its_addresses() {
        let spec = ServiceSpec { cluster_ips: vec!["10.96.0.9".into(), "fd00::9".into()], ..ServiceSpec::default() };
        let metadata = ObjectMeta { name: "web".into(), namespace: "a".into(), revision: 3, ..ObjectMeta::default() };
        let service: Object = Service { metadata: Some(metadata), spec: Some(spec), ..Service::default() }.into();
        let addresses = View::Addresses.render(&service);
        let names: Vec<_> = addresses.iter().map(key_of).collect();
        assert_eq!(names, ["/10.96.0.9", "/fd00::9"]);
        assert_eq!(addresses[0]["spec"]["parentRef"]["name"], "web");
        let headless = ServiceSpec { cluster_ips: vec!["None".into()], ..ServiceSpec::default() };
        assert_eq!(
            View::Addresses.render(&Service { spec: Some(headless), ..Service::default() }.into()),
            [Value::Null; 0]
        );
        assert_eq!(render(&service)["status"], json!({"loadBalancer": {}}));
    }
}
