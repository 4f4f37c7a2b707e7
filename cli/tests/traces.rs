//! One trace, from the command line to what the nodes acknowledge, as a collector of the test's own gets it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, run, service, text, write};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A span, with who made it.
#[derive(Clone, Debug)]
struct Span {
    name: String,
    service: String,
    instance: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    node: String,
}

/// What was exported.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|one| one.key == key).and_then(|one| one.value.clone()?.value);
    match found {
        Some(any_value::Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for group in request.into_inner().resource_spans {
            let resource = group.resource.unwrap_or_default().attributes;
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().unwrap().push(Span {
                    service: attribute(&resource, "service.name"),
                    instance: attribute(&resource, "service.instance.id"),
                    node: attribute(&span.attributes, "node"),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts it; its address ends with the runtime.
    fn start(runtime: &Runtime) -> (Self, String) {
        let collector = Self::default();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        runtime.spawn(served.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, url)
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

fn agent(cluster: &Cluster, name: &str, url: &str) -> Process {
    let all: Vec<_> = (0..3).map(|index| cluster.grpc(index)).collect();
    let mut command = Command::new(FAIRLEAD);
    command.args(["--insecure", "--otlp-endpoint", url, "--server", &all.join(",")]);
    command.args(["agent", "--mode", "dry-run", "--node-ip", "127.0.0.1", "--node-name", name, "--state-dir"]);
    Process::start(command.arg(cluster.dir.path().join(name)), cluster.dir.path().join(format!("{name}.log")))
}

/// Children of a span that have a name.
fn children<'a>(spans: &'a [Span], parent: &Span, name: &str) -> Vec<&'a Span> {
    let is_child = |span: &&Span| span.parent == parent.id && span.trace == parent.trace && span.name == name;
    spans.iter().filter(is_child).collect()
}

fn only<'a>(spans: &'a [Span], parent: &Span, name: &str) -> Option<&'a Span> {
    match children(spans, parent, name).as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

/// The whole way, if it is all there: who applied, and which nodes acknowledged.
fn followed(spans: &[Span], (leader, follower): (&str, &str)) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let root = spans.iter().find(|span| span.name == "fairlead apply" && span.parent.is_empty())?;
    let rpc = only(spans, root, "fairlead.v1.Objects/Apply")?;
    let propose = only(spans, rpc, "raft.propose")?;
    let commit = only(spans, propose, "raft.commit")?;
    assert_eq!((root.service.as_str(), rpc.service.as_str()), ("fairlead", "fairlead-server"));
    assert_eq!((rpc.instance.as_str(), commit.instance.as_str()), (follower, leader));
    let applied = children(spans, propose, "raft.apply");
    let mut acknowledged = BTreeSet::new();
    for apply in &applied {
        for delta in children(spans, apply, "sync.delta") {
            assert_eq!(delta.instance, apply.instance, "a server sends what it applied");
            let program = only(spans, delta, "node.program")?;
            only(spans, program, "node.acknowledge")?;
            assert_eq!((program.service.as_str(), &program.instance), ("fairlead-agent", &delta.node));
            acknowledged.insert(program.instance.clone());
        }
    }
    Some((applied.iter().map(|span| span.instance.clone()).collect(), acknowledged))
}

#[test]
fn one_trace_leads_from_the_command_line_through_every_server_to_the_nodes_word() {
    let runtime = Runtime::new().unwrap();
    let (collector, url) = Collector::start(&runtime);
    let mut cluster = Cluster::prepare(3);
    cluster.flags = vec!["--otlp-endpoint".into(), url.clone()];
    cluster.start_all();
    let _agents = ["node1", "node2"].map(|name| agent(&cluster, name, &url));
    eventually("both nodes", || {
        let nodes = cluster.status()["nodes"].as_array()?.clone();
        let serving = |node: &&serde_json::Value| node["live"] == true && node["acknowledged"] != 0;
        (nodes.iter().filter(serving).count() == 2).then_some(())
    });
    let leader = cluster.leader();
    let follower = (leader + 1) % 3;
    let manifest = write(cluster.dir.path(), "web.yaml", &service("web"));
    let mut apply = Command::new(FAIRLEAD);
    apply.args(["--insecure", "--server", &cluster.grpc(follower), "--otlp-endpoint", &url]);
    let output = run(apply.args(["apply", "--wait=programmed", "-f"]).arg(&manifest), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let names = (format!("n{}", leader + 1), format!("n{}", follower + 1));
    let everyone = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let expected = (everyone(&["n1", "n2", "n3"]), everyone(&["node1", "node2"]));
    eventually("a whole trace", || {
        let spans = collector.spans();
        (followed(&spans, (&names.0, &names.1)).as_ref() == Some(&expected)).then_some(())
    });
}

#[test]
fn a_collector_that_is_gone_or_wrong_keeps_nobody_from_working() {
    let cluster = Cluster::start(1);
    let traced = |url: &str| {
        let mut command = cluster.cli();
        run(command.args(["--otlp-endpoint", url, "get", "namespace", "default", "-o", "name"]), "")
    };
    for url in ["http://127.0.0.1:1", "https://127.0.0.1:1", "nonsense", "http://"] {
        let output = traced(url);
        assert!(output.status.success(), "{url}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "namespace/default\n");
        let warned = text(&output.stderr).contains("not traced");
        assert_eq!(warned, url != "http://127.0.0.1:1", "{url}: {}", text(&output.stderr));
    }
    let mut server = cluster.server_command(0);
    let output = run(server.args(["--otlp-endpoint", "nonsense"]), "");
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("http://HOST:PORT") && said.lines().count() == 1, "{said}");
}
