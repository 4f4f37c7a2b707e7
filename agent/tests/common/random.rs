//! Random views, and the deltas between them.

use fairlead_proto::v1::{Endpoint, EndpointPort, EndpointRef, NodeDelta, ServiceEndpoints, ServiceItem, ServicePort};
use fairlead_proto::view::{NodeView, endpoint_id};
use proptest::prelude::*;

/// A service out of a few names and addresses, so that sequences meet the same ones again; None = not there.
pub fn any_service() -> impl Strategy<Value = (ServiceItem, Vec<Endpoint>)> {
    let kinds = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
    let flags = (any::<bool>(), any::<bool>(), prop::sample::select(vec![0_u32, 60]), any::<bool>());
    let ports = prop::collection::btree_map(0..3_usize, prop::sample::select(vec!["TCP", "UDP", "SCTP", "bad"]), 0..3);
    (0..4_u8, kinds, flags, ports, prop::collection::vec(any_endpoint(), 0..5), any::<bool>()).prop_map(
        |(index, kind, (internal_local, external_local, affinity_seconds, external), ports, endpoints, dual)| {
            let mut cluster_ips = vec![format!("10.96.0.{}", 10 + index)];
            if dual {
                cluster_ips.push(format!("fd00:96::{}", 10 + index));
            }
            let ports = ports.into_iter().map(|(at, protocol)| ServicePort {
                name: format!("p{at}"),
                protocol: protocol.into(),
                port: 80 + i32::try_from(at).unwrap(),
                node_port: 30_000 + i32::from(index) * 10 + i32::try_from(at).unwrap(),
                ..ServicePort::default()
            });
            let list = |ip: &str| {
                if external { vec![format!("{ip}{index}")] } else { Vec::new() }
            };
            let item = ServiceItem {
                namespace: "default".into(),
                name: format!("s{index}"),
                r#type: kind.into(),
                cluster_ips,
                ports: ports.collect(),
                external_ips: list("198.51.100.1"),
                load_balancer_ips: list("198.51.100.2"),
                load_balancer_source_ranges: if internal_local { list("192.0.2.") } else { Vec::new() },
                affinity_seconds,
                internal_local,
                external_local,
                ..ServiceItem::default()
            };
            (item, endpoints)
        },
    )
}

/// An endpoint out of a few, in any state.
pub fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let state = prop::sample::select(vec![
        (true, true, false),
        (false, true, true),
        (false, false, true),
        (false, false, false),
    ]);
    (0..6_u8, prop::sample::select(vec!["node1", "node2"]), state, any::<bool>()).prop_map(
        |(index, node, (ready, serving, terminating), six)| Endpoint {
            address: if six { format!("fd00:244::{index}") } else { format!("10.244.0.{index}") },
            node_name: node.into(),
            pod_name: format!("pod{index}"),
            ready,
            serving,
            terminating,
            ports: (0..3)
                .flat_map(|at| {
                    ["TCP", "UDP", "SCTP"].map(|protocol| EndpointPort {
                        name: format!("p{at}"),
                        port: 8080 + at,
                        protocol: protocol.into(),
                        app_protocol: None,
                    })
                })
                .collect(),
            ..Endpoint::default()
        },
    )
}

/// A view of a few such services.
pub fn any_view() -> impl Strategy<Value = NodeView> {
    prop::collection::vec(any_service(), 0..5).prop_map(|services| {
        // A name twice: the last one counts, as in an upsert; its endpoints are of all.
        super::view(&services)
    })
}

/// The delta between two views, as a server might send it.
pub fn between(old: &NodeView, new: &NodeView, (from, to): (u64, u64)) -> NodeDelta {
    let mut delta = NodeDelta { from: Some(from), to, ..NodeDelta::default() };
    delta.remove_services =
        old.services.keys().filter(|name| !new.services.contains_key(name)).map(ToString::to_string).collect();
    for (name, service) in &new.services {
        let before = old.services.get(name);
        if before == Some(service) {
            continue;
        }
        delta.upsert_services.push(service.item());
        let gone = before.into_iter().flat_map(|before| before.endpoints.values());
        let gone = gone.filter(|old| service.endpoints.get(&endpoint_id(old)).is_none());
        delta.endpoints.push(ServiceEndpoints {
            namespace: name.namespace.clone(),
            service: name.name.clone(),
            remove: gone
                .map(|old| EndpointRef { address: old.address, pod_name: old.pod_name, alive: false })
                .collect(),
            upsert: service.endpoints.values().collect(),
        });
    }
    delta
}
