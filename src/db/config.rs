//! `source_config`: configurations that connectors have renewed while they ran, one per sync.
//!
//! The table is ours alone. A row says what to use instead of the configuration that the caller sent, as long as the
//! caller goes on sending that one.

use jiff::Timestamp;
use postgres::types::Type;

use super::pool::{Fault, Session};
use super::text::clean_json;
use super::{Db, DbError};

/// A configuration that takes the place of the caller's.
#[derive(Clone)]
pub struct StoredConfig {
    /// A JSON document, with secrets in it.
    pub config: String,
    /// When the connector renewed it.
    pub timestamp: Timestamp,
}

impl Db {
    /// What a connector has made of the configuration with this fingerprint.
    pub fn stored_config(&self, sync_id: &str, package: &str, given: &str) -> Result<Option<StoredConfig>, DbError> {
        self.run("reading the kept configuration of a sync", |session| {
            if !has_table(session)? {
                return Ok(None);
            }
            let row = session.query_opt(
                "SELECT config::text, timestamp FROM source_config
                 WHERE sync_id = $1 AND package = $2 AND given = $3",
                &[(&sync_id, Type::TEXT), (&package, Type::TEXT), (&given, Type::TEXT)],
            )?;
            row.map(|row| Ok(StoredConfig { config: row.try_get(0)?, timestamp: row.try_get(1)? })).transpose()
        })
    }

    /// Keeps what a connector has made of the configuration with this fingerprint. False where there is no table for it:
    /// a controller that is not ours makes none.
    pub fn save_config(&self, sync_id: &str, package: &str, given: &str, config: &str) -> Result<bool, DbError> {
        let config = clean_json(config);
        self.run("keeping the configuration of a sync", |session| {
            if !has_table(session)? {
                return Ok(false);
            }
            session.execute(
                "INSERT INTO source_config (sync_id, package, given, config, timestamp)
                 VALUES ($1, $2, $3, $4::text::jsonb, CURRENT_TIMESTAMP)
                 ON CONFLICT (sync_id) DO UPDATE SET package = excluded.package, given = excluded.given,
                   config = excluded.config, timestamp = excluded.timestamp",
                &[
                    (&sync_id as _, Type::TEXT),
                    (&package as _, Type::TEXT),
                    (&given as _, Type::TEXT),
                    (&config.as_ref() as _, Type::TEXT),
                ],
            )?;
            Ok(true)
        })
    }
}

fn has_table(session: &mut Session<'_>) -> Result<bool, Fault> {
    Ok(session.query_opt("SELECT 1 WHERE to_regclass('source_config') IS NOT NULL", &[])?.is_some())
}
