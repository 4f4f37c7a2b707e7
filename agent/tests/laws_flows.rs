//! Laws of forgetting, over random views, in every plane: what lives is never cut, what ended is always found, and a reading
//! of the kernel cuts no more than a step does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::cases::node;
use common::random::any_view;
use fairlead_agent::plan::flows::{Answered, Bindings, Flow, Flows, bindings};
use fairlead_agent::plan::service::{Protocol, ports};
use fairlead_agent::plan::{Desired, Family, IptablesPlane, NftablesPlane, Plane, Style, compile, iptables, nftables};
use fairlead_proto::view::NodeView;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// What a step forgets, what a reading after a restart forgets, and what that forgets in addition since nobody watched.
struct Forgotten {
    step: Vec<Flows>,
    read: Vec<Flows>,
    strays: Vec<Flows>,
}

fn forgotten<P: Plane>(
    (from, to): (&NodeView, &NodeView),
    mut observed: P::Observed,
    flows: fn(&P::Op) -> Option<Flows>,
) -> Forgotten {
    let facts = node();
    let mut desired: Desired<P> = compile(from, &facts);
    P::adopt(&mut desired, &observed);
    let ops = P::diff(&observed, &desired, Style::Edit);
    P::replay(&mut observed, &ops);
    let step = desired.update_all(to).ops;
    let mut again: Desired<P> = compile(to, &facts);
    P::adopt(&mut again, &observed);
    let read = P::diff(&observed, &again, Style::Edit);
    let of = |ops: Vec<P::Op>| ops.iter().filter_map(flows).collect();
    Forgotten { step: of(step), read: of(read), strays: of(P::strays(&again)) }
}

fn iptables(from: &NodeView, to: &NodeView) -> Forgotten {
    let flows = |op: &iptables::Op| if let iptables::Op::Forget(flows) = op { Some(flows.clone()) } else { None };
    forgotten::<IptablesPlane>((from, to), iptables::Observed::default(), flows)
}

fn nftables(from: &NodeView, to: &NodeView) -> Forgotten {
    let flows = |op: &nftables::Op| if let nftables::Op::Forget(flows) = op { Some(flows.clone()) } else { None };
    forgotten::<NftablesPlane>((from, to), nftables::Observed::default(), flows)
}

/// What is behind each frontend of a view.
fn behind(view: &NodeView, family: Family) -> Bindings {
    let plans: Vec<_> = view.services.values().flat_map(|service| ports(service, &node(), ("", family))).collect();
    bindings(&plans)
}

/// Every flow that a view's frontends may have made, each with whether it lives.
fn flows(view: &NodeView, now: &NodeView) -> Vec<(Family, Flow, bool)> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let after = behind(now, family);
        for (frontend, before) in behind(view, family) {
            let own = node().node_ips.into_iter().find(|ip| Family::of(*ip) == family);
            let Some(ip) = frontend.address.or(own) else { continue };
            let tcp = frontend.protocol == Protocol::Tcp;
            for endpoint in before.living {
                let lives = match after.get(&frontend) {
                    Some(after) => after.living.contains(&endpoint),
                    None => tcp,
                };
                let destination = SocketAddr::new(ip, frontend.port);
                let protocol = frontend.protocol;
                all.push((family, Flow { protocol, destination, answered_from: endpoint }, lives));
            }
        }
    }
    all
}

fn selects(all: &[Flows], family: Family, flow: &Flow) -> bool {
    all.iter().any(|one| {
        one.family == family
            && one.frontend.protocol == flow.protocol
            && one.frontend.port == flow.destination.port()
            && one.frontend.address.is_none_or(|ip| ip == flow.destination.ip())
            && one.answered.fits(flow)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_lives_is_kept_and_what_ended_is_forgotten(from in any_view(), to in any_view()) {
        for found in [iptables(&from, &to), nftables(&from, &to)] {
            for (family, flow, lives) in flows(&from, &to) {
                prop_assert_eq!(selects(&found.step, family, &flow), !lives, "a step: {:?}", flow);
                let read = selects(&found.read, family, &flow) || selects(&found.strays, family, &flow);
                prop_assert!(!(read && lives), "a restart cuts {flow:?}");
                // Where the frontend is still there, a restart finds all that ended; what ended with its frontend is found
                // by the rules that were left, which speak of served endpoints alone.
                let there = behind(&to, family).keys().any(|one| (one.protocol, one.port) == (flow.protocol, flow.destination.port()) && one.address.is_none_or(|ip| ip == flow.destination.ip()));
                prop_assert!(!there || read != lives, "a restart leaves {flow:?}");
            }
            let by = |all: &[Flows]| -> BTreeSet<Flows> { all.iter().filter(|one| matches!(one.answered, Answered::By(_))).cloned().collect() };
            prop_assert!(by(&found.read).is_subset(&by(&found.step)));
        }
    }
}
