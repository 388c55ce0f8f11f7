//! Commits that no state asks for: by size, by time, because there is enough, and what they mean for states that wait. And
//! rows that nobody can tell the stream of.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::sink::{Committed, Sink, SinkError, StreamIndex, StreamSpec, WriteMode};
use super::streams::{CommitLimits, Streams};
use crate::airbyte::catalog::ConfiguredCatalog;
use crate::airbyte::message::{Record, StreamName};
use crate::airbyte::state::Progress;
use crate::task::{ReadOptions, StreamReports, StreamStatus};

/// Notes what it is asked for, and refuses to commit the stream called `bad`. At the one called `gone` it is away.
#[derive(Default)]
struct Notes {
    calls: Arc<Mutex<Vec<String>>>,
    streams: Vec<StreamSpec>,
}

impl Notes {
    fn note(&self, what: &str, stream: StreamIndex) {
        self.calls.lock().expect("no panic").push(format!("{what} {}", self.streams[stream].name.name));
    }
}

impl Sink for Notes {
    fn open(&mut self, stream: StreamSpec) -> Result<StreamIndex, SinkError> {
        self.streams.push(stream);
        Ok(self.streams.len() - 1)
    }

    fn write(&mut self, _: StreamIndex, _: &Record<'_>) -> Result<(), SinkError> {
        Ok(())
    }

    fn commit(&mut self, stream: StreamIndex) -> Result<Committed, SinkError> {
        self.note("commit", stream);
        match self.streams[stream].name.name.as_str() {
            "bad" => return Err(SinkError { text: "no such right".to_owned(), transient: false }),
            "gone" => return Err(SinkError { text: "no answer".to_owned(), transient: true }),
            _ => {}
        }
        let replaces = self.streams[stream].mode == WriteMode::Replace;
        Ok(if replaces { Committed::Deferred } else { Committed::Durable })
    }

    fn finish(&mut self, stream: StreamIndex) -> Result<(), SinkError> {
        self.note("finish", stream);
        Ok(())
    }

    fn finish_early(&mut self, stream: StreamIndex) -> Result<bool, SinkError> {
        self.note("cut", stream);
        match self.streams[stream].name.name.as_str() {
            "bad" => Err(SinkError { text: "no such right".to_owned(), transient: false }),
            _ => Ok(self.streams[stream].mode != WriteMode::Replace),
        }
    }

    fn abort(&mut self, stream: StreamIndex) {
        self.note("abort", stream);
    }
}

/// Streams of these names: `full` is replaced, the others are added to.
fn streams(names: &[&str], bytes: u64, interval: Duration) -> (Streams, Arc<Mutex<Vec<String>>>) {
    streams_with(names, CommitLimits { bytes, interval }, &ReadOptions::default())
}

/// The same, of which so many records are enough.
fn limited(names: &[&str], records: u64) -> (Streams, Arc<Mutex<Vec<String>>>) {
    let options = ReadOptions { max_records: Some(records), ..ReadOptions::default() };
    streams_with(names, CommitLimits { bytes: 1 << 20, interval: NEVER }, &options)
}

fn streams_with(names: &[&str], limits: CommitLimits, options: &ReadOptions) -> (Streams, Arc<Mutex<Vec<String>>>) {
    let configured = names.iter().map(|name| {
        let mode = if *name == "full" { ["full_refresh", "overwrite"] } else { ["incremental", "append"] };
        // As `namespace.name`.
        let (namespace, name) = name.rsplit_once('.').unwrap_or(("", name));
        let stream = serde_json::json!({"name": name, "namespace": namespace});
        serde_json::json!({"stream": stream, "sync_mode": mode[0], "destination_sync_mode": mode[1]})
    });
    let catalog = serde_json::json!({"streams": configured.collect::<Vec<_>>()});
    let catalog: ConfiguredCatalog = serde_json::from_value(catalog).expect("a catalog");
    let sink = Notes::default();
    let calls = sink.calls.clone();
    (Streams::new(&catalog, options, &Progress::default(), limits, Box::new(sink)), calls)
}

fn row(streams: &mut Streams, stream: &str) {
    let record =
        Record { stream: Cow::Borrowed(stream), namespace: None, data: Cow::Borrowed("0123456789"), emitted_at: None };
    streams.record(&record).expect("a selected stream");
}

fn taken(calls: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut *calls.lock().expect("no panic"))
}

const NEVER: Duration = Duration::from_hours(1);
const SOON: Duration = Duration::from_millis(20);

#[test]
fn rows_are_committed_by_size() {
    let (mut streams, calls) = streams(&["a", "b", "full"], 30, NEVER);
    for _ in 0..7 {
        row(&mut streams, "a");
        row(&mut streams, "full");
    }
    row(&mut streams, "b");
    assert_eq!(taken(&calls), ["commit a", "commit a"]);
    assert!(streams.state(&StreamName::new(None, "a"), "{}".to_owned()).len() == 1, "a state stands for the seventh");
    for _ in 0..2 {
        row(&mut streams, "a");
    }
    assert_eq!(taken(&calls), ["commit a"], "the state's commit counts");
    streams.end(false, "it broke");
    let status = |name: &str| streams.reports()[name].status;
    assert_eq!((status("a"), status("b")), (StreamStatus::Partial, StreamStatus::Failed));
    assert_eq!(taken(&calls), ["abort a", "abort b", "abort full"]);
}

#[test]
fn rows_are_committed_when_they_have_waited_long() {
    let (mut streams, calls) = streams(&["a", "b", "idle", "full"], 1 << 20, SOON);
    row(&mut streams, "a");
    row(&mut streams, "full");
    row(&mut streams, "b");
    streams.state(&StreamName::new(None, "b"), "{}".to_owned());
    assert_eq!(taken(&calls), ["commit b"]);
    assert_eq!(streams.commit_overdue(), Vec::new());
    assert_eq!(taken(&calls), Vec::<String>::new(), "it is too early");
    std::thread::sleep(SOON * 2);
    assert_eq!(streams.commit_overdue(), Vec::new(), "no state comes of it");
    assert_eq!(taken(&calls), ["commit a"], "only what has waiting rows");
    std::thread::sleep(SOON * 2);
    streams.commit_overdue();
    assert_eq!(taken(&calls), Vec::<String>::new(), "nothing has come since");
}

#[test]
fn a_commit_that_fails_fails_its_stream() {
    for (label, bytes, interval) in [("by size", 10, NEVER), ("by time", 1 << 20, SOON)] {
        let (mut streams, calls) = streams(&["a", "bad"], bytes, interval);
        row(&mut streams, "bad");
        std::thread::sleep(if label == "by time" { SOON * 2 } else { Duration::ZERO });
        streams.commit_overdue();
        assert_eq!(taken(&calls), ["commit bad", "abort bad"], "{label}");
        let report = &streams.reports()["bad"];
        assert_eq!((report.status, report.error.as_deref()), (StreamStatus::Failed, Some("no such right")), "{label}");
    }
}

#[test]
fn a_destination_that_is_away_takes_no_other_stream_either() {
    let (mut streams, calls) = streams(&["a", "gone", "done"], 10, NEVER);
    let done = StreamName::new(None, "done");
    streams.status(&done, "COMPLETE");
    row(&mut streams, "gone");
    assert_eq!(taken(&calls), ["finish done", "commit gone", "abort gone", "abort a"], "nobody waits for it again");
    let reports = streams.reports();
    let statuses = ["a", "gone", "done"].map(|name| reports[name].status);
    assert_eq!(statuses, [StreamStatus::Failed, StreamStatus::Failed, StreamStatus::Success]);
    assert!(streams.is_refused(), "nothing is left to read");
    assert_eq!(streams.refusal(), Some("no answer"));
}

#[test]
fn a_global_state_waits_for_whom_it_has_to_and_no_longer() {
    let (mut streams, calls) = streams(&["full", "a"], 1 << 20, SOON);
    row(&mut streams, "full");
    row(&mut streams, "a");
    assert_eq!(streams.global_state("_GLOBAL_STATE".to_owned(), "{}".to_owned()), []);
    row(&mut streams, "a");
    std::thread::sleep(SOON * 2);
    assert_eq!(streams.commit_overdue(), [], "the replaced stream is not complete");
    row(&mut streams, "a");
    assert_eq!(streams.status(&StreamName::new(None, "full"), "COMPLETE"), [], "rows of the other are under way");
    std::thread::sleep(SOON * 2);
    assert_eq!(streams.commit_overdue(), [("_GLOBAL_STATE".to_owned(), "{}".to_owned())]);
    assert_eq!(taken(&calls), ["commit full", "commit a", "commit a", "finish full", "commit a"].map(str::to_owned));
}

#[test]
fn a_global_state_of_a_failed_stream_is_never_released() {
    let (mut streams, _calls) = streams(&["full", "bad"], 1 << 20, SOON);
    row(&mut streams, "full");
    assert_eq!(streams.global_state("_GLOBAL_STATE".to_owned(), "{}".to_owned()), []);
    row(&mut streams, "bad");
    std::thread::sleep(SOON * 2);
    assert_eq!(streams.commit_overdue(), []);
    assert_eq!(streams.status(&StreamName::new(None, "full"), "COMPLETE"), []);
}

#[test]
fn a_row_of_one_of_several_streams_lets_none_of_them_succeed() {
    let (mut streams, calls) = streams(&["one.users", "two.users", "one.orders"], 1 << 20, NEVER);
    let users = ["one", "two"].map(|namespace| StreamName::new(Some(namespace), "users"));
    row(&mut streams, "orders");
    assert_eq!(streams.status(&users[0], "STARTED"), []);
    let record = |namespace: Option<&'static str>| Record {
        stream: Cow::Borrowed("users"),
        namespace: namespace.map(Cow::Borrowed),
        data: Cow::Borrowed("{}"),
        emitted_at: None,
    };
    assert_eq!(streams.record(&record(Some("three"))), Err(StreamName::new(Some("three"), "users")));
    assert_eq!(taken(&calls), Vec::<String>::new(), "a namespace that is not selected is no doubt");
    let bare = StreamName::new(None, "users");
    assert_eq!(streams.record(&record(None)), Err(bare.clone()));
    assert!(streams.is_ambiguous(&bare));
    for name in &users {
        assert_eq!(streams.status(name, "COMPLETE"), []);
    }
    streams.status(&StreamName::new(Some("one"), "orders"), "COMPLETE");
    assert_eq!(taken(&calls), ["abort users", "abort users", "finish orders"]);
    let reports = streams.reports();
    let statuses = ["one.users", "two.users", "one.orders"].map(|key| reports[key].status);
    assert_eq!(statuses, [StreamStatus::Failed, StreamStatus::Failed, StreamStatus::Success]);
}

/// Each stream's status and error.
fn ends<'r>(reports: &'r StreamReports, names: &[&str]) -> Vec<(StreamStatus, Option<&'r str>)> {
    names.iter().map(|name| (reports[*name].status, reports[*name].error.as_deref())).collect()
}

#[test]
fn enough_records_are_committed_and_the_rest_is_left_alone() {
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
    let unknown = Record { stream: "other".into(), namespace: None, data: "{}".into(), emitted_at: None };
    assert!(streams.record(&unknown).is_err());
    row(&mut streams, "full");
    row(&mut streams, "a");
    assert!(!streams.is_enough(), "what nobody has selected does not count");
    row(&mut streams, "a");
    assert!(streams.is_enough());
    taken(&calls);
    assert_eq!(streams.cut("enough"), (vec![], None), "a state of rows that are not in is dropped");
    assert_eq!(taken(&calls), ["cut a", "cut full", "abort a", "abort full", "abort idle"]);
    let reports = streams.reports();
    let dropped = "enough: its rows are dropped, for only a complete stream may replace what is in its table";
    let expected = [
        (StreamStatus::Success, None),
        (StreamStatus::Partial, Some("enough")),
        (StreamStatus::Cancelled, Some(dropped)),
        (StreamStatus::Pending, Some("enough")),
    ];
    assert_eq!(ends(&reports, &names), expected);
    assert_eq!(names.map(|name| reports[name].events), [1, 3, 2, 0]);
}

#[test]
fn a_stream_that_failed_before_there_was_enough_is_told() {
    let (mut streams, _calls) = limited(&["a", "given_up", "troubled", "bad", "done"], 6);
    for name in ["given_up", "troubled", "bad", "done", "a"] {
        row(&mut streams, name);
    }
    streams.status(&StreamName::new(None, "given_up"), "INCOMPLETE");
    row(&mut streams, "given_up");
    assert!(!streams.is_enough(), "a row that goes nowhere does not count");
    streams.status(&StreamName::new(None, "done"), "COMPLETE");
    streams.error(&StreamName::new(None, "troubled"), "the API said 500");
    row(&mut streams, "a");
    assert!(streams.is_enough());
    let (storable, failure) = streams.cut("enough");
    assert_eq!((storable, failure.as_deref()), (vec![], Some("given_up: the source gave the stream up")));
    let expected = [
        (StreamStatus::Partial, Some("enough")),
        (StreamStatus::Failed, Some("the source gave the stream up")),
        (StreamStatus::Failed, Some("the API said 500")),
        (StreamStatus::Failed, Some("no such right")),
        (StreamStatus::Success, None),
    ];
    assert_eq!(ends(&streams.reports(), &["a", "given_up", "troubled", "bad", "done"]), expected);
    assert_eq!(streams.refusal(), Some("no such right"));
}

#[test]
fn a_global_state_is_stored_when_there_is_enough_only_if_all_of_its_rows_are_in() {
    for (label, finished, expected) in [("complete", true, 1), ("cut off", false, 0)] {
        let (mut streams, _calls) = limited(&["full", "a"], 3);
        row(&mut streams, "full");
        row(&mut streams, "a");
        assert_eq!(streams.global_state("_GLOBAL_STATE".to_owned(), "{}".to_owned()), [], "{label}");
        row(&mut streams, "a");
        if finished {
            assert_eq!(streams.status(&StreamName::new(None, "full"), "COMPLETE"), [], "{label}");
        }
        let (storable, failure) = streams.cut("enough");
        assert_eq!((storable.len(), failure), (expected, None), "{label}");
    }
}
