//! Services as elements of flat nftables maps: a change costs a few elements, however many services there are.
//!
//! `structure` holds the fixed rules, `rules` compiles a service, `book` knows what services share, `diff` compares with a
//! kernel. Laws: executing `diff(observed, desired)` makes the kernel hold `desired`, then `diff` is empty; the ops of a
//! change lead to the same as a `diff` would; a change writes O(changed endpoints) elements; after every single
//! transaction a packet finds either the old or the new endpoint, never none.

pub mod book;
pub mod class;
pub mod diff;
pub mod op;
pub mod pool;
pub mod rules;
mod sentence;
pub mod set;
pub mod structure;
pub mod trace;

pub use book::Book;
pub use op::Op;
pub use rules::{Packed, Rules};
pub use set::{Bytes, Set};
pub use structure::Structure;

use crate::plan::compile::{Changes, Desired};
use crate::plan::nftables::rules::Elements;
use crate::plan::plane::{Plane, Style};
use crate::plan::trace::{Packet, Traced};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::view::ServiceView;
use std::collections::BTreeMap;
use std::sync::Arc;

/// nftables, with a table of our own in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NftablesPlane;

impl Plane for NftablesPlane {
    type Rules = Packed;
    type Book = Book;
    type Observed = Observed;
    type Op = Op;

    fn service(
        view: &ServiceView,
        place: (&NodeFacts, &str),
        (old, book): (Option<&Packed>, &mut Book),
    ) -> Option<Packed> {
        let old = old.map(Packed::unpack);
        let rules = Rules::compile(view, place, old.as_ref(), &mut book.numbers);
        (!rules.is_empty()).then(|| Packed::from(&rules))
    }

    fn step(changes: &Changes<Self>, facts: &NodeFacts, book: &mut Book) -> (Vec<Op>, bool) {
        let (mut ops, mut complete) = (Vec::new(), true);
        for (name, change) in changes {
            let rules = |packed: &Option<Arc<Packed>>| packed.as_ref().map(|packed| packed.unpack());
            let (old, new) = (rules(&change.old), rules(&change.new));
            let step = book::Step { name, old: old.as_ref(), new: new.as_ref() };
            complete &= book.change(step, facts, &mut ops);
        }
        (op::coalesce(ops), complete)
    }

    fn adopt(desired: &mut Desired<Self>, observed: &Observed) {
        diff::adopt(desired, observed);
    }

    fn diff(observed: &Observed, desired: &Desired<Self>, _: Style) -> Vec<Op> {
        diff::diff(observed, desired)
    }

    fn strays(desired: &Desired<Self>) -> Vec<Op> {
        diff::strays(desired)
    }

    fn replay(observed: &mut Observed, ops: &[Op]) {
        observed.replay(ops);
    }

    fn render(observed: &Observed, _: &NodeFacts) -> String {
        observed.render()
    }

    fn is_repair(op: &Op) -> bool {
        !matches!(op, Op::Forget(_) | Op::Purge { .. })
    }

    fn trace(observed: &Observed, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
        trace::trace(observed, facts, packets)
    }
}

/// What a kernel holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our tables.
    pub tables: BTreeMap<Family, Table>,
}

/// One family's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Sets, chains and rules.
    pub structure: Structure,
    /// Elements of our sets.
    pub elements: Elements,
}

impl Observed {
    /// Does to it what executing the ops does to a kernel.
    pub fn replay(&mut self, ops: &[Op]) {
        for op in ops {
            self.one(op);
        }
    }

    fn one(&mut self, op: &Op) {
        match op {
            Op::Table { family } => {
                self.tables.entry(*family).or_default();
            }
            Op::DropTable { family } => {
                self.tables.remove(family);
            }
            Op::Forget(_) | Op::Purge { .. } => {}
            Op::Declare { family, name, lines } => {
                self.table(*family).structure.sets.insert(name.clone(), lines.clone());
            }
            Op::Undeclare { family, name } => {
                self.table(*family).structure.sets.remove(name);
            }
            Op::Chain { family, name, lines } => {
                self.table(*family).structure.chains.insert(name.clone(), lines.clone());
            }
            Op::DropChain { family, name } => {
                self.table(*family).structure.chains.remove(name);
            }
            Op::Pick { family, class, chain } => {
                self.table(*family).structure.picks.insert(*class, chain.clone());
            }
            Op::Unpick { family, class } => {
                self.table(*family).structure.picks.remove(class);
            }
            Op::Put { family, set, key, data, .. } => {
                self.table(*family).elements.insert((*set, key.clone()), data.clone());
            }
            Op::Remove { family, set, key } => {
                self.table(*family).elements.remove(&(*set, key.clone()));
            }
        }
    }

    fn table(&mut self, family: Family) -> &mut Table {
        self.tables.entry(family).or_default()
    }

    /// As text, in `nft`'s words.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (family, table) in &self.tables {
            table.render(*family, &mut text);
        }
        text
    }
}

impl Table {
    fn render(&self, family: Family, text: &mut String) {
        text.push_str(&format!("table {} {} {{\n", set::family_name(family), structure::TABLE));
        for (name, lines) in &self.structure.sets {
            let known = Set::named(name);
            let kind = if known.is_none_or(Set::is_map) && !name.starts_with("sticky") { "map" } else { "set" };
            text.push_str(&format!("\t{kind} {name} {{\n"));
            for line in lines {
                text.push_str(&format!("\t\t{line}\n"));
            }
            if let Some(set) = known {
                let from = (set, Bytes::none());
                let elements = self.elements.range(from..).take_while(|((one, _), _)| *one == set);
                let shown: Vec<_> = elements.map(|((_, key), data)| op::element(family, (set, key, data))).collect();
                if !shown.is_empty() {
                    text.push_str(&format!("\t\telements = {{ {} }}\n", shown.join(",\n\t\t\t     ")));
                }
            }
            if name == structure::PICKS && !self.structure.picks.is_empty() {
                let picks: Vec<_> =
                    self.structure.picks.iter().map(|(class, chain)| format!("{class:x}0:0 : goto {chain}")).collect();
                text.push_str(&format!("\t\telements = {{ {} }}\n", picks.join(", ")));
            }
            text.push_str("\t}\n\n");
        }
        for (name, lines) in &self.structure.chains {
            text.push_str(&format!("\tchain {name} {{\n"));
            for line in lines {
                text.push_str(&format!("\t\t{line}\n"));
            }
            text.push_str("\t}\n\n");
        }
        text.push_str("}\n");
    }
}
