//! Names of our chains: kube-proxy's, hash for hash, so that every runbook and tool finds what it knows.
//!
//! INVARIANT: [`Names::owns`] is true for exactly the names that this file can make; `diff` sweeps by it and nothing else.

use data_encoding::BASE32;
use sha2::{Digest as _, Sha256};
use std::net::SocketAddr;

/// Longest chain name that the kernel takes.
const CHAIN_BYTES: usize = 28;
/// Characters of the hash in a chain's name.
const HASH_CHARS: usize = 16;
/// Longest prefix: `-SVC-` and the hash must fit behind it.
const PREFIX_CHARS: usize = CHAIN_BYTES - HASH_CHARS - "-SVC-".len();

const FIXED: [&str; 10] = [
    "SERVICES",
    "NODEPORTS",
    "POSTROUTING",
    "MARK-MASQ",
    "EXTERNAL-SERVICES",
    "FORWARD",
    "PROXY-FIREWALL",
    "FAIRLEAD",
    "CLUSTER-IPS",
    "REJECT",
];
const HASHED: [&str; 5] = ["SVC", "SVL", "EXT", "FW", "SEP"];

/// A chain prefix that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chain prefix {0:?} must be 1 to {PREFIX_CHARS} capital letters or digits, starting with a letter")]
pub struct InvalidPrefix(pub String);

/// The names under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Default for Names {
    /// kube-proxy's.
    fn default() -> Self {
        Self { prefix: "KUBE".to_owned() }
    }
}

impl Names {
    /// Checks the prefix.
    ///
    /// # Errors
    /// [`InvalidPrefix`] if the kernel's limit on chain names would cut a name, or the prefix could swallow others' names.
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        let letters = prefix.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        let starts = prefix.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase());
        if letters && starts && prefix.len() <= PREFIX_CHARS {
            Ok(Self { prefix: prefix.to_owned() })
        } else {
            Err(InvalidPrefix(prefix.to_owned()))
        }
    }

    /// The prefix itself.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Entries for ClusterIPs, external and load-balancer addresses.
    #[must_use]
    pub fn services(&self) -> String {
        self.fixed("SERVICES")
    }
    /// Entries for NodePorts.
    #[must_use]
    pub fn node_ports(&self) -> String {
        self.fixed("NODEPORTS")
    }
    /// Masquerades what is marked.
    #[must_use]
    pub fn postrouting(&self) -> String {
        self.fixed("POSTROUTING")
    }
    /// Marks for masquerading.
    #[must_use]
    pub fn mark_masq(&self) -> String {
        self.fixed("MARK-MASQ")
    }
    /// Refuses externally visible addresses without endpoints.
    #[must_use]
    pub fn external_services(&self) -> String {
        self.fixed("EXTERNAL-SERVICES")
    }
    /// Lets our traffic through a closed FORWARD.
    #[must_use]
    pub fn forward(&self) -> String {
        self.fixed("FORWARD")
    }
    /// Drops what load-balancer source ranges don't admit.
    #[must_use]
    pub fn firewall(&self) -> String {
        self.fixed("PROXY-FIREWALL")
    }
    /// Refuses ports that a ClusterIP doesn't have, and drops addresses that no service has.
    #[must_use]
    pub fn cluster_ips(&self) -> String {
        self.fixed("CLUSTER-IPS")
    }
    /// Refuses, as the protocol does it.
    #[must_use]
    pub fn reject(&self) -> String {
        self.fixed("REJECT")
    }
    /// Says that the other chains of this prefix are ours and not a kube-proxy's.
    #[must_use]
    pub fn marker(&self) -> String {
        self.fixed("FAIRLEAD")
    }
    /// kube-proxy's own mark of presence.
    #[must_use]
    pub fn canary(&self) -> String {
        self.fixed("PROXY-CANARY")
    }

    /// Balances over the endpoints of a service port: `KUBE-SVC-…`.
    #[must_use]
    pub fn cluster(&self, port_name: &str, protocol: &str) -> String {
        self.hashed("SVC", &[port_name, protocol])
    }
    /// The same over this node's endpoints: `KUBE-SVL-…`.
    #[must_use]
    pub fn local(&self, port_name: &str, protocol: &str) -> String {
        self.hashed("SVL", &[port_name, protocol])
    }
    /// Takes traffic from outside the cluster: `KUBE-EXT-…`.
    #[must_use]
    pub fn external(&self, port_name: &str, protocol: &str) -> String {
        self.hashed("EXT", &[port_name, protocol])
    }
    /// Admits load-balancer source ranges: `KUBE-FW-…`.
    #[must_use]
    pub fn source_ranges(&self, port_name: &str, protocol: &str) -> String {
        self.hashed("FW", &[port_name, protocol])
    }
    /// Rewrites the destination to one endpoint: `KUBE-SEP-…`.
    #[must_use]
    pub fn endpoint(&self, port_name: &str, protocol: &str, endpoint: SocketAddr) -> String {
        self.hashed("SEP", &[port_name, protocol, &endpoint.to_string()])
    }

    /// True for every name that this type makes (except the canary's).
    #[must_use]
    pub fn owns(&self, chain: &str) -> bool {
        let Some(rest) = chain.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('-')) else {
            return false;
        };
        FIXED.contains(&rest)
            || rest.split_once('-').is_some_and(|(family, hash)| {
                HASHED.contains(&family)
                    && hash.len() == HASH_CHARS
                    && hash.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
            })
    }

    fn fixed(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn hashed(&self, family: &str, parts: &[&str]) -> String {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part.as_bytes());
        }
        let mut hash = BASE32.encode(&hasher.finalize());
        hash.truncate(HASH_CHARS);
        format!("{}-{family}-{hash}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("KUBE").unwrap()
    }

    #[test]
    fn hashes_are_kube_proxys() {
        for (port_name, protocol, hash) in [
            ("default/kubernetes:https", "tcp", "NPX46M4PTMTKRN6Y"),
            ("kube-system/kube-dns:dns", "udp", "TCOU7JCQXEZGVUNU"),
            ("kube-system/kube-dns:dns-tcp", "tcp", "ERIFXISQEP7F7OF4"),
            ("default/nginx-service", "tcp", "V2OKYYMBY3REGZOG"),
        ] {
            assert_eq!(names().cluster(port_name, protocol), format!("KUBE-SVC-{hash}"));
            assert_eq!(names().local(port_name, protocol), format!("KUBE-SVL-{hash}"));
            assert_eq!(names().external(port_name, protocol), format!("KUBE-EXT-{hash}"));
        }
        let endpoint = "10.244.1.2:80".parse().unwrap();
        assert_eq!(names().endpoint("default/nginx-service", "tcp", endpoint), "KUBE-SEP-MNKVGFJKVZSSJG7K");
    }

    #[test]
    fn owns_what_it_makes_and_nothing_of_others() {
        let names = names();
        let endpoint = "[fd00::1]:80".parse().unwrap();
        for ours in [
            names.services(),
            names.node_ports(),
            names.postrouting(),
            names.mark_masq(),
            names.external_services(),
            names.forward(),
            names.firewall(),
            names.marker(),
            names.cluster("a/b", "tcp"),
            names.local("a/b", "tcp"),
            names.external("a/b", "tcp"),
            names.source_ranges("a/b", "tcp"),
            names.endpoint("a/b", "tcp", endpoint),
        ] {
            assert!(names.owns(&ours), "{ours}");
            assert!(ours.len() <= CHAIN_BYTES, "{ours}");
            assert!(!Names::new("FL").unwrap().owns(&ours));
        }
        for other in [
            "KUBE-FIREWALL",
            "KUBE-MARK-DROP",
            "KUBE-KUBELET-CANARY",
            "KUBE-PROXY-CANARY",
            "KUBE-SVC-short",
            "KUBE-ROUTER-SERVICES",
            "DOCKER",
            "INPUT",
            "KUBE",
            "KUBE-",
        ] {
            assert!(!names.owns(other), "{other}");
        }
    }

    #[test]
    fn a_prefix_must_leave_room_for_the_hash() {
        assert!(Names::new("FLEADXX").is_ok());
        for wrong in ["", "FAIRLEAD", "kube", "K-", "1K", "K K"] {
            assert!(Names::new(wrong).is_err(), "{wrong}");
        }
    }
}
