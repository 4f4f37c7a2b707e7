//! `kubeconfig`: the client configuration as kubectl and its kin read it, for the servers' HTTPS port.

use crate::client::config::{Target, kubeconfig};
use crate::client::failure::Failure;
use crate::client::output::{print, yaml};
use crate::client::{Global, config};
use clap::Args;
use std::path::PathBuf;

/// Print a configuration for kubectl.
#[derive(Args, Debug)]
pub struct KubeconfigArgs {
    /// Where kubectl finds the cluster: a server's HTTPS port, or a balancer before several [default: the first server's host,
    /// port 7443]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Write it to this file instead, for its owner only
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The HTTPS port, if nobody says.
const PORT: u16 = 7443;

/// Runs it.
///
/// # Errors
/// No server is known, or the file can't be written.
pub fn run(global: &Global, args: &KubeconfigArgs) -> Result<(), Failure> {
    let target = global.target()?;
    let url = match &args.url {
        Some(url) if url.starts_with("https://") || url.starts_with("http://") => url.clone(),
        Some(url) => return Err(Failure::local(format!("--url {url:?} begins with neither https:// nor http://"))),
        None => url(&target)?,
    };
    let made = kubeconfig(&url, &target);
    match &args.output {
        Some(path) => config::write_value(path, &made),
        None => print(&yaml(&made)?),
    }
}

fn url(target: &Target) -> Result<String, Failure> {
    let server = target.servers.first().ok_or_else(|| Failure::local("no server is known"))?;
    let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host);
    let scheme = if target.credentials.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{host}:{PORT}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::tls::Credentials;

    fn target(credentials: Option<Credentials>) -> Target {
        let servers = vec!["[fd00::1]:7400".to_owned(), "10.0.0.2:7400".to_owned()];
        Target { servers, namespace: "team".into(), namespace_given: false, credentials }
    }

    #[test]
    fn it_names_the_first_server_and_holds_what_kubectl_needs() {
        let held = Credentials { ca: "CA".into(), certificate: "CERT".into(), key: "KEY".into() };
        let made = kubeconfig(&url(&target(Some(held.clone()))).unwrap(), &target(Some(held)));
        assert_eq!(made["clusters"][0]["cluster"]["server"], "https://[fd00::1]:7443");
        assert_eq!(made["clusters"][0]["cluster"]["certificate-authority-data"], "Q0E=");
        assert_eq!(made["users"][0]["user"]["client-key-data"], "S0VZ");
        assert_eq!(made["contexts"][0]["context"]["namespace"], "team");
        assert_eq!(made["current-context"], "fairlead");
        assert_eq!(url(&target(None)).unwrap(), "http://[fd00::1]:7443");
    }
}
