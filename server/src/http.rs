//! Plain HTTP beside gRPC: `/metrics`, `/livez`, `/readyz`.

use crate::pki::Identity;
use crate::pki::listener::Caller;
use crate::pki::listener::HttpListener;
use crate::raft::Consensus;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener as _;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Renders the process's metrics in Prometheus' text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Connections at once; whoever comes then waits.
const MAX_CONNECTIONS: usize = 256;
/// A request's head must be there within this; a slow one holds nobody up for longer.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Then a connection is closed, between two requests.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// Bytes of a request's head.
const MAX_BUFFER: usize = 64 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// Requests of one connection at once.
const MAX_STREAMS: u32 = 32;

/// A member that reaches no quorum within this is not ready.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(1);

/// `/livez` and `/readyz`: alive while storage works; ready while a quorum confirms reads and this member votes, so that
/// the next one may be restarted.
pub fn health(consensus: Consensus) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .with_state(consensus)
}

/// `/metrics`, for whoever shows a certificate.
pub fn metrics(render: RenderMetrics) -> Router {
    let answer = move |Extension(caller): Extension<Caller>| async move {
        match caller.identity {
            Identity::Anonymous => (StatusCode::UNAUTHORIZED, "a certificate of the cluster is needed\n".to_owned()),
            _ => (StatusCode::OK, render()),
        }
    };
    Router::new().route("/metrics", get(answer))
}

/// Serves until cancelled.
///
/// # Errors
/// The listener's.
pub async fn serve(mut listener: HttpListener, router: Router, cancel: CancellationToken) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(MAX_BUFFER);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADERS);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let (connection, caller) = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (builder, service, cancel) =
            (builder.clone(), TowerToHyperService::new(router.clone().layer(Extension(caller))), cancel.clone());
        tokio::spawn(async move {
            let served = builder.serve_connection(TokioIo::new(connection), service);
            tokio::pin!(served);
            tokio::select! {
                _ = served.as_mut() => {}
                () = tokio::time::sleep(CONNECTION_LIFE) => served.as_mut().graceful_shutdown(),
                () = cancel.cancelled() => served.as_mut().graceful_shutdown(),
            }
            let _ = tokio::time::timeout(HEADERS_WITHIN, served).await;
            drop(place);
        });
    }
}

async fn livez(State(consensus): State<Consensus>) -> impl IntoResponse {
    match consensus.failure() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(failure) => (StatusCode::INTERNAL_SERVER_ERROR, format!("storage failed: {failure}\n")),
    }
}

async fn readyz(State(consensus): State<Consensus>) -> impl IntoResponse {
    if consensus.is_returning() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: this member lost its data and gets it back\n".to_owned());
    }
    match tokio::time::timeout(QUORUM_TIMEOUT, consensus.read()).await {
        Ok(Ok(snapshot)) => (StatusCode::OK, format!("ok: revision {}\n", snapshot.state.revision())),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready: no quorum within 1 s\n".to_owned()),
    }
}
