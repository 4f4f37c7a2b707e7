//! The load program of `make bench` for Kubernetes' API: lists as kubectl asks for them and watches, each beside the same over
//! gRPC. It measures and prints; it judges nothing.

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{ApplyRequest, EventType, Input, Kind, ListRequest, WatchRequest, WriteOptions, input};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Lists and watches of one server's two faces.
#[derive(Parser)]
struct Args {
    /// host:port of its gRPC
    #[arg(long)]
    grpc: String,
    /// host:port of its HTTPS, in plaintext
    #[arg(long)]
    https: String,
    /// Its process, for the time that it takes
    #[arg(long)]
    pid: u32,
    #[arg(long, default_value_t = 100)]
    services: usize,
    #[arg(long, default_value_t = 16)]
    clients: usize,
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    #[arg(long, default_value_t = 1000)]
    watchers: usize,
    #[arg(long, default_value_t = 30)]
    changes: usize,
}

/// A face of the server.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Face {
    Grpc,
    Table,
    Json,
}

impl Face {
    fn name(self) -> &'static str {
        match self {
            Self::Grpc => "gRPC",
            Self::Table => "REST, Table",
            Self::Json => "REST, JSON",
        }
    }
}

const SPACE: &str = "default";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut objects = grpc(&args).await?;
    for number in 0..args.services {
        apply(&mut objects, &format!("kube-{number}"), 0).await?;
    }
    println!("lists of {} services, {} clients", args.services, args.clients);
    for face in [Face::Grpc, Face::Table, Face::Json] {
        lists(&args, face).await?;
    }
    println!("{} watchers, {} changes", args.watchers, args.changes);
    for face in [Face::Grpc, Face::Json, Face::Table] {
        watches(&args, face).await?;
    }
    Ok(())
}

async fn grpc(args: &Args) -> anyhow::Result<ObjectsClient<tonic::transport::Channel>> {
    let client = ObjectsClient::connect(format!("http://{}", args.grpc)).await?;
    Ok(client.max_decoding_message_size(64 << 20))
}

async fn apply(objects: &mut ObjectsClient<tonic::transport::Channel>, name: &str, round: usize) -> anyhow::Result<()> {
    let manifest = format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","annotations":{{"round":"{round}"}}}},"spec":{{"selector":{{"app":"{name}"}},"ports":[{{"name":"http","port":80,"targetPort":8080}}]}}}}"#
    );
    let input = Some(Input { form: Some(input::Form::ManifestJson(manifest)) });
    objects.apply(ApplyRequest { input, options: Some(WriteOptions::default()) }).await?;
    Ok(())
}

async fn connect(args: &Args) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(&args.https).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(args: &Args, face: Face, query: &str) -> anyhow::Result<hyper::Request<Empty<Bytes>>> {
    let accept = if face == Face::Table { TABLE } else { "application/json" };
    let uri = format!("/api/v1/namespaces/{SPACE}/services?{query}");
    Ok(hyper::Request::get(uri).header("host", &args.https).header("accept", accept).body(Empty::new())?)
}

async fn lists(args: &Args, face: Face) -> anyhow::Result<()> {
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let before = cpu(args.pid)?;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..args.clients {
        let done = done.clone();
        match face {
            Face::Grpc => {
                let mut objects = grpc(args).await?;
                clients.spawn(async move {
                    while Instant::now() < until {
                        let asked = ListRequest {
                            kind: Kind::Service as i32,
                            namespace: SPACE.into(),
                            ..ListRequest::default()
                        };
                        ensure!(!objects.list(asked).await?.into_inner().items.is_empty(), "an empty list");
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
            Face::Table | Face::Json => {
                let mut sender = connect(args).await?;
                let (https, grpc) = (args.https.clone(), args.grpc.clone());
                let own = Args { https, grpc, ..*args };
                clients.spawn(async move {
                    while Instant::now() < until {
                        let answer = sender.send_request(request(&own, face, "limit=500")?).await?;
                        ensure!(answer.status() == 200, "{}", answer.status());
                        let bytes = answer.into_body().collect().await?.to_bytes();
                        ensure!(bytes.len() > 1_000, "a short list");
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                });
            }
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let count = done.load(Ordering::Relaxed);
    let spent = cpu(args.pid)? - before;
    println!(
        "  {:12} {:6.0} lists/s, {:5.0} us of the server's CPU each",
        face.name(),
        count as f64 / args.seconds as f64,
        spent * 1e6 / count.max(1) as f64
    );
    Ok(())
}

/// Watchers that each hear of every change; what it costs the server.
async fn watches(args: &Args, face: Face) -> anyhow::Result<()> {
    let (heard, mut news) = mpsc::unbounded_channel();
    let mut watching = tokio::task::JoinSet::new();
    // Some connections of gRPC, each with many streams, as its clients do; one a watcher for HTTP/1.1.
    let mut channels = Vec::new();
    for _ in 0..args.watchers.div_ceil(500) {
        channels.push(grpc(args).await?);
    }
    for number in 0..args.watchers {
        let heard = heard.clone();
        match face {
            Face::Grpc => {
                let mut objects = channels[number % channels.len()].clone();
                let asked =
                    WatchRequest { kind: Kind::Service as i32, namespace: SPACE.into(), ..WatchRequest::default() };
                let mut stream = objects.watch(asked).await?.into_inner();
                watching.spawn(async move {
                    let mut begun = false;
                    while let Ok(Some(event)) = stream.message().await {
                        match event.r#type() {
                            EventType::Bookmark => begun = true,
                            EventType::Modified if begun => drop(heard.send(())),
                            _ => {}
                        }
                    }
                });
            }
            Face::Table | Face::Json => {
                let mut sender = connect(args).await?;
                let answer =
                    sender.send_request(request(args, face, "watch=true&resourceVersion=0&allowWatchBookmarks=true")?);
                let mut body = answer.await?.into_body();
                watching.spawn(async move {
                    let _kept = sender;
                    let mut left = Vec::new();
                    while let Some(Ok(frame)) = body.frame().await {
                        left.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
                        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
                            if left.starts_with(b"{\"type\":\"MODIFIED\"") {
                                let _ = heard.send(());
                            }
                            left.drain(..=end);
                        }
                    }
                });
            }
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut objects = grpc(args).await?;
    let (before, mut times) = (cpu(args.pid)?, Vec::new());
    for round in 0..args.changes {
        let begun = Instant::now();
        apply(&mut objects, "kube-0", 1 + round + face as usize * 10_000).await?;
        for _ in 0..args.watchers {
            tokio::time::timeout(Duration::from_secs(10), news.recv()).await?.context("no watcher is left")?;
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let spent = (cpu(args.pid)? - before) * 1e6 / (args.changes * args.watchers) as f64;
    told(face, times, spent);
    watching.shutdown().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}

fn told(face: Face, mut times: Vec<f64>, spent: f64) {
    times.sort_by(f64::total_cmp);
    println!(
        "  {:12} write -> last watcher p50 {:.1} ms, p99 {:.1} ms; {spent:.1} us of the server's CPU a change and watcher",
        face.name(),
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
}

/// Seconds of CPU that a process has used.
fn cpu(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no such process")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: f64 = fields.get(11..13).context("a short line")?.iter().filter_map(|one| one.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}
