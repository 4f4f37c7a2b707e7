//! Validators: judges of what watchers, resolvers and connections saw. Pure.

pub mod addresses;
pub mod names;
pub mod watches;

use crate::history::{Anomaly, Verdict};

/// Anomalies that are kept of one validator: more of them say nothing more.
const KEPT: usize = 20;

/// Valid, if there is nothing.
fn verdict(anomalies: Vec<Anomaly>) -> Verdict {
    if anomalies.is_empty() { Verdict::Valid } else { Verdict::Broken(anomalies.into_iter().take(KEPT).collect()) }
}

fn anomaly(kind: &'static str, what: String) -> Anomaly {
    Anomaly { kind, what, operations: Vec::new() }
}
