//! `describe`: one object in detail, in the order of kubectl's labels, with what nodes serve of a service and what
//! happened lately.

mod endpoints;
mod hosts;

use super::events;
use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter};
use crate::client::files::Files;
use crate::client::kinds::SLICES;
use crate::client::output::{Shown, items, labels, number, pairs, print, text};
use crate::client::table::Description;
use crate::client::table::rows::{programmed, service_endpoints};
use crate::client::targets::Targets;
use crate::client::{Global, Session, programmed::laggard};
use clap::{ArgAction, Args};
use fairlead_proto::model::Key;
use fairlead_proto::v1::Kind;
use jiff::Timestamp;
use serde_json::Value;

/// Longest annotation that is shown, characters.
const ANNOTATION: usize = 140;

/// Flags of `describe`.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    /// KIND[,KIND] [NAME…], or KIND/NAME…; a name may be a prefix
    #[arg(value_name = "KIND [NAME]")]
    targets: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Objects with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// With what happened lately
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    show_events: bool,
}

/// Runs it.
///
/// # Errors
/// All failures.
pub async fn run(global: &Global, args: &DescribeArgs) -> Result<(), Failure> {
    let targets = Targets::parse(&args.targets)?;
    if targets.is_empty() && args.files.filename.is_empty() {
        return Err(Failure::local(
            "You must specify the type of resource to describe. Use \"fairlead api-resources\" for a complete list of supported resources.",
        ));
    }
    if !targets.named.is_empty() && args.selector.is_some() {
        return Err(Failure::local("name cannot be provided when a selector is specified"));
    }
    let session = global.session()?;
    let filter = Filter {
        namespace: if args.all_namespaces { String::new() } else { session.namespace.clone() },
        labels: args.selector.clone().unwrap_or_default(),
        fields: String::new(),
        chunk: CHUNK,
        ..Filter::default()
    };
    let mut selected = if args.files.filename.is_empty() {
        session.select(&targets, &filter).await?
    } else {
        session.select_files(&args.files, "describe").await?
    };
    if let ([(resource, name)], [failure]) = (targets.named.as_slice(), selected.failures.as_slice())
        && failure.is_not_found()
    {
        let all = session.list(resource, &filter).await?;
        selected.objects =
            all.into_iter().filter(|one| text(&one.value, "/metadata/name").starts_with(name.as_str())).collect();
        if !selected.objects.is_empty() {
            selected.failures.clear();
        }
    }
    if selected.objects.is_empty() && selected.failures.is_empty() {
        let nowhere = if args.all_namespaces { String::new() } else { format!(" in {} namespace.", session.namespace) };
        eprintln!("No resources found{nowhere}");
    }
    let mut descriptions = Vec::new();
    for shown in &selected.objects {
        descriptions.push(describe(&session, shown, args.show_events).await?.render());
    }
    print(&descriptions.join("\n\n"))?;
    Failure::all(selected.failures)
}

async fn describe(session: &Session, shown: &Shown, with_events: bool) -> Result<Description, Failure> {
    let value = &shown.value;
    let mut into = Description::default();
    match (shown.resource.kind, shown.resource.is_stored()) {
        (Kind::Service, _) => service(session, value, &mut into).await?,
        (Kind::Pod, _) => hosts::pod(value, &mut into),
        (Kind::Node, _) => hosts::node(session, value, &mut into).await?,
        (Kind::Namespace, _) => {
            head(value, &mut into);
            into.field("Status", text(value, "/status/phase"));
        }
        (Kind::Endpoints, true) => endpoints::endpoints(value, &mut into),
        (Kind::Endpoints, false) => endpoints::slice(value, &mut into),
        (Kind::Event | Kind::Unspecified, _) => return Err(Failure::local("events are shown with `fairlead events`")),
    }
    if with_events && shown.resource.kind != Kind::Namespace && shown.resource.is_stored() {
        let key = Key::new(shown.resource.kind, text(value, "/metadata/namespace"), text(value, "/metadata/name"));
        let happened = session.events(&key.namespace, Some(&key)).await?;
        for line in events::described(&happened, Timestamp::now()) {
            into.line(line);
        }
    }
    Ok(into)
}

/// Name, namespace, labels, annotations.
fn head(value: &Value, into: &mut Description) {
    into.field("Name", text(value, "/metadata/name"));
    optional(into, "Namespace", text(value, "/metadata/namespace"));
    label_lines(value, into);
}

fn label_lines(value: &Value, into: &mut Description) {
    into.pairs("Labels", &pairs(value.pointer("/metadata/labels")));
    let annotations = pairs(value.pointer("/metadata/annotations"));
    if annotations.is_empty() {
        into.field("Annotations", "<none>");
    }
    for (index, (key, text)) in annotations.iter().enumerate() {
        let label = if index == 0 { "Annotations:" } else { "" };
        if key.chars().count() + text.chars().count() <= ANNOTATION && !text.contains('\n') {
            into.line(format!("{label}\t{key}: {text}"));
            continue;
        }
        into.line(format!("{label}\t{key}:"));
        for line in text.lines() {
            let cut: String = line.chars().take(ANNOTATION - 2).collect();
            let more = if cut.len() < line.len() { "..." } else { "" };
            into.line(format!("\t  {cut}{more}"));
        }
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

fn joined(list: &[Value]) -> String {
    let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    or_none(&texts.join(",")).to_owned()
}

async fn service(session: &Session, value: &Value, into: &mut Description) -> Result<(), Failure> {
    let (namespace, name) = (text(value, "/metadata/namespace"), text(value, "/metadata/name"));
    let filter = Filter {
        namespace: namespace.to_owned(),
        labels: format!("kubernetes.io/service-name={name}"),
        ..Filter::default()
    };
    let slices: Vec<Value> = session.list(&SLICES, &filter).await?.into_iter().map(|slice| slice.value).collect();
    service_fields(value, &slices, into);
    // An EndpointSlice bears its record's revision.
    let revision = |value: &Value| text(value, "/metadata/resourceVersion").parse::<u64>().unwrap_or(0);
    let revision = slices.iter().map(revision).max().unwrap_or(0).max(revision(value));
    into.field(
        "Programmed",
        match session.servers.status().await {
            Err(_) => "<unknown>".to_owned(),
            Ok(status) => {
                let late: Vec<String> =
                    status.nodes.iter().filter(|node| node.acknowledged < revision).map(laggard).collect();
                let late = if late.is_empty() { String::new() } else { format!(" ({})", late.join("; ")) };
                format!("{} nodes at rev {revision}{late}", programmed(&status.nodes, revision))
            }
        },
    );
    Ok(())
}

fn service_fields(value: &Value, slices: &[Value], into: &mut Description) {
    let spec = &value["spec"];
    head(value, into);
    into.field("Selector", labels(spec.get("selector")));
    into.field("Type", text(spec, "/type"));
    optional(into, "IP Family Policy", text(spec, "/ipFamilyPolicy"));
    into.field("IP Families", joined(items(spec, "/ipFamilies")));
    into.field("IP", text(spec, "/clusterIP"));
    into.field("IPs", joined(items(spec, "/clusterIPs")));
    if !items(spec, "/externalIPs").is_empty() {
        into.field("External IPs", joined(items(spec, "/externalIPs")));
    }
    optional(into, "Desired LoadBalancer IP", text(spec, "/loadBalancerIP"));
    optional(into, "External Name", text(spec, "/externalName"));
    let ingress: Vec<String> = items(value, "/status/loadBalancer/ingress")
        .iter()
        .map(|one| {
            let place = if text(one, "/ip").is_empty() { text(one, "/hostname") } else { text(one, "/ip") };
            if text(one, "/ipMode").is_empty() {
                place.to_owned()
            } else {
                format!("{place} ({})", text(one, "/ipMode"))
            }
        })
        .collect();
    optional(into, "LoadBalancer Ingress", &ingress.join(", "));
    for port in items(spec, "/ports") {
        let (name, protocol) = (text(port, "/name"), text(port, "/protocol"));
        let shown = if name.is_empty() { "<unset>" } else { name };
        into.line(format!("Port:\t{shown}\t{}/{protocol}", number(port, "/port")));
        let target = port.get("targetPort").map(crate::client::jsonpath::as_text).unwrap_or_default();
        into.field("TargetPort", format!("{target}/{protocol}"));
        if number(port, "/nodePort") != 0 {
            into.line(format!("NodePort:\t{shown}\t{}/{protocol}", number(port, "/nodePort")));
        }
        into.field("Endpoints", service_endpoints(slices, name));
    }
    into.field("Session Affinity", text(spec, "/sessionAffinity"));
    optional(into, "External Traffic Policy", text(spec, "/externalTrafficPolicy"));
    optional(into, "Internal Traffic Policy", text(spec, "/internalTrafficPolicy"));
    optional(into, "Traffic Distribution", text(spec, "/trafficDistribution"));
    if number(spec, "/healthCheckNodePort") != 0 {
        into.field("HealthCheck NodePort", number(spec, "/healthCheckNodePort").to_string());
    }
    if !items(spec, "/loadBalancerSourceRanges").is_empty() {
        into.field("LoadBalancer Source Ranges", joined(items(spec, "/loadBalancerSourceRanges")));
    }
}

fn optional(into: &mut Description, label: &str, text: &str) {
    if !text.is_empty() {
        into.field(label, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_reads_as_kubectl_describes_it() {
        let endpoint = |n: u8| json!({"addresses": [format!("10.244.0.{n}")], "conditions": {"ready": true}});
        let slices = [
            json!({"ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53}], "endpoints": (1..6).map(endpoint).collect::<Vec<_>>()}),
        ];
        let value = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"b": "c", "app": "web"}, "annotations": {"a": "b", "long": "x".repeat(300)}},
            "spec": {"type": "NodePort", "selector": {"app": "web", "tier": "x"}, "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080}, {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"}]}});
        let mut into = Description::default();
        service_fields(&value, &slices, &mut into);
        into.line("Events:\t<none>");
        let long = "x".repeat(138);
        assert_eq!(
            into.render(),
            format!(
                "Name:                     web
Namespace:                default
Labels:                   app=web
                          b=c
Annotations:              a: b
                          long:
                            {long}...
Selector:                 app=web,tier=x
Type:                     NodePort
IP Family Policy:         SingleStack
IP Families:              IPv4
IP:                       10.96.0.10
IPs:                      10.96.0.10
Port:                     http  80/TCP
TargetPort:               8080/TCP
NodePort:                 http  30080/TCP
Endpoints:                10.244.0.1:8080,10.244.0.2:8080,10.244.0.3:8080 + 2 more...
Port:                     dns  53/UDP
TargetPort:               dns/UDP
Endpoints:                10.244.0.1:53,10.244.0.2:53,10.244.0.3:53 + 2 more...
Session Affinity:         None
External Traffic Policy:  Cluster
Internal Traffic Policy:  Cluster
Events:                   <none>
"
            )
        );
    }
}
