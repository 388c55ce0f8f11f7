//! `task_log`: what connector and sidecar logged.
//!
//! Order: the column holds milliseconds, so rows are read `ORDER BY timestamp, id`, and [`LogIds`] makes ids (UUID
//! version 7) that increase within a millisecond, too.

use jiff::Timestamp;
use postgres::types::Type;
use uuid::{Builder, Uuid};

use super::text::clean;
use super::{Db, DbError};
use crate::task::to_millis;

/// A row of `task_log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    /// From [`LogIds`]; a row whose id is stored already is not stored again.
    pub id: Uuid,
    /// INFO, ERROR and so on.
    pub level: String,
    /// Who logged it.
    pub logger: String,
    /// One line or several.
    pub message: String,
    /// Empty for spec and check.
    pub sync_id: String,
    /// Empty for spec and check.
    pub task_id: String,
    /// From [`LogIds`].
    pub timestamp: Timestamp,
}

/// What a reader wants of a row of `task_log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// INFO, ERROR and so on.
    pub level: String,
    /// Who logged it.
    pub logger: String,
    /// One line or several.
    pub message: String,
    /// When it was logged.
    pub timestamp: Timestamp,
}

/// Makes ids and times of log rows that keep the order in which they were asked for, also when the clock steps back.
#[derive(Debug, Default)]
pub struct LogIds {
    millis: i64,
    /// Of the rows within this millisecond.
    sequence: u32,
}

/// Bits of the sequence in an id: 67 million rows a millisecond.
const SEQUENCE_BITS: u32 = 26;

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
        // 12 bits beside the version and 62 beside the variant are ours: the sequence first, then randomness. The
        // builder overwrites the upper bits of bytes 0 and 2.
        let [_, _, a, b] = (self.sequence >> 14).to_be_bytes();
        let [_, _, c, d] = (self.sequence & 0x3fff).to_be_bytes();
        let [r0, r1, r2, r3, r4, r5, ..] = *Uuid::new_v4().as_bytes();
        let counter = [a, b, c, d, r0, r1, r2, r3, r4, r5];
        let id = Builder::from_unix_timestamp_millis(u64::try_from(self.millis).unwrap_or(0), &counter).into_uuid();
        (id, Timestamp::from_millisecond(self.millis).unwrap_or(now))
    }
}

/// Characters of a line that are read: other programs may have written lines of megabytes.
const LONGEST_READ: i32 = 4000;

impl Db {
    /// Stores rows, each at most once, however often they are handed in.
    pub fn insert_logs(&self, rows: &[LogRow]) -> Result<(), DbError> {
        if rows.is_empty() {
            return Ok(());
        }
        let column = |get: fn(&LogRow) -> &str| rows.iter().map(|row| clean(get(row))).collect::<Vec<_>>();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let times: Vec<Timestamp> = rows.iter().map(|row| to_millis(row.timestamp)).collect();
        let levels = column(|row| &row.level);
        let loggers = column(|row| &row.logger);
        let messages = column(|row| &row.message);
        let sync_ids = column(|row| &row.sync_id);
        let task_ids = column(|row| &row.task_id);
        self.run("storing log lines", |session| {
            let params = [
                (&ids as _, Type::UUID_ARRAY),
                (&levels as _, Type::TEXT_ARRAY),
                (&loggers as _, Type::TEXT_ARRAY),
                (&messages as _, Type::TEXT_ARRAY),
                (&sync_ids as _, Type::TEXT_ARRAY),
                (&task_ids as _, Type::TEXT_ARRAY),
                (&times as _, Type::TIMESTAMPTZ_ARRAY),
            ];
            session.execute(
                "INSERT INTO task_log (id, level, logger, message, sync_id, task_id, timestamp)
                 SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (id) DO NOTHING",
                &params,
            )?;
            Ok(())
        })
    }

    /// The last lines of a task, in the order in which they were logged; of long ones the beginning.
    pub fn last_logs(&self, task_id: &str, limit: u32) -> Result<Vec<LogLine>, DbError> {
        self.run("reading log lines", |session| {
            // The sum hides the column from its index: by that one the server would walk through the lines of all tasks
            // to find those of one that ended long ago.
            let rows = session.query(
                "SELECT level, logger, left(message, $3), timestamp FROM
                   (SELECT * FROM task_log WHERE task_id = $1
                    ORDER BY timestamp + interval '0' DESC, id DESC LIMIT $2) AS last
                 ORDER BY timestamp, id",
                &[(&task_id, Type::TEXT), (&i64::from(limit), Type::INT8), (&LONGEST_READ, Type::INT4)],
            )?;
            rows.iter()
                .map(|row| {
                    Ok(LogLine {
                        level: row.try_get(0)?,
                        logger: row.try_get(1)?,
                        message: row.try_get(2)?,
                        timestamp: row.try_get(3)?,
                    })
                })
                .collect()
        })
    }
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
