//! Merges: the newer record wins and nothing of the older one stays, on every path that a merge can take.

use serde_json::{Value, json};

use super::support::{TestSchema, record, spec, write};
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};
use crate::task::{CdcDeletion, LoadCounts};

/// How rows get into a table that has some.
const PATHS: [(&str, &str); 3] = [
    ("with our key", ""),
    ("without a unique key", "CREATE TABLE t (row_id serial PRIMARY KEY)"),
    (
        "partitioned",
        "CREATE TABLE t (id bigint, day text) PARTITION BY LIST (id); CREATE TABLE p PARTITION OF t DEFAULT",
    ),
];

fn integer() -> Value {
    json!({"type": "integer"})
}

fn text() -> Value {
    json!({"type": "string"})
}

/// A merged stream with this key, and a cursor `at` if it declares one.
fn stream(fields: &[(&str, Value)], key: &[&[&str]]) -> StreamSpec {
    let path = |path: &&[&str]| path.iter().map(|&key| key.to_owned()).collect();
    let has_cursor = fields.iter().any(|(name, _)| *name == "at");
    StreamSpec {
        primary_key: key.iter().map(path).collect(),
        cursor: has_cursor.then(|| "at".to_owned()).into_iter().collect(),
        ..spec("t", WriteMode::Merge, fields)
    }
}

/// Loads batches of rows in one run, each with a commit of its own. Returns the counts.
fn load(db: &TestSchema, stream: StreamSpec, batches: &[&[&str]]) -> LoadCounts {
    let mut sink = db.sink();
    let stream = sink.open(stream).expect("open");
    for rows in batches {
        write(&mut sink, stream, rows);
        sink.commit(stream).expect("commit");
    }
    sink.finish(stream).expect("finish");
    sink.counts(stream)
}

/// Merges by `id` alone, without the cursor `at`.
fn by_id(fields: &[(&str, Value)]) -> StreamSpec {
    stream(fields, &[&["id"]])
}

/// The same stream where rows of older generations are deleted at the end, and where all rows are replaced.
fn collected(stream: &StreamSpec) -> [(&'static str, StreamSpec); 2] {
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    [
        ("generations", StreamSpec { generation, ..stream.clone() }),
        ("replacement", StreamSpec { mode: WriteMode::Replace, ..stream.clone() }),
    ]
}

/// Text that no index takes: it is long and cannot be compressed.
fn long_text(seed: u64) -> String {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + u8::try_from((state >> 33) % 75).unwrap_or_default()).to_string().replace('\\', "!")
    };
    (0..6000).map(|_| next()).collect()
}

#[test]
fn merged_row_has_nothing_of_the_older_one() {
    for (label, table) in PATHS {
        let mut db = TestSchema::new();
        db.run(table);
        let old = [
            r#"{"id":1,"n":"misfit","gone":"old","note":"old"}"#,
            r#"{"id":2,"n":2,"gone":"stays","note":"stays"}"#,
            r#"{"id":null,"n":"misfit","gone":"old","note":"old"}"#,
        ];
        let first = by_id(&[("id", integer()), ("n", integer()), ("gone", text())]);
        load(&db, StreamSpec { add_meta: true, ..first }, &[&old]);
        let second = by_id(&[("id", integer()), ("n", integer())]);
        load(&db, second, &[&[r#"{"id":1}"#, r#"{"id":1,"n":5}"#, r#"{"n":6}"#]]);
        let rows = db.rows("SELECT id, n, gone, note, _unmapped_data, _jitsu_timestamp IS NULL FROM t ORDER BY id");
        assert_eq!(rows, ["1|5|∅|∅|∅|t", "2|2|stays|stays|∅|f", "∅|6|∅|∅|∅|t"], "{label}");
    }
}

#[test]
fn merged_row_keeps_columns_that_no_stream_has_loaded() {
    for (label, key) in [("merged by the table's key", "PRIMARY KEY"), ("without a key", "")] {
        let mut db = TestSchema::new();
        db.run(&format!(
            "CREATE TABLE t (n serial, id bigint {key}, v text, note text, made date DEFAULT '2020-01-01',
             twice bigint GENERATED ALWAYS AS (id * 2) STORED, seq int GENERATED ALWAYS AS IDENTITY);
             INSERT INTO t (n, id, v, note, made) VALUES (7, 1, 'old', 'by hand', '2019-01-01')"
        ));
        for v in ["a", "b"] {
            let row = format!(r#"{{"id":1,"v":"{v}"}}"#);
            load(&db, by_id(&[("id", integer()), ("v", text())]), &[&[&row]]);
            let rows = db.rows("SELECT id, v, n, note, made, twice, seq FROM t");
            assert_eq!(rows, [format!("1|{v}|7|by hand|2019-01-01|2|1")], "{label}");
        }
    }
}

#[test]
fn nulls_are_a_value_of_a_key() {
    let fields = [("id", integer()), ("day", text()), ("at", integer()), ("v", text())];
    let rows = [
        r#"{"id":1,"day":"d","at":1,"v":"a"}"#,
        r#"{"id":1,"at":1,"v":"b"}"#,
        r#"{"day":"d","at":1,"v":"c"}"#,
        r#"{"id":null,"day":null,"at":1,"v":"d"}"#,
        r#"{"id":1,"day":null,"at":2,"v":"B"}"#,
    ];
    let again = [
        r#"{"id":1,"day":"d","at":3,"v":"A"}"#,
        r#"{"day":"d","at":0,"v":"older"}"#,
        r#"{"at":3,"v":"D"}"#,
        r#"{"at":2,"v":"older"}"#,
        r#"{"id":2,"at":1,"v":"new"}"#,
    ];
    let stream = stream(&fields, &[&["id"], &["day"]]);
    let query = "SELECT id, day, at, v FROM t ORDER BY id, day";
    let merged = ["1|d|3|A", "1|∅|2|B", "2|∅|1|new", "∅|d|1|c", "∅|∅|3|D"];
    for (label, table) in PATHS {
        let mut db = TestSchema::new();
        db.run(table);
        // The first commit makes a primary key, the second one needs nulls in it.
        let counts = load(&db, stream.clone(), &[&rows[..1], &rows[1..]]);
        assert_eq!((counts.merged, counts.older), (1, 0), "{label}");
        let counts = load(&db, stream.clone(), &[&again]);
        assert_eq!((counts.merged, counts.older), (2, 2), "{label}");
        assert_eq!(db.rows(query), merged, "{label}");
    }
    for (label, stream) in collected(&stream) {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint, day text); INSERT INTO t VALUES (9, 'old')");
        let counts = load(&db, stream, &[&rows, &again]);
        assert_eq!((counts.merged, counts.older), (3, 2), "{label}");
        assert_eq!(db.rows(query), merged, "{label}");
    }
}

#[test]
fn tables_with_several_rows_of_a_null_key_get_one() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (NULL, 'a'), (NULL, 'b'), (1, 'c')");
    load(&db, by_id(&[("id", integer()), ("v", text())]), &[&[r#"{"v":"new"}"#]]);
    assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|c", "∅|new"]);
}

#[test]
fn keys_beyond_what_an_index_takes_are_merged_without_one() {
    let stream = stream(&[("url", text()), ("at", integer())], &[&["url"]]);
    let long: Vec<String> = (1..3).map(|n| format!(r#"{{"url":"{}","at":{n}}}"#, long_text(n))).collect();
    let newer = long[0].replace("\"at\":1", "\"at\":5");
    let batches: [&[&str]; 3] = [
        &[r#"{"url":"short","at":1}"#],
        &[&long[0], &long[1], r#"{"url":"short","at":0}"#],
        &[&newer, r#"{"url":"short","at":2}"#],
    ];
    let check = |db: &mut TestSchema, label: &str| {
        let rows = db.rows(
            "SELECT string_agg(at::text, '|' ORDER BY url = 'short', at DESC) FROM t UNION ALL SELECT count(*)::text FROM t",
        );
        assert_eq!(rows, ["5|2|2", "3"], "{label}");
    };
    for first in 0..2 {
        let mut db = TestSchema::new();
        load(&db, stream.clone(), &batches[first..]);
        load(&db, stream.clone(), &batches[1..]);
        check(&mut db, &format!("from batch {first} on"));
    }
    for (label, stream) in collected(&stream) {
        let mut db = TestSchema::new();
        load(&db, StreamSpec { mode: WriteMode::Merge, ..stream.clone() }, &[]);
        load(&db, self::stream(&[("url", text()), ("at", integer())], &[&["url"]]), &batches[..1]);
        load(&db, stream, &batches);
        check(&mut db, label);
    }
}

#[test]
fn keys_may_be_paths_into_documents() {
    let fields = [("doc", json!({"type": "object"})), ("at", integer()), ("v", text())];
    let stream = stream(&fields, &[&["doc", "a", "id"], &["doc", "n"]]);
    let rows = [
        r#"{"doc":{"a":{"id":1},"n":1.0},"at":1,"v":"a"}"#,
        r#"{"doc":{"a":{"id":"1"},"n":1},"at":1,"v":"b"}"#,
        r#"{"doc":{"a":{"id":null}},"at":1,"v":"c"}"#,
        r#"{"doc":null,"at":2,"v":"C"}"#,
        r#"{"doc":{"a":{"id":1},"n":1,"more":true},"at":2,"v":"A"}"#,
    ];
    for (label, table) in [PATHS[0], PATHS[1], ("as json", "CREATE TABLE t (doc json)")] {
        let mut db = TestSchema::new();
        db.run(table);
        load(&db, stream.clone(), &[&rows[..2], &rows[2..]]);
        let counts = load(&db, stream.clone(), &[&rows[..2]]);
        assert_eq!((counts.merged, counts.older), (1, 1), "{label}");
        let rows = db.rows("SELECT doc::jsonb -> 'more', at, v FROM t ORDER BY v COLLATE \"C\"");
        assert_eq!(rows, ["true|2|A", "∅|2|C", "∅|1|b"], "{label}");
    }
    for (label, stream) in collected(&stream) {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (v text); INSERT INTO t VALUES ('old')");
        load(&db, stream, &[&rows]);
        assert_eq!(db.rows("SELECT at, v FROM t ORDER BY v COLLATE \"C\""), ["2|A", "2|C", "1|b"], "{label}");
    }
}

#[test]
fn path_of_a_key_into_a_column_without_documents_fails_the_stream() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (doc text)");
    let mut sink = db.sink();
    let index = sink.open(stream(&[("doc", json!({"type": "object"}))], &[&["doc", "id"]])).expect("open");
    let error = sink.write(index, &record(r#"{"doc":{"id":1}}"#)).expect_err("text");
    assert!(error.text.contains("a path into \"doc\"") && error.text.contains("jsonb"), "{}", error.text);
}

#[test]
fn update_whose_cursor_does_not_fit_wins() {
    let stream = by_id(&[("id", integer()), ("at", integer()), ("v", text())]);
    for (label, table) in PATHS {
        for (batches, expected) in [
            (&[&[r#"{"id":1,"at":5,"v":"a"}"#, r#"{"id":1,"at":"x","v":"b"}"#][..]][..], "∅|b"),
            (&[&[r#"{"id":1,"at":5,"v":"a"}"#], &[r#"{"id":1,"at":"x","v":"b"}"#]], "∅|b"),
            (&[&[r#"{"id":1,"at":5}"#], &[r#"{"id":1,"at":"x"}"#, r#"{"id":1,"at":3,"v":"c"}"#]], "3|c"),
            (&[&[r#"{"id":1,"at":5}"#], &[r#"{"id":1,"at":9}"#, r#"{"id":1,"at":"x"}"#, r#"{"id":1,"v":"d"}"#]], "∅|d"),
            // A row without a cursor is older.
            (&[&[r#"{"id":1,"at":5,"v":"a"}"#], &[r#"{"id":1,"at":null,"v":"b"}"#]], "5|a"),
        ] {
            let mut db = TestSchema::new();
            db.run(table);
            load(&db, stream.clone(), batches);
            assert_eq!(db.rows("SELECT at, v FROM t"), [expected], "{label}: {batches:?}");
        }
    }
}

#[test]
fn rows_that_are_marked_as_deleted_go_unless_the_mark_is_older() {
    let fields = [("id", integer()), ("at", integer()), ("v", text()), ("_ab_cdc_deleted_at", text())];
    let hard = StreamSpec { cdc_deletion: Some(CdcDeletion::Hard), ..by_id(&fields) };
    let gone = |id: &str, at: &str| format!(r#"{{"id":{id},"at":{at},"_ab_cdc_deleted_at":"2024-01-01T00:00:00Z"}}"#);
    let row = |id: &str, at: &str| format!(r#"{{"id":{id},"at":{at},"v":"v"}}"#);
    let batches = [
        vec![row("1", "1"), row("2", "5"), row("3", "1"), gone("3", "2"), gone("4", "1"), row("null", "1")],
        // Deleted, marked by an older record, created again, marked without a cursor.
        vec![gone("1", "2"), gone("2", "4"), row("3", "3"), gone("null", "null"), gone("5", "5")],
        // Older versions of deleted rows, and a newer one.
        vec![row("1", "1"), row("5", "4"), row("5", "6"), gone("7", "1")],
        vec![row("5", "5"), row("7", "2"), gone("7", "3")],
        vec![row("7", "1")],
    ];
    let batches: Vec<Vec<&str>> = batches.iter().map(|rows| rows.iter().map(String::as_str).collect()).collect();
    let batches: Vec<&[&str]> = batches.iter().map(Vec::as_slice).collect();
    let expected = ["2|5", "3|3", "5|6"];
    for (label, table) in PATHS {
        let mut db = TestSchema::new();
        db.run(table);
        load(&db, hard.clone(), &batches);
        assert_eq!(db.rows("SELECT id, at FROM t ORDER BY id"), expected, "{label}");
    }
    for (label, stream) in collected(&hard) {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (9)");
        load(&db, stream, &batches);
        assert_eq!(db.rows("SELECT id, at FROM t ORDER BY id"), expected, "{label}");
    }
    let mut db = TestSchema::new();
    load(&db, StreamSpec { cdc_deletion: Some(CdcDeletion::Soft), ..hard.clone() }, &batches[..1]);
    assert_eq!(db.count("t"), 5, "soft");
    let copy = StreamSpec { primary_key: Vec::new(), mode: WriteMode::Replace, ..hard };
    load(&db, copy, &batches[..1]);
    assert_eq!(db.count("t"), 6, "a copy");
}

#[test]
fn counts_do_not_depend_on_where_commits_end() {
    let stream = by_id(&[("id", integer()), ("at", integer())]);
    let rows = [
        r#"{"id":1,"at":5}"#,
        r#"{"id":2,"at":1}"#,
        r#"{"id":1,"at":3}"#,
        r#"{"id":2,"at":2}"#,
        r#"{"id":1,"at":null}"#,
    ];
    for (label, table) in PATHS {
        for cut in 0..rows.len() {
            let mut db = TestSchema::new();
            db.run(table);
            let (before, after) = rows.split_at(cut);
            let counts = load(&db, stream.clone(), &[before, after]);
            assert_eq!((counts.merged, counts.older), (1, 2), "{label}, cut at {cut}");
            assert_eq!(db.rows("SELECT id, at FROM t ORDER BY id"), ["1|5", "2|2"], "{label}");
        }
    }
}

#[test]
fn keys_of_earlier_modes_are_dropped_if_they_are_ours() {
    let rows = [r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#, r#"{"v":"c"}"#];
    for mode in [WriteMode::Append, WriteMode::Replace] {
        for merged in [&rows[..1], &rows[2..]] {
            let mut db = TestSchema::new();
            let keyed = by_id(&[("id", integer()), ("v", text())]);
            load(&db, keyed.clone(), &[merged]);
            load(&db, StreamSpec { mode, primary_key: Vec::new(), ..keyed }, &[&rows]);
            let earlier_rows = usize::from(mode == WriteMode::Append);
            assert_eq!(db.count("t"), 3 + earlier_rows, "{mode:?}");
        }
    }
}

#[test]
fn rows_that_violate_a_key_of_the_user_fail_the_stream_and_change_nothing() {
    for mode in [WriteMode::Append, WriteMode::Replace] {
        for rows in [[r#"{"id":1}"#, r#"{"id":1}"#], [r#"{"id":1}"#, r#"{"v":"x"}"#]] {
            let mut db = TestSchema::new();
            db.run("CREATE TABLE t (id bigint CONSTRAINT mine PRIMARY KEY, v text); INSERT INTO t VALUES (7, 'old')");
            let mut sink = db.sink();
            let stream = sink.open(spec("t", mode, &[("id", integer()), ("v", text())])).expect("open");
            write(&mut sink, stream, &rows);
            let error = sink.finish(stream).expect_err("the key is violated");
            let is_clear = error.text.contains("constraint") && error.text.contains("drop it, or merge");
            assert!(is_clear && !error.transient, "{}", error.text);
            assert_eq!(db.rows("SELECT id, v FROM t"), ["7|old"], "{mode:?}");
        }
    }
}

#[test]
fn key_that_no_row_and_no_schema_has_fails_the_stream() {
    let db = TestSchema::new();
    let mut sink = db.sink();
    let index = sink.open(stream(&[("v", text())], &[&["id"]])).expect("open");
    sink.write(index, &record(r#"{"v":"a"}"#)).expect("a row");
    let error = sink.commit(index).expect_err("no key");
    assert!(error.text.contains("no row has a value for \"id\""), "{}", error.text);
}
