//! What goes wrong, and what then happens to rows.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Does, Fake, LIMITS, TOKEN, rows, sink_at, spec, write};
use crate::sidecar::sink::bulker::BulkerSink;
use crate::sidecar::sink::bulker::request::Limits;
use crate::sidecar::sink::{Sink, SinkError, WriteMode};

/// Larger than what is kept for being sent again, and than what sockets hold.
const MANY: usize = 40 << 20;

fn error(text: &str) -> Value {
    json!({"error": text})
}

/// Two rows, committed.
fn two_rows(sink: &mut BulkerSink, mode: WriteMode) -> Result<(), SinkError> {
    let stream = sink.open(spec("s", mode)).expect("a stream");
    rows(sink, stream, 1..=2);
    sink.finish(stream)
}

/// Rows until one is refused.
fn flood(sink: &mut BulkerSink, mode: WriteMode) -> SinkError {
    let stream = sink.open(spec("s", mode)).expect("a stream");
    let row = format!(r#"{{"x":"{}"}}"#, "x".repeat(100_000));
    for _ in 0..MANY / row.len() {
        if let Err(error) = write(sink, stream, &row) {
            let again = sink.commit(stream).expect_err("it stays failed");
            assert_eq!(again.text, error.text);
            return error;
        }
    }
    panic!("it took everything");
}

#[test]
fn answers_that_are_no_success_fail_the_stream_and_say_why() {
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
        (301, json!({}), false, "it redirects elsewhere (301)"),
        (413, json!({}), false, "too large"),
        (500, error("system error: error# 7"), true, "it refused the rows (500): system error: error# 7"),
        (200, json!({"message": "ok"}), true, "without a state"),
        (200, json!("<html>"), true, "without a state"),
        (200, state(json!({"status": "FAILED", "lastError": "no\nspace"})), true, r#"status "FAILED": no space"#),
        (200, counts(1, 1), false, "it processed 1 of 2 rows"),
        (200, counts(2, 1), false, "it loaded 1 of 2 rows"),
    ] {
        let fake = Fake::start(&[Does::Answer(status, body.clone())]);
        let failed = two_rows(&mut fake.sink(LIMITS), WriteMode::Merge).expect_err(expected);
        let begin = format!(r#"Bulker at http://127.0.0.1:{}/to: stream "s", table "s": "#, fake.port);
        assert!(failed.text.starts_with(&begin) && failed.text.contains(expected), "{status}: {failed}");
        assert!(!failed.text.contains(TOKEN) && !failed.text.contains('\n'), "{failed}");
        assert_eq!(failed.transient, transient, "{status}: {failed}");
        assert_eq!(fake.calls(), 1, "{status}: it is not worth another try");
    }
}

#[test]
fn a_long_error_is_cut() {
    let fake = Fake::start(&[Does::Answer(400, error(&"é".repeat(5000)))]);
    let failed = two_rows(&mut fake.sink(LIMITS), WriteMode::Append).expect_err("it is refused");
    assert!(failed.text.len() < 700 && failed.text.ends_with('…'), "{failed}");
}

#[test]
fn what_passes_is_waited_for_where_no_row_can_come_twice() {
    let busy = |status| Does::Answer(status, json!({}));
    let early = |status| Does::Early(status, json!({}));
    for (label, mode, script) in [
        ("hung up at the head", WriteMode::Merge, vec![Does::HangUp(0)]),
        ("hung up in the middle", WriteMode::Replace, vec![Does::HangUp(5), Does::HangUp(15)]),
        ("too busy to look", WriteMode::Append, vec![busy(429)]),
        ("no answer, but a key", WriteMode::Merge, vec![Does::HangUpAfterEnd, busy(502)]),
        ("no answer, but all of the table", WriteMode::Replace, vec![Does::HangUpAfterEnd, busy(503)]),
    ] {
        let fake = Fake::start(&script);
        two_rows(&mut fake.sink(LIMITS), mode).unwrap_or_else(|error| panic!("{label}: {error}"));
        let seen = fake.seen();
        assert_eq!(seen.len(), script.len() + 1, "{label}");
        let last = seen.last().expect("a request");
        assert!(last.complete, "{label}");
        assert_eq!(last.lines, [r#"{"id":1}"#, r#"{"id":2}"#], "{label}");
    }
    // In the middle of a request: what was sent before is sent again.
    let fake = Fake::start(&[early(503), Does::HangUp(150_000)]);
    let mut sink = fake.sink(LIMITS);
    let stream = sink.open(spec("s", WriteMode::Append)).expect("a stream");
    let row = |id: u32| format!(r#"{{"id":{id},"x":"{}"}}"#, "x".repeat(100_000));
    for id in 0..10 {
        write(&mut sink, stream, &row(id)).expect("a row");
        std::thread::sleep(Duration::from_millis(20));
    }
    sink.finish(stream).expect("the end");
    let seen = fake.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2].lines, (0..10).map(row).collect::<Vec<_>>());
    assert!(seen[2].complete && !seen[0].complete && !seen[1].complete);
}

#[test]
fn without_a_key_a_request_that_may_have_succeeded_is_not_sent_twice() {
    for (label, does) in [("no answer", Does::HangUpAfterEnd), ("a proxy's answer", Does::Answer(502, json!({})))] {
        let fake = Fake::start(&[does]);
        let failed = two_rows(&mut fake.sink(LIMITS), WriteMode::Append).expect_err(label);
        assert!(failed.text.contains("whether the 2 rows of the request are in the table is not known"), "{failed}");
        assert!(failed.transient, "{label}");
        assert_eq!(fake.calls(), 1, "{label}");
    }
}

#[test]
fn what_may_still_be_under_way_is_not_overtaken() {
    let fake = Fake::start(&[Does::Answer(504, json!({}))]);
    let failed = two_rows(&mut fake.sink(LIMITS), WriteMode::Replace).expect_err("nobody waited");
    assert!(failed.text.ends_with("whether the 2 rows of the request are in the table is not known"), "{failed}");
    assert_eq!((fake.calls(), failed.transient), (1, true));
}

#[test]
fn only_the_first_stream_waits_for_a_server_that_is_gone() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let mut sink = sink_at(nobody, Limits { patience: Duration::from_secs(1), ..LIMITS });
    let begin = Instant::now();
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace, WriteMode::Replace, WriteMode::Replace] {
        assert!(two_rows(&mut sink, mode).is_err());
    }
    assert!((600..2500).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    let trouble = sink.server.reach(Duration::from_millis(200)).expect_err("nobody");
    assert!(trouble.transient && trouble.text.contains("Connection refused"), "{trouble:?}");
}

#[test]
fn a_server_that_comes_late_is_waited_for_and_one_that_never_comes_is_not() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        Fake::on(TcpListener::bind(("127.0.0.1", port)).expect("the same port"), &[])
    });
    let begin = Instant::now();
    two_rows(&mut sink_at(port, LIMITS), WriteMode::Append).expect("rows");
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    let fake = late.join().expect("no panic");
    assert_eq!(fake.summaries(), [r#"s batch: {"id":1} {"id":2}"#]);

    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let limits = Limits { patience: Duration::from_millis(500), ..LIMITS };
    let failed = two_rows(&mut sink_at(nobody, limits), WriteMode::Append).expect_err("nobody");
    assert!(failed.transient && failed.text.contains("connecting: Connection refused"), "{failed}");
}

#[test]
fn an_early_answer_ends_the_stream_at_once() {
    let fake = Fake::start(&[Does::Early(400, error("unmarshal error: x"))]);
    let failed = flood(&mut fake.sink(LIMITS), WriteMode::Replace);
    assert!(failed.text.contains("it refused the rows (400): unmarshal error: x"), "{failed}");
    assert!(fake.seen()[0].lines.len() < 200, "{} rows went on", fake.seen()[0].lines.len());
}

#[test]
fn a_server_that_dies_after_more_than_is_kept_fails_the_stream() {
    let fake = Fake::start(&[Does::HangUp(12 << 20)]);
    let failed = flood(&mut fake.sink(LIMITS), WriteMode::Replace);
    assert!(failed.transient && failed.text.contains("more rows were under way than are kept"), "{failed}");
    assert_eq!(fake.calls(), 1);
}

#[test]
fn a_server_that_takes_nothing_more_holds_rows_back_up_to_a_limit() {
    let fake = Fake::start(&[Does::Freeze(Duration::from_secs(5))]);
    let limits = Limits { stall: Duration::from_millis(500), ..LIMITS };
    let begin = Instant::now();
    let failed = flood(&mut fake.sink(limits), WriteMode::Append);
    assert!(failed.text.contains("it took no data for 0.5 s") && failed.transient, "{failed}");
    assert!((500..4000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
}

#[test]
fn a_server_that_never_answers_is_not_waited_for_for_ever() {
    let fake = Fake::start(&[Does::Freeze(Duration::from_secs(5))]);
    let limits = Limits { answer: Duration::from_millis(300), ..LIMITS };
    let failed = two_rows(&mut fake.sink(limits), WriteMode::Merge).expect_err("no answer");
    let expected = "it did not answer in time; whether the 2 rows of the request are in the table is not known";
    assert!(failed.text.ends_with(expected) && failed.transient, "{failed}");
}

#[test]
fn a_row_that_is_too_long_fails_its_stream_alone() {
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(LIMITS);
    let bad = sink.open(spec("bad", WriteMode::Replace)).expect("a stream");
    let good = sink.open(spec("good", WriteMode::Replace)).expect("a stream");
    write(&mut sink, bad, &format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000))).expect("a row");
    rows(&mut sink, good, 1..=1);
    let failed = write(&mut sink, bad, &format!(r#"{{"x":"{}"}}"#, "x".repeat(1 << 20))).expect_err("it is too long");
    let expected =
        r#"stream "bad", table "bad": a row of 1048585 bytes is too long: Bulker takes less than 1048576 bytes"#;
    assert!(failed.text.ends_with(expected) && !failed.transient, "{failed}");
    assert!(write(&mut sink, bad, "{}").is_err() && sink.finish(bad).is_err(), "it stays failed");
    rows(&mut sink, good, 2..=2);
    sink.finish(good).expect("the end");
    let seen = fake.seen();
    assert_eq!(seen.len(), 2);
    assert!(!seen[0].complete && seen[0].lines.last().is_some_and(|line| line == "ABORT"), "{:?}", seen[0].complete);
    assert_eq!(seen[1].summary(), r#"good replace_table: {"id":1} {"id":2}"#);
}

#[test]
fn many_streams_at_once_stay_within_the_memory_for_chunks() {
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(LIMITS);
    let streams: Vec<_> =
        (0..60).map(|at| sink.open(spec(&format!("s{at}"), WriteMode::Replace)).expect("a stream")).collect();
    let row = format!(r#"{{"x":"{}"}}"#, "x".repeat(10_000));
    for _ in 0..20 {
        for stream in &streams {
            write(&mut sink, *stream, &row).expect("a row");
            let filling: usize = sink.streams.iter_mut().map(super::super::stream::Stream::filling).sum();
            assert!(filling <= super::super::FILLING + (256 << 10), "{filling}");
            assert!(sink.server.kept <= 8 << 20, "{}", sink.server.kept);
        }
    }
    for stream in &streams {
        sink.finish(*stream).expect("the end");
    }
    assert_eq!(sink.server.kept, 0);
    let seen = fake.seen();
    assert_eq!((seen.len(), seen.iter().map(|request| request.lines.len()).sum::<usize>()), (60, 1200));
}
