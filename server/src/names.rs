//! Where a server is found: the address that it tells for Kubernetes' API, and the names that its certificates carry. Pure.

use crate::config::{Config, TlsConfig};
use crate::controller::apiservers;
use std::net::{IpAddr, SocketAddr};

/// Where pods reach Kubernetes' API of this server; `None`: it speaks plaintext, or only a name is known.
#[must_use]
pub fn https_address(config: &Config, grpc_address: &str) -> Option<String> {
    config.tls.as_ref()?;
    if let Some(advertised) = &config.advertise_https {
        return Some(advertised.to_string());
    }
    let port = config.listen_https.port();
    if !config.listen_https.ip().is_unspecified() {
        return Some(config.listen_https.to_string());
    }
    host(grpc_address).parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port).to_string())
}

/// What the service `kubernetes` is called, and its address.
fn in_cluster_names(config: &Config) -> impl Iterator<Item = String> + '_ {
    let name = apiservers::NAME;
    let names = [name.to_owned(), format!("{name}.default"), format!("{name}.default.svc")];
    let full = format!("{name}.default.svc.{}", config.cluster_domain);
    let address = apiservers::address(&config.service_cidr).map(|address| address.to_string());
    names.into_iter().chain([full]).chain(address)
}

/// Every name and address at which a client may look for this server.
#[must_use]
pub fn certificate_names(config: &Config, tls: &TlsConfig, grpc_address: &str) -> Vec<String> {
    let listened = [config.listen_grpc, config.listen_https].map(|address| address.ip());
    let bound = listened.iter().filter(|ip| !ip.is_unspecified()).map(ToString::to_string);
    let own = config.initial_cluster.iter().find(|(name, _)| *name == config.name).map(|(_, address)| host(address));
    let mut names: Vec<String> =
        ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), config.name.clone()]
            .into_iter()
            .chain(bound)
            .chain(own)
            .chain([host(grpc_address)])
            .chain(in_cluster_names(config))
            .chain(tls.names.iter().cloned())
            .filter(|name| !name.is_empty())
            .collect();
    names.sort();
    names.dedup();
    names
}

fn host(address: &str) -> String {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned()
}
