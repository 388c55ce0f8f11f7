//! The model: what the rules of the protocol leave in the table of a stream.

use super::scenario::{Options, Record, Stream, StreamRun, UNCOMPARABLE};
use super::source::Sent;
use super::values;

/// A row of a table.
#[derive(Debug, Clone)]
pub struct Row {
    pub record: Record,
    /// The generation that brought it; 0: none.
    pub generation: i64,
}

/// What a run does with the table of a stream.
pub struct Load<'a> {
    pub stream: &'a Stream,
    pub run: &'a StreamRun,
    pub options: &'a Options,
    pub full_sync: bool,
    pub sent: &'a Sent,
    /// How many of the records the run has committed.
    pub committed: usize,
    /// The source resumes the stream from a state.
    pub resumes: bool,
}

impl Load<'_> {
    fn replaces(&self) -> bool {
        self.full_sync || self.run.replaces()
    }

    fn merges(&self) -> bool {
        self.run.merges(self.options) && !self.stream.key.is_empty()
    }
}

/// The table of a stream.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub rows: Vec<Row>,
    /// Rows of a refresh that replaces older generations, before it is complete.
    collected: Option<Vec<Row>>,
}

impl Table {
    /// The table after a run. Where a failed run may have ended before or after a step without records, there are
    /// several.
    pub fn after(&self, load: &Load<'_>) -> Vec<Self> {
        let Load { run, options, sent, committed, resumes, .. } = *load;
        let (generation, minimum) = run.generation.unwrap_or_default();
        let row = |record: &Record| Row { record: record.clone(), generation };
        let new: Vec<Row> = sent.records[..committed].iter().map(row).collect();
        // Nothing proves that the source has no rows if it sends neither rows nor statuses.
        let has_replaced = sent.complete && (options.statuses || load.full_sync || !sent.records.is_empty());
        let mut table = self.clone();
        if load.replaces() {
            if has_replaced {
                table = Self::default();
                table.add(load, new);
            }
            return vec![table];
        }
        let mut tables = if sent.complete || committed > 0 { Vec::new() } else { vec![self.clone()] };
        let is_below = |row: &Row| row.generation < minimum;
        if minimum > 0 && (self.collected.is_some() || self.rows.iter().any(is_below)) {
            let mut collected = table.collected.take().filter(|_| run.incremental && resumes).unwrap_or_default();
            collected.retain(|row| !is_below(row));
            collected.extend(new);
            if has_replaced {
                table.rows.retain(|row| !is_below(row));
                table.add(load, collected);
            } else if run.incremental {
                table.collected = Some(collected);
            }
        } else {
            if minimum == 0
                && let Some(collected) = table.collected.take()
            {
                table.add(load, collected);
            }
            if run.mode.starts_with("overwrite")
                && options.console_overwrite
                && !resumes
                && minimum == 0
                && committed > 0
            {
                table.rows.clear();
            }
            table.add(load, new);
        }
        tables.push(table);
        tables
    }

    fn add(&mut self, load: &Load<'_>, rows: Vec<Row>) {
        for row in rows {
            if load.merges() {
                self.merge(load.stream, row);
            } else {
                self.rows.push(row);
            }
        }
    }

    /// The row with the highest cursor wins, of equal ones the last row. A row without a cursor is older than any other;
    /// one whose cursor cannot be compared is newer than those before it.
    fn merge(&mut self, stream: &Stream, row: Row) {
        let has_same_key = |other: &Row| key(stream, &other.record) == key(stream, &row.record);
        let is_newer = |other: &Row| cursor(stream, &other.record) > cursor(stream, &row.record);
        if is_comparable(stream, &row.record) && self.rows.iter().any(|other| has_same_key(other) && is_newer(other)) {
            return;
        }
        self.rows.retain(|other| !has_same_key(other));
        self.rows.push(row);
    }
}

fn key(stream: &Stream, record: &Record) -> Vec<serde_json::Value> {
    stream.key.iter().map(|field| values::key_value(record.values[*field].as_deref())).collect()
}

/// Cursors are integers, or times of the same form. `None` if the record has none, or one that cannot be compared.
fn cursor(stream: &Stream, record: &Record) -> Option<(Option<i64>, String)> {
    let value = record.values[stream.cursor?].clone().filter(|value| value != "null" && value != UNCOMPARABLE)?;
    Some((value.parse().ok(), value))
}

fn is_comparable(stream: &Stream, record: &Record) -> bool {
    stream.cursor.is_none_or(|field| record.values[field].as_deref() != Some(UNCOMPARABLE))
}
