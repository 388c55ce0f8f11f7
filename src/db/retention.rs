//! Which rows of `task_log` go, and how: bit by bit, so that nobody who writes waits for it.
//!
//! The table has one index each on `sync_id` and `timestamp`, and may hold tens of millions of rows. No statement here
//! looks at more of them than a few seconds allow, whatever the table's size.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;
use uuid::Uuid;

use super::pool::Session;
use super::{Db, DbError};

/// Rows that one transaction deletes.
const BATCH: u32 = 5_000;
/// Rows of one sync beyond those that stay that one look finds.
const SURPLUS: u32 = 10 * BATCH;
/// Syncs that one look counts the rows of.
const SYNCS: u32 = 20;
/// Nothing is older; the server's calendar would end.
const OLDEST: Duration = Duration::from_hours(1000 * 365 * 24);

/// How many rows were deleted; those of an attempt whose answer got lost are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// Because they were too old.
    pub by_age: u64,
    /// Because their sync had too many.
    pub by_size: u64,
}

impl Db {
    /// Deletes log lines that are older than a time, by the clock of the database, and of each sync all but the newest
    /// `per_sync`; the empty sync id of spec and check counts as one sync. Goes on bit by bit until nothing is left to
    /// delete or `stop` says so.
    pub fn trim_logs(&self, per_sync: u64, older_than: Duration, stop: &dyn Fn() -> bool) -> Result<Trimmed, DbError> {
        let by_age = self.trim_old_logs(older_than, stop)?;
        let by_size = self.trim_long_logs(per_sync, stop)?;
        Ok(Trimmed { by_age, by_size })
    }

    fn trim_old_logs(&self, older_than: Duration, stop: &dyn Fn() -> bool) -> Result<u64, DbError> {
        let age = older_than.min(OLDEST).as_secs_f64();
        let before = self.run("looking for old log lines", |session| {
            let sql = "SELECT CURRENT_TIMESTAMP - make_interval(secs => $1)";
            Ok(session.query(sql, &[(&age, Type::FLOAT8)])?[0].try_get::<_, Timestamp>(0)?)
        })?;
        // Where the last batch ended: what was deleted stays in the index for a while, and would be read each time.
        let mut after: Option<Timestamp> = None;
        let mut deleted = 0;
        while !stop() {
            let (count, last) = self.run("deleting old log lines", |session| delete_old(session, after, before))?;
            deleted += count;
            if count < u64::from(BATCH) {
                break;
            }
            after = last;
        }
        Ok(deleted)
    }

    fn trim_long_logs(&self, per_sync: u64, stop: &dyn Fn() -> bool) -> Result<u64, DbError> {
        let per_sync = i64::from(u32::try_from(per_sync).unwrap_or(u32::MAX));
        let mut after: Option<String> = None;
        let mut deleted = 0;
        while !stop() {
            let syncs = self.run("counting the log lines of syncs", |session| {
                Ok(count_syncs(session, after.as_deref(), per_sync)?)
            })?;
            for (sync_id, _) in syncs.iter().filter(|(_, too_many)| *too_many) {
                deleted += self.trim_sync(sync_id, per_sync, stop)?;
            }
            match syncs.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => break,
            }
        }
        Ok(deleted)
    }

    fn trim_sync(&self, sync_id: &str, per_sync: i64, stop: &dyn Fn() -> bool) -> Result<u64, DbError> {
        let mut deleted = 0;
        while !stop() {
            let ids =
                self.run("looking for log lines to delete", |session| Ok(surplus(session, sync_id, per_sync)?))?;
            for batch in ids.chunks(BATCH as usize) {
                if stop() {
                    return Ok(deleted);
                }
                deleted += self.run("deleting log lines", |session| {
                    let sql = "DELETE FROM task_log WHERE id = ANY($1)";
                    Ok(session.execute(sql, &[(&batch, Type::UUID_ARRAY)])?)
                })?;
            }
            if ids.len() < SURPLUS as usize {
                break;
            }
        }
        Ok(deleted)
    }
}

/// Deletes the oldest lines; returns how many there were, and the time of the last one.
fn delete_old(
    session: &mut Session<'_>,
    after: Option<Timestamp>,
    before: Timestamp,
) -> Result<(u64, Option<Timestamp>), super::pool::Fault> {
    let row = session.query_opt(
        "WITH gone AS (
           DELETE FROM task_log WHERE id = ANY (ARRAY(
             SELECT id FROM task_log WHERE timestamp >= COALESCE($1, '-infinity') AND timestamp < $2
             ORDER BY timestamp LIMIT $3))
           RETURNING timestamp)
         SELECT count(*), max(timestamp) FROM gone",
        &[(&after, Type::TIMESTAMPTZ), (&before, Type::TIMESTAMPTZ), (&i64::from(BATCH), Type::INT8)],
    )?;
    let Some(row) = row else { return Ok((0, None)) };
    Ok((u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0), row.try_get(1)?))
}

/// The next syncs in the order of their ids, and whether each has more lines than may stay.
///
/// Jumps from id to id in the index instead of reading all of it, and stops counting when it knows.
fn count_syncs(
    session: &mut Session<'_>,
    after: Option<&str>,
    per_sync: i64,
) -> Result<Vec<(String, bool)>, postgres::Error> {
    by_index(session)?;
    let rows = session.query(
        "WITH RECURSIVE syncs (sync_id, number) AS (
           (SELECT sync_id, 1 FROM task_log WHERE $1::text IS NULL OR sync_id > $1 ORDER BY sync_id LIMIT 1)
           UNION ALL
           SELECT next.sync_id, number + 1 FROM syncs, LATERAL
             (SELECT sync_id FROM task_log WHERE sync_id > syncs.sync_id ORDER BY sync_id LIMIT 1) AS next
           WHERE number < $2)
         SELECT sync_id, EXISTS (SELECT FROM task_log AS line WHERE line.sync_id = syncs.sync_id OFFSET $3)
         FROM syncs ORDER BY number",
        &[(&after, Type::TEXT), (&i32::try_from(SYNCS).unwrap_or(i32::MAX), Type::INT4), (&per_sync, Type::INT8)],
    )?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Lines of a sync that may go.
///
/// Looks at some of its lines only: what is not among the newest of these is not among the newest of all either.
fn surplus(session: &mut Session<'_>, sync_id: &str, per_sync: i64) -> Result<Vec<Uuid>, postgres::Error> {
    by_index(session)?;
    let rows = session.query(
        "SELECT id FROM (SELECT id, timestamp FROM task_log WHERE sync_id = $1 LIMIT $2) AS found
         ORDER BY timestamp DESC, id DESC OFFSET $3",
        &[(&sync_id, Type::TEXT), (&(per_sync + i64::from(SURPLUS)), Type::INT8), (&per_sync, Type::INT8)],
    )?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Keeps the server from reading the table from its beginning, where after a while all rows are deleted ones.
fn by_index(session: &mut Session<'_>) -> Result<(), postgres::Error> {
    session.batch("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
}
