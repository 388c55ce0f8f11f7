//! Which records count, and which tables stay as they are when nothing proves that a stream has no rows.

use serde_json::{Value, json};

use super::support::{World, record, state};
use crate::task::{ReadOptions, StreamStatus, TaskStatus};

/// Streams of an integer `id`: `users` is merged, `full` is replaced.
fn catalog() -> Value {
    let stream = |name: &str, sync: &str, write: &str| {
        json!({
            "stream": {
                "name": name, "source_defined_primary_key": [["id"]],
                "json_schema": {"properties": {"id": {"type": "integer"}}},
            },
            "sync_mode": sync, "destination_sync_mode": write,
        })
    };
    json!({"streams": [stream("users", "incremental", "append_dedup"), stream("full", "full_refresh", "overwrite")]})
}

fn status(stream: &str, status: &str) -> String {
    let descriptor = json!({"name": stream});
    let status = json!({"stream_descriptor": descriptor, "status": status});
    json!({"type": "TRACE", "trace": {"type": "STREAM_STATUS", "stream_status": status}}).to_string() + "\n"
}

fn log() -> String {
    json!({"type": "LOG", "log": {"level": "INFO", "message": "no rows"}}).to_string() + "\n"
}

#[test]
fn committed_records_and_the_bytes_of_their_lines_count() {
    let world = World::new();
    // The same row twice, with space around it: counted before merging, and as the source wrote it.
    let line = record("users", 1).replace('{', "{ ");
    let bytes = line.len() as u64 - 1;
    let task = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write(&(line.clone() + &line + &state("users", 1)))?;
        source.write(&(line.clone() + &record("full", 1)))?;
        source.end(1)
    });
    assert_eq!(task.status, Some(TaskStatus::Partial));
    let (users, full) = (&task.streams["users"], &task.streams["full"]);
    assert_eq!((users.status, users.events, users.bytes), (StreamStatus::Partial, 2, 2 * bytes));
    assert_eq!((full.status, full.events, full.bytes), (StreamStatus::Failed, 0, 0));
    let task = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write(&(line.clone() + &line + &line))?;
        source.end(0)
    });
    assert_eq!(task.status, Some(TaskStatus::Success), "{:?}", task.error);
    let users = &task.streams["users"];
    assert_eq!((users.status, users.events, users.bytes), (StreamStatus::Success, 3, 3 * bytes));
    assert_eq!((users.received, task.streams["full"].events), (None, 0));
}

#[test]
fn a_table_is_emptied_only_if_the_source_says_that_the_stream_is_complete() {
    let mut world = World::new();
    let full_sync = ReadOptions { full_sync: true, ..ReadOptions::default() };
    let incomplete = status("users", "COMPLETE") + &status("full", "INCOMPLETE");
    let complete = status("users", "COMPLETE") + &status("full", "COMPLETE");
    for (label, options, output, outcome, left) in [
        ("nothing at all", ReadOptions::default(), String::new(), TaskStatus::Failed, 1),
        ("text that is no message", ReadOptions::default(), "starting\n".to_owned(), TaskStatus::Failed, 1),
        ("a full sync and nothing", full_sync.clone(), "starting\n".to_owned(), TaskStatus::Failed, 1),
        (
            "a full sync and JSON that is no message",
            full_sync.clone(),
            "{\"type\":\"info\"}\n".to_owned(),
            TaskStatus::Failed,
            1,
        ),
        ("no statuses", ReadOptions::default(), log(), TaskStatus::Success, 1),
        ("rows of another stream", ReadOptions::default(), record("users", 1), TaskStatus::Success, 1),
        ("an incomplete stream", ReadOptions::default(), incomplete, TaskStatus::Partial, 1),
        ("a complete stream", ReadOptions::default(), complete, TaskStatus::Success, 0),
        ("a full sync", full_sync, log(), TaskStatus::Success, 0),
    ] {
        world
            .admin
            .batch_execute(
                "DROP TABLE IF EXISTS \"full\"; CREATE TABLE \"full\" (id bigint); INSERT INTO \"full\" VALUES (1)",
            )
            .expect("a table");
        world.admin.batch_execute("DELETE FROM task_log").expect("a table");
        let task = world.read(options, &world.postgres(), &catalog(), |source| {
            source.write(&output)?;
            source.end(0)
        });
        assert_eq!(task.status, Some(outcome), "{label}: {:?}", task.error);
        assert_eq!(world.texts("SELECT count(*)::text FROM \"full\""), [left.to_string()], "{label}");
        let warnings = world.texts("SELECT message FROM task_log WHERE level = 'WARN'");
        let is_warned = warnings.iter().any(|text| text.contains("stream full: ") && text.ends_with("left unchanged"));
        assert_eq!(is_warned, outcome == TaskStatus::Success && left == 1, "{label}: {warnings:?}");
        if outcome == TaskStatus::Failed {
            let error = task.error.expect("an error");
            assert!(error.starts_with("NO_RESULT: the connector ended without a message"), "{label}: {error}");
            let reason = task.streams["full"].error.as_deref().unwrap_or_default();
            assert!(reason.starts_with("the connector ended without a message"), "{label}: {reason}");
        }
    }
}

#[test]
fn what_happened_to_rows_is_in_the_report_of_their_stream_and_in_the_log() {
    let mut world = World::new();
    world.admin.batch_execute("CREATE TABLE users (id bigint, n smallint)").expect("a table");
    let task = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        for n in ["3", "70000", "\"x\""] {
            source.write(&record("users", 1).replace("\"id\":1", &format!("\"id\":1,\"n\":{n}")))?;
        }
        source.write(&record("Users", 1))?;
        source.write(&(state("users", 1) + &status("users", "COMPLETE") + &record("users", 2)))?;
        source.write(&status("full", "COMPLETE"))?;
        source.end(0)
    });
    let users = &task.streams["users"];
    assert_eq!((users.status, users.events), (StreamStatus::Partial, 3), "{users:?}");
    assert_eq!(users.load.misfits.to_string(), "n: 2");
    let dropped = "after the stream was complete: 1, sent as stream Users, which the catalog does not select: 1";
    assert_eq!(users.dropped.to_string(), dropped);
    let lines = world.texts("SELECT message FROM task_log WHERE logger = 'syncctl' ORDER BY timestamp, id");
    let ended = lines.iter().find(|line| line.starts_with("stream users: ended as")).expect("a line");
    assert!(
        ended.contains("3 rows committed") && ended.contains("2 values did not fit their column (n: 2)"),
        "{ended}"
    );
    for expected in ["PARTIAL, although the source had completed it", "dropped 1 records of stream Users"] {
        assert!(lines.iter().any(|line| line.contains(expected)), "{expected}: {lines:?}");
    }
}
