//! Ops as the text that `iptables-restore --noflush` reads.
//!
//! Chains are made before anything refers to them and removed after. Each table is one transaction; filter comes in two,
//! around nat: refusals are added before an address loses its endpoints and removed after it got some, so that no packet
//! meets neither. INVARIANT: only ever `:chain`, `-A`, `-I`, `-D`, `-X` of what the ops name.

use crate::plan::Family;
use crate::plan::iptables::Table;
use crate::plan::iptables::diff::Op;
use std::fmt::Write as _;

/// Rules and chain lines of one transaction.
#[derive(Default)]
struct Block {
    declare: String,
    body: String,
    remove: String,
}

impl Block {
    fn write(&self, table: Table, text: &mut String) {
        if !(self.declare.is_empty() && self.body.is_empty() && self.remove.is_empty()) {
            let _ = write!(text, "*{}\n{}{}{}COMMIT\n", table.name(), self.declare, self.body, self.remove);
        }
    }
}

/// The input for one family's `iptables-restore`; empty if nothing is to be done there.
#[must_use]
pub fn render(ops: &[Op], family: Family) -> String {
    let (mut before, mut nat, mut after) = (Block::default(), Block::default(), Block::default());
    for op in ops {
        let Some(space) = op.space().filter(|space| space.family == family) else {
            continue;
        };
        let removes = matches!(op, Op::Delete { .. } | Op::Drop { .. });
        let block = match space.table {
            Table::Nat => &mut nat,
            Table::Filter if removes => &mut after,
            Table::Filter => &mut before,
        };
        write_op(op, block);
    }
    let mut text = String::new();
    before.write(Table::Filter, &mut text);
    nat.write(Table::Nat, &mut text);
    after.write(Table::Filter, &mut text);
    text
}

fn write_op(op: &Op, block: &mut Block) {
    // Writing to a String can't fail.
    let _ = match op {
        Op::Set { chain, rules, .. } => {
            for rule in rules {
                let _ = writeln!(block.body, "-A {chain} {rule}");
            }
            writeln!(block.declare, ":{chain} - [0:0]")
        }
        Op::Insert { chain, rule, .. } => writeln!(block.body, "-I {chain} {rule}"),
        Op::Delete { chain, line, .. } => writeln!(block.body, "-D {chain} {}", line.text),
        Op::Drop { chain, .. } => {
            // Declaring empties it, which its removal asks for.
            let _ = writeln!(block.declare, ":{chain} - [0:0]");
            writeln!(block.remove, "-X {chain}")
        }
        Op::Forget(_) => Ok(()),
    };
}
