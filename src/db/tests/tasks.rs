//! Rows of `source_task`, from the start of a task to its outcome.

use std::thread;
use std::time::Duration;

use super::support::{Schema, reports, task};
use crate::db::{ConcurrencyPolicy, StartOutcome, Writer};
use crate::failure::Failure;
use crate::task::{StreamStatus, Task, TaskMetrics, TaskStatus, to_millis};

#[test]
fn start_task_refuses_a_known_task_id() {
    let schema = Schema::new();
    let db = schema.ready();
    let task = task("t");
    assert_eq!(db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable"), StartOutcome::Started);
    let StartOutcome::Exists(stored) = db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable") else {
        panic!("the row exists")
    };
    assert_eq!(stored.status, Some(TaskStatus::Running));
    assert_eq!(stored.started_at, to_millis(task.started_at));
    assert_eq!(stored.started_by.as_deref(), Some(r#"{"type": "manual"}"#));
    assert_eq!(Some(*stored), db.task("t").expect("readable"));
    assert_eq!(db.task("other").expect("readable"), None);
}

#[test]
fn progress_and_heartbeats_need_a_running_row() {
    let schema = Schema::new();
    let db = schema.ready();
    let progress = reports(&[("b", StreamStatus::Running), ("a", StreamStatus::Pending)]);
    assert!(!db.heartbeat("t").expect("writable") && !db.report_progress("t", &progress, None).expect("writable"));
    assert_eq!(db.task("t").expect("readable"), None, "a heartbeat inserts no row");
    db.start_task(&task("t"), None, ConcurrencyPolicy::Allow).expect("writable");
    assert!(db.report_progress("t", &progress, None).expect("writable"));
    let before = db.task("t").expect("readable").expect("stored");
    assert_eq!(before.streams, progress, "in the order of the catalog");
    thread::sleep(Duration::from_millis(5));
    assert!(db.heartbeat("t").expect("writable"));
    assert!(db.task("t").expect("readable").expect("stored").updated_at > before.updated_at);
    assert!(db.finish_task(&task("t"), Writer::Sidecar, TaskStatus::Success, None, None).expect("writable"));
    assert!(!db.heartbeat("t").expect("writable") && !db.report_progress("t", &progress, None).expect("writable"));
}

#[test]
fn the_outcome_depends_on_the_precedence_of_writers() {
    use TaskStatus::{Cancelled, Failed, Success, TimeExceeded};
    use Writer::{Controller, Sidecar, TerminatedSidecar};
    let schema = Schema::new();
    let db = schema.ready();
    for (label, first, second, expected) in [
        ("a deleted Pod does not replace a success", (Sidecar, Success), (Controller, Failed), Success),
        ("a cancellation survives the sidecar", (Controller, Cancelled), (Sidecar, Success), Cancelled),
        ("an exceeded deadline survives the sidecar", (Controller, TimeExceeded), (Sidecar, Success), TimeExceeded),
        ("the sidecar replaces the check for stale tasks", (Controller, Failed), (Sidecar, Success), Success),
        (
            "a terminated sidecar does not replace the reason",
            (Controller, Failed),
            (TerminatedSidecar, Cancelled),
            Failed,
        ),
        ("the first controller wins", (Controller, Failed), (Controller, Cancelled), Failed),
    ] {
        let task = task(label);
        db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable");
        assert!(db.finish_task(&task, first.0, first.1, None, None).expect("writable"), "{label}");
        let counts = db.finish_task(&task, second.0, second.1, None, Some("e")).expect("writable");
        assert_eq!(counts, second.1 == expected, "{label}");
        assert_eq!(db.task(label).expect("readable").and_then(|task| task.status), Some(expected), "{label}");
    }
}

#[test]
fn the_cause_that_the_controller_knows_replaces_that_of_a_terminated_sidecar() {
    let schema = Schema::new();
    let db = schema.ready();
    let interrupted = Failure::terminated();
    let mut progress = reports(&[("b", StreamStatus::Failed), ("a", StreamStatus::Success)]);
    progress["b"].error = Some(interrupted.text.clone());
    let provisional = interrupted.to_string();
    for controller_first in [false, true] {
        for (status, error) in [
            (TaskStatus::Failed, "POD_DELETED: another client"),
            (TaskStatus::TimeExceeded, "TIME_EXCEEDED: after 9 s"),
            (TaskStatus::Cancelled, "CANCELLED: by a user"),
        ] {
            let label = format!("{status} {controller_first}");
            let task = task(&label);
            db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable");
            let sidecar = || {
                let (writer, status) = (Writer::TerminatedSidecar, TaskStatus::Failed);
                db.finish_task(&task, writer, status, Some(&progress), Some(&provisional)).expect("writable")
            };
            let controller = || db.finish_task(&task, Writer::Controller, status, None, Some(error)).expect("writable");
            let counted = if controller_first { (controller(), sidecar()) } else { (sidecar(), controller()) };
            assert_eq!(counted, (true, !controller_first), "{label}");
            let row = db.task(&label).expect("readable").expect("stored");
            assert_eq!((row.status, row.error.as_deref()), (Some(status), Some(error)), "{label}");
            let stream = &row.streams["b"];
            let (expected, error) = match status {
                TaskStatus::Cancelled => (StreamStatus::Cancelled, None),
                TaskStatus::TimeExceeded => (StreamStatus::TimeExceeded, None),
                _ => (StreamStatus::Failed, Some("another client")),
            };
            assert_eq!((stream.status, stream.error.as_deref()), (expected, error), "{label}");
            assert_eq!(row.streams["a"].status, StreamStatus::Success, "{label}");
        }
    }
}

#[test]
fn a_concurrent_controller_reads_the_outcome_of_the_sidecar() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), None, ConcurrencyPolicy::Allow).expect("writable");
    schema.sql("BEGIN; UPDATE source_task SET status = 'SUCCESS'");
    let controller = {
        let db = db.clone();
        thread::spawn(move || db.finish_task(&task("t"), Writer::Controller, TaskStatus::Failed, None, None))
    };
    thread::sleep(Duration::from_millis(200));
    schema.sql("COMMIT");
    assert_eq!(controller.join().expect("no panic"), Ok(false));
    assert_eq!(db.task("t").expect("readable").and_then(|task| task.status), Some(TaskStatus::Success));
}

#[test]
fn finish_task_inserts_a_missing_row() {
    let schema = Schema::new();
    let db = schema.ready();
    let error = Some("INIT_TIMEOUT: no\0 start");
    assert!(db.finish_task(&task("t"), Writer::Controller, TaskStatus::Failed, None, error).expect("writable"));
    let stored = db.task("t").expect("readable").expect("stored");
    assert_eq!(stored.error.as_deref(), Some(r"INIT_TIMEOUT: no\u0000 start"));
    assert_eq!((stored.status, stored.started_at), (Some(TaskStatus::Failed), to_millis(task("t").started_at)));
}

#[test]
fn the_controller_closes_open_streams() {
    let schema = Schema::new();
    let db = schema.ready();
    let task = task("t");
    db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable");
    let open = [("b", StreamStatus::Running), ("a", StreamStatus::Success), ("c", StreamStatus::Pending)];
    db.report_progress("t", &reports(&open), None).expect("writable");
    db.finish_task(&task, Writer::Controller, TaskStatus::Cancelled, None, None).expect("writable");
    let closed = [("b", StreamStatus::Cancelled), ("a", StreamStatus::Success), ("c", StreamStatus::Cancelled)];
    assert_eq!(db.task("t").expect("readable").expect("stored").streams, reports(&closed));
    // A late outcome of the sidecar does not count, but its stream reports do.
    let last = [("b", StreamStatus::Partial), ("a", StreamStatus::Success), ("c", StreamStatus::Cancelled)];
    db.finish_task(&task, Writer::Sidecar, TaskStatus::Success, Some(&reports(&last)), None).expect("writable");
    let row = db.task(&task.task_id).expect("readable").expect("a row");
    assert_eq!((row.status, row.streams), (Some(TaskStatus::Cancelled), reports(&last)));
}

#[test]
fn fail_stale_tasks_fails_tasks_without_heartbeat() {
    let mut schema = Schema::new();
    let db = schema.ready();
    for id in ["lost", "alive", "done"] {
        db.start_task(&task(id), None, ConcurrencyPolicy::Allow).expect("writable");
    }
    db.report_progress("lost", &reports(&[("a", StreamStatus::Running)]), None).expect("writable");
    db.finish_task(&task("done"), Writer::Sidecar, TaskStatus::Success, None, None).expect("writable");
    schema.sql("UPDATE source_task SET updated_at = now() - interval '61 minutes' WHERE task_id <> 'alive'");
    assert_eq!(db.fail_stale_tasks(Duration::from_hours(1)).expect("writable"), ["lost"]);
    assert_eq!(db.fail_stale_tasks(Duration::from_hours(1)).expect("writable"), Vec::<String>::new());
    let lost = db.task("lost").expect("readable").expect("stored");
    assert_eq!(lost.error.as_deref(), Some("ABANDONED: no heartbeat for 60 minutes"));
    let mut expected = reports(&[("a", StreamStatus::Failed)]);
    expected["a"].error = Some("no heartbeat for 60 minutes".to_owned());
    assert_eq!(lost.streams, expected);
    assert_eq!(db.task("alive").expect("readable").and_then(|task| task.status), Some(TaskStatus::Running));
}

#[test]
fn a_listener_gets_notifications_of_its_task_only() {
    let schema = Schema::new();
    let db = schema.ready();
    // Channels belong to the database, not to the schema.
    let id = schema.name.clone();
    let mut listener = db.listen(&id).expect("listening");
    db.notify("another task").expect("notified");
    assert!(!listener.wait(Duration::from_millis(200)));
    let waiting = thread::spawn(move || (listener.wait(Duration::from_mins(5)), listener));
    thread::sleep(Duration::from_millis(100));
    db.notify(&id).expect("notified");
    let (notified, mut listener) = waiting.join().expect("no panic");
    assert!(notified);
    db.notify(&id).expect("notified");
    db.notify(&id).expect("notified");
    assert!(listener.wait(Duration::from_mins(5)), "notifications between two waits count");
}

#[test]
fn metrics_stay_until_newer_ones_are_reported() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.start_task(&task("t"), None, ConcurrencyPolicy::Allow).expect("writable");
    let progress = reports(&[("a", StreamStatus::Running)]);
    let used = TaskMetrics { cpu_seconds: 12.5, memory_bytes: 3 << 30 };
    db.report_progress("t", &progress, Some(&used)).expect("writable");
    db.report_progress("t", &progress, None).expect("writable");
    let stored = || db.task("t").expect("readable").expect("stored").metrics.map(|text| serde_json::from_str(&text));
    assert!(matches!(stored(), Some(Ok(stored)) if used == stored), "{:?}", stored());
    let columns = "SELECT format('%s %s', metrics->'cpu_usage', metrics->'mem_usage') FROM source_task";
    assert_eq!(schema.value(columns).as_deref(), Some("12.5 3221225472"));
    let more = TaskMetrics { cpu_seconds: 13.0, memory_bytes: 1 };
    db.report_progress("t", &progress, Some(&more)).expect("writable");
    db.finish_task(&task("t"), Writer::Sidecar, TaskStatus::Success, Some(&progress), None).expect("writable");
    assert!(matches!(stored(), Some(Ok(stored)) if more == stored), "{:?}", stored());
}

#[test]
fn tables_without_metrics_and_error_are_used() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let metrics = TaskMetrics { cpu_seconds: 1.0, memory_bytes: 2 };
    let progress = reports(&[("a", StreamStatus::Success), ("b", StreamStatus::Failed), ("c", StreamStatus::Pending)]);
    let before = Task { sync_id: "another".to_owned(), ..task("before") };
    db.start_task(&before, None, ConcurrencyPolicy::Allow).expect("writable");
    // While the process runs, and before it starts.
    schema.sql("ALTER TABLE source_task DROP COLUMN metrics, DROP COLUMN error");
    let other = schema.open(Duration::from_secs(20));
    other.ensure_schema().expect("both columns are optional");
    for (number, db) in [&db, &other].into_iter().enumerate() {
        let id = |name: &str| format!("{name} {number}");
        for name in ["text", "map", "done"] {
            let started = db.start_task(&task(&id(name)), None, ConcurrencyPolicy::Allow);
            assert_eq!(started, Ok(StartOutcome::Started));
            let description = format!("SELECT description FROM source_task WHERE task_id = '{}'", id(name));
            assert!(schema.value(&description).is_some(), "that console shows no list with an empty description");
        }
        assert_eq!(db.report_progress(&id("map"), &progress, Some(&metrics)), Ok(true));
        let error = "CLUSTER_UNREACHABLE: no answer";
        let finish = |name: &str, status, reports, error| {
            db.finish_task(&task(&id(name)), Writer::Controller, status, reports, error).expect("writable")
        };
        assert!(finish("text", TaskStatus::Failed, None, Some(error)));
        assert!(finish("map", TaskStatus::Failed, None, Some(error)));
        assert!(finish("done", TaskStatus::Success, Some(&progress), None));
        assert!(!finish("done", TaskStatus::Failed, None, Some(error)), "the first outcome stays");
        let stored = |name: &str| db.task(&id(name)).expect("readable").expect("a row");
        let (text, map, done) = (stored("text"), stored("map"), stored("done"));
        assert_eq!((text.error.as_deref(), text.metrics), (Some(error), None));
        assert_eq!(map.error.as_deref(), Some(error), "of the stream that has failed");
        let errors: Vec<_> = map.streams.values().map(|report| report.error.as_deref()).collect();
        assert_eq!(errors[..2], [None, Some(error)]);
        assert!(errors[2].is_some_and(|error| error.ends_with("no answer")), "{errors:?}");
        assert_eq!((done.status, done.error, done.streams.len()), (Some(TaskStatus::Success), None, 3));
        assert_eq!(db.restart_task(&task(&id("text")), error), Ok(StartOutcome::Started));
        assert_eq!(stored("text").error, None);
        assert!(finish("text", TaskStatus::Failed, None, Some(error)));
        for controller_first in [true, false] {
            let name = if controller_first { "late" } else { "early" };
            db.start_task(&task(&id(name)), None, ConcurrencyPolicy::Allow).expect("writable");
            let mut interrupted = reports(&[("a", StreamStatus::Failed)]);
            interrupted["a"].error = Some(Failure::terminated().text);
            let sidecar = || {
                let (writer, error) = (Writer::TerminatedSidecar, Failure::terminated().to_string());
                db.finish_task(&task(&id(name)), writer, TaskStatus::Failed, Some(&interrupted), Some(&error))
            };
            if controller_first {
                finish(name, TaskStatus::Failed, None, Some("IMAGE_PULL: no answer"));
                sidecar().expect("writable");
            } else {
                sidecar().expect("writable");
                assert!(Failure::from_stored(&stored(name).error.expect("an error")) == Failure::terminated());
                assert!(finish(name, TaskStatus::Failed, None, Some("IMAGE_PULL: no answer")));
            }
            assert!(stored(name).error.is_some_and(|error| error.contains("no answer")), "{name}");
        }
        assert_eq!(db.tasks_of_sync("sync", 50).map(|tasks| tasks.len()), Ok(5 + 5 * number));
    }
    schema.sql("ALTER TABLE source_task ADD COLUMN metrics jsonb, ADD COLUMN error text");
    let late = task("late");
    db.start_task(&late, None, ConcurrencyPolicy::Allow).expect("writable");
    db.report_progress("late", &progress, Some(&metrics)).expect("writable");
    db.finish_task(&late, Writer::Controller, TaskStatus::Failed, None, Some("INTERNAL: x")).expect("writable");
    let row = db.task("late").expect("readable").expect("a row");
    assert_eq!(
        (row.error.as_deref(), row.metrics.is_some()),
        (Some("INTERNAL: x"), true),
        "the console has added them"
    );
}
