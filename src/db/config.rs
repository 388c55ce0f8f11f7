//! `source_config`: configurations that connectors have renewed, one per package and configuration of a caller.
//!
//! Only syncctl uses this table, so it is in the own schema. A row replaces the configuration of all callers that send the
//! one from which it was made.
//!
//! Earlier versions stored one row per sync: the key is still named `sync_id`, and their rows are used until a newer one
//! replaces them.
//!
//! Earlier versions created it beside the tables of the contract. From there its rows are moved; where that fails, that
//! table stays in use.

use jiff::Timestamp;

use super::own_tables::{OwnSchema, SOURCE_CONFIG as TABLE};
use super::pool::{Attempt, Transaction, text};
use super::text::{clean_json, quote_ident, quote_literal};
use super::{Db, DbError};

/// A configuration that replaces the caller's.
#[derive(Clone)]
pub struct StoredConfig {
    /// A JSON document that contains secrets.
    pub config: String,
    /// When the connector updated it.
    pub timestamp: Timestamp,
}

impl Db {
    /// The last renewal of the configuration whose fingerprint is `given`.
    pub fn stored_config(&self, package: &str, given: &str) -> Result<Option<StoredConfig>, DbError> {
        self.run("read a renewed configuration", |tx| {
            let mut last: Option<StoredConfig> = None;
            for table in Table::all(tx)? {
                let sql = format!(
                    "SELECT config::text, timestamp FROM {} WHERE package = $1 AND given = $2{}
                     ORDER BY timestamp DESC LIMIT 1",
                    table.name, table.condition
                );
                let stored = tx.row(&sql, &[text(&package), text(&given)], |row| {
                    Ok(StoredConfig { config: row.try_get(0)?, timestamp: row.try_get(1)? })
                })?;
                last = last.into_iter().chain(stored).max_by_key(|stored| stored.timestamp);
            }
            Ok(last)
        })
    }

    /// Stores a renewal of the configuration whose fingerprint is `given`. False without a table for it.
    pub fn save_config(&self, package: &str, given: &str, config: &str) -> Result<bool, DbError> {
        let config = clean_json(config);
        let id = format!("{package} {given}");
        self.run("store a renewed configuration", |tx| {
            let Some(table) = Table::all(tx)?.into_iter().next() else { return Ok(false) };
            let Table { name, key, values, condition } = table;
            let sql = format!(
                "WITH replaced AS (DELETE FROM {name} WHERE package = $2 AND given = $3 AND sync_id <> $1{condition})
                 INSERT INTO {name} ({key}, package, given, config, timestamp)
                 VALUES ({values}$1, $2, $3, $4::text::jsonb, clock_timestamp())
                 ON CONFLICT ({key}) DO UPDATE SET config = excluded.config, timestamp = excluded.timestamp"
            );
            tx.execute(&sql, &[text(&id), text(&package), text(&given), text(&config)])?;
            Ok(true)
        })
    }

    /// Moves the configurations that an earlier version, or a sidecar of one, has stored beside the tables of the contract.
    pub fn move_configs(&self) {
        let moved = self.run("move renewed configurations to the own schema", |tx| {
            let Some(own) = tx.own.filter(|own| own.has_configs) else { return Ok(0) };
            if !has_old_table(tx)? {
                return Ok(0);
            }
            let sql = format!(
                "WITH moved AS (DELETE FROM {TABLE} RETURNING sync_id, package, given, config, timestamp)
                 INSERT INTO {} AS stored (results_schema, sync_id, package, given, config, timestamp)
                 SELECT $1, moved.* FROM moved
                 ON CONFLICT (results_schema, sync_id) DO UPDATE SET package = excluded.package,
                   given = excluded.given, config = excluded.config, timestamp = excluded.timestamp
                 WHERE stored.timestamp < excluded.timestamp",
                own.table(TABLE)
            );
            tx.execute(&sql, &[text(&own.results_schema)])
        });
        match moved {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "moved renewed configurations to the schema of syncctl"),
            Err(error) => {
                tracing::warn!(%error, "cannot move the table source_config, which stays in use: the console's Prisma drops it");
            }
        }
    }
}

impl Db {
    /// Creates a view beside the tables of the contract, with the name of the table that was there, if the name is free. A
    /// sidecar of an earlier version reads configurations through it, and no such version creates a table again, which
    /// Prisma would drop with its rows. Prisma does not see views.
    pub(super) fn create_config_view(&self) {
        let created = self.create("create the view of renewed configurations", |tx| {
            let Some(own) = tx.own.filter(|own| own.has_configs && own.name != own.results_schema) else {
                return Ok(());
            };
            let is_taken =
                "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                            WHERE n.nspname = $1 AND c.relname = 'source_config'";
            if tx.exists(is_taken, &[text(&own.results_schema)])? {
                return Ok(());
            }
            let Table { name, condition, .. } = Table::own(own);
            let schema = quote_ident(&own.results_schema);
            tx.batch(&format!(
                "CREATE VIEW {schema}.{TABLE} AS SELECT sync_id, package, given, config, timestamp FROM {name}
                 WHERE TRUE{condition}"
            ))?;
            Ok(())
        });
        if let Err(error) = created {
            // A role that does not own the schema cannot create it, and needs none.
            tracing::debug!(%error, "there is no view of renewed configurations");
        }
    }
}

/// A table with configurations.
struct Table {
    name: String,
    key: &'static str,
    /// The values of the columns before the sync id.
    values: String,
    /// Selects the rows of this installation.
    condition: String,
}

impl Table {
    /// The tables in use, the one for new rows first.
    fn all(tx: &mut Transaction<'_>) -> Attempt<Vec<Self>> {
        let mut tables: Vec<Self> = tx.own.filter(|own| own.has_configs).map(Self::own).into_iter().collect();
        if has_old_table(tx)? {
            let (values, condition) = (String::new(), String::new());
            tables.push(Self { name: TABLE.to_owned(), key: "sync_id", values, condition });
        }
        Ok(tables)
    }

    fn own(own: &OwnSchema) -> Self {
        let schema = quote_literal(&own.results_schema);
        Self {
            name: own.table(TABLE),
            key: "results_schema, sync_id",
            values: format!("{schema}, "),
            condition: format!(" AND results_schema = {schema}"),
        }
    }
}

/// Whether there is a table of an earlier version, which has no column `results_schema`.
fn has_old_table(tx: &mut Transaction<'_>) -> Attempt<bool> {
    tx.exists(
        "SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = to_regclass('source_config') AND c.relkind IN ('r', 'p')
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                           WHERE a.attrelid = c.oid AND a.attname = 'results_schema' AND NOT a.attisdropped)",
        &[],
    )
}
