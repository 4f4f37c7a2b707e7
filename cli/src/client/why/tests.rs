//! Each diagnosis as a row: what is broken, what is found first, and the one next command.

#![allow(clippy::too_many_lines, reason = "one table")]

use super::*;
use fairlead_proto::manifest;
use serde_json::{Value, json};

fn service(spec: Value) -> Service {
    let value = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "resourceVersion": "50"}, "spec": spec});
    manifest::decode(&value).unwrap().object.as_service().unwrap().clone()
}

fn pod(name: &str, app: &str, ready: Value) -> Pod {
    let value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app, "tier": "front"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": "10.244.0.1", "podIPs": [{"ip": "10.244.0.1"}], "conditions": [ready]}});
    manifest::decode(&value).unwrap().object.as_pod().unwrap().clone()
}

fn is_ready() -> Value {
    json!({"type": "Ready", "status": "True"})
}

fn refused() -> Value {
    json!({"type": "Ready", "status": "False", "reason": "ReadinessProbeFailed", "message": "GET http://10.244.0.1:8080/: \nconnection refused"})
}

fn endpoint(address: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: address.into(),
        pod_name: "a".into(),
        node_name: "n1".into(),
        ready,
        serving: ready,
        ..Endpoint::default()
    }
}

fn node(name: &str, acknowledged: u64) -> NodeProgress {
    NodeProgress { name: name.into(), live: true, acknowledged, mode: "nftables".into(), ..NodeProgress::default() }
}

fn plain() -> Value {
    json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "selector": {"app": "web"},
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]})
}

/// A service that works.
fn works() -> Facts {
    Facts {
        namespace: "default".into(),
        name: "web".into(),
        service: Some(service(plain())),
        pods: vec![pod("a", "web", is_ready())],
        endpoints: Some(Endpoints { endpoints: vec![endpoint("10.244.0.1", true)], ..Endpoints::default() }),
        nodes: vec![node("n1", 60), node("n2", 60)],
        domain: "cluster.test".into(),
        ..Facts::default()
    }
}

/// What is wrong first, or "" if nothing is; its details; the next command.
fn first(facts: &Facts) -> (String, String, String) {
    let why = why(facts);
    let wrong = why.findings.iter().find(|finding| finding.level == Level::Wrong);
    (
        wrong.map(|finding| finding.text.clone()).unwrap_or_default(),
        wrong.map(|finding| finding.details.join("\n")).unwrap_or_default(),
        why.next,
    )
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = works();
    change(&mut facts);
    facts
}

fn with_spec(changed: Value) -> Facts {
    with(|facts| {
        let mut spec = plain();
        for (key, value) in changed.as_object().unwrap() {
            spec[key] = value.clone();
        }
        facts.service = Some(service(spec));
    })
}

#[test]
fn every_diagnosis() {
    let named = || with_spec(json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}]}));
    let dual = || {
        with_spec(
            json!({"clusterIPs": ["10.96.0.10", "fd00:96::a"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
        )
    };
    let unready = |facts: &mut Facts| facts.endpoints.as_mut().unwrap().endpoints[0] = endpoint("10.244.0.1", false);
    let rows: Vec<(Facts, &str, &str, &str)> = vec![
        (works(), "", "", "fairlead trace n1 default/web:80/tcp --node n1"),
        (
            with(|facts| {
                facts.service = None;
                facts.others = vec!["team/web".into(), "default/webb".into(), "default/db".into()];
            }),
            "there is no service web in namespace default",
            "there is team/web, default/webb",
            "fairlead why web -n team",
        ),
        (
            with(|facts| facts.service = None),
            "there is no service web in namespace default",
            "",
            "fairlead get services -n default",
        ),
        (
            with(|facts| facts.pods = vec![pod("a", "webb", is_ready()), pod("b", "db", is_ready())]),
            "its selector app=web matches none of 2 pods in namespace default",
            "closest: pod a has app=webb instead of app=web",
            "fairlead get pods -n default --show-labels",
        ),
        (with(|facts| facts.pods.clear()), "matches none of 0 pods", "", "fairlead get pods -A -l app=web"),
        (
            with(|facts| {
                facts.pods = vec![pod("a", "web", refused())];
                unready(facts);
            }),
            "its selector app=web matches 1 pods, and none of them is ready",
            "pod a: ReadinessProbeFailed: GET http://10.244.0.1:8080/: connection refused",
            "fairlead describe pod a -n default",
        ),
        (
            with(|facts| {
                let endpoint = &mut facts.endpoints.as_mut().unwrap().endpoints[0];
                (endpoint.ready, endpoint.lost) = (false, true);
            }),
            "none of them is ready",
            "pod a: its node is silent",
            "fairlead describe node n1",
        ),
        (
            with(|facts| {
                let endpoint = &mut facts.endpoints.as_mut().unwrap().endpoints[0];
                (endpoint.ready, endpoint.terminating) = (false, true);
            }),
            "none of them is ready",
            "pod a: its node is drained",
            "fairlead describe node n1",
        ),
        (
            with(|facts| facts.endpoints.as_mut().unwrap().endpoints[0].weight = Some(0)),
            "all its ready endpoints have weight 0",
            "",
            "fairlead annotate pods -n default -l app=web fairlead.io/weight-",
        ),
        (
            named(),
            "port 80 goes to the port named \"http\" (TCP), which 1 of 1 selected pods don't have; they have web (TCP)",
            "",
            "fairlead describe pod a -n default",
        ),
        (
            dual(),
            "none of its ready endpoints has an IPv6 address, so fd00:96::a refuses",
            "",
            "fairlead get endpoints web -n default -o yaml",
        ),
        (with_spec(json!({"selector": {}})), "", "", "fairlead trace n1 default/web:80/tcp --node n1"),
        (
            {
                let mut facts = with_spec(json!({"selector": {}}));
                facts.endpoints = None;
                facts
            },
            "it has no selector, and nobody wrote endpoints for it",
            "",
            "fairlead describe service web -n default",
        ),
        (
            with(|facts| facts.nodes[1].acknowledged = 40),
            "1 of 2 nodes don't serve it as they should",
            "node n2 serves revision 40; the service last changed at 50",
            "fairlead check",
        ),
        (
            with(|facts| facts.nodes[1].error = "Operation not permitted".into()),
            "1 of 2 nodes",
            "node n2: Operation not permitted",
            "fairlead check",
        ),
        (
            with(|facts| facts.nodes[0].live = false),
            "1 of 2 nodes",
            "node n1 is silent: it may run with the rules of revision 60",
            "fairlead check",
        ),
        (
            with(|facts| {
                facts.drift.insert("n1".into(), 3);
            }),
            "1 of 2 nodes",
            "node n1: somebody else changed the kernel's rules, 3 differences",
            "fairlead check",
        ),
        (with(|facts| facts.nodes.clear()), "no node has an agent", "", "fairlead check"),
    ];
    for (facts, text, details, next) in rows {
        let (found, told, then) = first(&facts);
        assert!(found.contains(text) && found.is_empty() == text.is_empty(), "{found:?} for {text:?}");
        assert_eq!(told, details, "{found}");
        assert_eq!(then, next, "{found}");
    }
}

#[test]
fn what_is_worth_knowing_is_no_failure() {
    let texts =
        |facts: &Facts| why(facts).findings.into_iter().map(|finding| finding.text).collect::<Vec<_>>().join("\n");
    let local =
        with_spec(json!({"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}));
    let said = texts(&local);
    assert!(said.contains("its ClusterIP is silent on nodes without an endpoint (n2)"), "{said}");
    assert!(said.contains("from outside it is silent on nodes without an endpoint (n2)"), "{said}");
    assert_eq!(first(&local).0, "");
    let said = texts(&works());
    assert!(said.contains("DNS: web.default.svc.cluster.test is 10.96.0.10"), "{said}");
    let half = with(|facts| facts.pods.push(pod("b", "web", refused())));
    assert!(texts(&half).contains("1 of 2 selected pods are ready"), "{}", texts(&half));
    let alias = with_spec(
        json!({"type": "ExternalName", "externalName": "db.example.com", "clusterIP": "", "clusterIPs": [], "ports": []}),
    );
    assert!(texts(&alias).contains("it is an alias of db.example.com"), "{}", texts(&alias));
    assert_eq!(why(&alias).next, "fairlead describe service web -n default");
    let headless = with_spec(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    assert!(texts(&headless).contains("DNS: web.default.svc.cluster.test is 10.244.0.1"), "{}", texts(&headless));
}

#[test]
fn many_pods_are_a_few_names_and_a_count() {
    let many = with(|facts| {
        facts.pods = (0..9).map(|n| pod(&format!("p{n}"), "web", refused())).collect();
        facts.endpoints = None;
    });
    let (_, details, next) = first(&many);
    assert_eq!(details.lines().count(), NAMED + 1, "{details}");
    assert!(details.ends_with("and 4 more"), "{details}");
    assert_eq!(next, "fairlead describe pod p0 -n default");
}

#[test]
fn letters_between_two_words_are_counted() {
    for (one, other, count) in [("", "", 0), ("web", "web", 0), ("web", "webb", 1), ("web", "wbe", 2), ("abc", "", 3)] {
        assert_eq!(edits(one, other), count, "{one} {other}");
    }
}
