//! A `bigint` column becomes `numeric` when numbers arrive that it cannot hold, unless something depends on its type.

use serde_json::json;

use super::support::{TestSchema, record, spec, write};
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};

const LARGE: &str = "9223372036854775808";

/// A stream of each mode, with the field `n` declared or not.
fn streams(is_declared: bool) -> Vec<(&'static str, StreamSpec)> {
    let integer = || json!({"type": "integer"});
    let fields = if is_declared { vec![("id", integer()), ("n", integer())] } else { vec![("id", integer())] };
    let stream = |mode| StreamSpec { primary_key: vec![vec!["id".to_owned()]], ..spec("t", mode, &fields) };
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    vec![
        ("append", StreamSpec { primary_key: Vec::new(), ..stream(WriteMode::Append) }),
        ("merge", stream(WriteMode::Merge)),
        ("replacement", stream(WriteMode::Replace)),
        ("replacement at the first commit", StreamSpec { replaces_at_first_commit: true, ..stream(WriteMode::Merge) }),
        ("generation", StreamSpec { generation, ..stream(WriteMode::Merge) }),
    ]
}

fn row(id: usize, n: &str) -> String {
    format!(r#"{{"id":{id},"n":{n}}}"#)
}

/// Long rows, more of them than fit into a chunk.
const MORE: usize = 12;

fn write_more(sink: &mut impl Sink, index: usize, first: usize) {
    let padding = "x".repeat(100_000);
    for id in first..first + MORE {
        let row = format!(r#"{{"id":{id},"n":7,"p":"{padding}"}}"#);
        sink.write(index, &record(&row)).expect("a row");
    }
}

/// Loads these values with consecutive ids; an empty one is a commit, `…` are more rows than fit into a chunk.
fn load(db: &TestSchema, stream: StreamSpec, values: &[&str]) -> Vec<String> {
    let mut sink = db.sink();
    let index = sink.open(stream).expect("open");
    for (id, value) in values.iter().enumerate() {
        match *value {
            "" => drop(sink.commit(index).expect("commit")),
            "…" => write_more(&mut sink, index, 1000),
            value => sink.write(index, &record(&row(id, value))).expect(value),
        }
    }
    sink.finish(index).expect("finish");
    sink.warnings().into_iter().map(|warning| warning.text).collect()
}

#[test]
fn a_column_of_an_existing_table_is_widened() {
    for is_declared in [true, false] {
        for (mode, stream) in streams(is_declared) {
            for (label, values) in [
                ("with the first row", &["1.5", "2", LARGE][..]),
                ("within a chunk", &["1", "1.5", LARGE]),
                ("after a chunk", &["1", "…", "1.5", LARGE]),
                ("after a commit", &["1", "", "1.5", "", LARGE]),
                ("after chunks and commits", &["1", "…", "", "1", "…", LARGE, "…", "0.5"]),
            ] {
                if !is_declared && !label.ends_with("a chunk") {
                    continue;
                }
                let label = format!("{mode}, {label}, declared: {is_declared}");
                let mut db = TestSchema::new();
                db.run("CREATE TABLE t (id bigint, n bigint, p text); CREATE INDEX ON t (n); INSERT INTO t VALUES (5000, 3)");
                load(&db, stream.clone(), values);
                assert!(db.columns("t").contains(&"n|numeric".to_owned()), "{label}: {:?}", db.columns("t"));
                assert!(!db.columns("t").iter().any(|column| column.starts_with("_unmapped")), "{label}");
                for (id, value) in values.iter().enumerate().filter(|(_, value)| !["", "…"].contains(*value)) {
                    let found = db.rows(&format!("SELECT n FROM t WHERE id = {id}"));
                    assert_eq!(found, [*value], "{label}");
                }
                let chunks = values.iter().filter(|value| **value == "…").count();
                let rows = match (chunks, mode) {
                    (0, _) => 0,
                    (_, "append") => MORE * chunks,
                    _ => MORE,
                };
                assert_eq!(db.rows("SELECT count(*) FROM t WHERE n = 7"), [rows.to_string()], "{label}");
                let old = usize::from(!mode.starts_with("replacement") && mode != "generation");
                assert_eq!(db.rows("SELECT n FROM t WHERE id = 5000").len(), old, "{label}");
            }
        }
    }
}

#[test]
fn new_columns_are_widened_in_this_run_and_in_later_ones() {
    for is_declared in [true, false] {
        for (mode, stream) in streams(is_declared) {
            let label = format!("{mode}, declared: {is_declared}");
            let mut db = TestSchema::new();
            load(&db, stream.clone(), &["1", "…", "2", "", "3", "4.25"]);
            assert!(db.columns("t").contains(&"n|numeric".to_owned()), "{label}: {:?}", db.columns("t"));
            assert_eq!(db.rows("SELECT n FROM t WHERE id < 1000 ORDER BY id"), ["1", "2", "3", "4.25"], "{label}");

            let mut db = TestSchema::new();
            load(&db, stream.clone(), &["1"]);
            assert!(db.columns("t").contains(&"n|bigint".to_owned()), "{label}: {:?}", db.columns("t"));
            let warnings = load(&db, stream, &["1.5"]);
            assert!(db.columns("t").contains(&"n|numeric".to_owned()), "{label}: {:?}", db.columns("t"));
            assert!(db.rows("SELECT n FROM t").contains(&"1.5".to_owned()), "{label}");
            // Undeclared fields of a replaced table have no type to keep.
            if is_declared || !mode.starts_with("replacement") {
                assert!(warnings[0].contains("\"n\" becomes numeric"), "{label}: {warnings:?}");
            }
        }
    }
}

#[test]
fn a_key_is_widened() {
    let mut db = TestSchema::new();
    let stream = |mode| StreamSpec {
        primary_key: vec![vec!["n".to_owned()]],
        ..spec("t", mode, &[("n", json!({"type": "integer"}))])
    };
    for mode in [WriteMode::Merge, WriteMode::Replace, WriteMode::Merge] {
        load(&db, stream(mode), &["9223372036854775807", LARGE, "9223372036854775809", LARGE]);
        assert_eq!(db.columns("t")[0], "n|numeric", "{mode:?}");
        let keys = ["9223372036854775807", LARGE, "9223372036854775809"];
        assert_eq!(db.rows("SELECT n FROM t ORDER BY n"), keys, "{mode:?}");
    }
}

#[test]
fn a_type_that_something_depends_on_stays_and_is_reported() {
    for (dependency, reason) in [
        ("CREATE VIEW seen AS SELECT n FROM t", "a view, a rule, a policy, a trigger or a publication uses it"),
        ("CREATE UNIQUE INDEX ON t (n); CREATE TABLE other (n bigint REFERENCES t (n))", "a constraint uses it"),
        ("ALTER TABLE t ALTER n SET DEFAULT 5", "a default or a generated column uses it"),
    ] {
        for (mode, stream) in streams(true).into_iter().take(2) {
            let label = format!("{mode}, {reason}");
            let mut db = TestSchema::new();
            db.run("CREATE TABLE t (id bigint, n bigint, p text)");
            db.run(dependency);
            let mut sink = db.sink();
            let index = sink.open(stream).expect("open");
            write(&mut sink, index, &[&row(1, "1"), &row(2, "1.5"), &row(3, LARGE), &row(4, "\"x\"")]);
            sink.finish(index).expect(&label);
            let expected = ["1|1|∅", r#"2|∅|{"n": 1.5}"#, r#"3|∅|{"n": 9223372036854775808}"#, r#"4|∅|{"n": "x"}"#];
            assert_eq!(db.rows("SELECT id, n, _unmapped_data FROM t ORDER BY id"), expected, "{label}");
            let warnings = sink.warnings();
            assert!(warnings.len() == 1 && warnings[0].text.ends_with(reason), "{label}: {warnings:?}");
            assert_eq!(sink.counts(index).misfits.sum(), 3, "{label}");
        }
    }
}

#[test]
fn smaller_integers_keep_the_type_that_their_owner_chose() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, n integer, p text)");
    load(&db, streams(true).remove(0).1, &["1", "1.5", "2147483648"]);
    let expected = ["1|∅", r#"∅|{"n": 1.5}"#, r#"∅|{"n": 2147483648}"#];
    assert_eq!(db.rows("SELECT n, _unmapped_data FROM t ORDER BY id"), expected);
}

#[test]
fn appended_rows_survive_a_lost_connection() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, n bigint, p text)");
    let mut sink = db.sink();
    let index = sink.open(streams(true).remove(0).1).expect("open");
    write_more(&mut sink, index, 1000);
    write(&mut sink, index, &[&row(1, "1.5")]);
    db.terminate_connections();
    write_more(&mut sink, index, 2000);
    db.terminate_connections();
    sink.finish(index).expect("finish");
    assert_eq!(
        db.rows("SELECT n, count(*) FROM t GROUP BY n ORDER BY n"),
        ["1.5|1".to_owned(), format!("7|{}", 2 * MORE)]
    );
}

#[test]
fn a_type_that_another_session_changes_fails_the_stream_and_corrupts_nothing() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, n bigint, p text)");
    let mut sink = db.sink();
    let index = sink.open(streams(true).remove(0).1).expect("open");
    write(&mut sink, index, &[&row(1, "5")]);
    sink.commit(index).expect("commit");
    db.run("ALTER TABLE t ALTER n TYPE numeric");
    write(&mut sink, index, &[&row(2, "6")]);
    let error = sink.commit(index).expect_err("another type");
    assert!(error.transient && error.text.contains("column \"n\" from bigint to numeric"), "{error}");
    assert_eq!(db.rows("SELECT id, n FROM t"), ["1|5"]);
}
