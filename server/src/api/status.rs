//! The one table that maps what can go wrong to what a caller sees: gRPC code, Kubernetes reason, detail message.

use crate::raft::{ProposeError, ReadError};
use fairlead_proto::internal::v1::{Rejection, rejection};
use fairlead_proto::model::{Invalid, Key};
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::Problem;
use prost::Message as _;
use tonic::{Code, Status};

/// Builds a status that carries the problem as its detail.
#[must_use]
pub fn status(code: Code, problem: Problem) -> Status {
    let detail = problem.encode_to_vec();
    Status::with_details(code, problem.message, detail.into())
}

/// A refusal by the state machine.
#[must_use]
pub fn rejected(rejection: Rejection, revision: u64) -> Status {
    use rejection::Code as Why;
    let (code, reason) = match rejection.code() {
        Why::NotFound => (Code::NotFound, "NotFound"),
        Why::AlreadyExists => (Code::AlreadyExists, "AlreadyExists"),
        Why::Conflict => (Code::Aborted, "Conflict"),
        Why::Invalid => (Code::InvalidArgument, "Invalid"),
        Why::Exhausted => (Code::ResourceExhausted, "InternalError"),
        Why::Forbidden => (Code::PermissionDenied, "Forbidden"),
        Why::UnknownOutcome => (Code::Unknown, "Timeout"),
        Why::Unsupported => (Code::Unimplemented, "BadRequest"),
        Why::Unspecified => (Code::Internal, "InternalError"),
    };
    let unknown_outcome = rejection.code() == Why::UnknownOutcome;
    status(
        code,
        Problem {
            reason: reason.to_owned(),
            message: rejection.message,
            causes: rejection.causes,
            unknown_outcome,
            revision,
            key: rejection.key,
        },
    )
}

/// All problems of an object at once.
#[must_use]
pub fn invalid(key: &Key, problems: &[Invalid]) -> Status {
    let list = match problems {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    let message = format!("{} {:?} is invalid: {list}", key.kind.title(), key.name);
    let causes = problems.iter().map(Invalid::to_wire).collect();
    status(
        Code::InvalidArgument,
        Problem { reason: "Invalid".into(), message, causes, key: Some(key.to_wire()), ..Problem::default() },
    )
}

/// A request that makes no sense whatever the state is.
#[must_use]
pub fn bad_request(message: impl Into<String>) -> Status {
    status(
        Code::InvalidArgument,
        Problem { reason: "BadRequest".into(), message: message.into(), ..Problem::default() },
    )
}

/// No such object.
#[must_use]
pub fn not_found(key: &Key, revision: u64) -> Status {
    let message = format!("{} {:?} not found", key.kind.plural(), key.name);
    status(
        Code::NotFound,
        Problem { reason: "NotFound".into(), message, revision, key: Some(key.to_wire()), ..Problem::default() },
    )
}

/// The event window no longer reaches back to a revision.
#[must_use]
pub fn compacted(asked: u64, oldest: u64) -> Status {
    let message = format!("too old resource version: {asked} ({oldest})");
    status(Code::OutOfRange, Problem { reason: "Expired".into(), message, revision: oldest, ..Problem::default() })
}

/// A revision that this cluster has not reached.
#[must_use]
pub fn future_revision(asked: u64, current: u64) -> Status {
    let message = format!("Too large resource version: {asked}, current: {current}");
    status(
        Code::DeadlineExceeded,
        Problem { reason: "Timeout".into(), message, revision: current, ..Problem::default() },
    )
}

/// A write that was not decided.
#[must_use]
pub fn not_decided(error: &ProposeError) -> Status {
    let (code, reason, unknown_outcome) = match error {
        ProposeError::NotProposed(_) => (Code::Unavailable, "ServiceUnavailable", false),
        ProposeError::Unknown(_) if mutant::is_on(Mutant::UnknownAsRefused) => {
            (Code::Unavailable, "ServiceUnavailable", false)
        }
        ProposeError::Unknown(_) => (Code::Unknown, "Timeout", true),
    };
    status(code, Problem { reason: reason.into(), message: error.to_string(), unknown_outcome, ..Problem::default() })
}

/// There is no room for what is written. It is certain that nothing was.
#[must_use]
pub fn no_room(why: &str) -> Status {
    let message = format!("no room for more: {why}");
    status(Code::ResourceExhausted, Problem { reason: "StorageFull".into(), message, ..Problem::default() })
}

/// A read that no quorum confirmed.
#[must_use]
pub fn unreadable(error: &ReadError) -> Status {
    status(
        Code::Unavailable,
        Problem { reason: "ServiceUnavailable".into(), message: error.to_string(), ..Problem::default() },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_its_code_and_carries_its_detail() {
        let table = [
            (rejection::Code::NotFound, Code::NotFound),
            (rejection::Code::AlreadyExists, Code::AlreadyExists),
            (rejection::Code::Conflict, Code::Aborted),
            (rejection::Code::Invalid, Code::InvalidArgument),
            (rejection::Code::Exhausted, Code::ResourceExhausted),
            (rejection::Code::Forbidden, Code::PermissionDenied),
            (rejection::Code::UnknownOutcome, Code::Unknown),
            (rejection::Code::Unsupported, Code::Unimplemented),
        ];
        for (why, code) in table {
            let status = rejected(Rejection { code: why as i32, message: "m".into(), ..Rejection::default() }, 7);
            assert_eq!(status.code(), code);
            let problem = Problem::decode(status.details()).unwrap();
            assert_eq!((problem.message.as_str(), problem.revision), ("m", 7));
            assert_eq!(problem.unknown_outcome, why == rejection::Code::UnknownOutcome);
        }
    }

    #[test]
    fn several_problems_are_listed_as_kubernetes_does() {
        let key = Key::new(fairlead_proto::v1::Kind::Service, "default", "web");
        let problems = [Invalid::required("spec.ports", ""), Invalid::invalid("spec.type", "x", "bad")];
        let status = invalid(&key, &problems);
        assert_eq!(
            status.message(),
            "Service \"web\" is invalid: [spec.ports: Required value, spec.type: Invalid value: \"x\": bad]"
        );
    }
}
