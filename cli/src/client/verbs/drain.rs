//! `drain`: pods, or all pods of nodes, get no new connection any more; those they have live until the grace is over. It
//! returns when every node's kernel acknowledged that.
//!
//! Invariant: success is never said while a kernel may still send new connections there: a lagging node, a silent one that
//! may run with older rules, or a service that has no other endpoint is named, and the exit code is 1.

use crate::client::failure::Failure;
use crate::client::fetch::{CHUNK, Filter};
use crate::client::kinds::{ENDPOINTS, PODS, SERVICES};
use crate::client::output::print;
use crate::client::targets::{self, Targets};
use crate::client::{Global, Session, duration, programmed};
use clap::Args;
use fairlead_proto::model::{Key, annotations};
use fairlead_proto::v1::{
    DeleteRequest, Endpoints, Input, Kind, Object, Service, UpdateRequest, WriteEffect, WriteOptions, input, object,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// Times that a write is tried when somebody else writes the node in between.
const ATTEMPTS: u32 = 8;

/// Flags of `drain`.
#[derive(Args, Debug)]
pub struct DrainArgs {
    /// pod NAME…, node NAME…, or pod/NAME and node/NAME
    #[arg(value_name = "KIND NAME", required = true)]
    targets: Vec<String>,
    /// How long open connections may go on; then the pods are gone
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    grace: Duration,
    /// How long to wait for the nodes
    #[arg(long, default_value = "30s", value_parser = duration::parse_wait, allow_hyphen_values = true)]
    timeout: Duration,
    /// Put drained nodes back into service; pods that ended meanwhile don't come back
    #[arg(long)]
    undo: bool,
}

/// Namespace and name of a pod.
type PodName = (String, String);

/// Runs it.
///
/// # Errors
/// All failures; new connections may still go to what was to be drained.
pub async fn run(global: &Global, args: &DrainArgs) -> Result<(), Failure> {
    let targets = Targets::parse(&args.targets)?;
    let (mut pods, mut nodes) = (Vec::new(), Vec::new());
    if targets.named.is_empty() {
        return Err(targets::required());
    }
    for (resource, name) in &targets.named {
        match resource.kind {
            Kind::Pod => pods.push(name.as_str()),
            Kind::Node => nodes.push(name.as_str()),
            _ => return Err(Failure::local(format!("{} can't be drained: pods and nodes can", resource.plural))),
        }
    }
    if args.undo && !pods.is_empty() {
        return Err(Failure::local("a pod that was marked for deletion can't be put back: --undo is for nodes"));
    }
    let drain = Drain { session: &global.session()?, grace: args.grace };
    if args.undo { drain.undo(&nodes, args.timeout).await } else { drain.run((&pods, &nodes), args.timeout).await }
}

struct Drain<'a> {
    session: &'a Session,
    grace: Duration,
}

impl Drain<'_> {
    async fn run(&self, (pods, nodes): (&[&str], &[&str]), timeout: Duration) -> Result<(), Failure> {
        let mut revision = 0;
        let mut failures = Vec::new();
        // The marks come first: with one, all of a node's endpoints change at once, and later pods are under it too.
        let mut marked = Vec::new();
        for node in nodes {
            match self.mark(node, true).await {
                Ok(at) => {
                    revision = revision.max(at);
                    marked.push(*node);
                }
                Err(failure) => failures.push(failure),
            }
        }
        let mut wanted: Vec<PodName> =
            pods.iter().map(|name| (self.session.namespace.clone(), (*name).to_owned())).collect();
        for node in marked {
            wanted
                .extend(self.pods_of(node).await?.into_iter().filter(|pod| !wanted.contains(pod)).collect::<Vec<_>>());
        }
        let mut drained = BTreeSet::new();
        for pod in wanted {
            match self.end(&pod).await {
                Ok(at) => {
                    revision = revision.max(at);
                    drained.insert(pod);
                }
                // One of a node's that ended meanwhile needs no drain.
                Err(failure) if failure.is_not_found() && !nodes.is_empty() && !pods.contains(&pod.1.as_str()) => {}
                Err(failure) => failures.push(failure),
            }
        }
        if revision > 0 {
            match programmed::prove(self.session, revision, timeout).await {
                Ok(_) => failures.extend(self.still_used(&drained).await?),
                Err(failure) => failures.push(failure),
            }
        }
        Failure::all(failures)?;
        print(&format!("drained: no node sends new connections there (revision {revision})\n"))
    }

    async fn undo(&self, nodes: &[&str], timeout: Duration) -> Result<(), Failure> {
        let mut revision = 0;
        for node in nodes {
            revision = revision.max(self.mark(node, false).await?);
        }
        programmed::wait(self.session, revision, timeout).await.map(drop)
    }

    /// Marks a node or takes the mark away; the revision at which that is so.
    async fn mark(&self, name: &str, drained: bool) -> Result<u64, Failure> {
        let key = Key::new(Kind::Node, "", name);
        for attempt in 1.. {
            let mut object = self.session.object(&key).await?;
            set_mark(&mut object, drained);
            let request = UpdateRequest {
                input: Some(Input { form: Some(input::Form::Object(object)) }),
                options: Some(WriteOptions::default()),
            };
            match self.session.servers.update(request).await {
                Ok(answer) => {
                    print(&format!("node/{name} {}\n", if drained { "draining" } else { "back in service" }))?;
                    return Ok(answer.revision);
                }
                Err(failure) if failure.is_conflict() && attempt < ATTEMPTS => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(0)
    }

    async fn pods_of(&self, node: &str) -> Result<Vec<PodName>, Failure> {
        let filter = Filter { fields: format!("spec.nodeName={node}"), chunk: CHUNK, ..Filter::default() };
        let pods = self.session.stored(&PODS, &filter).await?;
        Ok(pods.iter().map(Object::metadata).map(|one| (one.namespace.clone(), one.name.clone())).collect())
    }

    /// Marks a pod for deletion; the revision at which that is so.
    async fn end(&self, (namespace, name): &PodName) -> Result<u64, Failure> {
        // A pod without grace would be gone at once, and its connections with it.
        let seconds = i64::try_from(self.grace.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX).max(1);
        let request = DeleteRequest {
            key: Some(Key::new(Kind::Pod, namespace.as_str(), name.as_str()).to_wire()),
            grace_period_seconds: Some(seconds),
            ..DeleteRequest::default()
        };
        let answer = self.session.servers.delete(request).await?;
        print(&match answer.effect() {
            WriteEffect::Terminating => {
                format!("pod/{name} terminating in {namespace} namespace (grace {seconds}s)\n")
            }
            _ => format!("pod/{name} deleted from {namespace} namespace: no live agent has it to end\n"),
        })?;
        Ok(answer.revision)
    }

    /// Services that have nothing but what was drained.
    async fn still_used(&self, drained: &BTreeSet<PodName>) -> Result<Vec<Failure>, Failure> {
        let namespaces: BTreeSet<&String> = drained.iter().map(|(namespace, _)| namespace).collect();
        let mut found = Vec::new();
        for namespace in namespaces {
            let filter = Filter { namespace: namespace.clone(), chunk: CHUNK, ..Filter::default() };
            let services = self.session.stored(&SERVICES, &filter).await?;
            let records = self.session.stored(&ENDPOINTS, &filter).await?;
            for service in services.iter().filter_map(Object::as_service) {
                let name = service.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
                let record =
                    records.iter().find(|record| record.metadata().name == name).and_then(Object::as_endpoints);
                let pods = record.map(|record| used(service, record, drained)).unwrap_or_default();
                if !pods.is_empty() {
                    found.push(Failure::local(format!(
                        "service {namespace}/{name} has no other ready endpoint: new connections still go to {} until the grace is over",
                        pods.join(", ")
                    )));
                }
            }
        }
        Ok(found)
    }
}

fn set_mark(object: &mut Object, drained: bool) {
    if let Some(metadata) = object.metadata_mut() {
        if drained {
            metadata.annotations.insert(annotations::DRAIN.to_owned(), "true".to_owned());
        } else {
            metadata.annotations.remove(annotations::DRAIN);
        }
    }
    if let Some(object::Kind::Node(node)) = &mut object.kind {
        node.spec.get_or_insert_default().unschedulable = drained;
    }
}

/// Drained pods that a service still sends new connections to: it publishes them whatever they are, or it falls back to
/// them for want of a ready one (KEP-1669), on their node if its traffic stays there.
fn used(service: &Service, record: &Endpoints, drained: &BTreeSet<PodName>) -> Vec<String> {
    let namespace = record.metadata.as_ref().map_or("", |metadata| metadata.namespace.as_str());
    let is_local = service.spec.as_ref().is_some_and(|spec| {
        spec.external_traffic_policy == "Local" || spec.internal_traffic_policy.as_deref() == Some("Local")
    });
    let ready = |node: Option<&str>| {
        record.endpoints.iter().any(|one| one.ready && node.is_none_or(|node| one.node_name == node))
    };
    let is_used = |one: &&fairlead_proto::v1::Endpoint| {
        drained.contains(&(namespace.to_owned(), one.pod_name.clone()))
            && (one.ready || (one.serving && (!ready(None) || (is_local && !ready(Some(&one.node_name))))))
    };
    record.endpoints.iter().filter(is_used).map(|one| format!("pod {}", one.pod_name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{Endpoint, Node, ObjectMeta, ServiceSpec};

    fn endpoint(pod: &str, node: &str, ready: bool) -> Endpoint {
        let (pod_name, node_name) = (pod.to_owned(), node.to_owned());
        Endpoint { pod_name, node_name, ready, serving: true, terminating: !ready, ..Endpoint::default() }
    }

    fn still(policy: &str, endpoints: &[Endpoint]) -> Vec<String> {
        let spec = ServiceSpec { external_traffic_policy: policy.into(), ..ServiceSpec::default() };
        let metadata = Some(ObjectMeta { namespace: "default".into(), ..ObjectMeta::default() });
        let record = Endpoints { metadata, endpoints: endpoints.to_vec(), ..Endpoints::default() };
        let service = Service { spec: Some(spec), ..Service::default() };
        used(&service, &record, &BTreeSet::from([("default".to_owned(), "a".to_owned())]))
    }

    #[test]
    fn a_service_without_another_endpoint_is_named() {
        let gone = endpoint("a", "n1", false);
        let silent = Endpoint { serving: false, ..gone.clone() };
        assert_eq!(still("Cluster", &[gone.clone(), endpoint("b", "n2", true)]), [""; 0]);
        assert_eq!(still("Cluster", std::slice::from_ref(&gone)), ["pod a"]);
        assert_eq!(still("Cluster", &[gone.clone(), endpoint("b", "n2", false)]), ["pod a"]);
        assert_eq!(still("Cluster", &[silent]), [""; 0], "it wouldn't answer: it gets nothing");
        assert_eq!(still("Local", &[gone.clone(), endpoint("b", "n2", true)]), ["pod a"]);
        assert_eq!(still("Local", &[gone, endpoint("b", "n1", true)]), [""; 0]);
        assert_eq!(still("Cluster", &[endpoint("a", "n1", true), endpoint("b", "n2", true)]), ["pod a"], "published");
        assert_eq!(still("Cluster", &[endpoint("c", "n1", false)]), [""; 0], "somebody else's");
    }

    #[test]
    fn a_mark_comes_and_goes() {
        let mut object = Object::from(Node { metadata: Some(ObjectMeta::default()), ..Node::default() });
        let before = object.clone();
        set_mark(&mut object, true);
        assert_eq!(object.metadata().annotations["fairlead.io/drain"], "true");
        assert!(object.as_node().unwrap().spec.as_ref().unwrap().unschedulable);
        set_mark(&mut object, false);
        assert_eq!(object.metadata(), before.metadata());
        assert!(!object.as_node().unwrap().spec.as_ref().unwrap().unschedulable);
    }
}
