//! `config`: looking at and choosing contexts of the configuration file. What others keep in the file stays.

use crate::client::failure::Failure;
use crate::client::output::{print, yaml};
use crate::client::table::Aligner;
use crate::client::{Global, config};
use clap::Subcommand;
use serde_json::Value;
use std::path::Path;

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Show the context in force
    CurrentContext,
    /// List the contexts
    GetContexts {
        /// Without the line of column titles
        #[arg(long)]
        no_headers: bool,
        /// name
        #[arg(short, long)]
        output: Option<String>,
    },
    /// Choose the context in force
    #[command(visible_alias = "use")]
    UseContext {
        /// Its name
        name: String,
    },
    /// Show the configuration, without keys
    View {
        /// With them
        #[arg(long)]
        raw: bool,
    },
}

/// Runs it.
///
/// # Errors
/// No configuration file is named, it can't be read or written, or there is no such context.
pub fn run(global: &Global, verb: ConfigVerb) -> Result<(), Failure> {
    let path = global
        .config
        .as_deref()
        .ok_or_else(|| Failure::local("no configuration file is named: say --config FILE or set FAIRLEAD_CONFIG"))?;
    match verb {
        ConfigVerb::CurrentContext => {
            let file = config::read(path)?;
            if file.current_context.is_empty() {
                return Err(Failure::local("current-context is not set"));
            }
            print(&format!("{}\n", file.current_context))
        }
        ConfigVerb::GetContexts { no_headers, output } => {
            print(&contexts(&config::read(path)?, no_headers, output.as_deref())?)
        }
        ConfigVerb::UseContext { name } => use_context(path, &name),
        ConfigVerb::View { raw } => {
            let mut file = config::read_value(path)?;
            if !raw {
                hide_secrets(&mut file);
            }
            print(&yaml(&file)?)
        }
    }
}

/// Secrets of a kubeconfig, hidden in kubectl's words.
fn hide_secrets(file: &mut Value) {
    const SECRET: [(&str, &str); 5] = [
        ("certificate-authority-data", "DATA+OMITTED"),
        ("client-certificate-data", "DATA+OMITTED"),
        ("client-key-data", "DATA+OMITTED"),
        ("token", "REDACTED"),
        ("password", "REDACTED"),
    ];
    match file {
        Value::Object(fields) => {
            for (name, value) in fields {
                match SECRET.iter().find(|(secret, _)| secret == name) {
                    Some((_, shown)) if !value.is_null() => *value = Value::from(*shown),
                    _ => hide_secrets(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        _ => {}
    }
}

fn contexts(file: &config::ClientConfig, no_headers: bool, output: Option<&str>) -> Result<String, Failure> {
    match output {
        None | Some("") => {}
        Some("name") => return Ok(file.contexts.iter().map(|one| format!("{}\n", one.name)).collect()),
        Some(other) => return Err(Failure::local(format!("output must be one of '' or 'name': {other}"))),
    }
    let titles = ["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"];
    let mut rows: Vec<Vec<String>> = if no_headers { Vec::new() } else { vec![titles.map(str::to_owned).to_vec()] };
    rows.extend(file.contexts.iter().map(|one| {
        let mark = if one.name == file.current_context { "*" } else { "" };
        let context = &one.context;
        vec![
            mark.to_owned(),
            one.name.clone(),
            context.cluster.clone(),
            context.user.clone(),
            context.namespace.clone(),
        ]
    }));
    Ok(Aligner::default().render(&rows))
}

fn use_context(path: &Path, name: &str) -> Result<(), Failure> {
    if !config::read(path)?.contexts.iter().any(|one| one.name == name) {
        return Err(Failure::local(format!("no context exists with the name: {name:?}")));
    }
    let mut value = config::read_value(path)?;
    value["current-context"] = name.into();
    config::write_value(path, &value)?;
    print(&format!("Switched to context {name:?}.\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let mut file = serde_json::json!({
            "clusters": [{"cluster": {"server": "https://h:1", "certificate-authority-data": "Q0E="}}],
            "users": [{"name": "me", "user": {"client-key-data": "S0VZ", "token": "secret", "client-key": "key.pem"}}],
        });
        hide_secrets(&mut file);
        let shown = file.to_string();
        assert!(!shown.contains("S0VZ") && !shown.contains("secret") && !shown.contains("Q0E="), "{shown}");
        assert!(
            shown.contains("https://h:1") && shown.contains("key.pem") && shown.contains("DATA+OMITTED"),
            "{shown}"
        );
    }

    #[test]
    fn choosing_a_context_keeps_the_rest_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.yaml");
        let text = "contexts:\n- name: a\n  context: {cluster: one}\n- name: b\n  context: {cluster: two, user: me, namespace: team}\ncurrent-context: a\nusers:\n- name: me\n  user: {token: secret}\n";
        std::fs::write(&path, text).unwrap();
        use_context(&path, "b").unwrap();
        let file = config::read(&path).unwrap();
        assert_eq!(
            contexts(&file, false, None).unwrap(),
            "CURRENT   NAME   CLUSTER   AUTHINFO   NAMESPACE\n          a      one                  \n*         b      two       me         team\n"
        );
        assert_eq!(contexts(&file, true, Some("name")).unwrap(), "a\nb\n");
        assert_eq!(config::read_value(&path).unwrap()["users"][0]["user"]["token"], "secret");
        assert_eq!(use_context(&path, "c").unwrap_err().text(), "error: no context exists with the name: \"c\"");
    }
}
