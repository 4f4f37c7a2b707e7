//! Starts the real binary as a user would, on loopback with free ports and in folders of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use serde_json::Value;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub const FAIRLEAD: &str = env!("CARGO_BIN_EXE_fairlead");

/// A process that ends with the test.
pub struct Process {
    child: Child,
    /// Its standard error.
    pub log: PathBuf,
}

impl Process {
    /// Starts it with its output in `log`.
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill_9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by number.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// What it printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// A port that is free for TCP and UDP now. Not one that the system gives to connections: it could be taken by any of
/// those before it is listened on.
pub fn free_port() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    loop {
        let port = 10_240 + u16::try_from(RandomState::new().hash_one(0) % 22_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Three servers (or one) on loopback.
pub struct Cluster {
    /// Their folders.
    pub dir: tempfile::TempDir,
    /// They speak TLS; clients use this configuration.
    pub admin: Option<PathBuf>,
    /// More flags of every server.
    pub flags: Vec<String>,
    names: Vec<String>,
    ports: Vec<[u16; 5]>,
    /// Running servers.
    pub servers: Vec<Option<Process>>,
}

impl Cluster {
    /// Starts `count` servers and waits until they answer.
    pub fn start(count: usize) -> Self {
        let mut cluster = Self::prepare(count);
        cluster.start_all();
        cluster
    }

    /// The same with TLS: authorities are made once and given to every founder.
    pub fn start_secure(count: usize, flags: &[&str]) -> Self {
        let mut cluster = Self::prepare(count);
        let made = cluster.dir.path().join("made");
        let mut init = Command::new(FAIRLEAD);
        let all: Vec<_> = (0..count).map(|index| cluster.grpc(index)).collect();
        let output = run(init.args(["--server", &all.join(","), "cert", "init"]).arg(&made), "");
        assert!(output.status.success(), "{}", text(&output.stderr));
        for index in 0..count {
            let ca = cluster.data_dir(index).join("pki/ca");
            std::fs::create_dir_all(&ca).unwrap();
            for file in ["client.pem", "peer.pem"] {
                std::fs::copy(made.join("ca").join(file), ca.join(file)).unwrap();
            }
        }
        cluster.admin = Some(made.join("admin.yaml"));
        cluster.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        cluster.start_all();
        cluster
    }

    /// Starts every server and waits until they answer.
    pub fn start_all(&mut self) {
        for index in 0..self.servers.len() {
            self.start_server(index);
        }
        self.wait_ready();
    }

    /// Servers that are not started yet.
    pub fn prepare(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names = (1..=count).map(|index| format!("n{index}")).collect();
        let ports = (0..count).map(|_| std::array::from_fn(|_| free_port())).collect();
        let servers = (0..count).map(|_| None).collect();
        Self { dir, admin: None, flags: Vec::new(), names, ports, servers }
    }

    /// The command line of one server.
    pub fn server_command(&self, index: usize) -> Command {
        let [grpc, _, https, dns, metrics] = self.ports[index];
        let [_, peer, ..] = self.ports[index];
        let mut command = Command::new(FAIRLEAD);
        if self.admin.is_none() {
            command.arg("--insecure");
        }
        command.args(["server", "--name", &self.names[index]]).args(&self.flags);
        command.arg("--data-dir").arg(self.data_dir(index));
        command.args(["--initial-cluster", &self.founders()]);
        for (face, port) in [("grpc", grpc), ("peer", peer), ("https", https), ("dns", dns), ("metrics", metrics)] {
            command.arg(format!("--listen-{face}")).arg(format!("127.0.0.1:{port}"));
        }
        command
    }

    /// The founding list.
    pub fn founders(&self) -> String {
        let member = |(name, ports): (&String, &[u16; 5])| format!("{name}=127.0.0.1:{}", ports[1]);
        self.names.iter().zip(&self.ports).map(member).collect::<Vec<_>>().join(",")
    }

    /// Where one server stores.
    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(&self.names[index])
    }

    /// Starts one server (again).
    pub fn start_server(&mut self, index: usize) {
        let log = self.dir.path().join(format!("{}.log", self.names[index]));
        self.servers[index] = Some(Process::start(&mut self.server_command(index), log));
    }

    /// DNS port of one server.
    pub fn dns_port(&self, index: usize) -> u16 {
        self.ports[index][3]
    }

    /// gRPC address of one server.
    pub fn grpc(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index][0])
    }

    /// HTTPS address of one server.
    pub fn https(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index][2])
    }

    /// Metrics address of one server.
    pub fn metrics(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index][4])
    }

    /// `fairlead` against all servers.
    pub fn cli(&self) -> Command {
        let all: Vec<_> = (0..self.names.len()).map(|index| self.grpc(index)).collect();
        let mut command = Command::new(FAIRLEAD);
        match &self.admin {
            Some(config) => command.arg("--config").arg(config),
            None => command.args(["--insecure", "--server", &all.join(",")]),
        };
        command
    }

    /// Runs `fairlead ARGS` with a manifest on standard input.
    pub fn run(&self, args: &[&str], stdin: &str) -> Output {
        run(self.cli().args(args), stdin)
    }

    /// Runs `fairlead ARGS`, which must succeed, and answers its standard output.
    pub fn ok(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(args, stdin);
        assert!(output.status.success(), "{args:?}: {}{}\n{}", text(&output.stdout), text(&output.stderr), self.logs());
        text(&output.stdout)
    }

    /// `fairlead status -o json`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "-o", "json"], "")).unwrap()
    }

    /// Index of the leader.
    pub fn leader(&self) -> usize {
        eventually("a leader", || {
            let status = self.status();
            let members = status["members"].as_array()?.clone();
            let leader = members.iter().find(|member| member["leader"] == true)?["name"].as_str()?.to_owned();
            self.names.iter().position(|name| *name == leader)
        })
    }

    /// Waits until a write succeeds.
    pub fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.run(&["get", "namespace", "default"], "");
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "not ready: {}\n{}", text(&output.stderr), self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The ends of all logs, for a failing test's message.
    pub fn logs(&self) -> String {
        self.names
            .iter()
            .map(|name| {
                let log = std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(8).collect();
                format!("-- {name}\n{}\n", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
            })
            .collect()
    }
}

/// Runs a command with text on its standard input.
pub fn run(command: &mut Command, stdin: &str) -> Output {
    use std::io::Write as _;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tries until there is an answer, at most a minute: machines are busy.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A Service manifest.
pub fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector:\n    app: {name}\n  ports:\n  - port: 80\n    targetPort: 8080\n"
    )
}

/// A file of a test.
pub fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
