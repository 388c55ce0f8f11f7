//! The rows of the table after two reads, for each combination of modes and options.

use serde_json::{Value, json};

use super::support::World;

/// What the second read does to the rows of the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Replaces them by a copy of the source's rows.
    CopyAll,
    /// Replaces them, and merges the new rows by the key.
    Replace,
    /// Adds rows.
    Append,
    /// Merges rows by the key.
    Merge,
}

use Effect::{Append, CopyAll, Merge, Replace};

/// `sync_mode`, `destination_sync_mode`, and the effect on a stream with a key and without one.
const MODES: [(&str, Option<&str>, Effect, Effect); 11] = [
    ("full_refresh", None, CopyAll, CopyAll),
    ("full_refresh", Some("overwrite"), CopyAll, CopyAll),
    ("full_refresh", Some("overwrite_dedup"), Replace, CopyAll),
    ("full_refresh", Some("append"), Append, Append),
    ("full_refresh", Some("append_dedup"), Merge, Append),
    ("incremental", None, Merge, Append),
    // An incremental read brings only new rows, which must not replace the others.
    ("incremental", Some("overwrite"), Merge, Append),
    ("incremental", Some("append"), Append, Append),
    ("incremental", Some("append_dedup"), Merge, Append),
    ("incremental", Some("update"), Merge, Append),
    ("incremental", Some("soft_delete"), Merge, Append),
];

/// The name of a stream for an entry of [`MODES`].
fn stream(index: usize, keyed: bool) -> String {
    format!("s{index}_{}", if keyed { "keyed" } else { "keyless" })
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

/// The script of a connector that sends these rows in each stream: a digit for `id` and a letter for `v`.
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

/// The table after a first read of `1a 2a 3a 3b`, and after a second one of `3c 4a`.
fn expected(effect: Effect, keyed: bool) -> [&'static str; 2] {
    match (effect, keyed) {
        (Replace, true) => ["1a 2a 3b", "3c 4a"],
        (Replace, false) | (CopyAll, _) => ["1a 2a 3a 3b", "3c 4a"],
        (Append, _) => ["1a 2a 3a 3b", "1a 2a 3a 3b 3c 4a"],
        (Merge, _) => ["1a 2a 3b", "1a 2a 3c 4a"],
    }
}

/// Reads twice with these options and compares each table after each read. `adjust` applies the options to the effect on
/// a stream, and to whether it has a key.
fn check(options: &[&str], adjust: impl Fn(Effect, bool) -> (Effect, bool)) {
    let Some(world) = World::new() else { return };
    for (read, rows) in [&["1a", "2a", "3a", "3b"][..], &["3c", "4a"]].into_iter().enumerate() {
        let task = super::support::unique("modes-");
        let done = world.script(&script(rows), &catalog(), &task).with(options).with(&["--state", "db"]).run();
        assert_eq!(done.code(0).json()["status"], "SUCCESS", "{done}");
        for (index, (sync, write, with_key, without)) in MODES.into_iter().enumerate() {
            for (keyed, effect) in [(true, with_key), (false, without)] {
                let (effect, has_key) = adjust(effect, keyed);
                let table = stream(index, keyed);
                let rows = world.schema.texts(&format!("SELECT string_agg(id || v, ' ' ORDER BY id, v) FROM {table}"));
                let label = format!("{sync} {write:?}, {table}, {options:?}, read {}", read + 1);
                assert_eq!(rows, [expected(effect, has_key)[read]], "{label}");
            }
        }
    }
}

#[test]
fn modes_replace_append_or_merge() {
    check(&[], |effect, keyed| (effect, keyed));
}

#[test]
fn no_deduplicate_appends_instead_of_merging() {
    check(&["--no-deduplicate"], |effect, _| {
        (if matches!(effect, CopyAll | Replace) { CopyAll } else { Append }, false)
    });
}

#[test]
fn full_sync_replaces_in_all_modes() {
    // A stream that appends keeps rows with equal keys when it is replaced as well.
    check(&["--full-sync"], |effect, keyed| (Replace, keyed && matches!(effect, Merge | Replace)));
}
