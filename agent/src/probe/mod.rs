//! The kubelet's part for the pods bound to this node: are they ready, where are they, are they gone.
//!
//! INVARIANT: a pod that the cluster believes ready stays so until its probe failed as often as it asks for; an agent
//! that starts again takes nobody out.

mod check;
mod pod;

use crate::book::Book;
use crate::shared::Shared;
use fairlead_proto::v1::Pod;
use fairlead_proto::view::NamespacedName;
use pod::{Face, Watched};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Probes that begin together are spread by this much each.
const SPREAD: Duration = Duration::from_millis(50);

/// The task that watches this node's pods.
pub struct Probes {
    shared: Arc<Shared>,
    book: Arc<Book>,
    node_ip: IpAddr,
    watched: BTreeMap<NamespacedName, Watched>,
}

impl Probes {
    /// Makes the task. Pods of the host's network, or with a published port, are reached at `node_ip`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, book: Arc<Book>, node_ip: IpAddr) -> Self {
        Self { shared, book, node_ip, watched: BTreeMap::new() }
    }

    /// Runs until cancelled; inside a network namespace if one is given.
    pub async fn run(self, namespace: Option<PathBuf>, cancel: CancellationToken) {
        match namespace {
            None => self.watch(cancel).await,
            Some(path) => {
                // A thread of its own enters the namespace; everything that its runtime makes lives there.
                let inside = move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.map(|runtime| runtime.block_on(self.watch(cancel)))
                };
                let ended =
                    tokio::task::spawn_blocking(move || crate::kernel::linux::in_namespace(Some(&path), inside)).await;
                match ended {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(error))) => tracing::error!(%error, "probes ended"),
                    Ok(Err(error)) => tracing::error!(%error, "probes ended"),
                    Err(error) => tracing::error!(%error, "probes ended"),
                }
            }
        }
    }

    async fn watch(mut self, cancel: CancellationToken) {
        let mut version = self.shared.subscribe();
        loop {
            version.borrow_and_update();
            if let Some((changes, all)) = self.shared.take_for_probes() {
                if all {
                    let gone: Vec<_> =
                        self.watched.keys().filter(|name| !changes.contains_key(*name)).cloned().collect();
                    gone.iter().for_each(|name| self.forget(name));
                }
                let together = changes.len();
                for (index, (name, pod)) in changes.into_iter().enumerate() {
                    self.change(
                        &name,
                        pod.as_ref(),
                        SPREAD.saturating_mul(u32::try_from(index % together.max(1)).unwrap_or(0)),
                    );
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = version.changed() => if changed.is_err() { return },
            }
        }
    }

    fn change(&mut self, name: &NamespacedName, pod: Option<&Pod>, delay: Duration) {
        let Some(pod) = pod.filter(|pod| !is_finished(pod)) else {
            return self.forget(name);
        };
        let face = Face::of(pod, self.node_ip);
        match self.watched.get_mut(name).filter(|watched| watched.face == face) {
            Some(watched) => watched.mark(pod),
            None => {
                // The same incarnation with another spec keeps what is known of it.
                let known = self.watched.get(name).filter(|old| old.face.uid == face.uid).and_then(Watched::ready);
                // Ended before the next one speaks, whose words these would undo.
                self.watched.remove(name);
                let watched = Watched::start(pod, face, (known, delay, self.book.clone()));
                self.watched.insert(name.clone(), watched);
            }
        }
    }

    fn forget(&mut self, name: &NamespacedName) {
        self.watched.remove(name);
        self.book.remove(name);
    }
}

fn is_finished(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"))
}
