//! The fixed rules around IPVS, by `iptables-save` and `iptables-restore --noflush`: whichever of nft and legacy the host
//! uses. They change at the first start and at a repair only.

use crate::plan::Family;
use crate::plan::ipvs::Op;
use crate::plan::ipvs::chain::Table;
use crate::plan::ipvs::set::PREFIX;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Rules by table and chain.
pub(super) type Lines = BTreeMap<(Table, String), Vec<String>>;

/// Name of the program.
pub(super) fn program(family: Family, verb: &str) -> String {
    match family {
        Family::V4 => format!("iptables-{verb}"),
        Family::V6 => format!("ip6tables-{verb}"),
    }
}

/// Our chains, and rules of built-in chains that lead to them, in a dump of all tables.
pub(super) fn saved(text: &str) -> (Lines, Lines) {
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
pub(super) fn restore(ops: &[Op], of: Family) -> String {
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
