//! `source_state`: where the next read of a sync goes on, per stream or as a whole.

use std::borrow::Cow;
use std::collections::BTreeMap;

use postgres::types::Type;

use super::text::{clean, clean_json};
use super::{Db, DbError};

/// The rows that speak of all streams together, each in its own way.
pub(super) const WHOLE: [&str; 2] = ["_GLOBAL_STATE", "_LEGACY_STATE"];

impl Db {
    /// Stores states, all or none. Of two for one stream the last counts.
    ///
    /// A connector that changes the kind of its states (one per stream, or one for all) means the new kind: rows of
    /// another kind go, or an outdated one would be what the next read starts from.
    pub fn save_states(&self, sync_id: &str, states: &[(String, String)]) -> Result<(), DbError> {
        if states.is_empty() {
            return Ok(());
        }
        // A statement may not touch a row twice, and one order for all writers cannot deadlock: hence the map.
        let states: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
            states.iter().map(|(stream, state)| (clean(stream), clean_json(state))).collect();
        let streams: Vec<&str> = states.keys().map(Cow::as_ref).collect();
        let states: Vec<&str> = states.values().map(Cow::as_ref).collect();
        let by_stream = streams.iter().any(|stream| !WHOLE.contains(stream));
        self.run("storing the state of a sync", |session| {
            // Looked for along the way, because there are none but once in the life of a sync.
            let outdated = "sync_id = $1 AND stream <> ALL ($2) AND (stream = ANY ($4) OR NOT $5)";
            let sql = format!(
                "INSERT INTO source_state (sync_id, stream, state, timestamp)
                 SELECT $1, stream, state::jsonb, CURRENT_TIMESTAMP
                 FROM unnest($2, $3) AS new (stream, state)
                 ON CONFLICT (sync_id, stream) DO UPDATE SET state = excluded.state, timestamp = excluded.timestamp
                 RETURNING EXISTS (SELECT FROM source_state WHERE {outdated})"
            );
            let params = [
                (&sync_id as _, Type::TEXT),
                (&streams as _, Type::TEXT_ARRAY),
                (&states as _, Type::TEXT_ARRAY),
                (&WHOLE.as_slice() as _, Type::TEXT_ARRAY),
                (&by_stream as _, Type::BOOL),
            ];
            let row = session.query_opt(&sql, &params)?;
            if row.is_some_and(|row| row.get(0)) {
                session.execute(&format!("DELETE FROM source_state WHERE {outdated}"), &params)?;
            }
            Ok(())
        })
    }

    /// The stored states of a sync: stream and JSON document. `jsonb` has put the keys of objects in an order of its
    /// own.
    pub fn states(&self, sync_id: &str) -> Result<Vec<(String, String)>, DbError> {
        self.run("reading the state of a sync", |session| {
            let rows = session.query(
                "SELECT stream, state::text FROM source_state WHERE sync_id = $1 ORDER BY stream",
                &[(&sync_id, Type::TEXT)],
            )?;
            rows.into_iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
    }

    /// Forgets states of a sync: of these streams, or of all of them, but never those of `except`. The next read starts
    /// there from scratch.
    pub fn clear_states(&self, sync_id: &str, of: Option<&[&str]>, except: &[&str]) -> Result<(), DbError> {
        self.run("clearing the state of a sync", |session| {
            session.execute(
                "DELETE FROM source_state
                 WHERE sync_id = $1 AND ($2 IS NULL OR stream = ANY ($2)) AND stream <> ALL ($3)",
                &[(&sync_id, Type::TEXT), (&of, Type::TEXT_ARRAY), (&except, Type::TEXT_ARRAY)],
            )?;
            Ok(())
        })
    }
}
