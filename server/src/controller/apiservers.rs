//! The service `kubernetes` in namespace `default`: how pods find Kubernetes' API, with the servers as its endpoints.
//!
//! `wanted` is pure. The leader asks every member each second; one that does not answer twice, or is of another term, can't reach the
//! quorum and is taken out, as kube-apiserver's lease reconciler does after 15 s. The last ones are never taken out: where nobody
//! answers, it is the asker who is cut off. Servers that speak plaintext, or that listen on loopback only, have nothing to offer
//! and make no service.

use crate::machine::{State, derive};
use crate::raft::Consensus;
use crate::write::Writer;
use fairlead_proto::convert;
use fairlead_proto::internal::v1::{Put, command, put::Precondition};
use fairlead_proto::model::{DEFAULT_NAMESPACE, Key};
use fairlead_proto::v1::{
    Endpoint, EndpointPort, Endpoints, IntOrString, Kind, MemberStatus, Object, ObjectMeta, Service, ServicePort,
    ServiceSpec, int_or_string,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Name of the service, and of its endpoints.
pub const NAME: &str = "kubernetes";
/// The name of its port.
const PORT: &str = "https";
/// The port of its VIP.
const NUMBER: i32 = 443;
/// Between two rounds.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Rounds without an answer after which a member is out.
const MISSES: u32 = 2;

/// The first address of a range, which is the service's if nobody has it: certificates name it.
#[must_use]
pub fn address(range: &IpNet) -> Option<IpAddr> {
    match range.network() {
        IpAddr::V4(network) => u32::from(network).checked_add(1).map(|first| IpAddr::V4(first.into())),
        IpAddr::V6(network) => u128::from(network).checked_add(1).map(|first| IpAddr::V6(first.into())),
    }
}

/// What is to be written so that the service is there and leads to these servers; nothing, if it does or if somebody made a
/// service of that name for pods.
#[must_use]
pub fn wanted(state: &State, servers: &BTreeSet<SocketAddr>, uids: [String; 2]) -> Vec<Put> {
    let key = |kind: Kind| Key::new(kind, DEFAULT_NAMESPACE, NAME);
    let service = state.get(&key(Kind::Service)).and_then(|object| object.as_service());
    if servers.is_empty() || service.is_some_and(derive::is_derived) {
        return Vec::new();
    }
    let [service_uid, endpoints_uid] = uids;
    let mut puts = Vec::new();
    if service.is_none() {
        puts.push(create(kubernetes(state, service_uid).into()));
    }
    let endpoints: Vec<Endpoint> = servers.iter().map(endpoint).collect();
    match state.get(&key(Kind::Endpoints)) {
        None => {
            let metadata = metadata(endpoints_uid);
            puts.push(create(Endpoints { metadata: Some(metadata), endpoints, ..Endpoints::default() }.into()));
        }
        Some(current) if current.as_endpoints().is_some_and(|record| record.endpoints == endpoints) => {}
        Some(current) => {
            let metadata = Some(current.metadata().clone());
            let object = Some(Endpoints { metadata, endpoints, ..Endpoints::default() }.into());
            let precondition = Some(Precondition::ExpectRevision(current.metadata().revision));
            puts.push(Put { object, precondition, status_only: false });
        }
    }
    puts
}

fn create(mut object: Object) -> Put {
    convert::default_object(&mut object);
    Put { object: Some(object), precondition: Some(Precondition::Create(true)), status_only: false }
}

fn metadata(uid: String) -> ObjectMeta {
    ObjectMeta { name: NAME.to_owned(), namespace: DEFAULT_NAMESPACE.to_owned(), uid, ..ObjectMeta::default() }
}

/// As kube-apiserver makes it (pkg/controlplane/controller/kubernetesservice).
fn kubernetes(state: &State, uid: String) -> Service {
    let free = |address: &IpAddr| {
        let text = address.to_string();
        let has = |service: &Service| service.spec.as_ref().is_some_and(|spec| spec.cluster_ips.contains(&text));
        !state.list(Kind::Service, "").filter_map(|object| object.as_service()).any(has)
    };
    let range = state.settings().service_cidr.parse::<IpNet>().ok();
    let first = range.as_ref().and_then(address).filter(free);
    let port = ServicePort {
        name: PORT.to_owned(),
        protocol: "TCP".to_owned(),
        port: NUMBER,
        target_port: Some(IntOrString { value: Some(int_or_string::Value::Int(7443)) }),
        ..ServicePort::default()
    };
    let labels = [("component", "apiserver"), ("provider", "kubernetes")];
    let metadata = ObjectMeta {
        labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..metadata(uid)
    };
    let spec = ServiceSpec {
        ports: vec![port],
        cluster_ip: first.map(|address| address.to_string()).unwrap_or_default(),
        ..ServiceSpec::default()
    };
    Service { metadata: Some(metadata), spec: Some(spec), ..Service::default() }
}

fn endpoint(server: &SocketAddr) -> Endpoint {
    let port = EndpointPort {
        name: PORT.to_owned(),
        port: server.port().into(),
        protocol: "TCP".to_owned(),
        app_protocol: None,
    };
    Endpoint { address: server.ip().to_string(), ready: true, serving: true, ports: vec![port], ..Endpoint::default() }
}

/// Where a member serves Kubernetes' API, if pods can reach it there.
fn served(status: &MemberStatus) -> Option<SocketAddr> {
    let address: SocketAddr = status.https_address.parse().ok()?;
    (!address.ip().is_loopback() && !address.ip().is_unspecified()).then_some(address)
}

/// Members that answered lately, and where each serves.
#[derive(Default)]
pub struct Heard {
    /// Where each serves, and how many rounds ago it said so.
    members: BTreeMap<u64, (SocketAddr, u32)>,
    /// What the round before came to.
    last: BTreeSet<SocketAddr>,
}

impl Heard {
    /// A round: what members said of themselves, by id; `None` = nothing. Answers of another term are none.
    pub fn round(&mut self, term: u64, answers: &BTreeMap<u64, Option<MemberStatus>>) -> BTreeSet<SocketAddr> {
        self.members.retain(|member, _| answers.contains_key(member));
        for (member, answer) in answers {
            let answer = answer.as_ref().filter(|status| status.term == term);
            match (answer, answer.and_then(served)) {
                (_, Some(address)) => drop(self.members.insert(*member, (address, 0))),
                (Some(_), None) => drop(self.members.remove(member)),
                (None, None) => {
                    if let Some((_, misses)) = self.members.get_mut(member) {
                        *misses += 1;
                    }
                }
            }
        }
        let heard: BTreeSet<SocketAddr> =
            self.members.values().filter(|(_, misses)| *misses < MISSES).map(|(address, _)| *address).collect();
        if !heard.is_empty() {
            self.last = heard;
        }
        self.last.clone()
    }
}

/// Keeps it while this member leads.
pub async fn run(consensus: Consensus, writer: Writer, own: impl Fn() -> MemberStatus, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(ASK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Heard::default();
    let mut rounds = 0_u32;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        let status = consensus.status();
        if !consensus.is_leader() || consensus.local().state.settings().cluster_id.is_empty() {
            (heard, rounds) = (Heard::default(), 0);
            continue;
        }
        let others = consensus.members().into_iter().map(|member| member.id).filter(|id| *id != status.id);
        let asked = others.map(|id| {
            let consensus = &consensus;
            async move { (id, consensus.status_of(id).await) }
        });
        let answers = futures::future::join_all(asked).await.into_iter().chain([(status.id, Some(own()))]).collect();
        let servers = heard.round(status.term, &answers);
        rounds = rounds.saturating_add(1);
        // Whoever leads since a moment ago has not heard everybody: nobody is taken out on its first words.
        if rounds <= MISSES {
            continue;
        }
        let uids = [uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string()];
        for put in wanted(&consensus.local().state, &servers, uids) {
            match writer.propose(command::Kind::Put(put)).await.map(|outcome| outcome.rejection) {
                Ok(None) => {}
                Ok(Some(refused)) => {
                    tracing::warn!(why = refused.message, "the service kubernetes is not as it should be")
                }
                Err(error) => tracing::debug!(%error, "the service kubernetes is not written yet"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::{World, service};

    fn servers(list: &[&str]) -> BTreeSet<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn write(world: &mut World, list: &[&str]) -> usize {
        let puts = wanted(&world.snapshot.state, &servers(list), ["s".into(), "e".into()]);
        let written = puts.len();
        for put in puts {
            assert_eq!(world.run(command::Kind::Put(put)).outcome.rejection, None);
        }
        written
    }

    #[test]
    fn the_service_is_made_with_the_first_address_and_leads_to_the_servers() {
        let mut world = World::new();
        assert_eq!(write(&mut world, &[]), 0, "nothing to offer");
        assert_eq!(write(&mut world, &["10.0.0.1:7443", "10.0.0.2:8443"]), 2);
        let made = world.service(NAME);
        assert_eq!(made.spec.unwrap().cluster_ips, ["10.96.0.1"]);
        let record = world.get(Kind::Endpoints, NAME).unwrap();
        let led: Vec<_> = record.as_endpoints().unwrap().endpoints.clone();
        let led: Vec<_> = led.iter().map(|one| format!("{}:{}", one.address, one.ports[0].port)).collect();
        assert_eq!(led, ["10.0.0.1:7443", "10.0.0.2:8443"]);
        assert_eq!(write(&mut world, &["10.0.0.1:7443", "10.0.0.2:8443"]), 0, "it is as it should be");
        assert_eq!(write(&mut world, &["10.0.0.2:8443"]), 1);
        assert_eq!(world.endpoints(NAME).len(), 1);
        world.delete(Kind::Service, NAME);
        assert!(write(&mut world, &["10.0.0.2:8443"]) > 0, "it comes back");
        assert_eq!(world.endpoints(NAME).len(), 1);
    }

    #[test]
    fn another_address_is_taken_if_the_first_is_somebodys_and_a_service_for_pods_is_left_alone() {
        let mut world = World::new();
        world.create(crate::machine::tests::service_with("web", |spec| spec.cluster_ip = "10.96.0.1".into()));
        write(&mut world, &["10.0.0.1:7443"]);
        let address = world.service(NAME).spec.unwrap().cluster_ip;
        assert!(!address.is_empty() && address != "10.96.0.1", "{address}");
        let mut world = World::new();
        world.create(service(NAME));
        assert_eq!(write(&mut world, &["10.0.0.1:7443"]), 0);
    }

    #[test]
    fn a_server_that_loses_contact_leaves_and_the_last_one_stays() {
        let says = |address: &str, term: u64| {
            Some(MemberStatus { https_address: address.into(), term, ..MemberStatus::default() })
        };
        let round = |heard: &mut Heard, answers: [Option<MemberStatus>; 3]| {
            let answers = (1..).zip(answers).collect();
            heard.round(7, &answers)
        };
        let mut heard = Heard::default();
        let (a, b) = ("10.0.0.1:7443", "10.0.0.2:7443");
        let all = round(&mut heard, [says(a, 7), says(b, 7), says("127.0.0.1:7443", 7)]);
        assert_eq!(all, servers(&[a, b]), "loopback is nobody else's");
        assert_eq!(round(&mut heard, [says(a, 7), None, None]), servers(&[a, b]), "one lost answer is no lost contact");
        assert_eq!(round(&mut heard, [says(a, 7), says(b, 6), None]), servers(&[a]), "another term's is none");
        assert_eq!(round(&mut heard, [says(a, 7), says(b, 7), None]), servers(&[a, b]));
        assert_eq!(round(&mut heard, [None, None, None]), servers(&[a, b]));
        assert_eq!(round(&mut heard, [None, None, None]), servers(&[a, b]), "it is we who are cut off");
        assert_eq!(round(&mut heard, [says(a, 7), says("", 7), None]), servers(&[a]), "it serves no more");
    }

    #[test]
    fn the_first_address_of_a_range() {
        for (range, first) in [("10.96.0.0/12", "10.96.0.1"), ("fd00::/108", "fd00::1")] {
            assert_eq!(address(&range.parse().unwrap()), first.parse().ok());
        }
    }
}
