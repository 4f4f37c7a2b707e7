//! What is to be reported of this node's pods: the newest word on each, and which words are unsent.
//!
//! Bounded by the number of pods. A new stream gets every word again, so nothing is lost with an old one.

use fairlead_proto::v1::PodReadiness;
use fairlead_proto::view::NamespacedName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The book.
#[derive(Default)]
pub struct Book {
    pages: Mutex<Pages>,
    changed: Notify,
}

#[derive(Default)]
struct Pages {
    words: BTreeMap<NamespacedName, PodReadiness>,
    unsent: BTreeSet<NamespacedName>,
}

impl Book {
    /// Writes a pod's newest word; the same again is none.
    pub fn write(&self, word: PodReadiness) {
        let name = NamespacedName::new(&word.namespace, &word.name);
        let mut pages = self.lock();
        if pages.words.get(&name) == Some(&word) {
            return;
        }
        pages.words.insert(name.clone(), word);
        pages.unsent.insert(name);
        drop(pages);
        self.changed.notify_one();
    }

    /// Forgets a pod.
    pub fn remove(&self, name: &NamespacedName) {
        let mut pages = self.lock();
        pages.words.remove(name);
        pages.unsent.remove(name);
    }

    /// Everything is to be sent again.
    pub fn report_all(&self) {
        let mut pages = self.lock();
        pages.unsent = pages.words.keys().cloned().collect();
        drop(pages);
        self.changed.notify_one();
    }

    /// Takes at most `limit` unsent words.
    #[must_use]
    pub fn take(&self, limit: usize) -> Vec<PodReadiness> {
        let mut pages = self.lock();
        let names: Vec<_> = pages.unsent.iter().take(limit).cloned().collect();
        let words = names.iter().filter_map(|name| pages.words.get(name).cloned()).collect();
        for name in &names {
            pages.unsent.remove(name);
        }
        let more = !pages.unsent.is_empty();
        drop(pages);
        if more {
            self.changed.notify_one();
        }
        words
    }

    /// When there may be something unsent.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(name: &str, ready: bool) -> PodReadiness {
        PodReadiness { namespace: "default".into(), name: name.into(), ready, ..PodReadiness::default() }
    }

    #[test]
    fn only_news_is_sent_and_a_new_stream_gets_all() {
        let book = Book::default();
        for name in ["a", "b", "c"] {
            book.write(word(name, false));
        }
        assert_eq!(book.take(2).len(), 2);
        assert_eq!(book.take(2).len(), 1);
        book.write(word("a", false));
        assert_eq!(book.take(9).len(), 0);
        book.write(word("a", true));
        assert_eq!(book.take(9), [word("a", true)]);
        book.remove(&NamespacedName::new("default", "b"));
        book.report_all();
        assert_eq!(book.take(9), [word("a", true), word("c", false)]);
    }
}
