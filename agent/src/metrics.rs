//! The agent's metrics: their fixed names, and what they say; those that kube-proxy has keep its names, so that its
//! dashboards work. METRICS.md lists them for people; a test keeps the two, and what a running agent shows, the same.

use fairlead_proto::metric::{Metric, counter, gauge, histogram};
use std::time::SystemTime;

/// Every metric of an agent.
pub const METRICS: &[Metric] = &[
    gauge("fairlead_build_info", "1; its label says the version."),
    histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Time to bring the kernel to a view."),
    gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the kernel was last brought to a view."),
    gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change of the view last came."),
    counter("kubeproxy_sync_proxy_rules_service_changes_total", "Services that a change of the view touched."),
    gauge("fairlead_agent_applied_revision", "Revision that the kernel serves."),
    counter("fairlead_agent_sync_failures_total", "Changes that the kernel refused; they are tried again."),
    counter("fairlead_agent_drift_total", "Rules that others changed, and that were repaired."),
    counter("fairlead_agent_stream_ends_total", "Streams to servers that ended."),
    counter("fairlead_agent_flows_forgotten_total", "Conntrack entries deleted because their endpoint is gone."),
    histogram("fairlead_agent_flows_look_seconds", "Time of one look through conntrack."),
];

/// Now, as timestamps in metrics are.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
