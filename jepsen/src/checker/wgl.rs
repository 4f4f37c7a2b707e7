//! Linearizability of registers by values alone: the search of Wing and Gong with Lowe's memory of (set of placed
//! operations, state), register by register, as linearizability is local. It doesn't look at revisions, so that it
//! would catch a cluster that lies consistently in those as well.
//!
//! Values are unique, so a state that was left never comes back. That rules out nearly all choices at once; where no
//! Cas was refused for a conflict the search never goes back at all. Invariant: a choice is left out only if it can't
//! lead to an order, or if another one leads to an order whenever it does.

mod plan;
mod stuck;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::plan::{Kind, Op, Plan, State};
use self::stuck::{Stuck, Why};
use super::{Findings, is_register, nothing};
use crate::history::{Call, Key, Operation, Verdict};

/// How the reason of a refused Cas begins that found another value. Those refused for another reason say nothing.
pub const CONFLICT: &str = "conflict";
/// How many placements of one register are tried before the search is given up.
pub const BUDGET: u64 = 20_000_000;
/// Below this many operations threads cost more than they save.
const WORTH_THREADS: usize = 5_000;

/// Is there, for each register, an order of its operations in which each finds what it found and none is placed before
/// one that had returned when it was called? [`Verdict::Unknown`] names the registers whose search was given up after
/// [`BUDGET`] steps.
#[must_use]
pub fn registers(history: &[Operation]) -> Verdict {
    registers_within(history, BUDGET)
}

/// [`registers`] with another budget of steps for each register.
#[must_use]
pub fn registers_within(history: &[Operation], budget: u64) -> Verdict {
    let mut keys: BTreeMap<&Key, Vec<usize>> = BTreeMap::new();
    for (place, op) in history.iter().enumerate() {
        if let Call::Write(key, _) | Call::Read(key) | Call::Cas { key, .. } = &op.call {
            keys.entry(key).or_default().push(place);
        }
    }
    if !history.iter().any(|op| op.is_done() && is_register(&op.call)) {
        return nothing("operation on a register");
    }
    let keys: Vec<(&Key, Vec<usize>)> = keys.into_iter().collect();
    let mut findings = Findings::default();
    let mut unknown = Vec::new();
    for (key, outcome) in judge_all(history, &keys, budget) {
        match outcome {
            Outcome::Fits => {}
            Outcome::Unknown(why) => unknown.push(format!("{key}: {why}")),
            Outcome::Stuck(stuck) => findings.add("not-linearizable", &stuck.operations(), stuck.tell(history, key)),
        }
    }
    match findings.verdict() {
        Verdict::Valid if !unknown.is_empty() => Verdict::Unknown(unknown.join("; ")),
        verdict => verdict,
    }
}

fn judge_all<'a>(history: &[Operation], keys: &[(&'a Key, Vec<usize>)], budget: u64) -> Vec<(&'a Key, Outcome)> {
    if history.len() < WORTH_THREADS {
        return keys.iter().map(|(key, places)| (*key, judge(history, places, budget))).collect();
    }
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(keys.len()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(keys.len()) {
            scope.spawn(|| {
                while let Some((key, places)) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = judge(history, places, budget);
                    outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((*key, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    outcomes.sort_unstable_by_key(|(key, _)| *key);
    outcomes
}

fn judge(history: &[Operation], places: &[usize], budget: u64) -> Outcome {
    match Plan::new(history, places) {
        Ok(plan) => match plan.impossible() {
            Some(op) => Outcome::Stuck(Stuck { misfit: op.place, why: Why::NeverWritten, ..Stuck::default() }),
            None => Search::new(&plan).run(budget),
        },
        Err(why) => Outcome::Unknown(why),
    }
}

enum Outcome {
    Fits,
    Stuck(Stuck),
    Unknown(String),
}

/// Where the search is, as far as it can't be told from the trail.
#[derive(Clone)]
struct Cursor {
    state: State,
    /// Of the set of placed operations.
    hash: u128,
    /// The next event. If it is a return, its operation isn't placed: nothing that is called later may be placed now.
    event: usize,
    /// Called, must be placed, isn't yet.
    pending: Vec<u32>,
    /// How many of `spare` are placed.
    spare: usize,
    /// The first of `by_returned`, of `named`, and of `conflicts` that isn't placed.
    block: usize,
    named: usize,
    conflict: usize,
}

struct Frame {
    cursor: Cursor,
    trail: usize,
    choices: Vec<u32>,
}

/// The stuck place with the most operations placed.
struct Best {
    placed: usize,
    cursor: Cursor,
    last: Vec<u32>,
    /// A block that could be next by its call alone, and one that has to stand before it.
    late: Option<(u32, u32)>,
}

enum Next {
    Place(u32),
    Choose(Vec<u32>),
    Stuck,
}

/// INVARIANT: ids, states and blocks are those of the plan, so indexing by them can't fail.
struct Search<'a> {
    plan: &'a Plan,
    at: Cursor,
    placed: Vec<bool>,
    /// By state: reads of it, and Cas that found it, which aren't placed.
    reads: Vec<u32>,
    cas: Vec<u32>,
    trail: Vec<u32>,
    frames: Vec<Frame>,
    /// Sets and states that lead nowhere, or are being tried, with how few of `spare` placed: fewer would be better.
    /// Sets are of what must be placed or is named, by a hash of 128 bits: that two of the at most 2^25 of a search
    /// meet is less likely than a memory error.
    seen: BTreeMap<(u128, State), usize>,
    best: Option<Best>,
}

impl<'a> Search<'a> {
    fn new(plan: &'a Plan) -> Self {
        let pending = Vec::new();
        let at = Cursor { state: plan::ABSENT, hash: 0, event: 0, pending, spare: 0, block: 0, named: 0, conflict: 0 };
        Self {
            plan,
            at,
            placed: vec![false; plan.ops.len()],
            reads: plan.reads.clone(),
            cas: plan.cas.clone(),
            trail: Vec::new(),
            frames: Vec::new(),
            seen: BTreeMap::new(),
            best: None,
        }
    }

    fn run(mut self, budget: u64) -> Outcome {
        for _ in 0..budget {
            self.settle();
            if self.at.event == self.plan.events.len() {
                // All that is left are unknown writes which must be placed because they were found. They can't be left:
                // what found them is placed.
                return Outcome::Fits;
            }
            match self.next() {
                Next::Place(id) => self.place(id),
                Next::Choose(choices) => {
                    self.frames.push(Frame { cursor: self.at.clone(), trail: self.trail.len(), choices });
                    self.retry();
                }
                Next::Stuck => {
                    self.remember();
                    if !self.retry() {
                        return Outcome::Stuck(self.explain());
                    }
                }
            }
        }
        Outcome::Unknown(format!("given up after {budget} steps with {} operations", self.plan.ops.len()))
    }

    /// Takes all calls up to the next return, and places what changes nothing and finds what it must. Placing these as
    /// early as possible is always right: it stands in nobody's way.
    fn settle(&mut self) {
        let plan = self.plan;
        loop {
            while let Some(event) = plan.events.get(self.at.event) {
                match (event.is_return, self.placed[event.id as usize]) {
                    (false, false) => self.at.pending.push(event.id),
                    (true, false) => break,
                    (_, true) => {}
                }
                self.at.event += 1;
            }
            let before = self.trail.len();
            let mut at = 0;
            while let Some(id) = self.at.pending.get(at).copied() {
                let fits = match plan.ops[id as usize].kind {
                    Kind::Read(of) => of == self.at.state,
                    Kind::Conflict(of) => of != self.at.state,
                    Kind::Write | Kind::Cas(_) => false,
                };
                if fits {
                    self.place(id);
                } else {
                    at += 1;
                }
            }
            if self.trail.len() == before {
                break;
            }
        }
        self.at.block = skip(self.at.block, &plan.by_returned, |block| self.is_begun(block));
        self.at.named = skip(self.at.named, &plan.named, |block| self.is_begun(block));
        self.at.conflict = skip(self.at.conflict, &plan.conflicts, |id| self.placed[id as usize]);
    }

    fn is_begun(&self, block: u32) -> bool {
        self.placed[self.plan.blocks[block as usize].first as usize]
    }

    fn next(&mut self) -> Next {
        let state = self.at.state as usize;
        if self.reads[state] > 0 || self.cas[state] > 1 {
            return Next::Stuck;
        }
        let pending = self.at.pending.iter().copied();
        if self.cas[state] == 1 {
            let found = |id: &u32| self.plan.ops[*id as usize].kind == Kind::Cas(self.at.state);
            return pending.clone().find(found).map_or(Next::Stuck, Next::Place);
        }
        let block = |id: &u32| self.plan.ops[*id as usize].block;
        let is_write = |id: &u32| self.plan.ops[*id as usize].kind == Kind::Write;
        let mut choices: Vec<u32> =
            pending.clone().filter(|id| is_write(id) && self.predecessor(block(id)).is_none()).collect();
        if let Some(id) = choices.iter().find(|id| self.is_safe(block(id))) {
            return Next::Place(*id);
        }
        choices.sort_unstable_by_key(|id| self.plan.blocks[block(id) as usize].min_returned);
        // What settle() left of conflicts needs another state than this one.
        if pending.clone().any(|id| matches!(self.plan.ops[id as usize].kind, Kind::Conflict(_))) {
            self.add_spares(&mut choices);
        }
        match choices.as_slice() {
            [] => Next::Stuck,
            [only] if self.frames.is_empty() => Next::Place(*only),
            _ if self.is_new() => Next::Choose(choices),
            _ => Next::Stuck,
        }
    }

    /// It wasn't here before with as many writes to spare. The values that nobody names are all the same state.
    fn is_new(&mut self) -> bool {
        let writer = self.at.state.checked_sub(1).and_then(|id| self.plan.ops.get(id as usize));
        let state = if writer.is_some_and(Op::is_spare) { plan::NEVER } else { self.at.state };
        let fewest = self.seen.entry((self.at.hash, state)).or_insert(usize::MAX);
        let is_new = *fewest > self.at.spare;
        *fewest = self.at.spare.min(*fewest);
        is_new
    }

    /// A block that isn't begun and has an operation which returned before one of this block was called.
    fn predecessor(&self, block: u32) -> Option<u32> {
        let rest = self.plan.by_returned.get(self.at.block..).unwrap_or_default();
        let first = rest.iter().copied().find(|other| *other != block && !self.is_begun(*other));
        let max_called = self.plan.blocks[block as usize].max_called;
        first.filter(|other| self.plan.blocks[*other as usize].min_returned < max_called)
    }

    /// If there is any order from here, there is one that begins with this block, which has no [`Self::predecessor`]:
    /// take the block out of it and put it first. Real time allows that. What it was put before finds its own blocks'
    /// states as before. Only conflicts could mind: those that stood before the block's end, and those that stood right
    /// behind it and now stand behind another block, which they name.
    fn is_safe(&self, block: u32) -> bool {
        let me = &self.plan.blocks[block as usize];
        let conflict = self.plan.conflicts.get(self.at.conflict);
        if conflict.is_some_and(|id| self.plan.ops[*id as usize].called <= me.max_returned) {
            return false;
        }
        let rest = self.plan.named.get(self.at.named..).unwrap_or_default();
        let first = rest.iter().find(|other| **other != block && !self.is_begun(**other));
        first.is_none_or(|other| self.plan.blocks[*other as usize].max_called > me.min_returned)
    }

    /// Writes that may be placed or not are of use to conflicts only, and right before these. Among those that nobody
    /// names a Cas comes first, as it can't be of use in another state, and then one is as good as another.
    fn add_spares(&self, choices: &mut Vec<u32>) {
        let now = self.plan.events.get(self.at.event).map_or(0, |event| event.time);
        let can = |id: u32| !self.placed[id as usize] && self.plan.ops[id as usize].called <= now;
        let begin = self.plan.spare_cas.partition_point(|(of, _)| *of < self.at.state);
        let all = self.plan.spare_cas.get(begin..).unwrap_or_default();
        let mut cas = all.iter().take_while(|(of, _)| *of == self.at.state).map(|(_, id)| *id);
        if let Some(id) = cas.find(|id| can(*id)) {
            choices.push(id);
        } else if let Some(id) = self.plan.spare.get(self.at.spare).filter(|id| can(**id)) {
            choices.push(*id);
        }
        for id in self.plan.spare_named.iter().copied().filter(|id| can(*id)) {
            match self.plan.ops[id as usize].kind {
                Kind::Cas(of) if of != self.at.state => {}
                _ => choices.push(id),
            }
        }
    }

    fn place(&mut self, id: u32) {
        let op = &self.plan.ops[id as usize];
        self.placed[id as usize] = true;
        self.trail.push(id);
        if !op.is_spare() {
            self.at.hash ^= u128::from(mix(u64::from(id) * 2)) << 64 | u128::from(mix(u64::from(id) * 2 + 1));
        }
        if op.must
            && let Some(at) = self.at.pending.iter().position(|other| *other == id)
        {
            self.at.pending.swap_remove(at);
        }
        if self.plan.spare.get(self.at.spare) == Some(&id) {
            self.at.spare += 1;
        }
        match op.kind {
            Kind::Read(of) => self.reads[of as usize] -= 1,
            Kind::Cas(of) if op.must => self.cas[of as usize] -= 1,
            _ => {}
        }
        if matches!(op.kind, Kind::Write | Kind::Cas(_)) {
            self.at.state = id + 1;
        }
    }

    /// Goes back to the last place with a choice that wasn't tried, and tries it. False: there is none.
    fn retry(&mut self) -> bool {
        while let Some(frame) = self.frames.last_mut() {
            for id in self.trail.drain(frame.trail..) {
                let op = &self.plan.ops[id as usize];
                self.placed[id as usize] = false;
                match op.kind {
                    Kind::Read(of) => self.reads[of as usize] += 1,
                    Kind::Cas(of) if op.must => self.cas[of as usize] += 1,
                    _ => {}
                }
            }
            self.at.clone_from(&frame.cursor);
            if frame.choices.is_empty() {
                self.frames.pop();
                continue;
            }
            let id = frame.choices.remove(0);
            self.place(id);
            return true;
        }
        false
    }

    fn remember(&mut self) {
        let placed = self.trail.len();
        if self.best.as_ref().is_some_and(|best| best.placed >= placed) {
            return;
        }
        let last = self.trail.iter().rev().take(Stuck::LAST).rev().copied().collect();
        let writes = self.at.pending.iter().map(|id| &self.plan.ops[*id as usize]);
        let blocks = writes.filter(|op| op.kind == Kind::Write).map(|op| op.block);
        let late = blocks.filter_map(|block| Some((block, self.predecessor(block)?)));
        let late = late.min_by_key(|(block, _)| self.plan.blocks[*block as usize].min_returned);
        self.best = Some(Best { placed, cursor: self.at.clone(), last, late });
    }

    fn explain(&self) -> Stuck {
        let Some(Best { placed, cursor, last, late }) = &self.best else { return Stuck::default() };
        let ops = &self.plan.ops;
        let place = |id: &u32| ops[*id as usize].place;
        let mut stuck = Stuck {
            placed: *placed,
            total: ops.iter().filter(|op| op.must).count(),
            misfit: self.plan.events.get(cursor.event).map_or(0, |event| place(&event.id)),
            why: Why::NoChoice,
            pending: cursor.pending.iter().map(place).collect(),
            last: last.iter().map(place).collect(),
        };
        // Reads of the state that were called before the next return are placed, so the last one isn't, if any.
        let is_late = |called: u64| self.plan.events.get(cursor.event).is_some_and(|event| called > event.time);
        let reads = ops.iter().filter(|op| op.kind == Kind::Read(cursor.state) && is_late(op.called));
        let cas = ops.iter().filter(|op| op.must && op.kind == Kind::Cas(cursor.state));
        let held: Vec<usize> = reads.max_by_key(|op| op.called).into_iter().chain(cas).map(|op| op.place).collect();
        let of = |block: u32| ops.iter().filter(move |op| self.plan.block_of(op) == block);
        if !held.is_empty() {
            stuck.why = Why::Held(held);
        } else if let Some((block, before)) = late
            && let Some(misfit) = of(*block).max_by_key(|op| op.called)
            && let Some(other) = of(*before).min_by_key(|op| op.returned)
        {
            let write = place(&self.plan.blocks[*block as usize].first);
            (stuck.misfit, stuck.why) = (misfit.place, Why::Late { write, other: other.place });
        }
        stuck
    }
}

fn skip(from: usize, list: &[u32], done: impl Fn(u32) -> bool) -> usize {
    let rest = list.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|id| done(**id)).count()
}

/// SplitMix64's mixing function: a number that looks random for each.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
