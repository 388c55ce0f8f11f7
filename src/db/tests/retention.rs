//! Retention of tasks, log lines and rows of the own schema.

use std::cell::Cell;
use std::time::Duration;

use super::support::Schema;
use crate::db::retention::Trimmed;
use crate::db::{ConcurrencyPolicy, Db, Retention};

const DAY: Duration = Duration::from_hours(24);

fn trim(db: &Db, task_rows: u64, task_age: Duration, log_age: Option<Duration>) -> Trimmed {
    db.trim(&Retention { task_rows, task_age, log_age }, &|| false).expect("writable")
}

/// Inserts tasks with the numbers `from` to `to` as ids, which are not quite that many days old.
fn fill_tasks(schema: &mut Schema, sync_id: &str, from: u32, to: u32) {
    schema.sql(&format!(
        "INSERT INTO source_task (sync_id, task_id, package, version, status, started_at)
         SELECT '{sync_id}', '{sync_id} ' || n, 'p', '1', 'SUCCESS', now() - make_interval(days => n, hours => -1)
         FROM generate_series({from}, {to}) AS n"
    ));
}

/// Number, youngest and oldest task of a sync, by their age in days.
fn tasks(schema: &mut Schema, sync_id: &str) -> Option<String> {
    let age = "split_part(task_id, ' ', 2)::int";
    let columns = format!("format('%s: %s to %s', count(*), min({age}), max({age}))");
    schema.value(&format!("SELECT {columns} FROM source_task WHERE sync_id = '{sync_id}'"))
}

#[test]
fn tasks_are_deleted_beyond_both_limits() {
    let mut schema = Schema::new();
    let db = schema.ready();
    fill_tasks(&mut schema, "many", 1, 5000);
    fill_tasks(&mut schema, "few-and-old", 100, 110);
    fill_tasks(&mut schema, "young", 1, 50);
    for number in 0..210 {
        fill_tasks(&mut schema, &format!("sync-{number:03}"), 55, 80);
    }
    assert_eq!(trim(&db, 20, 60 * DAY, None).tasks, 4940 + 210 * 6);
    assert_eq!(tasks(&mut schema, "many").as_deref(), Some("60: 1 to 60"), "all that are young");
    assert_eq!(tasks(&mut schema, "few-and-old").as_deref(), Some("11: 100 to 110"), "the newest of them");
    assert_eq!(tasks(&mut schema, "young").as_deref(), Some("50: 1 to 50"));
    assert_eq!(tasks(&mut schema, "sync-209").as_deref(), Some("20: 55 to 74"));
    assert_eq!(trim(&db, 20, 60 * DAY, None), Trimmed::default());
    assert_eq!(trim(&db, u64::MAX, Duration::MAX, Some(Duration::MAX)), Trimmed::default(), "no limit is too large");
    schema.sql("UPDATE source_task SET status = 'RUNNING' WHERE sync_id = 'few-and-old' AND task_id LIKE '%110'");
    trim(&db, 1, DAY, None);
    let left =
        "SELECT string_agg(task_id, ', ' ORDER BY started_at DESC) FROM source_task WHERE sync_id = 'few-and-old'";
    assert_eq!(schema.value(left).as_deref(), Some("few-and-old 100, few-and-old 110"), "not a running one");
}

#[test]
fn the_record_of_a_task_is_deleted_with_its_row() {
    let mut schema = Schema::new();
    let db = schema.ready();
    for id in ["a", "b", "c"] {
        let task = super::support::task(id);
        db.start_task(&task, None, ConcurrencyPolicy::Allow).expect("writable");
    }
    let spec = super::support::attempt(crate::task::TaskKind::Spec, "spec", "2026-01-01T00:00:00Z");
    db.start_attempt(&spec, None).expect("writable");
    let own = schema.own();
    schema.sql(&format!(
        "UPDATE source_task SET status = 'SUCCESS', started_at = now() - make_interval(days => ascii(task_id), hours => -1);
         UPDATE {own}.task SET created_at = now() - interval '90 days';
         UPDATE {own}.attempt SET started_at = now() - interval '90 days'"
    ));
    assert_eq!(trim(&db, 1, 98 * DAY, None), Trimmed { tasks: 1, logs: 0, own: 1 });
    let records = format!("SELECT string_agg(task_id, ' ' ORDER BY task_id) FROM {own}.task");
    assert_eq!(schema.value(&records).as_deref(), Some("a b spec"));
    assert_eq!(trim(&db, 3, 60 * DAY, None), Trimmed { tasks: 0, logs: 0, own: 1 });
    assert_eq!(schema.value(&records).as_deref(), Some("a b"), "a spec has no row");
}

/// Inserts `count` lines one second apart, the last one now. Their messages are their numbers.
fn fill_logs(schema: &mut Schema, count: u32) {
    schema.sql(&format!(
        "INSERT INTO task_log (id, level, logger, message, sync_id, task_id, timestamp)
         SELECT md5(random()::text)::uuid, 'INFO', 'l', n, 's', 't', now() - make_interval(secs => {count} - n)
         FROM generate_series(1, {count}) AS n"
    ));
}

#[test]
fn old_log_lines_are_deleted_and_many_are_kept() {
    let mut schema = Schema::new();
    let db = schema.ready();
    fill_logs(&mut schema, 12_000);
    // With one timestamp, so that a batch ends among them.
    schema.sql("UPDATE task_log SET timestamp = now() - interval '61 days' WHERE message::int <= 11000");
    assert_eq!(trim(&db, 1, DAY, Some(62 * DAY)).logs, 0);
    assert_eq!(trim(&db, 1, DAY, Some(60 * DAY)).logs, 11_000);
    let left = "SELECT format('%s: %s', count(*), min(message::int)) FROM task_log";
    assert_eq!(schema.value(left).as_deref(), Some("1000: 11001"));
}

#[test]
fn the_default_of_log_lines_depends_on_who_has_created_the_table() {
    let old = "UPDATE task_log SET timestamp = now() - interval '61 days'";
    for (label, change, log_age, expected) in [
        ("created by syncctl", "SELECT 1", None, 10),
        ("created by another program", "COMMENT ON TABLE task_log IS NULL", None, 0),
        (
            "created by an earlier version",
            "COMMENT ON TABLE task_log IS NULL;
             ALTER TABLE source_spec ADD connector_type text NOT NULL DEFAULT 'airbyte'",
            None,
            10,
        ),
        ("set for another program", "COMMENT ON TABLE task_log IS NULL", Some(60 * DAY), 10),
        ("switched off", "SELECT 1", Some(Duration::ZERO), 0),
    ] {
        let mut schema = Schema::new();
        let db = schema.ready();
        fill_logs(&mut schema, 10);
        schema.sql(&format!("{old}; {change}"));
        assert_eq!(trim(&db, 1, DAY, log_age).logs, expected, "{label}");
    }
}

#[test]
fn retention_deletes_batches_until_it_is_stopped() {
    let mut schema = Schema::new();
    let db = schema.ready();
    fill_logs(&mut schema, 20_000);
    schema.sql("UPDATE task_log SET timestamp = now() - interval '61 days'");
    fill_tasks(&mut schema, "s", 100, 8000);
    let count = |table: &str, schema: &mut Schema| schema.value(&format!("SELECT count(*) FROM {table}"));
    let (asked, retention) = (Cell::new(0), Retention { task_rows: 1, task_age: DAY, log_age: None });
    // Called before the count of syncs and before each batch.
    let stop = || asked.replace(asked.get() + 1) >= 2;
    db.trim(&retention, &stop).expect("writable");
    let (tasks, logs) = (count("source_task", &mut schema), count("task_log", &mut schema));
    assert_eq!((tasks.as_deref(), logs.as_deref()), (Some("5901"), Some("20000")));
    assert_eq!(db.trim(&retention, &|| true).expect("nothing to do"), Trimmed::default());
    assert_eq!(trim(&db, 1, DAY, None), Trimmed { tasks: 5900, logs: 20_000, own: 0 });
}
