//! Lists: appended to by a read and a write that holds only at the revision read, retried by request id until it is decided;
//! and all of them read at one revision.

use super::registers::write_answer;
use super::{Actor, Stage};
use crate::client::{Failed, list_of, service};
use crate::history::{Answer, Call};
use crate::random::Random;
use fairlead_proto::v1::{RequestId, Service};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Their namespace.
pub const SPACE: &str = "jepsen-lists";
/// How many there are at first.
pub const KEYS: u64 = 8;
/// Name of a list.
#[must_use]
pub fn name(number: u64) -> String {
    format!("l{number}")
}

/// Attempts at one append with its request id, until it stays unknown.
const ATTEMPTS: u32 = 20;

/// One client.
pub async fn client(stage: Arc<Stage>, random: Random, number: u8) {
    let mut actor = Actor::new(stage, random, number);
    let client = format!("jepsen-lists-{}-{number}", actor.random.draw());
    let mut sequence = 0;
    while !actor.stage.is_stopped() {
        if actor.random.chance(40) {
            read(&mut actor).await;
        } else {
            let key = name(actor.random.below(KEYS));
            sequence += 1;
            let id = RequestId { client: client.clone(), sequence, ..RequestId::default() };
            append(&mut actor, &key, id).await;
        }
    }
}

/// Reads all lists at one revision.
pub async fn read(actor: &mut Actor) {
    let called = actor.stage.now();
    let (keys, answer) = match actor.client.list(SPACE).await {
        Ok((objects, revision)) => {
            let lists: BTreeMap<_, _> =
                objects.iter().map(|object| (object.metadata().name.clone(), list_of(object))).collect();
            ((0..KEYS).map(name).collect(), Answer::Lists { lists, revision })
        }
        Err(failed) => (Vec::new(), failed.into()),
    };
    actor.note((Call::ReadLists(keys), called), answer).await;
}

async fn append(actor: &mut Actor, key: &str, id: RequestId) {
    let value = actor.stage.value();
    let called = actor.stage.now();
    let answer = match actor.client.get((SPACE, key)).await {
        Ok((Some(object), _)) => {
            let mut list = list_of(&object);
            list.push(value);
            let text: Vec<String> = list.iter().map(u64::to_string).collect();
            let mut changed = service((SPACE, key), &text.join(","), true);
            if let Some(metadata) = &mut changed.metadata {
                metadata.revision = object.metadata().revision;
            }
            persist(actor, &changed, &id).await
        }
        Ok((None, _)) => Answer::Refused("the list isn't there".to_owned()),
        Err(failed) => failed.into(),
    };
    actor.note((Call::Append(key.to_owned(), value), called), answer).await;
}

/// Sends one write until it is decided: with its request id it is executed once, whoever takes it.
async fn persist(actor: &mut Actor, object: &Service, id: &RequestId) -> Answer {
    let mut doubt = None;
    for _ in 0..ATTEMPTS {
        match actor.client.update(object.clone().into(), Some(id.clone())).await {
            Ok(answer) => return write_answer(&answer),
            // What was refused before it was proposed says nothing of an earlier attempt that may have been.
            Err(Failed::Refused(why)) if doubt.is_none() || why == "conflict" => return Answer::Refused(why),
            Err(Failed::Refused(_)) => {}
            Err(Failed::Unknown(why)) => doubt = Some(why),
        }
        actor.fail().await;
        actor.roam();
        if actor.stage.is_stopped() {
            break;
        }
    }
    doubt.map_or_else(|| Answer::Refused("never sent".to_owned()), Answer::Unknown)
}
