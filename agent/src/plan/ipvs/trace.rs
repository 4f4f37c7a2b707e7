//! Follows packets through IPVS and what belongs to it as a kernel was seen to hold them. Pure.
//!
//! The order is the kernel's: what comes from elsewhere meets mangle and nat PREROUTING, filter INPUT, IPVS, nat POSTROUTING;
//! what the node sends meets mangle and nat OUTPUT, IPVS, then filter OUTPUT if IPVS left it. Of built-in chains only the
//! jumps to ours are known. INVARIANT: a rule in a chain of ours that we don't write ends in `End::Unknown`.

use crate::plan::iptables::rule::MASQUERADE_MARK;
use crate::plan::ipvs::chain::{self, JUMPS, Match, Rule, Table, Target};
use crate::plan::ipvs::{Element, Objects, Server, Set, Virtual, server};
use crate::plan::service::Protocol;
use crate::plan::trace::{At, End, Journal, Packet, Traced, is_local};
use crate::plan::{Family, NodeFacts};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Chains within chains at most: a loop, which no kernel takes, ends here.
const DEPTH: usize = 16;

/// Follows packets.
#[must_use]
pub fn trace(observed: &Objects, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
    let vocabulary = Family::ALL.map(|family| {
        let rules = chain::chains(family, facts).into_values().flatten();
        (family, rules.map(|rule| (rule.text(family), rule)).collect())
    });
    let vocabulary = BTreeMap::from(vocabulary);
    let follow = |packet: &Packet| {
        let family = Family::of(packet.destination.ip());
        let mut tracer =
            Tracer { observed, facts, packet, family, vocabulary: &vocabulary, journal: Journal::default() };
        tracer.run();
        tracer.journal.done()
    };
    packets.iter().map(follow).collect()
}

/// A packet on its way.
#[derive(Clone, Copy)]
struct Walk {
    destination: SocketAddr,
    mark: u32,
    likely: f64,
}

enum Verdict {
    Pass,
    /// The table has nothing more to say.
    Accept,
    Masquerade,
    End(End),
}

struct Tracer<'a> {
    observed: &'a Objects,
    facts: &'a NodeFacts,
    packet: &'a Packet,
    family: Family,
    /// Rules of ours by their text.
    vocabulary: &'a BTreeMap<Family, BTreeMap<String, Rule>>,
    journal: Journal,
}

impl Tracer<'_> {
    fn run(&mut self) {
        let to = self.packet.destination;
        let from_here = is_local(self.facts, self.packet.source);
        let by_us = self.observed.routes.keys().any(|net| net.contains(&to.ip()));
        let arrives = is_local(self.facts, to.ip()) || by_us;
        let mut walk = Walk { destination: to, mark: 0, likely: 1.0 };
        let first = if from_here { "OUTPUT" } else { "PREROUTING" };
        let mut hooks = vec![(Table::Mangle, first), (Table::Nat, first)];
        if !from_here && arrives {
            hooks.push((Table::Filter, "INPUT"));
        }
        for hook in hooks {
            if let Verdict::End(end) = self.hook(hook, &mut walk) {
                return self.journal.end(end, walk.likely);
            }
        }
        let by_mark = Virtual::Mark(self.family, walk.mark);
        let by_address = Virtual::Address(self.packet.protocol, to);
        let found = [by_mark, by_address].into_iter().find(|at| arrives && self.observed.servers.contains_key(at));
        if let Some((at, server)) = found.and_then(|at| Some((at, self.observed.servers.get(&at)?))) {
            return self.balance((at, server), walk);
        }
        // IPVS takes the node's own packets before the filter does.
        if from_here && let Verdict::End(end) = self.hook((Table::Filter, "OUTPUT"), &mut walk) {
            return self.journal.end(end, walk.likely);
        }
        self.leave(walk);
    }

    fn balance(&mut self, (at, server): (Virtual, &Server), walk: Walk) {
        let stays = server.balance.persistence > 0 || matches!(&*server.balance.scheduler, "mh" | "sh");
        let live = |address: &SocketAddr| server.reals.get(address).is_some_and(|weight| *weight > 0);
        let remembered = self.packet.remembered.filter(|address| stays && live(address));
        let chosen: BTreeMap<SocketAddr, u32> = match remembered {
            Some(address) => BTreeMap::from([(address, 1)]),
            None => server.reals.iter().filter(|(_, weight)| **weight > 0).map(|(to, weight)| (*to, *weight)).collect(),
        };
        let all: f64 = chosen.values().copied().map(f64::from).sum();
        let rule = format!("{at} {}", server.balance.scheduler);
        let place = At { hook: "ipvs", chain: "virtual servers", rule: &rule };
        if chosen.is_empty() {
            self.journal.step(place, "no real server takes anything new: refuses it", walk.likely);
            return self.journal.end(End::Rejected, walk.likely);
        }
        for (address, weight) in chosen {
            let likely = walk.likely * f64::from(weight) / all;
            self.journal.step(place, &format!("the destination becomes {address}"), likely);
            self.leave(Walk { destination: address, likely, ..walk });
        }
    }

    fn leave(&mut self, mut walk: Walk) {
        let end = match self.hook((Table::Nat, "POSTROUTING"), &mut walk) {
            Verdict::End(end) => end,
            verdict => {
                End::Reaches { destination: walk.destination, masqueraded: matches!(verdict, Verdict::Masquerade) }
            }
        };
        self.journal.end(end, walk.likely);
    }

    /// Our chains of a hook, where something leads to them.
    fn hook(&mut self, (table, hook): (Table, &'static str), walk: &mut Walk) -> Verdict {
        let observed = self.observed;
        let in_place = observed.families.get(&self.family).and_then(|all| all.jumps.get(&(table, hook.to_owned())));
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

    fn chain(&mut self, (table, hook, name): (Table, &'static str, &str), walk: &mut Walk, depth: usize) -> Verdict {
        let (observed, vocabulary) = (self.observed, self.vocabulary);
        let lines = observed.families.get(&self.family).and_then(|all| all.chains.get(&(table, name.to_owned())));
        let place = format!("{} {hook}", table.name());
        for line in lines.into_iter().flatten() {
            let at = At { hook: &place, chain: name, rule: line };
            let Some(rule) = vocabulary.get(&self.family).and_then(|rules| rules.get(line)).filter(|_| depth > 0)
            else {
                self.journal.step(at, "unknown rule: what it does can't be told", walk.likely);
                return Verdict::End(End::Unknown);
            };
            if !rule.matches.iter().all(|one| self.matches(one, walk)) {
                continue;
            }
            let taken = if let Target::TakeMark(set) = rule.target { self.mark(set, walk) } else { None };
            if let Some(effect) = effect(rule.target, taken) {
                self.journal.step(at, &effect, walk.likely);
            }
            match rule.target {
                Target::Accept => return Verdict::Accept,
                Target::Return => return Verdict::Pass,
                Target::Drop => return Verdict::End(End::Dropped),
                Target::Reset | Target::Reject => return Verdict::End(End::Rejected),
                Target::Masquerade => return Verdict::Masquerade,
                Target::Mark => walk.mark |= MASQUERADE_MARK,
                Target::Unmark => walk.mark ^= MASQUERADE_MARK,
                Target::TakeMark(_) => walk.mark = taken.unwrap_or(walk.mark),
                Target::Jump(next) => match self.chain((table, hook, next), walk, depth - 1) {
                    Verdict::Pass => {}
                    verdict => return verdict,
                },
            }
        }
        Verdict::Pass
    }

    fn elements(&self, set: Set) -> Option<&BTreeMap<Element, u32>> {
        self.observed.families.get(&self.family)?.sets.get(&set)
    }

    fn mark(&self, set: Set, walk: &Walk) -> Option<u32> {
        let element = Element::Port(walk.destination.ip(), self.packet.protocol, walk.destination.port());
        self.elements(set)?.get(&element).copied()
    }

    fn matches(&self, one: &Match, walk: &Walk) -> bool {
        match one {
            Match::NotFrom(net) => !net.contains(&self.packet.source),
            Match::To(net) => net.contains(&walk.destination.ip()),
            Match::Tcp => self.packet.protocol == Protocol::Tcp,
            Match::New => true,
            Match::Known => false,
            Match::In(set, _) => self.is_in(*set, walk),
            Match::NotIn(set, _) => !self.is_in(*set, walk),
            Match::Unmarked => walk.mark & MASQUERADE_MARK == 0,
        }
    }

    fn is_in(&self, set: Set, walk: &Walk) -> bool {
        let (ip, protocol, port) = (walk.destination.ip(), self.packet.protocol, walk.destination.port());
        let source = self.packet.source;
        let Some(elements) = self.elements(set) else {
            return false;
        };
        match set.kind() {
            "hash:ip" => elements.contains_key(&Element::Ip(ip)),
            "hash:ip,port,ip" => elements.contains_key(&Element::PortIp(ip, protocol, port, source)),
            "hash:ip,port,net" => elements.keys().any(|element| match element {
                Element::PortNet(to, by, at, net) => (*to, *by, *at) == (ip, protocol, port) && net.contains(&source),
                _ => false,
            }),
            _ => elements.contains_key(&Element::Port(ip, protocol, port)),
        }
    }
}

/// In a few words; `None`: it did nothing to this packet.
fn effect(target: Target, taken: Option<u32>) -> Option<String> {
    Some(match target {
        Target::Accept => "lets it through".to_owned(),
        Target::Drop => "loses it".to_owned(),
        Target::Return => return None,
        Target::Reset => "refuses it with a reset".to_owned(),
        Target::Reject => "refuses it with an ICMP error".to_owned(),
        Target::Mark => "marks it for masquerading".to_owned(),
        Target::Unmark => "clears the mark".to_owned(),
        Target::Masquerade => "puts the node's address in the source's place".to_owned(),
        Target::TakeMark(_) => {
            format!("marks it {:#x}, as one from outside", taken.filter(|one| server::number(*one).is_some())?)
        }
        Target::Jump(next) => format!("jumps to {next}"),
    })
}
