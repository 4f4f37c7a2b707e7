//! The search of `wgl` says what other searches say that know none of its rules: stateright's on tiny histories, and
//! one with a memory and no other rule on small ones.

use std::collections::BTreeSet;
use std::sync::Mutex;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::{Random, Shape, each, generate, scaled, wgl};
use crate::history::{Answer, Call, Operation, Verdict};

/// stateright's sequential specification of a register.
#[derive(Clone)]
struct Register(Option<u64>);

#[derive(Clone, Debug, PartialEq)]
enum Ret {
    Done,
    Conflict,
    Value(Option<u64>),
}

impl SequentialSpec for Register {
    type Op = Call;
    type Ret = Ret;

    fn invoke(&mut self, op: &Call) -> Ret {
        match op {
            Call::Write(_, to) => self.0 = Some(*to),
            Call::Cas { from, .. } if self.0 != Some(*from) => return Ret::Conflict,
            Call::Cas { to, .. } => self.0 = Some(*to),
            _ => return Ret::Value(self.0),
        }
        Ret::Done
    }
}

fn stateright_passes(history: &[Operation]) -> bool {
    let mut tester = LinearizabilityTester::new(Register(None));
    let mut events = Vec::new();
    for (place, op) in history.iter().enumerate() {
        let ret = match &op.answer {
            Answer::Done { .. } => Some(Ret::Done),
            Answer::Value { value, .. } => Some(Ret::Value(value.map(|(value, _)| value))),
            Answer::Refused(why) if why == "conflict" => Some(Ret::Conflict),
            Answer::Unknown(_) if op.is_write() => None,
            _ => continue,
        };
        events.push((op.called, false, place, None));
        if ret.is_some() {
            events.push((op.returned, true, place, ret));
        }
    }
    events.sort_by_key(|(time, is_return, place, _)| (*time, *is_return, *place));
    for (_, _, place, ret) in events {
        match ret {
            // A thread of its own for each operation: real time orders them just as well.
            None => drop(tester.on_invoke(place, history[place].call.clone()).unwrap()),
            Some(ret) => drop(tester.on_return(place, ret).unwrap()),
        }
    }
    tester.is_consistent()
}

/// At most 8 operations at random times with random answers: mostly nonsense, which a generator of good ones never
/// makes.
fn nonsense(random: &mut Random) -> Vec<Operation> {
    let count = 2 + random.index(7);
    let mut values = vec![99];
    let mut history: Vec<Operation> = Vec::new();
    let width = 2 + random.index(12);
    for place in 0..count {
        let called = random.index(24) as u64;
        let returned = called + random.index(width) as u64;
        let value = values[random.index(values.len())];
        let to = place as u64 + 1;
        let key = || "r".to_owned();
        let call = match random.index(3) {
            0 => Call::Read(key()),
            1 => Call::Write(key(), to),
            _ => Call::Cas { key: key(), from: random.index(count + 2) as u64, revision: 0, to },
        };
        if !matches!(call, Call::Read(_)) {
            values.push(to);
        }
        let answer = match (random.index(6), &call) {
            (0, Call::Write(..) | Call::Cas { .. }) => Answer::Unknown(String::new()),
            (1 | 2, Call::Cas { .. }) => Answer::Refused("conflict".to_owned()),
            (3, Call::Cas { .. }) => Answer::Refused("no leader".to_owned()),
            (0, Call::Read(_)) => Answer::Value { value: None, revision: 0 },
            (_, Call::Read(_)) => Answer::Value { value: Some((value, 0)), revision: 0 },
            _ => Answer::Done { revision: 0 },
        };
        let returned = if matches!(answer, Answer::Unknown(_)) { u64::MAX } else { returned };
        history.push(Operation { process: place as u32, node: 1, called, returned, call, answer });
    }
    // Only a read may be the first to know of a later value: let reads choose among all.
    for op in &mut history {
        if let Answer::Value { value: Some((value, _)), .. } = &mut op.answer
            && random.per_mille(500)
        {
            *value = values[random.index(values.len())];
        }
    }
    history
}

fn tiny(seed: u64) -> Vec<Operation> {
    let mut random = Random::new(seed);
    if seed.is_multiple_of(2) {
        return nonsense(&mut random);
    }
    let shape = Shape {
        operations: 8,
        processes: 2 + random.index(4) as u32,
        keys: 1,
        weights: [1, 0, 0],
        unknown: 150,
        ..Shape::default()
    };
    let mut history = generate(seed, &shape);
    for _ in 0..random.index(3) {
        let (one, two) = (random.index(8), random.index(8));
        let answer = history[two].answer.clone();
        match (&mut history[one].answer, answer, random.index(2)) {
            (Answer::Value { value, .. }, Answer::Value { value: other, .. }, _) => *value = other,
            (Answer::Done { .. }, _, 0) => history[one].answer = Answer::Refused("no leader".to_owned()),
            (Answer::Refused(why), _, 1) if why == "conflict" => history[one].answer = Answer::Done { revision: 0 },
            _ => {}
        }
    }
    history
}

fn agree(count: u64) {
    let verdicts = Mutex::new([0_u64; 2]);
    each(count, |seed| {
        let history = tiny(seed);
        if !history.iter().any(Operation::is_done) {
            return;
        }
        let verdict = wgl::registers(&history);
        assert!(!matches!(verdict, Verdict::Unknown(_)));
        let passes = verdict == Verdict::Valid;
        assert_eq!(passes, stateright_passes(&history), "seed {seed}: {verdict:?} of {history:#?}");
        verdicts.lock().unwrap()[usize::from(passes)] += 1;
    });
    let [broken, valid] = verdicts.into_inner().unwrap();
    eprintln!("stateright agrees on {valid} valid and {broken} broken histories");
    assert!(broken > count / 10 && valid > count / 10);
}

#[test]
fn stateright_agrees() {
    agree(scaled(4_000, 1_000_000));
}

/// The search without any of its rules: each operation that may be next is tried, with a memory.
fn brute_passes(history: &[Operation]) -> bool {
    let judged = |op: &&Operation| match &op.answer {
        Answer::Refused(why) => why == "conflict",
        Answer::Unknown(_) => op.is_write(),
        _ => true,
    };
    let ops: Vec<&Operation> = history.iter().filter(judged).collect();
    let mut seen = BTreeSet::new();
    let mut open = vec![(0_u32, None)];
    while let Some((placed, state)) = open.pop() {
        if !seen.insert((placed, state)) {
            continue;
        }
        let rest = || ops.iter().enumerate().filter(|(at, _)| placed & (1 << at) == 0);
        if rest().all(|(_, op)| !op.is_write() && !op.is_done() || matches!(op.answer, Answer::Unknown(_))) {
            return true;
        }
        let limit = rest().map(|(_, op)| op.returned).min().unwrap();
        for (at, op) in rest().filter(|(_, op)| op.called <= limit) {
            let mut register = Register(state);
            let ret = register.invoke(&op.call);
            let fits = match &op.answer {
                Answer::Done { .. } => ret == Ret::Done,
                Answer::Value { value, .. } => ret == Ret::Value(value.map(|(value, _)| value)),
                Answer::Refused(_) => ret == Ret::Conflict,
                _ => true,
            };
            if fits {
                open.push((placed | 1 << at, register.0));
            }
        }
    }
    false
}

/// Up to 16 operations, many at once, many conflicts, a few answers and times changed.
fn tangled(seed: u64) -> Vec<Operation> {
    let mut random = Random::new(seed);
    let shape = Shape {
        operations: 6 + random.index(11),
        processes: 2 + random.index(7) as u32,
        keys: 1,
        weights: [1, 0, 0],
        unknown: [50, 200, 400][random.index(3)],
        refused: 0,
        ..Shape::default()
    };
    let mut history = generate(seed, &shape);
    let reads: Vec<u64> = (1..=shape.operations as u64).collect();
    for _ in 0..random.index(8) {
        let at = random.index(history.len());
        let value = reads[random.index(reads.len())];
        let op = &mut history[at];
        match (random.index(6), &mut op.call, &mut op.answer) {
            (0 | 1, _, _) => op.called = op.called.saturating_sub(random.index(5000) as u64),
            (2, _, Answer::Unknown(_)) => {}
            (2 | 3, _, _) => op.returned = op.returned.saturating_add(random.index(5000) as u64),
            (4, Call::Cas { from, .. }, _) => *from = value,
            (4, Call::Read(_), Answer::Value { value: Some(shown), .. }) => shown.0 = value,
            (5, Call::Cas { .. }, answer @ Answer::Done { .. }) => *answer = Answer::Refused("conflict".to_owned()),
            (5, Call::Write(key, to), answer) => {
                op.call = Call::Cas { key: key.clone(), from: value, revision: 0, to: *to };
                *answer = Answer::Refused("conflict".to_owned());
            }
            _ => {}
        }
    }
    history
}

fn agree_with_brute_force(count: u64) {
    let verdicts = Mutex::new([0_u64; 2]);
    each(count, |seed| {
        let history = tangled(seed);
        if !history.iter().any(Operation::is_done) {
            return;
        }
        let verdict = wgl::registers(&history);
        let passes = verdict == Verdict::Valid;
        assert_eq!(passes, brute_passes(&history), "seed {seed}: {verdict:?} of {history:#?}");
        verdicts.lock().unwrap()[usize::from(passes)] += 1;
    });
    let [broken, valid] = verdicts.into_inner().unwrap();
    eprintln!("brute force agrees on {valid} valid and {broken} broken histories");
    assert!(broken > count / 10 && valid > count / 10);
}

#[test]
fn brute_force_agrees() {
    agree_with_brute_force(scaled(4_000, 1_000_000));
}
