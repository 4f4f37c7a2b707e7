//! `trace`, `dataplane diff`, `why`, `check` and `events` end to end: real servers, a real agent, a real kernel in a network
//! namespace, real packets. Needs root, nftables, iptables, iproute2 and curl; without them it fails, it never skips.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, free_port, text};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;

fn sh(line: &str) -> Output {
    let mut words = line.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// `fairlead dev` in a namespace of its own.
struct Dev {
    process: Process,
    dir: tempfile::TempDir,
    netns: String,
}

impl Dev {
    fn start(mode: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "a network namespace needs root: sudo make test");
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(FAIRLEAD);
        command.args(["dev", "--mode", mode, "--data-dir"]).arg(dir.path());
        for face in ["grpc", "https", "dns", "metrics"] {
            command.arg(format!("--listen-{face}")).arg(format!("127.0.0.1:{}", free_port()));
        }
        let process = Process::start(&mut command, dir.path().join("log"));
        let printed = eventually("a line to paste", || Some(process.output()).filter(|text| text.contains("curl")));
        let line = printed.lines().find(|line| line.contains("curl")).unwrap();
        let netns = line.split_whitespace().nth(3).unwrap().to_owned();
        Self { process, dir, netns }
    }

    fn fairlead(&self, args: &[&str]) -> Output {
        Command::new(FAIRLEAD).arg("--config").arg(self.dir.path().join("client.yaml")).args(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.fairlead(args);
        assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn trace(&self) -> Value {
        let printed = self.ok(&["trace", "dev", "default/echo:http", "-o", "json"]);
        serde_json::from_str(&printed).unwrap()
    }

    fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        assert!(self.process.wait(Duration::from_secs(20)).expect("it ends").success(), "{}", self.process.output());
    }
}

/// What is said of a packet is what becomes of it; after `harm` each verb shows the break.
fn a_break_shows(mode: &str, harm: &str) -> Dev {
    let dev = Dev::start(mode);
    let inside = |line: &str| sh(&format!("ip netns exec {} {line}", dev.netns));
    let way = dev.trace();
    assert_eq!(
        (way["mode"].as_str(), way["agree"].as_bool(), way["service"].as_str()),
        (Some(mode), Some(true), Some("default/echo"))
    );
    let end = &way["kernel"]["ends"][0];
    assert_eq!((end["verdict"].as_str(), end["share"].as_f64()), (Some("reaches"), Some(1.0)), "{way:#}");
    let pod = dev.ok(&["get", "pod", "echo", "-o", "jsonpath={.status.podIP}"]);
    assert_eq!(end["destination"], format!("{}:8080", pod.trim()), "{way:#}");
    let vip = dev.ok(&["get", "svc", "echo", "-o", "jsonpath={.spec.clusterIP}"]);
    let said = inside(&format!("curl -s --max-time 3 http://{}/", vip.trim()));
    assert!(said.status.success() && !said.stdout.is_empty(), "{}", text(&said.stderr));
    let shown = dev.ok(&["trace", "dev", "default/echo:80"]);
    assert!(shown.contains("From the kernel, which does what revision"), "{shown}");
    assert!(dev.ok(&["dataplane", "diff", "--node", "dev"]).contains("holds what revision"));
    assert!(dev.ok(&["dataplane", "list"]).contains("same"));
    assert!(dev.ok(&["check"]).ends_with("All is well.\n"));
    assert!(dev.ok(&["why", "echo"]).contains("Next: fairlead trace dev default/echo:80/tcp --node dev\n"));

    // An agent repairs this soon: harm is done again until each verb has met it.
    let meets = |what: &str, met: &dyn Fn() -> bool| {
        eventually(what, || {
            assert!(inside(harm).status.success(), "{harm}");
            met().then_some(())
        });
    };
    meets("trace shows the break", &|| {
        let way = dev.trace();
        way["agree"] == false
            && way["intent"]["ends"][0]["verdict"] == "reaches"
            && way["kernel"]["ends"][0]["verdict"] != "reaches"
    });
    meets("diff exits with 1", &|| {
        let output = dev.fairlead(&["dataplane", "diff", "--node", "dev"]);
        output.status.code() == Some(1) && text(&output.stdout).contains("difference") && output.stderr.is_empty()
    });
    meets("list shows both", &|| dev.ok(&["dataplane", "list"]).contains("(differs)"));
    meets("check exits with 1", &|| dev.fairlead(&["check"]).status.code() == Some(1));
    meets("why exits with 1", &|| {
        let output = dev.fairlead(&["why", "echo"]);
        output.status.code() == Some(1) && text(&output.stdout).ends_with("Next: fairlead check\n")
    });
    dev
}

#[test]
fn a_break_of_nftables_shows_and_its_repair_is_an_event() {
    let dev = a_break_shows("nftables", "nft flush map ip fairlead frontends");
    let event = eventually("the event", || {
        let events = dev.ok(&["events", "--for", "node/dev"]);
        events.lines().find(|line| line.contains("DriftRepaired")).map(str::to_owned)
    });
    assert!(event.contains("Node/dev") && event.contains("ip frontends"), "{event}");
    assert!(dev.ok(&["events"]).contains("DriftRepaired"), "as Kubernetes, in the namespace default");
    eventually("it is repaired", || dev.fairlead(&["dataplane", "diff"]).status.success().then_some(()));
    dev.stop();
}

#[test]
fn a_break_of_iptables_shows() {
    a_break_shows("iptables", "iptables -t nat -F KUBE-SERVICES").stop();
}

/// A network namespace, removed when dropped.
struct Namespace(String);

impl Namespace {
    fn make() -> Self {
        let name = format!("fltr{}", std::process::id());
        assert!(sh(&format!("ip netns add {name}")).status.success());
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        sh(&format!("ip netns del {}", self.0));
    }
}

/// Whichever server is asked, whichever holds the node's stream.
#[test]
fn every_server_knows_of_every_node() {
    assert!(nix::unistd::geteuid().is_root(), "a network namespace needs root: sudo make test");
    let cluster = Cluster::start(3);
    let Namespace(netns) = &Namespace::make();
    let state = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let config = fairlead_agent::Config {
        node_name: "node1".into(),
        servers: vec![cluster.grpc(1)],
        mode: fairlead_agent::Mode::Nftables,
        state_dir: state.path().to_owned(),
        node_ip: Some("192.0.2.1".parse().unwrap()),
        netns: Some(format!("/run/netns/{netns}").into()),
        renew_seconds: 1,
        grace_seconds: 5,
        ..fairlead_agent::Config::default()
    };
    let agent = runtime.spawn(fairlead_agent::run(config, cancel.clone()));
    let asked = |index: usize, args: &[&str]| {
        Command::new(FAIRLEAD).args(["--insecure", "--server", &cluster.grpc(index)]).args(args).output().unwrap()
    };
    cluster.ok(&["apply", "-f", "-", "--wait=programmed"], &common::service("web"));
    eventually("the node is there", || {
        asked(0, &["dataplane", "diff", "--node", "node1"]).status.success().then_some(())
    });
    assert!(sh(&format!("ip netns exec {netns} nft flush set ip fairlead cluster-ips")).status.success());
    for index in 0..3 {
        eventually("the event", || text(&asked(index, &["events"]).stdout).contains("DriftRepaired").then_some(()));
        let output = asked(index, &["trace", "192.0.2.9", "default/web:80", "--node", "node1"]);
        assert!(text(&output.stdout).contains("is refused"), "{}{}", text(&output.stdout), text(&output.stderr));
        let unknown = asked(index, &["trace", "192.0.2.9", "default/web:80", "--node", "node7"]);
        assert_eq!(text(&unknown.stderr), "Error from server (NotFound): there is no node \"node7\"\n");
    }
    let why = asked(2, &["why", "web"]);
    assert_eq!(why.status.code(), Some(1));
    assert!(text(&why.stdout).contains("its selector app=web matches none of 0 pods"), "{}", text(&why.stdout));

    cancel.cancel();
    runtime.block_on(agent).unwrap().unwrap();
    let gone = eventually("the stream is gone", || {
        let output = asked(0, &["dataplane", "diff", "--node", "node1"]);
        (!output.status.success()).then(|| text(&output.stderr))
    });
    assert_eq!(
        gone,
        "Error from server (NotFound): node \"node1\" is connected to no server: its agent is down or cut off\n"
    );
    let check = asked(1, &["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(text(&check.stdout).contains("[wrong] its agent is"), "{}", text(&check.stdout));
}
