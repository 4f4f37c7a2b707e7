//! Storage as openraft demands it and as crashes find it. A crash is a copy of the directory of an open database, or a
//! writer that stops writing; what is opened afterwards must be a prefix of what was done, and all that was promised.

use super::snapshot_store::Built;
use super::*;
use crate::raft::types::{Entry, LogId, Logged, SnapshotMeta, TypeConfig, Vote};
use crate::watch::history::WINDOW;
use fairlead_proto::internal::v1 as wire;
use fairlead_proto::v1::{Kind, Namespace, ObjectMeta, RequestId};
use futures::TryStreamExt as _;
use openraft::EntryPayload;
use openraft::RaftSnapshotBuilder as _;
use openraft::storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _, RaftStateMachine as _};
use openraft::vote::RaftLeaderId as _;
use proptest::prelude::*;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use tempfile::TempDir;

type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;

fn id(index: u64) -> LogId {
    LogId::new(LeaderId::new(1, 7), index)
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId::new(term, 7), committed: true }
}

/// Entry 0 is the membership, as Raft's initialization writes it; every other one makes a namespace named after it.
fn entry(index: u64) -> Entry {
    if index == 0 {
        let nodes: std::collections::BTreeMap<_, _> = [(7, Default::default())].into();
        let membership = crate::raft::types::Membership::new(vec![[7].into()], nodes).unwrap();
        return Entry { log_id: id(0), payload: EntryPayload::Membership(membership) };
    }
    let metadata = ObjectMeta { name: format!("n{index}"), uid: format!("uid-{index}"), ..ObjectMeta::default() };
    let object = Namespace { metadata: Some(metadata), ..Namespace::default() };
    let put = wire::Put {
        object: Some(object.into()),
        precondition: Some(wire::put::Precondition::Create(true)),
        status_only: false,
    };
    let command = wire::Command { kind: Some(wire::command::Kind::Put(put)) };
    let request_id = RequestId { client: format!("client-{}", index % 3), sequence: index, ..RequestId::default() };
    let logged =
        wire::Entry { at_ms: index, request_id: Some(request_id), command: Some(command), traceparent: String::new() };
    Entry { log_id: id(index), payload: EntryPayload::Normal(Logged::from(logged)) }
}

fn identity() -> Identity {
    Identity { name: "n1".into(), founding: "n1=h:1,n2=h:2".into() }
}

async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry> + Send) -> io::Result<()> {
    let entries: Vec<Entry> = entries.into_iter().collect();
    let (done, flushed) = <TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    log.append(entries, IOFlushed::signal(done)).await?;
    flushed.await.map_err(io::Error::other)?
}

async fn apply(machine: &mut StateMachine, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
    let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    machine.apply(futures::stream::iter(entries)).await
}

async fn logged(log: &mut LogStore) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

fn digest(machine: &StateMachine) -> (u64, String, u64) {
    let published = machine.subscribe().0.borrow().clone();
    let state = &published.snapshot.state;
    (state.revision(), state.digest_hex(), published.index)
}

/// The state after so many entries, by pure apply.
fn expected(entries: u64) -> (u64, String) {
    let mut snapshot = crate::machine::Snapshot::default();
    for index in 1..entries {
        if let EntryPayload::Normal(logged) = entry(index).payload {
            snapshot.apply(logged.entry());
        }
    }
    (snapshot.state.revision(), snapshot.state.digest_hex())
}

struct Node {
    dir: TempDir,
    storage: Option<Storage>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = Some(Storage::open(dir.path(), &identity()).unwrap());
        Self { dir, storage }
    }

    /// With entries 0..count appended and applied one by one.
    async fn with(count: u64) -> Self {
        let mut node = Self::new();
        for index in 0..count {
            append(&mut node.get().log, [entry(index)]).await.unwrap();
            apply(&mut node.get().machine, [entry(index)]).await.unwrap();
        }
        node
    }

    fn get(&mut self) -> &mut Storage {
        self.storage.as_mut().unwrap()
    }

    /// Lets go of the database and waits until it is closed.
    fn close(&mut self) -> &Path {
        if let Some(storage) = self.storage.take() {
            let held = storage.held();
            drop(storage);
            while held.is_held() {
                std::thread::yield_now();
            }
        }
        self.dir.path()
    }

    fn reopen(&mut self) -> &mut Storage {
        self.close();
        self.storage = Some(Storage::open(self.dir.path(), &identity()).unwrap());
        self.get()
    }

    /// What a crash at this moment would leave.
    fn crashed(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        let storage = Some(Storage::open(dir.path(), &identity()).unwrap());
        Self { dir, storage }
    }

    fn files(&mut self, end: &str) -> Vec<PathBuf> {
        let db = self.close().join("db");
        let mut found: Vec<_> = std::fs::read_dir(db).unwrap().map(|file| file.unwrap().path()).collect();
        found.retain(|path| path.to_string_lossy().ends_with(end));
        found.sort();
        found
    }

    fn refusal(&mut self) -> OpenError {
        self.close();
        match Storage::open(self.dir.path(), &identity()) {
            Ok(_) => panic!("a directory was opened that can't be whole"),
            Err(error) => error,
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).unwrap();
}

mod crash;
mod logs;
mod refusals;
mod snapshots;

struct Builder;

impl openraft::testing::log::StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = Storage::open(dir.path(), &identity()).unwrap();
        storage.machine.takes_holes = true;
        Ok((dir, storage.log, storage.machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_finds_nothing_wrong_with_it() {
    openraft::testing::log::Suite::test_all(Builder).await.unwrap();
}
