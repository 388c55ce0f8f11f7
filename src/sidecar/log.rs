//! `task_log`: batched, capped and masked. Never delays a sync: rows that the database does not take in time are dropped,
//! and the last row states their number. Messages also go to the sidecar's own log, which has a level of its own.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::db::{DbError, LogIds, LogRow, OWN_LOGGER, Writer, store_log_batches};
use crate::failure::{Class, Failure};
use crate::secret::Masker;
use crate::task::Task;

/// Rows of one task: the limit that the existing implementation has for a sync.
const MAX_ROWS: u64 = 3000;
/// Additional rows for the progress of the streams: a verbose connector must not hide it.
const MAX_PROGRESS_ROWS: u64 = 1000;
/// Additional rows for WARN and above: a verbose connector must not hide its own failure.
const MAX_SEVERE_ROWS: u64 = 500;
/// Longer messages are truncated, in bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// Rows that wait for the database.
const QUEUE: usize = 4000;
/// How long the last rows may take. A longer outage of the database costs log rows, not the outcome.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// How severe a message is. Parsed case-insensitively.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::EnumString, strum::Display)]
#[strum(ascii_case_insensitive, serialize_all = "UPPERCASE")]
pub enum Level {
    Trace,
    Debug,
    Info,
    #[strum(to_string = "WARN", serialize = "WARNING")]
    Warn,
    Error,
    #[strum(to_string = "FATAL", serialize = "CRITICAL")]
    Fatal,
}

impl Level {
    /// The level of that name; unknown names are INFO.
    pub fn parse(text: &str) -> Self {
        text.parse().unwrap_or(Self::Info)
    }

    /// Whether the sidecar's own log has this level.
    fn is_enabled(self) -> bool {
        let level = match self {
            Self::Trace => tracing::Level::TRACE,
            Self::Debug => tracing::Level::DEBUG,
            Self::Info => tracing::Level::INFO,
            Self::Warn => tracing::Level::WARN,
            Self::Error | Self::Fatal => tracing::Level::ERROR,
        };
        level <= tracing::level_filters::LevelFilter::current()
    }

    /// Writes to the sidecar's own log.
    fn emit(self, logger: &str, message: &str) {
        match self {
            Self::Trace => tracing::trace!(logger, "{message}"),
            Self::Debug => tracing::debug!(logger, "{message}"),
            Self::Info => tracing::info!(logger, "{message}"),
            Self::Warn => tracing::warn!(logger, "{message}"),
            Self::Error | Self::Fatal => tracing::error!(logger, "{message}"),
        }
    }
}

/// Writes to `task_log` from its own thread. Clones share the thread.
#[derive(Clone)]
pub struct TaskLog {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` after the end, which ends the thread.
    queue: Mutex<Option<SyncSender<LogRow>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ids: Mutex<LogIds>,
    masker: Masker,
    min_level: Level,
    sync_id: String,
    task_id: String,
    rows: AtomicU64,
    progress_rows: AtomicU64,
    severe_rows: AtomicU64,
    dropped: AtomicU64,
    /// Messages that only the sidecar's own log has.
    unstored: AtomicU64,
    /// Messages of which the secrets are unknown.
    hidden: AtomicU64,
}

impl TaskLog {
    /// Starts the thread, which stores rows with `insert`.
    pub fn start<F>(task: &Task, masker: Masker, min_level: &str, insert: F) -> Self
    where
        F: Fn(&[LogRow]) -> Result<(), DbError> + Send + 'static,
    {
        let (queue, rows) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::spawn(move || store_log_batches(&rows, insert));
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Some(queue)),
                thread: Mutex::new(Some(thread)),
                ids: Mutex::default(),
                masker,
                min_level: Level::parse(min_level),
                sync_id: task.sync_id.clone(),
                task_id: task.task_id.clone(),
                rows: AtomicU64::new(0),
                progress_rows: AtomicU64::new(0),
                severe_rows: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                unstored: AtomicU64::new(0),
                hidden: AtomicU64::new(0),
            }),
        }
    }

    /// Masks the secrets of a configuration that the connector renewed from now on.
    pub fn mask_renewed_config(&self, config: &str) {
        self.shared.masker.add_renewed_config("the renewed configuration", config);
    }

    /// Masks what this log masks.
    pub fn masker(&self) -> Masker {
        self.shared.masker.clone()
    }

    /// The text without secrets, for the error of the task.
    pub fn mask(&self, text: &str) -> String {
        self.shared.masker.mask(text).into_owned()
    }

    /// The same for the failure of the task.
    pub fn mask_failure(&self, failure: &Failure) -> Failure {
        mask_failure(&self.shared.masker, failure)
    }

    /// The beginning of a text without secrets. `was_cut`: it is itself only the beginning of one.
    pub fn mask_beginning(&self, text: &str, limit: usize, was_cut: bool) -> String {
        self.shared.masker.mask_beginning(text, limit, was_cut).0
    }

    /// Whether no text of the connector is stored, because its secrets are unknown.
    pub fn is_hidden(&self) -> bool {
        self.shared.masker.hidden().is_some()
    }

    /// Logs a message. Never blocks.
    pub fn write(&self, level: Level, logger: &str, message: &str) {
        let shared = &self.shared;
        let stored = level >= shared.min_level;
        if !(stored || level.is_enabled()) || message.trim().is_empty() {
            return;
        }
        if let Some(why) = shared.masker.hidden() {
            if shared.hidden.fetch_add(1, Ordering::Relaxed) == 0 {
                self.queue(Level::Warn, shared.plain_row(Level::Warn, OWN_LOGGER, why));
            }
            return;
        }
        if !stored {
            // Has its own limit, so that it takes no row from messages that are stored.
            if shared.unstored.fetch_add(1, Ordering::Relaxed) < MAX_ROWS {
                level.emit(logger, &shared.row(level, logger, message).message);
            }
            return;
        }
        let severe = level >= Level::Warn && shared.severe_rows.fetch_add(1, Ordering::Relaxed) < MAX_SEVERE_ROWS;
        if !severe && shared.rows.fetch_add(1, Ordering::Relaxed) >= MAX_ROWS {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.queue(level, shared.row(level, logger, message));
    }

    /// Logs the progress of the task: a text of ours with names and numbers, which holds no secret and is not masked.
    pub fn write_progress(&self, message: &str) {
        if self.shared.progress_rows.fetch_add(1, Ordering::Relaxed) < MAX_PROGRESS_ROWS {
            self.write_total(message);
        }
    }

    /// The same for the last line of a task, which is never dropped.
    pub fn write_total(&self, message: &str) {
        let shared = &self.shared;
        if shared.min_level <= Level::Info {
            self.queue(Level::Info, shared.plain_row(Level::Info, OWN_LOGGER, message.to_owned()));
        }
    }

    fn queue(&self, level: Level, row: LogRow) {
        level.emit(&row.logger, &row.message);
        let shared = &self.shared;
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|queue| queue.try_send(row).is_err()) {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Logs why the task failed: a text without secrets. For a terminated sidecar the controller does, which knows why.
    pub fn write_failure(&self, text: &str, by: Writer) {
        match by {
            Writer::TerminatedSidecar => self.write(Level::Info, OWN_LOGGER, "got TERM, ending the task"),
            Writer::Sidecar | Writer::Controller => {
                self.queue(Level::Error, self.shared.plain_row(Level::Error, OWN_LOGGER, text.to_owned()));
            }
        }
    }

    /// Writes the remaining rows, and the number of dropped ones. Gives up after [`FINISH_TIMEOUT`].
    pub fn finish(&self) {
        let shared = &self.shared;
        let deadline = Instant::now() + FINISH_TIMEOUT;
        let (dropped, hidden) = (shared.dropped.load(Ordering::Relaxed), shared.hidden.load(Ordering::Relaxed));
        let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let texts = [
            (dropped, format!("{dropped} lines dropped: the log of a task is limited to {MAX_ROWS} rows")),
            (hidden, format!("{hidden} lines are not stored, because their secrets are unknown")),
        ];
        for (_, text) in texts.into_iter().filter(|(count, _)| *count > 0) {
            let Some(queue) = &queue else { break };
            let mut row = shared.plain_row(Level::Warn, OWN_LOGGER, text);
            while let Err(TrySendError::Full(rejected)) = queue.try_send(row) {
                if Instant::now() >= deadline {
                    break;
                }
                row = rejected;
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

/// The failure without secrets. What says only that the task was stopped has none.
pub fn mask_failure(masker: &Masker, failure: &Failure) -> Failure {
    let is_own = matches!(failure.class, Class::TimeExceeded | Class::Cancelled | Class::Silence | Class::Terminated);
    let text = if is_own { masker.mask_own(&failure.text) } else { masker.mask(&failure.text) };
    let shown = Failure::new(failure.class, text);
    match failure.hint() {
        Some(hint) if failure.class.hint() != Some(hint) => shown.with_hint(masker.mask(hint)),
        _ => shown,
    }
}

impl Shared {
    fn row(&self, level: Level, logger: &str, message: &str) -> LogRow {
        let (mut shown, is_cut) = self.masker.mask_beginning(message, MAX_MESSAGE, false);
        if is_cut {
            // Writing to a String cannot fail.
            let _ = write!(shown, "… ({} bytes)", message.len());
        }
        self.plain_row(level, logger, shown)
    }

    /// The row of a text without secrets.
    fn plain_row(&self, level: Level, logger: &str, message: String) -> LogRow {
        let (id, timestamp) = self.ids.lock().unwrap_or_else(PoisonError::into_inner).next(Timestamp::now());
        LogRow {
            id,
            level: level.to_string(),
            logger: logger.to_owned(),
            message,
            sync_id: self.sync_id.clone(),
            task_id: self.task_id.clone(),
            timestamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Level;

    #[test]
    fn levels_are_parsed_leniently() {
        for (text, expected) in [("warn", "WARN"), ("WARNING", "WARN"), ("Critical", "FATAL"), ("odd", "INFO")] {
            assert_eq!(Level::parse(text).to_string(), expected, "{text}");
        }
        assert!(Level::Fatal > Level::Warn && Level::Warn > Level::Info);
    }
}
