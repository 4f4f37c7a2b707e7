//! `status`: members, nodes and alarms, as one server knows them; works without a leader.

use crate::client::Global;
use crate::client::duration::human;
use crate::client::failure::Failure;
use crate::client::output::{json_text, print, yaml};
use crate::client::table::Aligner;
use clap::Args;
use fairlead_proto::v1::{MemberStatus, NodeProgress, StatusResponse};
use serde_json::{Value, json};

/// Digits of a digest that a table shows.
const DIGITS: usize = 12;

/// Flags of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// table, json or yaml
    #[arg(short, long, default_value = "table")]
    output: String,
}

/// Runs it.
///
/// # Errors
/// No server answers.
pub async fn run(global: &Global, args: &StatusArgs) -> Result<(), Failure> {
    let render: fn(&StatusResponse) -> Result<String, Failure> = match args.output.as_str() {
        "table" | "wide" | "" => |status| Ok(table(status)),
        "json" => |status| json_text(&to_json(status)),
        "yaml" => |status| yaml(&to_json(status)),
        other => {
            return Err(Failure::local(format!(
                "unable to match a printer suitable for the output format {other:?}, allowed formats are: table,json,yaml"
            )));
        }
    };
    let status = global.session()?.servers.status().await?;
    print(&render(&status)?)
}

/// As `-o json` prints it.
pub(super) fn to_json(status: &StatusResponse) -> Value {
    json!({
        "clusterId": status.cluster_id,
        "revision": status.revision,
        "server": status.server,
        "version": status.version,
        "machineVersion": status.machine_version,
        "clusterDomain": status.cluster_domain,
        "alarms": status.alarms,
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

fn member(member: &MemberStatus) -> Value {
    json!({
        "id": member.id,
        "name": member.name,
        "peerAddress": member.peer_address,
        "grpcAddress": member.grpc_address,
        "leader": member.leader,
        "voter": member.voter,
        "term": member.term,
        "appliedIndex": member.applied_index,
        "revision": member.revision,
        "stateDigest": member.state_digest,
        "machineVersion": member.machine_version,
        "error": member.error,
    })
}

fn node(node: &NodeProgress) -> Value {
    json!({
        "name": node.name,
        "live": node.live,
        "acknowledged": node.acknowledged,
        "lag": node.lag,
        "mode": node.mode,
        "error": node.error,
        "server": node.server,
        "silentMs": node.silent_ms,
        "version": node.version,
    })
}

fn table(status: &StatusResponse) -> String {
    let mut text = format!(
        "Cluster {} at revision {}, machine version {} (asked {}, {})\n\n",
        status.cluster_id, status.revision, status.machine_version, status.server, status.version
    );
    let titles = ["MEMBER", "LEADER", "VOTER", "TERM", "APPLIED", "REVISION", "DIGEST", "ADDRESS", "ERROR"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(status.members.iter().map(|member| {
        vec![
            member.name.clone(),
            member.leader.to_string(),
            member.voter.to_string(),
            member.term.to_string(),
            member.applied_index.to_string(),
            member.revision.to_string(),
            member.state_digest.chars().take(DIGITS).collect(),
            member.grpc_address.clone(),
            member.error.clone(),
        ]
    }));
    text.push_str(&Aligner::default().render(&rows));
    text.push('\n');
    if status.nodes.is_empty() {
        text.push_str("No nodes.\n");
    } else {
        let titles = ["NODE", "LIVE", "ACKNOWLEDGED", "LAG", "MODE", "SERVER", "SILENT", "VERSION", "ERROR"];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        rows.extend(status.nodes.iter().map(|node| {
            vec![
                node.name.clone(),
                node.live.to_string(),
                node.acknowledged.to_string(),
                node.lag.to_string(),
                node.mode.clone(),
                node.server.clone(),
                human(i64::try_from(node.silent_ms).unwrap_or(i64::MAX)),
                node.version.clone(),
                node.error.clone(),
            ]
        }));
        text.push_str(&Aligner::default().render(&rows));
    }
    for alarm in &status.alarms {
        text.push_str(&format!("\nALARM: {alarm}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusResponse {
        let member = MemberStatus {
            id: 1,
            name: "n1".into(),
            leader: true,
            voter: true,
            term: 3,
            applied_index: 9,
            revision: 7,
            state_digest: "ab".repeat(32),
            ..MemberStatus::default()
        };
        let node = NodeProgress {
            name: "node-1".into(),
            live: true,
            acknowledged: 6,
            lag: 1,
            mode: "iptables".into(),
            silent_ms: 900,
            ..NodeProgress::default()
        };
        StatusResponse {
            cluster_id: "c".into(),
            revision: 7,
            members: vec![member],
            nodes: vec![node],
            alarms: vec!["a digest differs".into()],
            server: "n1".into(),
            cluster_domain: "cluster.local".into(),
            version: "0.1.0".into(),
            machine_version: 2,
        }
    }

    #[test]
    fn json_has_the_names_that_others_rely_on() {
        let value = to_json(&status());
        assert_eq!((&value["members"][0]["name"], &value["members"][0]["leader"]), (&json!("n1"), &json!(true)));
        assert_eq!(
            (&value["members"][0]["term"], &value["members"][0]["appliedIndex"], &value["members"][0]["revision"]),
            (&json!(3), &json!(9), &json!(7))
        );
        assert_eq!(value["members"][0]["stateDigest"].as_str().unwrap().len(), 64);
        assert_eq!((&value["nodes"][0]["acknowledged"], &value["nodes"][0]["lag"]), (&json!(6), &json!(1)));
        assert_eq!((&value["nodes"][0]["mode"], &value["nodes"][0]["error"]), (&json!("iptables"), &json!("")));
    }

    #[test]
    fn the_table_shows_members_nodes_and_alarms() {
        let text = table(&status());
        assert!(text.contains("n1       true     true    3      9         7          abababababab"), "{text}");
        assert!(text.contains("node-1   true   6              1     iptables"), "{text}");
        assert!(text.ends_with("ALARM: a digest differs\n"), "{text}");
        assert!(table(&StatusResponse::default()).contains("No nodes."));
    }
}
