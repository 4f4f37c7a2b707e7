//! Objects from the servers as they are shown: by name, by list, rendered as EndpointSlices where asked, and what wide
//! tables need beside them.

use crate::client::Session;
use crate::client::failure::Failure;
use crate::client::files::Files;
use crate::client::kinds::Resource;
use crate::client::output::{Shown, pairs, text};
use crate::client::table::rows::{Beside, Count};
use crate::client::targets::Targets;
use fairlead_proto::manifest;
use fairlead_proto::model::Key;
use fairlead_proto::model::selector::LabelSelector;
use fairlead_proto::v1::{GetRequest, HistoryEvent, HistoryRequest, Kind, ListRequest, Object, Problem};
use serde_json::{Value, json};

/// Objects a page, unless --chunk-size says.
pub const CHUNK: u32 = 500;

/// Which objects of a type.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty = all namespaces.
    pub namespace: String,
    /// -l.
    pub labels: String,
    /// --field-selector.
    pub fields: String,
    /// Objects a page; 0 = all at once.
    pub chunk: u32,
    /// As they were then, if by name; 0 = now.
    pub revision: u64,
}

/// What a command line selects.
pub struct Selected {
    /// Objects, in the order of the command line.
    pub objects: Vec<Shown>,
    /// Names that failed.
    pub failures: Vec<Failure>,
}

impl Session {
    /// One object.
    ///
    /// # Errors
    /// [`Failure`]; `NotFound` if there is none.
    pub async fn object(&self, key: &Key) -> Result<Object, Failure> {
        let answer = self.servers.get(GetRequest { key: Some(key.to_wire()), ..GetRequest::default() }).await?;
        answer.object.ok_or_else(|| Failure::local("the server answered without an object"))
    }

    /// One object of a resource type, as it is shown.
    ///
    /// # Errors
    /// [`Failure`]; `NotFound` if there is none.
    pub async fn named(&self, resource: &'static Resource, name: &str) -> Result<Shown, Failure> {
        if resource.is_stored() {
            let object = self.object(&Key::new(resource.kind, self.namespace.as_str(), name)).await?;
            return Ok(Shown { resource, value: manifest::render(&object) });
        }
        let filter = Filter { namespace: self.namespace.clone(), ..Filter::default() };
        let all = self.list(resource, &filter).await?;
        all.into_iter().find(|one| text(&one.value, "/metadata/name") == name).ok_or_else(|| missing(resource, name))
    }

    /// One object of a resource type as it was at a revision.
    ///
    /// # Errors
    /// [`Failure`]; `NotFound` if there was none then.
    pub async fn past(&self, resource: &'static Resource, name: &str, revision: u64) -> Result<Shown, Failure> {
        let key = Key::new(resource.must_be_stored()?.kind, self.namespace.as_str(), name);
        Ok(Shown { resource, value: manifest::render(&self.at(&key, revision).await?) })
    }

    /// Every object of a resource type that a filter lets through.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn list(&self, resource: &'static Resource, filter: &Filter) -> Result<Vec<Shown>, Failure> {
        if resource.kind == Kind::Event {
            let events = self.events(&filter.namespace, None).await?;
            return Ok(events.iter().map(|event| Shown { resource, value: event_manifest(event) }).collect());
        }
        let mut shown = Vec::new();
        for object in self.stored(resource, filter).await? {
            shown.extend(render(resource, &object, filter)?);
        }
        Ok(shown)
    }

    /// The stored objects behind a list, page by page.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stored(&self, resource: &Resource, filter: &Filter) -> Result<Vec<Object>, Failure> {
        let mut request = ListRequest {
            kind: resource.kind as i32,
            namespace: if resource.is_namespaced() { filter.namespace.clone() } else { String::new() },
            limit: filter.chunk,
            ..ListRequest::default()
        };
        if resource.is_stored() {
            // Slices have labels and names of their own: they are filtered when they are rendered.
            (request.label_selector, request.field_selector) = (filter.labels.clone(), filter.fields.clone());
        }
        let mut objects = Vec::new();
        loop {
            let page = self.servers.list(request.clone()).await?;
            objects.extend(page.items);
            if page.continue_token.is_empty() {
                return Ok(objects);
            }
            request.continue_token = page.continue_token;
        }
    }

    /// The recent past, oldest first.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn events(&self, namespace: &str, key: Option<&Key>) -> Result<Vec<HistoryEvent>, Failure> {
        let request = HistoryRequest { namespace: namespace.to_owned(), key: key.map(Key::to_wire), limit: 0 };
        Ok(self.servers.history(request).await?.events)
    }

    /// What a command line selects: names, or everything of its types.
    ///
    /// # Errors
    /// A list that failed as a whole; names fail one by one.
    pub async fn select(&self, targets: &Targets, filter: &Filter) -> Result<Selected, Failure> {
        let mut selected = Selected { objects: Vec::new(), failures: Vec::new() };
        for (resource, name) in &targets.named {
            let found = match filter.revision {
                0 => self.named(resource, name).await,
                past => self.past(resource, name, past).await,
            };
            match found {
                Ok(shown) => selected.objects.push(shown),
                Err(failure @ Failure::Server(_)) => selected.failures.push(failure),
                Err(failure) => return Err(failure),
            }
        }
        for resource in &targets.whole {
            selected.objects.extend(self.list(resource, filter).await?);
        }
        Ok(selected)
    }

    /// The objects that manifests name.
    ///
    /// # Errors
    /// A file can't be read, or the servers can't be asked; objects fail one by one.
    pub async fn select_files(&self, files: &Files, verb: &str) -> Result<Selected, Failure> {
        let mut selected = Selected { objects: Vec::new(), failures: Vec::new() };
        for document in files.documents(verb)? {
            let found = match document.identify(self) {
                Ok((resource, key)) => {
                    self.object(&key).await.map(|object| Shown { resource, value: manifest::render(&object) })
                }
                Err(failure) => Err(failure),
            };
            match found {
                Ok(shown) => selected.objects.push(shown),
                Err(failure @ (Failure::Connection(_) | Failure::Unknown(_))) => return Err(failure),
                Err(failure) => selected.failures.push(failure),
            }
        }
        Ok(selected)
    }

    /// What the rows of a table need beside their objects. Nodes are asked for only if a cell shows them, and unknown
    /// if they can't be had.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn beside(&self, objects: &[Shown], wide: bool) -> Result<Beside, Failure> {
        let mut beside = Beside::default();
        let services = wide && objects.iter().any(|object| object.resource.kind == Kind::Service);
        let nodes = objects.iter().any(|object| {
            object.resource.kind == Kind::Node
                && (wide || text(&object.value, "/status/nodeInfo/kubeletVersion").is_empty())
        });
        if services {
            let mut spaces: Vec<&str> =
                objects.iter().map(|object| text(&object.value, "/metadata/namespace")).collect();
            spaces.sort_unstable();
            spaces.dedup();
            let namespace = if let [one] = spaces.as_slice() { (*one).to_owned() } else { String::new() };
            let filter = Filter { namespace, chunk: CHUNK, ..Filter::default() };
            for object in self.stored(Resource::of(Kind::Endpoints), &filter).await? {
                let Some(record) = object.as_endpoints() else { continue };
                let metadata = object.metadata();
                let ready = record.endpoints.iter().filter(|endpoint| endpoint.ready).count();
                let count = Count { ready, total: record.endpoints.len(), revision: metadata.revision };
                beside.endpoints.insert((metadata.namespace.clone(), metadata.name.clone()), count);
            }
        }
        if services || nodes {
            beside.nodes = self.servers.status().await.ok().map(|status| status.nodes);
        }
        Ok(beside)
    }
}

/// An object as its resource type shows it: itself, or its slices that the filter lets through.
///
/// # Errors
/// A selector that makes no sense.
pub fn render(resource: &'static Resource, object: &Object, filter: &Filter) -> Result<Vec<Shown>, Failure> {
    if resource.is_stored() {
        return Ok(vec![Shown { resource, value: manifest::render(object) }]);
    }
    let bad = |problem: String| {
        Failure::Server(Box::new(Problem { reason: "BadRequest".into(), message: problem, ..Problem::default() }))
    };
    let labels = LabelSelector::parse(&filter.labels)
        .map_err(|problem| bad(format!("unable to parse requirement: {problem}")))?;
    let mut shown = Vec::new();
    for value in object.as_endpoints().map(manifest::render_slices).unwrap_or_default() {
        let own = pairs(value.pointer("/metadata/labels"))
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        if labels.matches(&own) && fields_match(&filter.fields, &value).map_err(bad)? {
            shown.push(Shown { resource, value });
        }
    }
    Ok(shown)
}

/// A field selector on what every object has.
fn fields_match(selector: &str, value: &Value) -> Result<bool, String> {
    for term in selector.split(',').filter(|term| !term.is_empty()) {
        let (field, wanted, equal) =
            match (term.split_once("!="), term.split_once("==").or_else(|| term.split_once('='))) {
                (Some((field, wanted)), _) => (field, wanted, false),
                (None, Some((field, wanted))) => (field, wanted, true),
                (None, None) => return Err(format!("invalid selector: {selector:?}; can't understand {term:?}")),
            };
        let pointer = match field {
            "metadata.name" => "/metadata/name",
            "metadata.namespace" => "/metadata/namespace",
            _ => return Err(format!("field label not supported: {field}")),
        };
        if (text(value, pointer) == wanted) != equal {
            return Ok(false);
        }
    }
    Ok(true)
}

/// "No such object", as a server would say it.
pub fn missing(resource: &Resource, name: &str) -> Failure {
    let group = if resource.group.is_empty() { String::new() } else { format!(".{}", resource.group) };
    let message = format!("{}{group} {name:?} not found", resource.plural);
    Failure::Server(Box::new(Problem { reason: "NotFound".into(), message, ..Problem::default() }))
}

/// An event of the recent past in the shape of a Kubernetes Event.
pub fn event_manifest(event: &HistoryEvent) -> Value {
    let key = event.key.as_ref().map(Key::from_wire);
    let (kind, namespace, name) =
        key.map_or(("", String::new(), String::new()), |key| (key.kind.title(), key.namespace, key.name));
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{name}.{:016x}", event.revision),
            "namespace": if namespace.is_empty() { "default" } else { &namespace },
            "resourceVersion": event.revision.to_string(),
            "creationTimestamp": event.time,
        },
        "involvedObject": {"apiVersion": "v1", "kind": kind, "namespace": namespace, "name": name},
        "type": event.r#type,
        "reason": event.reason,
        "message": event.message,
        "firstTimestamp": event.time,
        "lastTimestamp": event.time,
        "count": 1,
        "source": {"component": "fairlead"},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::SLICES;
    use fairlead_proto::v1::{Endpoints, ObjectMeta};

    #[test]
    fn slices_are_filtered_by_their_own_labels_and_names() {
        let metadata = ObjectMeta { name: "web".into(), namespace: "default".into(), ..ObjectMeta::default() };
        let object = Object::from(Endpoints { metadata: Some(metadata), derived: true, ..Endpoints::default() });
        let count = |labels: &str, fields: &str| {
            let filter = Filter { labels: labels.into(), fields: fields.into(), ..Filter::default() };
            render(&SLICES, &object, &filter).map(|shown| shown.len())
        };
        assert_eq!(count("kubernetes.io/service-name=web", ""), Ok(1));
        assert_eq!(count("kubernetes.io/service-name=other", ""), Ok(0));
        assert_eq!(count("", "metadata.namespace=default,metadata.name!=web"), Ok(1));
        assert_eq!(count("", "metadata.namespace==other"), Ok(0));
        for (labels, fields, says) in [
            ("a in", "", "unable to parse requirement"),
            ("", "spec.x=1", "field label not supported: spec.x"),
            ("", "x", "invalid selector"),
        ] {
            assert!(count(labels, fields).unwrap_err().text().contains(says), "{labels} {fields}");
        }
        assert_eq!(
            missing(&SLICES, "x").text(),
            "Error from server (NotFound): endpointslices.discovery.k8s.io \"x\" not found"
        );
    }
}
