//! `source_check`: the result of the last check under a storage key.

use jiff::Timestamp;

use super::pool::{text, time};
use super::text::clean;
use super::{Db, DbError, ResultKey, is_provisional};
use crate::task::to_millis;

/// A row of `source_check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheck {
    /// The image, without its version.
    pub package: String,
    pub version: String,
    /// SUCCESS or FAILED.
    pub status: String,
    /// The connector's message, or why there is no result.
    pub description: Option<String>,
    /// When the attempt started.
    pub timestamp: Timestamp,
}

impl Db {
    /// Stores the connector's result. Never overwrites the result of a later attempt.
    pub fn save_check(
        &self,
        key: &ResultKey,
        at: Timestamp,
        status: &str,
        description: Option<&str>,
    ) -> Result<(), DbError> {
        self.write_check(key, at, status, description, "stored.timestamp <= excluded.timestamp").map(drop)
    }

    /// Stores that an attempt failed without a result. Never overwrites an outcome of the same attempt, unless it is that
    /// of a terminated sidecar, or of a later attempt. False if the stored outcome takes precedence.
    pub fn fail_check(&self, key: &ResultKey, at: Timestamp, description: &str) -> Result<bool, DbError> {
        let condition = format!(
            "stored.timestamp < excluded.timestamp
                OR stored.timestamp = excluded.timestamp AND stored.status = 'FAILED' AND {}",
            is_provisional("stored.description")
        );
        self.write_check(key, at, "FAILED", Some(description), &condition)
    }

    fn write_check(
        &self,
        key: &ResultKey,
        at: Timestamp,
        status: &str,
        description: Option<&str>,
        condition: &str,
    ) -> Result<bool, DbError> {
        let at = to_millis(at);
        let description = description.map(clean);
        let sql = format!(
            "INSERT INTO source_check AS stored (package, version, key, status, description, timestamp)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (key) DO UPDATE SET
               package = excluded.package, version = excluded.version, status = excluded.status,
               description = excluded.description, timestamp = excluded.timestamp
             WHERE {condition}"
        );
        let ResultKey { package, version, key } = key;
        let description = description.as_deref();
        let params = [text(package), text(version), text(key), text(&status), text(&description), time(&at)];
        self.run("store the result of a check", |tx| Ok(tx.execute(&sql, &params)? > 0))
    }

    /// The result under a storage key, whichever image it is of.
    pub fn check(&self, key: &str) -> Result<Option<StoredCheck>, DbError> {
        let sql = "SELECT package, version, status, description, timestamp FROM source_check WHERE key = $1";
        self.run("read the result of a check", |tx| {
            tx.row(sql, &[text(&key)], |row| {
                Ok(StoredCheck {
                    package: row.try_get(0)?,
                    version: row.try_get(1)?,
                    status: row.try_get(2)?,
                    description: row.try_get(3)?,
                    timestamp: row.try_get(4)?,
                })
            })
        })
    }
}
