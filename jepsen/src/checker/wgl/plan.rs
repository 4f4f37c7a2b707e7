//! One register's operations made ready for the search: values as states, what has to take effect, and which writes
//! stand together. It decides nothing; it leaves out only what can't matter.
//!
//! Invariant: an id is a place in `ops`, a state is [`ABSENT`], [`NEVER`] or the id of the value's writer plus one, and
//! all other tables are made from these; so indexing by them can't fail.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, Call, Operation, Value};

/// What a register holds.
pub(super) type State = u32;
/// Nothing was written yet.
pub(super) const ABSENT: State = 0;
/// A value that no operation can have written.
pub(super) const NEVER: State = u32::MAX;

/// What an operation asks of the register's state, as it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any state will do; it leaves its own.
    Write,
    /// It found this state and left its own.
    Cas(State),
    /// It found this state.
    Read(State),
    /// It found another state than this one.
    Conflict(State),
}

/// An operation of the register.
#[derive(Debug)]
pub(super) struct Op {
    /// Its place in the history.
    pub place: usize,
    pub called: u64,
    /// `u64::MAX` if its answer is unknown.
    pub returned: u64,
    pub kind: Kind,
    /// It took effect, or was answered. Others may be placed, or not.
    pub must: bool,
    /// Of a write that must be placed: its block.
    pub block: u32,
    /// A conflict names its value; or, if it need not be placed, a Cas does.
    pub named: bool,
}

impl Op {
    /// It may be placed or not, and nobody names its value: it is of use to conflicts only.
    pub(super) fn is_spare(&self) -> bool {
        !self.must && !self.named
    }
}

/// A write, the reads of its value, the Cas on that value, the reads of theirs and so on. Values are unique, hence a
/// state that is left never comes back, hence nothing can be placed between these but conflicts.
#[derive(Debug)]
pub(super) struct Block {
    /// A write of it that is placed before the others.
    pub first: u32,
    /// What is placed after this time is placed after some operation of the block.
    pub min_returned: u64,
    pub max_called: u64,
    pub max_returned: u64,
    /// A conflict names one of its values.
    pub named: bool,
}

/// A call, or the return of an operation that has one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub time: u64,
    /// Calls come first: what happens in the same nanosecond is concurrent.
    pub is_return: bool,
    pub id: u32,
}

/// A register's operations, ready for the search.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub ops: Vec<Op>,
    /// Of operations that must be placed, by time.
    pub events: Vec<Event>,
    /// By state: how many reads found it.
    pub reads: Vec<u32>,
    /// By state: how many Cas that must be placed found it. Two can't have.
    pub cas: Vec<u32>,
    pub blocks: Vec<Block>,
    /// Blocks by `min_returned`.
    pub by_returned: Vec<u32>,
    /// Blocks that a conflict names by `max_called`.
    pub named: Vec<u32>,
    /// Conflicts by call.
    pub conflicts: Vec<u32>,
    /// Writes that may be placed, by call, whose value nobody names: one is as good as another.
    pub spare: Vec<u32>,
    /// Cas that may be placed, whose value nobody names, by what they find.
    pub spare_cas: Vec<(State, u32)>,
    /// Others that may be placed.
    pub spare_named: Vec<u32>,
}

enum Ask {
    Write(Value),
    Cas { from: Value, to: Value },
    Read(Option<Value>),
    Conflict(Value),
}

struct Raw {
    place: usize,
    called: u64,
    returned: u64,
    ask: Ask,
    must: bool,
}

impl Raw {
    fn new(place: usize, op: &Operation) -> Option<Self> {
        let (ask, must) = match (&op.call, &op.answer) {
            (Call::Write(_, to), Answer::Done { .. }) => (Ask::Write(*to), true),
            (Call::Write(_, to), Answer::Unknown(_)) => (Ask::Write(*to), false),
            (Call::Cas { from, to, .. }, Answer::Done { .. }) => (Ask::Cas { from: *from, to: *to }, true),
            (Call::Cas { from, to, .. }, Answer::Unknown(_)) => (Ask::Cas { from: *from, to: *to }, false),
            (Call::Cas { from, .. }, Answer::Refused(why)) if why.starts_with(super::CONFLICT) => {
                (Ask::Conflict(*from), true)
            }
            (Call::Read(_), Answer::Value { value, .. }) => (Ask::Read(value.map(|(value, _)| value)), true),
            _ => return None,
        };
        // Only what never returned has no return.
        let returned = if matches!(op.answer, Answer::Unknown(_)) { u64::MAX } else { op.returned.min(u64::MAX - 1) };
        Some(Self { place, called: op.called, returned, ask, must })
    }

    fn writes(&self) -> Option<Value> {
        match self.ask {
            Ask::Write(to) | Ask::Cas { to, .. } => Some(to),
            Ask::Read(_) | Ask::Conflict(_) => None,
        }
    }
}

impl Plan {
    /// Makes the plan of the operations of one register, which are at `places` of the history.
    ///
    /// # Errors
    ///
    /// Two operations write the same value: then values don't tell writes apart, and nothing can be judged.
    pub(super) fn new(history: &[Operation], places: &[usize]) -> Result<Self, String> {
        let each = places.iter().filter_map(|place| Some((*place, history.get(*place)?)));
        let mut raws: Vec<Raw> = each.filter_map(|(place, op)| Raw::new(place, op)).collect();
        let mut writers: BTreeMap<Value, usize> = BTreeMap::new();
        for (at, raw) in raws.iter().enumerate() {
            if let Some(value) = raw.writes()
                && let Some(other) = writers.insert(value, at)
            {
                let other = raws.get(other).map_or(0, |raw| raw.place);
                return Err(format!("operations {other} and {} both write {value}: not unique", raw.place));
            }
        }
        require(&mut raws, &writers);
        prune(&mut raws);
        let mut plan = Self::default();
        plan.intern(&raws);
        plan.sort_events();
        plan.make_blocks();
        plan.sort_spares();
        Ok(plan)
    }

    fn intern(&mut self, raws: &[Raw]) {
        let written = raws.iter().zip(1..).filter_map(|(raw, state)| Some((raw.writes()?, state)));
        let states: BTreeMap<Value, State> = written.collect();
        let state = |value: &Value| states.get(value).copied().unwrap_or(NEVER);
        self.reads = vec![0; raws.len() + 1];
        self.cas = vec![0; raws.len() + 1];
        for raw in raws {
            let kind = match &raw.ask {
                Ask::Write(_) => Kind::Write,
                Ask::Cas { from, .. } => Kind::Cas(state(from)),
                Ask::Read(value) => Kind::Read(value.as_ref().map_or(ABSENT, state)),
                Ask::Conflict(from) => Kind::Conflict(state(from)),
            };
            match kind {
                Kind::Read(of) if of != NEVER => self.reads[of as usize] += 1,
                Kind::Cas(of) if of != NEVER && raw.must => self.cas[of as usize] += 1,
                _ => {}
            }
            let (place, called, returned, must) = (raw.place, raw.called, raw.returned, raw.must);
            self.ops.push(Op { place, called, returned, kind, must, block: u32::MAX, named: false });
        }
        for at in 0..self.ops.len() {
            let (Kind::Conflict(of) | Kind::Cas(of)) = self.ops[at].kind else { continue };
            let is_conflict = matches!(self.ops[at].kind, Kind::Conflict(_));
            if of == NEVER || of == ABSENT {
                continue;
            }
            let writer = &mut self.ops[of as usize - 1];
            writer.named |= is_conflict || !writer.must;
        }
    }

    fn sort_events(&mut self) {
        for (op, id) in self.ops.iter().zip(0..) {
            if op.must {
                self.events.push(Event { time: op.called, is_return: false, id });
                if op.returned != u64::MAX {
                    self.events.push(Event { time: op.returned, is_return: true, id });
                }
            }
            if let Kind::Conflict(_) = op.kind {
                self.conflicts.push(id);
            }
        }
        self.events.sort_unstable();
        self.conflicts.sort_unstable_by_key(|id| self.ops[*id as usize].called);
    }

    fn make_blocks(&mut self) {
        for at in 0..self.ops.len() {
            // Up the chain of Cas to a write whose block is known, or that is no Cas; then down again.
            let mut chain = Vec::new();
            let mut next = at;
            while self.ops[next].must && self.ops[next].block == u32::MAX {
                match self.ops[next].kind {
                    // A chain longer than all operations is a ring, which can never be placed.
                    Kind::Cas(of) if of != NEVER && of != ABSENT && chain.len() <= self.ops.len() => {
                        chain.push(next);
                        next = of as usize - 1;
                    }
                    Kind::Write | Kind::Cas(_) => {
                        self.ops[next].block = self.blocks.len() as u32;
                        self.blocks.push(Block {
                            first: next as u32,
                            min_returned: u64::MAX,
                            max_called: 0,
                            max_returned: 0,
                            named: false,
                        });
                    }
                    Kind::Read(_) | Kind::Conflict(_) => break,
                }
            }
            let block = self.ops[next].block;
            for id in chain {
                self.ops[id].block = block;
            }
        }
        self.measure_blocks();
    }

    fn measure_blocks(&mut self) {
        for at in 0..self.ops.len() {
            let (op, block) = (&self.ops[at], self.block_of(&self.ops[at]));
            let Some(block) = self.blocks.get_mut(block as usize) else { continue };
            block.min_returned = block.min_returned.min(op.returned);
            block.max_called = block.max_called.max(op.called);
            block.named |= op.named;
            if op.returned != u64::MAX {
                block.max_returned = block.max_returned.max(op.returned);
            }
        }
        let ids = 0..self.blocks.len() as u32;
        self.by_returned = ids.clone().collect();
        self.by_returned.sort_unstable_by_key(|id| self.blocks[*id as usize].min_returned);
        self.named = ids.filter(|id| self.blocks[*id as usize].named).collect();
        self.named.sort_unstable_by_key(|id| self.blocks[*id as usize].max_called);
    }

    /// The block that a write, or a read of its value, belongs to.
    pub(super) fn block_of(&self, op: &Op) -> u32 {
        match op.kind {
            Kind::Read(of) if of != NEVER && of != ABSENT => self.ops[of as usize - 1].block,
            _ => op.block,
        }
    }

    /// An operation that found what nobody can have written: no order will do.
    pub(super) fn impossible(&self) -> Option<&Op> {
        self.ops.iter().find(|op| op.must && matches!(op.kind, Kind::Read(NEVER) | Kind::Cas(NEVER | ABSENT)))
    }

    fn sort_spares(&mut self) {
        for (op, id) in self.ops.iter().zip(0..) {
            match op.kind {
                _ if op.must => {}
                _ if !op.is_spare() => self.spare_named.push(id),
                Kind::Write => self.spare.push(id),
                Kind::Cas(of) => self.spare_cas.push((of, id)),
                Kind::Read(_) | Kind::Conflict(_) => {}
            }
        }
        self.spare.sort_unstable_by_key(|id| self.ops[*id as usize].called);
        self.spare_cas.sort_unstable_by_key(|(of, id)| (*of, self.ops[*id as usize].called));
    }
}

/// A write of unknown outcome took effect if its value was found: by a read, by a Cas that succeeded, or by one of
/// unknown outcome that took effect for this very reason.
fn require(raws: &mut [Raw], writers: &BTreeMap<Value, usize>) {
    let mut found: Vec<Value> = Vec::new();
    for raw in raws.iter() {
        match raw.ask {
            Ask::Read(Some(value)) => found.push(value),
            Ask::Cas { from, .. } if raw.must => found.push(from),
            _ => {}
        }
    }
    let mut seen: BTreeSet<Value> = BTreeSet::new();
    while let Some(value) = found.pop() {
        if !seen.insert(value) {
            continue;
        }
        if let Some(raw) = writers.get(&value).and_then(|at| raws.get_mut(*at)) {
            raw.must = true;
            if let Ask::Cas { from, .. } = raw.ask {
                found.push(from);
            }
        }
    }
}

/// Leaves out the writes of unknown outcome whose value nobody found, which is sound:
///
/// Say that such a write `u` is part of a good order. Values are unique, so the state it leaves is its own; no read and
/// no successful Cas found that state; so only conflicts may stand between it and the next write. If none does, the
/// order is as good without `u`: it never took effect. If one does, `u` may be what made it true, so `u` stays if any
/// conflict returned after `u` was called. A Cas of unknown outcome on `u`'s own value is no use to anybody either, by
/// the same argument, unless a conflict keeps it.
fn prune(raws: &mut Vec<Raw>) {
    let conflicts = raws.iter().filter(|raw| matches!(raw.ask, Ask::Conflict(_)));
    let last = conflicts.map(|raw| raw.returned).max();
    raws.retain(|raw| raw.must || last.is_some_and(|last| last >= raw.called));
}
