//! A server of the test's own, which shows what agents say and sends what the test wants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use fairlead_proto::v1::node_sync_server::{NodeSync, NodeSyncServer};
use fairlead_proto::v1::{
    AgentMessage, Hello, NodeDelta, PodReadiness, ServerMessage, Welcome, agent_message::Kind, server_message,
};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(10);

/// One stream, at the server's end.
pub struct Stream {
    /// What it said first.
    pub hello: Hello,
    /// What it says.
    pub inbound: mpsc::Receiver<Kind>,
    /// Pod reports that came while an acknowledgement was waited for: their order is not fixed.
    passed: Vec<PodReadiness>,
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
}

impl Stream {
    pub async fn send(&self, kind: server_message::Kind) {
        self.outbound.send(Ok(ServerMessage { kind: Some(kind) })).await.unwrap();
    }

    pub async fn welcome(&self) {
        self.send(server_message::Kind::Welcome(Welcome {
            cluster_id: "c1".into(),
            server: "n1".into(),
            ..Welcome::default()
        }))
        .await;
    }

    pub async fn delta(&self, delta: NodeDelta) {
        self.send(server_message::Kind::Delta(delta)).await;
    }

    pub async fn next(&mut self) -> Kind {
        tokio::time::timeout(PATIENCE, self.inbound.recv()).await.expect("a message in time").expect("an open stream")
    }

    /// The next acknowledgement; other messages are passed over.
    pub async fn applied(&mut self) -> u64 {
        loop {
            match self.next().await {
                Kind::Applied(applied) => return applied.revision,
                Kind::Failed(failed) => panic!("failed: {}", failed.error),
                Kind::PodStatus(report) => self.passed.extend(report.pods),
                _ => {}
            }
        }
    }

    /// The next report of a pod that `wanted` accepts.
    pub async fn report(&mut self, name: &str, wanted: impl Fn(&PodReadiness) -> bool) -> PodReadiness {
        let fits = |pod: &PodReadiness| pod.name == name && wanted(pod);
        if let Some(index) = self.passed.iter().position(fits) {
            return self.passed.remove(index);
        }
        loop {
            if let Kind::PodStatus(report) = self.next().await
                && let Some(pod) = report.pods.into_iter().find(fits)
            {
                return pod;
            }
        }
    }
}

#[derive(Clone)]
struct Service(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl NodeSync for Service {
    type SyncStream = ReceiverStream<Result<ServerMessage, Status>>;

    async fn sync(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(AgentMessage { kind: Some(Kind::Hello(hello)) }) = inbound.message().await? else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (up, received) = mpsc::channel(1000);
        let (outbound, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(AgentMessage { kind: Some(kind) })) = inbound.message().await {
                if up.send(kind).await.is_err() {
                    return;
                }
            }
        });
        let _ = self.0.send(Stream { hello, inbound: received, passed: Vec::new(), outbound }).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A server: its address, and the streams that come.
pub async fn server() -> (String, mpsc::Receiver<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (streams, received) = mpsc::channel(10);
    let service = NodeSyncServer::new(Service(streams));
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, received)
}

/// A server that takes streams, keeps their connections alive, and never answers.
pub async fn mute() -> String {
    struct Mute;
    #[tonic::async_trait]
    impl NodeSync for Mute {
        type SyncStream = ReceiverStream<Result<ServerMessage, Status>>;

        async fn sync(&self, _: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
            std::future::pending().await
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tonic::transport::Server::builder().add_service(NodeSyncServer::new(Mute));
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

pub async fn stream(streams: &mut mpsc::Receiver<Stream>) -> Stream {
    tokio::time::timeout(PATIENCE, streams.recv()).await.expect("a stream in time").unwrap()
}
