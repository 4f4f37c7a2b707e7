//! What a server is told at its start.

use crate::dns;
use crate::http::RenderMetrics;
use crate::upkeep::backups::Schedule;
use crate::upkeep::space::Limits;
use fairlead_proto::token::JoinToken;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// What a server is told.
#[derive(Clone)]
pub struct Config {
    /// Member name, unique in the cluster.
    pub name: String,
    /// Where everything is stored.
    pub data_dir: PathBuf,
    /// gRPC for clients and agents.
    pub listen_grpc: SocketAddr,
    /// Raft.
    pub listen_peer: SocketAddr,
    /// HTTPS (`/livez` and `/readyz` for now, without TLS).
    pub listen_https: SocketAddr,
    /// DNS, UDP and TCP.
    pub listen_dns: SocketAddr,
    /// `/metrics`, `/livez`, `/readyz`.
    pub listen_metrics: SocketAddr,
    /// gRPC address told to the other members; `None` = `listen_grpc`, with this member's own peer host if unspecified.
    pub advertise_grpc: Option<String>,
    /// Where pods reach Kubernetes' API of this server; `None` = `listen_https`, with the host of the gRPC address if unspecified.
    pub advertise_https: Option<SocketAddr>,
    /// Members: name, host:peerport.
    pub initial_cluster: Vec<(String, String)>,
    /// Range of ClusterIPs.
    pub service_cidr: IpNet,
    /// NodePorts, inclusive.
    pub node_ports: (u16, u16),
    /// Ranges that `spec.externalIPs` may be of; none are allowed by default.
    pub external_ip_cidrs: Vec<IpNet>,
    /// Zone that DNS answers for.
    pub cluster_domain: String,
    /// What DNS does without a quorum.
    pub dns_stale: dns::StalePolicy,
    /// Renders `/metrics`.
    pub render_metrics: RenderMetrics,
    /// TLS on every port; `None` = plaintext.
    pub tls: Option<TlsConfig>,
    /// A server of the cluster to join, host:port of its gRPC; `None` = it founds one, or has joined before.
    pub join: Option<String>,
    /// When writes that need room are refused.
    pub limits: Limits,
    /// Backups by the clock.
    pub backups: Option<Schedule>,
    /// Told when listeners and storage are open.
    pub opened: Option<Arc<Notify>>,
}

/// How a server comes by its certificates.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Life of the certificates that it signs for members and nodes.
    pub life: Duration,
    /// Names and addresses at which clients find it, beside those it listens on.
    pub names: Vec<String>,
    /// A token, for a member that joins and has no certificates yet.
    pub token: Option<JoinToken>,
    /// Who changed what; `None` = `audit.log` in the data directory.
    pub audit_log: Option<PathBuf>,
}

impl Config {
    /// The settings, for whoever looks for what is wrong: without anything secret.
    #[must_use]
    pub fn shown(&self) -> Value {
        let cluster = self.initial_cluster.iter().map(|(name, peer)| format!("{name}={peer}"));
        json!({
            "name": self.name,
            "dataDir": self.data_dir,
            "listenGrpc": self.listen_grpc,
            "listenPeer": self.listen_peer,
            "listenHttps": self.listen_https,
            "listenDns": self.listen_dns,
            "listenMetrics": self.listen_metrics,
            "advertiseGrpc": self.advertise_grpc,
            "advertiseHttps": self.advertise_https,
            "initialCluster": cluster.collect::<Vec<_>>(),
            "serviceCidr": self.service_cidr.to_string(),
            "nodePorts": format!("{}-{}", self.node_ports.0, self.node_ports.1),
            "externalIpCidrs": self.external_ip_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "clusterDomain": self.cluster_domain,
            "dnsStale": format!("{:?}", self.dns_stale),
            "join": self.join,
            "quotaBytes": self.limits.quota,
            "minFreeBytes": self.limits.min_free,
            "backupDir": self.backups.as_ref().map(|schedule| &schedule.folder),
            "backupEverySeconds": self.backups.as_ref().map(|schedule| schedule.every.as_secs()),
            "backupKeep": self.backups.as_ref().map(|schedule| schedule.keep),
            "tls": self.tls.as_ref().map(|tls| json!({
                "certificateLifeSeconds": tls.life.as_secs(),
                "names": tls.names,
                "auditLog": tls.audit_log,
                "token": tls.token.as_ref().map(|_| "<redacted>"),
            })),
        })
    }
}
