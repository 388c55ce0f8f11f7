//! The smoke test connector in a Pod: all columns, keys and values, queried with SQL.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use insta::assert_snapshot;
use md5::{Digest, Md5};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::read::{configured, discover, read};
use super::support::{World, eventually, unique};

const SMOKE: &str = "airbyte/source-smoke-test:0.1.2";
/// Longer values are abbreviated in the snapshot, in characters.
const MAX_SHOWN: usize = 120;

#[test]
fn all_smoke_test_streams_are_loaded_with_their_types_and_values() {
    let Some(world) = World::in_cluster() else { return };
    let config = json!({"all_fast_streams": true, "all_slow_streams": false});
    let discovered = discover(&world, SMOKE, &config);
    let direct_run = DirectRun::start(&world, &config, &configured(&discovered, "full_refresh", "overwrite"));
    // The connector rejects modes that the protocol does not have, like this one.
    let catalog = configured(&discovered, "full_refresh", "overwrite_dedup");
    let done = read(&world, SMOKE, &config, &catalog, &unique("smoke-")).run();
    let document = done.code(0).json();
    let streams = catalog["streams"].as_array().expect("streams");
    assert_eq!(streams.len(), 21);
    let records = direct_run.finish(&world);
    let mut snapshot = String::new();
    for stream in streams {
        let name = stream["stream"]["name"].as_str().expect("a name");
        let rows = records.get(name).map_or(&[][..], Vec::as_slice);
        let report = &document["streams"][name];
        assert_eq!((&report["status"], &report["events"]), (&json!("SUCCESS"), &json!(rows.len())), "{name}");
        assert_table(&world, name, &stream["stream"], rows);
        describe_table(&world, name, &mut snapshot);
    }
    assert_snapshot!("smoke_test_tables", snapshot);
}

/// The connector in a Pod of its own, without syncctl, for its output.
struct DirectRun {
    pod: String,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    record: Option<Row<'a>>,
}

#[derive(Deserialize)]
struct Row<'a> {
    stream: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl DirectRun {
    fn start(world: &World, config: &Value, catalog: &Value) -> Self {
        let pod = unique("direct-");
        let script = "echo \"$CONFIG\" >/tmp/config.json; echo \"$CATALOG\" >/tmp/catalog.json; \
                      eval \"$AIRBYTE_ENTRYPOINT read\" --config /tmp/config.json --catalog /tmp/catalog.json";
        let (image, namespace) = (format!("--image={SMOKE}"), format!("--namespace={}", world.namespace().name));
        let (config, catalog) = (format!("--env=CONFIG={config}"), format!("--env=CATALOG={catalog}"));
        let what = ["run", &pod, &namespace, &image, &config, &catalog, "--restart=Never", "--command", "--"];
        world.namespace().kubectl(&[&what[..], &["sh", "-c", script]].concat());
        Self { pod }
    }

    /// Waits for the end. Returns the rows of each stream, byte for byte.
    fn finish(self, world: &World) -> BTreeMap<String, Vec<String>> {
        let namespace = format!("--namespace={}", world.namespace().name);
        let phase =
            || world.namespace().kubectl(&["get", "pod", &self.pod, &namespace, "-o", "jsonpath={.status.phase}"]);
        eventually("the connector ended", Duration::from_mins(1), || (phase() == "Succeeded").then_some(()));
        let log = world.namespace().kubectl(&["logs", &self.pod, &namespace]);
        world.namespace().kubectl(&["delete", "pod", &self.pod, &namespace, "--now"]);
        let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Row { stream, data } in log.lines().filter_map(|line| serde_json::from_str::<Line<'_>>(line).ok()?.record) {
            rows.entry(stream).or_default().push(data.get().to_owned());
        }
        rows
    }
}

/// Checks that the table contains exactly these rows. Implements the documented rules independently of the program.
fn assert_table(world: &World, table: &str, stream: &Value, rows: &[String]) {
    let properties = stream["json_schema"]["properties"].as_object().expect("properties");
    let expected: Vec<(String, String)> =
        properties.iter().map(|(name, schema)| (column_name(name), column_type(schema).to_owned())).collect();
    assert_eq!(world.schema.columns(table), expected, "{table}: columns");
    let key: Vec<&str> = stream["source_defined_primary_key"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|path| path[0].as_str())
        .collect();
    // Of rows with equal keys the last one counts.
    let mut seen = HashSet::new();
    let expected_rows = rows.iter().rev().filter(|row| {
        let row: Map<String, Value> = serde_json::from_str(row).expect("a row");
        let key: Vec<String> = key.iter().map(|part| row[*part].to_string()).collect();
        key.is_empty() || seen.insert(key)
    });
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    expected_rows.for_each(|row| *counts.entry(row).or_default() += 1);
    assert_eq!(world.schema.count(table), counts.values().sum::<i64>(), "{table}: rows");
    let mut client = world.schema.connect();
    let mut matching = |condition: &str| -> i64 {
        let query = format!("SELECT count(*) FROM \"{table}\" WHERE {condition}");
        client.query_one(&query, &[]).unwrap_or_else(|error| panic!("{query:.300}: {error:?}")).get(0)
    };
    for (row, count) in counts {
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(row).expect("a row");
        let conditions: Vec<String> = properties
            .iter()
            .map(|(name, schema)| {
                condition(&column_name(name), column_type(schema), fields.get(name).map(AsRef::as_ref))
            })
            .collect();
        if matching(&conditions.join(" AND ")) != count {
            let unmatched: Vec<&String> = conditions.iter().filter(|condition| matching(condition) == 0).collect();
            panic!("{table}: not {count} rows like {row:.300}; no row matches {unmatched:.300?}");
        }
    }
}

/// The types of Airbyte's protocol, as docs/destinations.md lists them.
fn column_type(schema: &Value) -> &'static str {
    if let Some(alternatives) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        let others: Vec<&Value> = alternatives.iter().filter(|one| one["type"] != "null").collect();
        return if let [one] = others[..] { column_type(one) } else { "jsonb" };
    }
    let mut types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    types.retain(|kind| kind != "null");
    if types.len() != 1 {
        return "jsonb";
    }
    match (types[0].as_str().expect("a type"), schema["format"].as_str(), schema["airbyte_type"].as_str()) {
        ("string", Some("date-time"), Some("timestamp_without_timezone")) => "timestamp without time zone",
        ("string", Some("date-time"), _) => "timestamp with time zone",
        ("string", Some("date"), _) => "date",
        ("string", _, Some("time_without_timezone")) => "time without time zone",
        ("string", _, Some("time_with_timezone")) => "time with time zone",
        ("integer", ..) | ("number", _, Some("integer")) => "bigint",
        ("number", ..) => "numeric",
        ("boolean", ..) => "boolean",
        ("array" | "object", ..) => "jsonb",
        _ => "text",
    }
}

/// "runs of characters outside letters, digits, `_`, space, `$`, `-` become `_`; cut to 63; case kept"
fn column_name(name: &str) -> String {
    let is_allowed = |c: char| c.is_alphanumeric() || "_ $-".contains(c);
    let mut cleaned: Vec<char> = name.chars().map(|c| if is_allowed(c) { c } else { '\0' }).collect();
    cleaned.dedup_by(|next, before| (*next, *before) == ('\0', '\0'));
    let cleaned: String = cleaned.into_iter().map(|c| if c == '\0' { '_' } else { c }).collect();
    assert!(cleaned.is_ascii(), "the smoke test has only ASCII names: {name}");
    cleaned[..cleaned.len().min(63)].to_owned()
}

/// The SQL condition that the column has this value.
fn condition(column: &str, kind: &str, value: Option<&RawValue>) -> String {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let raw = value.map_or("null", RawValue::get);
    let text = serde_json::from_str::<String>(raw);
    match (kind, raw.as_bytes()[0]) {
        (_, b'n') => format!("\"{column}\" IS NULL"),
        ("bigint", b'-' | b'0'..=b'9') => format!("\"{column}\"::text = {}", literal(raw)),
        ("numeric", b'-' | b'0'..=b'9') => format!("\"{column}\" = {}::numeric", literal(raw)),
        ("boolean", b't' | b'f') => format!("\"{column}\" = {raw}"),
        // The time zone of the session is UTC.
        (kind, b'"') if kind == "date" || kind.starts_with("time") => {
            format!("\"{column}\" = {}::{kind}", literal(&text.expect("a string")))
        }
        ("jsonb", _) => format!("\"{column}\" = {}::jsonb", literal(raw)),
        ("text", b'"') => format!("\"{column}\" = {}", literal(&text.expect("a string"))),
        ("text", _) => format!("\"{column}\" = {}", literal(raw)),
        _ => panic!("{raw} does not fit column {column} {kind}: the smoke test has no such value"),
    }
}

/// Appends columns, key and rows of a table to the snapshot.
fn describe_table(world: &World, table: &str, snapshot: &mut String) {
    let columns = world.schema.columns(table);
    let key = world.schema.texts(&format!(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = '\"{table}\"'::regclass"
    ));
    let (name, key) = (table, key.first().map_or("no key", String::as_str));
    writeln!(snapshot, "== {name}: {key}").expect("a String");
    for (name, kind) in &columns {
        writeln!(snapshot, "   {name}: {kind}").expect("a String");
    }
    let values: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"::text")).collect();
    let query = format!("SELECT ARRAY[{}] FROM \"{table}\" t ORDER BY \"{}\", t::text", values.join(","), columns[0].0);
    for row in world.schema.rows(&query) {
        let values: Vec<String> =
            row.get::<_, Vec<Option<String>>>(0).iter().map(|value| abbreviated(value.as_deref())).collect();
        writeln!(snapshot, " - {}", values.join(" | ")).expect("a String");
    }
}

fn abbreviated(value: Option<&str>) -> String {
    let Some(value) = value else { return "∅".to_owned() };
    let length = value.chars().count();
    if length <= MAX_SHOWN {
        return value.escape_debug().to_string();
    }
    let beginning: String = value.chars().take(20).collect();
    format!("{}… {length} characters, MD5 {}", beginning.escape_debug(), hex::encode(Md5::digest(value)))
}
