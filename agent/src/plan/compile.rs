//! `compile`: a node's view to the rules that its kernel should hold.
//!
//! Laws: `compile(view)` is what any sequence of [`Desired::change`]s to that view gives; a change costs O(touched
//! services), however many there are.

use crate::plan::iptables::{self, FamilyRules, ServiceRules};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::{NamespacedName, NodeView};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The rules that a node's kernel should hold, by the service that asks for them. Cloning shares them.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Rules of each service; one without rules isn't there.
    pub services: BTreeMap<NamespacedName, Arc<ServiceRules>>,
    /// The node.
    pub facts: NodeFacts,
    /// Zone that the rules were compiled for.
    pub zone: String,
    v6_services: usize,
}

/// A service's rules before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Before; `None`: it had none.
    pub old: Option<Arc<ServiceRules>>,
    /// After; `None`: it has none.
    pub new: Option<Arc<ServiceRules>>,
}

/// Changes of services' rules, by service.
pub type Changes = BTreeMap<NamespacedName, Change>;

/// Compiles a whole view.
#[must_use]
pub fn compile(view: &NodeView, facts: &NodeFacts) -> Desired {
    let mut desired = Desired::empty(facts.clone());
    desired.zone = zone(view, facts);
    let all = view.services.keys().cloned().collect();
    let changes = desired.changes(view, &all);
    desired.apply(&changes);
    desired
}

/// The zone of the node itself.
#[must_use]
pub fn zone(view: &NodeView, facts: &NodeFacts) -> String {
    view.nodes.get(&facts.node_name).map(|node| node.zone.clone()).unwrap_or_default()
}

impl Desired {
    /// No service.
    #[must_use]
    pub fn empty(facts: NodeFacts) -> Self {
        Self { services: BTreeMap::new(), facts, zone: String::new(), v6_services: 0 }
    }

    /// What the touched services' rules are now and become with a view; services whose rules stay are left out.
    #[must_use]
    pub fn changes(&self, view: &NodeView, touched: &BTreeSet<NamespacedName>) -> Changes {
        let mut changes = Changes::new();
        for name in touched {
            let old = self.services.get(name).cloned();
            let compiled = view.services.get(name).map(|service| iptables::service(service, &self.facts, &self.zone));
            let new = compiled.filter(|rules| !rules.v4.is_empty() || !rules.v6.is_empty()).map(Arc::new);
            if old != new {
                changes.insert(name.clone(), Change { old, new });
            }
        }
        changes
    }

    /// The same for every service of either.
    #[must_use]
    pub fn changes_to(&self, other: &Self) -> Changes {
        let names: BTreeSet<_> = self.services.keys().chain(other.services.keys()).collect();
        let change = |name: &NamespacedName| Change {
            old: self.services.get(name).cloned(),
            new: other.services.get(name).cloned(),
        };
        let all = names.into_iter().map(|name| (name.clone(), change(name)));
        all.filter(|(_, change)| change.old != change.new).collect()
    }

    /// Makes changes. True if they are all there is to it: the IPv6 tables neither came into use nor went out of it.
    pub fn apply(&mut self, changes: &Changes) -> bool {
        let before = self.uses(Family::V6);
        let has_v6 =
            |rules: &Option<Arc<ServiceRules>>| usize::from(rules.as_ref().is_some_and(|rules| !rules.v6.is_empty()));
        for (name, change) in changes {
            self.v6_services = (self.v6_services + has_v6(&change.new)).saturating_sub(has_v6(&change.old));
            match &change.new {
                Some(new) => self.services.insert(name.clone(), new.clone()),
                None => self.services.remove(name),
            };
        }
        before == self.uses(Family::V6)
    }

    /// True if the family's tables hold anything of ours: IPv6 ones only while some service needs them.
    #[must_use]
    pub fn uses(&self, family: Family) -> bool {
        family == Family::V4 || self.v6_services > 0
    }

    /// Every service's rules in a family.
    pub fn rules(&self, family: Family) -> impl Iterator<Item = (&NamespacedName, &FamilyRules)> {
        self.services.iter().map(move |(name, rules)| (name, rules.family(family)))
    }
}
