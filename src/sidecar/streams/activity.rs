//! What the task log has about its streams: the start, commits with rows, saved states and the end.
//!
//! A source may send thousands of states: the commits of a stream within [`INTERVAL`] are summed up in one line.

use std::time::{Duration, Instant};

use super::{Stream, Streams};
use crate::sidecar::sink::WriteMode;
use crate::task::StreamReport;

/// The least time between two lines about the commits of one stream, and about the states of all streams.
const INTERVAL: Duration = Duration::from_secs(10);

/// What of a stream, or of all streams, was not logged yet.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// The stream has started.
    pub(super) start: bool,
    has_ended: bool,
    /// The rows that the lines so far count.
    committed: u64,
    /// States that were saved since the last line.
    saved_states: u64,
    /// When the last line about commits was logged.
    last: Option<Instant>,
    /// The stream is in [`Streams::active`].
    is_noted: bool,
}

impl Streams {
    /// Notes that something about a stream may have to be logged.
    pub(super) fn note_activity(&mut self, at: usize) {
        if !std::mem::replace(&mut self.all[at].activity.is_noted, true) {
            self.active.push(at);
        }
    }

    /// Notes that these states were saved.
    pub fn states_saved<'k>(&mut self, keys: impl Iterator<Item = &'k str>) {
        for key in keys {
            match self.all.iter().position(|stream| stream.key == key) {
                Some(at) => {
                    self.all[at].activity.saved_states += 1;
                    self.note_activity(at);
                }
                None => self.global_activity.saved_states += 1,
            }
        }
    }

    /// The lines that are due; all of them at the end of the task (`is_final`).
    pub fn activity(&mut self, is_final: bool) -> Vec<String> {
        let now = Instant::now();
        let mut lines = Vec::new();
        for at in std::mem::take(&mut self.active) {
            let stream = &mut self.all[at];
            let waits = stream.log_activity(now, is_final, &mut lines);
            stream.activity.is_noted = waits;
            if waits {
                self.active.push(at);
            }
        }
        let global = &mut self.global_activity;
        if global.saved_states > 0 && (is_final || global.is_due(now)) {
            lines.push("state of all streams saved".to_owned());
            (global.saved_states, global.last) = (0, Some(now));
        }
        lines
    }
}

impl Activity {
    fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) >= INTERVAL)
    }
}

impl Stream {
    /// Adds the lines that are due. Returns whether another one waits.
    fn log_activity(&mut self, now: Instant, is_final: bool, lines: &mut Vec<String>) -> bool {
        if std::mem::take(&mut self.activity.start) {
            lines.push(format!("stream {}: started, {}", self.key, self.write_description()));
        }
        let is_open = self.is_open();
        let (new, states) = (self.committed - self.activity.committed, self.activity.saved_states);
        if new + states > 0 {
            if is_open && !is_final && !self.activity.is_due(now) {
                return true;
            }
            let saved = if states > 0 { ", state saved" } else { "" };
            let rows =
                if new > 0 { format!("{new} rows committed ({} in total)", self.committed) } else { String::new() };
            let text = format!("{rows}{saved}");
            lines.push(format!("stream {}: {}", self.key, text.trim_start_matches(", ")));
            (self.activity.committed, self.activity.saved_states, self.activity.last) = (self.committed, 0, Some(now));
        }
        if !is_open && !std::mem::replace(&mut self.activity.has_ended, true) {
            let report = self.report();
            let StreamReport { status, events, .. } = &report;
            lines.push(format!("stream {}: ended as {status}, {events} rows committed{}", self.key, report.details()));
        }
        false
    }

    /// What happens to the rows of the stream.
    fn write_description(&self) -> String {
        let table = match &self.spec.schema {
            Some(schema) => format!("{schema}.{}", self.spec.table),
            None => self.spec.table.clone(),
        };
        let then = if self.spec.replaces_at_first_commit { ", whose rows the first commit replaces" } else { "" };
        match self.spec.mode {
            WriteMode::Replace => format!("replacing the rows of table {table}"),
            WriteMode::Append => format!("adding rows to table {table}{then}"),
            WriteMode::Merge => {
                let key: Vec<String> = self.spec.primary_key.iter().map(|path| path.join(".")).collect();
                format!("merging rows by {} into table {table}{then}", key.join(", "))
            }
        }
    }
}
