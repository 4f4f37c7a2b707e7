//! Defaulting and validation, one file a kind, with Kubernetes' rules, field paths and messages
//! (pkg/apis/core/v1/defaults.go, pkg/apis/core/validation). Pure; all problems of an object at once.
//!
//! Law: defaulting twice is defaulting once.

mod endpoints;
mod event;
mod ip;
mod meta;
mod names;
mod namespace;
mod node;
mod pod;
mod probe;
mod service;
mod service_update;

pub use ip::parse_ip;
pub use names::{
    is_dns1123_label, is_dns1123_subdomain, label_value_problem, port_name_problems, qualified_name_problems,
};

use crate::model::Invalid;
use crate::v1::{Object, object};

/// Fills what Kubernetes fills. Addresses, node ports and families are the allocator's.
pub fn default_object(object: &mut Object) {
    match &mut object.kind {
        Some(object::Kind::Namespace(it)) => namespace::default(it),
        Some(object::Kind::Node(it)) => node::default(it),
        Some(object::Kind::Endpoints(_) | object::Kind::Event(_)) | None => {}
        Some(object::Kind::Pod(it)) => pod::default(it),
        Some(object::Kind::Service(it)) => service::default(it),
    }
}

/// Brings fields that say the same in two ways into line, where an update changed one of them.
pub fn normalize_update(new: &mut Object, old: &Object) {
    if let (Some(object::Kind::Service(new)), Some(old)) = (&mut new.kind, old.as_service()) {
        service_update::normalize(new, old);
    }
}

/// Every problem of a new object, after defaulting.
#[must_use]
pub fn validate_create(object: &Object) -> Vec<Invalid> {
    let mut problems = Vec::new();
    meta::validate(object, &mut problems);
    match &object.kind {
        None => problems.push(Invalid::required("kind", "")),
        Some(object::Kind::Namespace(_)) => {}
        Some(object::Kind::Node(it)) => node::validate(it, &mut problems),
        Some(object::Kind::Pod(it)) => pod::validate(it, &mut problems),
        Some(object::Kind::Service(it)) => service::validate(it, &mut problems),
        Some(object::Kind::Endpoints(it)) => endpoints::validate(it, &mut problems),
        Some(object::Kind::Event(it)) => event::validate(it, &mut problems),
    }
    problems
}

/// Every problem of an object that is to replace `old`, after defaulting.
#[must_use]
pub fn validate_update(new: &Object, old: &Object) -> Vec<Invalid> {
    let mut problems = validate_create(new);
    match (&new.kind, &old.kind) {
        (Some(object::Kind::Service(new)), Some(object::Kind::Service(old))) => {
            service_update::validate(new, old, &mut problems)
        }
        (Some(object::Kind::Pod(new)), Some(object::Kind::Pod(old))) => pod::validate_update(new, old, &mut problems),
        (Some(object::Kind::Node(new)), Some(object::Kind::Node(old))) => {
            node::validate_update(new, old, &mut problems)
        }
        _ => {}
    }
    problems
}

/// What Kubernetes warns of (`Warning:` headers).
#[must_use]
pub fn warnings(object: &Object) -> Vec<String> {
    object.as_service().map(service::warnings).unwrap_or_default()
}

#[cfg(test)]
mod tests;
