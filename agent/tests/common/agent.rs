//! An agent of a test's own on the test's node, and clients that ask all the time.

use super::net::{Net, PATIENCE};
use fairlead_agent::{Config, Mode};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// An agent in the test's process; its rules are in the node's namespace.
pub struct Agent {
    /// Ends it.
    pub cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), fairlead_agent::AgentError>>,
}

impl Agent {
    pub fn start(net: &Net, (server, state): (&str, &Path), mode: Mode) -> Self {
        let config = Config {
            node_name: "node1".into(),
            servers: vec![server.to_owned()],
            mode,
            state_dir: state.to_owned(),
            node_ip: Some("192.0.2.1".parse().unwrap()),
            cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
            netns: Some(net.path("node")),
            ..Config::default()
        };
        let cancel = CancellationToken::new();
        Self { task: tokio::spawn(fairlead_agent::run(config, cancel.clone())), cancel }
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub async fn within(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "{what} within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Clients that connect one after the other until told to stop.
pub struct Traffic {
    goes_on: Arc<AtomicBool>,
    phase: Arc<Mutex<String>>,
    thread: JoinHandle<BTreeMap<String, usize>>,
}

impl Traffic {
    pub fn start(net: Arc<Net>, to: &'static str) -> Self {
        let (goes_on, phase) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<String>>::default());
        let (asks, now) = (goes_on.clone(), phase.clone());
        let ask = move || {
            let mut seen = BTreeMap::new();
            while asks.load(Ordering::Relaxed) {
                // Of thousands of short connections one may meet a TIME_WAIT and need a second SYN, with or without rules.
                for (answer, count) in net.ask_within(PATIENCE, ("out", to), 10) {
                    let said =
                        if answer.starts_with("pod") { answer } else { format!("{answer} in {}", now.lock().unwrap()) };
                    *seen.entry(said).or_default() += count;
                }
            }
            seen
        };
        Self { goes_on, phase, thread: std::thread::spawn(ask) }
    }

    /// What is said of a failure from now on.
    pub fn phase(&self, text: String) {
        *self.phase.lock().unwrap() = text;
    }

    /// So many were answered by a pod at least, and none failed.
    pub fn end(self, least: usize) {
        self.goes_on.store(false, Ordering::Relaxed);
        let seen = self.thread.join().unwrap();
        let asked: usize = seen.values().sum();
        let failed: Vec<_> = seen.iter().filter(|(answer, _)| !answer.starts_with("pod")).collect();
        assert!(failed.is_empty(), "{failed:?} of {asked}");
        assert!(asked > least, "{asked}");
    }
}
