//! Which tables are syncctl's own: rows of streams must never get into them.

use super::own_tables;
use super::schema;
use super::{Db, DbError, Target};
use crate::secret::Secret;

/// Where tables are without a search path.
const DEFAULT_SCHEMA: &str = "public";

/// A table of ours as a server shows it, whatever its address and schema.
#[derive(Debug)]
pub struct ReservedTable {
    /// Its name.
    pub name: &'static str,
    /// Columns that it has in all versions and installations.
    pub columns: Vec<&'static str>,
    /// Columns that one of its unique keys has.
    pub key: Vec<&'static str>,
}

/// All tables of ours.
pub fn reserved_tables() -> Vec<ReservedTable> {
    let own = own_tables::TABLES.iter().map(|table| {
        // The other columns depend on the version.
        let first = table.columns.split(' ').next().unwrap_or_default();
        ReservedTable { name: table.name, columns: vec![first], key: vec![first] }
    });
    // As earlier versions created it beside the results.
    let configs = ReservedTable {
        name: own_tables::SOURCE_CONFIG,
        columns: vec!["sync_id", "package", "config"],
        key: vec!["sync_id"],
    };
    let contract = schema::contract_tables();
    contract
        .map(|(name, columns, key)| ReservedTable { name, columns, key: key.to_vec() })
        .chain(own)
        .chain([configs])
        .collect()
}

/// The database of results and the schemas of our tables in it.
#[derive(Debug)]
pub struct ResultsDatabase {
    target: Target,
    results_schema: String,
    own_schema: String,
    /// The schema of rows in a database that has both; there the schemas of syncctl have no other tables.
    rows_schema: Option<String>,
}

impl ResultsDatabase {
    /// The database at this URL. `default_schema` has the tables of results where the URL selects no schema.
    pub fn new(url: &Secret, variable: &str, default_schema: &str, own_schema: &str) -> Result<Self, DbError> {
        let target = Target::parse(url, variable)?;
        let results_schema = target.search_path().and_then(schema::first_schema);
        Ok(Self {
            results_schema: results_schema.unwrap_or_else(|| default_schema.to_owned()),
            own_schema: own_schema.to_owned(),
            rows_schema: None,
            target,
        })
    }

    /// Reserves both schemas of syncctl as a whole, and in this schema of rows the names of results, which would hide each
    /// other for a user whose search path has both.
    pub fn reserve_around(&mut self, rows_schema: &str) {
        self.rows_schema = Some(rows_schema.to_owned());
    }

    /// Whether the address is certainly one of this database. Another spelling may lead to it as well.
    pub fn is_at(&self, target: &Target) -> bool {
        self.target.is_same_database(target)
    }

    /// Whether a table is one of ours.
    pub fn has_reserved(&self, schema: &str, table: &str) -> bool {
        let is_own = own_tables::TABLES.iter().any(|own| own.name == table);
        let is_result = schema::is_contract_table(table) || table == own_tables::SOURCE_CONFIG;
        let is_whole = self.rows_schema.is_some();
        schema == self.results_schema && (is_result || is_whole)
            || schema == self.own_schema && (is_own || is_whole)
            || self.rows_schema.as_deref() == Some(schema) && is_result
    }
}

impl Db {
    /// This database, and which tables of it no stream may get, as far as its address shows.
    pub fn results_database(&self) -> ResultsDatabase {
        let target = self.shared.target.clone();
        let found = self.own_schema().map(|own| own.results_schema.clone());
        let of_path = || target.search_path().and_then(schema::first_schema);
        ResultsDatabase {
            results_schema: found.or_else(of_path).unwrap_or_else(|| DEFAULT_SCHEMA.to_owned()),
            own_schema: self.shared.own_schema_name.clone(),
            rows_schema: None,
            target,
        }
    }
}
