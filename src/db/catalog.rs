//! `source_catalog`: the last catalog that a configuration gives access to, and how the last refresh went.

use std::time::Duration;

use jiff::Timestamp;
use postgres::types::Type;

use super::text::{clean, clean_json};
use super::{Db, DbError, ResultKey, Writer};
use crate::failure::{Class, Failure};
use crate::task::to_millis;

/// A row of `source_catalog`.
///
/// While a refresh runs and after a failed one, `catalog` is that of an earlier attempt, if there was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCatalog {
    /// The catalog, a JSON document.
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
        self.write_catalog(key, at, "RUNNING", None, None, "stored.timestamp < excluded.timestamp")
    }

    /// Stores a catalog in place of the last one. Never overwrites that of a later refresh.
    pub fn save_catalog(&self, key: &ResultKey, at: Timestamp, catalog: &str) -> Result<(), DbError> {
        self.write_catalog(key, at, "SUCCESS", Some(catalog), None, "stored.timestamp <= excluded.timestamp")
    }

    /// Stores that a refresh failed; keeps a stored catalog. Never overwrites a success of the same refresh or any
    /// outcome of a later one; the controller's word does not overwrite the sidecar's either.
    pub fn fail_catalog(&self, key: &ResultKey, at: Timestamp, description: &str, by: Writer) -> Result<(), DbError> {
        let condition = match by {
            Writer::Sidecar => {
                "stored.timestamp < excluded.timestamp
                 OR stored.timestamp = excluded.timestamp AND stored.status <> 'SUCCESS'"
            }
            Writer::Controller => {
                "stored.timestamp < excluded.timestamp
                 OR stored.timestamp = excluded.timestamp AND stored.status = 'RUNNING'"
            }
        };
        self.write_catalog(key, at, "FAILED", None, Some(description), condition)
    }

    fn write_catalog(
        &self,
        key: &ResultKey,
        at: Timestamp,
        status: &str,
        catalog: Option<&str>,
        description: Option<&str>,
        condition: &str,
    ) -> Result<(), DbError> {
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
        self.run("storing a catalog", |session| {
            let params = [
                (&key.package as _, Type::TEXT),
                (&key.version as _, Type::TEXT),
                (&key.key as _, Type::TEXT),
                (&status as _, Type::TEXT),
                (&catalog.as_deref() as _, Type::TEXT),
                (&description.as_deref() as _, Type::TEXT),
                (&at as _, Type::TIMESTAMPTZ),
            ];
            session.execute(&sql, &params)?;
            Ok(())
        })
    }

    /// Fails the refreshes that say RUNNING and began this long ago, by the clock of the database; keeps stored catalogs.
    /// A late outcome of the same refresh still counts if the sidecar has one. Returns the keys; those of an attempt whose
    /// answer got lost are missing.
    pub fn fail_stale_catalogs(&self, older_than: Duration) -> Result<Vec<ResultKey>, DbError> {
        let minutes = older_than.as_secs().div_ceil(60);
        let text = Failure::new(Class::Abandoned, format!("no outcome within {minutes} minutes")).to_string();
        self.run("failing abandoned refreshes of catalogs", |session| {
            // A row that is locked has a writer, and so is not abandoned.
            let rows = session.query(
                "UPDATE source_catalog SET status = 'FAILED', description = $2
                 WHERE (package, version, key) IN
                   (SELECT package, version, key FROM source_catalog
                    WHERE status = 'RUNNING' AND timestamp < CURRENT_TIMESTAMP - make_interval(secs => $1)
                    ORDER BY package, version, key FOR UPDATE SKIP LOCKED)
                 RETURNING package, version, key",
                &[(&older_than.as_secs_f64(), Type::FLOAT8), (&text, Type::TEXT)],
            )?;
            rows.iter()
                .map(|row| Ok(ResultKey { package: row.try_get(0)?, version: row.try_get(1)?, key: row.try_get(2)? }))
                .collect()
        })
    }

    /// What is stored under a key.
    pub fn catalog(&self, key: &ResultKey) -> Result<Option<StoredCatalog>, DbError> {
        self.run("reading a catalog", |session| {
            let row = session.query_opt(
                "SELECT catalog::text, status, description, timestamp FROM source_catalog
                 WHERE package = $1 AND version = $2 AND key = $3",
                &[(&key.package, Type::TEXT), (&key.version, Type::TEXT), (&key.key, Type::TEXT)],
            )?;
            row.map(|row| {
                Ok(StoredCatalog {
                    catalog: row.try_get(0)?,
                    status: row.try_get(1)?,
                    description: row.try_get(2)?,
                    timestamp: row.try_get(3)?,
                })
            })
            .transpose()
        })
    }
}
