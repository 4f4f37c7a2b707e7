//! Registers: blind writes, writes that hold only at the revision that was read, and linearizable reads, on any server.

use super::{Actor, Stage};
use crate::client::{service, value_of};
use crate::history::{Answer, Call};
use crate::random::Random;
use fairlead_proto::v1::{Object, ObjectResponse};
use std::sync::Arc;

/// Their namespace.
pub const SPACE: &str = "jepsen-registers";
/// How many there are.
pub const KEYS: u64 = 120;

/// Name of a register.
#[must_use]
pub fn name(number: u64) -> String {
    format!("r{number}")
}

/// The answer to a read.
#[must_use]
pub fn read_answer(object: Option<&Object>, revision: u64) -> Answer {
    let value = object.and_then(|object| Some((value_of(object)?, object.metadata().revision)));
    Answer::Value { value, revision }
}

/// The answer to a write: the revision that it got. Not that of the object in it, which for a retry is what it is now.
#[must_use]
pub fn write_answer(answer: &ObjectResponse) -> Answer {
    Answer::Done { revision: answer.revision }
}

/// One client.
pub async fn client(stage: Arc<Stage>, random: Random, number: u8) {
    let mut actor = Actor::new(stage, random, number);
    while !actor.stage.is_stopped() {
        let key = name(actor.random.below(KEYS));
        match actor.random.below(100) {
            0..50 => drop(read(&mut actor, &key).await),
            50..80 => write(&mut actor, &key).await,
            _ => cas(&mut actor, &key).await,
        }
    }
}

/// Reads one register and writes it down; what it held.
pub async fn read(actor: &mut Actor, key: &str) -> Option<(u64, u64)> {
    let called = actor.stage.now();
    let answer = match actor.client.get((SPACE, key)).await {
        Ok((object, revision)) => read_answer(object.as_ref(), revision),
        Err(failed) => failed.into(),
    };
    let held = if let Answer::Value { value, .. } = &answer { *value } else { None };
    actor.note((Call::Read(key.to_owned()), called), answer).await;
    held
}

async fn write(actor: &mut Actor, key: &str) {
    let value = actor.stage.value();
    let called = actor.stage.now();
    let object = service((SPACE, key), &value.to_string(), true);
    let answer = match actor.client.update(object.into(), None).await {
        Ok(answer) => write_answer(&answer),
        Err(failed) => failed.into(),
    };
    actor.note((Call::Write(key.to_owned(), value), called), answer).await;
}

async fn cas(actor: &mut Actor, key: &str) {
    let Some((from, revision)) = read(actor, key).await else { return };
    let to = actor.stage.value();
    let called = actor.stage.now();
    let mut object = service((SPACE, key), &to.to_string(), true);
    if let Some(metadata) = &mut object.metadata {
        metadata.revision = revision;
    }
    let answer = match actor.client.update(object.into(), None).await {
        Ok(answer) => write_answer(&answer),
        Err(failed) => failed.into(),
    };
    actor.note((Call::Cas { key: key.to_owned(), from, revision, to }, called), answer).await;
}
