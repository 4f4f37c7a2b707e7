//! Which servers to ask: flags and variables, else the client configuration (a file in kubeconfig's shape), else loopback.
//!
//! Invariant: plaintext is spoken only where somebody asked for it, by --insecure or by the file's `insecure-plaintext`.

use crate::client::failure::Failure;
use crate::client::output::yaml;
use data_encoding::BASE64;
use fairlead_proto::tls::Credentials;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::path::Path;

/// Where a server is, if nobody says.
const DEFAULT_SERVER: &str = "127.0.0.1:7400";
/// Largest client configuration, bytes.
const MAX_CONFIG: u64 = 1024 * 1024;

/// The client configuration: kubeconfig's fields that we read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ClientConfig {
    /// Servers by name.
    pub clusters: Vec<NamedCluster>,
    /// Contexts by name.
    pub contexts: Vec<NamedContext>,
    /// Users by name.
    pub users: Vec<NamedUser>,
    /// The context in force.
    pub current_context: String,
}

/// A cluster and its name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamedCluster {
    /// Name, unique in the file.
    pub name: String,
    /// The cluster.
    pub cluster: Cluster,
}

/// Where a cluster's servers are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Cluster {
    /// `https://host:port`, several joined by commas.
    pub server: String,
    /// File of the CAs that the servers' certificates come from, PEM.
    pub certificate_authority: String,
    /// The same, base64.
    pub certificate_authority_data: String,
    /// Ours: speak plaintext to them.
    pub insecure_plaintext: bool,
}

/// A user and its name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamedUser {
    /// Name, unique in the file.
    pub name: String,
    /// The user.
    pub user: User,
}

/// Who calls: a certificate and its key.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct User {
    /// File of the certificate, PEM.
    pub client_certificate: String,
    /// The same, base64.
    pub client_certificate_data: String,
    /// File of the private key, PEM.
    pub client_key: String,
    /// The same, base64.
    pub client_key_data: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User")
    }
}

/// A context and its name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamedContext {
    /// Name, unique in the file.
    pub name: String,
    /// The context.
    pub context: Context,
}

/// A cluster, a user and a namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Context {
    /// Name of a cluster.
    pub cluster: String,
    /// Name of a user.
    pub user: String,
    /// Namespace in force; empty = "default".
    pub namespace: String,
}

/// What a command works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// host:port of each server, in the order to try.
    pub servers: Vec<String>,
    /// Namespace in force.
    pub namespace: String,
    /// True if the command line named it: manifests may then not say another.
    pub namespace_given: bool,
    /// Who calls, and whom it trusts; `None` = plaintext.
    pub credentials: Option<Credentials>,
}

/// What flags and variables say.
#[derive(Clone, Debug, Default)]
pub struct Given<'a> {
    /// --server.
    pub servers: &'a [String],
    /// --insecure.
    pub insecure: bool,
    /// --context.
    pub context: Option<&'a str>,
    /// -n.
    pub namespace: Option<&'a str>,
}

/// Decides what to work with.
///
/// # Errors
/// A missing context or cluster, an address that is none, or plaintext that nobody asked for.
pub fn resolve(given: &Given<'_>, file: Option<&ClientConfig>) -> Result<Target, Failure> {
    let empty = ClientConfig::default();
    let file = file.unwrap_or(&empty);
    let context = file.context(given.context)?;
    let namespace = given.namespace.map(str::to_owned).or_else(|| context.map(|context| context.namespace.clone()));
    let namespace = namespace
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| fairlead_proto::model::DEFAULT_NAMESPACE.to_owned());
    let cluster = context.map(|context| file.cluster(&context.cluster)).transpose()?;
    let (listed, insecure) = match cluster {
        _ if !given.servers.is_empty() => (given.servers.join(","), given.insecure),
        Some(cluster) => (cluster.server.clone(), given.insecure || cluster.insecure_plaintext),
        None => (DEFAULT_SERVER.to_owned(), given.insecure),
    };
    let servers =
        listed.split(',').map(str::trim).filter(|one| !one.is_empty()).map(address).collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() {
        return Err(Failure::local(
            "no server is given: say --server HOST:PORT, or name one in the client configuration",
        ));
    }
    let credentials = match cluster.zip(context) {
        _ if insecure => None,
        Some((cluster, context)) => file.credentials(cluster, &context.user)?,
        None => None,
    };
    if !insecure && credentials.is_none() {
        return Err(Failure::local(format!(
            "nothing says whom to trust at {}: give a client configuration with the cluster's CA and a certificate (--config FILE or FAIRLEAD_CONFIG; a first server writes one to admin.yaml in its data directory), or say --insecure to speak plaintext",
            servers.join(",")
        )));
    }
    Ok(Target { servers, namespace, namespace_given: given.namespace.is_some(), credentials })
}

impl ClientConfig {
    fn context(&self, named: Option<&str>) -> Result<Option<&Context>, Failure> {
        let name = named.unwrap_or(&self.current_context);
        if name.is_empty() {
            return Ok(None);
        }
        let found = self.contexts.iter().find(|one| one.name == name);
        found.map(|one| Some(&one.context)).ok_or_else(|| Failure::local(format!("context {name:?} does not exist")))
    }

    /// Of a cluster and a user; `None` = no CA is named.
    fn credentials(&self, cluster: &Cluster, user: &str) -> Result<Option<Credentials>, Failure> {
        let ca = pem(&cluster.certificate_authority_data, &cluster.certificate_authority)?;
        if ca.is_empty() {
            return Ok(None);
        }
        let found = self.users.iter().find(|one| one.name == user).map(|one| &one.user);
        let Some(user) = found else {
            return Err(Failure::local(format!("user {user:?} does not exist in the client configuration")));
        };
        let certificate = pem(&user.client_certificate_data, &user.client_certificate)?;
        let key = pem(&user.client_key_data, &user.client_key)?;
        Ok(Some(Credentials { ca, certificate, key }))
    }

    fn cluster(&self, name: &str) -> Result<&Cluster, Failure> {
        let found = self.clusters.iter().find(|one| one.name == name);
        found
            .map(|one| &one.cluster)
            .ok_or_else(|| Failure::local(format!("cluster {name:?} does not exist in the client configuration")))
    }
}

/// A configuration for kubectl: one cluster at a URL, one user, one context.
#[must_use]
pub fn kubeconfig(url: &str, target: &Target) -> Value {
    let (mut cluster, mut user) = (json!({"server": url}), json!({}));
    if let Some(held) = &target.credentials {
        let data = |pem: &str| Value::from(BASE64.encode(pem.as_bytes()));
        cluster["certificate-authority-data"] = data(&held.ca);
        user = json!({"client-certificate-data": data(&held.certificate), "client-key-data": data(&held.key)});
    }
    const NAME: &str = "fairlead";
    json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": user}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": target.namespace}}],
        "current-context": NAME,
    })
}

/// host:port of "host:port", "https://host:port" or "http://host:port".
fn address(text: &str) -> Result<String, Failure> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let bare = bare.trim_end_matches('/');
    let bad = || Failure::local(format!("server {text:?} is not HOST:PORT"));
    let (host, port) = bare.rsplit_once(':').ok_or_else(bad)?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_v6 || host.contains(['/', '@', ' ']) || port.parse::<u16>().is_err() {
        return Err(bad());
    }
    Ok(bare.to_owned())
}

/// Reads a client configuration. Names of other files in it are relative to its own folder.
///
/// # Errors
/// The file can't be read, or is not one; with its path.
pub fn read(path: &Path) -> Result<ClientConfig, Failure> {
    let mut config: ClientConfig =
        serde_json::from_value(read_value(path)?).map_err(|error| not_one(path, &error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let from_folder = |name: &mut String| {
        if !name.is_empty() {
            *name = folder.join(&*name).display().to_string();
        }
    };
    config.clusters.iter_mut().for_each(|one| from_folder(&mut one.cluster.certificate_authority));
    for one in &mut config.users {
        from_folder(&mut one.user.client_certificate);
        from_folder(&mut one.user.client_key);
    }
    Ok(config)
}

/// PEM that is given itself, in base64, or by the name of its file.
fn pem(data: &str, file: &str) -> Result<String, Failure> {
    if !data.is_empty() {
        let decoded = BASE64.decode(data.trim().as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        return decoded.ok_or_else(|| {
            Failure::local("the client configuration holds a certificate or key that is not base64 of PEM")
        });
    }
    if file.is_empty() {
        return Ok(String::new());
    }
    std::fs::read_to_string(file).map_err(|error| Failure::local(format!("can't read {file}: {error}")))
}

/// Reads a client configuration as it is, with what others keep in it.
///
/// # Errors
/// The file can't be read, or is not one; with its path.
pub fn read_value(path: &Path) -> Result<Value, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::local(format!("can't read the client configuration {}: {error}", path.display()))
    };
    let mut text = String::new();
    std::fs::File::open(path)
        .map_err(unreadable)?
        .take(MAX_CONFIG + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(not_one(path, "it is larger than 1 MiB"));
    }
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| not_one(path, &error.to_string()))?;
    match value {
        Value::Null => Ok(json!({})),
        Value::Object(_) => Ok(value),
        _ => Err(not_one(path, "it is not a mapping")),
    }
}

fn not_one(path: &Path, problem: &str) -> Failure {
    Failure::local(format!("{} is not a client configuration: {problem}", path.display()))
}

/// Writes a client configuration, whole or not at all, readable by its owner only.
///
/// # Errors
/// The file can't be written; with its path.
pub fn write_value(path: &Path, value: &Value) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let unwritable = |error: std::io::Error| {
        Failure::local(format!("can't write the client configuration {}: {error}", path.display()))
    };
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}.new", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&staged)
        .map_err(unwritable)?;
    let written = file
        .write_all(yaml(value)?.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&staged, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    written.map_err(unwritable)
}

/// A configuration with one context, `dev`, of plaintext servers.
pub fn dev_config(servers: &[String]) -> Value {
    let urls: Vec<String> = servers.iter().map(|server| format!("http://{server}")).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "dev", "cluster": {"server": urls.join(","), "insecure-plaintext": true}}],
        "contexts": [{"name": "dev", "context": {"cluster": "dev", "user": "dev", "namespace": "default"}}],
        "users": [{"name": "dev", "user": {}}],
        "current-context": "dev",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: a\n  cluster:\n    server: http://h1:7400,http://h2:7400\n    insecure-plaintext: true\n- name: b\n  cluster: {server: 'http://h3:7400'}\ncontexts:\n- {name: one, context: {cluster: a, namespace: team}}\n- {name: two, context: {cluster: b}}\n- {name: lost, context: {cluster: none}}\ncurrent-context: one\n";

    fn file() -> ClientConfig {
        serde_saphyr::from_str(FILE).unwrap()
    }

    #[test]
    fn flags_beat_the_context_which_beats_loopback() {
        let nothing = Given { insecure: true, ..Given::default() };
        let target = resolve(&nothing, None).unwrap();
        assert_eq!(
            (target.servers.as_slice(), target.namespace.as_str()),
            (["127.0.0.1:7400".to_owned()].as_slice(), "default")
        );
        let target = resolve(&Given::default(), Some(&file())).unwrap();
        assert_eq!(
            (target.servers.join(","), target.namespace.as_str(), target.namespace_given),
            ("h1:7400,h2:7400".into(), "team", false)
        );
        let servers = ["h9:1".to_owned(), "http://[::1]:2/".to_owned()];
        let given = Given { servers: &servers, insecure: true, namespace: Some("x"), ..Given::default() };
        let target = resolve(&given, Some(&file())).unwrap();
        assert_eq!(
            (target.servers.join(","), target.namespace.as_str(), target.namespace_given),
            ("h9:1,[::1]:2".into(), "x", true)
        );
    }

    #[test]
    fn plaintext_has_to_be_asked_for() {
        let two = Given { context: Some("two"), ..Given::default() };
        let refused = resolve(&two, Some(&file())).unwrap_err().text();
        assert!(refused.contains("--insecure") && refused.contains("h3:7400"), "{refused}");
        assert!(resolve(&Given { insecure: true, ..two }, Some(&file())).is_ok());
        // The file's word for its own servers is no word for others.
        let servers = ["h9:1".to_owned()];
        assert!(resolve(&Given { servers: &servers, ..Given::default() }, Some(&file())).is_err());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (given, says) in [
            (Given { context: Some("none"), insecure: true, ..Given::default() }, "context \"none\" does not exist"),
            (Given { context: Some("lost"), insecure: true, ..Given::default() }, "cluster \"none\" does not exist"),
        ] {
            assert!(resolve(&given, Some(&file())).unwrap_err().text().contains(says));
        }
        for server in ["ftp://h:1", "h", "h:x", "h:70000", ":1", "::1:7400", "a b:1", "http://h/x:1"] {
            let servers = [server.to_owned()];
            assert!(
                resolve(&Given { servers: &servers, insecure: true, ..Given::default() }, None).is_err(),
                "{server}"
            );
        }
    }

    #[test]
    fn what_dev_writes_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.yaml");
        assert!(read(&path).unwrap_err().text().contains("client.yaml"));
        write_value(&path, &dev_config(&["127.0.0.1:7400".to_owned(), "127.0.0.1:7500".to_owned()])).unwrap();
        let target = resolve(&Given::default(), Some(&read(&path).unwrap())).unwrap();
        assert_eq!(target.servers, ["127.0.0.1:7400", "127.0.0.1:7500"]);
        std::fs::write(&path, "- 1\n").unwrap();
        assert!(read(&path).unwrap_err().text().contains("not a mapping"));
        std::fs::write(&path, "a: [\n").unwrap();
        assert!(read(&path).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no staged file is left");
    }
}
