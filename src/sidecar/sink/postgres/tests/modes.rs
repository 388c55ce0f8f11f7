//! Append, merge and replace: which rows are visible when, and which stay.

use serde_json::json;

use super::support::{TestSchema, keyed, record, spec, wait_until, write, write_many};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::postgres::PostgresSink;
use crate::sidecar::sink::{Committed, Sink, StreamIndex, StreamSpec, WriteMode};

#[test]
fn append_shows_rows_at_the_commit() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    assert_eq!(db.count("t"), 0);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
    assert_eq!(db.count("t"), 3000);
    write_many(&mut sink, stream, 0..10, 10);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["3010|3000"]);
    assert_eq!(db.open_transactions(), 0);
}

#[test]
fn aborted_append_leaves_no_rows() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    sink.abort(stream);
    assert_eq!((db.count("t"), db.open_transactions()), (0, 0));
    assert!(sink.write(stream, &record("{}")).is_err(), "a closed stream takes no rows");
}

#[test]
fn merge_keeps_the_last_row_of_each_key() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Merge)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":2,"v":"b"}"#, r#"{"id":1,"v":"c"}"#]);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
    assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|c", "2|b"]);
    write(&mut sink, stream, &[r#"{"id":2,"v":"d"}"#, r#"{"id":3,"v":null}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT * FROM t ORDER BY id"), ["1|c", "2|d", "3|∅"]);
    assert_eq!(db.tables(), ["t"]);
    let constraint = db.rows("SELECT conname FROM pg_constraint WHERE contype = 'p' AND conrelid = 't'::regclass");
    assert!(constraint[0].starts_with("jitsu_pk_"), "{constraint:?}");
}

#[test]
fn merge_keeps_the_highest_cursor_within_a_batch() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let fields = [("id", json!({"type": "integer"})), ("at", json!({"type": "integer"}))];
    let stream = StreamSpec {
        primary_key: vec![vec!["id".to_owned()]],
        cursor: vec!["at".to_owned()],
        ..spec("t", WriteMode::Merge, &fields)
    };
    let stream = sink.open(stream).expect("open");
    let rows = [r#"{"id":1,"at":5}"#, r#"{"id":1,"at":7}"#, r#"{"id":1,"at":6}"#, r#"{"id":1,"at":null}"#];
    write(&mut sink, stream, &rows);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT * FROM t"), ["1|7"]);
}

#[test]
fn merge_never_overwrites_a_row_with_an_older_cursor() {
    for (label, prepared) in
        [("with our key", ""), ("without a key", "CREATE TABLE t (id bigint, at bigint, v text, n serial PRIMARY KEY)")]
    {
        let mut db = TestSchema::new();
        db.run(prepared);
        let fields =
            [("id", json!({"type": "integer"})), ("at", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
        let stream = StreamSpec {
            primary_key: vec![vec!["id".to_owned()]],
            cursor: vec!["at".to_owned()],
            ..spec("t", WriteMode::Merge, &fields)
        };
        let mut sink = db.sink();
        let stream = sink.open(stream).expect("open");
        for rows in [
            [r#"{"id":1,"at":5,"v":"a"}"#, r#"{"id":2,"at":5,"v":"b"}"#, r#"{"id":3,"at":null,"v":"c"}"#],
            [r#"{"id":1,"at":4,"v":"A"}"#, r#"{"id":2,"at":5,"v":"B"}"#, r#"{"id":3,"at":1,"v":"C"}"#],
            [r#"{"id":1,"at":3,"v":"x"}"#, r#"{"id":1,"at":null,"v":"y"}"#, r#"{"id":3,"at":null,"v":"z"}"#],
        ] {
            write(&mut sink, stream, &rows);
            sink.commit(stream).expect("commit");
        }
        sink.finish(stream).expect("finish");
        assert_eq!(db.rows("SELECT id, at, v FROM t ORDER BY id"), ["1|5|a", "2|5|B", "3|1|C"], "{label}");
    }
}

#[test]
fn rows_of_a_batch_without_cursors_are_older_than_those_in_the_table() {
    let mut db = TestSchema::new();
    let stream = StreamSpec { cursor: vec!["at".to_owned()], ..keyed("t", WriteMode::Merge) };
    for row in [r#"{"id":1,"v":"new","at":5}"#, r#"{"id":1,"v":"old"}"#] {
        let mut sink = db.sink();
        let stream = sink.open(stream.clone()).expect("open");
        write(&mut sink, stream, &[row]);
        sink.finish(stream).expect("finish");
    }
    assert_eq!(db.rows("SELECT id, v, at FROM t"), ["1|new|5"]);
}

#[test]
fn merge_ignores_a_cursor_of_type_json() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, at json)");
    let fields = [("id", json!({"type": "integer"})), ("at", json!({"type": "object"}))];
    let stream = StreamSpec {
        primary_key: vec![vec!["id".to_owned()]],
        cursor: vec!["at".to_owned()],
        ..spec("t", WriteMode::Merge, &fields)
    };
    let mut sink = db.sink();
    let stream = sink.open(stream).expect("open");
    for row in [r#"{"id":1,"at":{"n":2}}"#, r#"{"id":1,"at":{"n":1}}"#] {
        write(&mut sink, stream, &[row]);
        sink.commit(stream).expect("commit");
    }
    assert_eq!(db.rows("SELECT * FROM t"), [r#"1|{"n":1}"#]);
}

#[test]
fn append_needs_no_key_values() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write(&mut sink, stream, &[r#"{"id":null,"v":"a"}"#, r#"{"v":"b"}"#, r#"{"id":"x"}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.count("t"), 3);
}

#[test]
fn merge_works_with_any_keys_of_the_table() {
    for (label, table, expected) in [
        ("no key", "CREATE TABLE t (id bigint, v text)", ["1|new", "2|b"]),
        ("primary key of a user", "CREATE TABLE t (id bigint, v text, n serial PRIMARY KEY)", ["1|new", "2|b"]),
        ("the same key of a user", "CREATE TABLE t (id bigint PRIMARY KEY, v text)", ["1|new", "2|b"]),
        ("a unique index", "CREATE TABLE t (id bigint, v text); CREATE UNIQUE INDEX i ON t (id)", ["1|new", "2|b"]),
        (
            "a partial index",
            "CREATE TABLE t (id bigint, v text); CREATE UNIQUE INDEX i ON t (id) WHERE id > 5",
            ["1|new", "2|b"],
        ),
        ("duplicates", "CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (1, 'a'), (1, 'a')", ["1|new", "2|b"]),
        (
            "our key on other columns",
            "CREATE TABLE t (id bigint, v text CONSTRAINT jitsu_pk_old PRIMARY KEY)",
            ["1|new", "2|b"],
        ),
    ] {
        let mut db = TestSchema::new();
        db.run(table);
        if label != "duplicates" {
            db.run("INSERT INTO t (id, v) VALUES (1, 'a')");
        }
        db.run("INSERT INTO t (id, v) VALUES (2, 'b')");
        let mut sink = db.sink();
        let stream = sink.open(keyed("t", WriteMode::Merge)).expect("open");
        write(&mut sink, stream, &[r#"{"id":1,"v":"new"}"#]);
        sink.finish(stream).expect(label);
        assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), expected, "{label}");
    }
}

#[test]
fn merge_adds_a_unique_index_if_the_key_has_nulls() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (NULL, 'a'), (1, 'b')");
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Merge)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"new"}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT * FROM t ORDER BY v"), ["∅|a", "1|new"]);
    assert_eq!(db.rows("SELECT indisunique FROM pg_index WHERE indrelid = 't'::regclass"), ["t"]);
}

#[test]
fn row_whose_key_does_not_fit_fails_only_its_stream() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let bad = sink.open(keyed("bad", WriteMode::Merge)).expect("open");
    let good = sink.open(keyed("good", WriteMode::Merge)).expect("open");
    write(&mut sink, good, &[r#"{"id":1}"#]);
    for row in [r#"{"id":"x"}"#, "[1]"] {
        let error = sink.write(bad, &record(row)).expect_err(row);
        assert!(error.text.contains("key") && error.text.contains("bad") && !error.transient, "{}", error.text);
    }
    assert!(sink.commit(bad).is_err(), "a failed stream stays failed");
    sink.finish(good).expect("finish");
    assert_eq!(db.count("good"), 1);
}

#[test]
fn merge_without_a_key_appends() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Merge, &[("doc", json!({"type": "object"}))])).expect("open");
    write(&mut sink, stream, &[r#"{"doc":{"id":1}}"#, r#"{"doc":{"id":1}}"#]);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
    assert_eq!(db.count("t"), 2);
}

#[test]
fn key_can_be_undeclared_and_nested() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let stream = spec("t", WriteMode::Merge, &[]);
    let key = vec![vec!["a".to_owned(), "id".to_owned()]];
    let stream = sink.open(StreamSpec { primary_key: key, ..stream }).expect("open");
    write(&mut sink, stream, &[r#"{"a":{"id":1},"v":1}"#, r#"{"a":{"id":1},"v":2}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT a_id, v FROM t"), ["1|2"]);
}

#[test]
fn replace_shows_rows_at_the_end_and_keeps_views_indexes_and_grants() {
    let mut db = TestSchema::new();
    db.run(
        "CREATE TABLE t (id bigint, v text, extra int); INSERT INTO t VALUES (7, 'old', 1);
         CREATE VIEW w AS SELECT id FROM t; CREATE INDEX i ON t (v); GRANT SELECT ON t TO PUBLIC",
    );
    let mut sink = db.sink();
    let stream = sink.open(spec("t", WriteMode::Replace, &[("id", json!({"type": "integer"}))])).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Deferred);
    assert_eq!(db.rows("SELECT * FROM t"), ["7|old|1"]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT count(*), max(id) FROM w"), ["3000|2999"]);
    assert_eq!(
        db.rows("SELECT indexname FROM pg_indexes WHERE tablename = 't' AND schemaname = current_schema()"),
        ["i"]
    );
    assert_eq!(db.rows("SELECT count(*) FROM information_schema.table_privileges WHERE grantee = 'PUBLIC' AND table_name = 't' AND table_schema = current_schema()"), ["1"]);
    assert_eq!(db.tables(), ["t"]);
}

#[test]
fn replace_without_finish_never_changes_the_table() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (7)");
    let mut sink = db.sink();
    for end in ["abort", "drop"] {
        let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
        write_many(&mut sink, stream, 0..3000, 1000);
        sink.commit(stream).expect("commit");
        if end == "abort" {
            sink.abort(stream);
        } else {
            drop(sink);
            sink = db.sink();
        }
        assert_eq!(db.rows("SELECT * FROM t"), ["7"], "{end}");
        assert_eq!(db.columns("t"), ["id|bigint"], "{end}");
        assert_eq!(db.tables(), ["t"], "{end}");
    }
}

#[test]
fn finish_without_rows_empties_the_table_only_in_replace_mode() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE r (id bigint); CREATE TABLE a (id bigint); CREATE TABLE m (id bigint)");
    db.run("INSERT INTO r VALUES (1); INSERT INTO a VALUES (1); INSERT INTO m VALUES (1)");
    let mut sink = db.sink();
    for (table, mode) in [
        ("r", WriteMode::Replace),
        ("a", WriteMode::Append),
        ("m", WriteMode::Merge),
        ("new", WriteMode::Append),
        ("new_r", WriteMode::Replace),
    ] {
        let stream = sink.open(keyed(table, mode)).expect("open");
        sink.finish(stream).expect(table);
    }
    assert_eq!([db.count("r"), db.count("a"), db.count("m")], [0, 1, 1]);
    assert_eq!(db.columns("new"), ["id|bigint", "v|text"]);
    assert_eq!(db.columns("new_r"), ["id|bigint", "v|text"]);
}

#[test]
fn replace_with_a_key_keeps_one_row_per_key() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, v text CONSTRAINT jitsu_pk_old PRIMARY KEY); INSERT INTO t VALUES (9, 'x')");
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":null}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT * FROM t"), ["1|∅"]);
}

#[test]
fn streams_interleave_beyond_the_limit_of_open_transactions() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let streams: Vec<_> = (0..40)
        .map(|index| {
            let mode = if index % 4 == 3 { WriteMode::Merge } else { WriteMode::Append };
            sink.open(keyed(&format!("t{index}"), mode)).expect("open")
        })
        .collect();
    for round in 0..5 {
        for stream in &streams {
            write_many(&mut sink, *stream, round * 40..(round + 1) * 40, 1000);
        }
        // One more while a chunk is loaded into a staging table.
        assert!(db.open_transactions() <= 8 + 1);
    }
    for stream in &streams {
        sink.commit(*stream).expect("commit");
    }
    for index in 0..40 {
        assert_eq!(db.count(&format!("t{index}")), 200, "t{index}");
    }
    drop(sink);
    assert_eq!(db.tables().len(), 40);
}

/// A sink with a staging table for `t`, and the names of that table and of one of a dead run.
fn staging_tables(db: &mut TestSchema) -> (PostgresSink, StreamIndex, [String; 2]) {
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    sink.commit(stream).expect("commit");
    let staging = db.tables().remove(0);
    // Of a run of its own: a test that looks at the same run's tables meanwhile would make this one leave them.
    let dead_run = uuid::Uuid::new_v4().as_u64_pair().0;
    let orphan = format!("{}{dead_run:016x}{}", &staging[..18], &staging[34..]);
    db.run(&format!("CREATE TABLE \"{orphan}\" ()"));
    (sink, stream, [staging, orphan])
}

#[test]
fn staging_tables_are_dropped_if_their_run_is_dead() {
    let mut db = TestSchema::new();
    let (mut live_sink, live_stream, [staging, _]) = staging_tables(&mut db);
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    sink.finish(stream).expect("finish");
    assert_eq!(db.tables(), [staging, "t".to_owned()]);
    live_sink.finish(live_stream).expect("finish");
    assert_eq!((db.count("t"), db.tables().len()), (3000, 1));
}

#[test]
fn staging_tables_that_cannot_be_dropped_are_left() {
    let mut db = TestSchema::new();
    let (dead_sink, _, [_, orphan]) = staging_tables(&mut db);
    drop(dead_sink);
    db.run(&format!("CREATE VIEW dependent AS SELECT * FROM \"{orphan}\""));
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!((db.count("t"), db.tables()), (1, vec![orphan, "t".to_owned()]));
}

#[test]
fn streams_with_equal_table_names_get_their_own_tables() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    for name in ["a.b", "a/b"] {
        let stream = StreamSpec { name: StreamName::new(None, name), ..spec(name, WriteMode::Append, &[]) };
        let stream = sink.open(stream).expect("open");
        write(&mut sink, stream, &[&format!(r#"{{"n":"{name}"}}"#)]);
        sink.finish(stream).expect("finish");
    }
    let tables = db.tables();
    assert_eq!((tables.len(), tables[0].as_str()), (2, "a_b"));
    assert!(tables[1].starts_with("a_b_") && tables[1].len() == 12, "{tables:?}");
}

#[test]
fn finish_early_keeps_appended_and_merged_rows() {
    for (mode, expected) in [(WriteMode::Append, ["1|a", "1|b", "2|x"].as_slice()), (WriteMode::Merge, &["1|b", "2|x"])]
    {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (2, 'x')");
        let mut sink = db.sink();
        let stream = sink.open(keyed("t", mode)).expect("open");
        write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#]);
        assert!(sink.finish_early(stream).expect("finish_early"), "{mode:?}");
        sink.abort(stream);
        assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id, v"), expected, "{mode:?}");
        assert_eq!((db.tables(), db.open_transactions()), (vec!["t".to_owned()], 0), "{mode:?}");
    }
}

#[test]
fn finish_early_of_a_replacement_fills_only_an_empty_table() {
    let new = ["1|b", "2|c"].as_slice();
    for (label, prepared, in_table, expected) in [
        ("no table", "", true, new),
        ("an empty table", "CREATE TABLE t (id bigint)", true, new),
        ("an empty table with our key", "CREATE TABLE t (v text CONSTRAINT jitsu_pk_old PRIMARY KEY)", true, new),
        ("primary key of a user", "CREATE TABLE t (id bigint, v text, n serial PRIMARY KEY)", true, new),
        ("a row", "CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (9, 'old')", false, &["9|old"]),
    ] {
        let mut db = TestSchema::new();
        db.run(prepared);
        let mut sink = db.sink();
        let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
        write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":2,"v":"c"}"#]);
        assert_eq!(sink.commit(stream).expect("commit"), Committed::Deferred, "{label}");
        write(&mut sink, stream, &[r#"{"id":1,"v":"b","more":true}"#]);
        assert_eq!(sink.finish_early(stream).expect("finish_early"), in_table, "{label}");
        sink.abort(stream);
        assert_eq!(db.rows("SELECT id, v FROM t ORDER BY id"), expected, "{label}");
        let more = db.columns("t").iter().any(|column| column.starts_with("more"));
        assert_eq!(more, in_table, "{label}: a table that keeps its rows gets no columns");
        assert_eq!((db.tables(), db.open_transactions()), (vec!["t".to_owned()], 0), "{label}");
    }
}

#[test]
fn finish_early_of_a_replacement_sees_concurrent_rows() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint, v text)");
    let mut sink = db.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#]);
    let mut other = db.connect();
    other.batch_execute("BEGIN; INSERT INTO t VALUES (9, 'other')").expect("an uncommitted row");
    let finish = std::thread::spawn(move || sink.finish_early(stream).expect("finish_early"));
    wait_until("the sink waits for the lock", || {
        !db.rows("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass").is_empty()
    });
    other.batch_execute("COMMIT").expect("a row");
    assert!(!finish.join().expect("no panic"));
    assert_eq!(db.rows("SELECT id, v FROM t"), ["9|other"]);
}
