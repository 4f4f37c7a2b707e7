//! IPVS in memory: executes ops one by one as the kernel does, and refuses what the kernel refuses. Pure.
//!
//! INVARIANT: after every op, rules look into sets that are there and jump to chains that are there, and every virtual
//! server is one that a set knows.

use crate::kernel::{Kernel, KernelError};
use crate::plan::Family;
use crate::plan::ipvs::chain::{self, Table};
use crate::plan::ipvs::{IpvsPlane, Objects, Op, Set};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Executes a batch, op by op, as the kernel gets it.
///
/// # Errors
/// The first op that the kernel would refuse; those before it are done.
pub fn execute(objects: &mut Objects, ops: &[Op]) -> Result<(), KernelError> {
    let mut rank = 0;
    for op in ops {
        if op.rank() < rank {
            return Err(refused(op, "out of order"));
        }
        rank = op.rank();
        check(objects, op)?;
        objects.replay(op);
    }
    Ok(())
}

fn refused(op: &Op, why: &str) -> KernelError {
    KernelError::Refused(format!("{why}: {op}"))
}

fn check(objects: &Objects, op: &Op) -> Result<(), KernelError> {
    let tables = |family: &Family| objects.families.get(family);
    let has_set = |family: &Family, set: &Set| tables(family).is_some_and(|tables| tables.sets.contains_key(set));
    let has_chain = |family: &Family, table: &Table, name: &str| {
        tables(family).is_some_and(|tables| tables.chains.contains_key(&(*table, name.to_owned())))
    };
    let why = match op {
        Op::Create { family, set } if has_set(family, set) => "the set is there",
        Op::Put { set, element, .. } | Op::Remove { set, element } if !has_set(&element.family(), set) => "no such set",
        Op::Destroy { name } if is_looked_into(objects, name) => "a rule looks into the set",
        Op::Chain { family, lines, .. }
            if lines.iter().flat_map(|line| sets_of(line)).any(|(_, set)| !has_set(family, &set)) =>
        {
            "no set to look into"
        }
        Op::Jump { family, table, line, .. } if !has_chain(family, table, line.trim_start_matches("-j ")) => {
            "no chain to jump to"
        }
        Op::DropChain { family, table, name } if !has_chain(family, table, name) || is_jumped_to(objects, op) => {
            "no such chain, or a rule jumps to it"
        }
        Op::Unjump { family, table, chain, line } => {
            let lines = tables(family).and_then(|tables| tables.jumps.get(&(*table, chain.clone())));
            if lines.is_some_and(|lines| lines.contains(line)) {
                return Ok(());
            }
            "no such rule"
        }
        Op::Add { at, .. } if objects.servers.contains_key(at) || objects.foreign.contains(at) => {
            "the virtual server is there"
        }
        // Else it would be nobody's after a crash.
        Op::Add { at, .. } if !objects.owns(at) => "no set knows the virtual server",
        Op::Delete { at } if !objects.owns(at) => "no set knows the virtual server any more",
        Op::Edit { at, .. } | Op::Delete { at } if !objects.servers.contains_key(at) => "no such virtual server",
        Op::Real { at, address, is_new, .. }
            if objects.servers.get(at).is_none_or(|server| server.reals.contains_key(address) == *is_new) =>
        {
            "no virtual server, or its real server is there or isn't"
        }
        Op::Unreal { at, address }
            if objects.servers.get(at).is_none_or(|server| !server.reals.contains_key(address)) =>
        {
            "no such real server"
        }
        Op::Route { .. } if !objects.device => "no device",
        Op::Unroute { net, .. } if !objects.routes.contains_key(net) => "no such route",
        _ => return Ok(()),
    };
    Err(refused(op, why))
}

/// Sets that a rule's text names.
fn sets_of(line: &str) -> Vec<(Family, Set)> {
    line.split(' ').filter_map(Set::named).collect()
}

fn is_looked_into(objects: &Objects, name: &str) -> bool {
    let lines = objects.families.values().flat_map(|tables| tables.chains.values().flatten());
    lines.flat_map(|line| line.split(' ')).any(|word| word == name)
}

fn is_jumped_to(objects: &Objects, op: &Op) -> bool {
    let Op::DropChain { family, table, name } = op else {
        return false;
    };
    let jumps = objects.families.get(family).into_iter().flat_map(|tables| &tables.jumps);
    jumps.filter(|((of, _), _)| of == table).any(|(_, lines)| lines.contains(&chain::jump(name)))
}

/// A model as a kernel.
#[derive(Debug, Default)]
pub struct IpvsModel {
    objects: Mutex<Objects>,
}

impl IpvsModel {
    /// Changes what it holds behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel<IpvsPlane> for IpvsModel {
    fn mode(&self) -> &'static str {
        "model"
    }

    fn observe(&self) -> Result<Objects, KernelError> {
        Ok(self.lock().clone())
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        execute(&mut self.lock(), ops)
    }
}
