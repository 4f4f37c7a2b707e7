//! From a node's view to the rules its kernel should hold, and from what it holds to the steps between. Pure.
//!
//! [`compile`] turns services into rules, [`diff`] turns a difference into [`Op`]s, [`parse`] reads what `iptables-save`
//! prints and [`restore`] writes what `iptables-restore` reads. No IO, no clock, no randomness: the same view gives the
//! same rules on every node and in every test.

pub mod compile;
pub mod diff;
pub mod flows;
pub mod iptables;
pub mod names;
pub mod observed;
pub mod parse;
mod port;
pub mod restore;
pub mod rule;
pub mod service;

pub use compile::{Change, Desired, compile};
pub use diff::Op;
pub use names::{InvalidPrefix, Names};
pub use observed::Observed;
pub use rule::Rule;

use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// An address family; each has tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4: iptables.
    V4,
    /// IPv6: ip6tables.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A table of the packet filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Where destinations and sources are rewritten.
    Nat,
    /// Where packets are refused.
    Filter,
}

impl Table {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A table of one family: what a chain lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// Family.
    pub family: Family,
    /// Table.
    pub table: Table,
}

impl Space {
    /// Every one, in the order in which rules are written.
    pub const ALL: [Self; 4] = [
        Self::new(Family::V4, Table::Filter),
        Self::new(Family::V4, Table::Nat),
        Self::new(Family::V6, Table::Filter),
        Self::new(Family::V6, Table::Nat),
    ];

    /// Makes one.
    #[must_use]
    pub const fn new(family: Family, table: Table) -> Self {
        Self { family, table }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Family::V4 => f.write_str(self.table.name()),
            Family::V6 => write!(f, "{} (IPv6)", self.table.name()),
        }
    }
}

/// What compiling needs to know of the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name of the node: an endpoint with this node name is local.
    pub node_name: String,
    /// Addresses of the node; a NodePort is reached at each.
    pub node_ips: Vec<IpAddr>,
    /// Chain names.
    pub names: Names,
    /// Sources that are inside: the cluster's pods, or this node's. Others are masqueraded on their way to a ClusterIP.
    /// Empty = unknown, so nobody is.
    pub local_cidrs: Vec<IpNet>,
    /// Masquerade everything that goes to a ClusterIP.
    pub masquerade_all: bool,
    /// The kernel takes TCP packets outside the window for valid (`nf_conntrack_tcp_be_liberal`): then none is dropped as
    /// invalid, as kube-proxy does.
    pub tcp_be_liberal: bool,
}

impl NodeFacts {
    /// The inside range of a family, if known.
    #[must_use]
    pub fn local_cidr(&self, family: Family) -> Option<IpNet> {
        self.local_cidrs.iter().find(|cidr| Family::of(cidr.addr()) == family).copied()
    }
}
