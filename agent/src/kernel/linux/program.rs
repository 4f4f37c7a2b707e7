//! Runs a program in a network namespace. Arguments are typed values only; there is no shell.

use crate::kernel::KernelError;
use nix::sched::{CloneFlags, setns};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `work` on a thread of its own inside a network namespace; `None` = the process's, on this thread.
///
/// # Errors
/// [`KernelError::Namespace`] if it can't be entered.
pub fn in_namespace<T: Send>(namespace: Option<&Path>, work: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
    let Some(path) = namespace else {
        return Ok(work());
    };
    let entered = || -> std::io::Result<T> {
        let file = std::fs::File::open(path)?;
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    let joined = std::thread::scope(|scope| scope.spawn(entered).join());
    let result = joined.unwrap_or_else(|_| Err(std::io::Error::other("its thread panicked")));
    result.map_err(|source| KernelError::Namespace { path: path.display().to_string(), source })
}

/// A switch of the kernel's, by its path below `/proc/sys/net`: true if it is there and not 0.
#[must_use]
pub fn is_switched_on(namespace: Option<&Path>, path: &str) -> bool {
    let file = Path::new("/proc/sys/net").join(path);
    let read = in_namespace(namespace, || std::fs::read_to_string(&file));
    matches!(read, Ok(Ok(text)) if text.trim() != "0")
}

/// Runs a program to its end, with input, and gives what it printed.
pub(super) fn run(
    namespace: Option<&Path>,
    program: &str,
    (arguments, input): (&[&str], &str),
) -> Result<String, KernelError> {
    in_namespace(namespace, || run_here(program, arguments, input))?
}

fn run_here(program: &str, arguments: &[&str], input: &str) -> Result<String, KernelError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => {
            KernelError::Missing { program: program.to_owned(), package: package_of(program) }
        }
        _ => KernelError::Run { program: program.to_owned(), source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    // Written from a second thread: a program that prints before it has read all would wait for us for ever.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(KernelError::Failed { program: program.to_owned(), message: with_line(said, input) })
}

/// The Debian package that has a program.
fn package_of(program: &str) -> &'static str {
    match program {
        "nft" => "nftables",
        _ => "iptables",
    }
}

/// Adds the line of input that a message like "line 4 failed" means.
fn with_line(said: String, input: &str) -> String {
    let number = said
        .split("line ")
        .nth(1)
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok());
    match number.and_then(|number| input.lines().nth(number.checked_sub(1)?)) {
        Some(line) => format!("{said} (line: {line})"),
        None => said,
    }
}
