//! Text columns of the existing implementation, whose values have a form of their own.

use serde_json::json;

use super::support::{TestSchema, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

const TEXTS: &str = "
    CREATE TABLE t (id text NOT NULL, v text, n text);
    ALTER TABLE t ADD CONSTRAINT jitsu_pk_0a1b PRIMARY KEY (id);
    INSERT INTO t VALUES ('2024-05-01T00:00:00Z', 'old', '2024-01-01T00:00:00.5Z'), ('2024-05-01T10:00:00.25Z', 'old', NULL);
";

fn stream(mode: WriteMode) -> StreamSpec {
    let text = || json!({"type": "string"});
    let fields = [("id", text()), ("v", text()), ("n", json!({"oneOf": [{"type": "number"}, {"type": "string"}]}))];
    StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec("t", mode, &fields) }
}

fn load(db: &TestSchema, stream: StreamSpec, rows: &[&str]) {
    let mut sink = db.sink();
    let stream = sink.open(stream).expect("open");
    write(&mut sink, stream, rows);
    sink.finish(stream).expect("finish");
}

#[test]
fn keys_in_the_form_of_the_existing_implementation_are_found() {
    let mut db = TestSchema::new();
    db.run(TEXTS);
    let rows = [
        r#"{"id":"2024-05-01T00:00:00.000Z","v":"new","n":1.0}"#,
        r#"{"id":"2024-05-01T12:00:00.250+02:00","v":"2024-05-01T00:00:00.000Z","n":"2024-05-01 00:00:00.100"}"#,
        r#"{"id":"not a time","v":"new","n":2}"#,
    ];
    for run in ["first", "second"] {
        load(&db, stream(WriteMode::Merge), &rows);
        let expected = [
            "2024-05-01T00:00:00Z|new|1",
            // No value of this column shows the form: the text stays as the source sent it.
            "2024-05-01T10:00:00.25Z|2024-05-01T00:00:00.000Z|2024-05-01T00:00:00.1Z",
            "not a time|new|2",
        ];
        assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), expected, "{run}");
    }
}

#[test]
fn appended_rows_get_the_form_of_the_column() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (at text); INSERT INTO t VALUES ('2024-05-01T00:00:00Z'), ('soon'), (NULL)");
    load(&db, spec("t", WriteMode::Append, &[]), &[r#"{"at":"2024-05-02T00:00:00.100+01:00"}"#]);
    assert_eq!(db.rows("SELECT at FROM t WHERE at LIKE '2024-05-01T2%'"), ["2024-05-01T23:00:00.1Z"]);
}

#[test]
fn other_texts_stay_as_the_source_sent_them() {
    for (label, table) in [
        ("a new table", ""),
        (
            "a table with other forms",
            "CREATE TABLE t (id text PRIMARY KEY); INSERT INTO t VALUES ('2024-05-01T00:00:00Z'), ('2024-05-01T00:00:00.500Z')",
        ),
    ] {
        let mut db = TestSchema::new();
        db.run(table);
        for seconds in ["01Z", "02.000Z", "03+00:00"] {
            load(&db, stream(WriteMode::Merge), &[&format!(r#"{{"id":"2024-05-01T00:00:{seconds}","n":1.0}}"#)]);
        }
        let rows = db.rows("SELECT id FROM t WHERE id > '2024-05-01T00:00:01' ORDER BY id");
        assert_eq!(rows, ["2024-05-01T00:00:01Z", "2024-05-01T00:00:02.000Z", "2024-05-01T00:00:03+00:00"], "{label}");
    }
}

#[test]
fn declared_documents_may_arrive_as_their_text() {
    let mut db = TestSchema::new();
    let fields = [
        ("object", json!({"type": ["null", "object"]})),
        ("list", json!({"type": "array"})),
        ("text", json!({"type": "string"})),
    ];
    let rows = [
        r#"{"object":"{\"a\": [1, \"x\"]}","list":"[1, 2]","text":"{\"a\": 1}"}"#,
        r#"{"object":"{broken","list":"text","text":{"a": 1}}"#,
        r#"{"object":{"a":"{}"},"list":["[1]"]}"#,
    ];
    load(&db, spec("t", WriteMode::Append, &fields), &rows);
    assert_eq!(
        db.rows("SELECT object, list, text FROM t"),
        [r#"{"a": [1, "x"]}|[1, 2]|{"a": 1}"#, r#""{broken"|"text"|{"a":1}"#, r#"{"a": "{}"}|["[1]"]|∅"#,]
    );
}

#[test]
fn rows_are_merged_by_a_primary_key_of_the_user() {
    for mode in [WriteMode::Merge, WriteMode::Replace] {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id text, v text, n text, CONSTRAINT mine PRIMARY KEY (v)); INSERT INTO t VALUES ('1', 'a', 'old')");
        load(
            &db,
            stream(mode),
            &[r#"{"id":"2","v":"a","n":"x"}"#, r#"{"id":"2","v":"b"}"#, r#"{"id":"3","v":"b","n":"y"}"#],
        );
        assert_eq!(
            db.rows("SELECT id, v, n #>> '{}' FROM (SELECT id, v, to_jsonb(n) n FROM t) t ORDER BY v"),
            ["2|a|x", "3|b|y"],
            "{mode:?}"
        );
        let key = db.rows("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'mine'");
        assert_eq!(key, ["PRIMARY KEY (v)"], "{mode:?}");
    }
}
