//! A set: members are created and removed, and all are listed at one revision.

use super::registers::write_answer;
use super::{Actor, Stage};
use crate::client::service;
use crate::history::{Answer, Call};
use crate::random::Random;
use std::sync::Arc;

/// Its namespace.
pub const SPACE: &str = "jepsen-set";
/// Members of one client that are not removed yet.
const KEPT: usize = 60;

/// One client.
pub async fn client(stage: Arc<Stage>, random: Random, number: u8) {
    let mut actor = Actor::new(stage, random, number);
    let mut mine = Vec::new();
    while !actor.stage.is_stopped() {
        if actor.random.chance(12) {
            read(&mut actor).await;
        } else if mine.len() > KEPT || (!mine.is_empty() && actor.random.chance(30)) {
            let place = usize::try_from(actor.random.below(mine.len() as u64)).unwrap_or(0);
            let value = mine.swap_remove(place);
            remove(&mut actor, value).await;
        } else {
            let value = actor.stage.value();
            if add(&mut actor, value).await {
                mine.push(value);
            }
        }
    }
}

async fn add(actor: &mut Actor, value: u64) -> bool {
    let called = actor.stage.now();
    let object = service((SPACE, &format!("m{value}")), &value.to_string(), true);
    let answer = match actor.client.create(object.into(), None).await {
        Ok(answer) => write_answer(&answer),
        Err(failed) => failed.into(),
    };
    let added = matches!(answer, Answer::Done { .. });
    actor.note((Call::Add(value), called), answer).await;
    added
}

async fn remove(actor: &mut Actor, value: u64) {
    let called = actor.stage.now();
    let answer = match actor.client.delete((SPACE, &format!("m{value}")), None).await {
        Ok(answer) => Answer::Done { revision: answer.revision },
        Err(failed) => failed.into(),
    };
    actor.note((Call::Remove(value), called), answer).await;
}

/// Lists the set.
pub async fn read(actor: &mut Actor) {
    let called = actor.stage.now();
    let answer = match actor.client.list(SPACE).await {
        Ok((objects, revision)) => {
            let mut members: Vec<u64> =
                objects.iter().filter_map(|object| object.metadata().name.strip_prefix('m')?.parse().ok()).collect();
            members.sort_unstable();
            Answer::Set { members, revision }
        }
        Err(failed) => failed.into(),
    };
    actor.note((Call::ReadSet, called), answer).await;
}
