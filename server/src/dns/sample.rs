//! A small cluster for the tests of DNS: every shape of service, with endpoints written by hand.

use crate::machine::{FORMAT_VERSION, Snapshot, State};
use fairlead_proto::internal::v1::{StateMeta, StateRecord, state_record};
use fairlead_proto::v1::{
    Endpoint, EndpointPort, Endpoints, Namespace, Object, ObjectMeta, Service, ServicePort, ServiceSpec,
};
use std::sync::Arc;

/// Beyond 2^32, to see the SOA's serial wrap.
pub const REVISION: u64 = (1 << 32) + 77;

/// Namespace `shop` with:
/// - `web`: 10.96.0.10, port http 80/TCP and an unnamed 53/UDP; ready endpoint 10.244.1.2, and one not ready;
/// - `empty`: 10.96.0.11, port http, no endpoints;
/// - `db`: headless, ports pg 5432/TCP and stats 9000/TCP; `db-0` at 10.244.1.3 and fd00:244::3, 10.244.1.4 and
///   fd00:244:: without host names, the latter without stats; one not ready;
/// - `quiet`: headless, one endpoint, not ready; `plain`: headless without ports, one endpoint;
/// - `ext` → example.com, `near` → web, `round` → itself, `number` → 192.0.2.1 (ExternalNames).
pub fn state() -> State {
    let ready = |address: &str, hostname: &str, ports: &[(&str, i32)]| endpoint(address, hostname, ports, true);
    let pg = [("pg", 5432), ("stats", 9000)];
    let db = vec![
        ready("10.244.1.3", "db-0", &pg),
        ready("10.244.1.4", "", &pg),
        endpoint("10.244.1.5", "db-9", &pg, false),
        ready("fd00:244::", "", &pg[..1]),
        ready("fd00:244::3", "db-0", &pg),
    ];
    let objects: Vec<Object> = vec![
        namespace("shop"),
        namespace("bare"),
        service("web", &["10.96.0.10"], &[("http", "TCP", 80), ("", "UDP", 53)]),
        endpoints(
            "web",
            vec![ready("10.244.1.2", "", &[("http", 8080)]), endpoint("10.244.1.9", "", &[("http", 8080)], false)],
        ),
        service("empty", &["10.96.0.11"], &[("http", "TCP", 80)]),
        service("db", &["None"], &[("pg", "TCP", 5432), ("stats", "TCP", 9000)]),
        endpoints("db", db),
        service("quiet", &["None"], &[("http", "TCP", 80)]),
        endpoints("quiet", vec![endpoint("10.244.1.6", "", &[("http", 80)], false)]),
        service("plain", &["None"], &[]),
        endpoints("plain", vec![ready("10.244.1.7", "", &[])]),
        external("ext", "example.com"),
        external("near", "web.shop.svc.cluster.local"),
        external("round", "round.shop.svc.cluster.local"),
        external("lost", "none.shop.svc.cluster.local"),
        external("number", "192.0.2.1"),
    ];
    of("10.96.0.0/12", objects)
}

/// An IPv6 cluster: in `shop`, service `six` at fd00:96::12, port https 443.
pub fn state_v6() -> State {
    of("fd00:96::/112", vec![namespace("shop"), service("six", &["fd00:96::12"], &[("https", "TCP", 443)])])
}

/// A headless service `many` in `shop` with this many ready endpoints, beside nothing else.
pub fn many(endpoints_ready: u32) -> State {
    let address = |i: u32| std::net::Ipv4Addr::from(0x0af4_0000 + i).to_string();
    let all = (1..=endpoints_ready).map(|i| endpoint(&address(i), "", &[("http", 80)], true));
    of(
        "10.96.0.0/12",
        vec![namespace("shop"), service("many", &["None"], &[("http", "TCP", 80)]), endpoints("many", all.collect())],
    )
}

/// A snapshot of a state, without history.
pub fn snapshot(state: State) -> Arc<Snapshot> {
    Arc::new(Snapshot { state, ..Snapshot::default() })
}

fn of(service_cidr: &str, objects: Vec<Object>) -> State {
    let meta = StateMeta {
        format_version: FORMAT_VERSION,
        machine_version: 1,
        revision: REVISION,
        cluster_id: "cluster".into(),
        service_cidr: service_cidr.into(),
        node_port_first: 30_000,
        node_port_last: 32_767,
        ..StateMeta::default()
    };
    let objects = objects.into_iter().map(state_record::Kind::Object);
    let records = std::iter::once(state_record::Kind::Meta(meta)).chain(objects);
    State::from_records(records.map(|kind| StateRecord { kind: Some(kind) })).unwrap()
}

fn metadata(namespace: &str, name: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta { name: name.into(), namespace: namespace.into(), revision: 1, ..ObjectMeta::default() })
}

fn namespace(name: &str) -> Object {
    Namespace { metadata: metadata("", name), ..Namespace::default() }.into()
}

fn service(name: &str, cluster_ips: &[&str], ports: &[(&str, &str, i32)]) -> Object {
    let port = |(name, protocol, port): &(&str, &str, i32)| ServicePort {
        name: (*name).into(),
        protocol: (*protocol).into(),
        port: *port,
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        r#type: "ClusterIP".into(),
        cluster_ip: cluster_ips[0].into(),
        cluster_ips: cluster_ips.iter().map(|ip| (*ip).into()).collect(),
        ports: ports.iter().map(port).collect(),
        ..ServiceSpec::default()
    };
    Service { metadata: metadata("shop", name), spec: Some(spec), ..Service::default() }.into()
}

fn external(name: &str, external_name: &str) -> Object {
    let spec =
        ServiceSpec { r#type: "ExternalName".into(), external_name: external_name.into(), ..ServiceSpec::default() };
    Service { metadata: metadata("shop", name), spec: Some(spec), ..Service::default() }.into()
}

fn endpoints(name: &str, endpoints: Vec<Endpoint>) -> Object {
    Endpoints { metadata: metadata("shop", name), endpoints, ..Endpoints::default() }.into()
}

fn endpoint(address: &str, hostname: &str, ports: &[(&str, i32)], ready: bool) -> Endpoint {
    let port = |(name, port): &(&str, i32)| EndpointPort {
        name: (*name).into(),
        port: *port,
        protocol: "TCP".into(),
        ..EndpointPort::default()
    };
    Endpoint {
        address: address.into(),
        hostname: hostname.into(),
        ready,
        serving: ready,
        ports: ports.iter().map(port).collect(),
        ..Endpoint::default()
    }
}
