//! Two protocols as small state machines, explored to the last state: `watch` (list, watch, resume) and `allocate`
//! (addresses, retries). They share no code with the servers: each says which functions it mirrors, and a change of one
//! is a reason to change the other.
//!
//! Law: the sound model has no counterexample in its bounded space, and every [`allocate::Mistake`] and
//! [`watch::Mistake`] has one, so that a property which could never fail is noticed.

pub mod allocate;
pub mod watch;

use stateright::{Checker as _, HasDiscoveries, Model};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Instant;

/// Where a protocol is to get to.
pub type Goal<M> = fn(&M, &<M as Model>::State) -> bool;
/// Which actions are no faults.
pub type Quiet<M> = fn(&<M as Model>::Action) -> bool;

/// Explores all of a model: its properties hold, and from every state its `goal` can be reached by `quiet` actions
/// alone, those that are no faults. Says how many states there are.
///
/// stateright's `eventually` is not used for the second: it passes over cycles, and a client that is cut again and
/// again need not get anywhere. That it always still *can* is what a protocol owes.
pub fn assert_sound<M>(name: &str, model: M, (goal, quiet): (Goal<M>, Quiet<M>))
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let begun = Instant::now();
    let checked = model.clone().checker().spawn_bfs().join();
    let (states, depth, took) = (checked.unique_state_count(), checked.max_depth(), begun.elapsed());
    eprintln!("{name}: {states} states, {depth} steps deep, checked in {took:.1?}");
    checked.assert_properties();
    let begun = Instant::now();
    let (explored, dead_end) = explore(&model, goal, quiet);
    eprintln!("{name}: {explored} states, the goal looked for from each in {:.1?}", begun.elapsed());
    assert_eq!(explored, states, "both explorations see the same states");
    assert!(dead_end.is_none(), "{name}: a dead end: {dead_end:#?}");
}

/// A way to break one property of a broken model: the actions of a short one.
pub fn counterexample<M>(model: M, property: &'static str) -> Option<Vec<M::Action>>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let finish = HasDiscoveries::AnyOf([property].into());
    let checked = model.checker().finish_when(finish).spawn_bfs().join();
    checked.discovery(property).map(stateright::Path::into_actions)
}

/// All states of a model: how many, and one from which `quiet` actions lead to no state that is a `goal`.
pub fn explore<M>(
    model: &M,
    goal: fn(&M, &M::State) -> bool,
    quiet: fn(&M::Action) -> bool,
) -> (usize, Option<M::State>)
where
    M: Model,
    M::State: Hash,
{
    let hasher = RandomState::new();
    let mut numbers: HashMap<u64, usize> = HashMap::new();
    let mut states: Vec<M::State> = Vec::new();
    let mut before: Vec<Vec<usize>> = Vec::new();
    let mut number_of = |state: M::State, states: &mut Vec<M::State>, before: &mut Vec<Vec<usize>>| {
        *numbers.entry(hasher.hash_one(&state)).or_insert_with(|| {
            states.push(state);
            before.push(Vec::new());
            states.len() - 1
        })
    };
    for state in model.init_states() {
        number_of(state, &mut states, &mut before);
    }
    let mut next = 0;
    while let Some(state) = states.get(next) {
        let mut actions = Vec::new();
        model.actions(state, &mut actions);
        let steps = actions.into_iter().map(|action| (quiet(&action), model.next_state(state, action)));
        for (is_quiet, after) in steps.collect::<Vec<_>>() {
            let Some(after) = after.filter(|after| model.within_boundary(after)) else { continue };
            let after = number_of(after, &mut states, &mut before);
            if let Some(sources) = before.get_mut(after).filter(|_| is_quiet) {
                sources.push(next);
            }
        }
        next += 1;
    }
    let mut reaches: Vec<bool> = states.iter().map(|state| goal(model, state)).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|number| reaches.get(*number) == Some(&true)).collect();
    while let Some(number) = open.pop() {
        for source in before.get(number).into_iter().flatten() {
            if let Some(reached) = reaches.get_mut(*source).filter(|reached| !**reached) {
                *reached = true;
                open.push(*source);
            }
        }
    }
    let explored = states.len();
    let dead_end = states.into_iter().zip(reaches).find(|(_, reached)| !reached);
    (explored, dead_end.map(|(state, _)| state))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk over numbers below 6 from 0: steps of one, and a fault that leads to 4.
    #[derive(Clone)]
    struct Walk;

    impl Model for Walk {
        type State = u8;
        type Action = u8;

        fn init_states(&self) -> Vec<u8> {
            vec![0]
        }

        fn actions(&self, state: &u8, actions: &mut Vec<u8>) {
            match state {
                0 | 1 => actions.extend([1, 4]),
                2 => actions.push(1),
                _ => {}
            }
        }

        fn next_state(&self, last_state: &u8, action: u8) -> Option<u8> {
            Some(if action == 4 { 4 } else { last_state + action })
        }
    }

    #[test]
    fn a_dead_end_is_a_state_that_quiet_actions_lead_nowhere_from() {
        let goal = |_: &Walk, state: &u8| *state == 3;
        assert_eq!(explore(&Walk, goal, |action| *action == 1), (5, Some(4)));
        let either = |_: &Walk, state: &u8| matches!(state, 3 | 4);
        assert_eq!(explore(&Walk, either, |action| *action == 1), (5, None));
        assert_eq!(explore(&Walk, either, |_| false), (5, Some(0)));
    }
}
