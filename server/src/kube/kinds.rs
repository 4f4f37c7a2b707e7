//! The kinds that the REST face serves: one row for each, the only place that says so. Pure.
//!
//! Laws: a path's (group, version, plural) names one kind; a kind's name names one kind; verbs are in alphabetical order, as
//! Kubernetes lists them. Paths are `/api/v1/…` for the core group (whose name is "") and `/apis/GROUP/VERSION/…` for others.

/// A part of a resource that has a path of its own, such as `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// The last segment of its path.
    pub name: &'static str,
    /// What can be done with it.
    pub verbs: &'static [&'static str],
}

/// A kind of object, as discovery tells of it (`meta.k8s.io/v1` APIResource).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; "" is the core group.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// Its name in paths.
    pub plural: &'static str,
    /// What kubectl also takes for one.
    pub singular: &'static str,
    /// The `kind` of an object.
    pub kind: &'static str,
    /// Abbreviations.
    pub short_names: &'static [&'static str],
    /// True if objects are in a namespace.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: &'static [&'static str],
    /// Names for several kinds at once: `kubectl get all`.
    pub categories: &'static [&'static str],
    /// Parts with paths of their own.
    pub subresources: &'static [Subresource],
    /// The name of its OpenAPI definition.
    pub definition: &'static str,
}

/// Each verb of an object that is stored.
const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Kubernetes has no `deletecollection` of namespaces.
const ONE_BY_ONE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const READ: &[&str] = &["get", "list", "watch"];
/// Made anew for who asks: there are no changes to watch.
const LOOK: &[&str] = &["get", "list"];
const CREATE: &[&str] = &["create"];
const STATUS: Subresource = Subresource { name: "status", verbs: &["get", "patch", "update"] };

/// A core kind, with all verbs; rows say where they differ.
const CORE: Kind = Kind {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    short_names: &[],
    namespaced: true,
    verbs: ALL,
    categories: &[],
    subresources: &[],
    definition: "",
};

const KINDS: &[Kind] = &[
    Kind {
        plural: "endpoints",
        singular: "endpoints",
        kind: "Endpoints",
        short_names: &["ep"],
        definition: "io.k8s.api.core.v1.Endpoints",
        ..CORE
    },
    Kind {
        plural: "events",
        singular: "event",
        kind: "Event",
        short_names: &["ev"],
        definition: "io.k8s.api.core.v1.Event",
        ..CORE
    },
    Kind {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: ONE_BY_ONE,
        subresources: &[STATUS],
        definition: "io.k8s.api.core.v1.Namespace",
        ..CORE
    },
    Kind {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short_names: &["no"],
        namespaced: false,
        subresources: &[STATUS],
        definition: "io.k8s.api.core.v1.Node",
        ..CORE
    },
    Kind {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[STATUS],
        definition: "io.k8s.api.core.v1.Pod",
        ..CORE
    },
    Kind {
        plural: "services",
        singular: "service",
        kind: "Service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[STATUS],
        definition: "io.k8s.api.core.v1.Service",
        ..CORE
    },
    Kind {
        group: "authentication.k8s.io",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        namespaced: false,
        verbs: CREATE,
        definition: "io.k8s.api.authentication.v1.SelfSubjectReview",
        ..CORE
    },
    Kind {
        group: "authorization.k8s.io",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        namespaced: false,
        verbs: CREATE,
        definition: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        ..CORE
    },
    Kind {
        group: "authorization.k8s.io",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
        namespaced: false,
        verbs: CREATE,
        definition: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        ..CORE
    },
    Kind {
        group: "coordination.k8s.io",
        plural: "leases",
        singular: "lease",
        kind: "Lease",
        verbs: LOOK,
        definition: "io.k8s.api.coordination.v1.Lease",
        ..CORE
    },
    Kind {
        group: "discovery.k8s.io",
        plural: "endpointslices",
        singular: "endpointslice",
        kind: "EndpointSlice",
        verbs: READ,
        definition: "io.k8s.api.discovery.v1.EndpointSlice",
        ..CORE
    },
    Kind {
        group: "networking.k8s.io",
        plural: "ipaddresses",
        singular: "ipaddress",
        kind: "IPAddress",
        short_names: &["ip"],
        namespaced: false,
        verbs: READ,
        definition: "io.k8s.api.networking.v1.IPAddress",
        ..CORE
    },
    Kind {
        group: "networking.k8s.io",
        plural: "servicecidrs",
        singular: "servicecidr",
        kind: "ServiceCIDR",
        namespaced: false,
        verbs: LOOK,
        definition: "io.k8s.api.networking.v1.ServiceCIDR",
        ..CORE
    },
];

impl Kind {
    /// True if this can be done with it.
    #[must_use]
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// `apiVersion` of its objects: "v1", "discovery.k8s.io/v1".
    #[must_use]
    pub fn api_version(&self) -> String {
        group_version(self.group, self.version)
    }

    /// The part of this name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|part| part.name == name)
    }
}

/// A group and version as an `apiVersion` says them.
#[must_use]
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Every kind served, by group, then by plural.
#[must_use]
pub fn kinds() -> &'static [Kind] {
    KINDS
}

/// The kind at a path.
#[must_use]
pub fn at_path(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|one| one.group == group && one.version == version && one.plural == plural)
}

/// The kind of an object's `apiVersion` and `kind`.
#[must_use]
pub fn of_object(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    KINDS.iter().find(|one| one.kind == kind && one.group == group && one.version == version)
}

/// Every (group, version) served, each once; the core group first.
#[must_use]
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = KINDS.iter().map(|one| (one.group, one.version)).collect();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_in_order_and_no_path_or_kind_is_named_twice() {
        let paths: Vec<_> = kinds().iter().map(|one| (one.group, one.version, one.plural)).collect();
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
        let names: BTreeSet<_> = kinds().iter().map(|one| one.kind).collect();
        let definitions: BTreeSet<_> = kinds().iter().map(|one| one.definition).collect();
        assert_eq!((names.len(), definitions.len()), (kinds().len(), kinds().len()));
    }

    #[test]
    fn no_name_that_a_user_may_type_means_two_kinds() {
        let mut typed = BTreeSet::new();
        for one in kinds() {
            let own: BTreeSet<_> = [one.plural, one.singular].iter().chain(one.short_names).copied().collect();
            for name in own {
                assert!(typed.insert(name), "{name} means two kinds");
            }
        }
    }

    #[test]
    fn verbs_are_in_order_and_known() {
        for one in kinds() {
            let parts = one.subresources.iter().map(|part| part.verbs);
            for verbs in parts.chain([one.verbs]) {
                assert!(verbs.is_sorted() && !verbs.is_empty());
                assert!(verbs.iter().all(|verb| ALL.contains(verb)));
            }
            assert!(one.subresources.is_sorted_by(|a, b| a.name < b.name));
        }
    }

    #[test]
    fn a_kind_is_found_by_its_path_and_by_its_object() {
        for one in kinds() {
            assert_eq!(at_path(one.group, one.version, one.plural), Some(one));
            assert_eq!(of_object(&one.api_version(), one.kind), Some(one));
        }
        for (api_version, kind) in
            [("v1", "EndpointSlice"), ("v2", "Service"), ("", "Service"), ("core/v1", "Service"), ("v1", "services")]
        {
            assert_eq!(of_object(api_version, kind), None, "{api_version} {kind}");
        }
        assert_eq!(at_path("", "v1", "service"), None);
    }

    #[test]
    fn what_is_only_looked_at_cannot_be_written() {
        for (plural, verb, can) in [
            ("services", "deletecollection", true),
            ("namespaces", "deletecollection", false),
            ("endpointslices", "patch", false),
            ("leases", "watch", false),
            ("leases", "create", false),
            ("servicecidrs", "create", false),
            ("ipaddresses", "delete", false),
            ("selfsubjectaccessreviews", "create", true),
            ("selfsubjectaccessreviews", "get", false),
        ] {
            let found = kinds().iter().find(|one| one.plural == plural).unwrap();
            assert_eq!(found.can(verb), can, "{verb} {plural}");
        }
    }

    #[test]
    fn groups_start_with_the_core_and_come_once() {
        let groups: Vec<_> = group_versions().into_iter().map(|(group, _)| group).collect();
        let others = [
            "authentication.k8s.io",
            "authorization.k8s.io",
            "coordination.k8s.io",
            "discovery.k8s.io",
            "networking.k8s.io",
        ];
        assert_eq!(groups, [&[""][..], &others].concat());
    }
}
