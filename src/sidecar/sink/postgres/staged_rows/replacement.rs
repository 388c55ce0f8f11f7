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
        definition::ensure_columns_and_types(session, target, self.columns)?;
        if self.key.is_empty() {
            definition::drop_stale_key(session, target, self.key)?;
        }
        let started = Instant::now();
        let delete = format!("DELETE FROM {} WHERE {}", target.qualified_name(), generation::is_below(minimum));
        let mut deleted = 0;
        let replace = |client: &mut Client, target: &Table, is_unique: bool| {
            target.lock_for_run(client)?;
            deleted = client.execute(&delete, &[])?;
            let mut counts = MergeCounts::default();
            if self.table.exists() {
                if self.key.is_empty() {
                    client.batch_execute(&self.insert(target))?;
                } else {
                    let count = self.count(client)?;
                    counts = self.merge_rows(client, target, is_unique, count)?;
                }
                client.batch_execute(&self.drop_staging())?;
            }
            client.batch_execute(drop_obsolete)?;
            Ok(counts)
        };
        let counts = self.with_key(session, target, replace)?;
        if deleted > 0 {
            row_removal::vacuum(session, target, vacuum_timeout(started));
        }
        Ok(counts)
    }

    /// Replaces all rows of the target; whatever depends on it stays. Drops the staging table, and executes
    /// `drop_obsolete`.
    pub fn replace_all(
        &self,
        session: &mut Session,
        target: &mut Table,
        drop_obsolete: &str,
    ) -> Result<MergeCounts, SessionError> {
        self.without_key_if_beyond_index(session, target, |session, target| {
            self.replace_all_once(session, target, drop_obsolete)
        })
    }

    fn replace_all_once(
        &self,
        session: &mut Session,
        target: &mut Table,
        drop_obsolete: &str,
    ) -> Result<MergeCounts, SessionError> {
        let with_nulls = self.has_null_keys(session)?;
        if !target.exists()
            && let Some(counts) = self.create(session, target, with_nulls, drop_obsolete)?
        {
            return Ok(counts);
        }
        self.prepare_definition(session, target, with_nulls)?;
        let with_truncate = |client: &mut Client, target: &Table| {
            client.batch_execute(&self.truncate(target, with_nulls))?;
            let counts = self.insert_staged(client, target)?;
            client.batch_execute(drop_obsolete)?;
            Ok(counts)
        };
        if !target.replace_types(self.columns).is_empty() {
            return execute_exclusively(session, target, with_truncate);
        }
        let started = Instant::now();
        let replaced = session.transaction(|client| {
            target.lock_for_run(client)?;
            let replaced = match RowRemoval::find(client, target, self.columns)? {
                RowRemoval::Delete => {
                    let deleted = client.execute(&format!("DELETE FROM {}", target.qualified_name()), &[])?;
                    (deleted, self.insert_staged(client, target)?)
                }
                RowRemoval::Update { key } => self.update_in_place(client, target, &key)?,
                RowRemoval::Truncate { reason } => return Ok(Err(reason)),
            };
            client.batch_execute(drop_obsolete)?;
            Ok(Ok(replaced))
        });
        let reason = match replaced {
            Ok(Ok((deleted, counts))) => {
                if deleted > 0 {
                    row_removal::vacuum(session, target, vacuum_timeout(started));
                }
                return Ok(counts);
            }
            Ok(Err(reason)) => reason,
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                "the user may not delete its rows".to_owned()
            }
            Err(error) => return Err(error),
        };
        session.warn(&format!("readers wait while all rows are replaced: {reason}"));
        execute_exclusively(session, target, with_truncate)
    }

    /// Moves the rows into the target and drops the staging table, unless the target has rows: then returns `None`.
    pub fn fill_if_empty(
        &self,
        session: &mut Session,
        target: &mut Table,
    ) -> Result<Option<MergeCounts>, SessionError> {
        self.without_key_if_beyond_index(session, target, |session, target| self.fill_if_empty_once(session, target))
    }

    fn fill_if_empty_once(
        &self,
        session: &mut Session,
        target: &mut Table,
    ) -> Result<Option<MergeCounts>, SessionError> {
        let with_nulls = self.has_null_keys(session)?;
        if !target.exists()
            && let Some(counts) = self.create(session, target, with_nulls, "")?
        {
            return Ok(Some(counts));
        }
        if session.transaction(|client| target.has_rows(client, "true"))? {
            return Ok(None);
        }
        self.prepare_definition(session, target, with_nulls)?;
        // No other session can add rows between the check and the commit. Readers go on.
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", target.qualified_name());
        session.transaction(|client| {
            target.lock_for_run(client)?;
            definition::limit_lock_waits(client)?;
            client.batch_execute(&lock)?;
            if target.has_rows(client, "true")? {
                return Ok(None);
            }
            self.insert_staged(client, target).map(Some)
        })
    }

    /// Creates the target with the rows, in one transaction. Returns `None` if another run has created it meanwhile.
    fn create(
        &self,
        session: &mut Session,
        target: &mut Table,
        with_nulls: bool,
        drop_obsolete: &str,
    ) -> Result<Option<MergeCounts>, SessionError> {
        let created = session.transaction(|client| {
            target.lock_for_run(client)?;
            let current = target.inspect_again(client)?;
            if current.exists() {
                return Ok((current, None));
            }
            client.batch_execute(&self.define(&current, with_nulls))?;
            let counts = self.insert_staged(client, target)?;
            client.batch_execute(drop_obsolete)?;
            Ok((current.inspect_again(client)?, Some(counts)))
        })?;
        *target = created.0;
        Ok(created.1)
    }

    /// Gives the target its columns. While it is empty, also their types and the key.
    fn prepare_definition(
        &self,
        session: &mut Session,
        target: &mut Table,
        with_nulls: bool,
    ) -> Result<(), SessionError> {
        definition::ensure_columns(session, target, self.columns)?;
        definition::drop_stale_key(session, target, self.key)?;
        if with_nulls && target.has_own_primary_key(self.key) {
            definition::change(session, target, |current| current.drop_own_keys().unwrap_or_default())?;
        }
        let define_empty =
            |current: &Table| if current.has_pages() { String::new() } else { self.define(current, with_nulls) };
        definition::change(session, target, define_empty)
    }

    /// The statements that define an empty target.
    fn define(&self, target: &Table, with_nulls: bool) -> String {
        let mut statements = target.create_or_widen(self.columns).unwrap_or_default();
        statements.push_str(&target.replace_types(self.columns));
        if self.lacks_key(target) {
            statements.push_str(&target.add_key(self.key, with_nulls));
        }
        statements
    }

    fn lacks_key(&self, target: &Table) -> bool {
        !self.key.is_empty() && !target.key_failed && !target.has_key(self.key) && !target.has_other_primary_key()
    }

    /// The statements that remove rows and replace types while no other session uses the table.
    fn truncate(&self, target: &Table, with_nulls: bool) -> String {
        let key = if self.lacks_key(target) { target.add_key(self.key, with_nulls) } else { String::new() };
        format!("TRUNCATE {};{}{key}", target.qualified_name(), target.replace_types(self.columns))
    }

    /// Inserts the staged rows, one of each key, into an empty target, and drops the staging table.
    fn insert_staged(&self, client: &mut Client, target: &Table) -> Result<MergeCounts, SessionError> {
        if !self.table.exists() {
            return Ok(MergeCounts::default());
        }
        let inserted = client.execute(&self.insert(target), &[])?;
        let counts = self.count_left_out(client, inserted)?;
        client.batch_execute(&self.drop_staging())?;
        Ok(counts)
    }

    fn drop_staging(&self) -> String {
        format!("DROP TABLE {};", self.table.qualified_name())
    }

    /// Replaces the rows so that those whose key stays are never deleted: foreign keys of other tables refer to them.
    /// Returns the number of changed rows, and what has become of the staged ones.
    ///
    /// Values of columns that the stream does not load become their defaults, as in an inserted row.
    fn update_in_place(
        &self,
        client: &mut Client,
        target: &Table,
        key: &[String],
    ) -> Result<(u64, MergeCounts), SessionError> {
        let name = target.qualified_name();
        if !self.table.exists() {
            return Ok((client.execute(&format!("DELETE FROM {name}"), &[])?, MergeCounts::default()));
        }
        let same_key: Vec<String> =
            key.iter().map(|column| format!("staged.{0} = target.{0}", quote(column))).collect();
        let delete = format!(
            "DELETE FROM {name} target WHERE NOT EXISTS (SELECT FROM ({}) staged WHERE {})",
            self.select(),
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
        let deleted = client.execute(&delete, &[])?;
        let inserted = client.execute(&insert, &[])?;
        let counts = self.count_left_out(client, inserted)?;
        client.batch_execute(&self.drop_staging())?;
        Ok((deleted + inserted, counts))
    }
}

/// As long as the replacement took, and a minute at least.
fn vacuum_timeout(started: Instant) -> Duration {
    started.elapsed().max(Duration::from_mins(1))
}

/// Replaces rows in a transaction that locks all others out of the table.
fn execute_exclusively(
    session: &mut Session,
    target: &Table,
    replace: impl Fn(&mut Client, &Table) -> Result<MergeCounts, SessionError>,
) -> Result<MergeCounts, SessionError> {
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", target.qualified_name());
    session.transaction(|client| {
        target.lock_for_run(client)?;
        definition::limit_lock_waits(client)?;
        client.batch_execute(&lock)?;
        replace(client, target)
    })
}
