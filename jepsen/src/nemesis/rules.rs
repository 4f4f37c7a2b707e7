//! Rules: somebody else removes some of an agent's, of services without endpoints, so that no connection depends on them.

use super::{Cure, Installed};
use crate::cluster::Cluster;
use crate::hosts::Host;
use crate::random::Random;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::Stdio;

/// Elements that are removed at once.
const TAKEN: usize = 5;

/// Removes elements of the set that has most: the services that nobody serves.
pub(super) fn tamper(cluster: &Cluster, (host, random): (Host, &mut Random)) -> anyhow::Result<Installed> {
    let listed = cluster.hosts.on(host, "nft").args(["-j", "list", "table", "ip", "fairlead"]).output()?;
    ensure!(listed.status.success(), "nft: {}", String::from_utf8_lossy(&listed.stderr).trim());
    let table: Value = serde_json::from_slice(&listed.stdout)?;
    let objects = table["nftables"].as_array().into_iter().flatten();
    let sets = objects.filter_map(|object| object.get("set"));
    let largest = sets.max_by_key(|set| set["elem"].as_array().map_or(0, Vec::len)).context("the table has no sets")?;
    let mut elements = largest["elem"].as_array().cloned().unwrap_or_default();
    ensure!(!elements.is_empty(), "the sets are empty");
    let mut taken = Vec::new();
    while taken.len() < TAKEN && !elements.is_empty() {
        taken.push(elements.swap_remove(random.index(elements.len())));
    }
    let element = json!({"family": "ip", "table": "fairlead", "name": largest["name"], "elem": taken});
    let mut nft =
        cluster.hosts.on(host, "nft").args(["-j", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let text = json!({"nftables": [{"delete": {"element": element}}]}).to_string();
    nft.stdin.take().context("no input")?.write_all(text.as_bytes())?;
    let done = nft.wait_with_output()?;
    ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(Installed { hosts: vec![host], cure: Cure::Nothing })
}
