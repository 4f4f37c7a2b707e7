//! Completing a Service: what an update leaves out is carried over, families are filled in, ClusterIPs and NodePorts
//! are allocated. In Kubernetes these are several writes and a repair loop; here they are one entry, so that an
//! address is never held by nobody or by two.
//!
//! Pools are only read here: `State::replace` takes what the completed object holds and frees what the old one held.

use crate::machine::allocate::{Pool, seed};
use crate::machine::state::{cluster_addresses, node_ports};
use crate::machine::{State, families, outcome};
use fairlead_proto::internal::v1::Rejection;
use fairlead_proto::model::{Invalid, Key, Shown};
use fairlead_proto::v1::{FieldProblem, Service, ServiceSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const PORT_TAKEN: &str = "provided port is already allocated";

/// Why a service can't be completed.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    Invalid(Vec<Invalid>),
    /// A pool is full: message, and the field with what to do.
    Exhausted(String, FieldProblem),
}

impl Refused {
    /// The rejection of a write of this service.
    pub(super) fn about(self, key: &Key) -> Rejection {
        match self {
            Self::Invalid(problems) => outcome::invalid(key, &problems),
            Self::Exhausted(message, hint) => outcome::exhausted(key, &message, hint),
        }
    }
}

/// Copies allocated values that an update omits and its type still needs, and drops those that its type has no use
/// for, unless the update changes them too (Kubernetes' `patchAllocatedValues`, `dropTypeDependentFields`).
pub(super) fn carry_over(new: &mut Service, old: &Service) {
    let (Some(old), Some(spec)) = (&old.spec, &mut new.spec) else {
        return;
    };
    if needs_address(old) && needs_address(spec) {
        carry_addresses(spec, old);
    }
    if needs_node_ports(old) && needs_node_ports(spec) {
        carry_node_ports(spec, old);
    }
    if needs_health_port(old) && needs_health_port(spec) && spec.health_check_node_port == 0 {
        spec.health_check_node_port = old.health_check_node_port;
    }
    drop_unneeded(spec, old);
    if spec.r#type != "LoadBalancer"
        && let Some(status) = &mut new.status
    {
        status.load_balancer = None;
    }
}

/// Fills in families and allocates what the service needs and hasn't got. `old` is the service as it is, whose
/// addresses and ports are its own to keep.
pub(super) fn complete(state: &State, service: &mut Service, old: Option<&Service>) -> Result<(), Refused> {
    let uid = service.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
    let name = service
        .metadata
        .as_ref()
        .map(|metadata| format!("{}/{}", metadata.namespace, metadata.name))
        .unwrap_or_default();
    let spec = service.spec.get_or_insert_default();
    if spec.r#type.is_empty() {
        spec.r#type = "ClusterIP".to_owned();
    }
    if needs_address(spec) {
        if spec.cluster_ips.is_empty() && !spec.cluster_ip.is_empty() {
            spec.cluster_ips = vec![spec.cluster_ip.clone()];
        }
        families::fill(state, spec, old.and_then(|old| old.spec.as_ref())).map_err(Refused::Invalid)?;
    }
    let identity = [uid.as_str(), name.as_str()];
    let mut problems = Vec::new();
    let mut exhausted = None;
    let own: BTreeSet<IpAddr> = old.map(cluster_addresses).unwrap_or_default().into_iter().collect();
    match allocate_addresses(state, (spec, &own), identity) {
        Err(Refused::Invalid(found)) => problems.extend(found),
        Err(full) => exhausted = Some(full),
        Ok(()) => {}
    }
    match allocate_ports(state, (spec, old.map(node_ports).unwrap_or_default()), identity) {
        Err(Refused::Invalid(found)) => problems.extend(found),
        Err(full) => exhausted = exhausted.or(Some(full)),
        Ok(()) => {}
    }
    if !problems.is_empty() {
        return Err(Refused::Invalid(problems));
    }
    exhausted.map_or(Ok(()), Err)
}

fn needs_address(spec: &ServiceSpec) -> bool {
    spec.r#type != "ExternalName"
}

fn needs_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.r#type.as_str(), "NodePort" | "LoadBalancer")
}

/// A load balancer may do without node ports; ones asked for by number it gets all the same.
fn allocates_node_ports(spec: &ServiceSpec) -> bool {
    needs_node_ports(spec) && (spec.r#type == "NodePort" || spec.allocate_load_balancer_node_ports != Some(false))
}

fn needs_health_port(spec: &ServiceSpec) -> bool {
    spec.r#type == "LoadBalancer" && spec.external_traffic_policy == "Local"
}

/// No address is wanted: its pods are found by name.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip == "None" || spec.cluster_ips.first().is_some_and(|first| first == "None")
}

fn carry_addresses(spec: &mut ServiceSpec, old: &ServiceSpec) {
    // Whoever changed only the singular field meant the first of the plural one too, and the other way round.
    if spec.cluster_ip != old.cluster_ip && spec.cluster_ips == old.cluster_ips && !spec.cluster_ip.is_empty() {
        spec.cluster_ips = vec![spec.cluster_ip.clone()];
    }
    if spec.cluster_ip.is_empty() {
        spec.cluster_ip = spec.cluster_ips.first().unwrap_or(&old.cluster_ip).clone();
    }
    if spec.cluster_ips.is_empty() && spec.cluster_ip == old.cluster_ip {
        spec.cluster_ips.clone_from(&old.cluster_ips);
    }
    if spec.ip_family_policy.is_none() {
        spec.ip_family_policy.clone_from(&old.ip_family_policy);
    }
    if spec.ip_families.is_empty() {
        spec.ip_families.clone_from(&old.ip_families);
    }
}

/// By port name, as everything else of the port may have changed.
fn carry_node_ports(spec: &mut ServiceSpec, old: &ServiceSpec) {
    let used = |spec: &ServiceSpec| {
        spec.ports.iter().map(|port| port.node_port).filter(|port| *port != 0).collect::<BTreeSet<_>>()
    };
    let mut taken = used(spec);
    taken.retain(|port| used(old).contains(port));
    let by_name: BTreeMap<&str, i32> = old.ports.iter().map(|port| (port.name.as_str(), port.node_port)).collect();
    for port in spec.ports.iter_mut().filter(|port| port.node_port == 0) {
        if let Some(had) = by_name.get(port.name.as_str()).filter(|had| !taken.contains(had)) {
            port.node_port = *had;
        }
    }
}

fn drop_unneeded(spec: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_address(old) && !needs_address(spec) {
        if spec.cluster_ip == old.cluster_ip && spec.cluster_ips == old.cluster_ips {
            spec.cluster_ip.clear();
            spec.cluster_ips.clear();
        }
        if spec.ip_families == old.ip_families {
            spec.ip_families.clear();
        }
        if spec.ip_family_policy == old.ip_family_policy {
            spec.ip_family_policy = None;
        }
        if spec.internal_traffic_policy == old.internal_traffic_policy {
            spec.internal_traffic_policy = None;
        }
    }
    if needs_node_ports(old) && !needs_node_ports(spec) {
        let had: BTreeSet<i32> = old.ports.iter().map(|port| port.node_port).collect();
        if spec.ports.iter().all(|port| port.node_port == 0 || had.contains(&port.node_port)) {
            spec.ports.iter_mut().for_each(|port| port.node_port = 0);
        }
        if spec.external_traffic_policy == old.external_traffic_policy && spec.external_ips.is_empty() {
            spec.external_traffic_policy.clear();
        }
    }
    if needs_health_port(old) && !needs_health_port(spec) && spec.health_check_node_port == old.health_check_node_port {
        spec.health_check_node_port = 0;
    }
    if old.r#type == "LoadBalancer" && spec.r#type != "LoadBalancer" {
        if spec.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            spec.allocate_load_balancer_node_ports = None;
        }
        if spec.load_balancer_class == old.load_balancer_class {
            spec.load_balancer_class = None;
        }
    }
}

fn allocate_addresses(
    state: &State,
    (spec, own): (&mut ServiceSpec, &BTreeSet<IpAddr>),
    identity: [&str; 2],
) -> Result<(), Refused> {
    if !needs_address(spec) {
        return Ok(());
    }
    if is_headless(spec) {
        spec.cluster_ip = "None".to_owned();
        spec.cluster_ips = vec!["None".to_owned()];
        return Ok(());
    }
    let mut problems = Vec::new();
    for address in spec.cluster_ips.iter().filter(|address| !address.is_empty()) {
        let refused = match address.parse::<IpAddr>() {
            Ok(parsed) if own.contains(&parsed) => continue,
            Ok(parsed) => state.addresses().check(parsed).err().map(|refused| refused.to_string()),
            Err(_) => Some("must be a valid IP address".to_owned()),
        };
        problems.extend(refused.map(|why| {
            Invalid::invalid(
                "spec.clusterIPs",
                shown(&spec.cluster_ips),
                &format!("failed to allocate IP {address}: {why}"),
            )
        }));
    }
    if !problems.is_empty() {
        return Err(Refused::Invalid(problems));
    }
    if spec.cluster_ips.first().is_none_or(String::is_empty) {
        let found = state.addresses().next(seed(&identity)).ok_or_else(|| {
            let hint = format!(
                "every address of {} is in use: delete a service, or make this one headless (clusterIP: None)",
                state.addresses().range()
            );
            full("failed to allocate a serviceIP: range is full", ("spec.clusterIPs", "ServiceCIDRFull", hint))
        })?;
        spec.cluster_ips = vec![found.to_string()];
    }
    spec.cluster_ip = spec.cluster_ips.first().cloned().unwrap_or_default();
    Ok(())
}

fn allocate_ports(
    state: &State,
    (spec, own): (&mut ServiceSpec, BTreeSet<u16>),
    identity: [&str; 2],
) -> Result<(), Refused> {
    // A pool in which this service's ports are free: it may move them among its own ports.
    let mut pool = state.node_ports().clone();
    for port in &own {
        pool.release((*port).into());
    }
    let mut problems = Vec::new();
    let mut taken = BTreeSet::new();
    let named =
        spec.ports.iter().enumerate().map(|(index, port)| (format!("spec.ports[{index}].nodePort"), port.node_port));
    let health = ("spec.healthCheckNodePort".to_owned(), spec.health_check_node_port);
    for (field, port) in named.chain([health]).filter(|(_, port)| *port != 0) {
        // Ports of one service may share a number: they differ in protocol, or validation has said so.
        if taken.contains(&port) {
            continue;
        }
        match u16::try_from(port).ok().filter(|number| pool.contains((*number).into())) {
            Some(number) if pool.take(number.into()) => {
                taken.insert(port);
            }
            Some(_) => problems.push(Invalid::invalid(field, port, PORT_TAKEN)),
            None => {
                let (first, last) = state.settings().node_ports;
                let detail =
                    format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
                problems.push(Invalid::invalid(field, port, &detail));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Refused::Invalid(problems));
    }
    fill_ports(spec, &mut pool, identity)
}

fn fill_ports(spec: &mut ServiceSpec, pool: &mut Pool, identity: [&str; 2]) -> Result<(), Refused> {
    let no_port = || {
        let hint = "every node port is in use: delete a service of type NodePort or LoadBalancer, or set allocateLoadBalancerNodePorts: false";
        full("failed to allocate a nodePort: range is full", ("spec.ports", "NodePortRangeFull", hint.to_owned()))
    };
    if allocates_node_ports(spec) {
        // Ports with one number share a node port as long as their protocols differ.
        let mut given: BTreeMap<i32, BTreeMap<i32, BTreeSet<String>>> = BTreeMap::new();
        for port in spec.ports.iter().filter(|port| port.node_port != 0) {
            given.entry(port.port).or_default().entry(port.node_port).or_default().insert(port.protocol.clone());
        }
        for (index, port) in spec.ports.iter_mut().enumerate().filter(|(_, port)| port.node_port == 0) {
            let same = given.entry(port.port).or_default();
            let shared =
                same.iter().find(|(_, protocols)| !protocols.contains(&port.protocol)).map(|(node_port, _)| *node_port);
            port.node_port = match shared {
                Some(node_port) => node_port,
                None => next_port(pool, (identity, &index.to_string())).ok_or_else(no_port)?,
            };
            same.entry(port.node_port).or_default().insert(port.protocol.clone());
        }
    }
    if needs_health_port(spec) && spec.health_check_node_port == 0 {
        spec.health_check_node_port = next_port(pool, (identity, "health")).ok_or_else(no_port)?;
    }
    Ok(())
}

fn next_port(pool: &mut Pool, (identity, salt): ([&str; 2], &str)) -> Option<i32> {
    let port = pool.next(seed(&[identity[0], identity[1], salt]))?;
    pool.take(port);
    i32::try_from(port).ok()
}

fn full(message: &str, (field, reason, hint): (&str, &str, String)) -> Refused {
    Refused::Exhausted(
        message.to_owned(),
        FieldProblem { field: field.to_owned(), reason: reason.to_owned(), message: hint },
    )
}

/// A list as Kubernetes' messages show it: JSON.
pub(super) fn shown(list: &[String]) -> Shown {
    Shown(format!("[{}]", list.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(",")))
}
