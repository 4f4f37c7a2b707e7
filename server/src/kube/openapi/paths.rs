//! What can be asked of the server, path by path, in no document's form: the forms of v2 and v3 are made from it. Pure.
//!
//! Law: an operation is here if and only if its verb is in the table of kinds. Parameters are those of Kubernetes' API
//! concepts ("resource URIs", "dry run", "field validation"); kubectl looks for `dryRun` and `fieldValidation` on the PATCH of
//! a kind, and for the patch content types.

use super::definitions::{META, list_definition};
use crate::kube::kinds::{Kind, kinds};

/// A parameter of a query: name, type ("string", "integer", "boolean"), what it is for.
pub(super) type Parameter = (&'static str, &'static str, &'static str);

/// What the body of a request is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// There is none.
    None,
    /// An object of this definition.
    Object(String),
    /// The options of a deletion: it may be left out.
    Options,
    /// A patch.
    Patch,
}

/// Something that can be asked of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// HTTP method, in lower case as the documents have it.
    pub(super) method: &'static str,
    /// `x-kubernetes-action`.
    pub(super) action: &'static str,
    /// A name that no other operation has.
    pub(super) id: String,
    /// What it does.
    pub(super) summary: String,
    /// Parameters of the query.
    pub(super) query: Vec<Parameter>,
    /// Body of the request.
    pub(super) body: Body,
    /// HTTP codes of success.
    pub(super) codes: &'static [&'static str],
    /// The definition of the answer.
    pub(super) answer: String,
}

/// A path and what can be asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// With `{namespace}` and `{name}` for what varies.
    pub(super) template: String,
    /// The kind that it is of.
    pub(super) kind: &'static Kind,
    /// One for each method, at least one.
    pub(super) operations: Vec<Operation>,
}

/// Content types of a patch (RFC 6902, RFC 7386, and Kubernetes' own).
pub(super) const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

const DRY_RUN: Parameter =
    ("dryRun", "string", "All: check the request and answer as if it had been done, but keep nothing.");
const FIELD_MANAGER: Parameter = ("fieldManager", "string", "Who owns the fields that the request sets.");
const FIELD_VALIDATION: Parameter =
    ("fieldValidation", "string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict.");
const FORCE: Parameter = ("force", "boolean", "True: take over fields that others own. Of an apply patch only.");
const GRACE: Parameter = ("gracePeriodSeconds", "integer", "Seconds until the object is gone; 0: at once.");
const ORPHAN: Parameter =
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy. True: keep what the object owns.");
const PROPAGATION: Parameter =
    ("propagationPolicy", "string", "What becomes of what the object owns: Orphan, Background or Foreground.");
const LABELS: Parameter = ("labelSelector", "string", "Only objects whose labels this selects.");
const FIELDS: Parameter = ("fieldSelector", "string", "Only objects whose fields this selects.");
const LIMIT: Parameter = ("limit", "integer", "At most so many objects in one answer; the rest by continue.");
const CONTINUE: Parameter = ("continue", "string", "Goes on where an earlier answer of the same list ended.");
const VERSION: Parameter = ("resourceVersion", "string", "The version of the state to read, or to watch from.");
const VERSION_MATCH: Parameter =
    ("resourceVersionMatch", "string", "How to take resourceVersion: NotOlderThan or Exact.");
const TIMEOUT: Parameter = ("timeoutSeconds", "integer", "Seconds until a list or watch ends, whatever it came to.");
const INITIAL: Parameter =
    ("sendInitialEvents", "boolean", "True: a watch starts with an event for each object that there is.");
const BOOKMARKS: Parameter = ("allowWatchBookmarks", "boolean", "True: a watch may have events of type BOOKMARK.");
const WATCH: Parameter = ("watch", "boolean", "True: events of changes, as a stream, in place of a list.");

/// Every path, in order.
pub(super) fn all() -> Vec<Path> {
    let mut all: Vec<_> = kinds().iter().flat_map(of).filter(|path| !path.operations.is_empty()).collect();
    all.sort_by(|a, b| a.template.cmp(&b.template));
    all
}

fn of(kind: &'static Kind) -> Vec<Path> {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let root = format!("{root}/{}", kind.version);
    let plural = kind.plural;
    let objects =
        if kind.namespaced { format!("{root}/namespaces/{{namespace}}/{plural}") } else { format!("{root}/{plural}") };
    let object = format!("{objects}/{{name}}");
    let at = |template: String, asked: Vec<Option<Operation>>| Path {
        template,
        kind,
        operations: asked.into_iter().flatten().collect(),
    };
    let mut paths = Vec::new();
    if kind.namespaced {
        paths.push(at(format!("{root}/{plural}"), vec![list(kind, Scope::AllNamespaces)]));
    }
    paths.push(at(objects, vec![list(kind, Scope::Own), create(kind), delete_all(kind)]));
    let whole = Target { kind, part: "", verbs: kind.verbs };
    paths.push(at(object.clone(), vec![whole.get(), whole.put(), whole.delete(), whole.patch()]));
    for part in kind.subresources {
        let target = Target { kind, part: part.name, verbs: part.verbs };
        paths.push(at(format!("{object}/{}", part.name), vec![target.get(), target.put(), target.patch()]));
    }
    paths
}

enum Scope {
    Own,
    AllNamespaces,
}

fn list(kind: &Kind, scope: Scope) -> Option<Operation> {
    let over = matches!(scope, Scope::AllNamespaces);
    let id = if over { id_of(("list", ""), kind, "ForAllNamespaces") } else { id("list", kind, "") };
    kind.can("list").then(|| Operation {
        method: "get",
        action: "list",
        id,
        summary: format!("Lists {}, or watches them.", kind.plural),
        query: vec![BOOKMARKS, CONTINUE, FIELDS, LABELS, LIMIT, VERSION, VERSION_MATCH, INITIAL, TIMEOUT, WATCH],
        body: Body::None,
        codes: &["200"],
        answer: list_definition(kind),
    })
}

fn create(kind: &Kind) -> Option<Operation> {
    kind.can("create").then(|| Operation {
        method: "post",
        action: "post",
        id: id("create", kind, ""),
        summary: format!("Creates one {}.", kind.singular),
        query: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
        body: Body::Object(kind.definition.to_owned()),
        codes: &["200", "201", "202"],
        answer: kind.definition.to_owned(),
    })
}

fn delete_all(kind: &Kind) -> Option<Operation> {
    kind.can("deletecollection").then(|| Operation {
        method: "delete",
        action: "deletecollection",
        id: id_of(("delete", if kind.namespaced { "CollectionNamespaced" } else { "Collection" }), kind, ""),
        summary: format!("Deletes the {} that the selectors name.", kind.plural),
        query: vec![
            CONTINUE,
            DRY_RUN,
            FIELDS,
            GRACE,
            LABELS,
            LIMIT,
            ORPHAN,
            PROPAGATION,
            VERSION,
            VERSION_MATCH,
            INITIAL,
            TIMEOUT,
        ],
        body: Body::Options,
        codes: &["200"],
        answer: format!("{META}Status"),
    })
}

/// One object, or a part of it.
struct Target {
    kind: &'static Kind,
    part: &'static str,
    verbs: &'static [&'static str],
}

impl Target {
    fn can(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// "one service", "the status of one service"
    fn named(&self) -> String {
        let one = format!("one {}", self.kind.singular);
        if self.part.is_empty() { one } else { format!("the {} of {one}", self.part) }
    }

    fn get(&self) -> Option<Operation> {
        self.can("get").then(|| Operation {
            method: "get",
            action: "get",
            id: id("read", self.kind, self.part),
            summary: format!("Reads {}.", self.named()),
            query: Vec::new(),
            body: Body::None,
            codes: &["200"],
            answer: self.kind.definition.to_owned(),
        })
    }

    fn put(&self) -> Option<Operation> {
        self.can("update").then(|| Operation {
            method: "put",
            action: "put",
            id: id("replace", self.kind, self.part),
            summary: format!("Replaces {}.", self.named()),
            query: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
            body: Body::Object(self.kind.definition.to_owned()),
            codes: &["200", "201"],
            answer: self.kind.definition.to_owned(),
        })
    }

    fn patch(&self) -> Option<Operation> {
        self.can("patch").then(|| Operation {
            method: "patch",
            action: "patch",
            id: id("patch", self.kind, self.part),
            summary: format!("Changes some fields of {}, or applies them.", self.named()),
            query: vec![DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE],
            body: Body::Patch,
            codes: &["200", "201"],
            answer: self.kind.definition.to_owned(),
        })
    }

    fn delete(&self) -> Option<Operation> {
        self.can("delete").then(|| Operation {
            method: "delete",
            action: "delete",
            id: id("delete", self.kind, self.part),
            summary: format!("Deletes {}.", self.named()),
            query: vec![DRY_RUN, GRACE, ORPHAN, PROPAGATION],
            body: Body::Options,
            codes: &["200", "202"],
            answer: format!("{META}Status"),
        })
    }
}

/// "core_v1", "discovery_v1": what clients made from the documents are sorted by.
pub(super) fn tag(kind: &Kind) -> String {
    format!("{}_{}", short_group(kind), kind.version)
}

fn short_group(kind: &Kind) -> &'static str {
    if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() }
}

/// "listCoreV1NamespacedService", "patchCoreV1NamespacedServiceStatus"
fn id(verb: &str, kind: &Kind, part: &str) -> String {
    id_of((verb, if kind.namespaced { "Namespaced" } else { "" }), kind, part)
}

/// "listCoreV1ServiceForAllNamespaces", "deleteCoreV1CollectionNamespacedService"
fn id_of((verb, scope): (&str, &str), kind: &Kind, part: &str) -> String {
    let group = capital(short_group(kind));
    format!("{verb}{group}{}{scope}{}{}", capital(kind.version), kind.kind, capital(part))
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
