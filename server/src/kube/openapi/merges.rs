//! How each list and map of the served kinds merges: the extensions that k8s-openapi's schemas lack.
//!
//! The facts are the markers of Kubernetes 1.37's `types.go` files (`+listType`, `+listMapKey`, `+structType`, `+mapType`,
//! `+patchStrategy`, `+patchMergeKey`). Law: each row names a field that exists and is a list or a map as the row says, and each
//! list of the definitions has a row. A list that has no row would merge as a whole (atomic).

use serde_json::{Map, Value, json};

use Merge::{Atomic, AtomicMap, AtomicMerged, Map as ByKeys, Merged, MergedSet, Retained, Set};

/// How a list or a map merges. Server-side apply reads `list-type` and `map-type`, a strategic merge patch reads
/// `patch-strategy` and `patch-merge-key`; where the latter is said, it is the first of the list's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// A list, as a whole.
    Atomic,
    /// A list that is one whole in server-side apply, and that a strategic merge patch merges by this key.
    AtomicMerged(&'static str),
    /// A map or an object, as a whole.
    AtomicMap,
    /// A list of scalars, each there once; a strategic merge patch replaces it.
    Set,
    /// A list of scalars, each there once.
    MergedSet,
    /// A list of objects told apart by these fields; a strategic merge patch replaces it.
    Map(&'static [&'static str]),
    /// A list of objects told apart by these fields.
    Merged(&'static [&'static str]),
    /// The same, of whose items a strategic merge patch keeps only the fields that it names (`retainKeys`).
    Retained(&'static [&'static str]),
}

impl Merge {
    /// Adds what it says to the schema of the field, or of the definition.
    pub(super) fn extend(self, schema: &mut Map<String, Value>) {
        let mut say = |word: &str, value: Value| schema.insert(format!("x-kubernetes-{word}"), value);
        let list = match self {
            AtomicMap => {
                say("map-type", json!("atomic"));
                return;
            }
            Atomic | AtomicMerged(_) => "atomic",
            Set | MergedSet => "set",
            ByKeys(keys) | Merged(keys) | Retained(keys) => {
                say("list-map-keys", json!(keys));
                "map"
            }
        };
        say("list-type", json!(list));
        let (strategy, key) = match self {
            Merged(keys) => ("merge", keys.first().copied()),
            Retained(keys) => ("merge,retainKeys", keys.first().copied()),
            AtomicMerged(key) => ("merge", Some(key)),
            MergedSet => ("merge", None),
            Atomic | AtomicMap | Set | ByKeys(_) => return,
        };
        if let Some(key) = key {
            say("patch-merge-key", json!(key));
        }
        say("patch-strategy", json!(strategy));
    }
}

/// A field (of a definition whose name starts with "io.k8s."); "" is the definition itself.
pub(super) type Row = (&'static str, &'static str, Merge);

/// In order of definition and field.
pub(super) const ROWS: &[Row] = &[
    ("api.authentication.v1.UserInfo", "groups", Atomic),
    ("api.authorization.v1.FieldSelectorAttributes", "requirements", Atomic),
    ("api.authorization.v1.LabelSelectorAttributes", "requirements", Atomic),
    ("api.authorization.v1.NonResourceRule", "nonResourceURLs", Atomic),
    ("api.authorization.v1.NonResourceRule", "verbs", Atomic),
    ("api.authorization.v1.ResourceRule", "apiGroups", Atomic),
    ("api.authorization.v1.ResourceRule", "resourceNames", Atomic),
    ("api.authorization.v1.ResourceRule", "resources", Atomic),
    ("api.authorization.v1.ResourceRule", "verbs", Atomic),
    ("api.authorization.v1.SubjectRulesReviewStatus", "nonResourceRules", Atomic),
    ("api.authorization.v1.SubjectRulesReviewStatus", "resourceRules", Atomic),
    ("api.core.v1.Capabilities", "add", Atomic),
    ("api.core.v1.Capabilities", "drop", Atomic),
    ("api.core.v1.CephFSVolumeSource", "monitors", Atomic),
    ("api.core.v1.ConfigMapKeySelector", "", AtomicMap),
    ("api.core.v1.ConfigMapProjection", "items", Atomic),
    ("api.core.v1.ConfigMapVolumeSource", "items", Atomic),
    ("api.core.v1.Container", "args", Atomic),
    ("api.core.v1.Container", "command", Atomic),
    ("api.core.v1.Container", "env", Merged(&["name"])),
    ("api.core.v1.Container", "envFrom", Atomic),
    ("api.core.v1.Container", "ports", Merged(&["containerPort", "protocol"])),
    ("api.core.v1.Container", "resizePolicy", Atomic),
    ("api.core.v1.Container", "restartPolicyRules", Atomic),
    ("api.core.v1.Container", "volumeDevices", Merged(&["devicePath"])),
    ("api.core.v1.Container", "volumeMounts", Merged(&["mountPath"])),
    ("api.core.v1.ContainerImage", "names", Atomic),
    ("api.core.v1.ContainerRestartRuleOnExitCodes", "values", Set),
    ("api.core.v1.ContainerStatus", "allocatedResourcesStatus", Merged(&["name"])),
    ("api.core.v1.ContainerStatus", "volumeMounts", Merged(&["mountPath"])),
    ("api.core.v1.DownwardAPIProjection", "items", Atomic),
    ("api.core.v1.DownwardAPIVolumeSource", "items", Atomic),
    ("api.core.v1.EndpointAddress", "", AtomicMap),
    ("api.core.v1.EndpointPort", "", AtomicMap),
    ("api.core.v1.EndpointSubset", "addresses", Atomic),
    ("api.core.v1.EndpointSubset", "notReadyAddresses", Atomic),
    ("api.core.v1.EndpointSubset", "ports", Atomic),
    ("api.core.v1.Endpoints", "subsets", Atomic),
    ("api.core.v1.EphemeralContainer", "args", Atomic),
    ("api.core.v1.EphemeralContainer", "command", Atomic),
    ("api.core.v1.EphemeralContainer", "env", Merged(&["name"])),
    ("api.core.v1.EphemeralContainer", "envFrom", Atomic),
    ("api.core.v1.EphemeralContainer", "ports", Merged(&["containerPort", "protocol"])),
    ("api.core.v1.EphemeralContainer", "resizePolicy", Atomic),
    ("api.core.v1.EphemeralContainer", "restartPolicyRules", Atomic),
    ("api.core.v1.EphemeralContainer", "volumeDevices", Merged(&["devicePath"])),
    ("api.core.v1.EphemeralContainer", "volumeMounts", Merged(&["mountPath"])),
    ("api.core.v1.ExecAction", "command", Atomic),
    ("api.core.v1.FCVolumeSource", "targetWWNs", Atomic),
    ("api.core.v1.FCVolumeSource", "wwids", Atomic),
    ("api.core.v1.FileKeySelector", "", AtomicMap),
    ("api.core.v1.HTTPGetAction", "httpHeaders", Atomic),
    ("api.core.v1.HostAlias", "hostnames", Atomic),
    ("api.core.v1.ISCSIVolumeSource", "portals", Atomic),
    ("api.core.v1.LinuxContainerUser", "supplementalGroups", Atomic),
    ("api.core.v1.LoadBalancerIngress", "ports", Atomic),
    ("api.core.v1.LoadBalancerStatus", "ingress", Atomic),
    ("api.core.v1.LocalObjectReference", "", AtomicMap),
    ("api.core.v1.NamespaceSpec", "finalizers", Atomic),
    ("api.core.v1.NamespaceStatus", "conditions", Merged(&["type"])),
    ("api.core.v1.NodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution", Atomic),
    ("api.core.v1.NodeAllocatableResourceClaimStatus", "containers", Set),
    ("api.core.v1.NodeAllocatableResourceClaimStatus", "mapping", Merged(&["name"])),
    ("api.core.v1.NodeAllocatableResourceClaimStatus", "overhead", Merged(&["name"])),
    ("api.core.v1.NodePodPreemptionPolicy", "disableResizePreemption", Set),
    ("api.core.v1.NodeSelector", "", AtomicMap),
    ("api.core.v1.NodeSelector", "nodeSelectorTerms", Atomic),
    ("api.core.v1.NodeSelectorRequirement", "values", Atomic),
    ("api.core.v1.NodeSelectorTerm", "", AtomicMap),
    ("api.core.v1.NodeSelectorTerm", "matchExpressions", Atomic),
    ("api.core.v1.NodeSelectorTerm", "matchFields", Atomic),
    ("api.core.v1.NodeSpec", "podCIDRs", MergedSet),
    ("api.core.v1.NodeSpec", "taints", Atomic),
    ("api.core.v1.NodeStatus", "addresses", Merged(&["type"])),
    ("api.core.v1.NodeStatus", "conditions", Merged(&["type"])),
    ("api.core.v1.NodeStatus", "declaredFeatures", Atomic),
    ("api.core.v1.NodeStatus", "images", Atomic),
    ("api.core.v1.NodeStatus", "runtimeHandlers", Atomic),
    ("api.core.v1.NodeStatus", "volumesAttached", Atomic),
    ("api.core.v1.NodeStatus", "volumesInUse", Atomic),
    ("api.core.v1.ObjectFieldSelector", "", AtomicMap),
    ("api.core.v1.ObjectReference", "", AtomicMap),
    ("api.core.v1.PersistentVolumeClaimSpec", "accessModes", Atomic),
    ("api.core.v1.PodAffinity", "preferredDuringSchedulingIgnoredDuringExecution", Atomic),
    ("api.core.v1.PodAffinity", "requiredDuringSchedulingIgnoredDuringExecution", Atomic),
    ("api.core.v1.PodAffinityTerm", "matchLabelKeys", Atomic),
    ("api.core.v1.PodAffinityTerm", "mismatchLabelKeys", Atomic),
    ("api.core.v1.PodAffinityTerm", "namespaces", Atomic),
    ("api.core.v1.PodAntiAffinity", "preferredDuringSchedulingIgnoredDuringExecution", Atomic),
    ("api.core.v1.PodAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution", Atomic),
    ("api.core.v1.PodDNSConfig", "nameservers", Atomic),
    ("api.core.v1.PodDNSConfig", "options", Atomic),
    ("api.core.v1.PodDNSConfig", "searches", Atomic),
    ("api.core.v1.PodExtendedResourceClaimStatus", "requestMappings", Atomic),
    ("api.core.v1.PodSecurityContext", "supplementalGroups", Atomic),
    ("api.core.v1.PodSecurityContext", "sysctls", Atomic),
    ("api.core.v1.PodSpec", "containers", Merged(&["name"])),
    ("api.core.v1.PodSpec", "ephemeralContainers", Merged(&["name"])),
    ("api.core.v1.PodSpec", "evictionResponders", Merged(&["name"])),
    ("api.core.v1.PodSpec", "hostAliases", Merged(&["ip"])),
    ("api.core.v1.PodSpec", "imagePullSecrets", Merged(&["name"])),
    ("api.core.v1.PodSpec", "initContainers", Merged(&["name"])),
    ("api.core.v1.PodSpec", "nodeSelector", AtomicMap),
    ("api.core.v1.PodSpec", "readinessGates", Atomic),
    ("api.core.v1.PodSpec", "resourceClaims", Retained(&["name"])),
    ("api.core.v1.PodSpec", "schedulingGates", Merged(&["name"])),
    ("api.core.v1.PodSpec", "tolerations", Atomic),
    ("api.core.v1.PodSpec", "topologySpreadConstraints", Merged(&["topologyKey", "whenUnsatisfiable"])),
    ("api.core.v1.PodSpec", "volumes", Retained(&["name"])),
    ("api.core.v1.PodStatus", "conditions", Merged(&["type"])),
    ("api.core.v1.PodStatus", "containerStatuses", Atomic),
    ("api.core.v1.PodStatus", "ephemeralContainerStatuses", Atomic),
    ("api.core.v1.PodStatus", "hostIPs", AtomicMerged("ip")),
    ("api.core.v1.PodStatus", "initContainerStatuses", Atomic),
    ("api.core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses", Merged(&["resourceClaimName"])),
    ("api.core.v1.PodStatus", "podIPs", Merged(&["ip"])),
    ("api.core.v1.PodStatus", "resourceClaimStatuses", Retained(&["name"])),
    ("api.core.v1.PodStatus", "volumeHealth", Merged(&["name"])),
    ("api.core.v1.PodVolumeHealth", "healthConditions", Merged(&["status", "reason"])),
    ("api.core.v1.ProjectedVolumeSource", "sources", Atomic),
    ("api.core.v1.RBDVolumeSource", "monitors", Atomic),
    ("api.core.v1.ResourceFieldSelector", "", AtomicMap),
    ("api.core.v1.ResourceRequirements", "claims", ByKeys(&["name"])),
    ("api.core.v1.ResourceStatus", "resources", ByKeys(&["resourceID"])),
    ("api.core.v1.SecretKeySelector", "", AtomicMap),
    ("api.core.v1.SecretProjection", "items", Atomic),
    ("api.core.v1.SecretVolumeSource", "items", Atomic),
    ("api.core.v1.ServiceSpec", "clusterIPs", Atomic),
    ("api.core.v1.ServiceSpec", "externalIPs", Atomic),
    ("api.core.v1.ServiceSpec", "ipFamilies", Atomic),
    ("api.core.v1.ServiceSpec", "loadBalancerSourceRanges", Atomic),
    ("api.core.v1.ServiceSpec", "ports", Merged(&["port", "protocol"])),
    ("api.core.v1.ServiceSpec", "selector", AtomicMap),
    ("api.core.v1.ServiceStatus", "conditions", Merged(&["type"])),
    ("api.core.v1.TopologySpreadConstraint", "matchLabelKeys", Atomic),
    ("api.core.v1.TypedLocalObjectReference", "", AtomicMap),
    ("api.core.v1.VolumeMount", "bindMountOptions", Set),
    ("api.discovery.v1.Endpoint", "addresses", Set),
    ("api.discovery.v1.EndpointHints", "forNodes", Atomic),
    ("api.discovery.v1.EndpointHints", "forZones", Atomic),
    ("api.discovery.v1.EndpointPort", "", AtomicMap),
    ("api.discovery.v1.EndpointSlice", "endpoints", Atomic),
    ("api.discovery.v1.EndpointSlice", "ports", Atomic),
    ("api.networking.v1.ServiceCIDRSpec", "cidrs", Atomic),
    ("api.networking.v1.ServiceCIDRStatus", "conditions", Merged(&["type"])),
    ("apimachinery.pkg.apis.meta.v1.DeleteOptions", "dryRun", Atomic),
    ("apimachinery.pkg.apis.meta.v1.FieldSelectorRequirement", "values", Atomic),
    ("apimachinery.pkg.apis.meta.v1.LabelSelector", "", AtomicMap),
    ("apimachinery.pkg.apis.meta.v1.LabelSelector", "matchExpressions", Atomic),
    ("apimachinery.pkg.apis.meta.v1.LabelSelectorRequirement", "values", Atomic),
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", MergedSet),
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "managedFields", Atomic),
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", Merged(&["uid"])),
    ("apimachinery.pkg.apis.meta.v1.OwnerReference", "", AtomicMap),
    ("apimachinery.pkg.apis.meta.v1.StatusDetails", "causes", Atomic),
];

/// What a field is if it is not said (`+default`): those that are not the type's zero, or that are a key of a list.
pub(super) const DEFAULTS: &[(&str, &str, &str)] = &[
    ("api.core.v1.AzureDiskVolumeSource", "cachingMode", "ReadWrite"),
    ("api.core.v1.AzureDiskVolumeSource", "fsType", "ext4"),
    ("api.core.v1.AzureDiskVolumeSource", "kind", "Shared"),
    ("api.core.v1.ContainerPort", "protocol", "TCP"),
    ("api.core.v1.ISCSIVolumeSource", "iscsiInterface", "default"),
    ("api.core.v1.LocalObjectReference", "name", ""),
    ("api.core.v1.RBDVolumeSource", "keyring", "/etc/ceph/keyring"),
    ("api.core.v1.RBDVolumeSource", "pool", "rbd"),
    ("api.core.v1.RBDVolumeSource", "user", "admin"),
    ("api.core.v1.ScaleIOVolumeSource", "fsType", "xfs"),
    ("api.core.v1.ScaleIOVolumeSource", "storageMode", "ThinProvisioned"),
    ("api.core.v1.ServicePort", "protocol", "TCP"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::openapi::definitions;

    fn field(definition: &str, name: &str) -> &'static Value {
        let found = &definitions()[&format!("io.k8s.{definition}")];
        let found = if name.is_empty() { Some(found) } else { found["properties"].get(name) };
        found.unwrap_or_else(|| panic!("{definition} has no {name}"))
    }

    fn target(schema: &Value) -> Option<&'static Value> {
        let reference = schema.get("$ref").or_else(|| schema.get("allOf")?.get(0)?.get("$ref"))?;
        definitions().get(reference.as_str()?.rsplit('/').next()?)
    }

    #[test]
    fn each_row_names_a_list_or_a_map_that_exists() {
        for (definition, name, merge) in ROWS {
            let schema = field(definition, name);
            let map = schema.get("additionalProperties").is_some() || schema.get("properties").is_some();
            let expected = if *merge == AtomicMap { (false, true) } else { (true, false) };
            assert_eq!((schema["type"] == "array", map), expected, "{definition}.{name} as {merge:?}");
        }
    }

    #[test]
    fn keys_are_scalar_fields_that_each_item_has_or_defaults() {
        for (definition, name, merge) in ROWS {
            let (ByKeys(keys) | Merged(keys) | Retained(keys)) = merge else { continue };
            assert!(!keys.is_empty());
            let item = target(&field(definition, name)["items"]).unwrap();
            for key in *keys {
                let schema = &item["properties"][key];
                assert!(schema["type"] == "string" || schema["type"] == "integer", "{definition}.{name}[{key}]");
                let must = item["required"].as_array().is_some_and(|all| all.contains(&json!(key)));
                let defaults = [("Service", "ports", "protocol"), ("ontainer", "ports", "protocol")];
                let defaults = defaults.iter().chain([&("Pod", "imagePullSecrets", "name")]);
                let place =
                    |(of, list, field): &(&str, &str, &str)| definition.contains(of) && name == list && key == field;
                let has_default = defaults.into_iter().any(place);
                assert_eq!(must, !has_default, "{definition}.{name}[{key}]");
                assert_eq!(schema.get("default").is_some(), has_default, "{definition}.{name}[{key}]");
            }
        }
    }

    #[test]
    fn sets_are_of_scalars() {
        for (definition, name, merge) in ROWS {
            if matches!(merge, Set | MergedSet) {
                let items = &field(definition, name)["items"]["type"];
                assert!(items == "string" || items == "integer", "{definition}.{name} of {items}");
            }
        }
    }

    #[test]
    fn each_list_has_a_row_but_the_items_of_a_list_kind() {
        for (name, schema) in definitions().iter().filter(|(name, _)| !name.ends_with("List")) {
            for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
                if schema["type"] == "array" {
                    let of = name.trim_start_matches("io.k8s.");
                    assert!(ROWS.iter().any(|row| (row.0, row.1) == (of, field)), "{name}.{field} has no row");
                }
            }
        }
    }

    #[test]
    fn rows_are_in_order_and_none_comes_twice() {
        assert!(ROWS.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)));
        assert!(DEFAULTS.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)));
    }

    #[test]
    fn defaults_are_of_optional_strings() {
        for (definition, name, value) in DEFAULTS {
            assert_eq!(field(definition, name)["default"], *value);
            assert_eq!(field(definition, name)["type"], "string");
            let required = &definitions()[&format!("io.k8s.{definition}")]["required"];
            assert!(!required.as_array().is_some_and(|all| all.contains(&json!(name))), "{definition}.{name}");
        }
    }

    #[test]
    fn fields_say_what_kubernetes_says_of_them() {
        let extensions = |definition: &str, name: &str| {
            let all = field(definition, name).as_object().unwrap().iter();
            let own =
                all.filter_map(|(word, value)| Some((word.strip_prefix("x-kubernetes-")?.to_owned(), value.clone())));
            Value::Object(own.collect())
        };
        let ports = json!({
            "list-map-keys": ["port", "protocol"], "list-type": "map", "patch-merge-key": "port", "patch-strategy": "merge",
        });
        let owners = json!({ "list-map-keys": ["uid"], "list-type": "map", "patch-merge-key": "uid", "patch-strategy": "merge" });
        let volumes = json!({
            "list-map-keys": ["name"], "list-type": "map", "patch-merge-key": "name", "patch-strategy": "merge,retainKeys",
        });
        let host_ips = json!({ "list-type": "atomic", "patch-merge-key": "ip", "patch-strategy": "merge" });
        for (definition, name, expected) in [
            ("api.core.v1.ServiceSpec", "ports", ports),
            ("api.core.v1.ServiceSpec", "selector", json!({ "map-type": "atomic" })),
            ("api.core.v1.ServiceSpec", "clusterIPs", json!({ "list-type": "atomic" })),
            ("api.core.v1.PodSpec", "volumes", volumes),
            ("api.core.v1.PodStatus", "hostIPs", host_ips),
            ("api.discovery.v1.Endpoint", "addresses", json!({ "list-type": "set" })),
            ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", owners),
            ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "labels", json!({})),
            (
                "apimachinery.pkg.apis.meta.v1.ObjectMeta",
                "finalizers",
                json!({ "list-type": "set", "patch-strategy": "merge" }),
            ),
            ("apimachinery.pkg.apis.meta.v1.LabelSelector", "", json!({ "map-type": "atomic" })),
        ] {
            assert_eq!(extensions(definition, name), expected, "{definition}.{name}");
        }
    }
}
