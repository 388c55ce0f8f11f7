//! How many tasks a token has running, counted so that replicas do not exceed its limit together.
//!
//! A task takes its place before it starts: an entry of the kind `token` in the table of attempts, under a lock of the
//! token. The place is free again once the task's row and attempts show that it has ended.

use std::time::Duration;

use postgres::types::Type;

use super::attempt::may_run;
use super::own_tables::{ATTEMPT, OwnSchema};
use super::pool::{Attempt, Transaction, text};
use super::{Db, DbError};
use crate::task::{Task, TaskStatus};

/// The kind of the entries.
pub(super) const KIND: &str = "token";
/// A task is recorded sooner after it has taken its place, or not at all.
const START_TIME: Duration = Duration::from_mins(2);

/// Whether a task may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It has taken a place, which is to be given back if it does not start.
    Taken,
    /// Nothing new starts: it has a place, or a row.
    Known,
    /// The token has as many tasks as it may. Those that were cancelled count until their Pods are gone; their ids.
    Full(Vec<String>),
    /// Without the own schema nothing can be counted.
    Uncounted,
}

impl Db {
    /// Takes a place for a task, unless `max` tasks of its token are running. Cancelled tasks among `gone` have no Pod.
    pub fn take_place(&self, token: &str, task: &Task, max: u32, gone: &[String]) -> Result<Place, DbError> {
        self.run("count the tasks of a token", |tx| {
            let Some(own) = tx.own else { return Ok(Place::Uncounted) };
            tx.lock(&format!("syncctl token {} {token}", own.results_schema))?;
            if task.has_row() && has_row(tx, task)? {
                return Ok(Place::Known);
            }
            delete_ended(tx, own, token, gone)?;
            let places = places(tx, own, token)?;
            let pod = task.pod_name();
            if places.iter().any(|place| place.pod == pod) {
                // Of an attempt of this operation whose answer was lost, or of another request.
                return Ok(if tx.is_retry { Place::Taken } else { Place::Known });
            }
            if places.len() >= max as usize {
                let cancelled = places.into_iter().filter(|place| place.is_cancelled);
                return Ok(Place::Full(cancelled.map(|place| place.task_id).collect()));
            }
            let sql = format!(
                "INSERT INTO {} (results_schema, kind, package, version, key, task_id) VALUES ($1, $2, $3, $4, $5, $6)",
                own.table(ATTEMPT)
            );
            let kind = task.kind.as_str();
            let params =
                [text(&own.results_schema), text(&KIND), text(&kind), text(&pod), text(&token), text(&task.task_id)];
            tx.execute(&sql, &params)?;
            Ok(Place::Taken)
        })
    }

    /// Gives the place of a task back that has not started.
    pub fn give_place_back(&self, token: &str, task: &Task) -> Result<(), DbError> {
        self.run("count the tasks of a token", |tx| {
            let Some(own) = tx.own else { return Ok(()) };
            let sql = format!(
                "DELETE FROM {} WHERE results_schema = $1 AND kind = $2 AND key = $3 AND version = $4",
                own.table(ATTEMPT)
            );
            let pod = task.pod_name();
            Ok(_ = tx.execute(&sql, &[text(&own.results_schema), text(&KIND), text(&token), text(&pod)])?)
        })
    }
}

/// Whether there is a row of the task; one that has failed may be started again.
fn has_row(tx: &mut Transaction<'_>, task: &Task) -> Attempt<bool> {
    let (failed, sql) = (TaskStatus::Failed.as_str(), "SELECT 1 FROM source_task WHERE task_id = $1 AND status <> $2");
    tx.exists(sql, &[text(&task.task_id), text(&failed)])
}

/// A task that counts.
struct Counted {
    pod: String,
    task_id: String,
    is_cancelled: bool,
}

/// The entries of a token with what is known of their tasks. An attempt of the same id may belong to another task of the
/// token, which then counts for longer.
fn entries_sql(own: &OwnSchema) -> String {
    let table = own.table(ATTEMPT);
    let (may_run, seconds) = (may_run("run"), START_TIME.as_secs());
    format!(
        "SELECT place.number, place.version AS pod, place.task_id,
           row.status IS NOT DISTINCT FROM 'RUNNING' OR EXISTS (SELECT FROM {table} AS run
             WHERE run.results_schema = $1 AND run.task_id = place.task_id AND run.kind = place.package
               AND run.number > place.number AND {may_run}) AS is_running,
           place.started_at > CURRENT_TIMESTAMP - make_interval(secs => {seconds}) AND NOT EXISTS (SELECT FROM {table} AS run
             WHERE run.results_schema = $1 AND run.task_id = place.task_id AND run.kind <> place.kind
               AND run.number > place.number) AS is_starting,
           row.status IS NOT DISTINCT FROM 'CANCELLED' OR EXISTS (SELECT FROM {table} AS run
             WHERE run.results_schema = $1 AND run.task_id = place.task_id AND run.kind = place.package
               AND run.number > place.number AND starts_with(run.description, 'CANCELLED')) AS is_cancelled
         FROM {table} AS place LEFT JOIN source_task AS row ON row.task_id = place.task_id
         WHERE place.results_schema = $1 AND place.kind = $2 AND place.key = $3"
    )
}

/// Deletes the entries of tasks that have ended, but not those of cancelled ones whose Pods may be there.
fn delete_ended(tx: &mut Transaction<'_>, own: &OwnSchema, token: &str, gone: &[String]) -> Attempt<()> {
    let sql = format!(
        "DELETE FROM {} WHERE results_schema = $1 AND kind = $2 AND number IN
           (SELECT number FROM ({}) AS entry WHERE NOT is_running AND NOT is_starting
              AND (NOT is_cancelled OR task_id = ANY ($4)))",
        own.table(ATTEMPT),
        entries_sql(own)
    );
    let params = [text(&own.results_schema), text(&KIND), text(&token), (&gone, Type::TEXT_ARRAY)];
    Ok(_ = tx.execute(&sql, &params)?)
}

fn places(tx: &mut Transaction<'_>, own: &OwnSchema, token: &str) -> Attempt<Vec<Counted>> {
    let sql = format!(
        "SELECT pod, task_id, is_cancelled AND NOT is_running AND NOT is_starting FROM ({}) AS entry ORDER BY number",
        entries_sql(own)
    );
    tx.rows(&sql, &[text(&own.results_schema), text(&KIND), text(&token)], |row| {
        Ok(Counted { pod: row.try_get(0)?, task_id: row.try_get(1)?, is_cancelled: row.try_get(2)? })
    })
}
