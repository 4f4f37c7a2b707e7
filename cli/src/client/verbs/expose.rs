//! `expose`: a service from a pod's labels or another service's selector.

use super::manifests::{How, WriteArgs, Writing};
use crate::client::Global;
use crate::client::failure::Failure;
use crate::client::files::{Document, Files};
use crate::client::output::{Format, Shown, items, number, pairs, text};
use crate::client::targets::{self, Targets};
use clap::Args;
use fairlead_proto::manifest;
use fairlead_proto::v1::Kind;
use serde_json::{Map, Value, json};

/// Ports of a service's manifest.
pub type Ports = Vec<Value>;

/// Flags of `expose`.
#[derive(Args, Debug)]
pub struct ExposeArgs {
    /// pod NAME, service NAME, pod/NAME …
    #[arg(value_name = "KIND NAME")]
    target: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Port of the service [default: the object's ports]
    #[arg(long)]
    port: Option<u16>,
    /// Number or name of the pods' port [default: --port]
    #[arg(long)]
    target_port: Option<String>,
    /// TCP, UDP or SCTP [default: the object's, else TCP]
    #[arg(long)]
    protocol: Option<String>,
    /// Name of the service [default: the object's]
    #[arg(long)]
    name: Option<String>,
    /// ClusterIP, NodePort, LoadBalancer or ExternalName
    #[arg(long = "type")]
    kind: Option<String>,
    /// Selector, k=v,… [default: the object's]
    #[arg(long)]
    selector: Option<String>,
    /// Labels of the service, k=v,… [default: the object's]
    #[arg(short, long)]
    labels: Option<String>,
    /// Address of the service; None = headless
    #[arg(long)]
    cluster_ip: Option<String>,
    /// External address of the service
    #[arg(long)]
    external_ip: Option<String>,
    /// None or ClientIP
    #[arg(long)]
    session_affinity: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs it.
///
/// # Errors
/// All failures.
pub async fn run(global: &Global, args: &ExposeArgs) -> Result<(), Failure> {
    let targets = Targets::parse(&args.target)?;
    if args.files.filename.is_empty() && targets.is_empty() {
        return Err(targets::required());
    }
    if !targets.whole.is_empty() {
        return Err(Failure::local("resource(s) were provided, but no name was specified"));
    }
    let session = global.session()?;
    let selected = if args.files.filename.is_empty() {
        session.select(&targets, &super::super::fetch::Filter::default()).await?
    } else {
        session.select_files(&args.files, "expose").await?
    };
    let mut failures = selected.failures;
    let writing = Writing { session: &session, how: How::Create, args: &args.write, subresource: None };
    for object in &selected.objects {
        if let Err(failure) = one(&writing, object, args).await {
            failures.push(failure);
        }
    }
    Failure::all(failures)
}

async fn one(writing: &Writing<'_>, object: &Shown, args: &ExposeArgs) -> Result<(), Failure> {
    let value = service(object, args)?;
    if writing.args.dry_run == super::DryRun::Client {
        let document = Document { value, source: String::new() };
        let (resource, _) = document.identify(writing.session)?;
        let format = Format::parse(args.write.output.as_deref())?;
        return super::report(Shown { resource, value: document.value }, "exposed (dry run)", &format);
    }
    let answer = writing.send(&value).await?;
    super::warn(&answer.warnings);
    let shown = Shown {
        resource: &crate::client::kinds::SERVICES,
        value: manifest::render(&answer.object.unwrap_or_default()),
    };
    super::report(
        shown,
        &format!("exposed{}", args.write.dry_run.suffix()),
        &Format::parse(args.write.output.as_deref())?,
    )
}

/// The service's manifest.
fn service(object: &Shown, args: &ExposeArgs) -> Result<Value, Failure> {
    let value = &object.value;
    let (selector, what) = match object.resource.kind {
        Kind::Pod => (value.pointer("/metadata/labels"), "the pod has no labels and cannot be exposed"),
        Kind::Service => (value.pointer("/spec/selector"), "the service has no pod selector set"),
        _ => return Err(Failure::local(format!("cannot expose a {}", object.resource.title))),
    };
    let selector = match &args.selector {
        Some(given) => parse_pairs(given)?,
        None => to_map(&pairs(selector)),
    };
    if selector.is_empty() {
        return Err(Failure::local(format!(
            "couldn't retrieve selectors via --selector flag or introspection: {what}"
        )));
    }
    let labels = match &args.labels {
        Some(given) => parse_pairs(given)?,
        None => to_map(&pairs(value.pointer("/metadata/labels"))),
    };
    let name = args.name.as_deref().unwrap_or_else(|| text(value, "/metadata/name"));
    let mut metadata = json!({"name": name, "namespace": text(value, "/metadata/namespace")});
    if !labels.is_empty() {
        metadata["labels"] = Value::Object(labels);
    }
    let mut spec = json!({"selector": selector});
    let ports = ports(object, args);
    if ports.is_empty() && args.cluster_ip.as_deref() != Some("None") {
        return Err(Failure::local("couldn't find port via --port flag or introspection"));
    }
    if !ports.is_empty() {
        spec["ports"] = Value::Array(ports);
    }
    for (field, given) in
        [("type", &args.kind), ("clusterIP", &args.cluster_ip), ("sessionAffinity", &args.session_affinity)]
    {
        if let Some(given) = given {
            spec[field] = given.clone().into();
        }
    }
    if let Some(address) = &args.external_ip {
        spec["externalIPs"] = json!([address]);
    }
    Ok(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
}

/// The service's ports: the one that flags name, else the object's.
fn ports(object: &Shown, args: &ExposeArgs) -> Ports {
    let own: Vec<(i64, String)> = match object.resource.kind {
        Kind::Pod => {
            let containers = items(&object.value, "/spec/containers").iter();
            containers
                .flat_map(|container| items(container, "/ports"))
                .map(|port| (number(port, "/containerPort"), protocol(port)))
                .collect()
        }
        _ => items(&object.value, "/spec/ports").iter().map(|port| (number(port, "/port"), protocol(port))).collect(),
    };
    let wanted: Vec<(i64, String)> = match args.port {
        Some(port) => {
            let known = own.iter().find(|(number, _)| *number == i64::from(port)).map(|(_, protocol)| protocol.clone());
            vec![(port.into(), known.unwrap_or_else(|| "TCP".to_owned()))]
        }
        None => own,
    };
    let several = wanted.len() > 1;
    let render = |(index, (number, protocol)): (usize, &(i64, String))| {
        let target = args.target_port.as_deref().map_or(Value::from(*number), port_value);
        let protocol = args.protocol.clone().unwrap_or_else(|| protocol.clone()).to_uppercase();
        let mut port = json!({"port": number, "protocol": protocol, "targetPort": target});
        if several {
            port["name"] = format!("port-{}", index + 1).into();
        }
        port
    };
    wanted.iter().enumerate().map(render).collect()
}

fn protocol(port: &Value) -> String {
    let protocol = text(port, "/protocol");
    if protocol.is_empty() { "TCP".to_owned() } else { protocol.to_owned() }
}

/// A port's number, or its name.
fn port_value(text: &str) -> Value {
    text.parse::<u16>().map_or_else(|_| text.into(), Value::from)
}

/// A port of `--tcp=PORT[:TARGETPORT]`.
///
/// # Errors
/// Not such a pair.
pub fn parse_tcp(text: &str) -> Result<Value, Failure> {
    let (port, target) = text.split_once(':').unwrap_or((text, text));
    let number = port.parse::<u16>().ok().filter(|&port| port > 0 && !target.contains(':') && !target.is_empty());
    let number = number.ok_or_else(|| {
        Failure::local(format!("invalid port specification {text:?}: must be PORT or PORT:TARGETPORT"))
    })?;
    Ok(json!({"name": text.replace(':', "-"), "port": number, "protocol": "TCP", "targetPort": port_value(target)}))
}

fn to_map(pairs: &[(&str, &str)]) -> Map<String, Value> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect()
}

fn parse_pairs(given: &str) -> Result<Map<String, Value>, Failure> {
    let pair = |part: &str| match part.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), Value::from(value))),
        _ => Err(Failure::local(format!("unexpected label spec: {part}"))),
    };
    given.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::{NODES, PODS, SERVICES};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExposeArgs,
    }

    fn exposed(object: &Shown, flags: &[&str]) -> Result<Value, Failure> {
        let line = Line::parse_from(["expose"].iter().chain(flags));
        service(object, &line.args)
    }

    fn pod() -> Shown {
        let value = json!({"metadata": {"name": "p1", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]}]}});
        Shown { resource: &PODS, value }
    }

    #[test]
    fn a_pod_becomes_a_service() {
        let value = exposed(&pod(), &["--name=q", "--port=80"]).unwrap();
        assert_eq!(
            value,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "q", "namespace": "default", "labels": {"app": "web"}},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}})
        );
        let value =
            exposed(&pod(), &["--port=53", "--target-port=dns", "--type=NodePort", "--cluster-ip=10.96.0.9"]).unwrap();
        assert_eq!(value["spec"]["ports"], json!([{"port": 53, "protocol": "UDP", "targetPort": "dns"}]));
        assert_eq!((&value["spec"]["type"], &value["spec"]["clusterIP"]), (&json!("NodePort"), &json!("10.96.0.9")));
        let value = exposed(&pod(), &["--selector=a=b,c=d", "-l", "x=y"]).unwrap();
        assert_eq!(
            (&value["spec"]["selector"], &value["metadata"]["labels"]),
            (&json!({"a": "b", "c": "d"}), &json!({"x": "y"}))
        );
        assert_eq!(
            value["spec"]["ports"][1],
            json!({"name": "port-2", "port": 53, "protocol": "UDP", "targetPort": 53})
        );
    }

    #[test]
    fn what_can_not_be_exposed_says_why() {
        let bare = Shown {
            resource: &SERVICES,
            value: json!({"metadata": {"name": "plain"}, "spec": {"ports": [{"port": 80}]}}),
        };
        let says = |object: &Shown, flags: &[&str]| exposed(object, flags).unwrap_err().text();
        assert_eq!(
            says(&bare, &["--port=80"]),
            "error: couldn't retrieve selectors via --selector flag or introspection: the service has no pod selector set"
        );
        assert_eq!(says(&Shown { resource: &NODES, value: json!({}) }, &[]), "error: cannot expose a Node");
        assert!(says(&bare, &["--selector=x"]).contains("unexpected label spec: x"));
        let portless = Shown { resource: &PODS, value: json!({"metadata": {"name": "p", "labels": {"a": "b"}}}) };
        assert_eq!(says(&portless, &[]), "error: couldn't find port via --port flag or introspection");
        assert!(exposed(&portless, &["--cluster-ip=None"]).is_ok());
    }
}
