//! `compile`: a node's view to the rules that its kernel should hold, in a plane.
//!
//! Laws: `compile(view)` asks for what any sequence of [`Desired::update`]s to that view does; an update costs O(touched
//! services), however many there are.

use crate::plan::NodeFacts;
use crate::plan::plane::Plane;
use fairlead_proto::view::{NamespacedName, NodeView, ServiceView};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The rules that a node's kernel should hold, by the service that asks for them. Cloning shares them.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired<P: Plane> {
    /// Rules of each service; one without rules isn't there.
    pub services: BTreeMap<NamespacedName, Arc<P::Rules>>,
    /// The node.
    pub facts: NodeFacts,
    /// Zone that the rules were compiled for.
    pub zone: String,
    /// What services share.
    pub book: P::Book,
}

/// A service's rules before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<P: Plane> {
    /// Before; `None`: it had none.
    pub old: Option<Arc<P::Rules>>,
    /// After; `None`: it has none.
    pub new: Option<Arc<P::Rules>>,
}

/// Changes of services' rules, by service.
pub type Changes<P> = BTreeMap<NamespacedName, Change<P>>;

/// What an update asks of a kernel that holds what was desired before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<P: Plane> {
    /// The ops.
    pub ops: Vec<P::Op>,
    /// They are all there is to it; if not, the kernel must be read.
    pub complete: bool,
}

/// Shows a service as it counts at the moment (see `ramp`).
pub type Pace<'p> = &'p dyn for<'a> Fn(&NamespacedName, &'a ServiceView) -> Cow<'a, ServiceView>;

const PLAIN: Pace<'static> = &|_, service| Cow::Borrowed(service);

/// Compiles a whole view.
#[must_use]
pub fn compile<P: Plane>(view: &NodeView, facts: &NodeFacts) -> Desired<P> {
    let mut desired = Desired::empty(facts.clone());
    desired.update_all(view);
    desired
}

/// The zone of the node itself.
#[must_use]
pub fn zone(view: &NodeView, facts: &NodeFacts) -> String {
    view.nodes.get(&facts.node_name).map(|node| node.zone.clone()).unwrap_or_default()
}

impl<P: Plane> Desired<P> {
    /// No service.
    #[must_use]
    pub fn empty(facts: NodeFacts) -> Self {
        Self { services: BTreeMap::new(), facts, zone: String::new(), book: P::Book::default() }
    }

    /// Brings it to a view of which anything may have changed.
    pub fn update_all(&mut self, view: &NodeView) -> Step<P> {
        self.update_all_paced(view, PLAIN)
    }

    /// The same, with services as `pace` shows them.
    pub fn update_all_paced(&mut self, view: &NodeView, pace: Pace<'_>) -> Step<P> {
        let all = self.all(view);
        self.update_paced(view, &all, pace)
    }

    /// The same for a kernel that must be read anyway: without ops, and the book is left to `adopt`.
    pub fn replace_all(&mut self, view: &NodeView, pace: Pace<'_>) -> Step<P> {
        let all = self.all(view);
        self.replace(view, &all, pace)
    }

    /// Takes the node's zone from a view; the names of all services to be looked at, the gone ones too.
    fn all(&mut self, view: &NodeView) -> BTreeSet<NamespacedName> {
        self.zone = zone(view, &self.facts);
        self.services.keys().chain(view.services.keys()).cloned().collect()
    }

    /// The same for one of which these services changed.
    pub fn replace(&mut self, view: &NodeView, touched: &BTreeSet<NamespacedName>, pace: Pace<'_>) -> Step<P> {
        let changed = touched.iter().filter(|name| self.recompile(name, (view, pace)).is_some()).count();
        Step { ops: Vec::new(), complete: changed == 0 }
    }

    /// Brings it to a view of which these services changed.
    pub fn update(&mut self, view: &NodeView, touched: &BTreeSet<NamespacedName>) -> Step<P> {
        self.update_paced(view, touched, PLAIN)
    }

    /// The same, with services as `pace` shows them.
    pub fn update_paced(&mut self, view: &NodeView, touched: &BTreeSet<NamespacedName>, pace: Pace<'_>) -> Step<P> {
        let mut changes = Changes::new();
        for name in touched {
            if let Some(change) = self.recompile(name, (view, pace)) {
                changes.insert(name.clone(), change);
            }
        }
        let (ops, complete) = P::step(&changes, &self.facts, &mut self.book);
        Step { ops, complete }
    }

    /// Compiles one service anew. `None`: nothing changed.
    fn recompile(&mut self, name: &NamespacedName, (view, pace): (&NodeView, Pace<'_>)) -> Option<Change<P>> {
        let old = self.services.get(name).cloned();
        let mut compile =
            |service: &ServiceView| P::service(service, (&self.facts, &self.zone), (old.as_deref(), &mut self.book));
        let new = view.services.get(name).and_then(|service| compile(&pace(name, service))).map(Arc::new);
        if old == new {
            return None;
        }
        match &new {
            Some(new) => self.services.insert(name.clone(), new.clone()),
            None => self.services.remove(name),
        };
        Some(Change { old, new })
    }
}
