//! What a read reports of each stream: status, counts, and what happened to records that are no rows of their own.

use std::fmt::{self, Write};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// The status of one stream in the per-stream map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum StreamStatus {
    /// No record has arrived.
    Pending,
    /// The source has started it.
    Running,
    /// The stream is complete and its rows are committed.
    Success,
    /// Some rows are committed; then the source failed, or the read reached its record limit.
    Partial,
    /// No rows are committed.
    Failed,
    /// The task was cancelled before the stream was complete; or the read reached its record limit, and the rows were
    /// dropped because only a complete stream may replace those in its table.
    Cancelled,
    /// The task exceeded its timeout before the stream was complete.
    TimeExceeded,
}

/// Records that have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Number of records.
    pub events: u64,
    /// Bytes of their lines.
    pub bytes: u64,
}

/// One stream in `source_task.description`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Records that are committed, before they are merged.
    pub events: u64,
    /// Bytes of the lines of these records.
    pub bytes: u64,
    /// Progress or outcome.
    pub status: StreamStatus,
    /// Why it is not SUCCESS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Records that have arrived, if more than are committed, while the stream is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Received>,
    /// What the source expects to send; many sources send no estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What the destination did with the committed records.
    #[serde(flatten)]
    pub load: LoadCounts,
    /// Records that were not loaded, by the reason.
    #[serde(default, skip_serializing_if = "Counts::is_empty")]
    pub dropped: Counts,
    /// What the user should know of the stream, and how often it occurred.
    #[serde(default, skip_serializing_if = "Counts::is_empty")]
    pub warnings: Counts,
}

impl StreamReport {
    /// A report with nothing but a status.
    #[cfg(test)]
    pub fn new(status: StreamStatus) -> Self {
        Self {
            events: 0,
            bytes: 0,
            status,
            error: None,
            received: None,
            estimate: None,
            load: LoadCounts::default(),
            dropped: Counts::default(),
            warnings: Counts::default(),
        }
    }

    /// Which records are no rows of their own, and which values are not as the source sent them: in words, each behind a
    /// comma; empty if there are none.
    pub fn details(&self) -> String {
        let Self { load, dropped, .. } = self;
        let mut text = String::new();
        let mut add = |count: u64, what: &str, by: Option<&Counts>| {
            if count > 0 {
                let by = by.map(|by| format!(" ({by})")).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ = write!(text, ", {count} {what}{by}");
            }
        };
        add(load.merged, "merged into rows with the same key", None);
        add(load.older, "left out because their cursor is lower", None);
        add(load.misfits.sum(), "values did not fit their column", Some(&load.misfits));
        add(load.changed.sum(), "values changed to fit their column", Some(&load.changed));
        add(dropped.sum(), "records dropped", Some(dropped));
        text
    }
}

/// What the destination did with the committed records of a stream. Of `events` records, `events - merged - older` have
/// added a row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadCounts {
    /// Records that have added no row, because another record of the run or a row of the table has their key: one of the
    /// two is the row now. Does not depend on where commits end.
    #[serde(skip_serializing_if = "is_zero")]
    pub merged: u64,
    /// Records that were left out, because the row with their key in the table has a higher cursor.
    #[serde(skip_serializing_if = "is_zero")]
    pub older: u64,
    /// Values that their column cannot hold, by column.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub misfits: Counts,
    /// Values that were changed to fit, such as rounded numbers, by column.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub changed: Counts,
}

impl LoadCounts {
    /// Adds the counts of further rows.
    pub fn add(&mut self, other: &Self) {
        self.merged += other.merged;
        self.older += other.older;
        self.misfits.add_all(&other.misfits);
        self.changed.add_all(&other.changed);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Counts by name, in the order of their first occurrence. The number of names is limited: sources may have thousands of
/// columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(IndexMap<String, u64>);

impl Counts {
    /// Further names are counted together.
    const MAX_NAMES: usize = 30;
    /// The name of all further ones.
    const OTHERS: &str = "others";

    /// Adds to the count of a name. Returns whether the name is new, and has a count of its own.
    pub fn add(&mut self, name: &str, count: u64) -> bool {
        if let Some(known) = self.0.get_mut(name) {
            *known = known.saturating_add(count);
            return false;
        }
        let has_room = self.0.len() < Self::MAX_NAMES;
        let name = if has_room { name } else { Self::OTHERS };
        let total = self.0.entry(name.to_owned()).or_default();
        *total = total.saturating_add(count);
        has_room
    }

    fn add_all(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum of all counts. A row that another program has written may hold any numbers.
    pub fn sum(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The names and their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// Replaces the names by other texts, such as masked ones.
    pub fn rename(&mut self, name: impl Fn(&str) -> String) {
        let mut renamed = Self::default();
        for (text, count) in self.iter() {
            renamed.add(&name(text), count);
        }
        *self = renamed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in self.iter().enumerate() {
            write!(f, "{}{name}: {count}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// The size of a stream as its source expects it; it may be wrong and may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// `source_task.description` of a read: stream name → report, in catalog order.
pub type StreamReports = IndexMap<String, StreamReport>;

#[cfg(test)]
mod tests {
    use super::{Counts, StreamReport, StreamStatus};

    #[test]
    fn details_are_words_and_members_of_the_report() {
        let mut report = StreamReport::new(StreamStatus::Success);
        assert_eq!(report.details(), "");
        assert_eq!(serde_json::to_string(&report).expect("JSON"), r#"{"events":0,"bytes":0,"status":"SUCCESS"}"#);
        report.load.merged = 3;
        report.load.misfits.add("price", 2);
        report.load.misfits.add("price", 1);
        report.load.misfits.add("name", 1);
        report.dropped.add("cut off", 1);
        let expected = ", 3 merged into rows with the same key, 4 values did not fit their column (price: 3, name: 1), \
                        1 records dropped (cut off: 1)";
        assert_eq!(report.details(), expected);
        let json = serde_json::to_string(&report).expect("JSON");
        let members = r#""merged":3,"misfits":{"price":3,"name":1},"dropped":{"cut off":1}"#;
        assert_eq!(json, format!(r#"{{"events":0,"bytes":0,"status":"SUCCESS",{members}}}"#));
        assert_eq!(serde_json::from_str::<StreamReport>(&json).expect("a report"), report);
    }

    #[test]
    fn names_beyond_the_limit_are_counted_together() {
        let mut counts = Counts::default();
        for name in 0..100 {
            assert_eq!(counts.add(&name.to_string(), 2), name < 30);
        }
        assert_eq!((counts.iter().count(), counts.iter().last(), counts.sum()), (31, Some(("others", 140)), 200));
        assert!(!counts.add("0", 1));
        // Of a row that another program has written.
        assert!(!counts.add("0", u64::MAX));
        assert_eq!(counts.sum(), u64::MAX);
    }
}
