//! What goes wrong, as Kubernetes' `Status` objects: code, reason, message, details. Pure.

use crate::kube::accept::NotAcceptable;
use crate::kube::kinds;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{FieldProblem, Kind, Problem};
use prost::Message as _;
use serde_json::{Map, Value, json};

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// HTTP's.
    pub code: u16,
    /// Kubernetes' reason, such as `NotFound`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whom it is about, what causes it.
    pub details: Box<Map<String, Value>>,
    /// A token by which a list may go on all the same; mostly empty.
    pub token: String,
}

impl Failure {
    /// Without details.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: Box::default(), token: String::new() }
    }

    /// The request makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// Nothing is served at this path.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// The resource has no such verb.
    #[must_use]
    pub fn no_such_verb() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// Nothing that is accepted can be had.
    #[must_use]
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    /// The body's type isn't understood.
    #[must_use]
    pub fn media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// A parameter is wrong.
    #[must_use]
    pub fn invalid_options(field: &str, message: &str) -> Self {
        let mut failure =
            Self::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {message}"));
        if field == "dryRun" || field.starts_with("field") {
            failure.message = format!("Options.meta.k8s.io \"\" is invalid: {field}: {message}");
        }
        let reason = if message.starts_with("Forbidden") { "FieldValueForbidden" } else { "FieldValueInvalid" };
        failure.details.insert("causes".into(), json!([{"reason": reason, "message": message, "field": field}]));
        failure
    }

    /// Whoever asks should do so again after some seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.insert("retryAfterSeconds".into(), seconds.into());
        self
    }

    /// The refusal as a `Status` object (meta/v1).
    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if !self.token.is_empty() {
            status["metadata"]["continue"] = self.token.clone().into();
        }
        if !self.details.is_empty() {
            status["details"] = Value::Object((*self.details).clone());
        }
        status["code"] = self.code.into();
        status
    }
}

/// The Status of a deletion that is done.
#[must_use]
pub fn success(key: &Key, uid: &str) -> Value {
    let details = json!({"name": key.name, "kind": key.kind.plural(), "uid": uid});
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// HTTP's code for one of Kubernetes' reasons (apimachinery's meta/v1 StatusReason).
fn code(reason: &str) -> u16 {
    match reason {
        "BadRequest" => 400,
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "NotFound" => 404,
        "AlreadyExists" | "Conflict" => 409,
        "Expired" => 410,
        "Invalid" => 422,
        "TooManyRequests" => 429,
        "ServiceUnavailable" => 503,
        "Timeout" => 504,
        "StorageFull" => 507,
        _ => 500,
    }
}

impl From<NotAcceptable> for Failure {
    fn from(why: NotAcceptable) -> Self {
        Self::not_acceptable(why.to_string())
    }
}

/// What the servers' own errors are here: their detail has Kubernetes' reason already.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let problem = Problem::decode(status.details()).unwrap_or_default();
        if problem.reason.is_empty() {
            let reason = match status.code() {
                tonic::Code::Unavailable => "ServiceUnavailable",
                tonic::Code::InvalidArgument => "BadRequest",
                _ => "InternalError",
            };
            return Self::new(code(reason), reason, status.message());
        }
        let mut failure = Self::new(code(&problem.reason), &problem.reason, problem.message);
        if let Some(key) = problem.key.as_ref().map(Key::from_wire).filter(|key| key.kind != Kind::Unspecified) {
            failure.details.insert("name".into(), key.name.clone().into());
            let kind = if problem.reason == "Invalid" { key.kind.title() } else { key.kind.plural() };
            failure.details.insert("kind".into(), kind.into());
        }
        if !problem.causes.is_empty() {
            failure.details.insert("causes".into(), problem.causes.iter().map(cause).collect());
        }
        match failure.code {
            // Clients send a request again by themselves when they are told when: a write that may have happened is not to be.
            _ if problem.unknown_outcome => failure,
            503 | 504 | 429 => failure.retry_after(1),
            _ => failure,
        }
    }
}

fn cause(problem: &FieldProblem) -> Value {
    json!({"reason": problem.reason, "message": problem.message, "field": problem.field})
}

/// No such object of a resource.
#[must_use]
pub fn not_found(resource: &kinds::Kind, name: &str) -> Failure {
    let qualified = match resource.group {
        "" => resource.plural.to_owned(),
        group => format!("{}.{group}", resource.plural),
    };
    let mut failure = Failure::new(404, "NotFound", format!("{qualified} {name:?} not found"));
    failure.details.insert("name".into(), name.into());
    if !resource.group.is_empty() {
        failure.details.insert("group".into(), resource.group.into());
    }
    failure.details.insert("kind".into(), resource.plural.into());
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status;
    use fairlead_proto::model::Invalid;

    #[test]
    fn a_refusal_is_kubernetes_status() {
        let key = Key::new(Kind::Service, "default", "web");
        let failure = Failure::from(status::not_found(&key, 7));
        assert_eq!(
            failure.status(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "services \"web\" not found", "reason": "NotFound",
                "details": {"name": "web", "kind": "services"}, "code": 404,
            })
        );
        let failure = Failure::from(status::invalid(&key, &[Invalid::required("spec.ports", "")]));
        assert_eq!(
            failure.status()["details"],
            json!({
                "name": "web", "kind": "Service",
                "causes": [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.ports"}],
            })
        );
        assert_eq!(failure.code, 422);
        assert_eq!(Failure::from(status::compacted(3, 9)).code, 410);
        let late = Failure::from(status::future_revision(9, 3));
        assert_eq!((late.code, &late.details["retryAfterSeconds"]), (504, &json!(1)));
    }

    #[test]
    fn nobody_is_told_to_repeat_a_write_that_may_have_happened() {
        use crate::raft::ProposeError;
        let unknown = Failure::from(status::not_decided(&ProposeError::Unknown("cut off".into())));
        assert_eq!((unknown.code, unknown.details.get("retryAfterSeconds")), (504, None));
        let certain = Failure::from(status::not_decided(&ProposeError::NotProposed("no leader".into())));
        assert_eq!((certain.code, &certain.details["retryAfterSeconds"]), (503, &json!(1)));
    }

    #[test]
    fn an_error_without_a_detail_still_has_a_reason() {
        let failure = Failure::from(tonic::Status::unavailable("stopping"));
        assert_eq!((failure.code, failure.reason.as_str()), (503, "ServiceUnavailable"));
        assert_eq!(Failure::from(tonic::Status::internal("x")).code, 500);
    }
}
