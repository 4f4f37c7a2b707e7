//! Random histories: whatever is asked of a small, crowded cluster, in whatever order, every law holds after each
//! command (`laws`), and the same entries make the same state elsewhere.

use super::*;
use proptest::prelude::*;

/// A command in a universe small enough for everything to collide.
pub fn commands() -> impl Strategy<Value = command::Kind> {
    prop_oneof![
        6 => (services(), 0..4_u8).prop_map(|(object, how)| write(object.into(), how)),
        6 => (pods(), 0..4_u8).prop_map(|(object, how)| write(object.into(), how)),
        2 => pods().prop_map(status_command),
        2 => (records(), 0..4_u8).prop_map(|(object, how)| write(object.into(), how)),
        1 => (0..2_u8, any::<bool>()).prop_map(|(which, held)| write(made_namespace(which, held), 3)),
        4 => (kinds(), 0..3_u8, 0..4_u8, prop::option::of(0..2_i64)).prop_map(|(kind, namespace, name, grace)| removal(kind, (namespace, name), grace)),
        4 => (0..3_u8, 0..4_u8, any::<bool>()).prop_map(|(node, cidr, zone)| hello(node, cidr, zone)),
        2 => (0..3_u8, 0..60_u64).prop_map(|(node, observed_lease)| command::Kind::ExpireNode(ExpireNode { node: format!("n{node}"), observed_lease })),
        4 => (0..3_u8, prop::collection::vec(reports(), 0..4)).prop_map(|(node, pods)| command::Kind::ReportPods(ReportPods { node: format!("n{node}"), pods })),
    ]
}

fn write(object: Object, how: u8) -> command::Kind {
    let precondition = match how {
        0 => Some(put::Precondition::Create(true)),
        1 => Some(put::Precondition::Exists(true)),
        _ => None,
    };
    put_with(object, precondition)
}

fn place(which: u8) -> &'static str {
    ["default", "x", "y"][usize::from(which % 3)]
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

fn removal(kind: Kind, (namespace, name): (u8, u8), grace_period_seconds: Option<i64>) -> command::Kind {
    let name = match kind {
        Kind::Namespace => place(namespace).to_owned(),
        Kind::Node => format!("n{name}"),
        Kind::Pod => format!("p{name}"),
        _ => format!("s{name}"),
    };
    let key = Key::new(kind, place(namespace), name).to_wire();
    command::Kind::Delete(Delete { key: Some(key), grace_period_seconds, ..Delete::default() })
}

fn made_namespace(which: u8, held: bool) -> Object {
    let finalizers = if held { vec!["a/x".into()] } else { Vec::new() };
    change_metadata(&Arc::new(namespace(place(which + 1)).into()), |metadata| metadata.finalizers = finalizers)
}

fn held(held: u8) -> Vec<String> {
    if held == 0 { vec!["a/x".into()] } else { Vec::new() }
}

fn services() -> impl Strategy<Value = Service> {
    let ports =
        prop::collection::vec((0..3_i32, any::<bool>(), prop_oneof![3 => Just(0), 1 => 30_000..30_010_i32]), 1..3);
    let shape = (0..5_u8, 0..4_u8, 0..3_u8, prop_oneof![3 => Just(0_u8), 1 => 0..18_u8]);
    (0..4_u8, 0..3_u8, shape, ports, 0..8_u8, any::<bool>()).prop_map(
        |(name, namespace, (kind, app, local, address), ports, finalizer, publish)| {
            let mut it = service_with(&format!("s{name}"), |spec| {
                spec.r#type =
                    ["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][usize::from(kind)].into();
                spec.selector =
                    if app == 3 { labels(&[]) } else { labels(&[("app", ["a", "b", "c"][usize::from(app)])]) };
                spec.publish_not_ready_addresses = publish;
                if kind == 3 && local == 0 {
                    spec.external_traffic_policy = "Local".into();
                }
                if kind == 4 {
                    spec.external_name = "example.com".into();
                } else if address > 0 {
                    spec.cluster_ip = if address == 17 { "None".into() } else { format!("10.96.0.{address}") };
                }
                spec.ports = ports
                    .iter()
                    .enumerate()
                    .map(|(index, (number, udp, node_port))| ServicePort {
                        protocol: if *udp { "UDP" } else { "TCP" }.into(),
                        node_port: if matches!(kind, 2 | 3) { *node_port } else { 0 },
                        target_port: if *number == 1 { by_name("http") } else { None },
                        ..port(["a", "b"][index], 80 + number)
                    })
                    .collect();
            });
            let metadata = it.metadata.as_mut().unwrap();
            metadata.namespace = place(namespace).into();
            metadata.uid = format!("uid-s{name}");
            metadata.finalizers = held(finalizer);
            it
        },
    )
}

fn pods() -> impl Strategy<Value = Pod> {
    let where_ = (0..4_u8, 0..4_u8, any::<bool>());
    (0..4_u8, 0..3_u8, 0..3_u8, where_, 0..3_u8, 0..8_u8, any::<bool>()).prop_map(
        |(name, namespace, app, (node, address, host_network), phase, finalizer, named)| {
            let mut it = pod(&format!("p{name}"), ["a", "b", "c"][usize::from(app)], &format!("10.1.0.{address}"));
            let spec = it.spec.as_mut().unwrap();
            spec.node_name = if node == 3 { String::new() } else { format!("n{node}") };
            spec.host_network = host_network && address == 3;
            if named {
                spec.containers[0].ports =
                    vec![ContainerPort { host_port: 18_080, ..container_port("http", 8080, "TCP") }];
            }
            let status = it.status.as_mut().unwrap();
            status.phase = ["Running", "Pending", "Failed"][usize::from(phase)].into();
            if address == 0 {
                status.pod_ip = format!("192.168.0.{node}");
            }
            let metadata = it.metadata.as_mut().unwrap();
            metadata.namespace = place(namespace).into();
            metadata.finalizers = held(finalizer);
            it
        },
    )
}

fn records() -> impl Strategy<Value = Endpoints> {
    (0..4_u8, 0..3_u8, 0..3_u8, any::<bool>()).prop_map(|(name, namespace, address, derived)| {
        let metadata = ObjectMeta { namespace: place(namespace).into(), ..metadata(&format!("s{name}")) };
        let endpoint =
            fairlead_proto::v1::Endpoint { address: format!("10.9.0.{address}"), ready: true, ..Default::default() };
        Endpoints { metadata: Some(metadata), endpoints: vec![endpoint], derived, extra_json: String::new() }
    })
}

fn hello(node: u8, cidr: u8, zone: bool) -> command::Kind {
    command::Kind::NodeUp(NodeUp {
        node: format!("n{node}"),
        addresses: vec![format!("192.168.0.{node}")],
        labels: if zone { labels(&[("topology.kubernetes.io/zone", "east")]) } else { labels(&[]) },
        pod_cidr: ["", "10.1.0.0/16", "10.1.0.0/24", "10.2.0.0/24"][usize::from(cidr)].into(),
        uid: format!("uid-n{node}"),
        grace_seconds: 5,
    })
}

fn reports() -> impl Strategy<Value = ReportedPod> {
    (0..4_u8, 0..3_u8, any::<bool>(), 0..4_u8, any::<bool>()).prop_map(
        |(name, namespace, ready, address, terminated)| ReportedPod {
            namespace: place(namespace).into(),
            name: format!("p{name}"),
            uid: format!("uid-p{name}"),
            ready,
            pod_ip: if address == 0 { String::new() } else { format!("10.1.0.{address}") },
            terminated,
            ..ReportedPod::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_law_holds_after_every_command(
        commands in prop::collection::vec((commands(), prop::option::of((0..3_u8, 1..5_u64))), 1..50),
    ) {
        let mut world = World::with_ranges("10.96.0.0/28", (30_000, 30_007));
        world.create(namespace("x"));
        for (kind, request) in commands {
            world.now_ms += 400;
            let request_id = request.map(|(client, sequence)| RequestId { client: format!("c{client}"), sequence, since: 0 });
            // Any observed lease up to the newest one: some match.
            let kind = match kind {
                command::Kind::ExpireNode(expire) if expire.observed_lease > 20 => {
                    let observed_lease = world.state().lease(&expire.node).map_or(0, |lease| lease.epoch);
                    command::Kind::ExpireNode(ExpireNode { observed_lease, ..expire })
                }
                kind => kind,
            };
            world.run_entry(Entry { at_ms: world.now_ms, request_id, command: Some(Command { kind: Some(kind) }), ..Entry::default() });
        }
        laws::records(&world.snapshot);
        laws::replay(&world);
    }
}
