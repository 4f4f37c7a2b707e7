//! `create` and `replace`: objects from manifests, and a namespace or a service from flags.

use super::expose::{Ports, parse_tcp};
use super::manifests::{How, WriteArgs, Writing};
use super::{Subresource, Validate};
use crate::client::Global;
use crate::client::failure::Failure;
use crate::client::files::{Document, Files};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Flags of `create`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CreateArgs {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    write: WriteArgs,
    #[command(subcommand)]
    what: Option<What>,
}

/// What `create` makes from flags.
#[derive(Debug, Subcommand)]
enum What {
    /// Create a namespace
    #[command(visible_alias = "ns")]
    Namespace {
        /// Its name
        name: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Create a service
    #[command(visible_alias = "svc", subcommand)]
    Service(Type),
}

/// Types of services.
#[derive(Debug, Subcommand)]
enum Type {
    /// Create a ClusterIP service
    Clusterip {
        #[command(flatten)]
        common: Common,
        /// Its address; None = headless
        #[arg(long)]
        clusterip: Option<String>,
    },
    /// Create a NodePort service
    Nodeport {
        #[command(flatten)]
        common: Common,
        /// The port on every node
        #[arg(long)]
        node_port: Option<u16>,
    },
    /// Create a LoadBalancer service
    Loadbalancer {
        #[command(flatten)]
        common: Common,
    },
    /// Create an ExternalName service
    Externalname {
        #[command(flatten)]
        common: Common,
        /// The name it stands for
        #[arg(long)]
        external_name: String,
    },
}

/// Flags of every type.
#[derive(Args, Debug)]
struct Common {
    /// Name of the service; also its selector: app=NAME
    name: String,
    /// Port pairs: PORT or PORT:TARGETPORT
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

/// Flags of `replace`.
#[derive(Args, Debug)]
pub struct ReplaceArgs {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    write: WriteArgs,
    /// Write only the status
    #[arg(long, value_enum)]
    subresource: Option<Subresource>,
}

/// Runs `create`.
///
/// # Errors
/// All failures.
pub async fn run(global: &Global, args: CreateArgs) -> Result<(), Failure> {
    let (documents, write) = match args.what {
        None => (args.files.documents("create")?, args.write),
        Some(What::Namespace { name, write }) => {
            (vec![made(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))], write)
        }
        Some(What::Service(kind)) => {
            let (value, write) = service(kind)?;
            (vec![made(value)], write)
        }
    };
    let session = global.session()?;
    let writing = Writing { session: &session, how: How::Create, args: &write, subresource: None };
    writing.all(documents).await.map(drop)
}

/// Runs `replace`.
///
/// # Errors
/// All failures.
pub async fn replace(global: &Global, args: &ReplaceArgs) -> Result<(), Failure> {
    let documents = args.files.documents("replace")?;
    let session = global.session()?;
    let writing = Writing { session: &session, how: How::Replace, args: &args.write, subresource: args.subresource };
    writing.all(documents).await.map(drop)
}

fn made(value: Value) -> Document {
    Document { value, source: String::new() }
}

fn service(kind: Type) -> Result<(Value, WriteArgs), Failure> {
    let (common, title, extra) = match kind {
        Type::Clusterip { common, clusterip } => {
            (common, "ClusterIP", clusterip.map(|address| ("clusterIP", Value::from(address))))
        }
        Type::Nodeport { common, node_port } => {
            (common, "NodePort", node_port.map(|port| ("nodePort", Value::from(port))))
        }
        Type::Loadbalancer { common } => (common, "LoadBalancer", None),
        Type::Externalname { common, external_name } => {
            (common, "ExternalName", Some(("externalName", Value::from(external_name))))
        }
    };
    let headless = extra.as_ref().is_some_and(|(field, value)| *field == "clusterIP" && value == "None");
    if common.tcp.is_empty() && title != "ExternalName" && !headless {
        return Err(Failure::local("at least one tcp port specifier must be provided"));
    }
    let mut ports: Ports = common.tcp.iter().map(|text| parse_tcp(text)).collect::<Result<_, _>>()?;
    let mut spec = json!({"type": title, "selector": {"app": common.name}});
    match extra {
        Some(("nodePort", port)) => {
            for one in &mut ports {
                one["nodePort"] = port.clone();
            }
        }
        Some((field, value)) => spec[field] = value,
        None => {}
    }
    if !ports.is_empty() {
        spec["ports"] = Value::Array(ports);
    }
    let metadata = json!({"name": common.name, "labels": {"app": common.name}});
    let write = WriteArgs { validate: Validate::Strict, ..common.write };
    Ok((json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}), write))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(tcp: &[&str]) -> Common {
        Common { name: "s1".into(), tcp: tcp.iter().map(|&one| one.to_owned()).collect(), write: WriteArgs::default() }
    }

    #[test]
    fn services_are_those_of_kubectl() {
        let (value, _) = service(Type::Clusterip { common: common(&["80:8080", "90:http"]), clusterip: None }).unwrap();
        assert_eq!(
            value["spec"],
            json!({"type": "ClusterIP", "selector": {"app": "s1"}, "ports": [
                {"name": "80-8080", "port": 80, "protocol": "TCP", "targetPort": 8080},
                {"name": "90-http", "port": 90, "protocol": "TCP", "targetPort": "http"}]})
        );
        let (value, _) = service(Type::Nodeport { common: common(&["80"]), node_port: Some(30_000) }).unwrap();
        assert_eq!(
            value["spec"]["ports"],
            json!([{"name": "80", "port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30_000}])
        );
        let (value, _) = service(Type::Clusterip { common: common(&[]), clusterip: Some("None".into()) }).unwrap();
        assert_eq!(value["spec"], json!({"type": "ClusterIP", "selector": {"app": "s1"}, "clusterIP": "None"}));
        let (value, _) = service(Type::Externalname { common: common(&[]), external_name: "a.b".into() }).unwrap();
        assert_eq!(value["spec"]["externalName"], "a.b");
        assert!(service(Type::Loadbalancer { common: common(&[]) }).is_err());
        for wrong in ["x", "80:80:80", "0", "70000"] {
            assert!(service(Type::Loadbalancer { common: common(&[wrong]) }).is_err(), "{wrong}");
        }
    }
}
