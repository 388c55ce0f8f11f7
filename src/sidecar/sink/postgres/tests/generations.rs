//! Refreshes: the old generation goes when the new one is complete, over however many runs that takes.

use serde_json::json;

use super::support::{World, keyed, record, spec, write, write_many};
use crate::sidecar::sink::{Committed, Generation, Sink, StreamSpec, WriteMode};

/// An incremental stream of `id` and `v`; `resumes` when the source goes on after a state.
fn incremental(mode: WriteMode, id: i64, minimum: i64, resumes: bool) -> StreamSpec {
    StreamSpec { generation: Generation { id, minimum, resumable: true, resumes }, ..keyed("t", mode) }
}

/// A stream that is always read as a whole.
fn full_refresh(mode: WriteMode, id: i64, minimum: i64) -> StreamSpec {
    StreamSpec { generation: Generation { id, minimum, resumable: false, resumes: false }, ..keyed("t", mode) }
}

/// A table of the first generation with things that hang on it.
fn old_table(world: &mut World) {
    world.run(
        "CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (1, 'old'), (7, 'old');
         CREATE VIEW w AS SELECT id, v FROM t; CREATE INDEX i ON t (v); GRANT SELECT ON t TO PUBLIC",
    );
}

const OLD: [&str; 2] = ["1|old", "7|old"];
const ALL: &str = "SELECT id, v FROM t ORDER BY id, v";

#[test]
fn a_generation_of_several_runs_shows_at_the_end_and_keeps_what_hangs_on_the_table() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        for end in ["abort", "drop", "kill"] {
            let label = format!("{mode:?}, {end}");
            let mut world = World::new();
            old_table(&mut world);
            let mut sink = world.sink();
            let stream = sink.open(incremental(mode, 2, 2, false)).expect("open");
            write(&mut sink, stream, &[r#"{"id":1,"v":"a"}"#]);
            assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable, "{label}");
            write(&mut sink, stream, &[r#"{"id":2,"v":"b"}"#]);
            assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable, "{label}");
            // After the last state: they come again.
            write_many(&mut sink, stream, 3..2000, 1000);
            match end {
                "abort" => sink.abort(stream),
                "drop" => drop(sink),
                _ => world.kill(sink),
            }
            assert_eq!(world.rows(ALL), OLD, "{label}");

            let mut sink = world.sink();
            let stream = sink.open(incremental(mode, 2, 2, true)).expect("open");
            write(&mut sink, stream, &[r#"{"id":3,"v":"c"}"#, r#"{"id":2,"v":"bb"}"#]);
            sink.commit(stream).expect("commit");
            assert_eq!(world.rows("SELECT * FROM w ORDER BY id"), OLD, "{label}");
            assert_eq!(world.columns("t"), ["id|bigint", "v|text"], "{label}");
            sink.finish(stream).expect("finish");
            let expected = match mode {
                WriteMode::Merge => vec!["1|a", "2|bb", "3|c"],
                _ => vec!["1|a", "2|b", "2|bb", "3|c"],
            };
            assert_eq!(world.rows("SELECT * FROM w ORDER BY id, v"), expected, "{label}");
            assert_eq!(world.rows("SELECT DISTINCT _airbyte_generation_id FROM t"), ["2"], "{label}");
            assert_eq!(world.columns("t")[2], "_airbyte_generation_id|bigint");
            assert_eq!(world.rows("SELECT indexname FROM pg_indexes WHERE tablename = 't' AND schemaname = current_schema() AND indexname = 'i'"), ["i"]);
            assert_eq!(world.rows("SELECT count(*) FROM information_schema.table_privileges WHERE grantee = 'PUBLIC' AND table_name = 't' AND table_schema = current_schema()"), ["1"]);
            assert_eq!(world.tables(), ["t"], "{label}");
        }
    }
}

#[test]
fn an_empty_generation_empties_the_table_when_it_is_complete() {
    for (label, stream) in [
        ("incremental", incremental(WriteMode::Append, 2, 2, false)),
        ("merged", incremental(WriteMode::Merge, 2, 2, false)),
        ("full refresh", full_refresh(WriteMode::Append, 2, 2)),
    ] {
        let mut world = World::new();
        old_table(&mut world);
        let mut sink = world.sink();
        let index = sink.open(stream.clone()).expect("open");
        sink.commit(index).expect("commit");
        sink.abort(index);
        assert_eq!(world.rows(ALL), OLD, "{label}");
        let index = sink.open(stream).expect("open");
        sink.finish(index).expect("finish");
        assert_eq!((world.count("t"), world.count("w")), (0, 0), "{label}");
        assert_eq!(world.tables(), ["t"], "{label}");
    }
}

#[test]
fn generations_from_the_minimum_on_stay() {
    for (label, mode, table, expected) in [
        ("added", WriteMode::Append, "", vec!["2|two|2", "3|new|3", "5|two|2", "5|new|3"]),
        ("merged", WriteMode::Merge, "", vec!["2|two|2", "3|new|3", "5|new|3"]),
        (
            "merged by another's key",
            WriteMode::Merge,
            "ALTER TABLE t ADD n serial PRIMARY KEY",
            vec!["2|two|2", "3|new|3", "5|new|3"],
        ),
    ] {
        let mut world = World::new();
        world.run(
            "CREATE TABLE t (id bigint, v text, _airbyte_generation_id bigint);
             INSERT INTO t VALUES (0, 'none', NULL), (1, 'one', 1), (2, 'two', 2), (5, 'two', 2)",
        );
        world.run(table);
        let mut sink = world.sink();
        let stream = sink.open(incremental(mode, 3, 2, false)).expect("open");
        write(&mut sink, stream, &[r#"{"id":3,"v":"new"}"#, r#"{"id":5,"v":"new"}"#]);
        sink.commit(stream).expect("commit");
        assert_eq!(world.count("t"), 4, "{label}");
        sink.finish(stream).expect(label);
        assert_eq!(
            world.rows("SELECT id, v, _airbyte_generation_id FROM t ORDER BY id, _airbyte_generation_id"),
            expected,
            "{label}"
        );
        assert_eq!(world.tables(), ["t"], "{label}");
    }
}

#[test]
fn once_nothing_is_obsolete_rows_show_at_each_commit() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let mut world = World::new();
        let mut sink = world.sink();
        // The table is not there; then it holds nothing but this generation.
        for (run, expected) in [(1, vec!["1"]), (2, vec!["1", "2"])] {
            let stream = sink.open(incremental(mode, 2, 2, run == 2)).expect("open");
            write(&mut sink, stream, &[&format!(r#"{{"id":{run}}}"#)]);
            assert_eq!(sink.commit(stream).expect("commit"), Committed::Durable);
            assert_eq!(world.rows("SELECT id FROM t ORDER BY id"), expected, "{mode:?}");
            assert_eq!(world.tables().iter().filter(|name| name.contains("gen")).count(), 0, "{mode:?}");
            sink.finish(stream).expect("finish");
        }
    }
}

#[test]
fn a_full_refresh_starts_afresh_and_waits_for_its_end() {
    let mut world = World::new();
    old_table(&mut world);
    let mut sink = world.sink();
    let half = sink.open(incremental(WriteMode::Merge, 2, 2, false)).expect("open");
    write(&mut sink, half, &[r#"{"id":9,"v":"half"}"#]);
    sink.commit(half).expect("commit");
    drop(sink);
    let kept = world.tables();
    for end in ["kill", "abort", "finish"] {
        let mut sink = world.sink();
        let stream = sink.open(full_refresh(WriteMode::Merge, 2, 2)).expect("open");
        write_many(&mut sink, stream, 0..2000, 1000);
        assert_eq!(sink.commit(stream).expect("commit"), Committed::Deferred);
        assert_eq!(world.rows(ALL), OLD, "{end}");
        match end {
            "finish" => sink.finish(stream).expect("finish"),
            "abort" => sink.abort(stream),
            _ => world.kill(sink),
        }
        if end == "abort" {
            assert_eq!(world.tables(), kept, "the state of the half generation may be used yet");
        }
    }
    assert_eq!(world.rows("SELECT count(*), max(id) FROM t"), ["2000|1999"]);
    assert_eq!(world.tables(), ["t"]);
}

#[test]
fn from_scratch_a_half_generation_is_dropped_with_the_first_commit() {
    for with_rows in [true, false] {
        let mut world = World::new();
        old_table(&mut world);
        let mut sink = world.sink();
        let half = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
        write(&mut sink, half, &[r#"{"id":9,"v":"half"}"#]);
        sink.commit(half).expect("commit");
        drop(sink);

        let mut sink = world.sink();
        let again = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
        write_many(&mut sink, again, 0..2000, 1000);
        world.kill(sink);
        let mut sink = world.sink();
        let resumed = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
        write(&mut sink, resumed, &[r#"{"id":10,"v":"more"}"#]);
        sink.commit(resumed).expect("the half generation is there as long as its state is the last one");
        drop(sink);

        let mut sink = world.sink();
        let again = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
        let expected: &[&str] = if with_rows { &["1|a"] } else { &[] };
        if with_rows {
            write(&mut sink, again, &[r#"{"id":1,"v":"a"}"#]);
        }
        sink.commit(again).expect("commit");
        world.kill(sink);
        let mut sink = world.sink();
        let resumed = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
        sink.finish(resumed).expect("finish");
        assert_eq!(world.rows(ALL), expected);
        assert_eq!(world.tables(), ["t"]);
    }
}

#[test]
fn a_half_generation_counts_in_a_later_one_unless_it_is_below_the_minimum() {
    for (label, mode, id, minimum, expected) in [
        ("dropped", WriteMode::Merge, 3, 3, vec!["5|new|3"]),
        ("continued", WriteMode::Merge, 3, 2, vec!["4|half|2", "5|new|3"]),
        ("continued, added", WriteMode::Append, 3, 2, vec!["4|half|2", "5|half|2", "5|new|3"]),
        ("put beside all others", WriteMode::Merge, 3, 0, vec!["1|old|∅", "4|half|2", "5|new|3", "7|old|∅"]),
        ("added to all others", WriteMode::Append, 2, 0, vec!["1|old|∅", "4|half|2", "5|half|2", "5|new|2", "7|old|∅"]),
        ("no generations any more", WriteMode::Merge, 0, 0, vec!["1|old|∅", "4|half|2", "5|new|∅", "7|old|∅"]),
    ] {
        let mut world = World::new();
        old_table(&mut world);
        let mut sink = world.sink();
        let half = sink.open(incremental(mode, 2, 2, false)).expect("open");
        write(&mut sink, half, &[r#"{"id":4,"v":"half"}"#, r#"{"id":5,"v":"half"}"#]);
        sink.commit(half).expect("commit");
        world.kill(sink);

        let mut sink = world.sink();
        let stream = sink.open(incremental(mode, id, minimum, minimum < 3)).expect("open");
        write(&mut sink, stream, &[r#"{"id":5,"v":"new"}"#]);
        sink.commit(stream).expect(label);
        if minimum > 0 {
            assert_eq!(world.rows(ALL), OLD, "{label}");
        }
        sink.finish(stream).expect(label);
        let sql = match id {
            // Merged rows that carry no generation keep the number of the row before: it is not theirs to say.
            0 => "SELECT id, v, CASE WHEN v = 'new' THEN NULL ELSE _airbyte_generation_id END FROM t ORDER BY 1",
            _ => "SELECT id, v, _airbyte_generation_id FROM t ORDER BY 1, 3, 2",
        };
        assert_eq!(world.rows(sql), expected, "{label}");
        assert_eq!(world.tables(), ["t"], "{label}");
    }
}

#[test]
fn a_state_of_an_earlier_generation_is_refused_before_anything_is_lost() {
    let mut world = World::new();
    old_table(&mut world);
    let mut sink = world.sink();
    let half = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut sink, half, &[r#"{"id":4}"#]);
    sink.commit(half).expect("commit");
    drop(sink);
    let tables = world.tables();
    for _ in 0..2 {
        let mut sink = world.sink();
        let stream = sink.open(incremental(WriteMode::Append, 3, 3, true)).expect("open");
        let error = sink.finish(stream).expect_err("the rows before the state would be missing");
        assert!(error.text.contains("without its state") && error.text.contains("generation 3"), "{}", error.text);
        assert!(!error.transient);
    }
    assert_eq!((world.rows(ALL), world.tables()), (OLD.map(str::to_owned).to_vec(), tables));
}

#[test]
fn a_state_after_no_rows_at_all_is_a_state_of_its_generation() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let mut world = World::new();
        old_table(&mut world);
        let mut sink = world.sink();
        let stream = sink.open(incremental(mode, 2, 2, false)).expect("open");
        sink.commit(stream).expect("commit");
        world.kill(sink);
        let mut sink = world.sink();
        let stream = sink.open(incremental(mode, 2, 2, true)).expect("open");
        write(&mut sink, stream, &[r#"{"id":2,"v":"b"}"#]);
        assert_eq!(world.rows(ALL), OLD);
        sink.finish(stream).expect("finish");
        assert_eq!(world.rows(ALL), ["2|b"]);
        assert_eq!(world.tables(), ["t"]);
    }
}

#[test]
fn of_all_runs_the_highest_cursor_wins_and_then_the_last_row() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (1)");
    let fields =
        [("id", json!({"type": "integer"})), ("at", json!({"type": "integer"})), ("v", json!({"type": "string"}))];
    for (resumes, rows) in [
        (false, [r#"{"id":1,"at":5,"v":"a"}"#, r#"{"id":2,"at":5,"v":"b"}"#, r#"{"id":3,"at":null,"v":"c"}"#]),
        (true, [r#"{"id":1,"at":4,"v":"A"}"#, r#"{"id":2,"at":5,"v":"B"}"#, r#"{"id":3,"at":1,"v":"C"}"#]),
    ] {
        let mut sink = world.sink();
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
    assert_eq!(world.rows("SELECT id, at, v FROM t ORDER BY id"), ["1|5|a", "2|5|B", "3|1|C"]);
}

#[test]
fn columns_and_keys_that_only_an_earlier_run_has_seen_are_there_at_the_end() {
    let mut world = World::new();
    world.run("CREATE TABLE t (old int); INSERT INTO t VALUES (1)");
    let stream = |resumes| StreamSpec {
        primary_key: vec![vec!["a".to_owned(), "id".to_owned()]],
        generation: Generation { id: 1, minimum: 1, resumable: true, resumes },
        ..spec("t", WriteMode::Merge, &[])
    };
    let mut sink = world.sink();
    let first = sink.open(stream(false)).expect("open");
    write(&mut sink, first, &[r#"{"a":{"id":1},"n":1.5,"v":"x"}"#, r#"{"a":{"id":1},"n":2.5,"v":"y"}"#]);
    sink.commit(first).expect("commit");
    world.kill(sink);
    let mut sink = world.sink();
    let second = sink.open(stream(true)).expect("open");
    sink.commit(second).expect("commit");
    sink.finish(second).expect("finish");
    assert_eq!(world.rows("SELECT a_id, n, v, old FROM t"), ["1|2.5|y|∅"]);
}

#[test]
fn a_run_that_was_thought_dead_can_do_no_harm() {
    let mut world = World::new();
    old_table(&mut world);
    let mut dead = world.sink();
    let old = dead.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut dead, old, &[r#"{"id":1,"v":"a"}"#]);
    dead.commit(old).expect("commit");
    write_many(&mut dead, old, 10..2000, 1000);

    let mut sink = world.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
    write(&mut sink, stream, &[r#"{"id":2,"v":"b"}"#]);
    sink.commit(stream).expect("commit");

    write_many(&mut dead, old, 2000..2010, 10);
    let error = dead.commit(old).expect_err("its rows are another's now");
    assert!(error.text.contains("does not exist"), "{}", error.text);
    drop(dead);
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows(ALL), ["1|a", "2|b"]);
    assert_eq!(world.tables(), ["t"]);
}

#[test]
fn a_collection_survives_lost_connections() {
    let mut world = World::new();
    old_table(&mut world);
    let mut sink = world.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    for round in 0..4 {
        write_many(&mut sink, stream, round * 1500..(round + 1) * 1500, 1000);
        world.terminate();
        sink.commit(stream).expect("commit");
        world.terminate();
    }
    sink.finish(stream).expect("finish");
    assert_eq!(world.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["6000|6000"]);
    assert_eq!(world.tables(), ["t"]);
}

#[test]
fn a_comment_that_was_changed_is_not_guessed_at() {
    let mut world = World::new();
    old_table(&mut world);
    let mut sink = world.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    sink.commit(stream).expect("commit");
    drop(sink);
    let kept = world.tables().into_iter().find(|name| name.contains("gen")).expect("a collection");
    world.run(&format!("COMMENT ON TABLE \"{kept}\" IS 'hello'"));
    let mut sink = world.sink();
    let stream = sink.open(incremental(WriteMode::Append, 2, 2, true)).expect("open");
    let error = sink.write(stream, &record(r#"{"id":2}"#)).and_then(|()| sink.finish(stream)).expect_err("no mark");
    assert!(error.text.contains(&kept) && error.text.contains("comment") && !error.transient, "{}", error.text);
    assert_eq!(world.rows(ALL), OLD);
    // Who has no use for it is not disturbed.
    let whole = sink.open(full_refresh(WriteMode::Replace, 3, 3)).expect("open");
    sink.finish(whole).expect("finish");
    assert_eq!((world.count("t"), world.tables()), (0, vec!["t".to_owned()]));
}

#[test]
fn rows_carry_their_generation_where_there_are_generations() {
    for mode in [WriteMode::Append, WriteMode::Merge, WriteMode::Replace] {
        let mut world = World::new();
        let mut sink = world.sink();
        let without = sink.open(StreamSpec { table: "plain".to_owned(), ..keyed("p", mode) }).expect("open");
        write(&mut sink, without, &[r#"{"id":1,"_airbyte_generation_id":"own"}"#]);
        sink.finish(without).expect("finish");
        assert_eq!(world.columns("plain"), ["id|bigint", "v|text", "_airbyte_generation_id|text"], "{mode:?}");

        let with = sink.open(full_refresh(mode, 4, 0)).expect("open");
        write(&mut sink, with, &[r#"{"id":1,"_airbyte_generation_id":"own"}"#]);
        sink.finish(with).expect("finish");
        let columns = world.columns("t");
        assert_eq!(columns[..3], ["_airbyte_generation_id|bigint", "id|bigint", "v|text"], "{mode:?}");
        assert!(columns[3].starts_with("_airbyte_generation_id_") && columns[3].ends_with("|text"), "{columns:?}");
        assert_eq!(world.rows("SELECT id, _airbyte_generation_id FROM t"), ["1|4"], "{mode:?}");
    }
}

#[test]
fn a_column_that_holds_no_generation_is_named() {
    for (kind, id) in [("text", 1), ("boolean", 1), ("smallint", 40_000), ("bigint GENERATED ALWAYS AS (1) STORED", 1)]
    {
        let mut world = World::new();
        world.run(&format!("CREATE TABLE t (id bigint, v text, _airbyte_generation_id {kind})"));
        let mut sink = world.sink();
        let stream = sink.open(full_refresh(WriteMode::Append, id, 0)).expect("open");
        let error = sink.finish(stream).expect_err(kind);
        assert!(error.text.contains("_airbyte_generation_id") && error.text.contains("rename"), "{}", error.text);
    }
}

#[test]
fn a_generation_that_is_cut_off_leaves_the_old_one_and_can_be_gone_on_with() {
    for (label, stream, kept) in [
        ("incremental", incremental(WriteMode::Merge, 2, 2, false), true),
        ("full refresh", full_refresh(WriteMode::Merge, 2, 2), false),
    ] {
        let mut world = World::new();
        old_table(&mut world);
        let mut sink = world.sink();
        let index = sink.open(stream).expect("open");
        write(&mut sink, index, &[r#"{"id":1,"v":"a"}"#]);
        let committed = if kept { Committed::Durable } else { Committed::Deferred };
        assert_eq!(sink.commit(index).expect("commit"), committed, "{label}");
        write(&mut sink, index, &[r#"{"id":2,"v":"b"}"#]);
        assert!(!sink.finish_early(index).expect("cut"), "{label}");
        drop(sink);
        assert_eq!((world.rows(ALL), world.tables().len()), (OLD.map(str::to_owned).to_vec(), 1 + usize::from(kept)));
        if kept {
            let mut sink = world.sink();
            let index = sink.open(incremental(WriteMode::Merge, 2, 2, true)).expect("open");
            write(&mut sink, index, &[r#"{"id":3,"v":"c"}"#]);
            sink.finish(index).expect("finish");
            assert_eq!(world.rows(ALL), ["1|a", "3|c"], "what came after the last state comes again");
        }
    }
}

#[test]
fn a_first_generation_that_is_cut_off_keeps_its_rows() {
    let mut world = World::new();
    let mut sink = world.sink();
    let index = sink.open(incremental(WriteMode::Append, 2, 2, false)).expect("open");
    write(&mut sink, index, &[r#"{"id":1,"v":"a"}"#]);
    assert!(sink.finish_early(index).expect("cut"));
    assert_eq!(world.rows(ALL), ["1|a"]);
}
