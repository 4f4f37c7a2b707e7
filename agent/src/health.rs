//! Answers load balancers that ask, at a service's `healthCheckNodePort`, whether this node has endpoints of it.
//!
//! As kube-proxy answers: 200 with a local ready endpoint, else 503; 503 too while the kernel refuses the rules. The count
//! is in the body and in `X-Load-Balancing-Endpoint-Weight`. What to answer is a pure function of the view.
//! INVARIANT: a port is open while some service of the view asks for it, and no longer.

use crate::kernel::KernelError;
use crate::kernel::linux::in_namespace;
use crate::reconcile::Progress;
use crate::shared::Shared;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use fairlead_proto::view::{NamespacedName, ServiceView};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Wait before a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Connections to one port at once; whoever comes then waits.
const MAX_CONNECTIONS: usize = 64;
/// A request's head must be there within this.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Then a connection is closed.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// What a port answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    service: NamespacedName,
    local: usize,
}

/// The port at which a service's checks are answered, and its ready endpoints on a node.
#[must_use]
pub fn check(service: &ServiceView, node: &str) -> Option<(u16, usize)> {
    let port = u16::try_from(service.item().health_check_node_port).ok().filter(|port| *port != 0)?;
    let here = service.endpoints.values().filter(|one| one.ready && one.node_name == node);
    Some((port, here.map(|one| one.address).collect::<BTreeSet<_>>().len()))
}

/// The answers, kept at the newest view.
pub struct HealthChecks {
    shared: Arc<Shared>,
    node: String,
    progress: watch::Receiver<Progress>,
    namespace: Option<PathBuf>,
    /// Services that ask for a port.
    asking: BTreeMap<NamespacedName, (u16, usize)>,
    open: BTreeMap<u16, Open>,
}

/// A port that is answered; dropped, it is closed.
struct Open {
    check: watch::Sender<Check>,
    _closes: DropGuard,
}

impl HealthChecks {
    /// Makes the task of a node, whose ports are in a network namespace.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        node: String,
        progress: watch::Receiver<Progress>,
        namespace: Option<PathBuf>,
    ) -> Self {
        Self { shared, node, progress, namespace, asking: BTreeMap::new(), open: BTreeMap::new() }
    }

    /// Answers until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut version = self.shared.subscribe();
        loop {
            version.borrow_and_update();
            let complete = self.follow();
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = version.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !complete => {}
            }
        }
    }

    /// Opens, closes and updates ports. False: one couldn't be opened.
    fn follow(&mut self) -> bool {
        let Self { asking, node, .. } = self;
        self.shared.take_for_checks(|view, touched| {
            // Not a filter on all of them: a change costs what it touches.
            let all = touched.all.then(|| view.services.keys()).into_iter().flatten();
            asking.retain(|name, _| !touched.all || view.services.contains_key(name));
            for name in touched.services.iter().chain(all) {
                match view.services.get(name).and_then(|service| check(service, node)) {
                    Some(asked) => asking.insert(name.clone(), asked),
                    None => asking.remove(name),
                };
            }
        });
        // Of two services with one port (that can't be allocated) the first by name has it.
        let mut wanted: BTreeMap<u16, Check> = BTreeMap::new();
        for (service, (port, local)) in &self.asking {
            wanted.entry(*port).or_insert_with(|| Check { service: service.clone(), local: *local });
        }
        self.open.retain(|port, _| wanted.contains_key(port));
        let mut complete = true;
        for (port, check) in wanted {
            match self.open.get(&port) {
                Some(open) => {
                    open.check.send_replace(check);
                }
                None => match self.listen(port) {
                    Ok(listener) => {
                        self.open.insert(port, self.serve(listener, check));
                    }
                    Err(error) => {
                        complete = false;
                        tracing::error!(port, service = %check.service, %error, "health checks can't be answered at this port");
                    }
                },
            }
        }
        complete
    }

    fn listen(&self, port: u16) -> Result<tokio::net::TcpListener, KernelError> {
        let opened = in_namespace(self.namespace.as_deref(), move || {
            // Both families at once; a host without IPv6 has one.
            let any =
                [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
            let listener = TcpListener::bind(&any[..])?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        })?;
        let opened = opened.and_then(tokio::net::TcpListener::from_std);
        opened.map_err(|source| KernelError::Run { program: format!("a listener at port {port}"), source })
    }

    fn serve(&self, listener: tokio::net::TcpListener, check: Check) -> Open {
        let (check, seen) = watch::channel(check);
        let closing = CancellationToken::new();
        let closed = closing.clone();
        let router = Router::new().fallback(answer).with_state((seen, self.progress.clone()));
        tokio::spawn(accept(listener, router, closed));
        Open { check, _closes: closing.drop_guard() }
    }
}

/// Answers at a port that anybody may reach: so many connections at once, each for so long.
async fn accept(listener: tokio::net::TcpListener, router: Router, closed: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(MAX_HEAD);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Most often there are no file descriptors left.
            tokio::time::sleep(HEAD_WITHIN / 50).await;
            continue;
        };
        let (builder, service, closed) = (builder.clone(), TowerToHyperService::new(router.clone()), closed.clone());
        tokio::spawn(async move {
            let served = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = tokio::time::timeout(CONNECTION_LIFE, served) => {}
                () = closed.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn answer(
    State((check, progress)): State<(watch::Receiver<Check>, watch::Receiver<Progress>)>,
) -> impl IntoResponse {
    let check = check.borrow().clone();
    let healthy = {
        let progress = progress.borrow();
        progress.applied > 0 && progress.failed.is_none()
    };
    let status = if healthy && check.local > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": {healthy}\n}}\n",
        check.service.namespace, check.service.name, check.local
    );
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), check.local.to_string()),
    ];
    (status, headers, body)
}
