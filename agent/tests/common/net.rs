//! A node with two pods behind it and a client outside, as network namespaces; real sockets in them.

use fairlead_agent::kernel::linux::in_namespace;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Longer than any answer takes here, shorter than a repeated first packet.
pub const SILENCE: Duration = Duration::from_millis(900);
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The node, its pods and the client, as namespaces; removed when dropped.
pub struct Net {
    prefix: String,
}

impl Net {
    pub fn build(tag: &str) -> Self {
        require();
        let net = Self { prefix: format!("fl{}{tag}", std::process::id()) };
        for name in ["node", "pod1", "pod2", "out"] {
            sh(&format!("ip netns add {}", net.name(name)));
            sh(&format!("ip -n {} link set lo up", net.name(name)));
            // No second's wait for link-local addresses to be found unique.
            sh(&format!("ip netns exec {} sysctl -qw net.ipv6.conf.default.accept_dad=0", net.name(name)));
        }
        // A redirect would use up the ICMP allowance of the refusal that the tests wait for.
        // And one datagram after the other is refused by ICMP, which is rationed.
        let quiet = "net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0";
        sh(&format!(
            "ip netns exec {} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 {quiet}",
            net.name("node")
        ));
        for (index, name, v4, gateway, v6, gateway6) in [
            (1, "pod1", "10.244.1.2", "10.244.1.1", "fd00:244:1::2", "fd00:244:1::1"),
            (2, "pod2", "10.244.2.2", "10.244.2.1", "fd00:244:2::2", "fd00:244:2::1"),
            (3, "out", "192.0.2.2", "192.0.2.1", "2001:db8::2", "2001:db8::1"),
        ] {
            let (node, other) = (net.name("node"), net.name(name));
            sh(&format!("ip -n {node} link add v{index} type veth peer name eth0 netns {other}"));
            for (namespace, link, ip, ip6) in
                [(&node, format!("v{index}"), gateway, gateway6), (&other, "eth0".to_owned(), v4, v6)]
            {
                sh(&format!("ip -n {namespace} addr add {ip}/24 dev {link}"));
                sh(&format!("ip -n {namespace} -6 addr add {ip6}/64 dev {link} nodad"));
                sh(&format!("ip -n {namespace} link set {link} up"));
            }
            sh(&format!("ip -n {other} route add default via {gateway}"));
            sh(&format!("ip -n {other} -6 route add default via {gateway6}"));
        }
        // A destination needs some route before OUTPUT can rewrite it.
        sh(&format!("ip -n {} route add default via 192.0.2.2", net.name("node")));
        sh(&format!("ip -n {} -6 route add default via 2001:db8::2", net.name("node")));
        for pod in ["pod1", "pod2"] {
            net.serve(pod);
        }
        net
    }

    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name(name)))
    }

    pub fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(Some(&self.path(name)), work).unwrap()
    }

    /// A pod: answers TCP 8080 with "pod peer" and UDP 8053 with "pod", and gives back what it gets at TCP 8081.
    fn serve(&self, pod: &'static str) {
        let (tcp, echo, udp) = self.inside(pod, || {
            let listen = |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            (listen(8080), listen(8081), UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 8053)).unwrap())
        });
        std::thread::spawn(move || {
            for stream in echo.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = write!(stream, "{pod} {peer}");
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(pod.as_bytes(), peer);
            }
        });
    }

    /// Connects so many times and counts the answers.
    pub fn ask(&self, from: &str, to: &str, times: usize) -> BTreeMap<String, usize> {
        self.ask_within(SILENCE, (from, to), times)
    }

    /// The same with another patience.
    pub fn ask_within(&self, limit: Duration, (from, to): (&str, &str), times: usize) -> BTreeMap<String, usize> {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(from, || {
            let mut answers = BTreeMap::new();
            for _ in 0..times {
                let answer = match TcpStream::connect_timeout(&to, limit) {
                    Ok(mut stream) => {
                        let mut text = String::new();
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        stream.read_to_string(&mut text).map(|_| text).unwrap_or_else(|error| error.to_string())
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused".to_owned(),
                    Err(error) if error.kind() == ErrorKind::TimedOut => "silence".to_owned(),
                    Err(error) => error.to_string(),
                };
                *answers.entry(answer).or_default() += 1;
            }
            answers
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in ["pod1", "pod2", "out", "node"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(name)]).output();
        }
    }
}

fn require() {
    assert!(nix::unistd::geteuid().is_root(), "the kernel tests need root: run them as root (sudo make test)");
    for (program, package) in [
        ("ip", "iproute2"),
        ("iptables-nft-save", "iptables"),
        ("iptables-legacy-save", "iptables"),
        ("conntrack", "conntrack"),
        ("nft", "nftables"),
    ] {
        let found = Command::new(program).arg("--version").output().is_ok();
        assert!(
            found,
            "{program} is missing: the kernel tests need the package {package} (apt-get install iptables nftables iproute2 conntrack)"
        );
    }
}

/// Asks until the answer is as wanted, for a while: flows are forgotten soon after the rules changed, not before.
pub fn soon<T: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let begun = std::time::Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn sh(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
