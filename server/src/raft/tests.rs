//! What a member does that has no others: a broken disk, a message that is not for it.

use super::*;
use crate::controller::audit;
use crate::controller::lease::Alarms;
use crate::pki::Identity;
use crate::pki::listener::{Security, connections};
use crate::write::stamp;
use fairlead_proto::internal::v1::{self as wire, command};
use fairlead_proto::tls::Transport;
use fairlead_proto::v1::{DataplaneRequest, DataplaneResponse, MemberStatus, TransferRequest};
use futures::StreamExt as _;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use tokio::io::AsyncReadExt as _;
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

/// What becomes of an entry that is forwarded with a header.
async fn forwarded(client: &mut PeerClient<Channel>, header: Option<PeerHeader>, entry: Vec<u8>) -> wire::Decision {
    let proposals = vec![wire::Proposal { id: 7, entry: entry.into() }];
    let request = wire::ForwardRequest { header, proposals };
    let answers = client.forward(futures::stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    assert_eq!((answer.decisions.len(), answer.decisions[0].id), (1, 7));
    answer.decisions[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_forwarded_writes_is_answered_once_with_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let consensus = alone(&dir, free_address()).await;
    consensus.read().await.unwrap();
    let own = consensus.header(consensus.inner.id);
    let mut client = consensus.peer(own.to).await.unwrap();
    let requests: Vec<_> = (0..20_u64)
        .map(|batch| {
            let proposal = |place: u64| {
                let id = batch * 100 + place;
                // Some can't be read.
                let entry =
                    if place == 7 { b"\xff".to_vec() } else { stamp(member(&format!("m{id}")), None).encode_to_vec() };
                wire::Proposal { id, entry: entry.into() }
            };
            let proposals = (0..1 + batch * 5).map(proposal).collect();
            wire::ForwardRequest { header: Some(own.clone()), proposals }
        })
        .collect();
    let mut asked: BTreeSet<u64> =
        requests.iter().flat_map(|request| request.proposals.iter().map(|proposal| proposal.id)).collect();
    let mut answers = client.forward(futures::stream::iter(requests)).await.unwrap().into_inner();
    let mut indices = BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        for decision in answer.decisions {
            assert!(asked.remove(&decision.id), "answered twice, or never asked: {decision:?}");
            assert_eq!(decision.outcome.is_none(), decision.id % 100 == 7, "{decision:?}");
            assert_eq!(decision.not_proposed.is_empty(), decision.id % 100 != 7, "{decision:?}");
            if decision.outcome.is_some() {
                assert_eq!(indices.insert(decision.index, decision.id), None);
            }
        }
    }
    assert_eq!(asked, BTreeSet::new(), "never answered");
    let order: Vec<u64> = indices.into_values().collect();
    assert!(order.is_sorted(), "they are proposed in their order");
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
        let decided = forwarded(&mut client, header, stamp(member("stranger"), None).encode_to_vec()).await;
        assert!(!decided.not_proposed.is_empty() && decided.outcome.is_none(), "{decided:?}");
    }
    // Nor is a message whose entries leave a hole.
    let vote = Some(wire::Vote { term: 9, node_id: 1, committed: true });
    let entry = wire::LogEntry {
        log_id: Some(wire::LogId { term: 9, node_id: 1, index: 1_000_000 }),
        payload: Some(wire::log_entry::Payload::Blank(true)),
    };
    let (header, entries) = (Some(consensus.header(consensus.inner.id)), vec![entry]);
    let prev_log_id = Some(wire::LogId { term: 9, node_id: 1, index: 7 });
    let append = wire::AppendRequest { header, vote, entries, prev_log_id, ..wire::AppendRequest::default() };
    let answers = client.append(futures::stream::iter([append])).await.unwrap();
    assert_eq!(answers.into_inner().message().await.unwrap(), None, "the stream ends");
    // Neither is what the leader doesn't understand, and the stream goes on.
    let own = consensus.header(consensus.inner.id);
    for entry in [wire::Entry::default().encode_to_vec(), b"\xff\xff".to_vec()] {
        let decided = forwarded(&mut client, Some(own.clone()), entry).await;
        assert!(!decided.not_proposed.is_empty() && decided.outcome.is_none(), "{decided:?}");
    }
    let decided = forwarded(&mut client, Some(own), stamp(member("friend"), None).encode_to_vec()).await;
    assert!(decided.outcome.is_some() && decided.index > 0, "{decided:?}");
    let refused = consensus.propose(wire::Entry::default()).await.unwrap_err();
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

fn forwarder(address: &str) -> Forwarder {
    let peers = Peers::new(1, ("x".into(), &Transport::plain()), known(&[("n2", address)])).unwrap();
    let nothing = Published { snapshot: Arc::default(), index: 0, digests: Arc::default() };
    Forwarder::new(Arc::new(peers), tokio::sync::watch::channel(nothing).1)
}

#[tokio::test]
async fn only_what_was_never_sent_is_certainly_not_proposed() {
    let (leader, entry) = (types::member_id("n2"), types::Logged::from(stamp(member("n3"), None)));
    let stranger = forwarder("127.0.0.1:1").propose(5, entry.clone()).await;
    assert!(matches!(stranger, Err(ProposeError::NotProposed(_))), "{stranger:?}");
    // Nobody listens there.
    let nowhere = forwarder(&free_address().to_string()).propose(leader, entry.clone()).await;
    assert!(matches!(nowhere, Err(ProposeError::NotProposed(_))), "{nowhere:?}");
    // Somebody takes the connection, reads the write, and breaks it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let written = entry.encoded().to_vec();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = Vec::new();
            while !read.windows(written.len()).any(|bytes| bytes == written) {
                stream.read_buf(&mut read).await.unwrap();
            }
        }
    });
    let broken = forwarder(&address);
    for _ in 0..2 {
        let broken = broken.propose(leader, entry.clone()).await;
        assert!(matches!(broken, Err(ProposeError::Unknown(_))), "{broken:?}");
    }
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

/// A peer face that says of itself which rules its program knows.
struct Speaking(Arc<std::sync::atomic::AtomicU32>);

#[tonic::async_trait]
impl PeerApi for Speaking {
    async fn report_nodes(&self, _: wire::ReportNodesRequest) -> Result<wire::ReportNodesResponse, Status> {
        Ok(wire::ReportNodesResponse::default())
    }
    async fn board(&self, _: wire::BoardRequest) -> Result<wire::BoardResponse, Status> {
        Ok(wire::BoardResponse::default())
    }
    async fn member_status(&self) -> Result<MemberStatus, Status> {
        Ok(MemberStatus { machine_version: self.0.load(Ordering::SeqCst), ..MemberStatus::default() })
    }
    async fn dataplane(&self, _: DataplaneRequest) -> Result<DataplaneResponse, Status> {
        Ok(DataplaneResponse::default())
    }
    async fn drift(&self) -> Result<wire::DriftResponse, Status> {
        Ok(wire::DriftResponse::default())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_machine_version_rises_when_the_last_member_is_new() {
    use crate::machine::MACHINE_VERSION;
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let list: Vec<_> = (0..3).map(|at| (format!("n{at}"), addresses[at].to_string())).collect();
    let speak: Vec<Arc<std::sync::atomic::AtomicU32>> =
        [MACHINE_VERSION, MACHINE_VERSION, 0].map(|version| Arc::new(version.into())).to_vec();
    let starting = (0..3).map(|at| {
        let config = ConsensusConfig {
            name: format!("n{at}"),
            data_dir: dirs[at].path().to_owned(),
            listen_peer: addresses[at],
            initial_cluster: list.clone(),
            ..ConsensusConfig::default()
        };
        Consensus::start(config, Arc::new(Speaking(speak[at].clone())))
    });
    let members: Vec<_> = futures::future::join_all(starting).await.into_iter().map(Result::unwrap).collect();
    let cancel = CancellationToken::new();
    // An older program raises nothing.
    for consensus in &members[..2] {
        tokio::spawn(crate::controller::version::run(consensus.clone(), cancel.clone()));
    }
    let old = types::member_id("n2");
    let version = || members[0].local().state.machine_version();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let drain = command::Kind::SetDrained(wire::SetDrained { id: members[0].inner.id, drained: true });
    let refused = members[0].propose(stamp(drain.clone(), None)).await.unwrap().rejection.unwrap();
    assert_eq!(refused.code(), wire::rejection::Code::Unsupported, "{refused:?}");
    assert_eq!(version(), 1, "one member is of the older version");
    speak[2].store(MACHINE_VERSION, Ordering::SeqCst);
    let risen = async {
        while version() < MACHINE_VERSION {
            if members[0].status().leader == Some(old) {
                let _ =
                    members[2].manage_here(wire::manage_request::Change::Transfer(TransferRequest::default())).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), risen).await.unwrap();
    assert_eq!(members[1].propose(stamp(drain, None)).await.unwrap().rejection, None);
    cancel.cancel();
    for consensus in &members {
        consensus.shutdown().await;
    }
}
