//! What is in the table after two reads, for each combination of modes and options.

use serde_json::{Value, json};

use super::support::World;

/// What becomes of the rows of the second read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They take the place of all others.
    Replace,
    /// They are added.
    Append,
    /// They are merged by the key.
    Merge,
}

use Way::{Append, Merge, Replace};

/// `sync_mode`, `destination_sync_mode`, and what becomes of rows with a key and without one.
const MODES: [(&str, Option<&str>, Way, Way); 10] = [
    ("full_refresh", None, Replace, Replace),
    ("full_refresh", Some("overwrite"), Replace, Replace),
    ("full_refresh", Some("append"), Append, Append),
    ("full_refresh", Some("append_dedup"), Merge, Append),
    ("incremental", None, Merge, Append),
    // Only what is new must not take the place of what is not.
    ("incremental", Some("overwrite"), Merge, Append),
    ("incremental", Some("append"), Append, Append),
    ("incremental", Some("append_dedup"), Merge, Append),
    ("incremental", Some("update"), Merge, Append),
    ("incremental", Some("soft_delete"), Merge, Append),
];

/// A stream of [`MODES`], with or without a key.
fn stream(index: usize, keyed: bool) -> String {
    format!("s{index}_{}", if keyed { "keyed" } else { "free" })
}

fn catalog() -> Value {
    let streams = MODES.iter().enumerate().flat_map(|(index, (sync, write, ..))| {
        [true, false].map(|keyed| {
            let mut stream = json!({
                "stream": {
                    "name": stream(index, keyed), "supported_sync_modes": ["full_refresh", "incremental"],
                    "json_schema": {"properties": {"id": {"type": "integer"}, "v": {"type": "string"}}},
                },
                "sync_mode": sync,
                "primary_key": if keyed { json!([["id"]]) } else { json!([]) },
            });
            if let Some(write) = write {
                stream["destination_sync_mode"] = json!(write);
            }
            stream
        })
    });
    json!({"streams": streams.collect::<Vec<_>>()})
}

/// A connector that sends these rows, `id` and `v`, in each stream.
fn script(rows: &[&str]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (index, keyed) in (0..MODES.len()).flat_map(|index| [(index, true), (index, false)]) {
        let stream = stream(index, keyed);
        lines.push(format!("status {stream} STARTED"));
        for row in rows {
            let (id, v) = row.split_at(1);
            lines.push(format!(r#"row {stream} '{{"id":{id},"v":"{v}"}}'"#));
        }
        lines.push(format!(r#"state {stream} '{{"n":1}}'; status {stream} COMPLETE"#));
    }
    lines.join("\n")
}

/// The table after a first read of `1a 2a 3a 3b` and a second one of `3c 4a`.
fn expected(way: Way, keyed: bool) -> [&'static str; 2] {
    match (way, keyed) {
        (Replace, true) => ["1a 2a 3b", "3c 4a"],
        (Replace, false) => ["1a 2a 3a 3b", "3c 4a"],
        (Append, _) => ["1a 2a 3a 3b", "1a 2a 3a 3b 3c 4a"],
        (Merge, _) => ["1a 2a 3b", "1a 2a 3c 4a"],
    }
}

/// Reads twice with these options and compares every table after each read. `way` says what the options make of a
/// stream: its way, and whether its key counts.
fn hold(options: &[&str], way: impl Fn(Way, bool) -> (Way, bool)) {
    let Some(world) = World::new() else { return };
    for (read, rows) in [&["1a", "2a", "3a", "3b"][..], &["3c", "4a"]].into_iter().enumerate() {
        let task = super::support::unique("modes-");
        let done = world.script(&script(rows), &catalog(), &task).with(options).with(&["--state", "db"]).run();
        assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
        for (index, (sync, write, with_key, without)) in MODES.into_iter().enumerate() {
            for (keyed, usual) in [(true, with_key), (false, without)] {
                let (way, is_unique) = way(usual, keyed);
                let table = stream(index, keyed);
                let rows = world.schema.texts(&format!("SELECT string_agg(id || v, ' ' ORDER BY id, v) FROM {table}"));
                let label = format!("{sync} {write:?}, {table}, {options:?}, read {}", read + 1);
                assert_eq!(rows, [expected(way, is_unique)[read]], "{label}");
            }
        }
    }
}

#[test]
fn each_mode_leaves_the_rows_it_promises() {
    hold(&[], |way, keyed| (way, keyed));
}

#[test]
fn without_deduplication_nothing_is_merged() {
    hold(&["--no-deduplicate"], |way, _| (if way == Replace { Replace } else { Append }, false));
}

#[test]
fn a_full_sync_replaces_in_every_mode() {
    // A stream that is only added to keeps rows of equal keys also when it is read anew.
    hold(&["--full-sync"], |way, keyed| (Replace, keyed && way != Append));
}
