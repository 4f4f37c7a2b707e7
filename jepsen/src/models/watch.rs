//! List, watch, cut, resume: on any server, with servers that lag behind, windows that forget, snapshots that are
//! installed, and crashes that lose what was applied but not the log.
//!
//! Mirrors of the servers: `History::{push, after, from_records}` and `Watcher::deliver`, `seen` (server/src/watch),
//! `watch` of server/src/api/objects.rs, `Consensus::{read, read_at_least}` and `rounds` (server/src/raft/read.rs),
//! `StateMachine::install_snapshot` and its publication (server/src/storage/machine.rs).
//!
//! What is committed is given: the log only grows. A revision is a place in it, so entries that change nothing are left
//! out. A list is one answer. A write counts as acknowledged as soon as any server has applied it.

mod world;

use stateright::{Model, Property};
use world::Objects;
pub use world::{Item, Mistake, Op, Phase, Selection, Server, Snapshot, Watcher, World};

/// A step. Watchers and servers go by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write is committed.
    Commit(Op),
    /// A server applies its next entry.
    Apply(usize),
    /// A server that lags installs the snapshot of another.
    Install(usize, usize),
    /// A server loses the last entry that it applied, and all its streams.
    Crash(usize),
    /// A watcher asks a server for a list.
    List(usize, usize),
    /// A watcher gets its list.
    Listed(usize),
    /// A watcher resumes its watch on a server.
    Resume(usize, usize),
    /// A server looks for events to send to a watcher.
    Send(usize),
    /// A server sends a bookmark to a watcher.
    Mark(usize),
    /// A watcher receives a message.
    Receive(usize),
    /// A watcher's stream ends, with all that is on its way.
    Cut(usize),
}

/// The model: its bounds, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Servers.
    pub servers: usize,
    /// What each watcher wants to see.
    pub watchers: Vec<Selection>,
    /// Most writes.
    pub writes: usize,
    /// Which writes there may be.
    pub ops: Vec<Op>,
    /// Events that a server keeps.
    pub window: usize,
    /// What is wrong.
    pub mistake: Option<Mistake>,
}

impl Watch {
    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn selection(&self, watcher: usize) -> Selection {
        self.watchers.get(watcher).copied().unwrap_or(Selection::All)
    }

    /// `seen`: how a change looks to a watcher.
    fn seen(&self, world: &World, (watcher, revision): (usize, u8)) -> Option<Item> {
        let selection = self.selection(watcher);
        let (Op::Put(key, _) | Op::Delete(key)) = *world.log.get(usize::from(revision) - 1)?;
        let (before, after) = (*world.at(revision - 1).get(key)?, *world.at(revision).get(key)?);
        let (old, new) = (before.filter(|old| selection.matches(*old)), after.filter(|new| selection.matches(*new)));
        if new.is_none()
            && (old.is_none()
                || self.is(Mistake::DeletesForgotten) && after.is_none()
                || self.is(Mistake::LeavingForgotten) && after.is_some())
        {
            return None;
        }
        Some(Item::Event(revision, key, new))
    }

    fn apply(&self, world: &mut World, server: usize) -> Option<()> {
        let newest = world.newest();
        let server = world.servers.get_mut(server).filter(|server| server.current.revision < newest)?;
        server.current.push(self.window);
        server.published = server.current.clone();
        world.acked = world.acked.max(server.published.revision);
        Some(())
    }

    fn install(&self, world: &mut World, (to, from): (usize, usize)) -> Option<()> {
        let mut sent = world.servers.get(from)?.current.clone();
        let server = world.servers.get_mut(to).filter(|server| server.current.revision < sent.revision)?;
        match self.mistake {
            Some(Mistake::WindowNotInstalled) => {
                server.current.revision = sent.revision;
            }
            Some(Mistake::CompactionNotInstalled) => {
                sent.compacted = 0;
                server.current = sent;
            }
            _ => server.current = sent,
        }
        if !self.is(Mistake::InstallNotPublished) {
            server.published = server.current.clone();
        }
        Some(())
    }

    fn crash(&self, world: &mut World, number: usize) -> Option<()> {
        let server = world.servers.get_mut(number).filter(|server| server.current.revision > 0)?;
        let mut again = Snapshot::empty();
        for _ in 1..server.current.revision {
            again.push(self.window);
        }
        *server = Server { current: again.clone(), published: again };
        for watcher in &mut world.watchers {
            match watcher.phase {
                Phase::Listing { server, .. } | Phase::Watching { server, .. } if server == number => {
                    watcher.cut(self.mistake);
                }
                _ => {}
            }
        }
        Some(())
    }

    /// The index is the leader's commit index, confirmed after the watcher asked.
    fn list(&self, world: &mut World, (number, server): (usize, usize)) -> Option<()> {
        let joined = world.watchers.iter().find_map(|other| match other.phase {
            Phase::Listing { server: same, index, .. } if same == server => Some(index),
            _ => None,
        });
        let index = match self.mistake {
            Some(Mistake::ListWithoutWaiting) => 0,
            Some(Mistake::ListJoinsSentRound) => joined.unwrap_or(world.newest()),
            _ => world.newest(),
        };
        let acked = world.acked;
        let watcher = world.watchers.get_mut(number)?;
        watcher.phase = Phase::Listing { server, acked, index };
        Some(())
    }

    fn listed(&self, world: &mut World, number: usize) -> Option<()> {
        let Phase::Listing { server, acked, index } = world.watchers.get(number)?.phase else { return None };
        let revision = world.published(server).map(|shown| shown.revision).filter(|revision| *revision >= index)?;
        let view = self.selection(number).of(world.at(revision));
        let watcher = world.watchers.get_mut(number)?;
        *watcher = Watcher { revision, view, phase: Phase::Cut, listed_stale: revision < acked };
        Some(())
    }

    /// `Objects::watch`: waits for the revision, or asks the window.
    fn resume(&self, world: &mut World, (number, server): (usize, usize)) -> Option<()> {
        let shown = world.published(server)?.clone();
        let watcher = world.watchers.get_mut(number)?;
        let mut sent = watcher.revision;
        if shown.revision < watcher.revision {
            if !self.is(Mistake::ResumeWithoutWaiting) {
                return None;
            }
            sent = shown.revision;
        } else if let Err(oldest) = shown.after(watcher.revision, self.mistake) {
            if self.is(Mistake::ResumeAtCompaction) {
                watcher.revision = oldest;
            } else {
                watcher.phase = Phase::Expired;
            }
            return Some(());
        }
        match self.mistake {
            Some(Mistake::ResumeRepeats) => sent = sent.saturating_sub(1),
            Some(Mistake::ResumeSkips) => sent += 1,
            _ => {}
        }
        watcher.phase = Phase::Watching { server, sent, queue: Vec::new() };
        Some(())
    }

    /// A turn of `Watcher::deliver`'s loop: a window that was looked at is kept until all of it is sent.
    fn send(&self, world: &mut World, number: usize) -> Option<()> {
        let Phase::Watching { server, sent, mut queue } = world.watchers.get(number)?.phase.clone() else {
            return None;
        };
        let shown = world.published(server).filter(|shown| shown.revision > sent)?;
        let revision = shown.revision;
        let events = match shown.after(sent, self.mistake) {
            Err(_) if self.is(Mistake::StreamNotTold) => shown.events.clone(),
            Err(oldest) => {
                queue.push(Item::Compacted(oldest));
                Vec::new()
            }
            Ok(events) => events,
        };
        if self.is(Mistake::EarlyBookmark) {
            queue.push(Item::Bookmark(revision));
        }
        queue.extend(events.into_iter().filter_map(|event| self.seen(world, (number, event))));
        world.watchers.get_mut(number)?.phase = Phase::Watching { server, sent: revision, queue };
        Some(())
    }

    fn receive(&self, world: &mut World, number: usize) -> Option<()> {
        let watcher = world.watchers.get_mut(number)?;
        let Phase::Watching { queue, .. } = &mut watcher.phase else { return None };
        if queue.is_empty() {
            return None;
        }
        match queue.remove(0) {
            Item::Event(revision, key, object) => {
                watcher.revision = revision;
                *watcher.view.get_mut(key)? = object;
            }
            Item::Bookmark(revision) => watcher.revision = revision,
            Item::Compacted(oldest) if self.is(Mistake::ResumeAtCompaction) => {
                watcher.revision = oldest;
                watcher.phase = Phase::Cut;
            }
            Item::Compacted(_) => watcher.phase = Phase::Expired,
        }
        Some(())
    }

    fn mark(world: &mut World, number: usize) -> Option<()> {
        let watcher = world.watchers.get_mut(number)?;
        let told = watcher.told();
        let Phase::Watching { sent, queue, .. } = &mut watcher.phase else { return None };
        queue.push(Item::Bookmark(Some(*sent).filter(|sent| told < *sent)?));
        Some(())
    }
}

impl Model for Watch {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let server = Server { current: Snapshot::empty(), published: Snapshot::empty() };
        let watcher = Watcher { revision: 0, view: Objects::default(), phase: Phase::Unlisted, listed_stale: false };
        let (servers, watchers) = (vec![server; self.servers], vec![watcher; self.watchers.len()]);
        vec![World { log: Vec::new(), acked: 0, servers, watchers }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.log.len() < self.writes {
            let there = world.at(world.newest());
            let possible = |op: &&Op| !matches!(op, Op::Delete(key) if there.get(*key).copied().flatten().is_none());
            steps.extend(self.ops.iter().filter(possible).map(|op| Step::Commit(*op)));
        }
        for server in 0..self.servers {
            steps.extend([Step::Apply(server), Step::Crash(server)]);
            steps.extend((0..self.servers).map(|from| Step::Install(server, from)));
        }
        for (number, watcher) in world.watchers.iter().enumerate() {
            match watcher.phase {
                Phase::Unlisted | Phase::Expired => {
                    steps.extend((0..self.servers).map(|server| Step::List(number, server)));
                }
                Phase::Listing { .. } => steps.extend([Step::Listed(number), Step::Cut(number)]),
                Phase::Cut => steps.extend((0..self.servers).map(|server| Step::Resume(number, server))),
                Phase::Watching { .. } => {
                    steps.extend([Step::Receive(number), Step::Cut(number)]);
                    if !matches!(watcher.last_sent(), Some(Item::Compacted(_))) {
                        steps.extend([Step::Send(number), Step::Mark(number)]);
                    }
                }
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Commit(op) => world.log.push(op),
            Step::Apply(server) => self.apply(&mut world, server)?,
            Step::Install(to, from) => self.install(&mut world, (to, from))?,
            Step::Crash(server) => self.crash(&mut world, server)?,
            Step::List(watcher, server) => self.list(&mut world, (watcher, server))?,
            Step::Listed(watcher) => self.listed(&mut world, watcher)?,
            Step::Resume(watcher, server) => self.resume(&mut world, (watcher, server))?,
            Step::Send(watcher) => self.send(&mut world, watcher)?,
            Step::Mark(watcher) => Self::mark(&mut world, watcher)?,
            Step::Receive(watcher) => self.receive(&mut world, watcher)?,
            Step::Cut(watcher) => world.watchers.get_mut(watcher)?.cut(self.mistake),
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(VIEW, |model, world: &World| {
                world
                    .watchers
                    .iter()
                    .enumerate()
                    .all(|(number, watcher)| watcher.view == model.selection(number).of(world.at(watcher.revision)))
            }),
            Property::always(ORDER, |_, world: &World| world.watchers.iter().all(Watcher::in_order)),
            Property::always(LIST, |_, world: &World| world.watchers.iter().all(|watcher| !watcher.listed_stale)),
            Property::sometimes("all watchers have the newest revision", |model, world: &World| {
                world.log.len() == model.writes && all_have_the_newest(model, world)
            }),
            Property::sometimes("a watcher is told Compacted", |_, world: &World| {
                world.watchers.iter().any(|watcher| watcher.phase == Phase::Expired)
            }),
            Property::sometimes("a running stream is told Compacted", |_, world: &World| {
                world.watchers.iter().any(|watcher| matches!(watcher.last_sent(), Some(Item::Compacted(_))))
            }),
            Property::sometimes("a watcher meets a server that is behind it", |_, world: &World| {
                let behind = |revision| world.servers.iter().any(|server| server.published.revision < revision);
                world.watchers.iter().any(|watcher| watcher.phase == Phase::Cut && behind(watcher.revision))
            }),
        ]
    }
}

/// A watcher's view is the state at its revision: no gap.
pub const VIEW: &str = "a view is the state at its revision";
/// What a watcher gets is newer than what it got.
pub const ORDER: &str = "events come once and in order";
/// Lists are linearizable.
pub const LIST: &str = "a list shows every write acknowledged before it was asked for";

/// Every watcher has a stream and the newest revision.
pub fn all_have_the_newest(_: &Watch, world: &World) -> bool {
    let has = |watcher: &Watcher| {
        matches!(watcher.phase, Phase::Watching { .. })
            && watcher.revision == world.newest()
            && watcher.told() == watcher.revision
    };
    world.watchers.iter().all(has)
}

/// A step that is no fault and no new write.
pub fn is_quiet(step: &Step) -> bool {
    !matches!(step, Step::Commit(_) | Step::Install(..) | Step::Crash(_) | Step::Cut(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{assert_sound, counterexample, explore};

    fn model(watchers: &[Selection], ops: &[Op], (servers, writes, window): (usize, usize, usize)) -> Watch {
        Watch { servers, watchers: watchers.to_vec(), writes, ops: ops.to_vec(), window, mistake: None }
    }

    const BOTH_KEYS: [Op; 3] = [Op::Put(0, true), Op::Put(1, true), Op::Delete(0)];
    const LABELS: [Op; 3] = [Op::Put(0, true), Op::Put(0, false), Op::Delete(0)];

    /// One watcher of two keys.
    fn wide() -> Watch {
        model(&[Selection::All], &BOTH_KEYS, (2, 4, 2))
    }

    /// The same with less of everything.
    fn narrow() -> Watch {
        model(&[Selection::All], &BOTH_KEYS, (2, 2, 1))
    }

    /// Objects that come into a selection and leave it.
    fn selective() -> Watch {
        model(&[Selection::Labelled], &LABELS, (2, 3, 1))
    }

    /// Three servers.
    fn members() -> Watch {
        model(&[Selection::All], &[Op::Put(0, true), Op::Delete(0)], (3, 3, 1))
    }

    /// Two watchers of different things.
    fn pair() -> Watch {
        model(&[Selection::All, Selection::Labelled], &[Op::Put(0, true), Op::Put(0, false)], (2, 2, 1))
    }

    #[test]
    fn watchers_see_every_change_once_and_always_can_catch_up() {
        for (name, model) in [("wide", wide()), ("selective", selective()), ("members", members()), ("pair", pair())] {
            assert_sound(&format!("watch, {name}"), model, (all_have_the_newest, is_quiet));
        }
    }

    #[test]
    fn every_mistake_is_found() {
        let mistakes: [(Mistake, Watch, &str); 14] = [
            (Mistake::ResumeRepeats, narrow(), ORDER),
            (Mistake::ResumeSkips, narrow(), VIEW),
            (Mistake::ResumeWithoutWaiting, narrow(), ORDER),
            (Mistake::CompactionOffByOne, narrow(), VIEW),
            (Mistake::StreamNotTold, narrow(), VIEW),
            (Mistake::ResumeAtCompaction, narrow(), VIEW),
            (Mistake::WindowNotInstalled, narrow(), VIEW),
            (Mistake::CompactionNotInstalled, narrow(), VIEW),
            (Mistake::ListWithoutWaiting, narrow(), LIST),
            (Mistake::ListJoinsSentRound, pair(), LIST),
            (Mistake::EarlyBookmark, narrow(), VIEW),
            (Mistake::DeletesForgotten, narrow(), VIEW),
            (Mistake::LeavingForgotten, selective(), VIEW),
            (Mistake::ResumeFromSent, narrow(), VIEW),
        ];
        for (mistake, sound, property) in mistakes {
            let begun = std::time::Instant::now();
            let steps = counterexample(Watch { mistake: Some(mistake), ..sound }, property);
            let steps = steps.unwrap_or_else(|| panic!("{mistake:?} does not break \"{property}\""));
            eprintln!("watch, {mistake:?} ({:.1?}): {property}: {steps:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_snapshot_that_is_not_published_leaves_a_watcher_behind_for_good() {
        let broken = Watch { mistake: Some(Mistake::InstallNotPublished), ..members() };
        let (_, dead_end) = explore(&broken, all_have_the_newest, is_quiet);
        assert!(dead_end.is_some());
    }
}
