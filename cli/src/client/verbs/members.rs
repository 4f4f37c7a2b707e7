//! `member` and `operator`: who belongs to the cluster, who votes, who leads.

use crate::client::failure::Failure;
use crate::client::output::print;
use crate::client::table::Aligner;
use crate::client::{Global, Session};
use clap::Subcommand;
use fairlead_proto::v1::members_client::MembersClient;
use fairlead_proto::v1::{DrainRequest, MemberChanged, PromoteRequest, RemoveRequest, TransferRequest};
use fairlead_server::storage::recover::recover;
use std::path::PathBuf;
use tonic::transport::Channel;

/// Verbs of `member`.
#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// List the members, as the server that is asked knows them; needs no leader
    List,
    /// Show how a new server joins
    Add {
        /// Its name
        name: String,
    },
    /// Let a learner that has caught up vote
    Promote {
        /// Its name
        name: String,
    },
    /// Remove a member for good; its id is never given again
    Remove {
        /// Its name
        name: String,
    },
    /// Let a member hand leadership away and not take it
    Drain {
        /// Its name
        name: String,
        /// Let it lead again
        #[arg(long)]
        undo: bool,
    },
}

/// Verbs of `operator`.
#[derive(Debug, Subcommand)]
pub enum OperatorVerb {
    /// Let another member lead
    TransferLeader {
        /// Its name [default: the voter that has most of the log]
        name: Option<String>,
    },
    /// Make a stopped server, the only one left, the only member of the cluster; what the lost ones alone had is lost
    Recover {
        /// Its data directory
        #[arg(long)]
        data_dir: PathBuf,
        /// Do it; else only say what would be done
        #[arg(long)]
        yes: bool,
    },
}

type Client = MembersClient<Channel>;

/// Runs `member`.
///
/// # Errors
/// [`Failure`].
pub async fn member(global: &Global, verb: MemberVerb) -> Result<(), Failure> {
    let Session { servers, .. } = global.session()?;
    match verb {
        MemberVerb::List => {
            let status = servers.status().await?;
            let newest = status.members.iter().map(|member| member.last_log_index).max().unwrap_or(0);
            let titles = ["NAME", "ID", "ROLE", "PEER", "GRPC", "BEHIND", "STATUS"].map(str::to_owned).to_vec();
            let rows = status.members.into_iter().map(|member| {
                let role = match (member.leader, member.voter) {
                    (true, _) => "leader",
                    (_, true) => "voter",
                    _ => "learner",
                };
                let reached = member.error.is_empty();
                let behind = if reached { (newest - member.applied_index.min(newest)).to_string() } else { "?".into() };
                let state = match (reached, member.drained) {
                    (false, _) => member.error,
                    (_, true) => "drained".into(),
                    _ => "ok".into(),
                };
                let id = format!("{:x}", member.id);
                vec![member.name, id, role.to_owned(), member.peer_address, member.grpc_address, behind, state]
            });
            let rows: Vec<Vec<String>> = std::iter::once(titles).chain(rows).collect();
            print(&Aligner::default().render(&rows))
        }
        MemberVerb::Add { name } => {
            let status = servers.status().await?;
            let known = status.members.iter().find(|member| member.leader).or(status.members.first());
            let server = known.map(|member| member.grpc_address.clone()).unwrap_or_default();
            print(&format!(
                "on the new server, with a token of `fairlead token create --role server --single-use` (none with --insecure):\n  fairlead server --name {name} --join {server} --token-file FILE --advertise-peer HOST:7401\nit comes as a learner; when it has caught up: fairlead member promote {name}\n"
            ))
        }
        MemberVerb::Promote { name } => {
            let promote = async |mut client: Client, request| client.promote(request).await;
            said(servers.members(PromoteRequest { name }, promote).await?)
        }
        MemberVerb::Remove { name } => {
            let remove = async |mut client: Client, request| client.remove(request).await;
            said(servers.members(RemoveRequest { name }, remove).await?)
        }
        MemberVerb::Drain { name, undo } => {
            let drain = async |mut client: Client, request| client.drain(request).await;
            said(servers.members(DrainRequest { name, undo }, drain).await?)
        }
    }
}

/// Runs `operator`.
///
/// # Errors
/// [`Failure`].
pub async fn operator(global: &Global, verb: OperatorVerb) -> Result<(), Failure> {
    match verb {
        OperatorVerb::TransferLeader { name } => {
            let Session { servers, .. } = global.session()?;
            let transfer = async |mut client: Client, request| client.transfer_leader(request).await;
            said(servers.members(TransferRequest { name: name.unwrap_or_default() }, transfer).await?)
        }
        OperatorVerb::Recover { data_dir, yes } => {
            let done = recover(&data_dir, !yes).map_err(|error| Failure::local(error.to_string()))?;
            let (name, revision, unapplied) = (done.name, done.revision, done.unapplied);
            let lost = if done.lost.is_empty() { "nobody".to_owned() } else { done.lost.join(", ") };
            if !yes {
                return print(&format!(
                    "{name} at revision {revision}, with {unapplied} later entries in its log that would count\n{lost} would be members no longer, and can't come back; writes that only they had would be lost\nnothing was changed: say --yes, with all of them stopped for good\n"
                ));
            }
            print(&format!(
                "{name} is the only member, at revision {revision} and {unapplied} entries of its log\nstart it as before, then: fairlead member remove NAME for each of {lost}, and let new ones --join\n"
            ))
        }
    }
}

fn said(changed: MemberChanged) -> Result<(), Failure> {
    print(&format!("{}\n", changed.message))
}
