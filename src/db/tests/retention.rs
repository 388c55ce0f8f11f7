//! Retention of log lines.

use std::cell::Cell;
use std::time::Duration;

use super::support::Schema;
use crate::db::log::Trimmed;

const AGE: Duration = Duration::from_hours(60 * 24);

/// Inserts `count` lines one second apart, the last one now. Their messages are their numbers.
fn fill(schema: &mut Schema, sync_id: &str, count: u32) {
    schema.sql(&format!(
        "INSERT INTO task_log (id, level, logger, message, sync_id, task_id, timestamp)
         SELECT md5(random()::text)::uuid, 'INFO', 'l', n, '{sync_id}', 't', now() - make_interval(secs => {count} - n)
         FROM generate_series(1, {count}) AS n"
    ));
}

fn lines(schema: &mut Schema, sync_id: &str) -> Option<String> {
    schema.value(&format!(
        "SELECT format('%s: %s to %s', count(*), min(message::int), max(message::int))
         FROM task_log WHERE sync_id = '{sync_id}'"
    ))
}

#[test]
fn trim_logs_keeps_the_newest_lines_of_each_sync() {
    let mut schema = Schema::new();
    let db = schema.ready();
    fill(&mut schema, "", 120);
    fill(&mut schema, "long", 60_000);
    fill(&mut schema, "short", 100);
    for number in 0..45 {
        fill(&mut schema, &format!("many {number}"), 101);
    }
    let trimmed = db.trim_logs(100, AGE, &|| false).expect("writable");
    assert_eq!(trimmed, Trimmed { by_age: 0, by_size: 20 + 59_900 + 45 });
    assert_eq!(lines(&mut schema, "").as_deref(), Some("100: 21 to 120"));
    assert_eq!(lines(&mut schema, "long").as_deref(), Some("100: 59901 to 60000"));
    assert_eq!(lines(&mut schema, "short").as_deref(), Some("100: 1 to 100"));
    assert_eq!(lines(&mut schema, "many 44").as_deref(), Some("100: 2 to 101"));
    assert_eq!(db.trim_logs(100, AGE, &|| false).expect("writable"), Trimmed::default());
    assert_eq!(db.trim_logs(u64::MAX, Duration::MAX, &|| false).expect("no limit is too large"), Trimmed::default());
    assert_eq!(db.trim_logs(0, AGE, &|| false).expect("writable").by_size, 100 + 100 + 100 + 45 * 100);
    assert_eq!(schema.value("SELECT count(*) FROM task_log").as_deref(), Some("0"));
}

#[test]
fn trim_logs_orders_lines_of_one_millisecond_by_id() {
    let mut schema = Schema::new();
    let db = schema.ready();
    db.insert_logs(&super::support::log_rows(300)).expect("writable");
    schema.sql("UPDATE task_log SET timestamp = now(), message = replace(message, 'line ', '')");
    assert_eq!(db.trim_logs(10, AGE, &|| false).expect("writable").by_size, 290);
    assert_eq!(lines(&mut schema, "sync").as_deref(), Some("10: 290 to 299"));
}

#[test]
fn trim_logs_deletes_old_lines() {
    let mut schema = Schema::new();
    let db = schema.ready();
    fill(&mut schema, "a", 12_000);
    // With one timestamp, so that a batch ends among them.
    schema.sql("UPDATE task_log SET timestamp = now() - interval '61 days' WHERE message::int <= 11000");
    fill(&mut schema, "b", 10);
    schema.sql("UPDATE task_log SET timestamp = now() - interval '62 days' WHERE sync_id = 'b' AND message = '1'");
    let trimmed = db.trim_logs(100_000, AGE, &|| false).expect("writable");
    assert_eq!(trimmed, Trimmed { by_age: 11_001, by_size: 0 });
    assert_eq!(lines(&mut schema, "a").as_deref(), Some("1000: 11001 to 12000"));
    assert_eq!(lines(&mut schema, "b").as_deref(), Some("9: 2 to 10"));
}

#[test]
fn trim_logs_deletes_batches_until_it_is_stopped() {
    let mut schema = Schema::new();
    let db = schema.ready();
    fill(&mut schema, "a", 20_000);
    let asked = Cell::new(0);
    // Called before the batch by age, the count of syncs, the query of a sync, and each of its batches.
    let stop = || asked.replace(asked.get() + 1) >= 4;
    assert_eq!(db.trim_logs(100, AGE, &stop).expect("writable"), Trimmed { by_age: 0, by_size: 5_000 });
    schema.sql("UPDATE task_log SET timestamp = now() - interval '61 days'");
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) >= 2;
    assert_eq!(db.trim_logs(100, AGE, &stop).expect("writable"), Trimmed { by_age: 10_000, by_size: 0 });
    assert_eq!(db.trim_logs(100, AGE, &|| true).expect("nothing to do"), Trimmed::default());
}
