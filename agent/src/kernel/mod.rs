//! The one trait between plans and kernels, and its implementations: Linux, dry-run, and the model that tests trust.
//!
//! INVARIANT: a transaction that a kernel refuses changes nothing; what a refused batch left is found by reading it.

pub mod dry_run;
pub mod ipvs_model;
pub mod linux;
pub mod model;

use crate::plan::Plane;
use crate::reconcile::AUDIT_EVERY;
use std::time::Duration;

/// Asked every second, and told `true` when somebody else changed what is ours; the answer `false`: nobody listens any more.
pub type Notice = Box<dyn FnMut(bool) -> bool + Send>;

/// A packet filter that can be read and changed. Calls block; they may run on different threads at once.
pub trait Kernel<P: Plane>: Send + Sync {
    /// Name of the mode, as users see it.
    fn mode(&self) -> &'static str;

    /// What it holds of ours, and where that is joined to what isn't.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be read.
    fn observe(&self) -> Result<P::Observed, KernelError>;

    /// The same, for a look that comes again soon: what is dear to read may be as it was read a while ago.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be read.
    fn audit(&self) -> Result<P::Observed, KernelError> {
        self.observe()
    }

    /// Executes a batch. Flows are forgotten behind it, soon but not before it returns, and a failure of that is logged: the
    /// rules are what counts, and looking through many flows takes long.
    ///
    /// # Errors
    /// [`KernelError`]; what it then holds must be observed.
    fn execute(&self, ops: &[P::Op]) -> Result<(), KernelError>;

    /// Has `notice` called on a thread of its own, which ends when the answer is `false`.
    /// `Ok(false)`: this kernel doesn't tell.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be listened to.
    fn watch(&self, notice: Notice) -> Result<bool, KernelError> {
        drop(notice);
        Ok(false)
    }

    /// The host's settings that aren't what this mode needs, each in a sentence.
    ///
    /// # Errors
    /// [`KernelError`] if they can't be read.
    fn settings(&self) -> Result<Vec<String>, KernelError> {
        Ok(Vec::new())
    }

    /// Time between two readings of it, where they don't take long.
    fn audit_every(&self) -> Duration {
        AUDIT_EVERY
    }
}

/// Why a kernel couldn't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A program is missing.
    #[error("{program} is not installed: install the package {package} (Debian: apt-get install {package})")]
    Missing {
        /// Its name.
        program: String,
        /// The package that has it.
        package: &'static str,
    },
    /// The kernel refused a netlink request.
    #[error("netlink, {what}: {source}")]
    Netlink {
        /// What was asked.
        what: String,
        /// Why.
        source: std::io::Error,
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
    /// This host can't do it at all.
    #[error("this host lacks {0}")]
    Lacks(&'static str),
    /// The model refused an op.
    #[error("{0}")]
    Refused(String),
}
