//! `apply`: server-side three-way merge of manifests, and waiting until nodes serve them.

use super::manifests::{How, WriteArgs, Writing};
use super::{DryRun, Subresource};
use crate::client::failure::Failure;
use crate::client::files::Files;
use crate::client::output::print;
use crate::client::{Global, duration, programmed};
use clap::{Args, ValueEnum};
use std::time::Duration;

/// What apply can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// Every live node's kernel serves the change
    Programmed,
}

/// Flags of `apply`.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    write: WriteArgs,
    /// Return when every live node's kernel serves the change
    #[arg(long, value_enum, value_name = "programmed", num_args = 0..=1, require_equals = true, default_missing_value = "programmed")]
    wait: Option<Until>,
    /// How long to wait
    #[arg(long, default_value = "30s", value_parser = duration::parse_wait, allow_hyphen_values = true)]
    timeout: Duration,
    /// Write only the status
    #[arg(long, value_enum)]
    subresource: Option<Subresource>,
}

/// Runs it.
///
/// # Errors
/// All failures.
pub async fn run(global: &Global, args: &ApplyArgs) -> Result<(), Failure> {
    let documents = args.files.documents("apply")?;
    let session = global.session()?;
    let writing = Writing { session: &session, how: How::Apply, args: &args.write, subresource: args.subresource };
    let revision = writing.all(documents).await?;
    if args.wait.is_some() && args.write.dry_run == DryRun::None {
        let nodes = programmed::wait(&session, revision, args.timeout).await?;
        if args.write.output.is_none() {
            print(&format!(
                "revision {revision} programmed on {nodes} {}\n",
                if nodes == 1 { "node" } else { "nodes" }
            ))?;
        }
    }
    Ok(())
}
