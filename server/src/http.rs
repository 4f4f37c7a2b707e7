//! Plain HTTP beside gRPC: `/metrics`, `/livez`, `/readyz`.

use crate::pki::listener::HttpListener;
use crate::raft::Consensus;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Renders the process's metrics in Prometheus' text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

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

/// `/metrics`.
pub fn metrics(render: RenderMetrics) -> Router {
    Router::new().route("/metrics", get(move || async move { render() }))
}

/// Serves until cancelled.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: HttpListener, router: Router, cancel: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await
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
