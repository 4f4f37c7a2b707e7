//! Follows a packet through tables in memory and tells where it may end, and how likely. Pure.
//!
//! The order is the kernel's: nat PREROUTING or OUTPUT, routing, filter INPUT, FORWARD or OUTPUT, nat POSTROUTING. Only
//! the first packet of a connection is followed: the others do what conntrack remembers of it.

use crate::plan::Family;
use crate::plan::iptables::observed::Observed;
use crate::plan::iptables::rule::{Net, Recent, Rule, Target};
use crate::plan::iptables::{Space, Table};
use crate::plan::service::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Rules followed at most: a loop of chains ends here.
const STEPS: usize = 10_000;

/// First packet of a connection.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Affinity lists that know the source.
    pub remembered: BTreeSet<String>,
}

/// The node that a packet passes.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its tables.
    pub tables: &'a Observed,
    /// Its addresses; a packet from one of them was made on the node.
    pub addresses: &'a [IpAddr],
}

/// Where a packet ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Leaves for, or is delivered to, an address.
    Reaches {
        /// Address and port, after rewriting.
        destination: SocketAddr,
        /// Its source was replaced by the node's.
        masqueraded: bool,
    },
    /// Refused with an ICMP error.
    Rejected,
    /// Lost.
    Dropped,
}

/// Every end that is possible, with its probability.
pub type Ends = BTreeMap<End, f64>;

#[derive(Clone)]
struct Walk {
    destination: SocketAddr,
    mark: u32,
    likely: f64,
}

enum Verdict {
    /// The table has nothing more to say.
    Pass,
    Rewritten(SocketAddr),
    Masquerade,
    Rejected,
    Dropped,
}

/// Follows a packet.
#[must_use]
pub fn trace(node: Node<'_>, packet: &Packet) -> Ends {
    let tracer = Tracer { node, packet };
    let mut ends = Ends::new();
    let start = Walk { destination: packet.destination, mark: 0, likely: 1.0 };
    let first = if tracer.is_local(packet.source) { "OUTPUT" } else { "PREROUTING" };
    for (mut walk, verdict) in tracer.table(start, (Table::Nat, first)) {
        if let Verdict::Rewritten(endpoint) = verdict {
            walk.destination = endpoint;
        }
        let arrives = tracer.is_local(walk.destination.ip());
        let hooks: &[&str] = match (tracer.is_local(packet.source), arrives) {
            (true, true) => &["OUTPUT", "INPUT"],
            (true, false) => &["OUTPUT"],
            (false, true) => &["INPUT"],
            (false, false) => &["FORWARD"],
        };
        tracer.filter(walk, (hooks, arrives), &mut ends);
    }
    ends
}

struct Tracer<'a> {
    node: Node<'a>,
    packet: &'a Packet,
}

impl Tracer<'_> {
    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.node.addresses.contains(&address)
    }

    fn filter(&self, walk: Walk, (hooks, arrives): (&[&str], bool), ends: &mut Ends) {
        let Some((hook, rest)) = hooks.split_first() else {
            return self.postrouting(walk, arrives, ends);
        };
        for (walk, verdict) in self.table(walk, (Table::Filter, hook)) {
            match verdict {
                Verdict::Rejected => *ends.entry(End::Rejected).or_default() += walk.likely,
                Verdict::Dropped => *ends.entry(End::Dropped).or_default() += walk.likely,
                _ => self.filter(walk, (rest, arrives), ends),
            }
        }
    }

    fn postrouting(&self, walk: Walk, arrives: bool, ends: &mut Ends) {
        let from_elsewhere = !self.is_local(self.packet.source);
        if arrives && from_elsewhere {
            let end = End::Reaches { destination: walk.destination, masqueraded: false };
            *ends.entry(end).or_default() += walk.likely;
            return;
        }
        for (walk, verdict) in self.table(walk, (Table::Nat, "POSTROUTING")) {
            let end =
                End::Reaches { destination: walk.destination, masqueraded: matches!(verdict, Verdict::Masquerade) };
            *ends.entry(end).or_default() += walk.likely;
        }
    }

    /// Every way through a built-in chain.
    fn table(&self, walk: Walk, (table, hook): (Table, &str)) -> Vec<(Walk, Verdict)> {
        let space = Space::new(Family::of(walk.destination.ip()), table);
        let mut ended = Vec::new();
        // A way: what the packet became, and the rules still before it, innermost chain last.
        let mut ways = vec![(walk, vec![(hook.to_owned(), 0_usize)])];
        let mut steps = 0;
        while let Some((mut walk, mut stack)) = ways.pop() {
            steps += 1;
            let Some((chain, at)) = stack.last_mut().filter(|_| steps < STEPS) else {
                ended.push((walk, Verdict::Pass));
                continue;
            };
            let Some(line) = self.node.tables.chain(space, chain).get(*at) else {
                stack.pop();
                ways.push((walk, stack));
                continue;
            };
            *at += 1;
            let Some(rule) = line.rule.as_ref().filter(|rule| self.matches(rule, &walk)) else {
                ways.push((walk, stack));
                continue;
            };
            if let Some(probability) = rule.probability {
                let chance = f64::from(probability) / f64::from(1_u32 << 31);
                let mut passed = walk.clone();
                passed.likely *= 1.0 - chance;
                ways.push((passed, stack.clone()));
                walk.likely *= chance;
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
                Target::Accept => ended.push((walk, Verdict::Pass)),
                Target::Drop => ended.push((walk, Verdict::Dropped)),
                Target::Reject | Target::Reset => ended.push((walk, Verdict::Rejected)),
                Target::Masquerade => ended.push((walk, Verdict::Masquerade)),
                Target::Dnat(endpoint) => ended.push((walk, Verdict::Rewritten(*endpoint))),
            }
        }
        ended
    }

    fn matches(&self, rule: &Rule, walk: &Walk) -> bool {
        let net = |net: &Option<Net>, ip: IpAddr| net.is_none_or(|net| net.net.contains(&ip) != net.negated);
        let port = rule.destination_port.is_none_or(|port| port == walk.destination.port());
        let mark = rule.mark.is_none_or(|(value, mask, negated)| (walk.mark & mask == value) != negated);
        let remembered = match &rule.recent {
            Some(Recent::Check(list, _)) => self.packet.remembered.contains(list),
            Some(Recent::Set(_)) | None => true,
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
}
