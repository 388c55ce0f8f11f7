//! What `task_log` has about a read.

use serde_json::{Value, json};

use super::support::{World, record, state};
use crate::task::{ReadOptions, TaskStatus};

fn catalog() -> Value {
    let properties = json!({"properties": {"id": {"type": "integer"}}});
    json!({"streams": [
        {
            "stream": {"name": "users", "namespace": "crm", "json_schema": properties, "source_defined_primary_key": [["id"]]},
            "sync_mode": "incremental", "destination_sync_mode": "append_dedup",
        },
        {
            "stream": {"name": "events", "json_schema": properties},
            "sync_mode": "full_refresh", "destination_sync_mode": "overwrite",
        },
    ]})
}

fn own_lines(world: &mut World) -> Vec<String> {
    world.texts("SELECT message FROM task_log WHERE logger = 'syncctl' ORDER BY timestamp, id")
}

#[test]
fn the_log_of_a_read_tells_its_steps_although_the_connector_logs_nothing() {
    let mut world = World::new();
    let task = world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write(&(record("users", 1) + &record("users", 1) + &state("users", 1)))?;
        source.write(&(record("events", 1) + &record("events", 2)))?;
        source.end(0)
    });
    assert_eq!(task.status, Some(TaskStatus::Success), "{:?}", task.error);
    let lines = own_lines(&mut world);
    let all = lines.join("\n");
    for line in [
        "stream crm.users: started, merging rows by id into table users",
        "stream crm.users: 2 rows committed (2 in total), state saved",
        "stream crm.users: ended as SUCCESS, 2 rows committed, 1 merged into rows with the same key",
        "stream events: started, replacing the rows of table events",
        "stream events: 2 rows committed (2 in total)",
        "stream events: ended as SUCCESS, 2 rows committed",
    ] {
        assert!(lines.iter().any(|other| other == line), "{line}: {all}");
    }
    assert!(lines[0].starts_with("selected streams: 2; destination: database \""), "{all}");
    let last = lines.last().expect("a line");
    assert!(last.starts_with("read ended as SUCCESS: 4 rows, "), "{all}");
    assert!(last.contains("; 2 of 2 streams succeeded; "), "{all}");
}

#[test]
fn thousands_of_commits_are_summed_up() {
    const STATES: u64 = 2000;
    let mut world = World::new();
    let discard = json!({"destinationType": "discard"});
    let task = world.read(ReadOptions::default(), &discard, &catalog(), |source| {
        for id in 0..STATES {
            source.write(&(record("users", id) + &state("users", id)))?;
        }
        source.end(0)
    });
    assert_eq!(task.status, Some(TaskStatus::Success), "{:?}", task.error);
    let lines = own_lines(&mut world);
    let commits: Vec<&String> = lines.iter().filter(|line| line.contains("rows committed (")).collect();
    assert!(!commits.is_empty() && commits.len() < 20, "{commits:?}");
    assert!(commits.last().is_some_and(|line| line.contains("(2000 in total), state saved")), "{commits:?}");
}

#[test]
fn a_destination_that_does_not_answer_is_named_in_the_log() {
    let mut world = World::new();
    let mut destination = world.postgres();
    destination["host"] = json!("127.0.0.1");
    destination["port"] = json!(1);
    destination["database"] = json!("warehouse");
    let task = world.read(ReadOptions::default(), &destination, &catalog(), |source| source.end(0));
    assert_eq!(task.status, Some(TaskStatus::Failed));
    let errors = world.texts("SELECT message FROM task_log WHERE level = 'ERROR'");
    assert!(errors.iter().any(|text| text.contains(r#"database "warehouse" at 127.0.0.1:1"#)), "{errors:?}");
}
