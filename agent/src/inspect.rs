//! What can be said of a kernel beside its desired rules, whatever its plane: rules as text, drift by name, packets' ways.

use crate::kernel::KernelError;
use crate::plan::trace::{Packet, Traced};
use crate::plan::{NodeFacts, Plane, Style};
use crate::witness::{Reader, Unread};
use fairlead_proto::v1::DataplaneDiff;

/// Names in one answer.
const NAMES: usize = 1_000;
/// More packets than this are followed once only where no rule differs.
const MANY: usize = 100;

/// A packet's way through the rules as they should be, and as the kernel holds them.
pub struct Ways {
    /// As they should be.
    pub intent: Traced,
    /// As they are.
    pub kernel: Traced,
}

/// Looks at a kernel; blocks.
pub trait Inspect: Send + Sync {
    /// Its rules as text.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be read.
    fn rules(&self) -> Result<String, KernelError>;

    /// What differs from the desired rules.
    ///
    /// # Errors
    /// [`Unread`].
    fn diff(&self) -> Result<DataplaneDiff, Unread>;

    /// Follows packets; beside them the revision of the desired rules.
    ///
    /// # Errors
    /// [`Unread`].
    fn trace(&self, packets: &[Packet]) -> Result<(u64, Vec<Ways>), Unread>;
}

/// Looks at a kernel of some plane.
pub struct Inspector<P: Plane> {
    /// Reads it.
    pub reader: Reader<P>,
    /// The node.
    pub facts: NodeFacts,
}

impl<P: Plane> Inspect for Inspector<P> {
    fn rules(&self) -> Result<String, KernelError> {
        Ok(P::render(&self.reader.kernel.observe()?, &self.facts))
    }

    fn diff(&self) -> Result<DataplaneDiff, Unread> {
        let (observed, should) = self.reader.read()?;
        let ops = P::diff(&observed, &should.desired, Style::Edit);
        let wrong: Vec<_> = ops.iter().filter(|op| P::is_repair(op)).collect();
        Ok(DataplaneDiff {
            names: wrong.iter().take(NAMES).map(ToString::to_string).collect(),
            count: wrong.len() as u64,
            revision: should.revision,
            settings: self.reader.kernel.settings()?,
        })
    }

    fn trace(&self, packets: &[Packet]) -> Result<(u64, Vec<Ways>), Unread> {
        let (observed, should) = self.reader.read()?;
        let facts = &should.desired.facts;
        let kernels = P::trace(&observed, facts, packets);
        let differs = || P::diff(&observed, &should.desired, Style::Edit).iter().any(P::is_repair);
        if packets.len() > MANY && !differs() {
            let same = |kernel: Traced| Ways { intent: kernel.clone(), kernel };
            return Ok((should.revision, kernels.into_iter().map(same).collect()));
        }
        let mut wanted = P::Observed::default();
        let ops = P::diff(&wanted, &should.desired, Style::Edit);
        P::replay(&mut wanted, &ops);
        let intents = P::trace(&wanted, facts, packets);
        let ways = intents.into_iter().zip(kernels).map(|(intent, kernel)| Ways { intent, kernel });
        Ok((should.revision, ways.collect()))
    }
}
