//! `diff`: from what a kernel holds to what it should hold.
//!
//! Laws: executing `diff(observed, desired)` makes the kernel hold `desired`; then `diff` is empty; nothing is touched
//! that isn't ours by name; a step costs O(changed services). Order is a rule of this room: what attracts traffic is
//! written after what carries it and removed before it, and flows are forgotten last.

use crate::plan::compile::{Changes, Desired};
use crate::plan::flows::{self, Bindings, Flows};
use crate::plan::iptables::bindings::observed as observed_bindings;
use crate::plan::iptables::observed::{Line, Observed};
use crate::plan::iptables::rule::Rule;
use crate::plan::iptables::{FamilyRules, Shared, fixed, jumps};
use crate::plan::iptables::{IptablesPlane, Names, Space, Table};
use crate::plan::plane::Style;
use crate::plan::{Family, NodeFacts};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One step of a kernel's tables. A batch of them is a transaction: references are checked at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the chain if need be; exactly these rules are in it.
    Set {
        /// Table.
        space: Space,
        /// Chain.
        chain: String,
        /// Its rules, in order.
        rules: Vec<Rule>,
    },
    /// Put a rule at the head of a chain.
    Insert {
        /// Table.
        space: Space,
        /// Chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Take one such rule out of a chain.
    Delete {
        /// Table.
        space: Space,
        /// Chain.
        chain: String,
        /// The rule, as the kernel has it.
        line: Line,
    },
    /// Remove a chain with its rules; nothing jumps to it any more.
    Drop {
        /// Table.
        space: Space,
        /// Chain.
        chain: String,
    },
    /// Forget flows.
    Forget(Flows),
}

impl Op {
    /// The table that it changes; `None`: flows are in none.
    #[must_use]
    pub fn space(&self) -> Option<Space> {
        match self {
            Self::Set { space, .. }
            | Self::Insert { space, .. }
            | Self::Delete { space, .. }
            | Self::Drop { space, .. } => Some(*space),
            Self::Forget(_) => None,
        }
    }
}

/// From an observed kernel to the desired one.
#[must_use]
pub fn diff(observed: &Observed, desired: &Desired<IptablesPlane>, style: Style) -> Vec<Op> {
    let mut ops = Vec::new();
    for space in Space::ALL {
        let wanted = Wanted::of(desired, space);
        wanted.chains(observed, &mut ops);
        wanted.shared(observed, style, &mut ops);
        wanted.jumps(observed, &mut ops);
        wanted.sweep(observed, &mut ops);
    }
    for family in Family::ALL {
        let old = observed_bindings(observed, family, &desired.facts.names);
        let new = bindings(desired, family);
        ops.extend(flows::stale(&old, &new, (family, &desired.facts)).into_iter().map(Op::Forget));
    }
    ops
}

/// From nothing of ours: everything that is ours goes, nothing else.
#[must_use]
pub fn cleanup(observed: &Observed, names: &Names) -> Vec<Op> {
    let mut ops = Vec::new();
    for space in Space::ALL {
        let nothing = Wanted { space, names, chains: BTreeMap::new(), entries: BTreeMap::new(), jumps: Vec::new() };
        nothing.jumps(observed, &mut ops);
        nothing.sweep(observed, &mut ops);
    }
    for family in Family::ALL {
        let old = observed_bindings(observed, family, names);
        // What nobody translates any more: UDP and SCTP would go on by memory alone.
        let nothing = (&Bindings::new(), (family, &NodeFacts::default()));
        ops.extend(flows::stale(&old, nothing.0, nothing.1).into_iter().map(Op::Forget));
    }
    ops
}

/// From a kernel that holds the desired rules from before some changes to one that holds them from after. Right only if
/// services are all that changes.
#[must_use]
pub fn step(changes: &Changes<IptablesPlane>, facts: &NodeFacts) -> Vec<Op> {
    let names = &facts.names;
    let none = FamilyRules::default();
    let mut ops = Vec::new();
    let mut forget = Vec::new();
    for change in changes.values() {
        for family in Family::ALL {
            let before = change.old.as_ref().map_or(&none, |rules| rules.family(family));
            let after = change.new.as_ref().map_or(&none, |rules| rules.family(family));
            service_step(before, after, (family, names), &mut ops);
            let bindings = |rules: &FamilyRules| flows::bindings(&rules.ports);
            forget.extend(flows::stale(&bindings(before), &bindings(after), (family, facts)));
        }
    }
    ops.extend(forget.into_iter().map(Op::Forget));
    ops
}

/// What should be forgotten in a kernel that nobody watched for a while.
#[must_use]
pub fn strays(desired: &Desired<IptablesPlane>) -> Vec<Op> {
    let of = |family| flows::strays(&bindings(desired, family), (family, &desired.facts));
    Family::ALL.into_iter().flat_map(of).map(Op::Forget).collect()
}

/// Bindings of all services.
fn bindings(desired: &Desired<IptablesPlane>, family: Family) -> Bindings {
    flows::bindings(desired.services.values().flat_map(|rules| &rules.family(family).ports))
}

fn service_step(before: &FamilyRules, after: &FamilyRules, (family, names): (Family, &Names), ops: &mut Vec<Op>) {
    let nat = Space::new(family, Table::Nat);
    for (chain, rules) in &after.chains {
        if before.chains.get(chain) != Some(rules) {
            ops.push(Op::Set { space: nat, chain: chain.clone(), rules: rules.clone() });
        }
    }
    for (shared, rule) in after.entries.difference(&before.entries) {
        ops.push(Op::Insert {
            space: Space::new(family, shared.table()),
            chain: shared.chain(names),
            rule: rule.clone(),
        });
    }
    for (shared, rule) in before.entries.difference(&after.entries) {
        ops.push(Op::Delete {
            space: Space::new(family, shared.table()),
            chain: shared.chain(names),
            line: rule.clone().into(),
        });
    }
    for chain in before.chains.keys().filter(|chain| !after.chains.contains_key(*chain)) {
        ops.push(Op::Drop { space: nat, chain: chain.clone() });
    }
}

/// What one table should hold.
struct Wanted<'a> {
    space: Space,
    names: &'a Names,
    /// Chains with exact rules.
    chains: BTreeMap<String, Vec<Rule>>,
    /// Shared chains: entries in any order, then the tail.
    entries: BTreeMap<String, (BTreeSet<Rule>, Vec<Rule>)>,
    jumps: Vec<(&'static str, Rule)>,
}

impl<'a> Wanted<'a> {
    fn of(desired: &'a Desired<IptablesPlane>, space: Space) -> Self {
        let names = &desired.facts.names;
        let mut wanted = Wanted { space, names, chains: BTreeMap::new(), entries: BTreeMap::new(), jumps: Vec::new() };
        if !desired.book.uses(space.family) {
            return wanted;
        }
        wanted.chains = fixed(space, &desired.facts);
        wanted.jumps = jumps(space, &desired.facts);
        for shared in Shared::ALL.into_iter().filter(|shared| shared.table() == space.table) {
            wanted.entries.insert(shared.chain(names), (BTreeSet::new(), shared.tail(names, space.family)));
        }
        for rules in desired.services.values().map(|rules| rules.family(space.family)) {
            if space.table == Table::Nat {
                wanted.chains.extend(rules.chains.clone());
            }
            for (shared, rule) in rules.entries.iter().filter(|(shared, _)| shared.table() == space.table) {
                if let Some((entries, _)) = wanted.entries.get_mut(&shared.chain(names)) {
                    entries.insert(rule.clone());
                }
            }
        }
        wanted
    }

    fn chains(&self, observed: &Observed, ops: &mut Vec<Op>) {
        for (chain, rules) in &self.chains {
            let lines = observed.chain(self.space, chain);
            let same = lines.len() == rules.len()
                && lines.iter().zip(rules).all(|(line, rule)| line.rule.as_ref() == Some(rule));
            if !same || !observed.has(self.space, chain) {
                ops.push(Op::Set { space: self.space, chain: chain.clone(), rules: rules.clone() });
            }
        }
    }

    fn shared(&self, observed: &Observed, style: Style, ops: &mut Vec<Op>) {
        for (chain, (entries, tail)) in &self.entries {
            let lines = observed.chain(self.space, chain);
            let body = lines.len().saturating_sub(tail.len());
            let tail_holds = lines[body..].iter().zip(tail).all(|(line, rule)| line.rule.as_ref() == Some(rule))
                && lines.len() >= tail.len();
            let mut missing: BTreeSet<&Rule> = entries.iter().collect();
            // What isn't wanted, or is there twice.
            let extra: Vec<&Line> = lines[..body]
                .iter()
                .filter(|line| !line.rule.as_ref().is_some_and(|rule| missing.remove(rule)))
                .collect();
            if extra.is_empty() && missing.is_empty() && tail_holds && observed.has(self.space, chain) {
                continue;
            }
            // Each deletion searches the chain: many are dearer than writing it anew.
            let many = extra.len() > 50 && extra.len() > lines.len() / 4;
            if !tail_holds || many || style == Style::Rewrite || !observed.has(self.space, chain) {
                let rules = entries.iter().chain(tail).cloned().collect();
                ops.push(Op::Set { space: self.space, chain: chain.clone(), rules });
                continue;
            }
            let (space, chain) = (self.space, chain.clone());
            ops.extend(missing.into_iter().map(|rule| Op::Insert { space, chain: chain.clone(), rule: rule.clone() }));
            ops.extend(extra.into_iter().map(|line| Op::Delete { space, chain: chain.clone(), line: line.clone() }));
        }
    }

    fn jumps(&self, observed: &Observed, ops: &mut Vec<Op>) {
        let mut missing: BTreeSet<(&str, &Rule)> = self.jumps.iter().map(|(chain, rule)| (*chain, rule)).collect();
        let mut stale = Vec::new();
        for (chain, lines) in observed.chains.get(&self.space).into_iter().flatten() {
            if !Observed::is_built_in(chain) {
                continue;
            }
            for line in lines.iter().filter(|line| line.jumps_to().is_some_and(|target| self.names.owns(target))) {
                let wanted = line.rule.as_ref().is_some_and(|rule| missing.remove(&(chain.as_str(), rule)));
                if !wanted {
                    stale.push(Op::Delete { space: self.space, chain: chain.clone(), line: line.clone() });
                }
            }
        }
        for (chain, rule) in self.jumps.iter().filter(|(chain, rule)| missing.contains(&(*chain, rule))) {
            ops.push(Op::Insert { space: self.space, chain: (*chain).to_owned(), rule: rule.clone() });
        }
        ops.extend(stale);
    }

    fn sweep(&self, observed: &Observed, ops: &mut Vec<Op>) {
        let chains = observed.chains.get(&self.space).into_iter().flat_map(BTreeMap::keys);
        for chain in chains.filter(|chain| self.names.owns(chain)) {
            if !self.chains.contains_key(chain) && !self.entries.contains_key(chain) {
                ops.push(Op::Drop { space: self.space, chain: chain.clone() });
            }
        }
    }
}

impl fmt::Display for Op {
    /// What was wrong, if this op repairs it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { space, chain, .. } => {
                write!(f, "chain {chain} in {space} missing or different")
            }
            Self::Insert { space, chain, rule } => {
                write!(f, "rule missing in {chain} in {space}: {rule}")
            }
            Self::Delete { space, chain, line } => {
                write!(f, "rule not wanted in {chain} in {space}: {}", line.text)
            }
            Self::Drop { space, chain } => write!(f, "chain {chain} in {space} not wanted"),
            Self::Forget(flows) => write!(f, "{flows}"),
        }
    }
}
