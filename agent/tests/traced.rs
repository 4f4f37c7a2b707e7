//! Packets traced through what the planes would have a kernel hold: the whole contract, what a break looks like, and that
//! a rule of somebody else's is never guessed at.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::cases::{Asker, node};
use common::traced::{held, hold_intent, source};
use common::{endpoint, service, view};
use fairlead_agent::plan::iptables::observed::Line;
use fairlead_agent::plan::iptables::{Space, Table};
use fairlead_agent::plan::nftables::Set;
use fairlead_agent::plan::service::Protocol;
use fairlead_agent::plan::trace::{End, Packet, Traced};
use fairlead_agent::plan::{Family, IptablesPlane, IpvsPlane, NftablesPlane, Plane, compile};
use fairlead_proto::v1::{Endpoint, ServiceItem};

#[test]
fn the_contract_traced_iptables() {
    let (wrong, count) = hold_intent::<IptablesPlane>();
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn the_contract_traced_nftables() {
    let (wrong, count) = hold_intent::<NftablesPlane>();
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn the_contract_traced_ipvs() {
    let (wrong, count) = hold_intent::<IpvsPlane>();
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn a_break_shows_in_ipvs() {
    let whole = held(&compile::<IpvsPlane>(&view(&[web()]), &node()));
    let to = "10.96.0.10:80";
    assert_eq!(outcome(&trace::<IpvsPlane>(&whole, Asker::Out, to), to), ["10.244.1.2:8080 75", "10.244.2.2:8080 25"]);
    let mut broken = whole.clone();
    broken.servers.values_mut().for_each(|server| server.reals.values_mut().for_each(|weight| *weight = 0));
    assert_eq!(outcome(&trace::<IpvsPlane>(&broken, Asker::Out, to), to), ["rejected 100"]);
    let mut broken = whole.clone();
    broken.routes.clear();
    assert_eq!(outcome(&trace::<IpvsPlane>(&broken, Asker::Out, to), to), ["unserved 100"]);
    let mut broken = whole.clone();
    broken.families.values_mut().for_each(|tables| drop(tables.sets.remove(&fairlead_agent::plan::ipvs::Set::Served)));
    assert_eq!(outcome(&trace::<IpvsPlane>(&broken, Asker::Out, to), to), ["rejected 100"]);
    let mut strange = whole;
    let chains = strange.families.values_mut().flat_map(|tables| tables.chains.values_mut());
    chains.for_each(|lines| lines.insert(0, "-m set --match-set x src -j ACCEPT".into()));
    assert_eq!(outcome(&trace::<IpvsPlane>(&strange, Asker::Out, to), to), ["unknown 100"]);
}

fn web() -> (ServiceItem, Vec<Endpoint>) {
    let weighted = |pod: u8, weight| Endpoint {
        weight: Some(weight),
        ..endpoint(&format!("10.244.{pod}.2"), "node1", &["http:8080/TCP"])
    };
    (service("web", "10.96.0.10", &["http:80/TCP"]), vec![weighted(1, 3), weighted(2, 1)])
}

fn packet(from: Asker, to: &str) -> Packet {
    let source = source(from, Family::V4);
    Packet { source, destination: to.parse().unwrap(), protocol: Protocol::Tcp, remembered: None }
}

fn trace<P: Plane>(observed: &P::Observed, from: Asker, to: &str) -> Traced {
    P::trace(observed, &node(), &[packet(from, to)]).remove(0)
}

/// "10.244.1.2:8080 75" and the like.
fn outcome(traced: &Traced, to: &str) -> Vec<String> {
    let outcome = traced.outcome(to.parse().unwrap());
    outcome.into_iter().map(|(end, share)| format!("{end} {:.0}", share * 100.0)).collect()
}

fn effects(traced: &Traced) -> String {
    traced.steps.iter().map(|step| format!("{} {}: {}\n", step.hook, step.chain, step.effect)).collect()
}

#[test]
fn each_step_says_what_its_rule_did() {
    let services = [web()];
    let observed = held(&compile::<NftablesPlane>(&view(&services), &node()));
    let traced = trace::<NftablesPlane>(&observed, Asker::Out, "10.96.0.10:80");
    assert_eq!(outcome(&traced, "10.96.0.10:80"), ["10.244.1.2:8080 75", "10.244.2.2:8080 25"]);
    insta::assert_snapshot!("steps_nftables", effects(&traced));
    let observed = held(&compile::<IptablesPlane>(&view(&services), &node()));
    let traced = trace::<IptablesPlane>(&observed, Asker::Out, "10.96.0.10:80");
    assert_eq!(outcome(&traced, "10.96.0.10:80"), ["10.244.1.2:8080 75", "10.244.2.2:8080 25"]);
    insta::assert_snapshot!("steps_iptables", effects(&traced));
}

/// What a flushed map or a half-applied change looks like.
#[test]
fn a_break_shows_in_nftables() {
    let whole = held(&compile::<NftablesPlane>(&view(&[web()]), &node()));
    for (set, end, says) in [
        (Set::Frontends, "rejected 100", "10.96.0.10 . tcp . 80 is not in frontends"),
        (Set::Pools, "rejected 100", "pool 1 is not in pools"),
        (Set::Endpoints(Protocol::Tcp), "rejected 100", "draws one of 4 slots of pool 1, nothing in 4"),
    ] {
        let mut broken = whole.clone();
        let table = broken.tables.get_mut(&Family::V4).unwrap();
        table.elements.retain(|(of, _), _| *of != set);
        let traced = trace::<NftablesPlane>(&broken, Asker::Pod1, "10.96.0.10:80");
        assert_eq!(outcome(&traced, "10.96.0.10:80"), [end], "{set:?}");
        assert!(effects(&traced).contains(says), "{says}: {}", effects(&traced));
    }
    let mut holed = whole.clone();
    let table = holed.tables.get_mut(&Family::V4).unwrap();
    let last = table.elements.keys().rfind(|(set, _)| matches!(set, Set::Endpoints(_))).unwrap().clone();
    table.elements.remove(&last);
    let traced = trace::<NftablesPlane>(&holed, Asker::Pod1, "10.96.0.10:80");
    let total: f64 = traced.ends.values().sum();
    assert!((total - 1.0).abs() < 1e-9, "a draw of an empty slot falls back to slot 0: {:?}", traced.ends);
    assert!(traced.ends.keys().all(|end| matches!(end, End::Reaches { .. })), "{:?}", traced.ends);
    assert_eq!(
        outcome(&trace::<NftablesPlane>(&Default::default(), Asker::Pod1, "10.96.0.10:80"), "10.96.0.10:80"),
        ["unserved 100"]
    );
}

#[test]
fn a_rule_that_is_not_ours_is_never_guessed_at() {
    let whole = held(&compile::<NftablesPlane>(&view(&[web()]), &node()));
    let mut strange = whole.clone();
    let chains = &mut strange.tables.get_mut(&Family::V4).unwrap().structure.chains;
    chains.get_mut("services").unwrap().insert(1, "ip saddr 10.0.0.1 counter packets 0 bytes 0 drop".into());
    let traced = trace::<NftablesPlane>(&strange, Asker::Pod1, "10.96.0.10:80");
    assert_eq!(outcome(&traced, "10.96.0.10:80"), ["unknown 100"]);
    assert!(effects(&traced).contains("unknown rule"), "{}", effects(&traced));
    let mut strange = whole;
    let chains = &mut strange.tables.get_mut(&Family::V4).unwrap().structure.chains;
    chains
        .insert("odd".into(), vec!["type filter hook ingress device \"eth0\" priority filter; policy accept;".into()]);
    assert_eq!(
        outcome(&trace::<NftablesPlane>(&strange, Asker::Pod1, "10.96.0.10:80"), "10.96.0.10:80"),
        ["unknown 100"]
    );

    let whole = held(&compile::<IptablesPlane>(&view(&[web()]), &node()));
    let nat = Space::new(Family::V4, Table::Nat);
    let line = |text: &str| Line { rule: None, text: text.into() };
    let mut strange = whole.clone();
    let chains = strange.chains.get_mut(&nat).unwrap();
    chains.get_mut("PREROUTING").unwrap().insert(0, line("-m set --match-set x src -j DOCKER"));
    let traced = trace::<IptablesPlane>(&strange, Asker::Pod1, "10.96.0.10:80");
    assert_eq!(
        traced.outcome("10.96.0.10:80".parse().unwrap()).len(),
        2,
        "a foreign rule is passed over, and said to be"
    );
    assert!(
        effects(&traced).starts_with("nat PREROUTING PREROUTING: not ours: not followed\n"),
        "{}",
        effects(&traced)
    );
    let chains = strange.chains.get_mut(&nat).unwrap();
    chains.get_mut("KUBE-SERVICES").unwrap().insert(0, line("-m set --match-set x src -j ACCEPT"));
    let traced = trace::<IptablesPlane>(&strange, Asker::Pod1, "10.96.0.10:80");
    assert_eq!(outcome(&traced, "10.96.0.10:80"), ["unknown 100"]);
}

/// Long chains are looked up, not read: the same ends at many services.
#[test]
fn among_many_services_a_packet_still_finds_its_own() {
    let mut services = vec![web()];
    for n in 0..400 {
        let item = service(&format!("other{n}"), &format!("10.97.{}.{}", n / 200, n % 200 + 1), &["http:80/TCP"]);
        services.push((ServiceItem { r#type: "NodePort".into(), ..item }, vec![]));
        services.last_mut().unwrap().0.ports[0].node_port = 30_000 + n;
    }
    services[0].0.r#type = "NodePort".into();
    services[0].0.ports[0].node_port = 32_000;
    let observed = held(&compile::<IptablesPlane>(&view(&services), &node()));
    for (to, ends) in [
        ("10.96.0.10:80", &["10.244.1.2:8080 75", "10.244.2.2:8080 25"][..]),
        ("192.0.2.1:32000", &["10.244.1.2:8080 75", "10.244.2.2:8080 25"]),
        ("192.0.2.1:30399", &["rejected 100"]),
        ("10.97.1.5:80", &["rejected 100"]),
        ("10.96.9.9:80", &["dropped 100"]),
    ] {
        assert_eq!(outcome(&trace::<IptablesPlane>(&observed, Asker::Out, to), to), ends, "{to}");
    }
}
