//! A kernel in memory that is slow, and refuses, as told.

use fairlead_agent::kernel::model::Model;
use fairlead_agent::kernel::{Kernel, KernelError};
use fairlead_agent::plan::IptablesPlane;
use fairlead_agent::plan::iptables::{Observed, Op};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The model, slow and moody.
#[derive(Default)]
pub struct Moody {
    /// The model.
    pub model: Model,
    /// How long a batch takes.
    pub execute_ms: AtomicU64,
    /// How long a reading takes, after it has read.
    pub observe_ms: AtomicU64,
    /// So many of the next batches are refused.
    pub refuse: AtomicU32,
    /// Readings begun.
    pub readings: AtomicU32,
    /// What it executed.
    pub batches: Mutex<Vec<Vec<Op>>>,
}

impl Kernel<IptablesPlane> for Moody {
    fn mode(&self) -> &'static str {
        "moody"
    }

    fn observe(&self) -> Result<Observed, KernelError> {
        let observed = self.model.observe();
        self.readings.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(self.observe_ms.load(Ordering::Relaxed)));
        observed
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        std::thread::sleep(Duration::from_millis(self.execute_ms.load(Ordering::Relaxed)));
        if self.refuse.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(KernelError::Refused("not now".into()));
        }
        self.batches.lock().unwrap().push(ops.to_vec());
        self.model.execute(ops)
    }
}
