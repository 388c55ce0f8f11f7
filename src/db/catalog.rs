//! `source_catalog`: the last catalog that a configuration gives access to, and the outcome of the last refresh.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;

use super::pool::{text, time};
use super::text::{clean, clean_json};
use super::{Db, DbError, ResultKey, Writer, is_provisional};
use crate::failure::{Class, Failure};
use crate::task::to_millis;

/// A row of `source_catalog`.
///
/// While a refresh runs and after a failed one, `catalog` is that of an earlier attempt, if there was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCatalog {
    /// A JSON document.
    pub catalog: Option<String>,
    /// RUNNING, SUCCESS or FAILED.
    pub status: String,
    /// Why the last refresh failed.
    pub description: Option<String>,
    /// When the last refresh started.
    pub timestamp: Timestamp,
}

impl Db {
    /// Marks a refresh as running; keeps a stored catalog.
    pub fn start_catalog(&self, key: &ResultKey, at: Timestamp) -> Result<(), DbError> {
        self.write_catalog(key, at, "RUNNING", None, None, "stored.timestamp < excluded.timestamp").map(drop)
    }

    /// Replaces the stored catalog. Never overwrites the catalog of a later refresh.
    pub fn save_catalog(&self, key: &ResultKey, at: Timestamp, catalog: &str) -> Result<(), DbError> {
        self.write_catalog(key, at, "SUCCESS", Some(catalog), None, "stored.timestamp <= excluded.timestamp").map(drop)
    }

    /// Stores that a refresh failed; keeps a stored catalog. Never overwrites a success of the same refresh or any
    /// outcome of a later one; only a sidecar that knows the cause overwrites another failure of the same refresh. False
    /// if the stored outcome takes precedence.
    pub fn fail_catalog(&self, key: &ResultKey, at: Timestamp, description: &str, by: Writer) -> Result<bool, DbError> {
        let replaceable = match by {
            Writer::Sidecar => "stored.status <> 'SUCCESS'".to_owned(),
            Writer::TerminatedSidecar | Writer::Controller => {
                format!("(stored.status = 'RUNNING' OR {})", is_provisional("stored.description"))
            }
        };
        let condition =
            format!("stored.timestamp < excluded.timestamp OR stored.timestamp = excluded.timestamp AND {replaceable}");
        self.write_catalog(key, at, "FAILED", None, Some(description), &condition)
    }

    fn write_catalog(
        &self,
        key: &ResultKey,
        at: Timestamp,
        status: &str,
        catalog: Option<&str>,
        description: Option<&str>,
        condition: &str,
    ) -> Result<bool, DbError> {
        let at = to_millis(at);
        let catalog = catalog.map(clean_json);
        let description = description.map(clean);
        let sql = format!(
            "INSERT INTO source_catalog AS stored (package, version, key, status, catalog, description, timestamp)
             VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
             ON CONFLICT (package, version, key) DO UPDATE SET
               status = excluded.status, catalog = COALESCE(excluded.catalog, stored.catalog),
               description = excluded.description, timestamp = excluded.timestamp
             WHERE {condition}"
        );
        let ResultKey { package, version, key } = key;
        let (catalog, description) = (catalog.as_deref(), description.as_deref());
        let params =
            [text(package), text(version), text(key), text(&status), text(&catalog), text(&description), time(&at)];
        self.run("store a catalog", |tx| Ok(tx.execute(&sql, &params)? > 0))
    }

    /// Fails the RUNNING refreshes that started longer ago than `older_than`, by the clock of the database; keeps stored
    /// catalogs. The sidecar may still store a late outcome. Returns the keys, without those of an attempt whose answer
    /// was lost.
    pub fn fail_stale_catalogs(&self, older_than: Duration) -> Result<Vec<ResultKey>, DbError> {
        let minutes = older_than.as_secs().div_ceil(60);
        let failure = Failure::new(Class::Abandoned, format!("no outcome within {minutes} minutes")).to_string();
        // A locked row has a writer and so is not abandoned.
        let sql = "UPDATE source_catalog SET status = 'FAILED', description = $2
             WHERE (package, version, key) IN
               (SELECT package, version, key FROM source_catalog
                WHERE status = 'RUNNING' AND timestamp < CURRENT_TIMESTAMP - make_interval(secs => $1)
                ORDER BY package, version, key FOR UPDATE SKIP LOCKED)
             RETURNING package, version, key";
        self.run("fail abandoned refreshes of catalogs", |tx| {
            tx.rows(sql, &[(&older_than.as_secs_f64(), Type::FLOAT8), text(&failure)], |row| {
                Ok(ResultKey { package: row.try_get(0)?, version: row.try_get(1)?, key: row.try_get(2)? })
            })
        })
    }

    /// The row under a key.
    pub fn catalog(&self, key: &ResultKey) -> Result<Option<StoredCatalog>, DbError> {
        let sql = "SELECT catalog::text, status, description, timestamp FROM source_catalog
             WHERE package = $1 AND version = $2 AND key = $3";
        self.run("read a catalog", |tx| {
            tx.row(sql, &[text(&key.package), text(&key.version), text(&key.key)], |row| {
                Ok(StoredCatalog {
                    catalog: row.try_get(0)?,
                    status: row.try_get(1)?,
                    description: row.try_get(2)?,
                    timestamp: row.try_get(3)?,
                })
            })
        })
    }
}
