//! Pods, as far as our rooms read them: where they run, what they listen on, whether they are ready.

use crate::convert::{names, probe};
use crate::model::Invalid;
use crate::v1::{Container, ContainerPort, Pod, PodIp, PodSpec};
use std::collections::BTreeSet;

const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Kubernetes' defaults.
pub fn default(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    let host_network = spec.host_network;
    for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
        for port in &mut container.ports {
            if port.protocol.is_empty() {
                port.protocol = "TCP".into();
            }
            if host_network && port.host_port == 0 {
                port.host_port = port.container_port;
            }
        }
        if let Some(readiness) = &mut container.readiness_probe {
            probe::default(readiness);
        }
    }
    let status = pod.status.get_or_insert_default();
    if status.phase.is_empty() {
        status.phase = "Pending".into();
    }
    if status.pod_ip.is_empty() {
        status.pod_ip = status.pod_ips.first().map(|ip| ip.ip.clone()).unwrap_or_default();
    }
    if status.pod_ips.is_empty() && !status.pod_ip.is_empty() {
        status.pod_ips = vec![PodIp { ip: status.pod_ip.clone() }];
    }
}

/// Checks a pod.
pub fn validate(pod: &Pod, problems: &mut Vec<Invalid>) {
    let spec = pod.spec.clone().unwrap_or_default();
    if !spec.node_name.is_empty() {
        let found = names::subdomain_problems(&spec.node_name);
        problems.extend(found.into_iter().map(|problem| Invalid::invalid("spec.nodeName", &spec.node_name, &problem)));
    }
    for (field, name) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if !name.is_empty() {
            problems
                .extend(names::label_problems(name).into_iter().map(|problem| Invalid::invalid(field, name, &problem)));
        }
    }
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let seconds = spec.termination_grace_period_seconds.unwrap_or_default();
        problems.push(Invalid::invalid(
            "spec.terminationGracePeriodSeconds",
            seconds,
            "must be greater than or equal to 0",
        ));
    }
    if spec.containers.is_empty() {
        problems.push(Invalid::required("spec.containers", ""));
    }
    let mut seen = BTreeSet::new();
    let mut ports = HostPorts::default();
    for (list, containers) in [("containers", &spec.containers), ("initContainers", &spec.init_containers)] {
        for (index, container) in containers.iter().enumerate() {
            let field = format!("spec.{list}[{index}]");
            validate_container(&field, container, &mut seen, problems);
            if list == "initContainers" {
                // They run one by one: only their own ports can collide.
                ports = HostPorts::default();
            }
            validate_ports(&field, (container, spec.host_network), &mut ports, problems);
        }
    }
    validate_addresses(pod, problems);
}

fn validate_container(field: &str, container: &Container, seen: &mut BTreeSet<String>, problems: &mut Vec<Invalid>) {
    let name_field = format!("{field}.name");
    if container.name.is_empty() {
        problems.push(Invalid::required(&name_field, ""));
    } else {
        let found = names::label_problems(&container.name);
        problems.extend(found.into_iter().map(|problem| Invalid::invalid(&name_field, &container.name, &problem)));
        if !seen.insert(container.name.clone()) {
            problems.push(Invalid::duplicate(&name_field, &container.name));
        }
    }
    if container.image.is_empty() {
        problems.push(Invalid::required(format!("{field}.image"), ""));
    }
    if let Some(readiness) = &container.readiness_probe {
        let field = format!("{field}.readinessProbe");
        if container.restart_policy != "Always" && field.contains("initContainers") {
            problems
                .push(Invalid::forbidden(&field, "may not be set for init containers without restartPolicy=Always"));
        }
        probe::validate(&field, readiness, problems);
    }
}

/// Host ports of one pod: (protocol, host address, port).
#[derive(Default)]
struct HostPorts(BTreeSet<(String, String, i32)>);

fn validate_ports(field: &str, of: (&Container, bool), host_ports: &mut HostPorts, problems: &mut Vec<Invalid>) {
    let (container, host_network) = of;
    let mut names_seen = BTreeSet::new();
    for (index, port) in container.ports.iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        validate_port(&field, (port, host_network), problems);
        if !port.name.is_empty() {
            let name_field = format!("{field}.name");
            let found = names::port_name_problems(&port.name);
            problems.extend(found.into_iter().map(|problem| Invalid::invalid(&name_field, &port.name, problem)));
            if !names_seen.insert(port.name.clone()) {
                problems.push(Invalid::duplicate(&name_field, &port.name));
            }
        }
        let unique = host_ports.0.insert((port.protocol.clone(), port.host_ip.clone(), port.host_port));
        if port.host_port != 0 && !unique {
            let shown = format!("{}/{}/{}", port.protocol, port.host_ip, port.host_port);
            problems.push(Invalid::duplicate(format!("{field}.hostPort"), &shown));
        }
    }
}

fn validate_port(field: &str, of: (&ContainerPort, bool), problems: &mut Vec<Invalid>) {
    let (port, host_network) = of;
    let in_range = |port: i32| (1..=65_535).contains(&port);
    const RANGE: &str = "must be between 1 and 65535, inclusive";
    if port.container_port == 0 {
        problems.push(Invalid::required(format!("{field}.containerPort"), ""));
    } else if !in_range(port.container_port) {
        problems.push(Invalid::invalid(format!("{field}.containerPort"), port.container_port, RANGE));
    }
    if port.host_port != 0 && !in_range(port.host_port) {
        problems.push(Invalid::invalid(format!("{field}.hostPort"), port.host_port, RANGE));
    }
    if host_network && port.host_port != port.container_port {
        let detail = "must match `containerPort` when `hostNetwork` is true";
        problems.push(Invalid::invalid(format!("{field}.hostPort"), port.host_port, detail));
    }
    if !["TCP", "UDP", "SCTP"].contains(&port.protocol.as_str()) {
        problems.push(Invalid::not_supported(format!("{field}.protocol"), &port.protocol, &["SCTP", "TCP", "UDP"]));
    }
    if !port.host_ip.is_empty() {
        probe::pod_address(&format!("{field}.hostIP"), &port.host_ip, problems);
    }
}

fn validate_addresses(pod: &Pod, problems: &mut Vec<Invalid>) {
    let Some(status) = &pod.status else { return };
    let mut families = BTreeSet::new();
    for (index, ip) in status.pod_ips.iter().enumerate() {
        let field = format!("status.podIPs[{index}]");
        if let Some(address) = probe::pod_address(&field, &ip.ip, problems)
            && !families.insert(address.is_ipv6())
        {
            problems.push(Invalid::invalid(field, &ip.ip, "may specify no more than one IP for each IP family"));
        }
    }
    if !status.pod_ip.is_empty() && status.pod_ips.first().is_some_and(|first| first.ip != status.pod_ip) {
        problems.push(Invalid::invalid("status.podIPs[0].ip", &status.pod_ip, "must be equal to podIP"));
    }
    if !["Pending", "Running", "Succeeded", "Failed", "Unknown"].contains(&status.phase.as_str()) {
        let known = ["Failed", "Pending", "Running", "Succeeded", "Unknown"];
        problems.push(Invalid::not_supported("status.phase", &status.phase, &known));
    }
}

/// Most of a pod's spec stays as it is; a pod may be bound to a node once.
pub fn validate_update(new: &Pod, old: &Pod, problems: &mut Vec<Invalid>) {
    let (mut new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    if old.node_name.is_empty() {
        new.node_name.clear();
    }
    let comparable = |mut spec: PodSpec| {
        for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
            container.image.clear();
        }
        spec.termination_grace_period_seconds = None;
        spec
    };
    if comparable(new) != comparable(old) {
        problems.push(Invalid::forbidden("spec", IMMUTABLE));
    }
}
