//! `source_check`: the result of the last check under a storage key.

use jiff::Timestamp;
use postgres::types::Type;

use super::text::clean;
use super::{Db, DbError, ResultKey};
use crate::task::to_millis;

/// A row of `source_check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheck {
    /// The image that was checked.
    pub package: String,
    /// Its version.
    pub version: String,
    /// SUCCESS or FAILED.
    pub status: String,
    /// The connector's message, or why there is no result.
    pub description: Option<String>,
    /// When the attempt started.
    pub timestamp: Timestamp,
}

impl Db {
    /// Stores the connector's result. Never overwrites that of a later attempt.
    pub fn save_check(
        &self,
        key: &ResultKey,
        at: Timestamp,
        status: &str,
        description: Option<&str>,
    ) -> Result<(), DbError> {
        self.write_check(key, at, status, description, "stored.timestamp <= excluded.timestamp")
    }

    /// Stores that an attempt failed without a result (the controller's view). Never overwrites a result of the same or
    /// a later attempt.
    pub fn fail_check(&self, key: &ResultKey, at: Timestamp, description: &str) -> Result<(), DbError> {
        self.write_check(key, at, "FAILED", Some(description), "stored.timestamp < excluded.timestamp")
    }

    fn write_check(
        &self,
        key: &ResultKey,
        at: Timestamp,
        status: &str,
        description: Option<&str>,
        condition: &str,
    ) -> Result<(), DbError> {
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
        self.run("storing the result of a check", |session| {
            let params = [
                (&key.package as _, Type::TEXT),
                (&key.version as _, Type::TEXT),
                (&key.key as _, Type::TEXT),
                (&status as _, Type::TEXT),
                (&description.as_deref() as _, Type::TEXT),
                (&at as _, Type::TIMESTAMPTZ),
            ];
            session.execute(&sql, &params)?;
            Ok(())
        })
    }

    /// The result that is stored under a storage key, whichever image it is of.
    pub fn check(&self, key: &str) -> Result<Option<StoredCheck>, DbError> {
        self.run("reading the result of a check", |session| {
            let row = session.query_opt(
                "SELECT package, version, status, description, timestamp FROM source_check WHERE key = $1",
                &[(&key, Type::TEXT)],
            )?;
            row.map(|row| {
                Ok(StoredCheck {
                    package: row.try_get(0)?,
                    version: row.try_get(1)?,
                    status: row.try_get(2)?,
                    description: row.try_get(3)?,
                    timestamp: row.try_get(4)?,
                })
            })
            .transpose()
        })
    }
}
