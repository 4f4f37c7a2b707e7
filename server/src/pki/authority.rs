//! Making authorities and signing certificates. The caller says what a certificate says; of a request only the key
//! counts, and of a server's the names and addresses. No IO; keys are random, the time is an argument.

use crate::pki::identity::{MEMBER_PREFIX, MEMBERS, NODE_PREFIX, NODES};
use fairlead_proto::internal::v1::Authority;
use fairlead_proto::tls::SERVER_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use std::time::Duration;
use time::OffsetDateTime;

/// An authority's life.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of hosts differ: a certificate is good from before it was made.
const EARLIER: Duration = Duration::from_secs(300);
/// Names and addresses in one certificate.
const MAX_NAMES: usize = 64;

/// What an authority is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Members among themselves.
    Peer,
    /// Servers, nodes and users.
    Client,
}

impl Purpose {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Peer, Self::Client];

    /// As it is stored and typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Client => "client",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A server towards clients; names and addresses come from its request.
    Server(String),
    /// A member towards members.
    Peer(String),
    /// A node.
    Node(String),
    /// A user and its groups.
    User(String, Vec<String>),
}

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request.
    #[error("the certificate request can't be used: {0}")]
    Request(String),
    /// The authority itself.
    #[error("the {0} authority can't sign: {1}")]
    Authority(&'static str, String),
}

/// Name by which members know a member's certificate.
#[must_use]
pub fn peer_name(member: &str) -> String {
    format!("{member}.member.fairlead.internal")
}

/// A new authority, with the one before it if there is one.
///
/// # Errors
/// [`SignError::Authority`].
pub fn new_authority(purpose: Purpose, previous: Option<&Authority>, now_ms: u64) -> Result<Authority, SignError> {
    let failed = |error: rcgen::Error| SignError::Authority(purpose.name(), error.to_string());
    let generation = previous.map_or(1, |previous| previous.generation + 1);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    // Of its own: two clusters' authorities must not be taken for one another by their names.
    let own = uuid::Uuid::new_v4().simple().to_string();
    params.distinguished_name = name(&format!("Fairlead {} CA {generation} {}", purpose.name(), &own[..8]), &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = at(now_ms).map_err(|why| SignError::Authority(purpose.name(), why))?;
    (params.not_before, params.not_after) = (now - EARLIER, now + AUTHORITY_LIFE);
    let cross_pem = match previous {
        Some(previous) => params.signed_by(&key, &issuer(purpose, previous)?).map_err(failed)?.pem(),
        None => String::new(),
    };
    let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
    Ok(Authority {
        purpose: purpose.name().to_owned(),
        generation,
        certificate_pem,
        key_pem: key.serialize_pem(),
        cross_pem,
        made_at_ms: now_ms,
    })
}

/// Certificates of all generations, as those trust who ask now.
#[must_use]
pub fn bundle(authorities: &[Authority]) -> String {
    authorities.iter().map(|authority| authority.certificate_pem.as_str()).collect()
}

/// Signs a request by the newest of a purpose's authorities (they come in the order of their generations). The answer is
/// the chain: the certificate, what leads to older generations, and the authorities themselves.
///
/// # Errors
/// [`SignError`].
pub fn sign(
    authorities: &[Authority],
    subject: &Subject,
    request: &str,
    (now_ms, life): (u64, Duration),
) -> Result<String, SignError> {
    let purpose = if matches!(subject, Subject::Peer(_)) { Purpose::Peer } else { Purpose::Client };
    let refuse = |why: &str| SignError::Request(why.to_owned());
    let newest = authorities.last().ok_or_else(|| SignError::Authority(purpose.name(), "there is none".into()))?;
    let asked = CertificateSigningRequestParams::from_pem(request).map_err(|error| refuse(&error.to_string()))?;
    let mut params = CertificateParams::default();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let now = at(now_ms).map_err(|why| refuse(&why))?;
    (params.not_before, params.not_after) = (now - EARLIER, now + life);
    let dns = |name: &str| name.try_into().map(SanType::DnsName).map_err(|_| refuse(&format!("{name:?} is no name")));
    match subject {
        Subject::Server(member) => {
            if asked.params.subject_alt_names.len() > MAX_NAMES {
                return Err(refuse("it asks for too many names"));
            }
            let allowed = |name: &SanType| match name {
                SanType::DnsName(name) => !name.as_str().ends_with(".fairlead.internal"),
                SanType::IpAddress(_) => true,
                _ => false,
            };
            params.distinguished_name = self::name(&format!("{MEMBER_PREFIX}{member}"), &[MEMBERS]);
            params.subject_alt_names = vec![dns(SERVER_NAME)?];
            params.subject_alt_names.extend(asked.params.subject_alt_names.into_iter().filter(allowed));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        Subject::Peer(member) => {
            params.distinguished_name = self::name(&format!("{MEMBER_PREFIX}{member}"), &[MEMBERS]);
            params.subject_alt_names = vec![dns(&peer_name(member))?];
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        Subject::Node(node) => params.distinguished_name = self::name(&format!("{NODE_PREFIX}{node}"), &[NODES]),
        Subject::User(user, groups) => {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            params.distinguished_name = self::name(user, &groups);
        }
    }
    let failed = |error: rcgen::Error| SignError::Authority(purpose.name(), error.to_string());
    let signed = params.signed_by(&asked.public_key, &issuer(purpose, newest)?).map_err(failed)?;
    let crossed = authorities.iter().rev().map(|authority| authority.cross_pem.as_str());
    Ok(std::iter::once(signed.pem().as_str()).chain(crossed).collect::<String>() + &bundle(authorities))
}

fn issuer(purpose: Purpose, authority: &Authority) -> Result<Issuer<'static, KeyPair>, SignError> {
    let failed = |error: rcgen::Error| SignError::Authority(purpose.name(), error.to_string());
    let key = KeyPair::from_pem(&authority.key_pem).map_err(failed)?;
    Issuer::from_ca_cert_pem(&authority.certificate_pem, key).map_err(failed)
}

fn name(common: &str, organisations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    // rcgen writes one value of a kind.
    if !organisations.is_empty() {
        name.push(DnType::OrganizationName, organisations.join(","));
    }
    name
}

fn at(ms: u64) -> Result<OffsetDateTime, String> {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| "the clock of this host is wrong".to_owned())
}
