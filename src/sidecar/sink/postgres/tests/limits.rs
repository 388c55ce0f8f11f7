//! Very large, wide and deep rows.

use serde_json::{Value, json};

use super::support::{TestSchema, keyed, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

/// Each row as one document: its columns together with the unmapped values.
const ALL_VALUES: &str = "SELECT to_jsonb(t) - '_unmapped_data' || coalesce(_unmapped_data, '{}') FROM t";

/// A row with this number of fields, all with the same value.
fn wide(count: usize, value: &Value) -> Value {
    Value::Object((0..count).map(|n| (format!("f{n:04}"), value.clone())).collect())
}

fn declared(count: usize, schema: &Value) -> Vec<(String, Value)> {
    (0..count).map(|n| (format!("f{n:04}"), schema.clone())).collect()
}

#[test]
fn rows_of_five_thousand_fields_keep_all_values() {
    let integer = json!({"type": "integer"});
    let text = json!({"type": "string"});
    for (label, count, schema, value) in [
        ("declared integers", 5000, Some(&integer), json!(i64::MAX)),
        ("declared texts that stay in the row", 5000, Some(&text), json!("x".repeat(23))),
        ("declared texts that are TOASTed", 5000, Some(&text), json!("x".repeat(300))),
        ("declared empty texts", 5000, Some(&text), json!("")),
        ("undeclared integers", 5000, None, json!(1)),
        ("undeclared texts that stay in the row", 5000, None, json!("x".repeat(23))),
        ("undeclared texts that are TOASTed", 500, None, json!("x".repeat(3000))),
        ("undeclared lists", 500, None, json!([1, 2])),
    ] {
        let mut db = TestSchema::new();
        let fields = schema.map(|schema| declared(count, schema)).unwrap_or_default();
        let fields: Vec<(&str, Value)> = fields.iter().map(|(name, schema)| (name.as_str(), schema.clone())).collect();
        let mut sink = db.sink();
        let stream = sink.open(spec("t", WriteMode::Append, &fields)).expect(label);
        let row = wide(count, &value);
        write(&mut sink, stream, &[&row.to_string(), "{}", &row.to_string()]);
        sink.finish(stream).expect(label);
        let (rows, list) = (db.rows(ALL_VALUES), value.to_string());
        assert_eq!(rows.len(), 3, "{label}");
        for read in [&rows[0], &rows[2]] {
            let read: Value = serde_json::from_str(read).expect(label);
            for n in 0..count {
                let read = &read[format!("f{n:04}")];
                // A list is text in a column, and a list among the unmapped values.
                let same = *read == value || read.as_str() == Some(&list);
                assert!(same, "{label}: field {n} is {read}");
            }
        }
    }
}

#[test]
fn colliding_unmapped_fields_get_suffixes() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    let many = wide(400, &json!(1)).to_string();
    write(&mut sink, stream, &[&many, r#"{"x":{"y":1},"x_y":2,"x_y":3,"x":{"y":4}}"#]);
    sink.finish(stream).expect("finish");
    let unmapped = &db.rows("SELECT _unmapped_data FROM t")[1];
    assert_eq!(unmapped, r#"{"x_y": 4, "x_y_52102d8e": 3}"#);
}

#[test]
fn alternating_texts_and_bigints_fit_into_a_page() {
    let mut db = TestSchema::new();
    // Each bigint after a short text needs padding for its alignment.
    let columns: Vec<String> =
        (0..1400).map(|n| format!("f{n:04} {}", if n % 2 == 0 { "text" } else { "bigint" })).collect();
    db.run(&format!("CREATE TABLE t ({})", columns.join(",")));
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    let row: Value = (0..1400)
        .map(|n| (format!("f{n:04}"), if n % 2 == 0 { json!("xy") } else { json!(n) }))
        .collect::<serde_json::Map<_, _>>()
        .into();
    write(&mut sink, stream, &[&row.to_string()]);
    sink.finish(stream).expect("finish");
    let read: Value = serde_json::from_str(&db.rows(ALL_VALUES)[0]).expect("a row");
    assert_eq!(read, row);
}

#[test]
fn key_and_cursor_beyond_the_column_limit_get_columns() {
    for fields in [declared(3000, &json!({"type": "integer"})), Vec::new()] {
        let label = format!("{} declared", fields.len());
        let fields: Vec<(&str, Value)> = fields.iter().map(|(name, schema)| (name.as_str(), schema.clone())).collect();
        let mut db = TestSchema::new();
        let mut sink = db.sink();
        let stream = StreamSpec {
            primary_key: vec![vec!["f2999".to_owned()]],
            cursor: vec!["f2998".to_owned()],
            ..spec("t", WriteMode::Merge, &fields)
        };
        let stream = sink.open(stream).expect(&label);
        let mut row = wide(3000, &json!(1));
        for cursor in [5, 9, 7] {
            row["f2998"] = json!(cursor);
            write(&mut sink, stream, &[&row.to_string()]);
        }
        sink.finish(stream).expect(&label);
        assert_eq!(db.rows("SELECT f2999, f2998, f0000 FROM t"), ["1|9|1"], "{label}");
    }
}

#[test]
fn documents_of_ten_thousand_levels_are_stored() {
    let mut db = TestSchema::new();
    let lists = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[("d", json!({"type": "object"}))])).expect("open");
    write(&mut sink, stream, &[&format!(r#"{{"d":{lists},"l":{lists},"u":{objects}}}"#), &lists]);
    sink.finish(stream).expect("finish");
    let rows = db
        .rows("SELECT length(d #>> '{}'), length(l), length(_unmapped_data #>> '{}'), (SELECT count(*) FROM t) FROM t");
    assert_eq!(rows, ["20000|20000|∅|2", "∅|∅|20000|2"]);
    assert_eq!(db.columns("t")[2], "u_a_a_a_a_a_a_a_a_a_a_a|jsonb");
}

#[test]
fn documents_beyond_the_element_limit_become_strings() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[("d", json!({"type": "array"}))])).expect("open");
    let list = format!("[{}1]", "1,".repeat(8_100_000));
    write(&mut sink, stream, &[&format!(r#"{{"d":{list}}}"#), r#"{"d":[1]}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(
        db.rows("SELECT jsonb_typeof(d), length(d #>> '{}') FROM t"),
        [format!("string|{}", list.len()), "array|3".to_owned()]
    );
}

#[test]
fn numbers_beyond_double_go_to_unmapped_data() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (n double precision)");
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[("n", json!({"type": "number"}))])).expect("open");
    write(&mut sink, stream, &[r#"{"n":1E400}"#, r#"{"n":-1e-400}"#, r#"{"n":1e999999999999}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(
        db.rows("SELECT n, _unmapped_data->'n' IN (to_jsonb(1e400), to_jsonb(-1e-400), '\"1e999999999999\"') FROM t"),
        ["∅|t", "∅|t", "∅|t"]
    );
}

#[test]
fn fields_beyond_the_tracking_limit_go_to_unmapped_data() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    for n in 0..30_000 {
        write(&mut sink, stream, &[&format!(r#"{{"id":{n},"u{n}":{n},"o":{{"k{n}":{n}}}}}"#)]);
    }
    sink.finish(stream).expect("finish");
    assert_eq!(db.count("t"), 30_000);
    let last = db.rows("SELECT _unmapped_data FROM t WHERE id = 29999");
    assert_eq!(last, [r#"{"u29999": 29999, "o_k29999": 29999}"#]);
    assert!(db.columns("t").len() <= 410);
}
