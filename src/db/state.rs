//! `source_state`: where the next read of a sync goes on, per stream.

use std::borrow::Cow;
use std::collections::BTreeMap;

use postgres::types::Type;

use super::text::{clean, clean_json};
use super::{Db, DbError};

impl Db {
    /// Stores states, all or none. Of two for one stream the last counts.
    pub fn save_states(&self, sync_id: &str, states: &[(String, String)]) -> Result<(), DbError> {
        if states.is_empty() {
            return Ok(());
        }
        // A statement may not touch a row twice, and one order for all writers cannot deadlock: hence the map.
        let states: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
            states.iter().map(|(stream, state)| (clean(stream), clean_json(state))).collect();
        let streams: Vec<&str> = states.keys().map(Cow::as_ref).collect();
        let states: Vec<&str> = states.values().map(Cow::as_ref).collect();
        self.run("storing the state of a sync", |session| {
            session.execute(
                "INSERT INTO source_state (sync_id, stream, state, timestamp)
                 SELECT $1, stream, state::jsonb, CURRENT_TIMESTAMP
                 FROM unnest($2, $3) AS new (stream, state)
                 ON CONFLICT (sync_id, stream) DO UPDATE SET state = excluded.state, timestamp = excluded.timestamp",
                &[(&sync_id, Type::TEXT), (&streams, Type::TEXT_ARRAY), (&states, Type::TEXT_ARRAY)],
            )?;
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

    /// Forgets the states of a sync: the next read starts from scratch.
    pub fn clear_states(&self, sync_id: &str) -> Result<(), DbError> {
        self.run("clearing the state of a sync", |session| {
            session.execute("DELETE FROM source_state WHERE sync_id = $1", &[(&sync_id, Type::TEXT)])?;
            Ok(())
        })
    }
}
