//! What a member holds of certificates, as files of `pki` in its data directory, readable by their owner only.
//!
//! A certificate and its key are one file, so that no crash parts them; each is written whole or not at all.

use crate::pki::Purpose;
use fairlead_proto::internal::v1::Authority;
use fairlead_proto::tls::{Credentials, write_private};
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const MOST: u64 = 1024 * 1024;

/// The folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Of a data directory; made if need be.
    ///
    /// # Errors
    /// It can't be made; with its path.
    pub fn of(data_dir: &Path) -> io::Result<Self> {
        let folder = Self(data_dir.join("pki"));
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.authorities());
        made.map_err(|error| named(&folder.0, &error))?;
        // The database beside it holds the authorities' keys.
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(data_dir, private).map_err(|error| named(data_dir, &error))?;
        Ok(folder)
    }

    /// Where authorities are put for members to start with, and kept until the cluster has them.
    #[must_use]
    pub fn authorities(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// A purpose's credentials; `None` = there are none yet.
    ///
    /// # Errors
    /// What can't be read.
    pub fn credentials(&self, purpose: Purpose) -> io::Result<Option<Credentials>> {
        let (Some(own), Some(ca)) = (read(&self.own(purpose))?, read(&self.trusted(purpose))?) else {
            return Ok(None);
        };
        Ok(Some(Credentials { ca, certificate: own.clone(), key: own }))
    }

    /// Keeps a purpose's credentials.
    ///
    /// # Errors
    /// What can't be written.
    pub fn keep(&self, purpose: Purpose, credentials: &Credentials) -> io::Result<()> {
        write_private(&self.trusted(purpose), &credentials.ca)?;
        let whole = if credentials.certificate == credentials.key {
            credentials.key.clone()
        } else {
            format!("{}{}", credentials.certificate, credentials.key)
        };
        write_private(&self.own(purpose), &whole)
    }

    /// An authority that was put there; `None` = none.
    ///
    /// # Errors
    /// It can't be read, or is not whole.
    pub fn authority(&self, purpose: Purpose) -> io::Result<Option<Authority>> {
        let path = self.authorities().join(format!("{}.pem", purpose.name()));
        let Some(text) = read(&path)? else { return Ok(None) };
        let at = text.find("-----BEGIN PRIVATE KEY-----");
        let (certificate, key) = at.map(|at| text.split_at(at)).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, format!("{}: there is no private key in it", path.display()))
        })?;
        Ok(Some(Authority {
            purpose: purpose.name().to_owned(),
            generation: 1,
            certificate_pem: certificate.to_owned(),
            key_pem: key.to_owned(),
            ..Authority::default()
        }))
    }

    /// Puts an authority there.
    ///
    /// # Errors
    /// What can't be written.
    pub fn put_authority(&self, authority: &Authority) -> io::Result<()> {
        let path = self.authorities().join(format!("{}.pem", authority.purpose));
        write_private(&path, &format!("{}{}", authority.certificate_pem, authority.key_pem))
    }

    /// Removes the authorities, once the cluster has them.
    ///
    /// # Errors
    /// They can't be removed.
    pub fn drop_authorities(&self) -> io::Result<()> {
        for purpose in Purpose::ALL {
            match std::fs::remove_file(self.authorities().join(format!("{}.pem", purpose.name()))) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn own(&self, purpose: Purpose) -> PathBuf {
        self.0.join(match purpose {
            Purpose::Peer => "peer.pem",
            Purpose::Client => "server.pem",
        })
    }

    fn trusted(&self, purpose: Purpose) -> PathBuf {
        self.0.join(format!("{}-ca.pem", purpose.name()))
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(path, &error)),
    };
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(|error| named(path, &error))?;
    Ok(Some(text))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
