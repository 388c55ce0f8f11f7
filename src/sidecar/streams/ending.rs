//! How streams end other than by the source's word: with the source, with the task, or because there is enough.

use super::{Storable, Stream, Streams};
use crate::task::StreamStatus;

/// Of rows that were to replace others.
const DROPPED: &str = ": its rows are dropped, for only a complete stream may replace what is in its table";

impl Streams {
    /// The source has ended. A source that never sent a status is complete by its exit code alone.
    pub fn end(&mut self, clean: bool, reason: &str) -> Storable {
        let mut storable = Vec::new();
        for at in 0..self.all.len() {
            if self.all[at].is_open() {
                // Rows under a name that nobody knows are no reason to empty the table of a stream that got none.
                let unheard = self.has_unknown && self.all[at].events == 0;
                if clean && !self.has_statuses && !unheard {
                    storable.extend(self.complete(at));
                } else {
                    self.fail(at, reason);
                }
            }
        }
        storable
    }

    /// Whether as many records have come as are wanted.
    pub fn is_enough(&self) -> bool {
        self.wanted == 0
    }

    /// There is enough: what is not complete ends where it is, and its rows get in unless they would replace others. The
    /// states that wait for a stream to be complete go: a run that resumed there would replace its table with the rest.
    /// Returns what may be stored now, and why the first stream that did not end well failed.
    pub fn cut(&mut self, reason: &str) -> (Storable, Option<String>) {
        let are_in: Vec<bool> = (0..self.all.len()).map(|at| self.commit_cut(at)).collect();
        let storable = self.global_if_ready();
        let failed = |stream: &&Stream| !stream.is_open() && stream.status != StreamStatus::Success;
        let failure = self.all.iter().find(failed).map(Stream::explained);
        for (at, is_in) in are_in.into_iter().enumerate() {
            let stream = &self.all[at];
            if stream.is_open() {
                let (status, more) = match (stream.events, is_in) {
                    (0, _) => (StreamStatus::Pending, ""),
                    (_, true) => (StreamStatus::Partial, ""),
                    (_, false) => (StreamStatus::Cancelled, DROPPED),
                };
                self.fail(at, &format!("{reason}{more}"));
                self.all[at].status = status;
            }
        }
        (storable, failure)
    }

    /// Commits a stream for the last time, if it has rows and did not fail. Whether they are in its table.
    fn commit_cut(&mut self, at: usize) -> bool {
        let stream = &self.all[at];
        if !stream.is_open() {
            return false;
        }
        if let Some(error) = stream.error.clone() {
            // The source has said that it fails.
            self.fail(at, &error);
            return false;
        }
        let Some(index) = stream.open.filter(|_| stream.events > 0) else { return false };
        match self.sink.finish_early(index) {
            Ok(true) => self.all[at].committed = self.all[at].events,
            Ok(false) => return false,
            Err(error) => {
                self.refuse(at, &error);
                return false;
            }
        }
        true
    }

    /// The task stops: what is not complete gets this status.
    pub fn stop(&mut self, status: StreamStatus) {
        for at in 0..self.all.len() {
            if self.all[at].is_open() {
                self.fail(at, "");
                self.all[at].status = status;
                self.all[at].error = None;
            }
        }
    }

    /// The keys of the streams that arrived whole.
    pub fn done(&self) -> Vec<&str> {
        let done = self.all.iter().filter(|stream| stream.status == StreamStatus::Success);
        done.map(|stream| stream.key.as_str()).collect()
    }

    /// How many streams arrived whole, in part, and how many there are.
    pub fn tally(&self) -> (usize, usize, usize) {
        let count = |status| self.all.iter().filter(|stream| stream.status == status).count();
        (count(StreamStatus::Success), count(StreamStatus::Partial), self.all.len())
    }

    /// The first stream's error, for the error of the whole.
    pub fn first_error(&self) -> Option<String> {
        self.all.iter().find(|stream| stream.error.is_some()).map(Stream::explained)
    }
}

impl Stream {
    /// Its error, with its name.
    fn explained(&self) -> String {
        format!("{}: {}", self.key, self.error.as_deref().unwrap_or_default())
    }
}
