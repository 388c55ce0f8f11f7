//! `source_config`: configurations that connectors have updated during a read, one per sync.
//!
//! Only syncctl uses this table. A row replaces the configuration of the caller as long as the caller sends the one from
//! which it was made.

use jiff::Timestamp;

use super::pool::{Attempt, Transaction, text};
use super::text::clean_json;
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
    /// The connector's update of the configuration whose fingerprint is `given`.
    pub fn stored_config(&self, sync_id: &str, package: &str, given: &str) -> Result<Option<StoredConfig>, DbError> {
        let sql = "SELECT config::text, timestamp FROM source_config
             WHERE sync_id = $1 AND package = $2 AND given = $3";
        self.run("read the stored configuration of a sync", |tx| {
            if !has_table(tx)? {
                return Ok(None);
            }
            tx.row(sql, &[text(&sync_id), text(&package), text(&given)], |row| {
                Ok(StoredConfig { config: row.try_get(0)?, timestamp: row.try_get(1)? })
            })
        })
    }

    /// Stores the connector's update of the configuration whose fingerprint is `given`. False without the table, which
    /// other controllers do not create.
    pub fn save_config(&self, sync_id: &str, package: &str, given: &str, config: &str) -> Result<bool, DbError> {
        let config = clean_json(config);
        let sql = "INSERT INTO source_config (sync_id, package, given, config, timestamp)
             VALUES ($1, $2, $3, $4::text::jsonb, CURRENT_TIMESTAMP)
             ON CONFLICT (sync_id) DO UPDATE SET package = excluded.package, given = excluded.given,
               config = excluded.config, timestamp = excluded.timestamp";
        self.run("store the configuration of a sync", |tx| {
            let exists = has_table(tx)?;
            if exists {
                tx.execute(sql, &[text(&sync_id), text(&package), text(&given), text(&config)])?;
            }
            Ok(exists)
        })
    }
}

fn has_table(tx: &mut Transaction<'_>) -> Attempt<bool> {
    tx.exists("SELECT 1 WHERE to_regclass('source_config') IS NOT NULL", &[])
}
