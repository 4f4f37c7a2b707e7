//! Kubernetes' API as bytes on a socket: what clients rely on, and what nobody should send.
//!
//! Needs curl.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, eventually, service, text};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

/// What a request says beside its path.
#[derive(Default)]
struct Asked<'a> {
    method: &'a str,
    media_type: &'a str,
    accept: &'a str,
    body: Vec<u8>,
}

struct Api(String);

impl Api {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.0)
    }

    fn send(&self, path: &str, asked: &Asked<'_>) -> (u16, Vec<u8>) {
        let method = if asked.method.is_empty() { "GET" } else { asked.method };
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--path-as-is", "-g", "--max-time", "60", "-X", method, "-w", "\n%{http_code}"]);
        for (header, value) in [("Content-Type", asked.media_type), ("Accept", asked.accept)] {
            if !value.is_empty() {
                curl.args(["-H", &format!("{header}: {value}")]);
            }
        }
        if !asked.body.is_empty() {
            curl.args(["-H", "Expect:", "--data-binary", "@-"]);
        }
        curl.arg(self.url(path)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = curl.spawn().unwrap();
        // A server that refuses a long body doesn't read it all.
        let _ = child.stdin.take().unwrap().write_all(&asked.body);
        let output = child.wait_with_output().unwrap();
        let cut = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
        let code = text(&output.stdout[cut + 1..]).parse().unwrap();
        (code, output.stdout[..cut].to_vec())
    }

    fn json(&self, path: &str, asked: &Asked<'_>) -> (u16, Value) {
        let (code, body) = self.send(path, asked);
        (code, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{path}: {code} {}", text(&body))))
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.json(path, &Asked::default())
    }

    fn write(&self, (method, path): (&str, &str), (media_type, body): (&str, Vec<u8>)) -> (u16, Value) {
        self.json(path, &Asked { method, media_type, body, ..Asked::default() })
    }

    fn watch(&self, query: &str) -> Watch {
        let mut curl = Command::new("curl");
        curl.args(["-sSN", "--max-time", "60", &self.url(&format!("{SERVICES}?watch=true&{query}"))]);
        let mut child = curl.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Watch { child, lines }
    }
}

struct Watch {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watch {
    /// The next event: its type, the object's name and revision.
    fn next(&mut self) -> (String, String, u64) {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "the watch ended");
        let event: Value = serde_json::from_str(&line).unwrap();
        let word = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let revision = word("/object/metadata/resourceVersion").parse().unwrap_or(0);
        (word("/type"), word("/object/metadata/name"), revision)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn manifest(name: &str) -> Vec<u8> {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"ports": [{"port": 80}]}})
        .to_string()
        .into_bytes()
}

fn started() -> (Cluster, Api) {
    let cluster = Cluster::start(1);
    let api = Api(cluster.https(0));
    eventually("the API", || (api.get("/version").0 == 200).then_some(()));
    (cluster, api)
}

#[test]
fn lists_watches_and_revisions_are_kubernetes_and_the_same_as_over_grpc() {
    let (cluster, api) = started();
    for name in ["a", "b", "c"] {
        assert_eq!(api.write(("POST", SERVICES), ("application/json", manifest(name))).0, 201);
    }
    let (_, all) = api.get(SERVICES);
    let revision: u64 = all["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert_eq!((all["kind"].as_str(), all["items"].as_array().unwrap().len()), (Some("ServiceList"), 3));
    // Pages of one revision, whatever happens in between.
    let (_, first) = api.get(&format!("{SERVICES}?limit=2"));
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    assert_eq!(api.write(("DELETE", &format!("{SERVICES}/c")), ("", Vec::new())).0, 200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = api.get(&format!("{SERVICES}?limit=2&continue={token}"));
    assert_eq!(rest["items"][0]["metadata"]["name"], "c", "as it was");
    let exact = |revision: u64| api.get(&format!("{SERVICES}?resourceVersion={revision}&resourceVersionMatch=Exact"));
    assert_eq!(exact(revision).1["items"].as_array().unwrap().len(), 3);
    assert_eq!(exact(revision + 1_000).0, 504);
    // What one face writes, the other one's watchers see, once and in order; a selector's, what it selects.
    let mut watch = api.watch(&format!("resourceVersion={revision}&labelSelector=app%20in%20(c,d)"));
    assert_eq!(watch.next().0, "DELETED");
    cluster.ok(&["apply", "-f", "-"], &service("other"));
    assert_eq!(api.write(("POST", SERVICES), ("application/json", manifest("d"))).0, 201);
    let (kind, name, at) = watch.next();
    assert_eq!((kind.as_str(), name.as_str()), ("ADDED", "d"));
    assert!(at > revision + 1);
    // The state first, then its end, then what comes.
    let mut watch = api.watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let names: Vec<String> = (0..4).map(|_| watch.next().1).collect();
    assert_eq!(names, ["a", "b", "d", "other"]);
    let (kind, _, marked) = watch.next();
    assert!(kind == "BOOKMARK" && marked >= at);
    // Metadata alone, YAML, and compressed lists.
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";
    let (_, slim) = api.json(SERVICES, &Asked { accept: partial, ..Asked::default() });
    assert_eq!((slim["kind"].as_str(), slim["items"][0].get("spec")), (Some("PartialObjectMetadataList"), None));
    let (_, yaml) = api.send(&format!("{SERVICES}/a"), &Asked { accept: "application/yaml", ..Asked::default() });
    assert!(text(&yaml).contains("\n  name: a\n"), "{}", text(&yaml));
    let binary = Asked { accept: "application/vnd.kubernetes.protobuf, */*", ..Asked::default() };
    assert_eq!(api.json(SERVICES, &binary).1["kind"], "ServiceList");
    let one = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    assert_eq!(api.json(SERVICES, &Asked { accept: one, ..Asked::default() }).0, 406, "a list is none");
    assert_eq!(api.json(SERVICES, &Asked { accept: "text/html", ..Asked::default() }).0, 406);
}

#[test]
fn a_patch_is_made_of_the_object_that_is_however_many_write() {
    let (_cluster, api) = started();
    assert_eq!(api.write(("POST", SERVICES), ("application/json", manifest("web"))).0, 201);
    let path = format!("{SERVICES}/web");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (api, path) = (&api, &path);
            scope.spawn(move || {
                for round in 0..5 {
                    let patch = json!({"metadata": {"annotations": {format!("k{number}-{round}"): "x"}}}).to_string();
                    let done = api.write(("PATCH", path), ("application/merge-patch+json", patch.into_bytes()));
                    assert_eq!(done.0, 200, "{}", done.1);
                }
            });
        }
    });
    let (_, web) = api.get(&path);
    assert_eq!(web["metadata"]["annotations"].as_object().unwrap().len(), 40, "none was lost");
    assert_eq!(web["metadata"]["generation"], 1, "the spec is as it was");
    // A revision is a condition; without a change there is no new one.
    let revision = web["metadata"]["resourceVersion"].clone();
    let nothing = json!({"metadata": {"annotations": {"k0-0": "x"}}}).to_string().into_bytes();
    let (_, same) = api.write(("PATCH", &path), ("application/merge-patch+json", nothing));
    assert_eq!(same["metadata"]["resourceVersion"], revision);
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}}).to_string().into_bytes();
    let (code, refused) = api.write(("PATCH", &path), ("application/merge-patch+json", stale));
    assert_eq!((code, refused["reason"].as_str()), (409, Some("Conflict")));
    // Who owns what.
    let apply = |manager: &str, port: u16, force: bool| {
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let config = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: [{{port: 80, targetPort: {port}}}]}}\n"
        );
        api.write(("PATCH", &path), ("application/apply-patch+yaml", config.into_bytes()))
    };
    assert_eq!(apply("one", 8080, true).0, 200);
    let (code, conflict) = apply("two", 9090, false);
    assert_eq!((code, &conflict["details"]["causes"][0]["reason"]), (409, &json!("FieldManagerConflict")));
    assert_eq!(apply("two", 9090, true).1["spec"]["ports"][0]["targetPort"], 9090);
    assert_eq!(api.write(("PATCH", &path), ("application/apply-patch+yaml", b"{}".to_vec())).0, 422, "who applies?");
}

#[test]
fn what_nobody_should_send_is_refused_and_loses_nothing() {
    let (cluster, api) = started();
    assert_eq!(api.write(("POST", SERVICES), ("application/json", manifest("web"))).0, 201);
    let web = format!("{SERVICES}/web");
    let before = api.get(&web).1;
    let operations: Vec<Value> = (0..10_001)
        .map(|number| json!({"op": "add", "path": "/metadata/labels/a", "value": number.to_string()}))
        .collect();
    let deep = "{\"a\":".repeat(5_000) + "1" + &"}".repeat(5_000);
    let bomb = (1..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let below = format!("*a{}", level - 1);
        format!("{text}a{level}: &a{level} [{}]\n", [below.as_str(); 9].join(","))
    });
    let json = "application/json";
    for (method, path, media_type, body, code) in [
        ("POST", SERVICES, json, vec![b' '; 3 * 1024 * 1024 + 1], 413),
        ("POST", SERVICES, json, deep.clone().into_bytes(), 400),
        ("PATCH", web.as_str(), "application/merge-patch+json", deep.into_bytes(), 400),
        ("POST", SERVICES, "application/yaml", bomb.into_bytes(), 400),
        ("PATCH", web.as_str(), "application/json-patch+json", Value::from(operations).to_string().into_bytes(), 413),
        ("PATCH", web.as_str(), "application/json-patch+json", b"{}".to_vec(), 400),
        ("PATCH", web.as_str(), "text/plain", b"x".to_vec(), 415),
        ("PATCH", web.as_str(), json, b"{}".to_vec(), 415),
        ("POST", SERVICES, "text/plain", b"x".to_vec(), 415),
        ("POST", SERVICES, json, b"[]".to_vec(), 400),
        ("POST", SERVICES, json, b"null".to_vec(), 400),
        ("POST", SERVICES, json, br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"}}"#.to_vec(), 400),
        ("POST", SERVICES, json, br#"{"metadata":{"name":"x","namespace":"other"}}"#.to_vec(), 400),
        ("POST", SERVICES, json, br#"{"metadata":{"name":"X_Y"},"spec":{"ports":[{"port":99999}]}}"#.to_vec(), 422),
        ("POST", SERVICES, json, br#"{"metadata":{},"spec":{"ports":[{"port":80}]}}"#.to_vec(), 422),
        ("POST", SERVICES, "application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff\xff\xff".to_vec(), 400),
        ("PUT", web.as_str(), json, manifest("other"), 400),
        ("PUT", "/api/v1/namespaces/default/pods/none", json, br#"{"metadata":{"name":"none"}}"#.to_vec(), 404),
        ("DELETE", web.as_str(), json, br#"{"preconditions":{"uid":"another"}}"#.to_vec(), 409),
        ("DELETE", web.as_str(), json, br#"{"propagationPolicy":"Upwards"}"#.to_vec(), 422),
        ("POST", "/api/v1/services", json, manifest("x"), 405),
        ("POST", "/version", json, b"{}".to_vec(), 404),
    ] {
        let (found, status) = api.write((method, path), (media_type, body));
        assert_eq!((found, status["kind"].as_str()), (code, Some("Status")), "{method} {path} {media_type}: {status}");
    }
    for (path, code) in [
        ("/api/v1/namespaces/default/services/../../../../etc/passwd", 400),
        ("/api/v1/namespaces/%2e%2e/services", 400),
        ("/api/v1/secrets", 404),
        ("/apis/apps/v1/deployments", 404),
        ("/api/v1/namespaces/default/services?labelSelector=a%20in", 400),
        ("/api/v1/namespaces/default/services?fieldSelector=spec.nothing=1", 400),
        ("/api/v1/namespaces/default/services?continue=nonsense", 400),
        ("/api/v1/namespaces/default/services?limit=x", 400),
        ("/api/v1/namespaces/default/services?watch=true&resourceVersion=nonsense", 422),
        ("/api/v1/namespaces/default/services?watch=true&sendInitialEvents=true", 422),
        ("/api/v1/namespaces/default/services?unknown=parameters&are=left", 200),
        ("/api/v1/namespaces/default/services/web/log", 404),
    ] {
        let (found, answer) = api.get(path);
        assert_eq!(found, code, "{path}: {answer}");
    }
    assert_eq!(api.get(&web).1, before);
    assert!(!cluster.servers[0].as_ref().unwrap().output().contains("panicked"));
}
