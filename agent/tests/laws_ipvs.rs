//! Laws of the IPVS plane, over random views and random sequences of them: what a kernel is told, executed by a model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::cases::node;
use common::random::{any_view, between};
use fairlead_agent::kernel::ipvs_model::execute;
use fairlead_agent::plan::ipvs::diff::cleanup;
use fairlead_agent::plan::ipvs::{Balance, Element, Objects, Op, Server, Set, Virtual};
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::{Family, IpvsPlane, NodeFacts, Plane, Style, compile};
use fairlead_proto::v1::{NodeDelta, ServiceItem};
use fairlead_proto::view::NodeView;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Desired = fairlead_agent::plan::Desired<IpvsPlane>;

fn diff(objects: &Objects, desired: &Desired) -> Vec<Op> {
    IpvsPlane::diff(objects, desired, Style::Edit)
}

fn bring(objects: &mut Objects, desired: &Desired) {
    let ops = diff(objects, desired);
    execute(objects, &ops).unwrap();
}

fn programmed(view: &NodeView, facts: &NodeFacts) -> (Objects, Desired) {
    let desired: Desired = compile(view, facts);
    let mut objects = foreign();
    bring(&mut objects, &desired);
    (objects, desired)
}

/// What others have.
fn foreign() -> Objects {
    let at = |text: &str| Virtual::Address(Protocol::Tcp, text.parse().unwrap());
    Objects { foreign: BTreeSet::from([at("192.0.2.1:777"), at("10.1.1.1:80")]), ..Objects::default() }
}

/// With the service range not known, there is a route an address.
fn facts(knows_ranges: bool) -> NodeFacts {
    let facts = node();
    if knows_ranges { facts } else { NodeFacts { service_cidrs: Vec::new(), ..facts } }
}

fn repairs(ops: &[Op]) -> Vec<&Op> {
    ops.iter().filter(|op| IpvsPlane::is_repair(op)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn executing_a_diff_makes_it_empty(from in any_view(), to in any_view(), ranges in any::<bool>()) {
        let facts = facts(ranges);
        let (mut objects, _) = programmed(&from, &facts);
        let mut desired: Desired = compile(&to, &facts);
        IpvsPlane::adopt(&mut desired, &objects);
        bring(&mut objects, &desired);
        prop_assert_eq!(diff(&objects, &desired), vec![]);
        prop_assert_eq!(&objects.foreign, &foreign().foreign);
    }

    #[test]
    fn steps_end_where_a_diff_would_and_a_restart_changes_nothing(views in prop::collection::vec(any_view(), 1..6), ranges in any::<bool>()) {
        let facts = facts(ranges);
        let mut view = views[0].clone();
        let (mut objects, mut desired) = programmed(&view, &facts);
        for (revision, next) in (2_u64..).zip(&views[1..]) {
            let touched = view.fold(&NodeDelta { digest: Vec::new(), ..between(&view, next, (revision - 1, revision)) }).unwrap();
            let step = desired.update(&view, &touched.services);
            let ops = if step.complete { step.ops } else { diff(&objects, &desired) };
            execute(&mut objects, &ops).unwrap();
            prop_assert_eq!(diff(&objects, &desired), vec![]);
            let mut again: Desired = compile(next, &facts);
            IpvsPlane::adopt(&mut again, &objects);
            prop_assert_eq!(diff(&objects, &again), vec![]);
        }
    }

    #[test]
    fn a_known_range_takes_the_place_of_its_addresses_routes(view in any_view()) {
        let (mut objects, mut desired) = programmed(&view, &facts(false));
        desired.facts = facts(true);
        bring(&mut objects, &desired);
        prop_assert!(objects == programmed(&view, &facts(true)).0);
    }

    #[test]
    fn cleanup_removes_ours_alone(view in any_view()) {
        let (mut objects, _) = programmed(&view, &node());
        let ops = cleanup(&objects);
        execute(&mut objects, &ops).unwrap();
        prop_assert_eq!(objects, foreign());
    }

    #[test]
    fn drift_is_repaired(view in any_view(), harm in prop::collection::vec((0..400_usize, 0..7_u8), 1..6)) {
        let (mut objects, desired) = programmed(&view, &node());
        let whole = objects.clone();
        for (at, kind) in harm {
            tamper(&mut objects, at, kind);
        }
        let ops = diff(&objects, &desired);
        prop_assert_eq!(repairs(&ops).is_empty(), objects == whole);
        ops.iter().for_each(|op| objects.replay(op));
        prop_assert!(objects == whole, "{:?}", diff(&objects, &desired));
    }

    /// Whatever of a batch was done before a crash: what is ours is still known as ours, and a new start ends right.
    #[test]
    fn a_crash_in_a_batch_leaves_nothing_unknown(from in any_view(), to in any_view(), share in 0..100_usize) {
        let (mut objects, _) = programmed(&from, &node());
        let mut desired: Desired = compile(&to, &node());
        IpvsPlane::adopt(&mut desired, &objects);
        let ops = diff(&objects, &desired);
        execute(&mut objects, &ops[..ops.len() * share / 100]).unwrap();
        prop_assert!(objects.servers.keys().all(|at| objects.owns(at)));
        let mut desired: Desired = compile(&to, &node());
        IpvsPlane::adopt(&mut desired, &objects);
        bring(&mut objects, &desired);
        prop_assert_eq!(diff(&objects, &desired), vec![]);
    }

    #[test]
    fn no_text_of_a_user_gets_into_a_rule(name in ".{0,40}", port in ".{0,20}") {
        let mut item = common::service("x", "10.96.0.1", &["80/TCP"]);
        (item.name, item.ports[0].name) = (name, port);
        let rendered = |item: ServiceItem| programmed(&common::view(&[(item, vec![])]), &node()).0.render();
        prop_assert_eq!(rendered(item), rendered(common::service("x", "10.96.0.1", &["80/TCP"])));
    }
}

fn tamper(objects: &mut Objects, at: usize, kind: u8) {
    let any = objects.servers.keys().nth(at % objects.servers.len().max(1)).copied();
    let tables = objects.families.get_mut(&Family::V4).unwrap();
    match (kind, any) {
        (0, Some(any)) => drop(objects.servers.remove(&any)),
        (1, Some(any)) => drop(objects.servers.get_mut(&any).unwrap().reals.pop_first()),
        (2, Some(any)) => objects.servers.get_mut(&any).unwrap().balance.scheduler = "lc".into(),
        (3, _) => {
            let set = *tables.sets.keys().nth(at % tables.sets.len()).unwrap();
            // Not those that tell whose a virtual server is: a diff of a model doesn't look anew.
            if set == Set::Hairpin {
                tables.sets.get_mut(&set).unwrap().clear();
            }
        }
        (4, _) => {
            let chain = tables.chains.keys().nth(at % tables.chains.len().max(1)).cloned();
            chain.map(|chain| tables.chains.insert(chain, vec!["-j ACCEPT".into()]));
        }
        (5, _) => drop(tables.jumps.pop_first()),
        _ => {
            (objects.device, objects.routes) = (false, BTreeMap::new());
        }
    }
}

/// The promise of the plane: an endpoint that is replaced costs two real servers a virtual one and two elements, however
/// many services there are.
#[test]
fn a_replaced_endpoint_costs_a_few_ops() {
    let services = |pods: &[u8]| {
        let item = common::service("web", "10.96.0.10", &["http:80/TCP"]);
        let others = (20..200)
            .map(|number| (common::service(&format!("o{number}"), &format!("10.96.0.{number}"), &["80/TCP"]), vec![]));
        let endpoints =
            pods.iter().map(|pod| common::endpoint(&format!("10.244.0.{pod}"), "node2", &["http:8080/TCP"]));
        let all: Vec<_> = others.chain([(item, endpoints.collect())]).collect();
        common::view(&all)
    };
    let (mut objects, mut desired) = programmed(&services(&[1, 2, 3]), &node());
    let step = desired.update_all(&services(&[1, 3, 4]));
    execute(&mut objects, &step.ops).unwrap();
    assert!(repairs(&step.ops).len() <= 4, "{:?}", step.ops);
    assert!(step.complete);
}

/// Two services at one frontend: the first by name has it alone, and the other when that one goes.
#[test]
fn a_frontend_has_one_service() {
    let service = |name: &str, ip: &str, pod: &str| {
        let mut item = common::service(name, ip, &["http:80/TCP"]);
        item.external_ips = vec!["198.51.100.9".into()];
        (item, vec![common::endpoint(pod, "node1", &["http:8080/TCP"])])
    };
    let (one, two) = (service("a", "10.96.0.1", "10.244.0.1"), service("b", "10.96.0.2", "10.244.0.2"));
    let at = Virtual::Address(Protocol::Tcp, "198.51.100.9:80".parse().unwrap());
    let reals = |objects: &Objects| objects.servers[&at].reals.keys().map(ToString::to_string).collect::<Vec<_>>();
    let (mut objects, mut desired) = programmed(&common::view(std::slice::from_ref(&two)), &node());
    for (services, expected) in [
        (vec![one.clone(), two.clone()], "10.244.0.1:8080"),
        (vec![two.clone()], "10.244.0.2:8080"),
        (vec![two, one.clone()], "10.244.0.1:8080"),
        (vec![one], "10.244.0.1:8080"),
    ] {
        let step = desired.update_all(&common::view(&services));
        execute(&mut objects, &step.ops).unwrap();
        assert_eq!(reals(&objects), [expected]);
        assert_eq!(diff(&objects, &desired), []);
    }
}

/// One service gives up in the same step what another takes: it is there afterwards.
#[test]
fn what_moves_between_services_is_there_afterwards() {
    let service = |name: &str, ip: &str, pod: &str, port: u16| {
        let mut item = common::service(name, ip, &[&format!("http:80:{port}/TCP")]);
        item.r#type = "NodePort".into();
        (item, vec![common::endpoint(pod, "node1", &["http:8080/TCP"])])
    };
    let one = [service("a", "10.96.0.1", "10.244.0.1", 30_001), service("b", "10.96.0.2", "10.244.0.2", 30_002)];
    let two = [service("a", "10.96.0.1", "10.244.0.2", 30_002), service("b", "10.96.0.2", "10.244.0.1", 30_001)];
    let (mut objects, mut desired) = programmed(&common::view(&one), &node());
    for services in [&two, &one] {
        let step = desired.update_all(&common::view(services));
        execute(&mut objects, &step.ops).unwrap();
        assert_eq!(diff(&objects, &desired), []);
    }
}

/// Schedulers, weights and persistence, as the kernel gets them.
#[test]
fn a_services_wishes_become_the_virtual_servers() {
    let with = |scheduler: &str, weights: [u32; 2], affinity: u32| {
        let mut item = common::service("web", "10.96.0.10", &["http:80/TCP"]);
        item.affinity_seconds = affinity;
        if !scheduler.is_empty() {
            item.annotations.insert("fairlead.io/scheduler".into(), scheduler.into());
        }
        let endpoints = [1, 2].map(|pod| fairlead_proto::v1::Endpoint {
            weight: Some(weights[pod - 1]),
            ..common::endpoint(&format!("10.244.0.{pod}"), "node1", &["http:8080/TCP"])
        });
        let (objects, _) = programmed(&common::view(&[(item, endpoints.to_vec())]), &node());
        let Server { balance: Balance { scheduler, flags, persistence }, reals } =
            objects.servers.values().next().unwrap().clone();
        (scheduler.into_owned(), flags, persistence, reals.into_values().collect::<Vec<_>>())
    };
    for (scheduler, weights, affinity, expected) in [
        ("", [1, 1], 0, ("rr", 0, 0, [1, 1])),
        ("", [7, 7], 0, ("rr", 0, 0, [1, 1])),
        ("", [1, 3], 0, ("wrr", 0, 0, [1, 3])),
        ("lc", [1, 1], 0, ("lc", 0, 0, [1, 1])),
        ("lc", [2, 6], 0, ("wlc", 0, 0, [1, 3])),
        ("", [1, 1], 60, ("rr", 1, 60, [1, 1])),
        ("mh", [1, 1], 0, ("mh", 8, 0, [1, 1])),
        ("sh", [1, 0], 60, ("sh", 9, 60, [1, 0])),
        ("sed", [1, 2], 0, ("sed", 0, 0, [1, 2])),
    ] {
        let (name, flags, persistence, reals) = with(scheduler, weights, affinity);
        assert_eq!(
            (name.as_str(), flags, persistence, &reals[..]),
            (expected.0, expected.1, expected.2, &expected.3[..])
        );
    }
}

/// A mark stays with its frontend over a restart, and isn't given to another while it is in use.
#[test]
fn marks_are_stable_and_unique() {
    let services: Vec<_> = (1..20)
        .map(|number| {
            let mut item = common::service(
                &format!("s{number}"),
                &format!("10.96.0.{number}"),
                &[&format!("http:80:{}/TCP", 30_000 + number)],
            );
            (item.r#type, item.external_local) = ("NodePort".into(), true);
            (item, vec![common::endpoint(&format!("10.244.0.{number}"), "node1", &["http:8080/TCP"])])
        })
        .collect();
    let marks =
        |objects: &Objects| -> BTreeMap<Element, u32> { objects.families[&Family::V4].sets[&Set::Local].clone() };
    let (objects, _) = programmed(&common::view(&services), &node());
    let before = marks(&objects);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 19);
    // Started again with fewer, in another order: none of those that stay moves.
    let mut desired: Desired = compile(&common::view(&services[7..]), &node());
    IpvsPlane::adopt(&mut desired, &objects);
    let mut objects = objects;
    bring(&mut objects, &desired);
    assert!(marks(&objects).iter().all(|(element, mark)| before[element] == *mark));
    desired.update_all(&common::view(&services));
    bring(&mut objects, &desired);
    assert_eq!(marks(&objects).values().collect::<BTreeSet<_>>().len(), 19);
}
