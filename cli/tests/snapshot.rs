//! Backups from outside: saved while others write, checked, and made a new cluster of that nobody sees go back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, run, service, text};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn agent(cluster: &Cluster, dir: &std::path::Path, token: Option<&str>) -> Process {
    let all: Vec<_> = (0..3).map(|index| cluster.grpc(index)).collect();
    let mut command = Command::new(FAIRLEAD);
    command.args(["--server", &all.join(","), "agent", "--mode", "dry-run", "--node-ip", "127.0.0.1"]);
    command.args(["--node-name", "a1", "--renew-seconds", "1", "--grace-seconds", "4", "--state-dir"]).arg(dir);
    if let Some(token) = token {
        command.env("FAIRLEAD_TOKEN", token);
    }
    Process::start(&mut command, cluster.dir.path().join("a1.log"))
}

fn acknowledged(cluster: &Cluster) -> Option<u64> {
    let status = cluster.status();
    let node = status["nodes"].as_array()?.iter().find(|node| node["name"] == "a1" && node["live"] == true)?.clone();
    node["acknowledged"].as_u64()
}

#[test]
fn a_backup_becomes_a_new_cluster_that_goes_on_from_it() {
    let mut old = Cluster::start_secure(3, &[]);
    let state = old.dir.path().join("a1");
    let token = old.ok(&["token", "create"], "");
    let mut node = agent(&old, &state, Some(token.trim()));
    for name in ["one", "two", "three"] {
        old.ok(&["apply", "-f", "-"], &service(name));
    }
    eventually("the node", || acknowledged(&old));
    // Saved while others write.
    let file = old.dir.path().join("backup");
    let path = file.to_str().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return round;
                }
                old.ok(&["annotate", "svc", "one", "--overwrite", &format!("round={round}")], "");
            }
            0
        });
        let saved = old.ok(&["snapshot", "save", path], "");
        assert!(saved.contains("3 services"), "{saved}");
        stop.store(true, Ordering::Relaxed);
        assert!(writing.join().unwrap() > 0);
    });
    let twice = old.run(&["snapshot", "save", path], "");
    assert!(said(&twice).contains("is there already"), "{}", said(&twice));
    let contents: serde_json::Value =
        serde_json::from_str(&old.ok(&["snapshot", "status", path, "-o", "json"], "")).unwrap();
    let saved_at = contents["revision"].as_u64().unwrap();
    assert_eq!(contents["objects"]["services"], 3);
    old.ok(&["apply", "-f", "-"], &service("later"));
    let seen = old.status()["revision"].as_u64().unwrap();
    assert!(saved_at > 0 && saved_at < seen);
    let ip = old.ok(&["get", "svc", "two", "-o", "jsonpath={.spec.clusterIP}"], "");
    // A damaged one is refused, and nothing is made of it.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let harmed = old.dir.path().join("harmed");
    std::fs::write(&harmed, &bytes).unwrap();
    let refused = old.run(&["snapshot", "status", harmed.to_str().unwrap()], "");
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    // All servers are lost.
    node.kill_9();
    for server in old.servers.iter_mut().flatten() {
        server.kill_9();
    }
    let mut new = Cluster::prepare(3);
    new.admin = Some(new.data_dir(0).join("admin.yaml"));
    for index in 0..2 {
        let (dir, name) = (new.data_dir(index), format!("n{}", index + 1));
        let mut command = Command::new(FAIRLEAD);
        command.args([
            "snapshot",
            "restore",
            path,
            "--name",
            &name,
            "--initial-cluster",
            &new.founders(),
            "--data-dir",
        ]);
        let restored = run(command.arg(&dir), "");
        assert!(restored.status.success(), "{}", said(&restored));
        let again = run(&mut command, "");
        assert!(said(&again).contains("not empty"), "{}", said(&again));
    }
    // The third founder was forgotten: it has the authorities and the list, and still is no member of this cluster.
    let ca = new.data_dir(2).join("pki/ca");
    std::fs::create_dir_all(&ca).unwrap();
    for file in ["client.pem", "peer.pem"] {
        std::fs::copy(old.dir.path().join("made/ca").join(file), ca.join(file)).unwrap();
    }
    for index in 0..3 {
        new.start_server(index);
    }
    eventually("the restored cluster", || {
        new.admin.as_ref()?.exists().then_some(())?;
        new.run(&["get", "svc", "one"], "").status.success().then_some(())
    });
    assert!(!new.run(&["get", "svc", "later"], "").status.success());
    assert_eq!(new.ok(&["get", "svc", "two", "-o", "jsonpath={.spec.clusterIP}"], ""), ip);
    let now = new.status()["revision"].as_u64().unwrap();
    assert!(now >= saved_at + 1_000_000_000, "{now}");
    let stranger = std::fs::read_to_string(new.dir.path().join("n3.log")).unwrap();
    assert!(!stranger.contains("server is up"), "{stranger}");
    new.servers[2].as_mut().unwrap().kill_9();
    std::fs::remove_dir_all(new.data_dir(2)).unwrap();
    let mut command = Command::new(FAIRLEAD);
    command.args(["snapshot", "restore", path, "--name", "n3", "--initial-cluster", &new.founders(), "--data-dir"]);
    assert!(run(command.arg(new.data_dir(2)), "").status.success());
    new.start_server(2);
    eventually("all three", || {
        let status = new.status();
        let all = status["members"].as_array()?;
        (all.len() == 3 && all.iter().all(|member| member["error"] == "")).then_some(())
    });
    // Whoever saw the old cluster's later revisions starts anew, and a node with its old view and certificate goes on.
    let watch = new.run(&["get", "svc", "-w", "--request-timeout", "5s", "-o", "name"], "");
    assert!(text(&watch.stdout).contains("service/one"), "{}", said(&watch));
    let _node = agent(&new, &state, None);
    eventually("the node is served again", || acknowledged(&new).filter(|revision| *revision >= now));
    new.ok(&["apply", "-f", "-"], &service("after"));
    let taken = new.ok(&["get", "svc", "after", "-o", "jsonpath={.spec.clusterIP}"], "");
    assert_ne!(taken, ip);
}
