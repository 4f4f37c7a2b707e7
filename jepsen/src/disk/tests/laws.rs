//! Laws, by random programs; a failure says its seed.

use super::*;
use crate::random::Random;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

/// A write or a truncation as it is done to a real file and to bytes.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn any(random: &mut Random) -> Self {
        if random.chance(20) {
            return Self::Length(random.index(9_000));
        }
        let (at, length) = (random.index(8_000), 1 + random.index(3_000));
        Self::Write(at, (0..length).map(|_| u8::try_from(1 + random.below(255)).unwrap()).collect())
    }

    fn to_file(&self, file: &File) {
        match self {
            Self::Write(at, bytes) => file.write_all_at(bytes, *at as u64).unwrap(),
            Self::Length(length) => file.set_len(*length as u64).unwrap(),
        }
    }

    /// Its first `part` bytes, or all of it.
    fn to_bytes(&self, content: &mut Vec<u8>, part: usize) {
        match self {
            Self::Write(at, bytes) => {
                let bytes = &bytes[..part.min(bytes.len())];
                let end = at + bytes.len();
                if !bytes.is_empty() {
                    content.resize(content.len().max(end), 0);
                    content[*at..end].copy_from_slice(bytes);
                }
            }
            Self::Length(length) => content.resize(*length, 0),
        }
    }
}

#[test]
fn every_file_is_as_at_its_last_sync_after_power_is_lost() {
    let mounted = Mounted::new();
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let mut files: Vec<(String, Vec<u8>, Vec<u8>)> = Vec::new();
        for number in 0..4 {
            let name = format!("{seed}-{number}");
            mounted.durable(&name, b"");
            files.push((name, Vec::new(), Vec::new()));
        }
        for _ in 0..60 {
            let place = random.index(files.len());
            let (name, live, durable) = &mut files[place];
            let file = open(&mounted.on(name));
            let change = Change::any(&mut random);
            change.to_file(&file);
            change.to_bytes(live, usize::MAX);
            if random.chance(25) {
                if random.chance(50) {
                    file.sync_all().unwrap()
                } else {
                    file.sync_data().unwrap()
                }
                durable.clone_from(live);
            }
        }
        for (name, live, _) in &files {
            assert!(fs::read(mounted.on(name)).unwrap() == *live, "{name} before");
        }
        mounted.tell("lose");
        for (name, _, durable) in &files {
            assert!(fs::read(mounted.on(name)).unwrap() == *durable, "{name} after");
        }
    }
}

#[test]
fn a_torn_file_is_its_synced_content_and_a_prefix_of_the_later_writes() {
    let mounted = Mounted::new();
    let (mut cut, mut none, mut all) = (0, 0, 0);
    for seed in 0..120 {
        let mut random = Random::new(seed);
        let name = seed.to_string();
        let file = mounted.durable(&name, b"");
        let mut durable = Vec::new();
        for _ in 0..random.index(4) {
            let change = Change::any(&mut random);
            change.to_file(&file);
            change.to_bytes(&mut durable, usize::MAX);
        }
        file.sync_data().unwrap();
        let changes: Vec<Change> = (0..1 + random.index(3)).map(|_| Change::any(&mut random)).collect();
        changes.iter().for_each(|change| change.to_file(&file));
        mounted.tell(&format!("tear {seed}"));
        let found = fs::read(mounted.on(&name)).unwrap();
        match prefix(&durable, &changes, &found) {
            Some((0, 0)) => none += 1,
            Some((whole, 0)) if whole == changes.len() => all += 1,
            Some((_, 0)) => {}
            Some(_) => cut += 1,
            None => panic!("seed {seed}: no prefix of {changes:?}"),
        }
    }
    assert!(cut > 20 && none > 5 && all > 5, "{cut} cut, {none} none, {all} all");
}

/// How many whole changes, and bytes of the next one, make one content of the other.
fn prefix(durable: &[u8], changes: &[Change], found: &[u8]) -> Option<(usize, usize)> {
    let mut before = durable.to_vec();
    for (whole, change) in changes.iter().enumerate() {
        let parts = if let Change::Write(_, bytes) = change { bytes.len() } else { 1 };
        for part in 0..parts {
            let mut content = before.clone();
            if part > 0 {
                change.to_bytes(&mut content, part);
            }
            if content == found {
                return Some((whole, part));
            }
        }
        change.to_bytes(&mut before, usize::MAX);
    }
    (before == found).then_some((changes.len(), 0))
}

fn inodes(dir: &Path) -> BTreeMap<String, u64> {
    names(dir).into_iter().map(|name| (name.clone(), fs::metadata(dir.join(name)).unwrap().ino())).collect()
}

#[test]
fn every_folder_has_the_names_of_its_last_sync_after_power_is_lost() {
    let mounted = Mounted::new();
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let dirs: Vec<PathBuf> = (0..3).map(|number| mounted.on(&format!("{seed}-{number}"))).collect();
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        mounted.sync_dir("");
        let mut durable = vec![BTreeMap::new(); dirs.len()];
        for _ in 0..80 {
            let place = random.index(dirs.len());
            let dir = &dirs[place];
            let [one, two] = [random.below(5), random.below(5)].map(|name| dir.join(name.to_string()));
            // Many of these fail: that must change nothing either.
            let _ = match random.below(6) {
                0 | 1 => OpenOptions::new().write(true).create_new(true).open(one).map(drop),
                2 => fs::remove_file(one),
                3 => fs::rename(one, two),
                4 => fs::hard_link(one, two),
                _ => {
                    durable[place] = inodes(dir);
                    File::open(dir).unwrap().sync_all()
                }
            };
        }
        mounted.tell("lose");
        for (dir, durable) in dirs.iter().zip(&durable) {
            assert_eq!(inodes(dir), *durable, "seed {seed}");
        }
    }
    assert_eq!(names(&mounted.dir.path().join("backing/removed")), [""; 0]);
}

#[test]
fn no_file_is_lost_or_doubled_by_moves_between_folders() {
    let mounted = Mounted::new();
    for (seed, word) in
        (0..30).map(|seed| (seed, if seed % 2 == 0 { "lose".to_owned() } else { format!("tear {seed}") }))
    {
        let mut random = Random::new(seed);
        let dirs: Vec<PathBuf> = (0..3).map(|number| mounted.on(&format!("{seed}-{number}"))).collect();
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        for number in 0..4 {
            new(&dirs[0].join(number.to_string()));
        }
        mounted.sync_dir("");
        dirs.iter().for_each(|dir| File::open(dir).unwrap().sync_all().unwrap());
        for _ in 0..40 {
            let (from, to) = (random.index(3), random.index(3));
            let name = random.below(4).to_string();
            let _ = fs::rename(dirs[from].join(&name), dirs[to].join(&name));
            if random.chance(15) {
                File::open(&dirs[random.index(3)]).unwrap().sync_all().unwrap();
            }
        }
        mounted.tell(&word);
        let mut found: Vec<String> = dirs.iter().flat_map(|dir| names(dir)).collect();
        found.sort();
        assert_eq!(found, ["0", "1", "2", "3"], "seed {seed}");
    }
}
