//! The statements that replace rows of the target with staged ones.
//!
//! Readers go on meanwhile and see the old rows until the commit, because rows are deleted and inserted rather than
//! truncated, in one transaction that changes no definition. Only a column that gets another type needs TRUNCATE.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use super::{MergeCounts, StagedRows};
use crate::sidecar::sink::postgres::definition;
use crate::sidecar::sink::postgres::generation;
use crate::sidecar::sink::postgres::names::{quote, quoted_list};
use crate::sidecar::sink::postgres::row_removal::{self, RowRemoval};
use crate::sidecar::sink::postgres::session::{Session, SessionError};
use crate::sidecar::sink::postgres::table::Table;

impl StagedRows<'_> {
    /// Replaces the rows of generations below `minimum`. Drops the staging table, and executes `drop_obsolete`.
    pub fn replace_generations(
        &self,
        session: &mut Session,
        target: &mut Table,
        minimum: i64,
        drop_obsolete: &str,
    ) -> Result<MergeCounts, SessionError> {
        if !session.transaction(|client| generation::has_rows_from(client, target, minimum))? {
            return self.replace_all(session, target, drop_obsolete);
        }
        definition::ensure_columns(session, target, self.columns)?;
        let is_unique = !self.key.is_empty() && self.ensure_key(session, target)?;
        if !is_unique {
            definition::drop_stale_key(session, target, self.key)?;
        }
        let started = Instant::now();
        let delete = format!("DELETE FROM {} WHERE {}", target.qualified_name(), generation::is_below(minimum));
        let mut statements = String::new();
        if self.table.exists() {
            statements.push_str(&self.insert_or_merge(target, is_unique));
            statements.push_str(&self.drop_staging());
        }
        statements.push_str(drop_obsolete);
        let deleted = session.transaction(|client| {
            target.lock_for_run(client)?;
            let deleted = client.execute(&delete, &[])?;
            client.batch_execute(&statements)?;
            Ok(deleted)
        })?;
        if deleted > 0 {
            row_removal::vacuum(session, target, vacuum_timeout(started));
        }
        Ok(MergeCounts::default())
    }

    /// Replaces all rows of the target; whatever depends on it stays. Drops the staging table, and executes
    /// `drop_obsolete`.
    pub fn replace_all(
        &self,
        session: &mut Session,
        target: &mut Table,
        drop_obsolete: &str,
    ) -> Result<MergeCounts, SessionError> {
        if !target.exists() && self.create(session, target, drop_obsolete)? {
            return Ok(MergeCounts::default());
        }
        self.prepare_definition(session, target)?;
        let with_truncate = format!("{}{drop_obsolete}", self.truncate_and_insert(target));
        if !target.replace_types(self.columns).is_empty() {
            execute_exclusively(session, target, &with_truncate)?;
            return Ok(MergeCounts::default());
        }
        let started = Instant::now();
        let replaced = session.transaction(|client| {
            target.lock_for_run(client)?;
            let deleted = match RowRemoval::find(client, target, self.columns)? {
                RowRemoval::Delete => {
                    let deleted = client.execute(&format!("DELETE FROM {}", target.qualified_name()), &[])?;
                    client.batch_execute(&self.insert_staged(target))?;
                    deleted
                }
                RowRemoval::Update { key } => self.update_in_place(client, target, &key)?,
                RowRemoval::Truncate { reason } => return Ok(Err(reason)),
            };
            client.batch_execute(drop_obsolete)?;
            Ok(Ok(deleted))
        });
        let reason = match replaced {
            Ok(Ok(deleted)) => {
                if deleted > 0 {
                    row_removal::vacuum(session, target, vacuum_timeout(started));
                }
                return Ok(MergeCounts::default());
            }
            Ok(Err(reason)) => reason,
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                "the user may not delete its rows".to_owned()
            }
            Err(error) => return Err(error),
        };
        session.warn(&format!("readers wait while all rows are replaced: {reason}"));
        execute_exclusively(session, target, &with_truncate)?;
        Ok(MergeCounts::default())
    }

    /// Moves the rows into the target and drops the staging table, unless the target has rows: then returns `None`.
    pub fn fill_if_empty(
        &self,
        session: &mut Session,
        target: &mut Table,
    ) -> Result<Option<MergeCounts>, SessionError> {
        if !target.exists() && self.create(session, target, "")? {
            return Ok(Some(MergeCounts::default()));
        }
        if session.transaction(|client| target.has_rows(client, "true"))? {
            return Ok(None);
        }
        self.prepare_definition(session, target)?;
        // No other session can add rows between the check and the commit. Readers go on.
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", target.qualified_name());
        session.transaction(|client| {
            target.lock_for_run(client)?;
            definition::limit_lock_waits(client)?;
            client.batch_execute(&lock)?;
            if target.has_rows(client, "true")? {
                return Ok(None);
            }
            client.batch_execute(&self.insert_staged(target))?;
            Ok(Some(MergeCounts::default()))
        })
    }

    /// Creates the target with the rows, in one transaction. Returns false if another run has created it meanwhile.
    fn create(&self, session: &mut Session, target: &mut Table, drop_obsolete: &str) -> Result<bool, SessionError> {
        let created = session.transaction(|client| {
            target.lock_for_run(client)?;
            let current = target.inspect_again(client)?;
            if current.exists() {
                return Ok((current, false));
            }
            client.batch_execute(&(self.define(&current) + &self.insert_staged(target) + drop_obsolete))?;
            Ok((current.inspect_again(client)?, true))
        })?;
        *target = created.0;
        Ok(created.1)
    }

    /// Gives the target its columns. While it is empty, also their types and the key.
    fn prepare_definition(&self, session: &mut Session, target: &mut Table) -> Result<(), SessionError> {
        definition::ensure_columns(session, target, self.columns)?;
        definition::drop_stale_key(session, target, self.key)?;
        let define_empty = |current: &Table| if current.has_pages() { String::new() } else { self.define(current) };
        definition::change(session, target, define_empty)
    }

    /// The statements that define an empty target.
    fn define(&self, target: &Table) -> String {
        let mut statements = target.create_or_widen(self.columns).unwrap_or_default();
        statements.push_str(&target.replace_types(self.columns));
        if self.lacks_key(target) {
            statements.push_str(&target.add_primary_key(self.key));
        }
        statements
    }

    fn lacks_key(&self, target: &Table) -> bool {
        !self.key.is_empty() && !target.has_key(self.key) && !target.has_other_primary_key()
    }

    /// The statements that replace rows and types while nobody else uses the table.
    fn truncate_and_insert(&self, target: &Table) -> String {
        let key = if self.lacks_key(target) { target.add_primary_key(self.key) } else { String::new() };
        format!(
            "TRUNCATE {};{}{key}{}",
            target.qualified_name(),
            target.replace_types(self.columns),
            self.insert_staged(target)
        )
    }

    /// The statements that insert the staged rows and drop the staging table.
    fn insert_staged(&self, target: &Table) -> String {
        if self.table.exists() { self.insert(target) + &self.drop_staging() } else { String::new() }
    }

    fn drop_staging(&self) -> String {
        format!("DROP TABLE {};", self.table.qualified_name())
    }

    /// Replaces the rows so that those whose key stays are never deleted: foreign keys of other tables refer to them.
    /// Returns the number of changed rows.
    ///
    /// Values of columns that the stream does not load become their defaults, as in an inserted row.
    fn update_in_place(&self, client: &mut Client, target: &Table, key: &[String]) -> Result<u64, SessionError> {
        if !self.table.exists() {
            return Ok(client.execute(&format!("DELETE FROM {}", target.qualified_name()), &[])?);
        }
        let (name, staging) = (target.qualified_name(), self.table.qualified_name());
        let same_key: Vec<String> =
            key.iter().map(|column| format!("staged.{0} = target.{0}", quote(column))).collect();
        let delete = format!(
            "DELETE FROM {name} target WHERE NOT EXISTS (SELECT FROM {staging} staged WHERE {})",
            same_key.join(" AND ")
        );
        let set = target.column_names().filter(|name| !key.contains(name)).map(|name| {
            let is_loaded = self.columns.iter().any(|column| column.name == *name);
            if is_loaded { format!("{0} = EXCLUDED.{0}", quote(name)) } else { format!("{} = DEFAULT", quote(name)) }
        });
        let set: Vec<String> = set.collect();
        let action = if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
        let insert = format!(
            "INSERT INTO {name} AS target ({}) {} ON CONFLICT ({}) DO {action}",
            self.column_list(),
            self.select(),
            quoted_list(key)
        );
        let changed = client.execute(&delete, &[])? + client.execute(&insert, &[])?;
        client.batch_execute(&self.drop_staging())?;
        Ok(changed)
    }
}

/// As long as the replacement took, and a minute at least.
fn vacuum_timeout(started: Instant) -> Duration {
    started.elapsed().max(Duration::from_mins(1))
}

/// Executes statements in a transaction that nobody can use the table in.
fn execute_exclusively(session: &mut Session, target: &Table, statements: &str) -> Result<(), SessionError> {
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", target.qualified_name());
    session.transaction(|client| {
        target.lock_for_run(client)?;
        definition::limit_lock_waits(client)?;
        client.batch_execute(&lock)?;
        Ok(client.batch_execute(statements)?)
    })
}
