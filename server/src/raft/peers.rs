//! Connections to the other members, and the header by which members know each other.
//!
//! INVARIANT: a message of another cluster, or for another member, is refused on both sides.

use crate::raft::MAX_MESSAGE;
use crate::raft::types::{MemberAddress, member_id};
use fairlead_proto::internal::v1::{PeerHeader, peer_client::PeerClient};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

const CONNECT_WITHIN: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Unanswered messages in a row after which a connection is made anew: TCP alone may take minutes to notice that a
/// broken network is whole again.
const UNHEARD: u32 = 5;
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// The members of the founding list, this one included; connected when first used.
pub(crate) struct Peers {
    own: u64,
    fingerprint: String,
    peers: BTreeMap<u64, Peer>,
}

struct Peer {
    address: MemberAddress,
    endpoint: Endpoint,
    channel: Mutex<Channel>,
    unheard: AtomicU32,
}

impl Peers {
    /// Must be called within a runtime.
    pub(crate) fn new(own: u64, founding: &str, list: &[(String, String)]) -> Result<Self, tonic::transport::Error> {
        let mut peers = BTreeMap::new();
        for (name, address) in list {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(CONNECT_WITHIN)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
            let address = MemberAddress { name: name.clone(), peer_address: address.clone() };
            let peer =
                Peer { address, channel: Mutex::new(endpoint.connect_lazy()), endpoint, unheard: AtomicU32::new(0) };
            peers.insert(member_id(name), peer);
        }
        let hash = Sha256::digest(founding.as_bytes());
        let fingerprint = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { own, fingerprint, peers })
    }

    pub(crate) fn members(&self) -> BTreeMap<u64, MemberAddress> {
        let address = |(id, peer): (&u64, &Peer)| (*id, peer.address.clone());
        self.peers.iter().map(address).collect()
    }

    /// Ids of the other members.
    pub(crate) fn others(&self) -> impl Iterator<Item = u64> + '_ {
        self.peers.keys().copied().filter(|id| *id != self.own)
    }

    pub(crate) fn client(&self, id: u64) -> Option<PeerClient<Channel>> {
        let peer = self.peers.get(&id)?;
        let channel = peer.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let client = PeerClient::new(channel.clone());
        Some(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// A member answered.
    pub(crate) fn heard(&self, id: u64) {
        if let Some(peer) = self.peers.get(&id) {
            peer.unheard.store(0, Ordering::Relaxed);
        }
    }

    /// A member did not answer in time.
    pub(crate) fn unheard(&self, id: u64) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if peer.unheard.fetch_add(1, Ordering::Relaxed) + 1 >= UNHEARD {
            peer.unheard.store(0, Ordering::Relaxed);
            let mut channel = peer.channel.lock().unwrap_or_else(PoisonError::into_inner);
            *channel = peer.endpoint.connect_lazy();
            tracing::debug!(peer = peer.address.name, "silent; its connection is made anew");
        }
    }

    pub(crate) fn header(&self, to: u64) -> PeerHeader {
        PeerHeader {
            cluster_id: self.fingerprint.clone(),
            from: self.own,
            to,
            machine_version: crate::machine::MACHINE_VERSION,
        }
    }

    /// What is wrong with a message's header, if anything.
    pub(crate) fn check(&self, header: Option<&PeerHeader>) -> Result<(), tonic::Status> {
        let Some(header) = header else {
            return Err(tonic::Status::invalid_argument("a peer message needs a header"));
        };
        let refuse = |what: &str| {
            tracing::warn!(from = header.from, to = header.to, "a peer's message is refused: {what}");
            Err(tonic::Status::failed_precondition(what))
        };
        if header.cluster_id != self.fingerprint {
            return refuse("the sender has another --initial-cluster than this member");
        }
        if header.to != self.own {
            return refuse("the message is for another member: two addresses of --initial-cluster are mixed up");
        }
        if !self.peers.contains_key(&header.from) {
            return refuse("the sender is not in --initial-cluster");
        }
        Ok(())
    }
}

/// True if it is certain that a request was never sent: there was no connection to send it on.
pub(crate) fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
