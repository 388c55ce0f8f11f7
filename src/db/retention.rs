//! Retention: which rows are deleted when, in batches that are small enough not to hold up writers.
//!
//! Tables may hold millions of rows, so each statement reads a bounded number of them, by an index.

use std::time::Duration;

use postgres::types::Type;

use super::own_tables::{ATTEMPT, TASK};
use super::pool::{Attempt, Param, Transaction, text};
use super::schema::CREATED_BY;
use super::spec::has_connector_type;
use super::{Db, DbError};

/// Rows that one transaction deletes.
const BATCH: i64 = 2_000;
/// Syncs that one query examines.
const SYNCS_LIMIT: i32 = 100;
/// The age of lines in a table that syncctl has created.
const LOG_AGE: Duration = Duration::from_hours(60 * 24);
/// How long attempts that have ended are kept.
const ATTEMPT_AGE: Duration = Duration::from_hours(7 * 24);
/// Longer ages would exceed the server's calendar.
const MAX_AGE: Duration = Duration::from_hours(1000 * 365 * 24);

/// The limits of the tables.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// The newest rows of `source_task` of each sync, whatever their age.
    pub task_rows: u64,
    /// All rows of `source_task` up to this age, whatever their number.
    pub task_age: Duration,
    /// Lines of `task_log` up to this age; zero keeps all. `None` depends on who has created the table.
    pub log_age: Option<Duration>,
}

/// The number of rows that were deleted, without those of an attempt whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// Of `source_task`.
    pub tasks: u64,
    /// Of `task_log`.
    pub logs: u64,
    /// Of the own schema.
    pub own: u64,
}

impl Db {
    /// Deletes what is not kept, by the clock of the database. Ends early when `stop` returns true.
    pub fn trim(&self, retention: &Retention, stop: &dyn Fn() -> bool) -> Result<Trimmed, DbError> {
        let Retention { task_rows, task_age, log_age } = *retention;
        let tasks = self.trim_tasks(task_rows, task_age, stop)?;
        let log_age = match log_age {
            Some(age) => age,
            None if self.has_created_logs()? => LOG_AGE,
            None => Duration::ZERO,
        };
        let logs = if log_age.is_zero() { 0 } else { self.trim_logs(log_age, stop)? };
        let own = self.trim_own(task_age, stop)?;
        Ok(Trimmed { tasks, logs, own })
    }

    /// Whether syncctl has created `task_log`: its comment says so, or `source_spec` has the column of earlier versions,
    /// which did not leave the comment.
    fn has_created_logs(&self) -> Result<bool, DbError> {
        self.run("read who has created task_log", |tx| {
            let sql = "SELECT 1 WHERE obj_description(to_regclass('task_log'), 'pg_class') = $1";
            Ok(tx.exists(sql, &[text(&CREATED_BY)])? || has_connector_type(tx)?)
        })
    }

    /// Deletes rows of `source_task` that are beyond both limits and not RUNNING.
    fn trim_tasks(&self, per_sync: u64, older_than: Duration, stop: &dyn Fn() -> bool) -> Result<u64, DbError> {
        let per_sync = i64::from(u32::try_from(per_sync).unwrap_or(u32::MAX));
        let age = older_than.min(MAX_AGE).as_secs_f64();
        let mut after: Option<String> = None;
        let mut deleted = 0;
        while !stop() {
            let syncs = self.run("count the tasks of syncs", |tx| count_syncs(tx, after.as_deref(), per_sync))?;
            for (sync_id, _) in syncs.iter().filter(|(_, has_surplus)| *has_surplus) {
                while !stop() {
                    let count = self.run("delete old tasks", |tx| delete_tasks(tx, sync_id, per_sync, age))?;
                    deleted += count;
                    if count < BATCH.unsigned_abs() {
                        break;
                    }
                }
            }
            match syncs.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => break,
            }
        }
        Ok(deleted)
    }

    /// Deletes records of tasks without a row, and attempts, except the last specification under each key.
    fn trim_own(&self, task_age: Duration, stop: &dyn Fn() -> bool) -> Result<u64, DbError> {
        let task_age = task_age.min(MAX_AGE).as_secs_f64();
        let old_tasks = "created_at < CURRENT_TIMESTAMP - make_interval(secs => $2)
            AND NOT EXISTS (SELECT FROM source_task AS row WHERE row.task_id = own.task_id)";
        let old_attempts = "started_at < CURRENT_TIMESTAMP - make_interval(secs => $2)
            AND NOT (kind = 'spec' AND status IS NOT DISTINCT FROM 'SUCCESS')
            AND NOT (kind = 'token' AND EXISTS (SELECT FROM source_task AS row
              WHERE row.task_id = own.task_id AND row.status = 'RUNNING'))";
        let attempt_age = ATTEMPT_AGE.as_secs_f64();
        let mut deleted = 0;
        for (table, key, condition, age) in
            [(TASK, "task_id", old_tasks, task_age), (ATTEMPT, "number", old_attempts, attempt_age)]
        {
            while !stop() {
                let count = self.run("delete old rows of the own schema", |tx| {
                    let Some(own) = tx.own else { return Ok(0) };
                    let table = own.table(table);
                    let sql = format!(
                        "DELETE FROM {table} WHERE results_schema = $1 AND {key} = ANY (ARRAY(
                           SELECT {key} FROM {table} AS own WHERE results_schema = $1 AND {condition} LIMIT $3))"
                    );
                    tx.execute(&sql, &[text(&own.results_schema), (&age, Type::FLOAT8), (&BATCH, Type::INT8)])
                })?;
                deleted += count;
                if count < BATCH.unsigned_abs() {
                    break;
                }
            }
        }
        Ok(deleted)
    }
}

/// The next syncs in the order of their ids, and whether each has more than `per_sync` tasks.
///
/// Jumps from id to id in the index instead of reading all of it, and stops counting at the limit.
fn count_syncs(tx: &mut Transaction<'_>, after: Option<&str>, per_sync: i64) -> Attempt<Vec<(String, bool)>> {
    force_index(tx)?;
    tx.rows(
        "WITH RECURSIVE syncs (sync_id, number) AS (
           (SELECT sync_id, 1 FROM source_task WHERE $1::text IS NULL OR sync_id > $1 ORDER BY sync_id LIMIT 1)
           UNION ALL
           SELECT next.sync_id, number + 1 FROM syncs, LATERAL
             (SELECT sync_id FROM source_task WHERE sync_id > syncs.sync_id ORDER BY sync_id LIMIT 1) AS next
           WHERE number < $2)
         SELECT sync_id, EXISTS (SELECT FROM source_task AS task WHERE task.sync_id = syncs.sync_id OFFSET $3)
         FROM syncs ORDER BY number",
        &[text(&after), (&SYNCS_LIMIT, Type::INT4), (&per_sync, Type::INT8)],
        |row| Ok((row.try_get(0)?, row.try_get(1)?)),
    )
}

/// Deletes a batch of the tasks of a sync that are older than `age` seconds and not among its newest `per_sync`; returns
/// their number.
fn delete_tasks(tx: &mut Transaction<'_>, sync_id: &str, per_sync: i64, age: f64) -> Attempt<u64> {
    force_index(tx)?;
    // Of the newest `per_sync` tasks, those that are young enough take the first places.
    let sql = "SELECT task_id FROM source_task
         WHERE sync_id = $1 AND started_at < CURRENT_TIMESTAMP - make_interval(secs => $3) AND status <> 'RUNNING'
         ORDER BY started_at DESC, task_id DESC
         OFFSET $2 - (SELECT count(*) FROM
           (SELECT FROM source_task AS young WHERE young.sync_id = $1
              AND young.started_at >= CURRENT_TIMESTAMP - make_interval(secs => $3) LIMIT $2) AS counted)
         LIMIT $4";
    let params: [Param<'_>; 4] = [text(&sync_id), (&per_sync, Type::INT8), (&age, Type::FLOAT8), (&BATCH, Type::INT8)];
    let ids: Vec<String> = tx.rows(sql, &params, |row| row.try_get(0))?;
    if let Some(own) = tx.own {
        let sql = format!("DELETE FROM {} WHERE results_schema = $1 AND task_id = ANY ($2)", own.table(TASK));
        tx.execute(&sql, &[text(&own.results_schema), (&ids, Type::TEXT_ARRAY)])?;
    }
    tx.execute("DELETE FROM source_task WHERE task_id = ANY ($1)", &[(&ids, Type::TEXT_ARRAY)])
}

/// Keeps the server from scanning the table from its beginning, which after a while holds only deleted rows.
fn force_index(tx: &mut Transaction<'_>) -> Result<(), postgres::Error> {
    tx.batch("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
}
