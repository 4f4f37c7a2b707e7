//! What services share in a table: numbers of pools and classes, hairpins, and frontends that two services claim.
//!
//! INVARIANT: an element that several services ask for is there as long as one of them does; where they ask for different
//! data the first by name has it, as it would have after a restart.

use crate::plan::flows;
use crate::plan::nftables::class::{Class, Classes};
use crate::plan::nftables::diff;
use crate::plan::nftables::op::Op;
use crate::plan::nftables::rules::{Elements, Numbers, Port, Rules};
use crate::plan::nftables::set::{Bytes, Set};
use crate::plan::nftables::structure::{Needs, Structure, structure};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::NamespacedName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A service before and after a change.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Its name.
    pub name: &'a NamespacedName,
    /// Before.
    pub old: Option<&'a Rules>,
    /// After.
    pub new: Option<&'a Rules>,
}

/// The book.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Book {
    /// Numbers of pools.
    pub numbers: Numbers,
    v4: Page,
    v6: Page,
}

/// One family's part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Some service needs the table.
    pub in_use: bool,
    /// Classes.
    pub classes: Classes,
    affinities: BTreeSet<u32>,
    ranges: BTreeSet<u8>,
    node_port_ranges: BTreeSet<u8>,
    hairpins: BTreeMap<Bytes, u32>,
    claims: BTreeMap<(Set, Bytes), BTreeMap<NamespacedName, Bytes>>,
}

impl Book {
    /// One family's part.
    #[must_use]
    pub fn page(&self, family: Family) -> &Page {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// One family's part.
    pub fn page_mut(&mut self, family: Family) -> &mut Page {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Notes a service's change and adds the ops that bring it about. `false`: the numbers of classes are used up, and the
    /// kernel must be compared as a whole to free some.
    pub fn change(&mut self, step: Step<'_>, facts: &NodeFacts, ops: &mut Vec<Op>) -> bool {
        let mut complete = true;
        for family in Family::ALL {
            let mut writer = Writer { page: self.page_mut(family), family, facts, ops };
            complete &= writer.change(step);
        }
        let kept: BTreeSet<u32> = step.new.into_iter().flat_map(Rules::pools).map(|pool| pool.id).collect();
        for pool in step.old.into_iter().flat_map(Rules::pools).filter(|pool| !kept.contains(&pool.id)) {
            self.numbers.free(pool.id);
        }
        complete
    }

    /// Notes a service that wasn't in it, and whose elements a kernel is compared with anyway.
    pub fn take_in(&mut self, name: &NamespacedName, rules: &Rules, facts: &NodeFacts) {
        let step = Step { name, old: None, new: Some(rules) };
        for family in Family::ALL.into_iter().filter(|family| !rules.family(*family).is_empty()) {
            let ops = &mut Vec::new();
            let mut writer = Writer { page: self.page_mut(family), family, facts, ops };
            writer.grow(step);
            let mut elements = writer.elements(step.new);
            let shared = split_shared(&mut elements, rules.family(family), family);
            writer.shared(name, &Elements::new(), &shared);
        }
    }
}

impl Page {
    /// What the table should be, but for its elements.
    #[must_use]
    pub fn structure(&self, family: Family, facts: &NodeFacts) -> Structure {
        let needs = Needs {
            classes: self.classes.iter().map(|(class, number)| (number, class)).collect(),
            affinities: self.affinities.clone(),
            ranges: self.ranges.clone(),
            node_port_ranges: self.node_port_ranges.clone(),
        };
        structure(family, facts, &needs)
    }

    /// Numbers a class as the kernel does.
    pub fn adopt(&mut self, class: Class, number: u16) {
        if self.classes.adopt(class, number) {
            self.affinities.extend(class.affinity);
        }
    }

    /// Elements that services share, with the data that counts.
    pub fn shared(&self) -> impl Iterator<Item = ((Set, &Bytes), &Bytes)> {
        const NONE: &Bytes = &Bytes::NONE;
        let hairpins = self.hairpins.keys().map(|key| ((Set::Hairpins, key), NONE));
        let claimed = self.claims.iter().filter_map(|((set, key), claims)| {
            let (_, data) = claims.first_key_value()?;
            Some(((*set, key), data))
        });
        hairpins.chain(claimed)
    }
}

/// Splits what a service shares with others off its elements.
#[must_use]
pub fn split_shared(elements: &mut Elements, ports: &[Port], family: Family) -> Elements {
    let own: BTreeSet<IpAddr> = ports.iter().flat_map(|port| port.plan.cluster_ips.iter().copied()).collect();
    let is_shared = |(set, key): &(Set, Bytes)| match set {
        Set::Hairpins => true,
        Set::Frontends
        | Set::Outside
        | Set::Masqueraded
        | Set::LocalPolicy
        | Set::Guarded
        | Set::Rejected
        | Set::Dropped
        | Set::Ranges(_) => key.to_address(family, 0).is_none_or(|address| !own.contains(&address)),
        _ => false,
    };
    let mut shared = Elements::new();
    elements.retain(|key, data| {
        let keep = !is_shared(key);
        if !keep {
            shared.insert(key.clone(), data.clone());
        }
        keep
    });
    shared
}

struct Writer<'a> {
    page: &'a mut Page,
    family: Family,
    facts: &'a NodeFacts,
    ops: &'a mut Vec<Op>,
}

impl Writer<'_> {
    fn change(&mut self, step: Step<'_>) -> bool {
        let ports = |rules: Option<&'_ Rules>| rules.map_or(0, |rules| rules.family(self.family).len());
        if ports(step.old) == 0 && ports(step.new) == 0 {
            return true;
        }
        let complete = self.grow(step);
        let (mut before, mut after) = (self.elements(step.old), self.elements(step.new));
        self.flows(step);
        let split = |elements: &mut Elements, rules: Option<&Rules>| {
            split_shared(elements, rules.map_or(&[], |rules| rules.family(self.family)), self.family)
        };
        let (shared_before, shared_after) = (split(&mut before, step.old), split(&mut after, step.new));
        self.shared(step.name, &shared_before, &shared_after);
        self.write(&before, &after);
        self.purge(step);
        complete
    }

    fn elements(&self, rules: Option<&Rules>) -> Elements {
        let context = (self.facts, &self.page.classes);
        rules.map(|rules| rules.elements(self.family, context)).unwrap_or_default()
    }

    /// Makes the table, classes and the like that are needed from now on.
    fn grow(&mut self, step: Step<'_>) -> bool {
        let Some(new) = step.new.filter(|new| !new.family(self.family).is_empty()) else {
            return true;
        };
        let mut next = Needs::default();
        let mut missing: Vec<Class> =
            new.classes(self.family).filter(|class| self.page.classes.number(*class).is_none()).collect();
        missing.sort_unstable();
        missing.dedup();
        for port in new.family(self.family) {
            next.affinities.extend(port.plan.affinity_seconds);
            if port.plan.has_endpoints {
                let lengths = port.plan.source_ranges.iter().map(ipnet::IpNet::prefix_len);
                next.node_port_ranges.extend(port.plan.node_port.into_iter().flat_map(|_| lengths.clone()));
                next.ranges.extend(lengths);
                // A node's own way to a load balancer's address.
                next.ranges.extend((!port.plan.source_ranges.is_empty()).then_some(host_length(self.family)));
            }
        }
        let page = &mut *self.page;
        let same = page.in_use
            && missing.is_empty()
            && next.affinities.is_subset(&page.affinities)
            && next.ranges.is_subset(&page.ranges)
            && next.node_port_ranges.is_subset(&page.node_port_ranges);
        if same {
            return true;
        }
        let before = if page.in_use { page.structure(self.family, self.facts) } else { Structure::default() };
        if !page.in_use {
            self.ops.push(Op::Table { family: self.family });
        }
        page.in_use = true;
        page.affinities.append(&mut next.affinities);
        page.ranges.append(&mut next.ranges);
        page.node_port_ranges.append(&mut next.node_port_ranges);
        let complete = missing.into_iter().all(|class| page.classes.add(class));
        let after = page.structure(self.family, self.facts);
        diff::build(self.family, &before, &after, self.ops);
        complete
    }

    fn write(&mut self, before: &Elements, after: &Elements) {
        for ((set, key), data) in after {
            match before.get(&(*set, key.clone())) {
                Some(old) if old == data => {}
                old => self.put((*set, key), data, old.is_some()),
            }
        }
        for (set, key) in before.keys().filter(|key| !after.contains_key(*key)) {
            self.remove(*set, key);
        }
    }

    fn put(&mut self, (set, key): (Set, &Bytes), data: &Bytes, replaces: bool) {
        self.ops.push(Op::Put { family: self.family, set, key: key.clone(), data: data.clone(), replaces });
    }

    fn remove(&mut self, set: Set, key: &Bytes) {
        self.ops.push(Op::Remove { family: self.family, set, key: key.clone() });
    }

    fn shared(&mut self, name: &NamespacedName, before: &Elements, after: &Elements) {
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys {
            if key.0 == Set::Hairpins {
                self.hairpin(&key.1, (before.contains_key(key), after.contains_key(key)));
            } else {
                self.claim(name, key, after.get(key));
            }
        }
    }

    fn hairpin(&mut self, key: &Bytes, (before, after): (bool, bool)) {
        let count = self.page.hairpins.get(key).copied().unwrap_or_default();
        let next = (count + u32::from(after)).saturating_sub(u32::from(before));
        if next == 0 {
            self.page.hairpins.remove(key);
        } else {
            self.page.hairpins.insert(key.clone(), next);
        }
        match (count, next) {
            (0, 1..) => self.put((Set::Hairpins, key), &Bytes::NONE, false),
            (1.., 0) => self.remove(Set::Hairpins, key),
            _ => {}
        }
    }

    fn claim(&mut self, name: &NamespacedName, key: &(Set, Bytes), data: Option<&Bytes>) {
        let claims = self.page.claims.entry(key.clone()).or_default();
        let before = claims.first_key_value().map(|(_, data)| data.clone());
        match data {
            Some(data) => claims.insert(name.clone(), data.clone()),
            None => claims.remove(name),
        };
        let after = claims.first_key_value().map(|(_, data)| data.clone());
        if claims.is_empty() {
            self.page.claims.remove(key);
        }
        match (before, after) {
            (before, Some(after)) if before.as_ref() != Some(&after) => {
                self.put((key.0, &key.1), &after, before.is_some());
            }
            (Some(_), None) => self.remove(key.0, &key.1),
            _ => {}
        }
    }

    /// Clients that stay with an endpoint that left its pool.
    fn purge(&mut self, step: Step<'_>) {
        let after: BTreeMap<u32, &[_]> =
            step.new.into_iter().flat_map(Rules::pools).map(|pool| (pool.id, pool.slots.as_slice())).collect();
        for port in step.old.into_iter().flat_map(|old| old.family(self.family)) {
            let Some(seconds) = port.plan.affinity_seconds else {
                continue;
            };
            for pool in port.cluster.iter().chain(&port.local) {
                let stays = after.get(&pool.id).copied().unwrap_or_default();
                let gone: BTreeSet<_> = pool.slots.iter().filter(|endpoint| !stays.contains(endpoint)).collect();
                let purge = |endpoint| Op::Purge { family: self.family, seconds, pool: pool.id, endpoint };
                self.ops.extend(gone.into_iter().copied().map(purge));
            }
        }
    }

    fn flows(&mut self, step: Step<'_>) {
        let bindings = |rules: Option<&Rules>| {
            flows::bindings(rules.into_iter().flat_map(|rules| rules.family(self.family)).map(|port| &port.plan))
        };
        let stale = flows::stale(&bindings(step.old), &bindings(step.new), (self.family, self.facts));
        self.ops.extend(stale.into_iter().map(Op::Forget));
    }
}

fn host_length(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}
