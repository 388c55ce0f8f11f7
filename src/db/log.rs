//! `task_log`: log lines of connectors and sidecars, and their retention.
//!
//! The `timestamp` column holds milliseconds, so rows are read `ORDER BY timestamp, id`, and [`LogIds`] makes ids (UUID
//! version 7) that also increase within a millisecond.
//!
//! The table may hold tens of millions of rows, with one index each on `sync_id` and `timestamp`. Retention deletes
//! small batches, so that writers do not wait, and each of its statements reads a bounded number of rows.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;
use uuid::{Builder, Uuid};

use super::pool::{Attempt, Transaction, text};
use super::text::shown;
use super::{Db, DbError};
use crate::task::{Task, to_millis};

/// Characters of a message that are read: other programs may have written megabytes.
const MAX_MESSAGE_LENGTH: i32 = 4000;
/// The longest messages that are read together, in bytes.
const MAX_READ_BYTES: i64 = 4 << 20;
/// Rows that one transaction of the retention deletes.
const BATCH: u32 = 5_000;
/// Longer ages would exceed the server's calendar.
const MAX_AGE: Duration = Duration::from_hours(1000 * 365 * 24);

/// The logger of our own lines.
pub const OWN_LOGGER: &str = "syncctl";

/// A row of `task_log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// From [`LogIds`]; a row whose id is stored already is skipped.
    pub id: Uuid,
    /// INFO, ERROR and so on.
    pub level: String,
    pub logger: String,
    /// One line or several.
    pub message: String,
    /// Empty for a task that belongs to no sync.
    pub sync_id: String,
    pub task_id: String,
    /// From [`LogIds`].
    pub timestamp: Timestamp,
}

/// The part of a row that [`Db::last_logs`] reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// INFO, ERROR and so on.
    pub level: String,
    pub logger: String,
    /// One line or several.
    pub message: String,
    pub timestamp: Timestamp,
}

/// Makes ids and times of rows in increasing order, even when the clock steps back.
#[derive(Debug, Default)]
pub struct LogIds {
    millis: i64,
    /// The number of the row within this millisecond.
    sequence: u32,
}

/// Bits of the sequence in an id: 67 million rows per millisecond.
const SEQUENCE_BITS: u32 = 26;

impl LogRow {
    /// A line of our own about a task.
    pub fn own(task: &Task, id: Uuid, level: &str, message: String, timestamp: Timestamp) -> Self {
        Self {
            id,
            level: level.to_owned(),
            logger: OWN_LOGGER.to_owned(),
            message,
            sync_id: task.sync_id.clone(),
            task_id: task.task_id.clone(),
            timestamp,
        }
    }
}

impl LogIds {
    /// The id and the time of a row that is logged now.
    pub fn next(&mut self, now: Timestamp) -> (Uuid, Timestamp) {
        let millis = now.as_millisecond();
        if millis > self.millis {
            (self.millis, self.sequence) = (millis, 0);
        } else {
            self.sequence += 1;
            if self.sequence >> SEQUENCE_BITS > 0 {
                (self.millis, self.sequence) = (self.millis + 1, 0);
            }
        }
        // Besides version and variant an id has 12 + 62 free bits: the sequence first, then random bits. The builder
        // overwrites the upper bits of bytes 0 and 2.
        let [_, _, a, b] = (self.sequence >> 14).to_be_bytes();
        let [_, _, c, d] = (self.sequence & 0x3fff).to_be_bytes();
        let [r0, r1, r2, r3, r4, r5, ..] = *Uuid::new_v4().as_bytes();
        let counter = [a, b, c, d, r0, r1, r2, r3, r4, r5];
        let id = Builder::from_unix_timestamp_millis(u64::try_from(self.millis).unwrap_or(0), &counter).into_uuid();
        (id, Timestamp::from_millisecond(self.millis).unwrap_or(now))
    }
}

impl Db {
    /// Stores rows, each at most once, however often they are passed.
    pub fn insert_logs(&self, rows: &[LogRow]) -> Result<(), DbError> {
        if rows.is_empty() {
            return Ok(());
        }
        let column = |get: fn(&LogRow) -> &str| rows.iter().map(|row| shown(get(row))).collect::<Vec<_>>();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let times: Vec<Timestamp> = rows.iter().map(|row| to_millis(row.timestamp)).collect();
        let levels = column(|row| &row.level);
        let loggers = column(|row| &row.logger);
        let messages = column(|row| &row.message);
        let sync_ids = column(|row| &row.sync_id);
        let task_ids = column(|row| &row.task_id);
        let params = [
            (&ids as _, Type::UUID_ARRAY),
            (&levels as _, Type::TEXT_ARRAY),
            (&loggers as _, Type::TEXT_ARRAY),
            (&messages as _, Type::TEXT_ARRAY),
            (&sync_ids as _, Type::TEXT_ARRAY),
            (&task_ids as _, Type::TEXT_ARRAY),
            (&times as _, Type::TIMESTAMPTZ_ARRAY),
        ];
        let sql = "INSERT INTO task_log (id, level, logger, message, sync_id, task_id, timestamp)
             SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (id) DO NOTHING";
        self.run("store log lines", |tx| Ok(_ = tx.execute(sql, &params)?))
    }

    /// Whether there is a line with this id.
    pub fn has_log(&self, id: Uuid) -> Result<bool, DbError> {
        self.run("look for a log line", |tx| tx.exists("SELECT 1 FROM task_log WHERE id = $1", &[(&id, Type::UUID)]))
    }

    /// The last lines of a task in the order in which they were logged, each cut to [`MAX_MESSAGE_LENGTH`], as many as
    /// [`MAX_READ_BYTES`] hold. With a sync, only those that were logged for it: tasks of different syncs may have the same
    /// id.
    pub fn last_logs(&self, task_id: &str, sync_id: Option<&str>, limit: u32) -> Result<Vec<LogLine>, DbError> {
        // The sum keeps the server from using the index on `timestamp`, through which it would read the lines of all
        // later tasks to find those of one that ended long ago.
        let sql = "SELECT level, logger, message, timestamp FROM
               (SELECT *, sum(octet_length(message)) OVER (ORDER BY timestamp DESC, id DESC) AS bytes FROM
                   (SELECT id, level, logger, left(message, $3) AS message, timestamp FROM task_log
                    WHERE task_id = $1 AND ($5::text IS NULL OR sync_id = $5)
                    ORDER BY timestamp + interval '0' DESC, id DESC LIMIT $2) AS last) AS sized
             WHERE bytes <= $4 ORDER BY timestamp, id";
        let params = [
            text(&task_id),
            (&i64::from(limit) as _, Type::INT8),
            (&MAX_MESSAGE_LENGTH as _, Type::INT4),
            (&MAX_READ_BYTES as _, Type::INT8),
            text(&sync_id),
        ];
        self.run("read log lines", |tx| {
            tx.rows(sql, &params, |row| {
                Ok(LogLine {
                    level: row.try_get(0)?,
                    logger: row.try_get(1)?,
                    message: row.try_get(2)?,
                    timestamp: row.try_get(3)?,
                })
            })
        })
    }

    /// Deletes lines that are older than `older_than`, by the clock of the database. Ends early when `stop` returns true.
    pub(super) fn trim_logs(&self, older_than: Duration, stop: &dyn Fn() -> bool) -> Result<u64, DbError> {
        let age = older_than.min(MAX_AGE).as_secs_f64();
        let before: Option<Timestamp> = self.run("find old log lines", |tx| {
            let sql = "SELECT CURRENT_TIMESTAMP - make_interval(secs => $1)";
            tx.row(sql, &[(&age, Type::FLOAT8)], |row| row.try_get(0))
        })?;
        // The end of the last batch: deleted rows stay in the index for a while and would be read again each time.
        let mut after: Option<Timestamp> = None;
        let mut deleted = 0;
        while !stop() {
            let batch = self.run("delete old log lines", |tx| delete_old(tx, after, before))?;
            let (count, last) = batch.unwrap_or_default();
            deleted += count.unsigned_abs();
            if count < i64::from(BATCH) {
                break;
            }
            after = last;
        }
        Ok(deleted)
    }
}

/// Deletes the oldest batch of lines; returns their number and the time of the last one.
fn delete_old(
    tx: &mut Transaction<'_>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
) -> Attempt<Option<(i64, Option<Timestamp>)>> {
    tx.row(
        "WITH deleted AS (
           DELETE FROM task_log WHERE id = ANY (ARRAY(
             SELECT id FROM task_log WHERE timestamp >= COALESCE($1, '-infinity') AND timestamp < $2
             ORDER BY timestamp LIMIT $3))
           RETURNING timestamp)
         SELECT count(*), max(timestamp) FROM deleted",
        &[(&after, Type::TIMESTAMPTZ), (&before, Type::TIMESTAMPTZ), (&i64::from(BATCH), Type::INT8)],
        |row| Ok((row.try_get(0)?, row.try_get(1)?)),
    )
}

#[cfg(test)]
mod tests {
    use super::LogIds;
    use jiff::{Timestamp, ToSpan};

    #[test]
    fn ids_increase_within_a_millisecond_and_when_the_clock_steps_back() {
        let now: Timestamp = "2026-01-02T03:04:05.678Z".parse().expect("a valid time");
        let mut ids = LogIds::default();
        let mut rows: Vec<_> = (0..40_000).map(|_| ids.next(now)).collect();
        rows.push(ids.next(now - 1.hour()));
        rows.push(ids.next(now + 1.millisecond()));
        assert!(rows.is_sorted_by(|a, b| (a.1, a.0) < (b.1, b.0)));
        assert!(rows.iter().all(|(id, _)| id.get_version_num() == 7));
    }
}
