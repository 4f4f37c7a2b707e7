//! Follows packets through iptables as a kernel was seen to hold them, and tells rule by rule what happens. Pure.
//!
//! The order is the kernel's: nat PREROUTING or OUTPUT, routing, filter INPUT, FORWARD or OUTPUT, nat POSTROUTING. Of what
//! isn't ours only the rules of built-in chains are known, and those that say more than ours do are passed over, with a
//! step that says so; in a chain of ours such a rule ends in `End::Unknown`. A chain's rules are found by address and
//! port, so that a packet costs O(its own rules), not O(services).

use crate::plan::iptables::observed::{Line, Observed};
use crate::plan::iptables::rule::{Net, Recent, Rule, Target};
use crate::plan::iptables::{Space, Table};
use crate::plan::trace::{At, End, Journal, Packet, Traced, is_local};
use crate::plan::{Family, NodeFacts};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Rules followed at most in one table: a loop of chains, which no kernel takes, ends here.
const RULES: usize = 100_000;
/// Chains of more lines than this have an index.
const SHORT: usize = 32;

/// Follows packets.
#[must_use]
pub fn trace(observed: &Observed, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
    let index = Index::of(observed);
    let follow = |packet: &Packet| {
        let mut tracer = Tracer { observed, index: &index, facts, packet, journal: Journal::default() };
        tracer.run();
        tracer.journal.done()
    };
    packets.iter().map(follow).collect()
}

/// Where in long chains a packet's rules may stand.
struct Index<'a>(BTreeMap<(Space, &'a str), Places>);

#[derive(Default)]
struct Places {
    by_address: BTreeMap<IpAddr, Vec<usize>>,
    /// Of any address.
    by_port: BTreeMap<u16, Vec<usize>>,
    others: Vec<usize>,
}

impl<'a> Index<'a> {
    fn of(observed: &'a Observed) -> Self {
        let mut index = BTreeMap::new();
        for (space, chains) in &observed.chains {
            for (chain, lines) in chains.iter().filter(|(_, lines)| lines.len() > SHORT) {
                index.insert((*space, chain.as_str()), Places::of(lines));
            }
        }
        Self(index)
    }
}

impl Places {
    fn of(lines: &[Line]) -> Self {
        let mut places = Self::default();
        for (at, line) in lines.iter().enumerate() {
            let rule = line.rule.as_ref();
            let host = |net: &&Net| !net.negated && net.net.prefix_len() == net.net.max_prefix_len();
            let address = rule.and_then(|rule| rule.destination.as_ref()).filter(host).map(|net| net.net.addr());
            let port = rule.and_then(|rule| rule.destination_port);
            match (address, port) {
                (Some(address), _) => places.by_address.entry(address).or_default().push(at),
                (None, Some(port)) => places.by_port.entry(port).or_default().push(at),
                (None, None) => places.others.push(at),
            }
        }
        places
    }

    /// The next place, not before `from`, of a rule that may match.
    fn next(&self, from: usize, destination: SocketAddr) -> Option<usize> {
        let first = |places: &Vec<usize>| places.get(places.partition_point(|place| *place < from)).copied();
        let address = self.by_address.get(&destination.ip()).and_then(first);
        let port = self.by_port.get(&destination.port()).and_then(first);
        [address, port, first(&self.others)].into_iter().flatten().min()
    }
}

#[derive(Clone)]
struct Walk {
    destination: SocketAddr,
    masqueraded: bool,
    mark: u32,
    likely: f64,
}

/// A way through a table: what the packet became, and the rules still before it, innermost chain last.
type Way = (Walk, Vec<(String, usize)>);

struct Tracer<'a> {
    observed: &'a Observed,
    index: &'a Index<'a>,
    facts: &'a NodeFacts,
    packet: &'a Packet,
    journal: Journal,
}

impl Tracer<'_> {
    fn is_local(&self, address: IpAddr) -> bool {
        is_local(self.facts, address)
    }

    fn run(&mut self) {
        let start = Walk { destination: self.packet.destination, masqueraded: false, mark: 0, likely: 1.0 };
        let from_here = self.is_local(self.packet.source);
        let first = if from_here { "OUTPUT" } else { "PREROUTING" };
        let walks = self.pass(vec![start], (Table::Nat, first));
        for arrives in [false, true] {
            let mut part: Vec<_> =
                walks.iter().filter(|walk| self.is_local(walk.destination.ip()) == arrives).cloned().collect();
            let hooks: &[&str] = match (from_here, arrives) {
                (true, true) => &["OUTPUT", "INPUT"],
                (true, false) => &["OUTPUT"],
                (false, true) => &["INPUT"],
                (false, false) => &["FORWARD"],
            };
            for hook in hooks {
                part = self.pass(part, (Table::Filter, hook));
            }
            if from_here || !arrives {
                part = self.pass(part, (Table::Nat, "POSTROUTING"));
            }
            for walk in part {
                let end = End::Reaches { destination: walk.destination, masqueraded: walk.masqueraded };
                self.journal.end(end, walk.likely);
            }
        }
    }

    /// What comes out of a built-in chain.
    fn pass(&mut self, walks: Vec<Walk>, (table, hook): (Table, &str)) -> Vec<Walk> {
        let mut passed = Vec::new();
        for walk in walks {
            let space = Space::new(Family::of(walk.destination.ip()), table);
            let mut ways: Vec<Way> = vec![(walk, vec![(hook.to_owned(), 0)])];
            let mut rules = 0;
            while let Some((walk, mut stack)) = ways.pop() {
                rules += 1;
                match self.next(space, &mut stack, &walk) {
                    _ if rules > RULES => self.journal.end(End::Unknown, walk.likely),
                    None => passed.push(walk),
                    Some((chain, line)) => {
                        let name = format!("{} {hook}", table.name());
                        let at = At { hook: &name, chain: &chain, rule: &line.text };
                        match &line.rule {
                            Some(rule) => passed.extend(self.take((space, at, rule), (walk, stack), &mut ways)),
                            None if self.facts.names.owns(&chain) => {
                                self.journal.step(at, "unknown rule: what it does can't be told", walk.likely);
                                self.journal.end(End::Unknown, walk.likely);
                            }
                            None => {
                                self.journal.step(at, "not ours: not followed", walk.likely);
                                ways.push((walk, stack));
                            }
                        }
                    }
                }
            }
        }
        passed
    }

    /// The next line that matches or isn't understood; leaves chains that end.
    fn next(&self, space: Space, stack: &mut Vec<(String, usize)>, walk: &Walk) -> Option<(String, Line)> {
        while let Some((chain, at)) = stack.last_mut() {
            let lines = self.observed.chain(space, chain);
            let place = match self.index.0.get(&(space, chain.as_str())) {
                Some(places) => places.next(*at, walk.destination),
                None => Some(*at),
            };
            let Some(line) = place.and_then(|place| lines.get(place)) else {
                stack.pop();
                continue;
            };
            *at = place.unwrap_or(*at) + 1;
            if line.rule.as_ref().is_none_or(|rule| self.matches((space, rule), walk)) {
                return Some((chain.clone(), line.clone()));
            }
        }
        None
    }

    /// Does what a rule says; what leaves the table is given back.
    fn take(
        &mut self,
        (space, at, rule): (Space, At<'_>, &Rule),
        (mut walk, mut stack): Way,
        ways: &mut Vec<Way>,
    ) -> Option<Walk> {
        let mut chance = String::new();
        if let Some(probability) = rule.probability {
            let share = f64::from(probability) / f64::from(1_u32 << 31);
            let mut passed = walk.clone();
            passed.likely *= 1.0 - share;
            ways.push((passed, stack.clone()));
            walk.likely *= share;
            chance = format!("drawn with probability {share:.4}, ");
        }
        let effect = self.effect(space, &rule.target);
        if rule.target != Target::None || rule.recent.is_some() {
            self.journal.step(at, &format!("{chance}{effect}"), walk.likely);
        }
        match &rule.target {
            Target::None => ways.push((walk, stack)),
            Target::Mark { value, mask } => {
                walk.mark = (walk.mark & !mask) ^ value;
                ways.push((walk, stack));
            }
            Target::Jump(next) => {
                stack.push((next.clone(), 0));
                ways.push((walk, stack));
            }
            Target::Return => {
                stack.pop();
                ways.push((walk, stack));
            }
            Target::Accept => return Some(walk),
            Target::Drop => self.journal.end(End::Dropped, walk.likely),
            Target::Reject | Target::Reset => self.journal.end(End::Rejected, walk.likely),
            Target::Masquerade => return Some(Walk { masqueraded: true, ..walk }),
            Target::Dnat(endpoint) => return Some(Walk { destination: *endpoint, ..walk }),
        }
        None
    }

    fn effect(&self, space: Space, target: &Target) -> String {
        match target {
            Target::None => "remembers the client".to_owned(),
            Target::Mark { mask: 0, .. } => "clears the mark".to_owned(),
            Target::Mark { value, .. } => format!("marks it {value:#x}: to be masqueraded"),
            Target::Jump(next) if self.observed.has(space, next) => format!("goes into {next}"),
            Target::Jump(next) => format!("{next} is not ours: not followed"),
            Target::Return => "goes back".to_owned(),
            Target::Accept => "lets it through".to_owned(),
            Target::Drop => "drops it".to_owned(),
            Target::Reject => "refuses it".to_owned(),
            Target::Reset => "refuses it with a reset".to_owned(),
            Target::Masquerade => "puts the node's address in the source's place".to_owned(),
            Target::Dnat(endpoint) => format!("the destination becomes {endpoint}"),
        }
    }

    fn matches(&self, (space, rule): (Space, &Rule), walk: &Walk) -> bool {
        let net = |net: &Option<Net>, ip: IpAddr| net.is_none_or(|net| net.net.contains(&ip) != net.negated);
        let port = rule.destination_port.is_none_or(|port| port == walk.destination.port());
        let mark = rule.mark.is_none_or(|(value, mask, negated)| (walk.mark & mask == value) != negated);
        let remembered = match (&rule.recent, &rule.target) {
            (Some(Recent::Check(..)), Target::Jump(chain)) => {
                self.packet.remembered.is_some() && self.endpoint(space, chain) == self.packet.remembered
            }
            (Some(Recent::Check(..)), _) => false,
            (Some(Recent::Set(_)) | None, _) => true,
        };
        net(&rule.source, self.packet.source)
            && net(&rule.destination, walk.destination.ip())
            && rule.protocol.is_none_or(|protocol| protocol == self.packet.protocol)
            && port
            && mark
            && remembered
            && rule.states.is_none_or(|states| states.new)
            && (!rule.source_local || self.is_local(self.packet.source))
            && (!rule.destination_local || self.is_local(walk.destination.ip()))
    }

    /// The endpoint that a chain leads to.
    fn endpoint(&self, space: Space, chain: &str) -> Option<SocketAddr> {
        self.observed.chain(space, chain).iter().find_map(|line| match line.rule.as_ref()?.target {
            Target::Dnat(endpoint) => Some(endpoint),
            _ => None,
        })
    }
}
