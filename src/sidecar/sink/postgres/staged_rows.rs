//! Moves rows from the staging table to the target: the statements of merges and replacements.
//!
//! Each operation is one transaction.

use postgres::error::SqlState;

use super::generation;
use super::layout::{Column, MergeKey, SEQUENCE};
use super::names::{quote, quoted_list};
use super::session::{Session, SessionError};
use super::table::Table;

/// The rows of a staging table.
#[derive(Clone, Copy)]
pub struct StagedRows<'s> {
    table: &'s Table,
    columns: &'s [Column],
    key: &'s [String],
    cursor: Option<&'s str>,
}

impl<'s> StagedRows<'s> {
    /// The rows of a staging table with these columns.
    pub fn new(table: &'s Table, columns: &'s [Column], merge_key: &'s MergeKey) -> Self {
        Self { table, columns, key: &merge_key.columns, cursor: merge_key.cursor.as_deref() }
    }

    /// Adds the rows to the target, or merges them by their key.
    pub fn merge(&self, session: &mut Session, target: &mut Table) -> Result<(), SessionError> {
        target.ensure_columns(session, self.columns)?;
        let is_unique = !self.key.is_empty() && self.ensure_key(session, target)?;
        let mut statements = self.insert_or_merge(target, is_unique);
        statements.extend(["TRUNCATE ", &self.table.qualified_name(), ";"]);
        session.execute(&statements)
    }

    /// Replaces the rows of generations below `minimum`. Drops the staging table, and executes `drop_obsolete`.
    pub fn replace_generations(
        &self,
        session: &mut Session,
        target: &mut Table,
        minimum: i64,
        drop_obsolete: &str,
    ) -> Result<(), SessionError> {
        if !session.transaction(|client| generation::has_rows_from(client, target, minimum))? {
            return self.replace_all(session, target, drop_obsolete);
        }
        let is_unique = !self.key.is_empty()
            && self.key.iter().all(|name| target.has_column(name))
            && self.ensure_key(session, target)?;
        let mut statements = target.create_or_widen(self.columns).unwrap_or_default();
        let condition = generation::is_below(minimum);
        statements.extend(["DELETE FROM ", &target.qualified_name(), " WHERE ", &condition, ";"]);
        if !is_unique {
            statements.push_str(&target.drop_stale_key(self.key).unwrap_or_default());
        }
        if self.table.exists() {
            statements.push_str(&self.insert_or_merge(target, is_unique));
            statements.extend(["DROP TABLE ", &self.table.qualified_name(), ";"]);
        }
        session.execute(&(statements + drop_obsolete))
    }

    /// Replaces all rows of the target; its grants, views and indexes stay. Drops the staging table, and executes
    /// `drop_obsolete`.
    pub fn replace_all(&self, session: &mut Session, target: &Table, drop_obsolete: &str) -> Result<(), SessionError> {
        session.execute(&(self.fill(target, &format!("TRUNCATE {};", target.qualified_name())) + drop_obsolete))
    }

    /// Moves the rows into the target and drops the staging table, unless the target has rows. Returns whether it did.
    pub fn fill_if_empty(&self, session: &mut Session, target: &Table) -> Result<bool, SessionError> {
        let statements = self.fill(target, "");
        // No other session can add rows between the check and the commit.
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", target.qualified_name());
        session.transaction(|client| {
            if target.exists() {
                client.batch_execute(&lock)?;
                if target.has_rows(client, "true")? {
                    return Ok(false);
                }
            }
            client.batch_execute(&statements)?;
            Ok(true)
        })
    }

    /// The statements that move the rows into a target which is empty after the statement `truncate`.
    fn fill(&self, target: &Table, truncate: &str) -> String {
        let mut statements = target.create_or_widen(self.columns).unwrap_or_default();
        statements.push_str(truncate);
        statements.push_str(&target.replace_types(self.columns));
        statements.push_str(&target.drop_stale_key(self.key).unwrap_or_default());
        if !self.key.is_empty() && !target.has_key(self.key) && !target.has_other_primary_key() {
            statements.push_str(&target.add_primary_key(self.key));
        }
        if self.table.exists() {
            statements.push_str(&self.insert(target));
            statements.extend(["DROP TABLE ", &self.table.qualified_name(), ";"]);
        }
        statements
    }

    fn column_list(&self) -> String {
        quoted_list(self.columns.iter().map(|column| &column.name))
    }

    /// The query for the rows, one of each key.
    fn select(&self) -> String {
        let (columns, staging) = (self.column_list(), self.table.qualified_name());
        if self.key.is_empty() {
            return format!("SELECT {columns} FROM {staging}");
        }
        let key = quoted_list(self.key);
        let cursor = self.cursor.map(|cursor| format!("{} DESC NULLS LAST, ", quote(cursor))).unwrap_or_default();
        format!("SELECT DISTINCT ON ({key}) {columns} FROM {staging} ORDER BY {key}, {cursor}{} DESC", quote(SEQUENCE))
    }

    /// The statements that add the rows to the target, or merge them.
    fn insert_or_merge(&self, target: &Table, is_unique: bool) -> String {
        match is_unique {
            true => self.upsert(target),
            false if self.key.is_empty() => self.insert(target),
            false => self.delete_and_insert(target),
        }
    }

    fn insert(&self, target: &Table) -> String {
        format!("INSERT INTO {} ({}) {};", target.qualified_name(), self.column_list(), self.select())
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
    fn ensure_key(&self, session: &mut Session, target: &mut Table) -> Result<bool, SessionError> {
        if target.has_key(self.key) {
            return Ok(true);
        }
        if target.key_failed {
            return Ok(false);
        }
        if target.has_other_primary_key() {
            target.key_failed = true;
            tracing::warn!(table = %session.subject, "the primary key differs from the stream's: merging with DELETE and INSERT");
            return Ok(false);
        }
        let drop_stale = target.drop_stale_key(self.key).unwrap_or_default();
        let mut primary = true;
        let mut added = session.execute(&format!("{drop_stale}{}", target.add_primary_key(self.key)));
        if added.as_ref().is_err_and(|error| error.code() == Some(&SqlState::NOT_NULL_VIOLATION)) {
            primary = false;
            added = session.execute(&format!("{drop_stale}{}", target.add_unique_index(self.key)));
        }
        match added {
            Ok(()) => {
                target.record_key(self.key, primary);
                Ok(true)
            }
            Err(error) if error.code().is_some() && !error.is_connection_lost() && !error.is_lock_timeout() => {
                let error = session.sink_error(&error);
                target.key_failed = true;
                tracing::warn!(%error, "cannot create the primary key: merging with DELETE and INSERT");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
