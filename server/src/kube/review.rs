//! What somebody may do, as Kubernetes' reviews ask it: answered by the roles of `api::authz`. Pure.

use crate::api::authz::{self, Role, Verb};
use crate::kube::failure::Failure;
use crate::machine::State;
use crate::pki::Identity;
use serde_json::{Value, json};

/// Answers a review of somebody's own access; `None`: there is no such review.
#[must_use]
pub fn answer(state: &State, who: &Identity, (plural, given): (&str, Value)) -> Option<Result<Value, Failure>> {
    match plural {
        "selfsubjectaccessreviews" => Some(access(state, who, given)),
        "selfsubjectrulesreviews" => Some(rules(state, who, given)),
        "selfsubjectreviews" => Some(Ok(subject(who, given))),
        _ => None,
    }
}

/// Which of our verbs one of Kubernetes' needs.
fn verb(name: &str) -> Verb {
    match name {
        "get" | "list" | "watch" => Verb::Read,
        "create" | "update" | "patch" | "delete" | "deletecollection" => Verb::Write,
        _ => Verb::Admin,
    }
}

fn access(state: &State, who: &Identity, mut given: Value) -> Result<Value, Failure> {
    let text = |field: &str| given.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let attributes = given.pointer("/spec/resourceAttributes").is_some_and(Value::is_object);
    let path = given.pointer("/spec/nonResourceAttributes").is_some_and(Value::is_object);
    let allowed = match (attributes, path) {
        (true, false) => {
            let namespace = text("/spec/resourceAttributes/namespace");
            authz::may(state, who, (verb(&text("/spec/resourceAttributes/verb")), &namespace))
        }
        (false, true) => authz::may(state, who, (verb(&text("/spec/nonResourceAttributes/verb")), "")),
        _ => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(Failure::new(
                422,
                "Invalid",
                format!("SelfSubjectAccessReview is invalid: spec: Invalid value: {why}"),
            ));
        }
    };
    let mut status = json!({"allowed": allowed.is_ok()});
    if let Err(denied) = allowed {
        status["reason"] = denied.message().into();
    }
    given["status"] = status;
    Ok(given)
}

fn rules(state: &State, who: &Identity, mut given: Value) -> Result<Value, Failure> {
    let namespace = given.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    if namespace.is_empty() {
        return Err(Failure::bad_request("no namespace on request"));
    }
    let role = if *who == Identity::Unsecured { Some(Role::Admin) } else { authz::highest(state, who, &namespace) };
    let verbs: &[&str] = match role {
        None => &[],
        Some(Role::Viewer) => &["get", "list", "watch"],
        Some(Role::Editor) => &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"],
        Some(Role::Admin) => &["*"],
    };
    let resources: Vec<Value> = match verbs {
        [] => Vec::new(),
        verbs => vec![json!({"verbs": verbs, "apiGroups": ["*"], "resources": ["*"]})],
    };
    let paths = if role == Some(Role::Admin) { json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]) } else { looks() };
    given["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    Ok(given)
}

/// What everybody may look at.
fn looks() -> Value {
    json!([{"verbs": ["get"], "nonResourceURLs": ["/api", "/apis", "/healthz", "/livez", "/openapi/*", "/readyz", "/version"]}])
}

fn subject(who: &Identity, mut given: Value) -> Value {
    let name = match who {
        Identity::User { name, .. } => name.clone(),
        other => other.to_string(),
    };
    given["status"] = json!({"userInfo": {"username": name, "groups": who.groups()}});
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;
    use fairlead_proto::internal::v1::{AccessRecord, Binding, PutAccess, access_record, command};

    #[test]
    fn reviews_say_what_roles_allow() {
        let mut world = World::new();
        let binding = Binding { subject: "user:bob".into(), role: "viewer".into(), namespace: "team".into() };
        let record = Some(AccessRecord { kind: Some(access_record::Kind::Binding(binding)) });
        world.run(command::Kind::PutAccess(PutAccess { record, create: false }));
        let state = &world.snapshot.state;
        let bob = Identity::User { name: "bob".into(), groups: Vec::new() };
        let asked = |verb: &str, namespace: &str| {
            let given =
                json!({"spec": {"resourceAttributes": {"verb": verb, "namespace": namespace, "resource": "services"}}});
            answer(state, &bob, ("selfsubjectaccessreviews", given)).unwrap().unwrap()["status"]["allowed"].clone()
        };
        assert_eq!(asked("list", "team"), true);
        assert_eq!(asked("create", "team"), false);
        assert_eq!(asked("list", "other"), false);
        assert_eq!(asked("*", "team"), false);
        let given = json!({"spec": {"namespace": "team"}});
        let rules = answer(state, &bob, ("selfsubjectrulesreviews", given)).unwrap().unwrap();
        assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["get", "list", "watch"]));
        assert!(answer(state, &bob, ("selfsubjectaccessreviews", json!({"spec": {}}))).unwrap().is_err());
        assert!(answer(state, &bob, ("others", json!({}))).is_none());
        let whoami = answer(state, &bob, ("selfsubjectreviews", json!({}))).unwrap().unwrap();
        assert_eq!(whoami["status"]["userInfo"]["username"], "bob");
    }
}
