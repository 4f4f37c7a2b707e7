//! `fairlead dev` as a user starts it: the commands that it prints work when pasted, and nothing of it is left.
//!
//! Needs root, for a network namespace, and iptables, iproute2, curl and dnsutils; without them it fails, it never skips.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{FAIRLEAD, Process, eventually, free_port};
use nix::sys::signal::Signal;
use std::process::Command;
use std::time::Duration;

/// Runs a printed command; what it printed, if it succeeded.
fn paste(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let program = words.next()?;
    let output = Command::new(if program == "fairlead" { FAIRLEAD } else { program }).args(words).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_dev_prints_works_when_pasted_and_nothing_of_it_is_left() {
    assert!(nix::unistd::geteuid().is_root(), "a network namespace needs root: sudo make test");
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(FAIRLEAD);
    command.arg("dev").arg("--data-dir").arg(dir.path().join("data"));
    for face in ["grpc", "https", "dns", "metrics"] {
        command.arg(format!("--listen-{face}")).arg(format!("127.0.0.1:{}", free_port()));
    }
    let mut dev = Process::start(&mut command, dir.path().join("log"));
    let output = eventually("a line that starts with ready", || {
        Some(dev.output()).filter(|text| text.lines().any(|line| line.starts_with("ready")) && text.contains("curl"))
    });
    let line =
        |part: &str| output.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{output}")).trim();
    let listed = eventually("the seeded service", || paste(line("get svc")));
    assert!(listed.contains("echo"), "{listed}");
    let address = eventually("an answer by DNS", || paste(line("dig")).filter(|text| !text.trim().is_empty()));
    assert!(line("curl").contains(address.trim()), "{address}");
    let said = eventually("an answer through the VIP", || paste(line("curl")));
    assert!(!said.is_empty());
    let netns = line("curl").split_whitespace().nth(3).unwrap().to_owned();
    assert!(std::path::Path::new("/run/netns").join(&netns).exists());
    dev.signal(Signal::SIGTERM);
    assert!(dev.wait(Duration::from_secs(20)).expect("it ends").success(), "{}", dev.output());
    assert!(!std::path::Path::new("/run/netns").join(&netns).exists());
}
