//! The load program of `make bench`: the same load on Fairlead and on etcd, and the time from an endpoint's change to the
//! programmed rule and the first answered connection. It measures and prints; it judges nothing.

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use fairlead_proto::v1::cluster_client::ClusterClient;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{
    ApplyRequest, CreateRequest, GetRequest, Input, Kind, UpdateRequest, WaitProgrammedRequest, WriteOptions, input,
};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// Load and latency against servers on loopback or in a network namespace.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Closed-loop clients, each doing one operation after another
    Load {
        #[arg(long, value_enum)]
        on: Store,
        #[arg(long, value_enum)]
        op: Op,
        /// host:port of every server
        #[arg(long, value_delimiter = ',')]
        servers: Vec<String>,
        #[arg(long, value_delimiter = ',', default_value = "1,16,128,512")]
        clients: Vec<usize>,
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// Kill the leader; print the time until a write through one of the others succeeds, milliseconds, and who was killed
    Failover {
        #[arg(long, value_enum)]
        on: Store,
        /// host:port of every server
        #[arg(long, value_delimiter = ',')]
        servers: Vec<String>,
        /// Their processes, in the same order
        #[arg(long, value_delimiter = ',')]
        pids: Vec<i32>,
    },
    /// Endpoint change → programmed → first answered connection, with many services
    Endpoint {
        #[arg(long)]
        server: String,
        #[arg(long, default_value_t = 1000)]
        services: usize,
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// Address of the pod, on this host's loopback
        #[arg(long, default_value = "10.244.0.2:8080")]
        pod: SocketAddr,
        /// Node whose agent programs the rules
        #[arg(long, default_value = "bench")]
        node: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Fairlead,
    Etcd,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Op {
    Write,
    Read,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Load { on, op, servers, clients, seconds } => {
            for count in clients {
                load((on, op), &servers, count, Duration::from_secs(seconds)).await?;
            }
            Ok(())
        }
        What::Failover { on, servers, pids } => failover(on, &servers, &pids).await,
        What::Endpoint { server, services, rounds, pod, node } => {
            endpoint(&server, (services, rounds), pod, &node).await
        }
    }
}

/// A payload of about the size of a Service object.
fn payload(round: u64) -> String {
    format!("{round:0>400}")
}

async fn load(what: (Store, Op), servers: &[String], clients: usize, lasting: Duration) -> anyhow::Result<()> {
    let (on, op) = what;
    ensure!(!servers.is_empty(), "no servers");
    // One connection a server for up to 64 clients each, as a client library would share them.
    let mut channels = Vec::new();
    for index in 0..clients.div_ceil(64).max(servers.len()) {
        let server = &servers[index % servers.len()];
        channels.push(
            Channel::from_shared(format!("http://{server}"))?
                .tcp_nodelay(true)
                .connect()
                .await
                .with_context(|| server.clone())?,
        );
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for client in 0..clients {
        let channel = channels[client % channels.len()].clone();
        let stop = stop.clone();
        tasks.push(tokio::spawn(async move {
            match on {
                Store::Fairlead => fairlead_client(channel, op, client, &stop).await,
                Store::Etcd => etcd_client(channel, op, client, &stop).await,
            }
        }));
    }
    let begun = Instant::now();
    tokio::time::sleep(lasting).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = begun.elapsed();
    report(on, op, clients, (latencies, elapsed));
    Ok(())
}

fn report(on: Store, op: Op, clients: usize, measured: (Vec<Duration>, Duration)) {
    let (mut latencies, elapsed) = measured;
    latencies.sort_unstable();
    let at = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = ((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1));
        latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    #[allow(clippy::cast_precision_loss)]
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    println!(
        "{:9} {:6} {clients:4} clients {rate:9.0} /s   p50 {:8.2} ms   p99 {:8.2} ms",
        if on == Store::Fairlead { "fairlead" } else { "etcd" },
        if op == Op::Write { "writes" } else { "reads" },
        at(0.50),
        at(0.99),
    );
}

fn manifest(value: &serde_json::Value) -> Option<Input> {
    Some(Input { form: Some(input::Form::ManifestJson(value.to_string())) })
}

async fn fairlead_client(channel: Channel, op: Op, client: usize, stop: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let mut objects = ObjectsClient::new(channel);
    let name = format!("load-{client}");
    let service = |round: u64| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "annotations": {"load": payload(round)}},
            "spec": {"ports": [{"port": 80}]}
        })
    };
    let create = CreateRequest { input: manifest(&service(0)), options: Some(WriteOptions::default()) };
    if let Err(status) = objects.create(create).await
        && status.code() != tonic::Code::AlreadyExists
    {
        bail!("create: {status}");
    }
    let key = fairlead_proto::model::Key::new(Kind::Service, "default", &*name).to_wire();
    let mut latencies = Vec::new();
    for round in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        match op {
            Op::Write => {
                let update = UpdateRequest { input: manifest(&service(round)), options: Some(WriteOptions::default()) };
                objects.update(update).await?;
            }
            Op::Read => {
                objects.get(GetRequest { key: Some(key.clone()), ..GetRequest::default() }).await?;
            }
        }
        latencies.push(begun.elapsed());
    }
    Ok(latencies)
}

/// etcd's `PutRequest` and `RangeRequest`, as far as they are used: both have the key first.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Any answer; nothing of it is read.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdAnswer {}

async fn etcd_client(channel: Channel, op: Op, client: usize, stop: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let mut grpc = tonic::client::Grpc::new(channel);
    let put = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let range = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
    let key = format!("/load/{client}").into_bytes();
    let mut latencies = Vec::new();
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        grpc.ready().await?;
        let codec = tonic_prost::ProstCodec::<EtcdRequest, EtcdAnswer>::default();
        let write = op == Op::Write || round == 0;
        let value = if write { payload(round).into_bytes() } else { Vec::new() };
        let request = tonic::Request::new(EtcdRequest { key: key.clone(), value });
        grpc.unary(request, if write { put.clone() } else { range.clone() }, codec).await?;
        if round > 0 {
            latencies.push(begun.elapsed());
        }
    }
    Ok(latencies)
}

/// etcd's `StatusResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdStatus {
    #[prost(message, optional, tag = "1")]
    header: Option<EtcdHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EtcdHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// Time for one attempt after the leader's end.
const ATTEMPT: Duration = Duration::from_millis(100);

async fn leads(on: Store, channel: Channel, server: &str) -> anyhow::Result<bool> {
    if on == Store::Fairlead {
        let status = ClusterClient::new(channel).status(fairlead_proto::v1::StatusRequest {}).await?.into_inner();
        return Ok(status.members.iter().any(|member| member.leader && member.grpc_address == server));
    }
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
    let codec = tonic_prost::ProstCodec::<EtcdAnswer, EtcdStatus>::default();
    let status = grpc.unary(tonic::Request::new(EtcdAnswer {}), path, codec).await?.into_inner();
    Ok(status.header.is_some_and(|header| header.member_id == status.leader))
}

async fn write_once(on: Store, channel: Channel, round: u64) -> anyhow::Result<()> {
    if on == Store::Fairlead {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "failover", "annotations": {"load": payload(round)}},
            "spec": {"ports": [{"port": 80}]}
        });
        let request = ApplyRequest { input: manifest(&object), options: Some(WriteOptions::default()) };
        ObjectsClient::new(channel).apply(request).await?;
        return Ok(());
    }
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let request = EtcdRequest { key: b"/load/failover".to_vec(), value: payload(round).into_bytes() };
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    grpc.unary(tonic::Request::new(request), path, tonic_prost::ProstCodec::<EtcdRequest, EtcdAnswer>::default())
        .await?;
    Ok(())
}

async fn failover(on: Store, servers: &[String], pids: &[i32]) -> anyhow::Result<()> {
    ensure!(servers.len() == pids.len() && servers.len() > 2, "three servers and their processes");
    let mut channels = Vec::new();
    for server in servers {
        channels.push(Channel::from_shared(format!("http://{server}"))?.tcp_nodelay(true).connect().await?);
    }
    let mut leader = None;
    for (index, server) in servers.iter().enumerate() {
        if leads(on, channels[index].clone(), server).await? {
            leader = Some(index);
        }
    }
    let leader = leader.context("nobody leads")?;
    let others: Vec<Channel> =
        (0..servers.len()).filter(|index| *index != leader).map(|index| channels[index].clone()).collect();
    for channel in &others {
        write_once(on, channel.clone(), 0).await?;
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[leader]), nix::sys::signal::Signal::SIGKILL)?;
    let begun = Instant::now();
    // A client at each of the others, which tries again at once.
    let mut clients = tokio::task::JoinSet::new();
    for channel in others {
        clients.spawn(async move {
            let mut round = 1;
            while !matches!(tokio::time::timeout(ATTEMPT, write_once(on, channel.clone(), round)).await, Ok(Ok(()))) {
                round += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    let first = tokio::time::timeout(Duration::from_secs(60), clients.join_next()).await;
    first.context("no write within 60 s")?.context("no client")??;
    println!("{:.1} {}", begun.elapsed().as_secs_f64() * 1e3, pids[leader]);
    clients.shutdown().await;
    Ok(())
}

/// The pod's port answers only while `open`: a listener that comes and goes would not tell rules from refusals.
fn pod(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("pod address {address}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream)
        }
    });
    Ok(())
}

async fn endpoint(server: &str, size: (usize, usize), address: SocketAddr, node: &str) -> anyhow::Result<()> {
    let (services, rounds) = size;
    pod(address)?;
    let channel = Channel::from_shared(format!("http://{server}"))?.tcp_nodelay(true).connect().await?;
    let objects = ObjectsClient::new(channel.clone());
    let mut cluster = ClusterClient::new(channel);
    fill(&objects, services, node).await?;
    let target = bench_service();
    let answer = apply(&objects, &target, false).await?;
    let vip = answer
        .object
        .as_ref()
        .and_then(|object| object.as_service())
        .and_then(|service| service.spec.as_ref())
        .map(|spec| spec.cluster_ip.clone());
    let vip: SocketAddr = format!("{}:80", vip.context("no VIP")?).parse()?;
    apply(&objects, &bench_pod(address, true), false).await?;
    programmed(&mut cluster, 0).await?;
    let (mut rules, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let down = apply(&objects, &bench_pod(address, false), true).await?;
        programmed(&mut cluster, down.revision).await?;
        ensure!(
            TcpStream::connect_timeout(&vip, Duration::from_millis(200)).is_err(),
            "a connection was answered without an endpoint"
        );
        let begun = Instant::now();
        let connected = std::thread::spawn(move || first_connection(vip, begun));
        let up = apply(&objects, &bench_pod(address, true), true).await?;
        programmed(&mut cluster, up.revision).await?;
        rules.push(begun.elapsed());
        connections.push(connected.join().map_err(|_| anyhow::anyhow!("connecting panicked"))?);
    }
    for (what, mut times) in [("programmed (acknowledged)", rules), ("first answered connection", connections)] {
        times.sort_unstable();
        let at = |index: usize| times.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3;
        println!(
            "{services:6} services: change → {what:26} median {:7.2} ms   max {:7.2} ms   ({rounds} changes)",
            at(times.len() / 2),
            at(times.len() - 1)
        );
    }
    Ok(())
}

fn first_connection(vip: SocketAddr, begun: Instant) -> Duration {
    while begun.elapsed() < Duration::from_secs(30) {
        // A first packet that was sent too early is lost: a longer wait for it would be what is measured.
        if TcpStream::connect_timeout(&vip, Duration::from_millis(3)).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    begun.elapsed()
}

async fn fill(objects: &ObjectsClient<Channel>, services: usize, node: &str) -> anyhow::Result<()> {
    let mut batch = tokio::task::JoinSet::new();
    for index in 0..services {
        let objects = objects.clone();
        let node = node.to_owned();
        batch.spawn(async move {
            let name = format!("fill-{index}");
            let ip = format!("10.245.{}.{}", index / 250, index % 250 + 1);
            let pod = serde_json::json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "none"}]},
                "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
            });
            let service = serde_json::json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default", "annotations": {"node": node}},
                "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
            });
            apply(&objects, &pod, false).await?;
            apply(&objects, &service, false).await
        });
        if batch.len() >= 64 {
            batch.join_next().await.context("empty")???;
        }
    }
    while let Some(done) = batch.join_next().await {
        done??;
    }
    Ok(())
}

fn bench_service() -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "measured", "namespace": "default"},
        "spec": {"selector": {"app": "measured"}, "ports": [{"port": 80, "targetPort": 8080}]}
    })
}

fn bench_pod(address: SocketAddr, ready: bool) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "measured", "namespace": "default", "labels": {"app": "measured"}},
        "spec": {"containers": [{"name": "c", "image": "none"}]},
        "status": {
            "podIP": address.ip().to_string(), "phase": "Running",
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]
        }
    })
}

async fn apply(
    objects: &ObjectsClient<Channel>,
    value: &serde_json::Value,
    status: bool,
) -> anyhow::Result<fairlead_proto::v1::ObjectResponse> {
    let options = WriteOptions { status, ..WriteOptions::default() };
    let request = ApplyRequest { input: manifest(value), options: Some(options) };
    Ok(objects.clone().apply(request).await?.into_inner())
}

async fn programmed(cluster: &mut ClusterClient<Channel>, revision: u64) -> anyhow::Result<()> {
    let request = WaitProgrammedRequest { revision, timeout_ms: 120_000 };
    let answer = cluster.wait_programmed(request).await?.into_inner();
    ensure!(answer.programmed && answer.nodes > 0, "not programmed: {:?}", answer.laggards);
    Ok(())
}
