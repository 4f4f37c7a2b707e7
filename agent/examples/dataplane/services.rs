//! The services that are measured: of one port and two endpoints each, with names as long as real ones are.

use fairlead_proto::v1::{Endpoint, EndpointPort, EndpointRef, NodeDelta, ServiceEndpoints, ServiceItem, ServicePort};
use fairlead_proto::view::{NamespacedName, NodeView};
use std::net::Ipv4Addr;

const NAMESPACE: &str = "shop";

fn name(index: u32) -> String {
    format!("checkout-{index}")
}

fn pod_name(address: &str) -> String {
    format!("checkout-7d9f8b6c5d-{address}")
}

/// A service's ClusterIP.
pub fn vip(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + index)
}

/// An endpoint's address.
pub fn address(index: u32, which: u32) -> Ipv4Addr {
    if index == 0 {
        Ipv4Addr::new(10, 244, 0, 2)
    } else {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 200, 0, 0).to_bits() + index * 2 + which)
    }
}

/// A service of one port.
pub fn item(index: u32) -> ServiceItem {
    ServiceItem {
        namespace: NAMESPACE.into(),
        name: name(index),
        r#type: "ClusterIP".into(),
        cluster_ips: vec![vip(index).to_string()],
        ports: vec![ServicePort { protocol: "TCP".into(), port: 80, ..ServicePort::default() }],
        ..ServiceItem::default()
    }
}

/// An endpoint.
pub fn endpoint(address: Ipv4Addr) -> Endpoint {
    Endpoint {
        address: address.to_string(),
        node_name: "node-17".into(),
        zone: "eu-west-1a".into(),
        pod_name: pod_name(&address.to_string()),
        ready: true,
        serving: true,
        ports: vec![EndpointPort { port: 8080, ..EndpointPort::default() }],
        ..Endpoint::default()
    }
}

/// A change of a service's endpoints.
fn change(index: u32, remove: Vec<EndpointRef>, upsert: Vec<Endpoint>) -> ServiceEndpoints {
    ServiceEndpoints { namespace: NAMESPACE.into(), service: name(index), remove, upsert }
}

/// Both endpoints of a service.
fn both(index: u32) -> ServiceEndpoints {
    change(index, Vec::new(), (0..2).map(|which| endpoint(address(index, which))).collect())
}

/// So many services with two endpoints each, as a full view.
pub fn all(size: u32) -> NodeDelta {
    NodeDelta {
        to: 1,
        upsert_services: (0..size).map(item).collect(),
        endpoints: (0..size).map(both).collect(),
        ..NodeDelta::default()
    }
}

/// One service more.
pub fn add(index: u32, revision: u64) -> NodeDelta {
    NodeDelta {
        from: Some(revision),
        to: revision + 1,
        upsert_services: vec![item(index)],
        endpoints: vec![both(index)],
        ..NodeDelta::default()
    }
}

/// One endpoint in another's place, in some service. No address comes twice.
pub fn replace(view: &NodeView, size: u32, round: u32) -> NodeDelta {
    let index = round.wrapping_mul(997) % (size - 1) + 1;
    let service = &view.services[&NamespacedName::new(NAMESPACE, name(index))];
    let old = service.endpoints.values().next().expect("an endpoint");
    let gone = EndpointRef { address: old.address, ..EndpointRef::default() };
    let new = Ipv4Addr::from_bits(Ipv4Addr::new(10, 245, 0, 0).to_bits() + round);
    NodeDelta {
        from: Some(view.revision),
        to: view.revision + 1,
        endpoints: vec![change(index, vec![gone], vec![endpoint(new)])],
        ..NodeDelta::default()
    }
}
