//! Joining with a token: the server's CA is checked against the token's hash, and only then the secret is sent.

use crate::tls::{self, Credentials, SERVER_NAME, TlsError, Transport};
use crate::token::JoinToken;
use crate::v1::bootstrap_client::BootstrapClient;
use crate::v1::members_client::MembersClient;
use crate::v1::{EnrollRequest, JoinRequest, JoinResponse, RenewRequest};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(25);
/// Attempts to join, and the pause between two.
const ATTEMPTS: u32 = 30;
const AGAIN: Duration = Duration::from_secs(1);

/// Why nobody joined.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// An address that is none, no connection, or a CA that is not the token's.
    #[error("can't join through {server}: {why}")]
    Connect {
        /// Which server.
        server: String,
        /// The innermost reason.
        why: String,
    },
    /// The cluster said no.
    #[error("{server} refuses: {why}")]
    Refused {
        /// Which server.
        server: String,
        /// Its word.
        why: String,
    },
    /// No key could be made, or what came back can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What a node is given.
///
/// # Errors
/// [`EnrollError`].
pub async fn node(server: &str, token: &JoinToken, name: &str) -> Result<Credentials, EnrollError> {
    let (key, request) = tls::certificate_request(&[])?;
    let request = EnrollRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        role: "agent".into(),
        name: name.into(),
        certificate_request: request,
        ..EnrollRequest::default()
    };
    let answer = pinned(server, token).await?.enroll(request).await.map_err(|status| refused(server, &status))?;
    let answer = answer.into_inner();
    Ok(Credentials { ca: answer.ca, certificate: answer.certificate, key })
}

/// What a server is given: towards members, towards clients.
///
/// # Errors
/// [`EnrollError`].
pub async fn server(
    server: &str,
    token: &JoinToken,
    (name, names): (&str, &[String]),
) -> Result<[Credentials; 2], EnrollError> {
    let (key, request) = tls::certificate_request(names)?;
    let (peer_key, peer_request) = tls::certificate_request(&[])?;
    let request = EnrollRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        role: "server".into(),
        name: name.into(),
        certificate_request: request,
        peer_certificate_request: peer_request,
    };
    let answer = pinned(server, token).await?.enroll(request).await.map_err(|status| refused(server, &status))?;
    let answer = answer.into_inner();
    Ok([
        Credentials { ca: answer.peer_ca, certificate: answer.peer_certificate, key: peer_key },
        Credentials { ca: answer.ca, certificate: answer.certificate, key },
    ])
}

/// A node's next credentials, asked for with the ones that it has.
///
/// # Errors
/// [`EnrollError`].
pub async fn renew(server: &str, held: &Credentials) -> Result<Credentials, EnrollError> {
    let (key, certificate_request) = tls::certificate_request(&[])?;
    let mut client = connect(server, &Transport::tls(tls::client_config(held)?)).await?;
    let answer = client.renew(RenewRequest { certificate_request }).await.map_err(|status| refused(server, &status))?;
    let answer = answer.into_inner();
    Ok(Credentials { ca: answer.ca, certificate: answer.certificate, key })
}

/// A new member's place in the cluster. Tried again while the cluster has no leader.
///
/// # Errors
/// [`EnrollError`].
pub async fn join(server: &str, transport: &Transport, request: &JoinRequest) -> Result<JoinResponse, EnrollError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let answer = match channel(server, transport).await {
            Ok(channel) => MembersClient::new(channel).join(request.clone()).await,
            Err(error) => {
                last = Some(error);
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        match answer {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => {
                let again = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown);
                last = Some(refused(server, &status));
                if !again {
                    break;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
    Err(last.unwrap_or_else(|| EnrollError::Refused { server: server.to_owned(), why: "no answer".into() }))
}

async fn pinned(server: &str, token: &JoinToken) -> Result<BootstrapClient<Channel>, EnrollError> {
    connect(server, &Transport::tls(tls::pinned_config(token)?)).await
}

async fn connect(server: &str, transport: &Transport) -> Result<BootstrapClient<Channel>, EnrollError> {
    channel(server, transport).await.map(BootstrapClient::new)
}

async fn channel(server: &str, transport: &Transport) -> Result<Channel, EnrollError> {
    let failed = |error: &dyn std::error::Error| EnrollError::Connect { server: server.to_owned(), why: causes(error) };
    let endpoint = Endpoint::from_shared(format!("http://{server}")).map_err(|error| failed(&error))?;
    let endpoint = endpoint.connect_timeout(CONNECT).timeout(ANSWER);
    transport.connect(endpoint, SERVER_NAME).await.map_err(|error| failed(&error))
}

fn refused(server: &str, status: &tonic::Status) -> EnrollError {
    EnrollError::Refused { server: server.to_owned(), why: status.message().to_owned() }
}

/// The innermost reason of an error, which is what a person can act on.
fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
