//! A member's certificates: where they come from at a start, and how they are kept fresh while it runs.
//!
//! At a start: the files of before; else authorities that were put into `pki/ca`, or are made there for a cluster of one;
//! else a join token. Later: the authorities of the state sign anew at two thirds of a certificate's life, and whenever
//! they change. New connections use what is newest; open ones go on.

use crate::machine::State;
use crate::machine::access::AUTHORITIES;
use crate::pki::Purpose;
use crate::pki::authority::{self, SignError, Subject};
use crate::pki::files::Folder;
use crate::pki::identity::ADMINS;
use crate::pki::listener::Security;
use crate::raft::Consensus;
use crate::write::{Writer, now_ms};
use fairlead_proto::internal::v1::{AccessRecord, Authority, PutAccess, access_record, command};
use fairlead_proto::tls::{self, Credentials, TlsError, Transport};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Life of an administrator's certificate that is made with the authorities.
const ADMIN_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Between two looks at the certificates, at most.
const LOOK: Duration = Duration::from_secs(600);

/// What a member is told about its certificates.
#[derive(Clone, Debug)]
pub struct PkiConfig {
    /// The member.
    pub name: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Names and addresses at which clients find it.
    pub names: Vec<String>,
    /// Life of the certificates that it signs for members and nodes.
    pub life: Duration,
    /// The cluster begins with this member alone: it may make the authorities.
    pub alone: bool,
    /// Where the administrator's first configuration points, host:port.
    pub grpc_address: String,
}

/// Why a member has no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Files.
    #[error("certificates: {0}")]
    Files(#[from] std::io::Error),
    /// Signing.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Using.
    #[error("certificates: {0}")]
    Tls(#[from] TlsError),
    /// There is nothing to start from.
    #[error(
        "this member has no certificates, and a cluster of several founders can't make its authorities by itself: make them once by `fairlead cert init DIR` and put DIR's ca/ into {0} of each founder; or start one member alone and let the others --join it with a token; or say --insecure"
    )]
    Nothing(String),
}

/// A member's certificates.
pub struct Keeper {
    config: PkiConfig,
    folder: Folder,
    held: Mutex<[Credentials; 2]>,
    faces: [RwLock<Arc<ServerConfig>>; 2],
    /// Towards other members.
    pub peers: Transport,
}

impl Keeper {
    /// With the certificates of before, or from authorities at hand.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn open(config: PkiConfig) -> Result<Self, PkiError> {
        let folder = Folder::of(&config.data_dir)?;
        let mut held = [folder.credentials(Purpose::Peer)?, folder.credentials(Purpose::Client)?];
        if held.iter().any(Option::is_none) {
            let authorities =
                [founding(&folder, Purpose::Peer, &config)?, founding(&folder, Purpose::Client, &config)?];
            for (at, purpose) in Purpose::ALL.into_iter().enumerate() {
                let own = own(&config, purpose, std::slice::from_ref(&authorities[at]))?;
                folder.keep(purpose, &own)?;
                held[at] = Some(own);
            }
            write_admin(&config, std::slice::from_ref(&authorities[1]))?;
        }
        let [Some(peer), Some(client)] = held else {
            return Err(PkiError::Nothing(folder.authorities().display().to_string()));
        };
        Self::holding(config, folder, [peer, client])
    }

    /// With certificates that others signed: a member that joins.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn joined(config: PkiConfig, held: [Credentials; 2]) -> Result<Self, PkiError> {
        let folder = Folder::of(&config.data_dir)?;
        for (purpose, credentials) in Purpose::ALL.into_iter().zip(&held) {
            folder.keep(purpose, credentials)?;
        }
        Self::holding(config, folder, held)
    }

    /// Whether a data directory has certificates, or authorities to make them.
    ///
    /// # Errors
    /// Files'.
    pub fn is_there(data_dir: &Path) -> Result<bool, PkiError> {
        let folder = Folder::of(data_dir)?;
        Ok(folder.credentials(Purpose::Peer)?.is_some() || folder.authority(Purpose::Peer)?.is_some())
    }

    fn holding(config: PkiConfig, folder: Folder, held: [Credentials; 2]) -> Result<Self, PkiError> {
        let faces = [
            RwLock::new(Arc::new(face(Purpose::Peer, &held[0])?)),
            RwLock::new(Arc::new(face(Purpose::Client, &held[1])?)),
        ];
        let peers = Transport::tls(tls::client_config(&held[0])?);
        Ok(Self { config, folder, held: Mutex::new(held), faces, peers })
    }

    /// How the listener of a purpose speaks.
    #[must_use]
    pub fn security(self: &Arc<Self>, purpose: Purpose) -> Security {
        let keeper = self.clone();
        Security::Tls(Arc::new(move || {
            keeper.faces[index(purpose)].read().unwrap_or_else(PoisonError::into_inner).clone()
        }))
    }

    /// Own certificates of the moment, with what leads to an authority.
    #[must_use]
    pub fn credentials(&self, purpose: Purpose) -> Credentials {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)[index(purpose)].clone()
    }

    /// Keeps the certificates fresh, and hands authorities at hand over to the cluster.
    pub async fn run(self: Arc<Self>, consensus: Consensus, writer: Writer, cancel: CancellationToken) {
        let mut states = consensus.subscribe();
        loop {
            let state = states.borrow_and_update().state.clone();
            if let Err(error) = self.look(&state, &consensus, &writer).await {
                tracing::error!(%error, "this member's certificates can't be kept fresh");
            }
            let known = fingerprint(&state);
            let changed = states.wait_for(|snapshot| fingerprint(&snapshot.state) != known);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(self.pause()) => {}
                changed = changed => if changed.is_err() { return },
            }
        }
    }

    async fn look(&self, state: &State, consensus: &Consensus, writer: &Writer) -> Result<(), PkiError> {
        if state.settings().cluster_id.is_empty() {
            return Ok(());
        }
        for purpose in Purpose::ALL {
            let authorities = authorities(state, purpose);
            if authorities.is_empty() {
                if consensus.is_leader()
                    && let Some(authority) = self.folder.authority(purpose)?
                {
                    let record = Some(AccessRecord { kind: Some(access_record::Kind::Authority(authority)) });
                    let put = command::Kind::PutAccess(PutAccess { record, create: true });
                    if let Err(error) = writer.propose(put).await {
                        tracing::debug!(%error, "the authority is not with the cluster yet");
                    }
                }
                continue;
            }
            self.freshen(purpose, &authorities)?;
        }
        if Purpose::ALL.into_iter().all(|purpose| !authorities(state, purpose).is_empty()) {
            self.folder.drop_authorities()?;
        }
        Ok(())
    }

    /// Signs this member's certificate anew, if it is time or the authorities changed.
    fn freshen(&self, purpose: Purpose, authorities: &[Authority]) -> Result<(), PkiError> {
        let held = self.credentials(purpose);
        if held.ca == authority::bundle(authorities)
            && !tls::is_due(&held.certificate, i64::try_from(now_ms() / 1_000).unwrap_or(i64::MAX))
        {
            return Ok(());
        }
        let fresh = own(&self.config, purpose, authorities)?;
        self.folder.keep(purpose, &fresh)?;
        let config = Arc::new(face(purpose, &fresh)?);
        *self.faces[index(purpose)].write().unwrap_or_else(PoisonError::into_inner) = config;
        if purpose == Purpose::Peer {
            self.peers.renew(tls::client_config(&fresh)?);
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner)[index(purpose)] = fresh;
        tracing::info!(purpose = purpose.name(), "this member's certificate is new");
        Ok(())
    }

    fn pause(&self) -> Duration {
        (self.config.life / 12).clamp(Duration::from_secs(1), LOOK)
    }

    /// Life of the certificates that this member signs for members and nodes.
    #[must_use]
    pub fn life(&self) -> Duration {
        self.config.life
    }
}

/// A purpose's authorities in the state, oldest generation first.
#[must_use]
pub fn authorities(state: &State, purpose: Purpose) -> Vec<Authority> {
    let records = state.access(&format!("{AUTHORITIES}{}/", purpose.name()));
    let authority = |record: &Arc<AccessRecord>| match &record.kind {
        Some(access_record::Kind::Authority(authority)) => Some(authority.clone()),
        _ => None,
    };
    records.filter_map(|(_, record)| authority(record)).collect()
}

fn fingerprint(state: &State) -> (bool, Vec<String>) {
    let keys = state.access(AUTHORITIES).map(|(key, _)| key.clone()).collect();
    (state.settings().cluster_id.is_empty(), keys)
}

fn index(purpose: Purpose) -> usize {
    match purpose {
        Purpose::Peer => 0,
        Purpose::Client => 1,
    }
}

/// The authority to start with: one that was put there, or a new one if the cluster begins with this member.
fn founding(folder: &Folder, purpose: Purpose, config: &PkiConfig) -> Result<Authority, PkiError> {
    if let Some(authority) = folder.authority(purpose)? {
        return Ok(authority);
    }
    if !config.alone {
        return Err(PkiError::Nothing(folder.authorities().display().to_string()));
    }
    let made = authority::new_authority(purpose, None, now_ms())?;
    folder.put_authority(&made)?;
    Ok(made)
}

/// This member's own certificate.
fn own(config: &PkiConfig, purpose: Purpose, authorities: &[Authority]) -> Result<Credentials, PkiError> {
    let (subject, names) = match purpose {
        Purpose::Peer => (Subject::Peer(config.name.clone()), Vec::new()),
        Purpose::Client => (Subject::Server(config.name.clone()), config.names.clone()),
    };
    let (key, request) = tls::certificate_request(&names)?;
    let certificate = authority::sign(authorities, &subject, &request, (now_ms(), config.life))?;
    Ok(Credentials { ca: authority::bundle(authorities), certificate, key })
}

/// How a listener speaks: members only on the members' port; elsewhere a certificate may be missing, but not be wrong.
fn face(purpose: Purpose, credentials: &Credentials) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(tls::roots(&credentials.ca)?, tls::provider());
    let verifier = match purpose {
        Purpose::Peer => verifier.build(),
        Purpose::Client => verifier.allow_unauthenticated().build(),
    };
    let verifier = verifier.map_err(|error| TlsError::Verifier(error.to_string()))?;
    let chain = tls::certificates(&credentials.certificate, "the certificate")?;
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, tls::private_key(&credentials.key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The administrator's first configuration: whoever may read the first member's data directory.
fn write_admin(config: &PkiConfig, authorities: &[Authority]) -> Result<(), PkiError> {
    let text = admin_config(authorities, std::slice::from_ref(&config.grpc_address))?;
    Ok(tls::write_private(&config.data_dir.join("admin.yaml"), &text)?)
}

/// A client configuration of a new administrator (JSON, which is YAML).
///
/// # Errors
/// [`PkiError`].
pub fn admin_config(authorities: &[Authority], servers: &[String]) -> Result<String, PkiError> {
    let (key, request) = tls::certificate_request(&[])?;
    let subject = Subject::User("admin".into(), vec![ADMINS.into()]);
    let certificate = authority::sign(authorities, &subject, &request, (now_ms(), ADMIN_LIFE))?;
    let credentials = Credentials { ca: authority::bundle(authorities), certificate, key };
    Ok(client_config(("fairlead", "admin"), servers, &credentials))
}

/// A client configuration with one context, in kubeconfig's shape.
#[must_use]
pub fn client_config((cluster, user): (&str, &str), servers: &[String], credentials: &Credentials) -> String {
    let urls: Vec<String> = servers.iter().map(|server| format!("https://{server}")).collect();
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": urls.join(","), "certificate-authority-data": base64(&credentials.ca)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": base64(&credentials.certificate),
            "client-key-data": base64(&credentials.key),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user, "namespace": "default"}}],
        "current-context": cluster,
    });
    format!("{value:#}\n")
}

fn base64(pem: &str) -> String {
    data_encoding::BASE64.encode(pem.as_bytes())
}

/// Makes both authorities and an administrator's configuration in an empty folder, for several founders.
///
/// # Errors
/// [`PkiError`]; also if something is there already.
pub fn init(folder: &Path, servers: &[String]) -> Result<(), PkiError> {
    let ca = folder.join("ca");
    std::fs::create_dir_all(&ca)?;
    if std::fs::read_dir(&ca)?.next().is_some() {
        let why = format!("{} is not empty: authorities are made once", ca.display());
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, why).into());
    }
    for purpose in Purpose::ALL {
        let made = authority::new_authority(purpose, None, now_ms())?;
        tls::write_private(
            &ca.join(format!("{}.pem", purpose.name())),
            &format!("{}{}", made.certificate_pem, made.key_pem),
        )?;
        if purpose == Purpose::Client {
            tls::write_private(&folder.join("admin.yaml"), &admin_config(std::slice::from_ref(&made), servers)?)?;
        }
    }
    Ok(())
}
