//! One run: set up → warm up → faults and load → heal → converge → read everything from every server → judge.
//!
//! INVARIANT: a run in which a planned class of faults was missing, or too little was done, is `Unknown`, never a pass.

use crate::checker;
use crate::client::{Client, service};
use crate::cluster::{Cluster, POD_PORT, lock};
use crate::history::{Anomaly, Answer, Call, Operation, Verdict};
use crate::hosts::{Host, Hosts, pod_address};
use crate::nemesis::{self, Happened, Planned, Schedule, disk};
use crate::random::Random;
use crate::report::{Outcome, Report};
use crate::scenario::Scenario;
use crate::validate;
use crate::workload::{self, Actor, NAMESPACES, Stage, dataplane, lists, names, registers, set};
use anyhow::{Context as _, bail, ensure};
use fairlead_proto::v1::cluster_client::ClusterClient;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{ApplyRequest, Input, Object, WaitProgrammedRequest, WriteOptions, input};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Agents of every run.
const AGENTS: u8 = 2;
/// Time for servers, agents and rules to be there.
const START: Duration = Duration::from_secs(60);
/// Time to become one again after the last fault.
const CONVERGE: Duration = Duration::from_secs(60);
/// Time for kernels to have what servers say.
const KERNELS: Duration = Duration::from_secs(15);
/// Operations that must be done within the warm-up.
const WARM_UP: (Duration, usize) = (Duration::from_secs(3), 100);
/// Time for one fault to be installed or healed.
const FAULT: Duration = Duration::from_secs(45);

/// What to run.
pub struct Plan {
    /// What is broken.
    pub scenario: Scenario,
    /// For how long.
    pub seconds: u64,
    /// Decides everything that is chosen.
    pub seed: u64,
    /// The program under test.
    pub program: PathBuf,
    /// Where the run's folder is made.
    pub store: PathBuf,
    /// A schedule to be played again; `None`: made from the seed.
    pub schedule: Option<Schedule>,
    /// Environment of the servers: a mutant to switch on.
    pub environment: Vec<(String, String)>,
}

/// Runs a plan, on threads of its own: they move to another network namespace.
///
/// # Errors
/// What kept the run from being set up. What it found is in the report.
pub fn run(plan: Plan) -> anyhow::Result<Report> {
    let inside = move || {
        let hosts = Hosts::up(plan.scenario.servers, AGENTS)?;
        hosts.enter(Host::Client)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let report = runtime.block_on(play(&plan, hosts));
        runtime.shutdown_timeout(Duration::from_secs(3));
        report
    };
    std::thread::spawn(inside).join().map_err(|_| anyhow::anyhow!("the harness panicked"))?
}

async fn play(plan: &Plan, hosts: Hosts) -> anyhow::Result<Report> {
    let dir = plan.store.join(format!("{}-{}", plan.scenario.name, plan.seed));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let cluster =
        Arc::new(Cluster::new(hosts, (plan.scenario.servers, AGENTS), (&plan.program, &dir, plan.scenario.disks))?);
    let stage = Arc::new(Stage::new(cluster.clone()));
    let report = on_stage(plan, &stage, &dir).await;
    // Threads and tasks that still hold the stage find it empty.
    stage.stop();
    if report.as_ref().is_ok_and(|report| report.outcome() == Outcome::Broken) && plan.environment.is_empty() {
        cluster.keep();
    }
    cluster.down();
    report
}

async fn on_stage(plan: &Plan, stage: &Arc<Stage>, dir: &Path) -> anyhow::Result<Report> {
    let vip = set_up(plan, stage).await.context("set-up")?;
    let mut random = Random::new(plan.seed);
    begin(stage, &mut random, vip);
    tokio::time::sleep(WARM_UP.0).await;
    let warm = stage.done();
    ensure!(warm >= WARM_UP.1, "only {warm} operations in the warm-up: this machine is too busy to judge anything");
    let schedule = plan.schedule.clone();
    let schedule =
        schedule.unwrap_or_else(|| nemesis::schedule(plan.scenario.faults, plan.seconds, plan.seed ^ 0x5eed));
    std::fs::write(dir.join("schedule.json"), serde_json::to_vec_pretty(&schedule)?)?;
    let faults = break_everything(stage, (schedule, plan.seconds)).await;
    let (converged, kernels) = end(stage, &mut random).await;
    let mut checks = judge(stage);
    checks.push(("convergence", converged));
    checks.push(("kernels", kernels));
    checks.push(("coverage", coverage(plan, &faults)));
    let report = Report::new(plan, stage, (faults, checks));
    report.save(dir, &lock(&stage.history))?;
    Ok(report)
}

/// Servers, objects, agents, pods; the VIP.
async fn set_up(plan: &Plan, stage: &Arc<Stage>) -> anyhow::Result<IpAddr> {
    let cluster = &stage.cluster;
    for host in cluster.server_hosts() {
        let mut environment = plan.environment.clone();
        if plan.scenario.clocks {
            environment.extend(disk::clock_environment(cluster, host)?);
        }
        cluster.set_environment(host, environment);
        cluster.start(host)?;
    }
    let deadline = Instant::now() + START;
    while cluster.leader().await.is_none() {
        ensure!(Instant::now() < deadline, "no leader: {}", tail(&cluster.log(Host::Server(1))));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut objects: Vec<String> = NAMESPACES
        .iter()
        .map(|name| format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#))
        .collect();
    objects.push(
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080}]}}"#.to_owned(),
    );
    objects.extend((1..=AGENTS).map(|agent| {
        let (address, port) = (pod_address(agent), POD_PORT);
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web-{agent}","labels":{{"app":"web"}}}},"spec":{{"nodeName":"a{agent}","containers":[{{"name":"web","image":"web","ports":[{{"containerPort":{port}}}]}}]}},"status":{{"podIP":"{address}"}}}}"#
        )
    }));
    let mut vip = None;
    for object in objects {
        // The first entries may still be on their way.
        let made = loop {
            match apply(&object).await {
                Ok(made) => break made,
                Err(error) => ensure!(Instant::now() < deadline, "{error:#}: {object}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        vip = made.as_service().and_then(|service| service.spec.as_ref()?.cluster_ip.parse().ok()).or(vip);
    }
    for agent in 1..=AGENTS {
        dataplane::pod(stage, agent)?;
        cluster.set_environment(Host::Agent(agent), plan.environment.clone());
        cluster.start(Host::Agent(agent))?;
    }
    registers_and_lists(stage).await?;
    wait_programmed().await?;
    vip.context("the service has no address")
}

/// Both agents' kernels have the VIP.
async fn wait_programmed() -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let endpoint = crate::cluster::connect(Host::Server(1)).context("no address")?;
        let mut client = ClusterClient::new(endpoint.connect().await?);
        let request = WaitProgrammedRequest { revision: 0, timeout_ms: 2_000 };
        let answer = client.wait_programmed(request).await?.into_inner();
        if answer.programmed && answer.nodes == u32::from(AGENTS) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the agents don't program their kernels: {:?}", answer.laggards);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn apply(manifest: &str) -> anyhow::Result<Object> {
    let endpoint = crate::cluster::connect(Host::Server(1)).context("no address")?;
    let mut client = ObjectsClient::new(endpoint.connect().await?);
    let request = ApplyRequest {
        input: Some(Input { form: Some(input::Form::ManifestJson(manifest.to_owned())) }),
        options: Some(WriteOptions::default()),
    };
    client.apply(request).await?.into_inner().object.context("no object")
}

async fn registers_and_lists(stage: &Arc<Stage>) -> anyhow::Result<()> {
    let mut client = Client::new(Host::Server(1));
    for number in 0..registers::KEYS {
        let (key, value, called) = (registers::name(number), stage.value(), stage.now());
        let object = service((registers::SPACE, &key), &value.to_string(), true);
        match client.create(object.into(), None).await {
            Ok(answer) => lock(&stage.history).push(Operation {
                process: u32::MAX,
                node: 1,
                called,
                returned: stage.now(),
                call: Call::Write(key, value),
                answer: registers::write_answer(&answer),
            }),
            Err(failed) => bail!("register {key}: {failed:?}"),
        }
    }
    for number in 0..lists::KEYS {
        let key = lists::name(number);
        if let Err(failed) = client.create(service((lists::SPACE, &key), "", true).into(), None).await {
            bail!("list {key}: {failed:?}");
        }
    }
    Ok(())
}

/// Starts every workload.
fn begin(stage: &Arc<Stage>, random: &mut Random, vip: IpAddr) {
    for number in 0..8 {
        tokio::spawn(registers::client(stage.clone(), random.fork(), number));
    }
    for number in 0..4 {
        tokio::spawn(lists::client(stage.clone(), random.fork(), number));
    }
    for number in 0..3 {
        tokio::spawn(set::client(stage.clone(), random.fork(), number));
        tokio::spawn(workload::allocate::client(stage.clone(), random.fork(), number));
        tokio::spawn(workload::names::client(stage.clone(), random.fork(), number));
    }
    for number in 0..stage.cluster.servers + 3 {
        tokio::spawn(workload::watchers::watcher(stage.clone(), random.fork(), number));
    }
    for agent in 1..=AGENTS {
        dataplane::connect_on(stage, (agent, vip));
    }
}

/// Plays the schedule; what became of it. Everything is healed in the end.
async fn break_everything(stage: &Arc<Stage>, (schedule, seconds): (Schedule, u64)) -> Vec<Happened> {
    let happened = Arc::new(Mutex::new(Vec::new()));
    let until = Instant::now() + Duration::from_secs(seconds);
    let lanes = schedule.into_iter().map(|planned| lane(stage.clone(), (planned, until), happened.clone()));
    let lanes = futures::future::join_all(lanes);
    tokio::pin!(lanes);
    loop {
        tokio::select! {
            _ = &mut lanes => break,
            () = tokio::time::sleep(Duration::from_secs(5)) => progress(stage, &happened),
        }
    }
    for host in stage.cluster.all() {
        if let Ok(disk) = stage.cluster.disk(host) {
            let _ = disk.command("heal");
        }
        stage.cluster.resume(host);
        if let Err(error) = stage.cluster.start(host) {
            eprintln!("  {} does not start: {error}", host.name());
        }
    }
    std::mem::take(&mut *lock(&happened))
}

fn progress(stage: &Stage, happened: &Mutex<Vec<Happened>>) {
    let (answered, failed) = (&stage.connections.answered, &stage.connections.failed);
    eprintln!(
        "  {:5.0} s: {} operations done, {} faults, {} connections, {} failed",
        stage.begun.elapsed().as_secs_f64(),
        stage.done(),
        lock(happened).iter().filter(|fault| fault.skipped.is_none()).count(),
        answered.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed)
    );
}

async fn lane(stage: Arc<Stage>, (planned, until): (Vec<Planned>, Instant), happened: Arc<Mutex<Vec<Happened>>>) {
    for fault in planned {
        tokio::time::sleep(Duration::from_millis(fault.after_ms)).await;
        if Instant::now() >= until {
            return;
        }
        let begun = stage.begun.elapsed().as_secs_f64();
        let installed = tokio::time::timeout(FAULT, nemesis::install(&stage.cluster, &fault)).await;
        let installed = installed.context("not installed in time").flatten();
        let (mut hosts, mut skipped) = (Vec::new(), None);
        match installed {
            Ok(installed) => {
                hosts = installed.hosts.iter().map(|host| host.name()).collect();
                tokio::time::sleep(Duration::from_millis(fault.for_ms)).await;
                let healed = tokio::time::timeout(FAULT, nemesis::heal(&stage.cluster, installed.cure)).await;
                if let Err(error) = healed.context("not in time").flatten() {
                    eprintln!("  {} on {hosts:?} is not healed: {error:#}", fault.kind.name());
                }
            }
            Err(error) => skipped = Some(format!("{error:#}")),
        }
        let ended = stage.begun.elapsed().as_secs_f64();
        lock(&happened).push(Happened { kind: fault.kind, begun, ended, hosts, skipped });
    }
}

/// Load goes on a little without faults, then ends; everything becomes one again, and is read from every server.
async fn end(stage: &Arc<Stage>, random: &mut Random) -> (Verdict, Verdict) {
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.stop();
    let converged = converge(stage).await;
    if converged != Verdict::Valid {
        return (converged, Verdict::Unknown("servers did not become one".to_owned()));
    }
    let kernels = kernels(stage).await;
    // Those that were in the middle of something end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for server in 0..stage.cluster.servers {
        let mut actor = Actor::new(stage.clone(), random.fork(), server);
        actor.client.turn_to(Host::Server(server + 1));
        for number in 0..registers::KEYS {
            registers::read(&mut actor, &registers::name(number)).await;
        }
        lists::read(&mut actor).await;
        set::read(&mut actor).await;
        names::ask_all(&mut actor, Host::Server(server + 1)).await;
    }
    (converged, kernels)
}

/// Waits until every agent's kernel has what it should, and nothing else.
async fn kernels(stage: &Stage) -> Verdict {
    let begun = Instant::now();
    loop {
        let differs = match nemesis::process::command(&stage.cluster, &["dataplane", "diff"]).await {
            Ok(()) => {
                eprintln!("  kernels are as they should be {} ms after servers", begun.elapsed().as_millis());
                return Verdict::Valid;
            }
            Err(error) => format!("{error:#}"),
        };
        if begun.elapsed() >= KERNELS {
            let what = format!("{KERNELS:?} after the servers were one: {differs}");
            return Verdict::Broken(vec![Anomaly { kind: "kernel-differs", what, operations: Vec::new() }]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until every server has the same revision and the same digest.
async fn converge(stage: &Stage) -> Verdict {
    let deadline = Instant::now() + CONVERGE;
    loop {
        let mut seen = Vec::new();
        for host in stage.cluster.server_hosts() {
            let status = stage.cluster.status(host, Duration::from_secs(3)).await;
            let own = status.and_then(|status| status.members.into_iter().find(|member| member.name == host.name()));
            seen.push(own.map(|member| (member.revision, member.state_digest)));
        }
        let one = seen.first().is_some_and(Option::is_some) && seen.windows(2).all(|pair| pair.first() == pair.last());
        if one {
            return Verdict::Valid;
        }
        if Instant::now() >= deadline {
            let what = format!("after {CONVERGE:?} without a fault servers have {seen:?}");
            return Verdict::Broken(vec![Anomaly { kind: "no-convergence", what, operations: Vec::new() }]);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Every judge's word.
fn judge(stage: &Stage) -> Vec<(&'static str, Verdict)> {
    let history = lock(&stage.history).clone();
    let mut checks = checker::check(&history);
    let sessions = lock(&stage.watched);
    checks.push(("watches", validate::watches::watches(&sessions, &history)));
    checks.push(("addresses", validate::addresses::addresses(&sessions)));
    checks.push(("names", validate::names::names(&lock(&stage.lookups), &lock(&stage.records))));
    checks.push(("connections", connections(stage)));
    checks.push(("logs", logs(stage)));
    checks
}

fn connections(stage: &Stage) -> Verdict {
    let (answered, failed) = (&stage.connections.answered, &stage.connections.failed);
    let (answered, failed) = (answered.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    let failures = lock(&stage.connections.failures);
    if failed > 0 || !failures.is_empty() {
        let what = format!("{failed} of {} failed: {}", answered + failed, failures.join("; "));
        return Verdict::Broken(vec![Anomaly { kind: "connection-failed", what, operations: Vec::new() }]);
    }
    if answered == 0 { Verdict::Unknown("no connection was made".to_owned()) } else { Verdict::Valid }
}

/// A panic is wrong wherever it was.
fn logs(stage: &Stage) -> Verdict {
    let mut found = Vec::new();
    for host in stage.cluster.all() {
        let text = std::fs::read(stage.cluster.log(host)).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines().filter(|line| line.contains("panicked at")).take(3) {
            let what = format!("{}: {line}", host.name());
            found.push(Anomaly { kind: "panic", what, operations: Vec::new() });
        }
    }
    if found.is_empty() { Verdict::Valid } else { Verdict::Broken(found) }
}

/// Every planned class of faults was installed often enough, and enough was done.
fn coverage(plan: &Plan, faults: &[Happened]) -> Verdict {
    let floor = if plan.seconds < 60 { 1 } else { 3 };
    let mut counts: BTreeMap<_, usize> = plan.scenario.faults.iter().map(|kind| (kind.class(), 0)).collect();
    for fault in faults.iter().filter(|fault| fault.skipped.is_none()) {
        *counts.entry(fault.kind.class()).or_default() += 1;
    }
    let missing: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count < floor)
        .map(|(class, count)| format!("{class:?} {count} of {floor} times"))
        .collect();
    if missing.is_empty() {
        Verdict::Valid
    } else {
        Verdict::Unknown(format!("too few faults: {}", missing.join(", ")))
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// The answers of a history, counted.
#[must_use]
pub fn counts(history: &[Operation]) -> (usize, usize, usize) {
    let of = |wanted: fn(&Answer) -> bool| history.iter().filter(|operation| wanted(&operation.answer)).count();
    let refused = of(|answer| matches!(answer, Answer::Refused(_)));
    let unknown = of(|answer| matches!(answer, Answer::Unknown(_)));
    (history.len() - refused - unknown, refused, unknown)
}
