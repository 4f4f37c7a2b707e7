//! One step of a kernel, and the order of steps.
//!
//! INVARIANT: what carries traffic is there before what attracts it, and goes after it; a virtual server is in a set of
//! ours before it is made and until it is removed, so that one of ours is known as ours even after a crash.

use crate::plan::Family;
use crate::plan::flows::Flows;
use crate::plan::ipvs::chain::Table;
use crate::plan::ipvs::server::{Balance, Server, Virtual};
use crate::plan::ipvs::set::{Element, Set};
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the device that our routes go by.
    Device,
    /// Make a set.
    Create {
        /// Family.
        family: Family,
        /// The set.
        set: Set,
    },
    /// Put an element into a set, or give it another mark.
    Put {
        /// The set.
        set: Set,
        /// The element.
        element: Element,
        /// Its mark; 0: none.
        mark: u32,
    },
    /// Take an element out of a set.
    Remove {
        /// The set.
        set: Set,
        /// The element.
        element: Element,
    },
    /// Remove a set of our name.
    Destroy {
        /// Its name.
        name: String,
    },
    /// Make a chain if need be; exactly these rules are in it.
    Chain {
        /// Family.
        family: Family,
        /// Table.
        table: Table,
        /// Chain.
        name: String,
        /// Its rules.
        lines: Vec<String>,
    },
    /// Put a rule at the head of a built-in chain.
    Jump {
        /// Family.
        family: Family,
        /// Table.
        table: Table,
        /// The built-in chain.
        chain: String,
        /// The rule.
        line: String,
    },
    /// Take such a rule out.
    Unjump {
        /// Family.
        family: Family,
        /// Table.
        table: Table,
        /// The built-in chain.
        chain: String,
        /// The rule.
        line: String,
    },
    /// Remove a chain.
    DropChain {
        /// Family.
        family: Family,
        /// Table.
        table: Table,
        /// Chain.
        name: String,
    },
    /// Make a virtual server.
    Add {
        /// Where.
        at: Virtual,
        /// How it chooses.
        balance: Balance,
    },
    /// Change how it chooses.
    Edit {
        /// Where.
        at: Virtual,
        /// How it chooses.
        balance: Balance,
    },
    /// Remove a virtual server and its real servers.
    Delete {
        /// Where.
        at: Virtual,
    },
    /// Add a real server, or change its weight.
    Real {
        /// Of this virtual server.
        at: Virtual,
        /// Its address.
        address: SocketAddr,
        /// Weight.
        weight: u32,
        /// It wasn't there.
        is_new: bool,
    },
    /// Remove a real server.
    Unreal {
        /// Of this virtual server.
        at: Virtual,
        /// Its address.
        address: SocketAddr,
    },
    /// Make a network local.
    Route {
        /// The network.
        net: IpNet,
        /// Source of what the node itself sends there.
        source: Option<IpAddr>,
    },
    /// Not any more.
    Unroute {
        /// The network.
        net: IpNet,
        /// The source that the route gave.
        source: Option<IpAddr>,
    },
    /// Remove the device.
    DropDevice,
    /// Forget flows.
    Forget(Flows),
    /// Nothing can be done: somebody else has the virtual server.
    Foreign {
        /// Where.
        at: Virtual,
    },
}

impl Op {
    /// Its place in a batch; equal ones in any order.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self {
            Self::Device => 0,
            Self::Create { .. } => 1,
            Self::Put { set: Set::Guarded | Set::Local | Set::OutsideDropped, .. } => 3,
            Self::Put { set: Set::Refused | Set::Dropped, .. } => 7,
            Self::Put { set: Set::Served, .. } => 8,
            Self::Put { .. } => 2,
            Self::Chain { .. } | Self::Jump { .. } => 4,
            Self::Add { .. } | Self::Edit { .. } => 5,
            Self::Real { weight, is_new, .. } if *weight > 0 || *is_new => 6,
            Self::Route { .. } => 9,
            Self::Unroute { .. } => 10,
            Self::Remove { set: Set::Served | Set::Refused | Set::Dropped | Set::Guarded, .. } => 11,
            Self::Real { .. } | Self::Unreal { .. } => 12,
            Self::Delete { .. } => 13,
            Self::Remove { .. } => 14,
            Self::Unjump { .. } => 15,
            Self::DropChain { .. } => 16,
            Self::Destroy { .. } => 17,
            Self::DropDevice => 18,
            Self::Forget(_) => 19,
            Self::Foreign { .. } => 20,
        }
    }
}

/// From one state of a virtual server to another.
pub fn server_ops(at: Virtual, (old, new): (Option<&Server>, Option<&Server>), ops: &mut Vec<Op>) {
    let Some(new) = new else {
        ops.extend(old.map(|_| Op::Delete { at }));
        return;
    };
    let balance = || new.balance.clone();
    match old {
        None => ops.push(Op::Add { at, balance: balance() }),
        Some(old) if old.balance != new.balance => ops.push(Op::Edit { at, balance: balance() }),
        Some(_) => {}
    }
    for (address, weight) in &new.reals {
        let had = old.and_then(|old| old.reals.get(address));
        if had != Some(weight) {
            ops.push(Op::Real { at, address: *address, weight: *weight, is_new: had.is_none() });
        }
    }
    let gone = old.into_iter().flat_map(|old| old.reals.keys()).filter(|address| !new.reals.contains_key(*address));
    ops.extend(gone.map(|address| Op::Unreal { at, address: *address }));
}

impl fmt::Display for Op {
    /// What was wrong, if this op repairs it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = |family: &Family| if *family == Family::V4 { "" } else { " (IPv6)" };
        match self {
            Self::Device => write!(f, "device {} missing or down", super::DEVICE),
            Self::Create { family, set } => write!(f, "set {} missing", set.name(*family)),
            Self::Put { set, element, .. } => {
                write!(f, "{element} missing or different in set {}", set.name(element.family()))
            }
            Self::Remove { set, element } => write!(f, "{element} not wanted in set {}", set.name(element.family())),
            Self::Destroy { name } => write!(f, "set {name} not wanted"),
            Self::Chain { family, table, name, .. } => {
                write!(f, "chain {name} in {}{} missing or different", table.name(), v(family))
            }
            Self::Jump { family, table, chain, line } => {
                write!(f, "rule missing in {chain} in {}{}: {line}", table.name(), v(family))
            }
            Self::Unjump { family, table, chain, line } => {
                write!(f, "rule not wanted in {chain} in {}{}: {line}", table.name(), v(family))
            }
            Self::DropChain { family, table, name } => {
                write!(f, "chain {name} in {}{} not wanted", table.name(), v(family))
            }
            Self::Add { at, .. } => write!(f, "virtual server {at} missing"),
            Self::Edit { at, .. } => write!(f, "virtual server {at} different"),
            Self::Delete { at } => write!(f, "virtual server {at} not wanted"),
            Self::Real { at, address, is_new: true, .. } => write!(f, "real server {address} of {at} missing"),
            Self::Real { at, address, weight, .. } => write!(f, "weight of real server {address} of {at} not {weight}"),
            Self::Unreal { at, address } => write!(f, "real server {address} of {at} not wanted"),
            Self::Route { net, .. } => write!(f, "local route {net} missing or different"),
            Self::Unroute { net, .. } => write!(f, "local route {net} not wanted"),
            Self::DropDevice => write!(f, "device {} not wanted", super::DEVICE),
            Self::Forget(flows) => flows.fmt(f),
            Self::Foreign { at } => write!(f, "virtual server {at} was made by somebody else: it is left alone"),
        }
    }
}
