//! What of a Service may not change (Kubernetes' ValidateServiceUpdate).

use crate::model::{Invalid, Shown};
use crate::v1::{Service, ServiceSpec};

/// Checks an update. A new object that leaves its addresses out keeps the old ones: that is no change.
pub fn validate(new: &Service, old: &Service, problems: &mut Vec<Invalid>) {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
    if new.r#type != "ExternalName" && old.r#type != "ExternalName" {
        cluster_ips(new, old, problems);
    }
    let balancers = new.r#type == "LoadBalancer" && old.r#type == "LoadBalancer";
    if balancers && new.load_balancer_class != old.load_balancer_class {
        let class = new.load_balancer_class.clone().unwrap_or_default();
        problems.push(Invalid::invalid("spec.loadBalancerClass", &class, "may not change once set"));
    }
    let (port, before) = (new.health_check_node_port, old.health_check_node_port);
    let needed = |spec: &ServiceSpec| spec.r#type == "LoadBalancer" && spec.external_traffic_policy == "Local";
    if needed(new) && needed(old) && port != 0 && before != 0 && port != before {
        problems.push(Invalid::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
}

/// Whoever changes `clusterIP` alone means `clusterIPs` too (Kubernetes' NormalizeClusterIPs).
pub fn normalize(new: &mut Service, old: &Service) {
    let (Some(new), Some(old)) = (&mut new.spec, &old.spec) else { return };
    if new.cluster_ips != old.cluster_ips || new.cluster_ip == old.cluster_ip {
        return;
    }
    if new.cluster_ip.is_empty() {
        new.cluster_ips.clear();
    } else if let Some(first) = new.cluster_ips.first_mut() {
        first.clone_from(&new.cluster_ip);
    }
}

fn cluster_ips(new: &ServiceSpec, old: &ServiceSpec, problems: &mut Vec<Invalid>) {
    let addresses = |spec: &ServiceSpec| {
        if spec.cluster_ips.is_empty() && !spec.cluster_ip.is_empty() {
            vec![spec.cluster_ip.clone()]
        } else {
            spec.cluster_ips.clone()
        }
    };
    let (new_ips, old_ips) = (addresses(new), addresses(old));
    let (Some(first), Some(old_first)) = (new_ips.first(), old_ips.first()) else { return };
    if first != old_first {
        let shown = Shown(format!("{new_ips:?}"));
        problems.push(Invalid::invalid("spec.clusterIPs[0]", shown, "may not change once set"));
    }
    match (new_ips.get(1), old_ips.get(1)) {
        (Some(second), Some(old_second)) if second != old_second => {
            let shown = Shown(format!("{new_ips:?}"));
            problems.push(Invalid::invalid("spec.clusterIPs[1]", shown, "may not change once set"));
        }
        (None, Some(_)) if new.ip_family_policy.as_deref() != Some("SingleStack") => {
            let detail = "may only be released when `ipFamilyPolicy` is 'SingleStack'";
            problems.push(Invalid::invalid("spec.clusterIPs[1]", "", detail));
        }
        _ => {}
    }
}
