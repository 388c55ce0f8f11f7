//! A row: from the text of a JSON object to a row of COPY's binary format, in one pass over its fields.
//!
//! The first step remembers where in the text each column's value stands, the second one writes the columns in their
//! order. Nothing is copied in between and nothing is allocated once the columns are known.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use jiff::Timestamp;
use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::binary::{self, NULL};
use super::layout::{DEEPEST, EntryIndex, KeysIndex, Layout, Place, SEPARATOR};
use super::names;
use super::number::Fit;
use super::room::{ALWAYS_FIT, Room};
use super::types::ColumnType;
use super::value;

/// For a row of so many bytes there is room at once.
const LONG: usize = 1 << 20;

/// Rows ready to be sent.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Rows of COPY's binary format.
    pub bytes: Vec<u8>,
    /// How many.
    pub rows: u64,
    /// How many of the layout's columns they have.
    pub columns: usize,
}

/// Why a row cannot be loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum RowError {
    /// It is not JSON.
    Invalid(String),
    /// A part of the key is missing, null, or does not fit its column.
    NoKey(String),
}

/// Writes rows of one stream.
pub struct Encoder {
    /// The stream's columns.
    pub layout: Layout,
    /// The number of the last row, where rows are numbered in a first column.
    sequence: Option<u64>,
    generation: i64,
    /// The field of the column of generations, the same in each row.
    generation_field: Vec<u8>,
    /// Where each column's value stands in the current row; empty when it has none.
    slots: Vec<Range<usize>>,
    /// Values of the current row without a column: the field's identity or the column's name, place in the text.
    homeless: Vec<(String, Range<usize>)>,
    /// The document of such values.
    document: String,
    /// The time of the last row with the field that tells it, since many rows share one.
    time: (Option<i64>, Vec<u8>),
}

impl Encoder {
    /// Writes rows of this layout, numbered on from `sequence` if that is given, each with this generation.
    pub fn new(layout: Layout, sequence: Option<u64>, generation: i64) -> Self {
        let mut generation_field = Vec::new();
        if let Some(column) = layout.generation() {
            value::encode(layout.columns()[column].kind, &generation.to_string(), &mut generation_field);
        }
        Self {
            layout,
            sequence,
            generation,
            generation_field,
            slots: Vec::new(),
            homeless: Vec::new(),
            document: String::new(),
            time: (None, Vec::new()),
        }
    }

    /// The number of the last row; 0 before the first, and where rows are not numbered.
    pub fn sequence(&self) -> u64 {
        self.sequence.unwrap_or_default()
    }

    /// What the rows carry; 0: nothing.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    fn sequenced(&self) -> bool {
        self.sequence.is_some()
    }

    /// Adds a row to a chunk. On an error the chunk is as it was, save for columns that are null in all its rows.
    pub fn push(&mut self, data: &str, emitted_at: Option<i64>, chunk: &mut Chunk) -> Result<(), RowError> {
        self.slots.clear();
        self.slots.resize(self.layout.columns().len(), 0..0);
        self.homeless.clear();
        self.document.clear();
        if data.trim_start().starts_with('{') {
            self.locate(data).map_err(|error| RowError::Invalid(error.to_string()))?;
        } else {
            // Not an object: there is no field to name, so the document is the row.
            let row: &RawValue = serde_json::from_str(data).map_err(|error| RowError::Invalid(error.to_string()))?;
            self.document.push_str(row.get());
        }
        self.pad(chunk);
        let start = chunk.bytes.len();
        let written = self.write(data, emitted_at, chunk);
        if written.is_err() {
            chunk.bytes.truncate(start);
        } else {
            chunk.rows += 1;
        }
        written
    }

    /// Gives all rows of the chunk all columns, and at least one.
    pub fn seal(&mut self, chunk: &mut Chunk) {
        if chunk.rows > 0 && !self.sequenced() && self.layout.columns().is_empty() {
            self.layout.unmapped();
        }
        self.pad(chunk);
    }

    fn locate(&mut self, data: &str) -> Result<(), serde_json::Error> {
        let mut json = serde_json::Deserializer::from_str(data);
        json.deserialize_map(Fields { encoder: self, keys: 0, depth: 1, base: data.as_ptr().addr() })?;
        json.end()
    }

    /// Takes note of one field's value.
    fn field(
        &mut self,
        (keys, entry): (KeysIndex, EntryIndex),
        depth: usize,
        base: usize,
        raw: &str,
    ) -> Result<(), serde_json::Error> {
        let at = raw.as_ptr().addr() - base;
        let range = at..at + raw.len();
        let known = self.layout.entry(keys, entry);
        let mut place = known.place;
        if raw.starts_with('{') && !known.declared && depth < DEEPEST && !self.layout.takes_documents(keys, entry) {
            let children = self.layout.children(keys, entry);
            let inner = Fields { encoder: self, keys: children, depth: depth + 1, base };
            return serde_json::Deserializer::from_str(raw).deserialize_map(inner);
        }
        if place == Place::Open {
            let Some(kind) = ColumnType::of_value(raw) else { return Ok(()) };
            place = self.layout.claim(keys, entry, kind);
            self.slots.resize(self.layout.columns().len(), 0..0);
        }
        match place {
            Place::Column(column) => self.slots[column] = range,
            Place::Unmapped if raw != "null" => self.homeless.push((self.layout.identity(keys, entry), range)),
            Place::Unmapped | Place::Open => {}
        }
        Ok(())
    }

    /// Gives the chunk's earlier rows the columns that have come since.
    fn pad(&self, chunk: &mut Chunk) {
        let added = self.layout.columns().len() - chunk.columns;
        chunk.columns = self.layout.columns().len();
        if added == 0 || chunk.rows == 0 {
            return;
        }
        chunk.bytes = binary::widen(&chunk.bytes, chunk.rows, added);
    }

    fn write(&mut self, data: &str, emitted_at: Option<i64>, chunk: &mut Chunk) -> Result<(), RowError> {
        let out = &mut chunk.bytes;
        let row_at = out.len();
        if data.len() >= LONG {
            // To grow piece by piece is to copy, and both copies are memory.
            out.reserve(data.len());
        }
        binary::begin_row(self.layout.columns().len() + usize::from(self.sequenced()), out);
        if let Some(sequence) = self.sequence.as_mut() {
            *sequence += 1;
            binary::push_bigint(sequence.cast_signed(), out);
        }
        let unmapped = self.layout.known_unmapped();
        let mut unmapped_at = None;
        let mut room = self.layout.is_wide(ALWAYS_FIT).then(|| Room::with_fixed(self.layout.fixed()));
        for (index, column) in self.layout.columns().iter().enumerate() {
            if Some(index) == self.layout.timestamp() {
                tell_time(&mut self.time, emitted_at, column.kind);
                out.extend_from_slice(&self.time.1);
                continue;
            }
            if Some(index) == self.layout.generation() {
                out.extend_from_slice(&self.generation_field);
                continue;
            }
            if Some(index) == unmapped {
                unmapped_at = Some(out.len());
            }
            let range = &mut self.slots[index];
            let raw = &data[range.clone()];
            let start = out.len();
            let mut fit = value::encode(column.kind, raw, out);
            if let Some(room) = &mut room
                && out[start..] != NULL
                && !self.layout.is_fixed(index)
                && !room.take(column.kind, out.len() - start - NULL.len())
            {
                out.truncate(start);
                out.extend_from_slice(&NULL);
                fit = Fit::Misfit;
            }
            if fit != Fit::Exact {
                self.homeless.push((column.name.clone(), range.clone()));
            }
            if fit == Fit::Misfit || raw == "null" {
                *range = 0..0;
            }
        }
        if let Some((part, _)) = self.layout.key().find(|(_, column)| column.is_none_or(|at| self.slots[at].is_empty()))
        {
            return Err(RowError::NoKey(self.layout.key_name(part)));
        }
        if !self.homeless.is_empty() || !self.document.is_empty() {
            self.write_unmapped(data, row_at, unmapped_at, chunk);
        }
        Ok(())
    }

    /// Fills the column of values that have none. It is rare enough for being inserted after the fact.
    fn write_unmapped(&mut self, data: &str, row_at: usize, at: Option<usize>, chunk: &mut Chunk) {
        let Some(column) = self.layout.unmapped() else { return };
        let kind = self.layout.columns()[column].kind;
        if !self.homeless.is_empty() {
            self.document = document(&self.homeless, data);
        }
        let mut field = Vec::with_capacity(self.document.len());
        value::encode(kind, &self.document, &mut field);
        if let Some(at) = at {
            chunk.bytes.splice(at..at + NULL.len(), field);
            return;
        }
        // The column is new: the rows before this one, which is not counted yet, get it too.
        let row = chunk.bytes.split_off(row_at);
        self.pad(chunk);
        let mut row = binary::widen(&row, 1, 1);
        // The null that it got last makes room for the value.
        row.truncate(row.len() - NULL.len());
        chunk.bytes.append(&mut row);
        chunk.bytes.append(&mut field);
    }
}

/// The values as one object. Fields whose names are equal are told apart, as columns are.
fn document(values: &[(String, Range<usize>)], data: &str) -> String {
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

/// Writes the field of the time of a row, once for all rows that share it.
fn tell_time(told: &mut (Option<i64>, Vec<u8>), emitted_at: Option<i64>, kind: ColumnType) {
    let at = emitted_at.and_then(|at| Timestamp::from_millisecond(at).ok());
    if at.is_none() || told.0 != emitted_at || told.1.is_empty() {
        told.0 = emitted_at;
        told.1.clear();
        value::encode(kind, &format!("\"{}\"", at.unwrap_or_else(Timestamp::now)), &mut told.1);
    }
}

/// The fields of one object, on their way to a row.
struct Fields<'e> {
    encoder: &'e mut Encoder,
    keys: KeysIndex,
    depth: usize,
    /// Where the row's text begins.
    base: usize,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { encoder, keys, depth, base } = self;
        let mut after = None;
        while let Some(entry) = map.next_key_seed(Key { layout: &mut encoder.layout, keys, after })? {
            let raw: &'de RawValue = map.next_value()?;
            encoder.field((keys, entry), depth, base, raw.get()).map_err(A::Error::custom)?;
            after = Some(entry);
        }
        Ok(())
    }
}

/// A key, looked up without being copied.
struct Key<'l> {
    layout: &'l mut Layout,
    keys: KeysIndex,
    after: Option<EntryIndex>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = EntryIndex;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<EntryIndex, D::Error> {
        // A key may hold half a surrogate pair, which no `str` does.
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = EntryIndex;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: serde::de::Error>(self, key: &[u8]) -> Result<EntryIndex, E> {
        Ok(self.layout.lookup(self.keys, self.after, key))
    }
}
