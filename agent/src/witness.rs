//! How others read the kernel beside the loop that changes it, and still compare like with like.
//!
//! Who wants to read says so first; from then on what the loop executes is noted. When the reading is done, the loop gives
//! what the kernel should hold and what was executed meanwhile: replayed on the reading, the two belong together.
//! INVARIANT: a change that the kernel refused, or too many of them, spoil a reading, and that is said.

use crate::kernel::{Kernel, KernelError};
use crate::plan::{Desired, Plane};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Readers at once; the oldest one is given up for a newer.
const READERS: usize = 8;
/// Ops noted for one reader.
const OPS: usize = 100_000;

/// A word to the loop.
pub enum Ask<P: Plane> {
    /// A reading begins; the answer is its number.
    Begin(oneshot::Sender<u64>),
    /// It is done; no answer: it is spoilt.
    End(u64, oneshot::Sender<Should<P>>),
}

/// What the kernel should hold.
pub struct Should<P: Plane> {
    /// That.
    pub desired: Desired<P>,
    /// Revision that it was compiled from.
    pub revision: u64,
    /// What was executed since the reading began.
    since: Vec<P::Op>,
}

/// The loop's notes.
pub struct Witnesses<P: Plane> {
    asks: Option<mpsc::Receiver<Ask<P>>>,
    last: u64,
    since: BTreeMap<u64, Vec<P::Op>>,
}

impl<P: Plane> Default for Witnesses<P> {
    fn default() -> Self {
        Self { asks: None, last: 0, since: BTreeMap::new() }
    }
}

impl<P: Plane> Witnesses<P> {
    /// Listens.
    #[must_use]
    pub fn new(asks: mpsc::Receiver<Ask<P>>) -> Self {
        Self { asks: Some(asks), ..Self::default() }
    }

    /// The next word; never, if nobody can ask.
    pub async fn asked(&mut self) -> Ask<P> {
        if let Some(asks) = &mut self.asks
            && let Some(ask) = asks.recv().await
        {
            return ask;
        }
        self.asks = None;
        std::future::pending().await
    }

    /// Notes what the kernel took.
    pub fn executed(&mut self, ops: &[P::Op]) {
        self.since.retain(|_, since| since.len() + ops.len() <= OPS);
        for since in self.since.values_mut() {
            since.extend_from_slice(ops);
        }
    }

    /// Part of a batch may be in the kernel: readings made meanwhile prove nothing.
    pub fn refused(&mut self) {
        self.since.clear();
    }

    /// Answers.
    pub fn answer(&mut self, ask: Ask<P>, desired: Option<&Desired<P>>, revision: u64) {
        match ask {
            Ask::Begin(reply) => {
                if self.since.len() >= READERS {
                    self.since.pop_first();
                }
                self.last += 1;
                if reply.send(self.last).is_ok() {
                    self.since.insert(self.last, Vec::new());
                }
            }
            Ask::End(reader, reply) => {
                if let (Some(since), Some(desired)) = (self.since.remove(&reader), desired) {
                    let _ = reply.send(Should { desired: desired.clone(), revision, since });
                }
            }
        }
    }
}

/// Why a reading says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The kernel can't be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is nothing to compare with.
    #[error("the node has no rules to compare with yet, or they changed too much while the kernel was read: ask again")]
    Spoilt,
}

/// Reads the kernel beside the loop; blocks.
pub struct Reader<P: Plane> {
    /// The kernel.
    pub kernel: Arc<dyn Kernel<P>>,
    /// The way to the loop.
    pub asks: mpsc::Sender<Ask<P>>,
}

impl<P: Plane> Reader<P> {
    /// What the kernel holds, beside what it should hold.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn read(&self) -> Result<(P::Observed, Should<P>), Unread> {
        let (reply, begun) = oneshot::channel();
        self.asks.blocking_send(Ask::Begin(reply)).map_err(|_| Unread::Spoilt)?;
        let reader = begun.blocking_recv().map_err(|_| Unread::Spoilt)?;
        let mut observed = self.kernel.observe()?;
        let (reply, done) = oneshot::channel();
        self.asks.blocking_send(Ask::End(reader, reply)).map_err(|_| Unread::Spoilt)?;
        let should = done.blocking_recv().map_err(|_| Unread::Spoilt)?;
        P::replay(&mut observed, &should.since);
        Ok((observed, should))
    }
}
