//! Rows as large, wide and deep as they come.

use serde_json::{Value, json};

use super::support::{World, keyed, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

/// What the table holds of a field, in its own column or beside.
const WHOLE: &str = "SELECT to_jsonb(t) - '_unmapped_data' || coalesce(_unmapped_data, '{}') FROM t";

/// A row of so many fields with equal values.
fn wide(count: usize, value: &Value) -> Value {
    Value::Object((0..count).map(|n| (format!("f{n:04}"), value.clone())).collect())
}

fn declared(count: usize, schema: &Value) -> Vec<(String, Value)> {
    (0..count).map(|n| (format!("f{n:04}"), schema.clone())).collect()
}

#[test]
fn five_thousand_fields_lose_nothing() {
    let integer = json!({"type": "integer"});
    let text = json!({"type": "string"});
    for (label, count, schema, value) in [
        ("declared integers", 5000, Some(&integer), json!(i64::MAX)),
        ("declared texts that are kept in the row", 5000, Some(&text), json!("x".repeat(23))),
        ("declared texts that are kept elsewhere", 5000, Some(&text), json!("x".repeat(300))),
        ("declared texts of no length", 5000, Some(&text), json!("")),
        ("undeclared integers", 5000, None, json!(1)),
        ("undeclared texts that are kept in the row", 5000, None, json!("x".repeat(23))),
        ("undeclared texts that are kept elsewhere", 500, None, json!("x".repeat(3000))),
        ("undeclared lists", 500, None, json!([1, 2])),
    ] {
        let mut world = World::new();
        let fields = schema.map(|schema| declared(count, schema)).unwrap_or_default();
        let fields: Vec<(&str, Value)> = fields.iter().map(|(name, schema)| (name.as_str(), schema.clone())).collect();
        let mut sink = world.sink();
        let stream = sink.open(spec("t", WriteMode::Append, &fields)).expect(label);
        let row = wide(count, &value);
        write(&mut sink, stream, &[&row.to_string(), "{}", &row.to_string()]);
        sink.finish(stream).expect(label);
        let (rows, list) = (world.rows(WHOLE), value.to_string());
        assert_eq!(rows.len(), 3, "{label}");
        for read in [&rows[0], &rows[2]] {
            let read: Value = serde_json::from_str(read).expect(label);
            for n in 0..count {
                let read = &read[format!("f{n:04}")];
                // A list is text in a column and a list beside.
                let same = *read == value || read.as_str() == Some(&list);
                assert!(same, "{label}: field {n} is {read}");
            }
        }
    }
}

#[test]
fn fields_of_equal_names_beside_the_columns_lose_nothing() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    let many = wide(400, &json!(1)).to_string();
    write(&mut sink, stream, &[&many, r#"{"x":{"y":1},"x_y":2,"x_y":3,"x":{"y":4}}"#]);
    sink.finish(stream).expect("finish");
    let beside = &world.rows("SELECT _unmapped_data FROM t")[1];
    assert_eq!(beside, r#"{"x_y": 4, "x_y_52102d8e": 3}"#);
}

#[test]
fn mixed_columns_fit_into_a_row_in_any_order() {
    let mut world = World::new();
    // Each bigint after a short text costs its alignment.
    let columns: Vec<String> =
        (0..1400).map(|n| format!("f{n:04} {}", if n % 2 == 0 { "text" } else { "bigint" })).collect();
    world.run(&format!("CREATE TABLE t ({})", columns.join(",")));
    let mut sink = world.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[])).expect("open");
    let row: Value = (0..1400)
        .map(|n| (format!("f{n:04}"), if n % 2 == 0 { json!("xy") } else { json!(n) }))
        .collect::<serde_json::Map<_, _>>()
        .into();
    write(&mut sink, stream, &[&row.to_string()]);
    sink.finish(stream).expect("finish");
    let read: Value = serde_json::from_str(&world.rows(WHOLE)[0]).expect("a row");
    assert_eq!(read, row);
}

#[test]
fn a_key_among_thousands_of_columns_is_a_key() {
    for fields in [declared(3000, &json!({"type": "integer"})), Vec::new()] {
        let label = format!("{} declared", fields.len());
        let fields: Vec<(&str, Value)> = fields.iter().map(|(name, schema)| (name.as_str(), schema.clone())).collect();
        let mut world = World::new();
        let mut sink = world.sink();
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
        assert_eq!(world.rows("SELECT f2999, f2998, f0000 FROM t"), ["1|9|1"], "{label}");
    }
}

#[test]
fn ten_thousand_levels_are_kept() {
    let mut world = World::new();
    let lists = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    let mut sink = world.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[("d", json!({"type": "object"}))])).expect("open");
    write(&mut sink, stream, &[&format!(r#"{{"d":{lists},"l":{lists},"u":{objects}}}"#), &lists]);
    sink.finish(stream).expect("finish");
    let rows = world
        .rows("SELECT length(d #>> '{}'), length(l), length(_unmapped_data #>> '{}'), (SELECT count(*) FROM t) FROM t");
    assert_eq!(rows, ["20000|20000|∅|2", "∅|∅|20000|2"]);
    assert_eq!(world.columns("t")[2], "u_a_a_a_a_a_a_a_a_a_a_a|jsonb");
}

#[test]
fn a_document_of_more_parts_than_the_server_takes_is_kept_as_text() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[("d", json!({"type": "array"}))])).expect("open");
    let list = format!("[{}1]", "1,".repeat(8_100_000));
    write(&mut sink, stream, &[&format!(r#"{{"d":{list}}}"#), r#"{"d":[1]}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(
        world.rows("SELECT jsonb_typeof(d), length(d #>> '{}') FROM t"),
        [format!("string|{}", list.len()), "array|3".to_owned()]
    );
}

#[test]
fn numbers_far_from_one_are_kept_beside() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(spec("t", WriteMode::Append, &[("n", json!({"type": "number"}))])).expect("open");
    write(&mut sink, stream, &[r#"{"n":1E400}"#, r#"{"n":-1e-400}"#, r#"{"n":1e999999999999}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(
        world
            .rows("SELECT n, _unmapped_data->'n' IN (to_jsonb(1e400), to_jsonb(-1e-400), '\"1e999999999999\"') FROM t"),
        ["∅|t", "∅|t", "∅|t"]
    );
}

#[test]
fn keys_that_never_repeat_cost_no_memory() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    for n in 0..30_000 {
        write(&mut sink, stream, &[&format!(r#"{{"id":{n},"u{n}":{n},"o":{{"k{n}":{n}}}}}"#)]);
    }
    sink.finish(stream).expect("finish");
    assert_eq!(world.count("t"), 30_000);
    let last = world.rows("SELECT _unmapped_data FROM t WHERE id = 29999");
    assert_eq!(last, [r#"{"u29999": 29999, "o_k29999": 29999}"#]);
    assert!(world.columns("t").len() <= 410);
}
