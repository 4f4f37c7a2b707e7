//! `events`: the servers' window of changes as people read it.

use crate::client::Global;
use crate::client::duration::age;
use crate::client::failure::Failure;
use crate::client::fetch::event_manifest;
use crate::client::kinds::EVENTS;
use crate::client::output::{Format, Shown, print};
use crate::client::table::Aligner;
use crate::client::targets::Targets;
use clap::Args;
use fairlead_proto::model::Key;
use fairlead_proto::v1::HistoryEvent;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often `-w` looks.
const LOOK: Duration = Duration::from_millis(500);

/// Flags of `events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Of one object: KIND/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    of: Option<String>,
    /// Only of these types: Normal, Warning
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// In all namespaces, and of objects that have none
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on with what happens
    #[arg(short, long)]
    watch: bool,
    /// Without the line of column titles
    #[arg(long)]
    no_headers: bool,
    /// json, yaml, name, jsonpath=…, custom-columns=…
    #[arg(short, long)]
    output: Option<String>,
}

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(global: &Global, args: &EventsArgs) -> Result<(), Failure> {
    let format = Format::parse(args.output.as_deref())?;
    let session = global.session()?;
    let key = args.of.as_deref().map(|text| of(text, &session.namespace)).transpose()?;
    let namespace = match &key {
        Some(key) => key.namespace.clone(),
        None if args.all_namespaces => String::new(),
        None => session.namespace.clone(),
    };
    let mut last = 0;
    let mut beside = Beside::default();
    let mut printer = Printer { args, format, aligner: Aligner::default(), begun: false };
    loop {
        let mut events = session.events(&namespace, key.as_ref()).await?;
        let newest = events.iter().map(|event| event.revision).max().unwrap_or(0);
        // The window holds the newest events only: what fell out between two looks is said, not hidden.
        if let Some(oldest) = events
            .iter()
            .map(|event| event.revision)
            .min()
            .filter(|&oldest| last > 0 && oldest > last + 1 && events.len() >= 1000)
        {
            eprintln!("Warning: more events than can be shown happened before revision {oldest}");
        }
        events.retain(|event| {
            (event.revision > last || beside.is_news(event))
                && (args.types.is_empty() || args.types.iter().any(|kind| kind.eq_ignore_ascii_case(&event.r#type)))
        });
        last = last.max(newest);
        beside.note(&events);
        if events.is_empty() && !args.watch {
            let nowhere =
                if args.all_namespaces { String::new() } else { format!(" in {} namespace", session.namespace) };
            eprintln!("No events found{nowhere}.");
        } else {
            printer.show(&events)?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Events of that kind that are remembered: more than servers keep.
const BESIDE: usize = 4_096;

/// Events that are no change of an object and have no revision of their own: several may come at the newest one.
#[derive(Default)]
struct Beside {
    /// By time, node and message.
    seen: BTreeSet<[String; 3]>,
}

impl Beside {
    fn id(event: &HistoryEvent) -> Option<[String; 3]> {
        let node = event.key.as_ref().map(|key| key.name.clone()).unwrap_or_default();
        (event.reason == "DriftRepaired").then(|| [event.time.clone(), node, event.message.clone()])
    }

    fn note(&mut self, events: &[HistoryEvent]) {
        self.seen.extend(events.iter().filter_map(Self::id));
        while self.seen.len() > BESIDE {
            self.seen.pop_first();
        }
    }

    fn is_news(&self, event: &HistoryEvent) -> bool {
        Self::id(event).is_some_and(|id| !self.seen.contains(&id))
    }
}

fn of(text: &str, namespace: &str) -> Result<Key, Failure> {
    let wrong = || Failure::local("--for must be in resource/name form");
    let targets =
        Targets::parse(&[text.to_owned()]).map_err(|failure| if text.contains('/') { failure } else { wrong() })?;
    let (resource, name) = targets.named.into_iter().next().ok_or_else(wrong)?;
    Ok(Key::new(resource.must_be_stored()?.kind, namespace, name))
}

struct Printer<'a> {
    args: &'a EventsArgs,
    format: Format,
    aligner: Aligner,
    begun: bool,
}

impl Printer<'_> {
    fn show(&mut self, events: &[HistoryEvent]) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        if !matches!(self.format, Format::Table { .. }) {
            let shown: Vec<Shown> =
                events.iter().map(|event| Shown { resource: &EVENTS, value: event_manifest(event) }).collect();
            if !self.args.watch {
                return print(&self.format.render(&shown, false)?);
            }
            for one in shown {
                print(&self.format.render(&[one], true)?)?;
            }
            return Ok(());
        }
        let mut rows = Vec::new();
        if !self.begun && !self.args.no_headers {
            rows.push(titles(self.args.all_namespaces));
        }
        self.begun = true;
        let now = Timestamp::now();
        rows.extend(events.iter().map(|event| row(event, self.args.all_namespaces, now)));
        print(&self.aligner.render(&rows))
    }
}

fn titles(with_namespace: bool) -> Vec<String> {
    let titles: &[&str] = &["NAMESPACE", "LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    titles[usize::from(!with_namespace)..].iter().map(|&title| title.to_owned()).collect()
}

fn row(event: &HistoryEvent, with_namespace: bool, now: Timestamp) -> Vec<String> {
    let key = event.key.as_ref().map(Key::from_wire);
    let object = key.as_ref().map_or_else(String::new, |key| format!("{}/{}", key.kind.title(), key.name));
    let mut row =
        vec![age(&event.time, now), event.r#type.clone(), event.reason.clone(), object, event.message.clone()];
    if with_namespace {
        row.insert(0, key.map(|key| key.namespace).unwrap_or_default());
    }
    row
}

/// An object's events as lines of `describe`: type, reason, age, from, message.
pub fn described(events: &[HistoryEvent], now: Timestamp) -> Vec<String> {
    if events.is_empty() {
        return vec!["Events:\t<none>".to_owned()];
    }
    let mut lines = vec![
        "Events:".to_owned(),
        "  Type\tReason\tAge\tFrom\tMessage".to_owned(),
        "  ----\t------\t----\t----\t-------".to_owned(),
    ];
    lines.extend(events.iter().map(|event| {
        format!("  {}\t{}\t{}\tfairlead\t{}", event.r#type, event.reason, age(&event.time, now), event.message)
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::Kind;

    fn event() -> HistoryEvent {
        HistoryEvent {
            revision: 7,
            time: "2026-01-01T00:00:00Z".into(),
            r#type: "Normal".into(),
            reason: "Created".into(),
            key: Some(Key::new(Kind::Service, "team", "web").to_wire()),
            message: "Service created".into(),
        }
    }

    #[test]
    fn rows_and_descriptions() {
        let now = "2026-01-01T00:00:09Z".parse().unwrap();
        let mut rows = vec![titles(true)];
        rows.push(row(&event(), true, now));
        assert_eq!(
            Aligner::default().render(&rows),
            "NAMESPACE   LAST SEEN   TYPE     REASON    OBJECT        MESSAGE\nteam        9s          Normal   Created   Service/web   Service created\n"
        );
        assert_eq!(described(&[], now), ["Events:\t<none>"]);
        assert_eq!(described(&[event()], now)[3], "  Normal\tCreated\t9s\tfairlead\tService created");
    }

    #[test]
    fn one_object_is_named_by_kind_and_name() {
        assert_eq!(of("svc/web", "team").unwrap(), Key::new(Kind::Service, "team", "web"));
        for text in ["web", "svc", "nope/x", "eps/x"] {
            assert!(of(text, "team").is_err(), "{text}");
        }
    }
    #[test]
    fn repaired_drift_is_news_once_whatever_its_revision() {
        let drift = HistoryEvent { reason: "DriftRepaired".into(), ..event() };
        let mut beside = Beside::default();
        assert!(beside.is_news(&drift) && !beside.is_news(&event()));
        beside.note(std::slice::from_ref(&drift));
        assert!(!beside.is_news(&drift));
        assert!(beside.is_news(&HistoryEvent { time: "2026-01-01T00:00:01Z".into(), ..drift }));
    }
}
