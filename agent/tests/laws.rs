//! Laws of compile, diff and step, over random views and random sequences of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::facts;
use fairlead_agent::kernel::model::Tables;
use fairlead_agent::plan::compile::Changes;
use fairlead_agent::plan::diff::{Style, cleanup, diff, step};
use fairlead_agent::plan::observed::Line;
use fairlead_agent::plan::{Desired, Family, Names, NodeFacts, Op, Rule, Space, Table, compile, parse, restore};
use fairlead_proto::v1::{Endpoint, EndpointPort, NodeDelta, ServiceItem, ServicePort};
use fairlead_proto::view::{NodeView, Touched};
use proptest::prelude::*;

/// A service out of a few names and addresses, so that sequences meet the same ones again; None = not there.
fn any_service() -> impl Strategy<Value = (ServiceItem, Vec<Endpoint>)> {
    let kinds = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
    let flags = (any::<bool>(), any::<bool>(), prop::sample::select(vec![0_u32, 60]), any::<bool>());
    let ports = prop::collection::btree_map(0..3_usize, prop::sample::select(vec!["TCP", "UDP", "SCTP", "bad"]), 0..3);
    (0..4_u8, kinds, flags, ports, prop::collection::vec(any_endpoint(), 0..5), any::<bool>()).prop_map(
        |(index, kind, (internal_local, external_local, affinity_seconds, external), ports, endpoints, dual)| {
            let mut cluster_ips = vec![format!("10.96.0.{}", 10 + index)];
            if dual {
                cluster_ips.push(format!("fd00:96::{}", 10 + index));
            }
            let ports = ports.into_iter().map(|(at, protocol)| ServicePort {
                name: format!("p{at}"),
                protocol: protocol.into(),
                port: 80 + i32::try_from(at).unwrap(),
                node_port: 30_000 + i32::from(index) * 10 + i32::try_from(at).unwrap(),
                ..ServicePort::default()
            });
            let list = |ip: &str| {
                if external { vec![format!("{ip}{index}")] } else { Vec::new() }
            };
            let item = ServiceItem {
                namespace: "default".into(),
                name: format!("s{index}"),
                r#type: kind.into(),
                cluster_ips,
                ports: ports.collect(),
                external_ips: list("198.51.100.1"),
                load_balancer_ips: list("198.51.100.2"),
                load_balancer_source_ranges: if internal_local { list("192.0.2.") } else { Vec::new() },
                affinity_seconds,
                internal_local,
                external_local,
                ..ServiceItem::default()
            };
            (item, endpoints)
        },
    )
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let state = prop::sample::select(vec![
        (true, true, false),
        (false, true, true),
        (false, false, true),
        (false, false, false),
    ]);
    (0..6_u8, prop::sample::select(vec!["node1", "node2"]), state, any::<bool>()).prop_map(
        |(index, node, (ready, serving, terminating), six)| Endpoint {
            address: if six { format!("fd00:244::{index}") } else { format!("10.244.0.{index}") },
            node_name: node.into(),
            pod_name: format!("pod{index}"),
            ready,
            serving,
            terminating,
            ports: (0..3)
                .flat_map(|at| {
                    ["TCP", "UDP", "SCTP"].map(|protocol| EndpointPort {
                        name: format!("p{at}"),
                        port: 8080 + at,
                        protocol: protocol.into(),
                        app_protocol: None,
                    })
                })
                .collect(),
            ..Endpoint::default()
        },
    )
}

fn any_view() -> impl Strategy<Value = NodeView> {
    prop::collection::vec(any_service(), 0..5).prop_map(|services| {
        // A name twice: the last one counts, as in an upsert; its endpoints are of all.
        common::view(&services)
    })
}

/// The delta between two views, as a server might send it.
fn between(old: &NodeView, new: &NodeView, (from, to): (u64, u64)) -> NodeDelta {
    let mut delta = NodeDelta { from: Some(from), to, ..NodeDelta::default() };
    delta.remove_services =
        old.services.keys().filter(|name| !new.services.contains_key(name)).map(ToString::to_string).collect();
    let whole = new.to_delta();
    for (name, service) in &new.services {
        let before = old.services.get(name);
        if before == Some(service) {
            continue;
        }
        delta.upsert_services.push(service.item.clone());
        for id in before
            .into_iter()
            .flat_map(|before| before.endpoints.keys())
            .filter(|id| !service.endpoints.contains_key(*id))
        {
            delta.remove_endpoints.push(fairlead_proto::v1::EndpointRef {
                namespace: name.namespace.clone(),
                service: name.name.clone(),
                address: id.0.clone(),
                pod_name: id.1.clone(),
            });
        }
        delta.upsert_endpoints.extend(
            whole
                .upsert_endpoints
                .iter()
                .filter(|item| item.namespace == name.namespace && item.service == name.name)
                .cloned(),
        );
    }
    delta
}

fn programmed(desired: &Desired) -> Tables {
    let mut tables = Tables::default();
    tables.execute(&diff(&tables.observed, desired, Style::Edit)).unwrap();
    tables
}

/// What is ours, in an order that doesn't matter: entries of shared chains are a set with a tail.
fn content(tables: &Tables, desired: &Desired) -> Vec<Op> {
    diff(&tables.observed, desired, Style::Edit)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn executing_a_diff_makes_it_empty(from in any_view(), to in any_view(), rewrite in any::<bool>()) {
        let facts = facts("node1");
        let mut tables = programmed(&compile(&from, &facts));
        let desired = compile(&to, &facts);
        let style = if rewrite { Style::Rewrite } else { Style::Edit };
        let ops = diff(&tables.observed, &desired, style);
        tables.execute(&ops).unwrap();
        prop_assert_eq!(content(&tables, &desired), vec![]);
        // And everything there is, is what a fresh kernel would have.
        let fresh = programmed(&desired);
        for space in Space::ALL {
            let chains = |tables: &Tables| tables.observed.chains.get(&space).map(|chains| chains.keys().filter(|chain| facts.names.owns(chain)).cloned().collect::<Vec<_>>()).unwrap_or_default();
            prop_assert_eq!(chains(&tables), chains(&fresh));
        }
    }

    #[test]
    fn steps_end_where_a_compile_from_scratch_does(views in prop::collection::vec(any_view(), 1..6)) {
        let facts = facts("node1");
        let mut view = NodeView::default();
        let mut desired: Option<Desired> = None;
        let mut tables = Tables::default();
        for (revision, next) in (1_u64..).zip(&views) {
            let delta = if revision == 1 { NodeDelta { from: None, to: 1, ..next.to_delta() } } else { between(&view, next, (revision - 1, revision)) };
            let touched: Touched = view.fold(&NodeDelta { digest: Vec::new(), ..delta }).unwrap();
            match &mut desired {
                None => {
                    let first = compile(&view, &facts);
                    tables = programmed(&first);
                    desired = Some(first);
                }
                Some(desired) => {
                    let changes: Changes = desired.changes(&view, &touched.services);
                    if desired.apply(&changes) {
                        tables.execute(&step(&changes, &facts)).unwrap();
                    } else {
                        let ops = diff(&tables.observed, desired, Style::Edit);
                        tables.execute(&ops).unwrap();
                    }
                }
            }
            let scratch = compile(next, &facts);
            prop_assert_eq!(&desired.as_ref().unwrap().services, &scratch.services);
            prop_assert_eq!(content(&tables, &scratch), vec![]);
        }
    }

    #[test]
    fn drift_is_repaired_and_foreign_rules_are_never_touched(view in any_view(), harm in prop::collection::vec((0..40_usize, 0..4_u8), 1..6)) {
        let facts = facts("node1");
        let desired = compile(&view, &facts);
        let mut tables = programmed(&desired);
        let space = Space::new(Family::V4, Table::Nat);
        let foreign: Line = Rule::commented("foreign").jump("DOCKER").into();
        let chains = tables.observed.chains.get_mut(&space).unwrap();
        chains.get_mut("PREROUTING").unwrap().insert(0, foreign.clone());
        for (at, kind) in harm {
            let ours: Vec<String> = chains.keys().cloned().collect();
            let name = ours[at % ours.len()].clone();
            match kind {
                0 => { chains.get_mut(&name).unwrap().retain(|line| *line == foreign); }
                1 if facts.names.owns(&name) => { chains.remove(&name); }
                2 => { chains.get_mut(&name).unwrap().push(Line { rule: None, text: "-i eth9 -j KUBE-MARK-MASQ".into() }); }
                _ => { let copy = chains[&name].clone(); chains.get_mut(&name).unwrap().extend(copy.into_iter().filter(|line| *line != foreign)); }
            }
        }
        let ops = diff(&tables.observed, &desired, Style::Edit);
        tables.execute(&ops).unwrap();
        prop_assert_eq!(content(&tables, &desired), vec![]);
        prop_assert_eq!(tables.observed.chain(space, "PREROUTING").iter().filter(|line| **line == foreign).count(), 1);
        let ops = cleanup(&tables.observed, &facts.names);
        tables.execute(&ops).unwrap();
        for (space, chains) in &tables.observed.chains {
            for (chain, lines) in chains {
                prop_assert!(!facts.names.owns(chain), "{} in {}", chain, space);
                prop_assert!(lines.iter().all(|line| *line == foreign));
            }
        }
        prop_assert_eq!(tables.observed.chain(space, "PREROUTING"), &[foreign]);
    }

    #[test]
    fn what_is_written_reads_back_the_same(view in any_view()) {
        let facts = facts("node1");
        let desired = compile(&view, &facts);
        for (_, rules) in Family::ALL.iter().flat_map(|family| desired.rules(*family)) {
            for rule in rules.chains.values().flatten().chain(rules.entries.iter().map(|(_, rule)| rule)) {
                let parsed = parse::rule(&rule.to_string());
                prop_assert_eq!(parsed.as_ref(), Some(rule));
            }
        }
    }

    #[test]
    fn no_name_gets_anything_but_rules_into_the_input(name in ".{0,80}", port in ".{0,20}") {
        let item = ServiceItem { name, namespace: "n\n-A INPUT -j DROP".into(), cluster_ips: vec!["10.96.0.1".into()], ports: vec![ServicePort { name: port, port: 80, ..ServicePort::default() }], ..ServiceItem::default() };
        let desired = compile(&common::view(&[(item, vec![])]), &facts("node1"));
        let text = restore::render(&diff(&Tables::default().observed, &desired, Style::Edit), Family::V4);
        for line in text.lines() {
            prop_assert!(line == "*nat" || line == "*filter" || line == "COMMIT" || line.starts_with(":KUBE-") || line.starts_with("-A KUBE-") || (line.starts_with("-I ") && line.contains("-j KUBE-")), "{}", line);
        }
    }
}

#[test]
fn another_prefix_leaves_the_first_alone() {
    let mine = facts("node1");
    let other = NodeFacts { names: Names::new("FLEAD").unwrap(), ..facts("node1") };
    let view = common::view(&[(
        common::service("a", "10.96.0.1", &["80/TCP"]),
        vec![common::endpoint("10.244.0.1", "node1", &["80/TCP"])],
    )]);
    let mut tables = programmed(&compile(&view, &mine));
    let before = tables.clone();
    tables.execute(&diff(&tables.observed, &compile(&view, &other), Style::Edit)).unwrap();
    assert!(content(&tables, &compile(&view, &mine)).is_empty());
    tables.execute(&cleanup(&tables.observed, &other.names)).unwrap();
    assert_eq!(tables.observed, before.observed);
}

#[test]
fn stale_udp_flows_are_forgotten_last_and_exactly() {
    let facts = facts("node1");
    let udp = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|address| common::endpoint(address, "node1", &["53/UDP"])).collect();
        common::view(&[
            (common::service("dns", "10.96.0.53", &["53/UDP"]), endpoints),
            (
                common::service("web", "10.96.0.80", &["80/TCP"]),
                vec![common::endpoint("10.244.0.9", "node1", &["80/TCP"])],
            ),
        ])
    };
    let forgotten = |from: &NodeView, to: &NodeView| {
        let mut tables = programmed(&compile(from, &facts));
        let mut desired = compile(from, &facts);
        let changes = desired.changes_to(&compile(to, &facts));
        assert!(desired.apply(&changes));
        let ops = step(&changes, &facts);
        let whole = diff(&tables.observed, &compile(to, &facts), Style::Edit);
        let flows = |ops: &[Op]| {
            ops.iter()
                .filter_map(|op| {
                    if let Op::Forget(flows) = op {
                        Some((
                            flows.destination.unwrap().to_string(),
                            flows.port,
                            flows.answered_from.unwrap().to_string(),
                        ))
                    } else {
                        None
                    }
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(flows(&ops), flows(&whole), "a step and a whole diff agree");
        assert!(
            ops.iter().rev().skip_while(|op| matches!(op, Op::Forget(_))).all(|op| !matches!(op, Op::Forget(_))),
            "last"
        );
        tables.execute(&ops).unwrap();
        flows(&ops)
    };
    let gone = |endpoint: &str| ("10.96.0.53".to_owned(), 53, endpoint.to_owned());
    assert_eq!(forgotten(&udp(&["10.244.0.1", "10.244.0.2"]), &udp(&["10.244.0.2"])), [gone("10.244.0.1:53")]);
    assert_eq!(
        forgotten(&udp(&["10.244.0.2"]), &udp(&[])),
        [gone("10.244.0.2:53")],
        "the last endpoint too (kubernetes#139628)"
    );
    assert_eq!(
        forgotten(&udp(&["10.244.0.2"]), &common::view(&[])),
        [gone("10.244.0.2:53")],
        "and the whole service (kubernetes#141275)"
    );
    assert_eq!(forgotten(&udp(&[]), &udp(&["10.244.0.2"])), [gone("10.96.0.53:0")], "flows that led nowhere");
    assert_eq!(forgotten(&udp(&["10.244.0.2"]), &udp(&["10.244.0.2", "10.244.0.1"])), []);
}
