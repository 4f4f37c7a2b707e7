//! The log, the servers with their windows, the watchers with what is on its way to them, and what a mistake is.

/// Keys there are.
pub const KEYS: usize = 2;

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Creates or replaces the object of a key; with the label that a selection asks for, or without it.
    Put(usize, bool),
    /// Removes the object of a key that has one.
    Delete(usize),
}

/// What is under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    pub(super) revision: u8,
    pub(super) labelled: bool,
}

pub type Objects = [Option<Object>; KEYS];

/// What a watcher wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Selection {
    /// Every object.
    All,
    /// Those with the label.
    Labelled,
}

impl Selection {
    pub(super) fn matches(self, object: Object) -> bool {
        self == Self::All || object.labelled
    }

    pub(super) fn of(self, objects: Objects) -> Objects {
        objects.map(|object| object.filter(|object| self.matches(*object)))
    }
}

/// Ways to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// A resumed watch gives the event at its revision again (`>=`).
    ResumeRepeats,
    /// A resumed watch leaves the first event out.
    ResumeSkips,
    /// A server that is behind a watcher's revision serves it from where it is itself.
    ResumeWithoutWaiting,
    /// The window may be resumed from one revision before its compaction point.
    CompactionOffByOne,
    /// A stream that the window has passed goes on with what there is.
    StreamNotTold,
    /// A watcher that is told `Compacted` resumes at the compaction point and keeps its view.
    ResumeAtCompaction,
    /// An installed snapshot brings the state; the window stays as it was.
    WindowNotInstalled,
    /// An installed snapshot brings the state and the events, and no compaction point.
    CompactionNotInstalled,
    /// An installed snapshot is not published before the next entry is applied.
    InstallNotPublished,
    /// A list answers with what the server has.
    ListWithoutWaiting,
    /// A list joins a round that was sent before it came.
    ListJoinsSentRound,
    /// A bookmark with the newest revision comes before the events up to it.
    EarlyBookmark,
    /// Removals are not sent.
    DeletesForgotten,
    /// An object that leaves a selection is not sent as a removal.
    LeavingForgotten,
    /// A watcher resumes at the newest revision that was sent to it, received or not.
    ResumeFromSent,
}

/// State and window of a server; the objects follow from the revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    pub(super) revision: u8,
    /// Revisions of the window's events.
    pub(super) events: Vec<u8>,
    pub(super) compacted: u8,
}

impl Snapshot {
    pub(super) fn empty() -> Self {
        Self { revision: 0, events: Vec::new(), compacted: 0 }
    }

    /// Applies the next entry: `History::push`.
    pub(super) fn push(&mut self, window: usize) {
        self.revision += 1;
        self.events.push(self.revision);
        while self.events.len() > window {
            self.compacted = self.events.remove(0);
        }
    }

    /// `History::after`: the events after a revision, or the compaction point.
    pub(super) fn after(&self, revision: u8, mistake: Option<Mistake>) -> Result<Vec<u8>, u8> {
        let lenient = u8::from(mistake == Some(Mistake::CompactionOffByOne));
        if revision + lenient < self.compacted {
            return Err(self.compacted);
        }
        Ok(self.events.iter().copied().filter(|event| *event > revision).collect())
    }
}

/// A server: what it has applied, and what it shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub(super) current: Snapshot,
    pub(super) published: Snapshot,
}

/// A message to a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// At this revision a key became this.
    Event(u8, usize, Option<Object>),
    /// Everything up to this revision was sent.
    Bookmark(u8),
    /// Events up to this revision are gone: the last message.
    Compacted(u8),
}

/// What a watcher does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Has to list.
    Unlisted,
    /// Was told `Compacted`; has to list.
    Expired,
    /// Asked a server, when everything up to `acked` was acknowledged; that waits for `index`.
    Listing {
        /// Who was asked.
        server: usize,
        /// What the answer has to show.
        acked: u8,
        /// What the server waits for.
        index: u8,
    },
    /// Has a view and no stream.
    Cut,
    /// Has a stream; `sent` is the server's place in it, `queue` what the watcher has not received yet.
    Watching {
        /// Whose stream.
        server: usize,
        /// Everything up to here was sent.
        sent: u8,
        /// On the way.
        queue: Vec<Item>,
    },
}

/// A watcher.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watcher {
    pub(super) revision: u8,
    pub(super) view: Objects,
    pub(super) phase: Phase,
    /// Its list lacked a write that had been acknowledged.
    pub(super) listed_stale: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub(super) log: Vec<Op>,
    pub(super) acked: u8,
    pub(super) servers: Vec<Server>,
    pub(super) watchers: Vec<Watcher>,
}

impl World {
    /// The objects at a revision.
    pub(super) fn at(&self, revision: u8) -> Objects {
        let mut objects = Objects::default();
        for (at, op) in (1..=revision).zip(&self.log) {
            let (key, object) = match *op {
                Op::Put(key, labelled) => (key, Some(Object { revision: at, labelled })),
                Op::Delete(key) => (key, None),
            };
            if let Some(place) = objects.get_mut(key) {
                *place = object;
            }
        }
        objects
    }

    pub(super) fn newest(&self) -> u8 {
        u8::try_from(self.log.len()).unwrap_or(u8::MAX)
    }

    pub(super) fn published(&self, server: usize) -> Option<&Snapshot> {
        self.servers.get(server).map(|server| &server.published)
    }
}

impl Watcher {
    pub(super) fn last_sent(&self) -> Option<Item> {
        match &self.phase {
            Phase::Watching { queue, .. } => queue.last().copied(),
            _ => None,
        }
    }

    /// The revision up to which the watcher was or will be told everything.
    pub(super) fn told(&self) -> u8 {
        match self.last_sent() {
            Some(Item::Event(revision, ..) | Item::Bookmark(revision) | Item::Compacted(revision)) => revision,
            None => self.revision,
        }
    }

    pub(super) fn cut(&mut self, mistake: Option<Mistake>) {
        if mistake == Some(Mistake::ResumeFromSent) {
            self.revision = self.told();
        }
        self.phase = if matches!(self.phase, Phase::Listing { .. }) { Phase::Unlisted } else { Phase::Cut };
    }

    pub(super) fn in_order(&self) -> bool {
        let Phase::Watching { queue, .. } = &self.phase else { return true };
        let mut last = self.revision;
        queue.iter().all(|item| match item {
            Item::Event(revision, ..) | Item::Bookmark(revision) => *revision > std::mem::replace(&mut last, *revision),
            Item::Compacted(_) => true,
        })
    }
}
