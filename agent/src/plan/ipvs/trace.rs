//! Follows a packet through what a kernel holds of ours in mode ipvs.
//!
//! The order is the kernel's: what comes from elsewhere meets mangle and nat PREROUTING, INPUT, IPVS, POSTROUTING; what the
//! node sends meets mangle and nat OUTPUT, IPVS, then filter OUTPUT if IPVS left it.

use crate::plan::iptables::rule::MASQUERADE_MARK;
use crate::plan::ipvs::chain::{self, Chains, JUMPS, Match, Rule, Table, Target};
use crate::plan::ipvs::server::{Server, Virtual};
use crate::plan::ipvs::set::{Element, Set};
use crate::plan::ipvs::{Objects, Tables};
use crate::plan::service::Protocol;
use crate::plan::trace::{At, End, Journal, Packet, Traced, is_local};
use crate::plan::{Family, NodeFacts};
use std::net::SocketAddr;

/// Chains followed at most: a loop ends here.
const DEPTH: usize = 16;

enum Verdict {
    Pass,
    Rejected,
    Dropped,
    Masquerade,
    Unknown,
}

impl Verdict {
    /// The end that it is, if it is one.
    fn end(&self) -> Option<End> {
        match self {
            Self::Rejected => Some(End::Rejected),
            Self::Dropped => Some(End::Dropped),
            Self::Unknown => Some(End::Unknown),
            Self::Pass | Self::Masquerade => None,
        }
    }
}

/// A packet on its way.
#[derive(Clone, Copy)]
struct Walk {
    destination: SocketAddr,
    /// The whole packet mark.
    mark: u32,
    share: f64,
}

struct Tracer<'a> {
    objects: &'a Objects,
    tables: Option<&'a Tables>,
    packet: &'a Packet,
    chains: &'a Chains,
    family: Family,
    journal: Journal,
}

/// Follows packets, one answer each.
#[must_use]
pub fn trace(objects: &Objects, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
    let follow = |packet: &Packet| {
        let family = Family::of(packet.destination.ip());
        let chains = &chain::chains(family, facts);
        let tables = objects.families.get(&family);
        let mut tracer = Tracer { objects, tables, packet, chains, family, journal: Journal::default() };
        tracer.follow(facts);
        tracer.journal.done()
    };
    packets.iter().map(follow).collect()
}

impl Tracer<'_> {
    fn follow(&mut self, facts: &NodeFacts) {
        let to = self.packet.destination;
        let is_node = is_local(facts, self.packet.source);
        let arrives = is_local(facts, to.ip()) || self.objects.routes.keys().any(|net| net.contains(&to.ip()));
        let mut walk = Walk { destination: to, mark: 0, share: 1.0 };
        let first = if is_node { "OUTPUT" } else { "PREROUTING" };
        // IPVS takes the node's own packets before the filter does.
        let filter = (!is_node && arrives).then_some((Table::Filter, "INPUT"));
        for hook in [(Table::Mangle, first), (Table::Nat, first)].into_iter().chain(filter) {
            if let Some(end) = self.hook(hook, &mut walk).end() {
                return self.journal.end(end, walk.share);
            }
        }
        let by_mark = Virtual::Mark(self.family, walk.mark);
        let by_address = Virtual::Address(self.packet.protocol, to);
        let found = [by_mark, by_address].into_iter().find_map(|at| Some((at, self.objects.servers.get(&at)?)));
        match found.filter(|_| arrives) {
            Some((at, server)) => self.balance(at, server, walk),
            None => {
                let verdict = if is_node { self.hook((Table::Filter, "OUTPUT"), &mut walk) } else { Verdict::Pass };
                match verdict.end() {
                    Some(end) => self.journal.end(end, walk.share),
                    None => self.leave(walk),
                }
            }
        }
    }

    /// A virtual server chooses.
    fn balance(&mut self, at: Virtual, server: &Server, walk: Walk) {
        let (rule, place) = (format!("{at} {}", server.balance.scheduler), ("ipvs", "virtual server"));
        let remembered = self.packet.remembered.filter(|_| server.balance.persistence > 0);
        let stays = remembered.and_then(|endpoint| server.reals.get_key_value(&endpoint));
        let live: Vec<_> = match stays.filter(|(_, weight)| **weight > 0) {
            Some(stays) => vec![stays],
            None => server.reals.iter().filter(|(_, weight)| **weight > 0).collect(),
        };
        let total: u32 = live.iter().map(|(_, weight)| **weight).sum();
        if live.is_empty() {
            self.step(place, (&rule, "has no real server that takes new connections"), walk.share);
            return self.journal.end(End::Rejected, walk.share);
        }
        for (address, weight) in live {
            let share = walk.share * f64::from(*weight) / f64::from(total);
            self.step(place, (&rule, &format!("sends it to {address}, weight {weight}")), share);
            self.leave(Walk { destination: *address, share, ..walk });
        }
    }

    fn leave(&mut self, mut walk: Walk) {
        let verdict = self.hook((Table::Nat, "POSTROUTING"), &mut walk);
        let masqueraded = matches!(verdict, Verdict::Masquerade);
        let end = verdict.end().unwrap_or(End::Reaches { destination: walk.destination, masqueraded });
        self.journal.end(end, walk.share);
    }

    fn step(&mut self, (hook, chain): (&str, &str), (rule, effect): (&str, &str), share: f64) {
        self.journal.step(At { hook, chain, rule }, effect, share);
    }

    /// Our chains of a hook, where they are in place.
    fn hook(&mut self, (table, hook): (Table, &str), walk: &mut Walk) -> Verdict {
        let in_place = self.tables.and_then(|tables| tables.jumps.get(&(table, hook.to_owned())));
        for (_, _, name) in JUMPS.iter().filter(|(of, from, _)| (*of, *from) == (table, hook)) {
            if in_place.is_some_and(|lines| lines.contains(&chain::jump(name))) {
                match self.chain((table, hook, name), walk, DEPTH) {
                    Verdict::Pass => {}
                    verdict => return verdict,
                }
            }
        }
        Verdict::Pass
    }

    fn chain(&mut self, (table, hook, name): (Table, &str, &str), walk: &mut Walk, depth: usize) -> Verdict {
        let key = (table, name.to_owned());
        let (tables, chains) = (self.tables, self.chains);
        let lines = tables.and_then(|tables| tables.chains.get(&key));
        let known = chains.get(&key).map_or(&[][..], Vec::as_slice);
        let place = format!("{} {hook}", table.name());
        for line in lines.into_iter().flatten() {
            let Some(rule) = known.iter().find(|rule| rule.text(self.family) == *line) else {
                self.step((&place, name), (line, "unknown rule"), walk.share);
                return Verdict::Unknown;
            };
            if !self.matches(rule, walk) {
                continue;
            }
            let (effect, verdict) = self.apply(rule.target, walk);
            self.step((&place, name), (line, &effect), walk.share);
            let verdict = match (rule.target, verdict) {
                (Target::Jump(next), _) if depth > 0 => self.chain((table, hook, next), walk, depth - 1),
                (Target::Accept | Target::Return, _) => return Verdict::Pass,
                (_, verdict) => verdict,
            };
            if !matches!(verdict, Verdict::Pass) {
                return verdict;
            }
        }
        Verdict::Pass
    }

    /// What a target does to a packet, in words and as a verdict.
    fn apply(&self, target: Target, walk: &mut Walk) -> (String, Verdict) {
        match target {
            Target::Accept => ("lets it pass".to_owned(), Verdict::Pass),
            Target::Return => ("returns".to_owned(), Verdict::Pass),
            Target::Drop => ("drops it".to_owned(), Verdict::Dropped),
            Target::Reset | Target::Reject => ("refuses it".to_owned(), Verdict::Rejected),
            Target::Masquerade => ("replaces its source by the node's".to_owned(), Verdict::Masquerade),
            Target::Mark => {
                walk.mark |= MASQUERADE_MARK;
                ("marks it to be masqueraded".to_owned(), Verdict::Pass)
            }
            Target::Unmark => {
                walk.mark ^= MASQUERADE_MARK;
                ("takes the mark away".to_owned(), Verdict::Pass)
            }
            Target::TakeMark(set) => {
                walk.mark = self.mark(set, walk).unwrap_or(walk.mark);
                (format!("takes the mark {:#x}", walk.mark), Verdict::Pass)
            }
            Target::Jump(next) => (format!("jumps to {next}"), Verdict::Pass),
        }
    }

    fn element(&self, walk: &Walk) -> Element {
        Element::Port(walk.destination.ip(), self.packet.protocol, walk.destination.port())
    }

    fn mark(&self, set: Set, walk: &Walk) -> Option<u32> {
        self.tables?.sets.get(&set)?.get(&self.element(walk)).copied()
    }

    fn matches(&self, rule: &Rule, walk: &Walk) -> bool {
        rule.matches.iter().all(|one| match one {
            Match::NotFrom(net) => !net.contains(&self.packet.source),
            Match::To(net) => net.contains(&walk.destination.ip()),
            Match::Tcp => self.packet.protocol == Protocol::Tcp,
            Match::New => true,
            Match::Known => false,
            Match::In(set, _) => self.is_in(*set, walk),
            Match::NotIn(set, _) => !self.is_in(*set, walk),
            Match::Unmarked => walk.mark & MASQUERADE_MARK == 0,
        })
    }

    fn is_in(&self, set: Set, walk: &Walk) -> bool {
        let Some(elements) = self.tables.and_then(|tables| tables.sets.get(&set)) else {
            return false;
        };
        let (ip, source) = (walk.destination.ip(), self.packet.source);
        let key = (ip, self.packet.protocol, walk.destination.port());
        match set.kind() {
            "hash:ip" => elements.contains_key(&Element::Ip(ip)),
            "hash:ip,port,ip" => elements.contains_key(&Element::PortIp(key.0, key.1, key.2, source)),
            "hash:ip,port,net" => elements.keys().any(|element| match element {
                Element::PortNet(ip, protocol, port, net) => (*ip, *protocol, *port) == key && net.contains(&source),
                _ => false,
            }),
            _ => elements.contains_key(&self.element(walk)),
        }
    }
}
