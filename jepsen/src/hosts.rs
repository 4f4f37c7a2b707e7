//! Hosts as network namespaces on one bridge, in namespaces of their own: nothing of this machine's network is touched.
//!
//!   sw: bridge br0 ── n1… servers 10.77.0.11…, a1… agents 10.77.0.51…, c0 the harness itself 10.77.0.90
//!
//! INVARIANT: what was made is taken away again when [`Hosts`] is dropped, also after an error.

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs of this process, so far.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// A host of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A server, from 1.
    Server(u8),
    /// A node with an agent, from 1.
    Agent(u8),
    /// The harness: its clients, watchers and resolvers.
    Client,
}

impl Host {
    /// Its name: n1, a1, c0.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Server(number) => format!("n{number}"),
            Self::Agent(number) => format!("a{number}"),
            Self::Client => "c0".to_owned(),
        }
    }

    /// Its address on the bridge.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        let last = match self {
            Self::Server(number) => 10 + number,
            Self::Agent(number) => 50 + number,
            Self::Client => 90,
        };
        Ipv4Addr::new(10, 77, 0, last)
    }
}

/// The namespaces of one run.
pub struct Hosts {
    id: String,
    made: Vec<String>,
}

/// Runs a command of `ip` and the like; its words are separated by blanks.
fn run(command: &str) -> anyhow::Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| command.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {}", said.trim());
    Ok(())
}

impl Hosts {
    /// Makes servers, agents and the harness' own host. Needs root.
    ///
    /// # Errors
    /// A command of `ip` that fails; what was made before is taken away.
    pub fn up(servers: u8, agents: u8) -> anyhow::Result<Self> {
        let mut hosts = Self { id: format!("{}{}", id(), RUNS.fetch_add(1, Ordering::Relaxed)), made: Vec::new() };
        hosts.make("sw")?;
        let switch = hosts.namespace("sw");
        run(&format!("ip -n {switch} link add br0 type bridge"))?;
        run(&format!("ip -n {switch} link set br0 up"))?;
        let all = (1..=servers).map(Host::Server).chain((1..=agents).map(Host::Agent)).chain([Host::Client]);
        for host in all {
            hosts.attach(host)?;
        }
        for agent in 1..=agents {
            hosts.prepare_node(agent, agents)?;
        }
        Ok(hosts)
    }

    fn make(&mut self, name: &str) -> anyhow::Result<()> {
        let namespace = self.namespace(name);
        run(&format!("ip netns add {namespace}"))?;
        self.made.push(namespace.clone());
        run(&format!("ip -n {namespace} link set lo up"))
    }

    fn attach(&mut self, host: Host) -> anyhow::Result<()> {
        let name = host.name();
        self.make(&name)?;
        let (switch, namespace) = (self.namespace("sw"), self.namespace(&name));
        run(&format!("ip link add {name} netns {switch} type veth peer name eth0 netns {namespace}"))?;
        run(&format!("ip -n {switch} link set {name} master br0 up"))?;
        run(&format!("ip -n {namespace} addr add {}/24 dev eth0", host.address()))?;
        run(&format!("ip -n {namespace} link set eth0 up"))
    }

    /// A pod's address on the node, a way to the other nodes' pods, and a route that lets the node itself connect to VIPs.
    fn prepare_node(&self, agent: u8, agents: u8) -> anyhow::Result<()> {
        let namespace = self.namespace(&Host::Agent(agent).name());
        run(&format!("ip -n {namespace} addr add {}/32 dev lo", pod_address(agent)))?;
        for other in (1..=agents).filter(|other| *other != agent) {
            let via = Host::Agent(other).address();
            run(&format!("ip -n {namespace} route add {}/32 via {via}", pod_address(other)))?;
        }
        run(&format!("ip -n {namespace} route add default via {}", Host::Client.address()))?;
        run(&format!("ip netns exec {namespace} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0"))
    }

    /// Takes everything away. It may be done more than once.
    pub fn down(&self) {
        self.made.iter().rev().filter(|namespace| is_there(namespace)).for_each(|namespace| take_away(namespace));
    }

    /// The namespace of a host.
    #[must_use]
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.id)
    }

    /// A command that will run on a host.
    #[must_use]
    pub fn on(&self, host: Host, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(&host.name()), program]).stdin(Stdio::null());
        command
    }

    /// Runs a command on a host and waits for it; its words are separated by blanks.
    ///
    /// # Errors
    /// What it said, if it failed.
    pub fn exec(&self, host: Host, command: &str) -> anyhow::Result<()> {
        run(&format!("ip netns exec {} {command}", self.namespace(&host.name())))
    }

    /// Moves the calling thread to a host, and with it all threads that it makes from then on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self, host: Host) -> anyhow::Result<()> {
        let path = format!("/run/netns/{}", self.namespace(&host.name()));
        let file = File::open(&path).with_context(|| path.clone())?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns {path}"))
    }
}

/// The address of the one pod of a node.
#[must_use]
pub fn pod_address(agent: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, agent, 2)
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.down();
    }
}

/// What the names of this process' namespaces begin with.
fn id() -> String {
    format!("flj{}r", std::process::id())
}

fn is_there(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

/// Ends what runs in a namespace (all of it was started by this run), and removes it.
fn take_away(namespace: &str) {
    if let Ok(pids) = Command::new("ip").args(["netns", "pids", namespace]).output() {
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            if let Ok(pid) = pid.parse::<i32>().map(nix::unistd::Pid::from_raw)
                && pid != nix::unistd::getpid()
            {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    let _ = run(&format!("ip netns del {namespace}"));
}

/// Takes every namespace of this process away: for one that is told to stop in the middle of a run.
pub fn sweep() {
    let listed = Command::new("ip").args(["netns", "list"]).output().map(|output| output.stdout).unwrap_or_default();
    let own = id();
    let names = String::from_utf8_lossy(&listed).into_owned();
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with(&own)).for_each(take_away);
}
