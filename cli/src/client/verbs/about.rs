//! `api-resources`, `version` and `completion`: what this program and its servers are.

use crate::client::Global;
use crate::client::failure::Failure;
use crate::client::kinds::ALL;
use crate::client::output::{json_text, print, yaml};
use crate::client::table::Aligner;
use clap::{Args, CommandFactory as _, ValueEnum};
use serde_json::json;

/// Flags of `api-resources`.
#[derive(Args, Debug)]
pub struct ApiResourcesArgs {
    /// wide or name
    #[arg(short, long)]
    output: Option<String>,
    /// Without the line of column titles
    #[arg(long)]
    no_headers: bool,
    /// Only namespaced ones, or only others
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    namespaced: Option<bool>,
}

/// Flags of `version`.
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Without asking a server
    #[arg(long)]
    client: bool,
    /// json or yaml
    #[arg(short, long)]
    output: Option<String>,
}

/// Flags of `completion`.
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Runs `api-resources`.
///
/// # Errors
/// An unknown format.
pub fn api_resources(args: &ApiResourcesArgs) -> Result<(), Failure> {
    print(&resources(args)?)
}

fn resources(args: &ApiResourcesArgs) -> Result<String, Failure> {
    let wanted =
        ALL.into_iter().filter(|resource| args.namespaced.is_none_or(|wanted| wanted == resource.is_namespaced()));
    let wide = match args.output.as_deref() {
        None | Some("") => false,
        Some("wide") => true,
        Some("name") => {
            let dotted = |group: &str| if group.is_empty() { String::new() } else { format!(".{group}") };
            return Ok(wanted.map(|resource| format!("{}{}\n", resource.plural, dotted(resource.group))).collect());
        }
        Some(other) => {
            return Err(Failure::local(format!("--output {other} is not available, it must be one of wide, name")));
        }
    };
    let titles = ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND", "VERBS", "CATEGORIES"];
    let mut rows: Vec<Vec<String>> =
        if args.no_headers { Vec::new() } else { vec![titles.map(str::to_owned).to_vec()] };
    rows.extend(wanted.map(|resource| {
        vec![
            resource.plural.to_owned(),
            resource.short.to_owned(),
            resource.api_version(),
            resource.is_namespaced().to_string(),
            resource.title.to_owned(),
            resource.verbs().to_owned(),
            if resource.in_all { "all".to_owned() } else { String::new() },
        ]
    }));
    if !wide {
        rows.iter_mut().for_each(|row| row.truncate(5));
    }
    Ok(Aligner::default().render(&rows))
}

/// Runs `version`.
///
/// # Errors
/// No server answers; the client's version is printed all the same.
pub async fn version(global: &Global, args: &VersionArgs) -> Result<(), Failure> {
    let own = concat!("v", env!("CARGO_PKG_VERSION"));
    let asked = if args.client { None } else { Some(ask(global).await) };
    let (server, failure) = match asked {
        None => (None, None),
        Some(Ok(version)) => (Some(format!("v{version}")), None),
        Some(Err(failure)) => (None, Some(failure)),
    };
    match args.output.as_deref() {
        Some(format @ ("json" | "yaml")) => {
            let mut value = json!({"clientVersion": {"gitVersion": own}});
            if let Some(server) = &server {
                value["serverVersion"] = json!({"gitVersion": server});
            }
            print(&if format == "json" { json_text(&value)? } else { yaml(&value)? })?;
        }
        None | Some("") => {
            print(&format!("Client Version: {own}\n"))?;
            if let Some(server) = &server {
                print(&format!("Server Version: {server}\n"))?;
            }
        }
        Some(_) => return Err(Failure::local("--output must be 'yaml' or 'json'")),
    }
    failure.map_or(Ok(()), Err)
}

async fn ask(global: &Global) -> Result<String, Failure> {
    Ok(global.session()?.servers.status().await?.version)
}

/// Runs `completion`.
///
/// # Errors
/// Standard output can't be written.
pub fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    use clap_complete::{generate, shells};
    let mut command = crate::Cli::command();
    let mut script = Vec::new();
    match args.shell {
        Shell::Bash => generate(shells::Bash, &mut command, "fairlead", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "fairlead", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "fairlead", &mut script),
    }
    print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_listed_as_kubectl_lists_them() {
        let list = |output: Option<&str>| {
            resources(&ApiResourcesArgs { output: output.map(str::to_owned), no_headers: false, namespaced: None })
        };
        let text = list(None).unwrap();
        assert!(text.starts_with("NAME             SHORTNAMES   APIVERSION            NAMESPACED   KIND\nendpoints        ep           v1                    true         Endpoints\n"), "{text}");
        assert!(
            text.ends_with("endpointslices   eps          discovery.k8s.io/v1   true         EndpointSlice\n"),
            "{text}"
        );
        assert!(list(Some("name")).unwrap().ends_with("services\nendpointslices.discovery.k8s.io\n"));
        assert!(list(Some("wide")).unwrap().lines().next().unwrap().ends_with("CATEGORIES"));
        assert!(list(Some("json")).is_err());
    }
}
