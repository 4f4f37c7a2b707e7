//! `delete`: by name, by manifest, by selector or all of a kind; by default it returns when the objects are gone.

use super::watch::{Watch, until};
use super::{DryRun, wait};
use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter, Selected};
use crate::client::files::Files;
use crate::client::output::{Shown, print, text};
use crate::client::targets::{self, Targets};
use crate::client::{Global, Session, duration};
use clap::{ArgAction, Args};
use fairlead_proto::model::Key;
use fairlead_proto::v1::{DeleteRequest, WriteEffect, WriteOptions};
use std::time::Duration;
use tokio::time::Instant;

/// Flags of `delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// KIND[,KIND] NAME…, KIND/NAME…, or KIND with --all or -l
    #[arg(value_name = "KIND [NAME]")]
    targets: Vec<String>,
    #[command(flatten)]
    files: Files,
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
    /// An object that isn't there is no failure
    #[arg(long)]
    ignore_not_found: bool,
    /// Return when the objects are gone
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    wait: bool,
    /// How long to wait; 0 = as long as it takes
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    timeout: Duration,
    /// Seconds that a pod is given to end; negative = its own
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    grace_period: i64,
    /// A grace period of one second
    #[arg(long)]
    now: bool,
    /// At once, with no grace period
    #[arg(long)]
    force: bool,
    /// Only try
    #[arg(long, value_enum, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "client")]
    dry_run: DryRun,
    /// name
    #[arg(short, long)]
    output: Option<String>,
}

/// Runs it.
///
/// # Errors
/// All failures.
pub async fn run(global: &Global, args: &DeleteArgs) -> Result<(), Failure> {
    let targets = Targets::parse(&args.targets)?;
    args.check(&targets)?;
    let grace = args.grace()?;
    if grace == Some(0) {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    let session = global.session()?;
    let selected = args.select(&session, &targets).await?;
    let selecting = args.selector.is_some() || args.field_selector.is_some() || args.all;
    if selected.objects.is_empty() && selected.failures.is_empty() {
        if !args.ignore_not_found {
            print("No resources found\n")?;
        }
        return Ok(());
    }
    let mut failures = selected.failures;
    let mut going = Vec::new();
    for shown in &selected.objects {
        match one(&session, args, (shown, grace)).await {
            Ok(uid) => going.extend(uid.map(|uid| (shown, uid))),
            Err(failure) if failure.is_not_found() && (selecting || args.ignore_not_found) => {}
            Err(failure) => failures.push(failure),
        }
    }
    if args.wait && args.dry_run == DryRun::None {
        let deadline =
            Instant::now() + if args.timeout.is_zero() { Duration::from_secs(7 * 86_400) } else { args.timeout };
        for (shown, uid) in going {
            if let Err(failure) = gone(&session, (shown, &uid), deadline).await {
                failures.push(failure);
            }
        }
    }
    Failure::all(failures)
}

/// Deletes one; its uid if it is not gone yet.
async fn one(session: &Session, args: &DeleteArgs, what: (&Shown, Option<i64>)) -> Result<Option<String>, Failure> {
    let (shown, grace) = what;
    let mut going = None;
    if args.dry_run != DryRun::Client {
        let resource = shown.resource.must_be_stored()?;
        let key =
            Key::new(resource.kind, text(&shown.value, "/metadata/namespace"), text(&shown.value, "/metadata/name"));
        let options = WriteOptions { dry_run: args.dry_run == DryRun::Server, ..WriteOptions::default() };
        let request = DeleteRequest {
            key: Some(key.to_wire()),
            options: Some(options),
            grace_period_seconds: grace,
            ..DeleteRequest::default()
        };
        let answer = session.servers.delete(request).await?;
        if answer.effect() == WriteEffect::Terminating {
            let uid = answer.object.as_ref().map(|object| object.metadata().uid.clone());
            going = Some(uid.unwrap_or_else(|| text(&shown.value, "/metadata/uid").to_owned()));
        }
    }
    print(&message(shown, args, grace))?;
    Ok(going)
}

/// kubectl's message.
fn message(shown: &Shown, args: &DeleteArgs, grace: Option<i64>) -> String {
    if args.output.as_deref() == Some("name") {
        return shown.path() + "\n";
    }
    let done = if grace == Some(0) { "force deleted" } else { "deleted" };
    let place = if shown.resource.is_namespaced() {
        format!(" from {} namespace", text(&shown.value, "/metadata/namespace"))
    } else {
        String::new()
    };
    format!(
        "{} {:?} {done}{place}{}\n",
        shown.resource.prefix(),
        text(&shown.value, "/metadata/name"),
        args.dry_run.suffix()
    )
}

/// Waits until this very object is gone.
async fn gone(session: &Session, what: (&Shown, &str), deadline: Instant) -> Result<(), Failure> {
    let (shown, uid) = what;
    let filter = Filter { namespace: text(&shown.value, "/metadata/namespace").to_owned(), ..Filter::default() };
    let mut watch = Watch::new(session, shown.resource, &filter, text(&shown.value, "/metadata/name"));
    let done =
        until(&mut watch, deadline, |object| Ok(object.is_none_or(|object| object.metadata().uid != uid))).await?;
    if done { Ok(()) } else { Err(wait::timed_out(shown.resource, text(&shown.value, "/metadata/name"))) }
}

impl DeleteArgs {
    fn check(&self, targets: &Targets) -> Result<(), Failure> {
        let selecting = self.selector.is_some() || self.field_selector.is_some();
        if self.output.as_deref().is_some_and(|output| output != "name" && !output.is_empty()) {
            return Err(Failure::local(format!(
                "unexpected -o output mode: {}. We only support '-o name'",
                self.output.as_deref().unwrap_or_default()
            )));
        }
        if self.all && selecting {
            let flag = if self.selector.is_some() { "--selector" } else { "--field-selector" };
            return Err(Failure::local(format!("cannot set --all and {flag} at the same time")));
        }
        if !self.files.filename.is_empty() {
            return Ok(());
        }
        if targets.is_empty() {
            return Err(if selecting || self.all {
                Failure::local("at least one resource must be specified to use a selector")
            } else {
                targets::required()
            });
        }
        if !targets.named.is_empty() && (selecting || self.all) {
            return Err(Failure::local("name cannot be provided when a selector is specified"));
        }
        if !targets.whole.is_empty() && !selecting && !self.all {
            return Err(Failure::local("resource(s) were provided, but no name was specified"));
        }
        if !targets.named.is_empty() && self.all_namespaces {
            return Err(Failure::local("a resource cannot be retrieved by name across all namespaces"));
        }
        Ok(())
    }

    /// Seconds of grace; `None` = the pod's own.
    fn grace(&self) -> Result<Option<i64>, Failure> {
        if self.now && self.grace_period != -1 {
            return Err(Failure::local("--now and --grace-period cannot be specified together"));
        }
        let period = if self.now { 1 } else { self.grace_period };
        match (period, self.force) {
            (1.., true) => {
                Err(Failure::local("--force and --grace-period greater than 0 cannot be specified together"))
            }
            (_, true) => Ok(Some(0)),
            // Without --force, 0 is taken as 1, so that nobody loses a pod's last words by accident.
            (0, false) => Ok(Some(1)),
            (..0, false) => Ok(None),
            (period, false) => Ok(Some(period)),
        }
    }

    /// What to delete. Names are not looked up: a delete says itself if there is nothing.
    async fn select(&self, session: &Session, targets: &Targets) -> Result<Selected, Failure> {
        let mut selected = Selected { objects: Vec::new(), failures: Vec::new() };
        if !self.files.filename.is_empty() {
            for document in self.files.documents("delete")? {
                match document.identify(session) {
                    Ok((resource, key)) => selected.objects.push(named(resource, &key.namespace, &key.name)),
                    Err(failure) => selected.failures.push(failure),
                }
            }
            return Ok(selected);
        }
        if targets.whole.is_empty() {
            selected.objects =
                targets.named.iter().map(|(resource, name)| named(resource, &session.namespace, name)).collect();
            return Ok(selected);
        }
        let filter = Filter {
            namespace: if self.all_namespaces { String::new() } else { session.namespace.clone() },
            labels: self.selector.clone().unwrap_or_default(),
            fields: self.field_selector.clone().unwrap_or_default(),
            chunk: CHUNK,
            ..Filter::default()
        };
        for resource in &targets.whole {
            selected.objects.extend(session.list(resource.must_be_stored()?, &filter).await?);
        }
        Ok(selected)
    }
}

fn named(resource: &'static crate::client::kinds::Resource, namespace: &str, name: &str) -> Shown {
    Shown { resource, value: serde_json::json!({"metadata": {"name": name, "namespace": namespace}}) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::{NODES, SERVICES};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DeleteArgs,
    }

    fn parse(flags: &[&str]) -> DeleteArgs {
        Line::parse_from(["delete"].iter().chain(flags)).args
    }

    #[test]
    fn messages_are_those_of_kubectl() {
        let web = named(&SERVICES, "default", "web");
        let says = |shown: &Shown, flags: &[&str]| {
            let args = parse(flags);
            message(shown, &args, args.grace().unwrap())
        };
        assert_eq!(says(&web, &[]), "service \"web\" deleted from default namespace\n");
        assert_eq!(
            says(&web, &["--dry-run=server"]),
            "service \"web\" deleted from default namespace (server dry run)\n"
        );
        assert_eq!(says(&web, &["--dry-run"]), "service \"web\" deleted from default namespace (dry run)\n");
        assert_eq!(says(&web, &["--force"]), "service \"web\" force deleted from default namespace\n");
        assert_eq!(says(&web, &["-o", "name"]), "service/web\n");
        assert_eq!(says(&named(&NODES, "", "n1"), &[]), "node \"n1\" deleted\n");
    }

    #[test]
    fn grace_periods_and_contradictions() {
        for (flags, expect) in [
            (&[] as &[&str], Ok(None)),
            (&["--now"], Ok(Some(1))),
            (&["--grace-period=0"], Ok(Some(1))),
            (&["--grace-period=0", "--force"], Ok(Some(0))),
            (&["--grace-period", "-1"], Ok(None)),
            (&["--grace-period=9"], Ok(Some(9))),
            (&["--grace-period=9", "--force"], Err(())),
            (&["--now", "--grace-period=9"], Err(())),
        ] {
            assert_eq!(parse(flags).grace().map_err(drop), expect, "{flags:?}");
        }
        for (flags, says) in [
            (&["svc"] as &[&str], "no name was specified"),
            (&[], "You must provide one or more resources"),
            (&["--all"], "at least one resource must be specified"),
            (&["svc", "web", "-l", "a=b"], "name cannot be provided"),
            (&["svc", "--all", "-l", "a=b"], "cannot set --all and --selector"),
            (&["svc", "web", "-o", "json"], "We only support '-o name'"),
        ] {
            let args = parse(flags);
            let targets = Targets::parse(&args.targets).unwrap();
            assert!(args.check(&targets).unwrap_err().text().contains(says), "{flags:?}");
        }
        assert!(parse(&["svc", "x"]).wait && !parse(&["svc", "x", "--wait=false"]).wait);
    }
}
