//! The built-in echo pod: a tiny HTTP server that answers with its name and who asked.

use anyhow::Context as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// Serves in this process's own namespace on a free port.
pub fn serve_here(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0)).context("echo pod")?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("echo".into()).spawn(move || serve(&listener))?;
    Ok(address)
}

/// Serves in another network namespace: a thread enters it and stays there.
pub fn serve_in(netns: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let namespace = std::fs::File::open(netns).with_context(|| format!("can't open {}", netns.display()))?;
    let (bound, result) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("echo".into()).spawn(move || {
        let listener = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(std::io::Error::from)
            .and_then(|()| TcpListener::bind(address));
        match listener {
            Ok(listener) => {
                let _ = bound.send(Ok(()));
                serve(&listener);
            }
            Err(error) => {
                let _ = bound.send(Err(error));
            }
        }
    })?;
    result.recv()?.with_context(|| format!("echo pod on {address}"))
}

fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        // One at a time and briefly: this is a demonstration, not a web server.
        let _ = answer(stream);
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut request = [0; 4096];
    let read = stream.read(&mut request)?;
    let line = String::from_utf8_lossy(&request[..read]).lines().next().unwrap_or_default().to_owned();
    let body = format!("echo: {line} from {}\n", stream.peer_addr()?);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
