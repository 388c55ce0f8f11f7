//! Reads with a record limit.

use serde_json::{Value, json};

use super::support::{World, record, state};
use crate::task::{ReadOptions, StreamStatus, TaskStatus};

/// Streams of an integer `id`, each as (name, write mode).
fn catalog(streams: &[(&str, &str)]) -> Value {
    let stream = |(name, write): &(&str, &str)| {
        json!({
            "stream": {"name": name, "json_schema": {"properties": {"id": {"type": "integer"}}}},
            "sync_mode": if *write == "overwrite" { "full_refresh" } else { "incremental" },
            "destination_sync_mode": write,
        })
    };
    json!({"streams": streams.iter().map(stream).collect::<Vec<_>>()})
}

fn limit(records: u64) -> ReadOptions {
    ReadOptions { max_records: Some(records), ..ReadOptions::default() }
}

#[test]
fn endless_sources_succeed_at_the_record_limit() {
    let mut world = World::new();
    let task = world.read(limit(1000), &world.postgres(), &catalog(&[("s", "append"), ("idle", "append")]), |source| {
        for id in 1.. {
            source.write(&(record("unknown", id) + &record("s", id)))?;
            if id % 300 == 0 {
                source.write(&state("s", id))?;
            }
        }
        Ok(())
    });
    assert_eq!((task.status, task.error), (Some(TaskStatus::Success), None));
    let (read, idle) = (&task.streams["s"], &task.streams["idle"]);
    assert_eq!((read.status, read.events), (StreamStatus::Partial, 1000));
    assert_eq!(read.error.as_deref(), Some("stopped by --max-records 1000"));
    assert_eq!((idle.status, idle.events), (StreamStatus::Pending, 0));
    assert_eq!(world.texts("SELECT concat(count(*), ' ', min(id), ' ', max(id)) FROM s"), ["1000 1 1000"]);
    assert_eq!(world.texts("SELECT stream || state FROM source_state"), [r#"s{"id": 900}"#]);
    assert_eq!(world.texts("SELECT 'log' FROM task_log WHERE message = 'stopped by --max-records 1000'"), ["log"]);
    assert_eq!(world.texts("SELECT 'error' FROM task_log WHERE level = 'ERROR'"), [""; 0]);
}

#[test]
fn sources_that_stay_open_after_the_record_limit_are_not_awaited() {
    let mut world = World::new();
    world.admin.batch_execute("CREATE TABLE old (id bigint); INSERT INTO old VALUES (7)").expect("a table");
    let catalog = catalog(&[("old", "overwrite"), ("new", "overwrite")]);
    let task = world.read(limit(4), &world.postgres(), &catalog, |source| {
        source.write(&[record("old", 1), record("new", 1), state("new", 1), record("new", 2)].concat())?;
        source.write(&record("old", 2))
    });
    assert_eq!((task.status, task.error), (Some(TaskStatus::Success), None));
    let statuses = ["old", "new"].map(|name| (task.streams[name].status, task.streams[name].events));
    assert_eq!(statuses, [(StreamStatus::Cancelled, 0), (StreamStatus::Partial, 2)]);
    assert_eq!(world.texts("SELECT id::text FROM old"), ["7"], "only a complete stream replaces a table");
    assert_eq!(world.texts("SELECT id::text FROM new ORDER BY id"), ["1", "2"]);
    // A read that resumed from a state would replace the table with the remaining rows.
    assert_eq!(world.db().states("sync").expect("an answer"), []);
}

#[test]
fn sources_that_end_before_the_limit_are_unaffected() {
    for (label, code, status, stream, committed) in [
        ("complete", 0, TaskStatus::Success, StreamStatus::Success, 2),
        ("failed", 1, TaskStatus::Failed, StreamStatus::Failed, 0),
    ] {
        let world = World::new();
        let task =
            world.read(limit(3), &json!({"destinationType": "discard"}), &catalog(&[("s", "append")]), |source| {
                source.write(&(record("s", 1) + &record("s", 2)))?;
                source.end(code)
            });
        assert_eq!((task.status, task.streams["s"].status), (Some(status), stream), "{label}");
        assert_eq!(task.streams["s"].events, committed, "{label}");
    }
}

#[test]
fn discarded_records_count_towards_the_limit() {
    let world = World::new();
    let streams = catalog(&[("a", "overwrite"), ("b", "append")]);
    let task = world.read(limit(2), &json!({"destinationType": "discard"}), &streams, |source| {
        (1..).try_for_each(|id| source.write(&(record("a", id) + &record("b", id))))
    });
    assert_eq!(task.status, Some(TaskStatus::Success));
    let ends = ["a", "b"].map(|name| (task.streams[name].status, task.streams[name].events));
    assert_eq!(ends, [(StreamStatus::Partial, 1), (StreamStatus::Partial, 1)]);
}
