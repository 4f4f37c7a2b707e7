//! `get`: objects as tables or in a format of one's own, once or as they change.

use super::{sort, watch};
use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter, Selected};
use crate::client::files::Files;
use crate::client::kinds::Resource;
use crate::client::output::{Format, Shown, labels, pairs, print, text};
use crate::client::table::Aligner;
use crate::client::table::rows::{Beside, cells, columns};
use crate::client::targets::Targets;
use crate::client::{Global, Session};
use clap::Args;
use jiff::Timestamp;

/// Flags of `get`.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// KIND[,KIND] [NAME…], or KIND/NAME…
    #[arg(value_name = "KIND [NAME]")]
    targets: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// wide, json, yaml, name, jsonpath=…, jsonpath-file=…, custom-columns=…, custom-columns-file=…
    #[arg(short, long)]
    output: Option<String>,
    /// Go on with what changes
    #[arg(short, long)]
    pub watch: bool,
    /// Only what changes from now on
    #[arg(long)]
    pub watch_only: bool,
    /// With --watch: say what kind of event each is
    #[arg(long)]
    pub output_watch_events: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels: a=b, a!=b, a in (b,c), a, !a
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Only objects with these fields: metadata.name=…, spec.type=… …
    #[arg(long)]
    field_selector: Option<String>,
    /// Show these labels as columns
    #[arg(short = 'L', long, value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Show all labels
    #[arg(long)]
    show_labels: bool,
    /// Show each object's kind
    #[arg(long)]
    show_kind: bool,
    /// Without the line of column titles
    #[arg(long)]
    pub no_headers: bool,
    /// Sort by this field, a JSONPath
    #[arg(long, value_name = "PATH")]
    sort_by: Option<String>,
    /// Objects asked for at once; 0 = all
    #[arg(long, default_value_t = CHUNK)]
    chunk_size: u32,
    /// As they were at this revision of the cluster; see `history`
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    revision: Option<u64>,
    /// An object that isn't there is no failure
    #[arg(long)]
    ignore_not_found: bool,
}

/// Runs it.
///
/// # Errors
/// All failures; objects that were found are printed all the same.
pub async fn run(global: &Global, args: &GetArgs) -> Result<(), Failure> {
    let format = Format::parse(args.output.as_deref())?;
    let targets = Targets::parse(&args.targets)?;
    if targets.is_empty() && args.files.filename.is_empty() {
        return Err(Failure::local(
            "Required resource not specified: see `fairlead api-resources` for the resource types",
        ));
    }
    let selecting = args.selector.is_some() || args.field_selector.is_some();
    if !targets.named.is_empty() && selecting {
        return Err(Failure::local("name cannot be provided when a selector is specified"));
    }
    if !targets.named.is_empty() && args.all_namespaces {
        return Err(Failure::local("a resource cannot be retrieved by name across all namespaces"));
    }
    if args.revision.is_some() && (targets.named.is_empty() || args.watch || args.watch_only) {
        return Err(Failure::local("--revision needs objects by name, and is not for watching"));
    }
    let session = global.session()?;
    if args.watch || args.watch_only {
        return watch::run((global, &session), &targets, args, &format).await;
    }
    let mut selected = if args.files.filename.is_empty() {
        session.select(&targets, &args.filter(&session)).await?
    } else {
        session.select_files(&args.files, "get").await?
    };
    if args.ignore_not_found {
        selected.failures.retain(|failure| !failure.is_not_found());
    }
    if let Some(path) = &args.sort_by {
        sort::by(path, &mut selected.objects)?;
    }
    let one = targets.named.len() == 1;
    let printed = args.print(&session, (&format, one), &selected).await;
    printed.and_then(|()| Failure::all(selected.failures))
}

impl GetArgs {
    /// What lists ask for.
    pub fn filter(&self, session: &Session) -> Filter {
        Filter {
            namespace: if self.all_namespaces { String::new() } else { session.namespace.clone() },
            labels: self.selector.clone().unwrap_or_default(),
            fields: self.field_selector.clone().unwrap_or_default(),
            chunk: self.chunk_size,
            revision: self.revision.unwrap_or(0),
        }
    }

    async fn print(&self, session: &Session, how: (&Format, bool), selected: &Selected) -> Result<(), Failure> {
        let (format, one) = how;
        let Format::Table { wide } = *format else {
            if one && selected.objects.is_empty() {
                return Ok(());
            }
            if let (Format::Columns(columns), true) = (format, self.no_headers) {
                return print(&columns.render(&selected.objects, false).map_err(Failure::Local)?);
            }
            return print(&format.render(&selected.objects, one)?);
        };
        if selected.objects.is_empty() {
            if selected.failures.is_empty() && !self.ignore_not_found {
                let nowhere =
                    if self.all_namespaces { String::new() } else { format!(" in {} namespace.", session.namespace) };
                eprintln!("No resources found{nowhere}");
            }
            return Ok(());
        }
        let beside = session.beside(&selected.objects, wide).await?;
        let mut groups: Vec<(&'static Resource, Vec<&Shown>)> = Vec::new();
        for object in &selected.objects {
            match groups.iter_mut().find(|(resource, _)| *resource == object.resource) {
                Some((_, group)) => group.push(object),
                None => groups.push((object.resource, vec![object])),
            }
        }
        let several = groups.len() > 1;
        let tables: Vec<String> = groups
            .iter()
            .map(|(resource, objects)| {
                let mut table = Table::new(resource, self, wide);
                table.with_kind |= several;
                let mut rows = table.header();
                rows.extend(objects.iter().map(|object| table.row(object, &beside)));
                table.aligner.render(&rows)
            })
            .collect();
        print(&tables.join(if self.no_headers { "" } else { "\n" }))
    }
}

/// One resource type's table.
pub struct Table<'a> {
    resource: &'static Resource,
    args: &'a GetArgs,
    wide: bool,
    with_kind: bool,
    /// Remembers the columns' widths.
    pub aligner: Aligner,
}

impl<'a> Table<'a> {
    /// An empty table.
    pub fn new(resource: &'static Resource, args: &'a GetArgs, wide: bool) -> Self {
        Self { resource, args, wide, with_kind: args.show_kind, aligner: Aligner::default() }
    }

    /// The line of titles, if it is wanted.
    pub fn header(&self) -> Vec<Vec<String>> {
        if self.args.no_headers {
            return Vec::new();
        }
        let mut titles: Vec<String> = if self.with_namespace() { vec!["NAMESPACE".to_owned()] } else { Vec::new() };
        titles.extend(
            columns(self.resource).iter().filter(|(_, wide)| self.wide || !wide).map(|(title, _)| (*title).to_owned()),
        );
        titles.extend(
            self.args.label_columns.iter().map(|label| label.rsplit('/').next().unwrap_or(label).to_uppercase()),
        );
        if self.args.show_labels {
            titles.push("LABELS".to_owned());
        }
        vec![titles]
    }

    /// An object's line.
    pub fn row(&self, object: &Shown, beside: &Beside) -> Vec<String> {
        let value = &object.value;
        let mut row =
            if self.with_namespace() { vec![text(value, "/metadata/namespace").to_owned()] } else { Vec::new() };
        let all = cells(self.resource, value, beside, Timestamp::now());
        let mut shown: Vec<String> = columns(self.resource)
            .iter()
            .zip(all)
            .filter(|((_, wide), _)| self.wide || !wide)
            .map(|(_, cell)| cell)
            .collect();
        if self.with_kind
            && let Some(first) =
                shown.first_mut().filter(|_| columns(self.resource).first().is_some_and(|(title, _)| *title == "NAME"))
        {
            *first = format!("{}/{first}", self.resource.prefix());
        }
        row.extend(shown);
        let own = value.pointer("/metadata/labels");
        for label in &self.args.label_columns {
            // kubectl leaves a missing label's cell empty.
            let found = pairs(own).into_iter().find(|(key, _)| key == label);
            row.push(found.map_or_else(String::new, |(_, value)| value.to_owned()));
        }
        if self.args.show_labels {
            row.push(labels(own));
        }
        row
    }

    fn with_namespace(&self) -> bool {
        self.args.all_namespaces && self.resource.is_namespaced()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::{NODES, SERVICES};
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GetArgs,
    }

    fn table(resource: &'static Resource, flags: &[&str], wide: bool) -> String {
        let line = Line::parse_from(["get", "svc"].iter().chain(flags));
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80, "protocol": "TCP"}]});
        let object = |name: &str, labels| Shown {
            resource,
            value: json!({"metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": spec}),
        };
        let mut table = Table::new(resource, &line.args, wide);
        let mut rows = table.header();
        rows.push(table.row(&object("web", json!({"app": "web", "b": "c"})), &Beside::default()));
        rows.push(table.row(&object("plain", json!({})), &Beside::default()));
        table.aligner.render(&rows)
    }

    #[test]
    fn the_services_table() {
        assert_eq!(
            table(&SERVICES, &[], false),
            "NAME    TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE\nweb     ClusterIP   10.96.0.10   <none>        80/TCP    <unknown>\nplain   ClusterIP   10.96.0.10   <none>        80/TCP    <unknown>\n"
        );
        assert_eq!(
            table(&SERVICES, &["--no-headers"], true),
            "web     ClusterIP   10.96.0.10   <none>   80/TCP   <unknown>   <none>   0/0   <unknown>\nplain   ClusterIP   10.96.0.10   <none>   80/TCP   <unknown>   <none>   0/0   <unknown>\n"
        );
    }

    #[test]
    fn extra_columns_stand_where_kubectl_puts_them() {
        let text = table(&SERVICES, &["-A", "-L", "app,foo.io/bar", "--show-labels", "--show-kind"], false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NAMESPACE   NAME            TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE         APP   BAR   LABELS"
        );
        assert_eq!(
            lines[1],
            "default     service/web     ClusterIP   10.96.0.10   <none>        80/TCP    <unknown>   web         app=web,b=c"
        );
        assert_eq!(
            lines[2],
            "default     service/plain   ClusterIP   10.96.0.10   <none>        80/TCP    <unknown>               <none>"
        );
        assert!(table(&NODES, &["-A"], false).starts_with("NAME    STATUS    ROLES"), "a node has no namespace");
    }
}
