//! `wait`: until objects are as asked, all conditions of all objects, or the time is over.

use super::watch::{Watch, until};
use crate::client::failure::Failure;
use crate::client::fetch::{self, CHUNK, Filter};
use crate::client::files::Files;
use crate::client::jsonpath::{Template, as_text};
use crate::client::kinds::Resource;
use crate::client::output::{items, number, print, text};
use crate::client::table::rows::condition;
use crate::client::targets::{self, Targets};
use crate::client::{Global, Session, duration, programmed};
use clap::Args;
use fairlead_proto::manifest;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{Kind, Object};
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Flags of `wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// KIND NAME…, KIND/NAME…, or KIND with --all or -l
    #[arg(value_name = "KIND [NAME]")]
    targets: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// condition=TYPE[=VALUE], delete, create, jsonpath={PATH}[=VALUE] or programmed; several must all hold
    #[arg(long = "for", value_name = "CONDITION")]
    conditions: Vec<String>,
    /// How long; 0 = look once, negative = a week
    #[arg(long, default_value = "30s", value_parser = duration::parse_wait, allow_hyphen_values = true)]
    timeout: Duration,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Objects with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Objects with these fields
    #[arg(long)]
    field_selector: Option<String>,
}

/// What to wait for.
#[derive(Debug)]
enum Condition {
    /// A condition of the status has this value.
    Status(String, String),
    /// The object is gone.
    Delete,
    /// The object is there.
    Create,
    /// A path gives this value, or any.
    Path(Template, Option<String>),
    /// Every live node's kernel serves the object.
    Programmed,
}

/// Runs it.
///
/// # Errors
/// All failures, time-outs among them.
pub async fn run(global: &Global, args: &WaitArgs) -> Result<(), Failure> {
    let targets = Targets::parse(&args.targets)?;
    if args.conditions.is_empty() {
        return Err(Failure::local("unrecognized condition: []"));
    }
    let conditions = args.conditions.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let deadline = Instant::now() + args.timeout;
    let session = global.session()?;
    let names = args.names(&session, &targets).await?;
    if names.is_empty() {
        if conditions.iter().all(|condition| matches!(condition, Condition::Delete)) {
            return Ok(());
        }
        return Err(Failure::local("no matching resources found"));
    }
    let mut failures = Vec::new();
    for (resource, key) in names {
        let waiting = Waiting { session: &session, resource, key: &key, deadline, once: args.timeout.is_zero() };
        if let Err(failure) = waiting.all(&conditions).await {
            failures.push(failure);
        }
    }
    Failure::all(failures)
}

impl WaitArgs {
    async fn names(&self, session: &Session, targets: &Targets) -> Result<Vec<(&'static Resource, Key)>, Failure> {
        if !self.files.filename.is_empty() {
            return self.files.documents("wait")?.iter().map(|document| document.identify(session)).collect();
        }
        if targets.is_empty() {
            return Err(targets::required());
        }
        let selecting = self.selector.is_some() || self.field_selector.is_some() || self.all;
        if !targets.named.is_empty() {
            if selecting {
                return Err(Failure::local("name cannot be provided when a selector is specified"));
            }
            let key = |resource: &Resource, name: &str| Key::new(resource.kind, session.namespace.as_str(), name);
            return targets
                .named
                .iter()
                .map(|(resource, name)| Ok((resource.must_be_stored()?, key(resource, name))))
                .collect();
        }
        if !selecting {
            return Err(Failure::local("resource(s) were provided, but no name was specified"));
        }
        let filter = Filter {
            namespace: if self.all_namespaces { String::new() } else { session.namespace.clone() },
            labels: self.selector.clone().unwrap_or_default(),
            fields: self.field_selector.clone().unwrap_or_default(),
            chunk: CHUNK,
            ..Filter::default()
        };
        let mut names = Vec::new();
        for resource in &targets.whole {
            let found = session.list(resource.must_be_stored()?, &filter).await?;
            names.extend(found.iter().map(|one| {
                (
                    *resource,
                    Key::new(
                        resource.kind,
                        text(&one.value, "/metadata/namespace"),
                        text(&one.value, "/metadata/name"),
                    ),
                )
            }));
        }
        Ok(names)
    }
}

/// One object that is waited for.
struct Waiting<'a> {
    session: &'a Session,
    resource: &'static Resource,
    key: &'a Key,
    deadline: Instant,
    once: bool,
}

impl Waiting<'_> {
    async fn all(&self, conditions: &[Condition]) -> Result<(), Failure> {
        for condition in conditions {
            let done = match condition {
                Condition::Programmed => self.programmed().await?,
                other => self.holds(other).await?,
            };
            if !done {
                return Err(if self.once {
                    Failure::local(format!("condition not met for {}/{}", self.resource.plural, self.key.name))
                } else {
                    timed_out(self.resource, &self.key.name)
                });
            }
            print(&format!("{}/{} condition met\n", self.resource.prefix(), self.key.name))?;
        }
        Ok(())
    }

    async fn holds(&self, condition: &Condition) -> Result<bool, Failure> {
        if self.once {
            return match self.session.object(self.key).await {
                Ok(object) => met(condition, Some(&object)),
                Err(failure) if failure.is_not_found() => {
                    met(condition, None).and_then(|done| done.then_some(true).ok_or(failure))
                }
                Err(failure) => Err(failure),
            };
        }
        let filter = Filter { namespace: self.key.namespace.clone(), ..Filter::default() };
        let mut watch = Watch::new(self.session, self.resource, &filter, &self.key.name);
        let mut seen = false;
        until(&mut watch, self.deadline, |object| {
            if object.is_none() && !seen && !matches!(condition, Condition::Create | Condition::Delete) {
                return Err(fetch::missing(self.resource, &self.key.name));
            }
            seen = true;
            met(condition, object)
        })
        .await
    }

    /// Waits for the kernels of the object as it is now; for a service, of its endpoints too.
    async fn programmed(&self) -> Result<bool, Failure> {
        let mut revision = self.session.object(self.key).await?.metadata().revision;
        if self.key.kind == Kind::Service {
            let endpoints = Key::new(Kind::Endpoints, self.key.namespace.as_str(), self.key.name.as_str());
            match self.session.object(&endpoints).await {
                Ok(object) => revision = revision.max(object.metadata().revision),
                Err(failure) if failure.is_not_found() => {}
                Err(failure) => return Err(failure),
            }
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        programmed::wait(self.session, revision, left).await.map(|_| true).map_err(|failure| {
            match (self.once, failure) {
                (false, Failure::Local(who)) => Failure::local(format!(
                    "timed out waiting for the condition on {}/{}: {who}",
                    self.resource.plural, self.key.name
                )),
                (true, Failure::Local(who)) => {
                    Failure::local(format!("condition not met for {}/{}: {who}", self.resource.plural, self.key.name))
                }
                (_, other) => other,
            }
        })
    }
}

/// kubectl's sentence for a time-out.
pub fn timed_out(resource: &Resource, name: &str) -> Failure {
    Failure::local(format!("timed out waiting for the condition on {}/{name}", resource.plural))
}

fn parse(given: &str) -> Result<Condition, Failure> {
    let lower = given.to_lowercase();
    if lower == "delete" {
        return Ok(Condition::Delete);
    }
    if lower == "create" {
        return Ok(Condition::Create);
    }
    if lower == "programmed" || lower == "programmed=100%" {
        return Ok(Condition::Programmed);
    }
    match given.split_once('=') {
        Some((kind, rest)) if kind.eq_ignore_ascii_case("condition") && !rest.is_empty() => {
            let (kind, value) = rest.split_once('=').unwrap_or((rest, "true"));
            Ok(Condition::Status(kind.to_owned(), value.to_owned()))
        }
        Some((kind, rest)) if kind.eq_ignore_ascii_case("jsonpath") => path(rest),
        _ => Err(Failure::local(format!("unrecognized condition: {given:?}"))),
    }
}

/// `{PATH}` or `{PATH}=VALUE`; an equals sign within the braces belongs to the path.
fn path(text: &str) -> Result<Condition, Failure> {
    let end = if text.trim_start().starts_with('{') {
        text.rfind('}').map_or(text.len(), |at| at + 1)
    } else {
        text.find('=').unwrap_or(text.len())
    };
    let (path, rest) = text.split_at(end);
    let value = match rest.strip_prefix('=') {
        Some("") => {
            return Err(Failure::local(
                "jsonpath wait has to have a value after equal sign: jsonpath='{.status.readyReplicas}'=3",
            ));
        }
        Some(value) => Some(value.trim_matches(['\'', '"']).to_owned()),
        None if rest.is_empty() => None,
        None => return Err(Failure::local(format!("unrecognized condition: \"jsonpath={text}\""))),
    };
    Ok(Condition::Path(Template::parse_relaxed(path).map_err(Failure::Local)?, value))
}

/// True if the object is as asked.
fn met(condition: &Condition, object: Option<&Object>) -> Result<bool, Failure> {
    match (condition, object) {
        (Condition::Delete, object) => Ok(object.is_none()),
        (_, None) => Ok(false),
        (Condition::Create | Condition::Programmed, Some(_)) => Ok(true),
        (Condition::Status(kind, wanted), Some(object)) => Ok(has_condition(&manifest::render(object), kind, wanted)),
        (Condition::Path(template, wanted), Some(object)) => {
            let found = template.find(&manifest::render(object)).map_err(Failure::Local)?;
            match found.as_slice() {
                [] => Ok(false),
                [one] => match wanted {
                    Some(wanted) if one.is_object() || one.is_array() => Err(Failure::local(format!(
                        "jsonpath leads to a nested object or list and cannot be compared to value {wanted:?}"
                    ))),
                    Some(wanted) => Ok(as_text(one) == *wanted),
                    None => Ok(true),
                },
                _ => Err(Failure::local("given jsonpath expression matches more than one value")),
            }
        }
    }
}

fn has_condition(value: &Value, kind: &str, wanted: &str) -> bool {
    let all = items(value, "/status/conditions");
    let found = condition(value, kind).or_else(|| all.iter().find(|one| text(one, "/type").eq_ignore_ascii_case(kind)));
    found.is_some_and(|found| {
        let observed = number(found, "/observedGeneration");
        let stale = observed > 0 && observed < number(value, "/metadata/generation");
        !stale && text(found, "/status").eq_ignore_ascii_case(wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{Condition as Fact, ObjectMeta, Pod, PodStatus};

    fn pod() -> Object {
        let ready = Fact { r#type: "Ready".into(), status: "True".into(), ..Fact::default() };
        let late = Fact { r#type: "Late".into(), status: "True".into(), observed_generation: 1, ..Fact::default() };
        let status = PodStatus { phase: "Running".into(), conditions: vec![ready, late], ..PodStatus::default() };
        let metadata = ObjectMeta { name: "p".into(), generation: 2, ..ObjectMeta::default() };
        Object::from(Pod { metadata: Some(metadata), status: Some(status), ..Pod::default() })
    }

    #[test]
    fn conditions_are_those_of_kubectl() {
        for (text, expect) in [
            ("condition=Ready", true),
            ("condition=ready=TRUE", true),
            ("condition=Ready=false", false),
            ("condition=Late", false),
            ("condition=None", false),
            ("create", true),
            ("delete", false),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Running", true),
            ("jsonpath=.status.phase=Pending", false),
            ("jsonpath={.status.nope}", false),
            ("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True", true),
        ] {
            let condition = parse(&text.replace('\'', "")).unwrap();
            assert_eq!(met(&condition, Some(&pod())), Ok(expect), "{text}");
        }
        assert_eq!(met(&Condition::Delete, None), Ok(true));
        assert_eq!(met(&Condition::Create, None), Ok(false));
        assert!(matches!(parse("programmed=100%"), Ok(Condition::Programmed)));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, says) in [
            ("foo", "unrecognized condition: \"foo\""),
            ("condition=", "unrecognized condition"),
            ("jsonpath={.a}=", "has to have a value"),
            ("jsonpath={.a}x", "unrecognized condition"),
            ("jsonpath=", "unexpected path string"),
        ] {
            assert!(parse(text).unwrap_err().text().contains(says), "{text}");
        }
        let many = parse("jsonpath={.status.conditions[*].type}=x").unwrap();
        assert!(met(&many, Some(&pod())).unwrap_err().text().contains("more than one value"));
        let nested = parse("jsonpath={.status}=x").unwrap();
        assert!(met(&nested, Some(&pod())).unwrap_err().text().contains("nested object"));
    }
}
