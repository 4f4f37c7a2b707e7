//! What a node's kernel holds of ours: our chains, and the rules of the built-in chains.
//!
//! INVARIANT: nothing of a foreign user-defined chain is kept, so nothing of one can ever be changed.

use crate::plan::iptables::diff::Op;
use crate::plan::iptables::rule::Rule;
use crate::plan::iptables::{Names, Space, Table};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Understood, or `None`: no rule of ours says that.
    pub rule: Option<Rule>,
    /// Its text behind `-A CHAIN `, exactly as printed: what a deletion must say.
    pub text: String,
}

impl From<Rule> for Line {
    fn from(rule: Rule) -> Self {
        Self { text: rule.to_string(), rule: Some(rule) }
    }
}

/// The tables of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Chains by table: ours, and built-in ones.
    pub chains: BTreeMap<Space, BTreeMap<String, Vec<Line>>>,
    /// A kube-proxy's mark of presence was seen in a nat table.
    pub canary: bool,
}

/// Whose chains of our names are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's: there are none.
    Nobody,
    /// Ours, by the marker.
    Us,
    /// Somebody else's, or ours without the marker.
    Unmarked,
    /// A kube-proxy's.
    KubeProxy,
}

impl Observed {
    /// True for the chains that the kernel brings along.
    #[must_use]
    pub fn is_built_in(chain: &str) -> bool {
        matches!(chain, "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING")
    }

    /// The rules of a chain; empty if it isn't there.
    #[must_use]
    pub fn chain(&self, space: Space, chain: &str) -> &[Line] {
        self.chains.get(&space).and_then(|chains| chains.get(chain)).map_or(&[], Vec::as_slice)
    }

    /// True if the chain is there.
    #[must_use]
    pub fn has(&self, space: Space, chain: &str) -> bool {
        self.chains.get(&space).is_some_and(|chains| chains.contains_key(chain))
    }

    /// Whose the chains of our names are.
    #[must_use]
    pub fn owner(&self, names: &Names) -> Owner {
        let nat = || self.chains.iter().filter(|(space, _)| space.table == Table::Nat).map(|(_, chains)| chains);
        if nat().any(|chains| chains.contains_key(&names.marker())) {
            Owner::Us
        } else if !nat().any(|chains| chains.contains_key(&names.services())) {
            Owner::Nobody
        } else if self.canary {
            Owner::KubeProxy
        } else {
            Owner::Unmarked
        }
    }

    /// Brings an observation up to what was executed while it was being made. Lenient: each op may or may not be in it.
    pub fn replay(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Set { space, chain, rules } => {
                    let lines = rules.iter().cloned().map(Line::from).collect();
                    self.chains.entry(*space).or_default().insert(chain.clone(), lines);
                }
                Op::Insert { space, chain, rule } => {
                    let lines = self.chains.entry(*space).or_default().entry(chain.clone()).or_default();
                    if !lines.iter().any(|line| line.rule.as_ref() == Some(rule)) {
                        lines.insert(0, rule.clone().into());
                    }
                }
                Op::Delete { space, chain, line } => {
                    if let Some(lines) = self.chains.get_mut(space).and_then(|chains| chains.get_mut(chain))
                        && let Some(at) = lines.iter().position(|one| one.is(line))
                    {
                        lines.remove(at);
                    }
                }
                Op::Drop { space, chain } => {
                    if let Some(chains) = self.chains.get_mut(space) {
                        chains.remove(chain);
                    }
                }
                Op::Forget(_) => {}
            }
        }
    }

    /// Ours as text that `iptables-restore` would take: chains, their rules, and the jumps into them.
    #[must_use]
    pub fn render(&self, names: &Names) -> String {
        let mut text = String::new();
        for (space, chains) in &self.chains {
            let ours = |line: &&Line| line.jumps_to().is_some_and(|chain| names.owns(chain));
            if !chains.keys().any(|chain| names.owns(chain)) {
                continue;
            }
            let _ = writeln!(
                text,
                "# {}\n*{}",
                if space.family == crate::plan::Family::V4 { "IPv4" } else { "IPv6" },
                space.table.name()
            );
            for chain in chains.keys().filter(|chain| names.owns(chain)) {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            for (chain, lines) in chains {
                let mine = names.owns(chain);
                for line in lines.iter().filter(|line| mine || ours(line)) {
                    let _ = writeln!(text, "-A {chain} {}", line.text);
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

impl Line {
    /// Same rule; text decides only where no rule is understood.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (&self.rule, &other.rule) {
            (Some(one), Some(two)) => one == two,
            (None, None) => self.text == other.text,
            _ => false,
        }
    }

    /// The chain it jumps (or goes) to, also of a rule that isn't understood.
    #[must_use]
    pub fn jumps_to(&self) -> Option<&str> {
        if let Some(rule) = &self.rule {
            return rule.jumps_to();
        }
        let mut words = self.text.split_ascii_whitespace().rev();
        let last = words.next()?;
        matches!(words.next(), Some("-j" | "-g")).then_some(last)
    }
}
