//! Keys of the target: what makes merges fast, where the table allows it.

use postgres::Client;
use postgres::error::SqlState;

use super::StagedRows;
use crate::sidecar::sink::postgres::definition;
use crate::sidecar::sink::postgres::session::{Session, SessionError};
use crate::sidecar::sink::postgres::table::Table;

/// How rows are merged without a key.
const WITHOUT_KEY: &str = "merging without it, which is slower";

impl StagedRows<'_> {
    /// Runs a merge in a transaction: with a unique key if possible, and again without one if a value is too long for an
    /// index.
    pub(super) fn with_key<T>(
        &self,
        session: &mut Session,
        target: &mut Table,
        mut merge: impl FnMut(&mut Client, &Table, bool) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        self.without_key_if_beyond_index(session, target, |session, target| {
            let with_nulls = self.has_null_keys(session)?;
            let is_unique = !self.key.is_empty() && self.ensure_key(session, target, with_nulls)?;
            session.transaction(|client| merge(client, target, is_unique))
        })
    }

    /// Repeats an operation after dropping our key if a value is longer than an entry of an index may be.
    pub(super) fn without_key_if_beyond_index<T>(
        &self,
        session: &mut Session,
        target: &mut Table,
        mut operation: impl FnMut(&mut Session, &mut Table) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        match operation(session, target) {
            Err(error)
                if error.code() == Some(&SqlState::PROGRAM_LIMIT_EXCEEDED)
                    && !self.key.is_empty()
                    && !target.key_failed =>
            {
                if target.exists() {
                    definition::drop_stale_key(session, target, &[])?;
                }
                merge_without_key(session, target, &error);
                operation(session, target)
            }
            done => done,
        }
    }

    /// Whether staged rows have nulls in their keys.
    pub(super) fn has_null_keys(&self, session: &mut Session) -> Result<bool, SessionError> {
        if self.key.is_empty() || !self.merge_key.traits.null_keys || !self.table.exists() {
            return Ok(false);
        }
        let null_parts = session.transaction(|client| self.null_parts(client))?;
        Ok(null_parts.iter().any(|nulls| nulls.contains(&true)))
    }

    /// Makes the key unique in the target. Returns `false` if that is impossible.
    ///
    /// A table with a primary key on other columns that is not ours gets no key.
    pub(super) fn ensure_key(
        &self,
        session: &mut Session,
        target: &mut Table,
        with_nulls: bool,
    ) -> Result<bool, SessionError> {
        let must_allow_nulls = with_nulls && target.has_own_primary_key(self.key);
        if target.has_key(self.key) && !must_allow_nulls {
            return Ok(true);
        }
        if target.key_failed {
            return Ok(false);
        }
        if target.has_other_primary_key() {
            target.key_failed = true;
            session.warn(&format!("the table's primary key is not the stream's: {WITHOUT_KEY}"));
            return Ok(false);
        }
        let dropped = if must_allow_nulls { definition::drop_stale_key(session, target, &[]) } else { Ok(()) };
        definition::drop_stale_key(session, target, self.key)?;
        match dropped.and_then(|()| definition::add_key(session, target, self.key, with_nulls)) {
            Ok(()) => Ok(true),
            Err(error) if error.code().is_some() && !error.is_connection_lost() => {
                merge_without_key(session, target, &error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// From now on rows are merged without a key.
fn merge_without_key(session: &Session, target: &mut Table, error: &SessionError) {
    target.key_failed = true;
    session.warn(&format!("the table has no key: {}: {WITHOUT_KEY}", session.config.reason(error)));
}
