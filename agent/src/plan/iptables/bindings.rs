//! Which endpoints are behind each UDP frontend, by the rules.

use crate::plan::Family;
use crate::plan::compile::Desired;
use crate::plan::flows::Bindings;
use crate::plan::iptables::observed::Observed;
use crate::plan::iptables::rule::{Rule, Target};
use crate::plan::iptables::{IptablesPlane, Names, Space, Table};
use crate::plan::service::Protocol;
use std::collections::BTreeSet;

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
pub fn desired(desired: &Desired<IptablesPlane>, family: Family) -> Bindings {
    let rules = desired.services.values().map(|rules| rules.family(family));
    rules.fold(Bindings::new(), |mut all, rules| {
        let chain = |name: &str| -> Vec<&Rule> { rules.chains.get(name).into_iter().flatten().collect() };
        for (frontend, endpoints) in bindings(rules.entries.iter().map(|(_, rule)| rule), &chain) {
            all.entry(frontend).or_default().extend(endpoints);
        }
        all
    })
}
