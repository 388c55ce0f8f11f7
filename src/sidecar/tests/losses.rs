//! Records that share their lines are loaded, and what may be a lost record fails its stream, in every mode.

use std::fmt::Write;

use serde_json::{Value, json};

use super::support::{World, record, state};
use crate::db::StoredTask;
use crate::task::{ReadOptions, StreamStatus, TaskStatus};

/// What a connector writes about a stream.
type Loss = Box<dyn Fn(&str) -> String>;

/// A stream of an integer `id` for each mode.
const STREAMS: [(&str, &str, &str); 5] = [
    ("added", "incremental", "append"),
    ("merged", "incremental", "append_dedup"),
    ("replaced", "full_refresh", "overwrite"),
    ("replaced_merged", "full_refresh", "overwrite_dedup"),
    ("generation", "incremental", "append"),
];

fn catalog() -> Value {
    let stream = |(name, sync, write): &(&str, &str, &str)| {
        let generation = u8::from(*name == "generation");
        json!({
            "stream": {"name": name, "json_schema": {"properties": {"id": {"type": "integer"}}}},
            "primary_key": [["id"]], "sync_mode": sync, "destination_sync_mode": write,
            "generation_id": generation, "minimum_generation_id": generation,
        })
    };
    json!({"streams": STREAMS.iter().map(stream).collect::<Vec<_>>()})
}

/// A table with a row of an earlier run for each stream.
fn reset(world: &mut World) {
    for (stream, ..) in STREAMS {
        let table = format!("DROP TABLE IF EXISTS {stream}; CREATE TABLE {stream} (id bigint);");
        world.admin.batch_execute(&format!("{table} INSERT INTO {stream} VALUES (1)")).expect("a table");
    }
    world.admin.batch_execute("DELETE FROM source_state; DELETE FROM task_log").expect("tables");
}

/// The ids in the table of each stream.
fn ids(world: &mut World) -> Vec<String> {
    let query = |stream: &str| format!("SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM {stream}");
    STREAMS.iter().flat_map(|(stream, ..)| world.texts(&query(stream))).collect()
}

fn trace(content: &Value) -> String {
    json!({"type": "TRACE", "trace": content}).to_string() + "\n"
}

fn status(stream: &str, status: &str) -> String {
    let status = json!({"stream_descriptor": {"name": stream}, "status": status});
    trace(&json!({"type": "STREAM_STATUS", "stream_status": status}))
}

/// An error of this stream, or of none.
fn error(stream: Option<&str>) -> String {
    let mut error = json!({"message": "denied", "internal_message": "403", "stack_trace": "at read"});
    if let Some(name) = stream {
        error["stream_descriptor"] = json!({"name": name});
    }
    trace(&json!({"type": "ERROR", "error": error}))
}

/// A state that claims to follow this number of records.
fn counted_state(stream: &str, records: f64) -> String {
    let state: Value = serde_json::from_str(&state(stream, 9)).expect("JSON");
    let mut state = state;
    state["state"]["sourceStats"] = json!({"recordCount": records});
    state.to_string() + "\n"
}

fn global_state(records: f64) -> String {
    let state = json!({"type": "GLOBAL", "global": {"stream_states": []}, "sourceStats": {"recordCount": records}});
    json!({"type": "STATE", "state": state}).to_string() + "\n"
}

/// Runs a read whose connector writes this and ends with 0.
fn read(world: &World, output: &str) -> StoredTask {
    world.read(ReadOptions::default(), &world.postgres(), &catalog(), |source| {
        source.write(output)?;
        source.end(0)
    })
}

/// What `of` writes for each stream.
fn for_all(of: impl Fn(&str) -> String) -> String {
    STREAMS.iter().fold(String::new(), |mut all, (stream, ..)| {
        // Writing to a String cannot fail.
        let _ = write!(all, "{}", of(stream));
        all
    })
}

#[test]
fn records_that_share_their_lines_are_loaded() {
    let mut world = World::new();
    reset(&mut world);
    let log = r#"{"type":"LOG","log":{"level":"INFO","message":"a quote: {\"type\":\"RECORD\"}"}}"#;
    let output = for_all(|stream| {
        let (two, three, four) = (record(stream, 2), record(stream, 3), record(stream, 4));
        let (beginning, rest) = four.split_at(40);
        let shared = format!("...{}{}{log}\u{1b}[0m\n", two.trim_end(), three.trim_end());
        shared + beginning + log + "\n" + rest + &status(stream, "COMPLETE")
    });
    let quoted = format!("read record: {}", record("added", 9));
    let task = read(&world, &(quoted + &output));
    assert_eq!(task.status, Some(TaskStatus::Success), "{:?}", task.error);
    assert_eq!(ids(&mut world), ["1,2,3,4", "1,2,3,4", "2,3,4", "2,3,4", "2,3,4"]);
    assert_eq!(task.streams["added"].warnings.to_string(), "messages that log lines quote are not loaded: 1");
    let warnings = world.texts("SELECT message FROM task_log WHERE level = 'WARN' AND logger = 'syncctl'");
    assert!(warnings.iter().any(|text| text.starts_with("messages share their lines")), "{warnings:?}");
}

#[test]
fn a_stream_that_may_miss_rows_does_not_succeed_in_any_mode() {
    let mut world = World::new();
    let named = |stream: &str| format!("{}\n", &record(stream, 3).trim_end()[..record(stream, 3).len() - 12]);
    let losses: [(&str, Loss, &str); 9] = [
        ("a record that is cut off", Box::new(named), "a message is cut off"),
        (
            "a cut-off record before another message",
            Box::new(move |stream| named(stream).trim_end().to_owned() + &state("x", 1)),
            "a message is cut off",
        ),
        ("a cut-off record that names no stream", Box::new(|_| "{\"type\":\"REC\n".to_owned()), "a message is cut off"),
        (
            "a record without data",
            Box::new(|stream| record(stream, 3).replace("data", "fields")),
            "its record has no \"data\"",
        ),
        ("a record of a wrong type", Box::new(|stream| record(stream, 3).replace("RECORD", "record")), "no such type"),
        (
            "fewer records than counted",
            Box::new(|stream| counted_state(stream, 2.0)),
            "the source counts 2 records since",
        ),
        ("fewer records than all together", Box::new(|_| global_state(20.0)), "records of all streams"),
        ("an error of the stream", Box::new(|stream| error(Some(stream))), "denied"),
        ("an incomplete stream", Box::new(|stream| status(stream, "INCOMPLETE")), "reported the stream as incomplete"),
    ];
    for (label, loss, expected) in losses {
        for statuses in [true, false] {
            if !statuses && label == "an incomplete stream" {
                continue;
            }
            reset(&mut world);
            let started = for_all(|stream| record(stream, 2));
            let ended = for_all(|stream| {
                let complete = if statuses { status(stream, "COMPLETE") } else { String::new() };
                loss(stream) + &state(stream, 2) + &complete
            });
            let task = read(&world, &(started + &ended));
            assert_eq!(task.status, Some(TaskStatus::Failed), "{label}: {:?}", task.streams);
            assert_eq!(ids(&mut world), ["1"; 5], "{label}, statuses: {statuses}");
            let states = world.texts("SELECT stream FROM source_state");
            assert_eq!(states, [""; 0], "{label}");
            for (stream, report) in &task.streams {
                let error = report.error.as_deref().unwrap_or_default();
                assert!(error.contains(expected), "{label}: {stream}: {error}");
                assert_eq!(report.status, StreamStatus::Failed, "{label}: {stream}");
                assert!(report.dropped.to_string().contains("not committed when the stream ended: 1"), "{label}");
            }
        }
    }
}

#[test]
fn records_under_another_name_fail_the_streams_whose_tables_they_would_empty() {
    let mut world = World::new();
    for (label, statuses, rename, failed) in [
        ("another name, with statuses", true, "s_$", &["replaced", "replaced_merged", "generation"][..]),
        (
            "another name, without statuses",
            false,
            "s_$",
            &["added", "merged", "replaced", "replaced_merged", "generation"],
        ),
        (
            "another case, with statuses",
            true,
            "upper",
            &["added", "merged", "replaced", "replaced_merged", "generation"],
        ),
    ] {
        reset(&mut world);
        let output = for_all(|stream| {
            let name = if rename == "upper" { stream.to_uppercase() } else { rename.replace('$', stream) };
            let complete = if statuses { status(stream, "COMPLETE") } else { String::new() };
            record(&name, 2) + &state(stream, 2) + &complete
        });
        let task = read(&world, &output);
        assert_ne!(task.status, Some(TaskStatus::Success), "{label}");
        assert_eq!(ids(&mut world), ["1"; 5], "{label}");
        let states: Vec<&str> = STREAMS
            .iter()
            .map(|(stream, ..)| *stream)
            .filter(|stream| {
                assert_eq!(
                    task.streams[*stream].status == StreamStatus::Failed,
                    failed.contains(stream),
                    "{label}: {stream}"
                );
                !failed.contains(stream)
            })
            .collect();
        if statuses {
            assert_eq!(world.texts("SELECT stream FROM source_state ORDER BY 1"), states, "{label}");
        }
    }
}

#[test]
fn errors_without_a_stream_count_unless_each_stream_is_complete() {
    let mut world = World::new();
    for (statuses, outcome, left) in [(false, TaskStatus::Failed, "1"), (true, TaskStatus::Success, "2")] {
        reset(&mut world);
        let rows =
            for_all(|stream| record(stream, 2) + &if statuses { status(stream, "COMPLETE") } else { String::new() });
        let task = read(&world, &(rows + &error(None)));
        assert_eq!((task.status, &*ids(&mut world)[2]), (Some(outcome), left), "statuses: {statuses}");
        let warnings = task.streams["replaced"].warnings.to_string();
        assert_eq!(warnings.contains("denied"), statuses, "{warnings}");
        let logged = world.texts("SELECT message FROM task_log WHERE level = 'ERROR' AND logger = 'source'");
        assert_eq!(logged, ["denied\ninternal message: 403\nat read"]);
    }
}

#[test]
fn errors_after_a_stream_was_complete_count() {
    let mut world = World::new();
    reset(&mut world);
    let task = read(
        &world,
        &for_all(|stream| record(stream, 2) + &status(stream, "COMPLETE") + &error(Some(stream)) + &state(stream, 2)),
    );
    assert_eq!(task.status, Some(TaskStatus::Partial));
    assert!(task.streams.values().all(|report| report.status == StreamStatus::Partial), "{:?}", task.streams);
    assert_eq!(world.texts("SELECT stream FROM source_state"), [""; 0]);
}

#[test]
fn counts_that_agree_and_repeated_states_are_accepted() {
    let mut world = World::new();
    reset(&mut world);
    let task = read(
        &world,
        &for_all(|stream| {
            let counted = counted_state(stream, 2.0);
            let none =
                json!({"type": "STATE", "state": {"type": "STREAM", "stream": {"streamDescriptor": {"name": stream}}}});
            let foreign = state("other", 1) + &status("other", "COMPLETE") + "{\"type\":\"NEW\"}\n";
            let rows = record(stream, 2)
                + &record(stream, 3)
                + &counted
                + &counted
                + &record(stream, 4)
                + &counted_state(stream, 0.0);
            rows + &none.to_string() + "\n" + &foreign + &status(stream, "COMPLETE")
        }),
    );
    assert_eq!(task.status, Some(TaskStatus::Success), "{:?}", task.streams);
    assert!(task.streams.values().all(|report| report.warnings.to_string().contains("more records have arrived")));
    assert_eq!(world.texts("SELECT stream FROM source_state").len(), STREAMS.len());
    let warnings = world.texts("SELECT message FROM task_log WHERE level = 'WARN' AND logger = 'syncctl' ORDER BY 1");
    for expected in [
        "ignoring NEW messages: the protocol has no such type",
        "ignoring STATE messages: the \"stream\" has no \"stream_descriptor\" with a \"name\", but \"streamDescriptor\"",
        "ignoring states of stream other, which the catalog does not select",
        "the source reports the status of stream other, which the catalog does not select",
    ] {
        assert_eq!(warnings.iter().filter(|text| text.starts_with(expected)).count(), 1, "{expected}: {warnings:?}");
    }
}
