//! The `Bootstrap` and `Access` services: joining with a token, certificates, and who may do what.

use crate::api::authz::{self, Role, Verb};
use crate::api::guard::caller;
use crate::api::status;
use crate::audit::Audit;
use crate::machine::State;
use crate::machine::access::{BINDINGS, TOKENS, token_key};
use crate::pki::authority::{self, Purpose, SignError, Subject};
use crate::pki::identity::{ADMINS, Identity, RESERVED, bad_name};
use crate::pki::keeper::{Keeper, authorities};
use crate::raft::Consensus;
use crate::write::{Writer, now_ms, rfc3339};
use fairlead_proto::convert::is_dns1123_subdomain;
use fairlead_proto::internal::v1::{
    AccessRecord, Authority, Binding, DeleteAccess, JoinToken as StoredToken, PutAccess, UseToken, access_record,
    command,
};
use fairlead_proto::tls;
use fairlead_proto::token::{ID_DIGITS, JoinToken, SECRET_DIGITS, hex};
use fairlead_proto::v1::*;
use rand::RngCore as _;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A user's certificate lives this long, if nobody says, and at most ten times so long.
const USER_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Groups of one user.
const MAX_GROUPS: usize = 16;
/// Longest description of a token, bytes.
const MAX_DESCRIPTION: usize = 256;
/// Longest certificate request, bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// Both services.
#[derive(Clone)]
pub struct AccessService {
    /// This member's consensus.
    pub consensus: Consensus,
    /// Proposes.
    pub writer: Writer,
    /// This member's certificates; `None` = it speaks plaintext.
    pub keeper: Option<Arc<Keeper>>,
    /// Who changed what.
    pub audit: Option<Arc<Audit>>,
}

impl AccessService {
    async fn state(&self) -> Result<State, Status> {
        Ok(self.consensus.read().await.map_err(|error| status::unreadable(&error))?.state.clone())
    }

    fn keeper(&self) -> Result<&Arc<Keeper>, Status> {
        self.keeper.as_ref().ok_or_else(|| {
            Status::failed_precondition("this server speaks plaintext: there are no certificates, and none are needed")
        })
    }

    async fn propose(&self, command: command::Kind) -> Result<(), Status> {
        let outcome = self.writer.propose(command).await.map_err(|error| status::not_decided(&error))?;
        match outcome.rejection {
            Some(rejection) => Err(status::rejected(rejection, outcome.revision)),
            None => Ok(()),
        }
    }

    /// Notes a change before it is answered.
    fn noted<T>(&self, who: (&Identity, &str), about: &str, done: Result<T, Status>) -> Result<Response<T>, Status> {
        if let Some(audit) = &self.audit {
            audit.write_outcome(who, about, done.as_ref().map(|_| 0));
        }
        done.map(Response::new)
    }

    /// The authorities that sign for a purpose, as this member knows them once a quorum has confirmed that.
    fn signing(state: &State, purpose: Purpose) -> Result<Vec<Authority>, Status> {
        let found = authorities(state, purpose);
        if found.is_empty() {
            return Err(Status::unavailable("the cluster has no authorities yet: try again in a moment"));
        }
        Ok(found)
    }

    async fn enroll_with(&self, request: &EnrollRequest) -> Result<EnrollResponse, Status> {
        let life = self.keeper()?.life();
        let state = self.state().await?;
        let token = valid_token(&state, request)?;
        check_joiner(&state, request)?;
        let client = Self::signing(&state, Purpose::Client)?;
        let name = request.name.clone();
        let sign = |authorities: &[Authority], subject: Subject, asked: &str| {
            bounded_request(asked)?;
            authority::sign(authorities, &subject, asked, (now_ms(), life)).map_err(unsigned)
        };
        let mut answer = EnrollResponse { ca: authority::bundle(&client), ..EnrollResponse::default() };
        if request.role == "server" {
            let peer = Self::signing(&state, Purpose::Peer)?;
            answer.certificate = sign(&client, Subject::Server(name.clone()), &request.certificate_request)?;
            answer.peer_certificate = sign(&peer, Subject::Peer(name), &request.peer_certificate_request)?;
            answer.peer_ca = authority::bundle(&peer);
        } else {
            answer.certificate = sign(&client, Subject::Node(name), &request.certificate_request)?;
        }
        // The last word: a token for a single use is used up in the log, before the certificate is given.
        let by = format!("{}:{}", if request.role == "server" { "member" } else { "node" }, request.name);
        self.propose(command::Kind::UseToken(UseToken { id: token.id, secret_hash: token.secret_hash, by })).await?;
        Ok(answer)
    }

    async fn make_token(&self, request: &CreateTokenRequest) -> Result<CreateTokenResponse, Status> {
        if !matches!(request.role.as_str(), "agent" | "server") {
            return Err(status::bad_request("a token's role is agent or server"));
        }
        if request.description.len() > MAX_DESCRIPTION {
            return Err(status::bad_request(format!("a description has at most {MAX_DESCRIPTION} bytes")));
        }
        self.keeper()?;
        let state = self.state().await?;
        let authorities = Self::signing(&state, Purpose::Client)?;
        let newest = authorities.last().map(|authority| authority.certificate_pem.as_str()).unwrap_or_default();
        let chain = tls::certificates(newest, "the CA").map_err(|error| Status::internal(error.to_string()))?;
        let ca_sha256 = chain.first().map(tls::sha256).unwrap_or_default();
        let (id, secret) = (random_hex(ID_DIGITS), random_hex(SECRET_DIGITS));
        self.forget_expired(&state).await?;
        let now = now_ms();
        let stored = StoredToken {
            id: id.clone(),
            secret_hash: JoinToken::hash(&id, &secret).to_vec(),
            role: request.role.clone(),
            expires_at_ms: match request.ttl_seconds {
                0 => 0,
                seconds => now.saturating_add(seconds.saturating_mul(1_000)),
            },
            single_use: request.single_use,
            description: request.description.clone(),
            made_at_ms: now,
            ..StoredToken::default()
        };
        let record = Some(AccessRecord { kind: Some(access_record::Kind::Token(stored)) });
        self.propose(command::Kind::PutAccess(PutAccess { record, create: true })).await?;
        Ok(CreateTokenResponse { token: JoinToken { ca_sha256, id, secret }.to_string() })
    }

    async fn forget_expired(&self, state: &State) -> Result<(), Status> {
        let now = now_ms();
        for token in tokens(state).filter(|token| is_expired(token, now)) {
            self.propose(command::Kind::DeleteAccess(DeleteAccess { key: token_key(&token.id) })).await?;
        }
        Ok(())
    }

    async fn issue(&self, request: &IssueUserRequest) -> Result<IssueUserResponse, Status> {
        self.keeper()?;
        let bad = bad_subject(&request.name)
            .or_else(|| request.groups.iter().filter(|group| *group != ADMINS).find_map(|group| bad_subject(group)));
        if let Some(why) = bad {
            return Err(status::bad_request(why));
        }
        if request.groups.len() > MAX_GROUPS {
            return Err(status::bad_request(format!("a user is in at most {MAX_GROUPS} groups")));
        }
        bounded_request(&request.certificate_request)?;
        let life = match request.ttl_seconds {
            0 => USER_LIFE,
            seconds => Duration::from_secs(seconds).min(USER_LIFE * 10),
        };
        let authorities = Self::signing(&self.state().await?, Purpose::Client)?;
        let subject = Subject::User(request.name.clone(), request.groups.clone());
        let signed = authority::sign(&authorities, &subject, &request.certificate_request, (now_ms(), life));
        Ok(IssueUserResponse { certificate: signed.map_err(unsigned)?, ca: authority::bundle(&authorities) })
    }

    async fn bind_subject(&self, who: &Identity, binding: &RoleBinding) -> Result<BindResponse, Status> {
        let known = binding.subject.strip_prefix("user:").or_else(|| binding.subject.strip_prefix("group:"));
        let bad = match known {
            None => Some("a subject is user:NAME or group:NAME".to_owned()),
            Some(name) => bad_subject(name),
        };
        if let Some(why) = bad {
            return Err(status::bad_request(why));
        }
        if Role::named(&binding.role).is_none() {
            return Err(status::bad_request("a role is viewer, editor or admin"));
        }
        if !binding.namespace.is_empty() && !is_dns1123_subdomain(&binding.namespace) {
            return Err(status::bad_request(format!("{:?} is no namespace", binding.namespace)));
        }
        authz::may(&self.state().await?, who, (Verb::Admin, &binding.namespace))?;
        let stored = Binding {
            subject: binding.subject.clone(),
            role: binding.role.clone(),
            namespace: binding.namespace.clone(),
        };
        let record = Some(AccessRecord { kind: Some(access_record::Kind::Binding(stored)) });
        self.propose(command::Kind::PutAccess(PutAccess { record, create: false })).await?;
        Ok(BindResponse {})
    }

    async fn rotate(&self, purpose: &str) -> Result<RotateAuthorityResponse, Status> {
        let purpose = named_purpose(purpose)?;
        self.keeper()?;
        let known = Self::signing(&self.state().await?, purpose)?;
        let made = authority::new_authority(purpose, known.last(), now_ms()).map_err(unsigned)?;
        let generation = made.generation;
        let record = Some(AccessRecord { kind: Some(access_record::Kind::Authority(made)) });
        self.propose(command::Kind::PutAccess(PutAccess { record, create: true })).await?;
        Ok(RotateAuthorityResponse { generation })
    }

    async fn retire(&self, request: &RetireAuthorityRequest) -> Result<RetireAuthorityResponse, Status> {
        let purpose = named_purpose(&request.purpose)?;
        let life = self.keeper()?.life();
        let known = Self::signing(&self.state().await?, purpose)?;
        let at = known.iter().position(|authority| authority.generation == request.generation).ok_or_else(|| {
            Status::not_found(format!("there is no {} authority of generation {}", purpose.name(), request.generation))
        })?;
        let successor = known.get(at + 1).ok_or_else(|| {
            Status::failed_precondition("the newest authority signs: make a newer one first (`fairlead cert rotate`)")
        })?;
        let over = successor.made_at_ms.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        if !request.force && now_ms() < over {
            return Err(Status::failed_precondition(format!(
                "certificates that it signed may be in use until {}: retire it then, or say --force (nodes that have not renewed theirs must join anew; users need new certificates)",
                rfc3339(over)
            )));
        }
        let key = format!("{}{}/{:010}", crate::machine::access::AUTHORITIES, purpose.name(), request.generation);
        self.propose(command::Kind::DeleteAccess(DeleteAccess { key })).await?;
        Ok(RetireAuthorityResponse {})
    }
}

#[tonic::async_trait]
impl bootstrap_server::Bootstrap for AccessService {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        let about = format!("{} {:?} token {:?}", request.role, short(&request.name), short(&request.token_id));
        match self.enroll_with(&request).await {
            Ok(answer) => self.noted((&who, "Enroll"), &about, Ok(answer)),
            // Anybody may try: that must not push others' words out of the log.
            Err(refused) => {
                tracing::warn!(about, "nobody joined: {}", refused.message());
                Err(refused)
            }
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrollResponse>, Status> {
        let Identity::Node(name) = caller(&request) else {
            return Err(Status::failed_precondition("only nodes renew their certificates here"));
        };
        let request = request.into_inner();
        bounded_request(&request.certificate_request)?;
        let life = self.keeper()?.life();
        let authorities = Self::signing(&self.state().await?, Purpose::Client)?;
        let subject = Subject::Node(name);
        let signed = authority::sign(&authorities, &subject, &request.certificate_request, (now_ms(), life));
        let certificate = signed.map_err(unsigned)?;
        let ca = authority::bundle(&authorities);
        Ok(Response::new(EnrollResponse { certificate, ca, ..EnrollResponse::default() }))
    }
}

#[tonic::async_trait]
impl access_server::Access for AccessService {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let who = caller(&request);
        let done = self.make_token(request.get_ref()).await;
        self.noted((&who, "CreateToken"), &request.get_ref().role, done)
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let (state, now) = (self.state().await?, now_ms());
        let shown = tokens(&state).map(|token| TokenStatus {
            id: token.id.clone(),
            role: token.role.clone(),
            expires: if token.expires_at_ms == 0 { String::new() } else { rfc3339(token.expires_at_ms) },
            single_use: token.single_use,
            description: token.description.clone(),
            created: rfc3339(token.made_at_ms),
            used_by: token.used_by.clone(),
            uses: token.uses,
            expired: is_expired(token, now),
        });
        Ok(Response::new(ListTokensResponse { tokens: shown.collect() }))
    }

    async fn delete_token(
        &self,
        request: Request<DeleteTokenRequest>,
    ) -> Result<Response<DeleteTokenResponse>, Status> {
        let who = caller(&request);
        let id = &request.get_ref().id;
        let done = self.propose(command::Kind::DeleteAccess(DeleteAccess { key: token_key(id) })).await;
        self.noted((&who, "DeleteToken"), short(id), done.map(|()| DeleteTokenResponse {}))
    }

    async fn issue_user(&self, request: Request<IssueUserRequest>) -> Result<Response<IssueUserResponse>, Status> {
        let who = caller(&request);
        let done = self.issue(request.get_ref()).await;
        let about = format!("user {:?} groups {:?}", short(&request.get_ref().name), request.get_ref().groups);
        self.noted((&who, "IssueUser"), &about, done)
    }

    async fn bind(&self, request: Request<BindRequest>) -> Result<Response<BindResponse>, Status> {
        let who = caller(&request);
        let binding = request.into_inner().binding.unwrap_or_default();
        let about =
            format!("{:?} {} in {:?}", short(&binding.subject), short(&binding.role), short(&binding.namespace));
        let done = self.bind_subject(&who, &binding).await;
        self.noted((&who, "Bind"), &about, done)
    }

    async fn unbind(&self, request: Request<UnbindRequest>) -> Result<Response<UnbindResponse>, Status> {
        let who = caller(&request);
        let UnbindRequest { subject, namespace } = request.into_inner();
        let done = match authz::may(&self.state().await?, &who, (Verb::Admin, &namespace)) {
            Ok(()) => {
                let key = format!("{BINDINGS}{subject}/{namespace}");
                self.propose(command::Kind::DeleteAccess(DeleteAccess { key })).await
            }
            Err(denied) => Err(denied),
        };
        let about = format!("{:?} in {:?}", short(&subject), short(&namespace));
        self.noted((&who, "Unbind"), &about, done.map(|()| UnbindResponse {}))
    }

    async fn list_bindings(&self, _: Request<ListBindingsRequest>) -> Result<Response<ListBindingsResponse>, Status> {
        let state = self.state().await?;
        let stored = state.access(BINDINGS).filter_map(|(_, record)| match &record.kind {
            Some(access_record::Kind::Binding(binding)) => Some(binding),
            _ => None,
        });
        let built_in =
            RoleBinding { subject: format!("group:{ADMINS}"), role: "admin".into(), ..RoleBinding::default() };
        let shown = stored.map(|binding| RoleBinding {
            subject: binding.subject.clone(),
            role: binding.role.clone(),
            namespace: binding.namespace.clone(),
        });
        Ok(Response::new(ListBindingsResponse { bindings: std::iter::once(built_in).chain(shown).collect() }))
    }

    async fn can_i(&self, request: Request<CanIRequest>) -> Result<Response<CanIResponse>, Status> {
        let who = caller(&request);
        let CanIRequest { verb, namespace } = request.into_inner();
        let mut answer =
            CanIResponse { identity: who.to_string(), groups: who.groups().to_vec(), ..CanIResponse::default() };
        if verb.is_empty() {
            return Ok(Response::new(answer));
        }
        let verb = Verb::named(&verb).ok_or_else(|| status::bad_request("a verb is read, write or admin"))?;
        match authz::may(&self.state().await?, &who, (verb, &namespace)) {
            Ok(()) => answer.allowed = true,
            Err(denied) => denied.message().clone_into(&mut answer.reason),
        }
        Ok(Response::new(answer))
    }

    async fn certificates(&self, _: Request<CertificatesRequest>) -> Result<Response<CertificatesResponse>, Status> {
        let keeper = self.keeper()?;
        let state = self.state().await?;
        let member = self.consensus.status().name;
        let mut certificates = Vec::new();
        for purpose in Purpose::ALL {
            let known = authorities(&state, purpose);
            for (at, authority) in known.iter().enumerate() {
                let what = format!("{} CA", purpose.name());
                let shown = described(&authority.certificate_pem, &what);
                let (generation, signs) = (authority.generation, at + 1 == known.len());
                certificates.extend(shown.map(|shown| CertificateStatus { generation, signs, ..shown }));
            }
            let what = if purpose == Purpose::Peer { "peer" } else { "server" };
            let own = described(&keeper.credentials(purpose).certificate, what);
            certificates.extend(own.map(|shown| CertificateStatus { member: member.clone(), ..shown }));
        }
        Ok(Response::new(CertificatesResponse { certificates }))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let who = caller(&request);
        let done = self.rotate(&request.get_ref().purpose).await;
        self.noted((&who, "RotateAuthority"), short(&request.get_ref().purpose), done)
    }

    async fn retire_authority(
        &self,
        request: Request<RetireAuthorityRequest>,
    ) -> Result<Response<RetireAuthorityResponse>, Status> {
        let who = caller(&request);
        let done = self.retire(request.get_ref()).await;
        let about = format!("{} {}", short(&request.get_ref().purpose), request.get_ref().generation);
        self.noted((&who, "RetireAuthority"), &about, done)
    }
}

fn tokens(state: &State) -> impl Iterator<Item = &StoredToken> + '_ {
    state.access(TOKENS).filter_map(|(_, record)| match &record.kind {
        Some(access_record::Kind::Token(token)) => Some(token),
        _ => None,
    })
}

fn is_expired(token: &StoredToken, now_ms: u64) -> bool {
    token.expires_at_ms != 0 && token.expires_at_ms <= now_ms
}

/// The token of a request, if it opens this door. What is wrong with it is not said: that would help guessing.
fn valid_token(state: &State, request: &EnrollRequest) -> Result<StoredToken, Status> {
    let found = tokens(state).find(|token| token.id == request.token_id);
    found
        .filter(|token| JoinToken::matches(&token.id, &request.token_secret, &token.secret_hash))
        .filter(|token| token.role == request.role && !is_expired(token, now_ms()))
        .cloned()
        .ok_or_else(|| {
            Status::unauthenticated(
                "the join token is not valid for this: it is unknown, used up, expired or for another role (`fairlead token list` shows them)",
            )
        })
}

/// A name that is in use is not given to another host.
fn check_joiner(state: &State, request: &EnrollRequest) -> Result<(), Status> {
    let name = &request.name;
    if !is_dns1123_subdomain(name) {
        return Err(status::bad_request(format!("the name {name:?} is not a DNS-1123 subdomain")));
    }
    if request.role == "server" && state.members().any(|member| member.name == *name) {
        return Err(Status::already_exists(format!(
            "a member is called {name:?} already: remove it first if it is gone (`fairlead member remove {name}`), or choose another --name"
        )));
    }
    if request.role == "agent" && state.is_live(name) {
        return Err(Status::already_exists(format!(
            "the node {name:?} is live: stop its agent and wait until it counts as dead, or choose another --node-name"
        )));
    }
    Ok(())
}

fn bounded_request(request: &str) -> Result<(), Status> {
    if request.len() > MAX_REQUEST {
        return Err(status::bad_request("the certificate request is too large"));
    }
    Ok(())
}

fn unsigned(error: SignError) -> Status {
    match error {
        SignError::Request(_) => status::bad_request(error.to_string()),
        SignError::Authority(..) => Status::internal(error.to_string()),
    }
}

fn named_purpose(name: &str) -> Result<Purpose, Status> {
    Purpose::named(name).ok_or_else(|| status::bad_request("an authority is client or peer"))
}

fn bad_subject(name: &str) -> Option<String> {
    if RESERVED.iter().any(|prefix| name.starts_with(prefix)) {
        return Some(format!("the name {name:?} is reserved"));
    }
    bad_name(name).map(|why| format!("the name {:?} {why}", short(name)))
}

fn random_hex(digits: usize) -> String {
    let mut bytes = vec![0; digits / 2];
    rand::rng().fill_bytes(&mut bytes);
    hex(&bytes)
}

/// As much of what somebody sent as belongs into a log.
fn short(text: &str) -> &str {
    text.char_indices().nth(80).map_or(text, |(at, _)| &text[..at])
}

fn described(pem: &str, what: &str) -> Option<CertificateStatus> {
    let chain = tls::certificates(pem, "the certificate").ok()?;
    let first = chain.first()?;
    let (_, parsed) = X509Certificate::from_der(first).ok()?;
    let at = |seconds: i64| jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default();
    Some(CertificateStatus {
        what: what.to_owned(),
        subject: parsed.subject().to_string(),
        not_before: at(parsed.validity().not_before.timestamp()),
        not_after: at(parsed.validity().not_after.timestamp()),
        sha256: hex(&tls::sha256(first)),
        ..CertificateStatus::default()
    })
}
