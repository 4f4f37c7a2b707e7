//! Hand-written endpoints.

use crate::convert::{ip, names};
use crate::model::Invalid;
use crate::v1::Endpoints;

/// Endpoints in one record (as Kubernetes' Endpoints).
const MAX_ENDPOINTS: usize = 1_000;

/// Checks addresses and ports. Derived records are the servers' own and hold by construction.
pub fn validate(record: &Endpoints, problems: &mut Vec<Invalid>) {
    if record.derived {
        return;
    }
    if record.endpoints.len() > MAX_ENDPOINTS {
        problems.push(Invalid::too_many("subsets", record.endpoints.len(), MAX_ENDPOINTS));
    }
    for (index, endpoint) in record.endpoints.iter().enumerate() {
        let field = format!("subsets[0].addresses[{index}]");
        ip::check_endpoint(&format!("{field}.ip"), &endpoint.address, problems);
        if !endpoint.hostname.is_empty() {
            let found = names::label_problems(&endpoint.hostname);
            problems.extend(
                found
                    .into_iter()
                    .map(|problem| Invalid::invalid(format!("{field}.hostname"), &endpoint.hostname, &problem)),
            );
        }
        ports(endpoint, problems);
    }
}

fn ports(endpoint: &crate::v1::Endpoint, problems: &mut Vec<Invalid>) {
    for (index, port) in endpoint.ports.iter().enumerate() {
        let field = format!("subsets[0].ports[{index}]");
        if !(1..=65_535).contains(&port.port) {
            problems.push(Invalid::invalid(
                format!("{field}.port"),
                port.port,
                "must be between 1 and 65535, inclusive",
            ));
        }
        if !["TCP", "UDP", "SCTP"].contains(&port.protocol.as_str()) {
            problems.push(Invalid::not_supported(format!("{field}.protocol"), &port.protocol, &["SCTP", "TCP", "UDP"]));
        }
        if endpoint.ports.len() > 1 && port.name.is_empty() {
            problems.push(Invalid::required(format!("{field}.name"), ""));
        } else if !port.name.is_empty() {
            let found = names::label_problems(&port.name);
            problems.extend(
                found.into_iter().map(|problem| Invalid::invalid(format!("{field}.name"), &port.name, &problem)),
            );
        }
    }
}
