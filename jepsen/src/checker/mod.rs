//! Judges of histories. Pure, and proven by themselves: generated good histories pass, mutated ones don't, and on tiny
//! ones the search agrees with another's. They know nothing of servers, faults or files.
//!
//! Invariant: [`Verdict::Valid`] is said only after something was judged; what can't be judged is [`Verdict::Unknown`].
//! "Before" is always strict: an operation that is called in the nanosecond in which another returns is concurrent with
//! it.

pub mod append;
pub mod generate;
pub mod set;
pub mod snapshots;
pub mod wgl;
pub mod witness;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::history::{Anomaly, Call, Operation, Value, Verdict};

/// Judges a history by each checker that has an answered operation to judge. A history in which nothing was answered
/// gets one verdict, `("history", Unknown)`: an empty run is no pass.
#[must_use]
pub fn check(history: &[Operation]) -> Vec<(&'static str, Verdict)> {
    let mut verdicts = Vec::new();
    let done = |kind: fn(&Call) -> bool| history.iter().any(|op| op.is_done() && kind(&op.call));
    if done(|_| true) {
        verdicts.push(("witness", witness::registers(history)));
    } else {
        verdicts.push(("history", nothing("operation")));
    }
    if done(is_register) {
        verdicts.push(("wgl", wgl::registers(history)));
    }
    if done(is_list) {
        verdicts.push(("append", append::lists(history)));
    }
    if done(is_set) {
        verdicts.push(("set", set::set(history)));
    }
    if done(|call| matches!(call, Call::ReadLists(_) | Call::ReadSet)) {
        verdicts.push(("snapshots", snapshots::snapshots(history)));
    }
    verdicts
}

fn is_register(call: &Call) -> bool {
    matches!(call, Call::Write(..) | Call::Cas { .. } | Call::Read(_))
}

fn is_list(call: &Call) -> bool {
    matches!(call, Call::Append(..) | Call::ReadLists(_))
}

fn is_set(call: &Call) -> bool {
    matches!(call, Call::Add(_) | Call::Remove(_) | Call::ReadSet)
}

/// The verdict on a history without any answered operation of a kind.
fn nothing(kind: &str) -> Verdict {
    Verdict::Unknown(format!("no {kind} was answered: there is nothing to judge"))
}

/// Which operation wrote each value. `Err` if two did: values are what tells writes apart, so such a history can't be
/// judged.
fn writers(history: &[Operation], written: impl Fn(&Call) -> Option<Value>) -> Result<BTreeMap<Value, usize>, Verdict> {
    let mut writers = BTreeMap::new();
    for (place, op) in history.iter().enumerate() {
        let Some(value) = written(&op.call) else { continue };
        if let Some(other) = writers.insert(value, place) {
            return Err(Verdict::Unknown(format!("operations {other} and {place} both write {value}: not unique")));
        }
    }
    Ok(writers)
}

/// Anomalies as they are found. A cluster that is broken enough has one in each operation: most are only counted.
#[derive(Default)]
struct Findings {
    anomalies: Vec<Anomaly>,
    omitted: usize,
}

impl Findings {
    const MOST: usize = 100;

    fn add(&mut self, kind: &'static str, operations: &[usize], what: String) {
        if self.anomalies.len() < Self::MOST {
            self.anomalies.push(Anomaly { kind, what, operations: operations.to_vec() });
        } else {
            self.omitted += 1;
        }
    }

    fn verdict(mut self) -> Verdict {
        if self.omitted > 0
            && let Some(last) = self.anomalies.last_mut()
        {
            last.what = format!("{} (and {} more anomalies)", last.what, self.omitted);
        }
        if self.anomalies.is_empty() { Verdict::Valid } else { Verdict::Broken(self.anomalies) }
    }
}
