//! The kernel's settings that IPVS needs to behave like the other modes, and what a host has of them.
//!
//! They are set at the start, in the network namespace that the agent programs. One that can't be set is said, not hidden.

use crate::kernel::KernelError;
use crate::kernel::linux::program::in_namespace;
use std::fmt;
use std::io;
use std::path::Path;

/// A setting below `/proc/sys/net`, and why it has to be so.
struct Setting {
    path: &'static str,
    value: &'static str,
    why: &'static str,
}

const SETTINGS: [Setting; 5] = [
    Setting { path: "ipv4/vs/conntrack", value: "1", why: "without it no client is masqueraded" },
    Setting {
        path: "ipv4/vs/expire_nodest_conn",
        value: "1",
        why: "connections to endpoints that are gone would hang instead of being cut",
    },
    Setting {
        path: "ipv4/vs/expire_quiescent_template",
        value: "1",
        why: "clients with affinity would stay with an endpoint that takes nothing new",
    },
    Setting {
        path: "ipv4/vs/conn_reuse_mode",
        value: "1",
        why: "a client's port that comes again would find its old endpoint",
    },
    Setting { path: "ipv4/ip_forward", value: "1", why: "answers of pods would not be passed on" },
];
/// IPv6 forwarding is the host's own decision: with it, a host no longer learns its routes from routers.
const REPORTED: Setting =
    Setting { path: "ipv6/conf/all/forwarding", value: "1", why: "answers of IPv6 pods are not passed on" };

/// What a host has of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name, as `sysctl` has it.
    pub name: String,
    /// What it is; `None`: this kernel doesn't have it.
    pub found: Option<String>,
    /// What it should be.
    pub wanted: &'static str,
    /// What happens otherwise.
    pub why: &'static str,
}

impl Finding {
    /// True if nothing is wrong with it.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.found.as_deref() == Some(self.wanted)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, found, wanted, why } = self;
        match found {
            Some(found) if found == wanted => write!(f, "{name} = {found}"),
            Some(found) => write!(f, "{name} = {found}, not {wanted}: {why} (sysctl -w {name}={wanted})"),
            None => write!(f, "{name} is not there: {why}"),
        }
    }
}

/// What the host, or a network namespace, has of the settings that IPVS needs. It reads and changes nothing.
///
/// # Errors
/// [`KernelError::Namespace`] if the namespace can't be entered.
pub fn preflight(namespace: Option<&Path>) -> Result<Vec<Finding>, KernelError> {
    in_namespace(namespace, || SETTINGS.iter().chain([&REPORTED]).map(|setting| finding(setting, &release())).collect())
}

/// Those that aren't as they must be; what is the host's own decision is not among them.
pub(super) fn needed(namespace: Option<&Path>) -> Result<Vec<Finding>, KernelError> {
    let all = || SETTINGS.iter().map(|setting| finding(setting, &release()));
    in_namespace(namespace, || all().filter(|finding| !finding.is_good()).collect())
}

/// Sets them; gives what isn't as it should be after that.
pub(super) fn apply(namespace: Option<&Path>) -> Result<Vec<Finding>, KernelError> {
    in_namespace(namespace, || {
        let release = release();
        for setting in &SETTINGS {
            if finding(setting, &release).found.is_some_and(|found| found != wanted(setting, &release)) {
                // What came of it is read below.
                let _ = std::fs::write(file(setting), wanted(setting, &release));
            }
        }
        let all = SETTINGS.iter().chain([&REPORTED]).map(|setting| finding(setting, &release));
        all.filter(|finding| !finding.is_good()).collect()
    })
}

fn finding(setting: &Setting, release: &str) -> Finding {
    let read: io::Result<String> = std::fs::read_to_string(file(setting));
    Finding {
        name: format!("net.{}", setting.path.replace('/', ".")),
        found: read.ok().map(|text| text.trim().to_owned()),
        wanted: wanted(setting, release),
        why: setting.why,
    }
}

fn file(setting: &Setting) -> std::path::PathBuf {
    Path::new("/proc/sys/net").join(setting.path)
}

/// Before Linux 5.9 a port that comes again waited a second with connection tracking on.
fn wanted(setting: &Setting, release: &str) -> &'static str {
    if setting.path.ends_with("conn_reuse_mode") && is_before(release, (5, 9)) { "0" } else { setting.value }
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

fn is_before(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_is_wrong_and_what_to_do() {
        let finding = |found: Option<&str>| Finding {
            name: "net.ipv4.vs.conntrack".into(),
            found: found.map(str::to_owned),
            wanted: "1",
            why: "w",
        };
        assert_eq!(finding(Some("1")).to_string(), "net.ipv4.vs.conntrack = 1");
        assert!(finding(Some("0")).to_string().contains("sysctl -w net.ipv4.vs.conntrack=1"));
        assert!(finding(None).to_string().contains("not there") && !finding(None).is_good());
    }

    #[test]
    fn releases_are_ordered_by_number() {
        for (release, old) in
            [("5.4.0-42", true), ("5.9.1", false), ("6.1.176", false), ("5.10.0", false), ("x", false)]
        {
            assert_eq!(is_before(release, (5, 9)), old, "{release}");
        }
    }
}
