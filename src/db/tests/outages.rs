//! Lost connections: repetition, no doubles, bounded patience.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{Proxy, Schema, log_rows, task};
use crate::captured_logs::captured_logs;
use crate::db::pool::Fault;
use crate::db::{ConcurrencyPolicy, DbError, StartOutcome, Writer};
use crate::failure::Class;
use crate::task::TaskStatus;

#[test]
fn operations_outlive_the_loss_of_all_connections() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.heartbeat("warm").expect("writable");
    assert!(schema.kill_connections() > 0);
    assert_eq!(db.start_task(&task("t"), ConcurrencyPolicy::Allow).expect("writable"), StartOutcome::Started);
}

#[test]
fn a_batch_of_logs_is_stored_once_while_connections_die_all_the_time() {
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
fn an_operation_whose_answer_got_lost_counts_once() {
    let mut schema = Schema::new();
    schema.ready();
    let proxy = Proxy::start();
    let db = schema.open_through(&proxy);
    let task = task("t");

    proxy.lose_next_answer();
    assert_eq!(
        db.start_task(&task, ConcurrencyPolicy::Allow),
        Ok(StartOutcome::Started),
        "not taken for somebody else's task"
    );
    assert!(proxy.has_lost());
    assert!(matches!(db.start_task(&task, ConcurrencyPolicy::Allow), Ok(StartOutcome::Exists(_))));

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
fn an_outcome_is_stored_while_the_connection_dies_in_the_middle() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), ConcurrencyPolicy::Allow).expect("writable");
    // The first writer is held up by a lock, killed there, and comes back.
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
fn one_lost_connection_is_a_warning_about_the_others() {
    let mut schema = Schema::new();
    let db = schema.ready();
    // Four operations that wait for each other need four connections.
    let together = Arc::new(Barrier::new(4));
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let (db, together) = (db.clone(), together.clone());
            thread::spawn(move || {
                db.run("waiting", |_| {
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
    // The second dead connection in a row would be an outage.
    assert_eq!((result, log.as_str()), (Ok(false), ""));
}

#[test]
fn patience_ends_with_one_warning_and_an_error_that_says_what_was_tried_and_where() {
    let schema = Schema::new();
    schema.ready();
    let db = schema.open(Duration::from_secs(2));
    let started = Instant::now();
    let (error, log) = captured_logs(|| {
        let error = db.run::<()>("doing it", |session| {
            session.query("SELECT pg_terminate_backend(pg_backend_pid())", &[])?;
            Ok(())
        });
        db.heartbeat("t").expect("the next operation finds the database again");
        error.expect_err("the connection dies each time")
    });
    assert_eq!((log.matches(" WARN ").count(), log.matches("answers again").count()), (1, 1), "{log}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(error.class(), Class::DatabaseUnreachable);
    assert!(matches!(error, DbError::ConnectionLost { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("doing it in database ") && text.contains("gave up after"), "{text}");
}

#[test]
fn an_error_of_the_statement_is_not_repeated_and_leaves_the_connection_usable() {
    let schema = Schema::new();
    let db = schema.ready();
    let mut attempts = 0;
    let error = db
        .run::<()>("asking nonsense", |session| {
            attempts += 1;
            session.query("SELECT nonsense", &[])?;
            Ok(())
        })
        .expect_err("no such column");
    assert_eq!((attempts, error.class()), (1, Class::DatabaseError));
    assert!(error.to_string().contains("SQLSTATE 42703"), "{error}");
    let pid =
        || db.run("asking", |session| Ok(session.query("SELECT pg_backend_pid()", &[])?[0].try_get::<_, i32>(0)?));
    assert_eq!(pid(), pid());
}

#[test]
fn a_failed_operation_leaves_nothing_behind() {
    let schema = Schema::new();
    let db = schema.ready();
    let own = DbError::SchemaMismatch { address: String::new(), problems: String::new() };
    let result = db.run::<()>("failing", |session| {
        session.batch("INSERT INTO source_state (sync_id, stream, state) VALUES ('s', 'a', '1')")?;
        Err(Fault::Own(own.clone()))
    });
    assert_eq!(result, Err(own));
    assert_eq!(db.states("s").expect("readable"), []);
}

#[test]
fn statements_that_wait_for_a_lock_for_ever_are_ended_by_the_server() {
    let schema = Schema::new();
    let db = schema.ready();
    let timeout = db.run("asking", |session| {
        Ok(session.query("SELECT current_setting('statement_timeout')", &[])?[0].try_get::<_, String>(0)?)
    });
    assert_eq!(timeout.as_deref(), Ok("30s"));
}

#[test]
fn a_listener_gets_a_lost_connection_back() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let mut listener = db.listen(&schema.name).expect("listening");
    schema.kill_connections();
    assert!(!listener.wait(Duration::from_secs(5)), "a notification may have been missed: look again");
    db.notify(&schema.name).expect("notified");
    assert!(listener.wait(Duration::from_secs(20)));
}
