//! Which remembered UDP flows a change of rules leaves pointing at the wrong place. Pure.
//!
//! The kernel decides a flow's endpoint once and remembers it while packets come. UDP has no end, so a flow to a gone
//! endpoint would be lost for ever (kubernetes/kubernetes#139628, #141275): it must be forgotten, after the rules changed.

use crate::plan::observed::Observed;
use crate::plan::rule::{Protocol, Rule, Target};
use crate::plan::{Desired, Family, Names, NodeFacts, Space, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// UDP flows to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flows {
    /// Family.
    pub family: Family,
    /// Where clients send to; `None`: any address (a NodePort).
    pub destination: Option<IpAddr>,
    /// Port that clients send to.
    pub port: u16,
    /// Only flows answered from here; port 0 = any. `None`: all.
    pub answered_from: Option<SocketAddr>,
}

/// Address and port that clients send UDP to; no address: a NodePort.
pub type Frontend = (Option<IpAddr>, u16);

/// Endpoints behind each UDP frontend.
pub type Bindings = BTreeMap<Frontend, BTreeSet<SocketAddr>>;

/// Bindings that some rules make: entries, and the chains they lead to.
pub fn bindings<'a>(entries: impl Iterator<Item = &'a Rule>, chain: &dyn Fn(&str) -> Vec<&'a Rule>) -> Bindings {
    let mut bindings = Bindings::new();
    for entry in entries {
        let (Some(Protocol::Udp), Some(port), Some(target)) =
            (entry.protocol, entry.destination_port, entry.jumps_to())
        else {
            continue;
        };
        let address = entry.destination.filter(|net| !net.negated).map(|net| net.net.addr());
        let endpoints = bindings.entry((address, port)).or_default();
        let mut seen = BTreeSet::from([target]);
        let mut rest = vec![target];
        while let Some(name) = rest.pop() {
            for rule in chain(name) {
                match &rule.target {
                    Target::Dnat(endpoint) => {
                        endpoints.insert(*endpoint);
                    }
                    Target::Jump(next) if seen.insert(next) => rest.push(next),
                    _ => {}
                }
            }
        }
    }
    bindings
}

/// Bindings in a kernel.
#[must_use]
pub fn observed(observed: &Observed, family: Family, names: &Names) -> Bindings {
    let space = Space::new(family, Table::Nat);
    let rules = |chain: &str| -> Vec<&Rule> {
        observed.chain(space, chain).iter().filter_map(|line| line.rule.as_ref()).collect()
    };
    let entries = [names.services(), names.node_ports()].into_iter().flat_map(|chain| rules(&chain));
    bindings(entries, &rules)
}

/// Bindings of all services.
#[must_use]
pub fn desired(desired: &Desired, family: Family) -> Bindings {
    desired.rules(family).fold(Bindings::new(), |mut all, (_, rules)| {
        let chain = |name: &str| -> Vec<&Rule> { rules.chains.get(name).into_iter().flatten().collect() };
        for (frontend, endpoints) in bindings(rules.entries.iter().map(|(_, rule)| rule), &chain) {
            all.entry(frontend).or_default().extend(endpoints);
        }
        all
    })
}

/// What must be forgotten when bindings change.
#[must_use]
pub fn stale(old: &Bindings, new: &Bindings, (family, facts): (Family, &NodeFacts)) -> Vec<Flows> {
    let none = BTreeSet::new();
    let mut stale = Vec::new();
    let frontends: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for (destination, port) in frontends.into_iter().copied() {
        let flows = |answered_from| Flows { family, destination, port, answered_from };
        let before = old.get(&(destination, port)).unwrap_or(&none);
        let after = new.get(&(destination, port)).unwrap_or(&none);
        stale.extend(before.difference(after).map(|endpoint| flows(Some(*endpoint))));
        if before.is_empty() && !after.is_empty() {
            // Packets sent before there were rules made flows that lead nowhere: answered by the address itself.
            let nowhere = |ip: IpAddr| Flows { destination: Some(ip), ..flows(Some(SocketAddr::new(ip, 0))) };
            match destination {
                Some(ip) => stale.push(nowhere(ip)),
                None => {
                    stale.extend(facts.node_ips.iter().filter(|ip| Family::of(**ip) == family).map(|ip| nowhere(*ip)))
                }
            }
        }
    }
    stale
}
