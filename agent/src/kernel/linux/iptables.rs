//! iptables and ip6tables, by `iptables-save` and `iptables-restore --noflush`: whichever of nft and legacy the host
//! uses, unless told.

use crate::kernel::linux::conntrack::Forgetter;
use crate::kernel::linux::program;
use crate::kernel::{Kernel, KernelError};
use crate::plan::Family;
use crate::plan::iptables::rule::Target;
use crate::plan::iptables::{IptablesPlane, Names, Observed, Op, Space, parse, restore};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which iptables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    /// What the host calls `iptables`.
    #[default]
    Host,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// The packet filter of the host or of a network namespace.
#[derive(Debug)]
pub struct Iptables {
    names: Names,
    namespace: Option<PathBuf>,
    flavor: Flavor,
    /// IPv6 tables can't be read here (no ip6tables, or no IPv6): said once.
    without_v6: AtomicBool,
    forgetter: Forgetter,
}

impl Iptables {
    /// Of the host.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self {
            names,
            namespace: None,
            flavor: Flavor::Host,
            without_v6: AtomicBool::new(false),
            forgetter: Forgetter::default(),
        }
    }

    /// Of a network namespace, by its file.
    #[must_use]
    pub fn in_namespace(mut self, path: Option<PathBuf>) -> Self {
        self.namespace = path;
        self
    }

    /// By a given iptables.
    #[must_use]
    pub fn flavor(mut self, flavor: Flavor) -> Self {
        self.flavor = flavor;
        self
    }

    fn program(&self, family: Family, verb: &str) -> String {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        match self.flavor {
            Flavor::Host => format!("{base}-{verb}"),
            Flavor::Nft => format!("{base}-nft-{verb}"),
            Flavor::Legacy => format!("{base}-legacy-{verb}"),
        }
    }

    fn observe_space(&self, observed: &mut Observed, space: Space) -> Result<(), KernelError> {
        let program = self.program(space.family, "save");
        let text = program::run(self.namespace.as_deref(), &program, (&["-t", space.table.name()], ""))?;
        parse::save(observed, space, &text, &self.names);
        Ok(())
    }
}

impl Kernel<IptablesPlane> for Iptables {
    fn mode(&self) -> &'static str {
        "iptables"
    }

    fn observe(&self) -> Result<Observed, KernelError> {
        let mut observed = Observed::default();
        for space in Space::ALL {
            match self.observe_space(&mut observed, space) {
                Ok(()) => {}
                // A host without IPv6 has no IPv6 rules; one that needs them will fail where they are written.
                Err(error) if space.family == Family::V6 => {
                    if !self.without_v6.swap(true, Ordering::Relaxed) {
                        tracing::info!(%error, "IPv6 tables can't be read: IPv6 services can't be programmed on this node");
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(observed)
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        self.forgetter.serve(ops.iter().flat_map(served));
        let mut done = Ok(());
        for family in Family::ALL {
            let input = restore::render(ops, family);
            if !input.is_empty() {
                let program = self.program(family, "restore");
                let ran = program::run(self.namespace.as_deref(), &program, (&["--noflush", "-w", "5"], &input));
                done = done.and(ran.map(|_| ()));
            }
        }
        // Also after a refusal: a table that took its part won't show these flows as stale again; one that refused will.
        let flows: Vec<_> =
            ops.iter().filter_map(|op| if let Op::Forget(flows) = op { Some(flows.clone()) } else { None }).collect();
        self.forgetter.forget(self.namespace.as_deref(), flows);
        done
    }
}

/// Endpoints that get new flows by an op: a chain that leads to them is written, or an entry that leads to a chain.
fn served(op: &Op) -> impl Iterator<Item = SocketAddr> {
    let rules = if let Op::Set { rules, .. } = op { rules.as_slice() } else { &[] };
    rules.iter().filter_map(|rule| if let Target::Dnat(endpoint) = rule.target { Some(endpoint) } else { None })
}
