//! Three members in one process, on loopback and temporary RocksDBs: writes anywhere, failover, restart, snapshots.

use fairlead_proto::internal::v1::{BoardRequest, BoardResponse, Delete, Outcome, Put, ReportNodesRequest, ReportNodesResponse, command, put};
use fairlead_proto::model::Key;
use fairlead_proto::v1::{DataplaneRequest, DataplaneResponse, Kind, MemberStatus, Namespace, ObjectMeta, RequestId};
use fairlead_server::raft::{Consensus, ConsensusConfig, PeerApi, StartError};
use fairlead_server::write::stamp;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
}

struct Cluster {
    dir: tempfile::TempDir,
    list: Vec<(String, String)>,
    members: Vec<Option<Consensus>>,
    snapshot_entries: u64,
}

impl Cluster {
    async fn start(count: usize, snapshot_entries: u64) -> Self {
        // All ports are held at once, so that no two members get one.
        let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let list = held.iter().enumerate().map(|(index, held)| (format!("n{}", index + 1), held.local_addr().unwrap().to_string())).collect();
        drop(held);
        let mut cluster = Self { dir: tempfile::tempdir().unwrap(), list, members: vec![None; count], snapshot_entries };
        for index in 0..count {
            cluster.start_member(index).await;
        }
        cluster
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
            ..ConsensusConfig::default()
        }
    }

    async fn start_member(&mut self, index: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Consensus::start(self.config(index), Arc::new(Silent)).await {
                Ok(member) => {
                    self.members[index] = Some(member);
                    return;
                }
                // The port or the database of the stopped member may take a moment to be let go.
                Err(error @ (StartError::Listen { .. } | StartError::Open(_))) => assert!(Instant::now() < deadline, "{error}"),
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop_member(&mut self, index: usize) {
        self.members[index].take().unwrap().shutdown().await;
    }

    fn member(&self, index: usize) -> &Consensus {
        self.members[index].as_ref().unwrap()
    }

    async fn leader(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let leading = (0..self.members.len()).find(|index| self.members[*index].as_ref().is_some_and(Consensus::is_leader));
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
                Ok(snapshot) => return snapshot.state.list(Kind::Namespace, "").map(|object| object.metadata().name.clone()).collect(),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Waits until every running member has one revision and one digest.
    async fn converge(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let seen: Vec<_> = self.members.iter().flatten().map(Consensus::local).map(|snapshot| (snapshot.state.revision(), snapshot.state.digest_hex())).collect();
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
    command::Kind::Put(Put { object: Some(object), precondition: Some(put::Precondition::Create(true)), status_only: false })
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
    assert!(cluster.names(leader).await.contains(&"after".to_owned()), "a read on the restarted member reflects the write");
    cluster.converge().await;
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
