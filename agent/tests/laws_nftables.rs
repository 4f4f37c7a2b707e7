//! Laws of the nftables plane, over random views and random sequences of them: what a kernel is told, executed by a model.
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
use fairlead_agent::plan::nftables::class::Class;
use fairlead_agent::plan::nftables::rules::Numbers;
use fairlead_agent::plan::nftables::set::{CLASS_SHIFT, POOL_MASK};
use fairlead_agent::plan::nftables::{Bytes, Observed, Op, Packed, Rules, Set};
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::{Family, NftablesPlane, NodeFacts, Plane, Style, compile};
use fairlead_proto::v1::NodeDelta;
use fairlead_proto::view::NodeView;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

type Desired = fairlead_agent::plan::Desired<NftablesPlane>;

/// A kernel in memory. It refuses what a kernel refuses, and looks at itself after every transaction.
#[derive(Clone, Default)]
struct Model(Observed);

impl Model {
    fn execute(&mut self, ops: &[Op]) {
        for (number, transaction) in transactions(ops).into_iter().enumerate() {
            let before = self.0.clone();
            for op in &transaction {
                self.check(op);
                self.0.replay(std::slice::from_ref(op));
            }
            self.is_whole();
            if number > 0 {
                self.carries(&before);
            }
        }
    }

    fn check(&self, op: &Op) {
        let has = |family: &Family, set: Set, key: &Bytes| {
            self.0.tables.get(family).is_some_and(|table| table.elements.contains_key(&(set, key.clone())))
        };
        match op {
            Op::Put { family, set, key, replaces, .. } => {
                let table = self.0.tables.get(family).expect("a table before its elements");
                assert!(table.structure.sets.contains_key(&set.name()), "{} before its elements", set.name());
                assert_eq!(has(family, *set, key), *replaces, "{op}");
            }
            Op::Remove { family, set, key } => assert!(has(family, *set, key), "removing what is not there: {op}"),
            _ => {}
        }
    }

    /// Whatever is referred to is there.
    fn is_whole(&self) {
        for (family, table) in &self.0.tables {
            let number =
                |set: Set, key: &Bytes| table.elements.get(&(set, key.clone())).and_then(|data| data.number_at(0));
            for ((set, key), data) in &table.elements {
                match set {
                    Set::Frontends | Set::NodePorts | Set::Outside | Set::OutsideNodePorts => {
                        let pool = data.number_at(0).unwrap();
                        assert!(number(Set::Pools, &Bytes::number(pool)).is_some(), "pool {pool} of {key:?}");
                    }
                    Set::Pools => {
                        let word = data.number_at(0).unwrap();
                        assert_eq!(word & POOL_MASK, key.number_at(0).unwrap());
                        let class = u16::try_from(word >> CLASS_SHIFT).unwrap();
                        let chain = table.structure.picks.get(&class).expect("a class has a chain");
                        assert!(table.structure.chains.contains_key(chain), "{chain}");
                        let class = Class::named(chain).unwrap();
                        for slot in 0..class.slots {
                            let key = Bytes::slot(word & POOL_MASK, slot);
                            let endpoint = table
                                .elements
                                .get(&(Set::Endpoints(class.protocol), key))
                                .expect("every slot has an endpoint");
                            assert!(endpoint.to_endpoint(*family).is_some());
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// A packet that read a pool's word before the transaction finds an endpoint after it.
    fn carries(&self, before: &Observed) {
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        for (family, table) in &before.tables {
            let Some(now) = self.0.tables.get(family) else { continue };
            for (set, key) in table.elements.keys().filter(|(set, _)| *set == Set::Pools) {
                let pool = key.number_at(0).unwrap();
                if now.elements.contains_key(&(*set, key.clone())) {
                    assert!(
                        protocols
                            .iter()
                            .any(|one| now.elements.contains_key(&(Set::Endpoints(*one), Bytes::slot(pool, 0)))),
                        "slot 0 of pool {pool}"
                    );
                }
            }
        }
    }
}

/// As the kernel gets them.
fn transactions(ops: &[Op]) -> Vec<Vec<Op>> {
    let (mut making, mut first, mut last, mut removing) = (vec![], vec![], vec![], vec![]);
    for op in ops.iter().cloned() {
        match &op {
            Op::Table { .. } | Op::DropTable { .. } | Op::Declare { .. } | Op::Chain { .. } | Op::Pick { .. } => {
                making.push(op)
            }
            Op::Put { .. } => first.push(op),
            Op::Remove { set, .. } if set.is_removed_last() => last.push(op),
            Op::Remove { .. } => first.push(op),
            // A number that goes to another class goes at once.
            Op::Unpick { family, class }
                if ops.iter().any(
                    |one| matches!(one, Op::Pick { family: of, class: again, .. } if (of, again) == (family, class)),
                ) => {}
            _ => removing.push(op),
        }
    }
    vec![making, first, last, removing]
}

fn programmed(view: &NodeView, facts: &NodeFacts) -> (Model, Desired) {
    let desired: Desired = compile(view, facts);
    let mut model = Model::default();
    model.execute(&NftablesPlane::diff(&model.0, &desired, Style::Edit));
    (model, desired)
}

fn repairs(ops: &[Op]) -> Vec<&Op> {
    ops.iter().filter(|op| NftablesPlane::is_repair(op)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn rules_are_what_was_packed(view in any_view()) {
        let facts = node();
        for service in view.services.values() {
            let rules = Rules::compile(service, (&facts, "a"), None, &mut Numbers::default());
            prop_assert_eq!(Packed::from(&rules).unpack(), rules);
        }
    }

    #[test]
    fn executing_a_diff_makes_it_empty(from in any_view(), to in any_view()) {
        let facts = node();
        let (mut model, _) = programmed(&from, &facts);
        let mut desired: Desired = compile(&to, &facts);
        NftablesPlane::adopt(&mut desired, &model.0);
        model.execute(&NftablesPlane::diff(&model.0, &desired, Style::Edit));
        prop_assert_eq!(NftablesPlane::diff(&model.0, &desired, Style::Edit), vec![]);
    }

    #[test]
    fn steps_end_where_a_diff_would_and_a_restart_changes_nothing(views in prop::collection::vec(any_view(), 1..6)) {
        let facts = node();
        let mut view = views[0].clone();
        let (mut model, mut desired) = programmed(&view, &facts);
        for (revision, next) in (2_u64..).zip(&views[1..]) {
            let touched = view.fold(&NodeDelta { digest: Vec::new(), ..between(&view, next, (revision - 1, revision)) }).unwrap();
            let step = desired.update(&view, &touched.services);
            prop_assert!(step.complete);
            model.execute(&step.ops);
            let ops = NftablesPlane::diff(&model.0, &desired, Style::Edit);
            // Classes that nobody needs any more are swept by the next audit, not by a step.
            prop_assert!(repairs(&ops).iter().all(|op| matches!(op, Op::Unpick { .. } | Op::DropChain { .. } | Op::Undeclare { .. } | Op::Chain { .. })), "{ops:?}");
            let mut again: Desired = compile(next, &facts);
            NftablesPlane::adopt(&mut again, &model.0);
            let ops = NftablesPlane::diff(&model.0, &again, Style::Edit);
            let elements: Vec<_> = ops.iter().filter(|op| matches!(op, Op::Put { .. } | Op::Remove { .. })).collect();
            prop_assert!(elements.is_empty(), "{elements:?}");
        }
    }

    #[test]
    fn drift_is_repaired(view in any_view(), harm in prop::collection::vec((0..400_usize, 0..3_u8), 1..6)) {
        let (mut model, desired) = programmed(&view, &node());
        let whole = model.clone();
        for (at, kind) in harm {
            let Some(table) = model.0.tables.values_mut().next() else { continue };
            match kind {
                0 => { let key = table.elements.keys().nth(at).cloned(); if let Some(key) = key { table.elements.remove(&key); } }
                1 => { table.elements.insert((Set::Frontends, Bytes::frontend([192, 0, 2, 1].into(), Protocol::Tcp, 9)), Bytes::number(77)); }
                _ => { let name = table.structure.chains.keys().nth(at % 20).cloned(); if let Some(name) = name { table.structure.chains.insert(name, vec!["drop".into()]); } }
            }
        }
        let ops = NftablesPlane::diff(&model.0, &desired, Style::Edit);
        model.0.replay(&ops);
        prop_assert!(model.0 == whole.0);
    }

    #[test]
    fn no_text_of_a_user_gets_into_a_rule(name in ".{0,40}", port in ".{0,20}") {
        let mut item = common::service("x", "10.96.0.1", &["80/TCP"]);
        (item.name, item.ports[0].name) = (name, port);
        let desired: Desired = compile(&common::view(&[(item, vec![])]), &node());
        let clean: Desired = compile(&common::view(&[(common::service("x", "10.96.0.1", &["80/TCP"]), vec![])]), &node());
        let rendered = |desired: &Desired| { let mut model = Model::default(); model.execute(&NftablesPlane::diff(&model.0, desired, Style::Edit)); model.0.render() };
        prop_assert_eq!(rendered(&desired), rendered(&clean));
    }
}

/// The promise of the plane: an endpoint that is replaced costs two elements, however many frontends and services.
#[test]
fn a_replaced_endpoint_costs_a_few_elements() {
    let services = |pods: &[u8]| {
        let mut item = common::service("web", "10.96.0.10", &["http:80:30080/TCP"]);
        item.r#type = "LoadBalancer".into();
        item.load_balancer_ips = vec!["203.0.113.1".into(), "203.0.113.2".into()];
        let endpoints =
            pods.iter().map(|pod| common::endpoint(&format!("10.244.0.{pod}"), "node2", &["http:8080/TCP"]));
        common::view(&[(item, endpoints.collect())])
    };
    let (mut model, mut desired) = programmed(&services(&[1, 2, 3]), &node());
    let step = desired.update_all(&services(&[1, 3, 4]));
    model.execute(&step.ops);
    let elements: usize = step
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { replaces, .. } => 1 + usize::from(*replaces),
            Op::Remove { .. } => 1,
            _ => 0,
        })
        .sum();
    assert!(elements <= 4, "{:?}", step.ops);
    assert!(step.complete);
}

/// Numbers of pools are not given again soon: a packet that read one just before must not find another service's pods.
#[test]
fn a_pools_number_is_not_used_again_soon() {
    let view = |ip: &str| {
        common::view(&[(
            common::service("a", ip, &["80/TCP"]),
            vec![common::endpoint("10.244.0.1", "node1", &["80/TCP"])],
        )])
    };
    let mut desired: Desired = compile(&view("10.96.0.1"), &node());
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let pools = |packed: &Arc<Packed>| packed.unpack().pools().map(|pool| pool.id).collect::<Vec<_>>();
        seen.extend(desired.services.values().flat_map(pools));
        desired.update_all(&NodeView::default());
        desired.update_all(&view("10.96.0.1"));
    }
    assert_eq!(seen.len(), 50);
}
