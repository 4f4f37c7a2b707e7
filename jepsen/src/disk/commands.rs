//! What a disk is told to do: a line on a Unix socket, answered by a line, `ok` or `error: …`; `stats` by its JSON.
//!
//! | line | what |
//! | --- | --- |
//! | `lose` | everything that is not synced is gone |
//! | `tear SEED` | a part of it is: of each file and of the folders' changes a prefix is kept, the last write cut in two |
//! | `sync` | everything is durable as it is: for what the harness itself did to the server's files |
//! | `sync-delay MS` | each sync takes so long |
//! | `fail-sync on`, `off` | a sync answers EIO, and a file's unsynced bytes are gone |
//! | `fail-write on`, `off` | a write answers EIO |
//! | `full on`, `off` | what needs more room answers ENOSPC, and no room is free |
//! | `heal` | nothing is wrong any more |
//! | `stats` | writes, their bytes, syncs, unsynced and lost bytes and changes of folders |
//!
//! The server must not run when power is lost: its open files would show what is gone.

use super::served::Shared;
use super::state::{Faults, State};
use crate::random::Random;
use anyhow::{Context as _, bail};
use serde_json::json;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a line, at most.
const LINE: u64 = 256;
/// A sync takes so long, at most: what waits for one can't even be killed before.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Listens for commands, until the process ends.
pub fn listen(listener: &UnixListener, shared: &Arc<Shared>) {
    for connection in listener.incoming().flatten() {
        let shared = shared.clone();
        // A connection that finds no thread is closed.
        let _ = std::thread::Builder::new().name("command".to_owned()).spawn(move || converse(&connection, &shared));
    }
}

fn converse(connection: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if (&mut from).take(LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = obey(shared, &line).unwrap_or_else(|error| format!("error: {error:#}").replace('\n', " "));
        let mut to = connection;
        writeln!(to, "{answer}")?;
    }
}

fn obey(shared: &Shared, line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut state = shared.state();
    match words[..] {
        ["lose"] => state.lose(None).context("not everything could be taken back")?,
        ["tear", seed] => state.lose(Some(Random::new(seed.parse().context("a seed is a number")?)))?,
        ["sync"] => state.sync_all()?,
        ["sync-delay", milliseconds] => {
            let delay = Duration::from_millis(milliseconds.parse().context("a delay is a number of milliseconds")?);
            state.faults.sync_delay = delay.min(LONGEST_DELAY);
        }
        ["fail-sync", word] => state.faults.fail_sync = switch(word)?,
        ["fail-write", word] => state.faults.fail_write = switch(word)?,
        ["full", word] => state.faults.full = switch(word)?,
        ["heal"] => state.faults = Faults::default(),
        ["stats"] => return Ok(stats(&state)),
        _ => bail!("no such command: {}", line.trim()),
    }
    drop(state);
    shared.wake();
    Ok("ok".to_owned())
}

fn switch(word: &str) -> anyhow::Result<bool> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => bail!("neither on nor off: {word}"),
    }
}

fn stats(state: &State) -> String {
    let (counts, (unsynced, unsynced_names)) = (&state.counts, state.unsynced());
    json!({
        "writes": counts.writes,
        "written": counts.written,
        "syncs": counts.syncs,
        "unsynced": unsynced,
        "unsynced_names": unsynced_names,
        "lost": counts.lost,
        "lost_names": counts.lost_names,
    })
    .to_string()
}
