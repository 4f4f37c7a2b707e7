//! One probe: httpGet, tcpSocket or grpc, as the kubelet makes them and with its words.

use bytes::Bytes;
use fairlead_proto::v1::{Container, ContainerPort, HttpHeader, IntOrString, int_or_string};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Success, or what went wrong.
pub type Outcome = Result<(), String>;

/// What to ask.
#[derive(Clone, Debug, PartialEq)]
pub enum Check {
    /// GET; 200 to 399 is success.
    Http {
        /// Host to connect to: an address, or a name.
        host: String,
        /// Port.
        port: u16,
        /// Path and query.
        path: Uri,
        /// Headers, `Host` included.
        headers: HeaderMap,
    },
    /// A connection that opens is success.
    Tcp {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// grpc.health.v1; SERVING is success.
    Grpc {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
        /// Service asked for.
        service: String,
    },
    /// Can't be asked; always a failure, with this reason.
    Never(String),
}

impl Check {
    /// The check of a container's readiness probe. `at`: the pod's address, and whether its ports are reached as
    /// published on the node.
    #[must_use]
    pub fn plan(container: &Container, at: Option<(IpAddr, bool)>) -> Self {
        plan(container, at).unwrap_or_else(Self::Never)
    }

    /// Asks once.
    pub async fn run(&self, timeout: Duration) -> Outcome {
        let asked = async {
            match self {
                Self::Http { host, port, path, headers } => http((host, *port), path, headers).await,
                Self::Tcp { host, port } => connect(host, *port).await.map(|_| ()),
                Self::Grpc { address, port, service } => grpc(*address, *port, service).await,
                Self::Never(_) => Ok(()),
            }
        };
        if let Self::Never(reason) = self {
            return Err(reason.clone());
        }
        let outcome = tokio::time::timeout(timeout, asked).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", timeout.as_secs())));
        outcome.map_err(|what| format!("Readiness probe failed: {what}"))
    }
}

fn plan(container: &Container, at: Option<(IpAddr, bool)>) -> Result<Check, String> {
    let probe = container.readiness_probe.clone().unwrap_or_default();
    if probe.exec.is_some() {
        return Err("readinessProbe.exec is not supported yet: use httpGet, tcpSocket or grpc".to_owned());
    }
    let reached = || {
        at.ok_or_else(|| "the pod has no address to probe: give it status.podIP, hostNetwork or a hostPort".to_owned())
    };
    let host = |given: &str| {
        if given.is_empty() { reached().map(|(ip, _)| ip.to_string()) } else { Ok(given.to_owned()) }
    };
    let published = at.is_some_and(|(_, published)| published);
    if let Some(get) = probe.http_get {
        if !matches!(get.scheme.as_str(), "" | "HTTP") {
            return Err(format!(
                "readinessProbe.httpGet.scheme {} is not supported yet: use HTTP or tcpSocket",
                get.scheme
            ));
        }
        let (host, port) = (host(&get.host)?, port(container, get.port.as_ref(), published)?);
        let path = if get.path.starts_with('/') { get.path } else { format!("/{}", get.path) };
        let path: Uri = path.parse().map_err(|_| format!("readinessProbe.httpGet.path {path:?} is not a path"))?;
        let headers = headers(&get.http_headers, &authority(&host, port))?;
        return Ok(Check::Http { host, port, path, headers });
    }
    if let Some(tcp) = probe.tcp_socket {
        return Ok(Check::Tcp { host: host(&tcp.host)?, port: port(container, tcp.port.as_ref(), published)? });
    }
    if let Some(grpc) = probe.grpc {
        let given = IntOrString { value: Some(int_or_string::Value::Int(grpc.port)) };
        let (address, _) = reached()?;
        return Ok(Check::Grpc {
            address,
            port: port(container, Some(&given), published)?,
            service: grpc.service.unwrap_or_default(),
        });
    }
    Err("readinessProbe asks nothing: give it httpGet, tcpSocket or grpc".to_owned())
}

/// The port to connect to: a number, or the name of one of the container's; as published on the node if so reached.
fn port(container: &Container, given: Option<&IntOrString>, published: bool) -> Result<u16, String> {
    let value = given.and_then(|given| given.value.as_ref());
    let number = match value {
        Some(int_or_string::Value::Int(number)) => *number,
        Some(int_or_string::Value::Str(name)) => {
            let named = container.ports.iter().find(|port| port.name == *name).map(|port| port.container_port);
            // A string may also be a number.
            named.or_else(|| name.parse().ok()).ok_or_else(|| {
                format!("readinessProbe names port {name:?}, which container {} doesn't have", container.name)
            })?
        }
        None => 0,
    };
    let number = if published { host_port(container, number)? } else { number };
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("readinessProbe port {number} is not a port number"))
}

/// Where a container's port is published. One that isn't would be somebody else's at the node's address.
fn host_port(container: &Container, number: i32) -> Result<i32, String> {
    let is = |port: &&ContainerPort| {
        port.container_port == number && port.host_port != 0 && matches!(port.protocol.as_str(), "" | "TCP")
    };
    container.ports.iter().find(is).map(|port| port.host_port).ok_or_else(|| {
        format!(
            "readinessProbe port {number} is not published on the node: give it a hostPort, or the pod a status.podIP"
        )
    })
}

fn headers(given: &[HttpHeader], authority: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("kube-probe/fairlead-", env!("CARGO_PKG_VERSION"))),
    );
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let host = HeaderValue::from_str(authority).map_err(|_| format!("{authority:?} is not a host"))?;
    headers.insert(header::HOST, host);
    let mut fresh = std::collections::BTreeSet::new();
    for one in given {
        let wrong = |_| format!("readinessProbe header {:?} can't be sent", one.name);
        let name = HeaderName::from_bytes(one.name.as_bytes()).map_err(|_| wrong(()))?;
        let value = HeaderValue::from_str(&one.value).map_err(|_| wrong(()))?;
        // A given header replaces ours; given twice, it is sent twice.
        if fresh.insert(name.as_str().to_owned()) {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| format!("dial tcp {}: {error}", authority(host, port)))
}

async fn http((host, port): (&str, u16), path: &Uri, headers: &HeaderMap) -> Outcome {
    let stream = connect(host, port).await?;
    let failed = |error: hyper::Error| format!("Get \"http://{}{path}\": {error}", authority(host, port));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with this probe: its task is aborted when the set is dropped.
    let mut connections = tokio::task::JoinSet::new();
    connections.spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.clone();
    request.headers_mut().clone_from(headers);
    let response = sender.send_request(request).await.map_err(failed)?;
    match response.status().as_u16() {
        200..400 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

async fn grpc(address: IpAddr, port: u16, service: &str) -> Outcome {
    let authority = authority(&address.to_string(), port);
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{authority}")).map_err(|error| error.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("failed to connect service {authority:?}: {}", cause(&error)))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.map_err(|status| match status.code() {
        tonic::Code::Unimplemented => {
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned()
        }
        _ => format!("health rpc probe failed: {}", status.message()),
    })?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
    }
}

/// The innermost reason.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{ExecAction, GrpcAction, HttpGetAction, Probe, TcpSocketAction};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const HERE: Option<(IpAddr, bool)> = Some((IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), false));
    const SECOND: Duration = Duration::from_secs(1);

    fn number(port: u16) -> Option<IntOrString> {
        Some(IntOrString { value: Some(int_or_string::Value::Int(port.into())) })
    }

    fn name(name: &str) -> Option<IntOrString> {
        Some(IntOrString { value: Some(int_or_string::Value::Str(name.into())) })
    }

    fn container(probe: Probe) -> Container {
        let port = |name: &str, container_port, host_port| ContainerPort {
            name: name.into(),
            container_port,
            host_port,
            ..ContainerPort::default()
        };
        Container {
            name: "web".into(),
            ports: vec![port("http", 80, 8080), port("admin", 81, 0)],
            readiness_probe: Some(probe),
            ..Container::default()
        }
    }

    fn get(path: &str, port: Option<IntOrString>) -> Probe {
        Probe {
            http_get: Some(HttpGetAction { path: path.into(), port, ..HttpGetAction::default() }),
            ..Probe::default()
        }
    }

    /// Answers one request with a status line and gives the request.
    async fn serve(status: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        (port, served)
    }

    #[tokio::test]
    async fn http_takes_2xx_and_3xx() {
        for (status, ready) in
            [("200 OK", true), ("302 Found", true), ("399 x", true), ("404 x", false), ("503 x", false)]
        {
            let (port, served) = serve(status).await;
            let mut probe = get("healthz?full=1", number(port));
            let headers = [("X-A", "1"), ("x-a", "2"), ("Host", "web.local")];
            probe.http_get.as_mut().unwrap().http_headers =
                headers.map(|(name, value)| HttpHeader { name: name.into(), value: value.into() }).to_vec();
            let outcome = Check::plan(&container(probe), HERE).run(SECOND).await;
            assert_eq!(outcome.is_ok(), ready, "{status}: {outcome:?}");
            let request = served.await.unwrap().to_lowercase();
            assert!(request.starts_with("get /healthz?full=1 http/1.1\r\n"), "{request}");
            assert!(
                request.contains("x-a: 1")
                    && request.contains("x-a: 2")
                    && request.contains("host: web.local")
                    && request.contains("kube-probe/"),
                "{request}"
            );
            assert_eq!(request.matches("host:").count(), 1);
        }
    }

    #[tokio::test]
    async fn failures_say_what_happened() {
        let (port, _served) = serve("503 x").await;
        let outcome = Check::plan(&container(get("/", number(port))), HERE).run(SECOND).await;
        assert_eq!(outcome.unwrap_err(), "Readiness probe failed: HTTP probe failed with statuscode: 503");
        let closed = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port() };
        for probe in [
            get("/", number(closed)),
            Probe {
                tcp_socket: Some(TcpSocketAction { port: number(closed), ..TcpSocketAction::default() }),
                ..Probe::default()
            },
            Probe { grpc: Some(GrpcAction { port: closed.into(), service: None }), ..Probe::default() },
        ] {
            let said = Check::plan(&container(probe), HERE).run(SECOND).await.unwrap_err();
            assert!(said.contains("refused"), "{said}");
        }
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let said =
            Check::plan(&container(get("/", number(port))), HERE).run(Duration::from_millis(20)).await.unwrap_err();
        assert!(said.contains("no answer within"), "{said}");
        let open = Probe {
            tcp_socket: Some(TcpSocketAction { port: number(port), ..TcpSocketAction::default() }),
            ..Probe::default()
        };
        assert_eq!(Check::plan(&container(open), HERE).run(SECOND).await, Ok(()));
    }

    #[tokio::test]
    async fn grpc_asks_the_health_service() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("up", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("down", tonic_health::ServingStatus::NotServing).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let ask = |service: &str| {
            let probe = Probe {
                grpc: Some(GrpcAction { port: port.into(), service: Some(service.into()) }),
                ..Probe::default()
            };
            let check = Check::plan(&container(probe), HERE);
            async move { check.run(SECOND).await }
        };
        assert_eq!(ask("up").await, Ok(()));
        assert_eq!(ask("").await, Ok(()));
        assert!(ask("down").await.unwrap_err().contains("NOT_SERVING"));
        assert!(ask("unknown").await.is_err());
    }

    #[test]
    fn ports_by_name_and_as_published() {
        let check =
            |port, published| match Check::plan(&container(get("/", port)), Some(([10, 0, 0, 1].into(), published))) {
                Check::Http { port, .. } => Ok(port),
                Check::Never(reason) => Err(reason),
                other => panic!("{other:?}"),
            };
        assert_eq!(check(name("http"), false), Ok(80));
        assert_eq!(check(name("http"), true), Ok(8080));
        assert_eq!(check(number(80), true), Ok(8080));
        assert!(
            check(name("admin"), true).unwrap_err().contains("81 is not published"),
            "the node's port 81 is another's"
        );
        assert_eq!(check(name("8443"), false), Ok(8443));
        assert!(check(name("nope"), false).unwrap_err().contains("nope"));
        assert!(check(None, false).is_err());
    }

    #[tokio::test]
    async fn what_can_not_be_asked_says_so_in_one_sentence() {
        let exec = Probe { exec: Some(ExecAction { command: vec!["true".into()] }), ..Probe::default() };
        let mut https = get("/", number(443));
        https.http_get.as_mut().unwrap().scheme = "HTTPS".into();
        for (probe, at, part) in [
            (exec, HERE, "exec is not supported"),
            (https, HERE, "HTTPS is not supported"),
            (get("/", number(80)), None, "no address"),
            (Probe::default(), HERE, "asks nothing"),
        ] {
            let said = Check::plan(&container(probe), at).run(SECOND).await.unwrap_err();
            assert!(said.contains(part) && said.lines().count() == 1, "{said}");
        }
    }
}
