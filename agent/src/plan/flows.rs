//! Which remembered UDP flows a change of rules leaves pointing at the wrong place. Pure.
//!
//! The kernel decides a flow's endpoint once and remembers it while packets come. UDP has no end, so a flow to a gone
//! endpoint would be lost for ever (kubernetes/kubernetes#139628, #141275): it must be forgotten, after the rules changed.

use crate::plan::{Family, NodeFacts};
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
