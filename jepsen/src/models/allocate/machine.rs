//! What members agree on, and how an entry changes it: addresses, services, and the table of outcomes. Pure.

use super::Allocate;
use std::collections::{BTreeMap, BTreeSet};

/// What a client wants of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Allocates an address; rejected if the service is there, or no address is free.
    Create(u8),
    /// Gives the service a value, 0 at first: changes nothing if it has it. Rejected without the service.
    Put(u8, u8),
    /// Frees the address; rejected without the service.
    Delete(u8),
}

/// Ways to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// A snapshot lacks the outcomes.
    TableNotInSnapshot,
    /// A snapshot lacks the floor.
    FloorNotInSnapshot,
    /// After a snapshot, the addresses that services hold are free.
    AllocatorNotInSnapshot,
    /// A request of a forgotten session is taken for a new one.
    FloorNotChecked,
    /// A request that a session has forgotten is taken for a new one.
    ForgottenNotChecked,
    /// Every request that began at the floor or before it counts as forgotten, also at the newest revision.
    FreshCountsAsForgotten,
    /// No request that began at the floor itself counts as forgotten.
    FloorNotIncluded,
    /// A client does not say which revision it had seen.
    SinceNotSent,
    /// A member forgets sessions by its own clock.
    EvictedByClock,
    /// The leader does not answer a request that it finds in the table.
    RecallNotAnswered,
    /// A client retries under a new sequence.
    RetryAsNew,
    /// A client takes an unknown outcome for a refusal and asks anew.
    UnknownAsRefused,
    /// A client trusts a refusal although an earlier attempt of it may still arrive.
    RefusalTrusted,
    /// The leader frees the address when it is asked to delete.
    FreedAtRequest,
    /// The leader chooses the address when it is asked to create.
    AllocatedAtRequest,
    /// A create that is rejected keeps its address.
    RejectedKeepsAddress,
}

/// A session's name: the client and how often it began anew.
pub type Session = (u8, u8);

/// A write as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    pub(super) session: Session,
    pub(super) sequence: u8,
    pub(super) since: u8,
    pub(super) op: Op,
    /// Ghost: which of the client's wishes it is.
    pub(super) work: u8,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It took effect.
    Done,
    /// There was nothing to change.
    Unchanged,
    /// It did not take effect.
    Rejected,
    /// It is not known whether it did.
    Unknown,
}

/// A session's outcomes by sequence: the revision, and what is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kept {
    pub(super) writes: BTreeMap<u8, (u8, Answer)>,
    pub(super) forgotten: u8,
}

/// What members agree on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    pub(super) revision: u8,
    /// By name: address and value.
    pub(super) services: BTreeMap<u8, (u8, u8)>,
    pub(super) taken: BTreeSet<u8>,
    /// The session used last comes last.
    pub(super) sessions: Vec<(Session, Kept)>,
    pub(super) floor: u8,
    /// Ghost: how often a wish took effect.
    pub(super) effects: BTreeMap<(u8, u8), u8>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub(super) request: Request,
    /// The address, if the leader chose it.
    pub(super) address: Option<u8>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            revision: 1,
            services: BTreeMap::new(),
            taken: BTreeSet::new(),
            sessions: Vec::new(),
            floor: 0,
            effects: BTreeMap::new(),
        }
    }

    pub(super) fn kept(&self, session: Session) -> Option<&Kept> {
        self.sessions.iter().find(|(name, _)| *name == session).map(|(_, kept)| kept)
    }

    /// `Pool::next`: the first free address from a place that depends on the request.
    pub(super) fn free(&self, (seed, size): (u8, u8)) -> Option<u8> {
        (0..size).map(|step| (seed + step) % size).find(|address| !self.taken.contains(address))
    }

    pub(super) fn put(&mut self, name: u8, value: u8) -> bool {
        let Some((_, present)) = self.services.get_mut(&name) else { return false };
        self.revision += u8::from(*present != value);
        *present = value;
        true
    }

    pub(super) fn held(&self) -> BTreeSet<u8> {
        self.services.values().map(|(address, _)| *address).collect()
    }

    pub(super) fn delete(&mut self, name: u8) -> bool {
        let freed = self.services.remove(&name);
        if let Some((address, _)) = freed {
            self.taken.remove(&address);
            self.revision += 1;
        }
        freed.is_some()
    }

    /// `forget_session`, for the one not used for the longest time.
    pub(super) fn forget_oldest(&mut self) {
        if !self.sessions.is_empty() {
            let (_, kept) = self.sessions.remove(0);
            self.floor = kept.writes.into_values().fold(self.floor, |floor, (revision, _)| floor.max(revision));
        }
    }
}

impl Allocate {
    pub(super) fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// `recall`: the answer to a request that is not to be executed.
    pub(super) fn recall(&self, machine: &Machine, request: &Request) -> Option<Answer> {
        match machine.kept(request.session) {
            Some(kept) => match kept.writes.get(&request.sequence) {
                Some((_, answer)) => Some(*answer),
                None if self.is(Mistake::ForgottenNotChecked) => None,
                None => (request.sequence <= kept.forgotten).then_some(Answer::Unknown),
            },
            None if self.is(Mistake::FloorNotChecked) => None,
            None => self.maybe_forgotten(machine, request).then_some(Answer::Unknown),
        }
    }

    /// Whether a request without a session may have had one. One that began at the newest revision had none that
    /// changed anything: if it was executed, then as one that changes nothing, and is so again. Without
    /// that, forgotten writes that changed nothing raise the floor up to the newest revision, and nobody can write.
    pub(super) fn maybe_forgotten(&self, machine: &Machine, request: &Request) -> bool {
        if request.since == 0 {
            return request.sequence > 1 && machine.floor > 0;
        }
        match self.mistake {
            Some(Mistake::FreshCountsAsForgotten) => request.since <= machine.floor,
            Some(Mistake::FloorNotIncluded) => request.since < machine.floor,
            _ => request.since <= machine.floor && request.since < machine.revision,
        }
    }

    /// `remember`: keeps an outcome, forgets the oldest beyond the bounds.
    pub(super) fn remember(&self, machine: &mut Machine, (request, answer): (&Request, Answer)) {
        let found = machine.sessions.iter().position(|(name, _)| *name == request.session);
        let (name, mut kept) =
            found.map_or_else(|| (request.session, Kept::default()), |place| machine.sessions.remove(place));
        kept.writes.insert(request.sequence, (machine.revision, answer));
        while kept.writes.len() > self.writes {
            if let Some((oldest, _)) = kept.writes.pop_first() {
                kept.forgotten = kept.forgotten.max(oldest);
            }
        }
        machine.sessions.push((name, kept));
        while machine.sessions.len() > self.sessions {
            machine.forget_oldest();
        }
    }

    /// `apply`: what is rejected leaves nothing behind.
    pub(super) fn execute(&self, machine: &mut Machine, entry: &Entry) -> Answer {
        let request = &entry.request;
        if let Some(answer) = self.recall(machine, request) {
            return answer;
        }
        let before = machine.revision;
        let done = match request.op {
            Op::Create(name) => self.create(machine, (name, entry)),
            Op::Put(name, value) => machine.put(name, value),
            Op::Delete(name) => machine.delete(name),
        };
        if !done {
            return Answer::Rejected;
        }
        let answer = if machine.revision > before { Answer::Done } else { Answer::Unchanged };
        if answer == Answer::Done {
            *machine.effects.entry((request.session.0, request.work)).or_default() += 1;
        }
        self.remember(machine, (request, answer));
        answer
    }

    pub(super) fn create(&self, machine: &mut Machine, (name, entry): (u8, &Entry)) -> bool {
        let Some(address) = entry.address.or_else(|| machine.free((entry.request.session.0, self.addresses))) else {
            return false;
        };
        let is_there = machine.services.contains_key(&name);
        if !is_there || self.is(Mistake::RejectedKeepsAddress) {
            machine.taken.insert(address);
        }
        if !is_there {
            machine.services.insert(name, (address, 0));
            machine.revision += 1;
        }
        !is_there
    }

    /// A snapshot written and read: `records` and `from_records`. The pool is made of the services.
    pub(super) fn reloaded(&self, machine: &Machine) -> Machine {
        let mut loaded = machine.clone();
        loaded.taken = machine.held();
        match self.mistake {
            Some(Mistake::TableNotInSnapshot) => loaded.sessions.clear(),
            Some(Mistake::FloorNotInSnapshot) => loaded.floor = 0,
            Some(Mistake::AllocatorNotInSnapshot) => loaded.taken.clear(),
            _ => {}
        }
        loaded
    }
}
