//! The one thread that writes. Jobs are merged, in order, into one synced WriteBatch: group commit.
//!
//! INVARIANT: jobs reach the WAL in the order of their submission, so what survives a crash is a prefix of them. An IO
//! error is final: the job that met it and every later one fails, and nothing is retried.

use crate::raft::types::TypeConfig;
use crate::storage::open::Database;
use fairlead_proto::mutant::{self, Mutant};
use openraft::storage::IOFlushed;
use rocksdb::{WriteBatch, WriteOptions};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

/// Jobs waiting; a full queue slows its callers.
const QUEUE: usize = 1_024;
/// Bytes merged into one batch, give or take a job.
const MERGE_BYTES: usize = 8 * 1024 * 1024;

/// One write: a column family, a key, and a value (`None` deletes).
pub type Write = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// Deletes a key range of a column family, from inclusive, to exclusive.
pub type DeleteRange = (&'static str, Vec<u8>, Vec<u8>);

/// What waits for a job's end.
pub enum Done {
    /// Raft's log: whom to call, and where to note the last index that is now written.
    Flushed(IOFlushed<TypeConfig>, Arc<AtomicU64>, u64),
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

impl Job {
    fn bytes(&self) -> usize {
        bytes(&self.writes)
    }
}

/// Bytes of some writes.
#[must_use]
pub fn bytes(writes: &[Write]) -> usize {
    writes.iter().map(|(_, key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Writer(Arc<Thread>);

/// The thread and the way to it; both are there until dropped.
struct Thread {
    jobs: Option<mpsc::Sender<Job>>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    /// Waits until what was submitted is written and the database is let go of: a process that exited before would take
    /// RocksDB's globals away under its threads, and abort.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(handle) = self.handle.take()
            && handle.thread().id() != std::thread::current().id()
            && handle.join().is_err()
        {
            tracing::error!("the storage writer panicked");
        }
    }
}

impl Writer {
    /// Starts the thread. It ends, and lets go of the database, with the last handle, whose drop waits for that.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(database: Arc<Database>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let handle = std::thread::Builder::new().name("storage-writer".into()).spawn(move || run(&database, queue))?;
        Ok(Self(Arc::new(Thread { jobs: Some(jobs), handle: Some(handle) })))
    }

    /// Queues a job without waiting for its end.
    ///
    /// # Errors
    /// The thread is gone.
    pub async fn submit(&self, job: Job) -> io::Result<()> {
        match &self.0.jobs {
            Some(jobs) => jobs.send(job).await.map_err(|_| gone()),
            None => Err(gone()),
        }
    }

    /// Queues writes and waits until they are written (and durable, with `sync`).
    ///
    /// # Errors
    /// The write's error.
    pub async fn write(&self, writes: Vec<Write>, range: Option<DeleteRange>, sync: bool) -> io::Result<()> {
        let (reply, written) = oneshot::channel();
        let done = Done::Reply(reply);
        self.submit(Job { writes, range, sync, done }).await?;
        written.await.map_err(|_| gone())?
    }
}

fn gone() -> io::Error {
    io::Error::other("the storage writer has stopped")
}

fn run(database: &Arc<Database>, mut queue: mpsc::Receiver<Job>) {
    let mut failure: Option<String> = None;
    let late = mutant::is_on(Mutant::AckBeforeWrite).then(|| late_writer(database.clone()));
    while let Some(first) = queue.blocking_recv() {
        let mut size = first.bytes();
        let mut jobs = vec![first];
        while size < MERGE_BYTES
            && let Ok(next) = queue.try_recv()
        {
            size += next.bytes();
            jobs.push(next);
        }
        // What waits in front for no sync is answered before the disk is waited for.
        let synced = jobs.iter().position(|job| job.sync).unwrap_or(jobs.len());
        let rest = jobs.split_off(synced);
        if let Some(late) = &late {
            acknowledge_early(late, [jobs, rest]);
            continue;
        }
        for group in [jobs, rest] {
            let result = match &failure {
                Some(failure) => Err(failure.clone()),
                None => commit(database, &group),
            };
            if let Err(error) = &result
                && failure.is_none()
            {
                tracing::error!(error, "storage failed: this member stops");
                failure = Some(error.clone());
            }
            answer(group, &result);
        }
    }
}

/// A mutant's: how long what was acknowledged is not yet written.
const LATE: std::time::Duration = std::time::Duration::from_millis(100);

type Late = std::sync::mpsc::Sender<(std::time::Instant, Vec<Job>)>;

/// A mutant's: writes everything in its order, a little later.
fn late_writer(database: Arc<Database>) -> Late {
    let (late, queue) = std::sync::mpsc::channel::<(std::time::Instant, Vec<Job>)>();
    std::thread::spawn(move || {
        for (at, group) in queue {
            std::thread::sleep(LATE.saturating_sub(at.elapsed()));
            let _ = commit(&database, &group);
        }
    });
    late
}

/// A mutant's: answers what it has not written.
fn acknowledge_early(late: &Late, groups: [Vec<Job>; 2]) {
    for group in groups {
        let kept = group.iter().map(|job| Job {
            writes: job.writes.clone(),
            range: job.range.clone(),
            sync: job.sync,
            done: Done::Reply(oneshot::channel().0),
        });
        let _ = late.send((std::time::Instant::now(), kept.collect()));
        answer(group, &Ok(()));
    }
}

fn answer(group: Vec<Job>, result: &Result<(), String>) {
    for job in group {
        let result = result.clone().map_err(|error| io::Error::other(format!("storage failed: {error}")));
        match job.done {
            Done::Flushed(callback, written, last) => {
                if result.is_ok() {
                    written.store(last, Ordering::Release);
                }
                callback.io_completed(result);
            }
            // Nobody listens if the caller was cancelled: then nobody is misled.
            Done::Reply(reply) => drop(reply.send(result)),
        }
    }
}

fn commit(database: &Database, group: &[Job]) -> Result<(), String> {
    if group.is_empty() {
        return Ok(());
    }
    #[cfg(test)]
    {
        use std::sync::atomic::Ordering::SeqCst;
        let left = database.commits_left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| "No space left on device (tests)".to_owned())?;
    }
    let mut batch = WriteBatch::default();
    for job in group {
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
    let sync = group.iter().any(|job| job.sync);
    let mut options = WriteOptions::default();
    options.set_sync(sync && !mutant::is_on(Mutant::NoSync));
    let begun = std::time::Instant::now();
    let written = database.db.write_opt(batch, &options).map_err(|error| error.to_string());
    if sync {
        metrics::histogram!("fairlead_storage_commit_seconds").record(begun.elapsed().as_secs_f64());
    }
    written
}
