//! The server's metrics: their fixed names, and what they say. METRICS.md lists them for people; a test keeps the two, and
//! what a running server shows, the same.
//!
//! Counters and histograms are moved where things happen; gauges are read when somebody asks (`sample`).

use crate::nodes::Nodes;
use crate::raft::Consensus;
use fairlead_proto::metric::{Metric, counter, gauge, histogram};

/// Every metric of a server.
pub const METRICS: &[Metric] = &[
    gauge("fairlead_build_info", "1; its label says the version."),
    gauge("fairlead_alarms", "Alarms in force, as this member knows them."),
    gauge("fairlead_raft_is_leader", "1 if this member leads."),
    gauge("fairlead_raft_has_leader", "1 if this member knows a leader."),
    gauge("fairlead_raft_is_voter", "1 if this member votes, 0 if it is a learner or gets its data back."),
    gauge("fairlead_raft_members", "Members, learners included."),
    gauge("fairlead_raft_term", "Current term."),
    gauge("fairlead_raft_last_log_index", "Index of the last log entry here."),
    gauge("fairlead_raft_applied_index", "Index of the last applied log entry."),
    gauge("fairlead_raft_proposals", "Writes of this member's clients that are not decided yet."),
    counter("fairlead_raft_leader_changes_total", "Times that this member learned of another leader, or of none."),
    counter("fairlead_raft_suspicions_total", "Times that this member asked for votes because its leader had died."),
    gauge("fairlead_state_revision", "Revision of the cluster, as applied here."),
    gauge("fairlead_state_compacted_revision", "Changes at or below this revision are forgotten."),
    gauge("fairlead_state_objects", "Objects."),
    gauge("fairlead_state_bytes", "Encoded bytes of all objects: what the quota is on."),
    gauge("fairlead_state_machine_version", "Machine version in force."),
    histogram("fairlead_storage_commit_seconds", "Synced writes to the log: time of one group."),
    gauge("fairlead_storage_free_bytes", "Bytes left on the data directory's disk."),
    counter("fairlead_api_requests_total", "Calls of clients, by RPC and gRPC code (0 = answered)."),
    histogram("fairlead_api_request_seconds", "Calls of clients: time to the answer, or to a stream's beginning."),
    counter("fairlead_kube_requests_total", "Requests to Kubernetes' API, by verb and HTTP code."),
    histogram(
        "fairlead_kube_request_seconds",
        "Requests to Kubernetes' API: time to the answer, or to a watch's beginning.",
    ),
    counter("fairlead_api_refused_calls_total", "Calls refused at the door: not allowed, or too many at once."),
    counter("fairlead_api_refused_connections_total", "Connections hung up on: too many."),
    counter("fairlead_api_writes_total", "Writes that were decided, by whether they were rejected."),
    counter("fairlead_api_audit_errors_total", "Lines that the audit log could not take."),
    gauge("fairlead_watch_watchers", "Watches open here."),
    counter("fairlead_watch_events_total", "Events sent to watchers."),
    counter("fairlead_watch_expired_total", "Watches ended because the event window had passed them."),
    gauge("fairlead_sync_nodes", "Nodes whose streams end here."),
    counter("fairlead_sync_deltas_total", "Deltas sent to nodes."),
    histogram("fairlead_sync_kernel_seconds", "Time that a node's kernel took to take a delta, by the node's word."),
    counter("fairlead_dns_replies_total", "DNS answers, by response code."),
    histogram("fairlead_dns_reply_seconds", "DNS: time from a batch of questions to its answers."),
    counter("fairlead_dns_overload_total", "DNS questions answered SERVFAIL because there were too many."),
    counter("fairlead_dns_unavailable_total", "DNS: batches that no view was fresh enough for."),
    counter("fairlead_dns_stale_reads_total", "DNS: batches answered from a view that no quorum confirmed."),
    gauge("fairlead_dns_snapshot_age_seconds", "DNS: age of the view that answers come from."),
];

/// Sets the gauges.
pub fn sample(consensus: &Consensus, nodes: &Nodes) {
    let status = consensus.status();
    let snapshot = consensus.local();
    let state = &snapshot.state;
    let is = |condition: bool| f64::from(u8::from(condition));
    let set = |name: &'static str, value: f64| metrics::gauge!(name).set(value);
    metrics::gauge!("fairlead_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    set("fairlead_alarms", count(nodes.alarms.list().len() + nodes.own.list().len()));
    set("fairlead_raft_is_leader", is(status.leader == Some(status.id)));
    set("fairlead_raft_has_leader", is(status.leader.is_some()));
    set("fairlead_raft_is_voter", is(status.voters.contains(&status.id) && !consensus.is_returning()));
    set("fairlead_raft_members", count(consensus.members().len()));
    set("fairlead_raft_term", number(status.term));
    set("fairlead_raft_last_log_index", number(status.last_log_index));
    set("fairlead_raft_applied_index", number(status.applied_index));
    set("fairlead_raft_proposals", count(consensus.proposals()));
    set("fairlead_state_revision", number(state.revision()));
    set("fairlead_state_compacted_revision", number(snapshot.history.compacted()));
    set("fairlead_state_objects", count(state.count()));
    set("fairlead_state_bytes", number(state.bytes()));
    set("fairlead_state_machine_version", f64::from(state.machine_version()));
    set("fairlead_storage_free_bytes", number(consensus.free_bytes().unwrap_or(0)));
    set("fairlead_sync_nodes", count(nodes.local()));
}

#[allow(clippy::cast_precision_loss, reason = "a metric")]
fn number(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    number(value as u64)
}
