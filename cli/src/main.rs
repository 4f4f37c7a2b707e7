//! `fairlead`, the one binary: `server`, `agent`, `dev`, and the client's verbs.

mod agent;
mod client;
mod dev;
mod server;
mod settings;
mod systemd;
mod telemetry;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Kubernetes Services for plain hosts.
#[derive(Parser)]
#[command(
    name = "fairlead",
    version,
    about,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    global: client::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server: state, consensus, API and DNS
    Server(Box<server::ServerArgs>),
    /// Run this node's agent: rules, probes, lease
    Agent(Box<agent::AgentArgs>),
    /// Run everything in one process, for trying things out
    Dev(Box<dev::DevArgs>),
    #[command(flatten)]
    Client(client::Verb),
}

fn main() -> ExitCode {
    let matches = Cli::command().try_get_matches();
    let name = matches.as_ref().ok().and_then(|matches| matches.subcommand_name()).unwrap_or_default().to_owned();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(said) => {
            let _ = said.print();
            // Help and version are answers; anything else is kubectl's 1 and not clap's 2.
            return if said.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(dispatch(name, cli));
    // Blocking tasks (a probe's connect, say) must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}

fn runtime(command: &Command) -> std::io::Result<Runtime> {
    match command {
        Command::Client(_) => Builder::new_current_thread().enable_all().build(),
        // However many cores a node has: what takes long has threads of its own.
        Command::Agent(_) => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        Command::Server(_) | Command::Dev(_) => Builder::new_multi_thread().enable_all().build(),
    }
}

async fn dispatch(name: String, cli: Cli) -> ExitCode {
    let Cli { global, command } = cli;
    let ended = match command {
        Command::Client(verb) => return client::run(global, (name, verb)).await,
        Command::Server(args) => server::main(&global, *args).await,
        Command::Agent(args) => agent::main(&global, *args).await,
        Command::Dev(args) => dev::main(&global, *args).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Cancelled by SIGINT or SIGTERM; a second signal ends the process at once.
fn signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = cancel.clone();
    tokio::spawn(async move {
        for round in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if round > 0 {
                // As kill -9: an orderly exit would pull RocksDB's globals from under its threads.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            }
            token.cancel();
        }
    });
    Ok(cancel)
}
