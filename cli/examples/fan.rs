//! The fan-out load program of `make bench`: how long a write takes to reach many watchers, or many nodes, of one server,
//! and what the server pays for them. It measures and prints; it judges nothing.

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use fairlead_proto::v1::node_sync_client::NodeSyncClient;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{
    AgentMessage, Applied, ApplyRequest, Hello, Input, Kind, WatchRequest, WriteOptions, agent_message, input,
    server_message,
};
use prost::Message as _;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// Streams of one connection.
const STREAMS: usize = 500;
/// Streams that are being opened at once: a server takes a bounded number of requests from one client.
const OPENING: u64 = 256;
/// Time for one write to reach everybody.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nodes' lease, seconds: the measured machine is too busy for a short one.
const GRACE: u32 = 600;

/// Fan-out of one server.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write → its event at many watchers
    Watchers {
        #[arg(long, value_enum)]
        on: Store,
        /// host:port
        #[arg(long)]
        server: String,
        /// Its process
        #[arg(long)]
        pid: u32,
        #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
        counts: Vec<usize>,
        #[arg(long, default_value_t = 30)]
        rounds: u64,
    },
    /// A pod's change → its delta at many nodes
    Nodes {
        #[arg(long)]
        server: String,
        #[arg(long)]
        pid: u32,
        #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
        counts: Vec<usize>,
        #[arg(long, default_value_t = 30)]
        rounds: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Fairlead,
    Etcd,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Watchers { on, server, pid, counts, rounds } => {
            for count in counts {
                watchers(on, (&server, pid), (count, rounds)).await?;
            }
        }
        What::Nodes { server, pid, counts, rounds } => {
            for count in counts {
                nodes((&server, pid), (count, rounds)).await?;
            }
        }
    }
    Ok(())
}

async fn connect(server: &str, streams: usize) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..streams.div_ceil(STREAMS).max(1) {
        let endpoint = Channel::from_shared(format!("http://{server}"))?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.with_context(|| server.to_owned())?);
    }
    Ok(channels)
}

/// What a process has used so far: processor time, and the memory that it holds.
#[derive(Clone, Copy)]
struct Usage {
    cpu: Duration,
    rss_kib: u64,
}

fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15, in hundredths of a second; the second field may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).context("stat");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    Ok(Usage { cpu: Duration::from_millis((ticks(11)? + ticks(12)?) * 10), rss_kib: rss.context("VmRSS")? })
}

/// Times at which the listeners of a round heard of it.
struct Heard {
    times: mpsc::UnboundedReceiver<(u64, Instant)>,
}

impl Heard {
    /// Waits for all of a round's; milliseconds since its write began, sorted.
    async fn all(&mut self, (round, count): (u64, usize), begun: Instant) -> anyhow::Result<Vec<f64>> {
        let mut heard = Vec::with_capacity(count);
        while heard.len() < count {
            let next = tokio::time::timeout(PATIENCE, self.times.recv()).await;
            let (of, at) =
                next.with_context(|| format!("{} of {count} heard", heard.len()))?.context("all are gone")?;
            if of == round {
                heard.push(at.saturating_duration_since(begun).as_secs_f64() * 1e3);
            }
        }
        heard.sort_unstable_by(f64::total_cmp);
        Ok(heard)
    }
}

/// Prints what a number of listeners cost and got.
struct Report {
    what: String,
    count: usize,
    before: Usage,
    idle: Usage,
    begun: Usage,
    ended: Usage,
    rounds: u64,
    all: Vec<f64>,
    last: Vec<f64>,
}

impl Report {
    fn print(mut self) {
        self.all.sort_unstable_by(f64::total_cmp);
        self.last.sort_unstable_by(f64::total_cmp);
        let at = |times: &[f64], percent: usize| {
            times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let (count, rounds, kib) =
            (self.count as f64, self.rounds as f64, self.idle.rss_kib.saturating_sub(self.before.rss_kib) as f64);
        let cpu = self.ended.cpu.saturating_sub(self.begun.cpu).as_secs_f64() * 1e6 / rounds / count;
        println!(
            "{:22} {:6}: write → one of them p50 {:7.2} ms, p99 {:7.2} ms; → the last p50 {:7.2} ms, p99 {:7.2} ms; \
             the server: {cpu:6.1} µs a change and listener, {:6.1} KiB an idle listener, {} MiB in all",
            self.what,
            self.count,
            at(&self.all, 50),
            at(&self.all, 99),
            at(&self.last, 50),
            at(&self.last, 99),
            kib / count,
            self.ended.rss_kib / 1024,
        );
    }
}

async fn watchers(on: Store, (server, pid): (&str, u32), (count, rounds): (usize, u64)) -> anyhow::Result<()> {
    let before = usage(pid)?;
    let (tell, times) = mpsc::unbounded_channel();
    let channels = connect(server, count).await?;
    let opened = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..count {
        let (channel, tell, opened) = (channels[index % channels.len()].clone(), tell.clone(), opened.clone());
        take_turn(&opened, index).await?;
        tasks.spawn(async move {
            match on {
                Store::Fairlead => fairlead_watcher(channel, &tell, &opened).await,
                Store::Etcd => etcd_watcher(channel, &tell, &opened).await,
            }
        });
    }
    wait_until(&opened, count, &mut tasks).await?;
    let idle = usage(pid)?;
    let writer = connect(server, 1).await?.remove(0);
    let (mut heard, mut all, mut last) = (Heard { times }, Vec::new(), Vec::new());
    let begun = usage(pid)?;
    for round in 1..=rounds {
        let start = Instant::now();
        match on {
            Store::Fairlead => drop(annotate(&writer, round).await?),
            Store::Etcd => etcd_put(&writer, round).await?,
        }
        let times = heard.all((round, count), start).await?;
        last.extend(times.last());
        all.extend(times);
    }
    let ended = usage(pid)?;
    let what = format!("{} watchers", if on == Store::Fairlead { "fairlead" } else { "etcd" });
    Report { what, count, before, idle, begun, ended, rounds, all, last }.print();
    tasks.shutdown().await;
    // The server lets go of the streams.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// Waits until few enough of those before are still being opened.
async fn take_turn(opened: &AtomicU64, index: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    while index as u64 >= opened.load(Ordering::Relaxed) + OPENING {
        ensure!(begun.elapsed() < PATIENCE, "no more streams are opened: {index} are asked for");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn wait_until(
    opened: &AtomicU64,
    count: usize,
    tasks: &mut tokio::task::JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while opened.load(Ordering::Relaxed) < count as u64 {
        ensure!(begun.elapsed() < PATIENCE * 2, "{} of {count} are there", opened.load(Ordering::Relaxed));
        if let Some(ended) = tasks.try_join_next() {
            ended??;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

type Tell = mpsc::UnboundedSender<(u64, Instant)>;

fn service(round: u64) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "fan", "namespace": "default", "annotations": {"round": round.to_string()}},
        "spec": {"selector": {"app": "fan"}, "ports": [{"port": 80, "targetPort": 8080}]}
    })
}

async fn apply(channel: &Channel, object: &serde_json::Value, status: bool) -> anyhow::Result<u64> {
    let input = Some(Input { form: Some(input::Form::ManifestJson(object.to_string())) });
    let options = Some(WriteOptions { status, ..WriteOptions::default() });
    let request = ApplyRequest { input, options };
    Ok(ObjectsClient::new(channel.clone()).apply(request).await?.into_inner().revision)
}

async fn annotate(channel: &Channel, round: u64) -> anyhow::Result<u64> {
    apply(channel, &service(round), false).await
}

async fn fairlead_watcher(channel: Channel, tell: &Tell, opened: &AtomicU64) -> anyhow::Result<()> {
    let request = WatchRequest { kind: Kind::Service as i32, namespace: "default".into(), ..WatchRequest::default() };
    let mut events = ObjectsClient::new(channel).watch(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        let at = Instant::now();
        if event.initial_events_end {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        let round = event.object.as_ref().and_then(|object| object.metadata().annotations.get("round")?.parse().ok());
        if let Some(round) = round {
            let _ = tell.send((round, at));
        }
    }
    Ok(())
}

/// etcd's `WatchRequest` with a `WatchCreateRequest` for one key.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdWatch {
    #[prost(message, optional, tag = "1")]
    create: Option<EtcdKey>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EtcdKey {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EtcdPut {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// etcd's `WatchResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdEvents {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<EtcdEvent>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EtcdEvent {
    #[prost(message, optional, tag = "2")]
    kv: Option<EtcdValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EtcdValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

/// Any answer; nothing of it is read.
#[derive(Clone, PartialEq, prost::Message)]
struct EtcdAnswer {}

const ETCD_KEY: &[u8] = b"/fan";

async fn etcd_put(channel: &Channel, round: u64) -> anyhow::Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    // About as long as the service.
    let value = format!("{round} {:0>400}", "").into_bytes();
    let request = tonic::Request::new(EtcdPut { key: ETCD_KEY.to_vec(), value });
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    grpc.unary(request, path, tonic_prost::ProstCodec::<EtcdPut, EtcdAnswer>::default()).await?;
    Ok(())
}

async fn etcd_watcher(channel: Channel, tell: &Tell, opened: &AtomicU64) -> anyhow::Result<()> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    // The stream stays open as long as its body.
    let (_open, rest) = mpsc::channel::<EtcdWatch>(1);
    let first = EtcdWatch { create: Some(EtcdKey { key: ETCD_KEY.to_vec() }) };
    let body = futures::StreamExt::chain(tokio_stream::once(first), tokio_stream::wrappers::ReceiverStream::new(rest));
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = tonic_prost::ProstCodec::<EtcdWatch, EtcdEvents>::default();
    let mut events = grpc.streaming(tonic::Request::new(body), path, codec).await?.into_inner();
    while let Some(answer) = events.message().await? {
        let at = Instant::now();
        if answer.created {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        for event in answer.events {
            let value = event.kv.map(|kv| kv.value).unwrap_or_default();
            let round = String::from_utf8_lossy(&value).split(' ').next().and_then(|round| round.parse().ok());
            let _ = tell.send((round.unwrap_or(0), at));
        }
    }
    Ok(())
}

fn pod(round: u64) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "fan", "namespace": "default", "labels": {"app": "fan"}},
        "spec": {"containers": [{"name": "c", "image": "none"}]},
        "status": {
            "podIP": "10.244.9.9", "phase": "Running",
            "conditions": [{"type": "Ready", "status": if round.is_multiple_of(2) { "True" } else { "False" }}]
        }
    })
}

async fn nodes((server, pid): (&str, u32), (count, rounds): (usize, u64)) -> anyhow::Result<()> {
    let writer = connect(server, 1).await?.remove(0);
    annotate(&writer, 0).await?;
    apply(&writer, &pod(0), false).await?;
    let before = usage(pid)?;
    let (tell, times) = mpsc::unbounded_channel();
    let channels = connect(server, count).await?;
    let (opened, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..count {
        let (channel, tell) = (channels[index % channels.len()].clone(), tell.clone());
        let counts = (opened.clone(), bytes.clone());
        take_turn(&opened, index).await?;
        tasks.spawn(async move { node(channel, index, &tell, counts).await });
    }
    wait_until(&opened, count, &mut tasks).await?;
    // Node objects come in while the streams open; then all is quiet.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = usage(pid)?;
    let (mut heard, mut all, mut last) = (Heard { times }, Vec::new(), Vec::new());
    let begun = usage(pid)?;
    bytes.store(0, Ordering::Relaxed);
    for round in 1..=rounds {
        let start = Instant::now();
        let revision = apply(&writer, &pod(round), true).await?;
        let times = heard.all((revision, count), start).await?;
        last.extend(times.last());
        all.extend(times);
    }
    let ended = usage(pid)?;
    Report { what: "fairlead nodes".into(), count, before, idle, begun, ended, rounds, all, last }.print();
    let sent = bytes.load(Ordering::Relaxed) / rounds / count as u64;
    println!("{:22} {count:6}: {sent} bytes a change and node", "");
    tasks.shutdown().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// A node that acknowledges what it gets, and programs nothing.
async fn node(
    channel: Channel,
    index: usize,
    tell: &Tell,
    (opened, bytes): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> anyhow::Result<()> {
    let hello = Hello {
        node_name: format!("fan-{index}"),
        mode: "dry-run".into(),
        renew_seconds: 30,
        grace_seconds: GRACE,
        node_ips: vec![format!("10.{}.{}.{}", 128 + index / 65_536, index / 256 % 256, index % 256)],
        ..Hello::default()
    };
    let (up, messages) = mpsc::channel(8);
    up.send(AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) }).await?;
    let body = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut down = NodeSyncClient::new(channel).sync(body).await?.into_inner();
    let mut first = true;
    while let Some(message) = down.message().await? {
        let at = Instant::now();
        bytes.fetch_add(message.encoded_len() as u64, Ordering::Relaxed);
        let Some(server_message::Kind::Delta(delta)) = message.kind else { continue };
        if delta.more {
            continue;
        }
        let applied = Applied { revision: delta.to, took_us: 1 };
        up.send(AgentMessage { kind: Some(agent_message::Kind::Applied(applied)) }).await?;
        if std::mem::take(&mut first) {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        let _ = tell.send((delta.to, at));
    }
    Ok(())
}
