//! Others who use the tables while rows are loaded: nothing hangs for ever, nothing is given up in haste.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{World, keyed, record, write, write_many};
use crate::captured_logs::captured_logs;
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};

/// A configuration by which locks are waited for only shortly at a time.
fn hasty(world: &World) -> Value {
    let mut config = world.config();
    config["parameters"]["lock_timeout"] = json!("100ms");
    config
}

/// Holds a lock of this mode for as long as asked, on a thread of its own.
fn hold(world: &World, mode: &str, time: Duration) -> std::thread::JoinHandle<()> {
    let mut other = world.connect();
    let sql = format!("BEGIN; LOCK TABLE t IN {mode} MODE");
    other.batch_execute(&sql).expect("a lock");
    std::thread::spawn(move || {
        std::thread::sleep(time);
        other.batch_execute("COMMIT").expect("the end of the lock");
    })
}

const WHILE: Duration = Duration::from_millis(700);

#[test]
fn the_end_waits_aloud_for_a_reader_and_lets_others_read_meanwhile() {
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    for stream in [
        keyed("t", WriteMode::Replace),
        StreamSpec { generation, ..keyed("t", WriteMode::Append) },
        StreamSpec { generation, ..keyed("t", WriteMode::Merge) },
    ] {
        let mut world = World::new();
        world.run("CREATE TABLE t (id bigint, v text); INSERT INTO t VALUES (7, 'old')");
        let mut sink = World::sink_of(&hasty(&world), Duration::from_secs(20));
        let index = sink.open(stream.clone()).expect("open");
        write(&mut sink, index, &[r#"{"id":1,"v":"new"}"#]);
        sink.commit(index).expect("commit");
        let reader = hold(&world, "ACCESS SHARE", WHILE);
        let (finished, text) = captured_logs(|| sink.finish(index));
        finished.expect("finish");
        reader.join().expect("the reader");
        assert_eq!(world.rows("SELECT id, v FROM t"), ["1|new"], "{stream:?}");
        let table = format!("\"{}\".\"t\"", world.schema);
        assert!(text.contains("WARN") && text.contains("waiting for a lock") && text.contains(&table), "{text}");
    }
}

#[test]
fn rows_wait_for_who_has_the_table_for_himself() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let mut world = World::new();
        world.run("CREATE TABLE t (id bigint, v text)");
        let mut sink = World::sink_of(&hasty(&world), Duration::from_secs(20));
        let stream = sink.open(keyed("t", mode)).expect("open");
        write(&mut sink, stream, &[r#"{"id":-1}"#]);
        sink.commit(stream).expect("commit");
        let other = hold(&world, "SHARE", WHILE);
        write_many(&mut sink, stream, 0..3000, 1000);
        sink.commit(stream).expect("commit");
        other.join().expect("the other");
        assert_eq!(world.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["3001|3001"], "{mode:?}");
    }
}

#[test]
fn a_new_column_waits_for_readers_without_losing_rows() {
    let mut world = World::new();
    let mut sink = World::sink_of(&hasty(&world), Duration::from_secs(20));
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    // More than is kept for being sent again.
    write_many(&mut sink, stream, 0..12_000, 1000);
    let reader = hold(&world, "ACCESS SHARE", WHILE);
    sink.write(stream, &record(r#"{"id":-1,"late":1}"#)).expect("a row");
    write_many(&mut sink, stream, 12_000..14_000, 1000);
    sink.finish(stream).expect("finish");
    reader.join().expect("the reader");
    assert_eq!(world.rows("SELECT count(*), count(DISTINCT id), count(late) FROM t"), ["14001|14001|1"]);
}

#[test]
fn a_lock_that_nobody_gives_up_fails_the_stream_and_names_the_table() {
    let mut world = World::new();
    world.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (7)");
    let mut sink = World::sink_of(&hasty(&world), Duration::from_millis(50));
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    let reader = hold(&world, "ACCESS SHARE", Duration::from_secs(3));
    let began = Instant::now();
    let error = sink.finish(stream).expect_err("the lock is not to be had");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(error.transient && error.text.contains("held a lock") && error.text.contains("\"t\""), "{}", error.text);
    reader.join().expect("the reader");
    assert_eq!(world.rows("SELECT * FROM t"), ["7"]);
    drop(sink);
    assert_eq!(world.tables(), ["t"]);
}
