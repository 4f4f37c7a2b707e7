//! The agent against a server of the test's own: the stream's protocol, restarts, reconnects, probes. Rules go to dry-run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::server::{server, stream};
use common::{changed, endpoint, full, service};
use fairlead_agent::{Config, Mode, run};
use fairlead_proto::v1::{
    Condition, Container, DataplaneQuery, EndpointRef, ExecAction, Goodbye, HttpGetAction, IntOrString, NodeDelta,
    ObjectMeta, Pod, PodReadiness, PodSpec, PodStatus, Probe, TcpSocketAction, Welcome, agent_message::Kind,
    int_or_string, server_message,
};
use fairlead_proto::view::NodeView;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// An agent; dropping it kills it without a word.
struct Agent {
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(servers: &[&str], state_dir: &Path) -> Self {
        let config = Config {
            node_name: "node1".into(),
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
            mode: Mode::DryRun,
            state_dir: state_dir.to_owned(),
            node_ip: Some("127.0.0.1".parse().unwrap()),
            renew_seconds: 1,
            grace_seconds: 5,
            ..Config::default()
        };
        let cancel = CancellationToken::new();
        let running = run(config, cancel.clone());
        Self { cancel, task: tokio::spawn(async move { running.await.unwrap() }) }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

fn example() -> NodeView {
    let mut view = NodeView::default();
    let endpoints = vec![endpoint("10.244.1.2", "node1", &["80/TCP"]), endpoint("10.244.2.2", "node2", &["80/TCP"])];
    view.fold(&full(7, &[(service("web", "10.96.0.10", &["80/TCP"]), endpoints)])).unwrap();
    view
}

fn remove_endpoint(view: &mut NodeView, to: u64) -> NodeDelta {
    let gone = EndpointRef { address: "10.244.2.2".into(), ..EndpointRef::default() };
    let endpoints = changed("web", &[gone], &[]);
    let mut delta = NodeDelta { from: Some(view.revision), to, endpoints, ..NodeDelta::default() };
    view.fold(&delta).unwrap();
    delta.digest = view.digest();
    delta
}

#[tokio::test]
async fn a_step_is_programmed_whole_and_then_acknowledged() {
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&[&address], state.path());
    let mut stream = stream(&mut streams).await;
    assert_eq!(
        (stream.hello.node_name.as_str(), stream.hello.have, stream.hello.mode.as_str()),
        ("node1", 0, "dry-run")
    );
    assert_eq!((stream.hello.renew_seconds, stream.hello.grace_seconds, stream.hello.probes_pods), (1, 5, true));
    assert_eq!(stream.hello.node_ips, ["127.0.0.1"]);
    stream.welcome().await;

    let mut view = example();
    let whole = view.to_delta();
    let first = NodeDelta { endpoints: vec![], digest: vec![], more: true, ..whole.clone() };
    let last =
        NodeDelta { from: Some(0), to: 7, endpoints: whole.endpoints, digest: whole.digest, ..NodeDelta::default() };
    stream.delta(first).await;
    let quiet = tokio::time::timeout(Duration::from_millis(200), stream.applied()).await;
    assert!(quiet.is_err(), "half a step is not acknowledged");
    stream.delta(last).await;
    assert_eq!(stream.applied().await, 7);

    stream.delta(remove_endpoint(&mut view, 9)).await;
    assert_eq!(stream.applied().await, 9);
    // A step that changes nothing is acknowledged too: it proves the view right.
    stream.delta(NodeDelta { from: Some(9), to: 9, digest: view.digest(), ..NodeDelta::default() }).await;
    assert_eq!(stream.applied().await, 9);

    stream
        .send(server_message::Kind::DataplaneQuery(DataplaneQuery {
            query_id: 4,
            rules: true,
            ..DataplaneQuery::default()
        }))
        .await;
    let answer = loop {
        if let Kind::Dataplane(answer) = stream.next().await {
            break answer;
        }
    };
    assert_eq!((answer.query_id, answer.revision, answer.mode.as_str(), answer.error.as_str()), (4, 9, "dry-run", ""));
    assert!(
        answer.rules.contains("-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp")
            && answer.rules.contains("--to-destination 10.244.1.2:80"),
        "{}",
        answer.rules
    );
    assert!(!answer.rules.contains("10.244.2.2"));
    assert_eq!(answer.frontends[0].backends, ["10.244.1.2:80"]);
    loop {
        if let Kind::Heartbeat(heartbeat) = stream.next().await
            && heartbeat.applied == 9
        {
            break;
        }
    }
    agent.stop().await;
}

#[tokio::test]
async fn the_next_server_continues_where_the_last_one_left() {
    let ((one, mut at_one), (two, mut at_two)) = (server().await, server().await);
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&[&one, &two], state.path());
    let (mut first, mut other) = tokio::select! {
        stream = stream(&mut at_one) => (stream, at_two),
        stream = stream(&mut at_two) => (stream, at_one),
    };
    let mut view = example();
    first.welcome().await;
    first.delta(view.to_delta()).await;
    assert_eq!(first.applied().await, 7);
    first.send(server_message::Kind::Goodbye(Goodbye { reason: "test".into() })).await;
    let mut second = stream(&mut other).await;
    assert_eq!((second.hello.have, &second.hello.digest, second.hello.cluster_id.as_str()), (7, &view.digest(), "c1"));
    second.welcome().await;
    second.delta(remove_endpoint(&mut view, 8)).await;
    assert_eq!(second.applied().await, 8);

    agent.stop().await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_for_the_next() {
    let mute = common::server::mute().await;
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    // Whichever comes first, the mute one would hold the agent at the second attempt at the latest.
    let agent = Agent::start(&[&mute, &address], state.path());
    for _ in 0..2 {
        let stream = stream(&mut streams).await;
        stream.send(server_message::Kind::Goodbye(Goodbye::default())).await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn the_next_agent_on_this_node_continues_too() {
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    let mut view = example();
    let agent = Agent::start(&[&address], state.path());
    let mut first = stream(&mut streams).await;
    first.welcome().await;
    first.delta(view.to_delta()).await;
    assert_eq!(first.applied().await, 7);
    first.delta(remove_endpoint(&mut view, 8)).await;
    assert_eq!(first.applied().await, 8);
    agent.stop().await;
    drop(first);
    let agent = Agent::start(&[&address], state.path());
    let mut again = stream(&mut streams).await;
    assert_eq!((again.hello.have, &again.hello.digest, again.hello.cluster_id.as_str()), (8, &view.digest(), "c1"));
    again.welcome().await;
    again.delta(NodeDelta { from: Some(8), to: 8, digest: view.digest(), ..NodeDelta::default() }).await;
    assert_eq!(again.applied().await, 8);
    agent.stop().await;
}

#[tokio::test]
async fn a_view_that_does_not_fit_is_asked_for_anew() {
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&[&address], state.path());
    let view = example();
    let mut first = stream(&mut streams).await;
    first.welcome().await;
    first.delta(view.to_delta()).await;
    assert_eq!(first.applied().await, 7);
    first.delta(NodeDelta { from: Some(7), to: 8, digest: vec![1; 32], ..NodeDelta::default() }).await;
    let mut second = stream(&mut streams).await;
    assert_eq!((second.hello.have, second.hello.digest.len()), (0, 0));
    // What the kernel has stays meanwhile.
    second.welcome().await;
    second
        .send(server_message::Kind::DataplaneQuery(DataplaneQuery {
            query_id: 1,
            rules: true,
            ..DataplaneQuery::default()
        }))
        .await;
    let answer = loop {
        if let Kind::Dataplane(answer) = second.next().await {
            break answer;
        }
    };
    assert!(answer.rules.contains("10.244.2.2:80"), "{}", answer.rules);
    second.delta(NodeDelta { to: 8, ..view.to_delta() }).await;
    assert_eq!(second.applied().await, 8);
    agent.stop().await;
}

#[tokio::test]
async fn another_cluster_is_not_listened_to() {
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&[&address], state.path());
    let mut first = stream(&mut streams).await;
    first.welcome().await;
    first.delta(example().to_delta()).await;
    assert_eq!(first.applied().await, 7);
    drop(first);
    let mut second = stream(&mut streams).await;
    second.send(server_message::Kind::Welcome(Welcome { cluster_id: "c2".into(), ..Welcome::default() })).await;
    second.delta(NodeDelta { to: 99, ..NodeDelta::default() }).await;
    let third = stream(&mut streams).await;
    assert_eq!((third.hello.have, third.hello.cluster_id.as_str()), (7, "c1"));
    while let Ok(message) = second.inbound.try_recv() {
        assert!(!matches!(message, Kind::Applied(_)));
    }
    agent.stop().await;
}

fn pod(name: &str, probe: Option<Probe>) -> Pod {
    Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            node_name: "node1".into(),
            containers: vec![Container { name: "main".into(), readiness_probe: probe, ..Container::default() }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus { pod_ip: "127.0.0.1".into(), ..PodStatus::default() }),
        ..Pod::default()
    }
}

fn pods(from: Option<u64>, to: u64, pods: Vec<Pod>) -> NodeDelta {
    NodeDelta { from, to, upsert_pods: pods, ..NodeDelta::default() }
}

fn port(port: u16) -> Option<IntOrString> {
    Some(IntOrString { value: Some(int_or_string::Value::Int(port.into())) })
}

fn fast(probe: Probe) -> Option<Probe> {
    Some(Probe { period_seconds: 1, failure_threshold: 1, ..probe })
}

#[tokio::test]
async fn pods_are_probed_and_reported_from_birth_to_end() {
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&[&address], state.path());
    let mut one = stream(&mut streams).await;
    one.welcome().await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let number = web.local_addr().unwrap().port();
    let tcp = pod(
        "tcp",
        fast(Probe {
            tcp_socket: Some(TcpSocketAction { port: port(number), ..TcpSocketAction::default() }),
            ..Probe::default()
        }),
    );
    let http = pod(
        "http",
        fast(Probe {
            http_get: Some(HttpGetAction { path: "/".into(), port: port(1), ..HttpGetAction::default() }),
            ..Probe::default()
        }),
    );
    let exec = pod("exec", Some(Probe { exec: Some(ExecAction { command: vec!["true".into()] }), ..Probe::default() }));
    let mut host = pod("host", None);
    host.spec.as_mut().unwrap().host_network = true;
    host.status = None;
    let mut done = pod("done", None);
    done.status.as_mut().unwrap().phase = "Succeeded".into();
    one.delta(pods(None, 1, vec![tcp.clone(), http, exec, host, pod("plain", None), done])).await;

    let mut first: std::collections::BTreeMap<String, PodReadiness> = std::collections::BTreeMap::new();
    while !(first.len() == 5
        && first["tcp"].ready
        && first["http"].message.contains("refused")
        && first["exec"].message.contains("not supported"))
    {
        if let Kind::PodStatus(report) = one.next().await {
            first.extend(report.pods.into_iter().map(|pod| (pod.name.clone(), pod)));
        }
    }
    assert!(first["plain"].ready && first["plain"].pod_ip.is_empty() && first["plain"].uid == "uid-plain");
    assert!(first["host"].ready && first["host"].pod_ip == "127.0.0.1");
    assert!(!first["http"].ready && first["http"].reason == "ContainersNotReady");
    assert!(first["exec"].message.contains("exec is not supported yet") && !first["exec"].ready);
    assert!(!first.contains_key("done"), "a finished pod is nobody's business");

    drop(web);
    let gone = one.report("tcp", |pod| !pod.ready).await;
    assert!(gone.message.contains("container main: Readiness probe failed: dial tcp"), "{}", gone.message);
    let _web = TcpListener::bind(("127.0.0.1", number)).await.unwrap();
    one.report("tcp", |pod| pod.ready).await;

    // A new stream gets every pod again.
    one.send(server_message::Kind::Goodbye(Goodbye::default())).await;
    let mut two = stream(&mut streams).await;
    two.welcome().await;
    two.report("tcp", |pod| pod.ready && !pod.terminated).await;

    // Marked for deletion it is probed on, and gone after its grace.
    let mut marked = tcp;
    marked.metadata.as_mut().unwrap().deletion_timestamp = "2026-01-01T00:00:00Z".into();
    marked.metadata.as_mut().unwrap().deletion_grace_period_seconds = Some(1);
    two.delta(pods(Some(1), 2, vec![marked])).await;
    let end = two.report("tcp", |pod| pod.terminated).await;
    assert!(!end.ready && end.uid == "uid-tcp");
    agent.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_takes_nobody_out() {
    let (address, mut streams) = server().await;
    let state = tempfile::tempdir().unwrap();
    let agent = Agent::start(&[&address], state.path());
    let mut stream = stream(&mut streams).await;
    stream.welcome().await;
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut ready = pod("web", None);
    let check = Probe {
        tcp_socket: Some(TcpSocketAction {
            port: port(web.local_addr().unwrap().port()),
            ..TcpSocketAction::default()
        }),
        initial_delay_seconds: 600,
        ..Probe::default()
    };
    ready.spec.as_mut().unwrap().containers[0].readiness_probe = Some(check);
    let condition = Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() };
    ready.status.as_mut().unwrap().conditions = vec![condition];
    stream.delta(pods(None, 1, vec![ready])).await;
    // The cluster believes it ready: the first word on it is what its first probe found, and that comes at once.
    let first = stream.report("web", |_| true).await;
    assert!(first.ready, "{first:?}");
    agent.stop().await;
}
