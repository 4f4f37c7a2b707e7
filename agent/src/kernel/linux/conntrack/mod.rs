//! Forgets stale flows, on a thread of its own: the rules are acknowledged without waiting for it.
//!
//! A look is one dump of the kernel's table for everything that is to be forgotten; one costs O(flows), which the rules'
//! latency must not. Looks take a small share of the time at most: what comes meanwhile joins the next. Best effort: a
//! failure is logged. INVARIANT: a flow to an endpoint that a later batch serves again is not cut.

mod table;

use crate::budget::Budget;
use crate::kernel::linux::program;
use crate::plan::Family;
use crate::plan::flows::{Answered, Flow, Flows, Frontend};
use crate::plan::service::Protocol;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use table::{Entry, Filter, Table};

/// What looks may cost before they must rest: a few changes now and then are looked after at once.
const SAVINGS: Duration = Duration::from_millis(50);
/// Beyond that a look is followed by a rest: so many times what it cost, which is half a percent of a core, …
const REST: u32 = 200;
/// … but this is long enough, …
const LONG_REST: Duration = Duration::from_secs(2);
/// … unless a look costs so much that this part of a core would be exceeded.
const LEAST_REST: u32 = 3;
/// Addresses are looked for one by one, the kernel comparing, up to one for so many flows, and a few at most; otherwise one
/// look shows all. Each walks the whole table (10 ms for 262,144 buckets, however few flows); with 200,000 flows the kernel
/// takes 55 ms to compare and 390 ms to show all.
const FLOWS_AN_ADDRESS: usize = 20_000;
/// The few.
const ONE_BY_ONE: usize = 6;
/// From the first look to the second: a packet that read the old rules may have made its flow behind the first.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Forgets flows of one network namespace.
#[derive(Debug, Default)]
pub(super) struct Forgetter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Counts what was asked.
    now: u64,
    /// To be looked for, and whether for the second time; by when it was asked.
    waiting: Vec<Wanted>,
    /// Asked since when, of what is being looked for.
    looking: Option<u64>,
    /// When an endpoint was last given new flows, as far as something older is still to be forgotten.
    served: BTreeMap<SocketAddr, u64>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Wanted {
    flows: Flows,
    asked: u64,
    /// `None`: at once, and once more.
    due: Option<Instant>,
}

impl Forgetter {
    /// Some endpoints are about to get new flows: those of TCP are not cut for what was asked before.
    pub(super) fn serve(&self, endpoints: impl Iterator<Item = SocketAddr>) {
        let mut state = self.shared.lock();
        if state.is_idle() {
            return;
        }
        state.now += 1;
        let now = state.now;
        state.served.extend(endpoints.map(|endpoint| (endpoint, now)));
    }

    /// Has flows forgotten soon.
    pub(super) fn forget(&self, namespace: Option<&Path>, flows: Vec<Flows>) {
        if flows.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        state.now += 1;
        let asked = state.now;
        state.waiting.extend(flows.into_iter().map(|flows| Wanted { flows, asked, due: None }));
        drop(state);
        self.shared.changed.notify_all();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (shared, namespace) = (self.shared.clone(), namespace.map(Path::to_owned));
            let work = move || Worker { shared, namespace, table: None }.run();
            match std::thread::Builder::new().name("conntrack".into()).spawn(work) {
                Ok(handle) => *thread = Some(handle),
                Err(error) => tracing::warn!(%error, "stale flows can't be forgotten"),
            }
        }
    }
}

impl Drop for Forgetter {
    /// What waits for its first look still gets it.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.looking.is_none()
    }

    /// What is due; the others go on waiting.
    fn take_due(&mut self) -> Vec<Wanted> {
        let now = Instant::now();
        let closed = self.closed;
        let is_due = |wanted: &mut Wanted| wanted.due.is_none_or(|due| due <= now && !closed);
        let due: Vec<Wanted> = self.waiting.extract_if(.., is_due).collect();
        self.looking = due.iter().map(|wanted| wanted.asked).min();
        due
    }

    /// How long until something is due; `None`: nothing waits.
    fn next(&self) -> Option<Duration> {
        let now = Instant::now();
        self.waiting
            .iter()
            .map(|wanted| wanted.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now)))
            .min()
    }

    /// A look is over; what it looked for the first time is looked for once more.
    fn looked(&mut self, wanted: Vec<Wanted>) {
        self.looking = None;
        let due = Some(Instant::now() + AGAIN_AFTER);
        let others = |wanted: &Wanted| matches!(wanted.flows.answered, Answered::ByOthersThan(_));
        let first = wanted.into_iter().filter(|wanted| wanted.due.is_none() && !others(wanted));
        self.waiting.extend(first.map(|wanted| Wanted { due, ..wanted }));
        let oldest = self.waiting.iter().map(|wanted| wanted.asked).min().unwrap_or(u64::MAX);
        self.served.retain(|_, at| *at > oldest);
    }

    /// The endpoint got new flows after this was asked: this flow may be one of them. A UDP client finds its way again.
    fn is_spared(&self, flow: &Flow, wanted: &Wanted) -> bool {
        let matters = flow.protocol == Protocol::Tcp || matches!(wanted.flows.answered, Answered::ByOthersThan(_));
        matters && self.served.get(&flow.answered_from).is_some_and(|at| *at > wanted.asked)
    }
}

/// What a look is for, by frontend.
struct Index<'a>(BTreeMap<Frontend, Vec<&'a Wanted>>);

impl<'a> Index<'a> {
    fn new(wanted: impl Iterator<Item = &'a Wanted>) -> Self {
        let mut index: BTreeMap<Frontend, Vec<&Wanted>> = BTreeMap::new();
        for one in wanted {
            index.entry(one.flows.frontend).or_default().push(one);
        }
        Self(index)
    }

    fn selecting(&self, flow: &Flow) -> impl Iterator<Item = &'a Wanted> {
        let (protocol, port) = (flow.protocol, flow.destination.port());
        let at = |address| self.0.get(&Frontend { protocol, address, port }).into_iter().flatten().copied();
        let flow = *flow;
        at(Some(flow.destination.ip())).chain(at(None)).filter(move |wanted| wanted.flows.answered.fits(&flow))
    }
}

struct Worker {
    shared: Arc<Shared>,
    namespace: Option<PathBuf>,
    table: Option<Table>,
}

impl Worker {
    fn run(mut self) {
        let mut rest_until = Instant::now();
        let mut budget = Budget::new(REST, SAVINGS, rest_until);
        while self.wait(rest_until) {
            let (begun, spent) = (Instant::now(), cpu_time());
            let wanted = self.shared.lock().take_due();
            match self.look(&wanted) {
                Ok(count) => metrics::counter!("fairlead_agent_flows_forgotten_total").increment(count as u64),
                Err(error) => {
                    self.table = None;
                    tracing::warn!(%error, "stale flows could not be forgotten");
                }
            }
            metrics::histogram!("fairlead_agent_flows_look_seconds").record(begun.elapsed().as_secs_f64());
            // What an agent looks for at its start comes once.
            let once = wanted.iter().any(|one| matches!(one.flows.answered, Answered::ByOthersThan(_)));
            let cost = if once { Duration::ZERO } else { cpu_time().saturating_sub(spent) };
            rest_until = budget.spend(cost, rest(cost), Instant::now());
            self.shared.lock().looked(wanted);
        }
    }

    /// Until something is due and the rest is over. `false`: there is nothing more to do.
    fn wait(&self, rest_until: Instant) -> bool {
        let mut state = self.shared.lock();
        loop {
            if state.closed {
                return state.waiting.iter().any(|wanted| wanted.due.is_none());
            }
            let rest = rest_until.saturating_duration_since(Instant::now());
            state = match state.next().map(|next| next.max(rest)) {
                Some(Duration::ZERO) => return true,
                Some(left) => self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn look(&mut self, wanted: &[Wanted]) -> io::Result<usize> {
        let mut table = match self.table.take() {
            Some(table) => table,
            None => program::in_namespace(self.namespace.as_deref(), Table::open).map_err(io::Error::other)??,
        };
        let flows = usize::try_from(table.count()?).unwrap_or(usize::MAX);
        let mut count = 0;
        if flows > 0 {
            for ((family, _), group) in grouped(wanted, flows) {
                let filter = Filter::common(group.iter().map(|one| &one.flows));
                count += self.look_in(&mut table, family, (&Index::new(group.into_iter()), filter))?;
            }
        }
        self.table = Some(table);
        Ok(count)
    }

    fn look_in(&self, table: &mut Table, family: Family, what: (&Index<'_>, Filter)) -> io::Result<usize> {
        let (index, filter) = what;
        table.delete_where(family, filter, |mut entries, delete| {
            entries.retain(|entry| index.selecting(&entry.flow).next().is_some());
            if entries.is_empty() {
                return Ok(0);
            }
            // Held until they are deleted: whoever serves an endpoint again says so before its first new flow.
            let state = self.shared.lock();
            let is_stale =
                |entry: &Entry<'_>| index.selecting(&entry.flow).any(|wanted| !state.is_spared(&entry.flow, wanted));
            entries.retain(is_stale);
            delete(&entries)
        })
    }
}

/// A look's parts, by family and by the one address that answers what is looked for, if it has one.
fn grouped(wanted: &[Wanted], flows: usize) -> BTreeMap<(Family, Option<IpAddr>), Vec<&Wanted>> {
    let mut groups: BTreeMap<(Family, Option<IpAddr>), Vec<&Wanted>> = BTreeMap::new();
    for one in wanted {
        // The kernel compares addresses of IPv4 only.
        let address = one.flows.answering().filter(IpAddr::is_ipv4);
        groups.entry((one.flows.family, address)).or_default().push(one);
    }
    let families = wanted.iter().map(|one| one.flows.family).collect::<BTreeSet<_>>().len();
    if groups.len() <= families.max((flows / FLOWS_AN_ADDRESS).min(ONE_BY_ONE)) {
        return groups;
    }
    let mut whole: BTreeMap<_, Vec<&Wanted>> = BTreeMap::new();
    for ((family, _), mut group) in groups {
        whole.entry((family, None)).or_default().append(&mut group);
    }
    whole
}

/// How long to rest after a look of a cost.
fn rest(cost: Duration) -> Duration {
    (cost * REST).min(LONG_REST.max(cost * LEAST_REST))
}

/// What this thread has used of a core: on a busy machine a look takes longer, but is no greater load.
fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
        return Duration::ZERO;
    };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(answered: Answered, asked: u64, protocol: Protocol) -> Wanted {
        let frontend = Frontend { protocol, address: Some("10.96.0.10".parse().unwrap()), port: 80 };
        Wanted { flows: Flows { family: Family::V4, frontend, answered }, asked, due: None }
    }

    fn flow(from: &str, protocol: Protocol) -> Flow {
        let (destination, answered_from) = ("10.96.0.10:80".parse().unwrap(), from.parse().unwrap());
        Flow { protocol, destination, answered_from }
    }

    #[test]
    fn an_endpoint_that_is_served_again_is_spared() {
        let endpoint: SocketAddr = "10.244.0.1:80".parse().unwrap();
        let mut state = State::default();
        state.served.insert(endpoint, 5);
        for (answered, asked, protocol, spared) in [
            (Answered::By(endpoint), 4, Protocol::Tcp, true),
            (Answered::By(endpoint), 6, Protocol::Tcp, false),
            (Answered::By(endpoint), 4, Protocol::Udp, false),
            (Answered::ByOthersThan(BTreeSet::new()), 4, Protocol::Udp, true),
        ] {
            let one = wanted(answered.clone(), asked, protocol);
            let flow = flow("10.244.0.1:80", protocol);
            assert_eq!(state.is_spared(&flow, &one), spared, "{answered:?} asked at {asked}, {protocol:?}");
        }
    }

    #[test]
    fn what_was_looked_for_is_looked_for_once_more_and_then_no_more() {
        let endpoint: SocketAddr = "10.244.0.1:80".parse().unwrap();
        let mut state = State { waiting: vec![wanted(Answered::By(endpoint), 1, Protocol::Tcp)], ..State::default() };
        assert_eq!(state.next(), Some(Duration::ZERO));
        let due = state.take_due();
        assert_eq!((due.len(), state.looking, state.is_idle()), (1, Some(1), false));
        state.served.insert(endpoint, 2);
        state.looked(due);
        assert!(state.take_due().is_empty(), "not yet");
        assert!(state.served.contains_key(&endpoint), "the second look must know");
        state.waiting[0].due = Some(Instant::now());
        let due = state.take_due();
        assert_eq!(due.len(), 1);
        state.looked(due);
        assert!(state.is_idle() && state.served.is_empty());
        // At the end only what was never looked for is.
        state.waiting = vec![Wanted { due: Some(Instant::now()), ..wanted(Answered::By(endpoint), 3, Protocol::Tcp) }];
        state.closed = true;
        assert!(state.take_due().is_empty());
    }

    #[test]
    fn few_addresses_among_many_flows_are_looked_for_one_by_one() {
        let by = |address: &str| wanted(Answered::By(address.parse().unwrap()), 1, Protocol::Tcp);
        let two = [by("10.244.0.1:80"), by("10.244.0.2:80"), by("10.244.0.2:81")];
        assert_eq!(grouped(&two, 100_000).len(), 2);
        assert_eq!(grouped(&two, 100).len(), 1);
        assert_eq!(grouped(&two[1..], 100).keys().next().unwrap().1, Some("10.244.0.2".parse().unwrap()));
        let many: Vec<Wanted> = (1..=9).map(|n| by(&format!("10.244.0.{n}:80"))).collect();
        assert_eq!(grouped(&many, 1_000_000).len(), 1);
    }

    #[test]
    fn looks_cost_a_small_part_of_a_core() {
        for (cost, expect) in [(1, 200), (10, 2_000), (100, 2_000), (700, 2_100)] {
            assert_eq!(rest(Duration::from_millis(cost)), Duration::from_millis(expect), "{cost} ms");
        }
    }

    #[test]
    fn selections_are_found_by_frontend() {
        let endpoint: SocketAddr = "10.244.0.1:80".parse().unwrap();
        let address = wanted(Answered::By(endpoint), 1, Protocol::Tcp);
        let mut node_port = address.clone();
        node_port.flows.frontend.address = None;
        let all = [address, node_port];
        let index = Index::new(all.iter());
        assert_eq!(index.selecting(&flow("10.244.0.1:80", Protocol::Tcp)).count(), 2);
        assert_eq!(index.selecting(&flow("10.244.0.2:80", Protocol::Tcp)).count(), 0);
        assert_eq!(index.selecting(&flow("10.244.0.1:80", Protocol::Udp)).count(), 0);
    }
}
