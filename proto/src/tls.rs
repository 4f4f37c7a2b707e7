//! TLS as every part of Fairlead speaks it: 1.3, our own CAs, certificates on both sides.
//!
//! Servers are known by the name [`SERVER_NAME`] in their certificates and not by their addresses: only a CA of the
//! cluster gives that name away, and only to servers, so addresses may change and load balancers may stand between.

use crate::token::{JoinToken, hex};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What every server's certificate names, beside its addresses.
pub const SERVER_NAME: &str = "server.fairlead.internal";
/// Time for one TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not of what it should be.
    #[error("{what} can't be read: {why}")]
    Pem {
        /// Which.
        what: &'static str,
        /// The parser's word.
        why: String,
    },
    /// Key and certificate don't belong together, or an algorithm is not spoken.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// A verifier can't be made of these CAs.
    #[error("the CA certificates can't be used: {0}")]
    Verifier(String),
    /// A request for a certificate can't be made.
    #[error("no key or certificate request can be made: {0}")]
    Request(#[from] rcgen::Error),
}

/// Who somebody is and whom it trusts, as PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// CAs that the other side's certificate must come from.
    pub ca: String,
    /// Own certificate, and what leads from it to a CA; empty = none.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// The one set of algorithms.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Certificates of PEM text.
///
/// # Errors
/// [`TlsError::Pem`], also for none at all.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|error| TlsError::Pem { what, why: error.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Pem { what, why: "there is no certificate in it".into() });
    }
    Ok(found)
}

/// The private key of PEM text.
///
/// # Errors
/// [`TlsError::Pem`].
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| TlsError::Pem { what: "the private key", why: error.to_string() })
}

/// CAs of PEM text.
///
/// # Errors
/// [`TlsError`].
pub fn roots(pem: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, "the CA")? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

/// How a client with these credentials speaks.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(credentials: &Credentials) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = builder.with_root_certificates(roots(&credentials.ca)?);
    let mut config = if credentials.certificate.is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = certificates(&credentials.certificate, "the certificate")?;
        builder.with_client_auth_cert(chain, private_key(&credentials.key)?)?
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// How one speaks who has nothing but a token: whatever CA the server shows must be the token's.
///
/// # Errors
/// [`TlsError`].
pub fn pinned_config(token: &JoinToken) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(Pinned { ca_sha256: token.ca_sha256, provider: provider() });
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// SHA-256 of a certificate.
#[must_use]
pub fn sha256(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// Trusts the one CA whose hash it knows, if the server's chain holds it, and verifies the chain against that.
#[derive(Debug)]
struct Pinned {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().find(|one| sha256(one) == self.ca_sha256).ok_or_else(|| {
            rustls::Error::General(format!(
                "the server's CA is not the token's ({}…): it is another cluster, or somebody stands between; nothing was sent to it",
                &hex(&self.ca_sha256)[..12]
            ))
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(shown.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// How connections are made. Cheap to clone; credentials renewed in one clone are used by all, from their next
/// connection on.
#[derive(Clone, Debug, Default)]
pub struct Transport(Option<Arc<RwLock<Arc<ClientConfig>>>>);

impl Transport {
    /// Without TLS.
    #[must_use]
    pub fn plain() -> Self {
        Self(None)
    }

    /// With TLS.
    #[must_use]
    pub fn tls(config: ClientConfig) -> Self {
        Self(Some(Arc::new(RwLock::new(Arc::new(config)))))
    }

    /// Renewed credentials. Without TLS nothing happens.
    pub fn renew(&self, config: ClientConfig) {
        if let Some(held) = &self.0 {
            *held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        }
    }

    /// It speaks TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.is_some()
    }

    fn config(&self) -> Option<Arc<ClientConfig>> {
        let held = self.0.as_ref()?;
        Some(held.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Connects to `address` (host:port), where the other side must be `name`.
    ///
    /// # Errors
    /// tonic's; the innermost source says why.
    pub async fn connect(&self, endpoint: Endpoint, name: &'static str) -> Result<Channel, tonic::transport::Error> {
        match self.0 {
            None => endpoint.connect().await,
            Some(_) => endpoint.connect_with_connector(self.connector(name.to_owned())).await,
        }
    }

    /// The same at the first use, and again whenever the connection is lost.
    #[must_use]
    pub fn connect_lazy(&self, endpoint: &Endpoint, name: String) -> Channel {
        match self.0 {
            None => endpoint.connect_lazy(),
            Some(_) => endpoint.connect_with_connector_lazy(self.connector(name)),
        }
    }

    fn connector(
        &self,
        name: String,
    ) -> impl tower::Service<
        http::Uri,
        Response = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>,
        Error = std::io::Error,
        Future = impl Future<Output = std::io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>>> + Send,
    > + Send
    + 'static {
        let transport = self.clone();
        tower::service_fn(move |uri: http::Uri| {
            let (transport, name) = (transport.clone(), name.clone());
            async move {
                let config = transport.config().ok_or_else(|| std::io::Error::other("no TLS"))?;
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(7400))).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
                let handshake = TlsConnector::from(config).connect(name, tcp);
                let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no TLS handshake within 5 s");
                let stream = tokio::time::timeout(HANDSHAKE, handshake).await.map_err(late)??;
                Ok(TokioIo::new(stream))
            }
        })
    }
}

/// A new private key and a request for its certificate; the CA decides what it will say. Both as PEM.
///
/// # Errors
/// [`TlsError::Request`].
pub fn certificate_request(names: &[String]) -> Result<(String, String), TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// Two thirds of a certificate's life are over, or it can't be read.
#[must_use]
pub fn is_due(certificate: &str, now_s: i64) -> bool {
    life(certificate).is_none_or(|(from, to)| now_s.saturating_sub(from) >= to.saturating_sub(from) / 3 * 2)
}

/// When a certificate's life ends, seconds since the epoch; `None` = it can't be read.
#[must_use]
pub fn not_after(certificate: &str) -> Option<i64> {
    life(certificate).map(|(_, to)| to)
}

fn life(certificate: &str) -> Option<(i64, i64)> {
    let chain = certificates(certificate, "the certificate").ok()?;
    let (_, parsed) = X509Certificate::from_der(chain.first()?).ok()?;
    Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// Writes a file for its owner only, synced, whole or not at all.
///
/// # Errors
/// With its path.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    written().map_err(|error| {
        let _ = std::fs::remove_file(&staged);
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    })
}
