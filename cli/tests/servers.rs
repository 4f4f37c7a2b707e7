//! The real binary as a cluster: kill -9 of the leader, of everyone; wrong starts and bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, run, service, text};
use std::process::Command;
use std::time::Duration;

#[test]
fn nothing_acknowledged_is_lost_by_killing_the_leader_and_then_everyone() {
    let mut cluster = Cluster::start(3);
    for round in 0..10 {
        cluster.ok(&["apply", "-f", "-"], &service(&format!("before-{round}")));
    }
    let leader = cluster.leader();
    cluster.servers[leader].as_mut().unwrap().kill_9();
    cluster.servers[leader] = None;
    for round in 0..10 {
        cluster.ok(&["apply", "-f", "-"], &service(&format!("without-{round}")));
    }
    for server in cluster.servers.iter_mut().flatten() {
        server.kill_9();
    }
    for index in 0..3 {
        cluster.start_server(index);
    }
    cluster.wait_ready();
    let names = cluster.ok(&["get", "svc", "-o", "name"], "");
    assert_eq!(names.lines().count(), 20, "{names}");
    cluster.ok(&["delete", "svc", "before-0"], "");
    let digests = eventually("three members at one revision with one digest", || {
        let status = cluster.status();
        let members = status["members"].as_array()?.clone();
        let digest = |index: usize| {
            Some((members.get(index)?["revision"].clone(), members.get(index)?["stateDigest"].as_str()?.to_owned()))
        };
        let first = digest(0)?;
        (Some(&first) == digest(1).as_ref() && Some(&first) == digest(2).as_ref() && !first.1.is_empty())
            .then_some(first)
    });
    assert_eq!(digests.1.len(), 64);
}

#[test]
fn a_cluster_without_quorum_says_so_and_comes_back() {
    let mut cluster = Cluster::start(3);
    for index in [1, 2] {
        cluster.servers[index].as_mut().unwrap().kill_9();
    }
    let refused = cluster.run(&["--request-timeout", "4s", "apply", "-f", "-"], &service("lonely"));
    assert!(!refused.status.success());
    assert!(!text(&refused.stderr).is_empty());
    for index in [1, 2] {
        cluster.start_server(index);
    }
    eventually("writes again", || cluster.run(&["apply", "-f", "-"], &service("again")).status.success().then_some(()));
}

#[test]
fn wrong_starts_say_what_to_do() {
    let mut cluster = Cluster::start(1);
    let second = run(&mut cluster.server_command(0), "");
    assert!(!second.status.success());
    assert!(text(&second.stderr).contains("can't listen"), "{}", text(&second.stderr));
    cluster.servers[0].as_mut().unwrap().kill_9();
    let data = cluster.data_dir(0);
    let mut other = Command::new(common::FAIRLEAD);
    other.args(["--insecure", "server", "--name", "n1", "--data-dir"]).arg(&data);
    other.args(["--initial-cluster", "n1=127.0.0.1:41,n9=127.0.0.1:42"]);
    for face in ["grpc", "peer", "https", "dns", "metrics"] {
        other.arg(format!("--listen-{face}")).arg(format!("127.0.0.1:{}", common::free_port()));
    }
    let wrong = run(&mut other, "");
    assert!(!wrong.status.success());
    assert!(text(&wrong.stderr).contains("cluster"), "{}", text(&wrong.stderr));
    let missing =
        run(Command::new(common::FAIRLEAD).args(["--insecure", "--config", "/nonexistent.toml", "server"]), "");
    assert!(text(&missing.stderr).contains("/nonexistent.toml"), "{}", text(&missing.stderr));
}

#[test]
fn bad_input_gets_one_clear_error_and_changes_nothing() {
    let cluster = Cluster::start(1);
    let before = cluster.status()["revision"].clone();
    let long = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: big\n  annotations:\n    a: {}\nspec:\n  ports:\n  - port: 80\n",
        "x".repeat(300_000)
    );
    let cases: &[(&str, &str)] = &[
        ("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {portz: []}\n", "unknown field \"spec.portz\""),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {}\n", "spec.ports: Required value"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: Web_1}\nspec: {ports: [{port: 80}]}\n",
            "metadata.name: Invalid value",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 0}]}\n",
            "must be between 1 and 65535",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: nowhere}\nspec: {ports: [{port: 80}]}\n",
            "namespaces \"nowhere\" not found",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 192.168.1.1, ports: [{port: 80}]}\n",
            "not in the valid range",
        ),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n", "Deployment"),
        ("not: [closed\n", "line"),
        (&long, "annotations"),
    ];
    for (manifest, says) in cases {
        let output = cluster.run(&["apply", "-f", "-"], manifest);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{manifest:.80}: {stderr}");
        assert!(stderr.contains(says), "{manifest:.80}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    let after = cluster.status()["revision"].clone();
    assert_eq!(before, after);
    let missing = cluster.run(&["get", "svc", "none"], "");
    assert_eq!(text(&missing.stderr).trim(), "Error from server (NotFound): services \"none\" not found");
}

#[test]
fn an_objects_past_is_shown_compared_and_brought_back() {
    let cluster = Cluster::start(3);
    let field = |path: &str| cluster.ok(&["get", "svc", "web", "-o", &format!("jsonpath={{{path}}}")], "");
    cluster.ok(&["apply", "-f", "-"], &service("web"));
    let (first, address) = (field(".metadata.resourceVersion"), field(".spec.clusterIP"));
    cluster.ok(&["label", "svc", "web", "tier=front"], "");
    let second = field(".metadata.resourceVersion");
    let was = |revision: &str| cluster.ok(&["get", "svc/web", "--revision", revision, "-o", "name"], "");
    assert_eq!((was(&first), was(&second)), ("service/web\n".to_owned(), "service/web\n".to_owned()));
    let label = ["get", "svc", "web", "--revision", &first, "-o", "jsonpath={.metadata.labels.tier}"];
    assert_eq!(cluster.ok(&label, ""), "");
    let difference = run(cluster.cli().args(["diff", "svc/web", "--revision", &format!("{first}..{second}")]), "");
    assert_eq!(text(&difference.stdout), "metadata.labels.tier: none → \"front\"\n");
    assert_eq!(difference.status.code(), Some(1));
    assert_eq!(cluster.ok(&["diff", "svc", "web", "--revision", &second], ""), "", "nothing since");
    cluster.ok(&["delete", "svc", "web"], "");
    cluster.ok(&["rollback", "svc", "web", "--to-revision", &second, "--dry-run=server"], "");
    assert!(!cluster.run(&["get", "svc", "web"], "").status.success(), "a dry run keeps nothing");
    let said = cluster.ok(&["rollback", "svc", "web", "--to-revision", &second], "");
    assert_eq!(said, format!("service/web rolled back to revision {second}\n"));
    assert_eq!((field(".spec.clusterIP"), field(".metadata.labels.tier")), (address.clone(), "front".to_owned()));
    cluster.ok(&["rollback", "svc/web", "--to-revision", &first], "");
    assert_eq!((field(".spec.clusterIP"), field(".metadata.labels.tier")), (address, String::new()));

    let history = cluster.ok(&["history", "svc", "web", "--no-headers"], "");
    let lines: Vec<String> =
        history.lines().map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")).collect();
    let (on, off) = ("metadata.labels.tier: none → \"front\"", "metadata.labels.tier: \"front\" → none");
    assert_eq!(lines, ["created", on, "deleted", "created", off], "{history}");
    assert_eq!(cluster.ok(&["history", "svc/web", "--limit", "1", "--no-headers"], "").lines().count(), 1);
    for (args, says) in [
        (&["history", "svc", "nope"] as &[&str], "\"nope\" not found"),
        (&["history", "svc"], "exactly one object is needed"),
        (&["get", "svc", "--revision", "3"], "--revision needs objects by name"),
        (&["get", "endpointslice", "web", "--revision", "3"], "endpointslices are rendered"),
        (&["rollback", "svc", "web", "--to-revision", "99999999"], "Too large resource version"),
        (&["diff", "svc", "web", "--revision", "x"], "no range of revisions"),
        (&["rollback", "svc", "web", "--to-revision", "1"], "not found"),
    ] {
        let refused = cluster.run(args, "");
        assert!(
            !refused.status.success() && text(&refused.stderr).contains(says),
            "{args:?}: {}",
            text(&refused.stderr)
        );
    }
}

#[test]
fn an_address_is_taken_once_and_freed_at_once() {
    let cluster = Cluster::start(1);
    let with = |name: &str| service(name).replace("spec:\n", "spec:\n  clusterIP: 10.96.7.7\n");
    cluster.ok(&["apply", "-f", "-"], &with("first"));
    let taken = cluster.run(&["apply", "-f", "-"], &with("second"));
    assert!(text(&taken.stderr).contains("provided IP is already allocated"), "{}", text(&taken.stderr));
    cluster.ok(&["delete", "svc", "first"], "");
    cluster.ok(&["apply", "-f", "-"], &with("second"));
    assert_eq!(cluster.ok(&["get", "svc", "second", "-o", "jsonpath={.spec.clusterIP}"], "").trim(), "10.96.7.7");
}

#[test]
fn dev_is_ready_and_its_client_configuration_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(common::FAIRLEAD);
    // The peer face takes the port after gRPC's.
    command.args(["dev", "--mode", "dry-run", "--data-dir"]).arg(dir.path());
    for face in ["grpc", "https", "dns", "metrics"] {
        command.arg(format!("--listen-{face}")).arg(format!("127.0.0.1:{}", common::free_port()));
    }
    let process = Process::start(&mut command, dir.path().join("log"));
    eventually("a line that starts with ready", || {
        process.output().lines().any(|line| line.starts_with("ready")).then_some(())
    });
    let config = dir.path().join("client.yaml");
    let fairlead = |args: &[&str]| run(Command::new(common::FAIRLEAD).arg("--config").arg(&config).args(args), "");
    let services = fairlead(&["get", "svc", "-o", "name"]);
    assert!(text(&services.stdout).contains("service/echo"), "{}{}", text(&services.stdout), text(&services.stderr));
    let rules = fairlead(&["dataplane", "list", "-o", "rules"]);
    assert!(text(&rules.stdout).contains("KUBE-SVC-"), "{}{}", text(&rules.stdout), text(&rules.stderr));
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let mut process = process;
    assert!(process.wait(Duration::from_secs(10)).is_some_and(|status| status.success()), "{}", process.output());
}

#[test]
fn systemd_hears_when_it_is_ready_that_it_is_well_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut cluster = Cluster::prepare(2);
    let mut command = cluster.server_command(0);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let mut server = common::Process::start(&mut command, dir.path().join("log"));
    // It has founded nothing yet: the other founder isn't there. A unit must not wait for that.
    assert_eq!(heard(), "READY=1");
    assert_eq!((heard(), heard()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
    cluster.start_server(1);
    eventually("the cluster", || cluster.run(&["get", "namespace", "default"], "").status.success().then_some(()));
    assert_eq!(heard(), "WATCHDOG=1");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("STOPPING", || (heard() == "STOPPING=1").then_some(()));
    assert!(server.wait(Duration::from_secs(30)).unwrap().success());
}

#[test]
fn a_leader_that_slept_through_an_election_answers_nothing_old() {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    let cluster = Cluster::start(3);
    cluster.ok(&["apply", "-f", "-"], &service("web"));
    for round in 0..3 {
        let old = cluster.leader();
        cluster.servers[old].as_ref().unwrap().signal(SIGSTOP);
        let others: Vec<String> = (0..3).filter(|index| *index != old).map(|index| cluster.grpc(index)).collect();
        // The first write after the election, and a read right behind it, by the others.
        let value = format!("round-{round}");
        let ask = |servers: &str, args: &[&str]| {
            let mut command = Command::new(FAIRLEAD);
            run(command.args(["--insecure", "--server", servers, "--request-timeout", "20s"]).args(args), "")
        };
        let written = ask(&others.join(","), &["annotate", "--overwrite", "service", "web", &format!("x={value}")]);
        assert!(written.status.success(), "{}", text(&written.stderr));
        let path = "jsonpath={.metadata.annotations.x}";
        assert_eq!(text(&ask(&others.join(","), &["get", "service", "web", "-o", path]).stdout), value);
        // It wakes up believing that it leads: it must not answer with what it has.
        cluster.servers[old].as_ref().unwrap().signal(SIGCONT);
        let read = ask(&cluster.grpc(old), &["get", "service", "web", "-o", path]);
        assert!(read.status.success(), "{}", text(&read.stderr));
        assert_eq!(text(&read.stdout), value, "round {round}");
    }
}
