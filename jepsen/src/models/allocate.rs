//! Create, delete, retry: addresses that are chosen where an entry is applied, a table of outcomes that forgets, and
//! members that lag, restart, lead in turn and install snapshots.
//!
//! Mirrors of the servers: `dedupe::{recall, remember}` with its `maybe_forgotten`, `oldest_beyond_bound` and
//! `forget_session`, `Pool::{next, take, release}` as `State::{index, unindex}` uses them, `apply` with its roll-back,
//! `Snapshot::{records, from_records}` (server/src/machine); of the command line: `name_write` and `refused`
//! (cli/src/client/connect.rs).
//!
//! What is committed is given: the log only grows, and whoever leads has all of it. A request that was sent once
//! arrives at most once and at any time; one that was sent again, any number of times. Whoever leads may answer any
//! request that it applies, at once or never. A client has one write under way. Ghosts, which no member looks at: what
//! a client wants (`work`), and what took effect.

mod machine;

pub use machine::{Answer, Entry, Machine, Mistake, Op, Request};
use stateright::{Model, Property};
use std::collections::BTreeMap;

/// Members there are.
const MEMBERS: usize = 2;

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    machine: Machine,
    /// Entries that it has not applied, the last ones of the log.
    behind: usize,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Which session is its next or present one.
    epoch: u8,
    /// The revision it had seen when its session began.
    since: Option<u8>,
    sequence: u8,
    /// Its present request was sent: not, once, again.
    sent: u8,
    answers: Vec<Answer>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The first one leads.
    members: Vec<Member>,
    /// Entries that some member has not applied.
    log: Vec<Entry>,
    clients: Vec<Client>,
    /// Requests that may arrive: once (false), or any number of times.
    network: BTreeMap<Request, bool>,
}

/// A step. Members and clients go by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client sends its next request, or sends it again.
    Send(u8),
    /// A client goes on without an answer.
    GiveUp(u8),
    /// A request arrives and is committed.
    Arrive(Request),
    /// A member applies its next entry; the answer, if it is due, gets lost.
    Apply(usize),
    /// The first member, which leads, applies its next entry, and the client gets the answer.
    Answer,
    /// The other member leads.
    Elect,
    /// A member comes back with what it has on its disk.
    Restart(usize),
    /// A member that lags installs a snapshot of the other.
    Install(usize),
    /// A member's clock evicts its oldest session.
    Evict(usize),
}

/// The model: its bounds, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Allocate {
    /// What each client wants, in order.
    pub wishes: Vec<Vec<Op>>,
    /// Addresses there are.
    pub addresses: u8,
    /// Sessions kept.
    pub sessions: usize,
    /// Outcomes kept for a session.
    pub writes: usize,
    /// Entries that a member may be behind.
    pub backlog: usize,
    /// What is wrong.
    pub mistake: Option<Mistake>,
}

impl Client {
    /// `refused` and what comes after an unknown outcome: a new session, begun with what the state is then.
    fn take(&mut self, answer: Answer, mistake: Option<Mistake>) {
        let in_doubt = self.sent > 1 && mistake != Some(Mistake::RefusalTrusted);
        self.sent = 0;
        if answer == Answer::Unknown {
            self.epoch += 1;
            self.since = None;
            if mistake == Some(Mistake::UnknownAsRefused) {
                return;
            }
        }
        self.answers.push(if answer == Answer::Rejected && in_doubt { Answer::Unknown } else { answer });
    }
}

impl World {
    /// Forgets entries that every member has applied.
    fn purge(&mut self) {
        let needed = self.members.iter().map(|member| member.behind).max().unwrap_or(0);
        let applied = self.log.len().saturating_sub(needed);
        self.log.drain(..applied);
    }

    fn next_of(&self, number: usize) -> Option<(&Machine, &Entry)> {
        let member = self.members.get(number)?;
        let next = self.log.len().checked_sub(member.behind)?;
        Some((&member.machine, self.log.get(next)?))
    }
}

impl Allocate {
    fn send(&self, world: &mut World, number: u8) -> Option<()> {
        let seen = world.members.first()?.machine.revision;
        let client = world.clients.get_mut(usize::from(number))?;
        let work = client.answers.len();
        let op = *self.wishes.get(usize::from(number))?.get(work)?;
        if client.since.is_none() {
            client.since = Some(if self.is(Mistake::SinceNotSent) { 0 } else { seen });
            client.sequence = 0;
        }
        if client.sent == 0 || self.is(Mistake::RetryAsNew) {
            client.sequence += 1;
        }
        let request = Request {
            session: (number, client.epoch),
            sequence: client.sequence,
            since: client.since?,
            op,
            work: u8::try_from(work).ok()?,
        };
        client.sent += 1;
        let again = client.sent > 1;
        world.network.insert(request, again && !self.is(Mistake::RetryAsNew));
        Some(())
    }

    fn arrive(&self, world: &mut World, request: Request) -> Option<()> {
        if !*world.network.get(&request)? {
            world.network.remove(&request);
        }
        let machine = &mut world.members.first_mut()?.machine;
        let mut entry = Entry { request, address: None };
        match request.op {
            Op::Create(_) if self.is(Mistake::AllocatedAtRequest) => {
                entry.address = machine.free((request.session.0, self.addresses));
            }
            Op::Delete(name) if self.is(Mistake::FreedAtRequest) => {
                if let Some((address, _)) = machine.services.get(&name) {
                    machine.taken.remove(address);
                }
            }
            _ => {}
        }
        world.log.push(entry);
        for member in &mut world.members {
            member.behind += 1;
        }
        Some(())
    }

    fn apply(&self, world: &mut World, (number, answers): (usize, bool)) -> Option<()> {
        let entry = world.next_of(number)?.1.clone();
        let member = world.members.get_mut(number)?;
        let recalled = self.recall(&member.machine, &entry.request).is_some();
        let answer = self.execute(&mut member.machine, &entry);
        member.behind -= 1;
        let request = entry.request;
        if answers {
            let client = world.clients.get_mut(usize::from(request.session.0))?;
            let waits = client.sent > 0 && client.epoch == request.session.1;
            let mute = recalled && self.is(Mistake::RecallNotAnswered);
            if mute || !waits || client.answers.len() != usize::from(request.work) {
                return None;
            }
            client.take(answer, self.mistake);
        }
        world.purge();
        Some(())
    }

    fn install(&self, world: &mut World, to: usize) -> Option<()> {
        let from = world.members.iter().min_by_key(|member| member.behind)?.clone();
        let member = world.members.get_mut(to).filter(|member| member.behind > from.behind)?;
        *member = Member { machine: self.reloaded(&from.machine), behind: from.behind };
        world.purge();
        Some(())
    }

    fn restart(&self, world: &mut World, number: usize) -> Option<()> {
        let member = world.members.get_mut(number)?;
        member.machine = self.reloaded(&member.machine);
        Some(())
    }

    /// A session that begins now is not taken for a forgotten one.
    fn serves_new_sessions(&self, machine: &Machine) -> bool {
        let request =
            Request { session: (u8::MAX, 0), sequence: 1, since: machine.revision, op: Op::Delete(0), work: 0 };
        self.recall(machine, &request).is_none()
    }

    /// What clients were told is so on a member that has applied everything, and no refused wish took effect anywhere.
    fn answers_hold(world: &World) -> bool {
        let mut answers = world.clients.iter().zip(0_u8..).flat_map(|(client, number)| {
            client.answers.iter().zip(0_u8..).map(move |(answer, work)| (answer, (number, work)))
        });
        answers.all(|(answer, wish)| {
            world.members.iter().all(|member| {
                let effects = member.machine.effects.get(&wish).copied().unwrap_or(0);
                match answer {
                    Answer::Done => effects == 1 || member.behind > 0,
                    Answer::Unchanged | Answer::Rejected => effects == 0,
                    Answer::Unknown => true,
                }
            })
        })
    }
}

impl Model for Allocate {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let member = Member { machine: Machine::new(), behind: 0 };
        let client = Client { epoch: 0, since: None, sequence: 0, sent: 0, answers: Vec::new() };
        let clients = vec![client; self.wishes.len()];
        vec![World { members: vec![member; MEMBERS], log: Vec::new(), clients, network: BTreeMap::new() }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for (client, number) in world.clients.iter().zip(0..) {
            if client.sent < 2 {
                steps.push(Step::Send(number));
            } else {
                steps.push(Step::GiveUp(number));
            }
        }
        if world.log.len() < self.backlog {
            steps.extend(world.network.keys().map(|request| Step::Arrive(*request)));
        }
        steps.push(Step::Elect);
        for (number, member) in world.members.iter().enumerate() {
            steps.push(Step::Restart(number));
            if member.behind > 0 {
                steps.extend([Step::Apply(number), Step::Install(number)]);
                steps.extend((number == 0).then_some(Step::Answer));
            }
            if self.is(Mistake::EvictedByClock) {
                steps.push(Step::Evict(number));
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Send(client) => self.send(&mut world, client)?,
            Step::GiveUp(client) => {
                let client = world.clients.get_mut(usize::from(client))?;
                client.sent = 0;
                client.answers.push(Answer::Unknown);
            }
            Step::Arrive(request) => self.arrive(&mut world, request)?,
            Step::Apply(member) => self.apply(&mut world, (member, false))?,
            Step::Answer => self.apply(&mut world, (0, true))?,
            Step::Elect => world.members.reverse(),
            Step::Restart(member) => self.restart(&mut world, member)?,
            Step::Install(member) => self.install(&mut world, member)?,
            Step::Evict(member) => world.members.get_mut(member)?.machine.forget_oldest(),
        }
        Some(world)
    }

    fn within_boundary(&self, world: &World) -> bool {
        let mut clients = world.clients.iter().zip(&self.wishes);
        clients.all(|(client, wishes)| usize::from(client.epoch) <= wishes.len() + 1)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<Property<Self>> = vec![
            Property::always(SHARED, |_, world: &World| {
                machines(world).all(|machine| machine.held().len() == machine.services.len())
            }),
            Property::always(LEAKED, |_, world: &World| machines(world).all(|machine| machine.held() == machine.taken)),
            Property::always(ONCE, |_, world: &World| {
                machines(world).all(|machine| machine.effects.values().all(|count| *count <= 1))
            }),
            Property::always(TOLD, |_, world: &World| Self::answers_hold(world)),
            Property::always(AGREED, |_, world: &World| {
                world.members.windows(2).all(|pair| match pair {
                    [one, other] => one.behind != other.behind || one.machine == other.machine,
                    _ => true,
                })
            }),
            Property::always(SERVED, |model, world: &World| {
                machines(world).all(|machine| model.serves_new_sessions(machine))
            }),
            Property::sometimes("a retry gets its first outcome", |model, world: &World| {
                next_answers(model, world).any(|answer| answer == Answer::Done)
            }),
            Property::sometimes("a client gets every answer it wants", |model, world: &World| {
                let done = |client: &Client| {
                    client.answers.iter().all(|answer| matches!(answer, Answer::Done | Answer::Unchanged))
                };
                all_finished(model, world) && world.clients.iter().any(done)
            }),
        ];
        let wishes = || self.wishes.iter().flatten();
        if self.sessions < self.wishes.len() || self.wishes.iter().any(|wishes| self.writes < wishes.len()) {
            properties
                .push(Property::sometimes("a retry of something forgotten gets Unknown", |model, world: &World| {
                    next_answers(model, world).any(|answer| answer == Answer::Unknown)
                }));
        }
        if wishes().filter(|op| matches!(op, Op::Create(_))).count() > usize::from(self.addresses) {
            properties.push(Property::sometimes("no address is free", |model, world: &World| {
                machines(world).any(|machine| machine.free((0, model.addresses)).is_none())
            }));
        }
        properties
    }
}

fn machines(world: &World) -> impl Iterator<Item = &Machine> {
    world.members.iter().map(|member| &member.machine)
}

/// What members are about to answer from their tables.
fn next_answers(model: &Allocate, world: &World) -> impl Iterator<Item = Answer> {
    let next = (0..MEMBERS).filter_map(|member| world.next_of(member));
    next.filter_map(|(machine, entry)| model.recall(machine, &entry.request))
}

/// No two live services share an address.
pub const SHARED: &str = "an address has one service";
/// No address leaks, and none is free that is held.
pub const LEAKED: &str = "the addresses taken are those that services hold";
/// No request takes effect twice, on any member.
pub const ONCE: &str = "a wish takes effect at most once";
/// Answers are true.
pub const TOLD: &str = "what is acknowledged took effect, what is refused never does";
/// Members are the same at the same place of the log.
pub const AGREED: &str = "members that applied the same are the same";
/// Nobody is locked out.
pub const SERVED: &str = "a session that begins now is not taken for a forgotten one";

/// Every client has an answer to all that it wanted.
pub fn all_finished(model: &Allocate, world: &World) -> bool {
    world.clients.iter().zip(&model.wishes).all(|(client, wishes)| client.answers.len() == wishes.len())
}

/// A step that is no fault: nobody crashes or gives up, no answer of the leader's is lost.
pub fn is_quiet(step: &Step) -> bool {
    matches!(step, Step::Send(_) | Step::Arrive(_) | Step::Apply(_) | Step::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{assert_sound, counterexample, explore};

    fn model(wishes: [&[Op]; 2], (sessions, writes, backlog): (usize, usize, usize)) -> Allocate {
        let wishes = wishes.map(<[Op]>::to_vec).to_vec();
        Allocate { wishes, addresses: 2, sessions, writes, backlog, mistake: None }
    }

    /// Each client's write evicts the other's session.
    fn rivals() -> Allocate {
        model([&[Op::Create(0), Op::Delete(0)], &[Op::Create(1)]], (1, 1, 1))
    }

    /// What one client creates, the other one deletes.
    fn thief(sessions: usize) -> Allocate {
        model([&[Op::Create(0)], &[Op::Delete(0)]], (sessions, 1, 2))
    }

    /// Both want the same service.
    fn twins() -> Allocate {
        model([&[Op::Create(0)], &[Op::Create(0), Op::Delete(0)]], (1, 1, 1))
    }

    /// More services than addresses.
    fn crowd() -> Allocate {
        model([&[Op::Create(0), Op::Create(1)], &[Op::Create(2)]], (2, 1, 1))
    }

    /// A write that changes nothing, unless it comes late.
    fn idle() -> Allocate {
        model([&[Op::Create(0), Op::Put(0, 1)], &[Op::Put(0, 0)]], (1, 2, 1))
    }

    /// One address for two services.
    fn scarce() -> Allocate {
        Allocate { addresses: 1, backlog: 2, ..rivals() }
    }

    #[test]
    fn addresses_have_one_service_and_retries_one_effect_and_clients_always_can_finish() {
        for (name, model) in [
            ("rivals", rivals()),
            ("thief", thief(1)),
            ("thief, roomy", thief(2)),
            ("twins", twins()),
            ("crowd", crowd()),
            ("idle", idle()),
            ("scarce", scarce()),
        ] {
            assert_sound(&format!("allocate, {name}"), model, (all_finished, is_quiet));
        }
    }

    #[test]
    fn every_mistake_is_found() {
        let mistakes: [(Mistake, Allocate, &str); 15] = [
            (Mistake::TableNotInSnapshot, thief(2), ONCE),
            (Mistake::FloorNotInSnapshot, thief(1), ONCE),
            (Mistake::AllocatorNotInSnapshot, crowd(), SHARED),
            (Mistake::FloorNotChecked, thief(1), ONCE),
            (Mistake::ForgottenNotChecked, rivals(), ONCE),
            (Mistake::FreshCountsAsForgotten, idle(), SERVED),
            (Mistake::FloorNotIncluded, idle(), TOLD),
            (Mistake::SinceNotSent, thief(1), ONCE),
            (Mistake::EvictedByClock, thief(2), AGREED),
            (Mistake::RetryAsNew, thief(2), ONCE),
            (Mistake::UnknownAsRefused, thief(1), ONCE),
            (Mistake::RefusalTrusted, twins(), TOLD),
            (Mistake::FreedAtRequest, scarce(), SHARED),
            (Mistake::AllocatedAtRequest, scarce(), SHARED),
            (Mistake::RejectedKeepsAddress, twins(), LEAKED),
        ];
        for (mistake, sound, property) in mistakes {
            let begun = std::time::Instant::now();
            let steps = counterexample(Allocate { mistake: Some(mistake), ..sound }, property);
            let steps = steps.unwrap_or_else(|| panic!("{mistake:?} does not break \"{property}\""));
            eprintln!("allocate, {mistake:?} ({:.1?}): {property}: {steps:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_retry_that_is_not_answered_leaves_its_client_waiting_for_good() {
        let broken = Allocate { mistake: Some(Mistake::RecallNotAnswered), ..thief(2) };
        let (_, dead_end) = explore(&broken, all_finished, is_quiet);
        assert!(dead_end.is_some());
    }
}
