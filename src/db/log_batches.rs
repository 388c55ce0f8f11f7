//! Stores log lines in batches while more arrive, so that no line costs a statement of its own.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{DbError, LogRow};

/// Rows in one statement.
const BATCH: usize = 200;
/// How long a row waits for others to form a batch.
const BATCH_DELAY: Duration = Duration::from_millis(500);

/// Stores the rows of a queue with `insert` until its senders are gone. Rows that cannot be stored are lost.
pub fn store_log_batches(rows: &Receiver<LogRow>, insert: impl Fn(&[LogRow]) -> Result<(), DbError>) {
    let mut open = true;
    while open {
        let Ok(first) = rows.recv() else { return };
        let mut batch = vec![first];
        let deadline = Instant::now() + BATCH_DELAY;
        while open && batch.len() < BATCH {
            match rows.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(row) => batch.push(row),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
        if let Err(error) = insert(&batch) {
            tracing::warn!(%error, rows = batch.len(), "log rows are lost");
        }
    }
}
