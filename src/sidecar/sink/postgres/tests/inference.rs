//! Undeclared fields: the common type of the values of a batch.

use super::support::{TestSchema, record, spec, write};
use crate::sidecar::sink::{Sink, StreamSpec, WriteMode};

fn stream(mode: WriteMode) -> StreamSpec {
    let key = if mode == WriteMode::Merge { vec![vec!["id".to_owned()]] } else { Vec::new() };
    StreamSpec { primary_key: key, ..spec("t", mode, &[]) }
}

/// More rows than fit into a chunk.
fn fill(sink: &mut impl Sink, stream: usize, value: &str) {
    let padding = "x".repeat(1000);
    for id in 0..1500 {
        sink.write(stream, &record(&format!(r#"{{"id":{id},"p":"{padding}","v":{value}}}"#))).expect("a row");
    }
}

#[test]
fn the_values_of_a_batch_get_their_common_type() {
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace] {
        for (first, second, kind, expected) in [
            ("1", "1.5", "numeric", ["1", "1.5"]),
            ("1.5", "2", "numeric", ["1.5", "2"]),
            ("1", "\"x\"", "text", ["1", "x"]),
            ("1.0", "\"x\"", "text", ["1.0", "x"]),
            ("1", "9223372036854775808", "numeric", ["1", "9223372036854775808"]),
            ("true", "\"x\"", "text", ["true", "x"]),
            ("true", "7", "text", ["true", "7"]),
            ("\"2024-05-01T02:00:00.500+02:00\"", "\"soon\"", "text", ["2024-05-01T00:00:00.5Z", "soon"]),
            ("9007199254740993", "0.5", "numeric", ["9007199254740993", "0.5"]),
            ("1", "null", "bigint", ["1", "∅"]),
        ] {
            let label = format!("{mode:?}, {first} and {second}");
            let mut db = TestSchema::new();
            let mut sink = db.sink();
            let index = sink.open(stream(mode)).expect("open");
            let rows = [format!(r#"{{"id":1,"v":{first}}}"#), format!(r#"{{"id":2,"v":{second},"w":1}}"#)];
            write(&mut sink, index, &rows.each_ref().map(String::as_str));
            sink.finish(index).expect("finish");
            let columns = db.columns("t");
            assert!(columns.contains(&format!("v|{kind}")) && columns.len() == 3, "{label}: {columns:?}");
            assert_eq!(db.rows("SELECT v FROM t ORDER BY id"), expected, "{label}");
        }
    }
}

#[test]
fn values_that_were_sent_before_are_converted() {
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace] {
        for (first, second, kind, shown) in [
            ("1", "1.5", "numeric", "1"),
            ("1.5", "\"x\"", "text", "1.5"),
            ("false", "\"x\"", "text", "false"),
            ("\"2024-05-01T10:20:30Z\"", "\"x\"", "text", "2024-05-01T10:20:30Z"),
            ("\"2024-05-01T10:20:30.120Z\"", "1", "text", "2024-05-01T10:20:30.12Z"),
        ] {
            let label = format!("{mode:?}, {first} and {second}");
            let mut db = TestSchema::new();
            let mut sink = db.sink();
            let index = sink.open(stream(mode)).expect("open");
            fill(&mut sink, index, first);
            write(&mut sink, index, &[&format!(r#"{{"id":5000,"v":{second}}}"#)]);
            sink.finish(index).expect("finish");
            assert!(db.columns("t").contains(&format!("v|{kind}")), "{label}: {:?}", db.columns("t"));
            let rows = db.rows("SELECT v, count(*) FROM t WHERE id < 5000 GROUP BY v");
            assert_eq!(rows, [format!("{shown}|1500")], "{label}");
            assert_eq!(db.count("t"), 1501, "{label}");
        }
    }
}

#[test]
fn a_column_that_the_table_has_keeps_its_type() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let index = sink.open(stream(WriteMode::Append)).expect("open");
    write(&mut sink, index, &[r#"{"v":1}"#]);
    sink.commit(index).expect("commit");
    write(&mut sink, index, &[r#"{"v":"x"}"#, r#"{"v":3}"#]);
    sink.finish(index).expect("finish");
    assert_eq!(db.columns("t"), ["v|bigint", "_unmapped_data|jsonb"]);
    assert_eq!(db.rows("SELECT v, _unmapped_data FROM t ORDER BY v"), ["1|∅", "3|∅", r#"∅|{"v": "x"}"#]);
}
