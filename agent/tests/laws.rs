//! Laws of compile, diff and step, over random views and random sequences of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::random::{any_view, between};
use common::{facts, iptables as compile};
use fairlead_agent::kernel::model::Tables;
use fairlead_agent::plan::iptables::diff::{cleanup, diff};
use fairlead_agent::plan::iptables::observed::Line;
use fairlead_agent::plan::iptables::{Op, Rule, Space, Table, parse, restore};
use fairlead_agent::plan::{Family, IptablesPlane, Names, NodeFacts, Style};
use fairlead_proto::v1::{NodeDelta, ServiceItem, ServicePort};
use fairlead_proto::view::{NodeView, Touched};
use proptest::prelude::*;

type Desired = fairlead_agent::plan::Desired<IptablesPlane>;

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
                    let step = desired.update(&view, &touched.services);
                    if step.complete {
                        tables.execute(&step.ops).unwrap();
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
        for rules in desired.services.values().flat_map(|rules| Family::ALL.map(|family| rules.family(family))) {
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
        let step = desired.update_all(to);
        assert!(step.complete);
        let ops = step.ops;
        let whole = diff(&tables.observed, &compile(to, &facts), Style::Edit);
        let flows = |ops: &[Op]| {
            ops.iter()
                .filter_map(|op| if let Op::Forget(flows) = op { Some(flows.to_string()) } else { None })
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
    let gone = |endpoint: &str| format!("flows to UDP 10.96.0.53:53 answered by {endpoint} may be stale");
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
    assert_eq!(
        forgotten(&udp(&[]), &udp(&["10.244.0.2"])),
        ["flows to UDP 10.96.0.53:53 from before there were rules may be stale"]
    );
    assert_eq!(forgotten(&udp(&["10.244.0.2"]), &udp(&["10.244.0.2", "10.244.0.1"])), Vec::<String>::new());
}
