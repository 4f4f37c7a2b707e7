//! What clients do while everything is broken, and what they write down. Each workload is a number of endless tasks; none
//! of them judges what it sees.

pub mod allocate;
pub mod dataplane;
pub mod lists;
pub mod names;
pub mod registers;
pub mod set;
pub mod watchers;

use crate::client::Client;
use crate::cluster::{Cluster, lock};
use crate::history::{Answer, Call, Operation};
use crate::hosts::Host;
use crate::random::Random;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Namespaces of the objects that workloads write.
pub const NAMESPACES: [&str; 5] = [registers::SPACE, lists::SPACE, set::SPACE, allocate::SPACE, names::SPACE];

/// Where a run takes place and what it leaves behind.
pub struct Stage {
    /// The processes.
    pub cluster: Arc<Cluster>,
    /// The harness' clock begins here.
    pub begun: Instant,
    stopped: AtomicBool,
    processes: AtomicU32,
    values: AtomicU64,
    /// Every operation that ended, in the order of their ends.
    pub history: Mutex<Vec<Operation>>,
    /// What watchers saw.
    pub watched: Mutex<Vec<watchers::Session>>,
    /// What resolvers were told.
    pub lookups: Mutex<Vec<names::Lookup>>,
    /// When names came and went.
    pub records: Mutex<Vec<names::Record>>,
    /// Connections through VIPs.
    pub connections: dataplane::Connections,
}

impl Stage {
    /// An empty stage.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            begun: Instant::now(),
            stopped: AtomicBool::new(false),
            processes: AtomicU32::new(0),
            values: AtomicU64::new(0),
            history: Mutex::default(),
            watched: Mutex::default(),
            lookups: Mutex::default(),
            records: Mutex::default(),
            connections: dataplane::Connections::default(),
        }
    }

    /// Nanoseconds of the harness' clock.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
    }

    /// Ends every workload.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Workloads have to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// A value that nobody else writes.
    pub fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn process(&self) -> u32 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// Operations that were answered, so far.
    #[must_use]
    pub fn done(&self) -> usize {
        lock(&self.history).iter().filter(|operation| operation.is_done()).count()
    }
}

/// A client that writes its operations down.
pub struct Actor {
    /// Where.
    pub stage: Arc<Stage>,
    /// Its choices.
    pub random: Random,
    /// Its connection.
    pub client: Client,
    process: u32,
    roams: bool,
}

impl Actor {
    /// The `number`-th one. Every second one stays with its server, whatever becomes of it.
    #[must_use]
    pub fn new(stage: Arc<Stage>, mut random: Random, number: u8) -> Self {
        let servers = stage.cluster.servers.max(1);
        let random = random.fork();
        let process = stage.process();
        Self { stage, random, client: Client::new(Host::Server(1 + number % servers)), process, roams: number % 2 == 1 }
    }

    /// Writes an operation down that began at `called`; pauses after a failure.
    pub async fn note(&mut self, (call, called): (Call, u64), answer: Answer) {
        let returned = if matches!(answer, Answer::Unknown(_)) { u64::MAX } else { self.stage.now() };
        let node = if let Host::Server(number) = self.client.host { number } else { 0 };
        let failed = matches!(answer, Answer::Unknown(_) | Answer::Refused(_));
        let process = self.process;
        if matches!(answer, Answer::Unknown(_)) {
            self.process = self.stage.process();
        }
        lock(&self.stage.history).push(Operation { process, node, called, returned, call, answer });
        if failed {
            self.fail().await;
        } else {
            tokio::time::sleep(Duration::from_micros(500 + self.random.below(4_000))).await;
        }
    }

    /// Pauses, and goes elsewhere if it may.
    pub async fn fail(&mut self) {
        tokio::time::sleep(Duration::from_millis(10 + self.random.below(60))).await;
        if self.roams {
            self.roam();
        }
    }

    /// Goes to any server.
    pub fn roam(&mut self) {
        let servers = u64::from(self.stage.cluster.servers);
        let number = u8::try_from(1 + self.random.below(servers)).unwrap_or(1);
        self.client.turn_to(Host::Server(number));
    }
}
