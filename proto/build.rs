//! Compiles the .proto files with protox (no protoc to install) and gives the object kinds serde's derives with
//! Kubernetes' JSON names, so that one definition is the wire, stored and manifest form.

use prost::Message as _;
use std::{env, fs, path::PathBuf};

/// Messages that are part of a manifest.
const MANIFEST_MESSAGES: &[&str] = &[
    "ObjectMeta",
    "OwnerReference",
    "Namespace",
    "NamespaceStatus",
    "Node",
    "NodeSpec",
    "NodeStatus",
    "NodeAddress",
    "Condition",
    "Pod",
    "PodSpec",
    "Container",
    "ContainerPort",
    "Probe",
    "HttpGetAction",
    "HttpHeader",
    "TcpSocketAction",
    "GrpcAction",
    "ExecAction",
    "PodStatus",
    "PodIp",
    "Service",
    "ServiceSpec",
    "ServicePort",
    "SessionAffinityConfig",
    "ClientIpConfig",
    "ServiceStatus",
    "LoadBalancerStatus",
    "LoadBalancerIngress",
    "Event",
    "ObjectReference",
];

/// Fields whose JSON name is not the camel case of their proto name.
const SPECIAL_NAMES: &[(&str, &str)] = &[
    ("ServiceSpec.cluster_ip", "clusterIP"),
    ("ServiceSpec.cluster_ips", "clusterIPs"),
    ("ServiceSpec.external_ips", "externalIPs"),
    ("ServiceSpec.load_balancer_ip", "loadBalancerIP"),
    ("SessionAffinityConfig.client_ip", "clientIP"),
    ("NodeSpec.pod_cidr", "podCIDR"),
    ("NodeSpec.pod_cidrs", "podCIDRs"),
    ("ContainerPort.host_ip", "hostIP"),
    ("PodStatus.pod_ip", "podIP"),
    ("PodStatus.pod_ips", "podIPs"),
    ("PodStatus.host_ip", "hostIP"),
];

/// Never in a manifest: kept beside it.
const UNRENDERED: &[&str] = &[
    "ObjectMeta.last_applied",
    "ObjectMeta.managed_fields",
    "Namespace.extra_json",
    "Node.extra_json",
    "Pod.extra_json",
    "Service.extra_json",
    "Event.extra_json",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "fairlead/v1/objects.proto",
        "fairlead/v1/api.proto",
        "fairlead/v1/sync.proto",
        "fairlead/v1/cluster.proto",
        "fairlead/v1/access.proto",
        "fairlead/v1/members.proto",
        "fairlead/v1/maintenance.proto",
        "fairlead/internal/v1/machine.proto",
        "fairlead/internal/v1/peer.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let rpc = env::var_os("CARGO_FEATURE_RPC").is_some();
    let mut build = tonic_prost_build::configure()
        .build_client(rpc)
        .build_server(rpc)
        .btree_map(".")
        .bytes(".fairlead.internal.v1.SnapshotChunk")
        .bytes(".fairlead.internal.v1.LogEntry.normal")
        .bytes(".fairlead.internal.v1.Proposal");
    for message in MANIFEST_MESSAGES {
        let path = format!(".fairlead.v1.{message}");
        build = build
            .type_attribute(&path, "#[derive(serde::Serialize, serde::Deserialize)]")
            .type_attribute(&path, "#[serde(rename_all = \"camelCase\", default)]")
            .field_attribute(&path, "#[serde(skip_serializing_if = \"crate::json::is_default\", deserialize_with = \"crate::json::null_is_default\")]");
    }
    for (field, name) in SPECIAL_NAMES {
        build = build.field_attribute(format!(".fairlead.v1.{field}"), format!("#[serde(rename = \"{name}\")]"));
    }
    for field in UNRENDERED {
        build = build.field_attribute(format!(".fairlead.v1.{field}"), "#[serde(skip)]");
    }
    build = build.field_attribute(
        ".fairlead.v1.ObjectMeta.revision",
        "#[serde(rename = \"resourceVersion\", serialize_with = \"crate::json::revision_as_string\")]",
    );
    build.compile_fds(descriptors)?;
    Ok(())
}
