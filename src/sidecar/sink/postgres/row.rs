//! Encodes rows: from the text of a JSON object to a row in COPY's binary format, in one pass over its fields.
//!
//! The first step records where in the text the value of each column is; the second one writes the columns in their
//! order. Nothing is copied in between, and once the columns are known, nothing is allocated.

use std::collections::HashMap;
use std::ops::Range;

use jiff::Timestamp;

use super::airbyte_columns;
use super::changes::{Change, ChangeKind, ChangeReason, describe};
use super::column::{Column, Widening};
use super::copy::{self, Chunk, NULL};
use super::fields::{FieldId, Mapping, ObjectId, ROOT, SEPARATOR};
use super::inference;
use super::json;
use super::layout::Layout;
use super::merge_key::RowTraits;
use super::names;
use super::number::Fit;
use super::object_fields::ObjectFields;
use super::time;
use super::types::ColumnType;
use super::value;
use crate::airbyte::message::Record;
use crate::task::LoadCounts;

/// Undeclared objects are flattened down to this depth; deeper ones are stored as documents.
const MAX_DEPTH: usize = 12;
/// Counts rows that are not objects among the misfits.
const NO_OBJECT: &str = "a row that is not an object";
/// Memory for rows of at least this many bytes is reserved before they are encoded.
const LARGE_ROW: usize = 1 << 20;

/// Why a row cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// It is not an object, and rows are merged.
    #[error("a row is not a JSON object, so it has no primary key")]
    NoObject,
    /// A value of the key would become equal to other values in its column.
    #[error(
        "the value of {field:?}, which is part of the primary key, is {value} that column {column:?} ({sql_type}) \
         cannot hold exactly, so that different keys could become one: change the type of the column to {remedy}, or \
         the primary key of the stream"
    )]
    InexactKey {
        /// The source's name of the field.
        field: String,
        /// What the value is, without its content.
        value: String,
        /// The name of the column.
        column: String,
        /// Its type.
        sql_type: String,
        /// The type that could hold the value.
        remedy: &'static str,
    },
}

/// Encodes the rows of one stream.
pub struct Encoder {
    /// The columns of the stream.
    pub layout: Layout,
    /// The number of the last row, if rows are numbered in a first column.
    pub sequence: Option<u64>,
    /// The generation of the rows; 0: none.
    pub generation: i64,
    /// The encoded field of the generation column.
    generation_field: Vec<u8>,
    /// The number of the sync, for Airbyte's column of it.
    sync_id: i64,
    /// The encoded field of that column for a row without changes.
    meta_field: Vec<u8>,
    /// Where in the text of the current row the value of each column is; empty if it has none.
    values: Vec<Range<usize>>,
    /// Values of the current row without a column: identity of the field or name of the column, and place in the text.
    unmapped: Vec<(String, Range<usize>)>,
    /// Values of the row that was encoded last that their columns do not hold exactly.
    pub changes: Vec<Change>,
    /// The document for the column of unmapped values.
    document: String,
    /// What the rows so far contain.
    pub traits: RowTraits,
    /// Values that did not fit, or were changed, since the counts were last taken.
    pub counts: LoadCounts,
}

impl Encoder {
    /// An encoder for this layout. Rows are numbered after `sequence`, if given, and carry this generation.
    pub fn new(layout: Layout, sequence: Option<u64>, generation: i64, sync_id: i64) -> Self {
        let mut generation_field = Vec::new();
        if let Some(column) = layout.generation {
            value::encode(layout.columns[column].kind, &generation.to_string(), &mut generation_field);
        }
        let mut meta_field = Vec::new();
        if let Some(column) = layout.airbyte.meta {
            let document = airbyte_columns::meta(sync_id, None, &[], &layout.columns);
            value::encode(layout.columns[column].kind, &document, &mut meta_field);
        }
        Self {
            layout,
            sequence,
            generation,
            generation_field,
            sync_id,
            meta_field,
            values: Vec::new(),
            unmapped: Vec::new(),
            changes: Vec::new(),
            document: String::new(),
            traits: RowTraits::default(),
            counts: LoadCounts::default(),
        }
    }

    /// Appends a row to a chunk. An error leaves the chunk unchanged, except for new columns with nulls.
    pub fn push(&mut self, record: &Record<'_>, chunk: &mut Chunk) -> Result<(), RowError> {
        let data = &*record.data;
        self.values.clear();
        self.values.resize(self.layout.columns.len(), 0..0);
        self.unmapped.clear();
        self.changes.clear();
        self.document.clear();
        if data.trim_start().starts_with('{') {
            self.locate_values(data, 0, ROOT, 1);
        } else {
            // Without an object there are no fields: the row itself is the document.
            if self.layout.has_key() {
                return Err(RowError::NoObject);
            }
            self.document.push_str(data.trim());
            self.counts.misfits.add(NO_OBJECT, 1);
        }
        if self.layout.has_inferred {
            self.infer_types(data, chunk);
        }
        chunk.widen(self.layout.columns.len());
        let (start, unmapped) = (chunk.bytes.len(), self.unmapped.len());
        loop {
            match self.write(record, chunk) {
                Ok(None) => {
                    chunk.rows += 1;
                    return Ok(());
                }
                Ok(Some(column)) => {
                    chunk.bytes.truncate(start);
                    self.widen(column, chunk);
                    // The row is written again.
                    self.unmapped.truncate(unmapped);
                    self.changes.clear();
                    self.sequence = self.sequence.map(|sequence| sequence - 1);
                }
                Err(error) => {
                    chunk.bytes.truncate(start);
                    return Err(error);
                }
            }
        }
    }

    /// Makes a `bigint` column `numeric`, and converts the rows of the chunk.
    fn widen(&mut self, index: usize, chunk: &mut Chunk) {
        if self.layout.widen(index) && index < chunk.columns && chunk.rows > 0 {
            let convert = |value: &[u8]| inference::convert(value, ColumnType::BIGINT, ColumnType::NUMERIC);
            chunk.bytes = copy::convert_field(&chunk.bytes, usize::from(self.sequence.is_some()) + index, convert);
        }
    }

    /// Gives all rows of the chunk all columns, and at least one.
    pub fn seal(&mut self, chunk: &mut Chunk) {
        if chunk.rows > 0 && self.sequence.is_none() && self.layout.columns.is_empty() {
            self.layout.unmapped_or_add();
        }
        chunk.widen(self.layout.columns.len());
        self.layout.seal();
    }

    /// Changes the types of inferred columns that the current row does not fit, and converts the rows of the chunk.
    fn infer_types(&mut self, data: &str, chunk: &mut Chunk) {
        let first = usize::from(self.sequence.is_some());
        for (index, column) in self.layout.columns.iter_mut().enumerate() {
            let range = self.values[index].clone();
            if !column.is_inferred || range.is_empty() {
                continue;
            }
            let (from, to) = (column.kind, inference::join(column.kind, &data[range]));
            if from == to {
                continue;
            }
            (column.kind, column.sql_type) = (to, to.sql().to_owned());
            if index < chunk.columns {
                let convert = |value: &[u8]| inference::convert(value, from, to);
                chunk.bytes = copy::convert_field(&chunk.bytes, first + index, convert);
            }
        }
    }

    /// Records where the values of an object are, which starts at `start`.
    fn locate_values(&mut self, data: &str, start: usize, object: ObjectId, depth: usize) {
        let mut after = None;
        for (key, value) in ObjectFields::new(data, start) {
            let field = self.layout.fields.lookup(object, after, &key);
            self.locate_value(data, value, field, depth);
            after = Some(field);
        }
    }

    fn locate_value(&mut self, data: &str, range: Range<usize>, field: FieldId, depth: usize) {
        let raw = &data[range.clone()];
        let known = self.layout.fields.get(field);
        let mut mapping = known.mapping;
        if raw.starts_with('{') && !known.declared && depth < MAX_DEPTH && !self.layout.stores_documents(field) {
            let object = self.layout.fields.children(field);
            return self.locate_values(data, range.start, object, depth + 1);
        }
        if mapping == Mapping::Undecided {
            let Some(kind) = ColumnType::of_value(raw) else { return };
            mapping = self.layout.assign_column(field, kind);
            self.values.resize(self.layout.columns.len(), 0..0);
        }
        match mapping {
            Mapping::Column(column) => self.values[column] = range,
            Mapping::Unmapped if raw != "null" => {
                let identity = self.layout.fields.identity(field);
                self.counts.misfits.add(&identity.replace(SEPARATOR, "_"), 1);
                self.unmapped.push((identity, range));
            }
            Mapping::Unmapped | Mapping::Undecided => {}
        }
    }

    /// Writes the row. Returns a column that cannot hold its value unless it becomes wider.
    fn write(&mut self, record: &Record<'_>, chunk: &mut Chunk) -> Result<Option<usize>, RowError> {
        let data = &*record.data;
        let out = &mut chunk.bytes;
        let row_start = out.len();
        if data.len() >= LARGE_ROW {
            // Growing in steps would copy the row, and hold both copies.
            out.reserve(data.len());
        }
        copy::begin_row(self.layout.columns.len() + usize::from(self.sequence.is_some()), out);
        if let Some(sequence) = self.sequence.as_mut() {
            *sequence += 1;
            copy::push_bigint(sequence.cast_signed(), out);
        }
        let is_deletion = self.layout.deletion_column().is_some_and(|column| {
            let raw = &data[self.values[column].clone()];
            !raw.is_empty() && raw != "null"
        });
        let unmapped = self.layout.unmapped;
        let (mut unmapped_start, mut meta_start) = (None, None);
        let mut budget = self.layout.row_budget();
        for (index, column) in self.layout.columns.iter().enumerate() {
            if index < self.layout.metadata_columns {
                let at = Some(index);
                if at == self.layout.timestamp {
                    push_time(column.kind, Timestamp::now(), out);
                } else if at == self.layout.generation {
                    out.extend_from_slice(&self.generation_field);
                } else if at == self.layout.airbyte.raw_id {
                    airbyte_columns::push_raw_id(column.kind, out);
                } else if at == self.layout.airbyte.extracted_at {
                    push_time(column.kind, airbyte_columns::extracted_at(record.emitted_at), out);
                } else {
                    meta_start = Some(out.len());
                    out.extend_from_slice(&self.meta_field);
                }
                continue;
            }
            if Some(index) == unmapped {
                unmapped_start = Some(out.len());
            }
            let range = self.values[index].clone();
            let raw = &data[range.clone()];
            let start = out.len();
            let parsed = if column.parses_text { json::embedded_document(raw) } else { None };
            let mut reason = None;
            let mut fit = value::encode(column.kind, parsed.as_deref().unwrap_or(raw), out);
            if let Some(budget) = &mut budget
                && out[start..] != NULL
                && !self.layout.is_required(index)
                && !budget.take(column.kind, out.len() - start - NULL.len())
            {
                out.truncate(start);
                out.extend_from_slice(&NULL);
                fit = Fit::Misfit;
                reason = Some(ChangeReason::RecordSizeLimitation);
            }
            if fit == Fit::Misfit && reason.is_none() && column.widening != Widening::None && value::is_number(raw) {
                return Ok(Some(index));
            }
            if let Some(mut change) = Change::of(index, column.kind, raw, fit) {
                if let Some(field) = self.layout.find_key_field(|key| key == Some(index)) {
                    return Err(inexact_key(field, column, raw));
                }
                change.reason = reason.unwrap_or(change.reason);
                self.changes.push(change);
                if fit != Fit::Altered {
                    self.unmapped.push((column.name.clone(), range));
                }
            } else if raw == "null" {
                self.values[index] = 0..0;
            }
            if fit == Fit::Misfit && self.layout.cursor_column() == Some(index) {
                self.traits.unordered = true;
            }
        }
        for Change { column, kind, .. } in &self.changes {
            let is_null = *kind == ChangeKind::Nulled;
            let counts = if is_null { &mut self.counts.misfits } else { &mut self.counts.changed };
            counts.add(&self.layout.columns[*column].name, 1);
            if is_null {
                self.values[*column] = 0..0;
            }
        }
        let has_no_value = |column: Option<usize>| column.is_none_or(|column| self.values[column].is_empty());
        self.traits.null_keys |= self.layout.any_key_field(has_no_value);
        if is_deletion {
            self.traits.deletions = true;
            self.traits.unordered |= has_no_value(self.layout.cursor_column());
        }
        if let Some(start) = meta_start.filter(|_| record.meta.is_some() || !self.changes.is_empty()) {
            let added = self.write_meta(record, start, chunk);
            unmapped_start = unmapped_start.map(|start| start + added - self.meta_field.len());
        }
        if !self.unmapped.is_empty() || !self.document.is_empty() {
            self.write_unmapped(data, row_start, unmapped_start, chunk);
        }
        Ok(None)
    }

    /// Replaces the field of Airbyte's `_airbyte_meta` in the row that was written last. Returns its new length.
    fn write_meta(&self, record: &Record<'_>, start: usize, chunk: &mut Chunk) -> usize {
        let Some(column) = self.layout.airbyte.meta else { return 0 };
        let document = airbyte_columns::meta(self.sync_id, record.meta.as_deref(), &self.changes, &self.layout.columns);
        let mut field = Vec::with_capacity(document.len());
        value::encode(self.layout.columns[column].kind, &document, &mut field);
        let length = field.len();
        chunk.bytes.splice(start..start + self.meta_field.len(), field);
        length
    }

    /// Inserts the unmapped values into the row that was written last. They are too rare to be collected beforehand.
    fn write_unmapped(&mut self, data: &str, row_start: usize, field_start: Option<usize>, chunk: &mut Chunk) {
        let Some(column) = self.layout.unmapped_or_add() else { return };
        let kind = self.layout.columns[column].kind;
        if !self.unmapped.is_empty() {
            self.document = unmapped_document(&self.unmapped, data);
        }
        let mut field = Vec::with_capacity(self.document.len());
        value::encode(kind, &self.document, &mut field);
        if let Some(start) = field_start {
            chunk.bytes.splice(start..start + NULL.len(), field);
            return;
        }
        // The column is new. The last row is not counted yet, so it is widened separately.
        let row = chunk.bytes.split_off(row_start);
        chunk.widen(self.layout.columns.len());
        let mut row = copy::widen(&row, 1, 1);
        // The value replaces the null.
        row.truncate(row.len() - NULL.len());
        chunk.bytes.append(&mut row);
        chunk.bytes.append(&mut field);
    }
}

/// The error for a value of the key that its column does not hold exactly.
fn inexact_key(field: String, column: &Column, raw: &str) -> RowError {
    let remedy = match raw.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') if !matches!(column.kind, ColumnType::Numeric { limits: None }) => "numeric",
        Some(b'{' | b'[') => "jsonb",
        _ => "text",
    };
    let (column, sql_type) = (column.name.clone(), column.sql_type.clone());
    RowError::InexactKey { field, value: describe(raw), column, sql_type, remedy }
}

/// The values as one object. Colliding names get suffixes, as names of columns do.
fn unmapped_document(values: &[(String, Range<usize>)], data: &str) -> String {
    let mut owners: HashMap<String, &str> = HashMap::with_capacity(values.len());
    let fields = values.iter().map(|(identity, range)| {
        let mut name = identity.replace(SEPARATOR, "_");
        if *owners.entry(name.clone()).or_insert(identity) != identity {
            name = names::suffixed(&name, identity);
        }
        format!("{}:{}", serde_json::Value::from(name), &data[range.clone()])
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// Appends a time.
fn push_time(kind: ColumnType, instant: Timestamp, out: &mut Vec<u8>) {
    if matches!(kind, ColumnType::TimestampTz { digits: 6 }) {
        copy::push_bigint(time::micros_of(instant), out);
    } else {
        value::encode(kind, &format!("\"{instant}\""), out);
    }
}
