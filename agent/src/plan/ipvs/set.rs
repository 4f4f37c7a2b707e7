//! The ipsets that the fixed rules look into, and their elements: what a service costs beside its virtual servers.
//!
//! INVARIANT: [`Set::named`] is the inverse of [`Set::name`]; what is neither is not ours and is never touched.

use crate::plan::Family;
use crate::plan::service::Protocol;
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// What every name of ours begins with: sets, and chains too.
pub const PREFIX: &str = "FAIRLEAD-";

/// A set; each family has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// ClusterIPs: ports of them that aren't served are refused.
    ClusterIps,
    /// External and load balancers' addresses that are local because of us; likewise.
    Addresses,
    /// Frontends with endpoints: let in, to be taken by IPVS.
    Served,
    /// Frontends without any endpoint: refused.
    Refused,
    /// Frontends that policy leaves without one: dropped.
    Dropped,
    /// Frontends without an endpoint for those outside.
    OutsideDropped,
    /// Frontends that reach this node's endpoints only if the client is outside: the mark of their other virtual server.
    Local,
    /// Frontends whose clients are masqueraded.
    Masquerade,
    /// Frontends that admit some sources only.
    Guarded,
    /// Which ones.
    Admitted,
    /// Endpoints, twice: a pod that reaches itself.
    Hairpin,
    /// Ports at which load balancers ask for this node's endpoints.
    Health,
}

impl Set {
    /// All.
    pub const ALL: [Self; 12] = [
        Self::ClusterIps,
        Self::Addresses,
        Self::Served,
        Self::Refused,
        Self::Dropped,
        Self::OutsideDropped,
        Self::Local,
        Self::Masquerade,
        Self::Guarded,
        Self::Admitted,
        Self::Hairpin,
        Self::Health,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::ClusterIps => "CLUSTER-IPS",
            Self::Addresses => "ADDRESSES",
            Self::Served => "SERVED",
            Self::Refused => "REFUSED",
            Self::Dropped => "DROPPED",
            Self::OutsideDropped => "OUTSIDE-DROPPED",
            Self::Local => "LOCAL",
            Self::Masquerade => "MASQUERADE",
            Self::Guarded => "GUARDED",
            Self::Admitted => "ADMITTED",
            Self::Hairpin => "HAIRPIN",
            Self::Health => "HEALTH",
        }
    }

    /// Its name: at most the kernel's 31 characters.
    #[must_use]
    pub fn name(self, family: Family) -> String {
        match family {
            Family::V4 => format!("{PREFIX}{}", self.word()),
            Family::V6 => format!("{PREFIX}6-{}", self.word()),
        }
    }

    /// The set of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<(Family, Self)> {
        let rest = name.strip_prefix(PREFIX)?;
        let (family, word) = rest.strip_prefix("6-").map_or((Family::V4, rest), |word| (Family::V6, word));
        Self::ALL.into_iter().find(|set| set.word() == word).map(|set| (family, set))
    }

    /// The kernel's type.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::ClusterIps | Self::Addresses => "hash:ip",
            Self::Admitted => "hash:ip,port,net",
            Self::Hairpin => "hash:ip,port,ip",
            _ => "hash:ip,port",
        }
    }

    /// Its elements carry a packet mark.
    #[must_use]
    pub fn has_marks(self) -> bool {
        self == Self::Local
    }
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// An address.
    Ip(IpAddr),
    /// An address and a port.
    Port(IpAddr, Protocol, u16),
    /// With another address.
    PortIp(IpAddr, Protocol, u16, IpAddr),
    /// With a network.
    PortNet(IpAddr, Protocol, u16, IpNet),
}

impl Element {
    /// Its first address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Ip(ip) | Self::Port(ip, ..) | Self::PortIp(ip, ..) | Self::PortNet(ip, ..) => *ip,
        }
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.ip())
    }

    /// The address and port that it is about, if it has a port.
    #[must_use]
    pub fn frontend(&self) -> Option<(IpAddr, Protocol, u16)> {
        match self {
            Self::Ip(_) => None,
            Self::Port(ip, protocol, port)
            | Self::PortIp(ip, protocol, port, _)
            | Self::PortNet(ip, protocol, port, _) => Some((*ip, *protocol, *port)),
        }
    }
}

impl fmt::Display for Element {
    /// As `ipset` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Port(ip, protocol, port) => write!(f, "{ip},{}:{port}", protocol.name()),
            Self::PortIp(ip, protocol, port, other) => write!(f, "{ip},{}:{port},{other}", protocol.name()),
            Self::PortNet(ip, protocol, port, net) => write!(f, "{ip},{}:{port},{net}", protocol.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_read_back() {
        for set in Set::ALL {
            for family in Family::ALL {
                let name = set.name(family);
                assert!(name.len() <= 31, "{name}");
                assert_eq!(Set::named(&name), Some((family, set)));
            }
        }
        for foreign in ["KUBE-CLUSTER-IP", "FAIRLEAD", "FAIRLEAD-", "FAIRLEAD-6-", "FAIRLEAD-OTHER", "SERVED"] {
            assert_eq!(Set::named(foreign), None, "{foreign}");
        }
    }
}
