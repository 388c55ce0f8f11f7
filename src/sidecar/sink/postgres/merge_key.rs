//! By what rows are merged: the parts of their key, and the columns that decide between rows with the same key.

use serde::{Deserialize, Serialize};

use super::fields::SEPARATOR;
use super::names::quote;
use crate::db::text::quote_literal;

/// A part of a key: a column, or a field in the documents of a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyPart(String);

impl KeyPart {
    /// A column, or the field at this path in its documents.
    pub fn new(column: &str, path: &[String]) -> Self {
        // No name of a column contains the separator.
        Self(path.iter().fold(column.to_owned(), |part, key| format!("{part}{SEPARATOR}{key}")))
    }

    /// The name of the column.
    pub fn column(&self) -> &str {
        self.0.split(SEPARATOR).next().unwrap_or_default()
    }

    /// Whether it is a column rather than a field in documents.
    pub fn is_column(&self) -> bool {
        !self.0.contains(SEPARATOR)
    }

    /// Identifies it among the parts of keys of a table.
    pub fn identity(&self) -> String {
        self.0.replace(SEPARATOR, ".")
    }

    /// Its SQL expression. A JSON null is a null.
    pub fn sql(&self) -> String {
        self.expression(quote(self.column()))
    }

    /// Its SQL expression for a table with this alias.
    pub fn sql_of(&self, alias: &str) -> String {
        self.expression(format!("{alias}.{}", quote(self.column())))
    }

    fn expression(&self, column: String) -> String {
        if self.is_column() {
            return column;
        }
        let path = self.0.split(SEPARATOR).skip(1);
        let value = path.fold(format!("{column}::jsonb"), |value, key| format!("{value} -> {}", quote_literal(key)));
        format!("nullif({value}, 'null'::jsonb)")
    }
}

/// By what rows are merged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeKey {
    /// The parts of the key; empty: rows are added without merging.
    #[serde(rename = "key")]
    pub parts: Vec<KeyPart>,
    /// Of two rows with the same key, the one with the higher value in this column wins.
    pub cursor: Option<String>,
    /// A row with a value in this column marks that the row with its key was deleted: none of the two stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<String>,
    /// The column of values that did not fit theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmapped: Option<String>,
    /// What the rows may contain.
    #[serde(skip, default = "RowTraits::any")]
    pub traits: RowTraits,
}

/// What rows may contain that the usual statements of a merge do not handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowTraits {
    /// Nulls in their keys.
    pub null_keys: bool,
    /// Cursors that their column cannot hold, or marks of deletion without a cursor: only the order of arrival decides.
    pub unordered: bool,
    /// Marks of deletion.
    pub deletions: bool,
}

impl RowTraits {
    /// Those of unknown rows.
    pub fn any() -> Self {
        Self { null_keys: true, unordered: true, deletions: true }
    }
}
