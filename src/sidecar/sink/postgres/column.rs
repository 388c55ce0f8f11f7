//! A column of a table, and the names of the columns that hold no field.

use super::ownership::ColumnOwner;
use super::types::ColumnType;

/// The column of values that no other column can hold.
pub const UNMAPPED: &str = "_unmapped_data";
/// The column of the time when the row was loaded.
pub const TIMESTAMP: &str = "_jitsu_timestamp";
/// The column of the row's generation; the name is Airbyte's.
pub const GENERATION: &str = "_airbyte_generation_id";
/// The column of staging tables that numbers rows in the order of arrival.
pub const SEQUENCE: &str = "_syncctl_sequence";

/// A column that rows are loaded into.
#[derive(Debug, Clone)]
pub struct Column {
    /// Name in the table.
    pub name: String,
    /// Determines how values are encoded.
    pub kind: ColumnType,
    /// Its declaration in a staging table, and in the target if it does not exist there yet.
    pub sql_type: String,
    /// The schema declares documents: a string with the text of one is parsed.
    pub parses_text: bool,
    /// Its type follows the values of the current batch, because neither the schema nor the table determines it.
    pub is_inferred: bool,
    /// Whether it becomes `numeric` when numbers arrive that it cannot hold.
    pub widening: Widening,
    /// What it belongs to.
    pub owner: Option<ColumnOwner>,
}

/// Whether a column becomes `numeric` when numbers arrive that it cannot hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Widening {
    /// Its type is not `bigint`, or another program decides it.
    #[default]
    None,
    /// It is `bigint`, and nothing depends on that.
    Allowed,
    /// It is `bigint`, and this forbids that it changes.
    Forbidden(String),
}

impl Widening {
    /// That of a new column.
    pub fn of_new(kind: ColumnType) -> Self {
        if kind == ColumnType::BIGINT { Self::Allowed } else { Self::None }
    }
}

/// A column of an existing table.
#[derive(Debug, Clone)]
pub struct ExistingColumn {
    /// Name in the table.
    pub name: String,
    /// `None` if no rows can be loaded into it.
    pub kind: Option<ColumnType>,
    /// The type as Postgres formats it.
    pub sql_type: String,
    /// All rows are replaced, and nothing depends on the type: the column gets the type that a new one would have.
    pub is_replaceable: bool,
    /// What forbids that its type is replaced with the rows.
    pub kept_because: Option<String>,
    /// Whether it may become `numeric`.
    pub widening: Widening,
    /// What it belongs to, if that is known.
    pub owner: Option<ColumnOwner>,
}
