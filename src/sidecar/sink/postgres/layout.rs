//! Which field of a row goes to which column: the columns of one stream, and who claimed them.
//!
//! Fields keep their column for as long as the stream is open; columns are only ever added at the end, so a number of
//! columns says which ones. Two fields never share a column: the second one gets a name with a suffix that depends on
//! the field alone, and declared fields come first, in the schema's order.

use std::collections::{HashMap, HashSet};

use super::names::{self, Kind};
use super::types::ColumnType;
use crate::sidecar::sink::{StreamSpec, WriteMode};

/// Where values go that no column takes.
pub const UNMAPPED: &str = "_unmapped_data";
/// When the source sent the row.
pub const TIMESTAMP: &str = "_jitsu_timestamp";
/// Which refresh brought the row; the name is Airbyte's.
pub const GENERATION: &str = "_airbyte_generation_id";
/// Order of arrival, in staging tables.
pub const SEQUENCE: &str = "_syncctl_sequence";

/// Undeclared objects are flattened down to this depth; below it they are documents.
pub const DEEPEST: usize = 12;
/// Postgres takes 1600 columns, dropped ones included. What is beyond goes to [`UNMAPPED`].
const MOST_COLUMNS: usize = 1200;
/// No column is added for a field to a table that has so many.
const MOST_IN_TABLE: usize = 1500;
/// Fields that are remembered: those of objects whose keys are data never repeat. What is beyond goes to [`UNMAPPED`].
const MOST_FIELDS: usize = 10_000;
/// Undeclared fields make no more columns than this: a row has to fit into a page of 8 KiB, where the least that a long
/// value takes is 18 bytes.
const MOST_UNDECLARED: usize = 400;
/// Parts a field's identity; a control character cannot be confused with anything a name would keep.
pub const SEPARATOR: char = '\u{1f}';

/// Names a table of keys; 0 is the row's own.
pub type KeysIndex = usize;
/// Names a field within its table of keys.
pub type EntryIndex = usize;

/// One column that rows are loaded into.
#[derive(Debug, Clone)]
pub struct Column {
    /// As it is called in the table.
    pub name: String,
    /// How values are checked.
    pub kind: ColumnType,
    /// How it is declared in a staging table, or in the target if it is not there yet.
    pub sql_type: String,
}

/// A column of the table that was there before.
#[derive(Debug, Clone)]
pub struct Existing {
    /// As it is called.
    pub name: String,
    /// `None`: no rows can be loaded into it.
    pub kind: Option<ColumnType>,
    /// As Postgres spells its type.
    pub sql_type: String,
}

/// Where a field's values go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Undeclared, and no value seen so far.
    Open,
    /// Into this column.
    Column(usize),
    /// Into [`UNMAPPED`].
    Unmapped,
}

/// A field.
#[derive(Debug)]
pub struct Entry {
    key: Box<str>,
    /// Where its values go.
    pub place: Place,
    /// Declared in the schema: objects are documents, not flattened.
    pub declared: bool,
    /// The keys of its objects, once it had one.
    children: Option<KeysIndex>,
    /// The field that came after this one the last time: rows repeat their order.
    next: EntryIndex,
}

#[derive(Debug, Default)]
struct Keys {
    /// The path to here, for names.
    prefix: String,
    entries: Vec<Entry>,
    by_key: HashMap<Box<str>, EntryIndex>,
    first: EntryIndex,
    /// The field that all those take turns in that are not remembered.
    passing: Option<EntryIndex>,
}

/// The columns of a stream.
#[derive(Debug)]
pub struct Layout {
    columns: Vec<Column>,
    keys: Vec<Keys>,
    existing: HashMap<String, Existing>,
    taken: HashSet<String>,
    same_case: bool,
    unmapped: Option<usize>,
    timestamp: Option<usize>,
    generation: Option<usize>,
    /// How many columns the table has got since.
    added: usize,
    /// Fields that are remembered.
    fields: usize,
    /// Identities of the key's parts, with their columns.
    key: Vec<(String, Option<usize>)>,
    cursor: Option<(String, Option<usize>)>,
}

impl Layout {
    /// The declared fields of a stream, over the columns that its table has already.
    pub fn new(spec: &StreamSpec, existing: impl IntoIterator<Item = Existing>) -> Self {
        let mut layout = Self {
            columns: Vec::new(),
            keys: vec![Keys::default()],
            existing: existing.into_iter().map(|column| (column.name.clone(), column)).collect(),
            taken: [UNMAPPED, SEQUENCE].into_iter().map(str::to_owned).collect(),
            same_case: spec.to_same_case,
            unmapped: None,
            timestamp: None,
            generation: None,
            added: 0,
            fields: 0,
            key: Vec::new(),
            cursor: None,
        };
        let fields = spec.json_schema.get("properties").and_then(serde_json::Value::as_object);
        let declared = |key: &str| fields.is_some_and(|fields| fields.contains_key(key));
        // Nothing can be looked up in a document without being parsed: a path into one is no key.
        let usable = |path: &[String]| path.len() == 1 || path.first().is_some_and(|first| !declared(first.as_str()));
        // Rows that are only added need none.
        let merges = spec.mode != WriteMode::Append;
        if merges && !spec.primary_key.is_empty() && spec.primary_key.iter().all(|path| usable(path)) {
            layout.key = spec.primary_key.iter().map(|path| (identity(path), None)).collect();
        }
        layout.cursor = Some((identity(&spec.cursor), None)).filter(|_| usable(&spec.cursor));
        if spec.add_meta {
            layout.taken.insert(TIMESTAMP.to_owned());
            layout.timestamp = layout.add(TIMESTAMP.to_owned(), ColumnType::TimestampTz, usize::MAX);
        }
        if spec.generation.id > 0 {
            layout.taken.insert(GENERATION.to_owned());
            layout.generation = layout.add(GENERATION.to_owned(), ColumnType::BIGINT, usize::MAX);
        }
        for (key, schema) in fields.into_iter().flatten() {
            let entry = layout.insert(0, key, true);
            layout.claim(0, entry, ColumnType::of_schema(schema));
        }
        // Before any other undeclared field, so that they are remembered.
        for first in spec.primary_key.iter().chain([&spec.cursor]).filter_map(|path| path.first()) {
            if !layout.keys[0].by_key.contains_key(first.as_str()) {
                layout.insert(0, first, false);
            }
        }
        layout
    }

    /// The columns, in the order of a row's fields.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The column of [`TIMESTAMP`], if wanted.
    pub fn timestamp(&self) -> Option<usize> {
        self.timestamp
    }

    /// The column of [`GENERATION`], if rows carry one and the table can hold it.
    pub fn generation(&self) -> Option<usize> {
        self.generation
    }

    /// Whether rows have a key.
    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// Each part of the key, with its column once a value was seen.
    pub fn key(&self) -> impl Iterator<Item = (usize, Option<usize>)> + '_ {
        self.key.iter().map(|(_, column)| *column).enumerate()
    }

    /// What the source calls a part of the key.
    pub fn key_name(&self, part: usize) -> String {
        self.key.get(part).map(|(identity, _)| identity.replace(SEPARATOR, ".")).unwrap_or_default()
    }

    /// The columns of the key; empty when there is none, or not yet.
    pub fn key_columns(&self) -> Vec<String> {
        let columns: Option<Vec<usize>> = self.key.iter().map(|(_, column)| *column).collect();
        columns.unwrap_or_default().into_iter().map(|column| self.columns[column].name.clone()).collect()
    }

    /// The column of the cursor, if its values can be compared.
    pub fn cursor_column(&self) -> Option<&str> {
        let column = self.cursor.as_ref().and_then(|(_, column)| *column).map(|column| &self.columns[column]);
        column.filter(|column| column.sql_type != "json").map(|column| column.name.as_str())
    }

    /// The field of that name, which need not be UTF-8; `after` is the field before it in this row.
    pub fn lookup(&mut self, keys: KeysIndex, after: Option<EntryIndex>, key: &[u8]) -> EntryIndex {
        let table = &mut self.keys[keys];
        let guess = after.map_or(table.first, |after| table.entries[after].next);
        if table.entries.get(guess).is_some_and(|entry| entry.key.as_bytes() == key) {
            return guess;
        }
        let key = String::from_utf8_lossy(key);
        let found = match table.by_key.get(key.as_ref()).copied() {
            Some(found) => found,
            None if self.fields < MOST_FIELDS => self.insert(keys, &key, false),
            None => self.pass(keys, &key),
        };
        let table = &mut self.keys[keys];
        match after {
            Some(after) => table.entries[after].next = found,
            None => table.first = found,
        }
        found
    }

    /// A field that [`lookup`](Self::lookup) found.
    pub fn entry(&self, keys: KeysIndex, entry: EntryIndex) -> &Entry {
        &self.keys[keys].entries[entry]
    }

    /// The path of a field, its parts joined by [`SEPARATOR`].
    pub fn identity(&self, keys: KeysIndex, entry: EntryIndex) -> String {
        let (prefix, key) = (&self.keys[keys].prefix, &self.keys[keys].entries[entry].key);
        if keys == 0 { key.to_string() } else { format!("{prefix}{SEPARATOR}{key}") }
    }

    /// The keys of a field's objects.
    pub fn children(&mut self, keys: KeysIndex, entry: EntryIndex) -> KeysIndex {
        if let Some(children) = self.keys[keys].entries[entry].children {
            return children;
        }
        let prefix = self.identity(keys, entry);
        self.keys.push(Keys { prefix, ..Keys::default() });
        let children = self.keys.len() - 1;
        self.keys[keys].entries[entry].children = Some(children);
        children
    }

    /// Gives a field its column: the table's, if it has one of the name, else a new one of this type.
    pub fn claim(&mut self, keys: KeysIndex, entry: EntryIndex, kind: ColumnType) -> Place {
        let identity = self.identity(keys, entry);
        let mut name = names::clean(&identity.replace(SEPARATOR, "_"), Kind::Column, self.same_case);
        let suffixed = names::suffixed(&name, &identity);
        // Where an earlier run gave the field a suffix it keeps it, even if it comes first this time.
        if self.taken.contains(&name) || self.existing.contains_key(&suffixed) {
            name = suffixed;
        }
        let place = if self.taken.insert(name.clone()) {
            let needed = self.key.iter().chain(&self.cursor).any(|(part, _)| *part == identity);
            let most = match self.keys[keys].entries[entry].declared {
                _ if needed => usize::MAX,
                true => MOST_COLUMNS,
                false => MOST_UNDECLARED,
            };
            self.add(name, kind, most).map_or(Place::Unmapped, Place::Column)
        } else {
            Place::Unmapped
        };
        self.keys[keys].entries[entry].place = place;
        if let Place::Column(column) = place {
            let parts = self.key.iter_mut().chain(self.cursor.as_mut());
            parts.filter(|(part, _)| *part == identity).for_each(|(_, place)| *place = Some(column));
        }
        place
    }

    /// Whether an undeclared field's objects are documents, because the table has a column for them.
    pub fn takes_documents(&self, keys: KeysIndex, entry: EntryIndex) -> bool {
        let known = &self.keys[keys].entries[entry];
        match known.place {
            // Flattened before: it stays so.
            _ if known.children.is_some() => false,
            Place::Column(column) => {
                let column = &self.columns[column];
                matches!(column.kind, ColumnType::Json { .. }) && self.existing.contains_key(&column.name)
            }
            Place::Open => {
                let name =
                    names::clean(&self.identity(keys, entry).replace(SEPARATOR, "_"), Kind::Column, self.same_case);
                let existing = self.existing.get(&name).and_then(|column| column.kind);
                !self.taken.contains(&name) && matches!(existing, Some(ColumnType::Json { .. }))
            }
            Place::Unmapped => false,
        }
    }

    /// Whether there are more columns than so many.
    pub fn is_wide(&self, columns: usize) -> bool {
        self.columns.len() > columns
    }

    /// Columns whose values stay in the row although others have to go: the key, the cursor, and those of ours.
    pub fn fixed(&self) -> usize {
        self.key.len() + 5
    }

    /// Whether the column is one of them.
    pub fn is_fixed(&self, column: usize) -> bool {
        let mut needed = self.key.iter().chain(&self.cursor).filter_map(|(_, place)| *place);
        Some(column) == self.unmapped || needed.any(|place| place == column)
    }

    /// The column of [`UNMAPPED`], if it was needed before.
    pub fn known_unmapped(&self) -> Option<usize> {
        self.unmapped
    }

    /// The column of [`UNMAPPED`], added when it is first needed.
    pub fn unmapped(&mut self) -> Option<usize> {
        if self.unmapped.is_none() {
            let takes_documents = |column: &Existing| {
                matches!(column.kind, Some(ColumnType::Json { .. } | ColumnType::Text { longest: None }))
            };
            let name = match self.existing.get(UNMAPPED) {
                Some(column) if !takes_documents(column) => names::suffixed(UNMAPPED, UNMAPPED),
                _ => UNMAPPED.to_owned(),
            };
            self.taken.insert(name.clone());
            self.unmapped = self.add(name, ColumnType::JSONB, usize::MAX);
        }
        self.unmapped
    }

    fn add(&mut self, name: String, kind: ColumnType, most: usize) -> Option<usize> {
        let column = match self.existing.get(&name) {
            Some(Existing { kind, sql_type, .. }) => Column { name, kind: (*kind)?, sql_type: sql_type.clone() },
            None if most < usize::MAX && self.existing.len() + self.added >= MOST_IN_TABLE => return None,
            None if self.columns.len() >= most => return None,
            None => {
                self.added += 1;
                Column { name, kind, sql_type: kind.sql().to_owned() }
            }
        };
        self.columns.push(column);
        Some(self.columns.len() - 1)
    }

    /// A field that is not remembered: its values go to [`UNMAPPED`] as they are.
    fn pass(&mut self, keys: KeysIndex, key: &str) -> EntryIndex {
        let table = &mut self.keys[keys];
        if let Some(passing) = table.passing {
            table.entries[passing].key = key.into();
            return passing;
        }
        let index = table.entries.len();
        let (key, place) = (key.into(), Place::Unmapped);
        table.entries.push(Entry { key, place, declared: true, children: None, next: index + 1 });
        table.passing = Some(index);
        index
    }

    fn insert(&mut self, keys: KeysIndex, key: &str, declared: bool) -> EntryIndex {
        self.fields += 1;
        let table = &mut self.keys[keys];
        let index = table.entries.len();
        table.entries.push(Entry { key: key.into(), place: Place::Open, declared, children: None, next: index + 1 });
        table.by_key.insert(key.into(), index);
        index
    }
}

fn identity(path: &[String]) -> String {
    path.join(&SEPARATOR.to_string())
}

#[cfg(test)]
mod tests {
    use super::{Layout, MOST_FIELDS, Place};
    use crate::airbyte::message::StreamName;
    use crate::sidecar::sink::{Generation, StreamSpec, WriteMode};

    #[test]
    fn fields_that_never_repeat_are_not_remembered() {
        let spec = StreamSpec {
            name: StreamName::new(None, "s"),
            schema: None,
            table: "s".to_owned(),
            json_schema: serde_json::json!({"properties": {"id": {"type": "integer"}}}),
            mode: WriteMode::Merge,
            primary_key: vec![vec!["late".to_owned()]],
            cursor: Vec::new(),
            to_same_case: false,
            add_meta: false,
            generation: Generation::default(),
        };
        let mut layout = Layout::new(&spec, []);
        for n in 0..2 * MOST_FIELDS {
            let id = layout.lookup(0, None, b"id");
            let data = layout.lookup(0, Some(id), format!("u{n}").as_bytes());
            assert_eq!(layout.entry(0, id).place, Place::Column(0));
            assert_eq!(layout.identity(0, data), format!("u{n}"));
        }
        assert_eq!(layout.keys[0].entries.len(), MOST_FIELDS + 1);
        let late = layout.lookup(0, None, b"late");
        assert_eq!(layout.entry(0, late).place, Place::Open, "a part of the key is remembered");
    }
}
