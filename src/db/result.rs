//! Results of spec, check and discover: which of several writers of a row takes precedence.
//!
//! * The newest attempt that has ended wins. A failure does not replace anything while a newer attempt may still end.
//! * The first failure of an attempt stays, except that of a sidecar that got TERM, which does not know the cause. A result
//!   of the connector replaces it.
//! * What the console writes when it has asked for a task (`pending`, RUNNING) is replaced whatever time it carries, and
//!   [restored](Db::restore_results) where it has replaced a result.
//!
//! An attempt that is not recorded is ordered by the time at which it started.

use std::time::Duration;

use postgres::types::Type;

use super::attempt::{self, ResultRow, may_run, same_key};
use super::own_tables::{ATTEMPT, OwnSchema};
use super::pool::{Attempt, Transaction, text};
use super::stored_result::{NewResult, Precedence, StoredResult};
use super::task::{self, RequestMark, record};
use super::text::{clean_json, shown};
use super::{Db, DbError, catalog, check, spec};
use crate::failure::StoredError;
use crate::task::{Task, TaskKind};

/// How an attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding<'a> {
    /// The specification or the catalog.
    Document(&'a str),
    /// The connector's result of a check.
    Check {
        /// Whether the connector accepts the configuration.
        succeeded: bool,
        /// The connector's explanation.
        message: Option<&'a str>,
    },
    /// Why there is no result.
    Failure(&'a str),
}

impl Db {
    /// Records that a spec, check or discover was accepted, before its Pod exists.
    pub fn start_attempt(&self, task: &Task, mark: Option<&RequestMark>) -> Result<(), DbError> {
        self.run("store the start of a task", |tx| {
            let Some(own) = tx.own else { return Ok(()) };
            attempt::start(tx, own, task)?;
            record::store(tx, task, mark)
        })
    }

    /// Marks a refresh of a catalog as running, and keeps the catalog. Does nothing where the attempt, or a newer one, has
    /// ended.
    pub fn start_catalog(&self, task: &Task) -> Result<(), DbError> {
        self.run("store the start of a task", |tx| {
            ResultRow::of(task).lock(tx)?;
            match attempt::find(tx, task)? {
                None => catalog::start(tx, task, Precedence::ByStart),
                Some(found) if found.status.is_none() && !found.is_superseded => {
                    catalog::start(tx, task, Precedence::Newest)
                }
                Some(_) => Ok(()),
            }
        })
    }

    /// Stores how an attempt has ended. False if another end of this attempt takes
    /// precedence. That of a newer one stays in the table.
    pub fn store_result(&self, task: &Task, finding: Finding<'_>) -> Result<bool, DbError> {
        let (succeeded, document, description) = match finding {
            Finding::Document(document) => (true, Some(clean_json(document)), None),
            Finding::Check { succeeded, message } => (succeeded, None, message.map(shown)),
            Finding::Failure(text) => (false, None, Some(shown(text))),
        };
        let is_failure = matches!(finding, Finding::Failure(_));
        let (document, description) = (document.as_deref(), description.as_deref());
        self.run("store the result of a task", |tx| {
            ResultRow::of(task).lock(tx)?;
            let new = |document, precedence| NewResult { task, succeeded, document, description, precedence };
            let Some(recorded) = attempt::find(tx, task)? else {
                return write(tx, &new(document, Precedence::ByStart), is_failure);
            };
            let is_provisional =
                recorded.description.as_deref().is_some_and(StoredError::is_provisional) && recorded.is_failed();
            if is_failure && recorded.status.is_some() && !is_provisional {
                return Ok(tx.is_retry && recorded.description.as_deref() == description);
            }
            let is_hidden = recorded.is_superseded || is_failure && recorded.is_overtaken;
            // The table has the catalog itself, unless a newer one is stored there.
            let own_document = document.filter(|_| task.kind == TaskKind::Spec || is_hidden);
            recorded.finish(tx, if succeeded { "SUCCESS" } else { "FAILED" }, own_document, description)?;
            if is_hidden {
                return Ok(true);
            }
            let earlier = if document.is_none() { last_document(tx, task)? } else { None };
            write(tx, &new(document.or(earlier.as_deref()), Precedence::Newest), is_failure)
        })
    }

    /// How this very attempt has ended; `None` while it runs.
    pub fn result(&self, task: &Task) -> Result<Option<StoredResult>, DbError> {
        self.run("read the result of a task", |tx| {
            let recorded = attempt::find(tx, task)?;
            if let Some(status) = recorded.as_ref().and_then(|recorded| recorded.status.as_deref()) {
                let succeeded = status == "SUCCESS";
                let (document, description) = recorded
                    .as_ref()
                    .map(|found| (found.document.clone(), found.description.clone()))
                    .unwrap_or_default();
                let in_table = succeeded && document.is_none() && task.kind == TaskKind::Discover;
                let document = if in_table { catalog::stored(tx, task)? } else { document };
                return Ok(Some(StoredResult { succeeded, document, description }));
            }
            // A foreign sidecar writes only the row, with the time that it was given.
            let is_own = |at| match &recorded {
                Some(_) => at == task.started_at,
                None => at >= task.started_at,
            };
            let found = match task.kind {
                TaskKind::Spec => spec::result(tx, task, is_own)?,
                TaskKind::Check => check::result(tx, task, is_own)?,
                TaskKind::Discover => catalog::result(tx, task, is_own)?,
                TaskKind::Read => None,
            };
            if let (Some(recorded), Some(found)) = (&recorded, &found) {
                let document = found.document.as_deref().filter(|_| task.kind == TaskKind::Spec);
                let status = if found.succeeded { "SUCCESS" } else { "FAILED" };
                recorded.finish(tx, status, document, found.description.as_deref())?;
            }
            Ok(found)
        })
    }

    /// Stores results again that the console has replaced with `pending` or RUNNING, of attempts that have ended within
    /// this time and are the newest under their keys. Returns what they belong to.
    pub fn restore_results(&self, ended_within: Duration) -> Result<Vec<String>, DbError> {
        self.run("restore results", |tx| {
            let Some(own) = tx.own else { return Ok(Vec::new()) };
            let mut restored = Vec::new();
            for statement in [spec::restore_sql(tx)?, catalog::RESTORE.to_owned(), task::restore_sql(tx)?] {
                let sql = format!("WITH ended AS ({}) {statement}", ended_sql(own));
                let params = [text(&own.results_schema), (&ended_within.as_secs_f64() as _, Type::FLOAT8)];
                restored.extend(tx.rows(&sql, &params, |row| row.try_get(0))?);
            }
            Ok(restored)
        })
    }
}

fn write(tx: &mut Transaction<'_>, new: &NewResult<'_>, is_failure: bool) -> Attempt<bool> {
    match new.task.kind {
        TaskKind::Spec => spec::write(tx, new),
        TaskKind::Check => check::write(tx, new, is_failure),
        TaskKind::Discover | TaskKind::Read => catalog::write(tx, new),
    }
}

/// The last specification under the key of a task: the console has erased it where it has asked for a new one.
fn last_document(tx: &mut Transaction<'_>, task: &Task) -> Attempt<Option<String>> {
    let Some(own) = tx.own.filter(|_| task.kind == TaskKind::Spec) else { return Ok(None) };
    let sql = format!(
        "SELECT document::text FROM {} WHERE results_schema = $1 AND kind = 'spec' AND package = $2 AND version = $3
           AND key = $4 AND status = 'SUCCESS' ORDER BY number DESC LIMIT 1",
        own.table(ATTEMPT)
    );
    let image = &task.image;
    let params = [text(&own.results_schema), text(&image.package), text(&image.version), text(&task.connector_type)];
    Ok(tx.row(&sql, &params, |row| row.try_get(0))?.flatten())
}

/// The newest attempt under each key, where it has ended within $2 seconds, and no other may still end; the
/// specification is the last one, which a failure keeps.
fn ended_sql(own: &OwnSchema) -> String {
    let table = own.table(ATTEMPT);
    format!(
        "SELECT last.kind, last.package, last.version, last.key, last.status, last.description, last.started_at,
           CASE WHEN last.kind <> 'spec' OR last.status = 'SUCCESS' THEN last.document ELSE
             (SELECT good.document FROM {table} AS good WHERE {good} AND good.status = 'SUCCESS'
              ORDER BY good.number DESC LIMIT 1) END AS document
         FROM {table} AS last
         WHERE last.results_schema = $1 AND last.finished_at > CURRENT_TIMESTAMP - make_interval(secs => $2)
           AND NOT EXISTS (SELECT FROM {table} AS newer WHERE {newer} AND newer.number > last.number
                           AND (newer.finished_at IS NOT NULL OR {may_run}))",
        good = same_key("good", "last"),
        newer = same_key("newer", "last"),
        may_run = may_run("newer"),
    )
}
