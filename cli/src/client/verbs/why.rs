//! `why`: gathers what is known of a service and its nodes, and prints why it doesn't work.

use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter};
use crate::client::findings::{TextOrJson, any_wrong};
use crate::client::kinds::Resource;
use crate::client::output::print;
use crate::client::why::{Facts, Why, why};
use crate::client::{Global, Session};
use clap::Args;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{DataplaneRequest, Kind, Object};
use serde_json::{Value, json};

/// Flags of `why`.
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// Name of the service, or NAMESPACE/NAME
    service: String,
    /// text or json
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// Runs it.
///
/// # Errors
/// Something is wrong with the service, or no server answers.
pub async fn run(global: &Global, args: &WhyArgs) -> Result<(), Failure> {
    let session = global.session()?;
    let path = args.service.trim_start_matches("service/").trim_start_matches("svc/");
    let (namespace, name) = path.split_once('/').unwrap_or((session.namespace.as_str(), path));
    let facts = gather(&session, (namespace, name)).await?;
    let found = why(&facts);
    print(&args.output.choose(|| text(&facts, &found), || to_json(&facts, &found))?)?;
    if any_wrong(found.findings.iter()) { Err(Failure::Silent) } else { Ok(()) }
}

async fn gather(session: &Session, (namespace, name): (&str, &str)) -> Result<Facts, Failure> {
    let mut facts = Facts { namespace: namespace.to_owned(), name: name.to_owned(), ..Facts::default() };
    let service = found(session.object(&Key::new(Kind::Service, namespace, name)).await)?;
    facts.service = service.as_ref().and_then(Object::as_service).cloned();
    if facts.service.is_none() {
        let all = session.stored(Resource::of(Kind::Service), &everything("")).await?;
        facts.others = all.iter().map(|one| format!("{}/{}", one.metadata().namespace, one.metadata().name)).collect();
        return Ok(facts);
    }
    let pods = session.stored(Resource::of(Kind::Pod), &everything(namespace)).await?;
    facts.pods = pods.iter().filter_map(Object::as_pod).cloned().collect();
    let endpoints = found(session.object(&Key::new(Kind::Endpoints, namespace, name)).await)?;
    facts.endpoints = endpoints.as_ref().and_then(Object::as_endpoints).cloned();
    let status = session.servers.status().await?;
    (facts.nodes, facts.domain) = (status.nodes, status.cluster_domain);
    let request = DataplaneRequest { diff: true, ..DataplaneRequest::default() };
    // A node that can't say shows in its progress; nobody's drift is not known then.
    for node in session.servers.dataplane(request).await?.nodes {
        if let Some(diff) = node.answer.and_then(|answer| answer.diff) {
            facts.drift.insert(node.node, diff.count);
        }
    }
    Ok(facts)
}

fn everything(namespace: &str) -> Filter {
    Filter { namespace: namespace.to_owned(), chunk: CHUNK, ..Filter::default() }
}

fn found(object: Result<Object, Failure>) -> Result<Option<Object>, Failure> {
    match object {
        Err(failure) if failure.is_not_found() => Ok(None),
        found => found.map(Some),
    }
}

fn text(facts: &Facts, found: &Why) -> String {
    let spec = facts.service.as_ref().and_then(|service| service.spec.clone()).unwrap_or_default();
    let addresses = spec.cluster_ips.join(", ");
    let kind = if spec.r#type.is_empty() { String::new() } else { format!(" ({} {addresses})", spec.r#type) };
    let mut text = format!("{}/{}{}\n", facts.namespace, facts.name, kind.replace(" )", ")"));
    for finding in &found.findings {
        text.push_str(&finding.render(false));
    }
    text.push_str(&format!("Next: {}\n", found.next));
    text
}

fn to_json(facts: &Facts, found: &Why) -> Value {
    json!({
        "namespace": facts.namespace,
        "service": facts.name,
        "works": !any_wrong(found.findings.iter()),
        "findings": found.findings.iter().map(|finding| finding.to_json()).collect::<Vec<_>>(),
        "next": found.next,
    })
}
