//! One file a verb (or a few that are one): flags, what it asks of the servers, what it prints.

pub mod about;
pub mod access;
pub mod apply;
pub mod check;
pub mod contexts;
pub mod create;
pub mod dataplane;
pub mod debug;
pub mod delete;
pub mod describe;
pub mod drain;
pub mod events;
pub mod expose;
pub mod get;
pub mod history;
pub mod kubeconfig;
pub mod label;
pub mod manifests;
pub mod members;
pub mod snapshot;
pub mod sort;
pub mod status;
pub mod trace;
pub mod wait;
pub mod watch;
pub mod why;

use crate::client::failure::Failure;
use crate::client::output::{Format, Shown, print};
use clap::ValueEnum;
use fairlead_proto::v1::FieldValidation;

/// `--dry-run`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Do it
    #[default]
    None,
    /// Let a server validate and allocate, but keep nothing
    Server,
    /// Only print what would be sent
    Client,
}

impl DryRun {
    /// kubectl's suffix of a message.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Server => " (server dry run)",
            Self::Client => " (dry run)",
        }
    }
}

/// `--validate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Validate {
    /// Refuse unknown fields
    #[default]
    #[value(alias = "true")]
    Strict,
    /// Drop unknown fields and warn
    Warn,
    /// Drop unknown fields
    #[value(alias = "false")]
    Ignore,
}

impl Validate {
    /// The wire form.
    pub fn to_wire(self) -> i32 {
        let validation = match self {
            Self::Strict => FieldValidation::Strict,
            Self::Warn => FieldValidation::Warn,
            Self::Ignore => FieldValidation::Ignore,
        };
        validation as i32
    }
}

/// `--subresource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subresource {
    /// The status
    Status,
}

/// Prints what a verb did to an object: kubectl's message, or the object in a format of one's own.
///
/// # Errors
/// The format fails on it, or standard output can't be written.
pub fn report(shown: Shown, done: &str, format: &Format) -> Result<(), Failure> {
    match format {
        Format::Table { .. } => print(&format!("{} {done}\n", shown.path())),
        format => print(&format.render(&[shown], true)?),
    }
}

/// Prints a server's warnings.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("Warning: {warning}");
    }
}
