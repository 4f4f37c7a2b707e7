//! What a verb can fail with, how kubectl words it, and the exit code it ends with.
//!
//! Not a log: a failure is printed once, on standard error, where the process ends. Invariant: an unknown outcome is
//! never shown as anything else, and always ends with exit code 3.

use fairlead_proto::v1::Problem;
use prost::Message as _;
use std::collections::BTreeSet;
use tonic::{Code, Status};

/// Exit code of a write whose outcome nobody knows.
pub const UNKNOWN_OUTCOME: u8 = 3;

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// A server answered with a problem.
    Server(Box<Problem>),
    /// A server refused, but an earlier attempt of the same write may still be executed.
    Doubtful(Box<Problem>, String),
    /// The write may or may not have happened; the sentence names its request id.
    Unknown(String),
    /// No server could be reached; a whole sentence.
    Connection(String),
    /// Anything that this process found itself: usage, files, time-outs. Printed after `error: `.
    Local(String),
    /// A sentence printed as it is.
    Plain(String),
    /// Several at once, each on its own line.
    Many(Vec<Failure>),
    /// The reason was printed before.
    Silent,
}

impl Failure {
    /// A failure of this process.
    pub fn local(message: impl Into<String>) -> Self {
        Self::Local(message.into())
    }

    /// From a gRPC status: its detail, or what its code says.
    pub fn from_status(status: &Status) -> Self {
        Self::Server(Box::new(problem(status)))
    }

    /// The failures as one; `Ok` if there are none.
    ///
    /// # Errors
    /// The failures.
    pub fn all(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => failures.pop().map_or(Ok(()), Err),
            _ => Err(Self::Many(failures)),
        }
    }

    /// True for "no such object".
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Server(problem) if problem.reason == "NotFound")
    }

    /// True if somebody else wrote in between.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Server(problem) if problem.reason == "Conflict")
    }

    /// True if the events asked for are no longer kept.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Server(problem) if problem.reason == "Expired")
    }

    /// Says at which file it happened: `error when creating "STDIN": …`.
    #[must_use]
    pub fn at_source(self, verb: &str, source: &str) -> Self {
        if source.is_empty() {
            return self;
        }
        let tell = |message: String| format!("error when {verb} {source:?}: {message}");
        let told = |mut problem: Box<Problem>| {
            problem.message = tell(std::mem::take(&mut problem.message));
            problem
        };
        match self {
            Self::Server(problem) => Self::Server(told(problem)),
            Self::Doubtful(problem, doubt) => Self::Doubtful(told(problem), doubt),
            Self::Local(message) => Self::Local(tell(message)),
            Self::Unknown(message) => Self::Unknown(tell(message)),
            other => other,
        }
    }

    /// How the process ends.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown(_) | Self::Doubtful(..) => UNKNOWN_OUTCOME,
            Self::Many(failures) => failures.iter().map(Self::exit_code).max().unwrap_or(1),
            _ => 1,
        }
    }

    /// The text for standard error, without a final newline.
    pub fn text(&self) -> String {
        match self {
            Self::Server(problem) if problem.reason == "Invalid" => invalid(problem),
            Self::Many(failures) => failures.iter().map(Self::line).collect::<Vec<_>>().join("\n"),
            one => one.line(),
        }
    }

    /// One of several, as kubectl lists them.
    fn line(&self) -> String {
        match self {
            Self::Server(problem) => server(problem),
            Self::Doubtful(problem, doubt) => format!("{}\nerror: the outcome is unknown: {doubt}", server(problem)),
            Self::Unknown(message) => format!("error: the outcome is unknown: {message}"),
            Self::Local(message) => format!("error: {message}"),
            Self::Connection(sentence) | Self::Plain(sentence) => sentence.clone(),
            Self::Many(failures) => failures.iter().map(Self::line).collect::<Vec<_>>().join("\n"),
            Self::Silent => String::new(),
        }
    }
}

/// The problem that a status carries; made up from its code if it carries none.
pub fn problem(status: &Status) -> Problem {
    if let Ok(problem) = Problem::decode(status.details())
        && !problem.reason.is_empty()
    {
        return problem;
    }
    Problem { reason: reason(status.code()).to_owned(), message: status.message().to_owned(), ..Problem::default() }
}

fn reason(code: Code) -> &'static str {
    match code {
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::Aborted | Code::FailedPrecondition => "Conflict",
        Code::InvalidArgument => "BadRequest",
        Code::PermissionDenied => "Forbidden",
        Code::Unauthenticated => "Unauthorized",
        Code::ResourceExhausted => "TooManyRequests",
        Code::OutOfRange => "Expired",
        Code::Unimplemented => "MethodNotAllowed",
        Code::Unavailable => "ServiceUnavailable",
        Code::DeadlineExceeded | Code::Cancelled => "Timeout",
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => "InternalError",
    }
}

fn server(problem: &Problem) -> String {
    format!("Error from server ({}): {}", problem.reason, problem.message)
}

/// `The Service "web" is invalid: …`, the causes one a line if there are several.
fn invalid(problem: &Problem) -> String {
    let Some(key) = &problem.key else {
        return format!("The request is invalid: {}", problem.message);
    };
    let head = format!("The {} {:?} is invalid", key.kind().title(), key.name);
    let mut seen = BTreeSet::new();
    let causes: Vec<String> = problem
        .causes
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .filter(|cause| seen.insert(cause.clone()))
        .collect();
    match causes.as_slice() {
        [] => format!("{head}: {}", problem.message),
        [one] => format!("{head}: {one}"),
        many => format!("{head}: \n{}", many.iter().map(|cause| format!("* {cause}")).collect::<Vec<_>>().join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::model::{Invalid, Key};
    use fairlead_proto::v1::Kind;

    fn refused(causes: &[Invalid]) -> Failure {
        let key = Key::new(Kind::Service, "default", "web");
        let list = causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let message = if causes.len() == 1 { list } else { format!("[{list}]") };
        let problem = Problem {
            reason: "Invalid".into(),
            message: format!("Service \"web\" is invalid: {message}"),
            causes: causes.iter().map(Invalid::to_wire).collect(),
            key: Some(key.to_wire()),
            ..Problem::default()
        };
        let status = Status::with_details(Code::InvalidArgument, "ignored", problem.encode_to_vec().into());
        Failure::from_status(&status)
    }

    #[test]
    fn invalid_objects_read_as_kubectl_prints_them() {
        let one = refused(&[Invalid::required("spec.ports", "")]);
        assert_eq!(one.text(), "The Service \"web\" is invalid: spec.ports: Required value");
        let two = refused(&[
            Invalid::required("spec.ports", ""),
            Invalid::invalid("spec.type", "x", "bad"),
            Invalid::required("spec.ports", ""),
        ]);
        assert_eq!(
            two.text(),
            "The Service \"web\" is invalid: \n* spec.ports: Required value\n* spec.type: Invalid value: \"x\": bad"
        );
        let listed = Failure::Many(vec![one.at_source("creating", "m.yaml"), Failure::local("more")]);
        assert_eq!(
            listed.text(),
            "Error from server (Invalid): error when creating \"m.yaml\": Service \"web\" is invalid: spec.ports: Required value\nerror: more"
        );
        assert_eq!(listed.exit_code(), 1);
    }

    #[test]
    fn other_problems_have_their_reason_in_brackets() {
        let status = Status::not_found("services \"none\" not found");
        let failure = Failure::from_status(&status);
        assert!(failure.is_not_found());
        assert_eq!(failure.text(), "Error from server (NotFound): services \"none\" not found");
        assert_eq!(
            failure.at_source("deleting", "STDIN").text(),
            "Error from server (NotFound): error when deleting \"STDIN\": services \"none\" not found"
        );
    }

    #[test]
    fn an_unknown_outcome_ends_with_three_whatever_else_failed() {
        let unknown = Failure::Unknown("no answer".into());
        assert_eq!(unknown.text(), "error: the outcome is unknown: no answer");
        assert_eq!(Failure::Many(vec![Failure::local("x"), unknown]).exit_code(), UNKNOWN_OUTCOME);
        assert_eq!(Failure::Connection("gone".into()).exit_code(), 1);
        assert!(Failure::all(Vec::new()).is_ok());
    }
}
