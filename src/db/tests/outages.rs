//! Lost connections: retries, no duplicates, the retry timeout.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::support::{Proxy, Schema, backend_pid, log_rows, setting, task};
use crate::captured_logs::captured_logs;
use crate::db::pool::AttemptError;
use crate::db::{ConcurrencyPolicy, DbError, StartOutcome, Writer};
use crate::failure::Class;
use crate::task::TaskStatus;

#[test]
fn operations_are_retried_when_all_connections_are_lost() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.heartbeat("warm").expect("writable");
    assert!(schema.kill_connections() > 0);
    assert_eq!(db.start_task(&task("t"), None, ConcurrencyPolicy::Allow).expect("writable"), StartOutcome::Started);
}

#[test]
fn logs_are_stored_once_while_connections_are_terminated() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let rows = log_rows(2000);
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = rows
        .chunks(500)
        .map(|chunk| {
            let (db, chunk) = (db.clone(), chunk.to_vec());
            thread::spawn(move || chunk.chunks(20).try_for_each(|batch| db.insert_logs(batch)))
        })
        .collect();
    let killer = {
        let done = done.clone();
        thread::spawn(move || {
            let mut killed = 0;
            while !done.load(Ordering::Relaxed) && killed < 40 {
                killed += schema.kill_connections();
                thread::sleep(Duration::from_millis(30));
            }
            (killed, schema)
        })
    };
    for writer in writers {
        assert_eq!(writer.join().expect("no panic"), Ok(()));
    }
    done.store(true, Ordering::Relaxed);
    let (count, mut schema) = killer.join().expect("no panic");
    assert!(count > 0, "the test killed no connection");
    assert_eq!(schema.value("SELECT count(*) FROM task_log").as_deref(), Some("2000"));
}

#[test]
fn an_operation_whose_answer_was_lost_counts_once() {
    let mut schema = Schema::new();
    schema.ready();
    let proxy = Proxy::start();
    let db = schema.open_through(&proxy);
    let task = task("t");

    proxy.lose_next_answer();
    assert_eq!(
        db.start_task(&task, None, ConcurrencyPolicy::Allow),
        Ok(StartOutcome::Started),
        "not taken for another task"
    );
    assert!(proxy.has_lost());
    assert!(matches!(db.start_task(&task, None, ConcurrencyPolicy::Allow), Ok(StartOutcome::Exists(_))));

    proxy.lose_next_answer();
    assert_eq!(db.insert_logs(&log_rows(10)), Ok(()));
    assert!(proxy.has_lost());
    assert_eq!(schema.value("SELECT count(*) FROM task_log").as_deref(), Some("10"));

    proxy.lose_next_answer();
    let finished = db.finish_task(&task, Writer::Controller, TaskStatus::Failed, None, Some("POD_DELETED: gone"));
    assert!(proxy.has_lost());
    assert_eq!(finished, Ok(true), "our own outcome counts");
    let again = db.finish_task(&task, Writer::Controller, TaskStatus::Failed, None, Some("POD_DELETED: gone"));
    assert_eq!(again, Ok(false));
}

#[test]
fn finish_task_is_retried_when_its_connection_is_lost() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), None, ConcurrencyPolicy::Allow).expect("writable");
    // The first attempt waits for a lock when its connection is terminated.
    schema.sql("BEGIN; SELECT 1 FROM source_task FOR UPDATE");
    let writer = {
        let db = db.clone();
        thread::spawn(move || db.finish_task(&task("t"), Writer::Sidecar, TaskStatus::Success, None, None))
    };
    thread::sleep(Duration::from_millis(200));
    assert!(schema.kill_connections() > 0);
    schema.sql("COMMIT");
    assert_eq!(writer.join().expect("no panic"), Ok(true));
    assert_eq!(db.task("t").expect("readable").and_then(|task| task.status), Some(TaskStatus::Success));
}

#[test]
fn one_lost_connection_invalidates_the_others() {
    let mut schema = Schema::new();
    let db = schema.ready();
    // Operations that wait for each other need four connections.
    let together = Arc::new(Barrier::new(4));
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let (db, together) = (db.clone(), together.clone());
            thread::spawn(move || {
                db.run("wait", |_| {
                    together.wait();
                    Ok(())
                })
            })
        })
        .collect();
    for thread in busy {
        assert_eq!(thread.join().expect("no panic"), Ok(()));
    }
    assert_eq!(schema.kill_connections(), 4);
    let (result, log) = captured_logs(|| db.heartbeat("t"));
    // A second lost connection in a row would be logged as an outage.
    assert_eq!((result, log.as_str()), (Ok(false), ""));
}

#[test]
fn a_retry_timeout_logs_one_warning_and_names_action_and_address() {
    let schema = Schema::new();
    schema.ready();
    let db = schema.open(Duration::from_secs(2));
    let (error, log) = captured_logs(|| {
        let error = db.run::<()>("do it", |tx| Ok(tx.batch("SELECT pg_terminate_backend(pg_backend_pid())")?));
        db.heartbeat("t").expect("the next operation finds the database again");
        error.expect_err("each connection is lost")
    });
    assert_eq!((log.matches(" WARN ").count(), log.matches("answers again").count()), (1, 1), "{log}");
    assert_eq!(error.class(), Class::DatabaseUnreachable);
    assert!(matches!(error, DbError::ConnectionLost { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("cannot do it in database ") && text.contains("gave up after"), "{text}");
}

#[test]
fn a_statement_error_is_not_retried_and_keeps_the_connection() {
    let schema = Schema::new();
    let db = schema.ready();
    let mut attempts = 0;
    let error = db
        .run::<()>("run nonsense", |tx| {
            attempts += 1;
            Ok(tx.batch("SELECT nonsense")?)
        })
        .expect_err("no such column");
    assert_eq!((attempts, error.class()), (1, Class::DatabaseError));
    assert!(error.to_string().contains("SQLSTATE 42703"), "{error}");
    assert_eq!(backend_pid(&db), backend_pid(&db));
}

#[test]
fn only_transient_sqlstates_are_retried() {
    let schema = Schema::new();
    let db = schema.ready();
    let pid = backend_pid(&db);
    for (code, expected_attempts) in [("40001", 2), ("40P01", 2), ("57P04", 1), ("57014", 1)] {
        let mut attempts = 0;
        let result = db.run("raise an error", |tx| {
            attempts += 1;
            let raise = format!("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$");
            if attempts == 1 {
                tx.batch(&raise)?;
            }
            Ok(())
        });
        assert_eq!((attempts, result.is_ok()), (expected_attempts, expected_attempts == 2), "{code}");
    }
    assert_eq!(backend_pid(&db), pid, "the connection is kept");
}

#[test]
fn a_failed_operation_is_rolled_back() {
    let schema = Schema::new();
    let db = schema.ready();
    let own = DbError::SchemaMismatch { address: String::new(), problems: String::new() };
    let result = db.run::<()>("fail", |tx| {
        tx.batch("INSERT INTO source_state (sync_id, stream, state) VALUES ('s', 'a', '1')")?;
        Err(AttemptError::Final(own.clone()))
    });
    assert_eq!(result, Err(own));
    assert_eq!(db.states("s").expect("readable"), []);
}

#[test]
fn statements_have_a_timeout() {
    let schema = Schema::new();
    assert_eq!(setting(&schema.ready(), "statement_timeout"), "30s");
}

#[test]
fn a_listener_reconnects() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let mut listener = db.listen(&schema.name).expect("listening");
    schema.kill_connections();
    assert!(!listener.wait(Duration::from_mins(5)), "a notification may have been missed");
    db.notify(&schema.name).expect("notified");
    assert!(listener.wait(Duration::from_mins(5)));
}
