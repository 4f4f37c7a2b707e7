//! From a node's view to the rules its kernel should hold, and from what it holds to the steps between. Pure.
//!
//! `service` says what a service asks of any kernel, a [`Plane`] turns that into rules and a difference of rules into ops,
//! [`compile`] does so for a whole view. No IO, no clock, no randomness.

pub mod compile;
pub mod flows;
pub mod iptables;
pub mod ipvs;
pub mod nftables;
pub mod plane;
pub mod ramp;
pub mod release;
pub mod service;
pub mod trace;

pub use compile::{Change, Changes, Desired, Step, compile};
pub use iptables::{InvalidPrefix, IptablesPlane, Names};
pub use ipvs::IpvsPlane;
pub use nftables::NftablesPlane;
pub use plane::{Plane, Style};

use ipnet::IpNet;
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

/// What compiling needs to know of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Ranges that ClusterIPs come from; an address of one that no service has is dropped. Empty = not known yet.
    pub service_cidrs: Vec<IpNet>,
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
