//! Clients that behave badly: connections that nobody uses, bytes that mean nothing, watchers that don't read.

use super::{Cure, Installed, Kind, leader};
use crate::cluster::{Cluster, GRPC, connect};
use crate::hosts::Host;
use anyhow::bail;
use fairlead_proto::v1::objects_client::ObjectsClient;
use fairlead_proto::v1::{Kind as Object, WatchRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const CONNECTIONS: usize = 500;
const WATCHERS: usize = 50;

/// Begins one of these faults; it ends by itself.
pub(super) async fn install(cluster: &Arc<Cluster>, (kind, for_ms): (Kind, u64)) -> anyhow::Result<Installed> {
    let host = leader(cluster).await?;
    let lasting = Duration::from_millis(for_ms);
    match kind {
        Kind::ConnectionStorm => drop(tokio::spawn(tokio::time::timeout(lasting, storm(host)))),
        Kind::Garbage => drop(tokio::spawn(tokio::time::timeout(lasting, garbage(host)))),
        Kind::SlowWatchers => drop(tokio::spawn(tokio::time::timeout(lasting, slow_watchers(host)))),
        _ => bail!("no fault of clients"),
    }
    Ok(Installed { hosts: vec![host], cure: Cure::Nothing })
}

/// Connections that are made, held and dropped.
async fn storm(host: Host) {
    loop {
        let mut held = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            held.extend(TcpStream::connect((host.address(), GRPC)).await.ok());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn garbage(host: Host) {
    for round in 0_u8.. {
        if let Ok(mut stream) = TcpStream::connect((host.address(), GRPC)).await {
            let begin: &[u8] = if round.is_multiple_of(2) { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" } else { b"" };
            let bytes: Vec<u8> = (0..4096_u16).map(|place| (place % 251) as u8 ^ round).collect();
            let _ = stream.write_all(begin).await;
            let _ = stream.write_all(&bytes).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Watches of everything that are opened and not read.
async fn slow_watchers(host: Host) {
    let Some(endpoint) = connect(host) else { return };
    let Ok(channel) = endpoint.connect().await else { return };
    let mut held = Vec::with_capacity(WATCHERS);
    for _ in 0..WATCHERS {
        let mut client = ObjectsClient::new(channel.clone());
        let request = WatchRequest { kind: Object::Service as i32, ..WatchRequest::default() };
        held.extend(client.watch(request).await.ok());
    }
    std::future::pending::<()>().await;
}
