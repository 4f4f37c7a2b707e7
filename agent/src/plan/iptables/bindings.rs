//! Which endpoints are behind each frontend, by the rules that a kernel holds.

use crate::plan::Family;
use crate::plan::flows::{Bindings, Frontend};
use crate::plan::iptables::observed::Observed;
use crate::plan::iptables::rule::{Rule, Target};
use crate::plan::iptables::{Names, Space, Table};
use std::collections::BTreeSet;

/// Bindings in a kernel.
#[must_use]
pub fn observed(observed: &Observed, family: Family, names: &Names) -> Bindings {
    let space = Space::new(family, Table::Nat);
    let rules =
        |chain: &str| observed.chain(space, chain).iter().filter_map(|line| line.rule.as_ref()).collect::<Vec<&Rule>>();
    let mut bindings = Bindings::new();
    for entry in [names.services(), names.node_ports()].into_iter().flat_map(|chain| rules(&chain)) {
        let (Some(protocol), Some(port), Some(target)) = (entry.protocol, entry.destination_port, entry.jumps_to())
        else {
            continue;
        };
        let address = entry.destination.filter(|net| !net.negated).map(|net| net.net.addr());
        let behind = bindings.entry(Frontend { protocol, address, port }).or_default();
        let mut seen = BTreeSet::from([target]);
        let mut rest = vec![target];
        while let Some(name) = rest.pop() {
            for rule in rules(name) {
                match &rule.target {
                    Target::Dnat(endpoint) => {
                        behind.living.insert(*endpoint);
                    }
                    Target::Jump(next) if seen.insert(next) => rest.push(next),
                    _ => {}
                }
            }
        }
        behind.serves |= !behind.living.is_empty();
    }
    bindings
}
