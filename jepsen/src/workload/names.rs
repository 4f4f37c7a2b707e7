//! Names: services come and go, and resolvers ask any server's DNS for them at once. What is asked after an acknowledgement
//! must show it, unless the answer says that it is stale.

use super::{Actor, Stage};
use crate::client::{Failed, service};
use crate::cluster::lock;
use crate::hosts::Host;
use crate::random::Random;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;

/// Their namespace.
pub const SPACE: &str = "jepsen-names";
/// Names of one client at once.
const KEPT: usize = 6;
const PATIENCE: Duration = Duration::from_millis(1_500);

/// A name's life. Names are used once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The service.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// When its creation was acknowledged.
    pub created: u64,
    /// When its removal was first asked for; [`u64::MAX`]: never.
    pub removing: u64,
    /// When its removal was acknowledged; [`u64::MAX`]: never.
    pub removed: u64,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The service.
    pub name: String,
    /// The server, from 1.
    pub node: u8,
    /// When it was asked.
    pub asked: u64,
    /// When it was answered.
    pub answered: u64,
    /// What was said.
    pub said: Said,
    /// The answer says that it may be stale (RFC 8914).
    pub stale: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    Nothing,
    /// The server can't tell.
    Failure,
    /// None came.
    Silence,
}

/// One client: creates, asks, removes, asks.
pub async fn client(stage: Arc<Stage>, random: Random, number: u8) {
    let mut actor = Actor::new(stage.clone(), random, number);
    let mut mine: Vec<Record> = Vec::new();
    let mut round = 0_u64;
    while !stage.is_stopped() {
        round += 1;
        if mine.len() > KEPT || (!mine.is_empty() && actor.random.chance(30)) {
            let mut record = mine.swap_remove(0);
            record.removing = stage.now();
            match actor.client.delete((SPACE, &record.name), None).await {
                Ok(_) => {
                    record.removed = stage.now();
                    ask_somebody(&mut actor, &record.name).await;
                    lock(&stage.records).push(record);
                }
                // Whether it is there is not known any more: nothing is asked of it again.
                Err(Failed::Unknown(_)) => lock(&stage.records).push(record),
                Err(Failed::Refused(_)) => {
                    record.removing = u64::MAX;
                    mine.push(record);
                    actor.fail().await;
                }
            }
        } else {
            let name = format!("d{number}-{round}");
            match actor.client.create(service((SPACE, &name), "0", false).into(), None).await {
                Ok(answer) => {
                    let created = stage.now();
                    let spec = answer.object.as_ref().and_then(|object| object.as_service()?.spec.as_ref());
                    if let Some(address) = spec.and_then(|spec| spec.cluster_ip.parse().ok()) {
                        let (removing, removed) = (u64::MAX, u64::MAX);
                        mine.push(Record { name: name.clone(), address, created, removing, removed });
                        ask_somebody(&mut actor, &name).await;
                    }
                }
                Err(_) => actor.fail().await,
            }
        }
        if let Some(record) = mine.last() {
            let name = record.name.clone();
            ask_somebody(&mut actor, &name).await;
        }
        tokio::time::sleep(Duration::from_millis(2 + actor.random.below(10))).await;
    }
    lock(&stage.records).extend(mine);
}

/// Asks a server for every name that is still there.
pub async fn ask_all(actor: &mut Actor, server: Host) {
    let there = lock(&actor.stage.records).clone();
    for record in there.iter().filter(|record| record.removing == u64::MAX) {
        ask_one(actor, server, &record.name).await;
    }
}

async fn ask_somebody(actor: &mut Actor, name: &str) {
    let number = u8::try_from(1 + actor.random.below(actor.stage.cluster.servers.into())).unwrap_or(1);
    ask_one(actor, Host::Server(number), name).await;
}

async fn ask_one(actor: &mut Actor, server: Host, name: &str) {
    let Host::Server(number) = server else { return };
    let id = u16::try_from(actor.random.below(65_536)).unwrap_or(0);
    let asked = actor.stage.now();
    let (said, stale) = ask(server, name, id).await.unwrap_or((Said::Silence, false));
    let answered = actor.stage.now();
    lock(&actor.stage.lookups).push(Lookup { name: name.to_owned(), node: number, asked, answered, said, stale });
}

/// Asks a server for a service's address, by UDP.
pub async fn ask(host: Host, name: &str, id: u16) -> Option<(Said, bool)> {
    let name = Name::from_str(&format!("{name}.{SPACE}.svc.cluster.local.")).ok()?;
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(name, RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    query.edns = Some(edns);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect((host.address(), 53)).await.ok()?;
    socket.send(&query.to_vec().ok()?).await.ok()?;
    let mut buffer = [0; 4096];
    loop {
        let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.ok()?.ok()?;
        let answer = Message::from_vec(buffer.get(..length)?).ok()?;
        if answer.metadata.id != id {
            continue;
        }
        let stale = is_stale(&answer);
        let addresses: Vec<IpAddr> = answer.answers.iter().filter_map(|record| address(&record.data)).collect();
        let said = match answer.metadata.response_code {
            ResponseCode::NoError if !addresses.is_empty() => Said::Addresses(addresses),
            ResponseCode::NXDomain | ResponseCode::NoError => Said::Nothing,
            _ => Said::Failure,
        };
        return Some((said, stale));
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        _ => None,
    }
}

/// Extended DNS errors (RFC 8914) 3, "Stale Answer", and 19, "Stale NXDOMAIN Answer".
const STALE: [u16; 2] = [3, 19];

fn is_stale(answer: &Message) -> bool {
    let options = answer.edns.as_ref().map(|edns| edns.options());
    let Some(EdnsOption::Unknown(_, bytes)) = options.and_then(|options| options.get(EdnsCode::Unknown(15))) else {
        return false;
    };
    bytes.first_chunk().is_some_and(|code| STALE.contains(&u16::from_be_bytes(*code)))
}
