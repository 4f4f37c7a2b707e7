//! `history`, `diff` and `rollback`: what an object was, as far as the servers' window of events tells.

use crate::client::changes::changes;
use crate::client::duration::age;
use crate::client::failure::Failure;
use crate::client::output::{Format, Shown, print};
use crate::client::table::Aligner;
use crate::client::targets::Targets;
use crate::client::verbs::{DryRun, report, warn};
use crate::client::{Global, Session};
use clap::Args;
use fairlead_proto::manifest;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{
    CreateRequest, GetRequest, Input, Object, ObjectRevision, RevisionsRequest, UpdateRequest, WriteOptions, input,
};
use jiff::Timestamp;
use serde_json::Value;

/// Changes of one revision that are shown.
const FEW: usize = 4;
/// Revisions shown at once: servers give a thousand, and the one before the first is needed.
const MOST: i64 = 999;

/// Flags of `history`.
#[derive(Args, Debug)]
pub struct HistoryArgs {
    /// KIND NAME or KIND/NAME
    #[arg(required = true, value_name = "KIND NAME")]
    object: Vec<String>,
    /// The newest so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    limit: u32,
    /// Without the line of column titles
    #[arg(long)]
    no_headers: bool,
    /// json, yaml, name, jsonpath=…, custom-columns=…: the object at each revision
    #[arg(short, long)]
    output: Option<String>,
}

/// Flags of `diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// KIND NAME or KIND/NAME
    #[arg(required = true, value_name = "KIND NAME")]
    object: Vec<String>,
    /// From one revision to another, or to now
    #[arg(long, value_name = "A[..B]", value_parser = range)]
    revision: (u64, u64),
}

/// Flags of `rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// KIND NAME or KIND/NAME
    #[arg(required = true, value_name = "KIND NAME")]
    object: Vec<String>,
    /// What it was at this revision
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    to_revision: u64,
    /// server: validate, and keep nothing
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "server")]
    dry_run: DryRun,
    /// json, yaml, name, jsonpath=…
    #[arg(short, long)]
    output: Option<String>,
}

/// `7..9`; `7` and `7..` are to now, which is 0.
fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").unwrap_or((text, ""));
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    let from = number(from).ok_or_else(|| format!("{text:?} is no range of revisions, such as 7..9"))?;
    let to = if to.is_empty() { Some(0) } else { number(to) };
    Ok((from, to.ok_or_else(|| format!("{text:?} is no range of revisions, such as 7..9"))?))
}

/// Runs `history`.
///
/// # Errors
/// [`Failure`].
pub async fn run(global: &Global, args: &HistoryArgs) -> Result<(), Failure> {
    let format = Format::parse(args.output.as_deref())?;
    let session = global.session()?;
    let (resource, key) = session.one(&args.object)?;
    // One more: what the first one shown changed.
    let request = RevisionsRequest { key: Some(key.to_wire()), limit: args.limit + 1 };
    let answer = session.servers.revisions(request).await?;
    let mut revisions = answer.revisions;
    let before = if answer.more || revisions.len() > args.limit as usize { Some(revisions.remove(0)) } else { None };
    if !matches!(format, Format::Table { .. }) {
        let objects = revisions.iter().filter_map(|one| one.object.as_ref());
        let shown: Vec<Shown> = objects.map(|object| Shown { resource, value: manifest::render(object) }).collect();
        return print(&format.render(&shown, false)?);
    }
    let mut rows = Vec::new();
    if !args.no_headers {
        rows.push(["REVISION", "AGE", "CHANGE"].map(str::to_owned).to_vec());
    }
    rows.extend(table(before.as_ref(), &revisions, Timestamp::now()));
    print(&Aligner::default().render(&rows))
}

/// A line a revision.
fn table(before: Option<&ObjectRevision>, revisions: &[ObjectRevision], now: Timestamp) -> Vec<Vec<String>> {
    let mut last: Option<Value> = before.and_then(|one| one.object.as_ref()).map(manifest::render);
    let mut rows = Vec::new();
    for one in revisions {
        let value = one.object.as_ref().map(manifest::render);
        let said = match (&last, &value) {
            _ if one.time.is_empty() => "as it was before".to_owned(),
            (None, Some(_)) => "created".to_owned(),
            (_, None) => "deleted".to_owned(),
            (Some(old), Some(new)) => few(changes(old, new)),
        };
        let age = if one.time.is_empty() { "<unknown>".to_owned() } else { age(&one.time, now) };
        rows.push(vec![one.revision.to_string(), age, said]);
        last = value;
    }
    rows
}

fn few(mut changes: Vec<String>) -> String {
    let more = changes.len().saturating_sub(FEW);
    changes.truncate(FEW);
    if more > 0 {
        changes.push(format!("and {more} more"));
    }
    if changes.is_empty() { "nothing that is shown".to_owned() } else { changes.join("; ") }
}

/// Runs `diff`: exit code 1 if there is a difference, or no answer.
///
/// # Errors
/// [`Failure`]; silent if there is a difference.
pub async fn diff(global: &Global, args: &DiffArgs) -> Result<(), Failure> {
    let session = global.session()?;
    let (_, key) = session.one(&args.object)?;
    let (from, to) = args.revision;
    let old = session.at(&key, from).await?;
    let new = session.at(&key, to).await?;
    let found = changes(&manifest::render(&old), &manifest::render(&new));
    if found.is_empty() {
        return Ok(());
    }
    print(&(found.join("\n") + "\n"))?;
    Err(Failure::Silent)
}

/// Runs `rollback`.
///
/// # Errors
/// [`Failure`].
pub async fn rollback(global: &Global, args: &RollbackArgs) -> Result<(), Failure> {
    let format = Format::parse(args.output.as_deref())?;
    let session = global.session()?;
    let (resource, key) = session.one(&args.object)?;
    let mut object = session.at(&key, args.to_revision).await?;
    let live = match session.object(&key).await {
        Ok(live) => Some(live),
        Err(failure) if failure.is_not_found() => None,
        Err(failure) => return Err(failure),
    };
    // Whoever changes it meanwhile is not overwritten.
    let live = live.as_ref().map(|live| live.metadata());
    if let Some(metadata) = object.metadata_mut() {
        metadata.revision = live.map_or(0, |live| live.revision);
        metadata.uid = live.map(|live| live.uid.clone()).unwrap_or_default();
    }
    let done = format!("rolled back to revision {}{}", args.to_revision, args.dry_run.suffix());
    let written = match args.dry_run {
        DryRun::Client => object,
        dry_run => {
            let options = Some(WriteOptions { dry_run: dry_run == DryRun::Server, ..WriteOptions::default() });
            let input = Some(Input { form: Some(input::Form::Object(object)) });
            let answer = match live {
                Some(_) => session.servers.update(UpdateRequest { input, options }).await?,
                None => session.servers.create(CreateRequest { input, options }).await?,
            };
            warn(&answer.warnings);
            answer.object.unwrap_or_default()
        }
    };
    report(Shown { resource, value: manifest::render(&written) }, &done, &format)
}

impl Session {
    /// The one object that a command line names.
    fn one(&self, arguments: &[String]) -> Result<(&'static crate::client::kinds::Resource, Key), Failure> {
        let targets = Targets::parse(arguments)?;
        match targets.named.as_slice() {
            [(resource, name)] => {
                let resource = resource.must_be_stored()?;
                Ok((resource, Key::new(resource.kind, self.namespace.as_str(), name)))
            }
            _ => Err(Failure::local("exactly one object is needed: KIND NAME")),
        }
    }

    /// An object as it was at a revision; 0 = now.
    pub async fn at(&self, key: &Key, revision: u64) -> Result<Object, Failure> {
        let request = GetRequest { key: Some(key.to_wire()), at_revision: revision, ..GetRequest::default() };
        let answer = self.servers.get(request).await?;
        answer.object.ok_or_else(|| Failure::local("the server answered without an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{Service, ServicePort, ServiceSpec};

    #[test]
    fn ranges_of_revisions() {
        assert_eq!((range("7..9"), range("7.."), range("7")), (Ok((7, 9)), Ok((7, 0)), Ok((7, 0))));
        for wrong in ["", "..", "0", "a..b", "7..x", "7..0", "-1"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_revision_is_a_line() {
        let service = |port| {
            let ports = vec![ServicePort { port, protocol: "TCP".into(), ..ServicePort::default() }];
            Some(Service { spec: Some(ServiceSpec { ports, ..ServiceSpec::default() }), ..Service::default() }.into())
        };
        let one = |revision, object| ObjectRevision { revision, time: "2026-01-01T00:00:00Z".into(), object };
        let all = [one(3, service(80)), one(5, service(81)), one(6, None), one(9, service(81))];
        let now = "2026-01-01T00:00:09Z".parse().unwrap();
        let rows: Vec<String> = table(None, &all, now).iter().map(|row| row.join(" ")).collect();
        assert_eq!(rows, ["3 9s created", "5 9s spec.ports[0].port: 80 → 81", "6 9s deleted", "9 9s created"]);
        let early = ObjectRevision { time: String::new(), ..one(2, service(80)) };
        assert_eq!(table(None, std::slice::from_ref(&early), now)[0].join(" "), "2 <unknown> as it was before");
        assert_eq!(table(Some(&early), &all[1..2], now)[0][2], "spec.ports[0].port: 80 → 81");
        assert_eq!(few((0..6).map(|n| n.to_string()).collect()), "0; 1; 2; 3; and 2 more");
    }
}
