//! How fields of rows become columns.

use serde_json::json;

use super::support::{TestSchema, record, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

fn load(db: &mut TestSchema, stream: StreamSpec, rows: &[&str]) {
    let mut sink = db.sink();
    let stream = sink.open(stream).expect("open");
    write(&mut sink, stream, rows);
    sink.finish(stream).expect("finish");
    let _ = db.tables();
}

#[test]
fn declared_and_undeclared_fields_become_columns() {
    let mut db = TestSchema::new();
    let fields = [
        ("id", json!({"type": "integer"})),
        ("doc", json!({"type": "object"})),
        ("at", json!({"type": "string", "format": "date-time"})),
    ];
    load(
        &mut db,
        spec("t", WriteMode::Append, &fields),
        &[
            r#"{"id":9223372036854775807,"doc":{"a":[1.50,"\u0000x"]},"at":"2024-01-31","none":null}"#,
            r#"{"id":1,"new":{"x":{"y":5e-10},"list":[1]},"z.z":true,"big":9223372036854775808}"#,
            r#"{"new":"text now","at":"2024-01-31T10:00:00+02:00"}"#,
        ],
    );
    assert_eq!(
        db.columns("t"),
        [
            "id|bigint",
            "doc|jsonb",
            "at|timestamp with time zone",
            "new_x_y|numeric",
            "new_list|text",
            "z_z|boolean",
            "big|numeric",
            "new|text"
        ]
    );
    assert_eq!(
        db.rows("SELECT * FROM t"),
        [
            "9223372036854775807|{\"a\": [1.50, \"x\"]}|2024-01-31 00:00:00+00|∅|∅|∅|∅|∅",
            "1|∅|∅|0.0000000005|[1]|t|9223372036854775808|∅",
            "∅|∅|2024-01-31 08:00:00+00|∅|∅|∅|∅|text now",
        ]
    );
}

#[test]
fn columns_are_added_within_a_transaction() {
    for mode in [WriteMode::Append, WriteMode::Replace] {
        let mut db = TestSchema::new();
        let mut sink = db.sink();
        let stream = sink.open(spec("t", mode, &[])).expect("open");
        let padding = "x".repeat(1000);
        for n in 0..3000 {
            let row = format!(r#"{{"f":"{padding}","c{}":{n}}}"#, n / 500);
            sink.write(stream, &record(&row)).expect("a row");
        }
        sink.finish(stream).expect("finish");
        assert_eq!(db.columns("t").len(), 7);
        assert_eq!(
            db.rows("SELECT count(c0), count(c1), count(c5), max(c5), count(*) FROM t"),
            ["500|500|500|2999|3000"]
        );
    }
}

#[test]
fn misfits_go_to_unmapped_data() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (i integer, d double precision, t timestamptz)");
    let fields = [
        ("i", json!({"type": "integer"})),
        ("d", json!({"type": "number"})),
        ("t", json!({"type": "string", "format": "date-time"})),
    ];
    load(
        &mut db,
        spec("t", WriteMode::Append, &fields),
        &[
            r#"{"i":1,"d":1.5,"t":"2024-01-31T00:00:00Z"}"#,
            r#"{"i":99999999999999999999,"d":9007199254740993,"t":"soon \u0000"}"#,
            r#"{"i":"a\"b","d":1e400,"t":1e200000}"#,
            "[1,2]",
        ],
    );
    assert_eq!(
        db.rows("SELECT i, d, _unmapped_data FROM t"),
        [
            "1|1.5|∅",
            "∅|9.007199254740992e+15|{\"d\": 9007199254740993, \"i\": 99999999999999999999, \"t\": \"soon \"}",
            &format!("∅|∅|{{\"d\": 1{}, \"i\": \"a\\\"b\", \"t\": \"1e200000\"}}", "0".repeat(400)),
            "∅|∅|[1, 2]",
        ]
    );
}

#[test]
fn existing_columns_keep_their_types() {
    let mut db = TestSchema::new();
    db.run(
        "CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (small smallint, short varchar(3), money numeric(5,2), day date,
         at timestamp, flag boolean, u uuid, mood mood, gen int GENERATED ALWAYS AS (1) STORED, j json, r real, \"Other\" int)",
    );
    let row = r#"{"small":"7","short":"abc","money":123.45,"day":"2024-01-31","at":"2024-01-31T10:00:00+01:00","flag":1,
        "u":"67e55044-10b1-426f-9247-bb680e5fe0c8","mood":"ok","gen":5,"j":{"a":1},"r":0.5,"Other":3}"#;
    let misfits = r#"{"small":70000,"short":"abcd","money":1.234,"day":"2024-01-31T10:00:00Z","at":"never","flag":2,"u":"x","r":0.1234567891}"#;
    load(&mut db, spec("t", WriteMode::Append, &[]), &[row, misfits]);
    assert_eq!(
        db.rows("SELECT small, short, money, day, at, flag, u, mood, gen, j, r, \"Other\", _unmapped_data FROM t"),
        [
            "7|abc|123.45|2024-01-31|2024-01-31 09:00:00|t|67e55044-10b1-426f-9247-bb680e5fe0c8|∅|1|{\"a\":1}|0.5|3|{\"gen\": 5, \"mood\": \"ok\"}",
            "∅|∅|1.23|∅|∅|∅|∅|∅|1|∅|0.12345679|∅|{\"r\": 0.1234567891, \"u\": \"x\", \"at\": \"never\", \"day\": \"2024-01-31T10:00:00Z\", \"flag\": 2, \"money\": 1.234, \"short\": \"abcd\", \"small\": 70000}",
        ]
    );
}

#[test]
fn colliding_fields_get_their_own_columns() {
    let mut db = TestSchema::new();
    let stream = StreamSpec {
        to_same_case: true,
        add_meta: true,
        ..spec("T", WriteMode::Append, &[("a_b", json!({"type": "integer"}))])
    };
    load(
        &mut db,
        stream,
        &[
            r#"{"a.b":1,"a/b":2,"a":{"b":3},"A_B":4,"a_b":5,"a_b":6,"ctid":7,"":8,"!!":9,"_unmapped_data":10,"_jitsu_timestamp":11}"#,
        ],
    );
    let columns = db.columns("t");
    assert_eq!(columns.len(), 11, "{columns:?}");
    assert_eq!(columns[..2], ["_jitsu_timestamp|timestamp with time zone", "a_b|bigint"]);
    let loaded = "SELECT _jitsu_timestamp BETWEEN now() - interval '10 minutes' AND now(), a_b, ctid_, _unnamed FROM t";
    assert_eq!(db.rows(loaded), ["t|6|7|8"], "the time of loading, not of the record");
    let all = db.rows("SELECT * FROM t").remove(0);
    for value in 1..=11 {
        assert!(value == 5 || all.split('|').any(|field| field == value.to_string()), "{value} in {all}");
    }
}

#[test]
fn rows_without_columns_are_stored() {
    let mut db = TestSchema::new();
    load(&mut db, spec("t", WriteMode::Append, &[]), &["{}", r#"{"a":null}"#, "{}"]);
    assert_eq!(db.count("t"), 3);
    load(&mut db, spec("u", WriteMode::Replace, &[]), &["{}", r#"{"a":1}"#]);
    assert_eq!(db.rows("SELECT * FROM u"), ["∅", "1"]);
}

#[test]
fn fields_beyond_the_column_limit_go_to_unmapped_data() {
    let mut db = TestSchema::new();
    let fields: Vec<String> = (0..1700).map(|n| format!("\"f{n}\":{n}")).collect();
    load(&mut db, spec("t", WriteMode::Append, &[]), &[&format!("{{{}}}", fields.join(","))]);
    assert_eq!(db.rows("SELECT f399, _unmapped_data->>'f400', _unmapped_data->>'f1699' FROM t"), ["399|400|1699"]);
}

#[test]
fn deep_objects_are_stored_as_documents() {
    let mut db = TestSchema::new();
    let deep = format!("{}1{}", r#"{"a":"#.repeat(3000), "}".repeat(3000));
    load(&mut db, spec("t", WriteMode::Append, &[]), &[&deep]);
    assert_eq!(db.columns("t"), ["a_a_a_a_a_a_a_a_a_a_a_a|jsonb"]);
}

#[test]
fn missing_schema_is_created() {
    let mut db = TestSchema::new();
    let schema = format!("{}_new", db.schema);
    let stream = StreamSpec { schema: Some(schema.clone()), ..spec("t", WriteMode::Merge, &[]) };
    load(&mut db, stream, &[r#"{"a":1}"#]);
    assert_eq!(db.rows(&format!("SELECT * FROM {schema}.t")), ["1"]);
    db.run(&format!("DROP SCHEMA {schema} CASCADE"));
}

#[test]
fn errors_name_table_and_database() {
    let mut db = TestSchema::new();
    db.run(
        "CREATE TABLE base (id bigint); CREATE VIEW v AS SELECT 1 AS a; CREATE TABLE n (id bigint, must int NOT NULL)",
    );
    let mut sink = db.sink();
    for table in ["v", "n"] {
        let stream = sink.open(spec(table, WriteMode::Append, &[])).expect("open");
        let result = sink.write(stream, &record(r#"{"id":1}"#)).and_then(|()| sink.finish(stream));
        let error = result.expect_err(table);
        assert!(error.text.contains(&format!("{table}\"")) && !error.transient, "{}", error.text);
        assert!(error.text.contains("database"), "{}", error.text);
    }
    assert_eq!(db.open_transactions(), 0);
    let mut config = db.config();
    config["port"] = json!(1);
    let settings = super::super::Settings::parse(&config).expect("settings");
    let error = super::super::PostgresSink::connect(&settings, std::time::Duration::ZERO).err().expect("no server");
    assert!(error.transient && error.text.contains(":1"), "{}", error.text);
}
