//! `label` and `annotate`: one key at a time, with optimistic concurrency, so that nobody else's change is lost.

use super::{DryRun, report, warn};
use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter};
use crate::client::files::Files;
use crate::client::output::{Format, Shown, print, text};
use crate::client::targets::{self, Targets};
use crate::client::{Global, Session};
use clap::Args;
use fairlead_proto::manifest;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{Input, Object, UpdateRequest, WriteOptions, input};
use std::collections::{BTreeMap, BTreeSet};

/// Attempts against somebody who keeps changing the object.
const ATTEMPTS: u32 = 8;

/// Flags of `label` and `annotate`.
#[derive(Args, Debug)]
pub struct LabelArgs {
    /// KIND NAME… or KIND/NAME…, then KEY=VALUE to set and KEY- to remove
    #[arg(value_name = "KIND NAME KEY=VALUE")]
    arguments: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Change what is there already
    #[arg(long)]
    overwrite: bool,
    /// Show what there is
    #[arg(long)]
    list: bool,
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
    /// Only this revision of the object
    #[arg(long, value_name = "REVISION")]
    resource_version: Option<u64>,
    /// Only try
    #[arg(long, value_enum, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "client")]
    dry_run: DryRun,
    /// Print the object: json, yaml, name, jsonpath=…, custom-columns=…
    #[arg(short, long)]
    output: Option<String>,
}

/// Which of the two maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    singular: &'static str,
}

/// Labels.
pub const LABELS: Map = Map { singular: "label" };
/// Annotations.
pub const ANNOTATIONS: Map = Map { singular: "annotation" };

/// What to do to a map.
#[derive(Debug, Default, PartialEq, Eq)]
struct Edit {
    set: BTreeMap<String, String>,
    remove: BTreeSet<String>,
}

/// Runs it.
///
/// # Errors
/// All failures.
pub async fn run(global: &Global, args: &LabelArgs, map: Map) -> Result<(), Failure> {
    let (names, edit) = split(&args.arguments, map)?;
    let targets = Targets::parse(&names)?;
    if targets.is_empty() && args.files.filename.is_empty() {
        return Err(if names.is_empty() {
            Failure::local("one or more resources must be specified as <resource> <name> or <resource>/<name>")
        } else {
            targets::required()
        });
    }
    if edit == Edit::default() && !args.list {
        return Err(Failure::local(format!("at least one {} update is required", map.singular)));
    }
    let selecting = args.all || args.selector.is_some() || args.field_selector.is_some();
    if !targets.whole.is_empty() && !selecting {
        // `label svc web x`: what was meant as a key is a name, or the other way round.
        return Err(Failure::local("resource(s) were provided, but no name was specified"));
    }
    for resource in targets.named.iter().map(|(resource, _)| resource).chain(&targets.whole) {
        resource.must_be_stored()?;
    }
    let session = global.session()?;
    let filter = Filter {
        namespace: if args.all_namespaces { String::new() } else { session.namespace.clone() },
        labels: args.selector.clone().unwrap_or_default(),
        fields: args.field_selector.clone().unwrap_or_default(),
        chunk: CHUNK,
        ..Filter::default()
    };
    let selected = if args.files.filename.is_empty() {
        session.select(&targets, &filter).await?
    } else {
        session.select_files(&args.files, map.singular).await?
    };
    let mut failures = selected.failures;
    for shown in selected.objects {
        if let Err(failure) = one(&session, (args, map, &edit), &shown).await {
            failures.push(failure);
        }
    }
    Failure::all(failures)
}

async fn one(session: &Session, how: (&LabelArgs, Map, &Edit), shown: &Shown) -> Result<(), Failure> {
    let (args, map, edit) = how;
    let key =
        Key::new(shown.resource.kind, text(&shown.value, "/metadata/namespace"), text(&shown.value, "/metadata/name"));
    let format = Format::parse(args.output.as_deref())?;
    for attempt in 1.. {
        let mut object = session.object(&key).await?;
        if args.list {
            let lines: String = map.of(&object).iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            return print(&lines);
        }
        let done = map.edit(&mut object, edit, args.overwrite)?;
        if let (Some(expected), Some(metadata)) = (args.resource_version, object.metadata_mut()) {
            metadata.revision = expected;
        }
        let changed = done != format!("not {}", map.done());
        let report_it = |object: &Object| {
            let shown = Shown { resource: shown.resource, value: manifest::render(object) };
            report(shown, &format!("{done}{}", args.dry_run.suffix()), &format)
        };
        if args.dry_run == DryRun::Client || !changed {
            return report_it(&object);
        }
        let options = WriteOptions { dry_run: args.dry_run == DryRun::Server, ..WriteOptions::default() };
        let request =
            UpdateRequest { input: Some(Input { form: Some(input::Form::Object(object)) }), options: Some(options) };
        match session.servers.update(request).await {
            Ok(answer) => {
                warn(&answer.warnings);
                return report_it(&answer.object.unwrap_or_default());
            }
            // Somebody wrote in between: look again, unless the command line insists on a revision.
            Err(failure) if failure.is_conflict() && attempt < ATTEMPTS && args.resource_version.is_none() => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

impl Map {
    fn done(self) -> &'static str {
        if self == LABELS { "labeled" } else { "annotated" }
    }

    fn of(self, object: &Object) -> BTreeMap<String, String> {
        let metadata = object.metadata();
        if self == LABELS { metadata.labels.clone() } else { metadata.annotations.clone() }
    }

    /// Edits the map; kubectl's word for what happened.
    fn edit(self, object: &mut Object, edit: &Edit, overwrite: bool) -> Result<String, Failure> {
        let old = self.of(object);
        if !overwrite {
            let taken: Vec<String> = edit
                .set
                .iter()
                .filter_map(|(key, value)| {
                    old.get(key).filter(|had| *had != value).map(|had| format!("'{key}' already has a value ({had})"))
                })
                .collect();
            if !taken.is_empty() && self == LABELS {
                return Err(Failure::local(format!("{}, and --overwrite is false", taken.join("; "))));
            }
            if !taken.is_empty() {
                return Err(Failure::local(format!(
                    "--overwrite is false but found the following declared annotation(s): {}",
                    taken.join("; ")
                )));
            }
        }
        let mut new = old.clone();
        new.extend(edit.set.clone());
        for key in &edit.remove {
            if new.remove(key).is_none() && self == LABELS {
                print(&format!("label {key:?} not found.\n"))?;
            }
        }
        let word = match (self == LABELS, new == old) {
            (false, _) => "annotated",
            (true, true) => "not labeled",
            (true, false) if edit.set.is_empty() => "unlabeled",
            (true, false) => "labeled",
        };
        if let Some(metadata) = object.metadata_mut() {
            if self == LABELS { metadata.labels = new } else { metadata.annotations = new }
        }
        Ok(word.to_owned())
    }
}

/// Splits names from edits: the first argument that is no name begins the edits.
fn split(arguments: &[String], map: Map) -> Result<(Vec<String>, Edit), Failure> {
    let is_edit = |argument: &&String| argument.contains('=') || (argument.ends_with('-') && argument.len() > 1);
    let names: Vec<String> = arguments.iter().take_while(|argument| !is_edit(argument)).cloned().collect();
    let mut edit = Edit::default();
    for argument in &arguments[names.len()..] {
        if let Some((key, value)) = argument.split_once('=') {
            if key.is_empty() {
                return Err(Failure::local(format!("invalid {} spec: {argument}", map.singular)));
            }
            edit.set.insert(key.to_owned(), value.to_owned());
        } else if let Some(key) = argument.strip_suffix('-') {
            edit.remove.insert(key.to_owned());
        } else {
            return Err(Failure::local(format!("unknown {} spec: {argument}", map.singular)));
        }
    }
    if edit.set.keys().any(|key| edit.remove.contains(key)) {
        let article = if map == LABELS { "a" } else { "an" };
        return Err(Failure::local(format!(
            "can not both modify and remove {article} {} in the same command",
            map.singular
        )));
    }
    Ok((names, edit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{ObjectMeta, Service};

    fn edited(map: Map, arguments: &[&str], overwrite: bool) -> Result<(String, BTreeMap<String, String>), Failure> {
        let had: BTreeMap<_, _> = [("app".to_owned(), "web".to_owned())].into();
        let metadata =
            ObjectMeta { name: "web".into(), labels: had.clone(), annotations: had, ..ObjectMeta::default() };
        let mut object = Object::from(Service { metadata: Some(metadata), ..Service::default() });
        let arguments: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
        let (_, edit) = split(&arguments, map)?;
        let word = map.edit(&mut object, &edit, overwrite)?;
        Ok((word, map.of(&object)))
    }

    #[test]
    fn words_are_those_of_kubectl() {
        let word = |map, arguments: &[&str]| edited(map, arguments, false).unwrap().0;
        assert_eq!(word(LABELS, &["svc", "web", "x=y"]), "labeled");
        assert_eq!(word(LABELS, &["svc", "web", "app=web"]), "not labeled");
        assert_eq!(word(LABELS, &["svc/web", "app-"]), "unlabeled");
        assert_eq!(word(LABELS, &["svc/web", "nope-"]), "not labeled");
        assert_eq!(word(ANNOTATIONS, &["svc/web", "app-"]), "annotated");
        let (_, map) = edited(LABELS, &["svc/web", "x=y=z", "app-", "e="], false).unwrap();
        assert_eq!(map, [("e".to_owned(), String::new()), ("x".to_owned(), "y=z".to_owned())].into());
        assert_eq!(edited(LABELS, &["svc/web", "app=other"], true).unwrap().1["app"], "other");
    }

    #[test]
    fn refusals_are_those_of_kubectl() {
        let says = |map, arguments: &[&str]| edited(map, arguments, false).unwrap_err().text();
        assert_eq!(
            says(LABELS, &["svc", "web", "app=other"]),
            "error: 'app' already has a value (web), and --overwrite is false"
        );
        assert_eq!(
            says(ANNOTATIONS, &["svc", "web", "app=other"]),
            "error: --overwrite is false but found the following declared annotation(s): 'app' already has a value (web)"
        );
        assert_eq!(
            says(LABELS, &["svc", "web", "b=c", "b-"]),
            "error: can not both modify and remove a label in the same command"
        );
        assert_eq!(
            says(ANNOTATIONS, &["svc", "web", "b=c", "b-"]),
            "error: can not both modify and remove an annotation in the same command"
        );
        assert!(says(LABELS, &["svc", "web", "a=b", "oops"]).contains("unknown label spec: oops"));
        assert!(says(LABELS, &["svc", "web", "=b"]).contains("invalid label spec"));
    }
}
