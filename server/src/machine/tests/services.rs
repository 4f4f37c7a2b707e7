//! Allocation, families and what updates carry over.

use super::*;

fn spec(world: &World, name: &str) -> ServiceSpec {
    world.service(name).spec.expect("a spec")
}

fn node_port_service(name: &str, ports: Vec<ServicePort>) -> Service {
    service_with(name, |spec| {
        spec.r#type = "NodePort".into();
        spec.ports = ports;
        spec.external_traffic_policy = "Cluster".into();
    })
}

fn with_address(name: &str, address: &str) -> Service {
    service_with(name, |spec| {
        spec.cluster_ip = address.into();
        spec.cluster_ips = vec![address.into()];
    })
}

#[test]
fn a_new_service_gets_an_address_of_the_dynamic_band_and_its_families() {
    let mut world = World::new();
    world.create(service("web"));
    let spec = spec(&world, "web");
    let address: std::net::Ipv4Addr = spec.cluster_ip.parse().unwrap();
    assert!(address > std::net::Ipv4Addr::new(10, 96, 1, 0), "{address} is in the static band");
    assert_eq!(spec.cluster_ips, [spec.cluster_ip]);
    assert_eq!(spec.ip_families, ["IPv4"]);
    assert_eq!(spec.ip_family_policy.as_deref(), Some("SingleStack"));
    assert_eq!(spec.ports[0].node_port, 0);
}

#[test]
fn explicit_addresses() {
    let taken = "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated";
    let outside = |address: &str| {
        format!(
            "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is 10.96.0.0/24"
        )
    };
    let mut world = World::with_ranges("10.96.0.0/24", (30_000, 30_010));
    world.create(with_address("a", "10.96.0.10"));
    assert_eq!(world.refused(create_command(with_address("b", "10.96.0.10"))), (Code::Invalid, taken.into()));
    for address in ["10.96.1.1", "10.96.0.0", "10.96.0.255"] {
        assert_eq!(world.refused(create_command(with_address("b", address))), (Code::Invalid, outside(address)));
    }
    let (code, message) = world.refused(create_command(with_address("b", "fd00::1")));
    assert_eq!(code, Code::Invalid);
    assert!(message.contains("IPv6 is not configured on this cluster"), "{message}");
    // Freed by the delete, to be had by the very next write.
    assert_eq!(world.delete(Kind::Service, "a"), WriteEffect::Deleted);
    world.create(with_address("b", "10.96.0.10"));
}

#[test]
fn a_full_range_says_so_and_recovers() {
    let mut world = World::with_ranges("10.96.0.0/29", (30_000, 30_001));
    for index in 0..6 {
        world.create(service(&format!("s{index}")));
    }
    let rejection = world.run(create_command(service("more"))).outcome.rejection.unwrap();
    assert_eq!(
        (rejection.code(), rejection.message.as_str()),
        (Code::Exhausted, "failed to allocate a serviceIP: range is full")
    );
    assert!(rejection.causes[0].message.contains("10.96.0.0/29"), "{rejection:?}");
    world.create(service_with("headless", |spec| spec.cluster_ip = "None".into()));
    let freed = spec(&world, "s3").cluster_ip;
    world.delete(Kind::Service, "s3");
    world.create(service("more"));
    assert_eq!(spec(&world, "more").cluster_ip, freed);
    for name in ["np0", "np1"] {
        world.delete(Kind::Service, if name == "np0" { "s0" } else { "s1" });
        world.create(node_port_service(name, vec![port("", 80)]));
    }
    world.delete(Kind::Service, "s2");
    let full = world.refused(create_command(node_port_service("np2", vec![port("", 80)])));
    assert_eq!(full, (Code::Exhausted, "failed to allocate a nodePort: range is full".into()));
}

#[test]
fn a_thousand_services_share_nothing() {
    let mut snapshot = World::new().snapshot;
    for index in 0..1000 {
        let mut it = node_port_service(&format!("s{index}"), vec![port("", 80)]);
        it.spec.as_mut().unwrap().selector.clear();
        let command = Command { kind: Some(create_command(it)) };
        let applied = snapshot.apply(&Entry { command: Some(command), ..Entry::default() });
        assert_eq!(applied.outcome.rejection, None);
    }
    assert_eq!((snapshot.state.addresses().taken(), snapshot.state.node_ports().taken()), (1000, 1000));
}

#[test]
fn an_update_that_omits_allocated_values_keeps_them() {
    let mut world = World::new();
    let ports = || vec![port("http", 80), port("https", 443)];
    world.create(service_with("web", |spec| {
        spec.r#type = "LoadBalancer".into();
        spec.external_traffic_policy = "Local".into();
        spec.ports = ports();
    }));
    let old = spec(&world, "web");
    assert!(old.health_check_node_port > 0 && old.ports.iter().all(|port| port.node_port > 0), "{old:?}");
    world.update(service_with("web", |spec| {
        spec.r#type = "LoadBalancer".into();
        spec.external_traffic_policy = "Local".into();
        spec.ports = ports().into_iter().rev().collect();
        spec.ports[0].port = 8443;
    }));
    let new = spec(&world, "web");
    assert_eq!(
        (&new.cluster_ip, &new.cluster_ips, new.health_check_node_port),
        (&old.cluster_ip, &old.cluster_ips, old.health_check_node_port)
    );
    assert_eq!([new.ports[0].node_port, new.ports[1].node_port], [old.ports[1].node_port, old.ports[0].node_port]);
    assert_eq!(world.service("web").metadata.unwrap().generation, 2);
}

#[test]
fn changing_the_type_takes_and_frees() {
    let mut world = World::new();
    world.create(service("web"));
    let address = spec(&world, "web").cluster_ip;
    world.update(node_port_service("web", vec![port("", 80)]));
    let with_port = spec(&world, "web");
    assert_eq!(with_port.cluster_ip, address);
    assert!(with_port.ports[0].node_port >= 30_000);
    // As a read-modify-write does it: the whole object, only the type changed.
    world.update(service_with("web", |spec| *spec = ServiceSpec { r#type: "ClusterIP".into(), ..with_port.clone() }));
    let plain = spec(&world, "web");
    assert_eq!((plain.ports[0].node_port, plain.external_traffic_policy.as_str()), (0, ""));
    assert_eq!(world.state().node_ports().taken(), 0);
    world.update(service_with("web", |spec| {
        *spec = ServiceSpec { r#type: "ExternalName".into(), external_name: "example.com".into(), ..plain.clone() };
    }));
    let external = spec(&world, "web");
    assert_eq!((external.cluster_ip.as_str(), external.cluster_ips.len(), external.ip_families.len()), ("", 0, 0));
    assert_eq!(world.state().addresses().taken(), 0);
    world.update(service("web"));
    assert_eq!(world.state().addresses().taken(), 1);
}

#[test]
fn node_ports_by_number() {
    let numbered =
        |name: &str, node_port: i32| node_port_service(name, vec![ServicePort { node_port, ..port("", 80) }]);
    let mut world = World::new();
    world.create(numbered("a", 30_080));
    let taken =
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated";
    assert_eq!(world.refused(create_command(numbered("b", 30_080))), (Code::Invalid, taken.into()));
    for outside in [80, 29_999, 32_768, 70_000, -1] {
        let (code, message) = world.refused(create_command(numbered("b", outside)));
        assert_eq!(code, Code::Invalid);
        assert!(
            message.ends_with("provided port is not in the valid range. The range of valid ports is 30000-32767"),
            "{message}"
        );
    }
    // Two problems, both told.
    let both = node_port_service(
        "b",
        vec![ServicePort { node_port: 30_080, ..port("x", 80) }, ServicePort { node_port: 1, ..port("y", 81) }],
    );
    let both = world.run(create_command(both)).outcome.rejection.unwrap();
    assert_eq!(both.causes.len(), 2, "{both:?}");
}

#[test]
fn ports_of_one_number_share_a_node_port_as_protocols_allow() {
    let mut world = World::new();
    let udp = |name: &str, number: i32| ServicePort { protocol: "UDP".into(), ..port(name, number) };
    world.create(node_port_service("dns", vec![port("tcp", 53), udp("udp", 53), port("other", 54)]));
    let ports = spec(&world, "dns").ports;
    assert_eq!(ports[0].node_port, ports[1].node_port);
    assert_ne!(ports[0].node_port, ports[2].node_port);
    assert_eq!(world.state().node_ports().taken(), 2);
    // A number given further down is found, not taken twice.
    world.create(node_port_service("late", vec![port("tcp", 53), ServicePort { node_port: 30_053, ..udp("udp", 53) }]));
    assert_eq!(spec(&world, "late").ports[0].node_port, 30_053);
}

#[test]
fn node_ports_move_among_the_ports_of_one_service() {
    let mut world = World::with_ranges("10.96.0.0/24", (30_000, 30_001));
    let ports = |one, two| {
        vec![ServicePort { node_port: one, ..port("a", 80) }, ServicePort { node_port: two, ..port("b", 81) }]
    };
    world.create(node_port_service("web", ports(30_000, 30_001)));
    world.update(node_port_service("web", ports(30_001, 30_000)));
    assert_eq!(spec(&world, "web").ports[0].node_port, 30_001);
}

#[test]
fn load_balancers_may_do_without_node_ports() {
    let mut world = World::new();
    let balancer = |name: &str, node_port: i32| {
        service_with(name, |spec| {
            spec.r#type = "LoadBalancer".into();
            spec.allocate_load_balancer_node_ports = Some(false);
            spec.ports[0].node_port = node_port;
        })
    };
    world.create(balancer("none", 0));
    assert_eq!(world.state().node_ports().taken(), 0);
    world.create(balancer("asked", 30_123));
    assert_eq!(spec(&world, "asked").ports[0].node_port, 30_123);
}

#[test]
fn headless_and_families() {
    let headless = |name: &str, selector: bool| {
        service_with(name, |spec| {
            spec.cluster_ip = "None".into();
            if !selector {
                spec.selector.clear();
            }
        })
    };
    let mut world = World::new();
    world.create(headless("pods", true));
    let pods = spec(&world, "pods");
    assert_eq!(
        (pods.cluster_ips, pods.ip_families, pods.ip_family_policy.as_deref()),
        (vec!["None".into()], vec!["IPv4".into()], Some("SingleStack"))
    );
    world.create(headless("hand", false));
    let hand = spec(&world, "hand");
    assert_eq!(
        (hand.ip_families, hand.ip_family_policy.as_deref()),
        (vec!["IPv4".to_owned(), "IPv6".into()], Some("RequireDualStack"))
    );
    // A headless service that gains a selector keeps what it has.
    world.update(headless("hand", true));
    assert_eq!(spec(&world, "hand").ip_families, ["IPv4", "IPv6"]);
    let policy = |policy: &str| service_with("dual", |spec| spec.ip_family_policy = Some(policy.into()));
    let why = "Service \"dual\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services";
    assert_eq!(world.refused(create_command(policy("RequireDualStack"))), (Code::Invalid, why.into()));
    world.create(policy("PreferDualStack"));
    assert_eq!(spec(&world, "dual").ip_families, ["IPv4"]);
    let (_, message) =
        world.refused(create_command(service_with("six", |spec| spec.ip_families = vec!["IPv6".into()])));
    assert_eq!(
        message,
        "Service \"six\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"
    );
}

#[test]
fn a_cluster_of_ipv6() {
    let mut world = World::with_ranges("fd00:1::/112", (30_000, 30_010));
    world.create(service("web"));
    let spec = spec(&world, "web");
    assert_eq!(spec.ip_families, ["IPv6"]);
    assert!(spec.cluster_ip.starts_with("fd00:1::"), "{}", spec.cluster_ip);
}

#[test]
fn the_address_of_a_service_is_judged_against_what_is() {
    let mut world = World::new();
    world.create(service("web"));
    let (code, message) = world.refused(update_command(with_address("web", "10.96.0.77")));
    assert_eq!(code, Code::Invalid);
    assert!(message.contains("may not change once set") || message.contains("immutable"), "{message}");
}

#[test]
fn a_finalizer_keeps_the_address_until_it_goes() {
    let mut world = World::new();
    let mut held = with_address("web", "10.96.0.10");
    held.metadata.as_mut().unwrap().finalizers = vec!["example.com/hold".into()];
    world.create(held);
    assert_eq!(world.delete(Kind::Service, "web"), WriteEffect::Terminating);
    assert_eq!(world.refused(create_command(with_address("b", "10.96.0.10"))).0, Code::Invalid);
    let freed = world
        .update(change_metadata(&world.get(Kind::Service, "web").unwrap(), |metadata| metadata.finalizers.clear()));
    assert_eq!(freed.metadata().revision, world.state().revision() - 1, "the service goes, then its endpoints");
    world.create(with_address("b", "10.96.0.10"));
}
