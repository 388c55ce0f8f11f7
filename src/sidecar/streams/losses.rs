//! Why a stream may miss rows: dropped records, counts of the source that are higher, errors that it reports. Such a stream
//! does not succeed, whether it is complete or not.

use std::hash::{DefaultHasher, Hash, Hasher};

use indexmap::IndexMap;

use super::{NOT_SELECTED, Stream, Streams};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::WriteMode;
use crate::task::StreamStatus;

/// Names of streams that the catalog does not select, each with a count of its own.
const MAX_UNMAPPED: usize = 100;

/// Records of streams that the catalog does not select.
#[derive(Debug, Default)]
pub(super) struct Unmapped(IndexMap<StreamName, u64>);

impl Unmapped {
    fn add(&mut self, name: StreamName) -> bool {
        if let Some(count) = self.0.get_mut(&name) {
            *count += 1;
            return false;
        }
        let is_new = self.0.len() < MAX_UNMAPPED;
        if is_new {
            self.0.insert(name, 1);
        }
        is_new
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The records since a state, to compare their number with the one that the source claims.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RecordsSinceState {
    pub(super) count: u64,
    /// The hash of that state.
    state: u64,
}

impl RecordsSinceState {
    /// Counts from this state on. Returns the number before it, unless the source has only repeated the last one.
    fn restart(&mut self, state: &str) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let before = std::mem::replace(self, Self { count: 0, state: hasher.finish() });
        (before.count > 0 || before.state != self.state).then_some(before.count)
    }
}

impl Streams {
    /// Compares the number of records that have arrived since the last state of a stream (`None`: of all streams) with
    /// `claimed`, the one in the state. If fewer have arrived, fails the stream (or all), so that the state is not stored.
    pub fn check_count(&mut self, name: Option<&StreamName>, state: &str, claimed: Option<u64>) {
        let at = name.map(|name| self.position(name));
        let arrived = match at {
            Some(Some(at)) => self.all[at].since_state.restart(state),
            Some(None) => None,
            None => self.since_global_state.restart(state),
        };
        let (Some(arrived), Some(claimed)) = (arrived, claimed) else { return };
        let of = if name.is_some() { "" } else { " of all streams" };
        if arrived < claimed {
            let reason = format!(
                "rows may be missing: the source counts {claimed} records{of} since its last state, and {arrived} have \
                 arrived"
            );
            for at in at.map_or(0..self.all.len(), |at| at.map_or(0..0, |at| at..at + 1)) {
                self.incomplete(at, &reason);
            }
        } else if arrived > claimed {
            let at = at.flatten();
            let whose = at.map_or_else(|| "all streams".to_owned(), |at| format!("stream {}", self.all[at].key));
            self.warn(at, format!("{whose}: more records have arrived than the source counts in a state"));
        }
    }

    /// Notes that a stream may miss rows. A complete one has not succeeded.
    pub(super) fn incomplete(&mut self, at: usize, reason: &str) {
        if self.all[at].is_open() {
            self.commit_and_fail(at, reason);
        } else if self.all[at].status == StreamStatus::Success {
            let stream = &mut self.all[at];
            stream.status = StreamStatus::Partial;
            stream.error.get_or_insert_with(|| reason.to_owned());
            let text =
                format!("stream {}: {}, although the source had completed it: {reason}", stream.key, stream.status);
            self.warnings.push(text);
        }
    }

    /// Notes an error that the source reports for a stream: its later rows and states do not count. Returns whether the
    /// stream is selected.
    pub fn error(&mut self, name: &StreamName, text: &str) -> bool {
        let at = self.position(name);
        if let Some(at) = at {
            self.incomplete(at, text);
        }
        at.is_some()
    }

    /// Adds an error that the source has reported without naming a stream to the reports of the streams that it has
    /// nevertheless completed.
    pub fn warn_of_error(&mut self, text: &str) {
        let text = format!("the source reported an error without naming a stream, and completed this one: {text}");
        for stream in self.all.iter_mut().filter(|stream| stream.status == StreamStatus::Success) {
            stream.warnings.add(&text, 1);
        }
    }

    /// Fails the streams that dropped data may belong to: those that its text names, or else all that are open (all, if none
    /// is).
    pub fn data_dropped(&mut self, text: &str, reason: &str) {
        let names = named_streams(text);
        let is_named = |stream: &Stream| names.contains(&stream.spec.name.name);
        let any_named = self.all.iter().any(is_named);
        let any_open = self.all.iter().any(Stream::is_open);
        for at in 0..self.all.len() {
            let stream = &mut self.all[at];
            if any_named && is_named(stream) {
                stream.dropped.add(reason, 1);
            } else if any_named || (any_open && !stream.is_open()) {
                continue;
            }
            self.incomplete(at, reason);
        }
    }

    /// Adds a warning about no stream in particular. It is logged once.
    pub fn warn_of_task(&mut self, text: String) {
        self.warn(None, text);
    }

    /// Adds a warning to the streams that a text names.
    pub fn warn_named(&mut self, text: &str, warning: &str) {
        let names = named_streams(text);
        for stream in &mut self.all {
            if names.contains(&stream.spec.name.name) {
                stream.warnings.add(warning, 1);
            }
        }
    }

    /// Counts a record of a stream that the catalog does not select.
    pub(super) fn count_unmapped(&mut self, name: &StreamName) {
        let is_new = self.unmapped.add(name.clone());
        self.fail_namesakes(name);
        for at in 0..if is_new { self.all.len() } else { 0 } {
            if self.all[at].status == StreamStatus::Success
                && let Some(reason) = self.may_be_unmapped(at)
            {
                self.incomplete(at, &reason);
            }
        }
    }

    /// Adds the records of streams that the catalog does not select to the reports of streams of the same name in another
    /// namespace or case.
    pub fn report_unmapped(&mut self) {
        for (name, count) in &self.unmapped.0 {
            let is_namesake = |stream: &&mut Stream| name.name.eq_ignore_ascii_case(&stream.spec.name.name);
            for stream in self.all.iter_mut().filter(is_namesake) {
                stream.dropped.add(&format!("sent as stream {}, {NOT_SELECTED}", name.key()), *count);
            }
        }
    }

    /// The records of streams that the catalog does not select: their names and numbers.
    pub fn unmapped(&self) -> impl Iterator<Item = (&StreamName, u64)> {
        self.unmapped.0.iter().map(|(name, count)| (name, *count))
    }

    /// Why the stream's rows may have come under a name that the catalog does not select. One without rows must not empty
    /// its table then; and where another namespace has rows, one must not replace its table, or save a state without rows.
    pub(super) fn may_be_unmapped(&self, at: usize) -> Option<String> {
        let stream = &self.all[at];
        let replaces = stream.spec.mode == WriteMode::Replace || stream.deletes_generations();
        let is_suspect = |name: &StreamName| {
            let is_namesake = name.name.eq_ignore_ascii_case(&stream.spec.name.name);
            if stream.events == 0 { replaces || is_namesake } else { replaces && is_namesake }
        };
        let (name, count) = self.unmapped().find(|(name, _)| is_suspect(name))?;
        Some(format!(
            "its rows may be the {count} records that arrived for stream {}, which the catalog does not select",
            name.key()
        ))
    }
}

/// The names of streams in the text of a message, or of a part of one.
fn named_streams(text: &str) -> Vec<String> {
    let of_records = strings(text, "\"stream\"");
    let descriptor = text.find("\"stream_descriptor\"").filter(|_| of_records.is_empty());
    descriptor.map_or(of_records, |at| strings(&text[at..], "\"name\""))
}

/// The values of a field that are strings.
fn strings(text: &str, field: &str) -> Vec<String> {
    let value = |(at, _): (usize, &str)| {
        let value = text[at + field.len()..].trim_start().strip_prefix(':')?;
        serde_json::Deserializer::from_str(value).into_iter::<String>().next()?.ok()
    };
    text.match_indices(field).filter_map(value).collect()
}
