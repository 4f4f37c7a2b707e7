//! The one thread that writes. Jobs are merged, in order, into one synced WriteBatch: group commit.
//!
//! An IO error is final: the job that met it and every later one fails, and nothing is retried.

use crate::raft::types::TypeConfig;
use crate::storage::open::Database;
use openraft::storage::IOFlushed;
use rocksdb::{WriteBatch, WriteOptions};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tokio::sync::oneshot;

/// Jobs waiting; a full queue slows its callers.
const QUEUE: usize = 4_096;
/// Jobs merged into one batch.
const MERGE: usize = 512;

/// One write: a column family, a key, and a value (`None` deletes).
pub type Write = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// Deletes a key range of a column family, from inclusive, to exclusive.
pub type DeleteRange = (&'static str, Vec<u8>, Vec<u8>);

/// What waits for a job's end.
pub enum Done {
    /// Raft's log.
    Flushed(IOFlushed<TypeConfig>),
    /// Anyone else.
    Reply(oneshot::Sender<io::Result<()>>),
}

/// A job.
pub struct Job {
    /// Writes.
    pub writes: Vec<Write>,
    /// Range to delete before the writes.
    pub range: Option<DeleteRange>,
    /// True: durable before it is answered. The state's own writes needn't be: they follow their log entries in the WAL.
    pub sync: bool,
    /// Who waits.
    pub done: Done,
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Writer {
    jobs: SyncSender<Job>,
}

impl Writer {
    /// Starts the thread. It ends when the last handle is gone.
    pub fn start(database: Arc<Database>) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("storage-writer".into()).spawn(move || run(&database, &queue))?;
        Ok(Self { jobs })
    }

    /// Queues a job without waiting for its end.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn submit(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| gone())
    }

    /// Queues writes and waits until they are written (and durable, with `sync`).
    ///
    /// # Errors
    /// The write's error.
    pub async fn write(&self, writes: Vec<Write>, range: Option<DeleteRange>, sync: bool) -> io::Result<()> {
        let (reply, done) = oneshot::channel();
        self.submit(Job { writes, range, sync, done: Done::Reply(reply) })?;
        done.await.map_err(|_| gone())?
    }
}

fn gone() -> io::Error {
    io::Error::other("the storage writer has stopped")
}

fn run(database: &Database, queue: &Receiver<Job>) {
    let mut failure: Option<String> = None;
    while let Ok(first) = queue.recv() {
        let mut jobs = vec![first];
        while jobs.len() < MERGE
            && let Ok(next) = queue.try_recv()
        {
            jobs.push(next);
        }
        let result = match &failure {
            Some(failure) => Err(failure.clone()),
            None => commit(database, &jobs),
        };
        if let Err(error) = &result
            && failure.is_none()
        {
            tracing::error!(error, "storage failed: this member stops");
            failure = Some(error.clone());
        }
        for job in jobs {
            let result = result.clone().map_err(io::Error::other);
            match job.done {
                Done::Flushed(callback) => callback.io_completed(result),
                Done::Reply(reply) => drop(reply.send(result)),
            }
        }
    }
}

fn commit(database: &Database, jobs: &[Job]) -> Result<(), String> {
    let mut batch = WriteBatch::default();
    for job in jobs {
        if let Some((family, from, to)) = &job.range {
            batch.delete_range_cf(&database.family(family)?, from, to);
        }
        for (family, key, value) in &job.writes {
            let family = database.family(family)?;
            match value {
                Some(value) => batch.put_cf(&family, key, value),
                None => batch.delete_cf(&family, key),
            }
        }
    }
    let mut options = WriteOptions::default();
    options.set_sync(jobs.iter().any(|job| job.sync));
    let begun = std::time::Instant::now();
    let written = database.db.write_opt(batch, &options).map_err(|error| error.to_string());
    metrics::histogram!("fairlead_store_commit_seconds").record(begun.elapsed().as_secs_f64());
    written
}
