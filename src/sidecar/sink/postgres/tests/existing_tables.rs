//! Tables that the existing implementation or a user created.

use serde_json::json;

use super::support::{TestSchema, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

/// A table as the existing implementation creates it.
const JITSU_TABLE: &str = r#"
    CREATE TABLE t (id bigint NOT NULL, name text, amount double precision, at timestamptz, active boolean, doc jsonb,
        _unmapped_data jsonb, _jitsu_timestamp timestamptz);
    ALTER TABLE t ADD CONSTRAINT jitsu_pk_6b1f4a_t PRIMARY KEY (id);
    CREATE VIEW v AS SELECT id, name FROM t;
    CREATE INDEX ON t (name);
    INSERT INTO t VALUES (1, 'old', 1.5, '2024-01-31T00:00:00Z', true, '{"a": 1}', NULL, now()), (2, 'old', 2, now(), false, NULL, NULL, now());
"#;

fn jitsu_stream(mode: WriteMode, key: &[&str]) -> StreamSpec {
    let fields = [
        ("id", json!({"type": "integer"})),
        ("name", json!({"type": "string"})),
        ("amount", json!({"type": "number"})),
        ("at", json!({"type": "string", "format": "date-time"})),
        ("active", json!({"type": "boolean"})),
        ("doc", json!({"type": "object"})),
    ];
    let primary_key = key.iter().map(|part| vec![(*part).to_owned()]).collect();
    StreamSpec { primary_key, ..spec("t", mode, &fields) }
}

fn load(db: &TestSchema, stream: StreamSpec, rows: &[&str]) {
    let mut sink = db.sink();
    let stream = sink.open(stream).expect("open");
    write(&mut sink, stream, rows);
    sink.finish(stream).expect("finish");
}

fn primary_key(db: &mut TestSchema) -> Vec<String> {
    db.rows(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = 't'::regclass",
    )
}

#[test]
fn tables_of_the_existing_implementation_are_used_unchanged() {
    let rows = [
        r#"{"id":2,"name":"new","amount":3,"at":"2024-02-01","active":"true","doc":{"b":[2]}}"#,
        r#"{"id":3,"name":"new","amount":"many","extra":7}"#,
    ];
    for (label, mode, expected) in [
        ("merged", WriteMode::Merge, vec!["1|old|1.5|∅", "2|new|3|∅", "3|new|∅|7"]),
        ("replaced", WriteMode::Replace, vec!["2|new|3|∅", "3|new|∅|7"]),
    ] {
        let mut db = TestSchema::new();
        db.run(JITSU_TABLE);
        load(&db, jitsu_stream(mode, &["id"]), &rows);
        assert_eq!(db.rows("SELECT id, name, amount, extra FROM t ORDER BY id"), expected, "{label}");
        assert_eq!(primary_key(&mut db), ["jitsu_pk_6b1f4a_t|PRIMARY KEY (id)"], "{label}");
        assert_eq!(db.rows("SELECT _unmapped_data FROM t WHERE id = 3"), [r#"{"amount": "many"}"#], "{label}");
        let doc = db.rows("SELECT doc, at, active FROM t WHERE id = 2");
        assert_eq!(doc, [r#"{"b": [2]}|2024-02-01 00:00:00+00|t"#], "{label}");
        assert_eq!(db.rows("SELECT count(*) FROM v").remove(0), expected.len().to_string(), "{label}");
        let indexes =
            db.rows("SELECT count(*) FROM pg_indexes WHERE tablename = 't' AND schemaname = current_schema()");
        assert_eq!(indexes, ["2"], "{label}");
        assert_eq!(db.columns("t").len(), 9, "{label}: only the new field is added");
    }
}

#[test]
fn append_drops_the_key_of_the_existing_implementation() {
    let mut db = TestSchema::new();
    db.run(JITSU_TABLE);
    load(&db, jitsu_stream(WriteMode::Append, &[]), &[r#"{"id":1,"name":"again"}"#, r#"{"name":"no id"}"#]);
    assert_eq!(db.rows("SELECT id, name FROM t ORDER BY id, name"), ["1|again", "1|old", "2|old", "∅|no id"]);
}

#[test]
fn append_keeps_rows_without_key_values() {
    let mut db = TestSchema::new();
    load(&db, jitsu_stream(WriteMode::Append, &["id"]), &[r#"{"id":1}"#, r#"{"id":null}"#, r#"{"id":"x"}"#, "[]"]);
    assert_eq!(db.rows("SELECT id, _unmapped_data FROM t"), ["1|∅", "∅|∅", r#"∅|{"id": "x"}"#, "∅|[]"]);
    assert_eq!(primary_key(&mut db), Vec::<String>::new());
}

#[test]
fn undeclared_fields_map_to_existing_columns() {
    let mut db = TestSchema::new();
    db.run(JITSU_TABLE);
    let row = r#"{"id":3,"name":5,"amount":7,"at":"2024-02-01T00:00:00Z","active":false,"doc":{"x":{"y":1}}}"#;
    load(&db, spec("t", WriteMode::Append, &[]), &[row]);
    assert_eq!(
        db.rows("SELECT id, name, amount, at, active, doc, _unmapped_data FROM t WHERE id = 3"),
        [r#"3|5|7|2024-02-01 00:00:00+00|f|{"x": {"y": 1}}|∅"#]
    );
}

#[test]
fn primary_keys_of_users_are_kept() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, name text, serial serial CONSTRAINT mine PRIMARY KEY)");
    for name in ["a", "b"] {
        load(&db, jitsu_stream(WriteMode::Merge, &["id"]), &[&format!(r#"{{"id":1,"name":"{name}"}}"#)]);
    }
    assert_eq!(db.rows("SELECT id, name FROM t"), ["1|b"]);
    assert_eq!(primary_key(&mut db), ["mine|PRIMARY KEY (serial)"]);
    load(&db, jitsu_stream(WriteMode::Append, &[]), &[r#"{"id":2}"#]);
    assert_eq!(primary_key(&mut db), ["mine|PRIMARY KEY (serial)"]);
}

#[test]
fn generated_identity_and_default_columns_are_filled_by_the_server() {
    let mut db = TestSchema::new();
    db.run(
        "CREATE TABLE t (id bigint, twice bigint GENERATED ALWAYS AS (id * 2) STORED,
         seq bigint GENERATED ALWAYS AS IDENTITY, made timestamptz NOT NULL DEFAULT '2024-01-01Z', name text)",
    );
    load(&db, jitsu_stream(WriteMode::Append, &[]), &[r#"{"id":1,"twice":5,"seq":9,"name":"x"}"#, r#"{"id":2}"#]);
    assert_eq!(
        db.rows("SELECT id, twice, seq, made, name, _unmapped_data FROM t"),
        [r#"1|2|1|2024-01-01 00:00:00+00|x|{"seq": 9, "twice": 5}"#, "2|4|2|2024-01-01 00:00:00+00|∅|∅",]
    );
}

#[test]
fn partitioned_tables_are_supported() {
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace] {
        let mut db = TestSchema::new();
        db.run(
            "CREATE TABLE t (id bigint PRIMARY KEY, name text) PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (10); CREATE TABLE high PARTITION OF t DEFAULT;
             INSERT INTO t VALUES (1, 'old')",
        );
        load(&db, jitsu_stream(mode, &["id"]), &[r#"{"id":2,"name":"a"}"#, r#"{"id":20,"name":"b"}"#]);
        let expected: &[&str] = if mode == WriteMode::Replace { &["2|a", "20|b"] } else { &["1|old", "2|a", "20|b"] };
        assert_eq!(db.rows("SELECT id, name FROM t ORDER BY id"), expected, "{mode:?}");
        assert_eq!(db.rows("SELECT id FROM high"), ["20"], "{mode:?}");
    }
}

#[test]
fn tables_near_the_column_limit_accept_rows() {
    let mut db = TestSchema::new();
    let columns: Vec<String> = (0..1500).map(|n| format!("c{n} bigint")).collect();
    db.run(&format!("CREATE TABLE t ({})", columns.join(",")));
    let fields: Vec<String> = (0..300).map(|n| format!("\"new{n}\":{n}")).collect();
    load(&db, spec("t", WriteMode::Append, &[]), &[&format!("{{\"c1499\":7,{}}}", fields.join(","))]);
    assert_eq!(db.rows("SELECT c1499 FROM t"), ["7"]);
    assert_eq!(db.count("t"), 1);
    let row: serde_json::Value =
        serde_json::from_str(&db.rows("SELECT to_jsonb(t) || coalesce(_unmapped_data, '{}') FROM t")[0])
            .expect("a row");
    for n in 0..300 {
        assert_eq!(row[format!("new{n}")], n, "new{n}");
    }
}
