//! Address families of a Service, as Kubernetes' API server infers them, on a cluster whose service range is of one
//! family. The fields have the shape of a dual-stack cluster's, so that one can come without a change of objects.

use crate::machine::State;
use crate::machine::service::{is_headless, shown};
use fairlead_proto::model::Invalid;
use fairlead_proto::v1::ServiceSpec;
use std::net::IpAddr;

const POLICY: &str = "spec.ipFamilyPolicy";

/// Fills in `ipFamilyPolicy` and `ipFamilies`; `old` is the spec as it is. A headless service needs no address, so
/// that it may name any family.
///
/// # Errors
/// Everything asked for that a cluster of one family hasn't got.
pub(super) fn fill(state: &State, spec: &mut ServiceSpec, old: Option<&ServiceSpec>) -> Result<(), Vec<Invalid>> {
    let ours = state.addresses().family();
    let headless = is_headless(spec);
    let given = spec.ip_family_policy.as_deref();
    let kept = old.and_then(|old| old.ip_family_policy.as_deref());
    let policy = match given.or(kept) {
        Some(policy) => policy.to_owned(),
        None if headless && spec.selector.is_empty() => "RequireDualStack".to_owned(),
        None => "SingleStack".to_owned(),
    };
    let mut problems = contradictions(spec, &policy);
    problems.extend(foreign_addresses(spec, ours));
    if !headless {
        problems.extend(unavailable(spec, &policy, ours));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    spec.ip_family_policy = Some(policy.clone());
    if spec.ip_families.is_empty() {
        spec.ip_families.push(ours.to_owned());
    }
    if headless && policy != "SingleStack" && spec.ip_families.len() == 1 {
        let first_is_ipv4 = spec.ip_families.iter().all(|first| first == "IPv4");
        let second = if first_is_ipv4 { "IPv6" } else { "IPv4" };
        spec.ip_families.push(second.to_owned());
    }
    Ok(())
}

/// One stack, and two of something.
fn contradictions(spec: &ServiceSpec, policy: &str) -> Vec<Invalid> {
    let counts = [(spec.cluster_ips.len(), "cluster IPs"), (spec.ip_families.len(), "IP families")];
    let twice = counts.into_iter().filter(|(count, _)| policy == "SingleStack" && *count > 1);
    twice
        .map(|(_, what)| {
            let detail = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            Invalid::invalid(POLICY, policy, &detail)
        })
        .collect()
}

/// Addresses of the other family that no `ipFamilies` entry contradicts: validation tells of those.
fn foreign_addresses(spec: &ServiceSpec, ours: &str) -> Vec<Invalid> {
    let mut problems = Vec::new();
    for (index, address) in spec.cluster_ips.iter().enumerate() {
        let Ok(address) = address.parse::<IpAddr>() else {
            continue;
        };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let named = spec.ip_families.get(index);
        if family != ours && named.is_none_or(|named| named == family) {
            problems.push(Invalid::invalid(
                format!("spec.clusterIPs[{index}]"),
                shown(&spec.cluster_ips),
                &format!("{family} is not configured on this cluster"),
            ));
        }
    }
    problems
}

fn unavailable(spec: &ServiceSpec, policy: &str, ours: &str) -> Vec<Invalid> {
    let mut problems = Vec::new();
    if policy == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        problems.push(Invalid::invalid(POLICY, policy, detail));
    }
    for (index, family) in spec.ip_families.iter().enumerate() {
        if family != ours {
            let field = format!("spec.ipFamilies[{index}]");
            problems.push(Invalid::invalid(field, family, "not configured on this cluster"));
        }
    }
    problems
}
