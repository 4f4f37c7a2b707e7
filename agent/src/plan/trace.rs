//! What it means to follow a packet through rules: the packet, the ways it may take, and where they end. Each plane has a
//! tracer of its own, which reads what a kernel was seen to hold; here is what they share. Pure.
//!
//! Only the first packet of a connection is followed: the others do what conntrack remembers of it. INVARIANT: the shares
//! of a packet's ends add up to 1, and a rule that isn't understood ends in [`End::Unknown`], never in a guess.

use crate::plan::NodeFacts;
use crate::plan::service::Protocol;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// First packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from; an address of the node: made on the node.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// The endpoint that the kernel remembers for this client, of a service with affinity.
    pub remembered: Option<SocketAddr>,
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
    /// Refused with an ICMP error or a reset.
    Rejected,
    /// Lost.
    Dropped,
    /// A rule that isn't understood decides.
    Unknown,
}

/// Every end that is possible, with its probability.
pub type Ends = BTreeMap<End, f64>;

/// What one rule did.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Where in the kernel's order: the table's kind and its hook.
    pub hook: String,
    /// Chain of the rule.
    pub chain: String,
    /// Its text.
    pub rule: String,
    /// What it did, in a few words.
    pub effect: String,
    /// Share of such packets that met it so.
    pub share: f64,
}

/// A packet's whole way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traced {
    /// Where it may end.
    pub ends: Ends,
    /// What the rules did, in the kernel's order; ways that part and do the same are one step.
    pub steps: Vec<Step>,
}

impl Traced {
    /// Endpoints that it may reach, or what becomes of it instead, in words; with their shares.
    pub fn outcome(&self, destination: SocketAddr) -> BTreeMap<String, f64> {
        let mut outcome = BTreeMap::new();
        for (end, share) in &self.ends {
            let text = match end {
                End::Reaches { destination: reached, .. } if *reached == destination => "unserved".to_owned(),
                End::Reaches { destination: reached, .. } => reached.to_string(),
                End::Rejected => "rejected".to_owned(),
                End::Dropped => "dropped".to_owned(),
                End::Unknown => "unknown".to_owned(),
            };
            *outcome.entry(text).or_default() += share;
        }
        outcome
    }
}

/// True for an address of the node itself.
#[must_use]
pub fn is_local(facts: &NodeFacts, address: IpAddr) -> bool {
    address.is_loopback() || facts.node_ips.contains(&address)
}

/// Where a rule stands.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// See [`Step::hook`].
    pub hook: &'a str,
    /// See [`Step::chain`].
    pub chain: &'a str,
    /// See [`Step::rule`].
    pub rule: &'a str,
}

/// Notes a packet's way while it is followed.
#[derive(Debug, Default)]
pub struct Journal {
    traced: Traced,
    places: BTreeMap<[String; 4], usize>,
}

impl Journal {
    /// A rule did something.
    pub fn step(&mut self, at: At<'_>, effect: &str, share: f64) {
        let key = [at.hook, at.chain, at.rule, effect].map(str::to_owned);
        if let Some(place) = self.places.get(&key) {
            self.traced.steps[*place].share += share;
            return;
        }
        let [hook, chain, rule, effect] = key.clone();
        self.places.insert(key, self.traced.steps.len());
        self.traced.steps.push(Step { hook, chain, rule, effect, share });
    }

    /// A way ended.
    pub fn end(&mut self, end: End, share: f64) {
        *self.traced.ends.entry(end).or_default() += share;
    }

    /// All of it.
    #[must_use]
    pub fn done(self) -> Traced {
        self.traced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_that_do_the_same_are_one_step() {
        let mut journal = Journal::default();
        let at = At { hook: "nat OUTPUT", chain: "X", rule: "-j Y" };
        journal.step(at, "jumps to Y", 0.25);
        journal.step(At { rule: "-j Z", ..at }, "jumps to Z", 0.5);
        journal.step(at, "jumps to Y", 0.25);
        let to: SocketAddr = "10.96.0.1:80".parse().unwrap();
        journal.end(End::Reaches { destination: to, masqueraded: false }, 0.5);
        journal.end(End::Reaches { destination: to, masqueraded: true }, 0.25);
        journal.end(End::Dropped, 0.25);
        let traced = journal.done();
        assert_eq!(traced.steps.iter().map(|step| step.share).collect::<Vec<_>>(), [0.5, 0.5]);
        assert_eq!(traced.outcome(to), BTreeMap::from([("unserved".to_owned(), 0.75), ("dropped".to_owned(), 0.25)]));
    }
}
