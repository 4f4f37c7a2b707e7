//! Which endpoints a Service has. Pure.
//!
//! Law: the Endpoints record of a Service with a selector equals `derive(service, pods, nodes)` after every entry. A
//! pod gives at most one endpoint ([`endpoint`]), independent of all others, which is what makes a change cheap. The
//! rules are Kubernetes' endpoint slice controller's; a pod of a node whose pod network overlaps another's, or whose
//! address another node's pod has, is no endpoint at all: packets to it might reach the wrong pod.

use crate::machine::conflicts::{ADDRESS_CONFLICT, CIDR_CONFLICT};
use fairlead_proto::model::annotations;
use fairlead_proto::v1::{
    Condition, Container, Endpoint, EndpointPort, Endpoints, Node, ObjectMeta, Pod, Service, ServicePort, int_or_string,
};
use std::net::IpAddr;

/// Label of the records of headless services, as Kubernetes' controllers set it.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Label with a node's zone, as in Kubernetes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The whole record of a service: metadata has name, namespace and labels only.
pub fn derive<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a Pod>,
    nodes: impl Fn(&str) -> Option<&'a Node>,
) -> Endpoints {
    let mut endpoints: Vec<Endpoint> =
        pods.filter_map(|pod| endpoint(service, pod, node_of(pod).and_then(&nodes))).collect();
    sort(&mut endpoints);
    Endpoints { metadata: Some(metadata(service)), endpoints, derived: true, extra_json: String::new() }
}

/// True if the servers write this service's endpoints: it has a selector and isn't an ExternalName.
#[must_use]
pub fn is_derived(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| !spec.selector.is_empty() && spec.r#type != "ExternalName")
}

/// True if the service's selector matches a pod of its namespace.
#[must_use]
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let (Some(of), Some(pod)) = (&service.metadata, &pod.metadata) else {
        return false;
    };
    let selector = service.spec.as_ref().filter(|_| is_derived(service)).map(|spec| &spec.selector);
    of.namespace == pod.namespace
        && selector.is_some_and(|selector| selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value)))
}

/// What a pod contributes to a service; `node` is the pod's node if that exists. `None`: it is no endpoint.
#[must_use]
pub fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>) -> Option<Endpoint> {
    let publish = service.spec.as_ref().is_some_and(|spec| spec.publish_not_ready_addresses);
    let on_node = node_of(pod);
    if !selects(service, pod) || is_finished(pod) || (on_node.is_some() && node.is_none() && !publish) {
        return None;
    }
    let address = pod_address(pod)?;
    let at_node = node.is_some_and(|node| has_address(node, address));
    if has_condition(pod_conditions(pod), ADDRESS_CONFLICT) || (!at_node && node.is_some_and(is_conflicted)) {
        return None;
    }
    let metadata = pod.metadata.as_ref()?;
    let spec = pod.spec.as_ref();
    let service_metadata = service.metadata.as_ref()?;
    let serving = has_condition(pod_conditions(pod), "Ready");
    let terminating = !metadata.deletion_timestamp.is_empty() || node.is_some_and(is_draining);
    let named =
        spec.filter(|spec| spec.subdomain == service_metadata.name && metadata.namespace == service_metadata.namespace);
    let ports = service.spec.iter().flat_map(|spec| &spec.ports);
    Some(Endpoint {
        address: address.to_string(),
        node_name: on_node.unwrap_or_default().to_owned(),
        zone: node.and_then(|node| node.metadata.as_ref()?.labels.get(ZONE_LABEL).cloned()).unwrap_or_default(),
        hostname: named.map(|spec| spec.hostname.clone()).unwrap_or_default(),
        pod_name: metadata.name.clone(),
        pod_uid: metadata.uid.clone(),
        ready: publish || (serving && !terminating),
        serving,
        terminating,
        ports: ports.filter_map(|port| endpoint_port(port, pod, at_node)).collect(),
        weight: weight(metadata),
        lost: node.is_some_and(is_silent),
    })
}

/// A pod's share of new connections; `None` if it says nothing.
fn weight(metadata: &ObjectMeta) -> Option<u32> {
    annotations::parse_weight(metadata.annotations.get(annotations::WEIGHT)?)
}

/// The order of a record's endpoints.
pub(super) fn sort(endpoints: &mut [Endpoint]) {
    endpoints.sort_by(|one, other| (&one.address, &one.pod_name).cmp(&(&other.address, &other.pod_name)));
}

/// Metadata that a derived record takes from its service.
pub(super) fn metadata(service: &Service) -> ObjectMeta {
    let of = service.metadata.clone().unwrap_or_default();
    let mut labels = of.labels;
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip == "None") {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS_LABEL);
    }
    ObjectMeta { name: of.name, namespace: of.namespace, labels, ..ObjectMeta::default() }
}

/// The node that a pod is bound to, whether or not it exists.
#[must_use]
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().map(|spec| spec.node_name.as_str()).filter(|node| !node.is_empty())
}

/// Where a pod is reached; `None` if it has no address yet.
#[must_use]
pub fn pod_address(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let listed = std::iter::once(&status.pod_ip).chain(status.pod_ips.iter().map(|one| &one.ip));
    listed.filter_map(|text| text.parse().ok()).next()
}

/// The address that no pod of another node may have too: that of a live pod with a network of its own.
pub(super) fn claimed_address(pod: &Pod) -> Option<IpAddr> {
    let own_network = !pod.spec.as_ref().is_some_and(|spec| spec.host_network);
    pod_address(pod).filter(|_| own_network && node_of(pod).is_some() && !is_finished(pod))
}

/// The pod has run to its end.
pub fn is_finished(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"))
}

/// True if the condition is there with status True.
pub(super) fn has_condition(conditions: &[Condition], name: &str) -> bool {
    conditions.iter().any(|condition| condition.r#type == name && condition.status == "True")
}

fn pod_conditions(pod: &Pod) -> &[Condition] {
    pod.status.as_ref().map_or(&[], |status| &status.conditions)
}

/// The node's pod network overlaps another's.
pub(super) fn is_conflicted(node: &Node) -> bool {
    node.status.as_ref().is_some_and(|status| has_condition(&status.conditions, CIDR_CONFLICT))
}

/// The node's agent was not heard of for too long.
fn is_silent(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "Unknown")
}

/// Its pods are to get nothing new.
fn is_draining(node: &Node) -> bool {
    node.metadata.as_ref().is_some_and(|metadata| metadata.annotations.contains_key(annotations::DRAIN))
}

fn has_address(node: &Node, address: IpAddr) -> bool {
    let listed = node.status.iter().flat_map(|status| &status.addresses);
    listed.filter_map(|one| one.address.parse::<IpAddr>().ok()).any(|one| one == address)
}

/// `None`: a named port that the pod lacks.
fn endpoint_port(port: &ServicePort, pod: &Pod, at_node: bool) -> Option<EndpointPort> {
    let target = port.target_port.as_ref().and_then(|target| target.value.as_ref());
    let protocol = protocol(&port.protocol);
    let number = match target {
        Some(int_or_string::Value::Str(name)) if !name.is_empty() => {
            containers(pod)
                .flat_map(|one| &one.ports)
                .find(|one| one.name == *name && self::protocol(&one.protocol) == protocol)?
                .container_port
        }
        Some(int_or_string::Value::Int(number)) if *number != 0 => *number,
        _ => port.port,
    };
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network);
    let published = containers(pod)
        .flat_map(|one| &one.ports)
        .find(|one| one.container_port == number && self::protocol(&one.protocol) == protocol && one.host_port != 0)
        .filter(|_| at_node && !host_network);
    Some(EndpointPort {
        name: port.name.clone(),
        port: published.map_or(number, |one| one.host_port),
        protocol: protocol.to_owned(),
        app_protocol: port.app_protocol.clone(),
    })
}

/// Containers whose ports count: also init containers that keep running beside the others.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    let sidecars = spec.clone().flat_map(|spec| &spec.init_containers).filter(|one| one.restart_policy == "Always");
    spec.flat_map(|spec| &spec.containers).chain(sidecars)
}

fn protocol(written: &str) -> &str {
    if written.is_empty() { "TCP" } else { written }
}

/// True if two states of a node make no difference to any endpoint.
pub(super) fn same_for_endpoints(old: Option<&Node>, new: Option<&Node>) -> bool {
    let facts = |node: &Node| {
        let zone = node.metadata.as_ref().and_then(|metadata| metadata.labels.get(ZONE_LABEL).cloned());
        let addresses: Vec<String> =
            node.status.iter().flat_map(|status| &status.addresses).map(|one| one.address.clone()).collect();
        (zone, addresses, is_conflicted(node), is_silent(node), is_draining(node))
    };
    old.map(facts) == new.map(facts)
}
