//! What a member does that has no others: a broken disk, a message that is not for it.

use super::*;
use crate::controller::audit;
use crate::controller::lease::Alarms;
use crate::pki::Identity;
use crate::pki::listener::{Security, connections};
use crate::write::stamp;
use fairlead_proto::internal::v1::{self as wire, command};
use fairlead_proto::tls::Transport;
use fairlead_proto::v1::{DataplaneRequest, DataplaneResponse, MemberStatus};
use futures::StreamExt as _;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use tonic::Status;

struct Silent;

#[tonic::async_trait]
impl PeerApi for Silent {
    async fn report_nodes(&self, _: wire::ReportNodesRequest) -> Result<wire::ReportNodesResponse, Status> {
        Ok(wire::ReportNodesResponse::default())
    }
    async fn board(&self, _: wire::BoardRequest) -> Result<wire::BoardResponse, Status> {
        Ok(wire::BoardResponse::default())
    }
    async fn member_status(&self) -> Result<MemberStatus, Status> {
        Ok(MemberStatus::default())
    }
    async fn dataplane(&self, _: DataplaneRequest) -> Result<DataplaneResponse, Status> {
        Ok(DataplaneResponse::default())
    }
    async fn drift(&self) -> Result<wire::DriftResponse, Status> {
        Ok(wire::DriftResponse::default())
    }
}

fn free_address() -> std::net::SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

async fn alone(dir: &tempfile::TempDir, listen_peer: std::net::SocketAddr) -> Consensus {
    let config = ConsensusConfig {
        name: "n1".into(),
        data_dir: dir.path().to_owned(),
        listen_peer,
        initial_cluster: vec![("n1".into(), listen_peer.to_string())],
        ..ConsensusConfig::default()
    };
    Consensus::start(config, Arc::new(Silent)).await.unwrap()
}

#[tokio::test]
async fn no_answer_waits_for_more_to_send() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), async {
        connections(listener, Security::Plain).next().await
    });
    assert!(accepted.unwrap().unwrap().tcp().nodelay().unwrap());
}

fn member(name: &str) -> command::Kind {
    let member = Some(Member { id: types::member_id(name), name: name.into(), ..Member::default() });
    command::Kind::SetMember(wire::SetMember { member, join: false })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_disk_stops_the_member_and_no_write_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let consensus = alone(&dir, address).await;
    consensus.propose(stamp(member("other"), None)).await.unwrap();
    assert_eq!(consensus.failure(), None);
    let database = consensus.inner.database.upgrade().unwrap();
    database.commits_left.store(0, Ordering::SeqCst);
    drop(database);
    let refused = consensus.propose(stamp(member("lost"), None)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Unknown(_)), "{refused}");
    let why = tokio::time::timeout(Duration::from_secs(5), consensus.failed()).await.unwrap();
    assert!(why.contains("No space left on device"), "{why}");
    assert!(consensus.propose(stamp(member("later"), None)).await.is_err());
    consensus.shutdown().await;
    let consensus = alone(&dir, address).await;
    assert!(consensus.read().await.is_ok());
    let names: Vec<_> = consensus.local().state.members().map(|member| member.name.clone()).collect();
    assert!(names.contains(&"other".to_owned()) && !names.contains(&"lost".to_owned()), "{names:?}");
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_strangers_are_refused_and_certainly_not_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = alone(&dir, free_address()).await;
    consensus.read().await.unwrap();
    let own = consensus.header(consensus.inner.id);
    let mut client = consensus.peer(own.to).await.unwrap();
    let stranger = PeerHeader { cluster_id: "another".into(), ..own.clone() };
    let elsewhere = PeerHeader { to: 1, ..own.clone() };
    let unknown = PeerHeader { from: 1, ..own };
    for header in [Some(stranger), Some(elsewhere), Some(unknown), None] {
        let vote = wire::VoteRequest { header: header.clone(), ..wire::VoteRequest::default() };
        assert!(client.vote(vote.clone()).await.is_err());
        assert!(client.pre_vote(vote).await.is_err());
        let header_of = header.clone();
        assert!(client.read_index(wire::ReadIndexRequest { header: header_of }).await.is_err());
        let append = wire::AppendRequest { header: header.clone(), ..wire::AppendRequest::default() };
        let answers = client.append(futures::stream::iter([append])).await.unwrap();
        assert_eq!(answers.into_inner().message().await.unwrap(), None, "the stream ends");
        let chunk = wire::SnapshotChunk { header: header.clone(), ..wire::SnapshotChunk::default() };
        assert!(client.install_snapshot(futures::stream::iter([chunk])).await.is_err());
        let propose = wire::ProposeRequest { entry: Some(stamp(member("stranger"), None)), header };
        let answer = client.propose(propose).await.unwrap().into_inner();
        assert!(!answer.not_proposed.is_empty());
    }
    let empty = wire::Entry::default();
    let refused = consensus.propose_here(empty).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NotProposed(_)));
    consensus.shutdown().await;
}

fn known(list: &[(&str, &str)]) -> BTreeMap<u64, types::MemberAddress> {
    let member = |(name, address): &(&str, &str)| {
        let peer = types::MemberAddress { name: (*name).into(), peer_address: (*address).into() };
        (types::member_id(name), peer)
    };
    list.iter().map(member).collect()
}

#[tokio::test]
async fn a_message_counts_only_with_its_members_own_certificate() {
    let list = || known(&[("n1", "127.0.0.1:1"), ("n2", "127.0.0.1:2")]);
    let own = types::member_id("n1");
    let peers = Peers::new(own, ("x".into(), &Transport::plain()), list()).unwrap();
    let sent = Peers::new(types::member_id("n2"), ("x".into(), &Transport::plain()), list()).unwrap().header(own);
    let user = Identity::User { name: "n2".into(), groups: vec!["fairlead:admins".into()] };
    for (caller, taken) in [
        (Identity::Member("n2".into()), true),
        (Identity::Unsecured, true),
        (Identity::Member("n1".into()), false),
        (Identity::Member("n3".into()), false),
        (Identity::Node("n2".into()), false),
        (Identity::Anonymous, false),
        (user, false),
    ] {
        assert_eq!(peers.check(&caller, Some(&sent)).is_ok(), taken, "{caller}");
    }
}

#[tokio::test]
async fn only_what_was_never_sent_is_certainly_not_proposed() {
    // Nobody listens there.
    let address = free_address().to_string();
    let peers = Peers::new(1, ("x".into(), &Transport::plain()), known(&[("n2", &address)])).unwrap();
    let mut client = peers.client(types::member_id("n2")).unwrap();
    let status = client.propose(wire::ProposeRequest::default()).await.unwrap_err();
    assert!(peers::never_sent(&status), "{status:?}");
    // Somebody takes the connection, reads, and breaks it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut read = [0; 16];
            let _ = stream.readable().await;
            let _ = stream.try_read(&mut read);
        }
    });
    let peers = Peers::new(1, ("x".into(), &Transport::plain()), known(&[("n2", &address)])).unwrap();
    let mut client = peers.client(types::member_id("n2")).unwrap();
    let status = client.propose(wire::ProposeRequest::default()).await.unwrap_err();
    assert!(!peers::never_sent(&status), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_whose_state_differs_is_stopped_and_does_not_start_again() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let list: Vec<_> = (0..3).map(|at| (format!("n{at}"), addresses[at].to_string())).collect();
    let config = |at: usize| ConsensusConfig {
        name: format!("n{at}"),
        data_dir: dirs[at].path().to_owned(),
        listen_peer: addresses[at],
        initial_cluster: list.clone(),
        ..ConsensusConfig::default()
    };
    let starting = (0..3).map(|at| Consensus::start(config(at), Arc::new(Silent)));
    let members: Vec<_> = futures::future::join_all(starting).await.into_iter().map(Result::unwrap).collect();
    let cancel = CancellationToken::new();
    let alarms: Vec<Arc<Alarms>> = (0..3).map(|_| Arc::default()).collect();
    for (consensus, alarms) in members.iter().zip(&alarms) {
        tokio::spawn(audit::run(consensus.clone(), alarms.clone(), cancel.clone()));
    }
    members[0].propose(stamp(member("first"), None)).await.unwrap();
    let leader = (0..3).find(|at| members[*at].is_leader()).unwrap();
    let follower = (leader + 1) % 3;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(members.iter().all(|consensus| consensus.failure().is_none()));
    *crate::storage::HARMED.lock().unwrap() = Some(dirs[follower].path().join("snapshot"));
    members[leader].propose(stamp(member("second"), None)).await.unwrap();
    let reached = members[leader].status().applied_index;
    while members[follower].status().applied_index < reached {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    *crate::storage::HARMED.lock().unwrap() = None;
    let failure = tokio::time::timeout(Duration::from_secs(20), members[follower].failed()).await.unwrap();
    assert!(failure.contains("differs from the others'"), "{failure}");
    let said = alarms[leader].list();
    assert!(said.iter().any(|alarm| alarm.contains(&format!("n{follower}"))), "{said:?}");
    members[follower].shutdown().await;
    let again = Consensus::start(config(follower), Arc::new(Silent)).await.err().unwrap().to_string();
    assert!(again.contains("differs from the others'") && again.contains("empty data directory"), "{again}");
    // The others go on.
    members[leader].propose(stamp(member("third"), None)).await.unwrap();
    cancel.cancel();
    for at in [leader, (leader + 2) % 3] {
        assert_eq!(members[at].failure(), None);
        members[at].shutdown().await;
    }
}
