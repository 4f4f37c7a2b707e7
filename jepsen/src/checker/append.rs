//! Lists, as Elle judges them: what reads show gives the order of each list's appends, that order and real time give
//! dependencies, and a cycle of dependencies can't be in any order. It doesn't look at revisions.
//!
//! Invariant: a dependency is drawn only where every order that explains the answers has it, so each cycle is an
//! anomaly.

mod graph;

use std::collections::{BTreeMap, BTreeSet};

use self::graph::Graph;
use super::{Findings, is_list, nothing, writers};
use crate::history::{Answer, Call, Key, Operation, Value, Verdict};

/// Is there an order of appends and reads of lists that explains each answer and agrees with real time?
#[must_use]
pub fn lists(history: &[Operation]) -> Verdict {
    if !history.iter().any(|op| op.is_done() && is_list(&op.call)) {
        return nothing("operation on a list");
    }
    let written = |call: &Call| if let Call::Append(_, value) = call { Some(*value) } else { None };
    let writers = match writers(history, written) {
        Ok(writers) => writers,
        Err(verdict) => return verdict,
    };
    let mut lists = Lists { history, writers, keys: BTreeMap::new(), findings: Findings::default() };
    lists.gather();
    let keys = std::mem::take(&mut lists.keys);
    for (key, list) in &keys {
        lists.check_values(key, list);
        lists.check_lost(key, list);
    }
    lists.check_cycles(&keys);
    lists.findings.verdict()
}

/// What was seen of one list.
#[derive(Default)]
struct List<'a> {
    /// The longest that was read, which is the order of its appends.
    longest: &'a [Value],
    /// Who read it.
    by: usize,
    /// Reads: place, and what they saw.
    reads: Vec<(usize, &'a [Value])>,
    /// Appends that succeeded.
    acked: Vec<usize>,
}

impl List<'_> {
    fn is_prefix(&self, values: &[Value]) -> bool {
        self.longest.starts_with(values)
    }
}

type Keys<'a> = BTreeMap<&'a Key, List<'a>>;

struct Lists<'a> {
    history: &'a [Operation],
    writers: BTreeMap<Value, usize>,
    keys: Keys<'a>,
    findings: Findings,
}

impl<'a> Lists<'a> {
    fn gather(&mut self) {
        for (place, op) in self.history.iter().enumerate() {
            match (&op.call, &op.answer) {
                (Call::Append(key, _), Answer::Done { .. }) => self.keys.entry(key).or_default().acked.push(place),
                (Call::ReadLists(asked), Answer::Lists { lists, .. }) => {
                    let asked: BTreeSet<&'a Key> = asked.iter().chain(lists.keys()).collect();
                    for key in asked {
                        let values = lists.get(key).map(Vec::as_slice).unwrap_or_default();
                        let list = self.keys.entry(key).or_default();
                        list.reads.push((place, values));
                        if values.len() > list.longest.len() {
                            (list.longest, list.by) = (values, place);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn called(&self, place: usize) -> u64 {
        self.history.get(place).map_or(0, |op| op.called)
    }

    fn returned(&self, place: usize) -> u64 {
        self.history.get(place).map_or(u64::MAX, |op| op.returned)
    }

    /// Each list that was read is a prefix of the longest one; each value was appended to it, and once.
    fn check_values(&mut self, key: &Key, list: &List<'_>) {
        for (place, values) in &list.reads {
            // A prefix of the longest shows nothing that the longest doesn't.
            if list.is_prefix(values) && *place != list.by {
                continue;
            }
            if !list.is_prefix(values) {
                let at = values.iter().zip(list.longest).take_while(|(one, two)| one == two).count();
                let (one, two) = (values.get(at), list.longest.get(at));
                let what = format!("{key}: at {at} operation {place} read {one:?}, but {} read {two:?}", list.by);
                self.findings.add("incompatible-order", &[*place, list.by], what);
            }
            let mut seen = BTreeSet::new();
            for value in *values {
                if !seen.insert(*value) {
                    let what = format!("{key}: operation {place} read {value} twice");
                    self.findings.add("duplicate", &[*place], what);
                }
                self.check_value(key, *place, *value);
            }
        }
    }

    fn check_value(&mut self, key: &Key, place: usize, value: Value) {
        let Some(writer) = self.writers.get(&value).copied() else {
            let what = format!("{key}: operation {place} read {value}, which nobody appended");
            self.findings.add("phantom-value", &[place], what);
            return;
        };
        let Some(Operation { call: Call::Append(to, _), answer, .. }) = self.history.get(writer) else { return };
        if to != key {
            let what = format!("{key}: operation {place} read {value}, which operation {writer} appended to {to}");
            self.findings.add("phantom-value", &[place, writer], what);
        } else if matches!(answer, Answer::Refused(_)) {
            let what = format!("{key}: operation {place} read {value}, whose append {writer} was refused");
            self.findings.add("refused-write-visible", &[place, writer], what);
        }
    }

    /// Each append that had returned when a read was called is in what it read.
    fn check_lost(&mut self, key: &Key, list: &List<'_>) {
        let positions: BTreeMap<Value, usize> = list.longest.iter().zip(0..).map(|(value, at)| (*value, at)).collect();
        let mut acked = list.acked.clone();
        acked.sort_by_key(|place| self.returned(*place));
        // For each number of appends that returned first: the furthest of them in the list, and which one that is.
        let mut furthest: Vec<(usize, usize)> = Vec::with_capacity(acked.len());
        for place in &acked {
            let position = match self.history.get(*place).map(|op| &op.call) {
                Some(Call::Append(_, value)) => positions.get(value).copied().unwrap_or(usize::MAX),
                _ => continue,
            };
            furthest.push(furthest.last().copied().max(Some((position, *place))).unwrap_or_default());
        }
        for (place, values) in &list.reads {
            // Others are reported, and positions in them are unknown.
            if !list.is_prefix(values) {
                continue;
            }
            let called = self.called(*place);
            let before = acked.partition_point(|append| self.returned(*append) < called);
            let last = before.checked_sub(1).and_then(|at| furthest.get(at));
            if let Some((_, lost)) = last.filter(|(position, _)| *position >= values.len()) {
                let what = format!("{key}: operation {place} doesn't show append {lost}, which had returned before");
                self.findings.add("lost-write", &[*place, *lost], what);
            }
        }
    }

    /// The graph of what must stand before what: its first nodes are the operations.
    fn check_cycles(&mut self, keys: &Keys<'_>) {
        let mut graph = Graph::new(self.history.len());
        for list in keys.values() {
            let appends: Vec<Option<usize>> =
                list.longest.iter().map(|value| self.writers.get(value).copied()).collect();
            // Behind all that was read stand the appends that succeeded and that no read shows yet.
            let end = graph.add_node();
            let shown: BTreeSet<usize> = appends.iter().copied().flatten().collect();
            for append in list.acked.iter().filter(|append| !shown.contains(append)) {
                graph.add_edge(end, *append);
            }
            let node = |at: usize| if at < appends.len() { appends.get(at).copied().flatten() } else { Some(end) };
            for at in 0..appends.len() {
                if let (Some(one), Some(next)) = (node(at), node(at + 1)) {
                    graph.add_edge(one, next);
                }
            }
            for (place, values) in list.reads.iter().filter(|(_, values)| list.is_prefix(values)) {
                if let Some(last) = values.len().checked_sub(1).and_then(&node) {
                    graph.add_edge(last, *place);
                }
                if let Some(next) = node(values.len()) {
                    graph.add_edge(*place, next);
                }
            }
        }
        self.add_real_time(&mut graph);
        for cycle in graph.cycles() {
            let what = format!("operations {cycle:?} must each stand before the next, and the last before the first");
            self.findings.add("cycle", &cycle, what);
        }
    }

    /// Real time in O(n log n): a chain of moments at which something returned. An operation stands before its own
    /// moment, and the last moment before its call stands before it.
    fn add_real_time(&self, graph: &mut Graph) {
        let ops = self.history.iter().enumerate().filter(|(_, op)| is_list(&op.call));
        let mut moments: Vec<(u64, usize)> =
            ops.clone().filter(|(_, op)| op.is_done()).map(|(place, op)| (op.returned, place)).collect();
        moments.sort_unstable();
        let nodes: Vec<usize> = moments.iter().map(|_| graph.add_node()).collect();
        for (((_, place), node), next) in moments.iter().zip(&nodes).zip(nodes.iter().skip(1).map(Some).chain([None])) {
            graph.add_edge(*place, *node);
            if let Some(next) = next {
                graph.add_edge(*node, *next);
            }
        }
        for (place, op) in ops {
            let before = moments.partition_point(|(returned, _)| *returned < op.called);
            if let Some(node) = before.checked_sub(1).and_then(|at| nodes.get(at)) {
                graph.add_edge(*node, place);
            }
        }
    }
}
