//! Nodes, as far as routing reads them.

use crate::convert::ip;
use crate::model::Invalid;
use crate::v1::Node;
use std::collections::BTreeSet;

/// `podCIDR` and the first of `podCIDRs` are one field in two forms: each fills the other.
pub fn default(node: &mut Node) {
    let Some(spec) = &mut node.spec else { return };
    if spec.pod_cidr.is_empty() {
        spec.pod_cidr = spec.pod_cidrs.first().cloned().unwrap_or_default();
    }
    if spec.pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
        spec.pod_cidrs = vec![spec.pod_cidr.clone()];
    }
}

/// Checks pod ranges and addresses.
pub fn validate(node: &Node, problems: &mut Vec<Invalid>) {
    let spec = node.spec.clone().unwrap_or_default();
    let mut families = BTreeSet::new();
    for (index, cidr) in spec.pod_cidrs.iter().enumerate() {
        let field = format!("spec.podCIDRs[{index}]");
        if let Some(range) = ip::check_cidr(&field, cidr, problems)
            && !families.insert(range.addr().is_ipv6())
        {
            problems.push(Invalid::invalid(field, cidr, "may specify no more than one CIDR for each IP family"));
        }
    }
    if !spec.pod_cidr.is_empty() {
        if spec.pod_cidrs.is_empty() {
            ip::check_cidr("spec.podCIDR", &spec.pod_cidr, problems);
        } else if spec.pod_cidrs.first() != Some(&spec.pod_cidr) {
            problems.push(Invalid::invalid("spec.podCIDR", &spec.pod_cidr, "must be equal to podCIDRs[0]"));
        }
    }
    let addresses = node.status.iter().flat_map(|status| &status.addresses);
    for (index, address) in addresses.enumerate() {
        if address.address.is_empty() {
            problems.push(Invalid::required(format!("status.addresses[{index}].address"), ""));
        } else if address.r#type == "InternalIP" || address.r#type == "ExternalIP" {
            ip::check(&format!("status.addresses[{index}].address"), &address.address, problems);
        }
    }
}

/// A pod range stays once it is set: routes and endpoints rest on it.
pub fn validate_update(new: &Node, old: &Node, problems: &mut Vec<Invalid>) {
    let cidrs = |node: &Node| node.spec.clone().unwrap_or_default().pod_cidrs;
    if !cidrs(old).is_empty() && cidrs(old) != cidrs(new) {
        problems
            .push(Invalid::forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"));
    }
}
