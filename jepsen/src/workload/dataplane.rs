//! Connections from the nodes through a VIP to the pods behind it, all the time: none may fail, whatever becomes of servers
//! and agents.

use super::Stage;
use crate::cluster::{POD_PORT, lock};
use crate::hosts::{Host, pod_address};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Time for one connection, its question and its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Failures that are kept word for word.
const KEPT: usize = 20;

/// What became of them.
#[derive(Default)]
pub struct Connections {
    /// Answered by a pod.
    pub answered: AtomicU64,
    /// Not answered.
    pub failed: AtomicU64,
    /// Some of the failures: when, where, why.
    pub failures: Mutex<Vec<String>>,
}

/// A pod: answers each connection with its node's name.
///
/// # Errors
/// Its host can't be entered, or its port not be listened on.
pub fn pod(stage: &Arc<Stage>, agent: u8) -> anyhow::Result<()> {
    let (inside, (ready, opened)) = (stage.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        let listening = inside.cluster.hosts.enter(Host::Agent(agent)).and_then(|()| {
            let listener = TcpListener::bind((pod_address(agent), POD_PORT))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = match listening {
            Ok(listener) => listener,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(()));
        while !inside.is_stopped() {
            match listener.accept() {
                Ok((stream, _)) => drop(answer(stream, agent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(300)),
                Err(_) => {}
            }
        }
    });
    opened.recv()?
}

fn answer(mut stream: TcpStream, agent: u8) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0])?;
    stream.write_all(&[agent])
}

/// A client on a node: one connection after the other through a VIP.
pub fn connect_on(stage: &Arc<Stage>, (agent, vip): (u8, IpAddr)) {
    let stage = stage.clone();
    std::thread::spawn(move || {
        if let Err(error) = stage.cluster.hosts.enter(Host::Agent(agent)) {
            return lock(&stage.connections.failures).push(format!("a{agent}: {error}"));
        }
        while !stage.is_stopped() {
            match once(SocketAddr::new(vip, 80)) {
                Ok(()) => drop(stage.connections.answered.fetch_add(1, Ordering::Relaxed)),
                // A stopped run takes its pods away.
                Err(_) if stage.is_stopped() => return,
                Err(error) => {
                    stage.connections.failed.fetch_add(1, Ordering::Relaxed);
                    let mut failures = lock(&stage.connections.failures);
                    if failures.len() < KEPT {
                        failures.push(format!("{:.3} s, from a{agent}: {error}", stage.begun.elapsed().as_secs_f64()));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// One connection, one question, one answer.
fn once(vip: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[0])?;
    stream.read_exact(&mut [0])
}
