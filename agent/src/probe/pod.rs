//! One pod under watch: a worker for each container with a readiness probe, and the word that follows from them.

use crate::book::Book;
use crate::probe::check::{Check, Outcome};
use fairlead_proto::v1::{Container, Pod, PodReadiness, PodSpec, Probe};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE_SECONDS: i64 = 30;
/// Bytes of probe output kept.
const MESSAGE_BYTES: usize = 4096;

/// What of a pod its watch depends on; another face gets a new watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Face {
    /// Incarnation.
    pub uid: String,
    spec: PodSpec,
    address: Address,
}

/// Where a pod is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    Unknown,
    /// An address of its own, or one that was given.
    Own(IpAddr),
    /// The node's, which the API doesn't know yet.
    Node(IpAddr),
}

impl Address {
    fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Unknown => None,
            Self::Own(ip) | Self::Node(ip) => Some(ip),
        }
    }
}

impl Face {
    /// Of a pod on a node.
    #[must_use]
    pub fn of(pod: &Pod, node_ip: IpAddr) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let given = pod.status.as_ref().and_then(|status| status.pod_ip.parse().ok());
        let published = || spec.containers.iter().flat_map(|one| &one.ports).any(|port| port.host_port != 0);
        let address = match given {
            // What we reported ourselves comes back as given; it is the same face.
            Some(ip) if ip == node_ip && (spec.host_network || published()) => Address::Node(ip),
            Some(ip) => Address::Own(ip),
            None if spec.host_network || published() => Address::Node(node_ip),
            None => Address::Unknown,
        };
        Self { uid: pod.metadata.clone().unwrap_or_default().uid, spec, address }
    }
}

/// A pod under watch; dropping it ends its workers.
pub struct Watched {
    /// What it was started for.
    pub face: Face,
    word: Arc<Word>,
    workers: JoinSet<()>,
    marked: bool,
}

impl Watched {
    /// Starts watching. `known`: what an earlier watch of this incarnation found; `delay`: wait before the first probe.
    pub fn start(pod: &Pod, face: Face, (known, delay, book): (Option<bool>, Duration, Arc<Book>)) -> Self {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let believed = known.unwrap_or_else(|| believed_ready(pod));
        let first = PodReadiness {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            pod_ip: if let Address::Node(ip) = face.address { ip.to_string() } else { String::new() },
            ..PodReadiness::default()
        };
        let containers: Vec<Container> =
            counted(&face.spec).filter(|one| one.readiness_probe.is_some()).cloned().collect();
        let states = containers.iter().map(|one| State::new(&one.name, believed)).collect();
        let word = Arc::new(Word { book, inner: Mutex::new(Inner { first, states, terminated: false, ended: false }) });
        let mut workers = JoinSet::new();
        for (index, container) in containers.into_iter().enumerate() {
            let check = Check::plan(&container, face.address.ip().map(|ip| (ip, publishes(&face))));
            let worker = Worker {
                check,
                timing: Timing::of(container.readiness_probe.as_ref()),
                index,
                believed,
                word: word.clone(),
            };
            workers.spawn(worker.run(delay));
        }
        // A pod that is believed ready is spoken of after its first probe; all others at once.
        if !believed || states_empty(&word) {
            word.speak();
        }
        let mut watched = Self { face, word, workers, marked: false };
        watched.mark(pod);
        watched
    }

    /// Takes note of a mark for deletion: probing goes on, and after the grace period the pod is gone.
    pub fn mark(&mut self, pod: &Pod) {
        let metadata = pod.metadata.as_ref();
        if self.marked || metadata.is_none_or(|metadata| metadata.deletion_timestamp.is_empty()) {
            return;
        }
        self.marked = true;
        let own = self.face.spec.termination_grace_period_seconds;
        let seconds =
            metadata.and_then(|metadata| metadata.deletion_grace_period_seconds).or(own).unwrap_or(GRACE_SECONDS);
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let word = self.word.clone();
        self.workers.spawn(async move {
            tokio::time::sleep(grace).await;
            word.lock().terminated = true;
            word.speak();
        });
    }

    /// What is known: ready or not; `None` before the first probe of every container.
    pub fn ready(&self) -> Option<bool> {
        let inner = self.word.lock();
        inner.states.iter().all(|state| state.probed).then(|| inner.states.iter().all(|state| state.ready))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.word.lock().ended = true;
    }
}

fn states_empty(word: &Word) -> bool {
    word.lock().states.is_empty()
}

/// Containers that readiness counts: also init containers that keep running beside the others.
fn counted(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().filter(|one| one.restart_policy == "Always"))
}

/// Its ports are reached as published on the node.
fn publishes(face: &Face) -> bool {
    matches!(face.address, Address::Node(_)) && !face.spec.host_network
}

fn believed_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
}

/// The word on a pod, made of its containers' states.
struct Word {
    book: Arc<Book>,
    inner: Mutex<Inner>,
}

struct Inner {
    first: PodReadiness,
    states: Vec<State>,
    terminated: bool,
    /// The watch ended: a worker that is still at it has nothing to say any more.
    ended: bool,
}

struct State {
    container: String,
    ready: bool,
    probed: bool,
    message: String,
}

impl State {
    fn new(container: &str, believed: bool) -> Self {
        Self { container: container.to_owned(), ready: believed, probed: false, message: "not probed yet".to_owned() }
    }
}

impl Word {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the states amount to, under the lock: of two workers, the later one has the last word.
    fn speak(&self) {
        let inner = self.lock();
        if inner.ended {
            return;
        }
        let unready: Vec<&State> = inner.states.iter().filter(|state| !state.ready).collect();
        let mut word = PodReadiness { ready: unready.is_empty(), ..inner.first.clone() };
        if inner.terminated {
            word.ready = false;
            word.terminated = true;
            word.reason = "PodTerminated".to_owned();
        } else if !word.ready {
            let texts: Vec<_> =
                unready.iter().map(|state| format!("container {}: {}", state.container, state.message)).collect();
            word.reason = "ContainersNotReady".to_owned();
            word.message = shortened(texts.join("; "));
        }
        self.book.write(word);
        drop(inner);
    }
}

fn shortened(mut text: String) -> String {
    let end = (0..=MESSAGE_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

/// A probe's numbers, with kubelet's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success: u32,
    failure: u32,
}

impl Timing {
    fn of(probe: Option<&Probe>) -> Self {
        let seconds = |given: i32, default: u32| Duration::from_secs(u64::from(count(given, default)));
        let probe = probe.cloned().unwrap_or_default();
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success: count(probe.success_threshold, 1),
            failure: count(probe.failure_threshold, 3),
        }
    }
}

/// A positive number, or the default.
fn count(given: i32, default: u32) -> u32 {
    u32::try_from(given).ok().filter(|given| *given > 0).unwrap_or(default)
}

/// Probes one container.
struct Worker {
    check: Check,
    timing: Timing,
    index: usize,
    believed: bool,
    word: Arc<Word>,
}

impl Worker {
    async fn run(self, spread: Duration) {
        // One that is believed ready has been up for a while.
        let delay = if self.believed { Duration::ZERO } else { self.timing.initial_delay };
        let begin = Instant::now() + delay + spread.min(self.timing.period);
        let mut ticks = tokio::time::interval_at(begin, self.timing.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut times) = (None, 0_u32);
        loop {
            ticks.tick().await;
            let outcome = self.check.run(self.timing.timeout).await;
            times = if last == Some(outcome.is_ok()) { times.saturating_add(1) } else { 1 };
            last = Some(outcome.is_ok());
            let enough = if outcome.is_ok() { self.timing.success } else { self.timing.failure };
            self.note(&outcome, times >= enough);
        }
    }

    fn note(&self, outcome: &Outcome, enough: bool) {
        let mut inner = self.word.lock();
        let Some(state) = inner.states.get_mut(self.index) else {
            return;
        };
        state.probed = true;
        if enough {
            state.ready = outcome.is_ok();
        }
        if let Err(message) = outcome {
            state.message.clone_from(message);
        }
        drop(inner);
        self.word.speak();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_numbers_are_kubelets() {
        let seconds = Duration::from_secs;
        let kubelets =
            Timing { initial_delay: seconds(0), period: seconds(10), timeout: seconds(1), success: 1, failure: 3 };
        assert_eq!(Timing::of(None), kubelets);
        assert_eq!(Timing::of(Some(&Probe { period_seconds: -1, ..Probe::default() })), kubelets);
        assert_eq!(Timing::of(Some(&Probe { period_seconds: 2, ..Probe::default() })).period, seconds(2));
    }

    #[test]
    fn the_nodes_address_is_told_only_where_the_pod_is_reached_through_it() {
        let node = IpAddr::from([10, 0, 0, 1]);
        let mut pod = Pod::default();
        assert_eq!(Face::of(&pod, node).address, Address::Unknown);
        pod.spec.get_or_insert_default().host_network = true;
        assert_eq!(Face::of(&pod, node).address, Address::Node(node));
        pod.status.get_or_insert_default().pod_ip = "10.244.1.2".into();
        assert_eq!(Face::of(&pod, node).address, Address::Own([10, 244, 1, 2].into()));
    }

    #[tokio::test]
    async fn an_ended_watch_has_no_late_word() {
        let (pod, book) = (Pod::default(), Arc::new(Book::default()));
        let face = Face::of(&pod, IpAddr::from([10, 0, 0, 1]));
        let watched = Watched::start(&pod, face, (None, Duration::ZERO, book.clone()));
        let word = watched.word.clone();
        assert_eq!(book.take(9).len(), 1);
        drop(watched);
        // As a worker would that was at it when its watch ended.
        word.lock().terminated = true;
        word.speak();
        assert_eq!(book.take(9), []);
    }

    #[test]
    fn output_is_cut_at_a_character() {
        assert_eq!(shortened("é".repeat(4000)).len(), 4096);
        assert_eq!(shortened("x".to_owned() + &"é".repeat(4000)).len(), 4095);
    }
}
