//! The door of the clients' port: who calls is taken from the connection, and what it may not call never reaches a
//! service. The services find the caller in the request.

use crate::api::authz;
use crate::pki::Identity;
use crate::pki::listener::Caller;
use crate::raft::Consensus;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};

/// Puts a [`Guarded`] around services.
#[derive(Clone)]
pub struct Guard {
    /// Whose state says who may do what.
    pub consensus: Consensus,
}

/// Services behind the door.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    consensus: Consensus,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, consensus: self.consensus.clone() }
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
        if let Err(refused) = authz::call(&self.consensus.local().state, &identity, request.uri().path()) {
            tracing::info!(%identity, rpc = request.uri().path(), "refused: {}", refused.message());
            metrics::counter!("fairlead_refused_calls_total").increment(1);
            return Box::pin(std::future::ready(Ok(refused.into_http())));
        }
        Box::pin(self.inner.call(request))
    }
}

/// Who calls; nobody, if the request came past the door.
#[must_use]
pub fn caller<T>(request: &tonic::Request<T>) -> Identity {
    request.extensions().get::<Caller>().map_or(Identity::Anonymous, |caller| caller.identity.clone())
}
