//! The columns of tables: names, types and priorities are Kubernetes'. Clients show those of priority 1 only if asked (`-o wide`).

use crate::kube::table::Of;
use serde_json::{Value, json};

/// A column that is always shown: name and description.
const fn narrow(name: &'static str, description: &'static str) -> Column {
    Column { name, description, priority: 0 }
}

/// A column that is shown with `-o wide`.
const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, description, priority: 1 }
}

struct Column {
    name: &'static str,
    description: &'static str,
    priority: u8,
}

const NAME: Column = narrow("Name", "Name of the object, unique among objects of its kind in its namespace.");
const AGE: Column = narrow("Age", "Time since the object was created.");

/// The columns of a table, in the order of a row's cells: `columnDefinitions`.
#[must_use]
pub fn columns(of: Of) -> Value {
    let between: &[Column] = match of {
        Of::Namespace => &[NAME, narrow("Status", "Phase of the namespace."), AGE],
        Of::Node => NODE,
        Of::Pod => POD,
        Of::Service => SERVICE,
        Of::Endpoints => &[NAME, narrow("Endpoints", "Addresses and ports that are ready."), AGE],
        Of::Event => EVENT,
        Of::EndpointSlice => SLICE,
        Of::Lease => &[NAME, narrow("Holder", "Who holds the lease."), AGE],
        Of::ServiceCidr => &[NAME, narrow("CIDRs", "Ranges that addresses of services are taken from."), AGE],
        // Kubernetes has a cell for the age but no column, so that kubectl doesn't show it.
        Of::IpAddress => &[NAME, narrow("ParentRef", "Object that the address belongs to."), AGE],
    };
    between
        .iter()
        .map(|column| {
            let format = if column.name == NAME.name { "name" } else { "" };
            json!({
                "name": column.name,
                "type": "string",
                "format": format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

const NODE: &[Column] = &[
    NAME,
    narrow("Status", "Whether the node is ready, and whether pods may be placed on it."),
    narrow("Roles", "Roles of the node, by its labels."),
    AGE,
    narrow("Version", "Version of the node's agent."),
    wide("Internal-IP", "First internal address of the node."),
    wide("External-IP", "First external address of the node."),
    wide("OS-Image", "Operating system of the node."),
    wide("Kernel-Version", "Kernel of the node."),
    wide("Container-Runtime", "Container runtime of the node, with its version."),
];

const POD: &[Column] = &[
    NAME,
    narrow("Ready", "Containers that are ready, of all."),
    narrow("Status", "State of the pod's containers, as one word."),
    narrow("Restarts", "How often containers were started again, and how long ago the last was."),
    AGE,
    wide("IP", "First address of the pod."),
    wide("Node", "Node that the pod is on."),
    wide("Nominated Node", "Node that room is being made on for the pod."),
    wide("Readiness Gates", "Conditions beyond its containers that the pod waits for: those that are true, of all."),
];

const SERVICE: &[Column] = &[
    NAME,
    narrow("Type", "How the service is exposed."),
    narrow("Cluster-IP", "First virtual address of the service."),
    narrow("External-IP", "Addresses of the service that are reached from outside."),
    narrow("Port(s)", "Ports of the service, with node ports."),
    AGE,
    wide("Selector", "Labels of the pods that traffic goes to."),
];

const EVENT: &[Column] = &[
    narrow("Last Seen", "Time since it happened last."),
    narrow("Type", "Normal, or a warning."),
    narrow("Reason", "What happened, as one word."),
    narrow("Object", "What it happened to."),
    wide("Subobject", "The part of the object that it happened to."),
    wide("Source", "Who tells of it."),
    narrow("Message", "What happened, as a sentence."),
    wide("First Seen", "Time since it happened first."),
    wide("Count", "How often it happened."),
    wide("Name", NAME.description),
];

const SLICE: &[Column] = &[
    NAME,
    narrow("AddressType", "Type of all addresses in the slice."),
    narrow("Ports", "Ports of each endpoint in the slice."),
    narrow("Endpoints", "Addresses of the endpoints in the slice."),
    AGE,
];
