//! What systemd is told: READY when listeners and storage are open, STOPPING, and WATCHDOG as long as the real loop turns
//! (sd_notify(3)). Without systemd nothing is sent.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Tells systemd of a process: READY when `opened` is told, then WATCHDOG while `turns` answers yes, STOPPING at the end.
pub async fn tell<F: Future<Output = bool>>(opened: Arc<Notify>, turns: impl Fn() -> F, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = opened.notified() => send("READY=1"),
    }
    let every = watchdog();
    loop {
        let wait = async {
            match every {
                Some(every) => tokio::time::sleep(every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return send("STOPPING=1"),
            () = wait => {}
        }
        let limit = every.unwrap_or_default();
        if tokio::time::timeout(limit, turns()).await.unwrap_or(false) {
            send("WATCHDOG=1");
        } else {
            tracing::error!("the process's own loop doesn't answer: systemd is not told that all is well");
        }
    }
}

/// A third of the time within which systemd wants to hear something; `None` = it doesn't.
fn watchdog() -> Option<Duration> {
    let within: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let own = std::env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid == std::process::id().to_string());
    (own && within > 0).then(|| Duration::from_micros((within / 3).max(1)))
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    // A name that begins with @ is in the abstract name space.
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, state, "systemd can't be told");
    }
}
