//! get and list: one snapshot, selected, in the form that was asked for.

use crate::api::authz::Verb;
use crate::api::list::{self, Page, Unlisted};
use crate::api::{objects, past, status};
use crate::kube::accept::{Version, Wanted};
use crate::kube::answer::Answer;
use crate::kube::failure::{self, Failure};
use crate::kube::rendered::{self, Form};
use crate::kube::request::{Asked, Revision, Target};
use crate::kube::table::{self, Include, Shape};
use crate::kube::view::{Selected, View, key_of};
use crate::kube::{Kube, leases, ranges};
use crate::machine::Snapshot;
use crate::pki::Identity;
use crate::write::now_ms;
use bytes::Bytes;
use fairlead_proto::model::{Key, ObjectRef};
use serde_json::{Value, json};
use std::sync::Arc;

/// What a list shows, rendered.
struct Items {
    bytes: Vec<Bytes>,
    revision: u64,
    token: String,
    remaining: Option<u64>,
}

impl Kube {
    /// The snapshot that a read of a revision sees.
    pub(super) async fn snapshot(&self, asked: &Asked) -> Result<Arc<Snapshot>, Failure> {
        match asked.revision {
            Revision::Newest => self.consensus.read().await.map_err(|error| status::unreadable(&error).into()),
            Revision::Any => Ok(self.consensus.local()),
            Revision::At(revision) => Ok(self.objects.reached(revision).await?),
        }
    }

    /// Whether somebody may see what a request names.
    pub(super) fn may_read(&self, who: &Identity, view: View, target: &Target) -> Result<(), Failure> {
        let namespace = if view.base().is_namespaced() { target.namespace.as_str() } else { "" };
        let name = if matches!(view, View::Own(_)) { target.name.as_str() } else { "" };
        Ok(self.objects.may(who, (Verb::Read, &Key::new(view.base(), namespace, name)))?)
    }

    /// One object.
    pub(super) async fn get(
        &self,
        who: &Identity,
        target: &Target,
        (asked, wanted): (&Asked, Wanted),
    ) -> Result<Answer, Failure> {
        let Some(view) = View::of(target.resource) else {
            let all = self.made(who, target, asked).await?;
            let found =
                all.items.into_iter().find(|item| item.pointer("/metadata/name") == Some(&target.name.clone().into()));
            let found = found.ok_or_else(|| failure::not_found(target.resource, &target.name))?;
            return Ok(one(&found, (target, wanted), asked));
        };
        self.may_read(who, view, target)?;
        let snapshot = self.snapshot(asked).await?;
        let found = match view {
            View::Own(kind) => {
                let object = past::now(&snapshot, &Key::new(kind, &target.namespace, &target.name));
                let object = object.ok_or_else(|| failure::not_found(target.resource, &target.name))?;
                if wanted == Wanted::Json {
                    let bytes = self.rendered.all((view, Form::Whole), std::slice::from_ref(&object));
                    return Ok(Answer::bytes(bytes.into_iter().next().unwrap_or_default()));
                }
                view.render(&object).into_iter().next()
            }
            View::Slices | View::Addresses => {
                let selected = selected(view, target, asked)?;
                let wanted = format!("{}/{}", target.namespace, target.name);
                let objects = snapshot.state.list(view.base(), &selected.base.namespace);
                objects.flat_map(|object| view.render(object)).find(|value| key_of(value) == wanted)
            }
        };
        let found = found.ok_or_else(|| failure::not_found(target.resource, &target.name))?;
        Ok(one(&found, (target, wanted), asked))
    }

    /// A list, or a page of it.
    pub(super) async fn list(
        &self,
        who: &Identity,
        target: &Target,
        (asked, wanted): (&Asked, Wanted),
    ) -> Result<Answer, Failure> {
        let now = seconds();
        let form = form(wanted, asked.include, now);
        let items = match View::of(target.resource) {
            Some(view) => {
                self.may_read(who, view, target)?;
                let selected = selected(view, target, asked)?;
                let snapshot = self.snapshot(asked).await?;
                let page = page_of(asked, &snapshot)?;
                let rendered = self.rendered.clone();
                let unselective = asked.labels.is_empty() && asked.fields.is_empty();
                let _turn = self.objects.turn().await?;
                let listed = tokio::task::spawn_blocking(move || {
                    let listed = list::page(&snapshot, &selected.base, &page)?;
                    let bytes = match view {
                        View::Own(_) => rendered.all((view, form), &listed.items),
                        View::Slices | View::Addresses => others(&selected, form, &listed.items),
                    };
                    let remaining = (unselective && listed.remaining > 0).then_some(listed.remaining);
                    Ok(Items { bytes, revision: listed.revision, token: listed.token, remaining })
                });
                let listed = listed.await.map_err(|error| Failure::new(500, "InternalError", error.to_string()))?;
                listed.map_err(|unlisted| expired(unlisted, &asked.token))?
            }
            None => {
                let made = self.made(who, target, asked).await?;
                let bytes = made.items.iter().map(|item| made_bytes(made.table, form, item)).collect();
                Items { bytes, revision: made.revision, token: String::new(), remaining: None }
            }
        };
        Ok(assembled(target, (wanted, form), &items))
    }

    /// What is not made from objects: leases, from what nodes said last; ranges, from the cluster's settings.
    pub(super) async fn made(&self, who: &Identity, target: &Target, asked: &Asked) -> Result<Made, Failure> {
        self.objects.may(who, (Verb::Read, &Key::new(fairlead_proto::v1::Kind::Node, "", "")))?;
        let snapshot = self.snapshot(asked).await?;
        let mut made = match target.resource.plural {
            "leases" => leases::made(&snapshot, &self.nodes.board().await.nodes, now_ms()),
            _ => ranges::made(&snapshot),
        };
        if !asked.labels.is_empty() || !asked.fields.is_empty() {
            let selected = Selected::parse(View::Slices, "", (&asked.labels, &asked.fields)).map_err(unlisted)?;
            made.items.retain(|item| selected.matches(item));
        }
        made.items.retain(|item| {
            let namespace = item.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
            target.namespace.is_empty() || namespace == target.namespace
        });
        Ok(made)
    }
}

/// Objects that are made for a reader.
pub struct Made {
    /// As JSON.
    pub items: Vec<Value>,
    /// As of this revision.
    pub revision: u64,
    /// Their table.
    pub table: table::Of,
}

/// What a request selects.
pub(super) fn selected(view: View, target: &Target, asked: &Asked) -> Result<Selected, Failure> {
    let selected = Selected::parse(view, &target.namespace, (&asked.labels, &asked.fields)).map_err(unlisted)?;
    Ok(selected.named(&target.name))
}

fn unlisted(unlisted: Unlisted) -> Failure {
    objects::unlisted(unlisted).into()
}

/// A page whose revision is forgotten: the answer has a token that goes on all the same, with what is there now.
fn expired(why: Unlisted, token: &str) -> Failure {
    match (why, list::inconsistent(token)) {
        (Unlisted::Compacted { .. }, Some(token)) if !token.is_empty() => {
            let message = "The provided continue parameter is too old to display a consistent list result. You can start a \
                new list without the continue parameter, or use the continue token in this response to retrieve the \
                remainder of the results, which may then show objects as of different times.";
            let mut failure = Failure::new(410, "Expired", message);
            failure.token = token;
            failure
        }
        (why, _) => unlisted(why),
    }
}

fn page_of(asked: &Asked, snapshot: &Snapshot) -> Result<Page, Failure> {
    let at = match (asked.exact, asked.revision) {
        (Some(true), Revision::At(revision)) if revision > snapshot.state.revision() => {
            return Err(status::future_revision(revision, snapshot.state.revision()).into());
        }
        (Some(true), Revision::At(revision)) => Some(revision),
        _ => None,
    };
    Ok(Page { limit: asked.limit, token: asked.token.clone(), at })
}

/// Things that several of are made of one object.
fn others(selected: &Selected, form: Form, objects: &[ObjectRef]) -> Vec<Bytes> {
    let rendered = objects.iter().flat_map(|object| selected.view.render(object));
    let matching = rendered.filter(|value| selected.matches(value));
    matching.map(|value| rendered::bytes(selected.view.table(), form, &value)).collect()
}

fn made_bytes(of: table::Of, form: Form, item: &Value) -> Bytes {
    rendered::bytes(of, form, item)
}

/// The form of an item for who wants this.
pub(super) fn form(wanted: Wanted, include: Include, now: i64) -> Form {
    match wanted {
        Wanted::Table { version } => Form::Row(include, version, now),
        Wanted::PartialObjectMetadata { version } | Wanted::PartialObjectMetadataList { version } => {
            Form::Partial(version)
        }
        _ => Form::Whole,
    }
}

/// This server's time, seconds since the epoch.
pub(super) fn seconds() -> i64 {
    i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX)
}

/// A single object, in the form that is wanted.
pub(super) fn one(value: &Value, (target, wanted): (&Target, Wanted), asked: &Asked) -> Answer {
    match wanted {
        Wanted::Table { version } => {
            let revision = value.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
            let metadata = json!({"resourceVersion": revision});
            let shape = Shape { metadata, include: asked.include, version, now: seconds(), ..Shape::default() };
            Answer::json(&table::table(table_of(target), std::iter::once(value), shape))
        }
        Wanted::PartialObjectMetadata { version } => Answer::json(&table::partial(value, version)),
        _ => Answer::json(value),
    }
}

/// Which table shows a resource.
pub(super) fn table_of(target: &Target) -> table::Of {
    match (View::of(target.resource), target.resource.plural) {
        (Some(view), _) => view.table(),
        (None, "leases") => table::Of::Lease,
        (None, _) => table::Of::ServiceCidr,
    }
}

fn table_bytes((of, version): (table::Of, Version), metadata: &Value, rows: &[Bytes]) -> Bytes {
    let head = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"columnDefinitions\":{},\"rows\":",
        version.api_version(),
        table::columns(of)
    );
    joined(&head, rows)
}

/// A list of bytes as a JSON array, after a head.
fn joined(head: &str, items: &[Bytes]) -> Bytes {
    let length = items.iter().map(|item| item.len() + 1).sum::<usize>() + head.len() + 4;
    let mut text = Vec::with_capacity(length);
    text.extend_from_slice(head.as_bytes());
    text.push(b'[');
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            text.push(b',');
        }
        text.extend_from_slice(item);
    }
    text.extend_from_slice(b"]}\n");
    Bytes::from(text)
}

fn assembled(target: &Target, (wanted, form): (Wanted, Form), items: &Items) -> Answer {
    let mut metadata = json!({"resourceVersion": items.revision.to_string()});
    if !items.token.is_empty() {
        metadata["continue"] = items.token.clone().into();
    }
    if let Some(remaining) = items.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let resource = target.resource;
    let body = match (wanted, form) {
        (Wanted::Table { version }, _) => table_bytes((table_of(target), version), &metadata, &items.bytes),
        (_, Form::Partial(version)) => joined(
            &format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":",
                version.api_version()
            ),
            &items.bytes,
        ),
        _ => joined(
            &format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":",
                resource.kind,
                resource.api_version()
            ),
            &items.bytes,
        ),
    };
    Answer::bytes(body)
}
