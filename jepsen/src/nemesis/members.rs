//! Members: one is removed for good, and another, with its name and an empty disk, joins, catches up and votes.

use super::process::command;
use super::{Cure, Installed, disk, follower};
use crate::cluster::Cluster;
use crate::random::Random;
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to let the newcomer vote: it has to catch up first.
const AGAIN: Duration = Duration::from_millis(300);

/// Replaces a follower. Whoever waits for it bounds the time.
pub(super) async fn replace(cluster: &Arc<Cluster>, random: &mut Random) -> anyhow::Result<Installed> {
    let host = follower(cluster, random).await?;
    disk::all_whole(cluster).await?;
    let name = host.name();
    command(cluster, &["member", "remove", &name]).await?;
    disk::clear(cluster, host)?;
    cluster.joins(host);
    cluster.start(host)?;
    while let Err(error) = command(cluster, &["member", "promote", &name]).await {
        say_unexpected(&name, &error);
        tokio::time::sleep(AGAIN).await;
    }
    Ok(Installed { hosts: vec![host], cure: Cure::Nothing })
}

/// Only what is not expected is said: it has to catch up, and to be known, first.
fn say_unexpected(name: &str, error: &anyhow::Error) {
    let text = error.to_string();
    if !["caught up", "no member called", "learner", "leader"].iter().any(|expected| text.contains(expected)) {
        super::process::say(&format!("{name} does not vote yet: {text}"));
    }
}
