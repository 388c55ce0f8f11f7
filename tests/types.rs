//! A real connector's edge cases through a whole Pod: every column, key and value, read back with SQL.

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
/// Longer values are shortened where people read them.
const LEGIBLE: usize = 120;

#[test]
fn all_streams_of_the_smoke_test_arrive_with_their_types_and_values() {
    let Some(world) = World::in_cluster() else { return };
    let config = json!({"all_fast_streams": true, "all_slow_streams": false});
    let catalog = configured(&discover(&world, SMOKE, &config), "full_refresh", "overwrite");
    let own = OwnOutput::start(&world, &config, &catalog);
    let done = read(&world, SMOKE, &config, &catalog, &unique("smoke-")).run();
    let document = done.code(0).json();
    let streams = catalog["streams"].as_array().expect("streams");
    assert_eq!(streams.len(), 21);
    let records = own.finish(&world);
    let mut told = String::new();
    for stream in streams {
        let name = stream["stream"]["name"].as_str().expect("a name");
        let rows = records.get(name).map_or(&[][..], Vec::as_slice);
        let report = &document["streams"][name];
        assert_eq!((&report["status"], &report["events"]), (&json!("SUCCESS"), &json!(rows.len())), "{name}");
        assert_as_sent(&world, name, &stream["stream"], rows);
        tell_table(&world, name, &mut told);
    }
    assert_snapshot!("the_tables_of_the_smoke_test", told);
}

/// What the connector prints where nobody but a log listens.
struct OwnOutput {
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

impl OwnOutput {
    fn start(world: &World, config: &Value, catalog: &Value) -> Self {
        let pod = unique("own-");
        let script = "echo \"$CONFIG\" >/tmp/config.json; echo \"$CATALOG\" >/tmp/catalog.json; \
                      eval \"$AIRBYTE_ENTRYPOINT read\" --config /tmp/config.json --catalog /tmp/catalog.json";
        let (image, namespace) = (format!("--image={SMOKE}"), format!("--namespace={}", world.namespace().name));
        let (config, catalog) = (format!("--env=CONFIG={config}"), format!("--env=CATALOG={catalog}"));
        let what = ["run", &pod, &namespace, &image, &config, &catalog, "--restart=Never", "--command", "--"];
        world.namespace().kubectl(&[&what[..], &["sh", "-c", script]].concat());
        Self { pod }
    }

    /// stream → its rows, to the letter.
    fn finish(self, world: &World) -> BTreeMap<String, Vec<String>> {
        let namespace = format!("--namespace={}", world.namespace().name);
        let phase =
            || world.namespace().kubectl(&["get", "pod", &self.pod, &namespace, "-o", "jsonpath={.status.phase}"]);
        eventually("the end of the connector", Duration::from_mins(1), || (phase() == "Succeeded").then_some(()));
        let log = world.namespace().kubectl(&["logs", &self.pod, &namespace]);
        world.namespace().kubectl(&["delete", "pod", &self.pod, &namespace, "--now"]);
        let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Row { stream, data } in log.lines().filter_map(|line| serde_json::from_str::<Line<'_>>(line).ok()?.record) {
            rows.entry(stream).or_default().push(data.get().to_owned());
        }
        rows
    }
}

/// The table holds exactly these rows, by the rules as they are written down; nothing here is the program's own.
fn assert_as_sent(world: &World, table: &str, stream: &Value, rows: &[String]) {
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
    // Of rows with one key the last one counts.
    let mut seen = HashSet::new();
    let kept = rows.iter().rev().filter(|row| {
        let row: Map<String, Value> = serde_json::from_str(row).expect("a row");
        let key: Vec<String> = key.iter().map(|part| row[*part].to_string()).collect();
        key.is_empty() || seen.insert(key)
    });
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    kept.for_each(|row| *counts.entry(row).or_default() += 1);
    assert_eq!(world.schema.count(table), counts.values().sum::<i64>(), "{table}: rows");
    let mut client = world.schema.connect();
    let mut found = |condition: &str| -> i64 {
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
        if found(&conditions.join(" AND ")) != count {
            let none: Vec<&String> = conditions.iter().filter(|condition| found(condition) == 0).collect();
            panic!("{table}: not {count} times as it was sent: {row:.300}; no row has {none:.300?}");
        }
    }
}

/// "oneOf → STRING; first non-null of `type`; string + format date-time or date → TIMESTAMP; number with airbyte_type
/// integer → INT64; array, object → JSON; else STRING."
fn column_type(schema: &Value) -> &'static str {
    let mut types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    types.retain(|kind| kind != "null");
    let first = types.first().and_then(Value::as_str).unwrap_or_default();
    match (schema["oneOf"].is_null(), first, schema["format"].as_str(), schema["airbyte_type"].as_str()) {
        (false, ..) => "text",
        (_, "string", Some("date-time" | "date"), _) => "timestamp with time zone",
        (_, "integer", ..) | (_, "number", _, Some("integer")) => "bigint",
        (_, "number", ..) => "double precision",
        (_, "boolean", ..) => "boolean",
        (_, "array" | "object", ..) => "jsonb",
        _ => "text",
    }
}

/// "runs of characters outside letters, digits, `_`, space, `$`, `-` become `_`; cut to 63; case kept"
fn column_name(name: &str) -> String {
    let stays = |c: char| c.is_alphanumeric() || "_ $-".contains(c);
    let mut cleaned: Vec<char> = name.chars().map(|c| if stays(c) { c } else { '\0' }).collect();
    cleaned.dedup_by(|next, before| (*next, *before) == ('\0', '\0'));
    let cleaned: String = cleaned.into_iter().map(|c| if c == '\0' { '_' } else { c }).collect();
    assert!(cleaned.is_ascii(), "the smoke test has no other names: {name}");
    cleaned[..cleaned.len().min(63)].to_owned()
}

/// What holds for the column of a row in which the field has this value. The server compares, in its own arithmetic.
fn condition(column: &str, kind: &str, value: Option<&RawValue>) -> String {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let raw = value.map_or("null", RawValue::get);
    let text = serde_json::from_str::<String>(raw);
    match (kind, raw.as_bytes()[0]) {
        (_, b'n') => format!("\"{column}\" IS NULL"),
        ("bigint", b'-' | b'0'..=b'9') => format!("\"{column}\"::text = {}", literal(raw)),
        ("double precision", b'-' | b'0'..=b'9') => format!("\"{column}\" = {}::float8", literal(raw)),
        ("boolean", b't' | b'f') => format!("\"{column}\" = {raw}"),
        // The session that compares has UTC as its zone.
        ("timestamp with time zone", b'"') => {
            format!("\"{column}\" = {}::timestamptz", literal(&text.expect("a string")))
        }
        ("jsonb", _) => format!("\"{column}\" = {}::jsonb", literal(raw)),
        ("text", b'"') => format!("\"{column}\" = {}", literal(&text.expect("a string"))),
        ("text", _) => format!("\"{column}\" = {}", literal(raw)),
        _ => panic!("{raw} does not fit into {column} {kind}: the smoke test has no such value"),
    }
}

/// The table, for people: columns, key, rows.
fn tell_table(world: &World, table: &str, told: &mut String) {
    let columns = world.schema.columns(table);
    let key = world.schema.texts(&format!(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = '\"{table}\"'::regclass"
    ));
    let (name, key) = (table, key.first().map_or("no key", String::as_str));
    writeln!(told, "== {name}: {key}").expect("a String");
    for (name, kind) in &columns {
        writeln!(told, "   {name}: {kind}").expect("a String");
    }
    let values: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"::text")).collect();
    let query = format!("SELECT ARRAY[{}] FROM \"{table}\" t ORDER BY \"{}\", t::text", values.join(","), columns[0].0);
    for row in world.schema.rows(&query) {
        let values: Vec<String> =
            row.get::<_, Vec<Option<String>>>(0).iter().map(|value| legible(value.as_deref())).collect();
        writeln!(told, " - {}", values.join(" | ")).expect("a String");
    }
}

fn legible(value: Option<&str>) -> String {
    let Some(value) = value else { return "∅".to_owned() };
    let length = value.chars().count();
    if length <= LEGIBLE {
        return value.escape_debug().to_string();
    }
    let beginning: String = value.chars().take(20).collect();
    format!("{}… {length} characters, MD5 {}", beginning.escape_debug(), hex::encode(Md5::digest(value)))
}
