//! Refreshes: old generations are deleted once the new one is complete, after any number of runs.

use serde_json::json;

use super::support::{TestSchema, keyed, record, spec, write, write_many};
use crate::sidecar::sink::{Committed, Generation, Sink, StreamSpec, WriteMode};

/// An incremental stream; `resumes` if the source resumes from a state.
fn incremental(mode: WriteMode, id: i64, minimum: i64, resumes: bool) -> StreamSpec {
    StreamSpec { generation: Generation { id, minimum, resumable: true, resumes }, ..keyed("t", mode) }
}

/// A stream that is always read whole.
fn full_refresh(mode: WriteMode, id: i64, minimum: i64) -> StreamSpec {
    StreamSpec { generation: Generation { id, minimum, resumable: false, resumes: false }, ..keyed("t", mode) }
}

/// A table with old rows, a view, an index and a grant.
fn old_table(db: &mut TestSchema) {
    db.run(
        "CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (1, 'old'), (7, 'old');
         CREATE VIEW w AS SELECT id, v FROM t; CREATE INDEX i ON t (v); GRANT SELECT ON t TO PUBLIC",
    );
}

const OLD: [&str; 2] = ["1|old", "7|old"];
const ALL: &str = "SELECT id, v FROM t ORDER BY id, v";

#[test]
fn generation_of_several_runs_replaces_the_rows_at_the_end_and_keeps_views_indexes_and_grants() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        for end in ["abort", "drop", "kill"] {
            let label = format!("{mode:?}, {end}");
            let mut db = TestSchema::new();
            old_table(&mut db);
            let mut sink = db.sink();
            let stream = sink.open(incremental(mode, 2, 2, false)).expect("open");
            write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#]);
            assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable, "{label}");
            write(&mut sink, stream, &[r#"{"id":2,"v":"b"}"#]);
            assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable, "{label}");
            // After the last state, so the source sends them again.
            write_many(&mut sink, stream, 3..2000, 1000);
            match end {
                "abort" => sink.abort(stream),
                "drop" => drop(sink),
                _ => db.kill(sink),
            }
            assert_eq!(db.rows(ALL), OLD, "{label}");

            let mut sink = db.sink();
            let stream = sink.open(incremental(mode, 2, 2, true)).expect("open");
            write(&mut sink, stream, &[r#"{"id":3,"v":"c"}"#, r#"{"id":2,"v":"bb"}"#]);
            sink.commit(stream).expect("commit");
            assert_eq!(db.rows("SELECT * FROM w ORDER BY id"), OLD, "{label}");
            assert_eq!(db.columns("t"), ["id|bigint", "v|text"], "{label}");
            sink.finish(stream).expect("finish");
            let expected = match mode {
                WriteMode::Merge => vec!["1|a", "2|bb", "3|c"],
                _ => vec!["1|a", "2|b", "2|bb", "3|c"],
            };
            assert_eq!(db.rows("SELECT * FROM w ORDER BY id, v"), expected, "{label}");
            assert_eq!(db.rows("SELECT DISTINCT _airbyte_generation_id FROM t"), ["2"], "{label}");
            assert_eq!(db.columns("t")[2], "_airbyte_generation_id|bigint");
            assert_eq!(db.rows("SELECT indexname FROM pg_indexes WHERE tablename = 't' AND schemaname = current_schema() AND indexname = 'i'"), ["i"]);
            assert_eq!(db.rows("SELECT count(*) FROM information_schema.table_privileges WHERE grantee = 'PUBLIC' AND table_name = 't' AND table_schema = current_schema()"), ["1"]);
            assert_eq!(db.tables(), ["t"], "{label}");
        }
    }
}

#[test]
fn empty_generation_empties_the_table_when_it_is_complete() {
    for (label, stream) in [
        ("incremental", incremental(WriteMode::Append, 2, 2, false)),
        ("merged", incremental(WriteMode::Merge, 2, 2, false)),
        ("full refresh", full_refresh(WriteMode::Append, 2, 2)),
    ] {
        let mut db = TestSchema::new();
        old_table(&mut db);
        let mut sink = db.sink();
        let index = sink.open(stream.clone()).expect("open");
        sink.commit(index).expect("commit");
        sink.abort(index);
        assert_eq!(db.rows(ALL), OLD, "{label}");
        let index = sink.open(stream).expect("open");
        sink.finish(index).expect("finish");
        assert_eq!((db.count("t"), db.count("w")), (0, 0), "{label}");
        assert_eq!(db.tables(), ["t"], "{label}");
    }
}

#[test]
fn generations_from_the_minimum_on_are_kept() {
    for (label, mode, table, expected) in [
        ("added", WriteMode::Append, "", vec!["2|two|2", "3|new|3", "5|two|2", "5|new|3"]),
        ("merged", WriteMode::Merge, "", vec!["2|two|2", "3|new|3", "5|new|3"]),
        (
            "merged, with a primary key of a user",
            WriteMode::Merge,
            "ALTER TABLE t ADD n serial PRIMARY KEY",
            vec!["2|two|2", "3|new|3", "5|new|3"],
        ),
    ] {
        let mut db = TestSchema::new();
        db.run(
            "CREATE TABLE t (id bigint, v text, _airbyte_generation_id bigint);
             INSERT INTO t VALUES (0, 'none', NULL), (1, 'one', 1), (2, 'two', 2), (5, 'two', 2)",
        );
        db.run(table);
        let mut sink = db.sink();
        let stream = sink.open(incremental(mode, 3, 2, false)).expect("open");
        write(&mut sink, stream, &[r#"{"id":3,"v":"new"}"#, r#"{"id":5,"v":"new"}"#]);
        sink.commit(stream).expect("commit");
        assert_eq!(db.count("t"), 4, "{label}");
        sink.finish(stream).expect(label);
        assert_eq!(
            db.rows("SELECT id, v, _airbyte_generation_id FROM t ORDER BY id, _airbyte_generation_id"),
            expected,
            "{label}"
        );
        assert_eq!(db.tables(), ["t"], "{label}");
    }
}

#[test]
fn rows_are_visible_at_each_commit_if_none_are_obsolete() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let mut db = TestSchema::new();
        let mut sink = db.sink();
        // First the table does not exist; then it contains only this generation.
        for (run, expected) in [(1, vec!["1"]), (2, vec!["1", "2"])] {
            let stream = sink.open(incremental(mode, 2, 2, run == 2)).expect("open");
            write(&mut sink, stream, &[&format!(r#"{{"id":{run}}}"#)]);
            assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
            assert_eq!(db.rows("SELECT id FROM t ORDER BY id"), expected, "{mode:?}");
            assert_eq!(db.tables().iter().filter(|name| name.contains("gen")).count(), 0, "{mode:?}");
            sink.finish(stream).expect("finish");
        }
    }
}

#[test]
fn full_refresh_ignores_a_partial_generation_and_replaces_at_the_end() {
    let mut db = TestSchema::new();
    old_table(&mut db);
    let mut sink = db.sink();
    let partial = sink.open(incremental(WriteMode::Merge, 2, 2, false)).expect("open");
    write(&mut sink, partial, &[r#"{"id":9,"v":"half"}"#]);
    sink.commit(partial).expect("commit");
    drop(sink);
    let tables = db.tables();
    for end in ["kill", "abort", "finish"] {
        let mut sink = db.sink();
        let stream = sink.open(full_refresh(WriteMode::Merge, 2, 2)).expect("open");
        write_many(&mut sink, stream, 0..2000, 1000);
        assert_eq!(sink.commit(stream).expect("commit"), Committed::Deferred);
        assert_eq!(db.rows(ALL), OLD, "{end}");
        match end {
            "finish" => sink.finish(stream).expect("finish"),
            "abort" => sink.abort(stream),
            _ => db.kill(sink),
        }
        if end == "abort" {
            assert_eq!(db.tables(), tables, "the partial generation stays for its state");
        }
    }
    assert_eq!(db.rows("SELECT count(*), max(id) FROM t"), ["2000|1999"]);
    assert_eq!(db.tables(), ["t"]);
}

#[test]
fn first_commit_of_a_read_from_scratch_drops_the_partial_generation() {
    for with_rows in [true, false] {
        let mut db = TestSchema::new();
        old_table(&mut db);
        let mut sink = db.sink();
        let partial = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
        write(&mut sink, partial, &[r#"{"id":9,"v":"half"}"#]);
        sink.commit(partial).expect("commit");
        drop(sink);

        let mut sink = db.sink();
        let again = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
        write_many(&mut sink, again, 0..2000, 1000);
        db.kill(sink);
        let mut sink = db.sink();
        let resumed = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
        write(&mut sink, resumed, &[r#"{"id":10,"v":"more"}"#]);
        sink.commit(resumed).expect("the partial generation exists until another state is saved");
        drop(sink);

        let mut sink = db.sink();
        let again = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
        let expected: &[&str] = if with_rows { &["1|a"] } else { &[] };
        if with_rows {
            write(&mut sink, again, &[r#"{"id":1,"v":"a"}"#]);
        }
        sink.commit(again).expect("commit");
        db.kill(sink);
        let mut sink = db.sink();
        let resumed = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
        sink.finish(resumed).expect("finish");
        assert_eq!(db.rows(ALL), expected);
        assert_eq!(db.tables(), ["t"]);
    }
}

#[test]
fn partial_generation_is_continued_by_a_later_one_unless_it_is_below_the_minimum() {
    for (label, mode, id, minimum, expected) in [
        ("dropped", WriteMode::Merge, 3, 3, vec!["5|new|3"]),
        ("continued", WriteMode::Merge, 3, 2, vec!["4|half|2", "5|new|3"]),
        ("continued, added", WriteMode::Append, 3, 2, vec!["4|half|2", "5|half|2", "5|new|3"]),
        ("merged into the other rows", WriteMode::Merge, 3, 0, vec!["1|old|∅", "4|half|2", "5|new|3", "7|old|∅"]),
        (
            "added to the other rows",
            WriteMode::Append,
            2,
            0,
            vec!["1|old|∅", "4|half|2", "5|half|2", "5|new|2", "7|old|∅"],
        ),
        ("without generations", WriteMode::Merge, 0, 0, vec!["1|old|∅", "4|half|2", "5|new|∅", "7|old|∅"]),
    ] {
        let mut db = TestSchema::new();
        old_table(&mut db);
        let mut sink = db.sink();
        let partial = sink.open(incremental(mode, 2, 2, false)).expect("open");
        write(&mut sink, partial, &[r#"{"id":4,"v":"half"}"#, r#"{"id":5,"v":"half"}"#]);
        sink.commit(partial).expect("commit");
        db.kill(sink);

        let mut sink = db.sink();
        let stream = sink.open(incremental(mode, id, minimum, minimum < 3)).expect("open");
        write(&mut sink, stream, &[r#"{"id":5,"v":"new"}"#]);
        sink.commit(stream).expect(label);
        if minimum > 0 {
            assert_eq!(db.rows(ALL), OLD, "{label}");
        }
        sink.finish(stream).expect(label);
        let sql = match id {
            // A merged row without a generation keeps the generation of the row that it replaces.
            0 => "SELECT id, v, CASE WHEN v = 'new' THEN NULL ELSE _airbyte_generation_id END FROM t ORDER BY 1",
            _ => "SELECT id, v, _airbyte_generation_id FROM t ORDER BY 1, 3, 2",
        };
        assert_eq!(db.rows(sql), expected, "{label}");
        assert_eq!(db.tables(), ["t"], "{label}");
    }
}

#[test]
fn state_of_an_earlier_generation_is_rejected_without_changes() {
    let mut db = TestSchema::new();
    old_table(&mut db);
    let mut sink = db.sink();
    let partial = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut sink, partial, &[r#"{"id":4}"#]);
    sink.commit(partial).expect("commit");
    drop(sink);
    let tables = db.tables();
    for _ in 0..2 {
        let mut sink = db.sink();
        let stream = sink.open(incremental(WriteMode::Append, 3, 3, true)).expect("open");
        let error = sink.finish(stream).expect_err("rows before the state would be missing");
        assert!(error.text.contains("without its state") && error.text.contains("generation 3"), "{}", error.text);
        assert!(!error.transient);
    }
    assert_eq!((db.rows(ALL), db.tables()), (OLD.map(str::to_owned).to_vec(), tables));
}

#[test]
fn commit_without_rows_starts_a_generation() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let mut db = TestSchema::new();
        old_table(&mut db);
        let mut sink = db.sink();
        let stream = sink.open(incremental(mode, 2, 2, false)).expect("open");
        sink.commit(stream).expect("commit");
        db.kill(sink);
        let mut sink = db.sink();
        let stream = sink.open(incremental(mode, 2, 2, true)).expect("open");
        write(&mut sink, stream, &[r#"{"id":2,"v":"b"}"#]);
        assert_eq!(db.rows(ALL), OLD);
        sink.finish(stream).expect("finish");
        assert_eq!(db.rows(ALL), ["2|b"]);
        assert_eq!(db.tables(), ["t"]);
    }
}

#[test]
fn highest_cursor_of_all_runs_wins_then_the_last_row() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (1)");
    let fields =
        [("id", json!({"type": "integer"})), ("at", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
    for (resumes, rows) in [
        (false, [r#"{"id":1,"at":5,"v":"a"}"#, r#"{"id":2,"at":5,"v":"b"}"#, r#"{"id":3,"at":null,"v":"c"}"#]),
        (true, [r#"{"id":1,"at":4,"v":"A"}"#, r#"{"id":2,"at":5,"v":"B"}"#, r#"{"id":3,"at":1,"v":"C"}"#]),
    ] {
        let mut sink = db.sink();
        let stream = StreamSpec {
            primary_key: vec![vec!["id".to_owned()]],
            cursor: vec!["at".to_owned()],
            generation: Generation { id: 1, minimum: 1, resumable: true, resumes },
            ..spec("t", WriteMode::Merge, &fields)
        };
        let stream = sink.open(stream).expect("open");
        write(&mut sink, stream, &rows);
        sink.commit(stream).expect("commit");
        if resumes {
            sink.finish(stream).expect("finish");
        }
    }
    assert_eq!(db.rows("SELECT id, at, v FROM t ORDER BY id"), ["1|5|a", "2|5|B", "3|1|C"]);
}

#[test]
fn columns_and_keys_of_earlier_runs_are_used_at_the_end() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (old int); INSERT INTO t VALUES (1)");
    let stream = |resumes| StreamSpec {
        primary_key: vec![vec!["a".to_owned(), "id".to_owned()]],
        generation: Generation { id: 1, minimum: 1, resumable: true, resumes },
        ..spec("t", WriteMode::Merge, &[])
    };
    let mut sink = db.sink();
    let first = sink.open(stream(false)).expect("open");
    write(&mut sink, first, &[r#"{"a":{"id":1},"n":1.5,"v":"x"}"#, r#"{"a":{"id":1},"n":2.5,"v":"y"}"#]);
    sink.commit(first).expect("commit");
    db.kill(sink);
    let mut sink = db.sink();
    let second = sink.open(stream(true)).expect("open");
    sink.commit(second).expect("commit");
    sink.finish(second).expect("finish");
    assert_eq!(db.rows("SELECT a_id, n, v, old FROM t"), ["1|2.5|y|∅"]);
}

#[test]
fn previous_owner_of_a_generation_table_can_no_longer_write() {
    let mut db = TestSchema::new();
    old_table(&mut db);
    let mut previous = db.sink();
    let old = previous.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut previous, old, &[r#"{"id":1,"v":"a"}"#]);
    previous.commit(old).expect("commit");
    write_many(&mut previous, old, 10..2000, 1000);

    let mut sink = db.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
    write(&mut sink, stream, &[r#"{"id":2,"v":"b"}"#]);
    sink.commit(stream).expect("commit");

    write_many(&mut previous, old, 2000..2010, 10);
    let error = previous.commit(old).expect_err("the table has another owner");
    assert!(error.text.contains("does not exist"), "{}", error.text);
    drop(previous);
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows(ALL), ["1|a", "2|b"]);
    assert_eq!(db.tables(), ["t"]);
}

#[test]
fn generation_survives_lost_connections() {
    let mut db = TestSchema::new();
    old_table(&mut db);
    let mut sink = db.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    for round in 0..4 {
        write_many(&mut sink, stream, round * 1500..(round + 1) * 1500, 1000);
        db.terminate_connections();
        sink.commit(stream).expect("commit");
        db.terminate_connections();
    }
    sink.finish(stream).expect("finish");
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["6000|6000"]);
    assert_eq!(db.tables(), ["t"]);
}

#[test]
fn changed_comment_fails_the_stream_unless_it_reads_from_scratch() {
    let mut db = TestSchema::new();
    old_table(&mut db);
    let mut sink = db.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    sink.commit(stream).expect("commit");
    drop(sink);
    let table = db.tables().into_iter().find(|name| name.contains("gen")).expect("a generation table");
    db.run(&format!("COMMENT ON TABLE \"{table}\" IS 'hello'"));
    let mut sink = db.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
    let error =
        sink.write(stream, &record(r#"{"id":2}"#)).and_then(|()| sink.finish(stream)).expect_err("no checkpoint");
    assert!(error.text.contains(&table) && error.text.contains("comment") && !error.transient, "{}", error.text);
    assert_eq!(db.rows(ALL), OLD);
    // A replacement does not need the checkpoint.
    let whole = sink.open(full_refresh(WriteMode::Replace, 3, 3)).expect("open");
    sink.finish(whole).expect("finish");
    assert_eq!((db.count("t"), db.tables()), (0, vec!["t".to_owned()]));
}

#[test]
fn rows_have_a_generation_column_only_with_generations() {
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace] {
        let mut db = TestSchema::new();
        let mut sink = db.sink();
        let without = sink.open(StreamSpec { table: "plain".to_owned(), ..keyed("p", mode) }).expect("open");
        write(&mut sink, without, &[r#"{"id":1,"_airbyte_generation_id":"own"}"#]);
        sink.finish(without).expect("finish");
        assert_eq!(db.columns("plain"), ["id|bigint", "v|text", "_airbyte_generation_id|text"], "{mode:?}");

        let with = sink.open(full_refresh(mode, 4, 0)).expect("open");
        write(&mut sink, with, &[r#"{"id":1,"_airbyte_generation_id":"own"}"#]);
        sink.finish(with).expect("finish");
        let columns = db.columns("t");
        assert_eq!(columns[..3], ["_airbyte_generation_id|bigint", "id|bigint", "v|text"], "{mode:?}");
        assert!(columns[3].starts_with("_airbyte_generation_id_") && columns[3].ends_with("|text"), "{columns:?}");
        assert_eq!(db.rows("SELECT id, _airbyte_generation_id FROM t"), ["1|4"], "{mode:?}");
    }
}

#[test]
fn unsuitable_generation_column_is_named_in_the_error() {
    for (kind, id) in [("text", 1), ("boolean", 1), ("smallint", 40_000), ("bigint GENERATED ALWAYS AS (1) STORED", 1)]
    {
        let mut db = TestSchema::new();
        db.run(&format!("CREATE TABLE t (id bigint, v text, _airbyte_generation_id {kind})"));
        let mut sink = db.sink();
        let stream = sink.open(full_refresh(WriteMode::Append, id, 0)).expect("open");
        let error = sink.finish(stream).expect_err(kind);
        assert!(error.text.contains("_airbyte_generation_id") && error.text.contains("rename"), "{}", error.text);
    }
}

#[test]
fn finish_early_keeps_the_old_rows_and_the_partial_generation() {
    for (label, stream, resumable) in [
        ("incremental", incremental(WriteMode::Merge, 2, 2, false), true),
        ("full refresh", full_refresh(WriteMode::Merge, 2, 2), false),
    ] {
        let mut db = TestSchema::new();
        old_table(&mut db);
        let mut sink = db.sink();
        let index = sink.open(stream).expect("open");
        write(&mut sink, index, &[r#"{"id":1,"v":"a"}"#]);
        let committed = if resumable { Committed::Durable } else { Committed::Deferred };
        assert_eq!(sink.commit(index).expect("commit"), committed, "{label}");
        write(&mut sink, index, &[r#"{"id":2,"v":"b"}"#]);
        assert!(!sink.finish_early(index).expect("finish_early"), "{label}");
        drop(sink);
        assert_eq!((db.rows(ALL), db.tables().len()), (OLD.map(str::to_owned).to_vec(), 1 + usize::from(resumable)));
        if resumable {
            let mut sink = db.sink();
            let index = sink.open(incremental(WriteMode::Merge, 2, 2, true)).expect("open");
            write(&mut sink, index, &[r#"{"id":3,"v":"c"}"#]);
            sink.finish(index).expect("finish");
            assert_eq!(db.rows(ALL), ["1|a", "3|c"], "the source sends rows after the last state again");
        }
    }
}

#[test]
fn finish_early_of_a_first_generation_keeps_its_rows() {
    let mut db = TestSchema::new();
    let mut sink = db.sink();
    let index = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut sink, index, &[r#"{"id":1,"v":"a"}"#]);
    assert!(sink.finish_early(index).expect("finish_early"));
    assert_eq!(db.rows(ALL), ["1|a"]);
}
