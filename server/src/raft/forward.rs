//! Forwarded writes: one stream to the leader carries all of this member's proposals, many a message, and brings back
//! what became of each.
//!
//! INVARIANT: a proposal counts as sent once the stream's body took it. Before that it was certainly not proposed; after
//! it only an answer says what became of it. Each is answered once, also when the stream breaks. One that was decided is
//! answered when this member has applied it, so that its caller reads its own write.

use crate::pki::Identity;
use crate::raft::peers::{Peers, never_sent};
use crate::raft::propose::DECIDED_WITHIN;
use crate::raft::service::PeerService;
use crate::raft::types::Logged;
use crate::raft::{Consensus, ProposeError};
use crate::storage::Published;
use fairlead_proto::internal::v1::{
    Decision, ForwardRequest, ForwardResponse, Outcome, PeerHeader, Proposal, peer_client::PeerClient,
};
use futures::{FutureExt as _, Stream, StreamExt as _};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Proposals waiting to be sent.
const QUEUE: usize = 1_024;
/// Proposals, and bytes of them or of their outcomes, in one message, give or take one.
const MOST: usize = 512;
const BYTES: usize = 1024 * 1024;
/// Answers of one stream waiting to be sent.
const ANSWERS: usize = 64;
/// A decided write is answered after that time even if this member lags: its caller then has to read with the outcome's
/// revision.
const LAG: Duration = Duration::from_secs(1);
/// How often lagging and silence are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What became of a proposal.
type Decided = Result<Outcome, ProposeError>;
type Reply = oneshot::Sender<Decided>;

/// A proposal waiting to be sent.
struct Waiting {
    logged: Logged,
    reply: Reply,
}

/// Hands proposals to the leader. The stream is opened by the first one for a leader, and again after it broke.
pub(crate) struct Forwarder {
    peers: Arc<Peers>,
    published: watch::Receiver<Published>,
    line: Mutex<Option<(u64, mpsc::Sender<Waiting>)>>,
}

impl Forwarder {
    pub(crate) fn new(peers: Arc<Peers>, published: watch::Receiver<Published>) -> Self {
        Self { peers, published, line: Mutex::default() }
    }

    /// Has the leader decide.
    pub(crate) async fn propose(&self, leader: u64, logged: Logged) -> Decided {
        let broke = || ProposeError::NotProposed("the way to the leader broke before the write was sent".into());
        let (reply, decided) = oneshot::channel();
        let queue = self.queue(leader)?;
        queue.send(Waiting { logged, reply }).await.map_err(|_| broke())?;
        // What the body took is answered in any case; what it didn't take goes with the queue.
        decided.await.map_err(|_| broke())?
    }

    /// The queue of the stream to a leader, opened if there is none.
    fn queue(&self, leader: u64) -> Result<mpsc::Sender<Waiting>, ProposeError> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((to, queue)) = &*line
            && *to == leader
            && !queue.is_closed()
        {
            return Ok(queue.clone());
        }
        let unknown = || ProposeError::NotProposed(format!("the leader {leader} is not known here yet"));
        let client = self.peers.client(leader).ok_or_else(unknown)?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let body = Body { waiting, sent: Arc::default(), header: self.peers.header(leader) };
        tokio::spawn(run(client, body, self.published.clone()));
        *line = Some((leader, queue.clone()));
        Ok(queue)
    }
}

/// Proposals that are sent and not answered, by their id within the stream.
#[derive(Default)]
struct Sent(Mutex<State>);

#[derive(Default)]
struct State {
    closed: bool,
    next: u64,
    replies: BTreeMap<u64, (Instant, Reply)>,
}

impl Sent {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers everything that is sent with an error, and lets nothing more be.
    fn close(&self, why: impl Fn() -> ProposeError) {
        let mut state = self.lock();
        state.closed = true;
        for (_, reply) in std::mem::take(&mut state.replies).into_values() {
            let _ = reply.send(Err(why()));
        }
    }

    /// Something has waited for so long that an answer won't come.
    fn is_stalled(&self) -> bool {
        let oldest = self.lock().replies.first_key_value().map(|(_, (at, _))| *at);
        oldest.is_some_and(|at| at.elapsed() > DECIDED_WITHIN + LAG)
    }
}

/// What was sent and is let go of without an answer may have been executed: whoever waits must not take it for not sent.
impl Drop for Sent {
    fn drop(&mut self) {
        self.close(|| ProposeError::Unknown("the way to the leader ended".into()));
    }
}

/// The stream's body: takes what waits.
struct Body {
    waiting: mpsc::Receiver<Waiting>,
    sent: Arc<Sent>,
    header: PeerHeader,
}

impl Body {
    async fn next(mut self) -> Option<(ForwardRequest, Self)> {
        loop {
            let mut taken = vec![self.waiting.recv().await?];
            let mut bytes = 0;
            while bytes < BYTES
                && taken.len() < MOST
                && let Ok(next) = self.waiting.try_recv()
            {
                bytes += next.logged.encoded().len();
                taken.push(next);
            }
            let proposals = self.take(taken)?;
            if !proposals.is_empty() {
                return Some((ForwardRequest { header: Some(self.header.clone()), proposals }, self));
            }
        }
    }

    /// Notes proposals as sent; `None` if the stream has ended beside.
    fn take(&self, taken: Vec<Waiting>) -> Option<Vec<Proposal>> {
        let mut state = self.sent.lock();
        if state.closed {
            return None; // Whoever waits hears that nothing was sent.
        }
        let now = Instant::now();
        let wanted = taken.into_iter().filter(|one| !one.reply.is_closed());
        let proposals = wanted.map(|one| {
            state.next += 1;
            let id = state.next;
            state.replies.insert(id, (now, one.reply));
            Proposal { id, entry: one.logged.encoded().clone() }
        });
        Some(proposals.collect())
    }
}

/// Runs one stream to its end.
async fn run(mut client: PeerClient<Channel>, body: Body, published: watch::Receiver<Published>) {
    let sent = body.sent.clone();
    match client.forward(futures::stream::unfold(body, Body::next)).await {
        Ok(answers) => {
            let mut line = Line { sent: sent.clone(), published, decided: BTreeMap::new() };
            let why = line.receive(answers.into_inner()).await;
            sent.close(|| ProposeError::Unknown(format!("the leader did not answer: {why}")));
        }
        Err(status) if never_sent(&status) => {
            sent.close(|| ProposeError::NotProposed(format!("the leader can't be reached: {}", status.message())))
        }
        Err(status) => {
            sent.close(|| ProposeError::Unknown(format!("the leader did not answer: {}", status.message())));
        }
    }
}

/// The receiving side of a stream.
struct Line {
    sent: Arc<Sent>,
    published: watch::Receiver<Published>,
    /// Decided, and not yet applied here: by index and id.
    decided: BTreeMap<(u64, u64), (Instant, Outcome, Reply)>,
}

/// What was decided is answered in any case.
impl Drop for Line {
    fn drop(&mut self) {
        self.release(true);
    }
}

impl Line {
    /// Hands answers on until the stream ends; says why it did.
    async fn receive(&mut self, mut answers: Streaming<ForwardResponse>) -> String {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => answer.decisions.into_iter().for_each(|decision| self.hear(decision)),
                    Ok(None) => return "it ended the stream".into(),
                    Err(status) => return status.message().to_owned(),
                },
                changed = self.published.changed(), if !self.decided.is_empty() => {
                    if changed.is_err() {
                        return "this member stops".into();
                    }
                    self.release(false);
                }
                _ = look.tick() => {
                    self.release(false);
                    if self.sent.is_stalled() {
                        return "it is silent".into();
                    }
                }
            }
        }
    }

    fn hear(&mut self, decision: Decision) {
        let Some((_, reply)) = self.sent.lock().replies.remove(&decision.id) else {
            return; // Answered already, or never asked.
        };
        let (id, index) = (decision.id, decision.index);
        match decided(decision) {
            Ok(outcome) if self.published.borrow().index < index => {
                self.decided.insert((index, id), (Instant::now(), outcome, reply));
            }
            answer => drop(reply.send(answer)),
        }
    }

    /// Answers what is applied here, what waited for that too long, or everything.
    fn release(&mut self, everything: bool) {
        let applied = self.published.borrow_and_update().index;
        while let Some(first) = self.decided.first_entry() {
            let lags = first.key().0 > applied;
            if lags && !everything && first.get().0.elapsed() < LAG {
                return;
            }
            if lags {
                tracing::warn!(index = first.key().0, "this member lags behind the write it answers for");
            }
            let (_, outcome, reply) = first.remove();
            let _ = reply.send(Ok(outcome));
        }
    }
}

fn decided(decision: Decision) -> Decided {
    match decision.outcome {
        Some(outcome) => Ok(outcome),
        None if !decision.not_proposed.is_empty() => Err(ProposeError::NotProposed(decision.not_proposed)),
        None => Err(ProposeError::Unknown(decision.unknown)),
    }
}

fn decision(id: u64, decided: Result<(Outcome, u64), ProposeError>) -> Decision {
    let none = Decision { id, ..Decision::default() };
    match decided {
        Ok((outcome, index)) => Decision { outcome: Some(outcome), index, ..none },
        Err(ProposeError::NotProposed(why)) => Decision { not_proposed: why, ..none },
        Err(ProposeError::Unknown(why)) => Decision { unknown: why, ..none },
    }
}

/// The leader's side: takes a stream of proposals and answers it.
pub(crate) fn answer(
    service: &PeerService,
    (who, requests): (Identity, Streaming<ForwardRequest>),
) -> impl Stream<Item = Result<ForwardResponse, Status>> + use<> {
    let (to, answers) = mpsc::channel(ANSWERS);
    tokio::spawn(take(service.clone(), (who, requests), to));
    tokio_stream::wrappers::ReceiverStream::new(answers)
}

type Answers = mpsc::Sender<Result<ForwardResponse, Status>>;

async fn take(service: PeerService, (who, mut requests): (Identity, Streaming<ForwardRequest>), to: Answers) {
    while let Ok(Some(request)) = requests.message().await {
        // What is refused here was certainly not proposed: an answer says so, a status would not.
        let consensus = service.check(&who, request.header.as_ref()).and_then(|()| service.consensus().cloned());
        let (decisions, entries) = sort_out(request.proposals, consensus.as_ref().err());
        if !decisions.is_empty() && to.send(Ok(ForwardResponse { decisions })).await.is_err() {
            return;
        }
        if let (Ok(consensus), false) = (consensus, entries.0.is_empty()) {
            propose(&consensus, entries, &to).await;
        }
    }
}

/// Ids, and the entries that they name.
type Entries = (Vec<u64>, Vec<Logged>);

/// What can't be proposed is decided at once.
fn sort_out(proposals: Vec<Proposal>, refused: Option<&Status>) -> (Vec<Decision>, Entries) {
    let (mut decisions, mut ids, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for proposal in proposals {
        let entry = match (refused, Logged::decode(&proposal.entry)) {
            (Some(why), _) => Err(why.message().to_owned()),
            (None, Ok(entry)) if entry.is_known() => Ok(entry),
            (None, Ok(_)) => Err("the command is not known to the leader: is it of an older version?".to_owned()),
            (None, Err(error)) => Err(format!("the entry can't be read: {error}")),
        };
        match entry {
            Ok(entry) => {
                ids.push(proposal.id);
                entries.push(entry);
            }
            Err(why) => decisions.push(decision(proposal.id, Err(ProposeError::NotProposed(why)))),
        }
    }
    (decisions, (ids, entries))
}

/// Proposes in the order of the stream, and answers beside it.
async fn propose(consensus: &Consensus, (ids, entries): Entries, to: &Answers) {
    let results = consensus.propose_many_here(entries).await;
    // Each result goes with its id: what is polled in vain takes none.
    let mut decisions =
        Box::pin(futures::stream::iter(ids).zip(results).map(|(id, result)| decision(id, result)).fuse());
    let to = to.clone();
    tokio::spawn(async move {
        while let Some(first) = decisions.next().await {
            let mut bytes = first.encoded_len();
            let mut together = vec![first];
            // Those that are decided already go along.
            while bytes < BYTES
                && let Some(Some(next)) = decisions.next().now_or_never()
            {
                bytes += next.encoded_len();
                together.push(next);
            }
            if to.send(Ok(ForwardResponse { decisions: together })).await.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::internal::v1::Entry;

    #[tokio::test]
    async fn what_was_sent_and_is_forgotten_is_unknown_and_what_was_decided_is_answered() {
        let (_queue, waiting) = mpsc::channel(1);
        let body = Body { waiting, sent: Arc::default(), header: PeerHeader::default() };
        let propose = || {
            let (reply, decided) = oneshot::channel();
            (Waiting { logged: Logged::from(Entry::default()), reply }, decided)
        };
        let (sent, forgotten) = propose();
        let (known, decided) = propose();
        assert_eq!(body.take(vec![sent, known]).unwrap().len(), 2);
        let nothing = Published { snapshot: Arc::default(), index: 0, digests: Arc::default() };
        let published = watch::channel(nothing).1;
        let mut line = Line { sent: body.sent.clone(), published, decided: BTreeMap::new() };
        let outcome = Outcome { revision: 7, ..Outcome::default() };
        line.hear(Decision { id: 2, index: 9, outcome: Some(outcome), ..Decision::default() });
        // As after a panic: nobody says anything more.
        drop((line, body));
        assert!(matches!(forgotten.await, Ok(Err(ProposeError::Unknown(_)))));
        assert_eq!(decided.await.unwrap().unwrap().revision, 7);
    }
}
