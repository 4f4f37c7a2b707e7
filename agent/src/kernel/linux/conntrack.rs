//! Forgets UDP flows by `conntrack -D`. Best effort: a host without the program keeps stale flows until they time out,
//! and is told so once.

use crate::kernel::KernelError;
use crate::kernel::linux::program;
use crate::plan::Family;
use crate::plan::flows::Flows;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// More selections than this are looked up in one listing first: each deletion reads the kernel's whole table.
const WITHOUT_LISTING: usize = 4;

static MISSING: AtomicBool = AtomicBool::new(false);

/// Forgets the selected flows.
pub(super) fn forget(namespace: Option<&Path>, flows: &[&Flows]) {
    for family in Family::ALL {
        let all: Vec<&Flows> = flows.iter().copied().filter(|flows| flows.family == family).collect();
        if let Err(error) = forget_family(namespace, family, &all) {
            report(&error);
        }
    }
}

fn forget_family(namespace: Option<&Path>, family: Family, flows: &[&Flows]) -> Result<(), KernelError> {
    if flows.is_empty() {
        return Ok(());
    }
    let list = || program::run(namespace, "conntrack", (&["-L", "-p", "udp", "-f", family_name(family)], ""));
    let text = (flows.len() > WITHOUT_LISTING).then(list).transpose()?;
    let listed = text.as_ref().map(|text| text.lines().filter_map(Seen::parse).collect::<Vec<_>>());
    for flows in flows {
        if listed.as_ref().is_none_or(|seen| seen.iter().any(|one| one.is_in(flows))) {
            forget_one(namespace, flows)?;
        }
    }
    Ok(())
}

fn forget_one(namespace: Option<&Path>, flows: &Flows) -> Result<(), KernelError> {
    let mut words: Vec<String> =
        ["-D", "-p", "udp", "-f", family_name(flows.family), "--orig-port-dst"].map(str::to_owned).to_vec();
    words.push(flows.port.to_string());
    if let Some(destination) = flows.destination {
        words.extend(["--orig-dst".to_owned(), destination.to_string()]);
    }
    if let Some(endpoint) = flows.answered_from {
        words.extend(["--reply-src".to_owned(), endpoint.ip().to_string()]);
        if endpoint.port() != 0 {
            words.extend(["--reply-port-src".to_owned(), endpoint.port().to_string()]);
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match program::run(namespace, "conntrack", (&words, "")) {
        // Nothing to forget is a failure to conntrack.
        Err(KernelError::Failed { message, .. }) if message.contains("0 flow entries have been deleted") => Ok(()),
        other => other.map(|_| ()),
    }
}

fn report(error: &KernelError) {
    match error {
        KernelError::Missing { .. } => {
            if !MISSING.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "conntrack is not installed: UDP clients may keep sending to gone endpoints until their flow times out (install the package conntrack)"
                );
            }
        }
        other => tracing::warn!(error = %other, "stale UDP flows could not be forgotten"),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// A flow as `conntrack -L` prints it: where it was sent, and who answers.
struct Seen {
    destination: IpAddr,
    port: u16,
    answered_from: SocketAddr,
}

impl Seen {
    fn parse(line: &str) -> Option<Self> {
        let value = |key: &'static str, nth| line.split(' ').filter_map(|word| word.strip_prefix(key)).nth(nth);
        Some(Self {
            destination: value("dst=", 0)?.parse().ok()?,
            port: value("dport=", 0)?.parse().ok()?,
            answered_from: SocketAddr::new(value("src=", 1)?.parse().ok()?, value("sport=", 1)?.parse().ok()?),
        })
    }

    fn is_in(&self, flows: &Flows) -> bool {
        flows.destination.is_none_or(|ip| ip == self.destination)
            && self.port == flows.port
            && flows.answered_from.is_none_or(|endpoint| {
                endpoint.ip() == self.answered_from.ip()
                    && (endpoint.port() == 0 || endpoint.port() == self.answered_from.port())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_flow_is_selected_by_where_it_went_and_who_answers() {
        let line = "udp      17 29 src=10.244.1.2 dst=10.96.0.10 sport=5353 dport=53 src=10.244.2.2 dst=10.244.1.2 sport=8053 dport=5353 [ASSURED] mark=0 use=1";
        let seen = Seen::parse(line).unwrap();
        let flows = Flows {
            family: Family::V4,
            destination: Some("10.96.0.10".parse().unwrap()),
            port: 53,
            answered_from: None,
        };
        assert!(seen.is_in(&flows));
        assert!(seen.is_in(&Flows { destination: None, ..flows.clone() }));
        assert!(seen.is_in(&Flows { answered_from: Some("10.244.2.2:8053".parse().unwrap()), ..flows.clone() }));
        assert!(seen.is_in(&Flows { answered_from: Some("10.244.2.2:0".parse().unwrap()), ..flows.clone() }));
        assert!(!seen.is_in(&Flows { answered_from: Some("10.244.3.2:8053".parse().unwrap()), ..flows.clone() }));
        assert!(!seen.is_in(&Flows { port: 54, ..flows }));
    }
}
