//! Requests in each mode.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Behavior, DEADLINE, FakeServer, LIMITS, TOKEN, rows, spec, write};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::bulker::BulkerSink;
use crate::sidecar::sink::{Committed, Generation, Sink, StreamIndex, StreamSpec, WriteMode};

fn open(sink: &mut BulkerSink, spec: StreamSpec) -> StreamIndex {
    sink.open(spec).expect("a stream")
}

#[test]
fn requests_have_the_expected_query_and_headers() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let mut stream = spec("größe", WriteMode::Merge);
    stream.primary_key.push(vec!["a".to_owned(), "b".to_owned()]);
    let stream = open(&mut sink, stream);
    rows(&mut sink, stream, 1..=2);
    assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
    let request = &server.requests()[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/to/bulk/sync"));
    let expected = [
        ("tableName", "größe"),
        ("mode", "batch"),
        ("pk", "id"),
        ("pk", "a_b"),
        ("taskId", "task"),
        ("jobId", "sync_größe_task"),
    ];
    let expected: Vec<_> = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!(request.query, expected);
    assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(request.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(request.header("content-encoding"), None);
    assert_eq!(request.header("host"), Some(format!("127.0.0.1:{}", server.port).as_str()));
    let schema: Value = serde_json::from_str(request.header("x-jitsu-schema").expect("a schema")).expect("JSON");
    assert_eq!(schema, json!({"name": "größe", "fields": [{"name": "id", "type": 2}]}));
    assert_eq!(request.lines, [r#"{"id":1}"#, r#"{"id":2}"#]);
}

#[test]
fn the_first_request_replaces_the_table_of_a_stream_without_a_state() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let server = FakeServer::start(&[]);
        let mut sink = server.sink(LIMITS);
        let stream = open(&mut sink, StreamSpec { replaces_at_first_commit: true, ..spec("s", mode) });
        sink.commit(stream).expect("a commit");
        assert_eq!(server.calls(), 0, "no rows, no request");
        for id in 1..=3 {
            rows(&mut sink, stream, id..=id);
            assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        }
        sink.finish(stream).expect("the end");
        let expected = [r#"s replace_table: {"id":1}"#, r#"s batch: {"id":2}"#, r#"s batch: {"id":3}"#];
        assert_eq!(server.summaries(), expected, "{mode:?}");
    }
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let stream = open(&mut sink, StreamSpec { replaces_at_first_commit: true, ..spec("s", WriteMode::Merge) });
    sink.finish(stream).expect("the end");
    assert_eq!(server.calls(), 0, "without rows the table stays as it is");
}

#[test]
fn append_and_merge_send_one_request_per_commit() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let server = FakeServer::start(&[]);
        let mut sink = server.sink(LIMITS);
        let stream = open(&mut sink, spec("s", mode));
        assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        assert_eq!(server.calls(), 0, "no rows, no request");
        rows(&mut sink, stream, 1..=2);
        assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        rows(&mut sink, stream, 3..=3);
        sink.finish(stream).expect("the end");
        assert_eq!(server.summaries(), [r#"s batch: {"id":1} {"id":2}"#, r#"s batch: {"id":3}"#], "{mode:?}");
        let keys: &[&str] = if mode == WriteMode::Merge { &["id"] } else { &[] };
        assert_eq!(server.requests()[1].all("pk"), keys, "{mode:?}");
        assert_eq!(sink.warnings(), []);
        assert!(sink.finish(stream).is_err(), "closed");
    }
}

#[test]
fn generation_refreshes_replace_unless_they_resume() {
    for (resumes, expected, warnings) in [
        (false, [r#"s replace_table: {"id":1} {"id":2}"#].as_slice(), 0),
        (true, [r#"s batch: {"id":1}"#, r#"s batch: {"id":2}"#].as_slice(), 1),
    ] {
        let server = FakeServer::start(&[]);
        let mut sink = server.sink(LIMITS);
        let generation = Generation { id: 3, minimum: 3, resumable: true, resumes };
        let stream = open(&mut sink, StreamSpec { generation, ..spec("s", WriteMode::Merge) });
        rows(&mut sink, stream, 1..=1);
        let committed = sink.commit(stream).expect("a commit");
        assert_eq!(committed, if resumes { Committed::Durable } else { Committed::Deferred });
        rows(&mut sink, stream, 2..=2);
        sink.finish(stream).expect("the end");
        assert_eq!(server.summaries(), expected);
        assert_eq!(server.requests()[0].all("pk"), ["id"]);
        assert_eq!(sink.warnings().len(), warnings);
    }
}

#[test]
fn replace_sends_one_request_over_all_states() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let (one, two) =
        (open(&mut sink, spec("one", WriteMode::Replace)), open(&mut sink, spec("two", WriteMode::Append)));
    for id in 1..=3 {
        rows(&mut sink, one, id..=id);
        rows(&mut sink, two, id..=id);
        assert_eq!(sink.commit(one).expect("a commit"), Committed::Deferred);
    }
    assert_eq!(server.calls(), 0, "small chunks are buffered");
    sink.finish(one).expect("the end");
    sink.finish(two).expect("the end");
    let expected = [r#"one replace_table: {"id":1} {"id":2} {"id":3}"#, r#"two batch: {"id":1} {"id":2} {"id":3}"#];
    assert_eq!(server.summaries(), expected);
    assert_eq!(server.requests()[0].all("pk"), ["id"]);
}

#[test]
fn overdue_requests_are_split() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let long = "x".repeat(200_000);
    let (one, two) =
        (open(&mut sink, spec("one", WriteMode::Replace)), open(&mut sink, spec("two", WriteMode::Append)));
    for stream in [one, two] {
        write(&mut sink, stream, &format!(r#"{{"id":1,"x":"{long}"}}"#)).expect("a row");
    }
    sink.tick();
    assert_eq!(sink.warnings(), [], "not overdue");
    sink.server.limits.open = Duration::ZERO;
    sink.tick();
    sink.server.limits.open = LIMITS.open;
    let warnings = sink.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].text.starts_with(r#"stream "one", table "one": "#) && warnings[0].text.contains("incomplete"),
        "{warnings:?}"
    );
    // A run that resumed here would replace the table with the remaining rows.
    rows(&mut sink, one, 2..=2);
    assert_eq!(sink.commit(one).expect("a commit"), Committed::Deferred);
    rows(&mut sink, two, 2..=2);
    assert_eq!(sink.commit(two).expect("a commit"), Committed::Durable);
    sink.finish(one).expect("the end");
    let summaries: Vec<String> = server.summaries().iter().map(|summary| summary.replace(&long, "…")).collect();
    let expected = [
        r#"one replace_table: {"id":1,"x":"…"}"#,
        r#"two batch: {"id":1,"x":"…"}"#,
        r#"two batch: {"id":2}"#,
        r#"one batch: {"id":2}"#,
    ];
    assert_eq!(summaries, expected);
    assert!(sink.warnings().is_empty(), "reported once");
}

#[test]
fn idle_requests_are_kept_alive_with_spaces() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000));
    let longest = format!(r#"{{"x":"{}"}}"#, "x".repeat((1 << 20) - 10));
    let streams =
        [WriteMode::Replace, WriteMode::Append, WriteMode::Append].map(|mode| open(&mut sink, spec("s", mode)));
    sink.tick();
    for (stream, row) in streams.into_iter().zip([&long, &long, &longest]) {
        write(&mut sink, stream, row).expect("a row");
    }
    write(&mut sink, streams[1], "{}").expect("a row");
    sink.server.limits.idle = Duration::ZERO;
    for _ in 0..3 {
        sink.tick();
    }
    write(&mut sink, streams[0], "{}").expect("a row");
    for stream in streams {
        sink.finish(stream).expect("the end");
    }
    let requests = server.requests();
    let lines = |at: usize| requests[at].lines.clone();
    assert!(requests.len() == 3 && requests.iter().all(|request| request.complete), "{} requests", requests.len());
    assert_eq!(lines(0), [format!("{long}   "), "{}".to_owned()]);
    assert_eq!(lines(1), [long, "{}  ".to_owned()], "buffered rows also keep the request alive");
    assert_eq!(lines(2), [longest], "a space would exceed the line limit");
}

#[test]
fn empty_replacements_warn_unless_bulker_reports_a_result() {
    let done = json!({"state": {"status": "COMPLETED", "processedRows": 0, "successfulRows": 0}});
    for (label, script, warns) in [("no result", vec![], true), ("a result", vec![Behavior::Respond(200, done)], false)]
    {
        let server = FakeServer::start(&script);
        let mut sink = server.sink(LIMITS);
        let stream = open(&mut sink, spec("s", WriteMode::Replace));
        sink.commit(stream).expect("a commit");
        sink.finish(stream).expect("the end");
        assert_eq!(server.summaries(), ["s replace_table: "], "{label}");
        let warnings = sink.warnings();
        assert_eq!(warnings.len(), usize::from(warns), "{label}: {warnings:?}");
        assert!(
            warnings.iter().all(|warning| warning.text.contains("Bulker cannot empty a table")),
            "{label}: {warnings:?}"
        );
    }
    let server = FakeServer::start(&[Behavior::Respond(404, json!({"error": "destination not found: sync"}))]);
    let mut sink = server.sink(LIMITS);
    let stream = open(&mut sink, spec("s", WriteMode::Replace));
    assert!(sink.finish(stream).is_err(), "a refusal is an error");
}

#[test]
fn table_names_are_unique() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let named = |namespace: Option<&str>, schema: Option<&str>, table: &str, to_same_case| StreamSpec {
        name: StreamName::new(namespace, table),
        schema: schema.map(str::to_owned),
        to_same_case,
        ..spec(table, WriteMode::Append)
    };
    let streams = [
        (named(None, None, "Pre_Items", false), "Pre_Items"),
        (named(None, None, "Pre_Items", true), "pre_items"),
        (named(Some("own"), Some("own"), "t", false), "own_t"),
        (named(Some("a"), None, "same", false), "same"),
        (named(Some("b"), None, "same", false), "same_…"),
        (named(None, None, "x.y", false), "x.y"),
        // Bulker replaces both characters with `_`.
        (named(None, None, "x/y", false), "x/y_…"),
    ];
    for (spec, expected) in streams {
        let label = format!("{spec:?}");
        let stream = open(&mut sink, spec);
        rows(&mut sink, stream, 1..=1);
        sink.finish(stream).expect("the end");
        let requests = server.requests();
        let table = requests.last().expect("a request").all("tableName")[0].to_owned();
        match expected.strip_suffix('…') {
            Some(begin) => assert!(table.starts_with(begin) && table.len() == begin.len() + 8, "{label}: {table}"),
            None => assert_eq!(table, expected, "{label}"),
        }
    }
    assert_eq!(sink.warnings().len(), 2, "one per suffix");
}

#[test]
fn a_table_name_that_needs_no_change_wins_whatever_the_order() {
    for (label, tables, to_same_case) in [("cleaned", ["x.y", "x_y"], false), ("lowered", ["Users", "users"], true)] {
        for order in [[0, 1], [1, 0]] {
            let server = FakeServer::start(&[]);
            let mut sink = server.sink(LIMITS);
            let streams = order.map(|at| StreamSpec { to_same_case, ..spec(tables[at], WriteMode::Append) });
            sink.assign_tables(&streams).expect("tables");
            for (stream, at) in streams.into_iter().zip(order) {
                let stream = open(&mut sink, stream);
                rows(&mut sink, stream, 1..=1);
                sink.finish(stream).expect("the end");
                let requests = server.requests();
                let table = &requests.last().expect("a request").all("tableName")[0];
                assert_eq!(*table == tables[1], at == 1, "{label}, {order:?}: {table}");
            }
        }
    }
}

#[test]
fn merge_without_a_usable_key_appends_and_warns() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let mut stream = spec("s", WriteMode::Merge);
    stream.primary_key = vec![vec!["id".to_owned(), "inside".to_owned()]];
    let stream = open(&mut sink, stream);
    rows(&mut sink, stream, 1..=1);
    sink.finish(stream).expect("the end");
    assert_eq!(server.requests()[0].all("pk"), [""; 0]);
    assert!(sink.warnings()[0].text.contains("no usable primary key"));
}

#[test]
fn aborted_requests_are_incomplete() {
    let server = FakeServer::start(&[]);
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000));
    let mut sink = server.sink(LIMITS);
    for mode in [WriteMode::Replace, WriteMode::Merge, WriteMode::Append] {
        let stream = open(&mut sink, spec("s", mode));
        write(&mut sink, stream, &long).expect("a row");
        rows(&mut sink, stream, 1..=1);
        sink.abort(stream);
        assert!(sink.commit(stream).is_err(), "closed");
    }
    let stream = open(&mut sink, spec("s", WriteMode::Append));
    write(&mut sink, stream, &long).expect("a row");
    let unsent = open(&mut sink, spec("s", WriteMode::Append));
    rows(&mut sink, unsent, 1..=1);
    drop(sink);
    // Nothing waits for the server to receive the aborts.
    let deadline = Instant::now() + DEADLINE;
    while server.calls() < 4 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let requests = server.requests();
    assert_eq!(requests.len(), 4, "streams without a sent row have no request");
    for request in requests {
        assert_eq!(request.lines, [long.as_str(), "ABORT"]);
        assert!(!request.complete, "no end");
    }
}

#[test]
fn finish_early_ends_the_request_unless_it_would_replace_a_table() {
    for (mode, is_committed, expected) in [
        (WriteMode::Append, true, r#"s batch: {"id":1} {"id":2}"#),
        (WriteMode::Merge, true, r#"s batch: {"id":1} {"id":2}"#),
        (WriteMode::Replace, false, ""),
    ] {
        let server = FakeServer::start(&[]);
        let mut sink = server.sink(LIMITS);
        let stream = open(&mut sink, spec("s", mode));
        rows(&mut sink, stream, 1..=2);
        assert_eq!(sink.finish_early(stream).expect("an early finish"), is_committed, "{mode:?}");
        sink.abort(stream);
        drop(sink);
        // A small replacement is never sent.
        let summaries = if server.calls() == 0 { String::new() } else { server.summaries().join("; ") };
        assert_eq!(summaries, expected, "{mode:?}");
    }
}
