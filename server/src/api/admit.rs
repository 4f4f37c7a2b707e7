//! Admission: from what a client sent to a command, or all of its problems at once. Pure.
//!
//! It may refuse early; only apply decides. The same function stands behind every face.

use fairlead_proto::convert;
use fairlead_proto::internal::v1::{Put, put};
use fairlead_proto::manifest;
use fairlead_proto::model::{DEFAULT_NAMESPACE, Invalid, Key};
use fairlead_proto::v1::{FieldValidation, Input, Object, WriteEffect, WriteOptions, input};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// What admission refuses.
#[derive(Debug)]
pub enum Refused {
    /// The object has problems.
    Invalid(Key, Vec<Invalid>),
    /// The request makes no sense.
    BadRequest(String),
}

/// An object as the client meant it, before the current state is looked at.
#[derive(Debug)]
pub struct Admitted {
    /// Decoded and in its namespace; not yet defaulted.
    pub object: Object,
    /// Its manifest, in its namespace.
    pub manifest: Value,
    /// Fields that Kubernetes' schema doesn't have, if they are only warned of.
    pub warnings: Vec<String>,
}

/// Nobody owns a field any more: managed fields that are given up, where none means those that are.
const NOBODY: &str = "[]";

/// Randomness of the proposer, drawn before admission.
pub struct Draw {
    /// A UUID v4 for a new object.
    pub uid: String,
    /// Five characters for a generated name.
    pub suffix: String,
}

/// Decodes an input, puts it in its namespace and checks its fields against Kubernetes' schema.
///
/// # Errors
/// [`Refused`], with every problem found.
pub fn decode(input: Option<&Input>, options: &WriteOptions) -> Result<Admitted, Refused> {
    let value = match input.and_then(|input| input.form.as_ref()) {
        None => return Err(Refused::BadRequest("a write needs an object or a manifest".into())),
        Some(input::Form::Object(object)) => manifest::render(object),
        Some(input::Form::ManifestJson(text)) => serde_json::from_str(text)
            .map_err(|error| Refused::BadRequest(format!("the manifest is not JSON: {error}")))?,
    };
    decode_value(value, options)
}

/// Does the same with a manifest.
///
/// # Errors
/// As [`decode`].
pub fn decode_value(value: Value, options: &WriteOptions) -> Result<Admitted, Refused> {
    let decoded = manifest::decode(&value).map_err(|problems| Refused::Invalid(named(&value), problems))?;
    let mut object = decoded.object;
    let warnings = unknown_fields(&object, &decoded.unknown, options)?;
    let mut value = if decoded.unknown.is_empty() { value } else { manifest::render(&object) };
    let namespaced = object.object_kind().is_namespaced();
    let default_namespace =
        if options.default_namespace.is_empty() { DEFAULT_NAMESPACE } else { options.default_namespace.as_str() };
    if let Some(metadata) = object.metadata_mut() {
        if !namespaced {
            metadata.namespace.clear();
        } else if metadata.namespace.is_empty() {
            default_namespace.clone_into(&mut metadata.namespace);
        }
        if let Some(map) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            if metadata.namespace.is_empty() {
                map.remove("namespace");
            } else {
                map.insert("namespace".into(), metadata.namespace.clone().into());
            }
        }
    }
    Ok(Admitted { object, manifest: value, warnings })
}

fn unknown_fields(object: &Object, unknown: &[String], options: &WriteOptions) -> Result<Vec<String>, Refused> {
    match options.field_validation() {
        _ if unknown.is_empty() => Ok(Vec::new()),
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(unknown.iter().map(|path| format!("unknown field {path:?}")).collect()),
        FieldValidation::Strict => {
            let list = unknown.iter().map(|path| format!("unknown field {path:?}")).collect::<Vec<_>>().join(", ");
            let kind = object.object_kind().title();
            Err(Refused::BadRequest(format!(
                "{kind} in version \"v1\" cannot be handled as a {kind}: strict decoding error: {list}"
            )))
        }
    }
}

/// A create, from the decoded object.
///
/// # Errors
/// All problems of the object.
pub fn create(admitted: &Admitted, draw: Draw) -> Result<Put, Refused> {
    let mut object = admitted.object.clone();
    if let Some(metadata) = object.metadata_mut() {
        if metadata.name.is_empty() && !metadata.generate_name.is_empty() {
            // Kubernetes cuts the prefix to 58 characters, so that the whole fits a label.
            let prefix: String = metadata.generate_name.chars().take(58).collect();
            metadata.name = prefix + &draw.suffix;
        }
        metadata.uid = draw.uid;
        metadata.revision = 0;
        metadata.generation = 1;
        metadata.creation_timestamp.clear();
        metadata.deletion_timestamp.clear();
        metadata.deletion_grace_period_seconds = None;
        if metadata.managed_fields == NOBODY {
            metadata.managed_fields.clear();
        }
    }
    convert::default_object(&mut object);
    let problems = convert::validate_create(&object);
    if !problems.is_empty() {
        return Err(Refused::Invalid(object.key(), problems));
    }
    Ok(Put { object: Some(object), precondition: Some(put::Precondition::Create(true)), status_only: false })
}

/// An update of `live` to the decoded object. A resourceVersion in the object is a precondition.
///
/// # Errors
/// All problems of the object.
pub fn update(admitted: &Admitted, live: &Object, status_only: bool) -> Result<Put, Refused> {
    let mut object = admitted.object.clone();
    let asked = object.metadata().revision;
    keep_server_fields(&mut object, live);
    convert::normalize_update(&mut object, live);
    convert::default_object(&mut object);
    let mut problems = convert::validate_update(&object, live);
    let uid = &admitted.object.metadata().uid;
    if !uid.is_empty() && *uid != live.metadata().uid {
        problems.push(Invalid::invalid("metadata.uid", uid, "field is immutable"));
    }
    if !problems.is_empty() {
        return Err(Refused::Invalid(object.key(), problems));
    }
    let precondition =
        if asked == 0 { put::Precondition::Exists(true) } else { put::Precondition::ExpectRevision(asked) };
    Ok(Put { object: Some(object), precondition: Some(precondition), status_only })
}

/// A server-side apply: three-way merge of what was applied last, what is live and the manifest. `None` = nothing to do.
///
/// # Errors
/// All problems of the merged object.
pub fn apply(
    admitted: &Admitted,
    live: Option<&Object>,
    draw: Draw,
    status_only: bool,
) -> Result<(Put, WriteEffect), Refused> {
    let applied = admitted.manifest.to_string();
    let Some(live) = live else {
        let mut put = create(admitted, draw)?;
        if let Some(metadata) = put.object.as_mut().and_then(Object::metadata_mut) {
            metadata.last_applied = applied;
        }
        return Ok((put, WriteEffect::Created));
    };
    let last = &live.metadata().last_applied;
    let last: Option<Value> = if last.is_empty() { None } else { serde_json::from_str(last).ok() };
    let live_json = manifest::render(live);
    let merged = manifest::three_way(last.as_ref(), &live_json, &without_server_fields(&admitted.manifest));
    let decoded = manifest::decode(&merged).map_err(|problems| Refused::Invalid(live.key(), problems))?;
    let mut object = decoded.object;
    keep_server_fields(&mut object, live);
    if let Some(metadata) = object.metadata_mut() {
        metadata.last_applied = applied;
    }
    convert::normalize_update(&mut object, live);
    convert::default_object(&mut object);
    let problems = convert::validate_update(&object, live);
    if !problems.is_empty() {
        return Err(Refused::Invalid(object.key(), problems));
    }
    // The merge was made against this very revision: another writer in between means merging again. A resourceVersion
    // in the manifest narrows it further.
    let asked = admitted.object.metadata().revision;
    let expect = if asked == 0 { live.metadata().revision } else { asked };
    let precondition = Some(put::Precondition::ExpectRevision(expect));
    Ok((Put { object: Some(object), precondition, status_only }, WriteEffect::Configured))
}

/// What this server's operator allows. External addresses attract traffic that may be another's (CVE-2020-8554), so only
/// those in allowed ranges are taken; what a service already has stays its own.
///
/// # Errors
/// Every address that isn't allowed.
pub fn permit(put: &Put, live: Option<&Object>, allowed: &[IpNet]) -> Result<(), Refused> {
    let spec = |object: &Object| object.as_service().and_then(|service| service.spec.clone());
    let Some(object) = &put.object else {
        return Ok(());
    };
    let had = live.and_then(spec).map(|spec| spec.external_ips).unwrap_or_default();
    let asked = spec(object).map(|spec| spec.external_ips).unwrap_or_default();
    let admits = |text: &String| {
        had.contains(text)
            || text.parse::<IpAddr>().is_ok_and(|address| allowed.iter().any(|range| range.contains(&address)))
    };
    let refused = asked.iter().enumerate().filter(|(_, text)| !admits(text));
    let problems: Vec<Invalid> = refused
        .map(|(index, text)| {
            let detail = format!("{text} is in no range that the servers' --external-ip-cidrs allow");
            Invalid::forbidden(format!("spec.externalIPs[{index}]"), &detail)
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Refused::Invalid(object.key(), problems)) }
}

/// Identity, times and revision are the server's: whatever the client says of them is dropped.
fn keep_server_fields(object: &mut Object, live: &Object) {
    let kept = live.metadata().clone();
    if let Some(metadata) = object.metadata_mut() {
        metadata.uid = kept.uid;
        metadata.revision = kept.revision;
        metadata.generation = kept.generation;
        metadata.creation_timestamp = kept.creation_timestamp;
        metadata.deletion_timestamp = kept.deletion_timestamp;
        metadata.deletion_grace_period_seconds = kept.deletion_grace_period_seconds;
        metadata.generate_name = kept.generate_name;
        metadata.last_applied = kept.last_applied;
        match metadata.managed_fields.as_str() {
            "" => metadata.managed_fields = kept.managed_fields,
            NOBODY => metadata.managed_fields.clear(),
            _ => {}
        }
    }
}

fn without_server_fields(manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    if let Some(map) = manifest.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "deletionTimestamp", "managedFields"]
        {
            map.remove(field);
        }
    }
    manifest
}

fn named(value: &Value) -> Key {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = manifest::kind_by_name(&text("/kind")).unwrap_or(fairlead_proto::v1::Kind::Unspecified);
    Key::new(kind, text("/metadata/namespace"), text("/metadata/name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{Service, ServiceSpec};

    fn service(addresses: &[&str]) -> Object {
        let external_ips = addresses.iter().map(|text| (*text).to_owned()).collect();
        Service { spec: Some(ServiceSpec { external_ips, ..ServiceSpec::default() }), ..Service::default() }.into()
    }

    #[test]
    fn an_external_address_needs_a_range_that_allows_it() {
        let allowed: [IpNet; 2] = ["198.51.100.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let check = |addresses: &[&str], live: Option<&Object>, allowed: &[IpNet]| {
            let put = Put { object: Some(service(addresses)), ..Put::default() };
            match permit(&put, live, allowed) {
                Ok(()) => Vec::new(),
                Err(Refused::Invalid(_, problems)) => problems.into_iter().map(|problem| problem.field).collect(),
                Err(Refused::BadRequest(why)) => vec![why],
            }
        };
        assert_eq!(check(&[], None, &[]), [""; 0]);
        assert_eq!(check(&["198.51.100.7", "2001:db8::7"], None, &allowed), [""; 0]);
        assert_eq!(check(&["198.51.100.7", "203.0.113.1"], None, &allowed), ["spec.externalIPs[1]"]);
        assert_eq!(check(&["198.51.100.7"], None, &[]), ["spec.externalIPs[0]"], "nothing is allowed unasked");
        let live = service(&["203.0.113.1"]);
        assert_eq!(check(&["203.0.113.1"], Some(&live), &[]), [""; 0], "what it has stays");
        assert_eq!(check(&["203.0.113.1", "203.0.113.2"], Some(&live), &[]), ["spec.externalIPs[1]"]);
    }
}
