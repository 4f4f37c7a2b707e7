//! The disk does what a real file system does: the same random program on both has the same outcomes.

use super::*;
use crate::random::Random;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// What a program has open.
struct Program {
    root: PathBuf,
    open: Vec<Option<File>>,
    random: Random,
}

impl Program {
    fn new(root: &Path, seed: u64) -> Self {
        Self { root: root.to_owned(), open: (0..4).map(|_| None).collect(), random: Random::new(seed) }
    }

    fn path(&mut self) -> PathBuf {
        let dir = self.random.choose(&["", "", "d", "e", "d/d"]).unwrap();
        let name = self.random.choose(&["a", "b", "c", "a", "b", "c", "d", "e"]).unwrap();
        self.root.join(dir).join(name)
    }

    /// More often than not a folder's.
    fn dir(&mut self) -> PathBuf {
        let path = self.random.choose(&["d", "e", "d/d", "e/d"]).unwrap();
        if self.random.chance(70) { self.root.join(path) } else { self.path() }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.random.index(5_000);
        vec![u8::try_from(self.random.below(256)).unwrap(); length]
    }

    /// Does one thing; what came of it.
    fn step(&mut self) -> String {
        let what = self.random.below(22);
        let outcome = if what < 11 { self.by_name(what) } else { self.by_handle(what) };
        match outcome {
            Ok(outcome) => format!("{what}: {outcome}"),
            Err(error) => format!("{what}: {:?}", error.raw_os_error()),
        }
    }

    fn by_name(&mut self, what: u64) -> io::Result<String> {
        let (one, two, dir) = (self.path(), self.path(), self.dir());
        let done = match what {
            0 => fs::write(&one, self.bytes()),
            1 => fs::rename(&one, &two),
            2 => Ok(renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_NOREPLACE)?),
            3 => fs::hard_link(&one, &two),
            4 => fs::remove_file(&one),
            5 => fs::create_dir(&dir),
            6 => fs::remove_dir(&dir),
            7 => fs::copy(&one, &two).map(drop),
            8 => fs::set_permissions(&one, Permissions::from_mode(0o600 + u32::try_from(what).unwrap())),
            9 => {
                let mut found: Vec<String> = Vec::new();
                for entry in fs::read_dir(&dir)? {
                    let entry = entry?;
                    found.push(format!("{:?} {}", entry.file_name(), entry.file_type()?.is_dir()));
                }
                found.sort();
                return Ok(format!("{found:?}"));
            }
            _ => {
                let found = fs::metadata(&one)?;
                // Not of folders: tmpfs counts their bytes.
                let file = found.is_file().then(|| (found.len(), found.nlink()));
                return Ok(format!("{file:?} {:o}", found.mode()));
            }
        };
        done.map(|()| "done".to_owned())
    }

    fn by_handle(&mut self, what: u64) -> io::Result<String> {
        let (path, place, at) = (self.path(), self.random.index(self.open.len()), self.random.below(12_000));
        let dir = self.dir();
        match what {
            11..13 => {
                let mut how = OpenOptions::new();
                how.read(true).append(what == 12).write(true).create(self.random.chance(50));
                self.open[place] = Some(how.open(path)?);
                return Ok("open".to_owned());
            }
            13 if self.random.chance(30) => self.open[place] = None,
            14 => File::open(dir)?.sync_all()?,
            _ => {}
        }
        let bytes = self.bytes();
        let Some(file) = &mut self.open[place] else { return Ok("closed".to_owned()) };
        match what {
            15 => file.write_all_at(&bytes, at)?,
            16 => file.write_all(&bytes)?,
            17 => file.set_len(at)?,
            18 => file.sync_data()?,
            19 => {
                let mut found = vec![0; 6_000];
                let length = file.read_at(&mut found, at)?;
                return Ok(format!("{:?}", runs(&found[..length])));
            }
            20 => return Ok(format!("{:?}", runs(&fs::read(path)?))),
            _ => {
                let found = file.metadata()?;
                return Ok(format!("{} {}", found.len(), found.nlink()));
            }
        }
        Ok("done".to_owned())
    }
}

/// Bytes, in short.
fn runs(bytes: &[u8]) -> Vec<(u8, usize)> {
    bytes.chunk_by(|one, two| one == two).map(|run| (run[0], run.len())).collect()
}

/// Everything below a folder.
fn tree(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            found.extend(tree(&path).into_iter().map(|below| format!("{name}/{below}")));
            found.push(format!("{name}/"));
        } else {
            found.push(format!("{name}: {:?}", runs(&fs::read(&path).unwrap())));
        }
    }
    found
}

#[test]
fn a_thousand_random_operations_come_out_as_on_a_real_folder() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..20 {
        let (mounted, real) = (Mounted::new(), tempfile::tempdir_in(MEMORY).unwrap());
        let mut programs = [Program::new(&mounted.on(""), seed), Program::new(real.path(), seed)];
        for step in 0..1_000 {
            let [ours, theirs] = programs.each_mut().map(Program::step);
            assert_eq!(ours, theirs, "seed {seed}, step {step}");
            *seen.entry(theirs.chars().take(12).collect::<String>()).or_insert(0) += 1;
        }
        assert_eq!(tree(&mounted.on("")), tree(real.path()), "seed {seed}");
        // Everything is durable when everything was synced: files through one of their names.
        sync(&mounted.on(""));
        let before = tree(&mounted.on(""));
        mounted.tell("lose");
        assert_eq!(tree(&mounted.on("")), before, "seed {seed}");
    }
    let done = |what: u64| seen.get(&format!("{what}: done")).copied().unwrap_or(0);
    assert!((0..8).all(|what| done(what) > 20), "too little was done: {seen:?}");
}

fn sync(dir: &Path) {
    for name in names(dir) {
        let path = dir.join(name);
        if path.is_dir() { sync(&path) } else { File::open(&path).unwrap().sync_all().unwrap() }
    }
    File::open(dir).unwrap().sync_all().unwrap();
}
