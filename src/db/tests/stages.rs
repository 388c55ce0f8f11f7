//! Tasks of two stages: a discover, and the read under the same id.

use super::support::{Schema, task, time};
use crate::db::{ConcurrencyPolicy, Db, RequestMark, StartOutcome};
use crate::task::{Task, TaskKind, TaskStatus};

fn mark(fingerprint: &str) -> RequestMark {
    RequestMark { fingerprint: fingerprint.to_owned(), installation: "i".to_owned() }
}

fn start_discover(db: &Db, task_id: &str) {
    let discover = Task { kind: TaskKind::Discover, then_run: Some("w".to_owned()), ..task(task_id) };
    let started = db.start_task(&discover, Some(&mark("discover")), ConcurrencyPolicy::Forbid);
    assert_eq!(started, Ok(StartOutcome::Started));
}

/// The read, accepted later than its discover.
fn read(task_id: &str) -> Task {
    Task {
        started_at: time("2026-01-02T03:05:00Z"),
        started_by: Some(serde_json::json!({"trigger": "scheduled"})),
        ..task(task_id)
    }
}

fn start_read(db: &Db, task_id: &str) -> StartOutcome {
    db.start_second_stage(&read(task_id), Some(&mark("read"))).expect("writable")
}

/// What the console writes once its discover was answered, with its own clock.
const CONSOLE: &str = "UPDATE source_task SET started_by = '{\"trigger\": \"manual\"}', description = 'Started',
                       started_at = now() + interval '5 minutes', status = 'RUNNING'";

#[test]
fn a_read_takes_over_the_row_of_its_discover_once() {
    // With and without the own schema; the console has replaced the row, or not.
    for (has_own, is_replaced) in [(true, true), (true, false), (false, false), (false, true)] {
        let mut schema = Schema::new();
        let db = schema.ready();
        if !has_own {
            schema.sql(&format!("DROP SCHEMA {} CASCADE", schema.own()));
        }
        start_discover(&db, "t");
        if is_replaced {
            schema.sql(CONSOLE);
        }
        let label = format!("own schema {has_own}, replaced {is_replaced}");
        let row = db.task_with_request("t").expect("readable").expect("a row");
        assert!(row.awaits_read(), "{label}");
        assert_eq!(row.is_first_stage, has_own || !is_replaced, "{label}");
        assert_eq!(start_read(&db, "t"), StartOutcome::Started, "{label}");
        let row = db.task_with_request("t").expect("readable").expect("a row");
        assert!(!row.awaits_read(), "{label}");
        assert_eq!((row.request.as_deref(), row.status), (Some("read"), Some(TaskStatus::Running)), "{label}");
        assert_eq!((row.started_at, row.description), (time("2026-01-02T03:05:00Z"), None), "{label}");
        let trigger = schema.value("SELECT coalesce(started_by ->> 'trigger', started_by ->> 'type') FROM source_task");
        assert_eq!(trigger.as_deref(), Some("manual"), "{label}: who started the discover has started the read");
        assert!(matches!(start_read(&db, "t"), StartOutcome::Exists(_)), "{label}: a second read");
        let closed = db.close_first_stage("t", TaskStatus::Failed, "too late").expect("writable");
        assert!(!closed, "{label}");
    }
}

#[test]
fn a_row_that_has_ended_takes_no_read_and_one_without_a_read_can_be_closed() {
    let mut schema = Schema::new();
    let db = schema.ready();
    start_discover(&db, "t");
    assert_eq!(db.close_first_stage("t", TaskStatus::Failed, "CONSOLE_FAILED: x"), Ok(true));
    assert_eq!(db.close_first_stage("t", TaskStatus::Failed, "again"), Ok(false));
    let StartOutcome::Exists(row) = start_read(&db, "t") else { panic!("the row has ended") };
    assert_eq!((row.status_text.as_str(), row.error.as_deref()), ("FAILED", Some("CONSOLE_FAILED: x")));
    assert_eq!(db.close_first_stage("missing", TaskStatus::Failed, "x"), Ok(false));
    schema.sql("DELETE FROM source_task");
    assert!(db.start_second_stage(&read("t"), None).is_err(), "without a row it is no second stage");
}

#[test]
fn a_read_waits_for_another_task_of_its_sync() {
    let schema = Schema::new();
    let db = schema.ready();
    start_discover(&db, "t");
    db.start_task(&read("other"), None, ConcurrencyPolicy::Allow).expect("writable");
    assert_eq!(start_read(&db, "t"), StartOutcome::SyncBusy("other".to_owned()));
    assert_eq!(db.close_first_stage("t", TaskStatus::Skipped, "x"), Ok(true));
}
