//! TLS, tokens and roles from outside: real servers and agents with certificates, and every RPC tried by everybody.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, run, service, text};
use fairlead_proto::tls::{self, Credentials, SERVER_NAME, Transport};
use fairlead_proto::token::JoinToken;
use fairlead_proto::v1::access_client::AccessClient;
use fairlead_proto::v1::{
    AgentMessage, ApplyRequest, BindRequest, CreateRequest, DeleteRequest, GetRequest, Hello, HistoryRequest, Input,
    IssueUserRequest, JoinRequest, Kind, ListRequest, ObjectKey, RevisionsRequest, RoleBinding, UnbindRequest,
    UpdateRequest, WatchRequest, agent_message, input,
};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn agent(cluster: &Cluster, name: &str, token: Option<&str>) -> Process {
    let all: Vec<_> = (0..cluster.servers.len()).map(|index| cluster.grpc(index)).collect();
    let mut command = Command::new(FAIRLEAD);
    command.args(["--server", &all.join(","), "agent", "--mode", "dry-run", "--node-ip", "127.0.0.1"]);
    command.args(["--node-name", name, "--renew-seconds", "1", "--grace-seconds", "4"]);
    command.arg("--state-dir").arg(cluster.dir.path().join(name));
    if let Some(token) = token {
        command.env("FAIRLEAD_TOKEN", token);
    }
    Process::start(&mut command, cluster.dir.path().join(format!("{name}.log")))
}

fn is_live(cluster: &Cluster, name: &str) -> bool {
    cluster.status()["nodes"].as_array().unwrap().iter().any(|node| node["name"] == name && node["live"] == true)
}

fn token(cluster: &Cluster, flags: &[&str]) -> String {
    cluster.ok(&[&["token", "create"], flags].concat(), "").trim().to_owned()
}

#[test]
fn founders_with_authorities_at_hand_are_a_secure_cluster() {
    let mut cluster = Cluster::start_secure(3, &[]);
    cluster.ok(&["apply", "-f", "-"], &service("web"));
    // Whoever speaks plaintext, has no certificate, or another cluster's, gets nowhere.
    let plain = run(Command::new(FAIRLEAD).args(["--insecure", "--server", &cluster.grpc(0), "get", "svc"]), "");
    assert_eq!(plain.status.code(), Some(1), "{}", said(&plain));
    let nobody = run(Command::new(FAIRLEAD).args(["--server", &cluster.grpc(0), "get", "svc"]), "");
    assert!(said(&nobody).contains("nothing says whom to trust"), "{}", said(&nobody));
    let other = Cluster::start_secure(1, &[]);
    let stranger = |config: &Path| {
        run(Command::new(FAIRLEAD).arg("--config").arg(config).args(["--server", &cluster.grpc(0), "get", "svc"]), "")
    };
    let refused = stranger(other.admin.as_ref().unwrap());
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("UnknownIssuer"), "{}", said(&refused));
    assert!(stranger(cluster.admin.as_ref().unwrap()).status.success());
    // Metrics are for those who show a certificate.
    let scrape = |flags: &[&str]| {
        let url = format!("https://{}/metrics", cluster.metrics(0));
        run(Command::new("curl").args(["-sk", "-m", "20", &url]).args(flags), "")
    };
    assert!(text(&scrape(&[]).stdout).contains("a certificate of the cluster is needed"));
    let own = cluster.data_dir(0).join("pki/server.pem").display().to_string();
    assert!(text(&scrape(&["--cert", &own, "--key", &own]).stdout).contains("# TYPE fairlead_"));
    // The authorities are the cluster's now, and nobody else may read what a member keeps.
    for index in 0..3 {
        let dir = cluster.data_dir(index);
        eventually("the authorities' files are gone", || {
            (!dir.join("pki/ca/client.pem").exists() && !dir.join("pki/ca/peer.pem").exists()).then_some(())
        });
        let mode =
            |path: &Path| std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777;
        assert_eq!(
            (mode(&dir), mode(&dir.join("pki/server.pem")), mode(&dir.join("pki/peer.pem"))),
            (0o700, 0o600, 0o600)
        );
    }
    // A leader dies, comes back with its certificates, and is one of them again.
    let leader = cluster.leader();
    cluster.servers[leader].as_mut().unwrap().kill_9();
    cluster.ok(&["apply", "-f", "-"], &service("next"));
    cluster.start_server(leader);
    eventually("all members answer", || {
        let status = cluster.status();
        status["members"].as_array()?.iter().all(|member| member["error"] == "").then_some(())
    });
    // Its log says who did what.
    let log = (0..3).map(|index| std::fs::read_to_string(cluster.data_dir(index).join("audit.log")).unwrap());
    let lines: String = log.collect();
    let applied = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let web = applied.filter(|line| line["object"] == "services/default/web").collect::<Vec<_>>();
    assert_eq!(web.len(), 1, "{lines}");
    assert_eq!((web[0]["identity"].as_str(), web[0]["outcome"].as_str()), (Some("user:admin"), Some("ok")));
    assert!(web[0]["revision"].as_u64().unwrap() > 0);
}

#[test]
fn several_founders_without_authorities_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(FAIRLEAD);
    command.args(["server", "--name", "n1", "--initial-cluster", "n1=127.0.0.1:1,n2=127.0.0.1:2"]);
    for face in ["grpc", "peer", "https", "dns", "metrics"] {
        command.arg(format!("--listen-{face}")).arg("127.0.0.1:0");
    }
    let output = run(command.arg("--data-dir").arg(dir.path()), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("fairlead cert init DIR") && said(&output).contains("--join"), "{}", said(&output));
    let init = |at: &Path| run(Command::new(FAIRLEAD).args(["cert", "init"]).arg(at), "");
    assert!(init(&dir.path().join("x")).status.success());
    let again = init(&dir.path().join("x"));
    assert!(!again.status.success() && said(&again).contains("authorities are made once"), "{}", said(&again));
}

#[test]
fn a_token_lets_nodes_join_once_and_only_where_it_is_from() {
    let cluster = Cluster::start_secure(1, &[]);
    let once = token(&cluster, &["--single-use", "--description", "first"]);
    let mut first = agent(&cluster, "a1", Some(&once));
    eventually("the node", || is_live(&cluster, "a1").then_some(()));
    let waits_for = |process: &Process, words: &str| {
        eventually(words, || process.output().contains(words).then_some(()));
    };
    waits_for(&agent(&cluster, "a2", Some(&once)), "not valid for this");
    waits_for(&agent(&cluster, "a3", None), "give it a token");
    // A live node's name is not given to another host, a server's token not taken from a node.
    let many = token(&cluster, &["--ttl", "0"]);
    let thief = Cluster::start_secure(1, &[]);
    let all = cluster.grpc(0);
    let taken = run_agent(&all, ("a1", &thief.dir.path().join("thief")), &many);
    waits_for(&taken, "is live");
    waits_for(&agent(&cluster, "a4", Some(&token(&cluster, &["--role", "server"]))), "not valid for this");
    // Another cluster's token: the CA isn't its own, and the secret never leaves.
    let foreign = token(&thief, &[]);
    waits_for(&agent(&cluster, "a5", Some(&foreign)), "nothing was sent to it");
    let secret = foreign.rsplit('.').next().unwrap();
    let log = std::fs::read_to_string(cluster.data_dir(0).join("audit.log")).unwrap();
    assert!(!log.contains(secret) && !log.contains(foreign.parse::<JoinToken>().unwrap().id.as_str()), "{log}");
    // Its certificate is enough from now on, and the token may go.
    let list = cluster.ok(&["token", "list"], "");
    assert!(!list.contains("first") && list.contains("<never>"), "{list}");
    let id = many.parse::<JoinToken>().unwrap().id;
    cluster.ok(&["token", "delete", &id], "");
    waits_for(&agent(&cluster, "a6", Some(&many)), "not valid for this");
    first.kill_9();
    eventually("its silence", || (!is_live(&cluster, "a1")).then_some(()));
    let _again = agent(&cluster, "a1", None);
    eventually("the node again", || is_live(&cluster, "a1").then_some(()));
    // Nothing of a token is in what the cluster stores or logs.
    let data = cluster.data_dir(0).join("db");
    let secret = many.rsplit('.').next().unwrap().as_bytes().to_vec();
    for file in std::fs::read_dir(data).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret));
    }
    let expired = token(&cluster, &["--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(1_100));
    waits_for(&agent(&cluster, "a7", Some(&expired)), "not valid for this");
    assert!(cluster.ok(&["token", "list"], "").contains("<expired>"));
}

fn run_agent(servers: &str, (name, dir): (&str, &Path), token: &str) -> Process {
    let mut command = Command::new(FAIRLEAD);
    command.args(["--server", servers, "agent", "--mode", "dry-run", "--node-ip", "127.0.0.1", "--node-name", name]);
    std::fs::create_dir_all(dir).unwrap();
    Process::start(command.arg("--state-dir").arg(dir).env("FAIRLEAD_TOKEN", token), dir.join("log"))
}

#[test]
fn certificates_are_renewed_and_authorities_rotated_without_a_restart() {
    let cluster = Cluster::start_secure(3, &["--certificate-life", "6s"]);
    let joins = token(&cluster, &["--ttl", "0"]);
    let node = agent(&cluster, "a1", Some(&joins));
    eventually("the node", || is_live(&cluster, "a1").then_some(()));
    let ends = |what: &str| {
        let status = cluster.ok(&["cert", "status"], "");
        let line = status.lines().find(|line| line.contains(what)).unwrap().to_owned();
        line.split_whitespace().rev().nth(1).unwrap().to_owned()
    };
    // Three lives of every certificate.
    for _ in 0..3 {
        let (server, peer) = (ends("server of n"), ends("peer of n"));
        eventually("new certificates", || (ends("server of n") > server && ends("peer of n") > peer).then_some(()));
    }
    eventually("the node renews", || node.output().contains("certificate is new").then_some(()));
    assert!(is_live(&cluster, "a1"));
    // New authorities sign; whoever knows only the old ones, a token among them, goes on.
    for authority in ["client", "peer"] {
        let said = cluster.ok(&["cert", "rotate", authority], "");
        assert!(said.contains("generation 2 signs now"), "{said}");
    }
    let early = cluster.run(&["cert", "retire", "client", "2"], "");
    assert!(said(&early).contains("make a newer one first"), "{}", said(&early));
    let _late = agent(&cluster, "a2", Some(&joins));
    eventually("a node with an old token", || is_live(&cluster, "a2").then_some(()));
    cluster.ok(&["apply", "-f", "-"], &service("web"));
    let user = cluster.ok(&["user", "create", "root", "--group", "fairlead:admins"], "");
    let fresh = common::write(cluster.dir.path(), "root.yaml", &user);
    // What the old authority signed has died out by itself, but for the administrator's first certificate.
    for authority in ["client", "peer"] {
        eventually("the old authority may go", || {
            cluster.run(&["cert", "retire", authority, "1"], "").status.success().then_some(())
        });
        if authority == "client" {
            let fresh =
                || run(Command::new(FAIRLEAD).arg("--config").arg(&fresh).args(["cert", "retire", "peer", "1"]), "");
            eventually("the old peer authority may go", || fresh().status.success().then_some(()));
            break;
        }
    }
    eventually("the first administrator is nobody", || {
        let output = cluster.run(&["get", "svc"], "");
        (!output.status.success()).then_some(())
    });
    let ok = run(Command::new(FAIRLEAD).arg("--config").arg(&fresh).args(["get", "svc", "web"]), "");
    assert!(ok.status.success(), "{}", said(&ok));
    let status = run(Command::new(FAIRLEAD).arg("--config").arg(&fresh).args(["status"]), "");
    assert!(said(&status).contains("a2"), "{}", said(&status));
    for _ in 0..2 {
        let made = run(Command::new(FAIRLEAD).arg("--config").arg(&fresh).args(["apply", "-f", "-"]), &service("more"));
        assert!(made.status.success(), "{}", said(&made));
    }
}

/// Sends and takes bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let left = bytes::Buf::remaining(from);
        bytes::Buf::advance(from, left);
        Ok(Some(()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// A request that means something, for RPCs whose namespace or node counts.
fn sample(rpc: &str) -> Vec<u8> {
    let key = Some(ObjectKey { kind: Kind::Service.into(), namespace: "team".into(), name: "web".into() });
    let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "team"}, "spec": {"ports": [{"port": 80}]}});
    let input = Some(Input { form: Some(input::Form::ManifestJson(manifest.to_string())) });
    let (namespace, kind) = ("team".to_owned(), Kind::Service.into());
    match rpc {
        "Objects/Create" => CreateRequest { input, options: None }.encode_to_vec(),
        "Objects/Apply" => ApplyRequest { input, options: None }.encode_to_vec(),
        "Objects/Update" => UpdateRequest { input, options: None }.encode_to_vec(),
        "Objects/Delete" => DeleteRequest { key, ..DeleteRequest::default() }.encode_to_vec(),
        "Objects/Get" => GetRequest { key, ..GetRequest::default() }.encode_to_vec(),
        "Objects/Revisions" => RevisionsRequest { key, limit: 0 }.encode_to_vec(),
        "Objects/List" => ListRequest { kind, namespace, ..ListRequest::default() }.encode_to_vec(),
        "Objects/Watch" => WatchRequest { kind, namespace, ..WatchRequest::default() }.encode_to_vec(),
        "Cluster/History" => HistoryRequest { namespace, ..HistoryRequest::default() }.encode_to_vec(),
        "Access/Bind" => {
            let binding = RoleBinding { subject: "user:x".into(), role: "viewer".into(), namespace };
            BindRequest { binding: Some(binding) }.encode_to_vec()
        }
        "Access/Unbind" => UnbindRequest { subject: "user:x".into(), namespace }.encode_to_vec(),
        "NodeSync/Sync" => {
            let hello = Hello { node_name: "own".into(), renew_seconds: 1, grace_seconds: 4, ..Hello::default() };
            AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) }.encode_to_vec()
        }
        "Members/Join" => JoinRequest { name: "n1".into(), ..JoinRequest::default() }.encode_to_vec(),
        _ => Vec::new(),
    }
}

/// Who may call what. n: nobody's certificate, o: another node, w: the node itself, m: a member, s: a user without a
/// role, t: a viewer of the namespace, v: a viewer, d: the namespace's editor, e: an editor, q: the namespace's
/// administrator, a: an administrator. Written by hand, and not from the server's table.
const ALLOWED: &[(&str, &str)] = &[
    ("Bootstrap/Enroll", "nowmstvdeqa"),
    ("Bootstrap/Renew", "ow"),
    ("Access/CreateToken", "a"),
    ("Access/ListTokens", "a"),
    ("Access/DeleteToken", "a"),
    ("Access/IssueUser", "a"),
    ("Access/Bind", "qa"),
    ("Access/Unbind", "qa"),
    ("Access/ListBindings", "vea"),
    ("Access/CanI", "owmstvdeqa"),
    ("Access/Certificates", "vea"),
    ("Access/RotateAuthority", "a"),
    ("Access/RetireAuthority", "a"),
    ("Objects/Create", "deqa"),
    ("Objects/Apply", "deqa"),
    ("Objects/Update", "deqa"),
    ("Objects/Delete", "deqa"),
    ("Objects/Get", "tvdeqa"),
    ("Objects/List", "tvdeqa"),
    ("Objects/Watch", "tvdeqa"),
    ("Objects/Revisions", "tvdeqa"),
    ("Cluster/Status", "vea"),
    ("Cluster/WaitProgrammed", "owmstvdeqa"),
    ("Cluster/Dataplane", "vea"),
    ("Cluster/History", "tvdeqa"),
    ("Members/Join", "ma"),
    ("Members/Promote", "a"),
    ("Members/Remove", "a"),
    ("Members/Drain", "a"),
    ("Members/TransferLeader", "a"),
    ("Maintenance/SaveSnapshot", "a"),
    ("Maintenance/Diagnose", "a"),
    ("NodeSync/Sync", "w"),
];

async fn connect(address: &str, credentials: &Credentials) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_timeout(Duration::from_secs(5));
    let transport = Transport::tls(tls::client_config(credentials).unwrap());
    transport.connect(endpoint, SERVER_NAME).await.map_err(|error| format!("{error:?}"))
}

/// Calls an RPC; an answer that doesn't come within two seconds is a call that was let in.
async fn call(channel: &Channel, path: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let request = tonic::Request::new(tokio_stream::once(message));
    let path: http::uri::PathAndQuery = path.parse().unwrap();
    let asked = async {
        let mut stream = grpc.streaming(request, path, Raw).await?.into_inner();
        stream.message().await.map(drop)
    };
    tokio::time::timeout(Duration::from_secs(2), asked).await.unwrap_or(Ok(()))
}

async fn issue(admin: &mut AccessClient<Channel>, (name, group): (&str, &str), ttl_seconds: u64) -> Credentials {
    let (key, certificate_request) = tls::certificate_request(&[]).unwrap();
    let groups = if group.is_empty() { Vec::new() } else { vec![group.to_owned()] };
    let request = IssueUserRequest { name: name.into(), groups, certificate_request, ttl_seconds };
    let answer = admin.issue_user(request).await.unwrap().into_inner();
    Credentials { ca: answer.ca, certificate: answer.certificate, key }
}

#[test]
fn every_rpc_is_open_to_whom_it_should_be_and_to_nobody_else() {
    let cluster = Cluster::start_secure(1, &[]);
    let address = cluster.grpc(0);
    cluster.ok(&["create", "namespace", "team"], "");
    for (subject, role, namespace) in [
        ("user:t", "viewer", "team"),
        ("user:v", "viewer", ""),
        ("group:d", "editor", "team"),
        ("user:e", "editor", ""),
        ("user:q", "admin", "team"),
    ] {
        let place = if namespace.is_empty() { Vec::new() } else { vec!["-n", namespace] };
        cluster.ok(&[vec!["auth", "bind", subject, "--role", role], place].concat(), "");
    }
    let joins: JoinToken = token(&cluster, &[]).parse().unwrap();
    let pki = cluster.data_dir(0).join("pki");
    let file = |name: &str| std::fs::read_to_string(pki.join(name)).unwrap();
    let member = Credentials { ca: file("client-ca.pem"), certificate: file("server.pem"), key: file("server.pem") };
    let peer = Credentials { ca: file("client-ca.pem"), certificate: file("peer.pem"), key: file("peer.pem") };
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(cluster.admin.as_ref().unwrap()).unwrap()).unwrap();
    let data = |value: &serde_json::Value| {
        String::from_utf8(data_encoding::BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap()).unwrap()
    };
    let user = &config["users"][0]["user"];
    let root = Credentials {
        ca: file("client-ca.pem"),
        certificate: data(&user["client-certificate-data"]),
        key: data(&user["client-key-data"]),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut admin = AccessClient::new(connect(&address, &root).await.unwrap());
        let expired = issue(&mut admin, ("late", "fairlead:admins"), 1).await;
        let nobody = Credentials { ca: member.ca.clone(), ..Credentials::default() };
        let other = fairlead_proto::enroll::node(&address, &joins, "other").await.unwrap();
        let own = fairlead_proto::enroll::node(&address, &joins, "own").await.unwrap();
        let mut everybody = vec![('n', nobody), ('o', other), ('w', own), ('m', member.clone()), ('a', root)];
        for (letter, group) in [("s", ""), ("t", ""), ("v", ""), ("d", "d"), ("e", ""), ("q", "")] {
            let credentials = issue(&mut admin, (letter, group), 0).await;
            everybody.push((letter.chars().next().unwrap(), credentials));
        }
        let descriptors = FileDescriptorSet::decode(fairlead_proto::DESCRIPTORS).unwrap();
        let mut tried = 0;
        for (letter, credentials) in &everybody {
            let channel = connect(&address, credentials).await.unwrap();
            for file in &descriptors.file {
                for service in &file.service {
                    for method in &service.method {
                        let rpc = format!("{}/{}", service.name(), method.name());
                        let path = format!("/{}.{rpc}", file.package());
                        // Members' own RPCs are not on this port at all.
                        let may = if file.package() == "fairlead.v1" {
                            let listed = ALLOWED.iter().find(|(name, _)| *name == rpc);
                            listed.unwrap_or_else(|| panic!("nobody has said who may call {rpc}")).1.contains(*letter)
                        } else {
                            false
                        };
                        // What an administrator does to everybody else is tried last, by others' refusals.
                        if may && matches!(rpc.as_str(), "Access/RotateAuthority" | "Access/RetireAuthority") {
                            continue;
                        }
                        let answer = call(&channel, &path, sample(&rpc)).await;
                        let refused = answer.as_ref().err().is_some_and(|status| match status.code() {
                            Code::PermissionDenied => true,
                            // A door that is open to everybody, and a wrong key.
                            Code::Unauthenticated => rpc != "Bootstrap/Enroll",
                            _ => false,
                        });
                        assert_eq!(refused, !may, "{letter} {path}: {answer:?}");
                        tried += 1;
                    }
                }
            }
        }
        assert!(tried > 300, "{tried}");
        // Certificates that prove nothing: of another authority, or no longer good. The members' own is another's here.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let foreign = Cluster::start_secure(1, &[]);
        let strange = foreign.data_dir(0).join("pki/server.pem");
        let strange = std::fs::read_to_string(strange).unwrap();
        let strange = Credentials { ca: member.ca.clone(), certificate: strange.clone(), key: strange };
        for (what, credentials) in [("expired", &expired), ("another CA's", &strange), ("peer's", &peer)] {
            let answer = match connect(&address, credentials).await {
                Ok(channel) => {
                    call(&channel, "/fairlead.v1.Bootstrap/Enroll", Vec::new()).await.map_err(|it| format!("{it:?}"))
                }
                Err(error) => Err(error),
            };
            // Nothing of the service answers; whether the alert is heard before the connection's end is chance.
            let why = answer.expect_err(what);
            assert!(!why.contains("token") && (why.contains("alert") || why.contains("closed")), "{what}: {why}");
        }
        // And no certificate of the clients' authority opens the members' port.
        let status = cluster.status();
        let peers = status["members"][0]["peerAddress"].as_str().unwrap().to_owned();
        let client_side = Credentials { ca: file("peer-ca.pem"), ..member };
        let config = Transport::tls(tls::client_config(&client_side).unwrap());
        let endpoint = Endpoint::from_shared(format!("http://{peers}")).unwrap();
        let answer = match config.connect(endpoint, "n1.member.fairlead.internal").await {
            Ok(channel) => call(&channel, "/fairlead.internal.v1.Peer/MemberStatus", Vec::new())
                .await
                .map_err(|it| format!("{it:?}")),
            Err(error) => Err(format!("{error:?}")),
        };
        let refused = |why: &String| why.contains("alert") || why.contains("closed") || why.contains("certificate");
        assert!(answer.as_ref().is_err_and(refused), "{answer:?}");
    });
}
