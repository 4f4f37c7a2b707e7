//! What a node needs of each object: the part of it that its view holds. Pure.

use crate::machine::derive::ZONE_LABEL;
use fairlead_proto::model::annotations;
use fairlead_proto::v1::{
    Condition, Endpoint, EndpointPort, Node, NodeItem, ObjectMeta, Pod, PodStatus, Service, ServiceItem,
};

/// Services with this label are another proxy's business (Kubernetes' `service.kubernetes.io/service-proxy-name`).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// What a node's rules need of an endpoint: every node keeps, and is sent, every endpoint.
#[must_use]
pub fn node_endpoint(endpoint: &Endpoint) -> Endpoint {
    let port = |port: &EndpointPort| EndpointPort {
        name: port.name.clone(),
        port: port.port,
        // Most ports', and what an empty one means.
        protocol: if port.protocol == "TCP" { String::new() } else { port.protocol.clone() },
        app_protocol: None,
    };
    Endpoint {
        address: endpoint.address.clone(),
        node_name: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        hostname: String::new(),
        pod_name: endpoint.pod_name.clone(),
        pod_uid: String::new(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        ports: endpoint.ports.iter().map(port).collect(),
        weight: endpoint.weight,
        lost: endpoint.lost,
    }
}

/// What a node's rules need of a service; `None` if no node programs it (headless, ExternalName, another proxy's).
#[must_use]
pub fn service_item(service: &Service) -> Option<ServiceItem> {
    let metadata = service.metadata.as_ref()?;
    let spec = service.spec.as_ref()?;
    if spec.r#type == "ExternalName" || metadata.labels.contains_key(PROXY_NAME_LABEL) {
        return None;
    }
    let cluster_ips: Vec<String> =
        if spec.cluster_ips.is_empty() { vec![spec.cluster_ip.clone()] } else { spec.cluster_ips.clone() };
    if cluster_ips.iter().any(|ip| ip.is_empty() || ip == "None") {
        return None;
    }
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let affinity = if spec.session_affinity == "ClientIP" {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config.and_then(|config| config.timeout_seconds).map_or(10_800, i32::unsigned_abs)
    } else {
        0
    };
    Some(ServiceItem {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        r#type: spec.r#type.clone(),
        cluster_ips,
        ports: spec.ports.clone(),
        external_ips: spec.external_ips.clone(),
        load_balancer_ips: ingress
            .map(|status| {
                status
                    .ingress
                    .iter()
                    .filter(|one| !one.ip.is_empty() && one.ip_mode.as_deref() != Some("Proxy"))
                    .map(|one| one.ip.clone())
                    .collect()
            })
            .unwrap_or_default(),
        load_balancer_source_ranges: spec.load_balancer_source_ranges.clone(),
        affinity_seconds: affinity,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy == "Local",
        health_check_node_port: spec.health_check_node_port.unsigned_abs(),
        traffic_distribution: spec.traffic_distribution.clone().unwrap_or_default(),
        annotations: metadata
            .annotations
            .iter()
            .filter(|(key, _)| key.starts_with(annotations::DOMAIN))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    })
}

/// What a node's agent needs of a pod of its own: enough to probe it, and the Ready status that the cluster believes.
#[must_use]
pub fn pod_item(pod: &Pod) -> Pod {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready");
    Pod {
        metadata: Some(ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            labels: metadata.labels,
            deletion_timestamp: metadata.deletion_timestamp,
            deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
            ..ObjectMeta::default()
        }),
        spec: pod.spec.clone(),
        status: Some(PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            conditions: ready
                .map(|condition| Condition {
                    r#type: condition.r#type.clone(),
                    status: condition.status.clone(),
                    ..Condition::default()
                })
                .into_iter()
                .collect(),
            ..PodStatus::default()
        }),
        extra_json: String::new(),
    }
}

/// What nodes need of one another.
#[must_use]
pub fn node_item(node: &Node) -> NodeItem {
    let metadata = node.metadata.as_ref();
    NodeItem {
        name: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
        addresses: node
            .status
            .as_ref()
            .map(|status| {
                status.addresses.iter().filter(|one| one.r#type != "Hostname").map(|one| one.address.clone()).collect()
            })
            .unwrap_or_default(),
        zone: metadata.and_then(|metadata| metadata.labels.get(ZONE_LABEL).cloned()).unwrap_or_default(),
        pod_cidr: node.spec.as_ref().map(|spec| spec.pod_cidr.clone()).unwrap_or_default(),
    }
}
