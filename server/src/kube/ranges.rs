//! The ranges that ClusterIPs come from, as a ServiceCIDR (KEP-1880): the cluster's setting, which nobody changes. Pure.

use crate::kube::read::Made;
use crate::kube::table::Of;
use crate::machine::Snapshot;
use serde_json::json;

/// The one ServiceCIDR, called as Kubernetes calls its first.
#[must_use]
pub fn made(snapshot: &Snapshot) -> Made {
    let revision = snapshot.state.revision();
    let range = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "resourceVersion": "1"},
        "spec": {"cidrs": [snapshot.state.settings().service_cidr]},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": ""}]},
    });
    Made { items: vec![range], revision, table: Of::ServiceCidr }
}
