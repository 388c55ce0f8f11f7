//! Append, merge, replace: what is visible when, and what stays.

use serde_json::json;

use super::support::{World, keyed, record, spec, write, write_many};
use crate::airbyte::message::StreamName;
use crate::sidecar::sink::{Committed, Sink, StreamSpec, WriteMode};

#[test]
fn appended_rows_are_invisible_until_the_commit() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    assert_eq!(world.count("t"), 0);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
    assert_eq!(world.count("t"), 3000);
    write_many(&mut sink, stream, 0..10, 10);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["3010|3000"]);
    assert_eq!(world.open_transactions(), 0);
}

#[test]
fn an_aborted_append_leaves_nothing() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    sink.abort(stream);
    assert_eq!((world.count("t"), world.open_transactions()), (0, 0));
    assert!(sink.write(stream, &record("{}")).is_err(), "a stream that is over takes no rows");
}

#[test]
fn the_last_row_of_a_key_wins() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Merge)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":2,"v":"b"}"#, r#"{"id":1,"v":"c"}"#]);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
    assert_eq!(world.rows("SELECT * FROM t ORDER BY id"), ["1|c", "2|b"]);
    write(&mut sink, stream, &[r#"{"id":2,"v":"d"}"#, r#"{"id":3,"v":null}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT * FROM t ORDER BY id"), ["1|c", "2|d", "3|∅"]);
    assert_eq!(world.tables(), ["t"]);
    let constraint = world.rows("SELECT conname FROM pg_constraint WHERE contype = 'p' AND conrelid = 't'::regclass");
    assert!(constraint[0].starts_with("jitsu_pk_"), "{constraint:?}");
}

#[test]
fn the_highest_cursor_wins_within_a_batch() {
    let mut world = World::new();
    let mut sink = world.sink();
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
    assert_eq!(world.rows("SELECT * FROM t"), ["1|7"]);
}

#[test]
fn an_older_cursor_never_overwrites_a_newer_row() {
    for (label, prepared) in
        [("with our key", ""), ("without a key", "CREATE TABLE t (id bigint, at bigint, v text, n serial PRIMARY KEY)")]
    {
        let mut world = World::new();
        world.run(prepared);
        let fields =
            [("id", json!({"type": "integer"})), ("at", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
        let stream = StreamSpec {
            primary_key: vec![vec!["id".to_owned()]],
            cursor: vec!["at".to_owned()],
            ..spec("t", WriteMode::Merge, &fields)
        };
        let mut sink = world.sink();
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
        assert_eq!(world.rows("SELECT id, at, v FROM t ORDER BY id"), ["1|5|a", "2|5|B", "3|1|C"], "{label}");
    }
}

#[test]
fn a_cursor_that_cannot_be_compared_decides_nothing() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint, at json)");
    let fields = [("id", json!({"type": "integer"})), ("at", json!({"type": "object"}))];
    let stream = StreamSpec {
        primary_key: vec![vec!["id".to_owned()]],
        cursor: vec!["at".to_owned()],
        ..spec("t", WriteMode::Merge, &fields)
    };
    let mut sink = world.sink();
    let stream = sink.open(stream).expect("open");
    for row in [r#"{"id":1,"at":{"n":2}}"#, r#"{"id":1,"at":{"n":1}}"#] {
        write(&mut sink, stream, &[row]);
        sink.commit(stream).expect("commit");
    }
    assert_eq!(world.rows("SELECT * FROM t"), [r#"1|{"n":1}"#]);
}

#[test]
fn rows_that_are_only_added_need_no_key() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write(&mut sink, stream, &[r#"{"id":null,"v":"a"}"#, r#"{"v":"b"}"#, r#"{"id":"x"}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(world.count("t"), 3);
}

#[test]
fn merging_works_with_whatever_keys_a_table_has() {
    for (label, table, expected) in [
        ("no key", "CREATE TABLE t (id bigint, v text)", ["1|new", "2|b"]),
        ("another's primary key", "CREATE TABLE t (id bigint, v text, n serial PRIMARY KEY)", ["1|new", "2|b"]),
        ("the same key of another", "CREATE TABLE t (id bigint PRIMARY KEY, v text)", ["1|new", "2|b"]),
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
        let mut world = World::new();
        world.run(table);
        if label != "duplicates" {
            world.run("INSERT INTO t (id, v) VALUES (1, 'a')");
        }
        world.run("INSERT INTO t (id, v) VALUES (2, 'b')");
        let mut sink = world.sink();
        let stream = sink.open(keyed("t", WriteMode::Merge)).expect("open");
        write(&mut sink, stream, &[r#"{"id":1,"v":"new"}"#]);
        sink.finish(stream).expect(label);
        assert_eq!(world.rows("SELECT id, v FROM t ORDER BY id"), expected, "{label}");
    }
}

#[test]
fn nulls_in_the_table_allow_a_unique_index_only() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (NULL, 'a'), (1, 'b')");
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Merge)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"new"}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT * FROM t ORDER BY v"), ["∅|a", "1|new"]);
    assert_eq!(world.rows("SELECT indisunique FROM pg_index WHERE indrelid = 't'::regclass"), ["t"]);
}

#[test]
fn a_row_without_its_key_fails_its_stream_alone() {
    let mut world = World::new();
    let mut sink = world.sink();
    let bad = sink.open(keyed("bad", WriteMode::Merge)).expect("open");
    let good = sink.open(keyed("good", WriteMode::Merge)).expect("open");
    write(&mut sink, good, &[r#"{"id":1}"#]);
    for row in [r#"{"v":"a"}"#, r#"{"id":null}"#, r#"{"id":"x"}"#] {
        let error = sink.write(bad, &record(row)).expect_err(row);
        assert!(error.text.contains("\"id\"") && error.text.contains("bad") && !error.transient, "{}", error.text);
    }
    assert!(sink.commit(bad).is_err(), "a failed stream stays failed");
    sink.finish(good).expect("finish");
    assert_eq!(world.count("good"), 1);
}

#[test]
fn a_merge_without_a_usable_key_appends() {
    for (label, key) in [("none", vec![]), ("inside a document", vec![vec!["doc".to_owned(), "id".to_owned()]])] {
        let mut world = World::new();
        let mut sink = world.sink();
        let stream = spec("t", WriteMode::Merge, &[("doc", json!({"type": "object"}))]);
        let stream = sink.open(StreamSpec { primary_key: key, ..stream }).expect("open");
        write(&mut sink, stream, &[r#"{"doc":{"id":1}}"#, r#"{"doc":{"id":1}}"#]);
        assert_eq!(sink.commit(stream).expect(label), Committed::Durable);
        assert_eq!(world.count("t"), 2, "{label}");
    }
}

#[test]
fn a_key_may_be_undeclared_and_nested() {
    let mut world = World::new();
    let mut sink = world.sink();
    let stream = spec("t", WriteMode::Merge, &[]);
    let key = vec![vec!["a".to_owned(), "id".to_owned()]];
    let stream = sink.open(StreamSpec { primary_key: key, ..stream }).expect("open");
    write(&mut sink, stream, &[r#"{"a":{"id":1},"v":1}"#, r#"{"a":{"id":1},"v":2}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT a_id, v FROM t"), ["1|2"]);
}

#[test]
fn a_replacement_shows_at_the_end_and_keeps_what_hangs_on_the_table() {
    let mut world = World::new();
    world.run(
        "CREATE TABLE t (id bigint, v text, extra int); INSERT INTO t VALUES (7, 'old', 1);
         CREATE VIEW w AS SELECT id FROM t; CREATE INDEX i ON t (v); GRANT SELECT ON t TO PUBLIC",
    );
    let mut sink = world.sink();
    let stream = sink.open(spec("t", WriteMode::Replace, &[("id", json!({"type": "integer"}))])).expect("open");
    write_many(&mut sink, stream, 0..3000, 1000);
    assert_eq!(sink.commit(stream).expect("commit"), Committed::Deferred);
    assert_eq!(world.rows("SELECT * FROM t"), ["7|old|1"]);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT count(*), max(id) FROM w"), ["3000|2999"]);
    assert_eq!(
        world.rows("SELECT indexname FROM pg_indexes WHERE tablename = 't' AND schemaname = current_schema()"),
        ["i"]
    );
    assert_eq!(world.rows("SELECT count(*) FROM information_schema.table_privileges WHERE grantee = 'PUBLIC' AND table_name = 't' AND table_schema = current_schema()"), ["1"]);
    assert_eq!(world.tables(), ["t"]);
}

#[test]
fn a_replacement_that_is_given_up_never_touches_the_table() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (7)");
    let mut sink = world.sink();
    for end in ["abort", "drop"] {
        let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
        write_many(&mut sink, stream, 0..3000, 1000);
        sink.commit(stream).expect("commit");
        if end == "abort" {
            sink.abort(stream);
        } else {
            drop(sink);
            sink = world.sink();
        }
        assert_eq!(world.rows("SELECT * FROM t"), ["7"], "{end}");
        assert_eq!(world.columns("t"), ["id|bigint"], "{end}");
        assert_eq!(world.tables(), ["t"], "{end}");
    }
}

#[test]
fn zero_rows_empty_a_replaced_table_and_leave_the_others() {
    let mut world = World::new();
    world.run("CREATE TABLE r (id bigint); CREATE TABLE a (id bigint); CREATE TABLE m (id bigint)");
    world.run("INSERT INTO r VALUES (1); INSERT INTO a VALUES (1); INSERT INTO m VALUES (1)");
    let mut sink = world.sink();
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
    assert_eq!([world.count("r"), world.count("a"), world.count("m")], [0, 1, 1]);
    assert_eq!(world.columns("new"), ["id|bigint", "v|text"]);
    assert_eq!(world.columns("new_r"), ["id|bigint", "v|text"]);
}

#[test]
fn a_replacement_with_a_key_keeps_one_row_of_each() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint, v text CONSTRAINT jitsu_pk_old PRIMARY KEY); INSERT INTO t VALUES (9, 'x')");
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":null}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT * FROM t"), ["1|∅"]);
}

#[test]
fn streams_interleave_also_beyond_the_open_transactions() {
    let mut world = World::new();
    let mut sink = world.sink();
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
        // One more where a chunk is just on its way into a staging table.
        assert!(world.open_transactions() <= 8 + 1);
    }
    for stream in &streams {
        sink.commit(*stream).expect("commit");
    }
    for index in 0..40 {
        assert_eq!(world.count(&format!("t{index}")), 200, "t{index}");
    }
    drop(sink);
    assert_eq!(world.tables().len(), 40);
}

#[test]
fn leftovers_of_a_killed_run_go_and_those_of_a_living_one_stay() {
    let mut world = World::new();
    let mut living = world.sink();
    let stream = living.open(keyed("t", WriteMode::Replace)).expect("open");
    write_many(&mut living, stream, 0..3000, 1000);
    living.commit(stream).expect("commit");
    let staging = world.tables().remove(0);
    let killed = format!("{}{:016x}{}", &staging[..18], 12345, &staging[34..]);
    world.run(&format!("CREATE TABLE \"{killed}\" ()"));

    let mut sink = world.sink();
    let other = sink.open(keyed("t", WriteMode::Append)).expect("open");
    sink.finish(other).expect("finish");
    assert_eq!(world.tables(), [staging, "t".to_owned()]);
    living.finish(stream).expect("finish");
    assert_eq!((world.count("t"), world.tables().len()), (3000, 1));
}

#[test]
fn leftovers_that_cannot_be_dropped_are_left() {
    let mut world = World::new();
    let mut living = world.sink();
    let stream = living.open(keyed("t", WriteMode::Replace)).expect("open");
    write_many(&mut living, stream, 0..3000, 1000);
    living.commit(stream).expect("commit");
    let staging = world.tables().remove(0);
    drop(living);
    let killed = format!("{}{:016x}{}", &staging[..18], 12345, &staging[34..]);
    world.run(&format!("CREATE TABLE \"{killed}\" (); CREATE VIEW looks AS SELECT * FROM \"{killed}\""));

    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    sink.finish(stream).expect("finish");
    assert_eq!((world.count("t"), world.tables()), (1, vec![killed, "t".to_owned()]));
}

#[test]
fn tables_of_one_name_are_told_apart() {
    let mut world = World::new();
    let mut sink = world.sink();
    for name in ["a.b", "a/b"] {
        let stream = StreamSpec { name: StreamName::new(None, name), ..spec(name, WriteMode::Append, &[]) };
        let stream = sink.open(stream).expect("open");
        write(&mut sink, stream, &[&format!(r#"{{"n":"{name}"}}"#)]);
        sink.finish(stream).expect("finish");
    }
    let tables = world.tables();
    assert_eq!((tables.len(), tables[0].as_str()), (2, "a_b"));
    assert!(tables[1].starts_with("a_b_") && tables[1].len() == 12, "{tables:?}");
}

#[test]
fn rows_that_are_only_added_or_merged_stay_when_their_stream_is_cut_off() {
    for (mode, expected) in [(WriteMode::Append, ["1|a", "1|b", "2|x"].as_slice()), (WriteMode::Merge, &["1|b", "2|x"])]
    {
        let mut world = World::new();
        world.run("CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (2, 'x')");
        let mut sink = world.sink();
        let stream = sink.open(keyed("t", mode)).expect("open");
        write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#]);
        assert!(sink.finish_early(stream).expect("cut"), "{mode:?}");
        sink.abort(stream);
        assert_eq!(world.rows("SELECT id, v FROM t ORDER BY id, v"), expected, "{mode:?}");
        assert_eq!((world.tables(), world.open_transactions()), (vec!["t".to_owned()], 0), "{mode:?}");
    }
}

#[test]
fn a_replacement_that_is_cut_off_fills_only_a_table_without_rows() {
    let new = ["1|b", "2|c"].as_slice();
    for (label, prepared, is_in, expected) in [
        ("no table", "", true, new),
        ("an empty table", "CREATE TABLE t (id bigint)", true, new),
        ("an empty table with our key", "CREATE TABLE t (v text CONSTRAINT jitsu_pk_old PRIMARY KEY)", true, new),
        ("another's key", "CREATE TABLE t (id bigint, v text, n serial PRIMARY KEY)", true, new),
        ("a row", "CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (9, 'old')", false, &["9|old"]),
    ] {
        let mut world = World::new();
        world.run(prepared);
        let mut sink = world.sink();
        let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
        write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#, r#"{"id":2,"v":"c"}"#]);
        assert_eq!(sink.commit(stream).expect("commit"), Committed::Deferred, "{label}");
        write(&mut sink, stream, &[r#"{"id":1,"v":"b","more":true}"#]);
        assert_eq!(sink.finish_early(stream).expect("cut"), is_in, "{label}");
        sink.abort(stream);
        assert_eq!(world.rows("SELECT id, v FROM t ORDER BY id"), expected, "{label}");
        let more = world.columns("t").iter().any(|column| column.starts_with("more"));
        assert_eq!(more, is_in, "{label}: a table that keeps its rows keeps its columns, too");
        assert_eq!((world.tables(), world.open_transactions()), (vec!["t".to_owned()], 0), "{label}");
    }
}

#[test]
fn a_row_that_comes_while_a_cut_off_replacement_looks_is_not_overlooked() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint, v text)");
    let mut sink = world.sink();
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#]);
    let mut other = world.connect();
    other.batch_execute("BEGIN; INSERT INTO t VALUES (9, 'other')").expect("a row under way");
    let cut = std::thread::spawn(move || sink.finish_early(stream).expect("cut"));
    while world.rows("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    other.batch_execute("COMMIT").expect("a row");
    assert!(!cut.join().expect("no panic"));
    assert_eq!(world.rows("SELECT id, v FROM t"), ["9|other"]);
}
