//! The processes under test: the real program on its hosts, each with a data directory of its own. Only pids that were
//! started here are ever signalled.

use crate::disk::Disk;
use crate::hosts::{Host, Hosts};
use crate::validate::addresses::{NODE_PORTS, SERVICE_CIDR};
use anyhow::{Context as _, ensure};
use fairlead_proto::v1::cluster_client::ClusterClient;
use fairlead_proto::v1::{StatusRequest, StatusResponse};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// gRPC port of every server.
pub const GRPC: u16 = 7400;
/// Peer port of every server.
pub const PEER: u16 = 7401;
/// Port of a pod.
pub const POD_PORT: u16 = 8080;
/// MiB of a server's disk, so that it can be filled.
const DISK_MIB: u32 = 768;

/// A process and what happens to it.
#[derive(Default)]
struct Process {
    child: Option<Child>,
    paused: bool,
    starts: u32,
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).map(Pid::from_raw)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill(pid, signal);
        }
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        self.paused = false;
    }
}

/// Everything that runs.
pub struct Cluster {
    /// Where it runs.
    pub hosts: Hosts,
    /// Number of servers.
    pub servers: u8,
    /// Number of agents.
    pub agents: u8,
    /// Logs and data.
    pub dir: PathBuf,
    program: PathBuf,
    processes: BTreeMap<Host, Mutex<Process>>,
    /// Extra environment of servers: the clock that they see, a mutant.
    environment: Mutex<BTreeMap<Host, Vec<(String, String)>>>,
    mounted: Mutex<Vec<PathBuf>>,
    /// Servers that are no founders any more: they join through the others.
    joined: Mutex<BTreeSet<Host>>,
    /// Disks that can lose power, of the scenarios that have them.
    disks: BTreeMap<Host, Disk>,
}

impl Cluster {
    /// Prepares folders, with disks that can lose power or without; nothing is started.
    ///
    /// # Errors
    /// A folder that can't be made, or a disk that can't be mounted.
    pub fn new(
        hosts: Hosts,
        (servers, agents): (u8, u8),
        (program, dir, disks): (&Path, &Path, bool),
    ) -> anyhow::Result<Self> {
        let all = (1..=servers).map(Host::Server).chain((1..=agents).map(Host::Agent));
        let cluster = Self {
            hosts,
            servers,
            agents,
            dir: dir.to_owned(),
            program: program.to_owned(),
            processes: all.map(|host| (host, Mutex::default())).collect(),
            environment: Mutex::default(),
            mounted: Mutex::default(),
            joined: Mutex::default(),
            disks: BTreeMap::new(),
        };
        for host in cluster.processes.keys() {
            let place = cluster.data(*host);
            fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
            if matches!(host, Host::Server(_)) && !disks {
                cluster.mount(&place)?;
            }
        }
        if disks { cluster.with_disks() } else { Ok(cluster) }
    }

    /// Gives servers disks that can lose power, before any of them starts.
    fn with_disks(mut self) -> anyhow::Result<Self> {
        for host in self.server_hosts().collect::<Vec<_>>() {
            let backing = self.dir.join(host.name()).join("disk");
            fs::create_dir_all(&backing).with_context(|| backing.display().to_string())?;
            self.mount(&backing)?;
            let socket = self.dir.join(format!("{}.disk", host.name()));
            self.disks.insert(host, Disk::mount(&self.data(host), &backing, &socket)?);
        }
        Ok(self)
    }

    /// A server's disk that can lose power.
    ///
    /// # Errors
    /// This scenario has none.
    pub fn disk(&self, host: Host) -> anyhow::Result<&Disk> {
        self.disks.get(&host).with_context(|| format!("the disk of {} can't lose power", host.name()))
    }

    /// A small disk in memory: it can be filled without harm.
    fn mount(&self, place: &Path) -> anyhow::Result<()> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "fairlead-jepsen"]).arg(place);
        ensure!(command.status()?.success(), "a tmpfs can't be mounted on {}", place.display());
        lock(&self.mounted).push(place.to_owned());
        Ok(())
    }

    /// Data directory of a host's process.
    #[must_use]
    pub fn data(&self, host: Host) -> PathBuf {
        self.dir.join(host.name()).join("data")
    }

    /// What a host's process logs.
    #[must_use]
    pub fn log(&self, host: Host) -> PathBuf {
        self.dir.join(format!("{}.log", host.name()))
    }

    /// Every process' host.
    pub fn all(&self) -> impl Iterator<Item = Host> + '_ {
        self.processes.keys().copied()
    }

    /// Every server's host.
    pub fn server_hosts(&self) -> impl Iterator<Item = Host> + '_ {
        (1..=self.servers).map(Host::Server)
    }

    fn process(&self, host: Host) -> Option<MutexGuard<'_, Process>> {
        self.processes.get(&host).map(lock)
    }

    /// Sets what a host's process finds in its environment when it starts next.
    pub fn set_environment(&self, host: Host, variables: Vec<(String, String)>) {
        lock(&self.environment).insert(host, variables);
    }

    /// From now on a server is one that joins a cluster which is there.
    pub fn joins(&self, host: Host) {
        lock(&self.joined).insert(host);
    }

    /// Whether a server came later.
    pub fn has_joined(&self, host: Host) -> bool {
        lock(&self.joined).contains(&host)
    }

    /// Starts a process, if it doesn't run.
    ///
    /// # Errors
    /// The system's.
    pub fn start(&self, host: Host) -> anyhow::Result<()> {
        let Some(mut process) = self.process(host) else { return Ok(()) };
        if process.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log(host))?;
        let mut command = self.hosts.on(host, &self.program.to_string_lossy());
        match host {
            Host::Server(number) => self.server_arguments(&mut command, number),
            Host::Agent(number) => self.agent_arguments(&mut command, number),
            Host::Client => return Ok(()),
        }
        let variables = lock(&self.environment).get(&host).cloned().unwrap_or_default();
        command.envs(variables).stdout(log.try_clone()?).stderr(log);
        process.child = Some(command.spawn().context("the program can't be started")?);
        process.starts += 1;
        Ok(())
    }

    fn server_arguments(&self, command: &mut Command, number: u8) {
        let host = Host::Server(number);
        let members: Vec<String> =
            self.server_hosts().map(|host| format!("{}={}:{PEER}", host.name(), host.address())).collect();
        let address = host.address();
        command.args(["--insecure", "server", "--name", &host.name(), "--data-dir"]).arg(self.data(host));
        match self.server_hosts().find(|other| *other != host).filter(|_| self.has_joined(host)) {
            Some(other) => {
                command.args(["--join", &format!("{}:{GRPC}", other.address())]);
                command.args(["--advertise-peer", &format!("{address}:{PEER}")]);
            }
            None => drop(command.args(["--initial-cluster", &members.join(",")])),
        }
        command.args(["--service-cidr", SERVICE_CIDR]);
        command.args(["--node-port-range", &format!("{}-{}", NODE_PORTS.0, NODE_PORTS.1), "--min-free-mib", "8"]);
        for (flag, port) in [("grpc", GRPC), ("peer", PEER), ("https", 7443), ("dns", 53), ("metrics", 7402)] {
            command.args([&format!("--listen-{flag}"), &format!("{address}:{port}")]);
        }
    }

    fn agent_arguments(&self, command: &mut Command, number: u8) {
        let host = Host::Agent(number);
        let servers: Vec<String> = self.server_hosts().map(|host| format!("{}:{GRPC}", host.address())).collect();
        command.args(["--insecure", "--server", &servers.join(","), "agent", "--mode", "nftables"]);
        command.args(["--node-name", &host.name(), "--node-ip", &host.address().to_string()]);
        command.args(["--renew-seconds", "1", "--grace-seconds", "40", "--state-dir"]).arg(self.data(host));
    }

    /// The program, to be run as a command line on the harness' own host.
    #[must_use]
    pub fn command_line(&self) -> Command {
        self.hosts.on(Host::Client, &self.program.to_string_lossy())
    }

    /// SIGKILL, and waits until it is gone. False: it didn't run.
    pub fn kill(&self, host: Host) -> bool {
        let Some(mut process) = self.process(host) else { return false };
        let ran = process.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        process.signal(Signal::SIGKILL);
        process.reap();
        ran
    }

    /// SIGTERM, and waits until it is gone, or kills it after ten seconds: false then.
    pub fn terminate(&self, host: Host) -> bool {
        let Some(mut process) = self.process(host) else { return false };
        process.signal(Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if process.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_)))) {
                process.reap();
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        process.signal(Signal::SIGKILL);
        process.reap();
        false
    }

    /// SIGSTOP. False: it doesn't run.
    pub fn pause(&self, host: Host) -> bool {
        let Some(mut process) = self.process(host) else { return false };
        process.signal(Signal::SIGSTOP);
        process.paused = process.child.is_some();
        process.paused
    }

    /// SIGCONT.
    pub fn resume(&self, host: Host) {
        if let Some(mut process) = self.process(host) {
            process.signal(Signal::SIGCONT);
            process.paused = false;
        }
    }

    /// It runs, paused or not.
    pub fn runs(&self, host: Host) -> bool {
        self.process(host)
            .is_some_and(|mut process| process.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))))
    }

    /// What a server says of the cluster.
    pub async fn status(&self, host: Host, within: Duration) -> Option<StatusResponse> {
        let ask = async {
            let mut client = ClusterClient::new(connect(host)?.connect().await.ok()?);
            Some(client.status(StatusRequest {}).await.ok()?.into_inner())
        };
        tokio::time::timeout(within, ask).await.ok()?
    }

    /// The leader, as the others see it.
    pub async fn leader(&self) -> Option<Host> {
        let within = Duration::from_millis(800);
        let asked = self.server_hosts().map(|host| self.status(host, within));
        let mut newest = None;
        for status in futures::future::join_all(asked).await.into_iter().flatten() {
            for member in status.members.iter().filter(|member| member.leader) {
                let number = member.name.strip_prefix('n').and_then(|number| number.parse().ok());
                newest = newest.max(number.map(|number| (member.term, Host::Server(number))));
            }
        }
        newest.map(|(_, host)| host)
    }
}

/// The way to a server's gRPC port.
#[must_use]
pub fn connect(host: Host) -> Option<Endpoint> {
    let endpoint = Channel::from_shared(format!("http://{}:{GRPC}", host.address())).ok()?;
    Some(endpoint.connect_timeout(Duration::from_millis(500)).tcp_nodelay(true))
}

/// A lock whose holder may have panicked: what it guards is whole between any two statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the disks below a folder away: for a harness that is told to stop in the middle of a run.
pub fn sweep(store: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = mounts.lines().filter_map(|line| line.strip_prefix("fairlead-jepsen ")?.split_whitespace().next());
    for place in ours.filter(|place| Path::new(place).starts_with(store)) {
        let _ = Command::new("umount").arg("-l").arg(place).status();
    }
}

impl Cluster {
    /// Ends every process and copies servers' data beside their disks, which go with the run: something is wrong with it.
    pub fn keep(&self) {
        for host in self.server_hosts() {
            self.kill(host);
            let to = self.dir.join(host.name()).join("kept");
            let done = Command::new("cp").arg("-a").arg(self.data(host)).arg(&to).status();
            if !done.is_ok_and(|status| status.success()) {
                eprintln!("  the data of {} can't be kept in {}", host.name(), to.display());
            }
        }
    }

    /// Ends every process and takes disks and hosts away. It may be done more than once.
    pub fn down(&self) {
        for host in self.all() {
            self.kill(host);
        }
        for host in self.disks.keys() {
            // What is below it can't go first. The disk's process ends by itself.
            let _ = Command::new("umount").arg("-l").arg(self.data(*host)).stderr(Stdio::null()).status();
        }
        for place in lock(&self.mounted).drain(..) {
            let _ = Command::new("umount").arg("-l").arg(&place).status();
        }
        self.hosts.down();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.down();
    }
}
