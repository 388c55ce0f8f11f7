//! Loads the chunks of a stream into its table, on a thread that works while the next chunk is encoded.
//!
//! A stream loads in one of two ways. *Direct*: in one transaction on the target that stays open until the commit; its
//! chunks are buffered, up to a limit, to be sent again if the connection is lost. *Staged*: each chunk in a transaction
//! of its own on a staging table, without a buffer; the commit moves the rows to the target (see `staged_rows`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::column::Column;
use super::copy::{Chunk, convert_field, copy_in};
use super::definition;
use super::inference;
use super::merge_key::MergeKey;
use super::names::quote;
use super::session::{Session, SessionError};
use super::staged_rows::{MergeCounts, StagedRows};
use super::table::Table;
use crate::sidecar::sink::SinkError;

/// Bytes in the replay buffer of one stream.
const MAX_REPLAY_BYTES: usize = 8 << 20;
/// Bytes in the replay buffers of all streams.
const MAX_TOTAL_REPLAY_BYTES: usize = 12 << 20;

/// Where chunks are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// Into the target, in a transaction that is open until the commit.
    Direct,
    /// Into a staging table.
    Staged,
}

/// The chunks of the open transaction, to repeat it on a new connection.
#[derive(Default)]
struct ReplayBuffer {
    chunks: Vec<Chunk>,
    bytes: usize,
    /// More was sent than the buffer may hold: the transaction cannot be repeated.
    overflowed: bool,
}

/// Loads the chunks of one stream. Moves between the sink's thread and the loader thread.
pub struct TableLoader {
    /// The connection. Stays while a transaction is open; otherwise only for the time of an operation.
    pub session: Option<Session>,
    /// The target.
    pub target: Table,
    /// The staging table.
    pub staging: Table,
    /// The columns of the last chunk.
    pub columns: Vec<Column>,
    /// How rows are loaded until the next commit; `None` before the first row.
    pub mode: Option<LoadMode>,
    replay: ReplayBuffer,
    /// Columns that have become `numeric` since the open transaction began, and are not yet in the target.
    widened: Vec<String>,
    total_replay_bytes: Arc<AtomicUsize>,
}

impl TableLoader {
    /// A loader for these tables. All loaders of a sink share `total_replay_bytes`.
    pub fn new(target: Table, staging: Table, total_replay_bytes: Arc<AtomicUsize>) -> Self {
        let replay = ReplayBuffer::default();
        Self {
            session: None,
            target,
            staging,
            columns: Vec::new(),
            mode: None,
            replay,
            widened: Vec::new(),
            total_replay_bytes,
        }
    }

    /// Takes the session, unless a transaction is open. The next operation needs another one.
    pub fn take_session(&mut self) -> Option<Session> {
        self.session.take_if(|session| !session.in_transaction())
    }

    /// Loads a chunk. Returns it if it is not buffered.
    pub fn load(&mut self, chunk: Chunk) -> Result<Option<Chunk>, SessionError> {
        let mut session = self.session.take().ok_or_else(no_session)?;
        let loaded = match self.mode {
            Some(LoadMode::Staged) => self.load_staged(&mut session, chunk).map(Some),
            _ => self.load_direct(&mut session, chunk),
        };
        self.session = Some(session);
        loaded
    }

    fn load_staged(&mut self, session: &mut Session, chunk: Chunk) -> Result<Chunk, SessionError> {
        let columns = &self.columns[..chunk.columns];
        let (missing, copy) = (self.staging.create_or_widen(columns), self.staging.copy_statement(columns));
        let missing = missing.unwrap_or_default() + &self.staging.widen_types(columns);
        session.transaction(|client| {
            if !missing.is_empty() {
                client.batch_execute(&missing)?;
            }
            Ok(copy_in(client, &copy, &chunk.bytes)?)
        })?;
        self.staging.record_columns(columns);
        Ok(chunk)
    }

    fn load_direct(&mut self, session: &mut Session, chunk: Chunk) -> Result<Option<Chunk>, SessionError> {
        let loaded = if self.replay.overflowed {
            self.send(session, &chunk)
        } else {
            session.retry(|session| {
                self.ensure_transaction(session)?;
                self.send(session, &chunk)
            })
        };
        if let Err(error) = loaded {
            session.rollback();
            return Err(self.explain_if_not_repeatable(session, error));
        }
        Ok(self.buffer(chunk))
    }

    /// Opens the transaction and sends the buffered chunks again, unless it is still open.
    fn ensure_transaction(&mut self, session: &mut Session) -> Result<(), SessionError> {
        if session.in_transaction() {
            return Ok(());
        }
        // In a transaction of its own, because DDL would block readers until the commit.
        definition::ensure_columns_and_types(session, &mut self.target, &self.columns)?;
        self.widened.clear();
        session.begin()?;
        self.target.lock_types(session.connected_client()?, &self.columns)?;
        for chunk in &self.replay.chunks {
            let copy = self.target.copy_statement(&self.columns[..chunk.columns]);
            copy_in(session.connected_client()?, &copy, &chunk.bytes)?;
        }
        Ok(())
    }

    /// Sends a chunk in the open transaction.
    fn send(&mut self, session: &mut Session, chunk: &Chunk) -> Result<(), SessionError> {
        if !session.in_transaction() {
            return Err(SessionError::Disconnected);
        }
        let columns = &self.columns[..chunk.columns];
        // Columns that are new since the transaction began. A rollback removes them, so they are not recorded yet.
        let widened = self.target.make_numeric(self.widened.iter().map(String::as_str));
        let statements = self.target.create_or_widen(columns).unwrap_or_default() + &widened;
        if !statements.is_empty() {
            session.execute_in_open_transaction(&statements)?;
            self.widened.clear();
        }
        Ok(copy_in(session.connected_client()?, &self.target.copy_statement(columns), &chunk.bytes)?)
    }

    /// Adds a chunk to the replay buffer. If a limit is exceeded, clears the buffer, which is only of use if it is
    /// complete, and returns the chunk.
    fn buffer(&mut self, mut chunk: Chunk) -> Option<Chunk> {
        if self.replay.overflowed {
            return Some(chunk);
        }
        chunk.bytes.shrink_to_fit();
        let size = chunk.bytes.capacity();
        if self.replay.bytes + size <= MAX_REPLAY_BYTES {
            let before = self.total_replay_bytes.fetch_add(size, Ordering::Relaxed);
            if before + size <= MAX_TOTAL_REPLAY_BYTES {
                self.replay.bytes += size;
                self.replay.chunks.push(chunk);
                return None;
            }
            self.total_replay_bytes.fetch_sub(size, Ordering::Relaxed);
        }
        self.clear_replay_buffer();
        self.replay.overflowed = true;
        Some(chunk)
    }

    fn clear_replay_buffer(&mut self) {
        self.total_replay_bytes.fetch_sub(self.replay.bytes, Ordering::Relaxed);
        self.replay = ReplayBuffer::default();
    }

    /// Commits the transaction on the target.
    pub fn commit_direct(&mut self) -> Result<(), SessionError> {
        let mut session = self.session.take().ok_or_else(no_session)?;
        let committed = if self.replay.overflowed {
            session.commit()
        } else {
            session.retry(|session| {
                self.ensure_transaction(session)?;
                session.commit()
            })
        };
        let committed = committed.map_err(|error| self.explain_if_not_repeatable(&session, error));
        self.session = Some(session);
        committed?;
        self.target.record_columns(&self.columns);
        self.clear_replay_buffer();
        self.widened.clear();
        self.mode = None;
        Ok(())
    }

    /// Explains a lost connection whose transaction cannot be repeated.
    fn explain_if_not_repeatable(&self, session: &Session, error: SessionError) -> SessionError {
        if !self.replay.overflowed || !error.is_connection_lost() {
            return error;
        }
        let reason = format!(
            "{}; the transaction had more rows than are buffered for a retry: \
             the next run resumes from the state that was saved last",
            session.config.reason(&error)
        );
        SessionError::Final { reason, transient: true }
    }

    /// Converts what was loaded since the last commit to the new types of the columns, where these were different.
    pub fn convert_loaded(&mut self, before: &[Column]) -> Result<(), SessionError> {
        if self.mode != Some(LoadMode::Direct) {
            return self.convert_staged(before);
        }
        for (index, (old, new)) in before.iter().zip(&self.columns).enumerate() {
            if old.kind == new.kind {
                continue;
            }
            self.widened.push(new.name.clone());
            let convert = |value: &[u8]| inference::convert(value, old.kind, new.kind);
            for chunk in self.replay.chunks.iter_mut().filter(|chunk| index < chunk.columns) {
                let size = chunk.bytes.capacity();
                chunk.bytes = convert_field(&chunk.bytes, index, convert);
                chunk.bytes.shrink_to_fit();
                let grown = chunk.bytes.capacity().wrapping_sub(size);
                self.replay.bytes = self.replay.bytes.wrapping_add(grown);
                self.total_replay_bytes.fetch_add(grown, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Gives the columns of the staging table their new types, where these were different.
    fn convert_staged(&mut self, before: &[Column]) -> Result<(), SessionError> {
        let changed: Vec<String> = before
            .iter()
            .zip(&self.columns)
            .filter(|(old, new)| old.sql_type != new.sql_type && self.staging.has_column(&new.name))
            .map(|(old, new)| {
                let name = quote(&new.name);
                let value = inference::conversion(&name, &old.sql_type, &new.sql_type);
                format!("ALTER COLUMN {name} TYPE {} USING {value}", new.sql_type)
            })
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let statement = format!("ALTER TABLE {} {}", self.staging.qualified_name(), changed.join(", "));
        self.session.as_mut().ok_or_else(no_session)?.execute(&statement)?;
        let known: Vec<Column> =
            self.columns.iter().filter(|column| self.staging.has_column(&column.name)).cloned().collect();
        self.staging.record_columns(&known);
        Ok(())
    }

    /// Replaces all rows of the target with the staged ones. Later chunks are loaded into a new staging table.
    pub fn replace_target(&mut self, merge_key: &MergeKey) -> Result<MergeCounts, SessionError> {
        let (staging, target, columns, session) = self.parts()?;
        let counts = StagedRows::new(staging, columns, merge_key).replace_all(session, target, "")?;
        staging.record_dropped();
        // The key of the target may be a new one.
        *target = session.transaction(|client| target.inspect_again(client))?;
        self.mode = None;
        Ok(counts)
    }

    /// The staging table, the target, their columns and the session.
    pub fn parts(&mut self) -> Result<(&mut Table, &mut Table, &[Column], &mut Session), SessionError> {
        let session = self.session.as_mut().ok_or_else(no_session)?;
        Ok((&mut self.staging, &mut self.target, &self.columns, session))
    }

    /// Rolls back an open transaction.
    pub fn rollback(&mut self) {
        if let Some(session) = self.session.as_mut().filter(|session| session.in_transaction()) {
            session.rollback();
        }
        self.clear_replay_buffer();
    }

    /// Whether a staging table may exist.
    pub fn may_have_staging(&self) -> bool {
        self.staging.exists() || self.mode == Some(LoadMode::Staged)
    }

    /// Makes one attempt to drop the staging table.
    pub fn drop_staging(&mut self, session: &mut Session) -> Result<(), SessionError> {
        session.client()?.batch_execute(&format!("DROP TABLE IF EXISTS {}", self.staging.qualified_name()))?;
        self.staging.record_dropped();
        self.mode = None;
        Ok(())
    }
}

impl Drop for TableLoader {
    fn drop(&mut self) {
        self.clear_replay_buffer();
    }
}

fn no_session() -> SessionError {
    SessionError::permanent("the session is missing")
}

/// A loader that comes back from the loader thread, and its result.
pub type JobResult = (Box<TableLoader>, Result<Option<Chunk>, SessionError>);

struct Job {
    loader: Box<TableLoader>,
    chunk: Chunk,
    done: SyncSender<JobResult>,
}

/// The thread that loads chunks, one after the other.
///
/// A stream gives its loader away for the time of a job, so that nothing is shared between the threads.
pub struct LoaderThread {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl LoaderThread {
    /// Starts the thread.
    pub fn start() -> Result<Self, SinkError> {
        // At most one job is queued, because encoded chunks take memory.
        let (jobs, received) = sync_channel::<Job>(1);
        let run = move || {
            for Job { mut loader, chunk, done } in received {
                let result = loader.load(chunk);
                // After an abort of the sink, no stream receives the loader: dropping it closes its connection.
                let _ = done.send((loader, result));
            }
        };
        let thread = thread::Builder::new().name("sink-postgres".to_owned()).spawn(run);
        let thread = thread
            .map_err(|error| SinkError { text: format!("cannot start the loader thread: {error}"), transient: true })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Submits a chunk. Blocks while one job is running and another one is queued.
    pub fn submit(&self, loader: Box<TableLoader>, chunk: Chunk) -> Result<Receiver<JobResult>, SessionError> {
        let (done, result) = sync_channel(1);
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { loader, chunk, done }).is_ok());
        if sent { Ok(result) } else { Err(loader_thread_ended()) }
    }

    /// Accepts no more jobs. The thread ends after those that it has.
    pub fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.jobs = None;
        self.thread.take()
    }
}

impl Drop for LoaderThread {
    fn drop(&mut self) {
        if let Some(thread) = self.stop() {
            let _ = thread.join();
        }
    }
}

/// The error after a panic of the loader thread.
pub fn loader_thread_ended() -> SessionError {
    SessionError::permanent("the loader thread ended unexpectedly")
}
