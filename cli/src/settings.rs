//! Settings of a long-running command: a flag overrides its FAIRLEAD_… variable, which overrides the file (`--config`,
//! TOML, the flags' names), which overrides the default.

use anyhow::Context as _;
use fairlead_proto::token::JoinToken;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;

/// Reads a settings file; an unknown or mistyped setting is an error that names it.
///
/// # Errors
/// The file can't be read or understood.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read the configuration {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("the configuration {} is not valid", path.display()))
}

/// "n1=host:7401,n2=…" as names and addresses.
///
/// # Errors
/// What is wrong with it, and with which part.
pub fn initial_cluster(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut members: Vec<(String, String)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, address) =
            part.split_once('=').with_context(|| format!("--initial-cluster: {part:?} is not name=host:port"))?;
        let port =
            address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port)?.parse::<u16>().ok());
        anyhow::ensure!(!name.is_empty() && port.is_some(), "--initial-cluster: {part:?} is not name=host:port");
        anyhow::ensure!(!members.iter().any(|(other, _)| other == name), "--initial-cluster names {name:?} twice");
        anyhow::ensure!(!members.iter().any(|(_, other)| other == address), "--initial-cluster gives {address} twice");
        members.push((name.to_owned(), address.to_owned()));
    }
    anyhow::ensure!(!members.is_empty(), "--initial-cluster is empty");
    Ok(members)
}

/// A join token, itself or in a file.
///
/// # Errors
/// The file can't be read, or it is no token. A token is never repeated.
pub fn token((text, file): (Option<&str>, Option<&Path>)) -> anyhow::Result<Option<JoinToken>> {
    let text = match (text, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(text.parse::<JoinToken>()?))
}

/// "90s", "720h".
///
/// # Errors
/// It is no duration of a second or more.
pub fn duration(text: &str) -> anyhow::Result<Duration> {
    let length = crate::client::parse_duration(text).map_err(|why| anyhow::anyhow!("{why}"))?;
    anyhow::ensure!(length >= Duration::from_secs(1), "{text:?} is less than a second");
    Ok(length)
}

/// "30000-32767" as first and last port.
///
/// # Errors
/// Not such a range.
pub fn node_port_range(text: &str) -> anyhow::Result<(u16, u16)> {
    let range =
        text.split_once('-').and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
    let (first, last) =
        range.with_context(|| format!("--node-port-range: {text:?} is not FIRST-LAST, such as 30000-32767"))?;
    anyhow::ensure!(first > 0 && first <= last, "--node-port-range: {text:?} is empty");
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_cluster_says_which_part_is_wrong() {
        assert_eq!(initial_cluster("n1=a:1, n2=b:2").unwrap().len(), 2);
        for (text, says) in [
            ("", "empty"),
            ("n1", "n1"),
            ("n1=a", "name=host:port"),
            ("n1=a:1,n1=b:2", "twice"),
            ("n1=a:1,n2=a:1", "twice"),
            ("n1=a:70000", "host:port"),
        ] {
            let error = initial_cluster(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn node_port_range_is_first_to_last() {
        assert_eq!(node_port_range("30000-32767").unwrap(), (30_000, 32_767));
        for text in ["", "30000", "0-5", "9-3", "a-b", "1-70000"] {
            assert!(node_port_range(text).is_err(), "{text:?}");
        }
    }
}
