//! Sessions of users that lock the tables while rows are loaded: the sink waits for them, up to a limit.

use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use super::support::{TestSchema, keyed, record, wait_until, write, write_many};
use crate::captured_logs::captured_logs;
use crate::sidecar::sink::postgres::PostgresSink;
use crate::sidecar::sink::{Generation, Sink, StreamSpec, WriteMode};

/// The lock timeout of [`sink`].
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

fn sink(db: &TestSchema, retry_timeout: Duration) -> PostgresSink {
    let mut config = db.config();
    config["parameters"]["lock_timeout"] = json!(format!("{}ms", LOCK_TIMEOUT.as_millis()));
    TestSchema::sink_with(&config, retry_timeout)
}

/// Locks the table in this mode until another session has waited longer than [`LOCK_TIMEOUT`].
fn lock_until_timeout(db: &TestSchema, mode: &str) -> JoinHandle<()> {
    let (mut holder, mut observer) = (db.connect(), db.connect());
    holder.batch_execute(&format!("BEGIN; LOCK TABLE t IN {mode} MODE")).expect("a lock");
    std::thread::spawn(move || {
        wait_until("a session waits for the lock", || {
            let waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
            !observer.query(waiting, &[]).expect("locks").is_empty()
        });
        std::thread::sleep(3 * LOCK_TIMEOUT);
        holder.batch_execute("COMMIT").expect("release of the lock");
    })
}

#[test]
fn finish_waits_for_readers_if_columns_are_missing_and_warns() {
    let generation = Generation { id: 2, minimum: 2, resumable: true, resumes: false };
    for stream in [
        keyed("t", WriteMode::Replace),
        StreamSpec { generation, ..keyed("t", WriteMode::Append) },
        StreamSpec { generation, ..keyed("t", WriteMode::Merge) },
    ] {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (7)");
        let mut sink = sink(&db, Duration::from_secs(20));
        let index = sink.open(stream.clone()).expect("open");
        write(&mut sink, index, &[r#"{"id":1,"v":"new"}"#]);
        sink.commit(index).expect("commit");
        let reader = lock_until_timeout(&db, "ACCESS SHARE");
        let (finished, text) = captured_logs(|| sink.finish(index));
        finished.expect("finish");
        reader.join().expect("the reader");
        assert_eq!(db.rows("SELECT id, v FROM t"), ["1|new"], "{stream:?}");
        let table = format!("\"{}\".\"t\"", db.schema);
        assert!(text.contains("WARN") && text.contains("waiting for a lock") && text.contains(&table), "{text}");
    }
}

#[test]
fn rows_wait_for_a_lock_on_the_table() {
    for mode in [WriteMode::Append, WriteMode::Merge] {
        let mut db = TestSchema::new();
        db.run("CREATE TABLE t (id bigint, v text)");
        let mut sink = sink(&db, Duration::from_secs(20));
        let stream = sink.open(keyed("t", mode)).expect("open");
        write(&mut sink, stream, &[r#"{"id":-1}"#]);
        sink.commit(stream).expect("commit");
        let holder = lock_until_timeout(&db, "SHARE");
        write_many(&mut sink, stream, 0..3000, 1000);
        sink.commit(stream).expect("commit");
        holder.join().expect("the holder of the lock");
        assert_eq!(db.rows("SELECT count(*), count(DISTINCT id) FROM t"), ["3001|3001"], "{mode:?}");
    }
}

#[test]
fn new_column_waits_for_readers_without_losing_rows() {
    let mut db = TestSchema::new();
    let mut sink = sink(&db, Duration::from_secs(20));
    let stream = sink.open(keyed("t", WriteMode::Append)).expect("open");
    // More than the replay buffer may hold.
    write_many(&mut sink, stream, 0..12_000, 1000);
    let reader = lock_until_timeout(&db, "ACCESS SHARE");
    sink.write(stream, &record(r#"{"id":-1,"late":1}"#)).expect("a row");
    write_many(&mut sink, stream, 12_000..14_000, 1000);
    sink.finish(stream).expect("finish");
    reader.join().expect("the reader");
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT id), count(late) FROM t"), ["14001|14001|1"]);
}

#[test]
fn lock_that_is_never_released_fails_the_stream_and_names_the_table() {
    let mut db = TestSchema::new();
    db.run("CREATE TABLE t (id bigint); INSERT INTO t VALUES (7)");
    let mut sink = sink(&db, Duration::from_millis(50));
    let stream = sink.open(keyed("t", WriteMode::Replace)).expect("open");
    write(&mut sink, stream, &[r#"{"id":1}"#]);
    let mut reader = db.connect();
    reader.batch_execute("BEGIN; LOCK TABLE t IN ACCESS SHARE MODE").expect("a lock");
    let error = sink.finish(stream).expect_err("the lock is not released");
    assert!(error.transient && error.text.contains("held a lock") && error.text.contains("\"t\""), "{}", error.text);
    reader.batch_execute("COMMIT").expect("release of the lock");
    assert_eq!(db.rows("SELECT * FROM t"), ["7"]);
    drop(sink);
    assert_eq!(db.tables(), ["t"]);
}
