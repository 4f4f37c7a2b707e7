//! IPVS of a real kernel, with real packets: in a user-mode kernel, since few hosts' own have it where tests run. Needs
//! Debian's user-mode-linux, kmod, ipset, ipvsadm, iptables, iproute2 and conntrack; without them it fails and says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests fail by panicking, and tell one story each"
)]

mod common;

use common::net::Net;
use common::programmed::{Programmed, Services};
use common::{cases, guest};
use fairlead_agent::kernel::linux::Ipvs;
use fairlead_agent::plan::IpvsPlane;
use std::time::Instant;

type Plane = Programmed<IpvsPlane>;

fn start(net: &Net, services: &Services) -> Plane {
    let kernel = Ipvs::new(Some(net.path("node")));
    kernel.prepare().unwrap();
    Programmed::start(kernel, cases::node(), services)
}

#[test]
fn the_contract_ipvs() {
    guest::inside("the_contract_ipvs", 280, || {
        let begun = Instant::now();
        let net = Net::build("n");
        println!("net {:?}", begun.elapsed());
        let rows = cases::table();
        let services: Vec<_> = rows.iter().map(|row| (row.item.clone(), row.endpoints.clone())).collect();
        let plane = start(&net, &services);
        println!("programmed {:?}", begun.elapsed());
        let (wrong, count) = cases::hold(&net);
        println!("held {:?}", begun.elapsed());
        assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
        assert!(count >= 150, "{count}");
        plane.holds();
    });
}
