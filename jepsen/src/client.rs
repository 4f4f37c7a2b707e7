//! One client's calls to one server, and what is certain after each: done, refused for good, or unknown.

use crate::cluster::connect;
use crate::history::{Answer, Value};
use crate::hosts::Host;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{
    CreateRequest, DeleteRequest, GetRequest, Input, IntOrString, Kind, ListRequest, Object, ObjectKey, ObjectMeta,
    ObjectResponse, Problem, RequestId, Service, ServicePort, ServiceSpec, UpdateRequest, WriteOptions, input,
    int_or_string,
};
use prost::Message as _;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The annotation that holds a register's value or a list.
pub const VALUE: &str = "jepsen/value";
/// Time for one call.
pub const PATIENCE: Duration = Duration::from_millis(3_000);

/// A client of one server at a time; connects when first used, and anew after a broken call.
pub struct Client {
    /// The server.
    pub host: Host,
    channel: Option<ObjectsClient<Channel>>,
}

/// How a call failed.
#[derive(Debug)]
pub enum Failed {
    /// It certainly did nothing: the word says why.
    Refused(String),
    /// Nobody can tell.
    Unknown(String),
}

impl From<Failed> for Answer {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(why) => Self::Refused(why),
            Failed::Unknown(why) => Self::Unknown(why),
        }
    }
}

/// What a status means. Without a word of the API the connection broke, or something else answered: then nothing is known.
fn meaning(status: &Status) -> Failed {
    let problem = problem(status);
    let said = || format!("{:?}: {}", status.code(), status.message());
    match &problem {
        Some(problem) if problem.unknown_outcome => Failed::Unknown(said()),
        Some(problem) if problem.reason == "Conflict" => Failed::Refused("conflict".to_owned()),
        Some(problem) => Failed::Refused(format!("{}: {}", problem.reason, problem.message)),
        None => Failed::Unknown(said()),
    }
}

/// The API's own words in a status.
fn problem(status: &Status) -> Option<Problem> {
    Problem::decode(status.details()).ok().filter(|problem| !problem.reason.is_empty())
}

impl Client {
    /// A client that has not connected yet.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self { host, channel: None }
    }

    /// Goes to another server.
    pub fn turn_to(&mut self, host: Host) {
        if self.host != host {
            *self = Self::new(host);
        }
    }

    async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut ObjectsClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Failed> {
        let mut channel = match self.channel.take() {
            Some(channel) => channel,
            None => {
                let endpoint = connect(self.host).ok_or_else(|| Failed::Refused("no address".to_owned()))?;
                let channel = tokio::time::timeout(PATIENCE, endpoint.connect()).await;
                let channel = channel.map_err(|_| Failed::Refused("not connected in time".to_owned()))?;
                let channel = channel.map_err(|error| Failed::Refused(format!("not connected: {error}")))?;
                ObjectsClient::new(channel).max_decoding_message_size(64 << 20)
            }
        };
        match tokio::time::timeout(PATIENCE, call(&mut channel)).await {
            Ok(Ok(answer)) => {
                self.channel = Some(channel);
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => {
                let failed = meaning(&status);
                // A connection over which nothing comes is not used again.
                if !status.details().is_empty() && status.code() != Code::Unavailable {
                    self.channel = Some(channel);
                }
                Err(failed)
            }
            Err(_) => Err(Failed::Unknown("no answer in time".to_owned())),
        }
    }

    /// Reads one service, linearizably. Reads that fail did nothing.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn get(&mut self, place: (&str, &str)) -> Result<(Option<Object>, u64), Failed> {
        let request = GetRequest { key: Some(key(place)), ..GetRequest::default() };
        match self.call(async |client| client.get(request).await).await {
            Ok(ObjectResponse { object, revision, .. }) => Ok((object, revision)),
            Err(Failed::Refused(why) | Failed::Unknown(why)) => Err(Failed::Refused(why)),
        }
    }

    /// Reads all services of a namespace at one revision.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn list(&mut self, namespace: &str) -> Result<(Vec<Object>, u64), Failed> {
        let request =
            ListRequest { kind: Kind::Service as i32, namespace: namespace.to_owned(), ..ListRequest::default() };
        match self.call(async |client| client.list(request).await).await {
            Ok(answer) => Ok((answer.items, answer.revision)),
            Err(Failed::Refused(why) | Failed::Unknown(why)) => Err(Failed::Refused(why)),
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    /// Refused, or unknown.
    pub async fn create(&mut self, object: Object, id: Option<RequestId>) -> Result<ObjectResponse, Failed> {
        let request = CreateRequest { input: Some(typed(object)), options: Some(options(id)) };
        self.call(async |client| client.create(request).await).await
    }

    /// Replaces an object; with a revision in its metadata only if that is the current one.
    ///
    /// # Errors
    /// Refused, or unknown.
    pub async fn update(&mut self, object: Object, id: Option<RequestId>) -> Result<ObjectResponse, Failed> {
        let request = UpdateRequest { input: Some(typed(object)), options: Some(options(id)) };
        self.call(async |client| client.update(request).await).await
    }

    /// Removes a service.
    ///
    /// # Errors
    /// Refused, or unknown.
    pub async fn delete(&mut self, place: (&str, &str), id: Option<RequestId>) -> Result<ObjectResponse, Failed> {
        let request = DeleteRequest { key: Some(key(place)), options: Some(options(id)), ..DeleteRequest::default() };
        self.call(async |client| client.delete(request).await).await
    }
}

fn key((namespace, name): (&str, &str)) -> ObjectKey {
    ObjectKey { kind: Kind::Service as i32, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn typed(object: Object) -> Input {
    Input { form: Some(input::Form::Object(object)) }
}

fn options(request_id: Option<RequestId>) -> WriteOptions {
    WriteOptions { request_id, ..WriteOptions::default() }
}

/// A service with a port and a value; headless ones take no address.
#[must_use]
pub fn service((namespace, name): (&str, &str), value: &str, headless: bool) -> Service {
    let metadata = ObjectMeta {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        annotations: [(VALUE.to_owned(), value.to_owned())].into(),
        ..ObjectMeta::default()
    };
    let target = IntOrString { value: Some(int_or_string::Value::Int(8080)) };
    let port = ServicePort { port: 80, target_port: Some(target), ..ServicePort::default() };
    let cluster_ip = if headless { "None" } else { "" }.to_owned();
    let spec = ServiceSpec { ports: vec![port], cluster_ip, ..ServiceSpec::default() };
    Service { metadata: Some(metadata), spec: Some(spec), ..Service::default() }
}

/// The number in an object's annotation.
#[must_use]
pub fn value_of(object: &Object) -> Option<Value> {
    object.metadata().annotations.get(VALUE)?.parse().ok()
}

/// The list in an object's annotation.
#[must_use]
pub fn list_of(object: &Object) -> Vec<Value> {
    let text = object.metadata().annotations.get(VALUE).map_or("", String::as_str);
    text.split(',').filter_map(|value| value.parse().ok()).collect()
}
