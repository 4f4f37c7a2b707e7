//! Who somebody is, by the certificate that it showed. Pure.

use rustls::pki_types::CertificateDer;
use std::fmt;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Names of nodes in certificates begin so (as in Kubernetes).
pub const NODE_PREFIX: &str = "system:node:";
/// Names of members.
pub const MEMBER_PREFIX: &str = "system:member:";
/// Group of all nodes.
pub const NODES: &str = "system:nodes";
/// Group of all members.
pub const MEMBERS: &str = "system:members";
/// Group whose users may do everything.
pub const ADMINS: &str = "fairlead:admins";
/// No user or group is called so by itself.
pub const RESERVED: [&str; 2] = ["system:", "fairlead:"];

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Identity {
    /// It showed no certificate.
    #[default]
    Anonymous,
    /// The server speaks plaintext: whoever reaches it may do everything.
    Unsecured,
    /// A server of the cluster.
    Member(String),
    /// A node's agent.
    Node(String),
    /// A person or program.
    User {
        /// Its name.
        name: String,
        /// Its groups.
        groups: Vec<String>,
    },
}

impl Identity {
    /// By a verified certificate: its common name, and its organisations (also joined by commas) as groups. What can't be read is nobody.
    #[must_use]
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return Self::Anonymous;
        };
        let subject = parsed.subject();
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        let organisations = subject.iter_organization().filter_map(|group| group.as_str().ok());
        let groups: Vec<String> = organisations.flat_map(|text| text.split(',')).map(str::to_owned).collect();
        let is_in = |group: &str| groups.iter().any(|one| one == group);
        match (name.strip_prefix(NODE_PREFIX), name.strip_prefix(MEMBER_PREFIX)) {
            (Some(node), _) if is_in(NODES) => Self::Node(node.to_owned()),
            (_, Some(member)) if is_in(MEMBERS) => Self::Member(member.to_owned()),
            (None, None) if !name.is_empty() => Self::User { name: name.to_owned(), groups },
            _ => Self::Anonymous,
        }
    }

    /// Its groups.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        match self {
            Self::User { groups, .. } => groups,
            _ => &[],
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Unsecured => f.write_str("unsecured"),
            Self::Member(name) => write!(f, "member:{name}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::User { name, .. } => write!(f, "user:{name}"),
        }
    }
}

/// What is wrong with a user's or group's name, if anything: it is part of stored keys and of certificates.
#[must_use]
pub fn bad_name(name: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@+".contains(&byte);
    match name {
        _ if name.is_empty() || name.len() > 64 => Some("must have 1 to 64 characters"),
        _ if !name.bytes().all(allowed) => Some("may hold letters, digits and - _ . @ + only"),
        _ => None,
    }
}
