//! The checkers' own proof: good histories pass, each kind of wrong one is found, other searches agree, and failures
//! that other systems had are called by their names.

mod agreement;
mod fixtures;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use super::generate::{Mutation, Shape, generate, mutate};
use super::*;
use crate::history::{Answer, Operation, Verdict};
use crate::random::Random;

fn broken_by(history: &[Operation]) -> Vec<&'static str> {
    let is_broken = |verdict: &Verdict| matches!(verdict, Verdict::Broken(_));
    check(history).into_iter().filter(|(_, verdict)| is_broken(verdict)).map(|(checker, _)| checker).collect()
}

fn kinds(verdict: &Verdict) -> Vec<&'static str> {
    match verdict {
        Verdict::Broken(anomalies) => anomalies.iter().map(|anomaly| anomaly.kind).collect(),
        _ => Vec::new(),
    }
}

fn shape_of(seed: u64) -> Shape {
    let mut random = Random::new(seed ^ 0x5eed);
    let weights = [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]][random.index(4)];
    Shape {
        processes: 1 + random.index(8) as u32,
        keys: 1 + random.index(3),
        weights,
        unknown: [0, 50, 300][random.index(3)],
        refused: [0, 50, 300][random.index(3)],
        ..Shape::default()
    }
}

/// Calls it with each number, on two threads.
fn each(count: u64, test: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        for half in 0..2 {
            let test = &test;
            scope.spawn(move || (half..count).step_by(2).for_each(test));
        }
    });
}

/// How many: with `FAIRLEAD_LARGE_CHECKS` set, which wants a release build and takes a minute, a large number.
fn scaled(small: u64, large: u64) -> u64 {
    if std::env::var_os("FAIRLEAD_LARGE_CHECKS").is_some() { large } else { small }
}

#[test]
fn good_histories_pass() {
    each(10_000, |seed| {
        let history = generate(seed, &shape_of(seed));
        assert_eq!(history.len(), 30);
        for (checker, verdict) in check(&history) {
            assert_eq!(verdict, Verdict::Valid, "{checker} with seed {seed}: {history:#?}");
        }
    });
}

#[test]
fn mutations_are_found() {
    let mut table = Vec::new();
    for mutation in Mutation::ALL {
        let weights = match mutation {
            Mutation::StaleRead | Mutation::ReadWentBack | Mutation::CasOnOldRevision => [1, 0, 0],
            Mutation::SwappedOrder | Mutation::TornSnapshot => [0, 1, 0],
            Mutation::LostAdd | Mutation::Resurrected => [0, 0, 1],
            _ => [1, 1, 1],
        };
        let found = Mutex::new((BTreeMap::<&str, u64>::new(), 0, 0));
        each(2, |half| {
            let mut seed = half;
            let mut mutants = 0;
            while mutants < 5_000 {
                let refused = if mutation == Mutation::ReadOfRefused { 200 } else { 50 };
                let shape = Shape { weights, refused, ..Shape::default() };
                seed += 2;
                let Some(mutant) = mutate(&generate(seed, &shape), mutation, seed) else { continue };
                mutants += 1;
                let checkers = broken_by(&mutant);
                assert!(!checkers.is_empty(), "{mutation:?} with seed {seed} was not found: {mutant:#?}");
                let mut found = found.lock().unwrap();
                checkers.iter().for_each(|checker| *found.0.entry(checker).or_default() += 1);
            }
            let mut found = found.lock().unwrap();
            found.1 += mutants;
            found.2 += seed / 2;
        });
        let found = found.into_inner().unwrap();
        assert!(found.1 * 2 > found.2, "{mutation:?} was possible in {} of {} histories only", found.1, found.2);
        table.push((mutation, found));
    }
    let checkers = ["witness", "wgl", "append", "set", "snapshots"];
    eprintln!(
        "{:<18}{:>8}{:>8}{}",
        "mutation",
        "tried",
        "mutants",
        checkers.map(|name| format!("{name:>10}")).join("")
    );
    for (mutation, (by, mutants, tried)) in table {
        let counts = checkers.map(|name| format!("{:>10}", by.get(name).copied().unwrap_or_default()));
        eprintln!("{:<18}{tried:>8}{mutants:>8}{}", format!("{mutation:?}"), counts.join(""));
    }
}

/// The last read of which another one of the same key long before had another value gets that value.
fn with_a_stale_read(mut history: Vec<Operation>) -> Vec<Operation> {
    let late = (0..history.len()).rev().find_map(|late| {
        let old = (0..late).rev().skip(100).take(100_000).find(|old| {
            let (old, late) = (&history[*old], &history[late]);
            let is_read = matches!((&old.answer, &late.answer), (Answer::Value { .. }, Answer::Value { .. }));
            is_read && old.call == late.call && old.answer != late.answer
        })?;
        Some((old, late))
    });
    let (old, late) = late.unwrap();
    history[late].answer = history[old].answer.clone();
    history
}

fn check_many(operations: usize) {
    let shapes = [
        (
            "registers",
            Shape { operations, processes: 16, keys: 2000, weights: [1, 0, 0], unknown: 5, ..Shape::default() },
        ),
        (
            "one register",
            Shape { operations, processes: 16, keys: 1, weights: [1, 0, 0], unknown: 20, ..Shape::default() },
        ),
        ("lists", Shape { operations, processes: 16, keys: 20, weights: [0, 1, 0], span: 1000, ..Shape::default() }),
        ("set", Shape { operations, processes: 16, weights: [0, 0, 1], ..Shape::default() }),
    ];
    for (name, shape) in shapes {
        let span = if name.contains("register") { operations } else { shape.span };
        let history = generate(1, &Shape { span, ..shape });
        assert_eq!(history.len(), operations);
        let start = Instant::now();
        for (checker, verdict) in check(&history) {
            assert_eq!(verdict, Verdict::Valid, "{name}: {checker}");
        }
        let all = start.elapsed().as_secs_f64();
        eprintln!("{operations} operations, {name}: {all:.1} s with all checkers");
        if name.contains("register") {
            let start = Instant::now();
            assert_eq!(wgl::registers(&history), Verdict::Valid);
            eprintln!("    of that wgl {:.1} s", start.elapsed().as_secs_f64());
            let start = Instant::now();
            let verdict = wgl::registers(&with_a_stale_read(history));
            assert_eq!(kinds(&verdict), ["not-linearizable"], "{verdict:?}");
            eprintln!("    wgl with a stale read {:.1} s", start.elapsed().as_secs_f64());
        }
    }
}

#[test]
fn many_operations_are_checked() {
    check_many(scaled(50_000, 1_000_000) as usize);
}

#[test]
fn wrong_histories_end_the_search_soon() {
    // All at once on one register, where a conflict may have many reasons.
    let kinds = [Mutation::StaleRead, Mutation::ReadWentBack, Mutation::CasOnOldRevision, Mutation::Phantom];
    let slowest = Mutex::new((0, 0, 0.0));
    each(scaled(200, 5_000), |seed| {
        let shape =
            Shape { operations: 500, processes: 16, keys: 1, weights: [1, 0, 0], unknown: 100, ..Shape::default() };
        let history = generate(seed, &shape);
        let Some(mutant) = mutate(&history, kinds[seed as usize % 4], seed) else { return };
        let start = Instant::now();
        let verdict = wgl::registers_within(&mutant, 1_000_000);
        assert!(!matches!(verdict, Verdict::Unknown(_)), "seed {seed}: {verdict:?}");
        let seconds = start.elapsed().as_secs_f64();
        let mut slowest = slowest.lock().unwrap();
        slowest.0 += 1;
        slowest.1 += u64::from(verdict != Verdict::Valid);
        slowest.2 = seconds.max(slowest.2);
    });
    let (all, broken, seconds) = slowest.into_inner().unwrap();
    eprintln!("wgl finds {broken} of {all} wrong histories of 500 operations; the slowest takes {seconds:.3} s");
    assert!(broken > all / 2);
}
