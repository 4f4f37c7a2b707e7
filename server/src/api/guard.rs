//! The door of the clients' port: who calls is taken from the connection, and what it may not call never reaches a
//! service, nor does more than its share at once. The services find the caller in the request.

use crate::api::{authz, status};
use crate::pki::Identity;
use crate::pki::listener::Caller;
use crate::raft::Consensus;
use fairlead_proto::v1::Problem;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Requests of one identity under way at once: whoever asks more waits for its own, and holds up nobody else.
const MOST: usize = 256;
/// The same where all are one, in plaintext.
const MOST_UNSECURED: usize = 4_096;
/// How long whoever asks too much should wait, milliseconds.
const RETRY_MS: &str = "100";

/// Puts a [`Guarded`] around services.
#[derive(Clone)]
pub struct Guard {
    consensus: Consensus,
    busy: Arc<Busy>,
}

impl Guard {
    /// A door of a member, whose state says who may do what.
    #[must_use]
    pub fn new(consensus: Consensus) -> Self {
        Self { consensus, busy: Arc::default() }
    }
}

/// Services behind the door.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// Requests under way, by who sent them.
#[derive(Default)]
pub struct Busy(Mutex<HashMap<Identity, usize>>);

impl Busy {
    /// A place for one more request; `None` = this identity has as many as it gets.
    pub fn place(self: &Arc<Self>, identity: &Identity) -> Option<Place> {
        let most = if *identity == Identity::Unsecured { MOST_UNSECURED } else { MOST };
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = busy.entry(identity.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { busy: self.clone(), identity: identity.clone() })
    }
}

/// One request's place.
pub struct Place {
    busy: Arc<Busy>,
    identity: Identity,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut busy = self.busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = busy.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.identity);
            }
        }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer<S::Error> {
        let identity =
            request.extensions().get::<Caller>().map_or(Identity::Anonymous, |caller| caller.identity.clone());
        let place = match authz::call(&self.guard.consensus.local().state, &identity, request.uri().path()) {
            Ok(()) => self.guard.busy.place(&identity).ok_or_else(|| too_many(&identity)),
            Err(refused) => {
                if identity == Identity::Anonymous {
                    tracing::debug!(rpc = request.uri().path(), "refused: no certificate");
                } else {
                    tracing::info!(%identity, rpc = request.uri().path(), "refused: {}", refused.message());
                }
                Err(refused)
            }
        };
        let place = match place {
            Ok(place) => place,
            Err(refused) => {
                metrics::counter!("fairlead_api_refused_calls_total").increment(1);
                return Box::pin(std::future::ready(Ok(refused.into_http())));
            }
        };
        let (rpc, begun) = (authz::name(request.uri().path()), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(place);
            if let Ok(answer) = &answer {
                count(rpc, answer, begun.elapsed());
            }
            answer
        })
    }
}

/// Counts a call. What fails later, in a stream, is not known here.
fn count(rpc: &'static str, answer: &http::Response<Body>, took: Duration) {
    let code = answer.headers().get("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or("0");
    metrics::counter!("fairlead_api_requests_total", "rpc" => rpc, "code" => code.to_owned()).increment(1);
    metrics::histogram!("fairlead_api_request_seconds", "rpc" => rpc).record(took.as_secs_f64());
}

fn too_many(identity: &Identity) -> Status {
    let message = format!("{identity} has too many requests under way: wait for some of them");
    let problem = Problem { reason: "TooManyRequests".into(), message, ..Problem::default() };
    let mut refused = status::status(Code::ResourceExhausted, problem);
    refused.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from_static(RETRY_MS));
    refused
}

/// Who calls; nobody, if the request came past the door.
#[must_use]
pub fn caller<T>(request: &tonic::Request<T>) -> Identity {
    request.extensions().get::<Caller>().map_or(Identity::Anonymous, |caller| caller.identity.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_anothers_place() {
        let busy: Arc<Busy> = Arc::default();
        let (node, user) = (Identity::Node("n".into()), Identity::User { name: "u".into(), groups: Vec::new() });
        let mut places: Vec<Place> = (0..MOST).map(|_| busy.place(&node).unwrap()).collect();
        assert!(busy.place(&node).is_none() && busy.place(&user).is_some());
        places.pop();
        assert!(busy.place(&node).is_some());
        drop(places);
        assert!(busy.0.lock().unwrap().is_empty(), "who asks for nothing takes no memory");
        assert_eq!(too_many(&user).metadata().get("grpc-retry-pushback-ms").unwrap(), RETRY_MS);
    }
}
