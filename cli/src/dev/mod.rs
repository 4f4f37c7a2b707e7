//! `fairlead dev`: a server, an agent and an echo pod in one process, usable within two seconds.
//!
//! As root the data plane lives in a network namespace of its own, which goes with the process; else rules are only
//! rendered. Not for production: one member, plaintext, loopback.

mod echo;
mod netns;

use crate::client::Global;
use crate::telemetry::Settings;
use crate::{client, server, signals, telemetry};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use fairlead_agent::Mode;
use fairlead_proto::v1::cluster_client::ClusterClient;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{ApplyRequest, Input, WaitProgrammedRequest, WriteOptions, input};
use fairlead_server::dns::StalePolicy;
use fairlead_server::upkeep::space::Limits;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Name of the one member and of the one node.
const NAME: &str = "dev";

/// The configuration for kubectl, in the data directory.
const KUBECONFIG: &str = "kubeconfig.yaml";

/// Where the data plane's rules go.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Netns {
    /// A network namespace of its own
    Own,
    /// This host's
    Host,
}

/// Run a server, an agent and an echo pod in one process.
#[derive(Args)]
pub struct DevArgs {
    /// Where everything is stored [default: ~/.local/share/fairlead/dev]
    #[arg(long, env = "FAIRLEAD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Data plane: auto (nftables where it can be, else ipvs, else iptables), iptables, ipvs, nftables or dry-run
    #[arg(long, default_value = "auto", env = "FAIRLEAD_MODE")]
    mode: String,
    /// Where the rules go
    #[arg(long, value_enum, default_value = "own")]
    netns: Netns,
    /// gRPC
    #[arg(long, default_value = "127.0.0.1:7400", env = "FAIRLEAD_LISTEN_GRPC")]
    listen_grpc: SocketAddr,
    /// Kubernetes' API, /livez and /readyz, without TLS
    #[arg(long, default_value = "127.0.0.1:7443", env = "FAIRLEAD_LISTEN_HTTPS")]
    listen_https: SocketAddr,
    /// DNS
    #[arg(long, default_value = "127.0.0.1:7453", env = "FAIRLEAD_LISTEN_DNS")]
    listen_dns: SocketAddr,
    /// /metrics, /livez and /readyz
    #[arg(long, default_value = "127.0.0.1:7490", env = "FAIRLEAD_LISTEN_METRICS")]
    listen_metrics: SocketAddr,
    /// Range of ClusterIPs
    #[arg(long, default_value = "10.96.0.0/12", env = "FAIRLEAD_SERVICE_CIDR")]
    service_cidr: IpNet,
    /// Don't seed the echo service
    #[arg(long)]
    empty: bool,
}

/// Where the data plane of this run is.
struct Plane {
    mode: Mode,
    /// Own namespace, removed on drop.
    netns: Option<netns::Namespace>,
    node_ip: IpAddr,
    /// Address and port of the echo pod.
    echo: SocketAddr,
}

/// Runs until a signal.
pub async fn main(global: &Global, args: DevArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let telemetry = telemetry::start(&Settings {
        filter: "warn,openraft=error",
        format: global.log_format.unwrap_or_default(),
        otlp_endpoint: global.otlp_endpoint.clone(),
        service: "fairlead-dev",
        instance: NAME.to_owned(),
    })?;
    let data_dir = args.data_dir.clone().map_or_else(default_data_dir, Ok)?;
    std::fs::create_dir_all(&data_dir)
        .with_context(|| format!("can't make the data directory {}", data_dir.display()))?;
    let cancel = signals()?;
    let (started, ready) = oneshot::channel();
    let server = tokio::spawn(fairlead_server::run(server_config(&args, &data_dir)?, cancel.clone(), Some(started)));
    if ready.await.is_err() {
        return server.await?.context("server");
    }
    let plane = plane(&args).await?;
    let result = run(&args, &data_dir, &plane, (begun, &cancel)).await;
    cancel.cancel();
    let ended = server.await?;
    if let Some(netns) = plane.netns {
        netns.remove().await;
    }
    telemetry.end().await;
    result?;
    ended.context("server")
}

async fn run(
    args: &DevArgs,
    data_dir: &Path,
    plane: &Plane,
    life: (Instant, &CancellationToken),
) -> anyhow::Result<()> {
    let (begun, cancel) = life;
    let agent = tokio::spawn(fairlead_agent::run(agent_config(args, data_dir, plane), cancel.clone()));
    let config = data_dir.join("client.yaml");
    client::write_client_config(&config, &[args.listen_grpc.to_string()])?;
    client::write_kubeconfig(&data_dir.join(KUBECONFIG), args.listen_https)?;
    let vip = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        seeded = seed(args, plane) => seeded?,
    };
    println!(
        "ready in {:.2} s: data in {}, data plane {}",
        begun.elapsed().as_secs_f64(),
        data_dir.display(),
        describe(plane)
    );
    banner(args, plane, &config, vip.as_deref());
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        ended = agent => {
            cancel.cancel();
            ended?.context("agent")
        }
    }
}

fn banner(args: &DevArgs, plane: &Plane, config: &Path, vip: Option<&str>) {
    println!("  fairlead --config {} get svc", config.display());
    println!("  kubectl --kubeconfig {} get svc", config.with_file_name(KUBECONFIG).display());
    let Some(vip) = vip else { return };
    println!("  dig +short -p {} @{} echo.default.svc.cluster.local", args.listen_dns.port(), args.listen_dns.ip());
    match &plane.netns {
        Some(netns) => println!("  ip netns exec {} curl -s http://{vip}/", netns.name()),
        None if plane.mode == Mode::DryRun => {
            println!("  fairlead --config {} dataplane list -o rules", config.display())
        }
        None => println!("  curl -s http://{vip}/"),
    }
}

fn describe(plane: &Plane) -> String {
    match (&plane.netns, plane.mode) {
        (Some(netns), mode) => format!("{mode} in network namespace {}", netns.name()),
        (None, Mode::DryRun) => "rendered only (dry-run)".to_owned(),
        (None, mode) => format!("{mode} on this host"),
    }
}

async fn plane(args: &DevArgs) -> anyhow::Result<Plane> {
    let root = nix::unistd::geteuid().is_root();
    let mode: Mode = args.mode.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if mode == Mode::DryRun || (mode == Mode::Auto && !root) || args.netns == Netns::Host {
        let mode = fairlead_agent::resolve_mode(mode, None).await?;
        let echo = if args.empty { SocketAddr::new(loopback, 0) } else { echo::serve_here(loopback)? };
        return Ok(Plane { mode, netns: None, node_ip: loopback, echo });
    }
    anyhow::ensure!(root, "a network namespace of its own needs root: run as root, or with --mode dry-run");
    let namespace =
        netns::Namespace::create(&format!("fairlead-dev-{}", std::process::id()), args.service_cidr).await?;
    let mode = match fairlead_agent::resolve_mode(mode, Some(namespace.path())).await {
        Ok(mode) => mode,
        Err(error) => {
            namespace.remove().await;
            return Err(error.into());
        }
    };
    let echo = SocketAddr::new(netns::POD_IP.into(), 8080);
    if !args.empty {
        echo::serve_in(&namespace.path(), echo)?;
    }
    Ok(Plane { mode, netns: Some(namespace), node_ip: netns::NODE_IP.into(), echo })
}

fn server_config(args: &DevArgs, data_dir: &Path) -> anyhow::Result<fairlead_server::Config> {
    // The peer face of a single member: a free port of loopback, the same at every start so that the cluster's
    // founding list stays what it was.
    let peer = SocketAddr::from(([127, 0, 0, 1], args.listen_grpc.port().checked_add(1).unwrap_or(7401)));
    Ok(fairlead_server::Config {
        // Its network is nobody else's.
        external_ip_cidrs: vec!["0.0.0.0/0".parse()?, "::/0".parse()?],
        name: NAME.into(),
        data_dir: data_dir.join("server"),
        listen_grpc: args.listen_grpc,
        listen_peer: peer,
        listen_https: args.listen_https,
        listen_dns: args.listen_dns,
        listen_metrics: args.listen_metrics,
        advertise_grpc: None,
        advertise_https: None,
        initial_cluster: vec![(NAME.into(), peer.to_string())],
        service_cidr: server::service_cidr(Some(args.service_cidr))?,
        node_ports: (30_000, 32_767),
        cluster_domain: "cluster.local".into(),
        dns_stale: StalePolicy::ServeStale,
        render_metrics: telemetry::metrics(&[fairlead_server::metrics::METRICS, fairlead_agent::metrics::METRICS])?,
        limits: Limits::default(),
        backups: None,
        tls: None,
        join: None,
        opened: None,
    })
}

fn agent_config(args: &DevArgs, data_dir: &Path, plane: &Plane) -> fairlead_agent::Config {
    fairlead_agent::Config {
        node_name: NAME.into(),
        servers: vec![args.listen_grpc.to_string()],
        mode: plane.mode,
        state_dir: data_dir.join("agent"),
        node_ip: Some(plane.node_ip),
        renew_seconds: 1,
        grace_seconds: 5,
        netns: plane.netns.as_ref().map(netns::Namespace::path),
        ..fairlead_agent::Config::default()
    }
}

/// Applies the echo pod and its service, and waits until they are programmed. The answer is the VIP.
async fn seed(args: &DevArgs, plane: &Plane) -> anyhow::Result<Option<String>> {
    let endpoint = format!("http://{}", args.listen_grpc);
    let mut objects = ObjectsClient::connect(endpoint.clone()).await?;
    let mut cluster = ClusterClient::connect(endpoint).await?;
    let mut vip = None;
    let mut revision = 0;
    if !args.empty {
        for manifest in seeds(plane) {
            let input = Input { form: Some(input::Form::ManifestJson(manifest.to_string())) };
            let request = ApplyRequest { input: Some(input), options: Some(WriteOptions::default()) };
            let answer = retry(|| objects.clone().apply_once(request.clone())).await?;
            revision = answer.revision;
            if let Some(service) = answer.object.as_ref().and_then(|object| object.as_service()) {
                vip = service.spec.as_ref().map(|spec| spec.cluster_ip.clone());
            }
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let request = WaitProgrammedRequest { revision, timeout_ms: 10_000 };
        let answer = cluster.wait_programmed(request).await?.into_inner();
        let endpoint_ready = args.empty || endpoint_is_ready(&mut objects).await?;
        if answer.programmed && answer.nodes > 0 && endpoint_ready {
            return Ok(vip);
        }
        revision = 0;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    anyhow::bail!("the seeded service was not programmed within 10 s: see `fairlead status`")
}

async fn endpoint_is_ready(objects: &mut ObjectsClient<tonic::transport::Channel>) -> anyhow::Result<bool> {
    let key = fairlead_proto::model::Key::new(fairlead_proto::v1::Kind::Endpoints, "default", "echo").to_wire();
    let request = fairlead_proto::v1::GetRequest { key: Some(key), ..Default::default() };
    let object = objects.get(request).await?.into_inner().object.unwrap_or_default();
    Ok(object.as_endpoints().is_some_and(|record| record.endpoints.iter().any(|endpoint| endpoint.ready)))
}

/// One apply, boxed so that it can be tried again.
trait ApplyOnce {
    /// Applies.
    async fn apply_once(self, request: ApplyRequest) -> Result<fairlead_proto::v1::ObjectResponse, tonic::Status>;
}

impl ApplyOnce for ObjectsClient<tonic::transport::Channel> {
    async fn apply_once(mut self, request: ApplyRequest) -> Result<fairlead_proto::v1::ObjectResponse, tonic::Status> {
        self.apply(request).await.map(tonic::Response::into_inner)
    }
}

/// The single member may still be electing itself.
async fn retry<T, F: Future<Output = Result<T, tonic::Status>>>(attempt: impl Fn() -> F) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(status) if status.code() == tonic::Code::InvalidArgument || Instant::now() > deadline => {
                return Err(status.into());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn seeds(plane: &Plane) -> [serde_json::Value; 2] {
    let (ip, port) = (plane.echo.ip().to_string(), plane.echo.port());
    [
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "echo", "namespace": "default", "labels": {"app": "echo"}},
            "spec": {
                "nodeName": NAME,
                "containers": [{
                    "name": "echo", "image": "built-in", "ports": [{"name": "http", "containerPort": port}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1}
                }]
            },
            "status": {"podIP": ip}
        }),
        serde_json::json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "echo", "namespace": "default"},
            "spec": {"selector": {"app": "echo"}, "ports": [{"name": "http", "port": 80, "targetPort": port}]}
        }),
    ]
}

fn default_data_dir() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: say --data-dir")?;
    Ok(PathBuf::from(home).join(".local/share/fairlead/dev"))
}
