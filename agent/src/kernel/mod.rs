//! The one trait between plans and kernels, and its implementations: Linux, dry-run, and the model that tests trust.
//!
//! INVARIANT: a batch of ops that a kernel refuses changes nothing in the table that refused it.

pub mod dry_run;
pub mod linux;
pub mod model;
pub mod trace;

use crate::plan::{Observed, Op};

/// A packet filter that can be read and changed. Calls block; they may run on different threads at once.
pub trait Kernel: Send + Sync {
    /// Name of the mode, as users see it.
    fn mode(&self) -> &'static str;

    /// What it holds of ours, and its built-in chains.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be read.
    fn observe(&self) -> Result<Observed, KernelError>;

    /// Executes a batch. Forgetting flows comes last, and its failure is logged, never an error: the rules are what counts.
    ///
    /// # Errors
    /// [`KernelError`]; what it then holds must be observed.
    fn execute(&self, ops: &[Op]) -> Result<(), KernelError>;
}

/// Why a kernel couldn't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A program is missing.
    #[error("{program} is not installed: install the package iptables (Debian: apt-get install iptables)")]
    Missing {
        /// Its name.
        program: String,
    },
    /// A program couldn't be run.
    #[error("can't run {program}: {source}")]
    Run {
        /// Its name.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program}: {message}")]
    Failed {
        /// Its name.
        program: String,
        /// What it said, and the line of input that it means.
        message: String,
    },
    /// The network namespace can't be entered.
    #[error("can't enter the network namespace {path}: {source}")]
    Namespace {
        /// Its file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The model refused an op.
    #[error("{0}")]
    Refused(String),
}
