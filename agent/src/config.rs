//! What an agent is told at its start.

use fairlead_proto::token::JoinToken;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use tokio::sync::Notify;

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node; a DNS-1123 subdomain.
    pub node_name: String,
    /// gRPC addresses of the servers, `host:port`; any one will do.
    pub servers: Vec<String>,
    /// Data plane.
    pub mode: Mode,
    /// Where the last view is kept across restarts.
    pub state_dir: PathBuf,
    /// Address of this node; `None` = the source address of the route to the first server.
    pub node_ip: Option<IpAddr>,
    /// Seconds between heartbeats.
    pub renew_seconds: u32,
    /// Seconds of silence after which this node counts as dead.
    pub grace_seconds: u32,
    /// Prefix of every chain: `KUBE`, unless a kube-proxy lives beside us.
    pub chain_prefix: String,
    /// Addresses of all pods of the cluster: traffic to a ClusterIP from elsewhere is masqueraded. `None`: as `pod_cidr`.
    pub cluster_cidr: Option<IpNet>,
    /// Addresses of this node's pods. `None` = unknown; with `cluster_cidr` unknown too, only hairpins and traffic to
    /// external addresses are masqueraded.
    pub pod_cidr: Option<IpNet>,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// Labels of this node.
    pub labels: BTreeMap<String, String>,
    /// File of the network namespace in which rules are kept and probes are made; `None` = the process's own. The stream
    /// to the servers stays outside.
    pub netns: Option<PathBuf>,
    /// How it speaks with the servers.
    pub security: Security,
    /// Told when its state is read and its loops run.
    pub opened: Option<Arc<Notify>>,
}

/// How an agent speaks with the servers.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// Plaintext.
    #[default]
    Plain,
    /// TLS, with the certificate of the state directory; without one, with a token to get it.
    Tls(Option<JoinToken>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            servers: Vec::new(),
            mode: Mode::Auto,
            state_dir: PathBuf::from("/var/lib/fairlead/agent"),
            node_ip: None,
            renew_seconds: 10,
            grace_seconds: 50,
            chain_prefix: "KUBE".to_owned(),
            cluster_cidr: None,
            pod_cidr: None,
            masquerade_all: false,
            labels: BTreeMap::new(),
            netns: None,
            security: Security::Plain,
            opened: None,
        }
    }
}

/// A data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// nftables where the kernel takes our rules, else IPVS, else iptables; dry-run when not root.
    Auto,
    /// iptables.
    Iptables,
    /// IPVS: virtual servers, with ipsets and a few rules of iptables.
    Ipvs,
    /// nftables: flat maps in a table of our own.
    Nftables,
    /// Rules are rendered, nothing is touched.
    DryRun,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Iptables, Self::Ipvs, Self::Nftables, Self::DryRun];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
            Self::DryRun => "dry-run",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}: choose auto, iptables, ipvs, nftables or dry-run")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_parse_as_they_print() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("IPTABLES".parse::<Mode>().is_err());
    }
}
