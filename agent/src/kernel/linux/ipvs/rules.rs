//! The fixed rules around IPVS, by `iptables-save` and `iptables-restore --noflush`: whichever of nft and legacy the host
//! uses. They change at the first start and at a repair only.
//!
//! Reading starts two programs. Where that is slow, a look that comes again soon gets what was read last, and the next
//! reading goes on beside it. INVARIANT: what was read before a write is never taken for what is there after it.

use crate::kernel::KernelError;
use crate::kernel::linux::program;
use crate::plan::Family;
use crate::plan::ipvs::Op;
use crate::plan::ipvs::chain::Table;
use crate::plan::ipvs::set::PREFIX;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A reading that takes longer goes on beside.
const SLOW: Duration = Duration::from_millis(100);
/// At most one part in so many of the time is spent on readings.
const SHARE: u32 = 10;

/// Rules by table and chain.
pub(super) type Lines = BTreeMap<(Table, String), Vec<String>>;

/// Chains, and jumps to them, of each family.
pub(super) type ByFamily = BTreeMap<Family, (Lines, Lines)>;

/// The rules of a network namespace.
pub(super) struct Rules {
    namespace: Option<PathBuf>,
    state: Mutex<State>,
}

struct Spelling {
    written: Vec<String>,
    printed: Vec<String>,
}

#[derive(Default)]
struct State {
    /// Chains that we wrote, as we wrote them, and as this host's iptables prints them.
    spellings: BTreeMap<(Family, Table, String), Spelling>,
    /// What was read last, when, and how long it took; unless something was written since.
    read: Option<(ByFamily, Instant, Duration)>,
    /// Writes so far.
    writes: u64,
    /// A reading goes on beside.
    reading: bool,
}

impl State {
    fn note(&mut self, family: Family, written: &[Op], printed: &Lines) {
        for op in written {
            if let Op::Chain { family: of, table, name, lines } = op
                && *of == family
                && let Some(printed) = printed.get(&(*table, name.clone()))
            {
                let spelling = Spelling { written: lines.clone(), printed: printed.clone() };
                self.spellings.insert((family, *table, name.clone()), spelling);
            }
        }
    }
}

impl Rules {
    /// Of a namespace; `None` = the process's.
    pub(super) fn new(namespace: Option<PathBuf>) -> Self {
        Self { namespace, state: Mutex::default() }
    }

    /// As they are.
    pub(super) fn fresh(&self) -> Result<ByFamily, KernelError> {
        self.read(&[])
    }

    /// Reads them, and notes how what was just written is printed.
    fn read(&self, written: &[Op]) -> Result<ByFamily, KernelError> {
        let (begun, writes) = (Instant::now(), self.lock().writes);
        let mut read = ByFamily::new();
        for family in Family::ALL {
            let text = match self.save(family) {
                // A host without IPv6 has no IPv6 rules; one that needs them will fail where they are written.
                Err(_) if family == Family::V6 => continue,
                saved => saved?,
            };
            let (mut chains, jumps) = saved(&text);
            let mut state = self.lock();
            state.note(family, written, &chains);
            for ((table, name), lines) in &mut chains {
                let known = state.spellings.get(&(family, *table, name.clone()));
                if let Some(known) = known.filter(|one| one.printed == *lines) {
                    lines.clone_from(&known.written);
                }
            }
            if !chains.is_empty() || !jumps.is_empty() {
                read.insert(family, (chains, jumps));
            }
        }
        let mut state = self.lock();
        if state.writes == writes {
            state.read = Some((read.clone(), Instant::now(), begun.elapsed()));
        }
        Ok(read)
    }

    /// As they are, or as they were last read where reading is slow.
    pub(super) fn recent(self: &Arc<Self>) -> Result<ByFamily, KernelError> {
        let mut state = self.lock();
        let (rules, due) = match &state.read {
            Some((rules, at, cost)) if *cost > SLOW => (rules.clone(), at.elapsed() > *cost * SHARE),
            _ => {
                drop(state);
                return self.fresh();
            }
        };
        if due && !state.reading {
            state.reading = true;
            let of = self.clone();
            std::thread::spawn(move || {
                if let Err(error) = of.fresh() {
                    tracing::error!(%error, "the rules around IPVS can't be read back");
                }
                of.lock().reading = false;
            });
        }
        Ok(rules)
    }

    /// Does what some ops ask.
    pub(super) fn write(&self, ops: &[Op]) -> Result<(), KernelError> {
        for family in Family::ALL {
            let input = restore(ops, family);
            if input.is_empty() {
                continue;
            }
            self.wrote();
            let done = program::run(
                self.namespace.as_deref(),
                &program(family, "restore"),
                (&["--noflush", "-w", "5"], &input),
            );
            self.wrote();
            done?;
        }
        self.read(ops).map(|_| ())
    }

    fn wrote(&self) {
        let mut state = self.lock();
        state.writes += 1;
        state.read = None;
    }

    fn save(&self, family: Family) -> Result<String, KernelError> {
        program::run(self.namespace.as_deref(), &program(family, "save"), (&[], ""))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name of the program.
fn program(family: Family, verb: &str) -> String {
    match family {
        Family::V4 => format!("iptables-{verb}"),
        Family::V6 => format!("ip6tables-{verb}"),
    }
}

/// Our chains, and rules of built-in chains that lead to them, in a dump of all tables.
fn saved(text: &str) -> (Lines, Lines) {
    let (mut chains, mut jumps) = (Lines::new(), Lines::new());
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
        }
        let Some(table) = table else {
            continue;
        };
        if let Some(name) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next())
            && name.starts_with(PREFIX)
        {
            chains.entry((table, name.to_owned())).or_default();
        }
        let Some((name, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let key = (table, name.to_owned());
        if name.starts_with(PREFIX) {
            chains.entry(key).or_default().push(rule.to_owned());
        } else if is_built_in(name) && leads_to_ours(rule) {
            jumps.entry(key).or_default().push(rule.to_owned());
        }
    }
    (chains, jumps)
}

fn is_built_in(chain: &str) -> bool {
    matches!(chain, "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING")
}

fn leads_to_ours(rule: &str) -> bool {
    let mut words = rule.split_ascii_whitespace().rev();
    let last = words.next().unwrap_or_default();
    last.starts_with(PREFIX) && matches!(words.next(), Some("-j" | "-g"))
}

/// The input for one family's `iptables-restore`; empty if nothing is to be done there. Chains are made before anything
/// refers to them and removed after; each table is one transaction.
fn restore(ops: &[Op], of: Family) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let (mut declare, mut body, mut remove) = (String::new(), String::new(), String::new());
        for op in ops {
            // Writing to a String can't fail.
            let _ = match op {
                Op::Chain { family, table: at, name, lines } if (*family, *at) == (of, table) => {
                    lines.iter().for_each(|line| body.extend(["-A ", name, " ", line, "\n"]));
                    writeln!(declare, ":{name} - [0:0]")
                }
                Op::Jump { family, table: at, chain, line } if (*family, *at) == (of, table) => {
                    writeln!(body, "-I {chain} {line}")
                }
                Op::Unjump { family, table: at, chain, line } if (*family, *at) == (of, table) => {
                    writeln!(body, "-D {chain} {line}")
                }
                Op::DropChain { family, table: at, name } if (*family, *at) == (of, table) => {
                    // Declaring empties it, which its removal asks for.
                    let _ = writeln!(declare, ":{name} - [0:0]");
                    writeln!(remove, "-X {name}")
                }
                _ => Ok(()),
            };
        }
        if !(declare.is_empty() && body.is_empty()) {
            let _ = write!(text, "*{}\n{declare}{body}{remove}COMMIT\n", table.name());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iptables-legacy-save 1.8.9 printed it.
    const SAVED: &str = "*filter
:INPUT ACCEPT [63:3622]
:DOCKER - [0:0]
:FAIRLEAD-INPUT - [0:0]
:FAIRLEAD-EMPTY - [0:0]
-A INPUT -j FAIRLEAD-INPUT
-A INPUT -j DOCKER
-A DOCKER -j FAIRLEAD-INPUT
-A FAIRLEAD-INPUT -m set --match-set FAIRLEAD-SERVED dst,dst -j ACCEPT
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j FAIRLEAD-X
COMMIT
";

    #[test]
    fn ours_alone_is_read() {
        let (chains, jumps) = saved(SAVED);
        let key = |name: &str| (Table::Filter, name.to_owned());
        let served = "-m set --match-set FAIRLEAD-SERVED dst,dst -j ACCEPT".to_owned();
        assert_eq!(chains, Lines::from([(key("FAIRLEAD-INPUT"), vec![served]), (key("FAIRLEAD-EMPTY"), vec![])]));
        assert_eq!(jumps, Lines::from([(key("INPUT"), vec!["-j FAIRLEAD-INPUT".to_owned()])]));
    }
}
