//! `token`, `cert`, `auth` and `user`: who may join, who is who, and who may do what.

use crate::client::duration::parse_timeout;
use crate::client::failure::Failure;
use crate::client::output::print;
use crate::client::table::Aligner;
use crate::client::{Global, Session};
use clap::{Args, Subcommand, ValueEnum};
use fairlead_proto::tls::{self, Credentials};
use fairlead_proto::v1::{
    BindRequest, CanIRequest, CertificatesRequest, CreateTokenRequest, DeleteTokenRequest, IssueUserRequest,
    ListBindingsRequest, ListTokensRequest, RetireAuthorityRequest, RoleBinding, RotateAuthorityRequest, UnbindRequest,
};
use fairlead_server::pki::keeper;
use std::path::PathBuf;
use std::time::Duration;

/// What a token is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Joiner {
    /// Nodes
    Agent,
    /// Members
    Server,
}

/// An authority.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Purpose {
    /// Servers towards clients, nodes and users
    Client,
    /// Members among themselves
    Peer,
}

/// A role.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Role {
    /// Reads
    Viewer,
    /// Reads and writes
    Editor,
    /// Everything
    Admin,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Verb {
    /// See objects
    Read,
    /// Create, change, delete objects
    Write,
    /// Give roles, change the cluster
    Admin,
}

/// Verbs of `token`.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token that lets agents or servers join; it is shown this once
    Create(TokenArgs),
    /// List the tokens, without their secrets
    List,
    /// Make a token worthless
    Delete {
        /// Its id
        id: String,
    },
}

/// Flags of `token create`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// Who may join with it
    #[arg(long, value_enum, default_value = "agent")]
    role: Joiner,
    /// How long it is good; 0 = until it is deleted
    #[arg(long, default_value = "1h", value_parser = parse_timeout)]
    ttl: Duration,
    /// Good for one who joins
    #[arg(long)]
    single_use: bool,
    /// What it is for
    #[arg(long, default_value = "")]
    description: String,
}

/// Verbs of `cert`.
#[derive(Debug, Subcommand)]
pub enum CertVerb {
    /// Make the authorities and an administrator's configuration for several founders: DIR/ca goes into pki/ca of each
    Init {
        /// Folder to make
        dir: PathBuf,
    },
    /// Show the authorities and the answering server's certificates
    Status,
    /// Make a new generation of an authority; it signs from now on, the old one stays trusted
    Rotate {
        /// Which
        #[arg(value_enum)]
        authority: Purpose,
    },
    /// Stop trusting an old generation of an authority
    Retire {
        /// Which
        #[arg(value_enum)]
        authority: Purpose,
        /// Its generation
        generation: u32,
        /// Even if certificates that it signed may still be in use
        #[arg(long)]
        force: bool,
    },
}

/// Verbs of `auth`.
#[derive(Debug, Subcommand)]
pub enum AuthVerb {
    /// Say who you are and whether you may do something in a namespace; exit code 1 if not
    CanI {
        /// What
        #[arg(value_enum)]
        verb: Verb,
        /// In the whole cluster
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Say who you are
    Whoami,
    /// Give user:NAME or group:NAME a role in a namespace (-n), or in the whole cluster
    Bind {
        /// user:NAME or group:NAME
        subject: String,
        /// Which role
        #[arg(long, value_enum)]
        role: Role,
    },
    /// Take a role away again
    Unbind {
        /// user:NAME or group:NAME
        subject: String,
    },
    /// List who has which role
    List,
}

/// Verbs of `user`.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// Make a user's key and certificate and print its client configuration; a role is given by `auth bind`
    Create(UserArgs),
}

/// Flags of `user create`.
#[derive(Args, Debug)]
pub struct UserArgs {
    /// Its name
    name: String,
    /// A group it is in; may be given several times
    #[arg(long)]
    group: Vec<String>,
    /// Life of the certificate
    #[arg(long, default_value = "8760h", value_parser = parse_timeout)]
    ttl: Duration,
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
    let titles = titles.iter().map(|title| (*title).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(titles).chain(rows).collect();
    print(&Aligner::default().render(&rows))
}

/// Runs `token`.
///
/// # Errors
/// [`Failure`].
pub async fn token(global: &Global, verb: TokenVerb) -> Result<(), Failure> {
    let Session { servers, .. } = global.session()?;
    match verb {
        TokenVerb::Create(args) => {
            let request = CreateTokenRequest {
                role: name(args.role),
                ttl_seconds: args.ttl.as_secs(),
                single_use: args.single_use,
                description: args.description,
            };
            let made = servers.access(request, async |mut client, request| client.create_token(request).await).await?;
            print(&format!("{}\n", made.token))
        }
        TokenVerb::List => {
            let list = async |mut client: Client, request| client.list_tokens(request).await;
            let answer = servers.access(ListTokensRequest {}, list).await?;
            let rows = answer.tokens.into_iter().map(|token| {
                let expires = match (token.expired, token.expires.is_empty()) {
                    (true, _) => "<expired>".to_owned(),
                    (_, true) => "<never>".to_owned(),
                    _ => token.expires,
                };
                let uses = token.uses.to_string();
                vec![token.id, token.role, expires, yes_or_no(token.single_use), uses, token.used_by, token.description]
            });
            table(&["ID", "ROLE", "EXPIRES", "SINGLE-USE", "USES", "USED BY", "DESCRIPTION"], rows)
        }
        TokenVerb::Delete { id } => {
            let request = DeleteTokenRequest { id: id.clone() };
            servers.access(request, async |mut client, request| client.delete_token(request).await).await?;
            print(&format!("token/{id} deleted\n"))
        }
    }
}

type Client = fairlead_proto::v1::access_client::AccessClient<tonic::transport::Channel>;

/// Runs `cert`.
///
/// # Errors
/// [`Failure`].
pub async fn cert(global: &Global, verb: CertVerb) -> Result<(), Failure> {
    if let CertVerb::Init { dir } = &verb {
        let servers = if global.server.is_empty() { vec!["127.0.0.1:7400".to_owned()] } else { global.server.clone() };
        keeper::init(dir, &servers).map_err(|error| Failure::local(error.to_string()))?;
        return print(&format!(
            "authorities are in {0}/ca: copy it to pki/ca in the data directory of each founder, and keep no other copy\nthe administrator's configuration is {0}/admin.yaml\n",
            dir.display()
        ));
    }
    let Session { servers, .. } = global.session()?;
    match verb {
        CertVerb::Init { .. } => Ok(()),
        CertVerb::Status => {
            let list = async |mut client: Client, request| client.certificates(request).await;
            let answer = servers.access(CertificatesRequest {}, list).await?;
            let rows = answer.certificates.into_iter().map(|one| {
                let what = if one.member.is_empty() { one.what } else { format!("{} of {}", one.what, one.member) };
                let generation = if one.generation == 0 { String::new() } else { one.generation.to_string() };
                let signs = if one.generation == 0 { String::new() } else { yes_or_no(one.signs) };
                vec![what, generation, signs, one.not_before, one.not_after, one.sha256.chars().take(16).collect()]
            });
            table(&["CERTIFICATE", "GENERATION", "SIGNS", "FROM", "TO", "SHA-256"], rows)
        }
        CertVerb::Rotate { authority } => {
            let request = RotateAuthorityRequest { purpose: name(authority) };
            let rotate = async |mut client: Client, request| client.rotate_authority(request).await;
            let made = servers.access(request, rotate).await?;
            let (authority, generation) = (name(authority), made.generation);
            print(&format!(
                "{authority} authority generation {generation} signs now; retire generation {} when all certificates are new\n",
                generation - 1
            ))
        }
        CertVerb::Retire { authority, generation, force } => {
            let request = RetireAuthorityRequest { purpose: name(authority), generation, force };
            let retire = async |mut client: Client, request| client.retire_authority(request).await;
            servers.access(request, retire).await?;
            print(&format!("{} authority generation {generation} is trusted no longer\n", name(authority)))
        }
    }
}

/// Runs `auth`.
///
/// # Errors
/// [`Failure`]; silent if the answer is no.
pub async fn auth(global: &Global, verb: AuthVerb) -> Result<(), Failure> {
    let Session { servers, namespace, namespace_given } = global.session()?;
    let place = if namespace_given { namespace.clone() } else { String::new() };
    let can_i = async |mut client: Client, request| client.can_i(request).await;
    match verb {
        AuthVerb::CanI { verb, all_namespaces } => {
            let namespace = if all_namespaces { String::new() } else { namespace };
            let answer = servers.access(CanIRequest { verb: name(verb), namespace }, can_i).await?;
            print(&format!("{}\n", yes_or_no(answer.allowed)))?;
            if answer.allowed {
                return Ok(());
            }
            eprintln!("{}", answer.reason);
            Err(Failure::Silent)
        }
        AuthVerb::Whoami => {
            let answer = servers.access(CanIRequest::default(), can_i).await?;
            let groups =
                if answer.groups.is_empty() { String::new() } else { format!(" ({})", answer.groups.join(", ")) };
            print(&format!("{}{groups}\n", answer.identity))
        }
        AuthVerb::Bind { subject, role } => {
            let binding = RoleBinding { subject: subject.clone(), role: name(role), namespace: place.clone() };
            let bind = async |mut client: Client, request| client.bind(request).await;
            servers.access(BindRequest { binding: Some(binding) }, bind).await?;
            print(&format!("{subject} is {} {}\n", name(role), whole(&place)))
        }
        AuthVerb::Unbind { subject } => {
            let request = UnbindRequest { subject: subject.clone(), namespace: place.clone() };
            servers.access(request, async |mut client: Client, request| client.unbind(request).await).await?;
            print(&format!("{subject} has no role {} any more\n", whole(&place)))
        }
        AuthVerb::List => {
            let list = async |mut client: Client, request| client.list_bindings(request).await;
            let answer = servers.access(ListBindingsRequest {}, list).await?;
            let rows = answer.bindings.into_iter().map(|binding| {
                let place = if binding.namespace.is_empty() { "<all>".to_owned() } else { binding.namespace };
                vec![binding.subject, binding.role, place]
            });
            table(&["SUBJECT", "ROLE", "NAMESPACE"], rows)
        }
    }
}

fn whole(namespace: &str) -> String {
    if namespace.is_empty() { "of the whole cluster".to_owned() } else { format!("in namespace {namespace}") }
}

/// Runs `user`.
///
/// # Errors
/// [`Failure`].
pub async fn user(global: &Global, verb: UserVerb) -> Result<(), Failure> {
    let UserVerb::Create(args) = verb;
    let target = global.target()?;
    let Session { servers, .. } = global.session()?;
    let local = |error: tls::TlsError| Failure::local(error.to_string());
    let (key, certificate_request) = tls::certificate_request(&[]).map_err(local)?;
    let request = IssueUserRequest {
        name: args.name.clone(),
        groups: args.group,
        certificate_request,
        ttl_seconds: args.ttl.as_secs(),
    };
    let answer = servers.access(request, async |mut client: Client, request| client.issue_user(request).await).await?;
    let credentials = Credentials { ca: answer.ca, certificate: answer.certificate, key };
    print(&keeper::client_config(("fairlead", &args.name), &target.servers, &credentials))
}
