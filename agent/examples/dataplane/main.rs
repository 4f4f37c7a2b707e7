//! The load program of `make bench-dataplane`: what programming a kernel costs, by data plane and by number of services,
//! beside kube-proxy's shape of rules in the same run. It measures and prints; it judges nothing. Needs root; it works in a
//! network namespace of its own, which ends with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed measurement says so and ends")]

mod agent;
mod services;

use fairlead_agent::kernel::Kernel;
use fairlead_agent::kernel::linux::{Flavor, Iptables, Nftables};
use fairlead_agent::plan::{Desired, Names, NodeFacts, Plane, Style, compile};
use fairlead_proto::v1::NodeDelta;
use fairlead_proto::view::NodeView;
use nix::sys::resource::{UsageWho, getrusage};
use services::{add, address, all, replace, vip};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Changes of a kind.
const ROUNDS: u32 = 100;
/// Connections timed; with many more ports come round again, and some SYN meets a TIME_WAIT, with or without rules.
const CONNECTIONS: usize = 500;
/// Bytes sent through an established connection.
const STREAMED: usize = 2 << 30;
/// Answers in this namespace; both endpoints of the first service.
const POD: &str = "10.244.0.2:8080";

fn main() {
    let sizes: Vec<u32> = std::env::args()
        .nth(1)
        .unwrap_or("1000,5000,10000,45000".into())
        .split(',')
        .map(|size| size.parse().unwrap())
        .collect();
    // Peers that take minutes beyond.
    let peers: u32 = std::env::args().nth(2).unwrap_or("5000".into()).parse().unwrap();
    // The agent itself, as users run it.
    let fairlead = std::env::args().nth(3);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
    for line in [
        "ip link set lo up",
        "ip addr add 10.244.0.1/32 dev lo",
        "ip addr add 10.244.0.2/32 dev lo",
        "ip route add 10.96.0.0/12 dev lo src 10.244.0.1",
    ] {
        run(line, "");
    }
    let listener = TcpListener::bind(POD).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut std::io::sink()));
        }
    });
    println!(
        "{:22} {:>8}  {:>12} {:>12} {:>20} {:>20} {:>14} {:>12}",
        "",
        "services",
        "from empty",
        "restart",
        "one added (p50/p99)",
        "endpoint (p50/p99)",
        "first connect",
        "established"
    );
    run(
        "nft -f -",
        "add table ip one\nadd chain ip one o { type nat hook output priority -100 ; }\nadd rule ip one o ip daddr 10.96.1.0 tcp dport 80 dnat to 10.244.0.2:8080\n",
    );
    let (first, rate) = (connect().as_secs_f64() * 1e6, throughput());
    println!("{:22} {:>8}  {:>67} {first:>11.1} µs {rate:>7.1} Gb/s", "one hand-written rule", 1, "");
    run("nft delete table ip one", "");
    for size in &sizes {
        measure("nftables", Nftables::new(None), *size);
        run("nft delete table ip fairlead", "");
    }
    for size in sizes.iter().filter(|size| **size <= peers) {
        for (name, flavor, program) in
            [("iptables-legacy", Flavor::Legacy, "iptables-legacy"), ("iptables-nft", Flavor::Nft, "iptables-nft")]
        {
            measure(name, Iptables::new(Names::default()).flavor(flavor), *size);
            for table in ["nat", "filter"] {
                run(&format!("{program} -t {table} -F"), "");
                run(&format!("{program} -t {table} -X"), "");
            }
        }
        peer(*size);
    }
    if let Some(fairlead) = fairlead {
        agent::measure(&fairlead, &sizes);
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        node_name: "n".into(),
        node_ips: vec![Ipv4Addr::new(10, 244, 0, 1).into()],
        local_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        ..NodeFacts::default()
    }
}

fn measure<P: Plane>(name: &str, kernel: impl Kernel<P>, size: u32) {
    let mut view = NodeView::default();
    view.fold(&all(size)).unwrap();
    let begun = Instant::now();
    let mut desired: Desired<P> = compile(&view, &facts());
    kernel.execute(&P::diff(&kernel.observe().unwrap(), &desired, Style::Edit)).unwrap();
    let empty = begun.elapsed();
    let begun = Instant::now();
    let mut again: Desired<P> = compile(&view, &facts());
    let observed = kernel.observe().unwrap();
    P::adopt(&mut again, &observed);
    let ops = P::diff(&observed, &again, Style::Edit);
    let restart = begun.elapsed();
    assert!(ops.is_empty(), "a restart changes nothing");
    drop((again, observed));
    let mut step = |view: &mut NodeView, delta: &NodeDelta| {
        let begun = Instant::now();
        let touched = view.fold(delta).unwrap();
        let step = desired.update(view, &touched.services);
        assert!(step.complete);
        kernel.execute(&step.ops).unwrap();
        begun.elapsed()
    };
    let cpu = cpu_time();
    let replaced: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let delta = replace(&view, size, round);
            step(&mut view, &delta)
        })
        .collect();
    let cpu = (cpu_time() - cpu) / ROUNDS;
    let added: Vec<Duration> =
        (0..ROUNDS / 2).map(|round| step(&mut view, &add(size + round, 1 + u64::from(ROUNDS + round)))).collect();
    println!(
        "{name:22} {size:>8}  {:>9.1} ms {:>9.1} ms {:>17} ms {:>17} ms {:>11.1} µs {:>7.1} Gb/s   {:.2} ms of CPU a change",
        empty.as_secs_f64() * 1e3,
        restart.as_secs_f64() * 1e3,
        spread(added),
        spread(replaced),
        connect().as_secs_f64() * 1e6,
        throughput(),
        cpu.as_secs_f64() * 1e3,
    );
}

/// kube-proxy's nftables layout: a chain a service and an endpoint, a verdict map, and a listing before every change.
fn peer(size: u32) {
    let mut text = String::from(
        "add table ip kube\nadd map ip kube service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }\nadd chain ip kube nat-output { type nat hook output priority -100 ; }\nadd rule ip kube nat-output ip daddr . meta l4proto . th dport vmap @service-ips\n",
    );
    for index in 0..size {
        let _ = writeln!(text, "add chain ip kube service-{index}");
        for which in 0..2 {
            let _ = writeln!(
                text,
                "add chain ip kube endpoint-{index}-{which}\nadd rule ip kube endpoint-{index}-{which} meta l4proto tcp dnat to {}:8080",
                address(index, which)
            );
        }
        let _ = writeln!(
            text,
            "add rule ip kube service-{index} numgen random mod 2 vmap {{ 0 : goto endpoint-{index}-0 , 1 : goto endpoint-{index}-1 }}"
        );
        let _ =
            writeln!(text, "add element ip kube service-ips {{ {} . tcp . 80 : goto service-{index} }}", vip(index));
    }
    let begun = Instant::now();
    run("nft -f -", &text);
    let empty = begun.elapsed();
    let replaced: Vec<Duration> = (0..5)
        .map(|round| {
            let begun = Instant::now();
            run("nft --json --terse list table ip kube", "");
            let index = round * 97 % (size - 1) + 1;
            run("nft -f -", &format!("add chain ip kube endpoint-{index}-new{round}\nadd rule ip kube endpoint-{index}-new{round} meta l4proto tcp dnat to 10.245.0.{round}:8080\nflush chain ip kube service-{index}\nadd rule ip kube service-{index} numgen random mod 2 vmap {{ 0 : goto endpoint-{index}-0 , 1 : goto endpoint-{index}-new{round} }}\n"));
            begun.elapsed()
        })
        .collect();
    println!(
        "{:22} {size:>8}  {:>9.1} ms {:>12} {:>20} {:>17} ms {:>11.1} µs {:>7.1} Gb/s",
        "kube-proxy's nft shape",
        empty.as_secs_f64() * 1e3,
        "",
        "",
        spread(replaced),
        connect().as_secs_f64() * 1e6,
        throughput()
    );
    run("nft delete table ip kube", "");
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    format!("{:.2} / {:.2}", at(50), at(99))
}

/// Median of a first connection through the first service's VIP.
fn connect() -> Duration {
    let vip: SocketAddr = format!("{}:80", vip(0)).parse().unwrap();
    let mut times: Vec<Duration> = (0..CONNECTIONS)
        .map(|_| {
            let begun = Instant::now();
            let stream = TcpStream::connect_timeout(&vip, Duration::from_secs(3)).expect("an answer through the VIP");
            let took = begun.elapsed();
            drop(stream);
            took
        })
        .collect();
    times.sort_unstable();
    times[CONNECTIONS / 2]
}

/// Gigabits a second through an established connection to the first service's VIP.
fn throughput() -> f64 {
    let mut stream = TcpStream::connect((vip(0), 80)).expect("an answer through the VIP");
    let block = vec![0; 1 << 20];
    let begun = Instant::now();
    for _ in 0..STREAMED / block.len() {
        stream.write_all(&block).expect("an open connection");
    }
    STREAMED as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e9
}

fn cpu_time() -> Duration {
    let of = |who| {
        let usage = getrusage(who).unwrap();
        let micros = |time: nix::sys::time::TimeVal| u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap();
        Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

fn run(line: &str, input: &str) {
    let mut words = line.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect(line);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).expect(line);
    drop(stdin);
    assert!(child.wait().unwrap().success(), "{line}");
}
