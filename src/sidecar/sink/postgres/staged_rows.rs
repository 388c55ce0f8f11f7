//! Moves rows from the staging table to the target.
//!
//! Each operation is one transaction. `merge` adds rows or merges them by their key, `replacement` replaces rows, `key`
//! makes the key unique in the target.
//!
//! Of rows with the same key one wins: the one with the highest cursor, of these the last one. Two nulls are the same
//! value of a key. A row without a cursor is older than one with a cursor; but if its cursor did not fit the column, or the
//! row is a mark of deletion, the order of arrival decides, so that no update loses for that.

mod key;
mod merge;
mod replacement;

use super::column::{Column, SEQUENCE};
use super::merge_key::{KeyPart, MergeKey};
use super::names::{quote, quoted_list};
use super::table::Table;
use crate::db::text::quote_literal;

/// What happened to staged rows that were moved to the target but for those that are rows of it now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeCounts {
    /// As [`LoadCounts::merged`](crate::task::LoadCounts::merged).
    pub merged: u64,
    /// As [`LoadCounts::older`](crate::task::LoadCounts::older).
    pub older: u64,
}

/// The column of the query for unordered rows.
const LAST_UNORDERED: &str = "_syncctl_last_unordered";

/// The rows of a staging table.
#[derive(Clone, Copy)]
pub struct StagedRows<'s> {
    table: &'s Table,
    columns: &'s [Column],
    merge_key: &'s MergeKey,
    key: &'s [KeyPart],
    /// Rows up to this sequence number were moved before, and are marks of deletion.
    moved: u64,
}

/// Which parts of a key are null.
type NullParts = Vec<bool>;

impl<'s> StagedRows<'s> {
    /// The rows of a staging table with these columns.
    pub fn new(table: &'s Table, columns: &'s [Column], merge_key: &'s MergeKey) -> Self {
        Self { table, columns, merge_key, key: &merge_key.parts, moved: 0 }
    }

    /// Rows up to this sequence number were moved before.
    pub fn after(self, moved: u64) -> Self {
        Self { moved, ..self }
    }

    fn column_list(&self) -> String {
        quoted_list(self.columns.iter().map(|column| &column.name))
    }

    /// The parts of the key, of the table with this alias.
    fn key_list(&self, alias: &str) -> String {
        self.key.iter().map(|part| part.sql_of(alias)).collect::<Vec<_>>().join(", ")
    }

    fn cursor(&self) -> Option<String> {
        self.merge_key.cursor.as_deref().map(quote)
    }

    /// The query for the rows to insert into an empty table: one of each key.
    fn select(&self) -> String {
        if self.key.is_empty() {
            return format!("SELECT {} FROM {}", self.column_list(), self.table.qualified_name());
        }
        self.select_present(&self.winners(None))
    }

    /// The rows of a query for [`winners`](Self::winners) that are no marks of deletion.
    fn select_present(&self, winners: &str) -> String {
        match self.is_deletion("staged") {
            None => winners.to_owned(),
            Some(is_deletion) => {
                format!("SELECT {} FROM ({winners}) staged WHERE NOT ({is_deletion})", self.column_list())
            }
        }
    }

    /// The query for the row of each key that wins against the other staged ones; of keys with these nulls, if given.
    fn winners(&self, null_parts: Option<&NullParts>) -> String {
        self.winners_with(&self.column_list(), null_parts)
    }

    fn winners_with(&self, columns: &str, null_parts: Option<&NullParts>) -> String {
        let key = self.key_list("staged");
        let condition = self.candidates(null_parts);
        format!(
            "SELECT DISTINCT ON ({key}) {columns} FROM {} staged{condition} ORDER BY {key}, {}",
            self.source(),
            self.precedence()
        )
    }

    /// The order of the rows of a key, from the winner on.
    fn precedence(&self) -> String {
        let cursor = self.cursor().map(|cursor| format!("staged.{cursor} DESC NULLS LAST, ")).unwrap_or_default();
        format!("{cursor}staged.{} DESC", quote(SEQUENCE))
    }

    /// The staged rows, with the number of the last unordered row of each key, if there are such rows.
    fn source(&self) -> String {
        let staging = self.table.qualified_name();
        match self.is_unordered("staged") {
            None => staging,
            Some(is_unordered) => format!(
                "(SELECT staged.*, max({sequence}) FILTER (WHERE {is_unordered}) OVER (PARTITION BY {}) AS {} FROM \
                 {staging} staged)",
                self.key_list("staged"),
                quote(LAST_UNORDERED),
                sequence = quote(SEQUENCE)
            ),
        }
    }

    /// The condition for rows of [`source`](Self::source) that can win: those before an unordered row have lost.
    fn candidates(&self, null_parts: Option<&NullParts>) -> String {
        let of_key = null_parts.map(|nulls| self.has_nulls(nulls));
        let in_order = self.is_unordered("staged").map(|_| {
            let sequence = format!("staged.{}", quote(SEQUENCE));
            format!("{sequence} >= coalesce(staged.{}, {sequence})", quote(LAST_UNORDERED))
        });
        let conditions: Vec<String> = of_key.into_iter().chain(in_order).collect();
        if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) }
    }

    /// The condition for staged rows with exactly these nulls in their key.
    fn has_nulls(&self, nulls: &NullParts) -> String {
        let condition = |(part, is_null): (&KeyPart, &bool)| {
            format!("{} IS {}NULL", part.sql_of("staged"), if *is_null { "" } else { "NOT " })
        };
        self.key.iter().zip(nulls).map(condition).collect::<Vec<_>>().join(" AND ")
    }

    /// The condition for a row that marks the one with its key as deleted, if there may be such rows.
    fn is_deletion(&self, alias: &str) -> Option<String> {
        let column = self.merge_key.deletion.as_deref().filter(|_| self.merge_key.traits.deletions)?;
        let did_not_fit = self.did_not_fit(alias, column).map(|condition| format!(" OR {condition}"));
        Some(format!("{alias}.{} IS NOT NULL{}", quote(column), did_not_fit.unwrap_or_default()))
    }

    /// The condition for a row that wins against all before it, if there may be such rows.
    fn is_unordered(&self, alias: &str) -> Option<String> {
        let cursor = self.merge_key.cursor.as_deref().filter(|_| self.merge_key.traits.unordered)?;
        let conditions: Vec<String> =
            self.did_not_fit(alias, cursor).into_iter().chain(self.is_deletion(alias)).collect();
        let is_null = format!("{alias}.{} IS NULL", quote(cursor));
        (!conditions.is_empty()).then(|| format!("({is_null} AND ({}))", conditions.join(" OR ")))
    }

    /// The condition for a row whose value for this column did not fit.
    fn did_not_fit(&self, alias: &str, column: &str) -> Option<String> {
        let unmapped = self.merge_key.unmapped.as_deref()?;
        // Only documents of objects have fields.
        Some(format!("({alias}.{}::jsonb -> {}) IS NOT NULL", quote(unmapped), quote_literal(column)))
    }

    /// The query for the number of rows that have come after a row of their key with a higher cursor: in the staging table
    /// or, if it is given, in the target after the merge, for keys with these nulls. Only the row that the target has after
    /// the merge is compared with: to look before the merge would cost a join in merges that leave nothing out, too.
    fn count_older(&self, target: Option<(&Table, &NullParts)>) -> Option<String> {
        let cursor = self.cursor()?;
        let (sequence, key) = (quote(SEQUENCE), self.key_list("staged"));
        // Ranks can be compared where the type of the cursor has no maximum.
        let ranked = format!(
            "SELECT staged.*, rank() OVER by_cursor AS _syncctl_rank, \
             last_value(staged.{cursor}) OVER (by_cursor ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) \
             AS _syncctl_highest FROM {} staged{} \
             WINDOW by_cursor AS (PARTITION BY {key} ORDER BY staged.{cursor} NULLS FIRST)",
            self.source(),
            self.candidates(target.map(|(_, nulls)| nulls)),
        );
        let compared = format!(
            "SELECT staged.*, max(_syncctl_rank) OVER (PARTITION BY {key} ORDER BY staged.{sequence} \
             ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) > _syncctl_rank AS _syncctl_is_older FROM ({ranked}) staged"
        );
        let (join, is_in_target) = match target {
            None => (String::new(), String::new()),
            Some((target, nulls)) => {
                let join = format!(
                    " LEFT JOIN {} target ON {} AND (target.{cursor} > staged._syncctl_highest \
                     OR target.{cursor} IS NOT NULL AND staged._syncctl_highest IS NULL)",
                    target.qualified_name(),
                    self.same_key(nulls)
                );
                (join, format!(" OR target.{cursor} IS NOT NULL"))
            }
        };
        Some(format!(
            "SELECT count(DISTINCT staged.{sequence}) FROM ({compared}) staged{join} \
             WHERE staged.{sequence} > {} AND (staged._syncctl_is_older{is_in_target})",
            self.moved
        ))
    }

    /// The condition for a row of the target with the same key as a staged row with these nulls in its key.
    ///
    /// Not `IS NOT DISTINCT FROM`, which can use neither hashes nor indexes.
    fn same_key(&self, nulls: &NullParts) -> String {
        let condition = |(part, is_null): (&KeyPart, &bool)| {
            let target = part.sql_of("target");
            if *is_null { format!("{target} IS NULL") } else { format!("{target} = {}", part.sql_of("staged")) }
        };
        self.key.iter().zip(nulls).map(condition).collect::<Vec<_>>().join(" AND ")
    }
}
