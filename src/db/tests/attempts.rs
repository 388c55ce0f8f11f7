//! Results of attempts beside a console that writes into the same rows, by a clock of its own.

use super::support::{Schema, attempt, task};
use crate::db::{ConcurrencyPolicy, Db, Finding, Retention, Writer};
use crate::task::{Task, TaskKind, TaskStatus};
use std::time::Duration;

/// Clocks of the console, against that of the database.
const CLOCKS: [&str; 5] = ["-2 hours", "-5 minutes", "0", "5 minutes", "2 hours"];
const WINDOW: Duration = Duration::from_mins(10);
const STALE: Duration = Duration::from_mins(20);

/// What the console writes when a spec was accepted.
fn ask_for_spec(schema: &mut Schema, clock: &str) {
    schema.sql(&format!(
        "INSERT INTO source_spec AS s (package, version, specs, timestamp, error)
         VALUES ('airbyte/source-faker', '1', NULL, now() + interval '{clock}', 'pending')
         ON CONFLICT ON CONSTRAINT source_spec_pkey
         DO UPDATE SET specs = NULL, timestamp = excluded.timestamp, error = 'pending'"
    ));
}

/// What the console writes when a discover was accepted.
fn ask_for_catalog(schema: &mut Schema, clock: &str) {
    schema.sql(&format!(
        "INSERT INTO source_catalog (package, version, key, timestamp, status, description)
         VALUES ('airbyte/source-faker', '1', 'k', now() + interval '{clock}', 'RUNNING', 'RUNNING')
         ON CONFLICT ON CONSTRAINT source_catalog_pkey
         DO UPDATE SET timestamp = excluded.timestamp, status = 'RUNNING', description = 'RUNNING'"
    ));
}

/// What the console writes when a read was accepted that a user has started.
fn ask_for_read(schema: &mut Schema, clock: &str) {
    schema.sql(&format!(
        "UPDATE source_task SET status = 'RUNNING', description = 'Started', started_by = '{{\"trigger\": \"manual\"}}',
           started_at = now() + interval '{clock}', updated_at = now() + interval '{clock}'"
    ));
}

fn ask(schema: &mut Schema, kind: TaskKind, clock: &str) {
    match kind {
        TaskKind::Spec => ask_for_spec(schema, clock),
        TaskKind::Check => schema.sql(&format!(
            "INSERT INTO source_check (package, version, key, status, timestamp)
             VALUES ('airbyte/source-faker', '1', 'k', 'RUNNING', now() + interval '{clock}')
             ON CONFLICT ON CONSTRAINT source_check_pkey DO UPDATE SET status = 'RUNNING', timestamp = excluded.timestamp"
        )),
        TaskKind::Discover => ask_for_catalog(schema, clock),
        TaskKind::Read => ask_for_read(schema, clock),
    }
}

/// The row that the console polls.
fn row(schema: &mut Schema, kind: TaskKind) -> String {
    let sql = match kind {
        TaskKind::Spec => "concat_ws(' ', specs::text, error) FROM source_spec",
        TaskKind::Check => "concat_ws(' ', status, description) FROM source_check",
        TaskKind::Discover => "concat_ws(' ', status, catalog::text, description) FROM source_catalog",
        TaskKind::Read => "concat_ws(' ', status, description, error) FROM source_task",
    };
    schema.value(&format!("SELECT {sql}")).expect("a row")
}

const KINDS: [TaskKind; 3] = [TaskKind::Spec, TaskKind::Check, TaskKind::Discover];

/// A result of the connector, and a failure, each with the row that holds it.
fn findings(kind: TaskKind) -> [(Finding<'static>, &'static str); 2] {
    let failure = Finding::Failure("NO_RESULT: none");
    match kind {
        TaskKind::Spec => [(Finding::Document("[1]"), "[1]"), (failure, "NO_RESULT: none")],
        TaskKind::Check => {
            let result = Finding::Check { succeeded: true, message: None };
            [(result, "SUCCESS"), (failure, "FAILED NO_RESULT: none")]
        }
        TaskKind::Discover | TaskKind::Read => {
            [(Finding::Document("[1]"), "SUCCESS [1]"), (failure, "FAILED NO_RESULT: none")]
        }
    }
}

/// A task that starts now.
fn new(kind: TaskKind, id: &str) -> Task {
    let started_at = crate::task::to_millis(jiff::Timestamp::now());
    Task { started_at, ..attempt(kind, id, "2026-01-01T00:00:00Z") }
}

fn start(db: &Db, task: &Task) {
    db.start_attempt(task, None).expect("writable");
    if task.kind == TaskKind::Discover {
        db.start_catalog(task).expect("writable");
    }
}

#[test]
fn a_result_replaces_the_row_of_a_caller_that_waits() {
    for kind in KINDS {
        for has_own in [true, false] {
            for clock in CLOCKS {
                for (finding, expected) in findings(kind) {
                    let mut schema = Schema::new();
                    let db = if has_own { schema.ready() } else { schema.ready_without_own() };
                    let task = new(kind, "t");
                    start(&db, &task);
                    ask(&mut schema, kind, clock);
                    assert_eq!(db.result(&task), Ok(None), "{kind}: what the console writes is no result");
                    db.store_result(&task, finding).expect("writable");
                    assert_eq!(row(&mut schema, kind), expected, "{kind} {clock} {has_own}");
                    let stored = db.result(&task).expect("readable").expect("a result");
                    assert_eq!(stored.succeeded, !matches!(finding, Finding::Failure(_)), "{kind} {clock} {has_own}");
                }
            }
        }
    }
}

#[test]
fn a_result_is_restored_where_the_caller_writes_after_it() {
    for kind in [TaskKind::Spec, TaskKind::Discover] {
        for clock in CLOCKS {
            for (finding, expected) in findings(kind) {
                let mut schema = Schema::new();
                let db = schema.ready();
                let task = new(kind, "t");
                start(&db, &task);
                db.store_result(&task, finding).expect("writable");
                assert_eq!(db.restore_results(WINDOW), Ok(vec![]), "nothing is replaced yet");
                ask(&mut schema, kind, clock);
                assert!(db.result(&task).expect("readable").is_some(), "whoever follows the task reads its own result");
                assert_eq!(db.restore_results(WINDOW).expect("writable").len(), 1, "{kind} {clock}");
                assert_eq!(row(&mut schema, kind), expected, "{kind} {clock}");
                assert_eq!(db.restore_results(WINDOW), Ok(vec![]));
            }
        }
    }
}

#[test]
fn nothing_is_restored_while_a_newer_attempt_may_still_end() {
    for kind in [TaskKind::Spec, TaskKind::Discover] {
        let mut schema = Schema::new();
        let db = schema.ready();
        let (old, newer) = (new(kind, "old"), new(kind, "newer"));
        start(&db, &old);
        db.store_result(&old, Finding::Document("[0]")).expect("writable");
        start(&db, &newer);
        ask(&mut schema, kind, "-5 minutes");
        assert_eq!(db.restore_results(WINDOW), Ok(vec![]), "{kind}");
        db.store_result(&newer, Finding::Document("[1]")).expect("writable");
        ask(&mut schema, kind, "-5 minutes");
        assert_eq!(db.restore_results(WINDOW).expect("writable").len(), 1, "{kind}");
        assert!(row(&mut schema, kind).contains("[1]"), "{kind}");
        // The process that accepted it was killed.
        start(&db, &new(kind, "lost"));
        schema.sql(&format!(
            "UPDATE {}.attempt SET started_at = now() - interval '1 hour' WHERE task_id = 'lost'",
            schema.own()
        ));
        ask(&mut schema, kind, "5 minutes");
        assert_eq!(db.restore_results(WINDOW).expect("writable").len(), 1, "{kind}");
    }
}

#[test]
fn of_two_attempts_the_newer_one_wins_whatever_the_clocks_are() {
    for kind in KINDS {
        let other = match kind {
            TaskKind::Check => Finding::Check { succeeded: false, message: Some("denied") },
            _ => Finding::Document("[0]"),
        };
        let [(good, expected), (failure, _)] = findings(kind);
        for (label, old_ends_last) in [("in order", false), ("the older one ends last", true)] {
            for skew in ["2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z"] {
                let mut schema = Schema::new();
                let db = schema.ready();
                let (old, newer) = (new(kind, "old"), attempt(kind, "newer", skew));
                start(&db, &old);
                start(&db, &newer);
                for is_old in if old_ends_last { [false, true] } else { [true, false] } {
                    ask(&mut schema, kind, "5 minutes");
                    let (task, finding) = if is_old { (&old, other) } else { (&newer, good) };
                    db.store_result(task, finding).expect("writable");
                    db.restore_results(WINDOW).expect("writable");
                }
                if kind != TaskKind::Check || !old_ends_last {
                    assert_eq!(row(&mut schema, kind), expected, "{kind}, {label}, {skew}");
                }
                let result = |task| db.result(task).expect("readable").expect("a result");
                if kind == TaskKind::Check {
                    assert_eq!((result(&old).succeeded, result(&newer).succeeded), (false, true), "{label}");
                } else {
                    assert_eq!(result(&newer).document.as_deref(), Some("[1]"), "{kind}, {label}");
                    if old_ends_last || kind == TaskKind::Spec {
                        assert_eq!(result(&old).document.as_deref(), Some("[0]"), "{kind}, {label}: its own result");
                    }
                }
                db.store_result(&newer, failure).expect("writable");
                assert!(result(&newer).succeeded, "a failure does not replace a result of the same attempt");
            }
        }
    }
}

#[test]
fn a_failure_waits_for_a_newer_attempt() {
    for kind in KINDS {
        let mut schema = Schema::new();
        let db = schema.ready();
        let (old, newer) = (new(kind, "old"), new(kind, "newer"));
        start(&db, &old);
        start(&db, &newer);
        ask(&mut schema, kind, "0");
        let waiting = row(&mut schema, kind);
        db.store_result(&old, Finding::Failure("IMAGE_PULL: no answer")).expect("writable");
        assert_eq!(row(&mut schema, kind), waiting, "{kind}");
        let stored = db.result(&old).expect("readable").expect("whoever follows it gets its end");
        assert_eq!(stored.description.as_deref(), Some("IMAGE_PULL: no answer"));
        db.store_result(&newer, Finding::Failure("INIT_TIMEOUT: 180 s")).expect("writable");
        db.store_result(&newer, Finding::Failure("CANCELLED: the task was cancelled")).expect("writable");
        assert!(row(&mut schema, kind).ends_with("INIT_TIMEOUT: 180 s"), "{kind}: the first cause");
    }
}

#[test]
fn a_failed_spec_keeps_the_good_one_that_the_console_has_erased() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let (good, failed) = (new(TaskKind::Spec, "good"), new(TaskKind::Spec, "failed"));
    start(&db, &good);
    db.store_result(&good, Finding::Document("[1]")).expect("writable");
    start(&db, &failed);
    ask_for_spec(&mut schema, "5 minutes");
    db.store_result(&failed, Finding::Failure("IMAGE_PULL: no answer")).expect("writable");
    assert_eq!(row(&mut schema, TaskKind::Spec), "[1] IMAGE_PULL: no answer");
    ask_for_spec(&mut schema, "5 minutes");
    assert_eq!(db.restore_results(WINDOW).expect("writable").len(), 1);
    assert_eq!(row(&mut schema, TaskKind::Spec), "[1] IMAGE_PULL: no answer");
}

#[test]
fn the_row_of_a_foreign_sidecar_is_the_result_of_its_attempt() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let (ended, other) = (new(TaskKind::Spec, "t"), attempt(TaskKind::Spec, "other", "2026-01-01T00:00:00Z"));
    start(&db, &ended);
    start(&db, &other);
    ask_for_spec(&mut schema, "5 minutes");
    let at = ended.started_at;
    schema.sql(&format!("UPDATE source_spec SET specs = '[1]', error = '', timestamp = '{at}' WHERE specs IS NULL"));
    let stored = db.result(&ended).expect("readable").expect("a result");
    assert_eq!((stored.succeeded, stored.document.as_deref()), (true, Some("[1]")));
    assert_eq!(db.result(&other), Ok(None), "not of another attempt");
    ask_for_spec(&mut schema, "5 minutes");
    db.store_result(&other, Finding::Failure("NO_RESULT: none")).expect("writable");
    assert_eq!(row(&mut schema, TaskKind::Spec), "[1] NO_RESULT: none");
}

#[test]
fn a_running_catalog_is_stale_by_the_clock_of_the_database() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let task = new(TaskKind::Discover, "t");
    start(&db, &task);
    ask_for_catalog(&mut schema, "-2 hours");
    assert_eq!(db.fail_stale_catalogs(STALE), Ok(vec![]), "it has just started");
    schema.sql(&format!("UPDATE {}.attempt SET started_at = now() - interval '21 minutes'", schema.own()));
    assert_eq!(db.fail_stale_catalogs(STALE).expect("writable").len(), 1);
    let without = Schema::new();
    let mut without = without;
    let db = without.ready_without_own();
    ask_for_catalog(&mut without, "-25 minutes");
    assert_eq!(db.fail_stale_catalogs(STALE), Ok(vec![]), "its time may be wrong by as much");
    ask_for_catalog(&mut without, "-2 hours");
    assert_eq!(db.fail_stale_catalogs(STALE).expect("writable").len(), 1);
}

#[test]
fn the_outcome_of_a_read_is_restored() {
    for clock in CLOCKS {
        let mut schema = Schema::new();
        let db = schema.ready();
        let task = task("t");
        db.start_task(&task, None, ConcurrencyPolicy::Forbid).expect("writable");
        let error = Some("CONNECTOR_FAILED: no");
        db.finish_task(&task, Writer::Sidecar, TaskStatus::Failed, None, error).expect("writable");
        ask_for_read(&mut schema, clock);
        assert_eq!(db.restore_results(WINDOW), Ok(vec!["t".to_owned()]), "{clock}");
        assert_eq!(row(&mut schema, TaskKind::Read), "FAILED CONNECTOR_FAILED: no");
        assert_eq!(db.restart_task(&task, "CONNECTOR_FAILED: no"), Ok(crate::db::StartOutcome::Started));
        assert_eq!(db.restore_results(WINDOW), Ok(vec![]), "it runs again");
    }
}

#[test]
fn a_controller_does_not_replace_the_outcome_of_a_read_that_the_console_has_hidden() {
    for clock in CLOCKS {
        let mut schema = Schema::new();
        let db = schema.ready();
        let task = task("t");
        db.start_task(&task, None, ConcurrencyPolicy::Forbid).expect("writable");
        db.finish_task(&task, Writer::Sidecar, TaskStatus::Success, None, None).expect("writable");
        ask_for_read(&mut schema, clock);
        let failure = Some("SIDECAR_FAILED: the task ended without a result");
        let counts = db.finish_task(&task, Writer::Controller, TaskStatus::Failed, None, failure);
        assert_eq!(counts, Ok(false), "{clock}");
        assert_eq!(row(&mut schema, TaskKind::Read), "SUCCESS", "{clock}");
        ask_for_read(&mut schema, clock);
        let stored = db.task_with_outcome("t").expect("readable").expect("a row");
        assert_eq!(stored.status, Some(TaskStatus::Success), "{clock}");
    }
}

#[test]
fn attempts_are_deleted_but_for_the_last_specification() {
    let mut schema = Schema::new();
    let db = schema.ready();
    for (number, kind) in KINDS.into_iter().enumerate() {
        let task = new(kind, &number.to_string());
        start(&db, &task);
        db.store_result(&task, findings(kind)[0].0).expect("writable");
    }
    let own = schema.own();
    schema.sql(&format!("UPDATE {own}.attempt SET started_at = now() - interval '8 days', finished_at = started_at"));
    let kept = Retention { task_rows: 1, task_age: Duration::MAX, log_age: None };
    assert_eq!(db.trim(&kept, &|| false).expect("writable").own, 2);
    let failed = new(TaskKind::Spec, "failed");
    start(&db, &failed);
    db.store_result(&failed, Finding::Failure("x")).expect("writable");
    let left = format!("SELECT string_agg(task_id, ' ' ORDER BY number) FROM {own}.attempt");
    assert_eq!(schema.value(&left).as_deref(), Some("0 failed"), "the last specification stays");
    let good = new(TaskKind::Spec, "good");
    start(&db, &good);
    db.store_result(&good, Finding::Document("[2]")).expect("writable");
    schema.sql(&format!("UPDATE {own}.attempt SET finished_at = now() - interval '2 hours'"));
    start(&db, &new(TaskKind::Spec, "next"));
    assert_eq!(schema.value(&left).as_deref(), Some("good next"));
}
