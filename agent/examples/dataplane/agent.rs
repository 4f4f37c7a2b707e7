//! The whole agent, as users run it: from a delta received to its acknowledgement, under load, with its CPU, memory and
//! bytes on the wire. The server at the other end of its stream is here, and coalesces as ours does: one delta is
//! unacknowledged at most.

use super::services::{all, replace, vip};
use super::spread;
use fairlead_proto::v1::node_sync_server::{NodeSync, NodeSyncServer};
use fairlead_proto::v1::{
    AgentMessage, NodeDelta, ServerMessage, ServiceEndpoints, Welcome, agent_message, server_message,
};
use fairlead_proto::view::NodeView;
use prost::Message as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Changes of which each is acknowledged before the next is made, and the time between them.
const ALONE: u32 = 500;
const PAUSE: Duration = Duration::from_millis(5);
/// How long each rate of changes is kept up.
const LOAD: Duration = Duration::from_secs(30);
/// Items in one message of a full view, as the servers cut it.
const PART: usize = 2_000;
/// A connection that takes longer was not answered at once.
const SECOND_SYN: Duration = Duration::from_millis(900);
/// HTTP/2's and gRPC's part of every message.
const FRAMING: usize = 9 + 5;

/// Prints a row for each size.
pub fn measure(fairlead: &str, sizes: &[u32]) {
    println!(
        "\n{:22} {:>8}  {:>12} {:>20} {:>22} {:>22} {:>20} {:>14} {:>10} {:>10}",
        "the agent, nftables",
        "services",
        "cold start",
        "endpoint (p50/p99)",
        "20/s (p50/p99, CPU)",
        "1,000/s (p50/p99, CPU)",
        "digest mismatch",
        "lost meanwhile",
        "memory",
        "wire"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for size in sizes {
        runtime.block_on(one(fairlead, *size));
        super::run("nft delete table ip fairlead", "");
    }
}

async fn one(fairlead: &str, size: u32) {
    let (address, mut streams) = server().await;
    let state = std::env::temp_dir().join(format!("fairlead-bench-{}", std::process::id()));
    let mut view = NodeView::default();
    view.fold(&all(size)).expect("a view");
    let begun = Instant::now();
    let agent = Agent(start(fairlead, &address, &state));
    let mut line = streams.recv().await.expect("the agent's stream");
    line.full(&view).await;
    let cold = begun.elapsed();
    let mut round = 0;
    let mut bytes = Vec::new();
    let mut alone = Vec::new();
    for _ in 0..ALONE {
        tokio::time::sleep(PAUSE).await;
        let mut delta = change(&view, size, &mut round);
        stamp(&mut view, &mut delta);
        bytes.push(delta.encoded_len() + FRAMING);
        let sent = Instant::now();
        line.send(delta).await;
        line.applied().await;
        alone.push(sent.elapsed());
    }
    let slow = line.load(&mut view, (size, &mut round), (&agent, 20)).await;
    let fast = line.load(&mut view, (size, &mut round), (&agent, 1_000)).await;
    let memory = agent.memory();
    // A digest that isn't the view's: the agent drops its view, and asks for a full one.
    let mut wrong = change(&view, size, &mut round);
    stamp(&mut view, &mut wrong);
    wrong.digest = vec![0; 32];
    let clients = Clients::start();
    let begun = Instant::now();
    line.send(wrong).await;
    let mut line = streams.recv().await.expect("another stream");
    line.full(&view).await;
    let resync = begun.elapsed();
    let (made, lost) = clients.stop();
    bytes.sort_unstable();
    println!(
        "{:22} {size:>8}  {:>9.0} ms {:>17} ms {slow:>22} {fast:>22} {:>17.0} ms {lost:>5} of {made:>5} {:>6.1} MiB {:>5} B",
        "",
        cold.as_secs_f64() * 1e3,
        spread(alone),
        resync.as_secs_f64() * 1e3,
        memory,
        bytes[bytes.len() / 2],
    );
    drop(agent);
    let _ = std::fs::remove_dir_all(&state);
}

fn start(fairlead: &str, server: &str, state: &std::path::Path) -> Child {
    Command::new(fairlead)
        .args(["agent", "--insecure", "--server", server, "--node-name", "n", "--mode", "nftables"])
        .args(["--node-ip", "10.244.0.1", "--cluster-cidr", "10.244.0.0/16", "--state-dir"])
        .arg(state)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent")
}

/// The agent's process; ended when dropped.
struct Agent(Child);

impl Agent {
    /// CPU time so far.
    fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("a living agent");
        let ticks: u64 = text
            .rsplit(')')
            .next()
            .expect("fields")
            .split(' ')
            .skip(12)
            .take(2)
            .map(|word| word.parse::<u64>().expect("ticks"))
            .sum();
        // The kernel's unit of user space: USER_HZ, 100 everywhere.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory, MiB.
    fn memory(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a living agent");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("kB") / 1_024.0
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connections to the first service's VIP, one after another.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, u32)>,
}

impl Clients {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let vip = SocketAddr::from((vip(0), 80));
        let thread = std::thread::spawn(move || {
            let (mut made, mut lost) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let stream = TcpStream::connect_timeout(&vip, Duration::from_secs(3));
                made += 1;
                // A second SYN is sent after a second.
                lost += u32::from(stream.is_err() || begun.elapsed() > SECOND_SYN);
                std::thread::sleep(Duration::from_micros(500));
            }
            (made, lost)
        });
        Self { stop, thread }
    }

    /// How many were made, and how many of them lost a packet.
    fn stop(self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the clients")
    }
}

/// Replaces an endpoint of some service.
fn change(view: &NodeView, size: u32, round: &mut u32) -> NodeDelta {
    *round += 1;
    replace(view, size, *round)
}

/// Folds it into the server's view, whose digest it then carries.
fn stamp(view: &mut NodeView, delta: &mut NodeDelta) {
    view.fold(delta).expect("a delta that fits");
    delta.digest = view.digest();
}

/// One stream, at the server's end.
struct Line {
    inbound: Streaming<AgentMessage>,
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
}

impl Line {
    async fn say(&self, kind: server_message::Kind) {
        self.outbound.send(Ok(ServerMessage { kind: Some(kind) })).await.expect("an open stream");
    }

    async fn send(&self, delta: NodeDelta) {
        self.say(server_message::Kind::Delta(delta)).await;
    }

    /// The whole view, in parts, to its acknowledgement.
    async fn full(&mut self, view: &NodeView) {
        let welcome = Welcome { cluster_id: "bench".into(), service_cidr: "10.96.0.0/12".into(), ..Welcome::default() };
        self.say(server_message::Kind::Welcome(welcome)).await;
        for part in view.parts(PART) {
            self.send(part).await;
        }
        self.applied().await;
    }

    async fn applied(&mut self) {
        loop {
            match self.inbound.message().await.expect("an open stream").and_then(|message| message.kind) {
                Some(agent_message::Kind::Applied(_)) => return,
                Some(agent_message::Kind::Failed(failed)) => panic!("{}", failed.error),
                _ => {}
            }
        }
    }

    /// So many changes a second: from each change to the acknowledgement that covers it, and the share of a core.
    async fn load(
        &mut self,
        view: &mut NodeView,
        (size, round): (u32, &mut u32),
        (agent, rate): (&Agent, u32),
    ) -> String {
        let (begun, cpu) = (Instant::now(), agent.cpu());
        let step = Duration::from_secs(1) / rate;
        let mut times = Vec::new();
        let mut made = 0;
        while begun.elapsed() < LOAD {
            tokio::time::sleep_until((begun + step * made).into()).await;
            let from = view.revision;
            let mut due: Vec<Instant> = Vec::new();
            let mut coalesced = NodeDelta { from: Some(from), ..NodeDelta::default() };
            while begun + step * made <= Instant::now() {
                due.push(begun + step * made);
                made += 1;
                let delta = change(view, size, round);
                view.fold(&delta).expect("a delta that fits");
                coalesced.to = delta.to;
                merge(&mut coalesced.endpoints, delta.endpoints);
            }
            coalesced.digest = view.digest();
            self.send(coalesced).await;
            self.applied().await;
            times.extend(due.into_iter().map(|at| at.elapsed()));
        }
        let share = (agent.cpu() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        format!("{} ms {share:.1} %", spread(times))
    }
}

/// Of a service's endpoints, what came and went since the last acknowledgement is never sent.
fn merge(into: &mut Vec<ServiceEndpoints>, groups: Vec<ServiceEndpoints>) {
    for group in groups {
        let Some(old) = into.iter_mut().find(|old| old.service == group.service) else {
            into.push(group);
            continue;
        };
        for gone in group.remove {
            let before = old.upsert.len();
            old.upsert.retain(|endpoint| endpoint.address != gone.address);
            if old.upsert.len() == before {
                old.remove.push(gone);
            }
        }
        old.upsert.extend(group.upsert);
    }
}

#[derive(Clone)]
struct Service(mpsc::Sender<Line>);

#[tonic::async_trait]
impl NodeSync for Service {
    type SyncStream = ReceiverStream<Result<ServerMessage, Status>>;

    async fn sync(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let (outbound, stream) = mpsc::channel(64);
        let _ = self.0.send(Line { inbound: request.into_inner(), outbound }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn server() -> (String, mpsc::Receiver<Line>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let (streams, received) = mpsc::channel(4);
    let serving = tonic::transport::Server::builder().add_service(NodeSyncServer::new(Service(streams)));
    // Its own `tcp_nodelay` is not for listeners that it is given.
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    tokio::spawn(serving.serve_with_incoming(incoming));
    (address, received)
}
