//! Members come, vote, lead and leave, as real processes with TLS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, free_port, run, service, text};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// A server beside a cluster.
struct Newcomer {
    name: String,
    dir: PathBuf,
    grpc: u16,
    command: Command,
}

fn newcomer(cluster: &Cluster, through: usize, (name, dir): (&str, &str)) -> Newcomer {
    let dir = cluster.dir.path().join(dir);
    let (grpc, peer) = (free_port(), free_port());
    let mut command = Command::new(FAIRLEAD);
    command.args(["server", "--name", name, "--join", &cluster.grpc(through)]).arg("--data-dir").arg(&dir);
    for (face, port) in
        [("grpc", grpc), ("peer", peer), ("https", free_port()), ("dns", free_port()), ("metrics", free_port())]
    {
        command.arg(format!("--listen-{face}")).arg(format!("127.0.0.1:{port}"));
    }
    Newcomer { name: name.into(), dir, grpc, command }
}

impl Newcomer {
    fn start(&mut self) -> Process {
        std::fs::create_dir_all(&self.dir).unwrap();
        Process::start(&mut self.command, self.dir.join("../").join(format!("{}.log", self.name)))
    }
}

fn token(cluster: &Cluster) -> String {
    cluster.ok(&["token", "create", "--role", "server", "--single-use"], "").trim().to_owned()
}

fn role(cluster: &Cluster, name: &str) -> Option<String> {
    let list = cluster.ok(&["member", "list"], "");
    let line = list.lines().find(|line| line.starts_with(&format!("{name} ")))?.to_owned();
    Some(line.split_whitespace().nth(2)?.to_owned())
}

fn at(cluster: &Cluster, port: u16, args: &[&str]) -> Output {
    let mut command = Command::new(FAIRLEAD);
    command.arg("--config").arg(cluster.admin.as_ref().unwrap()).args(["--server", &format!("127.0.0.1:{port}")]);
    run(command.args(args), "")
}

#[test]
fn a_server_joins_reads_votes_and_leaves_for_good() {
    let mut cluster = Cluster::start_secure(3, &[]);
    cluster.ok(&["apply", "-f", "-"], &service("before"));
    let how = cluster.ok(&["member", "add", "n4"], "");
    assert!(how.contains("--name n4 --join 127.0.0.1:"), "{how}");
    let mut n4 = newcomer(&cluster, 1, ("n4", "n4"));
    n4.command.env("FAIRLEAD_TOKEN", token(&cluster));
    let mut process = n4.start();
    eventually("a learner", || (role(&cluster, "n4")? == "learner").then_some(()));
    // A learner serves what every server serves, and passes writes on.
    eventually("a read there", || at(&cluster, n4.grpc, &["get", "svc", "before"]).status.success().then_some(()));
    let written = at(&cluster, n4.grpc, &["create", "namespace", "there"]);
    assert!(written.status.success(), "{}", said(&written));
    eventually("it votes", || cluster.run(&["member", "promote", "n4"], "").status.success().then_some(()));
    assert_eq!(role(&cluster, "n4").unwrap(), "voter");
    let again = cluster.run(&["member", "promote", "n4"], "");
    assert!(said(&again).contains("votes already"), "{}", said(&again));
    // It comes back by itself, without flags of joining.
    process.kill_9();
    let mut process = n4.start();
    eventually("it is back", || at(&cluster, n4.grpc, &["get", "svc", "before"]).status.success().then_some(()));
    // It leads when asked to, and two of the founders may die.
    cluster.ok(&["operator", "transfer-leader", "n4"], "");
    eventually("it leads", || (role(&cluster, "n4")? == "leader").then_some(()));
    cluster.ok(&["apply", "-f", "-"], &service("under-n4"));
    // A learner whose log begins before its leader was a member gets it all the same.
    let mut n5 = newcomer(&cluster, 1, ("n5", "n5"));
    n5.command.env("FAIRLEAD_TOKEN", token(&cluster));
    let mut second = n5.start();
    eventually("a read at n5", || at(&cluster, n5.grpc, &["get", "svc", "under-n4"]).status.success().then_some(()));
    cluster.ok(&["member", "remove", "n5"], "");
    second.kill_9();
    // Another server that says it is n4 is refused, with or without a token.
    let mut thief = newcomer(&cluster, 1, ("n4", "thief"));
    thief.command.env("FAIRLEAD_TOKEN", token(&cluster));
    let refused = run(&mut thief.command, "");
    assert!(said(&refused).contains("a member is called \"n4\" already"), "{}", said(&refused));
    // The leader hands over before it is removed; it hears of it, says so and stops, and can't come back.
    let removed = cluster.ok(&["member", "remove", "n4"], "");
    assert!(removed.contains("n4 is no member any more"), "{removed}");
    let ended = process.wait(Duration::from_secs(30)).expect("it stops by itself");
    assert!(!ended.success() && process.output().contains("was removed from the cluster"), "{}", process.output());
    let mut back = n4.start();
    let ended = back.wait(Duration::from_secs(60)).expect("it stops again");
    assert!(!ended.success() && back.output().contains("was removed from the cluster"), "{}", back.output());
    assert_eq!(role(&cluster, "n4"), None);
    // The name may be another's, with another id; its disk gone, it is not let in as itself.
    let mut next = newcomer(&cluster, 1, ("n4", "n4-new"));
    next.command.env("FAIRLEAD_TOKEN", token(&cluster));
    let mut process = next.start();
    eventually("another n4", || (role(&cluster, "n4")? == "learner").then_some(()));
    // One that never ran has lost nothing, and may start.
    eventually("it runs", || at(&cluster, next.grpc, &["get", "svc", "before"]).status.success().then_some(()));
    process.kill_9();
    std::fs::remove_dir_all(next.dir.join("db")).unwrap();
    // However often it is started.
    for _ in 0..2 {
        let refused = run(&mut next.command, "");
        assert!(said(&refused).contains("is gone: remove it"), "{}", said(&refused));
    }
    std::fs::remove_file(next.dir.join("joined.json")).unwrap();
    let refused = run(&mut next.command, "");
    assert!(said(&refused).contains("this is not its data"), "{}", said(&refused));
    // A quorum is not given away.
    let follower = (0..3).find(|index| *index != cluster.leader()).unwrap();
    cluster.servers[follower].as_mut().unwrap().kill_9();
    let leader = cluster.leader();
    let other = (0..3).find(|index| *index != leader && *index != follower).unwrap();
    let name = format!("n{}", other + 1);
    // At once, also before its silence is noticed: a change that has begun can't be taken back.
    let refused = cluster.run(&["member", "remove", &name], "");
    assert!(said(&refused).contains("would have no quorum"), "{}", said(&refused));
    let nobody = cluster.run(&["member", "remove", "n9"], "");
    assert!(said(&nobody).contains("no member called \"n9\""), "{}", said(&nobody));
    cluster.ok(&["apply", "-f", "-"], &service("after"));
}

#[test]
fn a_drained_member_does_not_lead_until_it_is_put_back_also_after_its_restart() {
    let mut cluster = Cluster::start_secure(3, &[]);
    let leader = cluster.leader();
    let name = format!("n{}", leader + 1);
    eventually("all members are known to run the newest rules", || {
        (cluster.status()["machineVersion"] == fairlead_server::machine::MACHINE_VERSION).then_some(())
    });
    let said = cluster.ok(&["member", "drain", &name], "");
    assert!(said.contains("does not lead, until --undo") && !said.contains("restart"), "{said}");
    let next = cluster.leader();
    assert_ne!(next, leader);
    let refused = cluster.run(&["operator", "transfer-leader", &name], "");
    assert!(self::said(&refused).contains("was told not to lead"), "{}", self::said(&refused));
    assert_ne!(cluster.leader(), leader);
    assert!(cluster.ok(&["member", "list"], "").contains("drained"));
    // Its restart changes nothing, nor does a time without a leader.
    cluster.servers[leader].as_mut().unwrap().kill_9();
    cluster.start_server(leader);
    eventually("it is back", || {
        let status = cluster.status();
        let back = |member: &serde_json::Value| member["name"] == *name && member["error"] == "";
        status["members"].as_array()?.iter().any(back).then_some(())
    });
    cluster.servers[next].as_mut().unwrap().kill_9();
    let third = 3 - leader - next;
    eventually("the third one leads", || (cluster.leader() == third).then_some(()));
    cluster.start_server(next);
    assert!(cluster.ok(&["member", "list"], "").contains("drained"));
    cluster.ok(&["member", "drain", &name, "--undo"], "");
    cluster.ok(&["operator", "transfer-leader", &name], "");
    eventually("it leads again", || (cluster.leader() == leader).then_some(()));
}

#[test]
fn the_last_survivor_is_made_a_cluster_and_the_lost_ones_stay_out() {
    let mut cluster = Cluster::start_secure(3, &[]);
    cluster.ok(&["apply", "-f", "-"], &service("kept"));
    for server in cluster.servers.iter_mut().flatten() {
        server.kill_9();
    }
    let dir = cluster.data_dir(0);
    let recover = |flags: &[&str]| {
        let mut command = Command::new(FAIRLEAD);
        run(command.args(["operator", "recover", "--data-dir"]).arg(&dir).args(flags), "")
    };
    let looked = recover(&[]);
    assert!(looked.status.success() && said(&looked).contains("nothing was changed"), "{}", said(&looked));
    assert!(said(&looked).contains("n2, n3") || said(&looked).contains("n3, n2"), "{}", said(&looked));
    let done = recover(&["--yes"]);
    assert!(said(&done).contains("n1 is the only member"), "{}", said(&done));
    cluster.start_server(0);
    let in_use = || recover(&["--yes"]);
    let alone = |args: &[&str]| at(&cluster, cluster.grpc(0).rsplit(':').next().unwrap().parse().unwrap(), args);
    eventually("it answers alone", || alone(&["get", "svc", "kept"]).status.success().then_some(()));
    assert!(said(&in_use()).contains("in use"), "{}", said(&in_use()));
    let written = alone(&["create", "namespace", "after"]);
    assert!(written.status.success(), "{}", said(&written));
    // An old one that comes back neither gets in nor disturbs.
    let log = cluster.dir.path().join("back.log");
    let back = Process::start(&mut cluster.server_command(1), log);
    eventually("the old one is refused", || back.output().contains("server is up").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    let still = alone(&["create", "namespace", "still"]);
    assert!(still.status.success(), "{}", said(&still));
    drop(back);
    // The lost names are free again, once removed.
    let list = said(&alone(&["member", "list"]));
    assert!(list.contains("n1") && !list.contains("n2"), "{list}");
    for name in ["n2", "n3"] {
        let removed = alone(&["member", "remove", name]);
        // One that had not told its name yet is not known by it.
        assert!(removed.status.success() || said(&removed).contains("no member called"), "{}", said(&removed));
    }
    let token = said(&alone(&["token", "create", "--role", "server"]));
    let mut n2 = newcomer(&cluster, 0, ("n2", "n2-new"));
    n2.command.env("FAIRLEAD_TOKEN", token.trim());
    let _n2 = n2.start();
    eventually("it joins and votes", || alone(&["member", "promote", "n2"]).status.success().then_some(()));
}

#[test]
fn a_node_that_was_told_of_one_server_turns_to_the_others() {
    let mut cluster = Cluster::start(3);
    let agent = |cluster: &Cluster, log: &str| {
        let mut command = std::process::Command::new(FAIRLEAD);
        command.args([
            "--insecure",
            "--server",
            &cluster.grpc(0),
            "agent",
            "--mode",
            "dry-run",
            "--node-name",
            "node1",
        ]);
        command.args(["--node-ip", "127.0.0.1", "--state-dir"]).arg(cluster.dir.path().join("agent"));
        Process::start(&mut command, cluster.dir.path().join(log))
    };
    let first = agent(&cluster, "agent.log");
    let programmed = |cluster: &Cluster, name: &str| {
        let output =
            cluster.run(&["apply", "--wait=programmed", "--request-timeout", "40s", "-f", "-"], &service(name));
        assert!(output.status.success(), "{}\n{}", said(&output), cluster.logs());
    };
    eventually("the node", || {
        let nodes = cluster.status()["nodes"].as_array()?.clone();
        nodes.iter().any(|node| node["live"] == true && node["acknowledged"] != 0).then_some(())
    });
    // The only one that it was told of is gone, for good; also after its restart it knows the others.
    cluster.servers[0].as_mut().unwrap().kill_9();
    programmed(&cluster, "web-1");
    drop(first);
    let _second = agent(&cluster, "again.log");
    programmed(&cluster, "web-2");
}
