//! Services: Kubernetes' SetDefaults_Service, ValidateService and its warnings.

use crate::convert::{ip, meta, names, probe};
use crate::model::{Invalid, Shown};
use crate::v1::{ClientIpConfig, IntOrString, Service, ServicePort, ServiceSpec, SessionAffinityConfig, int_or_string};
use std::collections::BTreeSet;

const RANGE: &str = "must be between 1 and 65535, inclusive";
/// Kubernetes' default of sessionAffinityConfig.clientIP.timeoutSeconds: three hours.
const AFFINITY_SECONDS: i32 = 10_800;
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// Kubernetes' defaults; what is allocated is left alone.
pub fn default(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    if spec.r#type.is_empty() {
        spec.r#type = "ClusterIP".into();
    }
    if spec.session_affinity.is_empty() {
        spec.session_affinity = "None".into();
    }
    if spec.session_affinity == "None" {
        spec.session_affinity_config = None;
    } else if spec.session_affinity == "ClientIP" {
        let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
        let client = config.client_ip.get_or_insert_with(ClientIpConfig::default);
        client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
    }
    for port in &mut spec.ports {
        if port.protocol.is_empty() {
            port.protocol = "TCP".into();
        }
        let unset = match port.target_port.as_ref().and_then(|target| target.value.as_ref()) {
            None | Some(int_or_string::Value::Int(0)) => true,
            Some(int_or_string::Value::Str(name)) => name.is_empty(),
            Some(int_or_string::Value::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString { value: Some(int_or_string::Value::Int(port.port)) });
        }
    }
    if externally_accessible(spec) && spec.external_traffic_policy.is_empty() {
        spec.external_traffic_policy = "Cluster".into();
    }
    if spec.r#type != "ExternalName" {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".into());
    }
    if spec.r#type == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    let ingress =
        service.status.iter_mut().flat_map(|status| &mut status.load_balancer).flat_map(|status| &mut status.ingress);
    for one in ingress.filter(|one| !one.ip.is_empty()) {
        one.ip_mode.get_or_insert_with(|| "VIP".into());
    }
}

/// True if traffic from outside the cluster may come in by it.
pub fn externally_accessible(spec: &ServiceSpec) -> bool {
    spec.r#type == "LoadBalancer"
        || spec.r#type == "NodePort"
        || (spec.r#type == "ClusterIP" && !spec.external_ips.is_empty())
}

/// Checks a service.
pub fn validate(service: &Service, problems: &mut Vec<Invalid>) {
    let spec = service.spec.clone().unwrap_or_default();
    validate_type(&spec, problems);
    validate_ports(&spec, problems);
    meta::labels("spec.selector", &spec.selector, problems);
    validate_affinity(&spec, problems);
    validate_cluster_ips(&spec, problems);
    validate_families(&spec, problems);
    for (index, address) in spec.external_ips.iter().enumerate() {
        ip::check_endpoint(&format!("spec.externalIPs[{index}]"), address, problems);
    }
    validate_policies(&spec, problems);
    validate_load_balancer(&spec, problems);
    validate_ingress(service, problems);
}

/// What a load balancer reports (ValidateLoadBalancerStatus).
fn validate_ingress(service: &Service, problems: &mut Vec<Invalid>) {
    let ingress = service.status.iter().flat_map(|status| &status.load_balancer).flat_map(|status| &status.ingress);
    for (index, one) in ingress.enumerate() {
        let field = format!("status.loadBalancer.ingress[{index}]");
        if !one.ip.is_empty() {
            ip::check(&format!("{field}.ip"), &one.ip, problems);
        }
        match one.ip_mode.as_deref() {
            Some(_) if one.ip.is_empty() => {
                problems
                    .push(Invalid::forbidden(format!("{field}.ipMode"), "may not be specified when `ip` is not set"));
            }
            None | Some("VIP" | "Proxy") => {}
            Some(other) => {
                problems.push(Invalid::not_supported(format!("{field}.ipMode"), other, &["Proxy", "VIP"]));
            }
        }
        let hostname = format!("{field}.hostname");
        if ip::parse_ip(&one.hostname).is_some() {
            problems.push(Invalid::invalid(hostname, &one.hostname, "must be a DNS name, not an IP address"));
        } else if !one.hostname.is_empty() {
            let found = names::subdomain_problems(&one.hostname);
            problems.extend(found.into_iter().map(|problem| Invalid::invalid(&hostname, &one.hostname, &problem)));
        }
    }
}

fn validate_type(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let headless = spec.cluster_ip == "None" || spec.cluster_ips.first().is_some_and(|ip| ip == "None");
    match spec.r#type.as_str() {
        "ClusterIP" => {}
        "NodePort" | "LoadBalancer" if headless => {
            let detail = format!("may not be set to 'None' for {} services", spec.r#type);
            problems.push(Invalid::invalid("spec.clusterIPs[0]", "None", &detail));
        }
        "NodePort" | "LoadBalancer" => {}
        "ExternalName" => {
            if !spec.cluster_ip.is_empty() || !spec.cluster_ips.is_empty() {
                problems.push(Invalid::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
            }
            if !spec.ip_families.is_empty() {
                problems.push(Invalid::forbidden("spec.ipFamilies", "may not be set for ExternalName services"));
            }
            if spec.ip_family_policy.is_some() {
                problems.push(Invalid::forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services"));
            }
            let name = spec.external_name.strip_suffix('.').unwrap_or(&spec.external_name);
            if name.is_empty() {
                problems.push(Invalid::required("spec.externalName", ""));
            } else {
                let found = names::subdomain_problems(name);
                problems.extend(found.into_iter().map(|problem| Invalid::invalid("spec.externalName", name, &problem)));
            }
        }
        other => problems.push(Invalid::not_supported(
            "spec.type",
            other,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        )),
    }
}

fn validate_ports(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let headless = spec.cluster_ip == "None" || spec.cluster_ips.first().is_some_and(|ip| ip == "None");
    if spec.ports.is_empty() && !headless && spec.r#type != "ExternalName" {
        problems.push(Invalid::required("spec.ports", ""));
    }
    let (mut names_seen, mut ports_seen, mut node_ports_seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        validate_port(&field, (port, spec), problems);
        if !port.name.is_empty() && !names_seen.insert(&port.name) {
            problems.push(Invalid::duplicate(format!("{field}.name"), &port.name));
        }
        if !ports_seen.insert((&port.protocol, port.port)) {
            let shown = format!("{{\"protocol\":{:?},\"port\":{}}}", port.protocol, port.port);
            problems.push(Invalid::duplicate(&field, Shown(shown)));
        }
        if port.node_port != 0 && !node_ports_seen.insert((&port.protocol, port.node_port)) {
            let shown = format!("{{\"protocol\":{:?},\"nodePort\":{}}}", port.protocol, port.node_port);
            problems.push(Invalid::duplicate(&field, Shown(shown)));
        }
    }
}

fn validate_port(field: &str, of: (&ServicePort, &ServiceSpec), problems: &mut Vec<Invalid>) {
    let (port, spec) = of;
    if port.name.is_empty() {
        if spec.ports.len() > 1 {
            problems.push(Invalid::required(format!("{field}.name"), ""));
        }
    } else {
        let found = names::label_problems(&port.name);
        problems
            .extend(found.into_iter().map(|problem| Invalid::invalid(format!("{field}.name"), &port.name, &problem)));
    }
    if !(1..=65_535).contains(&port.port) {
        problems.push(Invalid::invalid(format!("{field}.port"), port.port, RANGE));
    }
    if !["TCP", "UDP", "SCTP"].contains(&port.protocol.as_str()) {
        problems.push(Invalid::not_supported(format!("{field}.protocol"), &port.protocol, &["SCTP", "TCP", "UDP"]));
    }
    // A target port that only repeats a wrong port is one problem, not two.
    let repeats = port.target_port.as_ref().and_then(|target| target.value.as_ref())
        == Some(&int_or_string::Value::Int(port.port));
    if !repeats {
        probe::port(&format!("{field}.targetPort"), port.target_port.as_ref(), problems);
    }
    if let Some(protocol) = &port.app_protocol {
        let found = names::qualified_name_problems(protocol);
        problems.extend(
            found.into_iter().map(|problem| Invalid::invalid(format!("{field}.appProtocol"), protocol, &problem)),
        );
    }
    if port.node_port != 0 {
        if spec.r#type == "ClusterIP" {
            problems
                .push(Invalid::forbidden(format!("{field}.nodePort"), "may not be used when `type` is 'ClusterIP'"));
        } else if spec.r#type == "ExternalName" {
            problems
                .push(Invalid::forbidden(format!("{field}.nodePort"), "may not be used when `type` is 'ExternalName'"));
        } else if !(1..=65_535).contains(&port.node_port) {
            problems.push(Invalid::invalid(format!("{field}.nodePort"), port.node_port, RANGE));
        }
    }
}

fn validate_affinity(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    match spec.session_affinity.as_str() {
        "None" => {
            if spec.session_affinity_config.is_some() {
                let detail = "must not be set when session affinity is None";
                problems.push(Invalid::forbidden("spec.sessionAffinityConfig", detail));
            }
        }
        "ClientIP" => {
            let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            match client.and_then(|client| client.timeout_seconds) {
                Some(seconds) if (1..=MAX_AFFINITY_SECONDS).contains(&seconds) => {}
                Some(seconds) => {
                    let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                    problems.push(Invalid::invalid(field, seconds, &detail));
                }
                None => problems.push(Invalid::required(field, "when session affinity type is ClientIP")),
            }
        }
        other => problems.push(Invalid::not_supported("spec.sessionAffinity", other, &["ClientIP", "None"])),
    }
}

fn validate_cluster_ips(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let shown = |list: &[String]| Shown(format!("{list:?}"));
    if spec.r#type == "ExternalName" {
        return;
    }
    if !spec.cluster_ip.is_empty() && spec.cluster_ips.first().is_some_and(|first| *first != spec.cluster_ip) {
        problems.push(Invalid::invalid(
            "spec.clusterIP",
            &spec.cluster_ip,
            "must be the same as the first value in clusterIPs",
        ));
    }
    let ips: Vec<&String> =
        if spec.cluster_ips.is_empty() { [&spec.cluster_ip].into() } else { spec.cluster_ips.iter().collect() };
    if ips.len() > 2 {
        problems.push(Invalid::invalid("spec.clusterIPs", shown(&spec.cluster_ips), "may only hold up to 2 values"));
    }
    let mut families = BTreeSet::new();
    for (index, address) in ips.into_iter().enumerate().filter(|(_, address)| !address.is_empty()) {
        let field = format!("spec.clusterIPs[{index}]");
        if address == "None" {
            if index > 0 || spec.cluster_ips.len() > 1 {
                problems.push(Invalid::invalid(
                    "spec.clusterIPs",
                    shown(&spec.cluster_ips),
                    "'None' must be the first and only value",
                ));
            }
        } else if let Some(address) = ip::check(&field, address, problems)
            && !families.insert(address.is_ipv6())
        {
            problems.push(Invalid::invalid(
                "spec.clusterIPs",
                shown(&spec.cluster_ips),
                "may specify no more than one IP for each IP family",
            ));
        }
    }
}

fn validate_families(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if let Some(policy) = &spec.ip_family_policy
        && !policies.contains(&policy.as_str())
    {
        problems.push(Invalid::not_supported("spec.ipFamilyPolicy", policy, &policies));
    }
    let mut seen = BTreeSet::new();
    for (index, family) in spec.ip_families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if family != "IPv4" && family != "IPv6" {
            problems.push(Invalid::not_supported(&field, family, &["IPv4", "IPv6"]));
        }
        if !seen.insert(family) {
            problems.push(Invalid::duplicate(&field, family));
        }
    }
    for (index, (address, family)) in spec.cluster_ips.iter().zip(&spec.ip_families).enumerate() {
        if let Some(address) = ip::parse_ip(address)
            && address.is_ipv6() != (family == "IPv6")
        {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            problems.push(Invalid::invalid(format!("spec.clusterIPs[{index}]"), address.to_string().as_str(), &detail));
        }
    }
}

fn validate_policies(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let policy = &spec.external_traffic_policy;
    if !policy.is_empty() && !externally_accessible(spec) {
        let detail = "may only be set for externally-accessible services";
        problems.push(Invalid::invalid("spec.externalTrafficPolicy", policy, detail));
    } else if !policy.is_empty() && policy != "Cluster" && policy != "Local" {
        problems.push(Invalid::not_supported("spec.externalTrafficPolicy", policy, &["Cluster", "Local"]));
    }
    if let Some(policy) = &spec.internal_traffic_policy
        && policy != "Cluster"
        && policy != "Local"
    {
        problems.push(Invalid::not_supported("spec.internalTrafficPolicy", policy, &["Cluster", "Local"]));
    }
    let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if let Some(distribution) = &spec.traffic_distribution
        && !known.contains(&distribution.as_str())
    {
        problems.push(Invalid::not_supported("spec.trafficDistribution", distribution, &known));
    }
    let port = spec.health_check_node_port;
    if port != 0 {
        if !(1..=65_535).contains(&port) {
            problems.push(Invalid::invalid("spec.healthCheckNodePort", port, RANGE));
        } else if !(spec.r#type == "LoadBalancer" && policy == "Local") {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            problems.push(Invalid::invalid("spec.healthCheckNodePort", port, detail));
        }
    }
}

fn validate_load_balancer(spec: &ServiceSpec, problems: &mut Vec<Invalid>) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let balancer = spec.r#type == "LoadBalancer";
    if !balancer && !spec.load_balancer_source_ranges.is_empty() {
        problems.push(Invalid::forbidden("spec.loadBalancerSourceRanges", ONLY));
    }
    for (index, range) in spec.load_balancer_source_ranges.iter().enumerate().filter(|_| balancer) {
        ip::check_cidr(&format!("spec.loadBalancerSourceRanges[{index}]"), range.trim(), problems);
    }
    if !balancer && spec.allocate_load_balancer_node_ports.is_some() {
        problems.push(Invalid::forbidden("spec.allocateLoadBalancerNodePorts", ONLY));
    }
    if balancer && spec.allocate_load_balancer_node_ports.is_none() {
        problems.push(Invalid::required("spec.allocateLoadBalancerNodePorts", ""));
    }
    if let Some(class) = &spec.load_balancer_class {
        if balancer {
            let found = names::qualified_name_problems(class);
            problems
                .extend(found.into_iter().map(|problem| Invalid::invalid("spec.loadBalancerClass", class, &problem)));
        } else {
            problems.push(Invalid::forbidden("spec.loadBalancerClass", ONLY));
        }
    }
}

/// Kubernetes' warnings (pkg/api/service/warnings.go).
pub fn warnings(service: &Service) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(spec) = &service.spec else { return warnings };
    let external_name = spec.r#type == "ExternalName";
    let headless = spec.r#type == "ClusterIP" && spec.cluster_ip == "None";
    let ignored = [
        ("loadBalancerIP", !spec.load_balancer_ip.is_empty()),
        ("externalIPs", !spec.external_ips.is_empty()),
        ("SessionAffinity", spec.session_affinity == "ClientIP"),
    ];
    for (field, _) in ignored.into_iter().filter(|(_, given)| headless && *given) {
        warnings.push(format!("spec.{field} is ignored for headless services"));
    }
    if !spec.external_ips.is_empty() && external_name {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    } else if !spec.external_ips.is_empty() && !headless {
        warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
    }
    if !external_name && !spec.external_name.is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        warnings.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned());
    }
    warnings
}
