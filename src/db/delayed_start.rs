//! Tasks whose Pods are created later, and attempts that have not ended: what a process that was killed leaves in the cluster
//! is found by the names that these rows give.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;

use super::own_tables::{ATTEMPT, TASK};
use super::pool::text;
use super::{Db, DbError};
use crate::task::{Image, Task, TaskKind};

/// The kind of a row that is no attempt: its document is what starts the task.
const KIND: &str = "delayed start";

/// An attempt at spec, check or discover that has not ended.
#[derive(Debug)]
pub struct OpenAttempt {
    /// Its task.
    pub task: Task,
    /// The installation that accepted it, or the process of a one-off command.
    pub accepted_by: Option<String>,
}

impl Db {
    /// Stores what starts a task later. False without the own schema.
    pub fn store_delayed_start(&self, task_id: &str, document: &str) -> Result<bool, DbError> {
        self.run("store a task that starts later", |tx| {
            let Some(own) = tx.own else { return Ok(false) };
            let table = own.table(ATTEMPT);
            let key = [text(&own.results_schema), text(&KIND), text(&task_id)];
            tx.execute(&format!("DELETE FROM {table} WHERE results_schema = $1 AND kind = $2 AND task_id = $3"), &key)?;
            let sql = format!(
                "INSERT INTO {table} (results_schema, kind, package, version, key, task_id, document)
                 VALUES ($1, $2, '', '', $3, $3, $4::text::jsonb)"
            );
            tx.execute(&sql, &[&key[..], &[text(&document)]].concat())?;
            Ok(true)
        })
    }

    /// Forgets what starts a task later: it has started, or it never will.
    pub fn delete_delayed_start(&self, task_id: &str) -> Result<(), DbError> {
        self.run("forget a task that starts later", |tx| {
            let Some(own) = tx.own else { return Ok(()) };
            let sql =
                format!("DELETE FROM {} WHERE results_schema = $1 AND kind = $2 AND task_id = $3", own.table(ATTEMPT));
            Ok(_ = tx.execute(&sql, &[text(&own.results_schema), text(&KIND), text(&task_id)])?)
        })
    }

    /// What starts the tasks later that this installation has accepted.
    pub fn delayed_starts(&self, installation: &str) -> Result<Vec<String>, DbError> {
        self.run("read the tasks that start later", |tx| {
            let Some(own) = tx.own else { return Ok(Vec::new()) };
            let sql = format!(
                "SELECT delayed.document::text FROM {} AS delayed JOIN {} AS task USING (results_schema, task_id)
                 WHERE results_schema = $1 AND delayed.kind = $2 AND task.installation = $3 ORDER BY delayed.number",
                own.table(ATTEMPT),
                own.table(TASK)
            );
            tx.rows(&sql, &[text(&own.results_schema), text(&KIND), text(&installation)], |row| row.try_get(0))
        })
    }

    /// The attempts of the last day without an end, each the last one of its task, that started before `idle_for` by the
    /// clock of the database.
    pub fn open_attempts(&self, idle_for: Duration) -> Result<Vec<OpenAttempt>, DbError> {
        self.run("read the attempts without an end", |tx| {
            let Some(own) = tx.own else { return Ok(Vec::new()) };
            let (attempts, tasks) = (own.table(ATTEMPT), own.table(TASK));
            let sql = format!(
                "SELECT open.kind, task.package, task.version, task.connector_type, task.sync_id, task.task_id, open.key,
                        open.started_at, task.installation
                 FROM {attempts} AS open JOIN {tasks} AS task USING (results_schema, task_id)
                 WHERE results_schema = $1 AND open.kind IN ('spec', 'check', 'discover') AND open.finished_at IS NULL
                   AND open.started_at < CURRENT_TIMESTAMP - make_interval(secs => $2)
                   AND open.started_at > CURRENT_TIMESTAMP - interval '1 day'
                   AND NOT EXISTS (SELECT FROM {attempts} AS later WHERE later.results_schema = $1
                                   AND later.task_id = task.task_id AND later.number > open.number)
                 ORDER BY open.number"
            );
            tx.rows(&sql, &[text(&own.results_schema), (&idle_for.as_secs_f64(), Type::FLOAT8)], |row| {
                let kind: String = row.try_get(0)?;
                let kind: TaskKind = kind.parse().unwrap_or(TaskKind::Spec);
                let started_at: Timestamp = row.try_get(7)?;
                let image = Image { package: row.try_get(1)?, version: row.try_get(2)? };
                let read = Task::of_read("", "", row.try_get::<_, &str>(4)?, row.try_get::<_, &str>(5)?, started_at);
                let storage_key = if kind == TaskKind::Spec { String::new() } else { row.try_get(6)? };
                let task = Task { kind, image, connector_type: row.try_get(3)?, storage_key, ..read };
                Ok(OpenAttempt { task, accepted_by: row.try_get(8)? })
            })
        })
    }

    /// Whether there is an own schema.
    pub fn has_own_schema(&self) -> bool {
        self.own_schema().is_some()
    }
}
