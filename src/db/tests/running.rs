//! Running tasks: concurrency policy, heartbeats, and the queries of the service.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::support::{Proxy, Schema, task};
use crate::db::{ConcurrencyPolicy, Db, RequestMark, StartOutcome, StoredTask, Writer};
use crate::failure::Class;
use crate::task::{Task, TaskStatus};

fn of_sync(sync_id: &str, task_id: &str) -> Task {
    Task { sync_id: sync_id.to_owned(), ..task(task_id) }
}

fn finish(db: &Db, task: &Task) {
    db.finish_task(task, Writer::Sidecar, TaskStatus::Success, None, None).expect("writable");
}

fn ids(tasks: &[StoredTask]) -> Vec<&str> {
    tasks.iter().map(|task| task.task_id.as_str()).collect()
}

#[test]
fn forbid_allows_one_running_task_per_sync() {
    let schema = Schema::new();
    let db = schema.ready();
    let start = |task: &Task, concurrency| db.start_task(task, None, concurrency).expect("writable");
    let first = of_sync("s", "first");
    assert_eq!(start(&first, ConcurrencyPolicy::Forbid), StartOutcome::Started);
    assert_eq!(start(&of_sync("s", "second"), ConcurrencyPolicy::Forbid), StartOutcome::SyncBusy("first".to_owned()));
    assert_eq!(db.task("second").expect("readable"), None, "a refused task leaves no row");
    assert!(matches!(start(&first, ConcurrencyPolicy::Forbid), StartOutcome::Exists(_)), "its own id comes first");
    assert_eq!(start(&of_sync("other", "third"), ConcurrencyPolicy::Forbid), StartOutcome::Started);
    assert_eq!(start(&of_sync("s", "concurrent"), ConcurrencyPolicy::Allow), StartOutcome::Started);
    finish(&db, &of_sync("s", "concurrent"));
    finish(&db, &first);
    assert!(
        matches!(start(&first, ConcurrencyPolicy::Forbid), StartOutcome::Exists(stored) if stored.status_text == "SUCCESS")
    );
    assert_eq!(start(&of_sync("s", "second"), ConcurrencyPolicy::Forbid), StartOutcome::Started);
}

#[test]
fn forbid_starts_one_of_several_simultaneous_tasks() {
    let schema = Schema::new();
    let dbs: Vec<Db> = (0..3).map(|_| schema.ready()).collect();
    for round in 0..20 {
        let together = Arc::new(Barrier::new(9));
        let threads: Vec<_> = (0..9)
            .map(|number| {
                let (db, together) = (dbs[number % 3].clone(), Arc::clone(&together));
                thread::spawn(move || {
                    let task = of_sync(&format!("sync {round}"), &format!("{round} {number}"));
                    together.wait();
                    (task.task_id.clone(), db.start_task(&task, None, ConcurrencyPolicy::Forbid).expect("writable"))
                })
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        let new: Vec<_> = results.iter().filter(|(_, started)| *started == StartOutcome::Started).collect();
        let [(winner, _)] = new[..] else { panic!("{results:?}") };
        let busy = results.iter().filter(|(_, started)| *started == StartOutcome::SyncBusy(winner.clone())).count();
        assert_eq!(busy, 8, "{results:?}");
    }
}

#[test]
fn a_start_whose_answer_was_lost_counts_once() {
    let schema = Schema::new();
    schema.ready();
    let proxy = Proxy::start();
    let db = schema.open_through(&proxy);
    proxy.lose_next_answer();
    assert_eq!(db.start_task(&task("t"), None, ConcurrencyPolicy::Forbid), Ok(StartOutcome::Started));
    assert!(proxy.has_lost());
    assert!(matches!(db.start_task(&task("t"), None, ConcurrencyPolicy::Forbid), Ok(StartOutcome::Exists(_))));
}

#[test]
fn tasks_of_sync_are_listed_newest_first() {
    let mut schema = Schema::new();
    let db = schema.ready();
    for (id, sync_id) in [("a", "s"), ("c", "s"), ("b", "s"), ("d", "s"), ("x", "other")] {
        db.start_task(&of_sync(sync_id, id), None, ConcurrencyPolicy::Allow).expect("writable");
    }
    schema.sql("UPDATE source_task SET started_at = started_at + interval '1 s' WHERE task_id = 'a'");
    assert_eq!(ids(&db.tasks_of_sync("s", 3).expect("readable")), ["a", "d", "c"]);
    assert_eq!(db.tasks_of_sync("s", 100).expect("readable").len(), 4);
    assert_eq!(db.tasks_of_sync("unknown", 3).expect("readable"), []);
    schema.sql(
        r#"INSERT INTO source_task (sync_id, task_id, package, version, started_at, updated_at, status, description)
           SELECT 'long', n, 'p', '1', now() - n * interval '1 s', now(), 'SUCCESS',
                  '{"s": {"status": "SUCCESS", "error": "' || repeat('x', 60000) || '"}}' FROM generate_series(1, 100) n"#,
    );
    let tasks = db.tasks_of_sync("long", 500).expect("readable");
    let listed = tasks.iter().take_while(|task| task.description.is_some()).count();
    assert_eq!((tasks.len(), listed), (100, 69), "4 MiB of descriptions, those of the newest tasks");
}

#[test]
fn heartbeats_update_only_running_tasks() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql(
        "INSERT INTO source_task (sync_id, task_id, package, version, status, updated_at)
         SELECT 's', n, 'p', '1', CASE WHEN n % 10 = 0 THEN 'SUCCESS' ELSE 'RUNNING' END, now() - interval '1 hour'
         FROM generate_series(1, 2500) AS n",
    );
    let names: Vec<String> = (1..=2499).chain([9999]).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(db.heartbeats(&names), Ok(2250));
    let late = "SELECT string_agg(task_id, ' ' ORDER BY task_id::int) FROM source_task
                WHERE updated_at < now() - interval '1 minute' AND (status = 'RUNNING' OR task_id = '10')";
    assert_eq!(schema.value(late).as_deref(), Some("10"), "2500 is not running");
    assert_eq!(db.heartbeats(&[]), Ok(0));
    // A locked row is skipped.
    schema.sql("BEGIN; UPDATE source_task SET status = 'FAILED' WHERE task_id = '1'");
    assert_eq!(db.heartbeats(&["1", "2"]), Ok(1));
    schema.sql("COMMIT");
    assert_eq!(db.task("1").expect("readable").map(|task| task.status_text).as_deref(), Some("FAILED"));
}

#[test]
fn cancelled_or_failed_finds_cancelled_tasks() {
    let mut schema = Schema::new();
    let db = schema.ready();
    schema.sql(
        "INSERT INTO source_task (sync_id, task_id, package, version, status)
         SELECT 's', n, 'p', '1', CASE WHEN n % 1000 = 0 THEN 'CANCELLED' ELSE 'RUNNING' END
         FROM generate_series(1, 3000) AS n",
    );
    let names: Vec<String> = (1..=2500).chain([9999]).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected = ["1000", "2000"].map(str::to_owned).into_iter().collect();
    assert_eq!(db.cancelled_or_failed(&names, Class::ClusterUnreachable), Ok(expected), "3000 was not passed");
    assert_eq!(db.cancelled_or_failed(&[], Class::ClusterUnreachable), Ok(std::collections::HashSet::new()));
}

#[test]
fn idle_tasks_of_an_installation_have_no_heartbeat() {
    let mut schema = Schema::new();
    let db = schema.ready();
    let start = |id: &str, by: serde_json::Value| {
        let task = Task { started_by: Some(by), ..task(id) };
        db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable");
        task
    };
    // Of a version, or a process, that stores the request in this column.
    let ours = serde_json::json!({"type": "manual", "syncctl": {"fleet": "ours"}});
    start("idle", ours.clone());
    start("alive", ours.clone());
    start("theirs", serde_json::json!({"syncctl": {"fleet": "theirs"}}));
    start("text", serde_json::json!("syncctl"));
    start("flat", serde_json::json!({"syncctl": "ours"}));
    db.start_task(&Task { started_by: None, ..task("unmarked") }, None, ConcurrencyPolicy::Allow).expect("writable");
    finish(&db, &start("done", ours));
    let mark = RequestMark { fingerprint: "f".to_owned(), installation: "ours".to_owned() };
    db.start_task(&task("marked"), Some(&mark), ConcurrencyPolicy::Allow).expect("writable");
    schema.sql(
        "UPDATE source_task SET started_by = '{\"trigger\": \"manual\"}' WHERE task_id = 'marked';
         UPDATE source_task SET updated_at = now() - interval '2 minutes' WHERE task_id <> 'alive'",
    );
    let found = |installation: &str, idle_for| db.idle_tasks_of(installation, idle_for).expect("readable");
    assert_eq!(ids(&found("ours", Duration::from_mins(1))), ["idle", "marked"]);
    assert_eq!(ids(&found("ours", Duration::from_mins(3))), Vec::<&str>::new());
    assert_eq!(ids(&found("theirs", Duration::from_mins(1))), ["theirs"]);
    assert_eq!(ids(&found("", Duration::ZERO)), Vec::<&str>::new());
}

#[test]
fn restart_task_needs_the_same_failure_and_no_other_running_task() {
    let schema = Schema::new();
    let db = schema.ready();
    let (rejected, error) = (of_sync("s", "rejected"), "CLUSTER_UNREACHABLE: no answer");
    db.start_task(&rejected, None, ConcurrencyPolicy::Forbid).expect("writable");
    assert!(matches!(db.restart_task(&rejected, error), Ok(StartOutcome::Exists(_))), "it runs");
    db.finish_task(&rejected, Writer::Controller, TaskStatus::Failed, None, Some(error)).expect("writable");
    let ids = ["rejected"].into_iter().map(str::to_owned).collect();
    assert_eq!(db.cancelled_or_failed(&["rejected"], Class::ClusterUnreachable), Ok(ids));
    assert!(matches!(db.restart_task(&rejected, "another error"), Ok(StartOutcome::Exists(_))));
    let other = of_sync("s", "other");
    db.start_task(&other, None, ConcurrencyPolicy::Forbid).expect("writable");
    assert_eq!(db.restart_task(&rejected, error), Ok(StartOutcome::SyncBusy("other".to_owned())));
    finish(&db, &other);
    assert_eq!(db.restart_task(&rejected, error), Ok(StartOutcome::Started));
    let row = db.task("rejected").expect("readable").expect("a row");
    assert_eq!((row.status, row.error), (Some(TaskStatus::Running), None));
    assert!(matches!(db.restart_task(&rejected, error), Ok(StartOutcome::Exists(_))), "it runs already");
}
