//! The limits of time: retry timeouts, lock waits, pings.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::support::{Proxy, Schema, backend_pid, setting, task};
use crate::db::{ConcurrencyPolicy, Db, DbError};

/// Takes all four connections of a pool until the returned value is dropped.
fn occupy(db: &Db) -> Vec<mpsc::Sender<()>> {
    let (ready, taken) = mpsc::channel();
    let holders = (0..4)
        .map(|_| {
            let (db, ready) = (db.clone(), ready.clone());
            let (hold, released) = mpsc::channel::<()>();
            thread::spawn(move || {
                db.run("hold a connection", |_| {
                    // An error of either means that the test has ended.
                    let _ = ready.send(());
                    let _ = released.recv();
                    Ok(())
                })
            });
            hold
        })
        .collect();
    (0..4).for_each(|_| taken.recv_timeout(Duration::from_secs(20)).expect("a connection"));
    holders
}

#[test]
fn a_shorter_retry_timeout_gives_up_earlier_on_the_same_pool() {
    let schema = Schema::new();
    let long = schema.open(Duration::from_mins(5));
    let short = long.with_retry_timeout(Duration::from_millis(500));
    assert_eq!(backend_pid(&long), backend_pid(&short), "one pool");
    let holders = occupy(&long);
    let waiting = thread::spawn(move || long.run("wait", |_| Ok(())));
    let error = short.run("wait", |_| Ok(())).expect_err("all connections are busy");
    assert!(matches!(&error, DbError::ConnectionLost { reason, .. } if reason.contains("are busy")), "{error:?}");
    assert!(!waiting.is_finished());
    drop(holders);
    assert_eq!(waiting.join().expect("no panic"), Ok(()));
}

#[test]
fn a_shorter_retry_timeout_bounds_lock_waits() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), None, ConcurrencyPolicy::Allow).expect("writable");
    schema.sql("BEGIN; SELECT FROM source_task FOR UPDATE");
    let short = db.with_retry_timeout(Duration::from_millis(300));
    let error = short.heartbeat("t").expect_err("locked");
    assert_eq!(setting(&short, "statement_timeout"), "300ms");
    assert!(matches!(&error, DbError::ServerError { code: Some(code), .. } if code == "57014"), "{error:?}");
    schema.sql("COMMIT");
    assert_eq!(db.heartbeat("t"), Ok(true));
}

#[test]
fn a_statement_timeout_of_the_url_takes_precedence() {
    let schema = Schema::new();
    let url = super::support::url_with(&format!("search_path={}&statement_timeout=7s", schema.name));
    let db =
        Db::open(super::support::target(&url), schema.options(1, Duration::MAX / 4)).expect("the database answers");
    for db in [db.clone(), db.with_retry_timeout(Duration::from_secs(1))] {
        assert_eq!(setting(&db, "statement_timeout"), "7s");
    }
}

#[test]
fn error_count_counts_each_failed_or_retried_operation_once() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.heartbeat("t").expect("writable");
    assert_eq!(db.error_count(), 0);
    schema.kill_connections();
    db.heartbeat("t").expect("retried");
    assert_eq!(db.error_count(), 1);
    db.run("run nonsense", |tx| Ok(tx.batch("SELECT nonsense")?)).expect_err("no such column");
    assert_eq!(db.error_count(), 2);
    db.with_retry_timeout(Duration::from_secs(1))
        .run::<()>("terminate", |tx| Ok(tx.batch("SELECT pg_terminate_backend(pg_backend_pid())")?))
        .expect_err("each connection is lost");
    assert_eq!(db.error_count(), 3, "all clones together, an operation once, however often it was retried");
}

#[test]
fn notify_gives_up_before_the_retry_timeout() {
    let schema = Schema::new();
    let db = schema.open(Duration::from_mins(15));
    let _holders = occupy(&db);
    db.notify("t").expect_err("all connections are busy");
}

#[test]
fn ping_reports_busy_connections() {
    let mut schema = Schema::new();
    let db = schema.open(Duration::from_mins(15));
    assert_eq!(db.ping(), Ok(()));
    schema.kill_connections();
    assert_eq!(db.ping(), Ok(()), "a closed idle connection is no outage");
    let holders = occupy(&db);
    let all: Vec<_> = (0..10)
        .map(|_| {
            thread::spawn({
                let db = db.clone();
                move || db.ping()
            })
        })
        .collect();
    for ping in all {
        let error = ping.join().expect("no panic").expect_err("all connections are busy");
        assert!(error.to_string().contains("all 4 connections are busy"), "{error}");
    }
    drop(holders);
    assert_eq!(db.ping(), Ok(()));
}

#[test]
fn ping_does_not_block_on_a_silent_server() {
    let schema = Schema::new();
    schema.ready();
    let proxy = Proxy::start();
    let db = schema.open_through(&proxy);
    assert_eq!(db.ping(), Ok(()));
    proxy.freeze(true);
    for _ in 0..2 {
        let error = db.ping().expect_err("no answer");
        assert!(matches!(error, DbError::ConnectionLost { .. }), "{error:?}");
    }
    proxy.freeze(false);
    assert_eq!(db.ping(), Ok(()));
}
