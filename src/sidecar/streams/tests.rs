//! Commits without a state (by size, by age, at the record limit), states that wait for them, and ambiguous records.

mod joined_commits;

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{CommitLimits, Storable, Streams};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::message::{Record, StreamName};
use crate::airbyte::state::Progress;
use crate::sidecar::sink::{Committed, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};
use crate::task::{ReadOptions, StreamReports, StreamStatus};

/// Records its calls. Commits of stream `bad` fail, those of stream `gone` with a transient error.
#[derive(Default)]
struct RecordingSink {
    calls: Arc<Mutex<Vec<String>>>,
    streams: Vec<StreamSpec>,
}

impl RecordingSink {
    fn call(&self, what: &str, stream: StreamIndex) {
        self.calls.lock().expect("no panic").push(format!("{what} {}", self.streams[stream].name.name));
    }
}

impl Sink for RecordingSink {
    fn open(&mut self, stream: StreamSpec) -> Result<StreamIndex, SinkError> {
        self.streams.push(stream);
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, _: StreamIndex, _: &Record<'_>) -> Result<(), SinkError> {
        Ok(())
    }

    fn commit(&mut self, stream: StreamIndex) -> Result<Committed, SinkError> {
        self.call("commit", stream);
        match self.streams[stream].name.name.as_str() {
            "bad" => return Err(SinkError { text: "no such right".to_owned(), transient: false }),
            "gone" => return Err(SinkError { text: "no answer".to_owned(), transient: true }),
            _ => {}
        }
        let replaces = self.streams[stream].mode == WriteMode::Replace;
        Ok(if replaces { Committed::Deferred } else { Committed::Durable })
    }

    fn finish(&mut self, stream: StreamIndex) -> Result<(), SinkError> {
        self.call("finish", stream);
        Ok(())
    }

    fn finish_early(&mut self, stream: StreamIndex) -> Result<bool, SinkError> {
        self.call("finish_early", stream);
        match self.streams[stream].name.name.as_str() {
            "bad" => Err(SinkError { text: "no such right".to_owned(), transient: false }),
            _ => Ok(self.streams[stream].mode != WriteMode::Replace),
        }
    }

    fn abort(&mut self, stream: StreamIndex) {
        self.call("abort", stream);
    }
}

/// Streams of these names: `full` replaces its table, the others append.
fn streams(names: &[&str], bytes: u64) -> (Streams, Arc<Mutex<Vec<String>>>) {
    streams_with(names, bytes, &ReadOptions::default())
}

/// Streams with a record limit.
fn limited(names: &[&str], records: u64) -> (Streams, Arc<Mutex<Vec<String>>>) {
    let options = ReadOptions { max_records: Some(records), ..ReadOptions::default() };
    streams_with(names, 1 << 20, &options)
}

fn streams_with(names: &[&str], bytes: u64, options: &ReadOptions) -> (Streams, Arc<Mutex<Vec<String>>>) {
    let configured = names.iter().map(|name| {
        let mode = if *name == "full" { ["full_refresh", "overwrite"] } else { ["incremental", "append"] };
        // As `namespace.name`.
        let (namespace, name) = name.rsplit_once('.').unwrap_or(("", name));
        let stream = serde_json::json!({"name": name, "namespace": namespace});
        serde_json::json!({"stream": stream, "sync_mode": mode[0], "destination_sync_mode": mode[1]})
    });
    let catalog = serde_json::json!({"streams": configured.collect::<Vec<_>>()});
    let catalog: ConfiguredCatalog = serde_json::from_value(catalog).expect("a catalog");
    let sink = RecordingSink::default();
    let calls = sink.calls.clone();
    let limits = CommitLimits { bytes, interval: Duration::from_hours(1) };
    (Streams::new(&catalog, options, &Progress::default(), limits, Box::new(sink)), calls)
}

/// Ticks, with a check of the age of uncommitted rows.
fn tick(streams: &mut Streams) -> Storable {
    streams.next_check = Instant::now();
    streams.tick()
}

/// Ticks as if the interval was over.
fn tick_overdue(streams: &mut Streams) -> Storable {
    let interval = std::mem::take(&mut streams.limits.interval);
    let storable = tick(streams);
    streams.limits.interval = interval;
    storable
}

fn row(streams: &mut Streams, stream: &str) {
    row_of(streams, stream, "0123456789");
}

fn row_of(streams: &mut Streams, stream: &str, data: &str) {
    let record = Record {
        stream: Cow::Borrowed(stream),
        namespace: None,
        data: Cow::Borrowed(data),
        emitted_at: None,
        meta: None,
        line_bytes: 20,
    };
    streams.record(&record).expect("a selected stream");
}

fn take(calls: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut *calls.lock().expect("no panic"))
}

#[test]
fn rows_are_committed_by_size() {
    let (mut streams, calls) = streams(&["a", "b", "full"], 30);
    row(&mut streams, "a");
    row(&mut streams, "b");
    let state = |text: &str| ("a".to_owned(), text.to_owned());
    let a = StreamName::new(None, "a");
    assert_eq!(streams.state(&a, "1".to_owned()), [state("1")], "the state commits the first row");
    for _ in 0..7 {
        row(&mut streams, "a");
        row(&mut streams, "full");
    }
    assert_eq!(take(&calls), ["commit a"; 3], "the size is counted from the commit of the state");
    assert_eq!(streams.state(&a, "2".to_owned()), [], "the last commit was a moment ago");
    for _ in 0..3 {
        row(&mut streams, "a");
    }
    assert_eq!(take(&calls), [""; 0], "the rows after the state are held");
    assert_eq!(streams.state(&a, "3".to_owned()), [state("2")], "they exceed the limit together");
    assert_eq!(take(&calls), ["commit a"]);
    streams.source_ended(false, "it broke");
    let status = |name: &str| streams.reports()[name].status;
    assert_eq!((status("a"), status("b")), (StreamStatus::Partial, StreamStatus::Failed));
    assert_eq!(take(&calls), ["commit a", "abort a", "abort b", "abort full"]);
}

#[test]
fn rows_are_committed_by_age() {
    let (mut streams, calls) = streams(&["a", "b", "idle", "full"], 1 << 20);
    row(&mut streams, "a");
    row(&mut streams, "full");
    row(&mut streams, "b");
    streams.state(&StreamName::new(None, "b"), "{}".to_owned());
    assert_eq!(take(&calls), ["commit b"]);
    assert_eq!(tick(&mut streams), []);
    assert_eq!(take(&calls), [""; 0], "not overdue");
    assert_eq!(tick_overdue(&mut streams), [], "no state");
    assert_eq!(take(&calls), ["commit a"], "only streams with uncommitted rows");
    tick_overdue(&mut streams);
    assert_eq!(take(&calls), [""; 0], "no new rows");
}

#[test]
fn failed_commits_fail_their_stream() {
    for (label, bytes) in [("by size", 10), ("by age", 1 << 20)] {
        let (mut streams, calls) = streams(&["a", "bad"], bytes);
        row(&mut streams, "bad");
        tick_overdue(&mut streams);
        assert_eq!(take(&calls), ["commit bad", "abort bad"], "{label}");
        let report = &streams.reports()["bad"];
        assert_eq!((report.status, report.error.as_deref()), (StreamStatus::Failed, Some("no such right")), "{label}");
    }
}

#[test]
fn transient_errors_fail_all_open_streams() {
    let (mut streams, calls) = streams(&["a", "gone", "done"], 10);
    let done = StreamName::new(None, "done");
    streams.status(&done, "COMPLETE");
    row(&mut streams, "gone");
    assert_eq!(take(&calls), ["finish done", "commit gone", "abort gone", "abort a"], "no further attempts");
    let reports = streams.reports();
    let statuses = ["a", "gone", "done"].map(|name| reports[name].status);
    assert_eq!(statuses, [StreamStatus::Failed, StreamStatus::Failed, StreamStatus::Success]);
    assert!(streams.is_refused(), "no open streams");
    assert_eq!(streams.refusal(), Some("no answer"));
}

#[test]
fn global_states_wait_until_all_rows_are_durable() {
    let (mut streams, calls) = streams(&["full", "a"], 1 << 20);
    row(&mut streams, "full");
    row(&mut streams, "a");
    assert_eq!(streams.global_state("_GLOBAL_STATE".to_owned(), "{}".to_owned()), []);
    row(&mut streams, "a");
    assert_eq!(tick_overdue(&mut streams), [], "the replaced stream is incomplete");
    row(&mut streams, "a");
    let state = [("_GLOBAL_STATE".to_owned(), "{}".to_owned())];
    assert_eq!(streams.status(&StreamName::new(None, "full"), "COMPLETE"), state, "the last row came after the state");
    assert_eq!(take(&calls), ["commit a", "commit a", "finish full"]);
}

#[test]
fn global_states_of_failed_streams_are_dropped() {
    let (mut streams, _calls) = streams(&["full", "bad"], 1 << 20);
    row(&mut streams, "full");
    assert_eq!(streams.global_state("_GLOBAL_STATE".to_owned(), "{}".to_owned()), []);
    row(&mut streams, "bad");
    assert_eq!(tick_overdue(&mut streams), []);
    assert_eq!(streams.status(&StreamName::new(None, "full"), "COMPLETE"), []);
}

#[test]
fn ambiguous_records_fail_all_streams_of_their_name() {
    let (mut streams, calls) = streams(&["one.users", "two.users", "one.orders"], 1 << 20);
    let users = ["one", "two"].map(|namespace| StreamName::new(Some(namespace), "users"));
    row(&mut streams, "orders");
    assert_eq!(streams.status(&users[0], "STARTED"), []);
    let record = |namespace: Option<&'static str>| Record {
        stream: Cow::Borrowed("users"),
        namespace: namespace.map(Cow::Borrowed),
        data: Cow::Borrowed("{}"),
        emitted_at: None,
        meta: None,
        line_bytes: 20,
    };
    assert_eq!(streams.record(&record(Some("three"))), Err(StreamName::new(Some("three"), "users")));
    assert_eq!(take(&calls), [""; 0], "an unselected namespace is not ambiguous");
    let bare = StreamName::new(None, "users");
    assert_eq!(streams.record(&record(None)), Err(bare.clone()));
    assert!(streams.is_ambiguous(&bare));
    for name in &users {
        assert_eq!(streams.status(name, "COMPLETE"), []);
    }
    streams.status(&StreamName::new(Some("one"), "orders"), "COMPLETE");
    assert_eq!(take(&calls), ["abort users", "abort users", "finish orders"]);
    let reports = streams.reports();
    let statuses = ["one.users", "two.users", "one.orders"].map(|key| reports[key].status);
    assert_eq!(statuses, [StreamStatus::Failed, StreamStatus::Failed, StreamStatus::Success]);
}

/// Status and error of each stream.
fn outcomes<'r>(reports: &'r StreamReports, names: &[&str]) -> Vec<(StreamStatus, Option<&'r str>)> {
    names.iter().map(|name| (reports[*name].status, reports[*name].error.as_deref())).collect()
}

#[test]
fn open_streams_finish_early_at_the_record_limit() {
    let names = ["done", "a", "full", "idle"];
    let (mut streams, calls) = limited(&names, 6);
    let name = |name: &str| StreamName::new(None, name);
    row(&mut streams, "done");
    assert_eq!(streams.status(&name("done"), "COMPLETE"), []);
    row(&mut streams, "a");
    assert_eq!(streams.state(&name("a"), "1".to_owned()), [("a".to_owned(), "1".to_owned())]);
    row(&mut streams, "full");
    assert_eq!(streams.state(&name("full"), "2".to_owned()), []);
    streams.status(&name("idle"), "STARTED");
    let unknown = Record {
        stream: "other".into(),
        namespace: None,
        data: "{}".into(),
        emitted_at: None,
        meta: None,
        line_bytes: 20,
    };
    assert!(streams.record(&unknown).is_err());
    row(&mut streams, "full");
    row(&mut streams, "a");
    assert!(!streams.is_limit_reached(), "unmapped records do not count");
    row(&mut streams, "a");
    assert!(streams.is_limit_reached());
    take(&calls);
    assert_eq!(streams.finish_early("limit"), (vec![], None), "the pending state is dropped");
    assert_eq!(take(&calls), ["finish_early a", "finish_early full", "abort a", "abort full", "abort idle"]);
    let reports = streams.reports();
    let dropped = "limit: its rows are dropped, because only a complete stream may replace the rows in its table";
    let expected = [
        (StreamStatus::Success, None),
        (StreamStatus::Partial, Some("limit")),
        (StreamStatus::Cancelled, Some(dropped)),
        (StreamStatus::Pending, Some("limit")),
    ];
    assert_eq!(outcomes(&reports, &names), expected);
    assert_eq!(names.map(|name| reports[name].events), [1, 3, 0, 0], "committed rows");
}

#[test]
fn streams_that_failed_before_the_record_limit_are_reported() {
    let (mut streams, _calls) = limited(&["a", "incomplete", "erroneous", "bad", "done"], 6);
    for name in ["incomplete", "erroneous", "bad", "done", "a"] {
        row(&mut streams, name);
    }
    streams.status(&StreamName::new(None, "incomplete"), "INCOMPLETE");
    row(&mut streams, "incomplete");
    assert!(!streams.is_limit_reached(), "rows of failed streams do not count");
    streams.status(&StreamName::new(None, "done"), "COMPLETE");
    streams.error(&StreamName::new(None, "erroneous"), "the API returned 500");
    row(&mut streams, "a");
    assert!(streams.is_limit_reached());
    let (storable, failure) = streams.finish_early("limit");
    assert_eq!(
        (storable, failure.as_deref()),
        (vec![], Some("incomplete: the source reported the stream as incomplete"))
    );
    let expected = [
        (StreamStatus::Partial, Some("limit")),
        (StreamStatus::Failed, Some("the source reported the stream as incomplete")),
        (StreamStatus::Failed, Some("the API returned 500")),
        (StreamStatus::Failed, Some("no such right")),
        (StreamStatus::Success, None),
    ];
    assert_eq!(outcomes(&streams.reports(), &["a", "incomplete", "erroneous", "bad", "done"]), expected);
    assert_eq!(streams.refusal(), Some("no such right"));
}

#[test]
fn global_states_are_stored_at_the_record_limit_if_all_rows_are_durable() {
    for (label, finished, expected) in [("complete", true, 1), ("incomplete", false, 0)] {
        let (mut streams, _calls) = limited(&["full", "a"], 3);
        row(&mut streams, "full");
        row(&mut streams, "a");
        assert_eq!(streams.global_state("_GLOBAL_STATE".to_owned(), "{}".to_owned()), [], "{label}");
        row(&mut streams, "a");
        let mut stored = Vec::new();
        if finished {
            stored = streams.status(&StreamName::new(None, "full"), "COMPLETE");
        }
        let (storable, failure) = streams.finish_early("limit");
        assert_eq!((stored.len() + storable.len(), failure), (expected, None), "{label}");
    }
}
