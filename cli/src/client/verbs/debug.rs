//! `debug`: what helps others to find out what is wrong, in one file. It goes on where something can't be asked: that is
//! part of what is wrong.

use crate::client::Global;
use crate::client::failure::Failure;
use crate::client::output::print;
use crate::client::verbs::{check, status};
use clap::Args;
use fairlead_proto::v1::{DataplaneRequest, DiagnoseResponse};
use serde_json::{Map, Value, json};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Flags of `debug`.
#[derive(Args, Debug)]
pub struct DebugArgs {
    /// File to write; - for standard output [default: fairlead-debug-TIME.json here]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// No server is known, or the file can't be written.
pub async fn run(global: &Global, args: &DebugArgs) -> Result<(), Failure> {
    let session = global.session()?;
    let servers = &session.servers;
    let now = jiff::Timestamp::now();
    let mut bundle = Map::new();
    bundle.insert("fairlead".into(), env!("CARGO_PKG_VERSION").into());
    bundle.insert("at".into(), now.strftime("%FT%TZ").to_string().into());
    let asked = servers.diagnose().await;
    let servers_said: Vec<Value> = asked.into_iter().map(|(address, answer)| server(&address, answer)).collect();
    bundle.insert("servers".into(), servers_said.into());
    match servers.status().await {
        Ok(found) => {
            bundle.insert("status".into(), status::to_json(&found));
            let kernels = servers.dataplane(DataplaneRequest { diff: true, ..DataplaneRequest::default() }).await;
            let checked = kernels.map(|kernels| check::judged(&found, &kernels.nodes));
            bundle.insert("nodes".into(), checked.unwrap_or_else(|failure| json!({"error": failure.text()})));
        }
        Err(failure) => drop(bundle.insert("status".into(), json!({"error": failure.text()}))),
    }
    let text = format!("{:#}\n", Value::Object(bundle));
    let file = match &args.file {
        Some(file) if file.as_os_str() == "-" => return print(&text),
        Some(file) => file.clone(),
        None => PathBuf::from(format!("fairlead-debug-{}.json", now.strftime("%Y%m%dT%H%M%SZ"))),
    };
    let written = || {
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
        to.write_all(text.as_bytes())?;
        to.sync_all()
    };
    written().map_err(|error: std::io::Error| Failure::local(format!("can't write {}: {error}", file.display())))?;
    print(&format!(
        "{} written: names and addresses are in it, and no keys, tokens or contents of objects; look through it before you pass it on\n",
        file.display()
    ))
}

fn server(address: &str, answer: Result<DiagnoseResponse, String>) -> Value {
    match answer {
        Ok(said) => json!({
            "address": address,
            "name": said.server,
            "version": said.version,
            "at": said.at,
            "settings": serde_json::from_str::<Value>(&said.settings_json).unwrap_or(Value::Null),
            "raft": said.raft,
            "objects": said.objects,
            "metrics": said.metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect::<Vec<_>>(),
        }),
        Err(error) => json!({"address": address, "error": error}),
    }
}
