//! What a member that joined keeps of it, beside its database: its id, the cluster's fingerprint, and whom it knew.
//!
//! The nonce is kept before the cluster is asked, the rest before the first start: an answer that got lost is given
//! again, and a directory that got lost makes another member, which must not take the first one's place.

use fairlead_proto::tls::write_private;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// A joined member's place in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Random, made before it asked.
    pub nonce: String,
    /// Its id; 0 = it has not been answered yet.
    pub id: u64,
    /// By which members know each other's messages.
    pub fingerprint: String,
    /// Members at that time: id, name, host:peerport.
    pub members: Vec<(u64, String, String)>,
    /// Its database was made: a later start that finds none has lost it, with its votes.
    #[serde(default)]
    pub started: bool,
}

impl Joined {
    /// As a data directory has it; `None` = its member never asked to join.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        let path = path(data_dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        let parsed = serde_json::from_str(&text);
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()));
        parsed.map(Some).map_err(damaged)
    }

    /// One that finds its database gone has forgotten its votes: it must not come back as itself. Asked before a database
    /// is made.
    ///
    /// # Errors
    /// What to do about it.
    pub fn check_database(&self, data_dir: &Path, name: &str) -> Result<(), String> {
        if self.started && !data_dir.join("db").join("CURRENT").exists() {
            return Err(format!(
                "this member joined as {name} before and its database in {} is gone: remove it (`fairlead member remove {name}`), empty the directory, and let it --join anew",
                data_dir.display()
            ));
        }
        Ok(())
    }

    /// Notes that there is a database from now on, if that isn't noted.
    ///
    /// # Errors
    /// It can't be written.
    pub fn note_start(&self, data_dir: &Path) -> io::Result<()> {
        if self.started { Ok(()) } else { Self { started: true, ..self.clone() }.write(data_dir) }
    }

    /// Keeps it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(data_dir)?;
        write_private(&path(data_dir), &serde_json::to_string(self).map_err(io::Error::other)?)
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("joined.json")
}
