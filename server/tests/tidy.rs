//! The architecture's rules that a compiler doesn't know, over the sources of the whole workspace: which room may use
//! what, that pure rooms are pure, sizes, names, and that nothing is left over. Each test lists every offence at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 5] = ["proto", "server", "agent", "cli", "jepsen"];

/// Files and folders of synchronous functions without IO, clock, randomness or unordered maps.
const PURE: [&str; 44] = [
    "jepsen/src/edn.rs",
    "jepsen/src/history.rs",
    "jepsen/src/random.rs",
    "jepsen/src/validate",
    "proto/src/convert",
    "proto/src/digest.rs",
    "proto/src/json.rs",
    "proto/src/manifest",
    "proto/src/model",
    "proto/src/view.rs",
    "server/src/dns/answer.rs",
    "server/src/dns/backends.rs",
    "server/src/dns/message.rs",
    "server/src/dns/zone.rs",
    "server/src/machine",
    "server/src/api/past.rs",
    "server/src/sync/delta.rs",
    "server/src/sync/item.rs",
    "server/src/sync/stamped.rs",
    "server/src/watch/history.rs",
    "server/src/storage/keys.rs",
    "server/src/kube/accept.rs",
    "server/src/kube/body.rs",
    "server/src/kube/discovery.rs",
    "server/src/kube/failure.rs",
    "server/src/kube/fields",
    "server/src/kube/kinds.rs",
    "server/src/kube/leases.rs",
    "server/src/kube/openapi",
    "server/src/kube/patch",
    "server/src/kube/place.rs",
    "server/src/kube/protobuf.rs",
    "server/src/kube/protobuf",
    "server/src/kube/ranges.rs",
    "server/src/kube/request.rs",
    "server/src/kube/review.rs",
    "server/src/kube/table.rs",
    "server/src/kube/table",
    "server/src/kube/view.rs",
    "agent/src/kernel/ipvs_model.rs",
    "agent/src/kernel/model.rs",
    "agent/src/plan",
    "cli/src/client/jsonpath",
    "cli/src/client/why.rs",
];
const IMPURE: [&str; 17] = [
    "tokio",
    "rocksdb",
    "openraft",
    "std::time",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "rand::",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::io",
    "TcpStream",
    "UdpSocket",
    "async fn",
];
/// A library, and the only folders that may know it.
const ONLY_IN: [(&str, &[&str]); 5] = [
    ("rocksdb", &["server/src/storage/"]),
    ("openraft", &["server/src/raft/", "server/src/storage/"]),
    ("hickory_server", &["server/src/dns/"]),
    ("hickory_proto", &["server/src/dns/", "jepsen/src/workload/"]),
    ("fuser", &["jepsen/src/disk/"]),
];
/// A crate, and what its manifest may not name: dependencies point one way.
const NEVER_DEPENDS_ON: [(&str, &[&str]); 4] = [
    ("proto", &["fairlead-server", "fairlead-agent", "rocksdb", "openraft"]),
    ("server", &["fairlead-agent"]),
    ("agent", &["fairlead-server", "rocksdb", "openraft"]),
    ("cli", &["rocksdb", "openraft"]),
];
/// Parts of names that say nothing about what a thing is.
const EMPTY_NAMES: [&str; 4] = ["Manager", "Helper", "Util", "Repository"];
const EMPTY_MODULES: [&str; 4] = ["utils", "util", "helpers", "helper"];
const EMPTY_VERBS: [&str; 2] = ["handle_", "process_"];
const MOST_LINES: usize = 500;

/// A source file, as a path from the workspace's root with `/`.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Its lines with numbers and without comments, before its tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take(self.lines_before_tests());
        lines.enumerate().map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
    }

    /// Tests stand at the end: they begin with the last `#[cfg(test)]` before a module's body.
    fn lines_before_tests(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let begins = |at: &usize| {
            lines[*at].trim() == "#[cfg(test)]"
                && lines.get(at + 1).is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'))
        };
        (0..lines.len()).find(begins).unwrap_or(lines.len())
    }

    fn is_test(&self) -> bool {
        let in_folder = self.path.contains("/tests/") || self.path.contains("/benches/");
        in_folder || self.path.ends_with("/tests.rs")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    for name in CRATES {
        for folder in ["src", "tests", "examples", "benches"] {
            walk(&root().join(name).join(folder), &mut paths);
        }
        paths.extend(Some(root().join(name).join("build.rs")).filter(|build| build.exists()));
    }
    paths.sort();
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).unwrap(),
        path: path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/"),
    };
    paths.into_iter().map(source).collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[track_caller]
fn none(offences: Vec<String>) {
    assert!(offences.is_empty(), "{} offences:\n{}", offences.len(), offences.join("\n"));
}

/// The word stands in the line as a word of its own, not as a part of another.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_name) && (word.ends_with(':') || !after.is_some_and(part_of_name))
    })
}

#[test]
fn pure_rooms_are_pure() {
    let mut offences = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let within = |room: &&str| source.path == **room || source.path.starts_with(&format!("{room}/"));
        if !PURE.iter().any(within) {
            continue;
        }
        for (at, line) in source.code() {
            let used = IMPURE.iter().filter(|word| has_word(line, word));
            offences.extend(used.map(|word| format!("{}:{at}: {word} in a pure room", source.path)));
        }
    }
    none(offences);
}

#[test]
fn pure_rooms_exist() {
    let gone = PURE.iter().filter(|room| !root().join(room).exists());
    none(gone.map(|room| format!("{room} is listed as pure but is not there")).collect());
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut offences = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (library, rooms) in ONLY_IN {
            if rooms.iter().any(|room| source.path.starts_with(room)) {
                continue;
            }
            let uses = source.code().filter(|(_, line)| {
                has_word(line, library) && (line.contains(&format!("{library}::")) || line.contains("use "))
            });
            offences.extend(
                uses.map(|(at, _)| format!("{}:{at}: {library} belongs in {}", source.path, rooms.join(" and "))),
            );
        }
    }
    none(offences);
}

#[test]
fn dependencies_point_one_way() {
    let mut offences = Vec::new();
    for (name, forbidden) in NEVER_DEPENDS_ON {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for line in manifest.lines() {
            let depends = forbidden.iter().filter(|crate_| line.split(['.', ' ', '=']).next() == Some(**crate_));
            offences.extend(depends.map(|crate_| format!("{name}/Cargo.toml depends on {crate_}")));
        }
    }
    none(offences);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    none(silent.map(|source| format!("{} does not open with //!", source.path)).collect());
}

#[test]
fn files_fit() {
    let files = sources().into_iter().filter(|source| !source.is_test());
    let long = files.map(|source| (source.lines_before_tests(), source.path)).filter(|(lines, _)| *lines > MOST_LINES);
    none(long.map(|(lines, path)| format!("{path}: {lines} lines without tests, at most {MOST_LINES}")).collect());
}

#[test]
fn every_file_is_part_of_a_crate() {
    let sources = sources();
    let text_of = |path: &str| sources.iter().find(|source| source.path == path).map(|source| source.text.as_str());
    let mut offences = Vec::new();
    for source in &sources {
        let path = Path::new(&source.path);
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let folder = path.parent().unwrap();
        // Cargo's own roots: src/{lib,main}.rs, build.rs, and what stands directly in tests/, examples/ or benches/.
        let stands_in = folder.file_name().unwrap().to_string_lossy().into_owned();
        if ["lib", "main", "build"].contains(&&*stem)
            || ["tests", "examples", "benches"].contains(&&*stands_in) && folder.components().count() == 2
        {
            continue;
        }
        let (module, folder) = match &*stem {
            "mod" => (stands_in, folder.parent().unwrap()),
            _ => (stem, folder),
        };
        let folder = folder.to_string_lossy();
        let mut parents = vec![
            format!("{folder}/mod.rs"),
            format!("{folder}.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
        ];
        // A folder beside integration tests belongs to any of them.
        if folder.ends_with("/tests") {
            let beside = sources.iter().map(|other| other.path.clone());
            parents.extend(beside.filter(|other| other.starts_with(&*folder)));
        }
        let declares = |parent: &String| {
            let declaration = format!("mod {module};");
            text_of(parent).is_some_and(|text| text.lines().any(|line| line.trim_start().ends_with(&declaration)))
        };
        if !parents.iter().any(declares) {
            offences.push(format!("{}: no file says `mod {module};`", source.path));
        }
    }
    none(offences);
}

#[test]
fn names_say_something() {
    let mut offences = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for pair in words.windows(2) {
                let empty = match pair[0] {
                    "struct" | "enum" | "trait" | "type" => EMPTY_NAMES.iter().any(|part| pair[1].ends_with(part)),
                    "mod" => EMPTY_MODULES.contains(&pair[1]),
                    "fn" => EMPTY_VERBS.iter().any(|part| pair[1].starts_with(part)),
                    _ => false,
                };
                if empty && !line.trim_start().starts_with("//") {
                    offences.push(format!("{}:{}: `{}` is a name without a meaning", source.path, at + 1, pair[1]));
                }
            }
        }
    }
    none(offences);
}

#[test]
fn no_read_trusts_a_clock() {
    let lease = concat!("Lease", "Read");
    none(sources().into_iter().filter(|source| source.text.contains(lease)).map(|source| source.path).collect());
}

#[test]
fn nothing_is_left_over() {
    let left = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
        concat!("/wo", "rk/"),
    ];
    let mut offences = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            let found = left.iter().filter(|word| line.contains(**word));
            offences.extend(found.map(|word| format!("{}:{}: {word}", source.path, at + 1)));
        }
    }
    none(offences);
}
