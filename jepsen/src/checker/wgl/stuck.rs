//! What is told of a register that has no order: how far the search got, and what doesn't fit there and why. It is for
//! people; the verdict is the search's.
//!
//! Numbers of operations are places in the history.

use crate::history::{Answer, Call, Operation};

/// Why the operation doesn't fit.
#[derive(Default)]
pub(super) enum Why {
    /// It found a value that nobody can have written.
    NeverWritten,
    /// It returned, and whatever may be placed next has no use for the state it needs.
    #[default]
    NoChoice,
    /// These found the last state, and aren't placed; the state can't be left before.
    Held(Vec<usize>),
    /// It needs the value of a write, or what a Cas made of it, and was called after another one had returned that
    /// can't be placed before it either.
    Late { write: usize, other: usize },
}

/// Where the search got furthest.
#[derive(Default)]
pub(super) struct Stuck {
    pub placed: usize,
    pub total: usize,
    pub misfit: usize,
    pub why: Why,
    /// Called and not placed.
    pub pending: Vec<usize>,
    /// The last that were placed.
    pub last: Vec<usize>,
}

impl Stuck {
    /// How many of the last are told.
    pub(super) const LAST: usize = 8;

    /// The operations that show it, the one that doesn't fit first.
    pub(super) fn operations(&self) -> Vec<usize> {
        let mut operations = vec![self.misfit];
        let because = match &self.why {
            Why::NeverWritten | Why::NoChoice => Vec::new(),
            Why::Held(by) => by.clone(),
            Why::Late { write, other } => vec![*other, *write],
        };
        for place in because.iter().chain(&self.pending).chain(self.last.iter().rev()) {
            if !operations.contains(place) {
                operations.push(*place);
            }
        }
        operations
    }

    /// One sentence.
    pub(super) fn tell(&self, history: &[Operation], key: &str) -> String {
        let show = |place: usize| history.get(place).map_or_else(String::new, |op| brief(place, op));
        let misfit = show(self.misfit);
        if let Why::NeverWritten = self.why {
            return format!("{key}: {misfit} found a value that no write can have left");
        }
        let last = self.last.last().map_or_else(String::new, |last| format!(", up to {}", show(*last)));
        let mut what = format!("{key}: {} of {} operations can be ordered{last}; ", self.placed, self.total);
        what += &match &self.why {
            Why::Held(by) => {
                let by: Vec<String> = by.iter().map(|place| show(*place)).collect();
                format!("then {misfit} doesn't fit, as {} still needs the value there", by.join(" and "))
            }
            Why::Late { write, other } => {
                let (write, other) = (show(*write), show(*other));
                format!("{misfit} doesn't fit: it needs what {write} began, and was called after {other} had returned")
            }
            Why::NoChoice | Why::NeverWritten => format!("then {misfit} doesn't fit"),
        };
        what
    }
}

fn brief(place: usize, op: &Operation) -> String {
    let call = match &op.call {
        Call::Write(_, value) => format!("write {value}"),
        Call::Cas { from, to, .. } => format!("cas {from} to {to}"),
        _ => "read".to_owned(),
    };
    match &op.answer {
        Answer::Value { value: Some((value, _)), .. } => format!("#{place} {call} {value}"),
        Answer::Value { value: None, .. } => format!("#{place} {call} nothing"),
        Answer::Refused(why) => format!("#{place} {call} ({why})"),
        _ => format!("#{place} {call}"),
    }
}
