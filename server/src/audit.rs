//! The audit log: who changed what, or was not let, one JSON object a line, written before the answer goes out.
//!
//! Append only; at a size the file is put aside, and the oldest of those is removed. A line that can't be written is
//! counted and said, and doesn't stop the cluster from being used.

use crate::pki::Identity;
use crate::write::{now_ms, rfc3339};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tonic::Status;

/// Bytes after which the file is put aside.
const MOST: u64 = 64 << 20;
/// Files that were put aside and are kept.
const KEPT: u32 = 4;

/// The log of one server.
pub struct Audit {
    path: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    bytes: u64,
}

/// What one line says.
#[derive(Clone, Debug, Default)]
pub struct Record<'a> {
    /// Time, RFC 3339.
    pub time: String,
    /// Who.
    pub identity: Identity,
    /// The RPC, `Service/Method`.
    pub rpc: &'a str,
    /// What it is about, such as `services/default/web`.
    pub object: &'a str,
    /// "ok", or the refusal's code.
    pub outcome: &'a str,
    /// Revision of the cluster after it; 0 = none.
    pub revision: u64,
    /// Why it was refused.
    pub message: &'a str,
}

impl Audit {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// With its path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = open(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), open: Mutex::new(open) })
    }

    /// Writes a line.
    pub fn write(&self, record: &Record<'_>) {
        let line = json!({
            "time": record.time,
            "identity": record.identity.to_string(),
            "groups": record.identity.groups(),
            "rpc": record.rpc,
            "object": record.object,
            "outcome": record.outcome,
            "revision": record.revision,
            "message": record.message,
        });
        let text = format!("{line}\n");
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.make_room(&mut open, text.len() as u64).and_then(|()| open.file.write_all(text.as_bytes()));
        match written {
            Ok(()) => open.bytes += text.len() as u64,
            Err(error) => {
                metrics::counter!("fairlead_api_audit_errors_total").increment(1);
                tracing::error!(%error, path = %self.path.display(), "the audit log can't be written");
            }
        }
    }

    /// Writes what became of a change: its revision, or why it was refused.
    pub fn write_outcome(&self, (identity, rpc): (&Identity, &str), object: &str, outcome: Result<u64, &Status>) {
        let code = outcome.err().map(|status| format!("{:?}", status.code()));
        self.write(&Record {
            time: rfc3339(now_ms()),
            identity: identity.clone(),
            rpc,
            object,
            outcome: code.as_deref().unwrap_or("ok"),
            revision: outcome.unwrap_or_default(),
            message: outcome.err().map_or("", Status::message),
        });
    }

    fn make_room(&self, at: &mut Open, bytes: u64) -> io::Result<()> {
        if at.bytes + bytes <= MOST {
            return Ok(());
        }
        let aside = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..KEPT).rev() {
            if aside(number).exists() {
                std::fs::rename(aside(number), aside(number + 1))?;
            }
        }
        std::fs::rename(&self.path, aside(1))?;
        *at = open(&self.path)?;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Open> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok(Open { file, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_old_ones_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let identity = Identity::User { name: "ann".into(), groups: vec!["ops".into()] };
        // No line can be forged by what somebody sends.
        audit.write(&Record { identity, rpc: "Objects/Apply", object: "services/a/\"\nb", ..Record::default() });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((line["identity"].as_str(), line["groups"][0].as_str()), (Some("user:ann"), Some("ops")));
        for _ in 0..KEPT + 3 {
            audit.open.lock().unwrap().bytes = MOST;
            audit.write(&Record::default());
        }
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
