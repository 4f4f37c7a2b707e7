//! Lists: selection and paging. Pure over a snapshot.
//!
//! Every page of one list shows the same revision: a later page undoes, from the event window, what changed since the
//! first one. When the window no longer reaches back, the list says so (Expired) instead of mixing revisions.

use crate::machine::Snapshot;
use crate::watch::happened;
use fairlead_proto::model::selector::{FieldSelector, LabelSelector};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{Kind, ListRequest, ListResponse};
use std::collections::BTreeMap;

/// Largest label or field selector, bytes.
const MAX_SELECTOR: usize = 16 * 1024;

/// What a list or a watch selects.
#[derive(Clone)]
pub struct Selection {
    /// Kind.
    pub kind: Kind,
    /// Empty = all namespaces.
    pub namespace: String,
    /// Empty = all names.
    pub name: String,
    /// Labels.
    pub labels: LabelSelector,
    /// Fields.
    pub fields: FieldSelector,
}

/// Why a list can't be made.
#[derive(Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// The request makes no sense.
    BadRequest(String),
    /// The continue token's revision left the window.
    Compacted {
        /// Revision of the token.
        asked: u64,
        /// Oldest revision that can still be shown.
        oldest: u64,
    },
}

impl Selection {
    /// Parses selectors.
    ///
    /// # Errors
    /// The selector's problem, as Kubernetes words it.
    pub fn parse(kind: Kind, namespace: &str, selectors: (&str, &str)) -> Result<Self, Unlisted> {
        if kind == Kind::Unspecified {
            return Err(Unlisted::BadRequest("a kind is required".into()));
        }
        bounded(selectors)?;
        let labels = LabelSelector::parse(selectors.0)
            .map_err(|problem| Unlisted::BadRequest(format!("unable to parse requirement: {problem}")))?;
        let fields = FieldSelector::parse(kind, selectors.1).map_err(Unlisted::BadRequest)?;
        let namespace = if kind.is_namespaced() { namespace.to_owned() } else { String::new() };
        Ok(Self { kind, namespace, name: String::new(), labels, fields })
    }

    /// True if the object is selected.
    #[must_use]
    pub fn matches(&self, object: &ObjectRef) -> bool {
        let metadata = object.metadata();
        object.object_kind() == self.kind
            && (self.namespace.is_empty() || metadata.namespace == self.namespace)
            && (self.name.is_empty() || metadata.name == self.name)
            && self.labels.matches(&metadata.labels)
            && self.fields.matches(object)
    }
}

/// Selectors are of bounded length.
///
/// # Errors
/// One is too long.
pub fn bounded((labels, fields): (&str, &str)) -> Result<(), Unlisted> {
    if labels.len() > MAX_SELECTOR || fields.len() > MAX_SELECTOR {
        return Err(Unlisted::BadRequest(format!("a selector may not be more than {MAX_SELECTOR} bytes")));
    }
    Ok(())
}

/// Which part of a list, as of when.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Most objects; 0 = all.
    pub limit: u32,
    /// From the page before; empty = the first one.
    pub token: String,
    /// The list as it was at this revision, which is not newer than the snapshot's; `None` = now. A token has its own.
    pub at: Option<u64>,
}

/// A page of a list.
#[derive(Debug)]
pub struct Listed {
    /// The objects, in the order of their keys.
    pub items: Vec<ObjectRef>,
    /// The revision that is shown.
    pub revision: u64,
    /// For the next page; empty: there is none.
    pub token: String,
    /// Objects of the pages after this one.
    pub remaining: u64,
}

/// One page, as messages.
///
/// # Errors
/// [`Unlisted`].
pub fn list(snapshot: &Snapshot, request: &ListRequest) -> Result<ListResponse, Unlisted> {
    let selectors = (request.label_selector.as_str(), request.field_selector.as_str());
    let selection = Selection::parse(request.kind(), &request.namespace, selectors)?;
    let listed =
        page(snapshot, &selection, &Page { limit: request.limit, token: request.continue_token.clone(), at: None })?;
    let items = listed.items.iter().map(|object| (**object).clone()).collect();
    Ok(ListResponse { items, revision: listed.revision, continue_token: listed.token, remaining: listed.remaining })
}

/// One page.
///
/// # Errors
/// [`Unlisted`].
pub fn page(snapshot: &Snapshot, selection: &Selection, page: &Page) -> Result<Listed, Unlisted> {
    let token = if page.token.is_empty() { None } else { Some(Token::parse(&page.token)?) };
    let newest = snapshot.state.revision();
    // A token without a revision goes on with what is there now.
    let revision = token.as_ref().map(|token| token.revision).filter(|revision| *revision > 0).or(page.at);
    let revision = revision.unwrap_or(newest);
    let undone = undo(snapshot, revision)?;
    let mut items = Vec::new();
    let mut remaining = 0;
    if undone.is_empty() && selection.kind != Kind::Event {
        // The common case: nothing to undo, so nothing to collect.
        let after = token.as_ref().map(|token| &token.after);
        for object in snapshot.state.list_after(selection.kind, &selection.namespace, after) {
            take(&mut (&mut items, &mut remaining), (page.limit, selection.matches(object)), object);
        }
    } else {
        let listed = snapshot.state.list(selection.kind, &selection.namespace);
        let mut candidates: BTreeMap<Key, ObjectRef> = listed.map(|object| (object.key(), object.clone())).collect();
        for (key, old) in undone {
            match old {
                Some(object) => candidates.insert(key, object),
                None => candidates.remove(&key),
            };
        }
        if selection.kind == Kind::Event {
            candidates.extend(happened::events(snapshot, revision).map(|event| (event.key(), event)));
        }
        for (key, object) in &candidates {
            let passed = token.as_ref().is_none_or(|token| *key > token.after);
            take(&mut (&mut items, &mut remaining), (page.limit, passed && selection.matches(object)), object);
        }
    }
    let token = match items.last() {
        Some(last) if remaining > 0 => Token { revision, after: last.key() }.render(),
        _ => String::new(),
    };
    Ok(Listed { items, revision, token, remaining })
}

/// A token that goes on where another one would have, with the objects that are there then: the whole is then of no one
/// revision. `None`: it is no token.
#[must_use]
pub fn inconsistent(token: &str) -> Option<String> {
    Token::parse(token).ok().map(|token| Token { revision: 0, ..token }.render())
}

fn take(page: &mut (&mut Vec<ObjectRef>, &mut u64), how: (u32, bool), object: &ObjectRef) {
    let (limit, selected) = how;
    if !selected {
        return;
    }
    if limit == 0 || page.0.len() < limit as usize {
        page.0.push(object.clone());
    } else {
        *page.1 += 1;
    }
}

/// What the keys changed since a revision looked like then.
fn undo(snapshot: &Snapshot, revision: u64) -> Result<BTreeMap<Key, Option<ObjectRef>>, Unlisted> {
    let mut undone = BTreeMap::new();
    if revision >= snapshot.state.revision() {
        return Ok(undone);
    }
    let changes = snapshot
        .history
        .after(revision)
        .map_err(|compacted| Unlisted::Compacted { asked: revision, oldest: compacted.oldest })?;
    for change in changes {
        undone.entry(change.key.clone()).or_insert_with(|| change.old.clone());
    }
    Ok(undone)
}

/// Where the next page starts: "revision:kind:namespace/name", opaque to clients.
struct Token {
    revision: u64,
    after: Key,
}

impl Token {
    fn render(&self) -> String {
        format!("{}:{}:{}/{}", self.revision, self.after.kind as i32, self.after.namespace, self.after.name)
    }

    fn parse(text: &str) -> Result<Self, Unlisted> {
        let bad = || Unlisted::BadRequest("continue key is not valid: start the list again without it".into());
        let mut parts = text.splitn(3, ':');
        let revision = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let kind: i32 = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let kind = Kind::try_from(kind).map_err(|_| bad())?;
        let (namespace, name) = parts.next().and_then(|path| path.split_once('/')).ok_or_else(bad)?;
        Ok(Self { revision, after: Key::new(kind, namespace, name) })
    }
}
