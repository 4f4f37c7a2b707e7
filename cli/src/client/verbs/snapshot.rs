//! `snapshot`: backups of the whole state, what is in one, and a new cluster made of one.

use crate::client::failure::Failure;
use crate::client::output::print;
use crate::client::{Global, Session};
use crate::server::host_name;
use crate::settings;
use clap::{Args, Subcommand};
use fairlead_proto::v1::SaveSnapshotRequest;
use fairlead_proto::v1::maintenance_client::MaintenanceClient;
use fairlead_server::storage::backup::{self, Contents};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tonic::transport::Channel;

/// Verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Save the whole state into a file; it holds the cluster's keys
    Save(SaveArgs),
    /// Check a saved state and say what is in it
    Status {
        /// The file
        file: PathBuf,
        /// json
        #[arg(short, long)]
        output: Option<String>,
    },
    /// Make a member's data directory of a saved state, for a new cluster; on every founder from the same file
    Restore(RestoreArgs),
}

/// Flags of `snapshot save`.
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// The file
    file: PathBuf,
    /// As the asked server knows it, also without a quorum
    #[arg(long)]
    stale: bool,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

/// Flags of `snapshot restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The file
    file: PathBuf,
    /// The data directory to make
    #[arg(long)]
    data_dir: PathBuf,
    /// Name of the member [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// All founders of the new cluster: n1=host:peerport,… [default: this member alone, on 127.0.0.1:7401]
    #[arg(long)]
    initial_cluster: Option<String>,
    /// How far the revision goes beyond the saved one, so that nobody who saw later ones goes back in time
    #[arg(long, default_value_t = 1_000_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    bump_revision: u64,
}

/// Runs `snapshot`.
///
/// # Errors
/// [`Failure`].
pub async fn run(global: &Global, verb: SnapshotVerb) -> Result<(), Failure> {
    match verb {
        SnapshotVerb::Save(args) => save(global, &args).await,
        SnapshotVerb::Status { file, output } => {
            let contents = checked(&file)?;
            match output.as_deref() {
                None => print(&described(&contents)),
                Some("json") => print(&format!("{:#}\n", as_json(&contents))),
                Some(other) => Err(Failure::local(format!("output must be json: {other}"))),
            }
        }
        SnapshotVerb::Restore(args) => restore(&args).await,
    }
}

async fn save(global: &Global, args: &SaveArgs) -> Result<(), Failure> {
    if args.file.exists() && !args.force {
        return Err(Failure::local(format!(
            "{} is there already: choose another file, or say --force",
            args.file.display()
        )));
    }
    let Session { servers, .. } = global.session()?;
    let mut staged = args.file.as_os_str().to_owned();
    staged.push(".part");
    let staged = PathBuf::from(staged);
    let saved = receive(&servers, args.stale, &staged).await;
    let kept = saved.and_then(|()| {
        let contents = checked(&staged)?;
        std::fs::rename(&staged, &args.file).map_err(|error| unwritable(&args.file, &error))?;
        Ok(contents)
    });
    if kept.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    print(&format!("saved to {}\n{}", args.file.display(), described(&kept?)))
}

async fn receive(servers: &crate::client::connect::Servers, stale: bool, staged: &Path) -> Result<(), Failure> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(staged);
    let mut file: File = open.map_err(|error| unwritable(staged, &error))?;
    let call = async |channel: Channel, request| MaintenanceClient::new(channel).save_snapshot(request).await;
    let mut parts = servers.stream(SaveSnapshotRequest { stale }, call).await?;
    while let Some(part) = parts.message().await.map_err(|status| Failure::from_status(&status))? {
        file.write_all(&part.data).map_err(|error| unwritable(staged, &error))?;
        if part.last {
            return file.sync_all().map_err(|error| unwritable(staged, &error));
        }
    }
    Err(Failure::local("the server broke off: nothing is saved"))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("can't write {}: {error}", path.display()))
}

fn checked(path: &Path) -> Result<Contents, Failure> {
    backup::inspect(path).map_err(|error| Failure::local(format!("{}: {error}", path.display())))
}

fn described(contents: &Contents) -> String {
    let objects: Vec<String> = contents.objects.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!(
        "cluster {} at revision {}, {}\n{} bytes, SHA-256 {}, state digest {}\n",
        contents.cluster_id,
        contents.revision,
        objects.join(", "),
        contents.bytes,
        contents.sha256,
        contents.digest
    )
}

fn as_json(contents: &Contents) -> serde_json::Value {
    json!({
        "clusterId": contents.cluster_id,
        "revision": contents.revision,
        "machineVersion": contents.machine_version,
        "objects": contents.objects,
        "bytes": contents.bytes,
        "sha256": contents.sha256,
        "digest": contents.digest,
    })
}

async fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let local = |error: anyhow::Error| Failure::local(format!("{error:#}"));
    let name = args.name.clone().map_or_else(host_name, Ok).map_err(local)?;
    let founders = match &args.initial_cluster {
        Some(text) => settings::initial_cluster(text).map_err(local)?,
        None => vec![(name.clone(), "127.0.0.1:7401".to_owned())],
    };
    let restored = backup::restore(&args.file, &args.data_dir, (&name, &founders), args.bump_revision).await;
    let revision = restored.map_err(|error| Failure::local(error.to_string()))?;
    print(&format!(
        "{} is member {name} of a new cluster at revision {revision}\nrestore every other founder from the same file, then start them all with this --name and --initial-cluster; no member of the old cluster may run\n",
        args.data_dir.display()
    ))
}
