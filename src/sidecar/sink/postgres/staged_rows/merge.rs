//! The statements that add staged rows to the target, or merge them by their key.

use super::{MergeCounts, StagedRows};
use crate::sidecar::sink::postgres::definition;
use crate::sidecar::sink::postgres::names::{quote, quoted_list};
use crate::sidecar::sink::postgres::session::{Session, SessionError};
use crate::sidecar::sink::postgres::table::Table;

impl StagedRows<'_> {
    /// Adds the rows to the target, or merges them by their key.
    pub fn merge(&self, session: &mut Session, target: &mut Table) -> Result<MergeCounts, SessionError> {
        definition::ensure_columns(session, target, self.columns)?;
        let is_unique = !self.key.is_empty() && self.ensure_key(session, target)?;
        let mut statements = self.insert_or_merge(target, is_unique);
        statements.extend(["TRUNCATE ", &self.table.qualified_name(), ";"]);
        session.execute(&statements)?;
        Ok(MergeCounts::default())
    }

    /// The statements that add the rows to the target, or merge them.
    pub(super) fn insert_or_merge(&self, target: &Table, is_unique: bool) -> String {
        match is_unique {
            true => self.upsert(target),
            false if self.key.is_empty() => self.insert(target),
            false => self.delete_and_insert(target),
        }
    }

    fn upsert(&self, target: &Table) -> String {
        let set: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !self.key.contains(&column.name))
            .map(|column| format!("{0} = EXCLUDED.{0}", quote(&column.name)))
            .collect();
        let is_newer =
            self.cursor.map(|cursor| format!(" WHERE target.{0} IS NULL OR EXCLUDED.{0} >= target.{0}", quote(cursor)));
        let action = if set.is_empty() {
            "NOTHING".to_owned()
        } else {
            format!("UPDATE SET {}{}", set.join(", "), is_newer.unwrap_or_default())
        };
        format!(
            "INSERT INTO {} AS target ({}) {} ON CONFLICT ({}) DO {action};",
            target.qualified_name(),
            self.column_list(),
            self.select(),
            quoted_list(self.key)
        )
    }

    /// Has the effect of [`upsert`](Self::upsert) on a table in which the key is not unique.
    fn delete_and_insert(&self, target: &Table) -> String {
        let same_key: Vec<String> =
            self.key.iter().map(|name| format!("target.{0} = staged.{0}", quote(name))).collect();
        let (same_key, target_name) = (same_key.join(" AND "), target.qualified_name());
        let staging = self.table.qualified_name();
        let delete_older = self.cursor.map(|cursor| {
            format!(
                "DELETE FROM {staging} staged USING {target_name} target WHERE {same_key} \
                 AND target.{0} IS NOT NULL AND (staged.{0} IS NULL OR staged.{0} < target.{0});",
                quote(cursor)
            )
        });
        format!(
            "{}DELETE FROM {target_name} target USING {staging} staged WHERE {same_key};{}",
            delete_older.unwrap_or_default(),
            self.insert(target)
        )
    }

    /// Makes the key unique in the target. Returns `false` if that is impossible, so that rows must be merged with DELETE
    /// and INSERT.
    ///
    /// A table with a primary key on other columns that is not ours gets no key.
    pub(super) fn ensure_key(&self, session: &mut Session, target: &mut Table) -> Result<bool, SessionError> {
        if target.has_key(self.key) {
            return Ok(true);
        }
        if target.key_failed {
            return Ok(false);
        }
        if target.has_other_primary_key() {
            target.key_failed = true;
            session
                .warn("the table's primary key is not the stream's: merging with DELETE and INSERT, which is slower");
            return Ok(false);
        }
        definition::drop_stale_key(session, target, self.key)?;
        match definition::add_key(session, target, self.key) {
            Ok(()) => Ok(true),
            Err(error) if error.code().is_some() && !error.is_connection_lost() => {
                target.key_failed = true;
                let why = session.config.reason(&error);
                session.warn(&format!("cannot create the key: {why}: merging with DELETE and INSERT, which is slower"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
