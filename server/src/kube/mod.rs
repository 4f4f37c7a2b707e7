//! Kubernetes' REST API over the same state as the gRPC API: kubectl, client-go and whatever is built on it work against
//! every server as they are. This room only translates: admission, authorization, audit and revisions are `api`'s.
//!
//! `request` (what is asked) → `read`, `watch`, `write`, `review`, `document` → `answer`. The rest is pure: `view` (which
//! resource shows what), `table`, `accept`, `patch`, `fields` (server-side apply), `openapi`, `discovery`, `protobuf`.

pub mod accept;
pub mod answer;
pub mod body;
pub mod discovery;
pub mod failure;
pub mod fields;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod place;
pub mod protobuf;
pub mod rendered;
pub mod request;
pub mod table;
pub mod view;

mod document;
mod leases;
mod ranges;
mod read;
mod review;
mod watch;
mod write;

use crate::api::guard::Busy;
use crate::api::objects::ObjectsService;
use crate::kube::accept::{Endpoint, Wanted};
use crate::kube::answer::Answer;
use crate::kube::failure::Failure;
use crate::kube::rendered::Rendered;
use crate::kube::request::{Asked, Path, Target};
use crate::kube::write::Writing;
use crate::nodes::Nodes;
use crate::pki::Identity;
use crate::pki::listener::Caller;
use crate::raft::Consensus;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, header};
use axum::{Extension, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A body must be there within this.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// The REST face of a server.
pub struct Kube {
    objects: ObjectsService,
    consensus: Consensus,
    nodes: Arc<Nodes>,
    rendered: Arc<Rendered>,
    busy: Arc<Busy>,
    /// Ends watches.
    cancel: CancellationToken,
}

impl Kube {
    /// A face of these services; `cancel` ends its watches.
    #[must_use]
    pub fn new(
        objects: ObjectsService,
        (consensus, nodes): (Consensus, Arc<Nodes>),
        cancel: CancellationToken,
    ) -> Self {
        Self { objects, consensus, nodes, rendered: Arc::default(), busy: Arc::default(), cancel }
    }

    /// Everything below `/api`, `/apis`, `/openapi` and `/version`; what is nowhere is answered as Kubernetes does.
    pub fn router(self) -> Router {
        Router::new().fallback(serve).with_state(Arc::new(self))
    }
}

async fn serve(
    State(kube): State<Arc<Kube>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response<Body> {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let headers = head.headers.clone();
    let done = kube.answer(&caller.identity, (&head, body)).await;
    let (verb, response) = match done {
        Ok((verb, Reply::Answer(answer))) => (verb, answer.response(&headers)),
        Ok((verb, Reply::Stream(response))) => (verb, response),
        Err(failure) => {
            let wait = failure.details.get("retryAfterSeconds").and_then(Value::as_u64);
            let mut response = Answer::from(failure).response(&headers);
            if let Some(seconds) = wait {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            ("other", response)
        }
    };
    let mut response = response;
    if is_deprecated(head.uri.path()) {
        response.headers_mut().append(header::WARNING, HeaderValue::from_static(ENDPOINTS_DEPRECATED));
    }
    let code = response.status().as_u16().to_string();
    metrics::counter!("fairlead_kube_requests_total", "verb" => verb, "code" => code).increment(1);
    metrics::histogram!("fairlead_kube_request_seconds", "verb" => verb).record(begun.elapsed().as_secs_f64());
    response
}

/// What kube-apiserver says of v1 Endpoints (KEP-4974).
const ENDPOINTS_DEPRECATED: &str =
    "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";

fn is_deprecated(path: &str) -> bool {
    matches!(request::path(path), Ok(Path::Objects(target)) if target.resource.kind == "Endpoints")
}

/// What a client gets.
enum Reply {
    Answer(Answer),
    Stream(Response<Body>),
}

impl Kube {
    async fn answer(
        &self,
        who: &Identity,
        (head, body): (&axum::http::request::Parts, Body),
    ) -> Result<(&'static str, Reply), Failure> {
        let path = request::path(head.uri.path())?;
        let asked = request::query(head.uri.query().unwrap_or_default())?;
        if *who == Identity::Anonymous && head.uri.path() != "/version" {
            return Err(Failure::new(401, "Unauthorized", "Unauthorized"));
        }
        let _place = self.busy.place(who).ok_or_else(|| {
            Failure::new(429, "TooManyRequests", "too many requests, please try again later").retry_after(1)
        })?;
        let accepted = text(&head.headers, header::ACCEPT);
        let target = match path {
            Path::Document(segments) => {
                if head.method != Method::GET && head.method != Method::HEAD {
                    return Err(Failure::no_such_path());
                }
                return Ok(("document", Reply::Answer(document::answer(&segments, accepted)?)));
            }
            Path::Objects(target) => target,
        };
        let endpoint = if asked.watch { Endpoint::Watch } else { Endpoint::Objects };
        let wanted = accept::wanted(accepted, endpoint)?;
        let verb = verb(&head.method, &target, &asked)?;
        match (verb, wanted) {
            ("list", Wanted::PartialObjectMetadata { .. }) => {
                return Err(Failure::not_acceptable(accept::LIST_AS_PARTIAL));
            }
            ("get", Wanted::PartialObjectMetadataList { .. }) => {
                return Err(Failure::not_acceptable(accept::OBJECT_AS_PARTIAL_LIST));
            }
            _ => {}
        }
        let reply = match verb {
            "watch" => Reply::Stream(self.watch(who, &target, (&asked, wanted)).await?),
            "list" => Reply::Answer(self.list(who, &target, (&asked, wanted)).await?),
            "get" => Reply::Answer(self.get(who, &target, (&asked, wanted)).await?),
            _ => {
                let manager = fields::manager_of(&asked.manager, text(&head.headers, header::USER_AGENT));
                let writing = Writing { who, target: &target, asked: &asked, wanted, manager };
                Reply::Answer(self.write(&writing, verb, (head, body)).await?)
            }
        };
        Ok((verb, shaped(reply, (&asked, wanted))))
    }

    async fn write(
        &self,
        writing: &Writing<'_>,
        verb: &str,
        (head, body): (&axum::http::request::Parts, Body),
    ) -> Result<Answer, Failure> {
        let media_type = body::media_type(head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()));
        let bytes = read_body(body).await?;
        match verb {
            "create" => {
                let given = body::decode(&media_type, &bytes)?;
                let state = self.consensus.local();
                let plural = writing.target.resource.plural;
                if let Some(reviewed) = review::answer(&state.state, writing.who, (plural, given.clone())) {
                    return Ok(Answer::json(&reviewed?).with_code(201));
                }
                self.create(writing, given).await
            }
            "update" => self.update(writing, body::decode(&media_type, &bytes)?).await,
            "patch" => self.patch(writing, &media_type, &bytes).await,
            _ => {
                let options = if bytes.is_empty() { json!({}) } else { body::decode(&media_type, &bytes)? };
                if verb == "deletecollection" {
                    return self.delete_all(writing, &options).await;
                }
                self.delete(writing, &options).await
            }
        }
    }
}

/// Kubernetes' verb of a request, if what it names has it.
fn verb(method: &Method, target: &Target, asked: &Asked) -> Result<&'static str, Failure> {
    let verb = match (method, target.name.is_empty()) {
        (&Method::GET, _) if asked.watch => "watch",
        (&Method::GET, true) => "list",
        (&Method::GET, false) => "get",
        (&Method::POST, true) => "create",
        (&Method::PUT, false) => "update",
        (&Method::PATCH, false) => "patch",
        (&Method::DELETE, true) => "deletecollection",
        (&Method::DELETE, false) => "delete",
        _ => return Err(Failure::no_such_verb()),
    };
    // What is created, and what is deleted all at once, is of one namespace.
    if target.resource.namespaced && target.namespace.is_empty() && matches!(verb, "create" | "deletecollection") {
        return Err(Failure::no_such_verb());
    }
    let allowed = match target.resource.subresource(&target.subresource) {
        Some(part) => part.verbs.contains(&verb),
        None => target.resource.can(verb),
    };
    if allowed { Ok(verb) } else { Err(Failure::no_such_verb()) }
}

/// An answer as YAML or indented, if that is wanted.
fn shaped(reply: Reply, (asked, wanted): (&Asked, Wanted)) -> Reply {
    match reply {
        Reply::Answer(answer) if wanted == Wanted::Yaml => Reply::Answer(answer.yaml()),
        Reply::Answer(answer) if asked.pretty => Reply::Answer(answer.pretty()),
        reply => reply,
    }
}

async fn read_body(body: Body) -> Result<bytes::Bytes, Failure> {
    let read = tokio::time::timeout(BODY_WITHIN, axum::body::to_bytes(body, body::MAX_BODY)).await;
    let read = read.map_err(|_| Failure::new(408, "Timeout", "the body did not come within 30 s"))?;
    read.map_err(|_| {
        let message = format!("Request entity too large: limit is {}", body::MAX_BODY);
        Failure::new(413, "RequestEntityTooLarge", message)
    })
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_the_verbs_that_it_says_and_no_others() {
        let of = |method: Method, path: &str, query: &str| {
            let Path::Objects(target) = request::path(path).unwrap() else { panic!("{path}") };
            verb(&method, &target, &request::query(query).unwrap()).map_err(|refused| refused.code)
        };
        let (all, one) = ("/api/v1/namespaces/a/services", "/api/v1/namespaces/a/services/web");
        assert_eq!(of(Method::GET, all, ""), Ok("list"));
        assert_eq!(of(Method::GET, all, "watch=1"), Ok("watch"));
        assert_eq!(of(Method::GET, one, ""), Ok("get"));
        assert_eq!(of(Method::DELETE, all, ""), Ok("deletecollection"));
        assert_eq!(of(Method::PATCH, &format!("{one}/status"), ""), Ok("patch"));
        for (method, path) in [
            (Method::POST, one),
            (Method::PUT, all),
            (Method::POST, "/api/v1/services"),
            (Method::DELETE, "/api/v1/services"),
            (Method::DELETE, "/api/v1/namespaces"),
            (Method::DELETE, "/api/v1/namespaces/a/services/web/status"),
            (Method::PUT, "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/x"),
            (Method::GET, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
            (Method::OPTIONS, all),
        ] {
            assert_eq!(of(method.clone(), path, ""), Err(405), "{method} {path}");
        }
    }
}
