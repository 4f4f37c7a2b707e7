//! Rows of pods. The status is one word for what all containers do: the pod's own reason, that of an init container that holds
//! it up, or that of a container; a deletion under way comes before all of them.

use crate::kube::table::age::seconds;
use crate::kube::table::{NONE, at, condition, created, human_duration, list, name, number, text, text_or};
use serde_json::{Value, json};

/// The reason of pods whose node isn't heard from any more.
const NODE_LOST: &str = "NodeLost";

pub(super) fn pod(object: &Value, now: i64) -> Vec<Value> {
    let seen = Seen::of(object);
    let restarts = match seen.last_restart {
        Some(last) if seen.restarts != 0 => {
            format!("{} ({} ago)", seen.restarts, human_duration(now.saturating_sub(last)))
        }
        _ => seen.restarts.to_string(),
    };
    let address = list(object, &["status", "podIPs"]).first().map_or(NONE, |first| text_or(first, &["ip"], NONE));
    vec![
        name(object),
        format!("{}/{}", seen.ready, seen.containers).into(),
        seen.reason.into(),
        restarts.into(),
        created(object, now),
        address.into(),
        text_or(object, &["spec", "nodeName"], NONE).into(),
        text_or(object, &["status", "nominatedNodeName"], NONE).into(),
        gates(object).into(),
    ]
}

/// A row's conditions: that a pod is through, whatever came of it.
pub(super) fn conditions(object: &Value) -> Option<Value> {
    let (reason, message) = match text(object, &["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// Readiness gates whose condition is true, of all.
fn gates(object: &Value) -> String {
    let gates = list(object, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|gate| condition(object, text(gate, &["conditionType"])) == "True");
    format!("{}/{}", open.count(), gates.len())
}

/// What is seen of a pod's containers.
#[derive(Default)]
struct Seen {
    reason: String,
    ready: usize,
    containers: usize,
    restarts: i64,
    /// Seconds since 1970.
    last_restart: Option<i64>,
}

impl Seen {
    fn of(object: &Value) -> Self {
        let phase = text(object, &["status", "phase"]);
        let sidecars = list(object, &["spec", "initContainers"]).iter().filter(|one| is_sidecar(one)).count();
        let mut seen = Self {
            reason: text_or(object, &["status", "reason"], phase).to_owned(),
            containers: list(object, &["spec", "containers"]).len() + sidecars,
            ..Self::default()
        };
        let gated = |one: &&Value| text(one, &["type"]) == "PodScheduled" && text(one, &["reason"]) == GATED;
        if list(object, &["status", "conditions"]).iter().any(|condition| gated(&condition)) {
            seen.reason = GATED.to_owned();
        }
        let (of_sidecars, initializing) = seen.init_containers(object);
        if !initializing || condition(object, "Initialized") == "True" {
            // Restarts of init containers that are through don't count any more.
            (seen.restarts, seen.last_restart) = of_sidecars;
            seen.app_containers(object);
        }
        if !at(object, &["metadata", "deletionTimestamp"]).is_null() {
            if text(object, &["status", "reason"]) == NODE_LOST {
                seen.reason = "Unknown".to_owned();
            } else if phase != "Succeeded" && phase != "Failed" {
                seen.reason = "Terminating".to_owned();
            }
        }
        seen
    }

    /// Goes through init containers up to the first that holds the pod up. The answer: restarts of sidecars, and whether there
    /// is one that does.
    fn init_containers(&mut self, object: &Value) -> ((i64, Option<i64>), bool) {
        let specs = list(object, &["spec", "initContainers"]);
        let mut of_sidecars = (0, None);
        for (index, status) in list(object, &["status", "initContainerStatuses"]).iter().enumerate() {
            let spec = specs.iter().find(|spec| text(spec, &["name"]) == text(status, &["name"]));
            let sidecar = spec.is_some_and(is_sidecar);
            let (restarts, last) = (number(status, &["restartCount"]), last_end(status));
            self.restarts = self.restarts.saturating_add(restarts);
            self.last_restart = self.last_restart.max(last);
            if sidecar {
                of_sidecars = (i64::saturating_add(of_sidecars.0, restarts), of_sidecars.1.max(last));
            }
            let ended = at(status, &["state", "terminated"]);
            if !ended.is_null() && number(ended, &["exitCode"]) == 0 {
                continue;
            }
            if sidecar && at(status, &["started"]).as_bool() == Some(true) {
                self.ready += usize::from(is_ready(status));
                continue;
            }
            let waiting = text(status, &["state", "waiting", "reason"]);
            self.reason = if !ended.is_null() {
                format!("Init:{}", end_reason(ended))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", specs.len())
            };
            return (of_sidecars, true);
        }
        (of_sidecars, false)
    }

    /// Goes through the other containers, the first last, so that its reason wins.
    fn app_containers(&mut self, object: &Value) {
        let mut running = false;
        for status in list(object, &["status", "containerStatuses"]).iter().rev() {
            self.restarts = self.restarts.saturating_add(number(status, &["restartCount"]));
            self.last_restart = self.last_restart.max(last_end(status));
            let waiting = text(status, &["state", "waiting", "reason"]);
            let ended = at(status, &["state", "terminated"]);
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if !ended.is_null() {
                self.reason = end_reason(ended);
            } else if is_ready(status) && !at(status, &["state", "running"]).is_null() {
                running = true;
                self.ready += 1;
            }
        }
        // One that still runs means that the pod isn't through.
        if running && self.reason == "Completed" {
            let ready = condition(object, "Ready") == "True";
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

const GATED: &str = "SchedulingGated";

fn is_ready(status: &Value) -> bool {
    at(status, &["ready"]).as_bool() == Some(true)
}

/// An init container that runs on beside the others (KEP-753).
fn is_sidecar(spec: &Value) -> bool {
    text(spec, &["restartPolicy"]) == "Always"
}

/// When a container ended before it was started again.
fn last_end(status: &Value) -> Option<i64> {
    seconds(text(status, &["lastState", "terminated", "finishedAt"]))
}

fn end_reason(ended: &Value) -> String {
    let (reason, signal) = (text(ended, &["reason"]), number(ended, &["signal"]));
    if !reason.is_empty() {
        reason.to_owned()
    } else if signal != 0 {
        format!("Signal:{signal}")
    } else {
        format!("ExitCode:{}", number(ended, &["exitCode"]))
    }
}
