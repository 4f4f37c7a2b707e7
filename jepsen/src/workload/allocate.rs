//! Services that take addresses and node ports out of small ranges and give them back; what each had, watchers see.

use super::{Actor, Stage};
use crate::client::{Failed, service};
use crate::random::Random;
use std::sync::Arc;

/// Their namespace.
pub const SPACE: &str = "jepsen-addresses";
/// Services of one client at once.
const KEPT: usize = 12;

/// One client.
pub async fn client(stage: Arc<Stage>, random: Random, number: u8) {
    let mut actor = Actor::new(stage, random, number);
    let mut mine: Vec<String> = Vec::new();
    let mut round = 0_u64;
    while !actor.stage.is_stopped() {
        round += 1;
        let failed = if mine.len() > KEPT || (!mine.is_empty() && actor.random.chance(45)) {
            let place = usize::try_from(actor.random.below(mine.len() as u64)).unwrap_or(0);
            let name = mine.swap_remove(place);
            actor.client.delete((SPACE, &name), None).await.err()
        } else {
            let name = format!("s{number}-{round}");
            let mut object = service((SPACE, &name), "0", false);
            if let Some(spec) = &mut object.spec {
                spec.r#type = if actor.random.chance(50) { "NodePort" } else { "ClusterIP" }.to_owned();
            }
            match actor.client.create(object.into(), None).await {
                Ok(_) => {
                    mine.push(name);
                    None
                }
                Err(failed) => {
                    if matches!(failed, Failed::Unknown(_)) {
                        mine.push(name); // It may be there: it is removed some day.
                    }
                    Some(failed)
                }
            }
        };
        if failed.is_some() {
            actor.fail().await;
        } else {
            tokio::time::sleep(std::time::Duration::from_millis(2 + actor.random.below(8))).await;
        }
    }
}
