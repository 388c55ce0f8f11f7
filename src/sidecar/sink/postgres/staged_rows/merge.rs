//! The statements that add staged rows to the target, or merge them by their key.
//!
//! A merged row has the values of the newer record alone: columns that the run does not load become their defaults, as in
//! an inserted row. Columns that no stream has ever loaded belong to the user and keep their values.

use postgres::Client;

use super::{MergeCounts, NullParts, StagedRows};
use crate::sidecar::sink::postgres::column::SEQUENCE;
use crate::sidecar::sink::postgres::definition;
use crate::sidecar::sink::postgres::names::quote;
use crate::sidecar::sink::postgres::session::{Session, SessionError};
use crate::sidecar::sink::postgres::table::{Table, index_expressions};

/// How many rows a table has got in the open transaction, by the server's statistics: only they distinguish
/// the rows that ON CONFLICT has inserted from those that it has updated, at no cost and in all versions.
const INSERTED: &str = "SELECT sum(pg_stat_get_xact_tuples_inserted(part))::bigint
     FROM (SELECT $1::text::regclass::oid UNION SELECT relid::oid FROM pg_partition_tree($1::text::regclass)) AS parts (part)
     WHERE current_setting('track_counts')::boolean";

/// Numbers of rows of the target.
#[derive(Default)]
struct Changed {
    inserted: u64,
    updated: u64,
}

impl StagedRows<'_> {
    /// Adds the rows to the target, or merges them by their key. `count` is the number of those that were not moved before.
    pub fn merge(&self, session: &mut Session, target: &mut Table, count: u64) -> Result<MergeCounts, SessionError> {
        definition::ensure_columns_and_types(session, target, self.columns)?;
        let staging = self.table.qualified_name();
        if self.key.is_empty() {
            session.execute(&format!("{};TRUNCATE {staging}", self.insert(target)))?;
            return Ok(MergeCounts::default());
        }
        let clear = self.delete_all_but_deletions().unwrap_or_else(|| format!("TRUNCATE {staging}"));
        self.with_key(session, target, |client, target, is_unique| {
            let counts = self.merge_rows(client, target, is_unique, count)?;
            client.batch_execute(&clear)?;
            Ok(counts)
        })
    }

    /// Which parts of keys are null in the staged rows.
    pub(super) fn null_parts(&self, client: &mut Client) -> Result<Vec<NullParts>, SessionError> {
        if !self.merge_key.traits.null_keys {
            return Ok(vec![vec![false; self.key.len()]]);
        }
        let parts: Vec<String> = self.key.iter().map(|part| format!("{} IS NULL", part.sql())).collect();
        let query = format!("SELECT DISTINCT ARRAY[{}] FROM {}", parts.join(", "), self.table.qualified_name());
        Ok(client.query(&query, &[])?.iter().map(|row| row.get(0)).collect())
    }

    /// Merges the rows. `count` is the number of those that were not moved before.
    pub(super) fn merge_rows(
        &self,
        client: &mut Client,
        target: &Table,
        is_unique: bool,
        count: u64,
    ) -> Result<MergeCounts, SessionError> {
        let null_parts = self.null_parts(client)?;
        let mut changed = Changed::default();
        for nulls in &null_parts {
            // Without the order the row in the target does not count.
            if let Some(statement) = self.clear_cursors(target, nulls) {
                client.batch_execute(&statement)?;
            }
            if let Some(statement) = self.delete_marked(target, nulls) {
                client.batch_execute(&statement)?;
            }
            if is_unique && !nulls.contains(&true) {
                let before = inserted(client, target)?;
                let both = client.execute(&self.upsert(target, nulls), &[])?;
                // Without statistics all rows count as new.
                let inserted = inserted(client, target)?.zip(before).map_or(both, |(after, before)| after - before);
                changed.inserted += inserted.min(both);
                changed.updated += both.saturating_sub(inserted);
            } else {
                changed.updated += self.update(client, target, nulls)?;
                changed.inserted += client.execute(&self.insert_new(target, nulls), &[])?;
            }
        }
        self.count_merged(client, count, &changed, null_parts.iter().map(|nulls| Some((target, nulls))))
    }

    /// The number of staged rows.
    pub(super) fn count(&self, client: &mut Client) -> Result<u64, SessionError> {
        let query = format!("SELECT count(*) FROM {}", self.table.qualified_name());
        Ok(client.query_one(&query, &[])?.get::<_, i64>(0).cast_unsigned())
    }

    /// Counts what has become of the staged rows of which these were inserted into an empty table.
    pub(super) fn count_left_out(&self, client: &mut Client, inserted: u64) -> Result<MergeCounts, SessionError> {
        if self.key.is_empty() {
            return Ok(MergeCounts::default());
        }
        let (count, changed) = (self.count(client)?, Changed { inserted, updated: 0 });
        self.count_merged(client, count, &changed, std::iter::once(None))
    }

    /// Counts what has become of `count` rows.
    fn count_merged<'t>(
        &self,
        client: &mut Client,
        count: u64,
        changed: &Changed,
        groups: impl Iterator<Item = Option<(&'t Table, &'t NullParts)>>,
    ) -> Result<MergeCounts, SessionError> {
        let mut older = 0;
        if count > changed.inserted + changed.updated {
            for query in groups.filter_map(|group| self.count_older(group)) {
                older += client.query_one(&query, &[])?.get::<_, i64>(0).cast_unsigned();
            }
        }
        Ok(MergeCounts { merged: count.saturating_sub(changed.inserted + older), older })
    }

    pub(super) fn insert(&self, target: &Table) -> String {
        format!("INSERT INTO {} ({}) {}", target.qualified_name(), self.column_list(), self.select())
    }

    fn upsert(&self, target: &Table, nulls: &NullParts) -> String {
        let nulls = Some(nulls).filter(|_| self.merge_key.traits.null_keys);
        let set = self.assignments(target, "EXCLUDED");
        let is_newer = self.is_newer("EXCLUDED").map(|is_newer| format!(" WHERE {is_newer}")).unwrap_or_default();
        let action = if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {set}{is_newer}") };
        format!(
            "INSERT INTO {} AS target ({}) {} ON CONFLICT ({}) DO {action}",
            target.qualified_name(),
            self.column_list(),
            self.select_present(&self.winners(nulls)),
            index_expressions(self.key)
        )
    }

    /// Updates rows with the keys of staged ones. Where several rows have one key, all but one are deleted. Returns the
    /// number of keys.
    fn update(&self, client: &mut Client, target: &Table, nulls: &NullParts) -> Result<u64, SessionError> {
        let mut set = self.assignments(target, "staged");
        if set.is_empty() {
            let column = quote(self.key[0].column());
            set = format!("{column} = staged.{column}");
        }
        let is_newer = self.is_newer("staged").map(|is_newer| format!(" AND {is_newer}")).unwrap_or_default();
        let (name, same_key, key) = (target.qualified_name(), self.same_key(nulls), self.key_list("target"));
        let winners = self.select_present(&self.winners(Some(nulls)));
        let update = format!(
            "WITH updated AS (UPDATE {name} target SET {set} FROM ({winners}) staged WHERE {same_key}{is_newer} \
             RETURNING ROW({key}) AS key) SELECT count(*), count(DISTINCT key) FROM updated"
        );
        let updated = client.query_one(&update, &[])?;
        let (rows, keys): (i64, i64) = (updated.get(0), updated.get(1));
        if rows > keys {
            client.batch_execute(&format!(
                "DELETE FROM {name} WHERE (tableoid, ctid) IN (SELECT tableoid, ctid FROM (SELECT target.tableoid, \
                 target.ctid, row_number() OVER (PARTITION BY {key} ORDER BY target.tableoid, target.ctid) AS place \
                 FROM {name} target WHERE EXISTS (SELECT FROM {} staged WHERE {} AND {same_key})) duplicate WHERE place > 1)",
                self.table.qualified_name(),
                self.has_nulls(nulls)
            ))?;
        }
        Ok(keys.cast_unsigned())
    }

    /// Inserts rows whose keys the target does not have.
    fn insert_new(&self, target: &Table, nulls: &NullParts) -> String {
        let (name, columns) = (target.qualified_name(), self.column_list());
        format!(
            "INSERT INTO {name} ({columns}) SELECT {columns} FROM ({}) staged WHERE NOT EXISTS (SELECT FROM {name} target \
             WHERE {})",
            self.select_present(&self.winners(Some(nulls))),
            self.same_key(nulls)
        )
    }

    /// Deletes rows that staged ones mark as deleted.
    fn delete_marked(&self, target: &Table, nulls: &NullParts) -> Option<String> {
        let is_deletion = self.is_deletion("staged")?;
        let is_newer = self.is_newer("staged").map(|is_newer| format!(" AND {is_newer}")).unwrap_or_default();
        Some(format!(
            "DELETE FROM {} target USING ({}) staged WHERE {} AND ({is_deletion}){is_newer}",
            target.qualified_name(),
            self.winners(Some(nulls)),
            self.same_key(nulls)
        ))
    }

    /// Removes the cursors of rows that an unordered staged row has the key of, so that it wins.
    fn clear_cursors(&self, target: &Table, nulls: &NullParts) -> Option<String> {
        let (cursor, is_unordered) = (self.cursor()?, self.is_unordered("staged")?);
        Some(format!(
            "UPDATE {} target SET {cursor} = NULL FROM {} staged WHERE {} AND {} AND {is_unordered} \
             AND target.{cursor} IS NOT NULL",
            target.qualified_name(),
            self.table.qualified_name(),
            self.same_key(nulls),
            self.has_nulls(nulls)
        ))
    }

    /// Keeps the marks of deletion that have won, so that an older version of their row that arrives later in this run
    /// does not bring it back.
    fn delete_all_but_deletions(&self) -> Option<String> {
        let (cursor, is_deletion) = (self.cursor()?, self.is_deletion("staged")?);
        let (staging, sequence) = (self.table.qualified_name(), quote(SEQUENCE));
        let columns = format!("{}, {sequence}", self.column_list());
        Some(format!(
            "DELETE FROM {staging} WHERE {sequence} NOT IN (SELECT {sequence} FROM ({}) staged WHERE ({is_deletion}) \
             AND staged.{cursor} IS NOT NULL)",
            self.winners_with(&columns, None)
        ))
    }

    /// The assignments of an update.
    fn assignments(&self, target: &Table, source: &str) -> String {
        let is_key = |name: &str| self.key.iter().any(|part| part.is_column() && part.column() == name);
        let loaded = self.columns.iter().map(|column| &column.name).filter(|name| !is_key(name));
        let loaded = loaded.map(|name| format!("{0} = {source}.{0}", quote(name)));
        let unloaded = target.unloaded_columns(self.columns).into_iter().filter(|name| !is_key(name));
        loaded.chain(unloaded.map(|name| format!("{} = DEFAULT", quote(name)))).collect::<Vec<_>>().join(", ")
    }

    /// The condition for a row that is not older than the one in the target.
    fn is_newer(&self, source: &str) -> Option<String> {
        let cursor = self.cursor()?;
        Some(format!("(target.{cursor} IS NULL OR {source}.{cursor} >= target.{cursor})"))
    }
}

/// How many rows the target has got in the open transaction; `None` if the server does not count.
fn inserted(client: &mut Client, target: &Table) -> Result<Option<u64>, SessionError> {
    let count: Option<i64> = client.query_one(INSERTED, &[&target.qualified_name()])?.get(0);
    Ok(count.map(i64::cast_unsigned))
}
