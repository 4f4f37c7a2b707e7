//! Raises the machine version while this member leads: as soon as every member's program executes a newer one.

use crate::machine::MACHINE_VERSION;
use crate::machine::version::common;
use crate::raft::Consensus;
use crate::write::stamp;
use fairlead_proto::internal::v1::{SetMachineVersion, command};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks while this member leads and knows more than is in force.
pub async fn run(consensus: Consensus, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        let state = consensus.local().state.clone();
        if !consensus.is_leader()
            || state.settings().cluster_id.is_empty()
            || state.machine_version() >= MACHINE_VERSION
        {
            continue;
        }
        let others = consensus.members().into_iter().map(|member| member.id).filter(|id| *id != consensus.status().id);
        let asked = others.map(|id| {
            let consensus = &consensus;
            async move { consensus.status_of(id).await.map(|status| status.machine_version) }
        });
        let answers = futures::future::join_all(asked).await;
        let Some(version) = common(answers.into_iter().chain([Some(MACHINE_VERSION)])) else {
            continue; // One that is away may be of an older version.
        };
        if version <= state.machine_version() {
            continue;
        }
        match consensus.propose(stamp(command::Kind::SetMachineVersion(SetMachineVersion { version }), None)).await {
            Ok(_) => tracing::info!(version, "every member executes it: the machine version rises"),
            Err(error) => tracing::warn!(%error, version, "the machine version is not raised yet"),
        }
    }
}
