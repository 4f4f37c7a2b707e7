//! `trace`, `why`, `check` and `dataplane diff` as a user runs them, against servers of canned answers: what is asked of
//! the servers, what is printed, exit codes, and one clear sentence for whatever can't be said.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod mock;

use fairlead_proto::v1::*;
use mock::{Mock, fairlead};
use serde_json::{Value, json};

fn objects() -> [Value; 4] {
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default", "resourceVersion": "12"},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]}}),
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web", "namespace": "default", "resourceVersion": "40"},
            "subsets": [{"addresses": [{"ip": "10.244.1.2", "targetRef": {"kind": "Pod", "name": "p", "namespace": "default"}}], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 8080}]}]},
            "status": {"podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}], "conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    ]
}

fn progress(acknowledged: u64) -> NodeProgress {
    NodeProgress {
        name: "n1".into(),
        live: true,
        acknowledged,
        mode: "nftables".into(),
        server: "s1".into(),
        ..NodeProgress::default()
    }
}

fn answer(change: impl FnOnce(&mut DataplaneAnswer)) -> DataplaneResponse {
    let mut answer = DataplaneAnswer { mode: "nftables".into(), revision: 41, ..DataplaneAnswer::default() };
    change(&mut answer);
    DataplaneResponse { nodes: vec![NodeDataplane { node: "n1".into(), answer: Some(answer) }] }
}

fn differences(count: u64) -> DataplaneResponse {
    let names = (0..count).map(|n| format!("element missing in ip frontends: {n}")).collect();
    answer(|answer| answer.diff = Some(DataplaneDiff { names, count, revision: 41, settings: Vec::new() }))
}

fn traced(destination: &str) -> Traced {
    let end = TraceEnd { verdict: "reaches".into(), destination: destination.into(), masqueraded: true, share: 1.0 };
    let step = TraceStep {
        hook: "nat prerouting".into(),
        chain: "services".into(),
        rule: "meta priority set …".into(),
        effect: "in frontends has pool 1".into(),
        share: 1.0,
    };
    Traced { steps: vec![step], ends: vec![end], more: 0 }
}

async fn cluster(dataplane: Option<DataplaneResponse>) -> Mock {
    let mock = Mock::start().await.with(&objects());
    {
        let mut shelf = mock.shelf.lock().unwrap();
        shelf.status = StatusResponse {
            revision: 41,
            nodes: vec![progress(41)],
            cluster_domain: "cluster.test".into(),
            ..StatusResponse::default()
        };
        shelf.programmed = WaitProgrammedResponse { programmed: true, revision: 41, nodes: 1, laggards: Vec::new() };
        shelf.dataplane = dataplane;
    }
    mock
}

fn trace_answer(kernel: &str) -> DataplaneResponse {
    answer(|answer| {
        answer.trace = Some(TraceAnswer {
            service: "default/web".into(),
            revision: 41,
            intent: Some(traced("10.244.1.2:8080")),
            kernel: Some(traced(kernel)),
        });
    })
}

#[tokio::test]
async fn a_trace_names_addresses_ports_and_revisions() {
    let mock = cluster(Some(trace_answer("10.244.1.2:8080"))).await;
    let ran = fairlead(&[&mock], &["trace", "default/p", "default/web:http"], "").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in [
        "tcp 10.244.1.2 -> 10.96.0.10:80 on node n1 (nftables, serves revision 41)",
        "Service default/web is of revision 12, its endpoints are of revision 40.",
        "which does what revision 41 intends",
        "reaches 10.244.1.2:8080, with the node's address as its source",
    ] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    let asked = mock.shelf.lock().unwrap().dataplane_asked.pop().unwrap();
    let query =
        TraceQuery { source: "10.244.1.2".into(), destination: "10.96.0.10".into(), port: 80, protocol: "TCP".into() };
    assert_eq!((asked.node.as_str(), asked.trace), ("n1", Some(query)), "a pod's own node by default");

    let ran = fairlead(&[&mock], &["trace", "n1", "10.96.0.10:53/udp", "-o", "json"], "").await;
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        said["packet"],
        json!({"source": "192.0.2.1", "destination": "10.96.0.10", "port": 53, "protocol": "UDP"})
    );
    assert_eq!((said["agree"].as_bool(), said["serviceRevision"].as_u64()), (Some(true), Some(12)));
    assert_eq!(said["kernel"]["ends"][0]["destination"], "10.244.1.2:8080");

    mock.shelf.lock().unwrap().dataplane = Some(trace_answer("10.96.0.10:80"));
    let ran = fairlead(&[&mock], &["trace", "192.0.2.9", "10.96.0.10:80", "--node", "n1"], "").await;
    assert_eq!(ran.code, 0);
    assert!(
        ran.out.contains("From what the kernel holds:") && ran.out.contains("Next: fairlead dataplane diff --node n1")
    );
}

#[tokio::test]
async fn what_can_not_be_traced_is_said_in_one_sentence() {
    let gone = cluster(None).await;
    let silent =
        cluster(Some(DataplaneResponse { nodes: vec![NodeDataplane { node: "n1".into(), answer: None }] })).await;
    let old = cluster(Some(answer(|_| {}))).await;
    let failing = cluster(Some(answer(|answer| answer.error = "netlink: Operation not permitted".into()))).await;
    for (mock, args, says) in [
        (&gone, &["trace", "n1", "10.96.0.10:80"][..], "is connected to no server"),
        (&silent, &["trace", "n1", "10.96.0.10:80"], "node n1 did not answer in time"),
        (&old, &["trace", "n1", "10.96.0.10:80"], "the agent of node n1 is older and can't trace"),
        (&failing, &["trace", "n1", "10.96.0.10:80"], "node n1: netlink: Operation not permitted"),
        (&gone, &["trace", "192.0.2.9", "10.96.0.10:80"], "say which node it passes: --node NAME"),
        (&gone, &["trace", "n1", "10.96.0.10"], "is not DST:PORT"),
        (&gone, &["trace", "n1", "10.96.0.10:x"], "\"x\" is not a port"),
        (&gone, &["trace", "n1", "default/web:x"], "service default/web has no port named \"x\""),
        (&gone, &["trace", "n1", "[fd00::1]:80"], "have no address of one family"),
        (&gone, &["trace", "nobody", "10.96.0.10:80"], "not found"),
        (&gone, &["trace", "default/nobody", "10.96.0.10:80"], "not found"),
        (&gone, &["dataplane", "diff", "--node", "x"], "is connected to no server"),
        (&silent, &["dataplane", "diff"], "node n1 did not answer in time"),
        (&old, &["dataplane", "diff"], "the agent of node n1 is older and can't compare"),
    ] {
        let ran = fairlead(&[mock], args, "").await;
        assert!(
            ran.code == 1 && ran.err.contains(says) && ran.err.lines().count() == 1,
            "{args:?}: {} {}",
            ran.code,
            ran.err
        );
    }
}

#[tokio::test]
async fn a_difference_ends_with_one() {
    let mock = cluster(Some(differences(0))).await;
    let ran = fairlead(&[&mock], &["dataplane", "diff", "--node", "n1"], "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "node n1 (nftables) holds what revision 41 asks for\n"));
    mock.shelf.lock().unwrap().dataplane = Some(differences(2));
    let ran = fairlead(&[&mock], &["dataplane", "diff", "--node", "n1"], "").await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""), "{}", ran.out);
    assert!(ran.out.contains("has 2 differences") && ran.out.contains("\n  element missing in ip frontends: 1\n"));
    let ran = fairlead(&[&mock], &["dataplane", "diff", "-o", "json"], "").await;
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, said["nodes"][0]["count"].as_u64()), (1, Some(2)));
}

#[tokio::test]
async fn check_says_what_is_wrong_with_a_hint() {
    let mock = cluster(Some(differences(0))).await;
    let ran = fairlead(&[&mock], &["check"], "").await;
    assert!(ran.code == 0 && ran.out.ends_with("All is well.\n"), "{} {}", ran.out, ran.err);
    mock.shelf.lock().unwrap().dataplane = Some(differences(9));
    let ran = fairlead(&[&mock], &["check"], "").await;
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("[wrong] somebody else changed the kernel's rules: 9 differences"), "{}", ran.out);
    assert!(ran.out.contains("hint: ") && ran.out.ends_with("Something is wrong.\n"), "{}", ran.out);
    mock.shelf.lock().unwrap().status.nodes[0].error = "iptables is not installed: install the package iptables".into();
    let ran = fairlead(&[&mock], &["check", "-o", "json"], "").await;
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, said["ok"].as_bool(), said["nodes"][0]["ok"].as_bool()), (1, Some(false), Some(false)));
    mock.shelf.lock().unwrap().status.nodes.clear();
    let ran = fairlead(&[&mock], &["check"], "").await;
    assert!(ran.code == 1 && ran.out.contains("no node has an agent"), "{}", ran.out);
}

#[tokio::test]
async fn why_ends_with_one_next_command() {
    let mock = cluster(Some(differences(0))).await;
    let next = |out: &str| out.lines().filter(|line| line.starts_with("Next: ")).map(str::to_owned).collect::<Vec<_>>();
    let ran = fairlead(&[&mock], &["why", "web"], "").await;
    assert_eq!(ran.code, 0, "{} {}", ran.out, ran.err);
    assert_eq!(next(&ran.out), ["Next: fairlead trace n1 default/web:80/tcp --node n1"]);
    assert!(ran.out.contains("web.default.svc.cluster.test is 10.96.0.10"), "{}", ran.out);

    let ran = fairlead(&[&mock], &["why", "wbe"], "").await;
    assert_eq!((ran.code, next(&ran.out)), (1, vec!["Next: fairlead get services -n default".to_owned()]));
    assert!(ran.out.contains("there is default/web"), "{}", ran.out);
    let ran = fairlead(&[&mock], &["why", "web", "-n", "team"], "").await;
    assert_eq!(next(&ran.out), ["Next: fairlead why web -n default"]);

    mock.shelf.lock().unwrap().dataplane = Some(differences(1));
    let ran = fairlead(&[&mock], &["why", "default/web", "-o", "json"], "").await;
    let said: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, said["works"].as_bool(), said["next"].as_str()), (1, Some(false), Some("fairlead check")));
}
