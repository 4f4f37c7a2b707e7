//! Structure as `nft` reads and lists it. Pure.

use crate::plan::Family;
use crate::plan::nftables::op::element;
use crate::plan::nftables::set::{Set, family_name};
use crate::plan::nftables::structure::{PICKS, TABLE};
use crate::plan::nftables::{Op, Structure};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// True if a family's table is dropped and made again. Then its elements go in by the same transaction, or packets would
/// find it empty for a while.
#[must_use]
pub fn is_rebuilt(ops: &[Op], family: Family) -> bool {
    let dropped = |op: &Op| matches!(op, Op::DropTable { family: of } if *of == family);
    let made = |op: &Op| matches!(op, Op::Table { family: of } if *of == family);
    ops.iter().any(dropped) && ops.iter().any(made)
}

/// Elements of a table that is made again.
fn filling(ops: &[Op], family: Family) -> String {
    let mut sets: BTreeMap<Set, Vec<String>> = BTreeMap::new();
    for op in ops {
        if let Op::Put { family: of, set, key, data, .. } = op
            && *of == family
        {
            sets.entry(*set).or_default().push(element(family, (*set, key, data)));
        }
    }
    let line = |(set, elements): (Set, Vec<String>)| {
        format!("add element {} {TABLE} {} {{ {} }}\n", family_name(family), set.name(), elements.join(", "))
    };
    sets.into_iter().map(line).collect()
}

/// Commands that make what some ops ask for; empty if none makes structure.
#[must_use]
pub fn making(ops: &[Op]) -> String {
    let mut parts = [String::new(), String::new(), String::new(), String::new()];
    let rebuilt = Family::ALL.into_iter().filter(|family| is_rebuilt(ops, *family));
    parts[3] = rebuilt.map(|family| filling(ops, family)).collect();
    for op in ops {
        let [declare, fill, link, _] = &mut parts;
        // Writing to a string can't fail.
        let _ = match op {
            Op::DropTable { family } => {
                let family = family_name(*family);
                // Made first, so that deleting one that is gone is no failure.
                writeln!(declare, "add table {family} {TABLE}\ndelete table {family} {TABLE}")
            }
            Op::Table { family } => writeln!(declare, "add table {} {TABLE}", family_name(*family)),
            Op::Declare { family, name, lines } => {
                let kind = if lines.first().is_some_and(|line| line.contains(" : ")) { "map" } else { "set" };
                writeln!(declare, "add {kind} {} {TABLE} {name} {{ {} ; }}", family_name(*family), lines.join(" ; "))
            }
            Op::Chain { family, name, lines } => chain((declare, fill), family_name(*family), (name, lines)),
            Op::Unpick { family, class } if picked(ops, *family, *class) => {
                writeln!(link, "delete element {} {TABLE} {PICKS} {{ {class:x}0:0 }}", family_name(*family))
            }
            Op::Pick { family, class, chain } => {
                writeln!(link, "add element {} {TABLE} {PICKS} {{ {class:x}0:0 : goto {chain} }}", family_name(*family))
            }
            _ => Ok(()),
        };
    }
    parts.concat()
}

/// True if a class's number goes to another class.
fn picked(ops: &[Op], family: Family, class: u16) -> bool {
    ops.iter().any(|op| matches!(op, Op::Pick { family: of, class: again, .. } if (*of, *again) == (family, class)))
}

fn chain(
    (declare, fill): (&mut String, &mut String),
    family: &str,
    (name, lines): (&str, &[String]),
) -> std::fmt::Result {
    let (hook, rules) = match lines.split_first() {
        Some((first, rest)) if first.starts_with("type ") => (Some(first), rest),
        _ => (None, lines),
    };
    match hook {
        Some(hook) => writeln!(declare, "add chain {family} {TABLE} {name} {{ {hook} }}")?,
        None => writeln!(declare, "add chain {family} {TABLE} {name}")?,
    }
    writeln!(fill, "flush chain {family} {TABLE} {name}")?;
    for rule in rules {
        writeln!(fill, "add rule {family} {TABLE} {name} {rule}")?;
    }
    Ok(())
}

/// Commands that remove what some ops ask to remove.
#[must_use]
pub fn removing(ops: &[Op]) -> String {
    let mut parts = [String::new(), String::new(), String::new(), String::new()];
    for op in ops {
        let [unlink, flush, chains, sets] = &mut parts;
        let _ = match op {
            Op::Unpick { family, class } if !picked(ops, *family, *class) => {
                writeln!(unlink, "delete element {} {TABLE} {PICKS} {{ {class:x}0:0 }}", family_name(*family))
            }
            Op::DropChain { family, name } => {
                let family = family_name(*family);
                let _ = writeln!(flush, "flush chain {family} {TABLE} {name}");
                writeln!(chains, "delete chain {family} {TABLE} {name}")
            }
            Op::Undeclare { family, name } => writeln!(sets, "delete set {} {TABLE} {name}", family_name(*family)),
            _ => Ok(()),
        };
    }
    parts.concat()
}

/// Reads what `nft --terse list table` printed.
#[must_use]
pub fn listed(text: &str) -> Structure {
    let mut structure = Structure::default();
    let mut block: Option<(bool, String, Vec<String>)> = None;
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split(' ').collect();
        match (&mut block, words.as_slice()) {
            (None, [kind @ ("set" | "map" | "chain"), name, "{"]) => {
                block = Some((*kind == "chain", (*name).to_owned(), Vec::new()));
            }
            (Some(_), ["}"]) => {
                if let Some((is_chain, name, lines)) = block.take() {
                    let into = if is_chain { &mut structure.chains } else { &mut structure.sets };
                    into.insert(name, lines);
                }
            }
            (Some((_, _, lines)), _) if !line.is_empty() => lines.push(line.to_owned()),
            _ => {}
        }
    }
    structure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let text = "table ip fairlead {\n\tmap pools {\n\t\ttype classid : classid\n\t}\n\n\tchain x {\n\t\ttype nat hook output priority -100; policy accept;\n\t\tjump services\n\t}\n\tchain empty {\n\t}\n}\n";
        let structure = listed(text);
        assert_eq!(structure.sets["pools"], ["type classid : classid"]);
        assert_eq!(structure.chains["x"].len(), 2);
        assert!(structure.chains["empty"].is_empty());
    }

    #[test]
    fn chains_are_declared_before_rules_jump_to_them() {
        let chain =
            |name: &str, rule: &str| Op::Chain { family: Family::V4, name: name.into(), lines: vec![rule.into()] };
        let text = making(&[chain("a", "jump b"), chain("b", "drop")]);
        assert!(text.find("add chain ip fairlead b").unwrap() < text.find("jump b").unwrap(), "{text}");
        assert_eq!(making(&[]), "");
        assert_eq!(removing(&[chain("a", "drop")]), "");
    }
}
