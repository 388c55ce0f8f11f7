//! The columns of a stream: which field maps to which column.
//!
//! A field keeps its column while the stream is open, and columns are only added at the end, so that a number of columns
//! identifies them. Fields never share a column: `column_names` decides which one gets which name. Declared fields come
//! first, in the schema's order.

use std::collections::HashMap;

use super::airbyte_columns::{self, AirbyteColumns, EXTRACTED_AT, META, RAW_ID};
use super::column::{Column, ExistingColumn, GENERATION, SEQUENCE, TIMESTAMP, UNMAPPED, Widening};
use super::column_names::ColumnNames;
use super::fields::{FieldId, FieldTree, Mapping, ROOT, SEPARATOR};
use super::merge_key::{KeyPart, MergeKey, RowTraits};
use super::ownership::ColumnOwner;
use super::row_budget::RowBudget;
use super::types::ColumnType;
use crate::sidecar::sink::field_type::FieldType;
use crate::sidecar::sink::{StreamSpec, WriteMode};
use crate::task::CdcDeletion;

/// The field in which CDC sources mark deleted rows.
const DELETED_AT: &str = "_ab_cdc_deleted_at";

/// Postgres allows 1600 columns, counting dropped ones. Further declared fields go to [`UNMAPPED`].
const MAX_COLUMNS: usize = 1200;
/// No columns for fields are added to a table with this many columns.
const MAX_TABLE_COLUMNS: usize = 1500;
/// No columns for undeclared fields are added beyond this number of columns: a row must fit into a page of 8 KiB, in
/// which a long value takes at least 18 bytes.
const MAX_UNDECLARED_COLUMNS: usize = 400;

/// A field that decides how rows are merged.
#[derive(Debug)]
struct NamedField {
    identity: String,
    /// The path of the value in its documents; empty if the field itself has the value.
    path: Vec<String>,
    /// Its column, once a value was seen.
    column: Option<usize>,
}

impl NamedField {
    fn new(path: &[String]) -> Self {
        Self { identity: path.join(&SEPARATOR.to_string()), path: Vec::new(), column: None }
    }

    /// The field at the beginning of the path, whose documents have the value.
    fn with_documents(path: &[String]) -> Option<Self> {
        let (first, path) = path.split_first()?;
        Some(Self { identity: first.clone(), path: path.to_vec(), column: None })
    }
}

/// The columns of a stream.
#[derive(Debug)]
pub struct Layout {
    /// The fields that map to the columns.
    pub fields: FieldTree,
    /// In the order of a row's fields.
    pub columns: Vec<Column>,
    existing: HashMap<String, ExistingColumn>,
    names: ColumnNames,
    /// The number of columns whose names are final, because a chunk has been sent.
    sealed: usize,
    /// The column of [`UNMAPPED`], once it was needed.
    pub unmapped: Option<usize>,
    /// The column of [`TIMESTAMP`], if requested.
    pub timestamp: Option<usize>,
    /// The column of [`GENERATION`], if rows have one and the table can hold it.
    pub generation: Option<usize>,
    /// The other columns of Airbyte's destination.
    pub airbyte: AirbyteColumns,
    /// The number of columns of metadata, which come first. That of [`UNMAPPED`] is not among them.
    pub metadata_columns: usize,
    /// Some columns are inferred.
    pub has_inferred: bool,
    /// What the user should know of the types of columns since this was last taken: sentence fragments.
    pub type_warnings: Vec<String>,
    /// Columns have other types since the loader got them.
    pub types_changed: bool,
    /// The number of columns that the table does not have yet.
    added: usize,
    key: Vec<NamedField>,
    cursor: Option<NamedField>,
    /// The field that marks rows as deleted, if such rows are deleted.
    deletion: Option<NamedField>,
}

impl Layout {
    /// Maps the declared fields of a stream, given the columns of its table.
    pub fn new(spec: &StreamSpec, existing: impl IntoIterator<Item = ExistingColumn>) -> Self {
        let existing: HashMap<String, ExistingColumn> =
            existing.into_iter().map(|column| (column.name.clone(), column)).collect();
        let owners = existing.values().map(|column| (column.name.clone(), column.owner.clone()));
        let mut layout = Self {
            fields: FieldTree::new(),
            columns: Vec::new(),
            names: ColumnNames::new(owners, &[UNMAPPED, SEQUENCE], spec.to_same_case),
            sealed: 0,
            existing,
            unmapped: None,
            timestamp: None,
            generation: None,
            airbyte: AirbyteColumns::default(),
            metadata_columns: 0,
            has_inferred: false,
            type_warnings: Vec::new(),
            types_changed: false,
            added: 0,
            key: Vec::new(),
            cursor: None,
            deletion: None,
        };
        let declared = spec.json_schema.get("properties").and_then(serde_json::Value::as_object);
        let is_declared = |key: &str| declared.is_some_and(|fields| fields.contains_key(key));
        // Declared objects are stored as documents, which have no columns for a path into them.
        let is_column = |path: &[String]| path.len() == 1 || path.first().is_some_and(|first| !is_declared(first));
        if spec.mode != WriteMode::Append {
            let named = |path: &Vec<String>| {
                if is_column(path) { Some(NamedField::new(path)) } else { NamedField::with_documents(path) }
            };
            layout.key = spec.primary_key.iter().filter_map(named).collect();
        }
        layout.cursor = is_column(&spec.cursor).then(|| NamedField::new(&spec.cursor));
        let deletes = spec.cdc_deletion == Some(CdcDeletion::Hard) && layout.has_key();
        layout.deletion = deletes.then(|| NamedField::new(&[DELETED_AT.to_owned()]));
        if spec.add_meta {
            let name = layout.names.of_metadata(TIMESTAMP, |_| true);
            let add = |name| layout.add(name, ColumnOwner::Metadata, ColumnType::TIMESTAMPTZ, usize::MAX);
            layout.timestamp = name.and_then(add);
        }
        layout.airbyte = AirbyteColumns {
            raw_id: layout.add_airbyte(RAW_ID, spec),
            extracted_at: layout.add_airbyte(EXTRACTED_AT, spec),
            meta: layout.add_airbyte(META, spec),
        };
        if spec.generation.id > 0 || layout.airbyte.any() && layout.has_airbyte(GENERATION, spec) {
            // Statements name it.
            let name = layout.names.of_metadata(GENERATION, |name| name == GENERATION);
            let add = |name| layout.add(name, ColumnOwner::Metadata, ColumnType::BIGINT, usize::MAX);
            layout.generation = name.and_then(add);
        }
        layout.metadata_columns = layout.columns.len();
        let keys: Vec<&str> = declared.into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        let names = layout.names.of_declared(&keys);
        for ((key, schema), name) in declared.into_iter().flatten().zip(names) {
            let (field, declared) = (layout.fields.insert(ROOT, key, true), FieldType::of_schema(schema));
            if let Mapping::Column(column) = layout.map_to_column(field, name, ColumnType::of_field(declared)) {
                let column = &mut layout.columns[column];
                column.parses_text = declared == FieldType::Document && matches!(column.kind, ColumnType::Json { .. });
            }
        }
        // Before other undeclared fields, so that these are always tracked.
        let deleted_at = layout.deletion.is_some().then(|| DELETED_AT.to_owned());
        let tracked = spec.primary_key.iter().chain([&spec.cursor]).filter_map(|path| path.first()).chain(&deleted_at);
        for first in tracked {
            if layout.fields.find(ROOT, first).is_none() {
                layout.fields.insert(ROOT, first, false);
            }
        }
        if spec.mode == WriteMode::Merge {
            layout.map_columns_of_table(spec.primary_key.iter().chain([&spec.cursor]));
        }
        layout
    }

    /// Whether rows have this column of Airbyte's destination: the table has it, or is new and gets it. A field that the
    /// stream declares keeps its column.
    fn has_airbyte(&self, name: &str, spec: &StreamSpec) -> bool {
        let declared = spec.json_schema.get("properties").is_some_and(|fields| fields.get(name).is_some());
        !declared
            && match self.existing.get(name) {
                Some(column) => name == GENERATION || column.kind.is_some_and(|kind| airbyte_columns::fits(name, kind)),
                None => spec.airbyte.in_new_tables && self.existing.is_empty(),
            }
    }

    /// Adds a column of Airbyte's destination if rows have it.
    fn add_airbyte(&mut self, name: &str, spec: &StreamSpec) -> Option<usize> {
        if !self.has_airbyte(name, spec) {
            return None;
        }
        let existing = self.existing.get(name).and_then(|column| column.kind);
        let name = self.names.of_metadata(name, |candidate| candidate == name)?;
        let kind = existing.unwrap_or_else(|| airbyte_columns::new_type(&name));
        self.add(name, ColumnOwner::Metadata, kind, usize::MAX)
    }

    /// Maps undeclared fields to their columns in the table before their first value: without a cursor rows of a batch are
    /// older than those in the table, and without a value of the key they have a null in it.
    fn map_columns_of_table<'p>(&mut self, paths: impl Iterator<Item = &'p Vec<String>>) {
        for path in paths {
            let [key] = path.as_slice() else { continue };
            let Some(field) = self.fields.find(ROOT, key) else { continue };
            if self.fields.get(field).mapping == Mapping::Undecided
                && let Some(name) = self.names.of_field(key)
                && let Some(kind) = self.existing.get(&name).and_then(|column| column.kind)
            {
                self.assign_column(field, kind);
            }
        }
    }

    fn named_fields(&self) -> impl Iterator<Item = &NamedField> {
        self.key.iter().chain(&self.cursor).chain(&self.deletion)
    }

    /// Whether rows have a key.
    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The source's name of the first key field whose column (`None` before its first value) matches.
    pub fn find_key_field(&self, matches: impl Fn(Option<usize>) -> bool) -> Option<String> {
        self.key.iter().find(|field| matches(field.column)).map(|field| field.identity.replace(SEPARATOR, "."))
    }

    /// Why the key cannot be read from the documents of its columns.
    pub fn document_problem(&self) -> Option<String> {
        let is_document = |field: &&NamedField| {
            field.column.is_some_and(|column| matches!(self.columns[column].kind, ColumnType::Json { .. }))
        };
        let field = self.key.iter().filter(|field| !field.path.is_empty()).find(|field| !is_document(field))?;
        Some(format!(
            "the primary key has a path into {:?}, whose column does not have the type jsonb: change its type, or choose \
             another primary key",
            field.identity
        ))
    }

    /// Whether a field of the key matches; its column is `None` before its first value.
    pub fn any_key_field(&self, matches: impl Fn(Option<usize>) -> bool) -> bool {
        self.key.iter().any(|field| matches(field.column))
    }

    /// The column of the cursor, once a value was seen.
    pub fn cursor_column(&self) -> Option<usize> {
        self.cursor.as_ref()?.column
    }

    /// The column of the mark of deletion, once a value was seen, if such rows are deleted.
    pub fn deletion_column(&self) -> Option<usize> {
        self.deletion.as_ref()?.column
    }

    /// By what rows are merged. Uses the columns of an earlier run until all of the key, or the cursor, had a value in
    /// this one.
    pub fn merge_key(&self, earlier: &MergeKey, traits: RowTraits) -> MergeKey {
        let column = |field: &NamedField| field.column.map(|column| &self.columns[column]);
        let part = |field: &NamedField| column(field).map(|column| KeyPart::new(&column.name, &field.path));
        let parts: Option<Vec<KeyPart>> = self.key.iter().map(part).collect();
        let name = |field: &Option<NamedField>| field.as_ref().and_then(column).map(|column| column.name.clone());
        // Values of type json cannot be compared.
        let has_order = self.cursor.as_ref().and_then(column).is_some_and(|column| column.sql_type != "json");
        let is_nested = self.key.iter().any(|field| !field.path.is_empty());
        MergeKey {
            parts: parts.filter(|parts| !parts.is_empty()).unwrap_or_else(|| earlier.parts.clone()),
            cursor: name(&self.cursor).filter(|_| has_order).or_else(|| earlier.cursor.clone()),
            deletion: name(&self.deletion).or_else(|| earlier.deletion.clone()),
            unmapped: self
                .unmapped
                .map(|column| self.columns[column].name.clone())
                .or_else(|| earlier.unmapped.clone()),
            traits: RowTraits {
                null_keys: traits.null_keys || earlier.traits.null_keys || is_nested,
                unordered: traits.unordered || earlier.traits.unordered,
                deletions: traits.deletions || earlier.traits.deletions,
            },
        }
    }

    /// Maps an undeclared field to its column, or to a new one of this type.
    pub fn assign_column(&mut self, field: FieldId, kind: ColumnType) -> Mapping {
        let identity = self.fields.identity(field);
        self.release_name(&identity);
        let name = self.names.of_field(&identity);
        if let Some(name) = &name {
            self.names.take(name);
        }
        self.map_to_column(field, name, kind)
    }

    /// If another undeclared field got a column of exactly this name although its own had to be cleaned, renames that
    /// column, unless the table may have it.
    fn release_name(&mut self, name: &str) {
        let found = self.columns.iter().enumerate().skip(self.sealed).find(|(_, column)| column.name == name);
        let Some((index, Column { owner: Some(ColumnOwner::Field(field)), .. })) = found else { return };
        let is_declared = self.fields.find(ROOT, field).is_some_and(|field| self.fields.get(field).declared);
        if field == name || is_declared || self.existing.contains_key(name) {
            return;
        }
        if let Some(renamed) = self.names.of_field(field) {
            self.names.take(&renamed);
            self.names.release(name);
            self.columns[index].name = renamed;
        }
    }

    fn map_to_column(&mut self, field: FieldId, name: Option<String>, kind: ColumnType) -> Mapping {
        let identity = self.fields.identity(field);
        let is_named = self.named_fields().any(|named| named.identity == identity);
        let max_columns = match self.fields.get(field).declared {
            _ if is_named => usize::MAX,
            true => MAX_COLUMNS,
            false => MAX_UNDECLARED_COLUMNS,
        };
        let owner = ColumnOwner::Field(identity.clone());
        let added = name.and_then(|name| self.add(name, owner, kind, max_columns));
        let mapping = added.map_or(Mapping::Unmapped, Mapping::Column);
        self.fields.map(field, mapping);
        if let Mapping::Column(column) = mapping {
            let existing = self.existing.get(&self.columns[column].name);
            if !self.fields.get(field).declared && existing.is_none_or(|existing| existing.is_replaceable) {
                self.columns[column].is_inferred = true;
                self.has_inferred = true;
            }
            let named = self.key.iter_mut().chain(&mut self.cursor).chain(&mut self.deletion);
            named.filter(|named| named.identity == identity).for_each(|named| named.column = Some(column));
        }
        mapping
    }

    /// From now on the columns have the types that they have now, because the table has them.
    pub fn fix_types(&mut self) {
        if std::mem::take(&mut self.has_inferred) {
            self.columns.iter_mut().for_each(|column| column.is_inferred = false);
        }
    }

    /// A number arrived that a `bigint` column cannot hold. Returns whether the column is `numeric` now.
    pub fn widen(&mut self, index: usize) -> bool {
        let column = &mut self.columns[index];
        let widening = std::mem::take(&mut column.widening);
        let name = &column.name;
        if widening == Widening::Allowed {
            if self.existing.contains_key(name) {
                self.type_warnings
                    .push(format!("column {name:?} becomes numeric, because bigint cannot hold its numbers"));
            }
            (column.kind, column.sql_type) = (ColumnType::NUMERIC, ColumnType::NUMERIC.sql().to_owned());
            self.types_changed = true;
            return true;
        }
        if let Widening::Forbidden(reason) = widening {
            self.type_warnings.push(format!(
                "column {name:?} keeps its type bigint instead of numeric, and numbers that it cannot hold are in {UNMAPPED}: \
                 {reason}"
            ));
        }
        false
    }

    /// The names of all columns are final.
    pub fn seal(&mut self) {
        self.sealed = self.columns.len();
    }

    /// Whether objects of an undeclared field are stored as documents, because the table has a column for them.
    pub fn stores_documents(&self, id: FieldId) -> bool {
        let field = self.fields.get(id);
        match field.mapping {
            // Once flattened, a field stays flattened.
            _ if field.is_flattened() => false,
            Mapping::Column(column) => {
                let column = &self.columns[column];
                matches!(column.kind, ColumnType::Json { .. }) && self.existing.contains_key(&column.name)
            }
            Mapping::Undecided => {
                let name = self.names.of_field(&self.fields.identity(id));
                let existing = name.and_then(|name| self.existing.get(&name)).and_then(|column| column.kind);
                matches!(existing, Some(ColumnType::Json { .. }))
            }
            Mapping::Unmapped => false,
        }
    }

    /// The column of [`UNMAPPED`], added when it is first needed.
    pub fn unmapped_or_add(&mut self) -> Option<usize> {
        if self.unmapped.is_none() {
            let stores_documents = |column: &ExistingColumn| {
                matches!(column.kind, Some(ColumnType::Json { .. } | ColumnType::Text { max_chars: None, .. }))
            };
            let is_usable = |name: &str| self.existing.get(name).is_none_or(stores_documents);
            let name = self.names.of_metadata(UNMAPPED, is_usable);
            self.unmapped = name.and_then(|name| self.add(name, ColumnOwner::Metadata, ColumnType::JSONB, usize::MAX));
        }
        self.unmapped
    }

    /// Adds a column; `None` if the table has it but no rows can be loaded into it, or if there are too many columns.
    fn add(&mut self, name: String, owner: ColumnOwner, kind: ColumnType, max_columns: usize) -> Option<usize> {
        let owner = Some(owner);
        if let Some(ExistingColumn { kind: existing, sql_type, kept_because: Some(reason), .. }) =
            self.existing.get(&name)
            && existing.is_some_and(|existing| existing != kind)
        {
            self.type_warnings
                .push(format!("column {name:?} keeps its type {sql_type} instead of {}: {reason}", kind.sql()));
        }
        let new_type = || (kind, kind.sql().to_owned(), Widening::of_new(kind));
        let (kind, sql_type, widening) = match self.existing.get(&name) {
            Some(existing) if existing.is_replaceable && existing.kind != Some(kind) => new_type(),
            Some(existing) => (existing.kind?, existing.sql_type.clone(), existing.widening.clone()),
            None if max_columns < usize::MAX && self.existing.len() + self.added >= MAX_TABLE_COLUMNS => return None,
            None if self.columns.len() >= max_columns => return None,
            None => {
                self.added += 1;
                new_type()
            }
        };
        let column = Column { name, kind, sql_type, parses_text: false, is_inferred: false, widening, owner };
        self.columns.push(column);
        Some(self.columns.len() - 1)
    }

    /// The budget for the values of one row; `None` if any values fit.
    pub fn row_budget(&self) -> Option<RowBudget> {
        // Besides the key: cursor, mark of deletion, unmapped values, sequence and metadata.
        (self.columns.len() > RowBudget::ALWAYS_FITS)
            .then(|| RowBudget::new(self.key.len() + 4 + self.metadata_columns))
    }

    /// Whether values of the column stay in the row even if others exceed the budget.
    pub fn is_required(&self, column: usize) -> bool {
        let mut named = self.named_fields().filter_map(|field| field.column);
        Some(column) == self.unmapped || named.any(|named| named == column)
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, Mapping, ROOT};
    use crate::airbyte::message::StreamName;
    use crate::sidecar::sink::{Generation, StreamSpec, WriteMode};

    #[test]
    fn key_fields_are_tracked_even_if_their_first_value_comes_late() {
        let spec = StreamSpec {
            name: StreamName::new(None, "s"),
            schema: None,
            table: "s".to_owned(),
            json_schema: serde_json::json!({"properties": {"id": {"type": "integer"}}}),
            mode: WriteMode::Merge,
            primary_key: vec![vec!["late".to_owned()]],
            cursor: Vec::new(),
            cdc_deletion: None,
            to_same_case: false,
            add_meta: false,
            airbyte: crate::sidecar::sink::AirbyteSpec::default(),
            replaces_at_first_commit: false,
            generation: Generation::default(),
        };
        let fields = &mut Layout::new(&spec, []).fields;
        for n in 0..20_000 {
            let id = fields.lookup(ROOT, None, b"id");
            fields.lookup(ROOT, Some(id), format!("u{n}").as_bytes());
            assert_eq!(fields.get(id).mapping, Mapping::Column(0));
        }
        let late = fields.lookup(ROOT, None, b"late");
        assert_eq!(fields.get(late).mapping, Mapping::Undecided);
        let untracked = fields.lookup(ROOT, None, b"another");
        assert_eq!(fields.get(untracked).mapping, Mapping::Unmapped);
    }
}
