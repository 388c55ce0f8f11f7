//! Compares the tables of the destination with the model.
//!
//! Which table a stream has and which column a field has is not known beforehand: the first values show it, and it must
//! stay so.

use std::collections::{BTreeMap, BTreeSet};

use postgres::{Client, SimpleQueryMessage};

use super::scenario::{Record, Scenario, Stream, UID};
use super::tables::{Row, Table};
use super::values;

const UNMAPPED: &str = "_unmapped_data";
const GENERATION: &str = "_airbyte_generation_id";
/// Columns that are not fields.
const OWN_COLUMNS: [&str; 3] = [UNMAPPED, GENERATION, "_jitsu_timestamp"];

/// Tables and columns as earlier runs have shown them.
#[derive(Debug, Clone, Default)]
pub struct Known {
    tables: BTreeMap<usize, String>,
    columns: BTreeMap<(usize, String), String>,
}

/// A table of the destination.
struct Found {
    name: String,
    types: BTreeMap<String, String>,
    /// The values that are not null.
    rows: Vec<BTreeMap<String, String>>,
}

/// Compares all tables in the schemas whose names begin with `schema`. `models` are the possible contents of each
/// stream's table; returns the matching ones. `sent` are the records of the last run.
pub fn compare(
    client: &mut Client,
    schema: &str,
    scenario: &Scenario,
    models: Vec<Vec<Table>>,
    sent: &BTreeSet<String>,
    known: &mut Known,
) -> Result<Vec<Table>, String> {
    let found = tables(client, schema)?;
    for table in &found {
        let owners: BTreeSet<usize> = table.rows.iter().filter_map(owner).collect();
        for owner in &owners {
            let known = known.tables.entry(*owner).or_insert_with(|| table.name.clone());
            if *known != table.name {
                return Err(format!("rows of stream {owner} are in {} and in {known}", table.name));
            }
        }
        if owners.len() > 1 || owners.iter().any(|owner| is_owned_by_another(known, *owner, &table.name)) {
            return Err(format!("{} has rows of streams {owners:?}; owners: {:?}", table.name, known.tables));
        }
    }
    let mut matching = Vec::new();
    for (index, candidates) in models.into_iter().enumerate() {
        let table = known.tables.get(&index).and_then(|name| found.iter().find(|table| table.name == *name));
        let mut mismatch = String::new();
        let matched = candidates.into_iter().find(|model| {
            let mut trial = known.clone();
            let compared = compare_rows(index, &scenario.streams[index], table, &model.rows, sent, &mut trial);
            compared.map(|()| *known = trial).map_err(|error| mismatch = error).is_ok()
        });
        matching.push(matched.ok_or_else(|| format!("stream {index} {:?}: {mismatch}", scenario.streams[index].name))?);
    }
    Ok(matching)
}

fn is_owned_by_another(known: &Known, owner: usize, table: &str) -> bool {
    known.tables.iter().any(|(other, name)| *other != owner && name == table)
}

fn compare_rows(
    index: usize,
    stream: &Stream,
    found: Option<&Found>,
    expected: &[Row],
    sent: &BTreeSet<String>,
    known: &mut Known,
) -> Result<(), String> {
    let Some(found) = found else {
        return if expected.is_empty() { Ok(()) } else { Err(format!("no table, expected {} rows", expected.len())) };
    };
    let identity = |row: &BTreeMap<String, String>| {
        let generation = row.get(GENERATION).and_then(|text| text.parse().ok()).unwrap_or_default();
        (row[UID].clone(), generation)
    };
    let expected_identity = |row: &Row| (row.record.uid.clone(), row.generation);
    let mut names: Vec<(String, i64)> = found.rows.iter().map(identity).collect();
    let mut expected_names: Vec<_> = expected.iter().map(expected_identity).collect();
    names.sort_unstable();
    expected_names.sort_unstable();
    if names != expected_names {
        return Err(format!("{} has (record, generation) {names:?}\n  instead of {expected_names:?}", found.name));
    }
    for row in &found.rows {
        let name = identity(row);
        let record = expected.iter().find(|row| expected_identity(row) == name).map(|row| &row.record);
        let record = record.ok_or("no such record")?;
        let mut cells = Cells {
            index,
            is_new: sent.contains(&record.uid),
            types: &found.types,
            row,
            known,
            used: BTreeSet::new(),
            unmapped: BTreeMap::new(),
        };
        cells
            .compare(stream, record)
            .map_err(|why| format!("{} row {row:?}\n  of {types:?}: {why}", found.name, types = found.types))?;
    }
    Ok(())
}

/// The values of one row.
struct Cells<'a> {
    index: usize,
    /// The last run has loaded it: later the types of columns may have changed.
    is_new: bool,
    types: &'a BTreeMap<String, String>,
    row: &'a BTreeMap<String, String>,
    known: &'a mut Known,
    /// The columns whose values were found in the record.
    used: BTreeSet<String>,
    /// Unmapped values that were not found in the record yet.
    unmapped: BTreeMap<String, String>,
}

impl Cells<'_> {
    fn compare(&mut self, stream: &Stream, record: &Record) -> Result<(), String> {
        if let Some(unmapped) = self.row.get(UNMAPPED) {
            self.unmapped = values::members(unmapped).ok_or("unmapped values are no object")?;
        }
        let fields = || stream.fields.iter().zip(&record.values);
        // Fields with a known column first; booleans, which other fields may have as well, last.
        let rank = |name: &str, raw: &str| match self.known.columns.contains_key(&(self.index, name.to_owned())) {
            true => 0,
            false if matches!(raw, "true" | "false") => 2,
            false => 1,
        };
        let mut values: Vec<(u8, &String, &String)> =
            fields().filter_map(|(name, raw)| Some((rank(name, raw.as_ref()?), name, raw.as_ref()?))).collect();
        values.sort_by_key(|(rank, ..)| *rank);
        for (_, name, raw) in values {
            self.compare_value(name, raw).map_err(|why| format!("field {name:?} {raw}: {why}"))?;
        }
        let is_unexplained = |column: &&String| {
            **column != UID && !OWN_COLUMNS.contains(&column.as_str()) && !self.used.contains(*column)
        };
        match self.row.keys().find(is_unexplained) {
            Some(column) => Err(format!("column {column:?} has a value that is not in the record")),
            None if self.unmapped.is_empty() => Ok(()),
            None => Err(format!("unmapped values that are not in the record: {:?}", self.unmapped)),
        }
    }

    /// `path` is the name of a field, or those of nested ones.
    fn compare_value(&mut self, path: &str, raw: &str) -> Result<(), String> {
        if raw == "null" {
            return Ok(());
        }
        let column = self.column_of(path, raw);
        // Objects of undeclared fields are flattened, unless the field had a column for them when the row was loaded.
        let has_column = column.as_ref().is_some_and(|column| self.row.contains_key(column));
        if let Some(members) = values::members(raw).filter(|_| !has_column && !self.has_unmapped(raw)) {
            return members.iter().try_for_each(|(key, raw)| self.compare_value(&format!("{path}\u{1f}{key}"), raw));
        }
        let Some(column) = column else {
            let is_null_and_too_narrow =
                |(column, kind): (&String, &String)| !self.row.contains_key(column) && !values::fits(kind, raw);
            if self.is_new && !self.types.iter().any(is_null_and_too_narrow) {
                return Err("no column has it, and all columns could".to_owned());
            }
            return self.take_unmapped(raw);
        };
        let kind = &self.types[&column];
        match self.row.get(&column) {
            Some(text) if values::holds(kind, text, raw) => {
                self.used.insert(column);
                Ok(())
            }
            None if self.is_new && values::fits(kind, raw) => Err(format!("column {column:?} ({kind}) is null")),
            None => self.take_unmapped(raw),
            Some(text) if values::holds_rounded(text, raw) => {
                self.used.insert(column);
                self.take_unmapped(raw)
            }
            Some(text) => Err(format!("column {column:?} ({kind}) is {text}")),
        }
    }

    /// The known column of a field, or the one that has its value.
    fn column_of(&mut self, path: &str, raw: &str) -> Option<String> {
        let field = (self.index, path.to_owned());
        if let Some(column) = self.known.columns.get(&field) {
            return Some(column.clone());
        }
        let owned: Vec<&String> = self
            .known
            .columns
            .iter()
            .filter(|((index, _), _)| *index == self.index)
            .map(|(_, column)| column)
            .collect();
        let holds = |column: &String, text: &str| values::holds(&self.types[column], text, raw);
        let holds_rounded = |_: &String, text: &str| values::holds_rounded(text, raw) && self.has_unmapped(raw);
        let candidate = |holds: &dyn Fn(&String, &str) -> bool| {
            let is_free = |column: &String| {
                *column != UID
                    && !OWN_COLUMNS.contains(&column.as_str())
                    && !owned.contains(&column)
                    && !self.used.contains(column)
            };
            let mut candidates = self.row.iter().filter(|(column, text)| is_free(column) && holds(column, text));
            candidates.next().map(|(column, _)| column.clone())
        };
        let column = candidate(&holds).or_else(|| candidate(&holds_rounded))?;
        // Other fields may have the same boolean.
        if !matches!(raw, "true" | "false") || column == path {
            self.known.columns.insert(field, column.clone());
        }
        Some(column)
    }

    fn has_unmapped(&self, raw: &str) -> bool {
        self.unmapped.values().any(|value| values::is_same_json(value, raw))
    }

    fn take_unmapped(&mut self, raw: &str) -> Result<(), String> {
        let found =
            self.unmapped.iter().find(|(_, value)| values::is_same_json(value, raw)).map(|(name, _)| name.clone());
        self.unmapped.remove(&found.ok_or("neither a column nor the unmapped values have it")?);
        Ok(())
    }
}

/// The stream of a row.
fn owner(row: &BTreeMap<String, String>) -> Option<usize> {
    row.get(UID)?.strip_prefix('s')?.split('r').next()?.parse().ok()
}

fn tables(client: &mut Client, schema: &str) -> Result<Vec<Found>, String> {
    let query = "SELECT c.oid, format('%I.%I', n.nspname, c.relname)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND starts_with(n.nspname::text, $1) AND NOT starts_with(c.relname::text, '_syncctl')";
    let tables = client.query(query, &[&format!("{schema}_")]).map_err(|error| error.to_string())?;
    tables.iter().map(|row| found(client, row.get(0), row.get(1))).collect()
}

fn found(client: &mut Client, oid: u32, name: String) -> Result<Found, String> {
    let columns = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
         WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped";
    let types = client.query(columns, &[&oid]).map_err(|error| error.to_string())?;
    let types: BTreeMap<String, String> = types.iter().map(|row| (row.get(0), row.get(1))).collect();
    let messages = client.simple_query(&format!("SELECT * FROM {name}")).map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    for message in &messages {
        if let SimpleQueryMessage::Row(row) = message {
            let cell = |at: usize| Some((row.columns()[at].name().to_owned(), row.get(at)?.to_owned()));
            let cells: BTreeMap<String, String> = (0..row.len()).filter_map(cell).collect();
            if !cells.contains_key(UID) {
                return Err(format!("{name} has a row without a record: {cells:?}"));
            }
            rows.push(cells);
        }
    }
    Ok(Found { name, types, rows })
}
