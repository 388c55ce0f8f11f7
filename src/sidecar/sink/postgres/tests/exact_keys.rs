//! Values of keys that their columns do not hold exactly are refused, never merged with others.

use serde_json::{Value, json};

use super::support::{TestSchema, record, spec, write};
use crate::sidecar::sink::{Generation, Sink, SinkError, StreamSpec, WriteMode};

/// Each way in which rows are merged.
fn streams(schema: &Value) -> [(&'static str, StreamSpec); 4] {
    let stream =
        |mode| StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec("t", mode, &[("id", schema.clone())]) };
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    [
        ("merge", stream(WriteMode::Merge)),
        ("replacement", stream(WriteMode::Replace)),
        ("replacement at the first commit", StreamSpec { replaces_at_first_commit: true, ..stream(WriteMode::Merge) }),
        ("generation", StreamSpec { generation, ..stream(WriteMode::Merge) }),
    ]
}

fn load(db: &TestSchema, stream: StreamSpec, ids: &[&str]) -> Result<(), SinkError> {
    let mut sink = db.sink();
    let index = sink.open(stream)?;
    for id in ids {
        sink.write(index, &record(&format!(r#"{{"id":{id}}}"#)))?;
    }
    sink.finish(index)
}

#[test]
fn keys_that_a_column_would_change_are_refused() {
    // A view keeps the type of the column also where all rows are replaced.
    for (column, schema, exact, inexact, value) in [
        (
            "double precision",
            json!({"type": "number"}),
            "1493258712340000004",
            "1493258712340000003",
            "a number of 19 characters",
        ),
        (
            "double precision",
            json!({"type": "integer"}),
            "9007199254740992",
            "9007199254740993",
            "a number of 16 characters",
        ),
        ("real", json!({"type": "number"}), "0.5", "16777217", "a number of 8 characters"),
        ("numeric(5,2)", json!({"type": "number"}), "1.25", "1.254", "a number of 5 characters"),
        ("integer", json!({"type": "string"}), "7", r#""007""#, "a string of 3 characters"),
        ("varchar(3)", json!({"type": "string"}), r#""abc""#, r#""abcd""#, "a string of 4 characters"),
        ("char(3)", json!({"type": "string"}), r#""ab""#, r#""ab ""#, "a string of 3 characters"),
        (
            "timestamptz",
            json!({"type": "string"}),
            r#""2024-01-31T10:00:00.123456Z""#,
            r#""2024-01-31T10:00:00.1234561Z""#,
            "a string of 28 characters",
        ),
        (
            "timestamptz(3)",
            json!({"type": "string"}),
            r#""2024-01-31T10:00:00.123Z""#,
            r#""2024-01-31T10:00:00.1231Z""#,
            "a string of 25 characters",
        ),
        ("text", json!({"type": "string"}), r#""ab""#, r#""a\u0000b""#, "a string of 3 characters"),
        ("text", json!({"type": "string"}), r#""ab""#, r#""a\ud800b""#, "a string of 8 characters"),
        ("jsonb", json!({"type": "object"}), r#""ab""#, r#"{"a":"\u0000"}"#, "an object"),
    ] {
        for (mode, stream) in streams(&schema) {
            let label = format!("{column}, {inexact}, {mode}");
            let mut db = TestSchema::new();
            db.run(&format!("CREATE TABLE t (id {column}); CREATE VIEW seen AS SELECT id FROM t"));
            if column != "double precision" || schema["type"] == "integer" {
                load(&db, stream.clone(), &[exact]).unwrap_or_else(|error| panic!("{label}: {error}"));
                assert_eq!(db.count("t"), 1, "{label}");
            }
            let error = load(&db, stream, &[exact, inexact]).expect_err(&label);
            let (before, after) =
                error.text.split_once(" cannot hold exactly").unwrap_or_else(|| panic!("{label}: {error}"));
            assert!(before.ends_with(&format!("primary key, is {value} that column \"id\" ({})", db.rows("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum = 1")[0])), "{label}: {error}");
            assert!(after.contains("change the type of the column to ") && !error.transient, "{label}: {error}");
            assert!(!error.text.contains(inexact.trim_matches('"')), "{label}: {error}");
        }
    }
}

#[test]
fn appended_values_may_be_rounded() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id double precision)");
    load(&db, streams(&json!({"type": "number"}))[0].1.clone(), &["1", "1.0"]).expect("equal numbers");
    assert_eq!(db.rows("SELECT id FROM t"), ["1"]);
    let mut sink = db.sink();
    let index = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    write(&mut sink, index, &[r#"{"id":9007199254740993}"#]);
    sink.finish(index).expect("finish");
    assert_eq!(db.count("t"), 2);
}
