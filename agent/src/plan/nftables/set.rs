//! The sets and maps of a table, their names and types, and how keys and data are laid out in the kernel.
//!
//! A key is its parts, each padded to four bytes: addresses and ports in network order, numbers in the host's.

use crate::plan::Family;
use crate::plan::service::Protocol;
use ipnet::IpNet;
use smallvec::SmallVec;
use std::net::{IpAddr, SocketAddr};

/// Bits of a pool's word that are its id; the others are its class.
pub const POOL_MASK: u32 = 0x000f_ffff;
/// Where the class begins.
pub const CLASS_SHIFT: u32 = 20;
/// Greatest class; class 0 is none.
pub const MOST_CLASSES: u16 = 0xfff;

/// A set or a map of one family's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// (pool, slot) → endpoint, for pools of a protocol.
    Endpoints(Protocol),
    /// Pool → class and pool.
    Pools,
    /// Pools whose clients stay with their endpoint for so many seconds.
    Sticky(u32),
    /// (endpoint, endpoint): a pod that reaches itself.
    Hairpins,
    /// Addresses of which only the served ports exist.
    ClusterIps,
    /// (address, protocol, port) from outside that is masqueraded.
    Masqueraded,
    /// The same for NodePorts: (protocol, port).
    MasqueradedNodePorts,
    /// (address, protocol, port) that stays on this node: masqueraded if the node itself asks.
    LocalPolicy,
    /// The same for NodePorts.
    LocalPolicyNodePorts,
    /// (address, protocol, port, source network) that source ranges admit, by prefix length.
    Ranges(u8),
    /// The same for NodePorts.
    NodePortRanges(u8),
    /// (address, protocol, port) that only some sources may reach.
    Guarded,
    /// The same for NodePorts.
    GuardedNodePorts,
    /// (address, protocol, port) → pool.
    Frontends,
    /// (protocol, port) → pool.
    NodePorts,
    /// (address, protocol, port) → pool for sources outside of the cluster.
    Outside,
    /// (protocol, port) → pool for sources outside of the cluster.
    OutsideNodePorts,
    /// (address, protocol, port) without an endpoint.
    Rejected,
    /// The same for NodePorts.
    RejectedNodePorts,
    /// (address, protocol, port) whose policy finds no endpoint here.
    Dropped,
    /// The same for NodePorts.
    DroppedNodePorts,
}

impl Set {
    /// Those that are there from the beginning, in the order in which elements are added: what attracts traffic last.
    pub const FIXED: [Self; 20] = [
        Self::Endpoints(Protocol::Tcp),
        Self::Endpoints(Protocol::Udp),
        Self::Endpoints(Protocol::Sctp),
        Self::Pools,
        Self::Hairpins,
        Self::ClusterIps,
        Self::Masqueraded,
        Self::MasqueradedNodePorts,
        Self::LocalPolicy,
        Self::LocalPolicyNodePorts,
        Self::Guarded,
        Self::GuardedNodePorts,
        Self::Frontends,
        Self::NodePorts,
        Self::Outside,
        Self::OutsideNodePorts,
        Self::Rejected,
        Self::RejectedNodePorts,
        Self::Dropped,
        Self::DroppedNodePorts,
    ];

    /// Its name in the kernel.
    #[must_use]
    pub fn name(self) -> String {
        let fixed = match self {
            Self::Endpoints(Protocol::Tcp) => "endpoints-tcp",
            Self::Endpoints(Protocol::Udp) => "endpoints-udp",
            Self::Endpoints(Protocol::Sctp) => "endpoints-sctp",
            Self::Pools => "pools",
            Self::Hairpins => "hairpins",
            Self::ClusterIps => "cluster-ips",
            Self::Masqueraded => "masqueraded",
            Self::MasqueradedNodePorts => "masqueraded-node-ports",
            Self::LocalPolicy => "local-policy",
            Self::LocalPolicyNodePorts => "local-policy-node-ports",
            Self::Guarded => "guarded",
            Self::GuardedNodePorts => "guarded-node-ports",
            Self::Frontends => "frontends",
            Self::NodePorts => "node-ports",
            Self::Outside => "outside",
            Self::OutsideNodePorts => "outside-node-ports",
            Self::Rejected => "rejected",
            Self::RejectedNodePorts => "rejected-node-ports",
            Self::Dropped => "dropped",
            Self::DroppedNodePorts => "dropped-node-ports",
            Self::Sticky(seconds) => return format!("sticky-{seconds}"),
            Self::Ranges(length) => return format!("ranges-{length}"),
            Self::NodePortRanges(length) => return format!("node-port-ranges-{length}"),
        };
        fixed.to_owned()
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let number = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.parse::<u32>().ok());
        let length = |prefix: &str| number(prefix).and_then(|number| u8::try_from(number).ok());
        let fixed = Self::FIXED.into_iter().find(|set| set.name() == name);
        fixed
            .or_else(|| number("sticky-").map(Self::Sticky))
            .or_else(|| length("ranges-").map(Self::Ranges))
            .or_else(|| length("node-port-ranges-").map(Self::NodePortRanges))
    }

    /// True if its elements have data.
    #[must_use]
    pub fn is_map(self) -> bool {
        matches!(
            self,
            Self::Endpoints(_)
                | Self::Pools
                | Self::Frontends
                | Self::NodePorts
                | Self::Outside
                | Self::OutsideNodePorts
        )
    }

    /// What carries traffic outlives what attracts it: these are removed in a transaction of their own, after the others.
    #[must_use]
    pub fn is_removed_last(self) -> bool {
        matches!(self, Self::Endpoints(_) | Self::Pools | Self::Hairpins)
    }

    /// Its type, as `nft` lists it.
    #[must_use]
    pub fn declaration(self, family: Family) -> Vec<String> {
        let address = address_type(family);
        let frontend = format!("{address} . inet_proto . inet_service");
        let kind = match self {
            // One a protocol: `nft` 1.0.6 takes a rule with a map of `th dport`s only in the transaction that makes the map.
            Self::Endpoints(protocol) => format!(
                "typeof meta priority . numgen random mod 65536 : {} daddr . {} dport",
                family_name(family),
                protocol.name()
            ),
            Self::Pools => "type classid : classid".to_owned(),
            Self::Sticky(_) => "type classid".to_owned(),
            Self::Hairpins => format!("type {address} . {address}"),
            Self::ClusterIps => format!("type {address}"),
            Self::Frontends | Self::Outside => format!("type {frontend} : classid"),
            Self::NodePorts | Self::OutsideNodePorts => "type inet_proto . inet_service : classid".to_owned(),
            Self::Ranges(_) => format!("type {frontend} . {address}"),
            Self::NodePortRanges(_) => format!("type inet_proto . inet_service . {address}"),
            Self::Masqueraded | Self::LocalPolicy | Self::Guarded | Self::Rejected | Self::Dropped => {
                format!("type {frontend}")
            }
            Self::MasqueradedNodePorts
            | Self::LocalPolicyNodePorts
            | Self::GuardedNodePorts
            | Self::RejectedNodePorts
            | Self::DroppedNodePorts => "type inet_proto . inet_service".to_owned(),
        };
        vec![kind]
    }
}

/// A family as `nft` calls it.
#[must_use]
pub fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The type of an address.
#[must_use]
pub fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// IANA's number of a protocol.
#[must_use]
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Key or data of an element, as the kernel has it. Those of IPv4 need no allocation.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(SmallVec<[u8; 16]>);

impl Clone for Bytes {
    fn clone(&self) -> Self {
        // The derived one copies byte by byte.
        Self::copy(&self.0)
    }
}

impl Bytes {
    /// Nothing: the data of an element that has none.
    pub const NONE: Self = Self(SmallVec::new_const());

    /// [`Bytes::NONE`].
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// As read from the kernel.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        let mut padded = Self::copy(bytes);
        padded.0.resize(bytes.len().next_multiple_of(4), 0);
        padded
    }

    /// A number.
    #[must_use]
    pub fn number(value: u32) -> Self {
        Self::copy(&value.to_ne_bytes())
    }

    /// (pool, slot).
    #[must_use]
    pub fn slot(pool: u32, slot: u32) -> Self {
        Self::number(pool).and(&Self::number(slot))
    }

    /// An address.
    #[must_use]
    pub fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::copy(&address.octets()),
            IpAddr::V6(address) => Self::copy(&address.octets()),
        }
    }

    /// (protocol, port).
    #[must_use]
    pub fn node_port(protocol: Protocol, port: u16) -> Self {
        Self::copy(&[protocol_number(protocol), 0, 0, 0]).and(&Self::port(port))
    }

    /// (address, protocol, port).
    #[must_use]
    pub fn frontend(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        Self::address(address).and(&Self::node_port(protocol, port))
    }

    /// (address, port).
    #[must_use]
    pub fn endpoint(endpoint: SocketAddr) -> Self {
        Self::address(endpoint.ip()).and(&Self::port(endpoint.port()))
    }

    /// Followed by a network's address.
    #[must_use]
    pub fn from_net(&self, net: IpNet) -> Self {
        self.clone().and(&Self::address(net.network()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The number that begins at a byte.
    #[must_use]
    pub fn number_at(&self, at: usize) -> Option<u32> {
        let bytes: [u8; 4] = self.0.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    /// The endpoint that it is.
    #[must_use]
    pub fn to_endpoint(&self, family: Family) -> Option<SocketAddr> {
        let length = address_bytes(family);
        let port = self.0.get(length..length + 2)?;
        Some(SocketAddr::new(self.to_address(family, 0)?, u16::from_be_bytes([port[0], port[1]])))
    }

    /// The address that begins at a byte.
    #[must_use]
    pub fn to_address(&self, family: Family, at: usize) -> Option<IpAddr> {
        let bytes = self.0.get(at..at + address_bytes(family))?;
        match family {
            Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    }

    fn port(port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        Self::copy(&[high, low, 0, 0])
    }

    fn copy(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }

    fn and(mut self, more: &Self) -> Self {
        self.0.extend_from_slice(&more.0);
        self
    }
}

fn address_bytes(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_found_by_its_name() {
        let all = Set::FIXED.into_iter().chain([Set::Sticky(10_800), Set::Ranges(24), Set::NodePortRanges(0)]);
        for set in all {
            assert_eq!(Set::named(&set.name()), Some(set));
        }
        assert_eq!(Set::named("picks"), None);
        assert_eq!(Set::named("ranges-999"), None);
    }

    #[test]
    fn keys_are_padded_and_in_the_right_order_of_bytes() {
        let key = Bytes::frontend("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80);
        assert_eq!(key.as_slice(), [10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0]);
        let endpoint: SocketAddr = "10.244.1.2:8080".parse().unwrap();
        assert_eq!(Bytes::read(&[10, 244, 1, 2, 0x1f, 0x90]).to_endpoint(Family::V4), Some(endpoint));
        assert_eq!(Bytes::slot(7, 1).number_at(4), Some(1));
        let six: SocketAddr = "[fd00::1]:53".parse().unwrap();
        assert_eq!(Bytes::endpoint(six).to_endpoint(Family::V6), Some(six));
        assert_eq!(Bytes::endpoint(six).to_endpoint(Family::V4).map(|e| e.port()), Some(0));
    }
}
