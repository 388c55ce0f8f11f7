//! `source_check`: the result of the last check under a storage key.

use jiff::Timestamp;

use super::is_provisional;
use super::pool::{Attempt, Transaction, text, time};
use super::stored_result::{NewResult, Precedence, StoredResult};
use crate::task::{Task, to_millis};

/// Stores a result. A row with another status than these belongs to a caller that waits for its task.
pub(super) fn write(tx: &mut Transaction<'_>, new: &NewResult<'_>, is_failure: bool) -> Attempt<bool> {
    let condition = match (new.precedence, is_failure) {
        (Precedence::Newest, _) => "TRUE".to_owned(),
        (Precedence::ByStart, false) => {
            "stored.status NOT IN ('SUCCESS', 'FAILED') OR stored.timestamp <= excluded.timestamp".to_owned()
        }
        (Precedence::ByStart, true) => format!(
            "stored.status NOT IN ('SUCCESS', 'FAILED') OR stored.timestamp < excluded.timestamp
             OR stored.timestamp = excluded.timestamp AND stored.status = 'FAILED' AND {}",
            is_provisional("stored.description")
        ),
    };
    let sql = format!(
        "INSERT INTO source_check AS stored (package, version, key, status, description, timestamp)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (key) DO UPDATE SET
           package = excluded.package, version = excluded.version, status = excluded.status,
           description = excluded.description, timestamp = excluded.timestamp
         WHERE {condition}"
    );
    let Task { image, storage_key, started_at, .. } = new.task;
    let (status, at) = (if new.succeeded { "SUCCESS" } else { "FAILED" }, to_millis(*started_at));
    let params = [
        text(&image.package),
        text(&image.version),
        text(storage_key),
        text(&status),
        text(&new.description),
        time(&at),
    ];
    Ok(tx.execute(&sql, &params)? > 0)
}

/// The result in the row of a task, whichever image it is of, if `is_own` accepts its time.
pub(super) fn result(
    tx: &mut Transaction<'_>,
    task: &Task,
    is_own: impl Fn(Timestamp) -> bool,
) -> Attempt<Option<StoredResult>> {
    let sql = "SELECT status, description, timestamp FROM source_check
         WHERE key = $1 AND status IN ('SUCCESS', 'FAILED')";
    let found = tx.row(sql, &[text(&task.storage_key)], |row| {
        let status: String = row.try_get(0)?;
        let result = StoredResult { succeeded: status == "SUCCESS", document: None, description: row.try_get(1)? };
        Ok((result, row.try_get(2)?))
    })?;
    Ok(found.filter(|(_, at)| is_own(*at)).map(|(result, _)| result))
}
