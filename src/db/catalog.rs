//! `source_catalog`: the last catalog that a configuration gives access to, and the outcome of the last refresh.
//!
//! While a refresh runs and after a failed one, `catalog` is that of an earlier attempt, if there was one. A row with
//! another status than SUCCESS and FAILED belongs to a caller that waits for its task.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;

use super::attempt::may_run;
use super::own_tables::ATTEMPT;
use super::pool::{Attempt, Transaction, text, time};
use super::stored_result::{NewResult, Precedence, StoredResult};
use super::text::quote_literal;
use super::{Db, DbError, ResultKey, is_provisional};
use crate::failure::{Class, Failure};
use crate::task::{Task, to_millis};

/// Restores the outcomes of refreshes from rows `ended`.
pub(super) const RESTORE: &str = "UPDATE source_catalog AS stored SET status = ended.status,
       description = ended.description, catalog = COALESCE(ended.document, stored.catalog), timestamp = ended.started_at
     FROM ended WHERE ended.kind = 'discover' AND stored.package = ended.package AND stored.version = ended.version
       AND stored.key = ended.key AND stored.status NOT IN ('SUCCESS', 'FAILED')
       AND (ended.status = 'FAILED' OR COALESCE(ended.document, stored.catalog) IS NOT NULL)
     RETURNING stored.key";

/// Marks a refresh as running; keeps a stored catalog.
pub(super) fn start(tx: &mut Transaction<'_>, task: &Task, precedence: Precedence) -> Attempt<()> {
    let condition = match precedence {
        Precedence::Newest => "TRUE",
        Precedence::ByStart => "stored.timestamp < excluded.timestamp",
    };
    upsert(tx, task, "RUNNING", None, None, condition).map(drop)
}

/// Stores the outcome of a refresh. A failure keeps the stored catalog.
pub(super) fn write(tx: &mut Transaction<'_>, new: &NewResult<'_>) -> Attempt<bool> {
    let status = if new.succeeded { "SUCCESS" } else { "FAILED" };
    let condition = match (new.precedence, new.succeeded) {
        (Precedence::Newest, _) => "TRUE".to_owned(),
        (Precedence::ByStart, true) => {
            "stored.status NOT IN ('SUCCESS', 'FAILED') OR stored.timestamp <= excluded.timestamp".to_owned()
        }
        (Precedence::ByStart, false) => format!(
            "stored.status NOT IN ('SUCCESS', 'FAILED') OR stored.timestamp < excluded.timestamp
             OR stored.timestamp = excluded.timestamp AND stored.status = 'FAILED' AND {}",
            is_provisional("stored.description")
        ),
    };
    upsert(tx, new.task, status, new.document, new.description, &condition)
}

fn upsert(
    tx: &mut Transaction<'_>,
    task: &Task,
    status: &str,
    catalog: Option<&str>,
    description: Option<&str>,
    condition: &str,
) -> Attempt<bool> {
    let sql = format!(
        "INSERT INTO source_catalog AS stored (package, version, key, status, catalog, description, timestamp)
         VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
         ON CONFLICT (package, version, key) DO UPDATE SET
           status = excluded.status, catalog = COALESCE(excluded.catalog, stored.catalog),
           description = excluded.description, timestamp = excluded.timestamp
         WHERE {condition}"
    );
    let ResultKey { package, version, key } = &ResultKey::of(task);
    let at = to_millis(task.started_at);
    let params =
        [text(package), text(version), text(key), text(&status), text(&catalog), text(&description), time(&at)];
    Ok(tx.execute(&sql, &params)? > 0)
}

/// The stored catalog under the key of a task.
pub(super) fn stored(tx: &mut Transaction<'_>, task: &Task) -> Attempt<Option<String>> {
    let sql = "SELECT catalog::text FROM source_catalog WHERE package = $1 AND version = $2 AND key = $3";
    let ResultKey { package, version, key } = &ResultKey::of(task);
    Ok(tx.row(sql, &[text(package), text(version), text(key)], |row| row.try_get(0))?.flatten())
}

/// The outcome in the row of a task, if `is_own` accepts its time.
pub(super) fn result(
    tx: &mut Transaction<'_>,
    task: &Task,
    is_own: impl Fn(Timestamp) -> bool,
) -> Attempt<Option<StoredResult>> {
    let sql = "SELECT catalog::text, status, description, timestamp FROM source_catalog
         WHERE package = $1 AND version = $2 AND key = $3 AND status IN ('SUCCESS', 'FAILED')";
    let ResultKey { package, version, key } = &ResultKey::of(task);
    let found = tx.row(sql, &[text(package), text(version), text(key)], |row| {
        let (catalog, status): (Option<String>, String) = (row.try_get(0)?, row.try_get(1)?);
        let succeeded = status == "SUCCESS";
        let result = StoredResult {
            succeeded,
            document: catalog.filter(|_| succeeded),
            description: row.try_get::<_, Option<String>>(2)?.filter(|_| !succeeded),
        };
        Ok((result, row.try_get(3)?))
    })?;
    let is_complete = |result: &StoredResult| !result.succeeded || result.document.is_some();
    Ok(found.filter(|(result, at)| is_own(*at) && is_complete(result)).map(|(result, _)| result))
}

/// How wrong the clock of the console may be.
const CLOCK_ERROR: Duration = Duration::from_mins(30);

impl Db {
    /// Fails the RUNNING refreshes that started longer ago than `older_than`, by the clock of the database; keeps stored
    /// catalogs. The time of a row may be the console's: it counts only where no recorded attempt may still end, and half
    /// an hour later where attempts are not recorded. The sidecar may still store a late outcome. Returns the keys, without
    /// those of an attempt whose answer was lost.
    pub fn fail_stale_catalogs(&self, older_than: Duration) -> Result<Vec<ResultKey>, DbError> {
        let minutes = older_than.as_secs().div_ceil(60);
        let failure = Failure::new(Class::Abandoned, format!("no outcome within {minutes} minutes")).to_string();
        self.run("fail abandoned refreshes of catalogs", |tx| {
            let running = tx.own.map_or_else(String::new, |own| {
                format!(
                    " AND NOT EXISTS (SELECT FROM {} AS attempt WHERE attempt.results_schema = {}
                        AND attempt.kind = 'discover' AND attempt.package = source_catalog.package
                        AND attempt.version = source_catalog.version AND attempt.key = source_catalog.key
                        AND {})",
                    own.table(ATTEMPT),
                    quote_literal(&own.results_schema),
                    may_run("attempt"),
                )
            });
            let older_than = older_than + if tx.own.is_some() { Duration::ZERO } else { CLOCK_ERROR };
            // A locked row has a writer and so is not abandoned.
            let sql = format!(
                "UPDATE source_catalog SET status = 'FAILED', description = $2
                 WHERE (package, version, key) IN
                   (SELECT package, version, key FROM source_catalog
                    WHERE status = 'RUNNING' AND timestamp < CURRENT_TIMESTAMP - make_interval(secs => $1){running}
                    ORDER BY package, version, key FOR UPDATE SKIP LOCKED)
                 RETURNING package, version, key"
            );
            tx.rows(&sql, &[(&older_than.as_secs_f64(), Type::FLOAT8), text(&failure)], |row| {
                Ok(ResultKey { package: row.try_get(0)?, version: row.try_get(1)?, key: row.try_get(2)? })
            })
        })
    }
}
