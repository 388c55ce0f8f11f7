//! `source_state`: where the next read of a sync resumes, per stream or as a whole.

use std::borrow::Cow;
use std::collections::BTreeMap;

use postgres::types::Type;

use super::pool::text;
use super::text::{clean, clean_json};
use super::{Db, DbError};
use crate::airbyte::state;

impl Db {
    /// Stores states, all or none, and deletes the rows `superseded`. Of two for one stream the last counts.
    ///
    /// A legacy state covers all streams and has a kind of its own: it replaces all others, and any other replaces it.
    pub fn save_states(
        &self,
        sync_id: &str,
        states: &[(String, String)],
        superseded: &[String],
    ) -> Result<(), DbError> {
        if states.is_empty() {
            return Ok(());
        }
        // The map makes streams unique, as a statement may not touch a row twice, and sorts them, so that concurrent
        // writers do not deadlock.
        let states: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
            states.iter().map(|(stream, state)| (clean(stream), storable(state))).collect();
        let streams: Vec<&str> = states.keys().map(Cow::as_ref).collect();
        let states: Vec<&str> = states.values().map(Cow::as_ref).collect();
        let is_legacy = streams.contains(&state::LEGACY_KEY);
        let params = [
            text(&sync_id),
            (&streams as _, Type::TEXT_ARRAY),
            (&states as _, Type::TEXT_ARRAY),
            (&superseded as _, Type::TEXT_ARRAY),
            (&is_legacy as _, Type::BOOL),
        ];
        let outdated = format!(
            "sync_id = $1 AND stream <> ALL ($2) AND ($5 OR stream = ANY ($4) OR stream = '{}')",
            state::LEGACY_KEY
        );
        // There is hardly ever an outdated row, so the same statement returns whether there is anything to delete.
        let insert = format!(
            "INSERT INTO source_state (sync_id, stream, state, timestamp)
             SELECT $1, stream, state::jsonb, CURRENT_TIMESTAMP
             FROM unnest($2, $3) AS new (stream, state)
             ON CONFLICT (sync_id, stream) DO UPDATE SET state = excluded.state, timestamp = excluded.timestamp
             RETURNING EXISTS (SELECT FROM source_state WHERE {outdated})"
        );
        self.run("store the state of a sync", |tx| {
            if tx.row(&insert, &params, |row| row.try_get(0))?.unwrap_or(false) {
                tx.execute(&format!("DELETE FROM source_state WHERE {outdated}"), &params)?;
            }
            Ok(())
        })
    }

    /// The states of a sync: stream and JSON document, in which `jsonb` has reordered the keys of objects.
    pub fn states(&self, sync_id: &str) -> Result<Vec<(String, String)>, DbError> {
        let sql = "SELECT stream, state::text FROM source_state WHERE sync_id = $1 ORDER BY stream";
        self.run("read the state of a sync", |tx| {
            tx.rows(sql, &[text(&sync_id)], |row| Ok((row.try_get(0)?, row.try_get(1)?)))
        })
    }

    /// Deletes states of a sync: those of the streams `of`, or all, but never those of `except`. The next read starts
    /// these streams from the beginning.
    pub fn clear_states(&self, sync_id: &str, of: Option<&[&str]>, except: &[&str]) -> Result<(), DbError> {
        let sql = "DELETE FROM source_state
             WHERE sync_id = $1 AND ($2 IS NULL OR stream = ANY ($2)) AND stream <> ALL ($3)";
        let params = [text(&sync_id), (&of as _, Type::TEXT_ARRAY), (&except as _, Type::TEXT_ARRAY)];
        self.run("clear the state of a sync", |tx| Ok(_ = tx.execute(sql, &params)?))
    }
}

/// The document, in a form that `jsonb` can hold.
fn storable(document: &str) -> Cow<'_, str> {
    if clean_json(document) == document && !state::is_as_text(document) {
        Cow::Borrowed(document)
    } else {
        Cow::Owned(state::as_text(document))
    }
}
