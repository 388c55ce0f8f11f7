//! How streams end: complete, failed, stopped with the task, or finished early at the record limit.

use super::{Storable, Stream, Streams};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::{Sink, SinkError, StreamIndex, WriteMode};
use crate::task::StreamStatus;

/// Appended to the reason why a stream ends early.
const ROWS_DROPPED: &str = ": its rows are dropped, because only a complete stream may replace the rows in its table";

impl Streams {
    /// Completes a stream.
    pub(super) fn complete(&mut self, at: usize) {
        self.finish_with(at, |sink, index| sink.finish(index));
    }

    /// Completes a stream without rows that the source has not reported as complete: a table is not emptied.
    fn complete_unchanged(&mut self, at: usize) {
        let stream = &self.all[at];
        if stream.spec.mode == WriteMode::Replace || stream.deletes_generations() {
            let key = &stream.key;
            let text = format!("stream {key}: no rows and no stream status arrived: its table is left unchanged");
            self.warn(Some(at), text);
        }
        self.finish_with(at, |sink, index| sink.finish_early(index).map(drop));
    }

    fn finish_with(&mut self, at: usize, finish: impl FnOnce(&mut dyn Sink, StreamIndex) -> Result<(), SinkError>) {
        self.start(at);
        if let Some(reason) = self.may_be_unmapped(at) {
            self.commit_and_fail(at, &reason);
            return;
        }
        self.write_held_or_refuse(at);
        let Some(index) = self.all[at].sink_index.filter(|_| self.all[at].is_open()) else { return };
        if let Err(error) = finish(&mut *self.sink, index) {
            self.refuse(at, &error);
            return;
        }
        let stream = &mut self.all[at];
        stream.status = StreamStatus::Success;
        stream.record_committed();
        stream.load = self.sink.counts(index);
        stream.error = None;
        let state = stream.pending_state.take();
        self.storable.extend(state.map(|state| (stream.key.clone(), state)));
        self.note_activity(at);
    }

    /// Fails a stream that is still usable: commits the rows before its waiting state first.
    pub(super) fn commit_and_fail(&mut self, at: usize, error: &str) {
        self.commit_waiting(at);
        if self.all[at].is_open() {
            self.fail(at, error);
        }
    }

    /// Fails a stream: discards its rows since the last commit and its pending state.
    pub(super) fn fail(&mut self, at: usize, error: &str) {
        self.take_held(at);
        let stream = &mut self.all[at];
        if let Some(index) = stream.sink_index {
            self.sink.abort(index);
        }
        let dropped = stream.events - stream.committed;
        if dropped > 0 {
            stream.dropped.add("not committed when the stream ended", dropped);
        }
        stream.status = if stream.committed > 0 { StreamStatus::Partial } else { StreamStatus::Failed };
        stream.error.get_or_insert_with(|| error.to_owned());
        stream.pending_state = None;
        self.note_activity(at);
    }

    /// Fails a stream that the destination refuses. Fails all open ones if the destination has become unavailable: each
    /// would wait for it again.
    pub(super) fn refuse(&mut self, at: usize, error: &SinkError) {
        self.refusal.get_or_insert_with(|| error.text.clone());
        self.fail(at, &error.text);
        if error.transient {
            for at in 0..self.all.len() {
                if self.all[at].is_open() {
                    self.fail(at, &error.text);
                }
            }
        }
    }

    fn fail_all(&mut self, matches: impl Fn(&Stream) -> bool, error: &str) {
        for at in 0..self.all.len() {
            if self.all[at].is_open() && matches(&self.all[at]) {
                self.commit_and_fail(at, error);
            }
        }
    }

    /// Fails the streams that an ambiguous record may belong to: none of them may count as complete without its row.
    pub(super) fn fail_namesakes(&mut self, name: &StreamName) {
        if self.is_ambiguous(name) {
            let reason = "the source's records name no namespace, and several streams have this name";
            self.fail_all(|stream| stream.spec.name.name == name.name, reason);
        }
    }

    /// Ends the open streams after the source has ended. A source that never sent a stream status completes all streams
    /// with exit code 0 (`is_success`). Streams without rows then leave their tables as they are, unless a full sync was
    /// asked for: nothing proves that the source has no rows.
    pub fn source_ended(&mut self, is_success: bool, reason: &str) -> Storable {
        self.commit_global();
        for at in 0..self.all.len() {
            if self.all[at].is_open() {
                // The rows of a stream without rows may have come under an unknown name: its table must not be emptied.
                let may_be_unmapped = !self.unmapped.is_empty() && self.all[at].events == 0;
                if is_success && !self.has_statuses && !may_be_unmapped {
                    let is_unproven = self.all[at].events == 0 && !self.full_sync;
                    if is_unproven {
                        self.complete_unchanged(at);
                    } else {
                        self.complete(at);
                    }
                } else {
                    self.commit_and_fail(at, reason);
                }
            }
        }
        self.take_storable()
    }

    /// Stops the open streams with the task. Returns the states that may be stored.
    pub fn stop(&mut self, status: StreamStatus) -> Storable {
        for at in 0..self.all.len() {
            if self.all[at].is_open() {
                self.commit_and_fail(at, "");
                self.all[at].status = status;
                self.all[at].error = None;
            }
        }
        self.take_storable()
    }

    /// Whether the record limit is reached.
    pub fn is_limit_reached(&self) -> bool {
        self.remaining == 0
    }

    /// Ends the open streams at the record limit: commits their rows, unless they would replace others. Pending states
    /// are dropped: a run that resumed from one would replace the table with the remaining rows. Returns the states that
    /// may be stored, and the error of the first stream that has failed.
    pub fn finish_early(&mut self, reason: &str) -> (Storable, Option<String>) {
        self.commit_global();
        let committed: Vec<bool> = (0..self.all.len()).map(|at| self.finish_stream_early(at)).collect();
        let storable = self.take_storable();
        let has_failed = |stream: &&Stream| !stream.is_open() && stream.status != StreamStatus::Success;
        let error = self.all.iter().find(has_failed).map(Stream::named_error);
        for (at, is_committed) in committed.into_iter().enumerate() {
            let stream = &self.all[at];
            if stream.is_open() {
                let (status, suffix) = match (stream.events, is_committed) {
                    (0, _) => (StreamStatus::Pending, ""),
                    (_, true) => (StreamStatus::Partial, ""),
                    (_, false) => (StreamStatus::Cancelled, ROWS_DROPPED),
                };
                self.fail(at, &format!("{reason}{suffix}"));
                self.all[at].status = status;
            }
        }
        (storable, error)
    }

    /// Returns whether the stream has rows, and they are in its table.
    fn finish_stream_early(&mut self, at: usize) -> bool {
        let stream = &self.all[at];
        if !stream.is_open() {
            return false;
        }
        if let Some(error) = stream.error.clone() {
            self.commit_and_fail(at, &error);
            return false;
        }
        if stream.has_waiting_state() {
            self.commit_or_refuse(at);
        }
        self.write_held_or_refuse(at);
        let stream = &self.all[at];
        let has_rows = stream.is_open() && stream.events > 0;
        let Some(index) = stream.sink_index.filter(|_| has_rows) else { return false };
        match self.sink.finish_early(index) {
            Ok(is_committed) => {
                if is_committed {
                    self.all[at].record_committed();
                    self.all[at].load = self.sink.counts(index);
                }
                is_committed
            }
            Err(error) => {
                self.refuse(at, &error);
                false
            }
        }
    }

    /// Why the destination refused the first stream that it refused.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether no stream is open any more because of the destination.
    pub fn is_refused(&self) -> bool {
        self.refusal.is_some() && !self.all.iter().any(Stream::is_open)
    }

    /// The keys of the streams that have succeeded.
    pub fn succeeded(&self) -> Vec<&str> {
        let succeeded = self.all.iter().filter(|stream| stream.status == StreamStatus::Success);
        succeeded.map(|stream| stream.key.as_str()).collect()
    }

    /// Whether all streams have succeeded.
    pub fn all_succeeded(&self) -> bool {
        self.all.iter().all(|stream| stream.status == StreamStatus::Success)
    }

    /// Whether some rows are in their tables.
    pub fn any_committed(&self) -> bool {
        self.all.iter().any(|stream| matches!(stream.status, StreamStatus::Success | StreamStatus::Partial))
    }

    /// The first error of a stream.
    pub fn first_error(&self) -> Option<String> {
        self.all.iter().find(|stream| stream.error.is_some()).map(Stream::named_error)
    }
}

impl Stream {
    /// Its key and error.
    fn named_error(&self) -> String {
        format!("{}: {}", self.key, self.error.as_deref().unwrap_or_default())
    }
}
