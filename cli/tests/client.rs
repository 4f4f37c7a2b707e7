//! The client's verbs as a user runs them, against servers that misbehave on demand: request ids, retries, unknown
//! outcomes, exit codes, and what is printed where.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod mock;

use fairlead_proto::v1::*;
use mock::{Mock, Ran, Reaction, fairlead, run};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::Code;

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "7", "creationTimestamp": "2020-01-01T00:00:00Z", "labels": {"app": name}},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "selector": {"app": name}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]}})
}

fn pod(ready: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": "10.244.0.1", "podIPs": [{"ip": "10.244.0.1"}], "conditions": [{"type": "Ready", "status": ready}]}})
}

fn endpoints(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": "default", "resourceVersion": "9"},
        "subsets": [{"addresses": [{"ip": "10.244.0.1"}], "notReadyAddresses": [{"ip": "10.244.0.2"}], "ports": [{"port": 8080, "protocol": "TCP"}]}]})
}

fn unavailable() -> Reaction {
    Reaction::Refuse(
        Code::Unavailable,
        Problem { reason: "ServiceUnavailable".into(), message: "no leader".into(), ..Problem::default() },
    )
}

fn unknown() -> Reaction {
    Reaction::Refuse(
        Code::Unknown,
        Problem {
            reason: "Timeout".into(),
            message: "leader was lost".into(),
            unknown_outcome: true,
            ..Problem::default()
        },
    )
}

fn conflict() -> Reaction {
    Reaction::Refuse(
        Code::Aborted,
        Problem { reason: "Conflict".into(), message: "the object has been modified".into(), ..Problem::default() },
    )
}

fn ids(mock: &Mock) -> Vec<(String, u64)> {
    let shelf = mock.shelf.lock().unwrap();
    shelf.written.iter().filter_map(|options| options.request_id.clone()).map(|id| (id.client, id.sequence)).collect()
}

async fn apply(servers: &[&Mock], flags: &[&str]) -> Ran {
    let args: Vec<&str> = ["apply", "-f", "-"].iter().chain(flags).copied().collect();
    fairlead(servers, &args, &service("web").to_string()).await
}

#[tokio::test]
async fn a_write_is_sent_again_elsewhere_with_the_same_request_id() {
    for reaction in [unavailable(), unknown(), Reaction::BreakOff] {
        let (first, second) = (Mock::start().await, Mock::start().await);
        first.writes(std::slice::from_ref(&reaction));
        let ran = apply(&[&first, &second], &[]).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, "service/web configured\n"), "{reaction:?}: {ran:?}");
        assert_eq!(ran.err, "Warning: mind this\n");
        assert_eq!(ids(&first), ids(&second), "{reaction:?}");
        assert_eq!((ids(&second).len(), ids(&second)[0].1), (1, 1));
    }
}

#[tokio::test]
async fn an_outcome_that_nobody_knows_ends_with_three() {
    for reaction in [unknown(), Reaction::BreakOff, Reaction::Hang] {
        let mock = Mock::start().await;
        mock.writes(&vec![reaction.clone(); 100]);
        let begun = Instant::now();
        let ran = apply(&[&mock], &["--request-timeout", "1s"]).await;
        assert_eq!(ran.code, 3, "{reaction:?}: {ran:?}");
        assert!(begun.elapsed() < Duration::from_secs(8));
        let all = ids(&mock);
        assert!(all.iter().all(|id| *id == all[0]), "{all:?}");
        assert!(ran.err.starts_with("error: the outcome is unknown: "), "{}", ran.err);
        assert!(ran.err.contains(&format!("(client {}, sequence 1) may be retried", all[0].0)), "{}", ran.err);
        assert_eq!(ran.out, "");
    }
}

#[tokio::test]
async fn a_refusal_after_doubt_is_no_proof() {
    let mock = Mock::start().await;
    mock.writes(&[Reaction::BreakOff, conflict()]);
    let ran = apply(&[&mock], &[]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.starts_with("Error from server (Conflict): error when applying \"STDIN\": the object has been modified\nerror: the outcome is unknown: an earlier attempt"), "{}", ran.err);
}

#[tokio::test]
async fn a_refusal_is_final_and_not_sent_again() {
    let mock = Mock::start().await;
    let key = fairlead_proto::model::Key::new(Kind::Service, "default", "web").to_wire();
    let cause = |field: &str| FieldProblem {
        field: field.into(),
        reason: "FieldValueRequired".into(),
        message: "Required value".into(),
    };
    let invalid = Problem {
        reason: "Invalid".into(),
        message: "m".into(),
        causes: vec![cause("spec.ports"), cause("spec.type")],
        key: Some(key),
        ..Problem::default()
    };
    mock.writes(&[Reaction::Refuse(Code::InvalidArgument, invalid), conflict()]);
    let ran = apply(&[&mock], &[]).await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "The Service \"web\" is invalid: \n* spec.ports: Required value\n* spec.type: Required value\n")
    );
    let ran = apply(&[&mock], &[]).await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "Error from server (Conflict): error when applying \"STDIN\": the object has been modified\n")
    );
    assert_eq!(ids(&mock).len(), 2);
}

#[tokio::test]
async fn sequences_rise_and_say_what_was_seen_before_the_first() {
    let mock = Mock::start().await.with(&[service("a"), service("b")]);
    let ran = fairlead(&[&mock], &["label", "svc", "a", "b", "x=y"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "service/a labeled\nservice/b labeled\n"), "{ran:?}");
    let shelf = mock.shelf.lock().unwrap();
    let all: Vec<_> = shelf.written.iter().map(|options| options.request_id.clone().unwrap()).collect();
    assert_eq!(all.iter().map(|id| (id.sequence, id.since)).collect::<Vec<_>>(), [(1, 41), (2, 41)]);
    assert_eq!(all[0].client, all[1].client);
    assert!(
        shelf.floors.windows(2).all(|pair| pair[0] <= pair[1]) && shelf.floors.last() == Some(&42),
        "reads are as fresh as what was seen: {:?}",
        shelf.floors
    );
}

#[tokio::test]
async fn a_label_is_tried_again_when_somebody_else_wrote() {
    let mock = Mock::start().await.with(&[service("web")]);
    mock.writes(&[conflict()]);
    let ran = fairlead(&[&mock], &["label", "svc/web", "x=y"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "service/web labeled\n"), "{ran:?}");
    assert_eq!(ids(&mock).iter().map(|id| id.1).collect::<Vec<_>>(), [1, 2], "a new write, a new id");
    mock.writes(&[conflict()]);
    let ran = fairlead(&[&mock], &["label", "svc/web", "x=z", "--overwrite", "--resource-version=1"], "").await;
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[tokio::test]
async fn dry_runs_keep_nothing_and_say_so() {
    let mock = Mock::start().await;
    let ran = apply(&[&mock], &["--dry-run=server"]).await;
    assert_eq!(ran.out, "service/web configured (server dry run)\n");
    {
        let shelf = mock.shelf.lock().unwrap();
        assert!(shelf.written[0].dry_run && shelf.written[0].request_id.is_none());
        assert!(matches!(&shelf.inputs[0].form, Some(input::Form::ManifestJson(text)) if text.contains("\"web\"")));
    }
    let fresh = Mock::start().await;
    let ran = apply(&[&fresh], &["--dry-run=client", "-o", "jsonpath={.spec.ports[0].port}"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "80"), "{ran:?}");
    assert!(ids(&fresh).is_empty());
    let typo =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"portz": 1}}).to_string();
    let ran = fairlead(&[&fresh], &["apply", "-f", "-", "--dry-run=client"], &typo).await;
    assert!(ran.code == 1 && ran.err.contains("unknown field \"spec.portz\""), "{ran:?}");
}

#[tokio::test]
async fn documents_fail_one_by_one() {
    let mock = Mock::start().await;
    let gone =
        Problem { reason: "NotFound".into(), message: "namespaces \"gone\" not found".into(), ..Problem::default() };
    mock.writes(&[Reaction::Refuse(Code::NotFound, gone)]);
    let text = format!(
        "{}\n{}\n{}\n",
        service("a"),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}),
        service("b")
    );
    let ran = fairlead(&[&mock], &["create", "-f", "-"], &text).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, "service/b created\n"));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines[0], "Warning: mind this");
    assert_eq!(lines[1], "Error from server (NotFound): error when creating \"STDIN\": namespaces \"gone\" not found");
    assert!(lines[2].contains("no matches for kind \"Deployment\" in version \"apps/v1\""), "{lines:?}");
}

#[tokio::test]
async fn trouble_with_the_connection_is_one_sentence() {
    let begun = Instant::now();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ran = run(
        vec!["--insecure".into(), "--server".into(), format!("127.0.0.1:{port}"), "get".into(), "svc".into()],
        String::new(),
    )
    .await;
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        format!(
            "The connection to the server 127.0.0.1:{port} was refused - did you specify the right host or port?\n"
        )
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    let ran =
        run(vec!["--server".into(), format!("127.0.0.1:{port}"), "get".into(), "svc".into()], String::new()).await;
    assert!(ran.code == 1 && ran.err.contains("--insecure") && ran.err.lines().count() == 1, "{ran:?}");
    let ran = run(vec!["--config".into(), "/nonexistent".into(), "get".into(), "svc".into()], String::new()).await;
    assert!(ran.code == 1 && ran.err.contains("/nonexistent"), "{ran:?}");
    let mock = Mock::start().await.with(&[service("web")]);
    mock.shelf.lock().unwrap().reads.extend(vec![unavailable(); 100]);
    let ran = fairlead(&[&mock], &["get", "svc", "--request-timeout=1s"], "").await;
    assert_eq!((ran.code, ran.err.contains("no leader")), (1, true), "{ran:?}");
}

#[tokio::test]
async fn tables_lists_and_what_is_not_there() {
    let mock = Mock::start().await.with(&[service("web"), service("db"), pod("True"), endpoints("web")]);
    let node = NodeProgress { name: "n1".into(), live: true, acknowledged: 8, ..NodeProgress::default() };
    mock.shelf.lock().unwrap().status.nodes =
        vec![NodeProgress { acknowledged: 9, name: "n2".into(), ..node.clone() }, node];
    let get = async |args: &[&str]| {
        let all: Vec<&str> = ["get"].iter().chain(args).copied().collect();
        fairlead(&[&mock], &all, "").await
    };
    let ran = get(&["svc", "--chunk-size=1"]).await;
    let age = ran.out.lines().nth(1).unwrap().split_whitespace().last().unwrap().to_owned();
    assert_eq!(
        ran.out,
        format!(
            "NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE\ndb     ClusterIP   10.96.0.10   <none>        80/TCP    {age}\nweb    ClusterIP   10.96.0.10   <none>        80/TCP    {age}\n"
        )
    );
    assert_eq!(mock.shelf.lock().unwrap().lists.len(), 2, "page by page");
    let ran = get(&["svc", "web", "-o", "wide", "--no-headers"]).await;
    assert!(ran.out.trim_end().ends_with("app=web   1/2   1/2"), "{ran:?}");
    let ran = get(&["svc,po", "-o", "name"]).await;
    assert_eq!(ran.out, "service/db\nservice/web\npod/p\n");
    let ran = get(&["all"]).await;
    assert!(
        ran.out
            .starts_with("NAME    READY   STATUS    RESTARTS   AGE\npod/p   1/1     Running   0          <unknown>\n\nNAME          TYPE"),
        "{}",
        ran.out
    );
    let ran = get(&["svc", "web", "nope"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "Error from server (NotFound): services \"nope\" not found\n"));
    assert!(ran.out.contains("web"));
    let ran = get(&["svc", "-n", "empty"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", "No resources found in empty namespace.\n"));
    let ran = get(&["no", "-A"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, "No resources found\n"));
    let ran = get(&["svc", "-o", "jsonpath={range .items[*]}{.metadata.name}={.spec.clusterIP}{\"\\n\"}{end}"]).await;
    assert_eq!(ran.out, "db=10.96.0.10\nweb=10.96.0.10\n");
    let ran = get(&["svc", "web", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["spec"]["selector"]["app"], "web");
    let ran = get(&["eps"]).await;
    assert!(
        ran.out.starts_with("NAME        ADDRESSTYPE   PORTS   ENDPOINTS") && ran.out.contains("10.244.0.1,10.244.0.2"),
        "{}",
        ran.out
    );
    let ran = get(&["ep"]).await;
    assert!(ran.out.contains("web    10.244.0.1:8080"), "{}", ran.out);
}

#[tokio::test]
async fn a_service_is_described_in_the_order_of_kubectl() {
    let mock = Mock::start().await.with(&[service("web"), endpoints("web")]);
    let node = NodeProgress { name: "n1".into(), live: true, acknowledged: 9, ..NodeProgress::default() };
    mock.shelf.lock().unwrap().status.nodes =
        vec![node.clone(), NodeProgress { name: "n7".into(), acknowledged: 8, lag: 1, ..node }];
    let ran = fairlead(&[&mock], &["describe", "svc", "web"], "").await;
    assert_eq!(
        ran.out,
        "Name:              web\nNamespace:         default\nLabels:            app=web\nAnnotations:       <none>\nSelector:          app=web\nType:              ClusterIP\nIP Families:       <none>\nIP:                10.96.0.10\nIPs:               10.96.0.10\nPort:              <unset>  80/TCP\nTargetPort:        8080/TCP\nEndpoints:         10.244.0.1:8080\nSession Affinity:  \nProgrammed:        1/2 nodes at rev 9 (node n7 is at revision 8, 1 behind)\nEvents:            <none>\n",
        "{}",
        ran.err
    );
    let ran = fairlead(&[&mock], &["describe", "svc", "we"], "").await;
    assert!(ran.out.starts_with("Name:              web\n"), "a prefix: {ran:?}");
    let ran = fairlead(&[&mock], &["describe", "svc", "nope"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "Error from server (NotFound): services \"nope\" not found\n"));
}

#[tokio::test]
async fn deletes_and_waiting_until_they_are_gone() {
    let mock = Mock::start().await.with(&[service("web"), service("db"), pod("True")]);
    let ran = fairlead(&[&mock], &["delete", "svc", "web", "nope"], "").await;
    assert_eq!(ran.out, "service \"web\" deleted from default namespace\n");
    assert_eq!((ran.code, ran.err.as_str()), (1, "Error from server (NotFound): services \"nope\" not found\n"));
    let ran = fairlead(&[&mock], &["delete", "svc", "nope", "--ignore-not-found"], "").await;
    assert_eq!(ran.code, 0);
    let ran = fairlead(&[&mock], &["delete", "svc", "--all"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "service \"db\" deleted from default namespace\n"), "{ran:?}");
    let going = fairlead_proto::manifest::decode(&pod("True")).unwrap().object;
    let event = |kind: EventType, end: bool, revision: u64| WatchResponse {
        r#type: kind as i32,
        object: (!end).then(|| going.clone()),
        revision,
        initial_events_end: end,
    };
    {
        let mut shelf = mock.shelf.lock().unwrap();
        shelf.delete_effect = Some(WriteEffect::Terminating);
        shelf.streams.push_back(vec![event(EventType::Added, false, 41), event(EventType::Bookmark, true, 42)]);
        shelf.streams.push_back(vec![event(EventType::Deleted, false, 43)]);
    }
    let ran = fairlead(&[&mock], &["delete", "pod", "p", "--grace-period=5", "--timeout=10s"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "pod \"p\" deleted from default namespace\n"), "{ran:?}");
    let shelf = mock.shelf.lock().unwrap();
    assert_eq!(shelf.deletes.last().unwrap().grace_period_seconds, Some(5));
    assert_eq!(shelf.watches, [0, 42], "resumed where the first stream was cut");
}

#[tokio::test]
async fn a_watch_goes_on_at_another_server() {
    let (first, second) = (Mock::start().await, Mock::start().await);
    let object = |name: &str| Some(fairlead_proto::manifest::decode(&service(name)).unwrap().object);
    let event = |kind: EventType, name: &str, revision: u64| WatchResponse {
        r#type: kind as i32,
        object: object(name),
        revision,
        initial_events_end: false,
    };
    let bookmark =
        WatchResponse { r#type: EventType::Bookmark as i32, object: None, revision: 20, initial_events_end: true };
    first.shelf.lock().unwrap().streams.push_back(vec![
        event(EventType::Added, "a", 11),
        bookmark,
        event(EventType::Added, "b", 21),
    ]);
    second.shelf.lock().unwrap().streams.push_back(vec![event(EventType::Deleted, "a", 22)]);
    let ran = fairlead(
        &[&first, &second],
        &["get", "svc", "-w", "--output-watch-events", "-o", "wide", "--no-headers", "--request-timeout=2s"],
        "",
    )
    .await;
    let rows: Vec<String> =
        ran.out.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(rows, ["ADDED a", "ADDED b", "DELETED a"], "{ran:?}");
    assert_eq!(ran.code, 0);
    assert_eq!(second.shelf.lock().unwrap().watches.first(), Some(&21));
    let ran = fairlead(&[&first], &["get", "svc,po", "-w"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: you may only specify a single resource type\n"));
}

#[tokio::test]
async fn waiting_for_conditions() {
    let mock = Mock::start().await.with(&[pod("False"), service("web"), endpoints("web")]);
    let object = |ready: &str| Some(fairlead_proto::manifest::decode(&pod(ready)).unwrap().object);
    let added = |ready: &str| WatchResponse {
        r#type: EventType::Added as i32,
        object: object(ready),
        revision: 5,
        initial_events_end: false,
    };
    let bookmark = |revision: u64| WatchResponse {
        r#type: EventType::Bookmark as i32,
        object: None,
        revision,
        initial_events_end: true,
    };
    let push = |events: Vec<WatchResponse>| mock.shelf.lock().unwrap().streams.push_back(events);
    push(vec![
        added("False"),
        bookmark(6),
        WatchResponse { r#type: EventType::Modified as i32, revision: 7, ..added("True") },
    ]);
    let ran = fairlead(&[&mock], &["wait", "pod/p", "--for=condition=Ready", "--timeout=10s"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "pod/p condition met\n"), "{ran:?}");
    push(vec![added("False"), bookmark(6)]);
    let ran = fairlead(&[&mock], &["wait", "pod/p", "--for=condition=Ready", "--timeout=1s"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: timed out waiting for the condition on pods/p\n"));
    let ran = fairlead(&[&mock], &["wait", "pod/p", "--for=condition=Ready", "--timeout=0s"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: condition not met for pods/p\n"));
    push(vec![bookmark(6)]);
    let ran = fairlead(&[&mock], &["wait", "pod/q", "--for=condition=Ready"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "Error from server (NotFound): pods \"q\" not found\n"));
    push(vec![bookmark(6)]);
    let ran = fairlead(&[&mock], &["wait", "pod/q", "--for=delete"], "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let laggard = NodeProgress { name: "n7".into(), live: true, acknowledged: 8, lag: 1, ..NodeProgress::default() };
    mock.shelf.lock().unwrap().programmed =
        WaitProgrammedResponse { programmed: false, revision: 9, nodes: 2, laggards: vec![laggard] };
    let ran = fairlead(&[&mock], &["wait", "svc/web", "--for=programmed", "--timeout=300ms"], "").await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.starts_with("error: timed out waiting for the condition on services/web: ")
            && ran.err.contains("node n7 is at revision 8, 1 behind"),
        "{}",
        ran.err
    );
    let silent = NodeProgress { name: "n8".into(), silent_ms: 9_000, acknowledged: 3, ..NodeProgress::default() };
    mock.shelf.lock().unwrap().programmed =
        WaitProgrammedResponse { programmed: true, revision: 9, nodes: 2, laggards: vec![silent] };
    let ran = fairlead(&[&mock], &["wait", "svc/web", "--for=programmed"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "service/web condition met\n"));
    assert_eq!(ran.err, "Warning: node n8 is silent for 9s and may still run with the rules of revision 3\n");
    let ran = apply(&[&mock], &["--wait=programmed", "--timeout=5s"]).await;
    assert_eq!(ran.out, "service/web configured\nrevision 42 programmed on 2 nodes\n", "{ran:?}");
}

#[tokio::test]
async fn small_verbs() {
    let mock = Mock::start().await.with(&[service("web"), pod("True")]);
    mock.shelf.lock().unwrap().status.version = "0.1.0".into();
    let ok = async |args: &[&str], expect: &str| {
        let ran = fairlead(&[&mock], args, "").await;
        assert_eq!((ran.code, ran.out.as_str()), (0, expect), "{args:?}: {ran:?}");
    };
    ok(&["version"], concat!("Client Version: v", env!("CARGO_PKG_VERSION"), "\nServer Version: v0.1.0\n")).await;
    ok(&["create", "namespace", "team"], "namespace/team created\n").await;
    ok(&["create", "service", "clusterip", "s", "--tcp=80:8080", "--dry-run=client"], "service/s created (dry run)\n")
        .await;
    ok(&["expose", "pod", "p", "--port=80", "--name=front"], "service/front exposed\n").await;
    ok(&["annotate", "svc", "web", "a=b"], "service/web annotated\n").await;
    ok(&["label", "svc", "web", "app-"], "service/web unlabeled\n").await;
    ok(&["api-resources", "-o", "name", "--namespaced=false"], "namespaces\nnodes\n").await;
    let ran = fairlead(&[&mock], &["completion", "bash"], "").await;
    assert!(ran.code == 0 && ran.out.contains("complete"), "{}", ran.err);
    let ran = fairlead(&[&mock], &["replace", "-f", "-"], &service("web").to_string()).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "service/web replaced\n"), "{ran:?}");
    let ran = fairlead(&[&mock], &["dataplane", "list", "--node", "x"], "").await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "Error from server (NotFound): node \"x\" is connected to no server\n")
    );
    let ran = fairlead(&[&mock], &["events"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (0, "No events found in default namespace.\n"));
}
