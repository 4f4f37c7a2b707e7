//! Connections to the other members, and the header by which members know each other.
//!
//! INVARIANT: a message of another cluster, or for another member, is refused on both sides.

use crate::pki::Identity;
use crate::pki::authority::peer_name;
use crate::raft::MAX_MESSAGE;
use crate::raft::types::MemberAddress;
use fairlead_proto::internal::v1::{PeerHeader, peer_client::PeerClient};
use fairlead_proto::tls::Transport;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

const CONNECT_WITHIN: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Unanswered messages in a row after which a connection is made anew: TCP alone may take minutes to notice that a
/// broken network is whole again.
const UNHEARD: u32 = 5;
/// Milliseconds after which a leader that is not heard doesn't count: some times that of an election.
const LED_FOR_MS: u64 = 3_000;
/// What a member that was removed is told.
pub(crate) const REMOVED: &str =
    "this member was removed from the cluster and can't come back: stop it, and remove its data directory";
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// The members, this one included: first those of the founding list or of the answer to joining, later those that Raft
/// knows. Connected when first used.
pub(crate) struct Peers {
    own: u64,
    fingerprint: String,
    peers: RwLock<BTreeMap<u64, Arc<Peer>>>,
    transport: Transport,
    /// Another member says that this one was removed.
    removed: watch::Sender<bool>,
    begun: Instant,
    /// When a leader of these was last heard, milliseconds after the beginning; 0 = never.
    led_at: AtomicU64,
}

struct Peer {
    address: MemberAddress,
    endpoint: Endpoint,
    channel: Mutex<Channel>,
    unheard: AtomicU32,
}

/// What members of a founding list know each other by.
pub(crate) fn fingerprint(founding: &str) -> String {
    let hash = Sha256::digest(founding.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Peers {
    /// Must be called within a runtime.
    pub(crate) fn new(
        own: u64,
        (fingerprint, transport): (String, &Transport),
        members: BTreeMap<u64, MemberAddress>,
    ) -> Result<Self, tonic::transport::Error> {
        let peers = RwLock::default();
        let made = Self {
            own,
            fingerprint,
            peers,
            transport: transport.clone(),
            removed: watch::Sender::new(false),
            begun: Instant::now(),
            led_at: AtomicU64::new(0),
        };
        made.set(members)?;
        Ok(made)
    }

    /// Takes over who belongs to the cluster; connections to those who stay are kept.
    pub(crate) fn set(&self, members: BTreeMap<u64, MemberAddress>) -> Result<(), tonic::transport::Error> {
        let mut peers = self.write();
        let (mut next, mut unusable) = (BTreeMap::new(), None);
        for (id, address) in members {
            let known = peers.get(&id).filter(|peer| peer.address == address).cloned();
            // One that can't be used must not keep the others from being known.
            match known.map_or_else(|| self.peer(address).map(Arc::new), Ok) {
                Ok(peer) => drop(next.insert(id, peer)),
                Err(error) => unusable = Some(error),
            }
        }
        *peers = next;
        unusable.map_or(Ok(()), Err)
    }

    fn peer(&self, address: MemberAddress) -> Result<Peer, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", address.peer_address))?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channel = Mutex::new(self.transport.connect_lazy(&endpoint, peer_name(&address.name)));
        Ok(Peer { address, channel, endpoint, unheard: AtomicU32::new(0) })
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Arc<Peer>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Arc<Peer>>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: u64) -> Option<Arc<Peer>> {
        self.read().get(&id).cloned()
    }

    /// By which members know each other's messages.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(crate) fn members(&self) -> BTreeMap<u64, MemberAddress> {
        self.read().iter().map(|(id, peer)| (*id, peer.address.clone())).collect()
    }

    /// Ids of the other members.
    pub(crate) fn others(&self) -> Vec<u64> {
        self.read().keys().copied().filter(|id| *id != self.own).collect()
    }

    /// Notes what an answer says of this member itself.
    pub(crate) fn heed(&self, status: &tonic::Status) {
        if status.code() == tonic::Code::PermissionDenied && status.message() == REMOVED {
            self.removed.send_replace(true);
        }
    }

    /// Hears when another member says that this one was removed.
    pub(crate) fn subscribe_removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    pub(crate) fn client(&self, id: u64) -> Option<PeerClient<Channel>> {
        let peer = self.get(id)?;
        let channel = peer.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let client = PeerClient::new(channel.clone());
        Some(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
    }

    /// A member answered.
    pub(crate) fn heard(&self, id: u64) {
        if let Some(peer) = self.get(id) {
            peer.unheard.store(0, Ordering::Relaxed);
        }
    }

    /// A member did not answer in time.
    pub(crate) fn unheard(&self, id: u64) {
        let Some(peer) = self.get(id) else {
            return;
        };
        if peer.unheard.fetch_add(1, Ordering::Relaxed) + 1 >= UNHEARD {
            peer.unheard.store(0, Ordering::Relaxed);
            let mut channel = peer.channel.lock().unwrap_or_else(PoisonError::into_inner);
            *channel = self.transport.connect_lazy(&peer.endpoint, peer_name(&peer.address.name));
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

    /// A message of a leader was taken; or this member leads itself, and a majority follows.
    pub(crate) fn note_leader(&self, from: u64) {
        if self.read().contains_key(&from) {
            self.led_at.store(self.elapsed_ms(), Ordering::Relaxed);
        }
    }

    /// A leader that this member knows was heard lately.
    fn is_led(&self) -> bool {
        let at = self.led_at.load(Ordering::Relaxed);
        at != 0 && self.elapsed_ms().saturating_sub(at) < LED_FOR_MS
    }

    /// Never 0.
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// What is wrong with a message's header, if anything: also if it is not of the member whose certificate was shown.
    pub(crate) fn check(&self, caller: &Identity, header: Option<&PeerHeader>) -> Result<(), tonic::Status> {
        let Some(header) = header else {
            return Err(tonic::Status::invalid_argument("a peer message needs a header"));
        };
        let refuse = |what: &str| {
            tracing::warn!(from = header.from, to = header.to, "a peer's message is refused: {what}");
            Err(tonic::Status::failed_precondition(what))
        };
        if header.cluster_id != self.fingerprint {
            return refuse("the sender is of another cluster, or has another --initial-cluster than this member");
        }
        if header.to != self.own {
            return refuse("the message is for another member: two addresses are mixed up");
        }
        let Some(sender) = self.get(header.from) else {
            // Its log may be older than the sender's membership, and comes from nobody else: a member that is led by one
            // whom it knows needs no stranger.
            let is_member = matches!(caller, Identity::Unsecured | Identity::Member(_));
            return if is_member && !self.is_led() { Ok(()) } else { refuse("the sender is no member of the cluster") };
        };
        match caller {
            Identity::Unsecured => Ok(()),
            Identity::Member(name) if *name == sender.address.name => Ok(()),
            _ => refuse("the sender shows another member's certificate"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn header(from: u64) -> PeerHeader {
        PeerHeader { cluster_id: "f".into(), from, to: 1, machine_version: 1 }
    }

    #[tokio::test]
    async fn who_is_not_led_listens_to_members_that_it_does_not_know_yet() {
        let address = |name: &str| MemberAddress { name: name.into(), peer_address: "127.0.0.1:1".into() };
        let known = BTreeMap::from([(1, address("n1")), (2, address("n2"))]);
        let peers = Peers::new(1, ("f".into(), &Transport::plain()), known).unwrap();
        let member = |name: &str| Identity::Member(name.into());
        let takes = |who: &Identity, from: u64| peers.check(who, Some(&header(from))).is_ok();
        // Nobody leads it: its log is old, or empty, and what is new comes from whoever leads now.
        assert!(takes(&member("n9"), 9) && takes(&Identity::Unsecured, 9));
        for who in [Identity::Anonymous, Identity::Node("n9".into())] {
            assert!(!takes(&who, 9), "{who}");
        }
        assert!(!takes(&member("n9"), 2), "known by another name");
        // One that it doesn't know proves nothing by talking.
        peers.note_leader(9);
        assert!(takes(&member("n9"), 9));
        peers.note_leader(2);
        assert!(!takes(&member("n9"), 9) && takes(&member("n2"), 2));
        peers.led_at.store(0, Ordering::Relaxed);
        assert!(takes(&member("n9"), 9));
    }
}
