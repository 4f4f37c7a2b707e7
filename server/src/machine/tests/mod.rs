//! A cluster under test: every command that a test runs is checked against all laws of the machine.

mod endpoints;
mod laws;
mod lifecycle;
mod nodes;
pub mod random;
mod requests;
mod services;

use super::*;
use fairlead_proto::convert;
use fairlead_proto::internal::v1::{
    Command, Delete, ExpireNode, NodeUp, Put, ReportPods, ReportedPod, SetMachineVersion, put, rejection::Code,
};
use fairlead_proto::v1::{
    Condition, Container, ContainerPort, Endpoints, Event, IntOrString, Node, Object, ObjectReference, Pod, PodSpec,
    PodStatus, RequestId, Service, ServicePort, ServiceSpec, int_or_string,
};

/// One cluster and everything that was ever done to it.
pub struct World {
    pub snapshot: Snapshot,
    pub entries: Vec<Entry>,
    pub now_ms: u64,
}

impl World {
    /// A cluster with the usual ranges.
    pub fn new() -> Self {
        Self::with_ranges("10.96.0.0/12", (30_000, 32_767))
    }

    pub fn with_ranges(cidr: &str, ports: (u32, u32)) -> Self {
        let mut world = Self { snapshot: Snapshot::default(), entries: Vec::new(), now_ms: 1_700_000_000_000 };
        let outcome = world.run(command::Kind::InitCluster(InitCluster {
            cluster_id: "cluster".into(),
            service_cidr: cidr.into(),
            node_port_first: ports.0,
            node_port_last: ports.1,
            uids: vec!["uid-default".into(), "uid-kube-system".into()],
        }));
        assert_eq!(outcome.outcome.effect(), WriteEffect::Created);
        world
    }

    /// The same, of members that all execute the newest rules.
    pub fn newest() -> Self {
        let mut world = Self::new();
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: MACHINE_VERSION }));
        world
    }

    /// Runs a command a second after the one before.
    pub fn run(&mut self, kind: command::Kind) -> Applied {
        self.now_ms += 1000;
        let entry = Entry { at_ms: self.now_ms, command: Some(Command { kind: Some(kind) }), ..Entry::default() };
        self.run_entry(entry)
    }

    pub fn run_entry(&mut self, entry: Entry) -> Applied {
        let before = self.snapshot.state.clone();
        let applied = self.snapshot.apply(&entry);
        self.entries.push(entry);
        laws::check(&before, &applied, &self.snapshot);
        applied
    }

    /// Creates an object that must be accepted.
    pub fn create(&mut self, object: impl Into<Object>) -> ObjectRef {
        self.written(put_command(object.into(), put::Precondition::Create(true)))
    }

    /// Replaces an object; must be accepted.
    pub fn update(&mut self, object: impl Into<Object>) -> ObjectRef {
        self.written(put_command(object.into(), put::Precondition::Exists(true)))
    }

    fn written(&mut self, kind: command::Kind) -> ObjectRef {
        let outcome = self.run(kind).outcome;
        assert_eq!(outcome.rejection, None);
        Arc::new(outcome.object.expect("an accepted write has its object"))
    }

    /// Runs a command that must be rejected: code and message.
    pub fn refused(&mut self, kind: command::Kind) -> (Code, String) {
        let rejection = self.run(kind).outcome.rejection.expect("a rejection");
        (rejection.code(), rejection.message)
    }

    pub fn delete(&mut self, kind: Kind, name: &str) -> WriteEffect {
        let outcome = self.run(delete_command(kind, name)).outcome;
        assert_eq!(outcome.rejection, None);
        outcome.effect()
    }

    pub fn node_up(&mut self, node: &str, address: &str) -> Applied {
        self.run(command::Kind::NodeUp(NodeUp {
            node: node.into(),
            addresses: vec![address.into()],
            uid: format!("uid-{node}"),
            grace_seconds: 5,
            ..NodeUp::default()
        }))
    }

    pub fn expire(&mut self, node: &str) -> Applied {
        let observed_lease = self.state().lease(node).expect("a lease").epoch;
        self.run(command::Kind::ExpireNode(ExpireNode { node: node.into(), observed_lease }))
    }

    /// The pod's agent says what it sees.
    pub fn report(&mut self, pod: &str, change: impl FnOnce(&mut ReportedPod)) -> Applied {
        let object = self.get(Kind::Pod, pod).expect("the pod");
        let mut reported = ReportedPod {
            namespace: "default".into(),
            name: pod.into(),
            uid: object.metadata().uid.clone(),
            ready: true,
            ..ReportedPod::default()
        };
        change(&mut reported);
        let node = object.as_pod().and_then(derive::node_of).unwrap_or_default().to_owned();
        self.run(command::Kind::ReportPods(ReportPods { node, pods: vec![reported] }))
    }

    pub fn state(&self) -> &State {
        &self.snapshot.state
    }

    /// An object of namespace `default`, or a cluster-scoped one.
    pub fn get(&self, kind: Kind, name: &str) -> Option<ObjectRef> {
        self.state().get(&key(kind, name)).cloned()
    }

    pub fn service(&self, name: &str) -> Service {
        self.get(Kind::Service, name).and_then(|object| object.as_service().cloned()).expect("the service")
    }

    pub fn pod(&self, name: &str) -> Pod {
        self.get(Kind::Pod, name).and_then(|object| object.as_pod().cloned()).expect("the pod")
    }

    pub fn node(&self, name: &str) -> Node {
        self.get(Kind::Node, name).and_then(|object| object.as_node().cloned()).expect("the node")
    }

    /// The endpoints of a service as text: address, `!` not ready, `~` terminating, ports.
    pub fn endpoints(&self, service: &str) -> Vec<String> {
        let record = self.get(Kind::Endpoints, service);
        let record = record.as_ref().and_then(|object| object.as_endpoints());
        let shown = |endpoint: &fairlead_proto::v1::Endpoint| {
            let ports: Vec<String> =
                endpoint.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
            let ready = if endpoint.ready { "" } else { "!" };
            let terminating = if endpoint.terminating { "~" } else { "" };
            format!("{ready}{terminating}{}:{}", endpoint.address, ports.join(","))
        };
        record.map(|record| record.endpoints.iter().map(shown).collect()).unwrap_or_default()
    }
}

pub fn key(kind: Kind, name: &str) -> Key {
    Key::new(kind, "default", name)
}

pub fn put_command(object: Object, precondition: put::Precondition) -> command::Kind {
    put_with(object, Some(precondition))
}

/// As a proposer does it: the object is defaulted.
pub fn put_with(mut object: Object, precondition: Option<put::Precondition>) -> command::Kind {
    convert::default_object(&mut object);
    command::Kind::Put(Put { object: Some(object), precondition, status_only: false })
}

pub fn status_command(object: impl Into<Object>) -> command::Kind {
    command::Kind::Put(Put {
        object: Some(object.into()),
        precondition: Some(put::Precondition::Exists(true)),
        status_only: true,
    })
}

pub fn create_command(object: impl Into<Object>) -> command::Kind {
    put_command(object.into(), put::Precondition::Create(true))
}

pub fn update_command(object: impl Into<Object>) -> command::Kind {
    put_command(object.into(), put::Precondition::Exists(true))
}

pub fn delete_command(kind: Kind, name: &str) -> command::Kind {
    command::Kind::Delete(Delete { key: Some(key(kind, name).to_wire()), ..Delete::default() })
}

pub fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: name.into(), namespace: "default".into(), uid: format!("uid-{name}"), ..ObjectMeta::default() }
}

pub fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

/// A ClusterIP service with one TCP port 80, selecting `app: <name>`.
pub fn service(name: &str) -> Service {
    Service {
        metadata: Some(metadata(name)),
        spec: Some(ServiceSpec {
            r#type: "ClusterIP".into(),
            ports: vec![port("", 80)],
            selector: labels(&[("app", name)]),
            session_affinity: "None".into(),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

pub fn service_with(name: &str, change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let mut it = service(name);
    change(it.spec.get_or_insert_default());
    it
}

pub fn port(name: &str, number: i32) -> ServicePort {
    ServicePort { name: name.into(), protocol: "TCP".into(), port: number, ..ServicePort::default() }
}

pub fn by_name(name: &str) -> Option<IntOrString> {
    Some(IntOrString { value: Some(int_or_string::Value::Str(name.into())) })
}

pub fn by_number(number: i32) -> Option<IntOrString> {
    Some(IntOrString { value: Some(int_or_string::Value::Int(number)) })
}

/// A ready pod that no agent manages, labelled `app: <app>`.
pub fn pod(name: &str, app: &str, address: &str) -> Pod {
    Pod {
        metadata: Some(ObjectMeta { labels: labels(&[("app", app)]), ..metadata(name) }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "main".into(), image: "nginx".into(), ..Container::default() }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: "Running".into(),
            pod_ip: address.into(),
            conditions: vec![Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() }],
            ..PodStatus::default()
        }),
        extra_json: String::new(),
    }
}

pub fn pod_on(node: &str, name: &str, app: &str, address: &str) -> Pod {
    let mut it = pod(name, app, address);
    it.spec.get_or_insert_default().node_name = node.into();
    it
}

/// A client's, about service web.
pub fn event(name: &str) -> Event {
    let about = ObjectReference {
        kind: "Service".into(),
        namespace: "default".into(),
        name: "web".into(),
        ..ObjectReference::default()
    };
    Event {
        metadata: Some(metadata(name)),
        involved_object: Some(about),
        reason: "Probed".into(),
        message: "it answers".into(),
        r#type: "Normal".into(),
        ..Event::default()
    }
}

pub fn container_port(name: &str, number: i32, protocol: &str) -> ContainerPort {
    ContainerPort { name: name.into(), container_port: number, protocol: protocol.into(), ..ContainerPort::default() }
}

pub fn namespace(name: &str) -> Namespace {
    let metadata = ObjectMeta { name: name.into(), uid: format!("uid-{name}"), ..ObjectMeta::default() };
    Namespace { metadata: Some(metadata), ..Namespace::default() }
}

pub fn change_metadata(object: &ObjectRef, change: impl FnOnce(&mut ObjectMeta)) -> Object {
    let mut object = (**object).clone();
    change(object.metadata_mut().expect("metadata"));
    object
}

pub fn condition<'a>(conditions: &'a [Condition], name: &str) -> Option<&'a Condition> {
    conditions.iter().find(|one| one.r#type == name)
}
