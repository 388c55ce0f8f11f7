//! What is asked of Bulker in each mode, and when.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Does, Fake, LIMITS, TOKEN, rows, spec, write};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::bulker::BulkerSink;
use crate::sidecar::sink::bulker::request::Limits;
use crate::sidecar::sink::{Committed, Generation, Sink, StreamIndex, StreamSpec, WriteMode};

fn open(sink: &mut BulkerSink, spec: StreamSpec) -> StreamIndex {
    sink.open(spec).expect("a stream")
}

#[test]
fn a_request_says_what_bulker_wants_to_know_and_nothing_else() {
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(LIMITS);
    let mut stream = spec("größe", WriteMode::Merge);
    stream.primary_key.push(vec!["a".to_owned(), "b".to_owned()]);
    let stream = open(&mut sink, stream);
    rows(&mut sink, stream, 1..=2);
    assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
    let seen = &fake.seen()[0];
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/to/bulk/sync"));
    let expected = [
        ("tableName", "größe"),
        ("mode", "batch"),
        ("pk", "id"),
        ("pk", "a_b"),
        ("taskId", "task"),
        ("jobId", "sync_größe_task"),
    ];
    let expected: Vec<_> = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!(seen.query, expected);
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(seen.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(seen.header("content-encoding"), None);
    assert_eq!(seen.header("host"), Some(format!("127.0.0.1:{}", fake.port).as_str()));
    let schema: Value = serde_json::from_str(seen.header("x-jitsu-schema").expect("a schema")).expect("JSON");
    assert_eq!(schema, json!({"name": "größe", "fields": [{"name": "id", "type": 2}]}));
    assert_eq!(seen.lines, [r#"{"id":1}"#, r#"{"id":2}"#]);
}

#[test]
fn append_and_merge_make_one_request_for_each_commit_that_has_rows() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let fake = Fake::start(&[]);
        let mut sink = fake.sink(LIMITS);
        let stream = open(&mut sink, spec("s", mode));
        assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        assert_eq!(fake.calls(), 0, "no rows, no request");
        rows(&mut sink, stream, 1..=2);
        assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        assert_eq!(sink.commit(stream).expect("a commit"), Committed::Durable);
        rows(&mut sink, stream, 3..=3);
        sink.finish(stream).expect("the end");
        assert_eq!(fake.summaries(), [r#"s batch: {"id":1} {"id":2}"#, r#"s batch: {"id":3}"#], "{mode:?}");
        let keys: &[&str] = if mode == WriteMode::Merge { &["id"] } else { &[] };
        assert_eq!(fake.seen()[1].all("pk"), keys, "{mode:?}");
        assert_eq!(sink.warnings(), [""; 0]);
        assert!(sink.finish(stream).is_err(), "it is over");
    }
}

#[test]
fn a_refresh_of_a_generation_replaces_unless_it_goes_on_from_a_state() {
    for (resumes, expected, warnings) in [
        (false, [r#"s replace_table: {"id":1} {"id":2}"#].as_slice(), 0),
        (true, [r#"s batch: {"id":1}"#, r#"s batch: {"id":2}"#].as_slice(), 1),
    ] {
        let fake = Fake::start(&[]);
        let mut sink = fake.sink(LIMITS);
        let generation = Generation { id: 3, minimum: 3, resumable: true, resumes };
        let stream = open(&mut sink, StreamSpec { generation, ..spec("s", WriteMode::Merge) });
        rows(&mut sink, stream, 1..=1);
        let committed = sink.commit(stream).expect("a commit");
        assert_eq!(committed, if resumes { Committed::Durable } else { Committed::Deferred });
        rows(&mut sink, stream, 2..=2);
        sink.finish(stream).expect("the end");
        assert_eq!(fake.summaries(), expected);
        assert_eq!(fake.seen()[0].all("pk"), ["id"]);
        assert_eq!(sink.warnings().len(), warnings);
    }
}

#[test]
fn a_replacement_is_one_request_over_all_states() {
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(LIMITS);
    let (one, two) =
        (open(&mut sink, spec("one", WriteMode::Replace)), open(&mut sink, spec("two", WriteMode::Append)));
    for id in 1..=3 {
        rows(&mut sink, one, id..=id);
        rows(&mut sink, two, id..=id);
        assert_eq!(sink.commit(one).expect("a commit"), Committed::Deferred);
    }
    assert_eq!(fake.calls(), 0, "small chunks wait for company");
    sink.finish(one).expect("the end");
    sink.finish(two).expect("the end");
    let expected = [r#"one replace_table: {"id":1} {"id":2} {"id":3}"#, r#"two batch: {"id":1} {"id":2} {"id":3}"#];
    assert_eq!(fake.summaries(), expected);
    assert_eq!(fake.seen()[0].all("pk"), ["id"]);
}

#[test]
fn a_request_is_ended_before_bulker_ends_it() {
    let limits = Limits { open: Duration::from_millis(300), ..LIMITS };
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(limits);
    let long = "x".repeat(200_000);
    let (one, two) =
        (open(&mut sink, spec("one", WriteMode::Replace)), open(&mut sink, spec("two", WriteMode::Append)));
    for stream in [one, two] {
        write(&mut sink, stream, &format!(r#"{{"id":1,"x":"{long}"}}"#)).expect("a row");
    }
    sink.tick();
    assert_eq!(sink.warnings(), [""; 0], "they are young");
    std::thread::sleep(limits.open);
    sink.tick();
    let warnings = sink.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with(r#"stream "one", table "one": "#) && warnings[0].contains("incomplete"),
        "{warnings:?}"
    );
    // A run that resumed here would replace the table with the rest.
    rows(&mut sink, one, 2..=2);
    assert_eq!(sink.commit(one).expect("a commit"), Committed::Deferred);
    rows(&mut sink, two, 2..=2);
    assert_eq!(sink.commit(two).expect("a commit"), Committed::Durable);
    sink.finish(one).expect("the end");
    let told: Vec<String> = fake.summaries().iter().map(|summary| summary.replace(&long, "…")).collect();
    let expected = [
        r#"one replace_table: {"id":1,"x":"…"}"#,
        r#"two batch: {"id":1,"x":"…"}"#,
        r#"two batch: {"id":2}"#,
        r#"one batch: {"id":2}"#,
    ];
    assert_eq!(told, expected);
    assert!(sink.warnings().is_empty(), "told once");
}

#[test]
fn a_request_that_waits_for_its_source_is_kept_alive_with_blanks() {
    let limits = Limits { idle: Duration::from_millis(100), ..LIMITS };
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(limits);
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000));
    let longest = format!(r#"{{"x":"{}"}}"#, "x".repeat((1 << 20) - 10));
    let streams =
        [WriteMode::Replace, WriteMode::Append, WriteMode::Append].map(|mode| open(&mut sink, spec("s", mode)));
    sink.tick();
    for (stream, row) in streams.into_iter().zip([&long, &long, &longest]) {
        write(&mut sink, stream, row).expect("a row");
    }
    write(&mut sink, streams[1], "{}").expect("a row");
    for _ in 0..3 {
        std::thread::sleep(limits.idle);
        sink.tick();
    }
    write(&mut sink, streams[0], "{}").expect("a row");
    for stream in streams {
        sink.finish(stream).expect("the end");
    }
    let seen = fake.seen();
    let lines = |at: usize| seen[at].lines.clone();
    assert!(seen.len() == 3 && seen.iter().all(|request| request.complete), "{} requests", seen.len());
    assert_eq!(lines(0), [format!("{long}   "), "{}".to_owned()]);
    assert_eq!(lines(1), [long, "{}  ".to_owned()], "rows that waited are as good as blanks");
    assert_eq!(lines(2), [longest], "a blank would make it too long");
}

#[test]
fn an_empty_replacement_is_asked_for_and_told_when_it_does_nothing() {
    let done = json!({"state": {"status": "COMPLETED", "processedRows": 0, "successfulRows": 0}});
    for (label, script, warned) in
        [("Bulker as it is", vec![], true), ("one that empties tables", vec![Does::Answer(200, done)], false)]
    {
        let fake = Fake::start(&script);
        let mut sink = fake.sink(LIMITS);
        let stream = open(&mut sink, spec("s", WriteMode::Replace));
        sink.commit(stream).expect("a commit");
        sink.finish(stream).expect("the end");
        assert_eq!(fake.summaries(), ["s replace_table: "], "{label}");
        let warnings = sink.warnings();
        assert_eq!(warnings.len(), usize::from(warned), "{label}: {warnings:?}");
        assert!(warnings.iter().all(|text| text.contains("Bulker cannot empty a table")), "{label}: {warnings:?}");
    }
    let fake = Fake::start(&[Does::Answer(404, json!({"error": "destination not found: sync"}))]);
    let mut sink = fake.sink(LIMITS);
    let stream = open(&mut sink, spec("s", WriteMode::Replace));
    assert!(sink.finish(stream).is_err(), "a refusal is one");
}

#[test]
fn tables_have_names_of_their_own() {
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(LIMITS);
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
        // Bulker makes the same name of both.
        (named(None, None, "x/y", false), "x/y_…"),
    ];
    for (spec, expected) in streams {
        let label = format!("{spec:?}");
        let stream = open(&mut sink, spec);
        rows(&mut sink, stream, 1..=1);
        sink.finish(stream).expect("the end");
        let seen = fake.seen();
        let table = seen.last().expect("a request").all("tableName")[0].to_owned();
        match expected.strip_suffix('…') {
            Some(begin) => assert!(table.starts_with(begin) && table.len() == begin.len() + 8, "{label}: {table}"),
            None => assert_eq!(table, expected, "{label}"),
        }
    }
    assert_eq!(sink.warnings().len(), 2, "those that got a suffix");
}

#[test]
fn a_merge_without_a_usable_key_appends_and_says_so() {
    let fake = Fake::start(&[]);
    let mut sink = fake.sink(LIMITS);
    let mut stream = spec("s", WriteMode::Merge);
    stream.primary_key = vec![vec!["id".to_owned(), "inside".to_owned()]];
    let stream = open(&mut sink, stream);
    rows(&mut sink, stream, 1..=1);
    sink.finish(stream).expect("the end");
    assert_eq!(fake.seen()[0].all("pk"), [""; 0]);
    assert!(sink.warnings()[0].contains("no usable primary key"));
}

#[test]
fn what_is_given_up_never_counts() {
    let fake = Fake::start(&[]);
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(200_000));
    let mut sink = fake.sink(LIMITS);
    for mode in [WriteMode::Replace, WriteMode::Merge, WriteMode::Append] {
        let stream = open(&mut sink, spec("s", mode));
        write(&mut sink, stream, &long).expect("a row");
        rows(&mut sink, stream, 1..=1);
        sink.abort(stream);
        assert!(sink.commit(stream).is_err(), "it is over");
    }
    let stream = open(&mut sink, spec("s", WriteMode::Append));
    write(&mut sink, stream, &long).expect("a row");
    let silent = open(&mut sink, spec("s", WriteMode::Append));
    rows(&mut sink, silent, 1..=1);
    drop(sink);
    // The server hears of an end that nobody waits for when it gets to it.
    let deadline = Instant::now() + Duration::from_secs(10);
    while fake.calls() < 4 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let seen = fake.seen();
    assert_eq!(seen.len(), 4, "what was not sent needs no goodbye");
    for request in seen {
        assert_eq!(request.lines, [long.as_str(), "ABORT"]);
        assert!(!request.complete, "without its end no request counts");
    }
}

#[test]
fn a_stream_that_is_cut_off_ends_its_request_unless_that_would_replace_a_table() {
    for (mode, is_in, expected) in [
        (WriteMode::Append, true, r#"s batch: {"id":1} {"id":2}"#),
        (WriteMode::Merge, true, r#"s batch: {"id":1} {"id":2}"#),
        (WriteMode::Replace, false, ""),
    ] {
        let fake = Fake::start(&[]);
        let mut sink = fake.sink(LIMITS);
        let stream = open(&mut sink, spec("s", mode));
        rows(&mut sink, stream, 1..=2);
        assert_eq!(sink.finish_early(stream).expect("cut"), is_in, "{mode:?}");
        sink.abort(stream);
        drop(sink);
        // So few rows of a replacement have not even been sent.
        let heard = if fake.calls() == 0 { String::new() } else { fake.summaries().join("; ") };
        assert_eq!(heard, expected, "{mode:?}");
    }
}
