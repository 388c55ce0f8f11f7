//! `task_log`: batched, capped, masked. Never stops a sync: what the database does not take in time is dropped, and the
//! last row says how much that was. What goes there also goes to the sidecar's own log, each by a level of its own.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::documents::Maskers;
use crate::db::{Db, LogIds, LogRow};
use crate::task::{Task, TaskKind};

/// Rows of one task. The existing implementation keeps as many per sync.
const MOST_ROWS: u64 = 3000;
/// On top of them, for what is WARN or worse: a chatty connector must not hide its own failure.
const MOST_SEVERE_ROWS: u64 = 500;
/// The longest message; the rest of it is cut.
const LONGEST_MESSAGE: usize = 16 * 1024;
/// Rows that wait for the database.
const QUEUE: usize = 4000;
/// Rows in one statement.
const BATCH: usize = 200;
/// How long a row waits for company.
const LINGER: Duration = Duration::from_millis(500);
/// How long the last rows may take. A longer outage of the database costs logs, and not the outcome.
const FINISH: Duration = Duration::from_secs(30);

/// How severe a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The finest.
    Trace,
    /// For developers.
    Debug,
    /// The course of things.
    Info,
    /// Something to look at.
    Warn,
    /// Something failed.
    Error,
    /// Everything failed.
    Fatal,
}

impl Level {
    /// The level of that name; unknown names are INFO.
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_uppercase().as_str() {
            "TRACE" => Self::Trace,
            "DEBUG" => Self::Debug,
            "WARN" | "WARNING" => Self::Warn,
            "ERROR" => Self::Error,
            "FATAL" | "CRITICAL" => Self::Fatal,
            _ => Self::Info,
        }
    }

    /// Whether the sidecar's own log takes it.
    fn is_told(self) -> bool {
        match self {
            Self::Trace => tracing::enabled!(tracing::Level::TRACE),
            Self::Debug => tracing::enabled!(tracing::Level::DEBUG),
            Self::Info => tracing::enabled!(tracing::Level::INFO),
            Self::Warn => tracing::enabled!(tracing::Level::WARN),
            Self::Error | Self::Fatal => tracing::enabled!(tracing::Level::ERROR),
        }
    }

    /// Writes to the sidecar's own log.
    fn tell(self, logger: &str, message: &str) {
        match self {
            Self::Trace => tracing::trace!(logger, "{message}"),
            Self::Debug => tracing::debug!(logger, "{message}"),
            Self::Info => tracing::info!(logger, "{message}"),
            Self::Warn => tracing::warn!(logger, "{message}"),
            Self::Error | Self::Fatal => tracing::error!(logger, "{message}"),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// Writes to `task_log` from a thread of its own. Clones write to the same.
#[derive(Clone)]
pub struct TaskLog {
    shared: Arc<Shared>,
}

struct Shared {
    /// Taken away at the end: then the thread ends.
    queue: Mutex<Option<SyncSender<LogRow>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ids: Mutex<LogIds>,
    maskers: Maskers,
    least: Level,
    sync_id: String,
    task_id: String,
    rows: AtomicU64,
    severe_rows: AtomicU64,
    dropped: AtomicU64,
    /// Messages that only the sidecar's own log takes.
    told: AtomicU64,
}

impl TaskLog {
    /// Begins to write. Spec, check and discover have empty ids in their rows, as the contract wants it.
    pub fn start(db: Db, task: &Task, maskers: Maskers, least: &str) -> Self {
        let (queue, rows) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::spawn(move || write_batches(&db, &rows));
        let is_read = task.kind == TaskKind::Read;
        let id = |id: &str| if is_read { id.to_owned() } else { String::new() };
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Some(queue)),
                thread: Mutex::new(Some(thread)),
                ids: Mutex::default(),
                maskers,
                least: Level::parse(least),
                sync_id: id(&task.sync_id),
                task_id: id(&task.task_id),
                rows: AtomicU64::new(0),
                severe_rows: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                told: AtomicU64::new(0),
            }),
        }
    }

    /// Masks what is in this document, too.
    pub fn learn(&self, document: &Value) {
        self.shared.maskers.learn(document);
    }

    /// The text without what is secret, for the error of the task.
    pub fn mask(&self, text: &str) -> String {
        self.shared.maskers.errors.mask(text)
    }

    /// Logs a message. Does not wait.
    pub fn write(&self, level: Level, logger: &str, message: &str) {
        let shared = &self.shared;
        let stored = level >= shared.least;
        if !(stored || level.is_told()) || message.trim().is_empty() {
            return;
        }
        // What is stored nowhere takes no row from what is.
        if !stored {
            if shared.told.fetch_add(1, Ordering::Relaxed) < MOST_ROWS {
                level.tell(logger, &shared.row(level, logger, message).message);
            }
            return;
        }
        let severe = level >= Level::Warn && shared.severe_rows.fetch_add(1, Ordering::Relaxed) < MOST_SEVERE_ROWS;
        if !severe && shared.rows.fetch_add(1, Ordering::Relaxed) >= MOST_ROWS {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let row = shared.row(level, logger, message);
        level.tell(logger, &row.message);
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|queue| queue.try_send(row).is_err()) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what is left, and how much was dropped.
    pub fn finish(&self) {
        let shared = &self.shared;
        let deadline = Instant::now() + FINISH;
        let dropped = shared.dropped.load(Ordering::Relaxed);
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(queue), true) = (&queue, dropped > 0) {
            let text = format!("{dropped} lines dropped: a task keeps {MOST_ROWS} rows of log");
            let mut row = shared.row(Level::Warn, "syncctl", &text);
            while let Err(TrySendError::Full(back)) = queue.try_send(row) {
                if Instant::now() >= deadline {
                    break;
                }
                row = back;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        drop(queue);
        let Some(thread) = shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Shared {
    fn row(&self, level: Level, logger: &str, message: &str) -> LogRow {
        // Masked before it is cut: half a secret is one, too.
        let mut message = self.maskers.logs.mask(message);
        if message.len() > LONGEST_MESSAGE {
            let length = message.len();
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            // Writing to a String cannot fail.
            let _ = write!(message, "… ({length} bytes)");
        }
        let (id, timestamp): (Uuid, Timestamp) =
            self.ids.lock().unwrap_or_else(PoisonError::into_inner).next(Timestamp::now());
        LogRow {
            id,
            level: level.as_str().to_owned(),
            logger: logger.to_owned(),
            message,
            sync_id: self.sync_id.clone(),
            task_id: self.task_id.clone(),
            timestamp,
        }
    }
}

fn write_batches(db: &Db, rows: &Receiver<LogRow>) {
    loop {
        let Ok(first) = rows.recv() else { return };
        let mut batch = vec![first];
        let deadline = Instant::now() + LINGER;
        let mut open = true;
        while batch.len() < BATCH {
            match rows.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(row) => batch.push(row),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        if let Err(error) = db.insert_logs(&batch) {
            tracing::warn!(%error, rows = batch.len(), "rows of the log are lost");
        }
        if !open {
            return;
        }
    }
}
