//! The `Objects` service: admission, proposal, reads and watches.

use crate::api::admit::{self, Admitted, Draw, Refused};
use crate::api::authz::{self, Verb};
use crate::api::guard::caller;
use crate::api::list::{self, Selection, Unlisted};
use crate::api::{past, status};
use crate::audit::Audit;
use crate::machine::{Snapshot, apply};
use crate::pki::Identity;
use crate::raft::Consensus;
use crate::upkeep::space::Space;
use crate::watch::stream::{STREAM_BUFFER, Watcher};
use crate::write::{Writer, stamp};
use fairlead_proto::convert;
use fairlead_proto::internal::v1::{Delete, Outcome, Put, command, put};
use fairlead_proto::model::Key;
use fairlead_proto::mutant::{self, Mutant};
use fairlead_proto::v1::{
    ApplyRequest, Consistency, CreateRequest, DeleteRequest, GetRequest, Kind, ListRequest, ListResponse, Object,
    ObjectResponse, RevisionsRequest, RevisionsResponse, UpdateRequest, WatchRequest, WatchResponse, WriteEffect,
    WriteOptions, objects_server,
};
use ipnet::IpNet;
use rand::Rng as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Attempts of a merge against a live object that others keep changing.
const MERGE_ATTEMPTS: u32 = 16;
/// How long a watch from a revision that this server has not reached waits for it (as Kubernetes does).
const FUTURE_REVISION: Duration = Duration::from_secs(3);
/// Lists made at once; whoever comes then waits.
const MAX_LISTS: usize = 4;

/// The gRPC service.
#[derive(Clone)]
pub struct ObjectsService {
    consensus: Consensus,
    writer: Writer,
    cancel: CancellationToken,
    /// Ranges that `spec.externalIPs` may be of.
    external_ips: Arc<[IpNet]>,
    audit: Option<Arc<Audit>>,
    space: Space,
    /// Lists being made.
    lists: Arc<Semaphore>,
}

impl ObjectsService {
    /// Makes the service; `cancel` ends its watches.
    #[must_use]
    pub fn new(consensus: Consensus, writer: Writer, cancel: CancellationToken) -> Self {
        Self {
            consensus,
            writer,
            cancel,
            external_ips: Arc::new([]),
            audit: None,
            space: Space::default(),
            lists: Arc::new(Semaphore::new(MAX_LISTS)),
        }
    }

    /// With ranges that `spec.externalIPs` may be of.
    #[must_use]
    pub fn allowing_external_ips(mut self, ranges: Vec<IpNet>) -> Self {
        self.external_ips = ranges.into();
        self
    }

    /// With a word on whether there is room for more.
    #[must_use]
    pub fn within(mut self, space: Space) -> Self {
        self.space = space;
        self
    }

    /// With a log of who changed what.
    #[must_use]
    pub fn audited(mut self, audit: Option<Arc<Audit>>) -> Self {
        self.audit = audit;
        self
    }

    /// Does what somebody asks for with an object, if it may, and notes it before it is answered.
    async fn permitted(
        &self,
        who: &Identity,
        (rpc, key): (&str, &Key),
        work: impl Future<Output = Result<ObjectResponse, Status>>,
    ) -> Result<ObjectResponse, Status> {
        let done = match self.may(who, (Verb::Write, key)) {
            Ok(()) => work.await,
            Err(denied) => Err(denied),
        };
        if let Some(audit) = &self.audit {
            let named = done.as_ref().ok().and_then(|answer| answer.object.as_ref()).map(Object::key);
            let object = named.as_ref().unwrap_or(key);
            let about = format!("{}/{}/{}", object.kind.plural(), object.namespace, object.name);
            audit.write_outcome((who, rpc), &about, done.as_ref().map(|answer| answer.revision));
        }
        done
    }

    /// Whether somebody may do something with an object, as far as this server knows.
    ///
    /// # Errors
    /// UNAUTHENTICATED or PERMISSION_DENIED.
    pub fn may(&self, who: &Identity, what: (Verb, &Key)) -> Result<(), Status> {
        authz::may_with(&self.consensus.local().state, who, what)
    }

    async fn write(&self, options: &WriteOptions, command: command::Kind) -> Result<Outcome, Status> {
        let outcome = if options.dry_run {
            // The same function on a copy that nobody keeps.
            let mut copy = self.read().await?.state.clone();
            apply(&mut copy, &stamp(command, None)).outcome
        } else if let (command::Kind::Put(_), Some(why)) = (&command, self.space.refuses()) {
            return Err(status::no_room(&why));
        } else {
            let request_id = options.request_id.clone();
            if request_id.as_ref().is_some_and(|id| id.client.is_empty() || id.client.len() > 64 || id.sequence == 0) {
                return Err(status::bad_request("a request id needs a client of 1 to 64 bytes and a sequence from 1"));
            }
            self.writer.propose_once(request_id, command).await.map_err(|error| status::not_decided(&error))?
        };
        metrics::counter!("fairlead_api_writes_total", "rejected" => outcome.rejection.is_some().to_string())
            .increment(1);
        Ok(outcome)
    }

    async fn read(&self) -> Result<Arc<Snapshot>, Status> {
        self.consensus.read().await.map_err(|error| status::unreadable(&error))
    }

    async fn read_as(&self, consistency: Consistency, min_revision: u64) -> Result<Arc<Snapshot>, Status> {
        match consistency {
            Consistency::Linearizable if min_revision == 0 => self.read().await,
            Consistency::Linearizable => {
                self.consensus.read_at_least(min_revision).await.map_err(|error| status::unreadable(&error))
            }
            Consistency::Local => {
                let snapshot = self.consensus.local();
                if snapshot.state.revision() >= min_revision {
                    return Ok(snapshot);
                }
                self.consensus.read_at_least(min_revision).await.map_err(|error| status::unreadable(&error))
            }
        }
    }

    /// A mutant's: half of a list is what the objects are a little later.
    async fn tear(&self, listed: &mut ListResponse) -> Result<(), Status> {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let later = self.read().await?;
        for object in listed.items.iter_mut().skip(1).step_by(2) {
            if let Some(now) = later.state.get(&object.key()) {
                *object = (**now).clone();
            }
        }
        Ok(())
    }

    fn live(snapshot: &Snapshot, key: &Key) -> Result<Arc<Object>, Status> {
        past::now(snapshot, key).ok_or_else(|| status::not_found(key, snapshot.state.revision()))
    }

    async fn put(&self, options: &WriteOptions, put: Put, live: Option<&Object>) -> Result<Outcome, Status> {
        admit::permit(&put, live, &self.external_ips).map_err(refused)?;
        self.write(options, command::Kind::Put(put)).await
    }

    /// A place among those who make lists: objects are rendered by the thousands, and few at once.
    ///
    /// # Errors
    /// The server stops.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.lists.acquire().await.map_err(|_| Status::unavailable("stopping"))
    }

    /// A snapshot of at least this revision; waited for, for a while, if this server has not reached it.
    ///
    /// # Errors
    /// It has not come.
    pub async fn reached(&self, revision: u64) -> Result<Arc<Snapshot>, Status> {
        let known = self.consensus.local();
        if known.state.revision() >= revision {
            return Ok(known);
        }
        match tokio::time::timeout(FUTURE_REVISION, self.consensus.read_at_least(revision)).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            _ => Err(status::future_revision(revision, self.consensus.local().state.revision())),
        }
    }

    /// Creates an object for somebody.
    ///
    /// # Errors
    /// It may not, or the object is refused; see `status`.
    pub async fn create_admitted(
        &self,
        who: &Identity,
        (admitted, options): (&Admitted, &WriteOptions),
    ) -> Result<ObjectResponse, Status> {
        let work = async {
            let put = admit::create(admitted, draw()).map_err(refused)?;
            let outcome = self.put(options, put, None).await?;
            answer(outcome, admitted)
        };
        self.permitted(who, ("Create", &admitted.object.key()), work).await
    }

    /// Replaces an object for somebody.
    ///
    /// # Errors
    /// It may not, or the object is refused; see `status`.
    pub async fn update_admitted(
        &self,
        who: &Identity,
        (admitted, options): (&Admitted, &WriteOptions),
    ) -> Result<ObjectResponse, Status> {
        let work = async {
            if let Some(outcome) = self.update_as_known(admitted, options).await? {
                return answer(outcome, admitted);
            }
            let snapshot = self.read().await?;
            let live = Self::live(&snapshot, &admitted.object.key())?;
            let put = admit::update(admitted, &live, options.status).map_err(refused)?;
            let outcome = self.put(options, put, Some(&live)).await?;
            answer(outcome, admitted)
        };
        self.permitted(who, ("Update", &admitted.object.key()), work).await
    }

    /// Deletes an object for somebody.
    ///
    /// # Errors
    /// It may not, or a precondition doesn't hold; see `status`.
    pub async fn remove(&self, who: &Identity, request: DeleteRequest) -> Result<ObjectResponse, Status> {
        let options = request.options.unwrap_or_default();
        let key = known_key(request.key.as_ref())?;
        let delete = Delete {
            key: Some(key.to_wire()),
            expect_uid: request.uid,
            expect_revision: request.revision,
            grace_period_seconds: request.grace_period_seconds,
        };
        let work = async { decided(self.write(&options, command::Kind::Delete(delete)).await?, Vec::new()) };
        self.permitted(who, ("Delete", &key), work).await
    }

    /// Updates the object as this member knows it, which costs no round of reading: the revision proves at the write that
    /// it is the newest. `None`: it may not be, or is refused as it is; nothing is decided.
    async fn update_as_known(&self, admitted: &Admitted, options: &WriteOptions) -> Result<Option<Outcome>, Status> {
        let Some(live) = self.consensus.local().state.get(&admitted.object.key()).cloned() else {
            return Ok(None);
        };
        let asked = admitted.object.metadata().revision;
        if asked != 0 && asked != live.metadata().revision {
            return Ok(None);
        }
        let Ok(mut put) = admit::update(admitted, &live, options.status) else {
            return Ok(None);
        };
        if admit::permit(&put, Some(&live), &self.external_ips).is_err() {
            return Ok(None);
        }
        put.precondition = Some(put::Precondition::ExpectRevision(live.metadata().revision));
        let outcome = self.write(options, command::Kind::Put(put)).await?;
        let is_newer = outcome.rejection.as_ref().is_some_and(|rejection| {
            use fairlead_proto::internal::v1::rejection::Code;
            matches!(rejection.code(), Code::Conflict | Code::NotFound)
        });
        Ok(Some(outcome).filter(|_| !is_newer))
    }

    /// Merges and proposes until no other writer came in between.
    async fn merge(&self, admitted: &Admitted, options: &WriteOptions) -> Result<ObjectResponse, Status> {
        let key = admitted.object.key();
        let conditional = admitted.object.metadata().revision != 0;
        let mut snapshot = self.consensus.local();
        for attempt in 0..MERGE_ATTEMPTS {
            let live = snapshot.state.get(&key).cloned();
            let permitted = admit::apply(admitted, live.as_deref(), draw(), options.status).and_then(|merged| {
                admit::permit(&merged.0, live.as_deref(), &self.external_ips)?;
                Ok(merged)
            });
            let (put, effect) = match permitted {
                Ok(merged) => merged,
                // What this member has may be old: nothing is refused for it.
                Err(_) if attempt == 0 => {
                    snapshot = self.read().await?;
                    continue;
                }
                Err(why) => return Err(refused(why)),
            };
            let outcome = self.write(options, command::Kind::Put(put)).await?;
            let raced = outcome.rejection.as_ref().is_some_and(|rejection| {
                use fairlead_proto::internal::v1::rejection::Code;
                match rejection.code() {
                    Code::Conflict => !conditional,
                    Code::AlreadyExists => effect == WriteEffect::Created,
                    Code::NotFound => live.is_some(),
                    _ => false,
                }
            });
            if !raced || attempt + 1 == MERGE_ATTEMPTS {
                return answer(outcome, admitted);
            }
            snapshot = self.read().await?;
        }
        Err(status::bad_request("no attempt was made"))
    }
}

#[tonic::async_trait]
impl objects_server::Objects for ObjectsService {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<ObjectResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        let options = request.options.unwrap_or_default();
        let admitted = admit::decode(request.input.as_ref(), &options).map_err(refused)?;
        self.create_admitted(&who, (&admitted, &options)).await.map(Response::new)
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ObjectResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        let options = request.options.unwrap_or_default();
        let admitted = admit::decode(request.input.as_ref(), &options).map_err(refused)?;
        self.permitted(&who, ("Apply", &admitted.object.key()), self.merge(&admitted, &options))
            .await
            .map(Response::new)
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<ObjectResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        let options = request.options.unwrap_or_default();
        let admitted = admit::decode(request.input.as_ref(), &options).map_err(refused)?;
        self.update_admitted(&who, (&admitted, &options)).await.map(Response::new)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<ObjectResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        self.remove(&who, request).await.map(Response::new)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<ObjectResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        let key = known_key(request.key.as_ref())?;
        self.may(&who, (Verb::Read, &key))?;
        let snapshot = self.read_as(request.consistency(), request.min_revision).await?;
        let object = match request.at_revision {
            0 => Self::live(&snapshot, &key)?,
            future if future > snapshot.state.revision() => {
                return Err(status::future_revision(future, snapshot.state.revision()));
            }
            past => past::at(&snapshot, &key, past)
                .map_err(|compacted| status::compacted(past, compacted.oldest))?
                .ok_or_else(|| status::not_found(&key, past))?,
        };
        let revision = snapshot.state.revision();
        Ok(Response::new(ObjectResponse { object: Some((*object).clone()), revision, ..ObjectResponse::default() }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        self.may(&who, (Verb::Read, &Key::new(request.kind(), place(request.kind(), &request.namespace), "")))?;
        let consistency = if mutant::is_on(Mutant::StaleList) { Consistency::Local } else { request.consistency() };
        let snapshot = self.read_as(consistency, request.min_revision).await?;
        // Objects are copied by the thousands: not on the threads that Raft and everybody else run on, and few at once.
        let _turn = self.turn().await?;
        let listed = tokio::task::spawn_blocking(move || list::list(&snapshot, &request)).await;
        let mut listed = listed.map_err(|error| Status::internal(error.to_string()))?.map_err(unlisted)?;
        if mutant::is_on(Mutant::TornList) {
            self.tear(&mut listed).await?;
        }
        Ok(Response::new(listed))
    }

    async fn revisions(&self, request: Request<RevisionsRequest>) -> Result<Response<RevisionsResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        let key = known_key(request.key.as_ref())?;
        self.may(&who, (Verb::Read, &key))?;
        let found = past::revisions(&*self.read().await?, &key, request.limit);
        if found.revisions.is_empty() {
            return Err(status::not_found(&key, found.revision));
        }
        Ok(Response::new(found))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        self.may(
            &who,
            (Verb::Read, &Key::new(request.kind(), place(request.kind(), &request.namespace), &request.name)),
        )?;
        let selectors = (request.label_selector.as_str(), request.field_selector.as_str());
        let mut selection = Selection::parse(request.kind(), &request.namespace, selectors).map_err(unlisted)?;
        selection.name = request.name;
        let from = (request.from_revision > 0).then_some(request.from_revision);
        match from {
            // The initial state is linearizable: a watcher sees its own earlier writes.
            None if mutant::is_on(Mutant::StaleWatchStart) => {}
            None => drop(self.read().await?),
            Some(revision) if self.consensus.local().state.revision() < revision => {
                self.reached(revision).await?;
            }
            Some(revision) => {
                if let Err(compacted) = self.consensus.local().history.after(revision) {
                    return Err(status::compacted(revision, compacted.oldest));
                }
            }
        }
        let (to, stream) = mpsc::channel(STREAM_BUFFER);
        let watcher = Watcher { lens: selection, from, to };
        tokio::spawn(watcher.run(self.consensus.subscribe(), self.cancel.clone()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn answer(outcome: Outcome, admitted: &Admitted) -> Result<ObjectResponse, Status> {
    let mut warnings = admitted.warnings.clone();
    if let Some(object) = &outcome.object {
        warnings.extend(convert::warnings(object));
    }
    decided(outcome, warnings)
}

fn decided(outcome: Outcome, warnings: Vec<String>) -> Result<ObjectResponse, Status> {
    if let Some(rejection) = outcome.rejection {
        return Err(status::rejected(rejection, outcome.revision));
    }
    let Outcome { revision, effect, object, .. } = outcome;
    Ok(ObjectResponse { object, revision, effect, warnings })
}

/// What admission refuses, as a status.
#[must_use]
pub fn refused(refused: Refused) -> Status {
    match refused {
        Refused::Invalid(key, problems) => status::invalid(&key, &problems),
        Refused::BadRequest(message) => status::bad_request(message),
    }
}

/// What a list refuses, as a status.
#[must_use]
pub fn unlisted(unlisted: Unlisted) -> Status {
    match unlisted {
        Unlisted::BadRequest(message) => status::bad_request(message),
        Unlisted::Compacted { asked, oldest } => status::compacted(asked, oldest),
    }
}

fn known_key(key: Option<&fairlead_proto::v1::ObjectKey>) -> Result<Key, Status> {
    let key = key.map(Key::from_wire).ok_or_else(|| status::bad_request("a key is required"))?;
    if key.kind == Kind::Unspecified || key.name.is_empty() {
        return Err(status::bad_request("a key needs a kind and a name"));
    }
    if key.kind.is_namespaced() && key.namespace.is_empty() {
        return Err(status::bad_request(format!("an object of kind {} needs a namespace", key.kind.title())));
    }
    Ok(key)
}

/// The namespace of a list or watch: none for a kind that is in none, whatever was asked for.
fn place(kind: Kind, namespace: &str) -> &str {
    if kind.is_namespaced() { namespace } else { "" }
}

/// Draws what admission may not: it is pure.
fn draw() -> Draw {
    // Kubernetes' alphabet of generated names: no vowels and no look-alikes.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    let suffix = (0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect();
    Draw { uid: uuid::Uuid::new_v4().to_string(), suffix }
}
