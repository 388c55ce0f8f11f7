//! Moves rows from the staging table to the target.
//!
//! Each operation is one transaction. `merge` adds rows or merges them by their key, `replacement` replaces rows.

mod merge;
mod replacement;

use super::layout::{Column, MergeKey, SEQUENCE};
use super::names::{quote, quoted_list};
use super::table::Table;

/// What happened to staged rows that were moved to the target but for those that are rows of it now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeCounts {
    /// As [`LoadCounts::merged`](crate::task::LoadCounts::merged).
    pub merged: u64,
    /// As [`LoadCounts::older`](crate::task::LoadCounts::older).
    pub older: u64,
}

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

    fn insert(&self, target: &Table) -> String {
        format!("INSERT INTO {} ({}) {};", target.qualified_name(), self.column_list(), self.select())
    }
}
