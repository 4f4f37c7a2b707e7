//! Plain HTTP beside gRPC: `/metrics`, `/livez`, `/readyz`.

use crate::pki::Identity;
use crate::pki::listener::Caller;
use crate::pki::listener::HttpListener;
use crate::raft::Consensus;
use axum::extract::{RawQuery, State};
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

/// A request's head must be there within this; a slow one holds nobody up for longer.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// What a port takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; whoever comes then waits.
    pub connections: usize,
    /// Then a connection is closed, between two requests; `None`: it may stay.
    pub life: Option<Duration>,
    /// Requests of one connection at once.
    pub streams: u32,
    /// A head must be there within this, also the next one of a connection that says nothing.
    pub head_within: Duration,
}

impl Limits {
    /// A port that is looked at now and then.
    pub const SCRAPED: Self =
        Self { connections: 256, life: Some(Duration::from_secs(600)), streams: 32, head_within: HEADERS_WITHIN };
    /// A port that clients work at, and watch.
    pub const SERVED: Self =
        Self { connections: 8_192, life: None, streams: 1_000, head_within: Duration::from_secs(90) };
}

/// Bytes of a request's head.
const MAX_BUFFER: usize = 64 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// A member that reaches no quorum within this is not ready.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(1);

/// `/livez` and `/readyz`: alive while storage works; ready while a quorum confirms reads and this member has its data, so
/// that the next one may be restarted.
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
pub async fn serve(
    mut listener: HttpListener,
    (router, limits): (Router, Limits),
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head_within).max_buf_size(MAX_BUFFER);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(limits.streams).max_header_list_size(MAX_HEADERS);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let (connection, caller) = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (builder, service, cancel) =
            (builder.clone(), TowerToHyperService::new(router.clone().layer(Extension(caller))), cancel.clone());
        let life = async move {
            match limits.life {
                Some(life) => tokio::time::sleep(life).await,
                None => std::future::pending().await,
            }
        };
        tokio::spawn(async move {
            let served = builder.serve_connection(TokioIo::new(connection), service);
            tokio::pin!(served);
            tokio::select! {
                _ = served.as_mut() => {}
                () = life => served.as_mut().graceful_shutdown(),
                () = cancel.cancelled() => served.as_mut().graceful_shutdown(),
            }
            let _ = tokio::time::timeout(HEADERS_WITHIN, served).await;
            drop(place);
        });
    }
}

/// What somebody asks of `/readyz` and `/livez`, as of Kubernetes' ones.
#[derive(Debug, Default)]
struct Asked {
    /// Every check is listed.
    verbose: bool,
    /// Checks that don't count.
    exclude: Vec<String>,
}

impl Asked {
    fn parse(query: Option<&str>) -> Self {
        let mut asked = Self::default();
        for pair in query.unwrap_or_default().split('&') {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("verbose", _) => asked.verbose = true,
                ("exclude", names) => asked.exclude.extend(names.split([',', ' ', '+']).map(str::to_owned)),
                _ => {}
            }
        }
        asked
    }
}

/// A check: its name, and what is wrong.
type Check = (&'static str, Option<String>);

async fn livez(State(consensus): State<Consensus>, RawQuery(query): RawQuery) -> impl IntoResponse {
    judged("livez", vec![storage(&consensus)], &Asked::parse(query.as_deref()))
}

async fn readyz(State(consensus): State<Consensus>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let quorum = match tokio::time::timeout(QUORUM_TIMEOUT, consensus.read()).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no quorum within 1 s".to_owned()),
    };
    let returning = consensus.is_returning().then(|| "this member lost its data and gets it back".to_owned());
    judged(
        "readyz",
        vec![storage(&consensus), ("data", returning), ("quorum", quorum)],
        &Asked::parse(query.as_deref()),
    )
}

fn storage(consensus: &Consensus) -> Check {
    ("storage", consensus.failure().map(|failure| format!("storage failed: {failure}")))
}

/// The answer: 200 if nothing that counts is wrong. Pure.
fn judged(what: &str, checks: Vec<Check>, asked: &Asked) -> (StatusCode, String) {
    let excluded = |name: &str| asked.exclude.iter().any(|one| one == name);
    let counts = |(name, _): &&Check| !excluded(name);
    let wrong: Vec<&String> = checks.iter().filter(counts).filter_map(|(_, wrong)| wrong.as_ref()).collect();
    let code = if wrong.is_empty() {
        StatusCode::OK
    } else if what == "livez" {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut text = String::new();
    if asked.verbose {
        for (name, wrong) in &checks {
            match wrong {
                _ if excluded(name) => text.push_str(&format!("[+]{name} excluded: ok\n")),
                None => text.push_str(&format!("[+]{name} ok\n")),
                Some(wrong) => text.push_str(&format!("[-]{name} failed: {wrong}\n")),
            }
        }
        let passed = if wrong.is_empty() { "passed" } else { "failed" };
        text.push_str(&format!("{what} check {passed}\n"));
    } else if wrong.is_empty() {
        text.push_str("ok\n");
    } else {
        let list = wrong.into_iter().cloned().collect::<Vec<_>>().join("; ");
        text.push_str(&format!("{}: {list}\n", if what == "livez" { "not alive" } else { "not ready" }));
    }
    (code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_fails_is_named_and_can_be_left_out() {
        let checks = || vec![("storage", None), ("quorum", Some("nobody leads".to_owned()))];
        let asked = |verbose: bool, exclude: &str| {
            let query = format!("{}exclude={exclude}", if verbose { "verbose&" } else { "" });
            Asked::parse(Some(&query))
        };
        let said = |asked: Asked| judged("readyz", checks(), &asked);
        assert_eq!(said(asked(false, "")), (StatusCode::SERVICE_UNAVAILABLE, "not ready: nobody leads\n".to_owned()));
        let (code, text) = said(asked(true, ""));
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "[+]storage ok\n[-]quorum failed: nobody leads\nreadyz check failed\n");
        assert_eq!(said(asked(false, "other,quorum")), (StatusCode::OK, "ok\n".to_owned()));
        let (code, text) = said(asked(true, "quorum"));
        assert_eq!(
            (code, text.ends_with("[+]quorum excluded: ok\nreadyz check passed\n")),
            (StatusCode::OK, true),
            "{text}"
        );
        let (code, _) = judged("livez", checks(), &asked(false, ""));
        assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
