//! A data plane that touches nothing: rules are kept in memory, where users can look at them. Needs no root.

use crate::kernel::model::Tables;
use crate::kernel::{Kernel, KernelError};
use crate::plan::iptables::{IptablesPlane, Observed, Op};
use std::sync::{Mutex, PoisonError};

/// Renders and remembers.
#[derive(Debug, Default)]
pub struct DryRun {
    tables: Mutex<Tables>,
}

impl Kernel<IptablesPlane> for DryRun {
    fn mode(&self) -> &'static str {
        "dry-run"
    }

    fn observe(&self) -> Result<Observed, KernelError> {
        Ok(self.tables.lock().unwrap_or_else(PoisonError::into_inner).observed.clone())
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.execute(ops)?;
        tables.forgotten.clear();
        Ok(())
    }
}
