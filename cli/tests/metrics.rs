//! Names of metrics are a promise: the tables, METRICS.md, the sources and what running processes show are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, FAIRLEAD, Process, eventually, free_port, service};
use fairlead_proto::metric::{Metric, MetricKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const SERVER: &[Metric] = fairlead_server::metrics::METRICS;
const AGENT: &[Metric] = fairlead_agent::metrics::METRICS;

fn word(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

fn table(title: &str, metrics: &[Metric]) -> String {
    let rows = metrics.iter().map(|one| format!("| `{}` | {} | {} |\n", one.name, word(one.kind), one.help));
    format!("## {title}\n\n| name | kind | what it says |\n|---|---|---|\n{}", rows.collect::<String>())
}

#[test]
fn the_list_for_people_is_the_one_of_the_code() {
    let wanted = format!(
        "# Metrics\n\nNames are fixed: one is renamed or dropped only with a word in CHANGELOG.md. Times are in seconds, sizes in bytes.\n\n{}\n{}",
        table("Server (`--listen-metrics`, with a client certificate)", SERVER),
        table("Agent (`--listen-metrics`)", AGENT)
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../METRICS.md");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "METRICS.md should be:\n{wanted}");
}

fn sources(folder: &Path, all: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("src/metrics.rs") {
            all.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn what_the_sources_measure_is_in_the_tables() {
    let mut texts = Vec::new();
    for part in ["server/src", "agent/src", "cli/src"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(part), &mut texts);
    }
    let mut measured = BTreeSet::new();
    for text in &texts {
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            for rest in text.split(&format!("metrics::{kind}")).skip(1) {
                measured.extend(rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()));
            }
        }
    }
    let named: BTreeSet<&str> = SERVER.iter().chain(AGENT).map(|metric| metric.name).collect();
    let unnamed: Vec<_> = measured.difference(&named).collect();
    assert!(unnamed.is_empty() && measured.len() > 20, "{unnamed:?}");
    // Gauges of the server are set where they are named.
    let gauge = |name: &str| SERVER.iter().any(|metric| metric.name == name && metric.kind == MetricKind::Gauge);
    let idle: Vec<_> = named.difference(&measured).filter(|name| !gauge(name)).collect();
    assert!(idle.is_empty(), "nothing moves {idle:?}");
}

fn scrape(address: &str) -> String {
    let output = Command::new("curl").args(["-sf", &format!("http://{address}/metrics")]).output().unwrap();
    assert!(output.status.success(), "{address}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a process shows: name and kind. Each has its help.
fn shown(text: &str) -> BTreeMap<String, String> {
    let lines = |what: &str| -> BTreeMap<String, String> {
        let rest = text.lines().filter_map(|line| line.strip_prefix(what)?.split_once(' '));
        rest.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let (kinds, helps) = (lines("# TYPE "), lines("# HELP "));
    let helpless: Vec<_> = kinds.keys().filter(|name| !helps.contains_key(*name)).collect();
    assert!(helpless.is_empty(), "{helpless:?}");
    kinds
}

fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn running_processes_show_what_is_promised_and_nothing_else() {
    let cluster = Cluster::start(1);
    let port = free_port();
    let mut agent = Command::new(FAIRLEAD);
    agent.args(["--insecure", "--server", &cluster.grpc(0), "agent", "--mode", "dry-run", "--node-name", "node1"]);
    agent.args(["--node-ip", "127.0.0.1", "--listen-metrics", &format!("127.0.0.1:{port}"), "--state-dir"]);
    let state = cluster.dir.path().join("agent");
    let _agent = Process::start(agent.arg(&state), cluster.dir.path().join("agent.log"));
    cluster.ok(&["apply", "-f", "-"], &service("web"));
    assert!(!cluster.run(&["get", "service", "absent"], "").status.success());
    let server = eventually("a node that serves the service", || {
        let text = scrape(&cluster.metrics(0));
        let serves = value(&text, "fairlead_sync_kernel_seconds_count")? >= 1.0;
        (serves && value(&text, "fairlead_sync_nodes")? >= 1.0).then_some(text)
    });
    let agent = scrape(&format!("127.0.0.1:{port}"));
    for (text, table) in [(&server, SERVER), (&agent, AGENT)] {
        let promised = |name: &String| table.iter().find(|metric| metric.name == name).map(|metric| word(metric.kind));
        let shown = shown(text);
        let strange: Vec<_> = shown.iter().filter(|(name, kind)| promised(name) != Some(kind)).collect();
        assert!(strange.is_empty(), "{strange:?}");
        // Some come with what they count.
        let rare = ["fairlead_watch_watchers", "fairlead_dns_snapshot_age_seconds"];
        let gauges = table.iter().filter(|metric| metric.kind == MetricKind::Gauge && !rare.contains(&metric.name));
        let unset: Vec<_> = gauges.filter(|metric| !shown.contains_key(metric.name)).collect();
        assert!(unset.is_empty(), "never set: {unset:?}");
    }
    let at = |series: &str| value(&server, series).unwrap_or_else(|| panic!("{series} in\n{server}"));
    assert_eq!((at("fairlead_raft_is_leader"), at("fairlead_raft_members"), at("fairlead_alarms")), (1.0, 1.0, 0.0));
    assert!(at("fairlead_state_revision") > 0.0 && at("fairlead_state_bytes") > at("fairlead_state_objects"));
    assert!(at("fairlead_api_requests_total{rpc=\"fairlead.v1.Objects/Apply\",code=\"0\"}") >= 1.0);
    assert!(at("fairlead_api_requests_total{rpc=\"fairlead.v1.Objects/Get\",code=\"5\"}") >= 1.0);
    assert!(at("fairlead_storage_commit_seconds_count") >= 1.0);
    assert!(value(&agent, "fairlead_agent_applied_revision").unwrap() > 0.0);
    assert!(value(&agent, "kubeproxy_sync_proxy_rules_last_timestamp_seconds").unwrap() > 1.7e9);
}
