//! What clients did and saw: the one thing that checkers judge. Pure.
//!
//! Times are nanoseconds of the harness' one monotonic clock. Values are unique in a history: a value says by itself which
//! write it came from.

use std::collections::BTreeMap;

/// Name of a register, a list or a set: an object of the cluster.
pub type Key = String;
/// What a write leaves behind.
pub type Value = u64;

/// One operation of one client, from its call to its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client. It does one operation at a time; one whose answer was [`Answer::Unknown`] never acts again, as in
    /// Jepsen.
    pub process: u32,
    /// The server that was asked, from 1.
    pub node: u8,
    /// When it was called.
    pub called: u64,
    /// When it was answered; [`u64::MAX`] with [`Answer::Unknown`]: it may take effect at any time after its call, or
    /// never.
    pub returned: u64,
    /// What was asked.
    pub call: Call,
    /// What came of it.
    pub answer: Answer,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Write a value, whatever is there.
    Write(Key, Value),
    /// Write a value if the object still is at a revision that was read before, where it had the value `from`.
    Cas {
        /// The object.
        key: Key,
        /// Its value at `revision`.
        from: Value,
        /// Its revision when it was read.
        revision: u64,
        /// The new value.
        to: Value,
    },
    /// Read one register.
    Read(Key),
    /// Append a value to a list.
    Append(Key, Value),
    /// Read several lists at one revision.
    ReadLists(Vec<Key>),
    /// Add a member to the one set.
    Add(Value),
    /// Remove a member from it.
    Remove(Value),
    /// Read the whole set.
    ReadSet,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A write took effect at a revision of the cluster; no other change has that revision.
    Done {
        /// The revision of the change.
        revision: u64,
    },
    /// What a register held, as of a revision of the cluster. `None`: it isn't there.
    Value {
        /// Value, and the revision of the change that wrote it.
        value: Option<(Value, u64)>,
        /// The answer reflects every change up to this revision and none after it.
        revision: u64,
    },
    /// What lists held, in the order of their values; a key that isn't there is missing.
    Lists {
        /// Each list.
        lists: BTreeMap<Key, Vec<Value>>,
        /// As for [`Answer::Value`].
        revision: u64,
    },
    /// What the set held.
    Set {
        /// Its members, in order.
        members: Vec<Value>,
        /// As for [`Answer::Value`].
        revision: u64,
    },
    /// It certainly had no effect, and never will.
    Refused(String),
    /// It may have had an effect, or may still have one, or none.
    Unknown(String),
}

impl Operation {
    /// It changes something, if it takes effect.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self.call, Call::Read(_) | Call::ReadLists(_) | Call::ReadSet)
    }

    /// It certainly took effect, or is a read that was answered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !matches!(self.answer, Answer::Refused(_) | Answer::Unknown(_))
    }

    /// The revision that its answer tells.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        match &self.answer {
            Answer::Done { revision }
            | Answer::Value { revision, .. }
            | Answer::Lists { revision, .. }
            | Answer::Set { revision, .. } => Some(*revision),
            Answer::Refused(_) | Answer::Unknown(_) => None,
        }
    }
}

/// An anomaly that a checker found: what, and the operations that show it (places in the history).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// A word for its kind: `stale-read`, `lost-write`, `not-linearizable` …
    pub kind: &'static str,
    /// One sentence with the facts.
    pub what: String,
    /// Places in the checked history.
    pub operations: Vec<usize>,
}

/// A checker's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing contradicts the promise.
    Valid,
    /// It was broken.
    Broken(Vec<Anomaly>),
    /// The search was given up, or there is too little to judge: never a pass.
    Unknown(String),
}
