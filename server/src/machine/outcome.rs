//! Rejections, in Kubernetes' words: what a client sees when the state machine says no. Replicated, so a function of
//! the state and the entry only.

use fairlead_proto::internal::v1::{Outcome, Rejection, rejection::Code};
use fairlead_proto::model::{Invalid, Key};
use fairlead_proto::v1::FieldProblem;

/// Nothing was changed, and why.
pub(super) fn rejected(revision: u64, rejection: Rejection) -> Outcome {
    Outcome { revision, key: rejection.key.clone(), rejection: Some(rejection), ..Outcome::default() }
}

/// `services "x" not found`.
pub(super) fn not_found(key: &Key) -> Rejection {
    about(Code::NotFound, key, format!("{key} not found"))
}

/// `services "x" already exists`.
pub(super) fn already_exists(key: &Key) -> Rejection {
    about(Code::AlreadyExists, key, format!("{key} already exists"))
}

/// The object is no longer what the writer saw.
pub(super) fn modified(key: &Key) -> Rejection {
    conflict(key, "the object has been modified; please apply your changes to the latest version and try again")
}

/// `Operation cannot be fulfilled on services "x": why`.
pub(super) fn conflict(key: &Key, why: &str) -> Rejection {
    about(Code::Conflict, key, format!("Operation cannot be fulfilled on {key}: {why}"))
}

/// `services "x" is forbidden: why`.
pub(super) fn forbidden(key: &Key, why: &str) -> Rejection {
    about(Code::Forbidden, key, format!("{key} is forbidden: {why}"))
}

/// `Service "x" is invalid: spec.ports[0].port: …`, every problem with the object.
pub(super) fn invalid(key: &Key, problems: &[Invalid]) -> Rejection {
    let mut rejection = about(Code::Invalid, key, String::new());
    rejection.message = format!("{} {:?} is invalid: {}", key.kind.title(), key.name, listed(problems));
    rejection.causes = problems.iter().map(Invalid::to_wire).collect();
    rejection
}

/// A command, not an object, is at fault.
pub(super) fn invalid_command(problems: &[Invalid]) -> Rejection {
    Rejection {
        code: Code::Invalid as i32,
        message: format!("the command is invalid: {}", listed(problems)),
        causes: problems.iter().map(Invalid::to_wire).collect(),
        key: None,
    }
}

/// A pool is full. `hint` says what to do about it.
pub(super) fn exhausted(key: &Key, message: &str, hint: FieldProblem) -> Rejection {
    Rejection { causes: vec![hint], ..about(Code::Exhausted, key, message.to_owned()) }
}

/// A command that this machine version doesn't have.
pub(super) fn unsupported(why: &str) -> Rejection {
    Rejection { code: Code::Unsupported as i32, message: why.to_owned(), causes: Vec::new(), key: None }
}

/// The request may have been executed before; it will not be now.
pub(super) fn unknown_outcome() -> Rejection {
    let message = "this request id is older than what the cluster remembers: whether it was executed is not known; \
                   read the object, and retry with a new request id if need be";
    Rejection { code: Code::UnknownOutcome as i32, message: message.to_owned(), causes: Vec::new(), key: None }
}

fn about(code: Code, key: &Key, message: String) -> Rejection {
    Rejection { code: code as i32, message, causes: Vec::new(), key: Some(key.to_wire()) }
}

/// As Kubernetes joins several problems.
fn listed(problems: &[Invalid]) -> String {
    match problems {
        [one] => one.to_string(),
        _ => format!("[{}]", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}
