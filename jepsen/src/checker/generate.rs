//! Good histories to prove the checkers with: a cluster that is one mutex, and clients that act on it at random. Each
//! operation takes effect at one moment between its call and its answer, so there is an order that explains it.
//!
//! Invariant: the same seed and shape make the same history. It imitates no real cluster and no real workload.

mod mutate;

use std::collections::BTreeMap;

pub use self::mutate::{Mutation, mutate};
use super::wgl::CONFLICT;
use crate::history::{Answer, Call, Key, Operation, Value};
use crate::random::Random;

/// What a generated history is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many operations.
    pub operations: usize,
    /// How many clients at once.
    pub processes: u32,
    /// How many registers, and how many lists, at once.
    pub keys: usize,
    /// After so many operations other registers and lists take their place, so that lists stay short.
    pub span: usize,
    /// How often operations are on registers, on lists, and on the set, relative to each other.
    pub weights: [usize; 3],
    /// How many answers of a thousand are unknown.
    pub unknown: usize,
    /// How many operations of a thousand are refused without a reason of their own.
    pub refused: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { operations: 30, processes: 4, keys: 2, span: 1000, weights: [1, 1, 1], unknown: 50, refused: 50 }
    }
}

/// A good history: every checker has to pass it.
#[must_use]
pub fn generate(seed: u64, shape: &Shape) -> Vec<Operation> {
    let mut world =
        World { random: Random::new(seed), shape: shape.clone(), next_process: shape.processes, ..World::default() };
    world.clients = (0..shape.processes).map(|process| Client { process, ..Client::default() }).collect();
    while world.step() {}
    world.history
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Refused,
    /// No answer, and it takes effect while the client waits, later, or never.
    Lost,
}

struct Open {
    place: usize,
    fate: Fate,
    answer: Option<Answer>,
}

#[derive(Default)]
struct Client {
    process: u32,
    open: Option<Open>,
    /// What it read last: to base a Cas on.
    read: Option<(Key, Value, u64)>,
}

#[derive(Default)]
struct World {
    random: Random,
    shape: Shape,
    clock: u64,
    revision: u64,
    last_value: Value,
    registers: BTreeMap<Key, (Value, u64)>,
    lists: BTreeMap<Key, Vec<Value>>,
    members: Vec<Value>,
    clients: Vec<Client>,
    next_process: u32,
    /// Without an answer, and may still take effect.
    late: Vec<Call>,
    history: Vec<Operation>,
}

impl World {
    /// A client does the next thing. False: all is done.
    fn step(&mut self) -> bool {
        self.clock += 1 + self.random.index(1000) as u64;
        if self.random.per_mille(250) && !self.late.is_empty() {
            let at = self.random.index(self.late.len());
            let call = self.late.swap_remove(at);
            self.apply(&call);
        }
        let may_call = self.history.len() < self.shape.operations;
        let at = self.random.index(self.clients.len());
        let Some(client) = self.clients.get_mut(at) else { return false };
        let mut client = std::mem::take(client);
        match client.open.take() {
            None if may_call => client.open = self.call(&client),
            None => {}
            Some(open) => self.proceed(&mut client, open),
        }
        if let Some(slot) = self.clients.get_mut(at) {
            *slot = client;
        }
        may_call || self.clients.iter().any(|client| client.open.is_some())
    }

    fn call(&mut self, client: &Client) -> Option<Open> {
        let call = self.choose_call(client)?;
        let fate = if self.random.per_mille(self.shape.unknown) {
            Fate::Lost
        } else if self.random.per_mille(self.shape.refused) {
            Fate::Refused
        } else {
            Fate::Answered
        };
        self.history.push(Operation {
            process: client.process,
            node: 1 + self.random.index(3) as u8,
            called: self.clock,
            returned: u64::MAX,
            call,
            answer: Answer::Unknown("timeout".to_owned()),
        });
        Some(Open { place: self.history.len() - 1, fate, answer: None })
    }

    fn choose_call(&mut self, client: &Client) -> Option<Call> {
        let key = self.history.len() / self.shape.span.max(1) * self.shape.keys + self.random.index(self.shape.keys);
        let [registers, lists, set] = self.shape.weights;
        let kind = self.random.index(registers + lists + set);
        let choice = self.random.index(10);
        Some(if kind < registers {
            let key = format!("r{key}");
            match (&client.read, choice) {
                (_, 0..=3) => Call::Read(key),
                (Some((key, from, revision)), 4..=7) => {
                    let (key, from, revision) = (key.clone(), *from, *revision);
                    Call::Cas { key, from, revision, to: self.new_value() }
                }
                _ => Call::Write(key, self.new_value()),
            }
        } else if kind < registers + lists {
            match choice {
                0..=4 => Call::Append(format!("l{key}"), self.new_value()),
                _ => {
                    let first = key / self.shape.keys.max(1) * self.shape.keys;
                    let keys =
                        (first..first + self.shape.keys).filter(|other| *other != key && self.random.per_mille(500));
                    Call::ReadLists(std::iter::once(key).chain(keys).map(|key| format!("l{key}")).collect())
                }
            }
        } else {
            match (choice, self.random.choose(&self.members)) {
                (0..=3, _) => Call::ReadSet,
                (4..=6, Some(member)) => Call::Remove(member),
                (_, Some(member)) if self.members.len() > 50 => Call::Remove(member),
                _ => Call::Add(self.new_value()),
            }
        })
    }

    fn new_value(&mut self) -> Value {
        self.last_value += 1;
        self.last_value
    }

    /// An open operation takes effect, or is answered after that.
    fn proceed(&mut self, client: &mut Client, mut open: Open) {
        let Some(call) = self.history.get(open.place).map(|op| op.call.clone()) else { return };
        let answer = match (open.fate, open.answer.take()) {
            (Fate::Answered, None) => {
                open.answer = Some(self.apply(&call));
                client.open = Some(open);
                return;
            }
            (Fate::Answered, Some(answer)) => answer,
            (Fate::Refused, _) => Answer::Refused("no leader".to_owned()),
            (Fate::Lost, _) => {
                match self.random.index(3) {
                    0 => drop(self.apply(&call)),
                    1 => self.late.push(call),
                    _ => {}
                }
                *client = Client { process: self.next_process, ..Client::default() };
                self.next_process += 1;
                return;
            }
        };
        if let (Call::Read(key), Answer::Value { value: Some((value, revision)), .. }) = (&call, &answer) {
            client.read = Some((key.clone(), *value, *revision));
        }
        if let Some(op) = self.history.get_mut(open.place) {
            (op.returned, op.answer) = (self.clock, answer);
        }
    }

    /// The one moment at which an operation takes effect.
    fn apply(&mut self, call: &Call) -> Answer {
        match call {
            Call::Read(key) => {
                return Answer::Value { value: self.registers.get(key).copied(), revision: self.revision };
            }
            Call::ReadLists(keys) => {
                let lists = keys.iter().filter_map(|key| self.lists.get_key_value(key));
                let lists = lists.map(|(key, list)| (key.clone(), list.clone())).collect();
                return Answer::Lists { lists, revision: self.revision };
            }
            Call::ReadSet => {
                let mut members = self.members.clone();
                members.sort_unstable();
                return Answer::Set { members, revision: self.revision };
            }
            Call::Cas { key, revision, .. } if self.registers.get(key).map(|(_, of)| *of) != Some(*revision) => {
                return Answer::Refused(CONFLICT.to_owned());
            }
            Call::Remove(member) if !self.members.contains(member) => {
                return Answer::Refused("not found".to_owned());
            }
            _ => {}
        }
        self.revision += 1;
        let revision = self.revision;
        match call {
            Call::Write(key, to) | Call::Cas { key, to, .. } => {
                self.registers.insert(key.clone(), (*to, revision));
            }
            Call::Append(key, value) => self.lists.entry(key.clone()).or_default().push(*value),
            Call::Add(member) => self.members.push(*member),
            Call::Remove(member) => self.members.retain(|other| other != member),
            Call::Read(_) | Call::ReadLists(_) | Call::ReadSet => {}
        }
        Answer::Done { revision }
    }
}
