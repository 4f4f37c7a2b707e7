//! What stands behind the names of one service: its ClusterIPs, or its ready endpoints with names of their own. Pure.
//!
//! INVARIANT: an endpoint that is not ready (`Endpoint::ready` counts publishNotReadyAddresses) is nowhere in here.

use crate::dns::zone::Zone;
use crate::machine::State;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{Endpoint, Kind, ServiceSpec};
use hickory_proto::rr::Name;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

/// An address that serves ports, and the name that stands for the address.
pub(super) struct Backend {
    pub name: Name,
    pub address: IpAddr,
    pub ports: Vec<NamedPort>,
}

/// A port of a backend.
#[derive(Clone)]
pub(super) struct NamedPort {
    /// Empty = without a name.
    pub name: String,
    /// Kubernetes' name of it.
    pub protocol: String,
    pub port: u16,
}

impl NamedPort {
    fn new(name: &str, protocol: &str, port: i32) -> Option<Self> {
        let protocol = if protocol.is_empty() { "TCP" } else { protocol };
        Some(Self { name: name.to_ascii_lowercase(), protocol: protocol.to_owned(), port: u16::try_from(port).ok()? })
    }
}

/// Which ports of a service are asked about.
#[derive(Clone, Copy)]
pub(super) struct Port<'a> {
    pub protocol: &'a str,
    /// `None` = any that has a name.
    pub name: Option<&'a str>,
}

impl Port<'_> {
    /// Unnamed ports have no SRV names.
    fn is(self, port: &NamedPort) -> bool {
        port.protocol == self.protocol && !port.name.is_empty() && self.name.is_none_or(|name| name == port.name)
    }
}

/// One service, and what may stand behind its names.
#[derive(Clone, Copy)]
pub(super) struct Behind<'a> {
    zone: &'a Zone,
    key: &'a Key,
    /// The service as specified.
    pub spec: &'a ServiceSpec,
    endpoints: &'a [Endpoint],
}

impl<'a> Behind<'a> {
    /// The service; `None` = there is none.
    pub fn find(zone: &'a Zone, state: &'a State, key: &'a Key) -> Option<Self> {
        let spec = state.get(key)?.as_service()?.spec.as_ref()?;
        let record = Key::new(Kind::Endpoints, &*key.namespace, &*key.name);
        let record = state.get(&record).and_then(|object| object.as_endpoints());
        let endpoints = record.map_or(&[][..], |record| &record.endpoints);
        Some(Self { zone, key, spec, endpoints })
    }

    /// Its names stand for its endpoints rather than for a ClusterIP.
    pub fn is_headless(self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Its name is another's.
    pub fn is_alias(self) -> bool {
        self.spec.r#type == "ExternalName"
    }

    /// What its own name stands for: its ClusterIPs, or the ready endpoints of a headless one.
    pub fn addresses(self) -> BTreeSet<IpAddr> {
        if self.is_headless() {
            return self.ready().map(|(_, address)| address).collect();
        }
        let one = &self.spec.cluster_ip;
        let listed = self.spec.cluster_ips.iter();
        let listed = listed.chain(self.spec.cluster_ips.is_empty().then_some(one));
        listed.filter_map(|address| address.parse().ok()).collect()
    }

    /// The same with names and ports.
    pub fn backends(self) -> Vec<Backend> {
        if self.is_headless() {
            return self.ready().map(|(endpoint, at)| self.backend(endpoint, at)).collect();
        }
        let ports = self.spec.ports.iter();
        let ports = ports.filter_map(|port| NamedPort::new(&port.name, &port.protocol, port.port));
        let ports: Vec<NamedPort> = ports.collect();
        let backend = |address| Backend { name: self.zone.service(self.key), address, ports: ports.clone() };
        self.addresses().into_iter().map(backend).collect()
    }

    /// The backends that have such a port, each with only these.
    pub fn backends_with(self, port: Port<'_>) -> Vec<Backend> {
        let mut backends = if self.is_alias() { Vec::new() } else { self.backends() };
        for backend in &mut backends {
            backend.ports.retain(|found| port.is(found));
        }
        backends.retain(|backend| !backend.ports.is_empty());
        backends
    }

    /// The ready endpoints that a label names.
    pub fn named(self, label: &str) -> Vec<Backend> {
        if self.is_alias() {
            return Vec::new();
        }
        let address = dashed_address(label);
        let named = self.ready().filter(|(endpoint, at)| match endpoint.hostname.as_str() {
            "" => Some(*at) == address && dashed(*at) == label,
            hostname => hostname.eq_ignore_ascii_case(label),
        });
        named.map(|(endpoint, at)| self.backend(endpoint, at)).collect()
    }

    fn ready(self) -> impl Iterator<Item = (&'a Endpoint, IpAddr)> {
        let ready = self.endpoints.iter().filter(|endpoint| endpoint.ready);
        ready.filter_map(|endpoint| Some((endpoint, endpoint.address.parse().ok()?)))
    }

    fn backend(self, endpoint: &Endpoint, address: IpAddr) -> Backend {
        let label = match endpoint.hostname.as_str() {
            "" => dashed(address),
            hostname => hostname.to_ascii_lowercase(),
        };
        let ports = endpoint.ports.iter();
        let ports = ports.filter_map(|port| NamedPort::new(&port.name, &port.protocol, port.port));
        Backend { name: self.zone.endpoint(self.key, &label), address, ports: ports.collect() }
    }
}

/// The name of an endpoint without a host name: its address with dashes. A label may not end in one.
fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address that a dashed label may stand for.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().ok();
    v4.or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes() {
        for (address, expect) in
            [("10.0.0.1", "10-0-0-1"), ("5678:abcd::1", "5678-abcd--1"), ("fd00::", "fd00--0"), ("::1", "--1")]
        {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(dashed(address), expect);
            assert_eq!(dashed_address(expect), Some(address));
        }
        assert_eq!(dashed_address("web-0"), None);
    }
}
