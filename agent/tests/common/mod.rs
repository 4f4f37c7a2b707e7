//! What several tests need: views of services made in a line each, and facts of a node.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "each test uses a part; tests fail by panicking")]

pub mod agent;
pub mod ask;
pub mod cases;
pub mod guest;
pub mod moody;
pub mod net;
pub mod programmed;
pub mod random;
pub mod server;
pub mod traced;

use fairlead_agent::plan::{Desired, IptablesPlane, IpvsPlane, Names, NodeFacts, compile};
use fairlead_proto::v1::{
    Endpoint, EndpointPort, EndpointRef, NodeDelta, NodeItem, ServiceEndpoints, ServiceItem, ServicePort,
};
use fairlead_proto::view::NodeView;

/// Facts of a node whose pods are 10.244.0.0/16.
pub fn facts(node: &str) -> NodeFacts {
    NodeFacts {
        node_name: node.into(),
        node_ips: vec!["10.0.0.11".parse().unwrap()],
        names: Names::new("KUBE").unwrap(),
        local_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()],
        masquerade_all: false,
        tcp_be_liberal: false,
    }
}

/// `name` in namespace `default`, with ports like "80/TCP", "http:80/TCP" or "http:80:30080/TCP".
pub fn service(name: &str, ip: &str, ports: &[&str]) -> ServiceItem {
    ServiceItem {
        namespace: "default".into(),
        name: name.into(),
        r#type: "ClusterIP".into(),
        cluster_ips: vec![ip.into()],
        ports: ports.iter().map(|text| port(text)).collect(),
        ..ServiceItem::default()
    }
}

fn port(text: &str) -> ServicePort {
    let (numbers, protocol) = text.split_once('/').unwrap();
    let parts: Vec<&str> = numbers.split(':').collect();
    let (name, port, node_port) = match parts[..] {
        [port] => ("", port, "0"),
        [name, port] => (name, port, "0"),
        [name, port, node_port] => (name, port, node_port),
        _ => panic!("{text}"),
    };
    ServicePort {
        name: name.into(),
        protocol: protocol.into(),
        port: port.parse().unwrap(),
        node_port: node_port.parse().unwrap(),
        ..ServicePort::default()
    }
}

/// A ready endpoint on a node, serving "name:port/protocol"s.
pub fn endpoint(address: &str, node: &str, ports: &[&str]) -> Endpoint {
    Endpoint {
        address: address.into(),
        node_name: node.into(),
        pod_name: format!("pod-{address}"),
        ready: true,
        serving: true,
        ports: ports
            .iter()
            .map(|text| {
                let port = port(text);
                EndpointPort { name: port.name, port: port.port, protocol: port.protocol, app_protocol: None }
            })
            .collect(),
        ..Endpoint::default()
    }
}

/// A whole view as one delta.
pub fn full(revision: u64, services: &[(ServiceItem, Vec<Endpoint>)]) -> NodeDelta {
    let group = |(service, endpoints): &(ServiceItem, Vec<Endpoint>)| ServiceEndpoints {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        remove: Vec::new(),
        upsert: endpoints.clone(),
    };
    NodeDelta {
        to: revision,
        upsert_services: services.iter().map(|(service, _)| service.clone()).collect(),
        endpoints: services.iter().map(group).collect(),
        upsert_nodes: vec![NodeItem { name: "node1".into(), zone: "a".into(), ..NodeItem::default() }],
        ..NodeDelta::default()
    }
}

/// What becomes of endpoints of a service in namespace default.
pub fn changed(service: &str, remove: &[EndpointRef], upsert: &[Endpoint]) -> Vec<ServiceEndpoints> {
    vec![ServiceEndpoints {
        namespace: "default".into(),
        service: service.into(),
        remove: remove.to_vec(),
        upsert: upsert.to_vec(),
    }]
}

/// A view's rules for iptables.
pub fn iptables(view: &NodeView, facts: &NodeFacts) -> Desired<IptablesPlane> {
    compile(view, facts)
}

/// Rules of services for IPVS, on the contract's node.
pub fn compile_ipvs(services: &[(ServiceItem, Vec<Endpoint>)]) -> Desired<IpvsPlane> {
    compile(&view(services), &cases::node())
}

/// A view of services with their endpoints.
pub fn view(services: &[(ServiceItem, Vec<Endpoint>)]) -> NodeView {
    let mut view = NodeView::default();
    view.fold(&full(1, services)).unwrap();
    view
}
