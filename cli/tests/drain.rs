//! Draining under load: three real servers, a real agent with nftables in a network namespace, pods that really stop, and
//! clients that count every failed request. Needs root and Debian's nftables and iproute2; without them it fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;
#[path = "../../agent/tests/common/net.rs"]
#[allow(dead_code, reason = "this test uses a part")]
mod net;

use common::{Cluster, eventually, text};
use fairlead_agent::{Config, Mode};
use net::{Net, PATIENCE, sh};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Requests a second that the clients aim at, all together.
const RATE: u64 = 2_000;
const CLIENTS: u64 = 16;
const WEB: &str = "10.96.0.10:80";
const ECHO: &str = "10.96.0.10:81";

/// A process in a pod: answers each connection to port 80 with its name, and gives back what it gets at port 81.
struct App {
    name: String,
    /// Ends it.
    end: Option<Box<dyn FnOnce()>>,
}

impl App {
    fn start(net: &Net, (name, namespace, ip): (&str, &str, &str)) -> Self {
        sh(&format!("ip -n {} addr add {ip}/24 dev eth0", net.name(namespace)));
        let (web, echo) = net.inside(namespace, || {
            let listen = |port| TcpListener::bind((ip, port)).unwrap();
            (listen(80), listen(81))
        });
        std::thread::spawn(move || {
            for stream in echo.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        let (stop, address, path) = (Arc::new(AtomicBool::new(false)), web.local_addr().unwrap(), net.path(namespace));
        let (told, answer) = (stop.clone(), name.to_owned());
        let serving = std::thread::spawn(move || serve(&web, &answer, &told));
        let end = move || {
            stop.store(true, Ordering::Relaxed);
            // Wakes it.
            let knock = || drop(TcpStream::connect(address));
            fairlead_agent::kernel::linux::in_namespace(Some(&path), knock).unwrap();
            serving.join().unwrap();
        };
        Self { name: name.to_owned(), end: Some(Box::new(end)) }
    }

    /// Ends as a process does that was told to: what it has accepted it answers, and nothing listens any more.
    fn end(mut self) {
        self.end.take().unwrap()();
    }
}

fn serve(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.write_all(name.as_bytes());
        // What waits already is answered too.
        listener.set_nonblocking(stop.load(Ordering::Relaxed)).unwrap();
    }
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    /// Answers that needed a second SYN.
    slow: AtomicU64,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

fn load(net: &Net, seen: &Arc<Seen>) -> Vec<JoinHandle<()>> {
    let every = Duration::from_micros(1_000_000 * CLIENTS / RATE);
    let client = |_| {
        let (seen, path) = (seen.clone(), net.path("out"));
        std::thread::spawn(move || {
            let ask = || {
                let mut next = Instant::now();
                while !seen.stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match request() {
                        Ok(name) if name.starts_with("web-") => {
                            seen.answered.fetch_add(1, Ordering::Relaxed);
                        }
                        other => seen.failed.lock().unwrap().push(format!("{other:?} after {:?}", begun.elapsed())),
                    }
                    seen.slow.fetch_add(u64::from(begun.elapsed() > Duration::from_millis(900)), Ordering::Relaxed);
                    next = (next + every).max(Instant::now() - every * 10);
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            };
            fairlead_agent::kernel::linux::in_namespace(Some(&path), ask).unwrap();
        })
    };
    (0..CLIENTS).map(client).collect()
}

fn request() -> std::io::Result<String> {
    // Of thousands of short connections one may meet a TIME_WAIT and need a second SYN, with or without rules.
    let mut stream = TcpStream::connect_timeout(&WEB.parse::<SocketAddr>().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"there?")?;
    stream.read_exact(&mut [0; 6])
}

fn connect(net: &Net) -> TcpStream {
    let mut stream = net.inside("out", || TcpStream::connect_timeout(&ECHO.parse().unwrap(), PATIENCE).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    echo(&mut stream).unwrap();
    stream
}

fn agent(cluster: &Cluster, (node, mode): (&str, Mode), net: &Net) -> Agent {
    let config = Config {
        node_name: node.into(),
        servers: (0..3).map(|index| cluster.grpc(index)).collect(),
        mode,
        state_dir: cluster.dir.path().join(node),
        node_ip: Some("192.0.2.1".parse().unwrap()),
        cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
        netns: Some(net.path("node")),
        renew_seconds: 1,
        grace_seconds: 4,
        ..Config::default()
    };
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(fairlead_agent::run(config, stop)).unwrap();
    });
    Agent { cancel, thread: Some(thread) }
}

struct Agent {
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn service() -> &'static str {
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.10\n  selector: {app: web}\n  ports:\n  - {name: web, port: 80}\n  - {name: echo, port: 81}\n"
}

fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: web}}\nspec:\n  nodeName: {node}\n  containers:\n  - name: web\n    image: web\n    readinessProbe:\n      tcpSocket: {{port: 80}}\n      periodSeconds: 1\nstatus: {{podIP: {ip}}}\n"
    )
}

/// Starts a pod and waits until it is an endpoint.
fn run_pod(cluster: &Cluster, net: &Net, number: u8) -> App {
    let (name, namespace) = (format!("web-{number}"), if number % 2 == 1 { "pod1" } else { "pod2" });
    let ip = format!("10.244.{}.{}", if number % 2 == 1 { 1 } else { 2 }, 10 + number);
    let app = App::start(net, (&name, namespace, &ip));
    cluster.ok(&["apply", "-f", "-"], &pod(&name, "node1", &ip));
    cluster.ok(&["wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=20s"], "");
    app
}

fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_rolling_replacement_under_load_fails_no_request() {
    const PODS: u8 = 4;
    let net = Net::build("z");
    // So that ports come round again late.
    sh(&format!("ip netns exec {} sysctl -qw net.ipv4.ip_local_port_range=10000\t65000", net.name("out")));
    let cluster = Cluster::start(3);
    let _agent = agent(&cluster, ("node1", Mode::Nftables), &net);
    eventually("the node", || cluster.run(&["get", "node", "node1"], "").status.success().then_some(()));
    cluster.ok(&["apply", "-f", "-"], service());
    let mut old: Vec<App> = (1..=PODS).map(|number| run_pod(&cluster, &net, number)).collect();
    cluster.ok(&["wait", "svc/web", "--for=programmed"], "");
    let mut long: Vec<TcpStream> = (0..8).map(|_| connect(&net)).collect();

    let seen: Arc<Seen> = Arc::default();
    let clients = load(&net, &seen);
    let begun = Instant::now();
    // Every pod is replaced three times over, and on a fast machine more often: until 5,000 requests have met it.
    let mut number = PODS;
    while number < 4 * PODS || seen.answered.load(Ordering::Relaxed) < 5_000 {
        number += 1;
        let app = run_pod(&cluster, &net, number);
        cluster.ok(&["wait", "svc/web", "--for=programmed"], "");
        old.push(app);
        let gone = old.remove(0);
        let drained = cluster.ok(&["drain", "pod", &gone.name, "--grace", "60s"], "");
        assert!(drained.contains("no node sends new connections there"), "{drained}");
        // It stops the moment that the drain returns: no sleep in between.
        gone.end();
    }
    let lasted = begun.elapsed();
    seen.stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (answered, slow) = (seen.answered.load(Ordering::Relaxed), seen.slow.load(Ordering::Relaxed));
    let failed = seen.failed.lock().unwrap();
    let rate = answered as f64 / lasted.as_secs_f64();
    eprintln!("{answered} requests in {lasted:.1?} ({rate:.0}/s), {slow} with a second SYN, {} failed", failed.len());
    assert!(failed.is_empty(), "{} of {answered}: {:?}", failed.len(), &failed[..failed.len().min(5)]);
    assert!(answered >= 5_000, "{answered}");
    for (index, stream) in long.iter_mut().enumerate() {
        echo(stream).unwrap_or_else(|error| panic!("long-lived connection {index}: {error}"));
    }

    // The deadline: what was open to a pod ends with it, and the client is told.
    let mut last = connect(&net);
    let begun = Instant::now();
    for app in &old {
        // The last one has nobody to take over: that is no success.
        let output = cluster.run(&["drain", &format!("pod/{}", app.name), "--grace", "3s"], "");
        let alone = app.name == old[old.len() - 1].name;
        assert_eq!(output.status.success(), !alone, "{}", said(&output));
        assert!(!alone || said(&output).contains("default/web has no other ready endpoint"), "{}", said(&output));
    }
    let ended = loop {
        if let Err(error) = echo(&mut last) {
            break error.kind();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the connection outlives its pod's grace");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended, ErrorKind::ConnectionReset);
    assert!(begun.elapsed() > Duration::from_secs(2), "before its grace was over: {:?}", begun.elapsed());
}

#[test]
fn a_node_is_drained_and_put_back_and_a_silent_one_is_no_success() {
    let net = Net::build("y");
    let cluster = Cluster::start(3);
    let _agent = agent(&cluster, ("node1", Mode::Nftables), &net);
    let other = agent(&cluster, ("node2", Mode::DryRun), &net);
    for node in ["node1", "node2"] {
        eventually(node, || cluster.run(&["get", "node", node], "").status.success().then_some(()));
    }
    cluster.ok(&["apply", "-f", "-"], service());
    let _apps = [1, 2].map(|number| run_pod(&cluster, &net, number));
    let ready = || {
        let template = "jsonpath={range .subsets[*].addresses[*]}{.ip} {end}";
        cluster.ok(&["get", "endpoints", "web", "-o", template], "").trim().to_owned()
    };
    assert_eq!(ready(), "10.244.1.11 10.244.2.12");
    let drained = cluster.run(&["drain", "node", "node1", "--grace", "60s"], "");
    let text = said(&drained);
    // All pods are on that node, so it can't be said that nobody sends there.
    assert_eq!(drained.status.code(), Some(1), "{text}");
    assert!(text.contains("node/node1 draining") && text.contains("pod/web-1 terminating"), "{text}");
    assert!(text.contains("no other ready endpoint") && text.contains("pod web-1, pod web-2"), "{text}");
    assert_eq!(ready(), "");
    let nodes = cluster.ok(&["get", "nodes"], "");
    assert!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
    // One that comes while the node is drained is none either, until it is put back.
    let _third = App::start(&net, ("web-3", "pod1", "10.244.1.13"));
    cluster.ok(&["apply", "-f", "-"], &pod("web-3", "node1", "10.244.1.13"));
    cluster.ok(&["wait", "pod/web-3", "--for=condition=Ready", "--timeout=20s"], "");
    assert_eq!(ready(), "");
    cluster.ok(&["drain", "node", "node1", "--undo"], "");
    assert_eq!(ready(), "10.244.1.13");

    // A node that fell silent may still run with old rules.
    let _fourth = run_pod(&cluster, &net, 4);
    drop(other);
    let live = |name: &str| {
        let status = cluster.status();
        let nodes = status["nodes"].as_array().unwrap().clone();
        nodes.iter().any(|node| node["name"] == name && node["live"] == true)
    };
    eventually("node2 is silent", || (!live("node2")).then_some(()));
    let drained = cluster.run(&["drain", "pod", "web-3", "--grace", "60s"], "");
    let text = said(&drained);
    assert_eq!(drained.status.code(), Some(1), "{text}");
    assert!(text.contains("node2") && text.contains("may still run with the rules of revision"), "{text}");
    assert!(!text.contains("drained: "), "{text}");
    cluster.ok(&["delete", "node", "node2"], "");
    let drained = cluster.ok(&["drain", "pod", "web-3", "--grace", "60s"], "");
    assert!(drained.contains("drained: "), "{drained}");
    for (arguments, says) in [
        (["drain", "svc", "web"], "services can't be drained"),
        (["drain", "pod", "none"], "pods \"none\" not found"),
        (["drain", "node", "none"], "nodes \"none\" not found"),
    ] {
        let output = cluster.run(&arguments, "");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(says), "{}", said(&output));
    }
}
