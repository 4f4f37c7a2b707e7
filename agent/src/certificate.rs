//! This node's certificate: got with a token, kept in the state directory, renewed at two thirds of its life.
//!
//! Nothing waits for it but the stream: rules of the last view are kept up without any server.

use crate::config::{Config, Security};
use fairlead_proto::enroll::{self, EnrollError};
use fairlead_proto::tls::{self, Credentials, TlsError, Transport, write_private};
use fairlead_proto::token::JoinToken;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// Between two looks at the certificate.
const LOOK: Duration = Duration::from_secs(60);
/// The first looks come sooner: a short life is for trying things out.
const SOON: Duration = Duration::from_secs(1);
const OWN: &str = "node.pem";
const TRUSTED: &str = "ca.pem";

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum NoCertificate {
    /// There is none, and no way to get one.
    #[error(
        "this node has no certificate: give it a token (--token or --token-file, from `fairlead token create`), or say --insecure"
    )]
    NoToken,
    /// Joining failed.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// It can't be kept.
    #[error("the certificate can't be kept: {0}")]
    Keep(#[from] io::Error),
    /// It can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The certificate.
pub struct Certificate {
    security: Security,
    node: String,
    servers: Mutex<Vec<String>>,
    dir: PathBuf,
    held: Mutex<Option<Credentials>>,
}

impl Certificate {
    /// As the state directory has it.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn open(config: &Config) -> io::Result<Self> {
        let held = match (read(&config.state_dir.join(OWN))?, read(&config.state_dir.join(TRUSTED))?) {
            (Some(own), Some(ca)) => Some(Credentials { ca, certificate: own.clone(), key: own }),
            _ => None,
        };
        Ok(Self {
            security: config.security.clone(),
            node: config.node_name.clone(),
            servers: Mutex::new(config.servers.clone()),
            dir: config.state_dir.clone(),
            held: Mutex::new(held),
        })
    }

    /// Where it is renewed from now on.
    pub fn learn(&self, servers: Vec<String>) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    /// The server of a round, one after the other.
    fn server(&self, round: usize) -> String {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.get(round % servers.len().max(1)).cloned().unwrap_or_default()
    }

    /// How to connect to a server. A node without a certificate joins there first.
    ///
    /// # Errors
    /// [`NoCertificate`].
    pub async fn transport(&self, server: &str) -> Result<Transport, NoCertificate> {
        let Security::Tls(token) = &self.security else {
            return Ok(Transport::plain());
        };
        let held = match (self.held(), token) {
            (Some(held), Some(token)) if is_over(&held) => self.join(server, token).await?,
            (Some(held), _) => held,
            (None, Some(token)) => self.join(server, token).await?,
            (None, None) => return Err(NoCertificate::NoToken),
        };
        Ok(Transport::tls(tls::client_config(&held)?))
    }

    async fn join(&self, server: &str, token: &JoinToken) -> Result<Credentials, NoCertificate> {
        let fresh = enroll::node(server, token, &self.node).await?;
        self.keep(&fresh)?;
        tracing::info!(server, node = self.node, "joined with the token");
        Ok(fresh)
    }

    /// Renews it when it is time, until cancelled; what fails is tried again.
    pub async fn run(self: std::sync::Arc<Self>, cancel: CancellationToken) {
        for round in 0_usize.. {
            if let Some(held) = self.held().filter(|held| tls::is_due(&held.certificate, now_s())) {
                let server = self.server(round);
                let renewed = enroll::renew(&server, &held).await.map_err(NoCertificate::from);
                match renewed.and_then(|fresh| Ok(self.keep(&fresh)?)) {
                    Ok(()) => tracing::info!(server, "this node's certificate is new"),
                    Err(error) => tracing::warn!(%error, "this node's certificate can't be renewed yet"),
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(if round < 60 { SOON } else { LOOK }) => {}
            }
        }
    }

    fn held(&self) -> Option<Credentials> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, fresh: &Credentials) -> io::Result<()> {
        write_private(&self.dir.join(TRUSTED), &fresh.ca)?;
        write_private(&self.dir.join(OWN), &format!("{}{}", fresh.certificate, fresh.key))?;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Ok(())
    }
}

/// Its life is over: only a token helps.
fn is_over(held: &Credentials) -> bool {
    tls::not_after(&held.certificate).is_none_or(|end| end <= now_s())
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}
