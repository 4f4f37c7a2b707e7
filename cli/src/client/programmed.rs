//! Waiting until the kernels of every live node serve a revision, and naming those that don't.
//!
//! Invariant: success is never said over a node that may still run with older rules; such a node is named.

use crate::client::Session;
use crate::client::failure::Failure;
use fairlead_proto::v1::{NodeProgress, WaitProgrammedResponse};
use std::time::Duration;

/// Waits; the number of nodes that serve it.
///
/// # Errors
/// A time-out that names the laggards, or no answer.
pub async fn wait(session: &Session, revision: u64, limit: Duration) -> Result<u32, Failure> {
    let answer = session.servers.wait_programmed(revision, limit).await?;
    verdict(&answer).map_err(Failure::Local)?;
    for node in &answer.laggards {
        eprintln!("Warning: {}", laggard(node));
    }
    if answer.nodes == 0 {
        eprintln!("Warning: there is no live node to program revision {}", answer.revision);
    }
    Ok(answer.nodes)
}

/// Waits, and takes a node that may still run with older rules for a failure, live or silent; the number of nodes that serve it.
///
/// # Errors
/// A time-out or a silent node, by name, or no answer.
pub async fn prove(session: &Session, revision: u64, limit: Duration) -> Result<u32, Failure> {
    let answer = session.servers.wait_programmed(revision, limit).await?;
    proof(&answer).map_err(Failure::Local)?;
    Ok(answer.nodes)
}

fn proof(answer: &WaitProgrammedResponse) -> Result<(), String> {
    verdict(answer)?;
    if answer.laggards.is_empty() {
        return Ok(());
    }
    let who: Vec<String> = answer.laggards.iter().map(laggard).collect();
    Err(format!("revision {} is programmed on the live nodes, but {}", answer.revision, who.join("; ")))
}

fn verdict(answer: &WaitProgrammedResponse) -> Result<(), String> {
    if answer.programmed {
        return Ok(());
    }
    let behind = answer.laggards.iter().filter(|node| node.live).count();
    let who: Vec<String> = answer.laggards.iter().map(laggard).collect();
    let who = if who.is_empty() { "the nodes are not known yet".to_owned() } else { who.join("; ") };
    Err(format!(
        "timed out waiting for revision {} to be programmed ({behind} of {} live nodes behind): {who}",
        answer.revision, answer.nodes
    ))
}

/// One node that does not serve the revision.
pub fn laggard(node: &NodeProgress) -> String {
    let mode = if node.mode.is_empty() { String::new() } else { format!(" ({})", node.mode) };
    let error = if node.error.is_empty() { String::new() } else { format!(": {}", node.error) };
    if node.live {
        format!("node {}{mode} is at revision {}, {} behind{error}", node.name, node.acknowledged, node.lag)
    } else {
        let silent = crate::client::duration::human(i64::try_from(node.silent_ms).unwrap_or(i64::MAX));
        format!(
            "node {}{mode} is silent for {silent} and may still run with the rules of revision {}{error}",
            node.name, node.acknowledged
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laggards_and_silent_nodes_are_named() {
        let node = |name: &str, live| NodeProgress {
            name: name.into(),
            live,
            acknowledged: 10,
            lag: 2,
            mode: "iptables".into(),
            silent_ms: 65_000,
            ..NodeProgress::default()
        };
        let answer = WaitProgrammedResponse {
            programmed: false,
            revision: 12,
            nodes: 3,
            laggards: vec![node("a", true), node("b", false)],
        };
        assert_eq!(
            verdict(&answer).unwrap_err(),
            "timed out waiting for revision 12 to be programmed (1 of 3 live nodes behind): node a (iptables) is at revision 10, 2 behind; node b (iptables) is silent for 65s and may still run with the rules of revision 10"
        );
        let programmed = WaitProgrammedResponse { programmed: true, laggards: vec![node("b", false)], ..answer };
        assert_eq!(verdict(&programmed), Ok(()));
        assert_eq!(
            proof(&programmed).unwrap_err(),
            "revision 12 is programmed on the live nodes, but node b (iptables) is silent for 65s and may still run with the rules of revision 10"
        );
        assert_eq!(proof(&WaitProgrammedResponse { laggards: vec![], ..programmed }), Ok(()));
        assert!(verdict(&WaitProgrammedResponse::default()).unwrap_err().contains("not known yet"));
    }
}
