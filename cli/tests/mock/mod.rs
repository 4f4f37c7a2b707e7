//! A server of canned objects that misbehaves on demand, and the real binary run against it.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may")]

use fairlead_proto::model::Key;
use fairlead_proto::v1::objects_server::{Objects, ObjectsServer};
use fairlead_proto::v1::*;
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status};

/// How the next call is answered.
#[derive(Clone, Debug)]
pub enum Reaction {
    /// As it should be.
    Answer,
    /// An error with its detail.
    Refuse(Code, Problem),
    /// An error without detail, as a broken connection gives.
    BreakOff,
    /// Never.
    Hang,
}

/// What a mock has, and what was asked of it.
#[derive(Default)]
pub struct Shelf {
    /// Its objects.
    pub objects: BTreeMap<Key, Object>,
    /// Reactions of the next writes; then it answers.
    pub writes: VecDeque<Reaction>,
    /// Reactions of the next reads; then it answers.
    pub reads: VecDeque<Reaction>,
    /// Request ids and options of the writes that came.
    pub written: Vec<WriteOptions>,
    /// Inputs of the writes that came.
    pub inputs: Vec<Input>,
    /// Deletes that came.
    pub deletes: Vec<DeleteRequest>,
    /// min_revision of the reads that came.
    pub floors: Vec<u64>,
    /// Lists that came.
    pub lists: Vec<ListRequest>,
    /// from_revision of the watches that came.
    pub watches: Vec<u64>,
    /// Events of the next watches, each a stream that ends after them; then streams stay open.
    pub streams: VecDeque<Vec<WatchResponse>>,
    /// Effect of the next delete.
    pub delete_effect: Option<WriteEffect>,
    /// What the cluster says.
    pub status: StatusResponse,
    /// What waiting for a revision gives.
    pub programmed: WaitProgrammedResponse,
    /// What happened.
    pub history: Vec<HistoryEvent>,
    /// What the nodes' kernels hold; `None`: the node asked for is not connected.
    pub dataplane: Option<DataplaneResponse>,
    /// What was asked of them.
    pub dataplane_asked: Vec<DataplaneRequest>,
    revision: u64,
}

/// A running mock.
#[derive(Clone)]
pub struct Mock {
    /// Its shelf.
    pub shelf: Arc<Mutex<Shelf>>,
    /// host:port.
    pub address: String,
}

impl Mock {
    /// Starts one on a free port of loopback.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf = Arc::new(Mutex::new(Shelf { revision: 41, ..Shelf::default() }));
        let mock = Self { shelf, address };
        let router = tonic::transport::Server::builder()
            .add_service(ObjectsServer::new(mock.clone()))
            .add_service(cluster_server::ClusterServer::new(mock.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        mock
    }

    /// Puts objects on the shelf.
    pub fn with(self, manifests: &[serde_json::Value]) -> Self {
        for manifest in manifests {
            let object = fairlead_proto::manifest::decode(manifest).unwrap().object;
            self.shelf.lock().unwrap().objects.insert(object.key(), object);
        }
        self
    }

    /// The next writes' reactions.
    pub fn writes(&self, reactions: &[Reaction]) {
        self.shelf.lock().unwrap().writes.extend(reactions.iter().cloned());
    }

    async fn react(&self, reaction: Option<Reaction>) -> Result<(), Status> {
        match reaction.unwrap_or(Reaction::Answer) {
            Reaction::Answer => Ok(()),
            Reaction::Refuse(code, problem) => {
                Err(Status::with_details(code, "see the detail", problem.encode_to_vec().into()))
            }
            Reaction::BreakOff => Err(Status::new(Code::Unavailable, "connection reset")),
            Reaction::Hang => std::future::pending().await,
        }
    }

    async fn write(
        &self,
        input: Option<Input>,
        options: Option<WriteOptions>,
        effect: WriteEffect,
    ) -> Result<Response<ObjectResponse>, Status> {
        let options = options.unwrap_or_default();
        let reaction = {
            let mut shelf = self.shelf.lock().unwrap();
            shelf.written.push(options.clone());
            shelf.inputs.extend(input.clone());
            shelf.writes.pop_front()
        };
        self.react(reaction).await?;
        let mut object = match input.and_then(|input| input.form) {
            Some(input::Form::Object(object)) => object,
            Some(input::Form::ManifestJson(text)) => {
                let value = serde_json::from_str(&text).unwrap();
                fairlead_proto::manifest::decode(&value).unwrap().object
            }
            None => return Err(Status::invalid_argument("no input")),
        };
        let mut shelf = self.shelf.lock().unwrap();
        shelf.revision += 1;
        let revision = shelf.revision;
        if let Some(metadata) = object.metadata_mut() {
            metadata.revision = revision;
            if metadata.namespace.is_empty() {
                metadata.namespace = options.default_namespace;
            }
        }
        shelf.objects.insert(object.key(), object.clone());
        Ok(Response::new(ObjectResponse {
            object: Some(object),
            revision,
            effect: effect as i32,
            warnings: vec!["mind this".into()],
        }))
    }

    async fn read(&self, floor: u64) -> Result<u64, Status> {
        let reaction = {
            let mut shelf = self.shelf.lock().unwrap();
            shelf.floors.push(floor);
            shelf.reads.pop_front()
        };
        self.react(reaction).await?;
        Ok(self.shelf.lock().unwrap().revision)
    }
}

#[tonic::async_trait]
impl Objects for Mock {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<ObjectResponse>, Status> {
        let request = request.into_inner();
        self.write(request.input, request.options, WriteEffect::Created).await
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ObjectResponse>, Status> {
        let request = request.into_inner();
        self.write(request.input, request.options, WriteEffect::Configured).await
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<ObjectResponse>, Status> {
        let request = request.into_inner();
        self.write(request.input, request.options, WriteEffect::Configured).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<ObjectResponse>, Status> {
        let request = request.into_inner();
        let key = Key::from_wire(request.key.as_ref().unwrap());
        let (reaction, effect) = {
            let mut shelf = self.shelf.lock().unwrap();
            shelf.written.extend(request.options.clone());
            shelf.deletes.push(request);
            (shelf.writes.pop_front(), shelf.delete_effect)
        };
        self.react(reaction).await?;
        let mut shelf = self.shelf.lock().unwrap();
        let object = shelf.objects.remove(&key).ok_or_else(|| not_found(&key))?;
        let effect = effect.unwrap_or(WriteEffect::Deleted) as i32;
        Ok(Response::new(ObjectResponse { object: Some(object), revision: 50, effect, warnings: Vec::new() }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<ObjectResponse>, Status> {
        let request = request.into_inner();
        let revision = self.read(request.min_revision).await?;
        let key = Key::from_wire(request.key.as_ref().unwrap());
        let object = self.shelf.lock().unwrap().objects.get(&key).cloned().ok_or_else(|| not_found(&key))?;
        Ok(Response::new(ObjectResponse { object: Some(object), revision, ..ObjectResponse::default() }))
    }

    async fn revisions(&self, _: Request<RevisionsRequest>) -> Result<Response<RevisionsResponse>, Status> {
        Err(Status::unimplemented("the mock has no past"))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let request = request.into_inner();
        let revision = self.read(request.min_revision).await?;
        let mut shelf = self.shelf.lock().unwrap();
        let all = shelf.objects.iter().filter(|(key, _)| {
            key.kind == request.kind() && (request.namespace.is_empty() || key.namespace == request.namespace)
        });
        let skipped: usize = request.continue_token.parse().unwrap_or(0);
        let all: Vec<Object> = all.skip(skipped).map(|(_, object)| object.clone()).collect();
        let page = if request.limit == 0 { all.len() } else { all.len().min(request.limit as usize) };
        let continue_token = if page < all.len() { (skipped + page).to_string() } else { String::new() };
        shelf.lists.push(request);
        Ok(Response::new(ListResponse { items: all[..page].to_vec(), revision, continue_token, remaining: 0 }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (to, stream) = mpsc::channel(16);
        let events = {
            let mut shelf = self.shelf.lock().unwrap();
            shelf.watches.push(request.into_inner().from_revision);
            shelf.streams.pop_front()
        };
        tokio::spawn(async move {
            let stays = events.is_none();
            for event in events.into_iter().flatten() {
                let _ = to.send(Ok(event)).await;
            }
            if stays {
                to.closed().await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Mock {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.shelf.lock().unwrap().status.clone()))
    }

    async fn wait_programmed(
        &self,
        _: Request<WaitProgrammedRequest>,
    ) -> Result<Response<WaitProgrammedResponse>, Status> {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        Ok(Response::new(self.shelf.lock().unwrap().programmed.clone()))
    }

    async fn dataplane(&self, request: Request<DataplaneRequest>) -> Result<Response<DataplaneResponse>, Status> {
        let mut shelf = self.shelf.lock().unwrap();
        shelf.dataplane_asked.push(request.into_inner());
        let answer = shelf.dataplane.clone().map(Response::new);
        answer.ok_or_else(|| Status::not_found("node \"x\" is connected to no server"))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        Ok(Response::new(HistoryResponse { events: self.shelf.lock().unwrap().history.clone(), revision: 9 }))
    }
}

fn not_found(key: &Key) -> Status {
    let problem = Problem {
        reason: "NotFound".into(),
        message: format!("{key} not found"),
        key: Some(key.to_wire()),
        ..Problem::default()
    };
    Status::with_details(Code::NotFound, "see the detail", problem.encode_to_vec().into())
}

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs the binary with these servers.
pub async fn fairlead(servers: &[&Mock], args: &[&str], stdin: &str) -> Ran {
    let list: Vec<&str> = servers.iter().map(|mock| mock.address.as_str()).collect();
    let mut all = vec!["--insecure".to_owned(), "--server".to_owned(), list.join(",")];
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    run(all, stdin.to_owned()).await
}

/// Runs the binary.
pub async fn run(args: Vec<String>, stdin: String) -> Ran {
    tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead"));
        for name in ["FAIRLEAD_CONFIG", "FAIRLEAD_SERVER", "FAIRLEAD_INSECURE"] {
            command.env_remove(name);
        }
        let mut child =
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    })
    .await
    .unwrap()
}
