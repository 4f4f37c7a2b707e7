//! Who is an endpoint, with which ports, and what happens to records that nobody derives.

use super::*;
use fairlead_proto::v1::Endpoint;

fn one_port(name: &str, target: Option<IntOrString>, protocol: &str) -> ServicePort {
    ServicePort { target_port: target, protocol: protocol.into(), ..port(name, 80) }
}

fn record(name: &str, addresses: &[&str]) -> Endpoints {
    let endpoint =
        |address: &&str| Endpoint { address: (*address).into(), ready: true, serving: true, ..Endpoint::default() };
    Endpoints {
        metadata: Some(metadata(name)),
        endpoints: addresses.iter().map(endpoint).collect(),
        ..Endpoints::default()
    }
}

#[test]
fn a_pod_and_its_endpoint_are_one_entry() {
    let mut world = World::new();
    let made = world.run(create_command(service("web")));
    let kinds: Vec<Kind> = made.changes.iter().map(|change| change.key.kind).collect();
    assert_eq!(kinds, [Kind::Service, Kind::Endpoints], "a service without pods has an empty record");
    let made = world.run(create_command(pod("p", "web", "10.1.0.1")));
    let kinds: Vec<Kind> = made.changes.iter().map(|change| change.key.kind).collect();
    assert_eq!(kinds, [Kind::Pod, Kind::Endpoints]);
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP"]);
    let gone = world.run(delete_command(Kind::Pod, "p"));
    assert_eq!(gone.changes.len(), 2);
    assert!(world.endpoints("web").is_empty());
}

#[test]
fn effects_come_in_key_order() {
    let mut world = World::new();
    for name in ["c", "a", "b"] {
        world.create(service_with(name, |spec| spec.selector = labels(&[("tier", "all")])));
    }
    let mut it = pod("p", "x", "10.1.0.1");
    it.metadata.as_mut().unwrap().labels = labels(&[("tier", "all")]);
    let made = world.run(create_command(it));
    let names: Vec<&str> = made.changes.iter().map(|change| change.key.name.as_str()).collect();
    assert_eq!(names, ["p", "a", "b", "c"]);
}

#[test]
fn who_is_an_endpoint() {
    let check = |change: &dyn Fn(&mut Pod), publish: bool, expect: &[&str]| {
        let mut world = World::new();
        world.create(service_with("web", |spec| spec.publish_not_ready_addresses = publish));
        world.node_up("n1", "192.168.0.1");
        let mut it = pod("p", "web", "10.1.0.1");
        change(&mut it);
        world.create(it);
        assert_eq!(world.endpoints("web"), expect);
    };
    let ready = &["10.1.0.1:80/TCP"][..];
    let not_ready = &["!10.1.0.1:80/TCP"][..];
    let phase = |phase: &'static str| move |pod: &mut Pod| pod.status.as_mut().unwrap().phase = phase.into();
    let unready = |pod: &mut Pod| pod.status.as_mut().unwrap().conditions[0].status = "False".into();
    check(&|_| {}, false, ready);
    check(&phase("Pending"), false, ready);
    check(&phase("Succeeded"), false, &[]);
    check(&phase("Failed"), true, &[]);
    check(&unready, false, not_ready);
    check(&unready, true, ready);
    check(&|pod| pod.status.as_mut().unwrap().conditions.clear(), false, not_ready);
    check(&|pod| pod.status.as_mut().unwrap().pod_ip.clear(), true, &[]);
    check(&|pod| pod.status = None, false, &[]);
    check(&|pod| pod.metadata.as_mut().unwrap().labels.clear(), false, &[]);
    check(&|pod| pod.metadata.as_mut().unwrap().labels.extend(labels(&[("more", "x")])), false, ready);
    check(&|pod| pod.spec.as_mut().unwrap().node_name = "n1".into(), false, ready);
    check(&|pod| pod.spec.as_mut().unwrap().node_name = "missing".into(), false, &[]);
    check(&|pod| pod.spec.as_mut().unwrap().node_name = "missing".into(), true, ready);
}

#[test]
fn pods_of_other_namespaces_are_others() {
    let mut world = World::new();
    world.create(namespace("other"));
    world.create(service("web"));
    let mut it = pod("p", "web", "10.1.0.1");
    it.metadata.as_mut().unwrap().namespace = "other".into();
    world.create(it);
    assert!(world.endpoints("web").is_empty());
}

#[test]
fn a_terminating_pod_serves_but_is_not_ready() {
    let mut world = World::new();
    world.create(service("web"));
    let mut it = pod("p", "web", "10.1.0.1");
    it.metadata.as_mut().unwrap().finalizers = vec!["example.com/hold".into()];
    world.create(it);
    assert_eq!(world.delete(Kind::Pod, "p"), WriteEffect::Terminating);
    assert_eq!(world.endpoints("web"), ["!~10.1.0.1:80/TCP"]);
    let object = world.get(Kind::Endpoints, "web").unwrap();
    assert!(object.as_endpoints().unwrap().endpoints[0].serving);
}

#[test]
fn the_pods_of_a_draining_node_are_as_if_they_terminated() {
    let mut world = World::new();
    world.create(service("web"));
    let up = world.node_up("n1", "192.168.0.1");
    let node = up.outcome.object.expect("the node");
    let on = |name: &str, address: &str| {
        let mut it = pod(name, "web", address);
        it.spec.as_mut().unwrap().node_name = "n1".into();
        it
    };
    world.create(on("p", "10.1.0.1"));
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP"]);
    let drained = change_metadata(&Arc::new(node.clone()), |metadata| {
        metadata.annotations = labels(&[("fairlead.io/drain", "true")]);
    });
    world.update(drained);
    assert_eq!(world.endpoints("web"), ["!~10.1.0.1:80/TCP"]);
    // Also one that comes now, and after the agent said hello again.
    world.create(on("q", "10.1.0.2"));
    world.node_up("n1", "192.168.0.1");
    assert_eq!(world.endpoints("web"), ["!~10.1.0.1:80/TCP", "!~10.1.0.2:80/TCP"]);
    world.update(change_metadata(&Arc::new(node), |_| {}));
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP", "10.1.0.2:80/TCP"]);
}

#[test]
fn target_ports() {
    let check = |target: ServicePort, expect: &str| {
        let mut world = World::new();
        world.create(service_with("web", |spec| spec.ports = vec![target]));
        let mut it = pod("p", "web", "10.1.0.1");
        let spec = it.spec.as_mut().unwrap();
        spec.containers[0].ports = vec![container_port("http", 8080, ""), container_port("dns", 5353, "UDP")];
        let init = |name: &str, policy: &str| Container {
            restart_policy: policy.into(),
            ports: vec![container_port(name, 9000, "TCP")],
            ..Container::default()
        };
        spec.init_containers = vec![init("once", ""), init("side", "Always")];
        world.create(it);
        assert_eq!(world.endpoints("web"), [format!("10.1.0.1:{expect}")]);
    };
    check(one_port("", None, "TCP"), "80/TCP");
    check(one_port("", None, ""), "80/TCP");
    check(one_port("", by_number(0), "TCP"), "80/TCP");
    check(one_port("", by_number(8081), "SCTP"), "8081/SCTP");
    check(one_port("", by_name("http"), "TCP"), "8080/TCP");
    check(one_port("", by_name("dns"), "UDP"), "5353/UDP");
    check(one_port("", by_name("dns"), "TCP"), "");
    check(one_port("", by_name("missing"), "TCP"), "");
    check(one_port("", by_name("side"), "TCP"), "9000/TCP");
    check(one_port("", by_name("once"), "TCP"), "");
}

#[test]
fn named_ports_are_looked_up_pod_by_pod() {
    let mut world = World::new();
    world.create(service_with("web", |spec| spec.ports = vec![one_port("a", by_name("http"), "TCP"), port("b", 81)]));
    for (name, address, number) in [("p1", "10.1.0.1", 8080), ("p2", "10.1.0.2", 9090)] {
        let mut it = pod(name, "web", address);
        it.spec.as_mut().unwrap().containers[0].ports = vec![container_port("http", number, "TCP")];
        world.create(it);
    }
    world.create(pod("p3", "web", "10.1.0.3"));
    assert_eq!(world.endpoints("web"), ["10.1.0.1:8080/TCP,81/TCP", "10.1.0.2:9090/TCP,81/TCP", "10.1.0.3:81/TCP"]);
}

#[test]
fn a_published_port_is_reached_at_the_node() {
    let mut world = World::new();
    world.create(service_with("web", |spec| {
        spec.ports = vec![one_port("a", by_name("http"), "TCP"), one_port("b", by_number(8081), "TCP")]
    }));
    world.node_up("n1", "192.168.0.1");
    let published = ContainerPort { host_port: 18_080, ..container_port("http", 8080, "TCP") };
    let make = |name: &str, address: &str, host_network: bool| {
        let mut it = pod_on("n1", name, "web", address);
        let spec = it.spec.as_mut().unwrap();
        spec.host_network = host_network;
        spec.containers[0].ports = vec![published.clone()];
        it
    };
    world.create(make("at-node", "192.168.0.1", false));
    world.create(make("host-network", "192.168.0.1", true));
    world.create(make("routed", "10.1.0.1", false));
    let expect = ["10.1.0.1:8080/TCP,8081/TCP", "192.168.0.1:18080/TCP,8081/TCP", "192.168.0.1:8080/TCP,8081/TCP"];
    assert_eq!(world.endpoints("web"), expect, "one address by two pods, both kept");
}

#[test]
fn an_endpoint_says_where_it_is() {
    let mut world = World::new();
    world.create(service("web"));
    world.node_up("n1", "192.168.0.1");
    let mut it = pod_on("n1", "p", "web", "10.1.0.1");
    it.spec.as_mut().unwrap().hostname = "db-0".into();
    it.spec.as_mut().unwrap().subdomain = "web".into();
    world.create(it);
    let endpoint =
        |world: &World| world.get(Kind::Endpoints, "web").unwrap().as_endpoints().unwrap().endpoints[0].clone();
    let found = endpoint(&world);
    assert_eq!(
        (found.node_name.as_str(), found.hostname.as_str(), found.zone.as_str(), found.pod_uid.as_str()),
        ("n1", "db-0", "", "uid-p")
    );
    let node = change_metadata(&world.get(Kind::Node, "n1").unwrap(), |metadata| {
        metadata.labels.insert("topology.kubernetes.io/zone".into(), "east".into());
    });
    world.update(node);
    assert_eq!(endpoint(&world).zone, "east");
    world.create(service_with("other", |spec| spec.selector = labels(&[("app", "web")])));
    let other = world.get(Kind::Endpoints, "other").unwrap().as_endpoints().unwrap().endpoints[0].clone();
    assert_eq!(other.hostname, "", "the subdomain is another service's");
}

#[test]
fn derived_records_carry_the_services_labels() {
    let mut world = World::new();
    let mut it = service_with("web", |spec| spec.cluster_ip = "None".into());
    it.metadata.as_mut().unwrap().labels = labels(&[("team", "a")]);
    world.create(it);
    let object = world.get(Kind::Endpoints, "web").unwrap();
    assert_eq!(object.metadata().labels, labels(&[("service.kubernetes.io/headless", ""), ("team", "a")]));
    let uid = object.metadata().uid.clone();
    assert_eq!(uid.len(), 36);
    let changed = change_metadata(&world.get(Kind::Service, "web").unwrap(), |metadata| metadata.labels.clear());
    world.update(changed);
    assert_eq!(world.get(Kind::Endpoints, "web").unwrap().metadata().uid, uid);
}

#[test]
fn a_changed_selector_changes_the_endpoints() {
    let mut world = World::new();
    world.create(service("web"));
    world.create(pod("p1", "web", "10.1.0.1"));
    world.create(pod("p2", "other", "10.1.0.2"));
    world.update(service_with("web", |spec| spec.selector = labels(&[("app", "other")])));
    assert_eq!(world.endpoints("web"), ["10.1.0.2:80/TCP"]);
    world.update(service("web"));
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP"]);
}

#[test]
fn derived_records_are_the_servers_alone() {
    let mut world = World::new();
    world.create(service("web"));
    let why = "endpoints \"web\" is forbidden: they are derived from the selector of service \"web\": change its pods or its selector instead";
    assert_eq!(world.refused(update_command(record("web", &["10.9.9.9"]))), (Code::Forbidden, why.into()));
    assert_eq!(world.refused(delete_command(Kind::Endpoints, "web")), (Code::Forbidden, why.into()));
}

#[test]
fn hand_written_records() {
    let mut world = World::new();
    // Before, with and without a service.
    let mut first = record("db", &["10.9.0.1"]);
    first.derived = true;
    world.create(first);
    assert!(!world.get(Kind::Endpoints, "db").unwrap().as_endpoints().unwrap().derived, "nobody can forge it");
    world.create(service_with("db", |spec| spec.selector.clear()));
    assert_eq!(world.endpoints("db"), ["10.9.0.1:"]);
    world.update(record("db", &["10.9.0.2"]));
    // Gains a selector: derived. Loses it: the last record stays, as one's own.
    world.create(pod("p", "db", "10.1.0.1"));
    world.update(service("db"));
    assert_eq!(world.endpoints("db"), ["10.1.0.1:80/TCP"]);
    world.update(service_with("db", |spec| spec.selector.clear()));
    assert_eq!(world.endpoints("db"), ["10.1.0.1:80/TCP"]);
    world.delete(Kind::Pod, "p");
    assert_eq!(world.endpoints("db"), ["10.1.0.1:80/TCP"]);
    world.update(record("db", &["10.9.0.3"]));
    assert_eq!(world.delete(Kind::Endpoints, "db"), WriteEffect::Deleted);
    world.create(record("db", &["10.9.0.4"]));
    // The service takes its record along.
    let gone = world.run(delete_command(Kind::Service, "db"));
    assert_eq!(gone.changes.len(), 2);
    assert_eq!(world.get(Kind::Endpoints, "db"), None);
}

#[test]
fn an_external_name_derives_nothing() {
    let mut world = World::new();
    world.create(pod("p", "web", "10.1.0.1"));
    world.create(service_with("web", |spec| {
        spec.r#type = "ExternalName".into();
        spec.external_name = "example.com".into();
    }));
    assert_eq!(world.get(Kind::Endpoints, "web"), None);
}
