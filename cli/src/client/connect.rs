//! Talking to the servers: one after the other until one answers, within the request's time.
//!
//! Laws: a write is sent again only with its request id; once an attempt may have been executed, nothing but a server's
//! answer about that very request ends in anything other than an unknown outcome; a read is at least as fresh as
//! everything this process has seen.

use crate::client::failure::{self, Failure};
use fairlead_proto::tls::{SERVER_NAME, Transport};
use fairlead_proto::trace;
use fairlead_proto::v1::access_client::AccessClient;
use fairlead_proto::v1::cluster_client::ClusterClient;
use fairlead_proto::v1::maintenance_client::MaintenanceClient;
use fairlead_proto::v1::members_client::MembersClient;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{
    ApplyRequest, CreateRequest, DataplaneRequest, DataplaneResponse, DeleteRequest, DiagnoseRequest, DiagnoseResponse,
    GetRequest, HistoryRequest, HistoryResponse, ListRequest, ListResponse, ObjectResponse, RequestId,
    RevisionsRequest, RevisionsResponse, StatusRequest, StatusResponse, UpdateRequest, WaitProgrammedRequest,
    WaitProgrammedResponse, WatchRequest, WatchResponse, WriteOptions,
};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

/// Largest message either way.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Time for one connection to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// One attempt's time where there are other servers to ask.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Servers that can't be connected to are tried again for this long; a typo should not take the whole request's time.
const UNREACHABLE: Duration = Duration::from_secs(2);
/// Pause after a round of all servers: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// An attempt with less time than this is not worth making: it would only blur what is known.
const SHORTEST: Duration = Duration::from_millis(100);
/// What TLS says if the other side refuses a certificate.
const TURNED_AWAY: &str = "received fatal alert";
/// No limit was asked for.
const FOREVER: Duration = Duration::from_secs(7 * 86_400);

/// The servers, as one.
pub struct Servers {
    addresses: Vec<String>,
    transport: Transport,
    channels: Vec<Mutex<Option<Channel>>>,
    current: AtomicUsize,
    limit: Duration,
    client: String,
    sequence: AtomicU64,
    since: OnceLock<u64>,
    seen: AtomicU64,
}

/// What one attempt came to.
enum Attempt<A> {
    Answer(A),
    /// A server's last word.
    Refused(Status),
    /// Nothing was executed; another attempt may help.
    Again(String),
    /// No connection.
    Unreachable(String),
    /// It may have been executed.
    InDoubt(String),
}

impl Servers {
    /// Servers to be asked in this order; requests take at most `limit` (0 = no limit).
    pub fn new(addresses: &[String], transport: Transport, limit: Duration) -> Self {
        Self {
            addresses: addresses.to_vec(),
            transport,
            channels: addresses.iter().map(|_| Mutex::new(None)).collect(),
            current: AtomicUsize::new(0),
            limit: if limit.is_zero() { FOREVER } else { limit },
            client: uuid::Uuid::new_v4().to_string(),
            sequence: AtomicU64::new(0),
            since: OnceLock::new(),
            seen: AtomicU64::new(0),
        }
    }

    /// One object.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get(&self, mut request: GetRequest) -> Result<ObjectResponse, Failure> {
        request.min_revision = self.seen.load(Ordering::Relaxed);
        let answer: ObjectResponse =
            self.ask(request, None, async |channel, request| objects(channel).get(request).await).await?;
        self.saw(answer.revision);
        Ok(answer)
    }

    /// One page.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn list(&self, mut request: ListRequest) -> Result<ListResponse, Failure> {
        request.min_revision = self.seen.load(Ordering::Relaxed);
        let answer: ListResponse =
            self.ask(request, None, async |channel, request| objects(channel).list(request).await).await?;
        self.saw(answer.revision);
        Ok(answer)
    }

    /// Creates.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn create(&self, mut request: CreateRequest) -> Result<ObjectResponse, Failure> {
        let id = self.name_write(&mut request.options);
        self.written(self.ask(request, id, async |channel, request| objects(channel).create(request).await).await)
    }

    /// Applies.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn apply(&self, mut request: ApplyRequest) -> Result<ObjectResponse, Failure> {
        let id = self.name_write(&mut request.options);
        self.written(self.ask(request, id, async |channel, request| objects(channel).apply(request).await).await)
    }

    /// Replaces.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn update(&self, mut request: UpdateRequest) -> Result<ObjectResponse, Failure> {
        let id = self.name_write(&mut request.options);
        self.written(self.ask(request, id, async |channel, request| objects(channel).update(request).await).await)
    }

    /// Deletes.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn delete(&self, mut request: DeleteRequest) -> Result<ObjectResponse, Failure> {
        let id = self.name_write(&mut request.options);
        self.written(self.ask(request, id, async |channel, request| objects(channel).delete(request).await).await)
    }

    /// Members and nodes.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn status(&self) -> Result<StatusResponse, Failure> {
        self.ask(StatusRequest {}, None, async |channel, request| cluster(channel).status(request).await).await
    }

    /// Waits at most `limit` until every live node has acknowledged a revision.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn wait_programmed(&self, revision: u64, limit: Duration) -> Result<WaitProgrammedResponse, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            // A server bounds its wait, and one attempt here is bounded: ask in steps.
            let step = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT / 2).min(self.limit / 2);
            let request =
                WaitProgrammedRequest { revision, timeout_ms: u64::try_from(step.as_millis()).unwrap_or(u64::MAX) };
            let answer: WaitProgrammedResponse = self
                .ask(request, None, async |channel, request| cluster(channel).wait_programmed(request).await)
                .await?;
            if answer.programmed || Instant::now() >= deadline {
                return Ok(answer);
            }
        }
    }

    /// What the nodes' kernels hold.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn dataplane(&self, request: DataplaneRequest) -> Result<DataplaneResponse, Failure> {
        self.ask(request, None, async |channel, request| cluster(channel).dataplane(request).await).await
    }

    /// What an object was.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn revisions(&self, request: RevisionsRequest) -> Result<RevisionsResponse, Failure> {
        self.ask(request, None, async |channel, request| objects(channel).revisions(request).await).await
    }

    /// A question or change about who may do what.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn access<Q: Clone, A>(
        &self,
        request: Q,
        call: impl AsyncFn(AccessClient<Channel>, Q) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        self.ask(request, None, async |channel, request| call(AccessClient::new(channel), request).await).await
    }

    /// A change of the members.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn members<Q: Clone, A>(
        &self,
        request: Q,
        call: impl AsyncFn(MembersClient<Channel>, Q) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        self.ask(request, None, async |channel, request| call(MembersClient::new(channel), request).await).await
    }

    /// The recent past.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn history(&self, request: HistoryRequest) -> Result<HistoryResponse, Failure> {
        self.ask(request, None, async |channel, request| cluster(channel).history(request).await).await
    }

    /// Opens a stream of answers.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stream<Q: Clone, A>(
        &self,
        request: Q,
        call: impl AsyncFn(Channel, Q) -> Result<Response<Streaming<A>>, Status>,
    ) -> Result<Streaming<A>, Failure> {
        self.ask(request, None, call).await
    }

    /// Opens a watch.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn watch(&self, request: WatchRequest) -> Result<Streaming<WatchResponse>, Failure> {
        self.ask(request, None, async |channel, request| objects(channel).watch(request).await).await
    }

    /// Turns to the next server, after a stream from the current one was cut.
    pub fn turn(&self) {
        let next = (self.current.load(Ordering::Relaxed) + 1) % self.addresses.len().max(1);
        self.current.store(next, Ordering::Relaxed);
    }

    /// How each server is doing, or why it doesn't say.
    pub async fn diagnose(&self) -> Vec<(String, Result<DiagnoseResponse, String>)> {
        let deadline = Instant::now() + self.limit.min(ATTEMPT);
        let asked = self.addresses.iter().enumerate().map(|(index, address)| async move {
            let call = async |channel| MaintenanceClient::new(channel).diagnose(DiagnoseRequest {}).await;
            let answer = match self.attempt(index, deadline, call).await {
                Attempt::Answer(answer) => Ok(answer),
                Attempt::Refused(status) => Err(status.message().to_owned()),
                Attempt::Again(said) | Attempt::Unreachable(said) | Attempt::InDoubt(said) => Err(said),
            };
            (address.clone(), answer)
        });
        futures::future::join_all(asked).await
    }

    fn saw(&self, revision: u64) {
        self.seen.fetch_max(revision, Ordering::Relaxed);
    }

    fn written(&self, answer: Result<ObjectResponse, Failure>) -> Result<ObjectResponse, Failure> {
        if let Ok(answer) = &answer {
            self.saw(answer.revision);
        }
        answer
    }

    /// Gives a write its request id; a dry run needs none.
    fn name_write(&self, options: &mut Option<WriteOptions>) -> Option<RequestId> {
        let options = options.get_or_insert_default();
        if options.dry_run {
            return None;
        }
        let since = *self.since.get_or_init(|| self.seen.load(Ordering::Relaxed));
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let id = RequestId { client: self.client.clone(), sequence, since };
        options.request_id = Some(id.clone());
        Some(id)
    }

    /// Asks one server after the other. `write` names a write; reads and dry runs can't be in doubt.
    async fn ask<Q: Clone, A>(
        &self,
        request: Q,
        write: Option<RequestId>,
        call: impl AsyncFn(Channel, Q) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        let begun = Instant::now();
        let deadline = begun + self.limit;
        let (mut doubt, mut trouble, mut reached) = (None, String::new(), false);
        for round in 1_usize.. {
            let index = self.current.load(Ordering::Relaxed) % self.addresses.len().max(1);
            match self.attempt(index, deadline, async |channel| call(channel, request.clone()).await).await {
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::Refused(status) => {
                    return Err(refused(&status, doubt.filter(|_| write.is_some()), write.as_ref()));
                }
                Attempt::Again(said) => (trouble, reached) = (said, true),
                // What a server said tells more than that another one is gone.
                Attempt::Unreachable(said) if !reached => trouble = said,
                Attempt::Unreachable(_) => {}
                Attempt::InDoubt(said) => {
                    (trouble, reached) = (said.clone(), true);
                    doubt = Some(said);
                }
            }
            self.turn();
            let typo = !reached && begun.elapsed() >= UNREACHABLE && round >= self.addresses.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if typo || left < SHORTEST {
                break;
            }
            if round.is_multiple_of(self.addresses.len()) {
                let rounds = u32::try_from(round / self.addresses.len()).unwrap_or(u32::MAX).min(8);
                let pause = (PAUSE.0 * 2_u32.pow(rounds - 1)).min(PAUSE.1);
                // The last attempt gets some time, too.
                tokio::time::sleep(pause.min(left - SHORTEST)).await;
            }
        }
        match (write, doubt) {
            (Some(id), Some(said)) => Err(Failure::Unknown(unknown(&said, &id))),
            _ => Err(Failure::Connection(trouble)),
        }
    }

    async fn attempt<A>(
        &self,
        index: usize,
        deadline: Instant,
        call: impl AsyncFn(Channel) -> Result<Response<A>, Status>,
    ) -> Attempt<A> {
        let address = self.addresses.get(index).map_or("", String::as_str);
        let left = deadline.saturating_duration_since(Instant::now());
        let channel = match timeout(left, self.channel(index)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(said)) => return Attempt::Unreachable(said),
            Err(_) => {
                return Attempt::Unreachable(format!(
                    "Unable to connect to the server: {address} did not answer in time"
                ));
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = if self.addresses.len() > 1 { left.min(ATTEMPT) } else { left };
        let answer = timeout(patience, call(channel)).await;
        let status = match answer {
            Ok(Ok(response)) => return Attempt::Answer(response.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => {
                return Attempt::InDoubt(format!(
                    "Unable to get an answer: the server {address} did not answer within {:.1?}",
                    patience
                ));
            }
        };
        let problem = failure::problem(&status);
        if status.details().is_empty() && told(&status).contains(TURNED_AWAY) {
            // TLS 1.3 says so after the client believes to be connected; no request was looked at.
            self.forget(index).await;
            return Attempt::Unreachable(format!(
                "Unable to connect to the server: {address} does not take this certificate ({})",
                told(&status)
            ));
        }
        if status.details().is_empty() {
            // No word of the API: the connection broke, or something between us answered.
            match status.code() {
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded => {
                    self.forget(index).await;
                    // A server that speaks TLS hangs up on whoever doesn't.
                    let hint =
                        if self.transport.is_tls() { "" } else { "; does it speak TLS, and this is --insecure?" };
                    Attempt::InDoubt(format!(
                        "Unable to get an answer: the server {address} broke off ({}){hint}",
                        told(&status)
                    ))
                }
                _ => Attempt::Refused(status),
            }
        } else if problem.unknown_outcome {
            Attempt::InDoubt(format!("the server {address} says: {}", problem.message))
        } else if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
            || problem.reason == "TooManyRequests"
        {
            Attempt::Again(format!("The cluster can't answer: {} (asked {address})", problem.message))
        } else {
            Attempt::Refused(status)
        }
    }

    /// The connection to a server, made if need be.
    async fn channel(&self, index: usize) -> Result<Channel, String> {
        let (Some(address), Some(slot)) = (self.addresses.get(index), self.channels.get(index)) else {
            return Err("Unable to connect to the server: no server is given".to_owned());
        };
        let mut slot = slot.lock().await;
        if let Some(channel) = slot.as_ref() {
            return Ok(channel.clone());
        }
        let unable = |said: String| format!("Unable to connect to the server: {address}: {said}");
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .and_then(|endpoint| endpoint.user_agent(concat!("fairlead/", env!("CARGO_PKG_VERSION"))))
            .map_err(|error| unable(error.to_string()))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = self.transport.connect(endpoint, SERVER_NAME).await.map_err(|error| {
            let causes = causes(&error);
            if causes.contains("refused") {
                format!("The connection to the server {address} was refused - did you specify the right host or port?")
            } else {
                unable(causes)
            }
        })?;
        *slot = Some(channel.clone());
        Ok(channel)
    }

    /// Drops a broken connection, so that the next attempt knows whether it could connect.
    async fn forget(&self, index: usize) {
        if let Some(slot) = self.channels.get(index) {
            *slot.lock().await = None;
        }
    }
}

/// A connection whose calls carry the trace that they are part of.
type Traced = InterceptedService<Channel, trace::Intercept>;

fn objects(channel: Channel) -> ObjectsClient<Traced> {
    ObjectsClient::with_interceptor(channel, trace::intercept as trace::Intercept)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn cluster(channel: Channel) -> ClusterClient<Traced> {
    ClusterClient::with_interceptor(channel, trace::intercept as trace::Intercept)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// A server's last word. After an attempt in doubt it is about the second one only, unless it is about the request
/// itself.
fn refused(status: &Status, doubt: Option<String>, write: Option<&RequestId>) -> Failure {
    let problem = failure::problem(status);
    match (doubt, write) {
        (Some(said), Some(id)) if !matches!(problem.reason.as_str(), "Invalid" | "BadRequest") => Failure::Doubtful(
            Box::new(problem),
            unknown(&format!("an earlier attempt may still be executed ({said})"), id),
        ),
        _ => Failure::from_status(status),
    }
}

fn unknown(said: &str, id: &RequestId) -> String {
    format!(
        "{said}. The write may or may not have happened; the same request id (client {}, sequence {}) may be retried and is executed at most once",
        id.client, id.sequence
    )
}

fn told(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), causes(source)),
        None if status.message().is_empty() => status.code().to_string(),
        None => status.message().to_owned(),
    }
}

/// The innermost reason of an error, which is what a person can act on.
fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
