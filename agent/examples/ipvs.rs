//! What mode ipvs costs, beside `ipvsadm --restore` of the same virtual servers: meant for the user-mode kernel of
//! `deploy/vm`, whose absolute figures say nothing; read the ratios. It measures and prints, and judges nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed measurement says so and ends")]

#[path = "dataplane/services.rs"]
mod services;

use fairlead_agent::kernel::Kernel;
use fairlead_agent::kernel::linux::Ipvs;
use fairlead_agent::plan::ipvs::Op;
use fairlead_agent::plan::{Desired, IpvsPlane, NodeFacts, Plane as _, Style, compile};
use fairlead_agent::reconcile::{Progress, Reconcile};
use fairlead_agent::shared::Shared;
use fairlead_proto::v1::NodeDelta;
use fairlead_proto::view::NodeView;
use services::{add, address, all, replace, vip};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes of a kind.
const ROUNDS: u32 = 60;
/// Virtual servers that somebody else removes.
const HARMS: u32 = 5;

fn main() {
    let sizes: Vec<u32> =
        std::env::args().nth(1).unwrap_or("1000".into()).split(',').map(|size| size.parse().unwrap()).collect();
    // The peer takes minutes beyond.
    let peers: u32 = std::env::args().nth(2).unwrap_or("10000".into()).parse().unwrap();
    // A module is loaded once.
    run("ipvsadm -A -t 192.0.2.1:1 -s rr", "");
    run("ipvsadm -C", "");
    println!(
        "{:>8} {:>16} {:>16} {:>16} {:>7} {:>12} {:>12} {:>12} {:>22} {:>22} {:>15}",
        "services",
        "from empty",
        "servers alone",
        "ipvsadm-restore",
        "ratio",
        "reading",
        "audit",
        "restart",
        "one added (p50/p99)",
        "endpoint (p50/p99)",
        "drift repaired"
    );
    for size in sizes {
        measure(size, size <= peers);
    }
}

/// Real servers that are removed are remembered for two minutes and looked through at each new one: every measurement has
/// a namespace of its own.
fn afresh() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
    run("ip link set lo up", "");
}

fn facts() -> NodeFacts {
    NodeFacts {
        node_name: "n".into(),
        node_ips: Vec::new(),
        local_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        ..NodeFacts::default()
    }
}

/// The first one has one endpoint only.
fn without_first(mut delta: NodeDelta) -> NodeDelta {
    delta.upsert_services.remove(0);
    delta.endpoints.remove(0);
    delta
}

fn measure(size: u32, with_peer: bool) {
    afresh();
    let kernel = Ipvs::new(None);
    kernel.prepare().unwrap();
    let mut view = NodeView::default();
    view.fold(&without_first(all(size + 1))).unwrap();
    let begun = Instant::now();
    let mut desired: Desired<IpvsPlane> = compile(&view, &facts());
    kernel.execute(&IpvsPlane::diff(&kernel.observe().unwrap(), &desired, Style::Edit)).unwrap();
    let empty = begun.elapsed();
    let begun = Instant::now();
    let observed = kernel.observe().unwrap();
    let reading = begun.elapsed();
    let begun = Instant::now();
    kernel.audit().unwrap();
    let audit = begun.elapsed();
    let begun = Instant::now();
    let mut again: Desired<IpvsPlane> = compile(&view, &facts());
    IpvsPlane::adopt(&mut again, &kernel.observe().unwrap());
    assert!(IpvsPlane::diff(&observed, &again, Style::Edit).is_empty(), "a restart changes nothing");
    let restart = begun.elapsed();
    drop(again);
    let mut step = |view: &mut NodeView, delta: &NodeDelta| {
        let begun = Instant::now();
        let touched = view.fold(delta).unwrap();
        let step = desired.update(view, &touched.services);
        assert!(step.complete);
        kernel.execute(&step.ops).unwrap();
        begun.elapsed()
    };
    let replaced: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let delta = replace(&view, size, round);
            step(&mut view, &delta)
        })
        .collect();
    let added: Vec<Duration> =
        (0..ROUNDS).map(|round| step(&mut view, &add(size + 1 + round, 1 + u64::from(ROUNDS + round)))).collect();
    let repaired = repaired(view);
    afresh();
    let kernel = Ipvs::new(None);
    kernel.prepare().unwrap();
    let ops = servers(size);
    let begun = Instant::now();
    kernel.execute(&ops).unwrap();
    let alone = begun.elapsed();
    let peer = with_peer.then(|| {
        afresh();
        let text = restore(size);
        let begun = Instant::now();
        run("ipvsadm --restore", &text);
        begun.elapsed()
    });
    let (restored, ratio) = match peer {
        Some(peer) => (format!("{:.1} ms", ms(peer)), format!("{:.2}", alone.as_secs_f64() / peer.as_secs_f64())),
        None => Default::default(),
    };
    println!(
        "{size:>8} {:>13.1} ms {:>13.1} ms {restored:>16} {ratio:>7} {:>9.1} ms {:>9.1} ms {:>9.1} ms {:>19} ms {:>19} ms {:>12.0} ms",
        ms(empty),
        ms(alone),
        ms(reading),
        ms(audit),
        ms(restart),
        spread(added),
        spread(replaced),
        ms(repaired),
    );
}

/// From a virtual server that somebody else removed to its return: the slowest of some.
fn repaired(view: NodeView) -> Duration {
    let shared = Arc::new(Shared::new(view, facts().service_cidrs));
    let (progress, served) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let reconcile = Reconcile::new(shared.clone(), Arc::new(Ipvs::new(None)), facts(), progress).run(cancel.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let thread = std::thread::spawn(move || runtime.block_on(reconcile));
    shared.announce();
    while served.borrow().applied == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let harm = |round: u32| {
        // At another point of its rounds each time.
        std::thread::sleep(Duration::from_millis(2_000 + 370 * u64::from(round)));
        let server = format!("{}:80", vip(1 + round));
        run(&format!("ipvsadm -D -t {server}"), "");
        let begun = Instant::now();
        let is_there = || {
            let listed = Command::new("ipvsadm").args(["-Ln", "-t", &server]).output().expect("ipvsadm");
            listed.status.success()
        };
        while !is_there() {
            std::thread::sleep(Duration::from_millis(50));
        }
        begun.elapsed()
    };
    let slowest = (0..HARMS).map(harm).max().unwrap_or_default();
    cancel.cancel();
    thread.join().unwrap();
    slowest
}

/// The virtual servers and nothing beside them.
fn servers(size: u32) -> Vec<Op> {
    let mut view = NodeView::default();
    view.fold(&without_first(all(size + 1))).unwrap();
    let desired: Desired<IpvsPlane> = compile(&view, &facts());
    let mut ops = IpvsPlane::diff(&Default::default(), &desired, Style::Edit);
    ops.retain(|op| matches!(op, Op::Add { .. } | Op::Real { .. }));
    ops
}

/// The same in `ipvsadm`'s words.
fn restore(size: u32) -> String {
    let mut text = String::new();
    for index in 1..=size {
        let vip = vip(index);
        let _ = writeln!(text, "-A -t {vip}:80 -s rr");
        for which in 0..2 {
            let _ = writeln!(text, "-a -t {vip}:80 -r {}:8080 -m -w 1", address(index, which));
        }
    }
    text
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| ms(times[(times.len() * share / 100).min(times.len() - 1)]);
    format!("{:.2}/{:.2}", at(50), at(99))
}

fn run(line: &str, input: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let mut child = Command::new(words[0]).args(&words[1..]).stdin(Stdio::piped()).spawn().expect(line);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{line}");
}
