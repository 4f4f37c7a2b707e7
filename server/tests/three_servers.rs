//! Three members in one process, on loopback and temporary RocksDBs: writes anywhere, failover, restart, snapshots.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use fairlead_proto::internal::v1::{
    BoardRequest, BoardResponse, Delete, DriftResponse, InitCluster, Outcome, Put, ReportNodesRequest,
    ReportNodesResponse, command, put,
};
use fairlead_proto::model::Key;
use fairlead_proto::v1::objects_server::Objects as _;
use fairlead_proto::v1::{
    ApplyRequest, DataplaneRequest, DataplaneResponse, DeleteRequest, Input, Kind, MemberStatus, Namespace, ObjectMeta,
    RequestId, UpdateRequest, WatchRequest, input,
};
use fairlead_server::api::objects::ObjectsService;
use fairlead_server::pki::Identity;
use fairlead_server::pki::listener::Caller;
use fairlead_server::raft::{Consensus, ConsensusConfig, PeerApi, ProposeError, StartError};
use fairlead_server::write::{Writer, stamp};
use futures::StreamExt as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A peer face that has nothing to say.
struct Silent;

#[tonic::async_trait]
impl PeerApi for Silent {
    async fn report_nodes(&self, _: ReportNodesRequest) -> Result<ReportNodesResponse, tonic::Status> {
        Ok(ReportNodesResponse::default())
    }
    async fn board(&self, _: BoardRequest) -> Result<BoardResponse, tonic::Status> {
        Ok(BoardResponse::default())
    }
    async fn member_status(&self) -> Result<MemberStatus, tonic::Status> {
        Ok(MemberStatus::default())
    }
    async fn dataplane(&self, _: DataplaneRequest) -> Result<DataplaneResponse, tonic::Status> {
        Ok(DataplaneResponse::default())
    }
    async fn drift(&self) -> Result<DriftResponse, tonic::Status> {
        Ok(DriftResponse::default())
    }
}

/// A request as it comes through a plaintext port.
fn ask<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(Caller { identity: Identity::Unsecured, remote: None });
    request
}

/// A member on a runtime of its own, which can be killed.
struct Running {
    consensus: Consensus,
    runtime: Runtime,
}

struct Cluster {
    dir: tempfile::TempDir,
    list: Vec<(String, String)>,
    members: Vec<Option<Running>>,
    snapshot_entries: u64,
    /// For members that start from now on.
    election_ms: (u64, u64),
}

impl Drop for Cluster {
    /// Waits until databases are closed: a process that ends before takes RocksDB's globals away under its threads.
    fn drop(&mut self) {
        let runtimes: Vec<Runtime> = self.members.drain(..).flatten().map(|running| running.runtime).collect();
        let close = || runtimes.into_iter().for_each(|runtime| runtime.shutdown_timeout(Duration::from_secs(5)));
        let _ = std::thread::spawn(close).join();
    }
}

impl Running {
    async fn start(config: ConsensusConfig) -> Self {
        let deadline = Instant::now() + Duration::from_secs(10);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        loop {
            let starting = Consensus::start(config.clone(), Arc::new(Silent));
            match runtime.spawn(starting).await.unwrap() {
                Ok(consensus) => return Self { consensus, runtime },
                // The port or the database of a killed member may take a moment to be let go.
                Err(error @ (StartError::Listen { .. } | StartError::Open(_))) => {
                    assert!(Instant::now() < deadline, "{error}");
                }
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Cluster {
    async fn start(count: usize, snapshot_entries: u64) -> Self {
        let mut cluster = Self::prepare(count, snapshot_entries);
        // Each waits for a majority.
        let all = (0..count).map(|index| Running::start(cluster.config(index)));
        cluster.members = futures::future::join_all(all).await.into_iter().map(Some).collect();
        cluster
    }

    fn prepare(count: usize, snapshot_entries: u64) -> Self {
        // All ports are held at once, so that no two members get one.
        let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let list = held
            .iter()
            .enumerate()
            .map(|(index, held)| (format!("n{}", index + 1), held.local_addr().unwrap().to_string()))
            .collect();
        Self {
            dir: tempfile::tempdir().unwrap(),
            list,
            members: (0..count).map(|_| None).collect(),
            snapshot_entries,
            election_ms: ConsensusConfig::default().election_ms,
        }
    }

    fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(&self.list[index].0)
    }

    fn config(&self, index: usize) -> ConsensusConfig {
        ConsensusConfig {
            name: self.list[index].0.clone(),
            data_dir: self.data_dir(index),
            listen_peer: self.list[index].1.parse().unwrap(),
            grpc_address: format!("grpc-of-{}", self.list[index].0),
            initial_cluster: self.list.clone(),
            snapshot_entries: self.snapshot_entries,
            keep_entries: 10,
            election_ms: self.election_ms,
            ..ConsensusConfig::default()
        }
    }

    async fn start_member(&mut self, index: usize) {
        self.members[index] = Some(Running::start(self.config(index)).await);
    }

    /// Hands over and stops.
    async fn stop_member(&mut self, index: usize) {
        let running = self.members[index].take().unwrap();
        running.consensus.shutdown().await;
        running.runtime.shutdown_background();
    }

    /// Takes a killed member's disk away.
    fn wipe(&self, index: usize) {
        let away = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        std::fs::rename(self.data_dir(index), away.join("was")).unwrap();
    }

    /// Drops everything where it stands.
    fn kill_member(&mut self, index: usize) {
        if let Some(running) = self.members[index].take() {
            running.runtime.shutdown_background();
        }
    }

    fn member(&self, index: usize) -> &Consensus {
        &self.members[index].as_ref().unwrap().consensus
    }

    /// What clients see of a member.
    fn face(&self, index: usize) -> ObjectsService {
        let consensus = self.member(index).clone();
        ObjectsService::new(consensus.clone(), Writer::new(consensus), CancellationToken::new())
    }

    async fn leader(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let leading = (0..self.members.len())
                .find(|index| self.members[*index].as_ref().is_some_and(|running| running.consensus.is_leader()));
            if let Some(leader) = leading {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Creates a namespace through a member, trying again with the same request id while nobody leads.
    async fn create(&self, through: usize, name: &str) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(15);
        let request = RequestId { client: format!("test-{name}"), sequence: 1, ..RequestId::default() };
        loop {
            match self.member(through).propose(stamp(create(name), Some(request.clone()))).await {
                Ok(outcome) => return outcome,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    async fn names(&self, through: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match self.member(through).read().await {
                Ok(snapshot) => {
                    return snapshot
                        .state
                        .list(Kind::Namespace, "")
                        .map(|object| object.metadata().name.clone())
                        .collect();
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Waits until every running member has one revision and one digest.
    async fn converge(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let seen: Vec<_> = self
                .members
                .iter()
                .flatten()
                .map(|running| running.consensus.local())
                .map(|snapshot| (snapshot.state.revision(), snapshot.state.digest_hex()))
                .collect();
            if seen.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            assert!(Instant::now() < deadline, "members differ: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn create(name: &str) -> command::Kind {
    let metadata = ObjectMeta { name: name.into(), uid: format!("uid-{name}"), ..ObjectMeta::default() };
    let object = Namespace { metadata: Some(metadata), ..Namespace::default() }.into();
    command::Kind::Put(Put {
        object: Some(object),
        precondition: Some(put::Precondition::Create(true)),
        status_only: false,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_through_any_member_are_read_on_every_member_and_survive_the_leader() {
    let mut cluster = Cluster::start(3, 10_000).await;
    for index in 0..3 {
        let outcome = cluster.create(index, &format!("through-{index}")).await;
        assert_eq!(outcome.rejection, None);
    }
    for index in 0..3 {
        let names = cluster.names(index).await;
        assert!((0..3).all(|writer| names.contains(&format!("through-{writer}"))), "{names:?}");
    }
    let leader = cluster.leader().await;
    cluster.stop_member(leader).await;
    let other = (leader + 1) % 3;
    assert_eq!(cluster.create(other, "after").await.rejection, None);
    cluster.start_member(leader).await;
    assert!(
        cluster.names(leader).await.contains(&"after".to_owned()),
        "a read on the restarted member reflects the write"
    );
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_died_is_replaced_without_waiting_for_the_time_of_an_election() {
    let mut cluster = Cluster::start(3, 10_000).await;
    let leader = cluster.leader().await;
    // Whoever waits for this time fails the test.
    cluster.election_ms = (120_000, 180_000);
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    for index in &others {
        cluster.stop_member(*index).await;
        cluster.start_member(*index).await;
        assert_eq!(cluster.create(*index, &format!("before-{index}")).await.rejection, None);
    }
    assert_eq!(cluster.leader().await, leader);
    cluster.kill_member(leader);
    assert_eq!(cluster.create(others[0], "after").await.rejection, None);
    assert_ne!(cluster.leader().await, leader);
    // Two of three: the next one's death leaves nobody who could be elected, and none who stands for it.
    let term = cluster.member(others[0]).status().term;
    let last = cluster.leader().await;
    let left = others.iter().copied().find(|index| *index != last).unwrap();
    cluster.kill_member(last);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.member(left).status().term, term, "it asked for votes without a majority");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_restarts_leads_only_by_votes() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.create(0, "before").await;
    let leader = cluster.leader().await;
    let term = cluster.member(leader).status().term;
    (0..3).for_each(|index| cluster.kill_member(index));
    // What it had sent and not stored, the others may have: alone it must not go on in its term.
    cluster.start_member(leader).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!cluster.member(leader).is_leader());
    assert_eq!(cluster.member(leader).status().leader, None);
    for index in (0..3).filter(|index| *index != leader) {
        cluster.start_member(index).await;
    }
    assert_eq!(cluster.create(leader, "after").await.rejection, None);
    let next = cluster.leader().await;
    assert!(cluster.member(next).status().term > term, "the term went on after a restart");
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_through_members_in_turn_are_all_made_although_a_member_may_lag() {
    let cluster = Cluster::start(3, 1_000).await;
    cluster.create(0, "a").await;
    let faces = [cluster.face(0), cluster.face(1), cluster.face(2)];
    let update = |index: usize, round: u64, revision: u64| {
        let labels = [("round".to_owned(), round.to_string())].into();
        let metadata = ObjectMeta { name: "a".into(), labels, revision, ..ObjectMeta::default() };
        let object = Namespace { metadata: Some(metadata), ..Namespace::default() }.into();
        let input = Some(Input { form: Some(input::Form::Object(object)) });
        faces[index].update(ask(UpdateRequest { input, ..UpdateRequest::default() }))
    };
    let mut last = 0;
    for round in 1..=90 {
        let index = usize::try_from(round % 3).unwrap();
        // With a revision and without, each right after the other's.
        let asked = if round % 2 == 0 { last } else { 0 };
        let done = update(index, round, asked).await.unwrap().into_inner();
        assert!(done.revision > last, "{} after {last}", done.revision);
        let has = done.object.unwrap().metadata().labels["round"].clone();
        assert_eq!(has, round.to_string());
        last = done.revision;
    }
    for index in 0..3 {
        let said = update(index, 0, last - 1).await.unwrap_err();
        assert_eq!(said.code(), tonic::Code::Aborted, "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_a_revision_that_is_not_reached_waits_for_it() {
    let cluster = Cluster::start(3, 1_000).await;
    cluster.create(0, "a").await;
    for index in 0..3 {
        let face = cluster.face(index);
        let watch = |from_revision: u64| {
            face.watch(ask(WatchRequest { kind: Kind::Namespace as i32, from_revision, ..WatchRequest::default() }))
        };
        // As if the watcher had come from a member that is ahead of this one.
        let now = cluster.member(index).read().await.unwrap().state.revision();
        let names = [format!("b{index}"), format!("c{index}")];
        let (stream, ()) = tokio::join!(watch(now + 1), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for name in &names {
                cluster.create((index + 1) % 3, name).await;
            }
        });
        let event = stream.unwrap().into_inner().next().await.unwrap().unwrap();
        assert_eq!((event.revision, event.object.unwrap().metadata().name.as_str()), (now + 2, names[1].as_str()));
        // One that never comes is said in time.
        let said = watch(now + 1_000).await.err().unwrap();
        assert_eq!(said.code(), tonic::Code::DeadlineExceeded, "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_is_not_refused_for_what_a_member_that_lags_still_has() {
    let cluster = Cluster::start(3, 1_000).await;
    let init = InitCluster {
        cluster_id: "cluster".into(),
        service_cidr: "10.96.0.0/16".into(),
        node_port_first: 30_000,
        node_port_last: 32_767,
        uids: vec!["uid-default".into(), "uid-kube-system".into()],
    };
    let done = cluster.member(0).propose(stamp(command::Kind::InitCluster(init), None)).await.unwrap();
    assert_eq!(done.rejection, None);
    let faces = [cluster.face(0), cluster.face(1), cluster.face(2)];
    for round in 0..60 {
        // Its address can't be changed: it is another service each time.
        let manifest = format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s"}},"spec":{{"clusterIP":"10.96.1.{round}","ports":[{{"port":80}}]}}}}"#
        );
        let face = &faces[round % 3];
        let input = Some(Input { form: Some(input::Form::ManifestJson(manifest)) });
        let applied = face.apply(ask(ApplyRequest { input, ..ApplyRequest::default() })).await;
        applied.unwrap_or_else(|status| panic!("round {round}: {status:?}"));
        let key = Some(Key::new(Kind::Service, "default", "s").to_wire());
        face.delete(ask(DeleteRequest { key, ..DeleteRequest::default() })).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_executed_once_whichever_member_takes_it() {
    let cluster = Cluster::start(3, 10_000).await;
    let first = cluster.create(0, "once").await;
    let again = cluster.create(1, "once").await;
    assert_eq!((&first.rejection, &again.rejection), (&None, &None));
    assert_eq!(first.revision, again.revision);
    let key = Key::new(Kind::Namespace, "", "once").to_wire();
    let delete = command::Kind::Delete(Delete { key: Some(key), ..Delete::default() });
    cluster.member(2).propose(stamp(delete, None)).await.unwrap();
    let late = cluster.create(2, "once").await;
    assert_eq!(late.revision, first.revision, "a late retry doesn't create it again");
    assert!(!cluster.names(0).await.contains(&"once".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_member_gets_a_snapshot_and_everyone_restarts_with_everything() {
    let mut cluster = Cluster::start(3, 50).await;
    cluster.create(0, "first").await;
    let leader = cluster.leader().await;
    let lagging = (leader + 1) % 3;
    cluster.stop_member(lagging).await;
    for round in 0..300 {
        cluster.create(leader, &format!("while-away-{round}")).await;
    }
    cluster.start_member(lagging).await;
    cluster.converge().await;
    assert_eq!(cluster.names(lagging).await.len(), 303, "with default and kube-system");
    // The window came with the snapshot: a watcher resumes on the member that was away.
    let snapshot = cluster.member(lagging).local();
    assert!(snapshot.history.after(snapshot.state.revision() - 200).is_ok());
    drop(snapshot);
    for index in 0..3 {
        cluster.stop_member(index).await;
    }
    for index in 0..3 {
        cluster.start_member(index).await;
    }
    assert_eq!(cluster.names(0).await.len(), 303);
    assert_eq!(cluster.create(1, "afterwards").await.rejection, None);
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_while_writes_go_on_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.create(0, "first").await;
    let mut expected = vec!["first".to_owned()];
    for round in 0..3 {
        let leader = cluster.leader().await;
        let other = (leader + 1) % 3;
        let consensus = cluster.member(other).clone();
        let writing = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for count in 0..40 {
                let name = format!("r{round}-{count}");
                // A write whose outcome is unknown is not repeated, and not counted.
                if consensus.propose(stamp(create(&name), None)).await.is_ok() {
                    acknowledged.push(name);
                }
            }
            acknowledged
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.kill_member(leader);
        let acknowledged = writing.await.unwrap();
        assert!(acknowledged.len() > 20, "the writes went on: {}", acknowledged.len());
        expected.extend(acknowledged);
        cluster.start_member(leader).await;
        let names = cluster.names(leader).await;
        let lost: Vec<_> = expected.iter().filter(|name| !names.contains(name)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_after_an_acknowledged_write_sees_it_on_every_member() {
    let cluster = Cluster::start(3, 10_000).await;
    let writers = (0..6).map(|writer| {
        let cluster = &cluster;
        async move {
            for count in 0..20 {
                let name = format!("w{writer}-{count}");
                let outcome = cluster.create((writer + count) % 3, &name).await;
                // Its own server has it already, without asking anyone.
                assert!(cluster.member((writer + count) % 3).local().state.revision() >= outcome.revision);
                let reader = (writer + count * 2 + 1) % 3;
                let key = Key::new(Kind::Namespace, "", name);
                let snapshot = cluster.member(reader).read().await.unwrap();
                assert!(snapshot.state.get(&key).is_some(), "{key} on {reader}");
                let seen = snapshot.state.revision();
                let later = cluster.member((reader + 1) % 3).read_at_least(seen).await.unwrap();
                assert!(later.state.revision() >= seen);
            }
        }
    });
    futures::future::join_all(writers).await;
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_killed_at_once_and_everything_acknowledged_is_there() {
    let mut cluster = Cluster::start(3, 40).await;
    let mut written = Vec::new();
    for round in 0..3 {
        for count in 0..30 {
            let name = format!("r{round}-{count}");
            cluster.create(count % 3, &name).await;
            written.push(name);
        }
        for index in 0..3 {
            cluster.kill_member(index);
        }
        for index in 0..3 {
            cluster.start_member(index).await;
        }
        let names = cluster.names(round).await;
        let lost: Vec<_> = written.iter().filter(|name| !names.contains(name)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_claimed_and_with_it_all_goes_on() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.create(0, "before").await;
    cluster.kill_member(1);
    cluster.kill_member(2);
    let begun = Instant::now();
    let alone = cluster.member(0).clone();
    let write = alone.propose(stamp(create("alone"), None));
    let (write, read) = tokio::join!(write, alone.read());
    assert!(matches!(write, Err(ProposeError::NotProposed(_) | ProposeError::Unknown(_))), "{write:?}");
    assert!(read.is_err());
    assert!(begun.elapsed() < Duration::from_secs(8), "the answer does not keep a client waiting");
    // What is local is still served.
    assert!(alone.local().state.get(&Key::new(Kind::Namespace, "", "before")).is_some());
    drop(alone);
    cluster.start_member(1).await;
    assert_eq!(cluster.create(0, "after").await.rejection, None);
    assert!(cluster.names(1).await.contains(&"before".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_gets_everything_back_before_it_votes() {
    let mut cluster = Cluster::start(3, 10_000).await;
    for count in 0..20 {
        cluster.create(0, &format!("kept-{count}")).await;
    }
    cluster.converge().await;
    let leader = cluster.leader().await;
    let (wiped, stale) = ((leader + 1) % 3, (leader + 2) % 3);
    // `stale` misses writes that the leader and `wiped` acknowledged.
    cluster.kill_member(stale);
    cluster.create(leader, "acknowledged").await;
    cluster.kill_member(wiped);
    cluster.kill_member(leader);
    cluster.wipe(wiped);
    cluster.start_member(stale).await;
    // These two are a majority, but one lacks the write and the other has forgotten that it had it: they wait.
    let returning = cluster.config(wiped);
    let returning = tokio::spawn(Consensus::start(returning, Arc::new(Silent)));
    assert!(cluster.member(stale).read().await.is_err());
    assert!(!returning.is_finished());
    cluster.start_member(leader).await;
    let returned = returning.await.unwrap().unwrap();
    let snapshot = returned.read().await.unwrap();
    let key = Key::new(Kind::Namespace, "", "acknowledged");
    assert!(snapshot.state.get(&key).is_some());
    returned.shutdown().await;
    cluster.start_member(wiped).await;
    cluster.converge().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while cluster.member(wiped).is_returning() {
        assert!(Instant::now() < deadline, "it has everything back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is a full member again: with it, two are enough.
    let leader = cluster.leader().await;
    let killed = if leader == wiped { stale } else { leader };
    cluster.kill_member(killed);
    assert_eq!(cluster.create(wiped, "again").await.rejection, None);
    assert!(cluster.names(wiped).await.contains(&"acknowledged".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_member_is_not_new_as_long_as_nobody_can_say_so() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.create(0, "kept").await;
    cluster.converge().await;
    (0..3).for_each(|index| cluster.kill_member(index));
    cluster.wipe(1);
    let config = cluster.config(1);
    let wiped = tokio::spawn(Running::start(config));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!wiped.is_finished(), "it would found a cluster without what it acknowledged");
    cluster.start_member(0).await;
    cluster.start_member(2).await;
    cluster.members[1] = Some(wiped.await.unwrap());
    assert!(cluster.names(1).await.contains(&"kept".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_goes_on_feeding_a_member_that_lost_its_disk() {
    let mut cluster = Cluster::start(3, 10_000).await;
    for count in 0..20 {
        cluster.create(0, &format!("kept-{count}")).await;
    }
    cluster.converge().await;
    let leader = cluster.leader().await;
    let wiped = (leader + 1) % 3;
    for _ in 0..2 {
        cluster.kill_member(wiped);
        cluster.wipe(wiped);
        cluster.start_member(wiped).await;
        assert!(cluster.names(wiped).await.contains(&"kept-19".to_owned()));
    }
    cluster.create(wiped, "after").await;
    cluster.converge().await;
    assert_eq!(cluster.leader().await, leader, "nobody was disturbed");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_leader_hands_over_and_status_says_who_leads() {
    let mut cluster = Cluster::start(3, 10_000).await;
    cluster.create(0, "one").await;
    cluster.converge().await;
    let leader = cluster.leader().await;
    let status = cluster.member(leader).status();
    assert_eq!((status.name.as_str(), status.leader), (cluster.list[leader].0.as_str(), Some(status.id)));
    assert_eq!(status.voters.len(), 3);
    assert!(status.applied_index > 0 && status.applied_index <= status.last_log_index);
    let other = (leader + 1) % 3;
    let term = status.term;
    cluster.stop_member(leader).await;
    // The heir leads already: nobody waited for an election time-out.
    let found = cluster.member(other).status();
    assert!(found.term > term && found.leader.is_some() && found.leader != Some(status.id), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_different_lists_do_not_mix() {
    let mut cluster = Cluster::prepare(3, 10_000);
    let (zero, one) = tokio::join!(Running::start(cluster.config(0)), Running::start(cluster.config(1)));
    (cluster.members[0], cluster.members[1]) = (Some(zero), Some(one));
    cluster.create(0, "one").await;
    // The third one knows the others by another name.
    let mut stranger = cluster.config(2);
    stranger.initial_cluster[0].0 = "other".into();
    let starting = Consensus::start(stranger, Arc::new(Silent));
    assert!(tokio::time::timeout(Duration::from_millis(1_500), starting).await.is_err(), "nobody answers it");
    assert_eq!(cluster.create(1, "two").await.rejection, None);
}

#[tokio::test]
async fn what_can_not_start_says_what_to_do() {
    let cluster = Cluster::prepare(2, 10_000);
    let refusal = async |change: &dyn Fn(&mut ConsensusConfig)| {
        let mut config = cluster.config(0);
        change(&mut config);
        Consensus::start(config, Arc::new(Silent)).await.map(drop).unwrap_err().to_string()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text = refusal(&|config| config.listen_peer = address).await;
    assert!(text.contains("--listen-peer"), "{text}");
    let text = refusal(&|config| config.name = "n7".into()).await;
    assert!(text.contains("n7") && text.contains("--name"), "{text}");
    let text = refusal(&|config| config.initial_cluster[1].0 = "n1".into()).await;
    assert!(text.contains("a name occurs twice"), "{text}");
    let text = refusal(&|config| config.initial_cluster[1].1 = config.initial_cluster[0].1.clone()).await;
    assert!(text.contains("an address occurs twice"), "{text}");
    let text = refusal(&|config| config.initial_cluster[1].1 = "no host at all".into()).await;
    assert!(text.contains("--initial-cluster"), "{text}");
    let text = refusal(&|config| config.data_dir = "/proc/none".into()).await;
    assert!(text.contains("/proc/none"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_alone_is_a_cluster_and_knows_its_directory() {
    let mut cluster = Cluster::start(1, 10_000).await;
    assert_eq!(cluster.create(0, "alone").await.rejection, None);
    let deadline = Instant::now() + Duration::from_secs(5);
    while cluster.member(0).members()[0].grpc_address != "grpc-of-n1" {
        assert!(Instant::now() < deadline, "the member tells its gRPC address");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.stop_member(0).await;
    let mut foreign = cluster.config(0);
    foreign.initial_cluster.push(("n9".into(), "127.0.0.1:1".into()));
    let deadline = Instant::now() + Duration::from_secs(10);
    let refusal = loop {
        match Consensus::start(foreign.clone(), Arc::new(Silent)).await {
            Err(error) if error.to_string().contains("belongs to") => break error.to_string(),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
            Ok(_) => panic!("another cluster's directory was taken"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(refusal.contains("--data-dir"), "it says what to do: {refusal}");
    cluster.start_member(0).await;
    assert!(cluster.names(0).await.contains(&"alone".to_owned()));
}
