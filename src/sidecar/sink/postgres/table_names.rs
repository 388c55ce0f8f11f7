//! Which table belongs to which stream: the rules for names that are equal once they are cleaned, truncated or in lower
//! case.
//!
//! A table that belongs to a stream stays its table, whatever else is selected. Of the others, a stream whose name needs
//! no cleaning gets the table of its name, in whatever order the streams are; then each stream gets the first of its names
//! that is free.

use std::collections::HashMap;

use postgres::Client;

use super::names::{self, Kind, qualified};
use super::ownership::{MARKS, Marks, TableOwner};
use super::session::SessionError;
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::StreamSpec;

/// A table by schema and name.
pub type TableName = (String, String);

/// The tables of the streams of a sink.
#[derive(Debug, Default)]
pub struct TableNames {
    assigned: HashMap<TableName, TableOwner>,
    warnings: Vec<(TableName, String)>,
}

/// The tables that a stream may get.
struct Candidates {
    owner: TableOwner,
    /// In order.
    tables: Vec<TableName>,
    /// Its names are valid as they are.
    is_exact: bool,
}

impl Candidates {
    fn of(spec: &StreamSpec, default_schema: &str) -> Self {
        let schema = match &spec.schema {
            Some(schema) => names::clean(schema, Kind::Schema, spec.to_same_case),
            None => default_schema.to_owned(),
        };
        let (owner, table) = (TableOwner::of(spec), names::clean(&spec.table, Kind::Table, spec.to_same_case));
        let is_exact = table == spec.table && spec.schema.as_ref().is_none_or(|given| *given == schema);
        // The second one is the only other name in earlier versions.
        let suffixed = names::suffixed(&table, &spec.name.key());
        let again = names::suffixed(&table, &owner.identity());
        let tables = [table, suffixed, again].map(|table| (schema.clone(), table)).to_vec();
        Self { owner, tables, is_exact }
    }
}

/// The table of a stream unless another stream has it.
pub fn first_choice(spec: &StreamSpec, default_schema: &str) -> TableName {
    Candidates::of(spec, default_schema).tables.swap_remove(0)
}

/// Existing tables, and which stream each belongs to, where that is known.
type ExistingTables = HashMap<TableName, Option<TableOwner>>;

impl TableNames {
    /// Assigns tables to streams; the same stream always gets the same table. Returns those that exist without marks.
    pub fn assign(
        &mut self,
        client: &mut Client,
        specs: &[StreamSpec],
        default_schema: &str,
    ) -> Result<Vec<TableName>, SessionError> {
        let candidates: Vec<Candidates> = specs.iter().map(|spec| Candidates::of(spec, default_schema)).collect();
        let existing = find_tables(client, candidates.iter().flat_map(|candidates| &candidates.tables))?;
        let mut tables: Vec<Option<TableName>> = vec![None; candidates.len()];
        for rule in [Self::owned, Self::of_earlier_versions, Self::exact, Self::first_free] {
            for (table, candidates) in tables.iter_mut().zip(&candidates).filter(|(table, _)| table.is_none()) {
                *table = rule(self, candidates, &existing);
                self.assigned.extend(table.clone().map(|table| (table, candidates.owner.clone())));
            }
        }
        for (table, candidates) in tables.iter().zip(&candidates) {
            let stream = candidates.owner.stream().key();
            let Some(table) = table else {
                let reason = format!("all tables that stream {stream:?} could have belong to other streams");
                return Err(SessionError::permanent(reason));
            };
            let cleaned = &candidates.tables[0];
            let owner = self.assigned.get(cleaned).or_else(|| existing.get(cleaned)?.as_ref());
            if let Some(owner) = owner.filter(|_| table != cleaned && !existing.contains_key(table)) {
                let (cleaned, owner) = (display(cleaned), owner.stream().key());
                let text = format!("stream {stream:?} gets it because table {cleaned} belongs to stream {owner:?}");
                self.warnings.push((table.clone(), text));
            }
        }
        let is_unmarked = |table: &TableName| existing.get(table).is_some_and(Option::is_none);
        Ok(tables.into_iter().flatten().filter(is_unmarked).collect())
    }

    /// The stream that has a table in this sink.
    pub fn owner(&self, table: &TableName) -> Option<StreamName> {
        self.assigned.get(table).map(TableOwner::stream)
    }

    /// The table that a stream has in this sink.
    pub fn of_stream(&self, spec: &StreamSpec, default_schema: &str) -> Option<TableName> {
        let Candidates { owner, tables, .. } = Candidates::of(spec, default_schema);
        tables.into_iter().find(|table| self.assigned.get(table) == Some(&owner))
    }

    /// Returns the warnings about names that were assigned since the last call.
    pub fn warnings(&mut self) -> Vec<(TableName, String)> {
        std::mem::take(&mut self.warnings)
    }

    fn owned(&self, candidates: &Candidates, existing: &ExistingTables) -> Option<TableName> {
        let is_own = |owner: &Option<TableOwner>| owner.as_ref() == Some(&candidates.owner);
        let tables = || candidates.tables.iter();
        let assigned = tables().find(|table| self.assigned.get(table) == Some(&candidates.owner));
        assigned
            .or_else(|| tables().find(|table| self.is_unassigned(table) && existing.get(table).is_some_and(is_own)))
            .cloned()
    }

    /// Earlier versions left no marks, but gave suffixes that belong to one stream alone.
    fn of_earlier_versions(&self, candidates: &Candidates, existing: &ExistingTables) -> Option<TableName> {
        let table = candidates.tables.get(1)?;
        (self.is_unassigned(table) && existing.get(table).is_some_and(Option::is_none)).then(|| table.clone())
    }

    fn exact(&self, candidates: &Candidates, existing: &ExistingTables) -> Option<TableName> {
        let table = candidates.tables.first().filter(|_| candidates.is_exact)?;
        self.is_free(table, existing).then(|| table.clone())
    }

    fn first_free(&self, candidates: &Candidates, existing: &ExistingTables) -> Option<TableName> {
        candidates.tables.iter().find(|table| self.is_free(table, existing)).cloned()
    }

    fn is_unassigned(&self, table: &TableName) -> bool {
        !self.assigned.contains_key(table)
    }

    fn is_free(&self, table: &TableName, existing: &ExistingTables) -> bool {
        self.is_unassigned(table) && existing.get(table).is_none_or(Option::is_none)
    }
}

/// Finds those of the tables that exist, in one query.
fn find_tables<'n>(
    client: &mut Client,
    names: impl Iterator<Item = &'n TableName>,
) -> Result<ExistingTables, SessionError> {
    let (schemas, tables): (Vec<&str>, Vec<&str>) =
        names.map(|(schema, table)| (schema.as_str(), table.as_str())).unzip();
    let query = format!(
        "SELECT n.nspname::text, c.relname::text, split_part({MARKS}, E'\\n', 1)
         FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS names (schema, name)) candidate
         JOIN pg_namespace n ON n.nspname = candidate.schema
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = candidate.name"
    );
    let rows = client.query(&query, &[&schemas, &tables])?;
    let table = |row: &postgres::Row| ((row.get(0), row.get(1)), Marks::parse(row.get(2), &HashMap::new()).table);
    Ok(rows.iter().map(table).collect())
}

/// A table in messages.
fn display((schema, table): &TableName) -> String {
    qualified(schema, table)
}
