//! One step of a kernel's nftables, and how it is shown.

use crate::plan::Family;
use crate::plan::flows::Flows;
use crate::plan::nftables::set::{Bytes, POOL_MASK, Set, family_name};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::net::SocketAddr;

/// One step. A kernel executes, in this order: what makes structure, in one transaction; elements, but for what is removed
/// last; what is removed last; what removes structure; clients and flows to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the family's table.
    Table {
        /// Family.
        family: Family,
    },
    /// Remove the family's table with all in it.
    DropTable {
        /// Family.
        family: Family,
    },
    /// Make a set or a map.
    Declare {
        /// Family.
        family: Family,
        /// Its name.
        name: String,
        /// Its type and flags.
        lines: Vec<String>,
    },
    /// Remove a set or a map.
    Undeclare {
        /// Family.
        family: Family,
        /// Its name.
        name: String,
    },
    /// Make the chain if need be; exactly these rules are in it.
    Chain {
        /// Family.
        family: Family,
        /// Its name.
        name: String,
        /// Its hook, if it has one, and its rules.
        lines: Vec<String>,
    },
    /// Remove a chain.
    DropChain {
        /// Family.
        family: Family,
        /// Its name.
        name: String,
    },
    /// A class is drawn by a chain.
    Pick {
        /// Family.
        family: Family,
        /// The class's number.
        class: u16,
        /// The chain.
        chain: String,
    },
    /// A class is drawn no more.
    Unpick {
        /// Family.
        family: Family,
        /// The class's number.
        class: u16,
    },
    /// Write an element.
    Put {
        /// Family.
        family: Family,
        /// Where.
        set: Set,
        /// Its key.
        key: Bytes,
        /// Its data.
        data: Bytes,
        /// There is one of this key.
        replaces: bool,
    },
    /// Remove an element.
    Remove {
        /// Family.
        family: Family,
        /// Where.
        set: Set,
        /// Its key.
        key: Bytes,
    },
    /// Forget the clients that stay with an endpoint of a pool.
    Purge {
        /// Family.
        family: Family,
        /// Affinity time-out, seconds.
        seconds: u32,
        /// The pool.
        pool: u32,
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// Forget flows.
    Forget(Flows),
}

/// Makes one op of several on the same element: a kernel executes a batch by kind, not in the order in which services ask.
#[must_use]
pub fn coalesce(ops: Vec<Op>) -> Vec<Op> {
    let mut merged: Vec<Option<Op>> = Vec::with_capacity(ops.len());
    let mut places: BTreeMap<(Family, Set, Bytes), usize> = BTreeMap::new();
    for op in ops {
        let (Op::Put { family, set, key, .. } | Op::Remove { family, set, key }) = &op else {
            merged.push(Some(op));
            continue;
        };
        match places.entry((*family, *set, key.clone())) {
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(Some(op));
            }
            Entry::Occupied(place) => {
                let was = merged[*place.get()].take();
                merged[*place.get()] = after(was, op);
            }
        }
    }
    merged.into_iter().flatten().collect()
}

/// What an op and a later one on the same element amount to. `None` before: the element was made and removed again.
fn after(was: Option<Op>, op: Op) -> Option<Op> {
    match (was, op) {
        (Some(Op::Remove { .. }), Op::Put { family, set, key, data, .. }) => {
            Some(Op::Put { family, set, key, data, replaces: true })
        }
        (Some(Op::Put { replaces, .. }), Op::Put { family, set, key, data, .. }) => {
            Some(Op::Put { family, set, key, data, replaces })
        }
        (Some(Op::Put { replaces: false, .. }), Op::Remove { .. }) => None,
        (_, op) => Some(op),
    }
}

/// An element in `nft`'s words.
#[must_use]
pub fn element(family: Family, (set, key, data): (Set, &Bytes, &Bytes)) -> String {
    let mut parts = Parts { family, bytes: key, at: 0 };
    let key = match set {
        Set::Endpoints(_) => [parts.pool(), parts.number()].join(" . "),
        Set::Pools | Set::Sticky(_) => parts.pool(),
        Set::Hairpins => [parts.address(), parts.address()].join(" . "),
        Set::ClusterIps => parts.address(),
        Set::Frontends
        | Set::Outside
        | Set::Masqueraded
        | Set::LocalPolicy
        | Set::Guarded
        | Set::Rejected
        | Set::Dropped => [parts.address(), parts.protocol(), parts.port()].join(" . "),
        Set::Ranges(_) => [parts.address(), parts.protocol(), parts.port(), parts.address()].join(" . "),
        Set::NodePortRanges(_) => [parts.protocol(), parts.port(), parts.address()].join(" . "),
        Set::NodePorts
        | Set::OutsideNodePorts
        | Set::MasqueradedNodePorts
        | Set::LocalPolicyNodePorts
        | Set::GuardedNodePorts
        | Set::RejectedNodePorts
        | Set::DroppedNodePorts => [parts.protocol(), parts.port()].join(" . "),
    };
    let mut parts = Parts { family, bytes: data, at: 0 };
    match set {
        Set::Endpoints(_) => format!("{key} : {} . {}", parts.address(), parts.port()),
        _ if set.is_map() => format!("{key} : {}", parts.pool()),
        _ => key,
    }
}

/// Reads a key's parts in their order.
struct Parts<'a> {
    family: Family,
    bytes: &'a Bytes,
    at: usize,
}

impl Parts<'_> {
    fn pool(&mut self) -> String {
        let word = self.bytes.number_at(self.at).unwrap_or_default();
        self.at += 4;
        format!("{:x}:{:x}", word >> 16, word & 0xffff)
    }

    fn number(&mut self) -> String {
        let number = self.bytes.number_at(self.at).unwrap_or_default();
        self.at += 4;
        number.to_string()
    }

    fn address(&mut self) -> String {
        let address = self.bytes.to_address(self.family, self.at);
        self.at += if self.family == Family::V4 { 4 } else { 16 };
        address.map(|address| address.to_string()).unwrap_or_default()
    }

    fn protocol(&mut self) -> String {
        let number = self.bytes.as_slice().get(self.at).copied().unwrap_or_default();
        self.at += 4;
        match number {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => other.to_string(),
        }
    }

    fn port(&mut self) -> String {
        let bytes = self.bytes.as_slice().get(self.at..self.at + 2);
        self.at += 4;
        bytes.map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]).to_string()).unwrap_or_default()
    }
}

impl fmt::Display for Op {
    /// What was wrong, if this op repairs it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table { family } => write!(f, "table {} missing", family_name(*family)),
            Self::DropTable { family } => write!(f, "table {} not wanted", family_name(*family)),
            Self::Declare { family, name, .. } => write!(f, "set {name} in {} missing", family_name(*family)),
            Self::Undeclare { family, name } => write!(f, "set {name} in {} not wanted", family_name(*family)),
            Self::Chain { family, name, .. } => {
                write!(f, "chain {name} in {} missing or different", family_name(*family))
            }
            Self::DropChain { family, name } => write!(f, "chain {name} in {} not wanted", family_name(*family)),
            Self::Pick { family, chain, .. } => write!(f, "way to {chain} in {} missing", family_name(*family)),
            Self::Unpick { family, class } => write!(f, "class {class} in {} not wanted", family_name(*family)),
            Self::Put { family, set, key, data, replaces } => {
                let what = if *replaces { "different" } else { "missing" };
                write!(
                    f,
                    "element {what} in {} {}: {}",
                    family_name(*family),
                    set.name(),
                    element(*family, (*set, key, data))
                )
            }
            Self::Remove { family, set, key } => {
                let shown = element(*family, (*set, key, &Bytes::none()));
                write!(f, "element not wanted in {} {}: {shown}", family_name(*family), set.name())
            }
            Self::Purge { pool, endpoint, .. } => {
                write!(f, "clients of {endpoint} in pool {} may be stale", pool & POOL_MASK)
            }
            Self::Forget(flows) => write!(f, "{flows}"),
        }
    }
}
