//! The resource types that the command line knows, by every name that kubectl takes for them.
//!
//! EndpointSlices are renderings of Endpoints and events are renderings of the event window: both can be read only.

use crate::client::failure::Failure;
use fairlead_proto::v1::Kind;

/// A resource type.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Lower-case plural: `services`.
    pub plural: &'static str,
    /// Lower-case singular: `service`.
    pub singular: &'static str,
    /// Kubernetes' short name.
    pub short: &'static str,
    /// API group; empty for the core.
    pub group: &'static str,
    /// Kubernetes' kind.
    pub title: &'static str,
    /// The stored kind that it is, or is rendered from.
    pub kind: Kind,
    /// In `get all`, as in Kubernetes.
    pub in_all: bool,
}

/// Namespaces.
pub static NAMESPACES: Resource = Resource {
    plural: "namespaces",
    singular: "namespace",
    short: "ns",
    group: "",
    title: "Namespace",
    kind: Kind::Namespace,
    in_all: false,
};
/// Nodes.
pub static NODES: Resource = Resource {
    plural: "nodes",
    singular: "node",
    short: "no",
    group: "",
    title: "Node",
    kind: Kind::Node,
    in_all: false,
};
/// Pods.
pub static PODS: Resource =
    Resource { plural: "pods", singular: "pod", short: "po", group: "", title: "Pod", kind: Kind::Pod, in_all: true };
/// Services.
pub static SERVICES: Resource = Resource {
    plural: "services",
    singular: "service",
    short: "svc",
    group: "",
    title: "Service",
    kind: Kind::Service,
    in_all: true,
};
/// Endpoints, as v1 Endpoints.
pub static ENDPOINTS: Resource = Resource {
    plural: "endpoints",
    singular: "endpoints",
    short: "ep",
    group: "",
    title: "Endpoints",
    kind: Kind::Endpoints,
    in_all: false,
};
/// Endpoints, as EndpointSlices.
pub static SLICES: Resource = Resource {
    plural: "endpointslices",
    singular: "endpointslice",
    short: "eps",
    group: "discovery.k8s.io",
    title: "EndpointSlice",
    kind: Kind::Endpoints,
    in_all: false,
};
/// Events: most are renderings of the event window.
pub static EVENTS: Resource = Resource {
    plural: "events",
    singular: "event",
    short: "ev",
    group: "",
    title: "Event",
    kind: Kind::Event,
    in_all: false,
};

/// Every resource type, in `api-resources`' order.
pub static ALL: [&Resource; 7] = [&ENDPOINTS, &EVENTS, &NAMESPACES, &NODES, &PODS, &SERVICES, &SLICES];

impl Resource {
    /// The resource type of this name: plural, singular, short or kind, in any case, with or without its group.
    ///
    /// # Errors
    /// kubectl's sentence for an unknown one.
    pub fn parse(name: &str) -> Result<&'static Self, Failure> {
        let lower = name.to_lowercase();
        let found = ALL.into_iter().find(|resource| {
            let bare = match resource.group {
                "" => lower.strip_suffix(".v1").unwrap_or(&lower),
                group => {
                    let bare = lower.strip_suffix(group).and_then(|head| head.strip_suffix('.')).unwrap_or(&lower);
                    bare.strip_suffix(".v1").unwrap_or(bare)
                }
            };
            [resource.plural, resource.singular, resource.short].contains(&bare)
        });
        found.ok_or_else(|| Failure::local(format!("the server doesn't have a resource type {name:?}")))
    }

    /// The resource type that stores a kind.
    pub fn of(kind: Kind) -> &'static Self {
        match kind {
            Kind::Namespace => &NAMESPACES,
            Kind::Node => &NODES,
            Kind::Pod => &PODS,
            Kind::Service => &SERVICES,
            Kind::Endpoints => &ENDPOINTS,
            Kind::Event | Kind::Unspecified => &EVENTS,
        }
    }

    /// `v1` or `discovery.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) }
    }

    /// `service`, `endpointslice.discovery.k8s.io`: what stands before the slash of a name.
    pub fn prefix(&self) -> String {
        if self.group.is_empty() { self.singular.to_owned() } else { format!("{}.{}", self.singular, self.group) }
    }

    /// True unless objects belong to the whole cluster.
    pub fn is_namespaced(&self) -> bool {
        self.kind.is_namespaced()
    }

    /// True if objects of it can be written.
    pub fn is_stored(&self) -> bool {
        self.kind != Kind::Event && self.title != "EndpointSlice"
    }

    /// Verbs that it knows.
    pub fn verbs(&self) -> &'static str {
        match (self.is_stored(), self.kind) {
            (true, _) => "create,delete,get,list,update,watch",
            (false, Kind::Event) => "list,watch",
            (false, _) => "get,list,watch",
        }
    }

    /// For verbs that write.
    ///
    /// # Errors
    /// A sentence for a read-only one.
    pub fn must_be_stored(&'static self) -> Result<&'static Self, Failure> {
        match (self.is_stored(), self.kind) {
            (true, _) => Ok(self),
            (false, Kind::Event) => Err(Failure::local("events are read with `fairlead events` and can't be written")),
            (false, _) => Err(Failure::local("endpointslices are rendered from endpoints: write those")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_kubectl_takes() {
        for (name, expect) in [
            ("svc", "services"),
            ("Service", "services"),
            ("services.v1", "services"),
            ("po", "pods"),
            ("eps", "endpointslices"),
            ("endpointslices.discovery.k8s.io", "endpointslices"),
            ("endpointslices.v1.discovery.k8s.io", "endpointslices"),
            ("ep", "endpoints"),
            ("ev", "events"),
            ("no", "nodes"),
            ("ns", "namespaces"),
        ] {
            assert_eq!(Resource::parse(name).unwrap().plural, expect, "{name}");
        }
        assert_eq!(
            Resource::parse("Deploy").unwrap_err().text(),
            "error: the server doesn't have a resource type \"Deploy\""
        );
        for kind in Kind::ALL {
            assert_eq!(Resource::of(kind).kind, kind);
            assert_eq!(Resource::of(kind).must_be_stored().is_ok(), kind != Kind::Event, "{kind:?}");
        }
        assert!(SLICES.must_be_stored().is_err());
        assert_eq!(SLICES.prefix(), "endpointslice.discovery.k8s.io");
    }
}
