//! Long-lived tasks: each has a name, each runs until cancelled; one that ends unasked stops the process.

use std::collections::HashMap;
use std::future::Future;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// A named set of long-lived tasks.
pub struct Tasks {
    set: JoinSet<Result<(), String>>,
    names: HashMap<Id, &'static str>,
    cancel: CancellationToken,
}

/// A task ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[error("task {name} ended: {why}")]
pub struct Ended {
    /// The task's name.
    pub name: &'static str,
    /// What it said.
    pub why: String,
}

impl Tasks {
    /// An empty set whose tasks end with `cancel`.
    #[must_use]
    pub fn new(cancel: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), cancel }
    }

    /// Starts a task.
    pub fn spawn<E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.set.spawn(async move { task.await.map_err(|error| error.to_string()) });
        self.names.insert(handle.id(), name);
    }

    /// Starts a task that can't fail.
    pub fn spawn_quiet(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            task.await;
            Ok::<(), String>(())
        });
    }

    /// Runs until cancelled or until a task ends unasked; then cancels the others.
    ///
    /// # Errors
    /// The task that ended unasked.
    pub async fn until_end(&mut self) -> Result<(), Ended> {
        tokio::select! {
            () = self.cancel.cancelled() => Ok(()),
            Some(ended) = self.set.join_next_with_id() => {
                if self.cancel.is_cancelled() {
                    return Ok(());
                }
                self.cancel.cancel();
                let (id, why) = match ended {
                    Ok((id, Ok(()))) => (id, "without an error".to_owned()),
                    Ok((id, Err(error))) => (id, error),
                    Err(error) => (error.id(), error.to_string()),
                };
                Err(Ended { name: self.names.get(&id).copied().unwrap_or("?"), why })
            }
        }
    }

    /// Waits for every task to end after cancellation, at most `limit`; what is left is aborted.
    pub async fn drain(mut self, limit: std::time::Duration) {
        self.cancel.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("some tasks did not end in time and are aborted");
        }
    }
}
