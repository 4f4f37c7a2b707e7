//! The client's verbs: kubectl's, with kubectl's flags, tables, messages and exit codes, over gRPC.
//!
//! Not a second API: whatever a verb knows about objects it asks the servers or `fairlead_proto`. A verb prints its
//! results on standard output and everything else on standard error.

mod changes;
mod columns;
mod config;
mod connect;
mod duration;
mod failure;
mod fetch;
mod files;
mod findings;
mod jsonpath;
mod kinds;
mod output;
mod programmed;
mod table;
mod targets;
mod verbs;
mod why;

use crate::telemetry::{self, LogFormat};
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};
use config::{Given, Target};
use connect::Servers;
use failure::Failure;
use fairlead_proto::tls::{self, Transport};
use fairlead_proto::trace;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing::{Instrument as _, Span};
use verbs::{
    about, access, apply, check, contexts, create, dataplane, debug, delete, describe, drain, events, expose, get,
    history, kubeconfig, label, members, snapshot, status, wait,
};

pub use duration::parse_timeout as parse_duration;

/// A request's time, if nobody says.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Configuration file: contexts in kubeconfig's shape (for server and agent: their settings, TOML)
    #[arg(long, global = true, env = "FAIRLEAD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Servers, tried in this order
    #[arg(long, global = true, env = "FAIRLEAD_SERVER", value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub server: Vec<String>,
    /// Speak plaintext
    #[arg(long, global = true, env = "FAIRLEAD_INSECURE", value_parser = FalseyValueParser::new())]
    pub insecure: bool,
    /// Context of the configuration file to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace to work in
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Give up on a request after this long; 0 = never [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration::parse_timeout)]
    pub request_timeout: Option<Duration>,
    /// Export traces to this OTLP collector, over gRPC: http://HOST:4317. OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and the
    /// like are heeded
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// How server, agent and dev log [default: text]
    #[arg(long, global = true, env = "FAIRLEAD_LOG_FORMAT", value_enum, value_name = "text|json")]
    pub log_format: Option<LogFormat>,
}

/// The client's verbs.
#[derive(Subcommand)]
pub enum Verb {
    /// Create or change objects so that they are as manifests say
    Apply(Box<apply::ApplyArgs>),
    /// Create objects from manifests, or a namespace or service from flags
    Create(Box<create::CreateArgs>),
    /// Replace objects by manifests
    Replace(Box<create::ReplaceArgs>),
    /// Show objects
    Get(Box<get::GetArgs>),
    /// Show objects in detail
    Describe(Box<describe::DescribeArgs>),
    /// Delete objects
    Delete(Box<delete::DeleteArgs>),
    /// Wait for a condition of objects
    Wait(Box<wait::WaitArgs>),
    /// Take pods or nodes out of service without losing a connection
    Drain(drain::DrainArgs),
    /// Make a service of a pod's or another service's selector
    Expose(Box<expose::ExposeArgs>),
    /// Change labels of objects
    Label(Box<label::LabelArgs>),
    /// Change annotations of objects
    Annotate(Box<label::LabelArgs>),
    /// Show what happened lately
    Events(events::EventsArgs),
    /// Show what changed an object, revision by revision
    History(history::HistoryArgs),
    /// Show what differs between an object at two revisions; exit code 1 if anything does
    Diff(history::DiffArgs),
    /// Make an object what it was at an earlier revision
    Rollback(history::RollbackArgs),
    /// List the resource types
    ApiResources(about::ApiResourcesArgs),
    /// Show the client's and the server's version
    Version(about::VersionArgs),
    /// Print a shell's completion script
    Completion(about::CompletionArgs),
    /// Show the members of the cluster and what its nodes acknowledged
    Status(status::StatusArgs),
    /// Show what the nodes' kernels hold, and what differs from what they should
    #[command(subcommand)]
    Dataplane(dataplane::DataplaneVerb),
    /// Show, rule by rule, what happens to a packet on a node
    Trace(verbs::trace::TraceArgs),
    /// Say why a service doesn't work, and what to do next; exit code 1 if something is wrong
    Why(verbs::why::WhyArgs),
    /// Check every node's data plane; exit code 1 if something is wrong
    Check(check::CheckArgs),
    /// Look at and change the members of the cluster
    #[command(subcommand)]
    Member(members::MemberVerb),
    /// Save the cluster's state, look at a saved one, make a new cluster of it
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotVerb),
    /// Write a file that helps others to find out what is wrong: no keys, no tokens, nothing of what objects say
    Debug(debug::DebugArgs),
    /// Operate the cluster
    #[command(subcommand)]
    Operator(members::OperatorVerb),
    /// Make, list and delete tokens that let agents and servers join
    #[command(subcommand)]
    Token(access::TokenVerb),
    /// Look at certificates, make and retire authorities
    #[command(subcommand)]
    Cert(access::CertVerb),
    /// Say who may do what
    #[command(subcommand)]
    Auth(access::AuthVerb),
    /// Make users
    #[command(subcommand)]
    User(access::UserVerb),
    /// Look at and choose contexts of the configuration file
    #[command(subcommand)]
    Config(contexts::ConfigVerb),
    /// Print a configuration for kubectl
    Kubeconfig(kubeconfig::KubeconfigArgs),
}

/// What a verb works with: servers and a namespace.
pub struct Session {
    servers: Servers,
    namespace: String,
    namespace_given: bool,
}

impl Global {
    fn target(&self) -> Result<Target, Failure> {
        let file = self.config.as_deref().map(config::read).transpose()?;
        let servers: Vec<String> = self.server.iter().filter(|server| !server.is_empty()).cloned().collect();
        let namespace = self.namespace.as_deref().filter(|name| !name.is_empty());
        let given = Given { servers: &servers, insecure: self.insecure, context: self.context.as_deref(), namespace };
        config::resolve(&given, file.as_ref())
    }

    fn session(&self) -> Result<Session, Failure> {
        let target = self.target()?;
        let transport = match &target.credentials {
            None => Transport::plain(),
            Some(credentials) => {
                let config = tls::client_config(credentials);
                Transport::tls(config.map_err(|error| Failure::local(format!("the client configuration: {error}")))?)
            }
        };
        let limit = self.request_timeout.unwrap_or(REQUEST_TIMEOUT);
        let servers = Servers::new(&target.servers, transport, limit);
        Ok(Session { servers, namespace: target.namespace, namespace_given: target.namespace_given })
    }
}

/// Runs a verb to its exit code: 0, 1 for a failure, 3 if nobody knows whether a write happened.
pub async fn run(global: Global, (name, verb): (String, Verb)) -> ExitCode {
    let telemetry = telemetry::client(&global);
    let span = match trace::is_on() {
        true => {
            tracing::info_span!(target: trace::TARGET, "cli", otel.name = format!("fairlead {name}"), otel.kind = "client")
        }
        false => Span::none(),
    };
    let done = dispatch(&global, verb).instrument(span).await;
    telemetry.end().await;
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.text();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn dispatch(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Apply(args) => apply::run(global, &args).await,
        Verb::Create(args) => create::run(global, *args).await,
        Verb::Replace(args) => create::replace(global, &args).await,
        Verb::Get(args) => get::run(global, &args).await,
        Verb::Describe(args) => describe::run(global, &args).await,
        Verb::Delete(args) => delete::run(global, &args).await,
        Verb::Wait(args) => wait::run(global, &args).await,
        Verb::Drain(args) => drain::run(global, &args).await,
        Verb::Expose(args) => expose::run(global, &args).await,
        Verb::Label(args) => label::run(global, &args, label::LABELS).await,
        Verb::Annotate(args) => label::run(global, &args, label::ANNOTATIONS).await,
        Verb::Events(args) => events::run(global, &args).await,
        Verb::History(args) => history::run(global, &args).await,
        Verb::Diff(args) => history::diff(global, &args).await,
        Verb::Rollback(args) => history::rollback(global, &args).await,
        Verb::ApiResources(args) => about::api_resources(&args),
        Verb::Version(args) => about::version(global, &args).await,
        Verb::Completion(args) => about::completion(&args),
        Verb::Status(args) => status::run(global, &args).await,
        Verb::Dataplane(verb) => dataplane::run(global, verb).await,
        Verb::Trace(args) => verbs::trace::run(global, &args).await,
        Verb::Why(args) => verbs::why::run(global, &args).await,
        Verb::Check(args) => check::run(global, &args).await,
        Verb::Member(verb) => members::member(global, verb).await,
        Verb::Snapshot(verb) => snapshot::run(global, verb).await,
        Verb::Debug(args) => debug::run(global, &args).await,
        Verb::Operator(verb) => members::operator(global, verb).await,
        Verb::Token(verb) => access::token(global, verb).await,
        Verb::Cert(verb) => access::cert(global, verb).await,
        Verb::Auth(verb) => access::auth(global, verb).await,
        Verb::User(verb) => access::user(global, verb).await,
        Verb::Config(verb) => contexts::run(global, verb),
        Verb::Kubeconfig(args) => kubeconfig::run(global, &args),
    }
}

/// Writes a client configuration whose one context reaches these servers (host:port) in plaintext.
///
/// # Errors
/// The file can't be written.
pub fn write_client_config(path: &Path, servers: &[String]) -> anyhow::Result<()> {
    config::write_value(path, &config::dev_config(servers))
        .map_err(|failure| anyhow::anyhow!(failure.text().trim_start_matches("error: ").to_owned()))
}

/// Writes a configuration with which kubectl reaches a server's HTTPS port in plaintext.
///
/// # Errors
/// The file can't be written.
pub fn write_kubeconfig(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let namespace = fairlead_proto::model::DEFAULT_NAMESPACE.to_owned();
    let target = Target { servers: Vec::new(), namespace, namespace_given: false, credentials: None };
    config::write_value(path, &config::kubeconfig(&format!("http://{address}"), &target))
        .map_err(|failure| anyhow::anyhow!(failure.text().trim_start_matches("error: ").to_owned()))
}
