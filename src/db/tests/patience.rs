//! How long whom is waited for.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::support::{Proxy, Schema, task};
use crate::db::{ConcurrencyPolicy, Db, DbError};

/// Takes all four connections of a pool until the returned value is dropped.
fn occupy(db: &Db) -> Vec<mpsc::Sender<()>> {
    let (ready, taken) = mpsc::channel();
    let holders = (0..4)
        .map(|_| {
            let (db, ready) = (db.clone(), ready.clone());
            let (hold, released) = mpsc::channel::<()>();
            thread::spawn(move || {
                db.run("holding a connection", |_| {
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
fn whoever_is_less_patient_shares_the_pool_and_gives_up_earlier() {
    let schema = Schema::new();
    let db = schema.open(Duration::from_mins(5));
    let hasty = db.with_retry_timeout(Duration::from_millis(500));
    let pid = |db: &Db| {
        db.run("asking", |session| Ok(session.query("SELECT pg_backend_pid()", &[])?[0].try_get::<_, i32>(0)?))
    };
    assert_eq!(pid(&db), pid(&hasty), "one pool");
    let holders = occupy(&db);
    let started = Instant::now();
    let error = hasty.run("asking", |_| Ok(())).expect_err("all connections are busy");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(matches!(&error, DbError::ConnectionLost { reason, .. } if reason.contains("are busy")), "{error:?}");
    let patient = thread::spawn(move || db.run("asking", |_| Ok(())));
    thread::sleep(Duration::from_millis(700));
    assert!(!patient.is_finished());
    drop(holders);
    assert_eq!(patient.join().expect("no panic"), Ok(()));
}

#[test]
fn whoever_is_less_patient_waits_less_for_locks() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), ConcurrencyPolicy::Allow).expect("writable");
    schema.sql("BEGIN; SELECT FROM source_task FOR UPDATE");
    let started = Instant::now();
    let error = db.with_retry_timeout(Duration::from_millis(300)).heartbeat("t").expect_err("locked");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(matches!(&error, DbError::ServerError { code: Some(code), .. } if code == "57014"), "{error:?}");
    schema.sql("COMMIT");
    assert_eq!(db.heartbeat("t"), Ok(true));
}

#[test]
fn a_limit_for_statements_that_the_url_names_holds_for_everybody() {
    let schema = Schema::new();
    let url = super::support::url_with(&format!("search_path={}&statement_timeout=7s", schema.name));
    let options =
        crate::db::Options { application_name: "test".to_owned(), pool_size: 1, retry_timeout: Duration::MAX / 4 };
    let db = Db::open(super::support::target(&url), options).expect("the database answers");
    for db in [db.clone(), db.with_retry_timeout(Duration::from_secs(1))] {
        let limit = db.run("asking", |session| {
            Ok(session.query("SELECT current_setting('statement_timeout')", &[])?[0].try_get::<_, String>(0)?)
        });
        assert_eq!(limit.as_deref(), Ok("7s"));
    }
}

#[test]
fn operations_that_failed_or_were_repeated_are_counted_once() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.heartbeat("t").expect("writable");
    assert_eq!(db.error_count(), 0);
    schema.kill_connections();
    db.heartbeat("t").expect("repeated");
    assert_eq!(db.error_count(), 1);
    db.run("asking nonsense", |session| Ok(session.batch("SELECT nonsense")?)).expect_err("no such column");
    assert_eq!(db.error_count(), 2);
    let hasty = db.with_retry_timeout(Duration::from_secs(1));
    hasty
        .run::<()>("dying", |session| Ok(session.batch("SELECT pg_terminate_backend(pg_backend_pid())")?))
        .expect_err("");
    assert_eq!(db.error_count(), 3, "all clones together, and an operation once, however often it was repeated");
}

#[test]
fn a_notification_is_given_up_soon() {
    let schema = Schema::new();
    let db = schema.open(Duration::from_mins(15));
    let _holders = occupy(&db);
    let started = Instant::now();
    db.notify("t").expect_err("all connections are busy");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn a_ping_is_answered_in_time_and_says_why_not() {
    let mut schema = Schema::new();
    let db = schema.open(Duration::from_mins(15));
    assert_eq!(db.ping(), Ok(()));
    schema.kill_connections();
    assert_eq!(db.ping(), Ok(()), "a connection that was cut off while it was idle is no outage");
    let holders = occupy(&db);
    let started = Instant::now();
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
    assert!(started.elapsed() < Duration::from_millis(3500), "{:?}", started.elapsed());
    drop(holders);
    assert_eq!(db.ping(), Ok(()));
}

#[test]
fn a_server_that_says_nothing_does_not_hold_a_ping() {
    let schema = Schema::new();
    schema.ready();
    let proxy = Proxy::start();
    let db = schema.open_through(&proxy);
    assert_eq!(db.ping(), Ok(()));
    proxy.freeze(true);
    for _ in 0..2 {
        let started = Instant::now();
        let error = db.ping().expect_err("no answer");
        assert!(started.elapsed() < Duration::from_millis(3500), "{:?}", started.elapsed());
        assert!(matches!(error, DbError::ConnectionLost { .. }), "{error:?}");
    }
    proxy.freeze(false);
    assert_eq!(db.ping(), Ok(()));
}
