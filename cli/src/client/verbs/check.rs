//! `check`: whether each node's data plane is as it should be, and if not, why and what to do.

use crate::client::Global;
use crate::client::duration::human;
use crate::client::failure::Failure;
use crate::client::findings::{Finding, TextOrJson, any_wrong};
use crate::client::output::print;
use clap::Args;
use fairlead_proto::v1::{DataplaneRequest, NodeDataplane, NodeProgress, StatusResponse};
use serde_json::{Value, json};
use std::time::Duration;

/// Time that nodes get to serve the newest revision: what was written just now is no lag.
const PATIENCE: Duration = Duration::from_secs(3);
/// Differences named of one node.
const NAMED: usize = 5;

/// Flags of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// text or json
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// What was found of one node.
struct Checked {
    node: String,
    mode: String,
    findings: Vec<Finding>,
}

/// Runs it.
///
/// # Errors
/// Something is wrong, or no server answers.
pub async fn run(global: &Global, args: &CheckArgs) -> Result<(), Failure> {
    let session = global.session()?;
    let revision = session.servers.status().await?.revision;
    session.servers.wait_programmed(revision, PATIENCE).await?;
    let request = DataplaneRequest { diff: true, ..DataplaneRequest::default() };
    let kernels = session.servers.dataplane(request).await?.nodes;
    let status = session.servers.status().await?;
    let checked = judge(&status, revision, &kernels);
    let healthy = !checked.is_empty() && !any_wrong(checked.iter().flat_map(|one| &one.findings));
    print(&args.output.choose(|| text(&checked, healthy), || to_json(&checked, healthy))?)?;
    if healthy { Ok(()) } else { Err(Failure::Silent) }
}

/// The verdict on every node, as `-o json` prints it.
pub(super) fn judged(status: &StatusResponse, kernels: &[NodeDataplane]) -> Value {
    let checked = judge(status, status.revision, kernels);
    let healthy = !checked.is_empty() && !any_wrong(checked.iter().flat_map(|one| &one.findings));
    to_json(&checked, healthy)
}

fn judge(status: &StatusResponse, revision: u64, kernels: &[NodeDataplane]) -> Vec<Checked> {
    let checked = |node: &NodeProgress| {
        let kernel = kernels.iter().find(|kernel| kernel.node == node.name);
        Checked { node: node.name.clone(), mode: node.mode.clone(), findings: findings(node, revision, kernel) }
    };
    status.nodes.iter().map(checked).collect()
}

fn findings(node: &NodeProgress, revision: u64, kernel: Option<&NodeDataplane>) -> Vec<Finding> {
    let Some(kernel) = kernel else {
        let silent = human(i64::try_from(node.silent_ms).unwrap_or(i64::MAX));
        let text = if node.server.is_empty() {
            "its agent is connected to no server".to_owned()
        } else {
            format!("its agent is silent for {silent}")
        };
        let hint =
            format!("look at the agent on {}: systemctl status fairlead-agent; its rules stay as they are", node.name);
        return vec![Finding::wrong(text, hint)];
    };
    let mut findings = vec![Finding::fine(format!("connected to {}, mode {}", node.server, node.mode))];
    if node.mode == "dry-run" {
        findings.push(Finding::note("mode dry-run: rules are made, and no kernel has them"));
    }
    if !node.live {
        findings.push(Finding::wrong(
            "its lease is expired",
            "the agent says hello again by itself; look at its log if it doesn't",
        ));
    }
    if !node.error.is_empty() {
        findings.push(Finding::wrong(format!("the kernel refuses the rules: {}", node.error), hint(&node.error)));
    } else if node.acknowledged < revision {
        let text =
            format!("it serves revision {}, {} behind", node.acknowledged, revision.saturating_sub(node.acknowledged));
        findings.push(Finding::wrong(text, "its agent is slow or stuck; look at its log and the host's load"));
    } else {
        findings.push(Finding::fine(format!("it serves revision {}", node.acknowledged)));
    }
    findings.push(drift(node, kernel));
    let settings = kernel.answer.iter().filter_map(|answer| answer.diff.as_ref()).flat_map(|diff| &diff.settings);
    findings.extend(settings.map(|setting| {
        let hint = "set it on the node, for good in /etc/sysctl.d; the agent sets it at its start only";
        Finding::wrong(setting.as_str(), hint)
    }));
    findings
}

fn drift(node: &NodeProgress, kernel: &NodeDataplane) -> Finding {
    let Some(answer) = &kernel.answer else {
        return Finding::wrong("its agent did not answer in time", "its kernel or its agent is busy; ask again");
    };
    match &answer.diff {
        Some(diff) if diff.count == 0 => Finding::fine("the kernel holds what it should"),
        Some(diff) => {
            let mut details: Vec<String> = diff.names.iter().take(NAMED).cloned().collect();
            let more = diff.count.saturating_sub(details.len() as u64);
            details.extend((more > 0).then(|| format!("and {more} more")));
            let hint = format!(
                "the agent repairs it; if it comes back, somebody else writes: fairlead events --for node/{}",
                node.name
            );
            Finding::wrong(format!("somebody else changed the kernel's rules: {} differences", diff.count), hint)
                .with(details)
        }
        None if !answer.error.is_empty() && answer.error != node.error => {
            Finding::wrong(format!("the kernel can't be compared: {}", answer.error), hint(&answer.error))
        }
        None if !answer.error.is_empty() => Finding::note("the kernel could not be compared"),
        None => Finding::note("its agent is older and can't compare the kernel's rules"),
    }
}

/// What to do about an error of the kernel.
fn hint(error: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| error.to_ascii_lowercase().contains(part));
    if has(&["is not installed"]) {
        "install what it names on the node"
    } else if has(&["not permitted", "permission denied", "need to be root"]) {
        "the agent needs root, or CAP_NET_ADMIN and CAP_NET_RAW in the host's network namespace"
    } else if has(&["no space left", "cannot allocate memory", "no buffer space"]) {
        "a set is full or the kernel is out of memory: free some, or ask for fewer services a node"
    } else if has(&["xtables lock", "resource temporarily unavailable", "device or resource busy"]) {
        "another program holds the packet filter; the agent tries again"
    } else if has(&[
        "not supported",
        "no such file or directory",
        "module",
        "protocol not available",
        "no chain/target/match",
    ]) {
        "the kernel lacks a module or feature: modprobe it, or choose another --mode"
    } else {
        "the agent tries again; its log has the whole story: journalctl -u fairlead-agent"
    }
}

fn text(checked: &[Checked], healthy: bool) -> String {
    let mut text = String::new();
    for one in checked {
        text.push_str(&format!("node {}\n", one.node));
        for finding in &one.findings {
            text.push_str(&finding.render(true));
        }
    }
    if checked.is_empty() {
        text.push_str("no node has an agent\n          hint: fairlead agent --server HOST:7400 on each node\n");
    }
    text.push_str(if healthy { "All is well.\n" } else { "Something is wrong.\n" });
    text
}

fn to_json(checked: &[Checked], healthy: bool) -> Value {
    let nodes = checked.iter().map(|one| {
        let findings = one.findings.iter().map(|finding| finding.to_json()).collect::<Vec<_>>();
        json!({"node": one.node, "mode": one.mode, "ok": !any_wrong(one.findings.iter()), "findings": findings})
    });
    json!({"ok": healthy, "nodes": nodes.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{DataplaneAnswer, DataplaneDiff};

    fn node(change: impl FnOnce(&mut NodeProgress)) -> NodeProgress {
        let mut node = NodeProgress {
            name: "n1".into(),
            live: true,
            acknowledged: 60,
            mode: "nftables".into(),
            server: "s1".into(),
            ..NodeProgress::default()
        };
        change(&mut node);
        node
    }

    fn kernel(count: u64, error: &str) -> NodeDataplane {
        let names = (0..count).map(|n| format!("element {n} missing")).collect();
        let diff = error.is_empty().then_some(DataplaneDiff { names, count, revision: 60, settings: Vec::new() });
        let answer = DataplaneAnswer { diff, error: error.into(), ..DataplaneAnswer::default() };
        NodeDataplane { node: "n1".into(), answer: Some(answer) }
    }

    #[test]
    fn each_failure_has_its_reason_and_a_hint() {
        let silent = NodeDataplane { node: "n1".into(), answer: None };
        let fine = kernel(0, "");
        let mut unset = kernel(0, "");
        let diff = unset.answer.as_mut().and_then(|answer| answer.diff.as_mut()).unwrap();
        diff.settings = vec!["net.ipv4.vs.conntrack = 0, not 1".into()];
        for (node, kernel, says, hint) in [
            (node(|_| {}), Some(fine.clone()), "", ""),
            (node(|node| node.server.clear()), None, "its agent is connected to no server", "systemctl status"),
            (node(|_| {}), None, "its agent is silent", "systemctl status"),
            (node(|node| node.live = false), Some(fine.clone()), "its lease is expired", "hello"),
            (
                node(|node| node.acknowledged = 55),
                Some(fine.clone()),
                "it serves revision 55, 5 behind",
                "slow or stuck",
            ),
            (
                node(|_| {}),
                Some(kernel(7, "")),
                "somebody else changed the kernel's rules: 7 differences",
                "fairlead events --for node/n1",
            ),
            (node(|_| {}), Some(unset), "net.ipv4.vs.conntrack = 0, not 1", "/etc/sysctl.d"),
            (node(|_| {}), Some(silent), "did not answer in time", "ask again"),
            (node(|_| {}), Some(kernel(0, "netlink: Operation not permitted")), "can't be compared", "CAP_NET_ADMIN"),
            (
                node(|node| node.error = "nft is not installed: …".into()),
                Some(fine.clone()),
                "the kernel refuses the rules",
                "install",
            ),
            (
                node(|node| node.error = "netlink, frontends: No space left on device".into()),
                Some(fine.clone()),
                "refuses",
                "a set is full",
            ),
            (
                node(|node| node.error = "Another app is currently holding the xtables lock".into()),
                Some(fine.clone()),
                "refuses",
                "another program",
            ),
            (node(|node| node.error = "Operation not supported".into()), Some(fine.clone()), "refuses", "modprobe"),
            (node(|node| node.error = "odd".into()), Some(fine.clone()), "refuses", "journalctl"),
        ] {
            let found = findings(&node, 60, kernel.as_ref());
            let wrong: Vec<_> = found.iter().filter(|one| one.level == crate::client::findings::Level::Wrong).collect();
            assert_eq!(wrong.len(), usize::from(!says.is_empty()), "{found:?}");
            assert!(wrong.iter().all(|one| one.text.contains(says) && one.hint.contains(hint)), "{says}: {found:?}");
        }
    }

    #[test]
    fn a_cluster_without_nodes_is_not_healthy_and_differences_are_named() {
        assert!(judge(&StatusResponse::default(), 1, &[]).is_empty());
        assert!(text(&[], false).contains("no node has an agent"));
        let found = drift(&node(|_| {}), &kernel(7, ""));
        assert_eq!(found.details.len(), NAMED + 1);
        assert_eq!(found.details[NAMED], "and 2 more");
        let checked = vec![Checked { node: "n1".into(), mode: "nftables".into(), findings: vec![found] }];
        assert_eq!(to_json(&checked, false)["nodes"][0]["ok"], false);
    }
}
