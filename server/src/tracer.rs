//! A span around each call of a port, child of the context that the call carries.
//!
//! Without tracing a call costs one look at a flag more. The members' port has spans for what belongs to a trace only:
//! their own talk never begins one.

use fairlead_proto::trace;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

/// Puts a [`Spanned`] around services.
#[derive(Clone, Copy)]
pub struct Tracer {
    /// A call without a context begins a trace, if the sampler agrees.
    pub begins: bool,
}

/// Services whose calls are traced.
#[derive(Clone)]
pub struct Spanned<S> {
    inner: S,
    begins: bool,
}

impl<S> Layer<S> for Tracer {
    type Service = Spanned<S>;

    fn layer(&self, inner: S) -> Spanned<S> {
        Spanned { inner, begins: self.begins }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Spanned<S>
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
        match span(&request, self.begins) {
            Some(span) => Box::pin(span.in_scope(|| self.inner.call(request)).instrument(span)),
            None => Box::pin(self.inner.call(request)),
        }
    }
}

fn span(request: &http::Request<Body>, begins: bool) -> Option<Span> {
    if !trace::is_on() {
        return None;
    }
    let carried = request.headers().get(trace::HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !begins && trace::parse(carried).is_none() {
        return None;
    }
    let name = request.uri().path().trim_start_matches('/');
    let (service, method) = name.rsplit_once('/').unwrap_or((name, ""));
    let span = tracing::info_span!(
        target: trace::TARGET, "rpc", otel.name = name, otel.kind = "server",
        rpc.system = "grpc", rpc.service = service, rpc.method = method
    );
    Some(trace::child(span, carried))
}
