//! Which states a read saves.

use serde_json::{Value, json};

use super::support::{World, record, state};
use crate::task::{ReadOptions, TaskStatus};

/// Streams of an integer `id`: `orders` and `codes` are incremental, `full` is not.
fn catalog() -> Value {
    let stream = |name: &str, sync: &str, write: &str| {
        let schema = json!({"properties": {"id": {"type": "integer"}}});
        json!({
            "stream": {"name": name, "json_schema": schema}, "sync_mode": sync, "destination_sync_mode": write,
        })
    };
    json!({"streams": [
        stream("orders", "incremental", "append"),
        stream("codes", "incremental", "append"),
        stream("full", "full_refresh", "overwrite"),
    ]})
}

/// A GLOBAL state that lists `orders` and `full`.
const GLOBAL: &str = r#"{"type":"STATE","state":{"type":"GLOBAL","global":{"shared_state":{"lsn":99999999999999999999,"t":1.50},"stream_states":[{"stream_descriptor":{"name":"orders"},"stream_state":{"pk":18446744073709551617}},{"stream_descriptor":{"name":"full"},"stream_state":{}}]}}}"#;

#[test]
fn states_of_both_kinds_are_saved() {
    let rows = [record("orders", 1), record("codes", 1), record("full", 1)].concat();
    let null = r#"{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"codes"},"stream_state":null}}}"#;
    let global = format!("{GLOBAL}\n");
    for (label, states) in [
        ("the global one first", [global.clone(), state("codes", 1), state("full", 1), format!("{null}\n")].concat()),
        ("the global one last", [state("full", 1), state("codes", 1), format!("{null}\n"), global].concat()),
    ] {
        let mut world = World::new();
        let destination = world.postgres();
        let task = world.read(ReadOptions::default(), &destination, &catalog(), |source| {
            source.write(&(rows.clone() + &states))?;
            source.end(0)
        });
        assert_eq!((task.status, task.error), (Some(TaskStatus::Success), None), "{label}");
        let stored = world.db().states("sync").expect("an answer");
        let keys: Vec<&str> = stored.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["_GLOBAL_STATE", "codes"], "{label}");
        for digits in ["99999999999999999999", "1.50", "18446744073709551617"] {
            assert!(stored[0].1.contains(digits), "{label}: {}", stored[0].1);
        }
        assert_eq!(stored[1].1, r#"{"id": 1}"#, "{label}: null is no state");

        let task = world.read(ReadOptions::default(), &destination, &catalog(), |source| {
            source.write(&(record("orders", 2) + &state("orders", 2)))?;
            source.end(1)
        });
        assert_eq!(task.status, Some(TaskStatus::Partial), "{label}");
        let keys = |world: &mut World| world.texts("SELECT stream FROM source_state ORDER BY stream COLLATE \"C\"");
        assert_eq!(keys(&mut world), ["_GLOBAL_STATE", "codes", "orders"], "{label}: a failed read proves nothing");
        let task = world.read(ReadOptions::default(), &destination, &catalog(), |source| {
            source.write(&(rows.clone() + &state("orders", 2)))?;
            source.end(0)
        });
        assert_eq!(task.status, Some(TaskStatus::Success), "{label}");
        assert_eq!(keys(&mut world), ["codes", "orders"], "{label}: the source has changed the kind of its states");
    }
}
