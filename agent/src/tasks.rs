//! Long-lived tasks: each has a name, each runs until cancelled; one that ends unasked stops the agent.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// A named set of long-lived tasks.
pub struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    cancel: CancellationToken,
}

/// A task ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[error("task {name} ended: {why}")]
pub struct Ended {
    /// The task's name.
    pub name: &'static str,
    /// What is known of its end.
    pub why: String,
}

impl Tasks {
    /// An empty set whose tasks end with `cancel`.
    #[must_use]
    pub fn new(cancel: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), cancel }
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Starts a task on a thread and a runtime of its own: it may block, and holds nobody up.
    pub fn spawn_apart(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let apart = move || Builder::new_current_thread().enable_time().build().map(|runtime| runtime.block_on(task));
        self.spawn(name, async move {
            match tokio::task::spawn_blocking(apart).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(name, %error, "can't start"),
                Err(error) => tracing::error!(name, %error, "ended"),
            }
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
                    Ok((id, ())) => (id, "without an error".to_owned()),
                    Err(error) => (error.id(), error.to_string()),
                };
                Err(Ended { name: self.names.get(&id).copied().unwrap_or("?"), why })
            }
        }
    }

    /// Waits for every task to end after cancellation, at most `limit`; what is left is aborted.
    pub async fn drain(mut self, limit: Duration) {
        self.cancel.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("some tasks did not end in time and are aborted");
        }
    }
}
