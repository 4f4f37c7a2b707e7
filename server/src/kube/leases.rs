//! Nodes' leases, as Kubernetes shows them: made from what nodes said last, for heartbeats stay in servers' memory. Pure.

use crate::kube::read::Made;
use crate::kube::table::Of;
use crate::machine::Snapshot;
use fairlead_proto::v1::NodeProgress;
use serde_json::json;

/// Where Kubernetes keeps them.
const NAMESPACE: &str = "kube-node-lease";
/// Kubernetes' default, seconds.
const DURATION_SECONDS: u32 = 40;

/// A lease for each node.
#[must_use]
pub fn made(snapshot: &Snapshot, nodes: &[NodeProgress], now_ms: u64) -> Made {
    let revision = snapshot.state.revision();
    let lease = |node: &NodeProgress| {
        let renewed = now_ms.saturating_sub(node.silent_ms);
        let at = i64::try_from(renewed).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
        let renewed = at.map(|at| format!("{at:.6}")).unwrap_or_default();
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": node.name, "namespace": NAMESPACE, "resourceVersion": revision.to_string()},
            "spec": {"holderIdentity": node.name, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": renewed},
        })
    };
    Made { items: nodes.iter().map(lease).collect(), revision, table: Of::Lease }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;

    #[test]
    fn a_node_renewed_its_lease_when_it_was_last_heard() {
        let nodes = [NodeProgress { name: "n1".into(), silent_ms: 1_500, ..NodeProgress::default() }];
        let made = made(&World::new().snapshot, &nodes, 1_800_000_001_500);
        assert_eq!(made.items[0]["spec"]["renewTime"], "2027-01-15T08:00:00.000000Z");
        assert_eq!(made.items[0]["metadata"]["namespace"], "kube-node-lease");
    }
}
