//! Failures of the server, and their effect on rows.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Behavior, FakeServer, LIMITS, TOKEN, rows, sink_at, spec, write};
use crate::sidecar::sink::bulker::request::Limits;
use crate::sidecar::sink::bulker::stream::Stream;
use crate::sidecar::sink::bulker::{BulkerSink, MAX_CHUNK_MEMORY};
use crate::sidecar::sink::{Sink, SinkError, WriteMode};

/// More than the replay buffer and the buffers of sockets hold.
const FLOOD: usize = 40 << 20;

fn error(text: &str) -> Value {
    json!({"error": text})
}

/// Writes and commits two rows.
fn two_rows(sink: &mut BulkerSink, mode: WriteMode) -> Result<(), SinkError> {
    let stream = sink.open(spec("s", mode)).expect("a stream");
    rows(sink, stream, 1..=2);
    sink.finish(stream)
}

/// Writes rows until an error.
fn flood(sink: &mut BulkerSink, mode: WriteMode) -> SinkError {
    let stream = sink.open(spec("s", mode)).expect("a stream");
    let row = format!(r#"{{"x":"{}"}}"#, "x".repeat(100_000));
    for _ in 0..FLOOD / row.len() {
        if let Err(error) = write(sink, stream, &row) {
            let again = sink.commit(stream).expect_err("a failed stream");
            assert_eq!(again.text, error.text);
            return error;
        }
    }
    panic!("no error");
}

#[test]
fn failed_responses_fail_the_stream() {
    let state = |state: Value| json!({"message": "ok", "state": state});
    let counts = |processed: u32, successful: u32| {
        state(json!({"status": "COMPLETED", "processedRows": processed, "successfulRows": successful}))
    };
    for (status, body, transient, expected) in [
        (
            400,
            error("stream consume error: bad value"),
            false,
            "it refused the rows (400): stream consume error: bad value",
        ),
        (401, error(&format!("invalid token: {TOKEN}")), false, "authToken was refused (401)"),
        (
            404,
            error("destination not found: sync"),
            false,
            r#"it knows no destination "sync" (404): destination not found: sync"#,
        ),
        (404, json!("page not found"), false, "there is no /bulk endpoint (404): check url"),
        (301, json!({}), false, "it redirects (301)"),
        (413, json!({}), false, "too large"),
        (500, error("system error: error# 7"), true, "it refused the rows (500): system error: error# 7"),
        (200, json!({"message": "ok"}), true, "without a state"),
        (200, json!("<html>"), true, "without a state"),
        (200, state(json!({"status": "FAILED", "lastError": "no\nspace"})), true, r#"status "FAILED": no space"#),
        (200, counts(1, 1), false, "it processed 1 of 2 rows"),
        (200, counts(2, 1), false, "it loaded 1 of 2 rows"),
    ] {
        let server = FakeServer::start(&[Behavior::Respond(status, body.clone())]);
        let failed = two_rows(&mut server.sink(LIMITS), WriteMode::Merge).expect_err(expected);
        let begin = format!(r#"Bulker at http://127.0.0.1:{}/to: stream "s", table "s": "#, server.port);
        assert!(failed.text.starts_with(&begin) && failed.text.contains(expected), "{status}: {failed}");
        assert!(!failed.text.contains(TOKEN) && !failed.text.contains('\n'), "{failed}");
        assert_eq!(failed.transient, transient, "{status}: {failed}");
        assert_eq!(server.calls(), 1, "{status}: no retry");
    }
}

#[test]
fn long_errors_are_truncated() {
    let server = FakeServer::start(&[Behavior::Respond(400, error(&"é".repeat(5000)))]);
    let failed = two_rows(&mut server.sink(LIMITS), WriteMode::Append).expect_err("a refusal");
    assert!(failed.text.len() < 700 && failed.text.ends_with('…'), "{failed}");
}

#[test]
fn requests_are_repeated_if_no_row_can_be_duplicated() {
    let busy = |status| Behavior::Respond(status, json!({}));
    let early = |status| Behavior::RespondEarly(status, json!({}));
    for (label, mode, script) in [
        ("closed after the head", WriteMode::Merge, vec![Behavior::Close(0)]),
        ("closed in the body", WriteMode::Replace, vec![Behavior::Close(5), Behavior::Close(15)]),
        ("busy", WriteMode::Append, vec![busy(429)]),
        ("no response, with a key", WriteMode::Merge, vec![Behavior::CloseAfterEnd, busy(502)]),
        ("no response to a replacement", WriteMode::Replace, vec![Behavior::CloseAfterEnd, busy(503)]),
    ] {
        let server = FakeServer::start(&script);
        two_rows(&mut server.sink(LIMITS), mode).unwrap_or_else(|error| panic!("{label}: {error}"));
        let requests = server.requests();
        assert_eq!(requests.len(), script.len() + 1, "{label}");
        let last = requests.last().expect("a request");
        assert!(last.complete, "{label}");
        assert_eq!(last.lines, [r#"{"id":1}"#, r#"{"id":2}"#], "{label}");
    }
    // Within a request: earlier chunks are sent again.
    let server = FakeServer::start(&[early(503), Behavior::Close(150_000)]);
    let mut sink = server.sink(LIMITS);
    let stream = sink.open(spec("s", WriteMode::Append)).expect("a stream");
    let row = |id: u32| format!(r#"{{"id":{id},"x":"{}"}}"#, "x".repeat(100_000));
    for id in 0..10 {
        write(&mut sink, stream, &row(id)).expect("a row");
        std::thread::sleep(Duration::from_millis(20));
    }
    sink.finish(stream).expect("the end");
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[2].lines, (0..10).map(row).collect::<Vec<_>>());
    assert!(requests[2].complete && !requests[0].complete && !requests[1].complete);
}

#[test]
fn requests_without_a_key_that_may_have_succeeded_are_not_repeated() {
    for (label, does) in
        [("no response", Behavior::CloseAfterEnd), ("a response of a proxy", Behavior::Respond(502, json!({})))]
    {
        let server = FakeServer::start(&[does]);
        let failed = two_rows(&mut server.sink(LIMITS), WriteMode::Append).expect_err(label);
        assert!(failed.text.contains("whether the 2 rows of the request are in the table is unknown"), "{failed}");
        assert!(failed.transient, "{label}");
        assert_eq!(server.calls(), 1, "{label}");
    }
}

#[test]
fn requests_that_may_still_be_processed_are_not_repeated() {
    let server = FakeServer::start(&[Behavior::Respond(504, json!({}))]);
    let failed = two_rows(&mut server.sink(LIMITS), WriteMode::Replace).expect_err("a timeout");
    assert!(failed.text.ends_with("whether the 2 rows of the request are in the table is unknown"), "{failed}");
    assert_eq!((server.calls(), failed.transient), (1, true));
}

/// A port on which nothing listens.
fn unused_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

#[test]
fn only_the_first_stream_waits_for_an_unavailable_server() {
    let mut sink = sink_at(unused_port(), Limits { retry_timeout: Duration::from_millis(500), ..LIMITS });
    let error = two_rows(&mut sink, WriteMode::Append).expect_err("no server");
    assert!(error.transient && error.text.contains("connecting: Connection refused"), "{error}");
    // A stream that waited would never end.
    sink.server.limits.retry_timeout = Duration::from_hours(24);
    for mode in [WriteMode::Merge, WriteMode::Replace, WriteMode::Replace] {
        assert!(two_rows(&mut sink, mode).is_err());
    }
    let error =
        sink.server.wait_until_reachable(Duration::from_mins(2), Duration::from_millis(200)).expect_err("no server");
    assert!(error.transient && error.text.contains("Connection refused"), "{error:?}");
}

#[test]
fn servers_that_start_late_are_awaited() {
    let port = unused_port();
    let late = std::thread::spawn(move || {
        // Long enough for a first attempt; the outcome is the same without one.
        std::thread::sleep(Duration::from_millis(700));
        FakeServer::on(TcpListener::bind(("127.0.0.1", port)).expect("the same port"), &[])
    });
    two_rows(&mut sink_at(port, LIMITS), WriteMode::Append).expect("rows");
    let server = late.join().expect("no panic");
    assert_eq!(server.summaries(), [r#"s batch: {"id":1} {"id":2}"#]);
}

#[test]
fn early_responses_fail_the_stream_at_once() {
    let server = FakeServer::start(&[Behavior::RespondEarly(400, error("unmarshal error: x"))]);
    let failed = flood(&mut server.sink(LIMITS), WriteMode::Replace);
    assert!(failed.text.contains("it refused the rows (400): unmarshal error: x"), "{failed}");
    assert!(server.requests()[0].lines.len() < 200, "{} rows were sent", server.requests()[0].lines.len());
}

#[test]
fn lost_connections_beyond_the_replay_buffer_fail_the_stream() {
    let server = FakeServer::start(&[Behavior::Close(12 << 20)]);
    let failed = flood(&mut server.sink(LIMITS), WriteMode::Replace);
    assert!(failed.transient && failed.text.contains("more rows than the replay buffer holds"), "{failed}");
    assert_eq!(server.calls(), 1);
}

#[test]
fn stalled_servers_block_until_the_timeout() {
    let server = FakeServer::start(&[Behavior::Stall]);
    let limits = Limits { stall_timeout: Duration::from_millis(500), ..LIMITS };
    let failed = flood(&mut server.sink(limits), WriteMode::Append);
    assert!(failed.text.contains("it accepted no data for 0.5 s") && failed.transient, "{failed}");
}

#[test]
fn missing_responses_time_out() {
    let server = FakeServer::start(&[Behavior::Stall]);
    let limits = Limits { response_timeout: Duration::from_millis(300), ..LIMITS };
    let failed = two_rows(&mut server.sink(limits), WriteMode::Merge).expect_err("no response");
    let expected = "it did not respond in time; whether the 2 rows of the request are in the table is unknown";
    assert!(failed.text.ends_with(expected) && failed.transient, "{failed}");
}

#[test]
fn too_long_rows_fail_only_their_stream() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let bad = sink.open(spec("bad", WriteMode::Replace)).expect("a stream");
    let good = sink.open(spec("good", WriteMode::Replace)).expect("a stream");
    write(&mut sink, bad, &format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000))).expect("a row");
    rows(&mut sink, good, 1..=1);
    let failed =
        write(&mut sink, bad, &format!(r#"{{"x":"{}"}}"#, "x".repeat(1 << 20))).expect_err("a row that is too long");
    let expected =
        r#"stream "bad", table "bad": a row of 1048585 bytes is too long: Bulker accepts less than 1048576 bytes"#;
    assert!(failed.text.ends_with(expected) && !failed.transient, "{failed}");
    assert!(write(&mut sink, bad, "{}").is_err() && sink.finish(bad).is_err(), "a failed stream");
    rows(&mut sink, good, 2..=2);
    sink.finish(good).expect("the end");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(
        !requests[0].complete && requests[0].lines.last().is_some_and(|line| line == "ABORT"),
        "{:?}",
        requests[0].complete
    );
    assert_eq!(requests[1].summary(), r#"good replace_table: {"id":1} {"id":2}"#);
}

#[test]
fn chunks_of_many_streams_stay_within_the_memory_limit() {
    let server = FakeServer::start(&[]);
    let mut sink = server.sink(LIMITS);
    let streams: Vec<_> =
        (0..60).map(|at| sink.open(spec(&format!("s{at}"), WriteMode::Replace)).expect("a stream")).collect();
    let row = format!(r#"{{"x":"{}"}}"#, "x".repeat(10_000));
    for _ in 0..20 {
        for stream in &streams {
            write(&mut sink, *stream, &row).expect("a row");
            let memory: usize = sink.streams.iter_mut().map(Stream::chunk_memory).sum();
            assert!(memory <= MAX_CHUNK_MEMORY + (256 << 10), "{memory}");
            assert!(sink.server.replay_bytes <= 8 << 20, "{}", sink.server.replay_bytes);
        }
    }
    for stream in &streams {
        sink.finish(*stream).expect("the end");
    }
    assert_eq!(sink.server.replay_bytes, 0);
    let requests = server.requests();
    assert_eq!((requests.len(), requests.iter().map(|request| request.lines.len()).sum::<usize>()), (60, 1200));
}
