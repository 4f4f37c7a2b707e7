//! ObjectMeta of every kind (apimachinery's ValidateObjectMeta).

use crate::convert::names;
use crate::model::{Invalid, annotations as own};
use crate::v1::{Kind, Object};
use std::collections::BTreeMap;

/// Bytes of all annotations together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Checks names, labels, annotations, finalizers and owners.
pub fn validate(object: &Object, problems: &mut Vec<Invalid>) {
    let metadata = object.metadata();
    let kind = object.object_kind();
    let name_problems = |name: &str| match kind {
        Kind::Namespace | Kind::Service => names::label_problems(name),
        Kind::Node | Kind::Pod | Kind::Endpoints | Kind::Event | Kind::Unspecified => names::subdomain_problems(name),
    };
    if metadata.name.is_empty() {
        let detail = if metadata.generate_name.is_empty() { "name or generateName is required" } else { "" };
        problems.push(Invalid::required("metadata.name", detail));
    } else {
        problems.extend(
            name_problems(&metadata.name)
                .into_iter()
                .map(|problem| Invalid::invalid("metadata.name", &metadata.name, &problem)),
        );
    }
    if kind.is_namespaced() {
        if metadata.namespace.is_empty() {
            problems.push(Invalid::required("metadata.namespace", ""));
        } else {
            let found = names::label_problems(&metadata.namespace);
            problems.extend(
                found.into_iter().map(|problem| Invalid::invalid("metadata.namespace", &metadata.namespace, &problem)),
            );
        }
    } else if !metadata.namespace.is_empty() {
        problems.push(Invalid::forbidden("metadata.namespace", "not allowed on this type"));
    }
    labels("metadata.labels", &metadata.labels, problems);
    annotations(&metadata.annotations, problems);
    own::validate(kind, metadata, problems);
    for (index, finalizer) in metadata.finalizers.iter().enumerate() {
        for problem in names::qualified_name_problems(finalizer) {
            problems.push(Invalid::invalid(format!("metadata.finalizers[{index}]"), finalizer, &problem));
        }
    }
    for (index, owner) in metadata.owner_references.iter().enumerate() {
        for (field, value) in
            [("apiVersion", &owner.api_version), ("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)]
        {
            if value.is_empty() {
                problems.push(Invalid::invalid(
                    format!("metadata.ownerReferences[{index}].{field}"),
                    value,
                    "must not be empty",
                ));
            }
        }
    }
}

/// Checks keys and values of labels (or of a selector).
pub fn labels(field: &str, labels: &BTreeMap<String, String>, problems: &mut Vec<Invalid>) {
    for (key, value) in labels {
        problems.extend(
            names::qualified_name_problems(key).into_iter().map(|problem| Invalid::invalid(field, key, &problem)),
        );
        problems.extend(names::label_value_problem(value).map(|problem| Invalid::invalid(field, value, &problem)));
    }
}

fn annotations(annotations: &BTreeMap<String, String>, problems: &mut Vec<Invalid>) {
    for key in annotations.keys() {
        let found = names::qualified_name_problems(&key.to_lowercase());
        problems.extend(found.into_iter().map(|problem| Invalid::invalid("metadata.annotations", key, &problem)));
    }
    let total: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > MAX_ANNOTATIONS {
        problems.push(Invalid::too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
}
