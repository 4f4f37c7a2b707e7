//! `-f`: manifests from files, folders and standard input, each document with where it came from.
//!
//! Nothing is sent from here. Sizes are bounded; a file that can't be read or understood stops the verb before it has
//! changed anything.

use crate::client::Session;
use crate::client::failure::Failure;
use crate::client::kinds::{Resource, SLICES};
use crate::client::output::text;
use clap::Args;
use fairlead_proto::manifest::{self, MAX_DOCUMENT};
use fairlead_proto::model::Key;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Deepest folder that -R reads.
const DEEPEST: usize = 32;

/// Where manifests come from.
#[derive(Args, Clone, Debug, Default)]
pub struct Files {
    /// File or folder with manifests; - = standard input
    #[arg(short, long, value_name = "FILE", value_delimiter = ',')]
    pub filename: Vec<String>,
    /// Read folders in folders, too
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// A manifest and where it came from.
#[derive(Clone, Debug)]
pub struct Document {
    /// The manifest.
    pub value: Value,
    /// A path, or STDIN.
    pub source: String,
}

impl Files {
    /// Every document, in order.
    ///
    /// # Errors
    /// The first file that can't be read or understood; no document at all.
    pub fn documents(&self, verb: &str) -> Result<Vec<Document>, Failure> {
        if self.filename.is_empty() {
            return Err(Failure::local("must specify -f"));
        }
        let mut documents = Vec::new();
        for name in &self.filename {
            if name == "-" {
                parse(&read(std::io::stdin().lock(), "STDIN")?, "STDIN", &mut documents)?;
                continue;
            }
            let path = Path::new(name);
            if !path.exists() {
                return Err(Failure::local(format!("the path {name:?} does not exist")));
            }
            if path.is_dir() {
                let before = documents.len();
                let found = self.folder(path, 0, &mut documents)?;
                if found == 0 && documents.len() == before {
                    return Err(Failure::local(format!(
                        "error reading [{name}]: recognized file extensions are [.json .yaml .yml]"
                    )));
                }
            } else {
                file(path, &mut documents)?;
            }
        }
        if documents.is_empty() {
            return Err(Failure::local(format!("no objects passed to {verb}")));
        }
        Ok(documents)
    }

    /// Reads a folder's manifests in the order of their names; how many files there were.
    fn folder(&self, path: &Path, depth: usize, documents: &mut Vec<Document>) -> Result<usize, Failure> {
        let unreadable = |error: std::io::Error| Failure::local(format!("error reading {}: {error}", path.display()));
        if depth > DEEPEST {
            return Err(Failure::local(format!("{} is more than {DEEPEST} folders deep", path.display())));
        }
        let entries = std::fs::read_dir(path).map_err(unreadable)?;
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(unreadable)?;
        paths.sort();
        let mut found = 0;
        for path in paths {
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if path.is_dir() {
                if self.recursive {
                    found += self.folder(&path, depth + 1, documents)?;
                }
            } else if matches!(extension, "json" | "yaml" | "yml") {
                file(&path, documents)?;
                found += 1;
            }
        }
        Ok(found)
    }
}

fn file(path: &Path, documents: &mut Vec<Document>) -> Result<(), Failure> {
    let source = path.display().to_string();
    let opened =
        std::fs::File::open(path).map_err(|error| Failure::local(format!("error reading {source}: {error}")))?;
    parse(&read(opened, &source)?, &source, documents)
}

fn read(from: impl Read, source: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let most = MAX_DOCUMENT as u64 + 1;
    from.take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::local(format!("error reading {source}: {error}")))?;
    if bytes.len() > MAX_DOCUMENT {
        return Err(Failure::local(format!(
            "error reading {source}: it is larger than {MAX_DOCUMENT} bytes: split it into several files"
        )));
    }
    String::from_utf8(bytes).map_err(|_| Failure::local(format!("error parsing {source}: it is not UTF-8 text")))
}

fn parse(text: &str, source: &str, documents: &mut Vec<Document>) -> Result<(), Failure> {
    let parsed =
        manifest::documents(text).map_err(|error| Failure::local(format!("error parsing {source}: {error}")))?;
    documents.extend(parsed.into_iter().map(|value| Document { value, source: source.to_owned() }));
    Ok(())
}

impl Document {
    /// The resource type and the key that the manifest names, in the namespace in force.
    ///
    /// # Errors
    /// An unknown kind, or another namespace than the command line's; in kubectl's words.
    pub fn identify(&self, session: &Session) -> Result<(&'static Resource, Key), Failure> {
        let (version, title) = (text(&self.value, "/apiVersion"), text(&self.value, "/kind"));
        let (name, namespace) = (text(&self.value, "/metadata/name"), text(&self.value, "/metadata/namespace"));
        for (field, given) in [("kind", title), ("apiVersion", version)] {
            if given.is_empty() {
                return Err(Failure::local(format!("unable to decode {:?}: Object '{field}' is missing", self.source)));
            }
        }
        let resource = match manifest::kind_by_name(title) {
            Some(kind) => Some(Resource::of(kind)),
            None => Some(&SLICES).filter(|slices| slices.title == title),
        };
        let Some(resource) = resource.filter(|resource| resource.api_version() == version) else {
            return Err(Failure::Plain(format!(
                "error: resource mapping not found for name: {name:?} namespace: {namespace:?} from {:?}: no matches for kind {title:?} in version {version:?}\nFairlead knows Namespace, Node, Pod, Service and Endpoints of v1",
                self.source
            )));
        };
        if resource.is_namespaced()
            && session.namespace_given
            && !namespace.is_empty()
            && namespace != session.namespace
        {
            return Err(Failure::local(format!(
                "the namespace from the provided object {namespace:?} does not match the namespace {:?}. You must pass '--namespace={namespace}' to perform this operation.",
                session.namespace
            )));
        }
        let namespace = if namespace.is_empty() { &session.namespace } else { namespace };
        Ok((resource, Key::new(resource.kind, namespace, name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::connect::Servers;

    fn files(names: &[&Path]) -> Files {
        Files { filename: names.iter().map(|name| name.display().to_string()).collect(), recursive: false }
    }

    #[test]
    fn folders_are_read_by_name_and_extension() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("deep")).unwrap();
        for (name, text) in [
            ("b.yaml", "kind: B\n---\nkind: C\n"),
            ("a.json", "{\"kind\": \"A\"}"),
            ("skip.txt", "kind: X"),
            ("deep/d.yml", "kind: D"),
        ] {
            std::fs::write(root.join(name), text).unwrap();
        }
        let kinds = |recursive: bool| {
            let files = Files { recursive, ..files(&[root]) };
            files.documents("apply").unwrap().iter().map(|one| text(&one.value, "/kind").to_owned()).collect::<String>()
        };
        assert_eq!(kinds(false), "ABC");
        assert_eq!(kinds(true), "ABCD");
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        std::fs::create_dir(dir.path().join("none")).unwrap();
        for (path, says) in [
            (dir.path().join("lost.yaml"), "does not exist"),
            (dir.path().join("none"), "recognized file extensions are [.json .yaml .yml]"),
            (write("empty.yaml", b""), "no objects passed to apply"),
            (write("bad.yaml", b"a: [b\n"), "error parsing"),
            (write("bytes.yaml", b"\xff\xfe\x00"), "not UTF-8"),
            (write("big.yaml", &vec![b'#'; MAX_DOCUMENT + 1]), "larger than"),
        ] {
            let failure = files(&[&path]).documents("apply").unwrap_err().text();
            assert!(failure.contains(says), "{}: {failure}", path.display());
        }
        assert!(Files::default().documents("apply").is_err());
    }

    #[test]
    fn a_document_is_identified_or_refused() {
        let session = Session {
            servers: Servers::new(&[], Default::default(), Default::default()),
            namespace: "team".into(),
            namespace_given: true,
        };
        let of = |value: Value| Document { value, source: "m.yaml".into() }.identify(&session);
        let (resource, key) =
            of(serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}})).unwrap();
        assert_eq!((resource.plural, key.path().as_str()), ("services", "team/web"));
        let (_, node) =
            of(serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": "odd"}}))
                .unwrap();
        assert_eq!(node.path(), "n");
        for (value, says) in [
            (
                serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w"}}),
                "no matches for kind \"Deployment\" in version \"apps/v1\"",
            ),
            (
                serde_json::json!({"apiVersion": "v2", "kind": "Service"}),
                "no matches for kind \"Service\" in version \"v2\"",
            ),
            (serde_json::json!({"kind": "Service"}), "Object 'apiVersion' is missing"),
            (serde_json::json!({"apiVersion": "v1"}), "Object 'kind' is missing"),
            (
                serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "other"}}),
                "does not match the namespace \"team\"",
            ),
        ] {
            let failure = of(value).unwrap_err().text();
            assert!(failure.contains(says), "{failure}");
        }
    }
}
