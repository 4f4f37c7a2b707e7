//! What the data planes have in common: a service becomes rules, a change of rules becomes ops, and what a kernel holds
//! becomes, by ops, what it should hold. Each mechanism of the kernel's has a plane; everything else is written once.
//!
//! Laws, for every plane: executing `diff(observed, desired)` makes the kernel hold `desired`, and then `diff` is empty;
//! the ops of a `step` lead where a `diff` would; a step costs O(changed services); nothing foreign is touched.

use crate::plan::NodeFacts;
use crate::plan::compile::{Changes, Desired};
use crate::plan::trace::{Packet, Traced};
use fairlead_proto::view::ServiceView;
use std::fmt;

/// A mechanism of the kernel's.
pub trait Plane: Clone + fmt::Debug + PartialEq + Send + Sync + Sized + 'static {
    /// What one service asks for.
    type Rules: Clone + fmt::Debug + PartialEq + Send + Sync;
    /// What services share.
    type Book: Clone + fmt::Debug + Default + PartialEq + Send + Sync;
    /// What a kernel holds of ours; by default nothing.
    type Observed: Default + Send;
    /// One step of a kernel; shown, it says what was wrong if it is a repair.
    type Op: Clone + fmt::Debug + fmt::Display + PartialEq + Send + Sync;

    /// Compiles one service for a node and its zone, close to what it was; `None`: it asks for nothing.
    fn service(
        view: &ServiceView,
        place: (&NodeFacts, &str),
        was: (Option<&Self::Rules>, &mut Self::Book),
    ) -> Option<Self::Rules>;

    /// Notes changes in the book: the ops that bring them about in a kernel that holds what was before, and whether they
    /// are all there is to it. If not, the kernel must be read.
    fn step(changes: &Changes<Self>, facts: &NodeFacts, book: &mut Self::Book) -> (Vec<Self::Op>, bool);

    /// Makes the book anew, whatever is in it, and takes over what is free to choose (numbers, order) from a kernel, so that
    /// what it holds already needs no change.
    fn adopt(desired: &mut Desired<Self>, observed: &Self::Observed);

    /// From an observed kernel to the desired one.
    fn diff(observed: &Self::Observed, desired: &Desired<Self>, style: Style) -> Vec<Self::Op>;

    /// Ops that forget flows which `diff` can't know to be stale, since nobody watched the kernel: none of a flow to an endpoint
    /// that is served or kept.
    fn strays(desired: &Desired<Self>) -> Vec<Self::Op> {
        let _ = desired;
        Vec::new()
    }

    /// Does to it what executing the ops does to a kernel.
    fn replay(observed: &mut Self::Observed, ops: &[Self::Op]);

    /// As text, in the words of the kernel's own tools.
    fn render(observed: &Self::Observed, facts: &NodeFacts) -> String;

    /// True if an op of an audit repairs something that somebody changed; flows are forgotten on suspicion only.
    fn is_repair(op: &Self::Op) -> bool;

    /// Follows packets through what a kernel was seen to hold, one answer a packet; never through our intent.
    fn trace(observed: &Self::Observed, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced>;
}

/// How `diff` changes what can be changed in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Entry by entry.
    Edit,
    /// As a whole: for a kernel that refused an edit.
    Rewrite,
}
