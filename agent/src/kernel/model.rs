//! A packet filter in memory: executes ops as the kernel does, and refuses what the kernel refuses.
//!
//! INVARIANT: after every batch, every jump leads to a chain that is there; a batch that would break that changes nothing.

use crate::kernel::{Kernel, KernelError};
use crate::plan::flows::Flows;
use crate::plan::iptables::observed::Line;
use crate::plan::iptables::{IptablesPlane, Observed, Op, Space};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tables in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Chains, built-in ones included.
    pub observed: Observed,
    /// Flows that were forgotten, oldest first.
    pub forgotten: Vec<Flows>,
}

impl Tables {
    /// Executes a batch, or nothing of it.
    ///
    /// # Errors
    /// What the kernel would refuse.
    pub fn execute(&mut self, ops: &[Op]) -> Result<(), KernelError> {
        let mut next = self.clone();
        let dropped = |op: &&Op| matches!(op, Op::Drop { .. });
        for op in ops.iter().filter(|op| !dropped(op)) {
            next.one(op)?;
        }
        for op in ops.iter().filter(dropped) {
            next.one(op)?;
        }
        next.check_references()?;
        *self = next;
        Ok(())
    }

    fn one(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::Set { space, chain, rules } => {
                let lines = rules.iter().cloned().map(Line::from).collect();
                self.chains(*space).insert(chain.clone(), lines);
            }
            Op::Insert { space, chain, rule } => {
                let line = Line::from(rule.clone());
                self.chain(*space, chain)?.insert(0, line);
            }
            Op::Delete { space, chain, line } => {
                let lines = self.chain(*space, chain)?;
                let at = lines
                    .iter()
                    .position(|one| one.is(line))
                    .ok_or_else(|| refused(format!("no such rule in {chain}: {}", line.text)))?;
                lines.remove(at);
            }
            Op::Drop { space, chain } => {
                self.chains(*space).remove(chain).ok_or_else(|| refused(format!("no chain {chain} to remove")))?;
            }
            Op::Forget(flows) => self.forgotten.push(flows.clone()),
        }
        Ok(())
    }

    fn chains(&mut self, space: Space) -> &mut BTreeMap<String, Vec<Line>> {
        self.observed.chains.entry(space).or_default()
    }

    fn chain(&mut self, space: Space, chain: &str) -> Result<&mut Vec<Line>, KernelError> {
        let chains = self.chains(space);
        if Observed::is_built_in(chain) {
            return Ok(chains.entry(chain.to_owned()).or_default());
        }
        chains.get_mut(chain).ok_or_else(|| refused(format!("no chain {chain} in {space}")))
    }

    fn check_references(&self) -> Result<(), KernelError> {
        for (space, chains) in &self.observed.chains {
            for (chain, lines) in chains {
                for target in lines.iter().filter_map(Line::jumps_to).filter(|target| target.contains('-')) {
                    if !chains.contains_key(target) {
                        return Err(refused(format!("{chain} in {space} jumps to {target}, which isn't there")));
                    }
                }
            }
        }
        Ok(())
    }
}

fn refused(why: String) -> KernelError {
    KernelError::Refused(why)
}

/// The model as a kernel.
#[derive(Debug, Default)]
pub struct Model {
    tables: Mutex<Tables>,
}

impl Model {
    /// A copy of its tables.
    #[must_use]
    pub fn tables(&self) -> Tables {
        self.lock().clone()
    }

    /// Changes the tables behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Tables)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel<IptablesPlane> for Model {
    fn mode(&self) -> &'static str {
        "model"
    }

    fn observe(&self) -> Result<Observed, KernelError> {
        Ok(self.lock().observed.clone())
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        self.lock().execute(ops)
    }
}
